import numpy as np
import pandas as pd
import pytest

from cytominer_tools import read_table
from cytominer_tools.errors import InputError
from cytominer_tools.queries import select
from evaluation import cosine, enrichment, largest_classes, phenotype_strength, precision_at_r, strongest, subset_scores
from evaluation.subsets import split_labels, write_treatments


def test_ties_of_class_size_go_in_or_out():
    labels = np.array([0, 0, 0, 1, 1, 2, 2, 3, -1])
    assert largest_classes(labels, 1).sum() == 3
    assert largest_classes(labels, 2).sum() == 7
    assert largest_classes(labels, 2, ties="out").sum() == 3
    assert largest_classes(labels, 9).sum() == 8


def test_strength_is_the_distance_or_the_correlation():
    rng = np.random.default_rng(0)
    controls, X = rng.normal(size=(50, 10)), rng.normal(size=(6, 10)) * np.arange(1, 7)[:, None]
    np.testing.assert_allclose(phenotype_strength(X, controls), np.linalg.norm(X - controls.mean(axis=0), axis=1))
    expected = [-np.mean([np.corrcoef(x, d)[0, 1] for d in controls]) for x in X]
    np.testing.assert_allclose(phenotype_strength(X, controls, rule="correlation"), expected, atol=1e-6)
    assert strongest([1, 3, 3, 2], 2).tolist() == [False, True, True, False]
    assert strongest([1, 3, 3, 3], 2).tolist() == [False, True, True, False]


def test_each_metric_by_its_rule():
    rng = np.random.default_rng(1)
    X, labels = rng.normal(size=(80, 12)), rng.integers(0, 12, 80)
    inside = rng.random(80) < 0.5
    near = cosine(X)
    got = subset_scores(near, labels, inside, depths=[3], percentile=90).set_index(["subset", "score", "setting"])
    each = precision_at_r(near, labels).precision
    for name, kept in (("all", np.ones(80, bool)), ("in", inside), ("out", ~inside)):
        # precision among all, the mean over the subset
        assert got.loc[(name, "precision", "R = matches"), "value"] == pytest.approx(np.nanmean(each[kept]))
        # enrichment among the subset alone
        alone = enrichment(cosine(X[kept]), labels[kept], percentile=90).odds_ratio
        assert got.loc[(name, "enrichment", "percentile = 90"), "value"] == pytest.approx(alone)
    n = got.xs(("precision", "R = matches"), level=("score", "setting"))["n"]
    assert n["in"] + n["out"] == n["all"]


def test_the_list_is_a_file_and_a_query(tmp_path):
    table = pd.DataFrame({"Metadata_Compound": ["a", "b b", "c'"]})
    query = write_treatments(tmp_path / "strong.csv", table, [1, 3, 2], [False, True, True], "Metadata_Compound")
    assert read_table(tmp_path / "strong.csv")["Metadata_Compound"].tolist() == ["b b", "c'"]
    wells = pd.DataFrame({"Metadata_Compound": ["a", "c'", "b b", "d"]})
    assert select(wells, query).tolist() == [False, True, True, False]


def test_composite_labels():
    assert split_labels(pd.Series(["a|b", np.nan, "c"])).tolist() == [["a", "b"], [], ["c"]]


def test_words(tmp_path):
    with pytest.raises(InputError, match="n=0"):
        largest_classes(np.zeros(3, dtype=int), 0)
    with pytest.raises(InputError, match="expected 1 to 2"):
        strongest([1, 2], 3)
    with pytest.raises(InputError, match="there are no controls"):
        phenotype_strength(np.ones((2, 3)), np.empty((0, 3)))
    with pytest.raises(InputError, match="expected the same features"):
        phenotype_strength(np.ones((2, 3)), np.ones((2, 2)))
    with pytest.raises(InputError, match="inside: expected 3 booleans"):
        subset_scores(cosine(np.eye(3)), np.zeros(3, dtype=int), [True])
    with pytest.raises(InputError, match="no treatment is chosen"):
        write_treatments(tmp_path / "x.csv", pd.DataFrame({"t": ["a"]}), [1], [False], "t")

"""What odd profiles make of the scores, the comparison and the neighbours; the table stands in docs/metrics.md."""

import numpy as np
import pandas as pd
import pytest

from cytominer_tools.errors import InputError
from evaluation import (
    average_precision,
    class_similarity,
    cluster_table,
    compare_runs,
    component_association,
    edge_effect,
    group_association,
    largest_classes,
    moa_accuracy,
    multilabel_average_precision,
    neighbour_map,
    nested_search,
    phenotype_strength,
    principal_components,
    score,
    split_labels,
    strongest,
    wilcoxon,
)
from evaluation.scores import METRICS
from evaluation.similarity import cosine

FEATURES = [f"f{k}" for k in range(6)]


def table(n=40, classes=8):
    rng = np.random.default_rng(0)
    label = np.arange(n) % classes
    X = rng.normal(size=(n, 6)) + rng.normal(size=(classes, 6))[label]
    meta = {"Metadata_id": [f"p{k}" for k in range(n)], "Metadata_moa": [f"m{k}" for k in label]}
    return pd.DataFrame(meta | {"Metadata_Count": np.arange(n) + 10}).join(pd.DataFrame(X, columns=FEATURES))


def scored(profiles, labels="Metadata_moa", **settings):
    settings = {"metrics": METRICS, "permutations": 10, "percentile": 95, "features": FEATURES, **settings}
    return score(profiles, labels=labels, **settings)


def compared(profiles, key="Metadata_id", labels="Metadata_moa"):
    keep = [key, labels, *FEATURES]
    return compare_runs({"a": profiles[keep]}, key=[key], labels=labels, draws=20, percentile=95)


def test_one_class():
    one = table().assign(Metadata_moa="m")
    got = scored(one).table.set_index("score")
    assert got["value"]["precision_at_r"] == got["value"]["mean_average_precision"] == got["value"]["nearest"] == 1
    assert got["reason"]["enrichment"] == got["reason"]["robust_enrichment"] == "all of the 780 pairs share a label"
    assert got["notes"].str.contains("there is one label, so nothing can be shuffled").all()
    assert np.isnan(got["value"]["percent_replicating"])
    assert np.isnan(compared(one).table["enrichment"][0])


def test_classes_of_one():
    alone = table().assign(Metadata_moa=[f"m{k}" for k in range(40)])
    got = scored(alone)
    assert got.table["value"].isna().all()
    assert (got.table["reason"] != "").all()
    with pytest.raises(InputError, match="nothing is left to compare"):
        compared(alone)


@pytest.mark.parametrize("run", [scored, compared])
def test_a_row_of_nan(run):
    bad = table()
    bad.loc[3, FEATURES] = np.nan
    with pytest.raises(InputError, match=r"f0: 1 of 40 values are missing or infinite \(6 features have some\)"):
        run(bad)


def test_constant_rows():
    flat = table()
    flat.loc[3, FEATURES] = 2.0
    assert scored(flat).table["value"].notna().all()  # a direction, for the cosine
    with pytest.raises(InputError, match="row 3 is constant, so it has no correlation"):
        scored(flat, similarity="pearson")
    flat.loc[3, FEATURES] = 0.0
    with pytest.raises(InputError, match="row 3 is all zeros, so it has no direction"):
        scored(flat)
    assert compared(flat).table["n"].tolist() == [39]  # left out, and counted
    assert compared(flat).selection["rows_left"].tolist() == [40, 40, 40, 39, 39]


def test_duplicated_profiles_tie():
    same = table()
    same[FEATURES] = same.loc[0, FEATURES].to_numpy(dtype=float)
    got = scored(same, percentile=90).table.set_index("score")
    chance = 4 / 39
    for name in ("precision_at_r", "nearest", "precision_at_5"):
        assert got["value"][name] == pytest.approx(chance)
    assert got["value"]["hit_s20"] == pytest.approx(0, abs=1e-12)
    assert got["value"]["mean_average_precision"] == pytest.approx(got["chance"]["mean_average_precision"])
    assert "tie" in got["reason"]["enrichment"]


def test_no_controls():
    with pytest.raises(InputError, match="there are no controls"):
        group_association(table()[:0], ["Metadata_moa"], features=FEATURES)


def test_an_unknown_column():
    with pytest.raises(InputError, match="labels: no column 'Metadata_nothing'"):
        scored(table(), labels="Metadata_nothing")
    with pytest.raises(InputError, match="Metadata_nothing: no run has this column"):
        compare_runs({"a": table()}, key=["Metadata_id"], labels="Metadata_nothing")
    with pytest.raises(InputError, match="a: no column 'Metadata_nothing'"):
        compare_runs({"a": table()}, key=["Metadata_nothing"], labels="Metadata_moa")


@pytest.mark.parametrize("name", ["index", "Metadata_the mechanism", "level_0", "label"])
def test_names_of_columns(name):
    odd, plain = table().rename(columns={"Metadata_moa": name}), table()
    for got, expected in (
        (scored(odd, name).table, scored(plain).table),
        (compared(odd, labels=name).table, compared(plain).table),
        (
            moa_accuracy(odd, labels=name, compound="Metadata_id", features=FEATURES).table,
            moa_accuracy(plain, labels="Metadata_moa", compound="Metadata_id", features=FEATURES).table,
        ),
    ):
        pd.testing.assert_frame_equal(
            got.drop(columns="labels", errors="ignore"), expected.drop(columns="labels", errors="ignore")
        )


def test_nothing_matches_in_a_search():
    near = cosine(table()[FEATURES])
    got = nested_search({"a": near}, np.arange(40), np.arange(40), rng=np.random.default_rng(0))
    assert np.isnan(got.held_out)


def test_what_was_taken_as_it_came():
    """Input that gave a number that was wrong, a traceback, or a warning of numpy's."""
    X = np.random.default_rng(0).normal(size=(10, 4))
    lost = X.copy()
    lost[3, 0] = np.nan
    labels = np.arange(10) % 2
    with pytest.raises(InputError, match="row 3 is not finite"):
        cluster_table(lost, labels, labels)
    with pytest.raises(InputError, match="profile 3 is not finite"):
        phenotype_strength(lost, X)
    with pytest.raises(InputError, match="control 3 is not finite"):
        phenotype_strength(X, lost)
    with pytest.raises(InputError, match="strength: 1 of 3 are missing"):
        strongest([1.0, np.nan, 2.0], 2)
    for function in (principal_components, neighbour_map):
        with pytest.raises(InputError, match="a profile is not finite"):
            function(lost)
    with pytest.raises(InputError, match="k=0: expected 1 or more"):
        principal_components(X, 0)
    for function in (largest_classes, lambda codes: class_similarity(X, codes)):
        with pytest.raises(InputError, match="labels: expected 10 integer codes"):
            function(np.where(labels == 0, np.nan, 1.0))
    with pytest.raises(InputError, match="wilcoxon: a value is infinite"):
        wilcoxon([np.inf, 1.0], [np.inf, 2.0])
    with pytest.raises(InputError, match="edge_effect: expected lists of one length"):
        edge_effect(np.ones(3), ["a"] * 3, [True, False])
    assert split_labels(pd.Series(["a||b", "|", " "])).tolist() == [["a", "b"], [], []]
    meta = pd.DataFrame({"m": [["a"], ["a", 1], [1], ["b"], ["b"]]})
    assert len(multilabel_average_precision(meta, X[:5], ["m"], [], [], ["m"], "m")) == 6


def test_columns_that_stand_twice_and_cells_that_are_lists():
    profiles = table()
    double = pd.concat([profiles, profiles[["Metadata_moa"]]], axis=1)
    lists = profiles.assign(Metadata_moa=[["a"]] * 40)
    rules = (["Metadata_moa"], [], [], ["Metadata_moa"])
    for run in (
        scored,
        lambda t: compare_runs({"a": t}, key=["Metadata_id"], labels="Metadata_moa"),
        lambda t: moa_accuracy(t, labels="Metadata_moa", compound="Metadata_id", features=FEATURES),
        lambda t: average_precision(t, t[FEATURES], *rules),
    ):
        with pytest.raises(InputError, match="the table has 2 columns 'Metadata_moa'; leave one"):
            run(double)
        with pytest.raises(InputError, match=r"Metadata_moa holds \['a'\]; expected one value a row"):
            run(lists)
    again = pd.concat([profiles, profiles[["f0"]]], axis=1)
    for run in (scored, lambda t: compare_runs({"a": t}, key=["Metadata_id"], labels="Metadata_moa")):
        with pytest.raises(InputError, match="features: f0 is there more than once; leave one"):
            run(again)


def test_no_features_and_values_out_of_range():
    bare = table().drop(columns=FEATURES)
    with pytest.raises(InputError, match="a: it has no features"):
        compare_runs({"a": bare}, key=["Metadata_id"], labels="Metadata_moa")
    with pytest.raises(InputError, match="all profiles are equal"):
        component_association(bare, ["Metadata_moa"], features=[])
    plain = component_association(table(), ["Metadata_moa"], features=FEATURES)
    X, clusters = table()[FEATURES].to_numpy(), np.arange(40) % 4
    for scale in (1e300, 1e-300):
        far = table().assign(**{name: table()[name] * scale for name in FEATURES})
        got = component_association(far, ["Metadata_moa"], features=FEATURES)
        pd.testing.assert_frame_equal(got, plain)
        np.testing.assert_allclose(principal_components(X * scale).explained, principal_components(X).explained)
        annotated = {"annotations": ["m", *[None] * 39]}
        pd.testing.assert_frame_equal(
            cluster_table(X * scale, clusters, clusters, **annotated), cluster_table(X, clusters, clusters, **annotated)
        )

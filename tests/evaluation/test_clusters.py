import numpy as np
import pandas as pd
import pytest
from scipy import stats

from cytominer_tools.errors import InputError
from evaluation import class_similarity, cluster, cluster_enrichment, cluster_table

ANGLES = np.radians([0, 10, 20, 100, 110, 250])
ROWS = np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1)


def test_angles_on_paper():
    found, order = cluster(ROWS)
    assert found.tolist() == [0, 0, 0, 1, 1, 2]
    assert sorted(order) == list(range(6))
    assert cluster(ROWS * np.array([[1], [5], [0.1], [2], [3], [7]]))[0].tolist() == found.tolist()  # length is nothing
    sixty = np.stack([np.cos(np.radians([0, 60])), np.sin(np.radians([0, 60]))], axis=1)
    assert cluster(sixty)[0].tolist() == [0, 0]
    assert len(set(cluster(np.stack([ROWS[0], -ROWS[0]]))[0])) == 2
    assert cluster(ROWS[:1])[0].tolist() == [0]


def test_clusters_do_not_depend_on_order():
    X = np.random.default_rng(0).normal(size=(40, 3))
    found, _ = cluster(X)
    order = np.random.default_rng(1).permutation(40)
    moved, _ = cluster(X[order])
    assert ((found[order][:, None] == found[order]) == (moved[:, None] == moved)).all()
    # average linkage: inside a cluster every row is on average within the cut of the rest
    for number in np.unique(found):
        members = X[found == number]
        unit = members / np.linalg.norm(members, axis=1, keepdims=True)
        if len(members) == 2:
            assert 1 - unit[0] @ unit[1] <= 0.5 + 1e-5


def test_enrichment_is_fishers():
    clusters = np.array([0] * 5 + [1] * 5)
    labels = ["a", "a", "a", "b", None, "b", "b", "a", "c", "c"]
    got = cluster_enrichment(clusters, labels).set_index(["cluster", "label"])
    p = stats.fisher_exact([[3, 2], [1, 4]], alternative="greater")[1]
    assert got.loc[(0, "a"), "p"] == pytest.approx(p)
    assert got.index.tolist() == [(0, "a"), (1, "c"), (1, "b")]
    np.testing.assert_allclose(got["q"], stats.false_discovery_control(got["p"]))
    sets = cluster_enrichment([0, 0], [["x", "y"], ["x"]], background=[["x"], ["x"], ["y"], []])
    assert sets[["label", "in_background", "background"]].to_numpy().tolist() == [["x", 2, 4]]
    assert cluster_enrichment([0, 1], ["a", "a"]).empty


def test_similarity_is_two_minus_distance():
    got = class_similarity(ROWS, np.array([0, -1, 0, 1, -1, -1]))
    assert got[1, 0] == pytest.approx(1 + np.cos(np.radians(10)), abs=1e-6)
    assert got[5, 1] == pytest.approx(1 + np.cos(np.radians(150)), abs=1e-6)
    assert np.isnan(got[3, 1])
    assert class_similarity(ROWS, np.array([0, -1, 0, 1, -1, -1]), own=True)[3, 1] == pytest.approx(2)
    assert ((got[~np.isnan(got)] >= 0) & (got[~np.isnan(got)] <= 2)).all()


def test_new_phenotypes_and_strays():
    found, _ = cluster(ROWS)
    treatments = ["t", "t", "u", "v", "v", "u"]
    got = cluster_table(ROWS, found, treatments, annotations=["m", None, None, None, None, None]).set_index("cluster")
    # the last row is the one replicate of u that is away from the other
    assert got["single_replicate"].tolist() == [False, False, True]
    assert got["novel"].tolist() == [False, True, True]
    assert got["annotated"].tolist() == [1, 0, 0]
    assert got.loc[1, "nearest_class"] == "m"
    assert got.loc[1, "similarity"] == pytest.approx(1 + np.cos(np.radians(105)), abs=1e-6)
    assert cluster_table(ROWS, found, treatments).columns.tolist() == [
        "cluster",
        "size",
        "treatments",
        "single_replicate",
    ]


def test_words():
    with pytest.raises(InputError, match='expected "average", "single" or "complete"'):
        cluster(ROWS, method="ward")
    with pytest.raises(InputError, match="row 0 is all zeros"):
        cluster(np.zeros((2, 2)))
    with pytest.raises(InputError, match="labels: got 1 for 2 rows"):
        cluster_enrichment([0, 0], ["a"])
    with pytest.raises(InputError, match="background: 'a' is there 1 times, in cluster 0 2 times"):
        cluster_enrichment([0, 0], ["a", "a"], background=["a", "b"])
    with pytest.raises(InputError, match="got 6 profiles, 2 clusters"):
        cluster_table(ROWS, [0, 1], list("abcdef"))


def test_labels_may_be_a_column():
    got = cluster_enrichment([0, 0, 1], pd.Series(["a", "a", np.nan]))
    assert got["in_background"].tolist() == [2]

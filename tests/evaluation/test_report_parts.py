import numpy as np
import pandas as pd
import pytest
from scipy.cluster.hierarchy import cophenet, linkage
from scipy.spatial.distance import pdist
from sklearn.decomposition import PCA

from cytominer_tools.errors import InputError
from evaluation.embedding import principal_components
from evaluation.report_parts import (
    Wells,
    activity,
    class_precision,
    dose_responses,
    replicate_similarity,
    score_curves,
    score_interval,
    similarity_tree,
)
from evaluation.similarity import cosine


def some_wells(treatments=6, replicates=4, controls=20, effect=5.0, width=10, seed=0):
    rng = np.random.default_rng(seed)
    names = np.array(
        [f"t{i}" for i in range(treatments) for _ in range(replicates)] + ["DMSO"] * controls, dtype=object
    )
    means = {name: effect * rng.normal(size=width) for name in sorted(set(names))}
    X = rng.normal(size=(len(names), width)) + [0 * means[n] if n == "DMSO" else means[n] for n in names]
    table = pd.DataFrame({"Metadata_Plate": np.arange(len(names)) % 2})
    return Wells(table, X, names, names == "DMSO")


@pytest.mark.parametrize("shape", [(40, 9), (9, 40)])
def test_components_are_those_of_scikit_learn(shape):
    X = np.random.default_rng(0).normal(size=shape)
    ours, theirs = principal_components(X, 3), PCA(3).fit(X)
    np.testing.assert_allclose(ours.explained, theirs.explained_variance_ratio_, rtol=1e-9)
    np.testing.assert_allclose(np.abs(ours.points), np.abs(theirs.transform(X)), atol=1e-8)


def test_components_have_one_sign():
    X = np.random.default_rng(0).normal(size=(30, 5))
    shuffled = np.random.default_rng(1).permutation(30)
    again = principal_components(X[shuffled]).points
    np.testing.assert_allclose(principal_components(X).points[shuffled], again, atol=1e-9)


def test_components_need_three_different_rows():
    with pytest.raises(InputError, match="2 profiles: components need at least 3"):
        principal_components(np.eye(2))
    with pytest.raises(InputError, match="all profiles are equal"):
        principal_components(np.ones((4, 2)))


def test_replicates_are_alike_and_shuffled_ones_are_not():
    found, null = replicate_similarity(some_wells())
    assert found["replicates"].all()
    assert found["treatment"].tolist() == [f"t{i}" for i in range(6)]
    assert np.median(null) < 0.5 < found["median"].min()
    # nothing but noise: percent replicating is what chance gives
    noise, null = replicate_similarity(some_wells(treatments=60, effect=0.0))
    assert noise["replicates"].mean() < 0.2
    assert abs(noise["median"].mean() - null.mean()) < 0.05


def test_excluded_wells_are_no_replicates():
    wells = some_wells(replicates=2)
    apart = Wells(wells.table.assign(Metadata_Plate=0), wells.X, wells.treatment, wells.control, ("Metadata_Plate",))
    with pytest.raises(InputError, match="no two wells of a treatment differ in Metadata_Plate"):
        replicate_similarity(apart)


def test_active_treatments_are_told_from_controls():
    found = activity(some_wells())
    assert (found["mean_average_precision"] == 1).all()
    assert (found["q_value"] < 0.05).all()
    assert (found["n"] == 4).all()
    noise = activity(some_wells(treatments=40, effect=0.0))
    assert (noise["p_value"] < 0.05).mean() < 0.2


def test_classes_find_each_other():
    X = np.array([[1, 0.1, 0], [1, -0.1, 0], [0, 1, 0.1], [0, 1, -0.1]])
    found = class_precision(X, ["a", "a", "b", "b"])
    assert found["label"].tolist() == ["a", "b"]
    assert (found["mean_average_precision"] == 1).all()


def test_a_tree_is_that_of_scipy():
    X = np.random.default_rng(0).normal(size=(12, 4))
    tree = similarity_tree(cosine(X).rows(0, 12).astype(float))
    assert sorted(tree.order) == list(range(12))
    heights = np.sort(tree.up.max(axis=1))
    np.testing.assert_allclose(heights, np.sort(linkage(pdist(X, "cosine"), "average")[:, 2]), atol=1e-6)
    assert cophenet(linkage(pdist(X, "cosine"), "average")).max() == pytest.approx(tree.up.max(), abs=1e-6)
    # a leaf stands at a whole number
    assert {0.0, 11.0} <= set(tree.across.ravel())


def test_a_rising_compound_has_an_ec50_and_a_flat_one_says_why():
    rng = np.random.default_rng(0)
    c = np.tile(10.0 ** np.arange(-2, 3), 4)
    up = 8 / (1 + 1 / c)
    X = np.zeros((60, 3)) + 0.1 * rng.normal(size=(60, 3))
    X[:20, 0] += up
    compound = np.array(["rises"] * 20 + ["flat"] * 20 + [""] * 20, dtype=object)
    wells = Wells(pd.DataFrame(index=range(60)), X, compound, np.arange(60) >= 40)
    doses, controls = dose_responses(wells, compound, np.concatenate([c, c, np.full(20, np.nan)]))
    assert [dose.compound for dose in doses] == ["rises", "flat"]
    assert doses[0].fit.ec50 == pytest.approx(1, rel=0.1)
    assert doses[1].fit.reason.startswith("flat")
    assert len(controls) == 20
    unfitted, _ = dose_responses(wells, compound, np.concatenate([c, c, np.full(20, np.nan)]), most_fits=1)
    assert [dose.fit is None for dose in unfitted] == [False, True]
    with pytest.raises(InputError, match="at least 4 concentrations of a compound, the most that one has here is 1"):
        dose_responses(wells, compound, np.where(compound == "", np.nan, 1.0))


def test_curves_of_perfect_profiles():
    X = np.repeat(np.eye(4), 3, axis=0)
    curves = score_curves(X, np.repeat(np.arange(4), 3))
    assert curves.precision.set_index("k")["precision"][2] == 1
    assert curves.precision.set_index("k")["recall"][2] == 1
    with pytest.raises(InputError, match="share one label, so every neighbour is a match"):
        score_curves(X[:3] + np.eye(3, 4), np.zeros(3, dtype=np.int64))
    with pytest.raises(InputError, match="no two of the scored profiles share a label"):
        score_curves(np.eye(4), np.arange(4))


def test_the_interval_redraws_classes():
    queries = pd.DataFrame({"label": ["a"] * 9 + ["b"], "precision_at_r": [1.0] * 9 + [0.0]})
    found = score_interval(queries)
    assert (found.value, found.low, found.high, found.n) == (0.9, 0.0, 1.0, 2)
    rng = np.random.default_rng(0)
    some = pd.DataFrame({"label": np.repeat(list("zbyaxcwdvetf"), 2), "precision_at_r": rng.uniform(size=24) ** 3})
    one, other = score_interval(some), score_interval(some[::-1])  # the order of rows changes nothing
    assert (one.low, one.high) == pytest.approx((other.low, other.high), rel=1e-12)
    assert np.isnan(score_interval(queries[:0]).value)
    assert np.isnan(score_interval(queries, "mean_average_precision").value)
    averages = queries.rename(columns={"precision_at_r": "average_precision"})
    assert score_interval(averages, "mean_average_precision") == found
    assert np.isnan(score_interval(queries, "hit_s20").value)

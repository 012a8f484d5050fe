import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cytominer_tools.errors import InputError
from evaluation import (
    cosine,
    enrichment,
    enrichment_curve,
    hit_curve,
    match_ranks,
    percent_replicating,
    precision_at_r,
    precision_recall_curve,
    robust_enrichment,
)
from evaluation.curves import PairOrder
from evaluation.similarity import precomputed


def problem(seed, n=30, levels=None, classes=5):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(n, n)) if levels is None else rng.integers(0, levels, (n, n))
    return (
        precomputed(np.triu(values, 1) + np.triu(values, 1).T),
        rng.integers(-1, classes, n),
        rng.integers(-1, 6, (n, 1)),
    )


# --- parity: numpy over a list of all pairs
@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([None, 3]), st.sampled_from(["all", "others"]), st.booleans())
def test_marks_are_quantiles(seed, levels, among, twice):
    near, labels, exclude = problem(seed, levels=levels)
    pairs = PairOrder(near, labels, among=among, exclude=exclude)
    i, j = np.triu_indices(30, 1)
    exists = (exclude[i, 0] != exclude[j, 0]) | (exclude[i, 0] < 0)
    match = (labels[i] == labels[j]) & (labels[i] >= 0)
    values = near.matrix[i, j]
    assert sorted(pairs.matched) == sorted(values[exists & match])
    ordered = values[exists] if among == "all" else values[exists & ~match]
    shares = [0, 0.3, 0.9, 0.995, 1]
    got, above = pairs.marks(shares, twice=twice)
    expected = np.quantile(np.repeat(ordered, 2) if twice else ordered, shares)
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-9)
    assert above.tolist() == [int((ordered > t).sum()) for t in got]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([None, 4]))
def test_curve_holds_the_single_score(seed, levels):
    near, labels, exclude = problem(seed, levels=levels)
    curve = enrichment_curve(near, labels, [80, 95], exclude=exclude)
    for row in curve.itertuples():
        one = enrichment(near, labels, exclude=exclude, percentile=row.percentile)
        assert row.threshold == pytest.approx(one.threshold, rel=1e-6)
        assert (row.above_match, row.above_other, row.below_match, row.below_other) == (
            one.above_match,
            one.above_other,
            one.below_match,
            one.below_other,
        )
    a, b, c, d = curve.iloc[0, -4:].to_numpy(dtype=float) + 0.5
    assert curve["robust"][0] == pytest.approx(a * d / (b * c))
    assert curve["robust_low"][0] < curve["robust"][0] < curve["robust_high"][0]
    assert robust_enrichment(curve) == pytest.approx(np.sqrt(curve["robust"].prod()))


# --- precision and recall, from the places of matches
@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([None, 3]))
def test_precision_at_r_from_places(seed, levels):
    near, labels, exclude = problem(seed, levels=levels)
    ranks = match_ranks(near, labels, exclude=exclude)
    one = precision_at_r(near, labels, exclude=exclude)
    assert ranks.n_matches.tolist() == one.n_matches.tolist()
    has = one.n_matches > 0
    np.testing.assert_allclose(
        ranks.within(np.maximum(one.n_matches, 1))[has] / one.n_matches[has], one.precision[has], rtol=1e-6
    )


def test_precision_recall_of_six_on_paper():
    near = precomputed([[0, 9, 5, 1], [9, 0, 4, 3], [5, 4, 0, 2], [1, 3, 2, 0]])
    ranks = match_ranks(near, np.array([0, 1, 0, 1]))
    # matches stand at 2 of 3 (first), 3 of 3 (second), 1 (third), 1 (fourth)
    assert (ranks.above + 1).tolist() == [2, 3, 1, 1]
    got = precision_recall_curve(ranks, [1, 2, 3])
    assert got["precision"].tolist() == pytest.approx([2 / 4, 3 / 8, 4 / 12])
    assert got["recall"].tolist() == pytest.approx([2 / 4, 3 / 4, 1])
    assert got["chance"].tolist() == pytest.approx([1 / 3] * 3)


def test_random_order_has_chance_precision_and_a_flat_curve():
    rng = np.random.default_rng(0)
    labels = np.arange(200) % 20
    ranks = match_ranks(cosine(rng.normal(size=(200, 50))), labels)
    got = precision_recall_curve(ranks, [10, 50])
    np.testing.assert_allclose(got["precision"], got["chance"], rtol=0.25)
    flat = hit_curve(match_ranks(cosine(np.ones((20, 3))), np.arange(20) % 4))
    assert flat.s20 == pytest.approx(0)
    np.testing.assert_allclose(flat.curve["excess"], 0, atol=1e-12)
    assert flat.first == pytest.approx({0.01: 0.01, 0.05: 0.05, 0.2: 0.2})


def test_perfect_order_is_the_highest():
    labels = np.arange(300) % 150
    X = np.random.default_rng(0).normal(size=(150, 400))[labels]
    got = hit_curve(match_ranks(cosine(X + 1e-3 * np.random.default_rng(1).normal(size=X.shape)), labels))
    assert got.s20 == pytest.approx(0.9, abs=0.01)
    assert got.histogram["hits"][0] == 300
    assert got.curve["excess"].iloc[[0, -1]].abs().max() < 1e-12


def test_one_class_no_matches_nothing():
    near, _, _ = problem(0)
    none = hit_curve(match_ranks(near, np.arange(30)))
    assert (none.n, np.isnan(none.s20)) == (0, True)
    assert precision_recall_curve(match_ranks(near, np.arange(30)), [5])["precision"].isna().all()
    curve = enrichment_curve(near, np.zeros(30, dtype=int), [90])
    assert curve["odds_ratio"].isna().all()
    assert np.isfinite(curve["robust"]).all()


# --- percent replicating
def test_percent_replicating():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(30), 4)
    noise = rng.normal(size=(120, 60))
    alike = noise + 1.5 * rng.normal(size=(30, 60))[labels]
    assert percent_replicating(cosine(alike), labels, rng=np.random.default_rng(1))["replicates"].mean() > 0.9
    random = percent_replicating(cosine(noise), labels, rng=np.random.default_rng(1))
    assert random["replicates"].mean() < 0.25
    assert random["n"].tolist() == [4] * 30
    single = percent_replicating(cosine(noise[:3]), np.array([0, 0, 1]), rng=np.random.default_rng(1))
    assert single["label"].tolist() == [0]
    excluded = percent_replicating(cosine(noise), labels, exclude=labels, rng=np.random.default_rng(1))
    assert excluded.empty


def test_words():
    near, labels, _ = problem(0)
    with pytest.raises(InputError, match="percentiles: 100 is not between 0 and 100"):
        enrichment_curve(near, labels, [100])
    with pytest.raises(InputError, match="depths: 0 is below 1"):
        precision_recall_curve(match_ranks(near, labels), [0])
    with pytest.raises(InputError, match="draws=5: a 95th percentile needs at least 20"):
        percent_replicating(near, labels, draws=5, rng=np.random.default_rng(0))

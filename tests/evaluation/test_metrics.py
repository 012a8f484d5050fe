import os
from itertools import combinations, pairwise, permutations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats.contingency import odds_ratio
from sklearn.metrics import average_precision_score

from cytominer_tools.errors import InputError
from evaluation.metrics import Neighbours, TopPairs, enrichment, precision_at_r, sweep
from evaluation.similarity import cosine, pearson, precomputed

DATA = Path(os.environ.get("DEEPPROFILE_DATA", Path(__file__).parents[3] / "shared" / "data"))


def symmetric(rng, n, levels=None):
    """A similarity matrix; with `levels`, so coarse that it is full of ties."""
    values = rng.normal(size=(n, n)) if levels is None else rng.integers(0, levels, size=(n, n))
    return np.triu(values, 1) + np.triu(values, 1).T


def slow_precision(matrix, labels, exclude, extra=0):
    """Every order of the candidates that their ties allow, one by one: precision and first rank of each query."""
    found = []
    for query in range(len(labels)):
        candidates = [j for j in range(len(labels)) if j != query and not shares(exclude, query, j)]
        matches = {j for j in candidates if labels[j] == labels[query] and labels[query] >= 0}
        if not matches:
            found.append((np.nan, np.nan, 0, len(candidates)))
            continue
        precisions, ranks = [], []
        for order in permutations(candidates):
            values = [matrix[query][j] for j in order]
            if all(a >= b for a, b in pairwise(values)):
                r = len(matches) + extra
                precisions.append(sum(j in matches for j in order[:r]) / r)
                ranks.append(1 + min(place for place, j in enumerate(order) if j in matches))
        found.append((np.mean(precisions), np.mean(ranks), len(matches), len(candidates)))
    return [np.array(column) for column in zip(*found, strict=True)]


def shares(exclude, i, j):
    return any(a == b and a >= 0 for a, b in zip(exclude[i], exclude[j], strict=True))


def slow_table(matrix, labels, exclude, percentile):
    """The same four counts from a list of all pairs."""
    pairs = [(i, j) for i, j in combinations(range(len(labels)), 2) if not shares(exclude, i, j)]
    values = np.array([matrix[i][j] for i, j in pairs], dtype=np.float64)
    match = np.array([labels[i] == labels[j] and labels[i] >= 0 for i, j in pairs], dtype=bool)
    threshold = np.quantile(values, percentile / 100)
    above = values > threshold
    return threshold, [int(x.sum()) for x in (above & match, above & ~match, ~above & match, ~above & ~match)]


# --- parity: ties by exact enumeration
@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(0, 2), st.sampled_from(["matches", "class_size"]))
def test_precision_is_the_mean_over_all_orders(seed, levels, columns, r):
    rng = np.random.default_rng(seed)
    matrix, labels = symmetric(rng, 7, levels), rng.integers(-1, 3, 7)
    exclude = rng.integers(-1, 3, (7, columns))
    got = precision_at_r(precomputed(matrix), labels, exclude=exclude, r=r, block_rows=3)
    precision, rank, matches, candidates = slow_precision(matrix, labels, exclude, extra=r == "class_size")
    np.testing.assert_allclose(got.precision, precision, rtol=1e-12)
    np.testing.assert_allclose(got.first_rank, rank, rtol=1e-12)
    assert got.n_matches.tolist() == matches.tolist()
    assert got.n_candidates.tolist() == candidates.tolist()


def test_precision_is_the_mean_over_random_tie_breaks():
    rng = np.random.default_rng(5)
    matrix, labels = symmetric(rng, 30, 3), rng.integers(0, 4, 30)
    breaks = []
    for _ in range(2000):
        order = np.lexsort((rng.random((30, 30)), -matrix - 99 * -np.eye(30)), axis=1)
        hits = labels[order] == labels[:, None]
        breaks.append([hits[i, : (labels == labels[i]).sum() - 1].mean() for i in range(30)])
    got = precision_at_r(precomputed(matrix), labels).precision
    error = np.std(breaks, axis=0) / np.sqrt(len(breaks))
    assert (np.abs(np.mean(breaks, axis=0) - got) < 5 * error + 1e-12).all()


def test_single_matches_agree_with_sklearn():
    """With one match a query, average precision is 1 / rank."""
    rng = np.random.default_rng(6)
    matrix, labels = symmetric(rng, 20), np.arange(20) // 2
    got = precision_at_r(precomputed(matrix), labels)
    for query in range(20):
        others = np.arange(20) != query
        expected = average_precision_score(labels[others] == labels[query], matrix[query][others])
        assert got.first_rank[query] == pytest.approx(1 / expected)
        assert got.precision[query] == (got.first_rank[query] == 1)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([None, 3, 30]), st.integers(0, 2), st.sampled_from([50, 90.0, 99.5]))
def test_enrichment_counts_agree_with_a_list_of_pairs(seed, levels, columns, percentile):
    rng = np.random.default_rng(seed)
    matrix, labels = symmetric(rng, 25, levels).astype(np.float32), rng.integers(-1, 5, 25)
    exclude = rng.integers(-1, 6, (25, columns))
    got = enrichment(precomputed(matrix), labels, exclude=exclude, percentile=percentile, block_rows=4)
    threshold, counts = slow_table(matrix, labels, exclude, percentile)
    assert got.threshold == pytest.approx(threshold, rel=1e-12)
    assert [got.above_match, got.above_other, got.below_match, got.below_other] == counts
    assert got.n_pairs == sum(counts)
    if got.reason:
        assert np.isnan(got.odds_ratio)
    else:
        table = [[counts[0], counts[1]], [counts[2], counts[3]]]
        assert got.odds_ratio == pytest.approx(odds_ratio(table, kind="sample").statistic)


@pytest.mark.data
def test_cytominer_eval_agrees_on_a_real_plate():
    path = DATA / "lincs_plate_SQ00015054" / "SQ00015054_normalized_feature_select.csv.gz"
    table = pd.read_csv(path, low_memory=False)
    similarity = pearson(table[[name for name in table if not name.startswith("Metadata_")]].to_numpy())
    labels = {
        "sample": pd.factorize(table["Metadata_broad_sample"])[0],
        # cytominer-eval makes the missing one a label of its own, "nan"
        "moa": pd.factorize(table["Metadata_moa"], use_na_sentinel=False)[0],
        "dose": table.groupby(["Metadata_broad_sample", "Metadata_mg_per_ml"], dropna=False).ngroup().to_numpy(),
    }
    # it ran over (a, b) and (b, a): counts double, and the threshold falls between other neighbours
    peer = {
        99.5: (0.762724, 73.61844362843352, 46.98173479561316, 86.77760132818422),
        98: (0.605410, 27.247118482059175, 17.276813109005698, 34.953056),
        95: (0.497345, 14.381946084465994, 9.187248149205708, 16.712837),
        90: (0.385377, 10.420404457121426, 6.343815228702353, 10.194802),
    }
    for percentile, (threshold, *ratios) in peer.items():
        for codes, ratio in zip(labels.values(), ratios, strict=True):
            got = enrichment(similarity, codes, percentile=percentile)
            assert got.threshold == pytest.approx(threshold, abs=3e-4)
            assert got.odds_ratio == pytest.approx(ratio, rel=1e-7)
    # its figures for single pairs, which is what is counted here
    single = enrichment(similarity, labels["sample"], percentile=99)
    assert single.threshold == pytest.approx(0.6792028239225677, abs=1e-7)
    assert single.odds_ratio == pytest.approx(47.46054054054054, rel=1e-12)
    half = enrichment(similarity, labels["sample"], percentile=99.5)
    assert (2 * half.above_match, 2 * half.above_other, 2 * half.below_match) == (382, 354, 2114)


# --- property
def test_perfect_clusters_score_one():
    labels = np.arange(60) % 6
    clusters = cosine(np.eye(6)[labels] + np.random.default_rng(0).normal(0, 0.01, (60, 6)))
    assert (precision_at_r(clusters, labels).precision == 1).all()
    np.testing.assert_allclose(precision_at_r(clusters, labels, r="class_size").precision, 0.9)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([None, 4]))
def test_order_of_rows_and_monotone_scale_change_nothing(seed, levels):
    rng = np.random.default_rng(seed)
    matrix, labels, plates = symmetric(rng, 24, levels), rng.integers(-1, 4, 24), rng.integers(0, 3, 24)
    order = rng.permutation(24)
    one = precision_at_r(precomputed(matrix), labels, exclude=plates)
    moved = precision_at_r(precomputed(matrix[np.ix_(order, order)]), labels[order], exclude=plates[order])
    bent = precision_at_r(precomputed(np.arctan(matrix)), labels, exclude=plates)
    np.testing.assert_array_equal(one.precision[order], moved.precision)
    np.testing.assert_array_equal(one.first_rank[order], moved.first_rank)
    np.testing.assert_array_equal(one.precision, bent.precision)
    two = enrichment(precomputed(matrix), labels, exclude=plates, percentile=80)
    moved = enrichment(precomputed(matrix[np.ix_(order, order)]), labels[order], exclude=plates[order], percentile=80)
    assert repr(two) == repr(moved)  # NaN is not equal to itself, but it reads the same


@pytest.mark.parametrize("rows", [1, 7, 50])
def test_block_size_changes_no_bit(rows):
    rng = np.random.default_rng(8)
    similarity, labels, plates = cosine(rng.normal(size=(50, 9))), rng.integers(-1, 9, 50), rng.integers(0, 4, 50)
    one = precision_at_r(similarity, labels, exclude=plates)
    other = precision_at_r(similarity, labels, exclude=plates, block_rows=rows)
    for name in ("precision", "first_rank", "n_matches", "n_candidates"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert enrichment(similarity, labels) == enrichment(similarity, labels, block_rows=rows)


def test_many_labellings_at_once_equal_one_by_one():
    rng = np.random.default_rng(9)
    similarity = precomputed(symmetric(rng, 40, 9))
    labels, exclude = rng.integers(-1, 6, (5, 40)), rng.integers(-1, 9, (40, 2))
    near, top = Neighbours(labels[0], labels[1:], exclude), TopPairs(40, exclude, percentile=80)
    sweep(similarity, exclude, [near, top], block_rows=11)
    ratios = top.odds_ratios(labels)
    for codes, mean, ratio in zip(labels, near.means(), ratios, strict=True):
        assert mean == pytest.approx(np.nanmean(precision_at_r(similarity, codes, exclude=exclude).precision))
        assert ratio == enrichment(similarity, codes, exclude=exclude, percentile=80).odds_ratio


def test_shuffled_labels_score_the_share_of_matches():
    rng = np.random.default_rng(10)
    similarity, labels = cosine(rng.normal(size=(90, 5))), np.arange(90) // 9
    shuffled = np.stack([rng.permutation(labels) for _ in range(400)])
    near = Neighbours(labels, shuffled, np.empty((90, 0), dtype=np.int64))
    sweep(similarity, np.empty((90, 0), dtype=np.int64), [near])
    values = near.means()[1:]
    assert abs(values.mean() - 8 / 89) < 5 * values.std() / np.sqrt(len(values))


# --- golden: worked out on paper
def test_four_rows_on_a_line():
    """Places 0, 1, 3, 7 with labels a, b, a, b."""
    place = np.array([0, 1, 3, 7])
    got = precision_at_r(precomputed(-np.abs(place[:, None] - place)), np.array([0, 1, 0, 1]))
    assert got.precision.tolist() == [0, 0, 0, 0]
    assert got.first_rank.tolist() == [2, 3, 2, 2]


def test_a_tie_over_the_edge_is_shared():
    """Two matches among four candidates that all tie: each of the first two places is a match half of the time."""
    got = precision_at_r(precomputed(np.zeros((5, 5))), np.array([0, 0, 0, 1, -1]))
    np.testing.assert_allclose(got.precision, [0.5, 0.5, 0.5, np.nan, np.nan])
    np.testing.assert_allclose(got.first_rank, [5 / 3, 5 / 3, 5 / 3, np.nan, np.nan])
    assert got.n_candidates.tolist() == [4] * 5


def test_class_size_counts_the_query():
    pair = precomputed([[0, 9, 1], [9, 0, 1], [1, 1, 0]])
    assert precision_at_r(pair, np.array([0, 0, 1]), r="class_size").precision.tolist()[:2] == [0.5, 0.5]


def test_odds_of_six_pairs():
    """Similarities 6 5 4 3 2 1, threshold 3.5; above: two of three match, below: one of three; (2/1)/(1/2) = 4."""
    matrix = np.zeros((4, 4))
    matrix[np.triu_indices(4, 1)] = [6, 5, 3, 4, 1, 2]  # 01 02 03 12 13 23
    got = enrichment(precomputed(matrix + matrix.T), np.array([0, 0, 0, -1]), percentile=50)
    assert (got.above_match, got.above_other, got.below_match, got.below_other, got.threshold) == (3, 0, 0, 3, 3.5)
    matrix[1, 2] = 2.5
    got = enrichment(precomputed(matrix + matrix.T), np.array([0, 0, 0, -1]), percentile=50)
    assert (got.above_match, got.above_other, got.below_match, got.below_other) == (2, 1, 1, 2)
    assert (got.odds_ratio, got.reason) == (4, "")


# --- the words: why a number is not there
def line(n):
    return precomputed(-np.abs(np.arange(n)[:, None] ** 1.5 - np.arange(n) ** 1.5))


@pytest.mark.parametrize(
    ("similarity", "labels", "percentile", "words"),
    [
        (line(12), np.arange(12) // 3, 99.5, "66 pairs: the top 0.5 % is less than one pair; at least 200 are needed"),
        (
            line(40),
            np.arange(40) // 3,
            99.9,
            "780 pairs: the top 0.1 % is less than one pair; at least 1000 are needed",
        ),
        (line(2), np.zeros(2, int), 99.5, "1 pair: the top 0.5 % is less than one pair; at least 200 are needed"),
        (line(1), np.zeros(1, int), 99.5, "no pairs: fewer than two rows, or every pair is excluded"),
        (line(9), np.arange(9), 90, "none of the 36 pairs shares a label"),
        (line(9), np.zeros(9, int), 90, "all of the 36 pairs share a label"),
        (
            precomputed(np.zeros((9, 9))),
            np.arange(9) // 3,
            90,
            "no pair is above the threshold: the highest similarities tie at 0",
        ),
        (line(4), np.array([0, 0, 1, 1]), 80, "infinite: the one pair above the threshold is a match"),
        (line(4), np.array([0, 0, 1, 2]), 60, "infinite: the one match is above the threshold"),
    ],
)
def test_undefined_is_nan_with_a_reason(similarity, labels, percentile, words):
    got = enrichment(similarity, labels, percentile=percentile)
    assert np.isnan(got.odds_ratio)
    assert got.reason == words


def test_200_pairs_are_enough_at_99_5():
    assert enrichment(line(21), np.arange(21) // 3).n_pairs == 210
    assert "less than one pair" not in enrichment(line(21), np.arange(21) // 3).reason


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: precision_at_r(line(3), [0, 1]), "labels: expected 3 integer codes"),
        (lambda: precision_at_r(line(3), ["a", "b", "c"]), "labels: expected 3 integer codes"),
        (lambda: precision_at_r(line(3), [0, 1, 1], exclude=[0, 1]), "exclude: expected integer codes of shape"),
        (lambda: precision_at_r(line(3), [0, 1, 1], r="k"), 'r=\'k\': expected "matches" or "class_size"'),
        (lambda: enrichment(line(3), [0, 1, 1], percentile=100), "percentile=100: expected a number between 0 and 100"),
        (lambda: enrichment(precomputed(np.full((2, 2), np.nan)), [0, 1]), "row 0 has a similarity that is not finite"),
    ],
)
def test_wrong_input_is_refused(call, words):
    with pytest.raises(InputError, match=words):
        call()


def test_nothing_in_nothing_out():
    empty = precomputed(np.empty((0, 0)))
    assert len(precision_at_r(empty, np.empty(0, int)).precision) == 0
    assert enrichment(empty, np.empty(0, int)).n_pairs == 0

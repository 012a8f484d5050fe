from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import pearsonr
from sklearn.metrics.pairwise import cosine_similarity

from cytominer_tools.errors import InputError
from evaluation.similarity import cosine, count_similarity, pearson, precomputed


def whole(similarity):
    return similarity.rows(0, similarity.n)


# --- parity: independent implementations agree to the resolution of float32
def test_cosine_matches_sklearn():
    X = np.random.default_rng(0).normal(size=(40, 1280))
    np.testing.assert_allclose(whole(cosine(X)), cosine_similarity(X), rtol=0, atol=7e-8)


def test_pearson_matches_scipy():
    X = np.random.default_rng(1).normal(5, 1, size=(8, 30))
    expected = [[pearsonr(a, b)[0] for b in X] for a in X]
    np.testing.assert_allclose(whole(pearson(X)), expected, rtol=0, atol=7e-8)


# --- property: products are exact, so blocks and order change nothing and equal rows tie
@given(st.integers(0, 999), st.integers(1, 9))
def test_blocks_and_order_change_no_bit(seed, step):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(13, 200)).astype(np.float32)
    X[7] = X[2]
    similarity = cosine(X)
    blocks = np.concatenate([similarity.rows(i, min(i + step, 13)) for i in range(0, 13, step)])
    full = whole(similarity)
    assert np.array_equal(blocks, full)
    assert np.array_equal(full, full.T)
    assert np.array_equal(full[:, 7], full[:, 2])
    order = rng.permutation(13)
    assert np.array_equal(whole(cosine(X[order])), full[np.ix_(order, order)])


def test_dot_products_are_exact():
    unit = cosine(np.random.default_rng(2).normal(size=(2, 500))).unit
    exact = sum(Fraction(a) * Fraction(b) for a, b in zip(unit[0].tolist(), unit[1].tolist(), strict=True))
    assert Fraction(float(unit[0] @ unit[1])) == exact


@given(st.floats(1e-200, 1e200))
def test_length_of_a_row_cancels(gain):
    X = np.random.default_rng(3).normal(size=(5, 20))
    moved = X.copy()
    moved[2] *= gain
    np.testing.assert_allclose(whole(cosine(moved)), whole(cosine(X)), atol=2e-7)


# --- golden
def test_cosine_of_three_directions():
    assert whole(cosine([[1, 0], [2, 0], [0, -3]])).tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 1]]


def test_counts_differ_by_their_ratio():
    got = whole(count_similarity([0, 1, 3, 0]))
    np.testing.assert_allclose(got[0], [0, -np.log(2), -np.log(4), 0], rtol=1e-7)
    assert got.dtype == np.float32


# --- the words
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: cosine([[1, 0], [0, 0]]), "row 1 is all zeros.*select="),
        (lambda: pearson([[1, 2, 3], [0.1, 0.1, 0.1]]), "row 1 is constant"),
        (lambda: cosine([[1, 0], [0, np.nan]]), "row 1 is not finite"),
        (lambda: cosine([1, 2]), r"shape \(2,\)"),
        (lambda: count_similarity([1, np.nan, -2]), "2 of 3 counts are missing, infinite or negative"),
        (lambda: count_similarity([[1]]), "one count a row"),
        (lambda: precomputed([[0, 1], [2, 0]]), "square symmetric"),
    ],
)
def test_what_has_no_similarity_is_refused(make, words):
    with pytest.raises(InputError, match=words):
        make()

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cytominer_tools import arrays
from cytominer_tools.errors import InputError


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


# --- golden: worked out on paper
def test_mean_sd_of_three_rows():
    mean, sd = arrays.mean_sd(np.array([[1.0, 5.0], [2.0, 5.0], [3.0, 5.0]], dtype="float32"))
    assert (mean.tolist(), sd.tolist()) == ([2.0, 5.0], [1.0, 0.0])
    assert mean.dtype == "float64"


def test_rounding_alone_is_no_spread():
    assert arrays.mean_sd(np.full((7, 1), 0.1))[1] == 0


def test_one_row_has_no_spread():
    with pytest.raises(InputError, match=r"n_samples=1.*at least 2"):
        arrays.mean_sd(np.zeros((1, 3)))


def test_medians_of_odd_even_and_single_groups():
    rows = np.array([[1, 9], [5, 7], [2, 8], [3, 4], [4, 6], [7, 7]], dtype="float32")
    result = arrays.group_median(rows, np.array([0, 1, 0, 0, 1, 2]))
    np.testing.assert_array_equal(result, np.array([[2, 8], [4.5, 6.5], [7, 7]], dtype="float32"))
    assert result.dtype == "float32"


def test_median_of_two_huge_values_does_not_overflow():
    assert arrays.group_median(np.array([[3e38], [2e38]], dtype="float32"), np.array([0, 0])) == np.float32(2.5e38)


def test_no_rows_no_groups():
    assert arrays.group_median(np.empty((0, 3)), np.empty(0, dtype=int)).shape == (0, 3)
    assert arrays.group_mean(np.empty((0, 3)), np.empty(0, dtype=int)).shape == (0, 3)


def test_gains_follow_the_formula():
    # mean eigenvalue over 4 directions is (3 + 1) / 4 = 1; 1/sqrt(3 + 1), 1/sqrt(1 + 1), 1/sqrt(0 + 1)
    gains, rest = arrays.spherizing_gains(np.array([3.0, 1.0]), 4, 1.0)
    np.testing.assert_allclose([*gains, rest], [0.5, 0.5**0.5, 1.0])


def test_nothing_is_stretched_beyond_the_floor():
    gains, rest = arrays.spherizing_gains(np.array([3.0, 1e-9]), 4, 1e-2)
    assert gains.max() <= rest == pytest.approx(1 / np.sqrt(1e-2 * 3 / 4))


@pytest.mark.parametrize(
    ("eigenvalues", "ridge", "words"),
    [
        ([1.0], -1.0, "ridge=-1.0: expected a finite number of 0 or more"),
        ([1.0], np.nan, "ridge=nan"),
        ([1.0], 0.0, "span 1 of 2 directions.*ridge above 0"),
        ([], 1.0, "all of them are equal"),
    ],
)
def test_gains_refuse(eigenvalues, ridge, words):
    with pytest.raises(InputError, match=words):
        arrays.spherizing_gains(np.array(eigenvalues), 2, ridge)


def test_low_variance():
    reference = np.array([[0.0, 5, 1, 100], [0, 5, 2, 100.00001], [0, 5, 3, 100]])
    rows = np.vstack([reference, [[0.0, 9, 4, 100]]])
    assert arrays.low_variance(rows, reference, 1e-6).tolist() == [True, True, False, True]


# --- parity: an independent construction agrees
@pytest.mark.parametrize("shape", [(40, 7), (7, 40), (12, 12)])
def test_axes_are_those_of_the_svd(shape):
    centered = normal(*shape)
    centered -= centered.mean(axis=0)
    values, axes = arrays.principal_axes(centered)
    _, s, vt = np.linalg.svd(centered, full_matrices=False)
    rank = min(shape[0] - 1, shape[1])
    np.testing.assert_allclose(values, s[:rank] ** 2 / (shape[0] - 1))
    np.testing.assert_allclose(np.abs(np.sum(axes * vt[:rank], axis=1)), 1)
    np.testing.assert_allclose(axes @ axes.T, np.eye(rank), atol=1e-9)


@pytest.mark.parametrize("rank", [5, 40])  # two thin products, and one
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize(("steepest", "close"), [(90, 1e-4), (1e6, 1e-6)])
def test_float32_rows_are_spherized_as_float64_ones(rank, order, steepest, close):
    rng = np.random.default_rng(0)
    axes = np.linalg.qr(rng.normal(size=(40, 40)))[0][:rank]
    gains, rest = np.geomspace(1, steepest, rank), 0.0 if rank == 40 else 1.0
    mean, scale = rng.normal(size=40), rng.uniform(1, 2, size=40)
    x = np.asarray(rng.normal(size=(700, 40)), dtype=np.float32, order=order)
    x[:9] = rng.normal(size=(9, 1)) * axes[0] * scale + mean  # along the flattest axis
    exact = (x.astype(np.float64) - mean) / scale
    exact = exact @ (rest * np.eye(40) + axes.T @ ((gains - rest)[:, None] * axes))
    found = arrays.spherize(x, mean, scale, axes, gains, rest)
    assert found.dtype == np.float32
    # each row by its own length; steep gains go in double precision, and only the result is rounded
    off = np.linalg.norm(found - exact, axis=1) / np.linalg.norm(exact, axis=1)
    assert off.max() < close


def test_both_gram_matrices_spherize_alike():
    """The same 30 x 20 data: as it is (d x d), and with 40 features of 0 beside it (n x n)."""
    x = normal(30, 20)
    x -= x.mean(axis=0)
    zero, one = np.zeros(20), np.ones(20)
    values, axes = arrays.principal_axes(x)
    primal = arrays.spherize(x, zero, one, axes, *arrays.spherizing_gains(values, 20, 0.5))
    wide = np.hstack([x, np.zeros((30, 40))])
    values, axes = arrays.principal_axes(wide)
    gains = arrays.spherizing_gains(values, 60, 1.5)  # three times the directions, a third of the mean
    dual = arrays.spherize(wide, np.zeros(60), np.ones(60), axes, *gains)
    np.testing.assert_allclose(dual[:, :20], primal, atol=1e-9)
    np.testing.assert_allclose(dual[:, 20:], 0, atol=1e-9)


def test_blocks_do_not_show(monkeypatch):
    x = normal(50, 6)
    axes, gains = np.linalg.qr(normal(6, 6, seed=1))[0][:4], np.arange(1.0, 5)
    whole = arrays.spherize(x, x[0], np.ones(6), axes, gains, 0.3)
    monkeypatch.setattr(arrays, "_SMALL_BLOCK", 42)
    monkeypatch.setattr(arrays, "_ROWS", 7)
    np.testing.assert_allclose(arrays.spherize(x, x[0], np.ones(6), axes, gains, 0.3), whole)


groups = st.lists(st.integers(0, 5), min_size=1, max_size=60)


@settings(deadline=None)
@given(groups, st.sampled_from(["float32", "float64"]), st.sampled_from("CF"), st.booleans())
def test_reductions_match_pandas(keys, dtype, order, in_order):
    keys = np.unique(sorted(keys) if in_order else keys, return_inverse=True)[1]
    rows = np.asarray(normal(len(keys), 3, seed=len(keys)), dtype=dtype, order=order)
    grouped = pd.DataFrame(rows.astype("float64")).groupby(keys)
    tolerance = 1e-6 if dtype == "float32" else 1e-12
    np.testing.assert_allclose(arrays.group_median(rows, keys), grouped.median(), rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(arrays.group_mean(rows, keys), grouped.mean(), rtol=tolerance, atol=tolerance)


def test_input_is_left_alone():
    rows = normal(9, 2)
    before = rows.copy()
    arrays.group_median(rows, np.zeros(9, dtype=int))
    np.testing.assert_array_equal(rows, before)


@pytest.mark.parametrize("shape", [(30, 80), (80, 30), (30, 30)])
@pytest.mark.parametrize("decades", [2, 8, 12])
def test_a_steep_spectrum_is_that_of_a_singular_value_decomposition(shape, decades):
    rng = np.random.default_rng(0)
    k = min(shape) - 1
    left, right = (np.linalg.qr(rng.normal(size=(n, k)))[0] for n in shape)
    rows = (left * np.logspace(0, -decades, k)) @ right.T  # not centred
    values, axes = arrays.principal_axes(rows)
    _, singular, expected = np.linalg.svd(rows, full_matrices=False)
    assert len(values) == k
    np.testing.assert_allclose(np.sqrt(values * (len(rows) - 1)), singular[:k], rtol=1e-6, atol=1e-14)
    np.testing.assert_allclose(axes @ axes.T, np.eye(k), atol=1e-7)
    np.testing.assert_allclose(np.abs((axes * expected[:k]).sum(axis=1)), 1, rtol=1e-4 if decades == 12 else 1e-7)


def test_features_that_depend_on_others_take_directions_away():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(50, 8))
    rows = np.concatenate([rows, rows[:, :3] @ rng.normal(size=(3, 4))], axis=1)
    rows -= rows.mean(axis=0)
    values, axes = arrays.principal_axes(rows)
    assert axes.shape == (8, 12)
    np.testing.assert_allclose(rows @ axes.T @ axes, rows, atol=1e-12)
    values, axes = arrays.principal_axes(np.zeros((4, 3)))
    assert (values.shape, axes.shape) == ((0,), (0, 3))

"""Statistics by batches are those of all rows at once."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays as any_array

from cytominer_tools import arrays
from cytominer_tools.errors import InputError
from cytominer_tools.summaries import Moments, group_median_mad, group_quantiles


def cells(n=500, d=5, groups=3, dtype="float32", seed=0, missing=0.02):
    rng = np.random.default_rng(seed)
    rows = (rng.normal(size=(n, d)) * 10.0 ** np.arange(d)).astype(dtype)
    rows[:, 1] = rows[:, 1].round()  # ties, and zeros of both signs
    rows[rng.random((n, d)) < missing] = np.nan
    rows[:, 2] = 7
    return rng.integers(groups, size=n), rows


def in_batches(codes, rows, size=64):
    def batches(features):
        for start in range(0, len(rows), size):
            yield codes[start : start + size], rows[start : start + size][:, features]

    return batches


# --- parity: all rows in memory
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("groups", [1, 3, 20])  # 16 bits a pass, and 8
@pytest.mark.parametrize("missing", [0, 0.02])
def test_medians_are_those_of_all_rows(dtype, groups, missing):
    codes, rows = cells(groups=groups, dtype=dtype, missing=missing)
    step = 8 * np.finfo(dtype).eps * np.nanmax(np.abs(rows), axis=0)
    median, mad = group_median_mad(in_batches(codes, rows), groups, rows.shape[1], dtype)
    quartiles = group_quantiles(in_batches(codes, rows, 17), groups, rows.shape[1], (25, 50, 75), dtype)
    for group in range(groups):
        part = rows[codes == group]
        expected = arrays.median_mad(part)
        away = np.abs([median[group] - expected[0], mad[group] - expected[1]])
        assert (away == 0).all() if not missing else (away <= step).all()
        assert mad[group, 2] == 0
        assert (np.abs(quartiles[:, group] - np.nanpercentile(part, (25, 50, 75), axis=0)) <= step).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_moments_are_those_of_all_rows(dtype):
    codes, rows = cells(dtype=dtype)
    whole, halves = Moments(3, 5), [Moments(3, 5), Moments(3, 5)]
    for i, (some, part) in enumerate(in_batches(codes, rows)(np.arange(5))):
        whole.add(some, part)
        halves[i % 2].add(some, part)
    for found in (whole, halves[0].merge(halves[1])):
        mean, sd = found.mean_sd(ddof=0)
        for group in range(3):
            part = rows[codes == group]
            expected = arrays.mean_sd(part, ddof=0)
            np.testing.assert_allclose(mean[group], expected[0], rtol=1e-12, atol=1e-13)
            np.testing.assert_allclose(sd[group], expected[1], rtol=1e-12)
            assert sd[group, 2] == 0
            np.testing.assert_array_equal(found.low[group], np.nanmin(part, axis=0))
            np.testing.assert_array_equal(found.high[group], np.nanmax(part, axis=0))
            np.testing.assert_array_equal(found.count[group], (~np.isnan(part)).sum(axis=0))


def test_blocks_of_features_change_nothing(monkeypatch):
    codes, rows = cells()
    whole = group_median_mad(in_batches(codes, rows), 3, 5, "float32")
    monkeypatch.setattr("cytominer_tools.summaries._COUNTS", 1)
    blocks = group_median_mad(in_batches(codes, rows), 3, 5, "float32")
    np.testing.assert_array_equal(blocks, whole)


# --- property
@given(
    any_array("float32", st.tuples(st.integers(1, 30), st.just(2)), elements=st.floats(width=32)),
    st.integers(1, 7),
)
@settings(max_examples=60, deadline=None)
def test_any_floats(rows, size):
    codes = np.zeros(len(rows), dtype=np.int64)
    found = group_quantiles(in_batches(codes, rows, size), 1, 2, (50,), "float32")[0, 0]
    with np.errstate(all="ignore"):
        for j, column in enumerate(rows.T):
            known = np.sort(column[~np.isnan(column)])
            middle = known[[(len(known) - 1) // 2, len(known) // 2]] if len(known) else np.full(2, np.nan, "float32")
            np.testing.assert_array_equal(found[j], (middle[0] + middle[1]) / np.float32(2))


# --- golden
def test_five_values():
    rows = np.array([[1.0], [2.0], [3.0], [4.0], [900.0]])
    batches = in_batches(np.zeros(5, dtype=np.int64), rows, 2)
    assert [x.item() for x in group_median_mad(batches, 1, 1, "float64")] == [3.0, 1.4826]
    assert group_quantiles(batches, 1, 1, (25, 75), "float64").ravel().tolist() == [2.0, 4.0]
    found = Moments(1, 1).add(np.zeros(5, dtype=np.int64), rows)
    assert (found.mean.item(), found.squares.item(), found.low.item(), found.high.item()) == (182.0, 644410.0, 1, 900)


def test_a_group_or_a_feature_without_values():
    rows = np.array([[1.0, np.nan], [2.0, np.nan]])
    batches = in_batches(np.zeros(2, dtype=np.int64), rows)
    median, mad = group_median_mad(batches, 2, 2, "float64")
    np.testing.assert_array_equal(median, [[1.5, np.nan], [np.nan, np.nan]])
    assert mad[0, 0] == 0.5 * 1.4826
    assert np.isnan(mad[[0, 1, 1], [1, 0, 1]]).all()
    mean, sd = Moments(2, 2).add(np.zeros(2, dtype=np.int64), rows).mean_sd()
    np.testing.assert_array_equal(np.isnan(mean), [[False, True], [True, True]])
    np.testing.assert_array_equal(np.isnan(sd), np.isnan(mean))


def test_refuses():
    with pytest.raises(InputError, match="dtype=int32: expected float32 or float64"):
        group_quantiles(in_batches(np.zeros(1, np.int64), np.ones((1, 1))), 1, 1, (50,), "int32")

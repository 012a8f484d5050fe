"""Parts of a calculation on any number of cores give what one gives."""

import threading

import numpy as np
import pytest

from cytominer_tools import arrays
from cytominer_tools.correlations import correlated_pairs, weighted_replicates
from cytominer_tools.threads import each, shares


@pytest.fixture(params=[1, 3])
def cores(request, monkeypatch):
    monkeypatch.setattr("cytominer_tools.threads.workers", lambda: request.param)
    return request.param


@pytest.mark.parametrize("n", [0, 1, 2, 7, 100])
def test_shares_cover_everything_once(cores, n):
    parts = shares(n)
    assert [i for part in parts for i in range(part.start, part.stop)] == list(range(n))
    assert len(parts) == max(1, min(cores, n))


def test_shares_are_not_smaller_than_the_least(cores):
    assert all(part.stop - part.start >= 30 for part in shares(70, 30))


def test_each_is_in_order_and_tells_an_error(cores):
    assert each(lambda x: x * x, range(5)) == [0, 1, 4, 9, 16]
    with pytest.raises(ZeroDivisionError):
        each(lambda x: 1 / x, [1, 0])


def test_each_uses_the_cores(cores):
    together = threading.Barrier(cores, timeout=10)  # passes only when as many wait at it
    each(lambda _: together.wait(), range(cores))


def test_results_do_not_depend_on_the_cores(monkeypatch):
    rng = np.random.default_rng(0)
    rows, codes = rng.normal(size=(301, 130)).astype(np.float32), rng.permutation(np.arange(301) % 11)
    members = list(arrays.members(codes))
    found = []
    for n in (1, 3):
        monkeypatch.setattr("cytominer_tools.threads.workers", lambda n=n: n)
        found.append(
            [
                arrays.group_median(rows, codes),
                arrays.group_trimmed_mean(rows, codes),
                weighted_replicates(rows, members, "spearman", 0.01, 4),
                *correlated_pairs(rows, 0.05),
            ]
        )
    for one, three in zip(*found, strict=True):
        np.testing.assert_array_equal(one, three)

"""Parts of a calculation on any number of cores give what one gives."""

import threading
import time
from contextlib import closing

import numpy as np
import pytest

from cytominer_tools import arrays
from cytominer_tools.correlations import correlated_pairs, weighted_replicates
from cytominer_tools.threads import each, in_background, map_ahead, shares


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


def test_work_that_is_dealt_is_not_dealt_again(cores):
    def inside(_):
        return {*each(lambda _: threading.get_ident(), range(9)), threading.get_ident()}

    assert all(len(threads) == 1 for threads in each(inside, range(4)) if cores > 1)
    with closing(map_ahead(inside, range(4), 2)) as found:
        assert all(len(threads) == 1 for threads in found)


def test_one_part_needs_no_thread(monkeypatch):
    monkeypatch.setattr("cytominer_tools.threads.workers", lambda: 3)
    assert each(lambda _: threading.get_ident(), [0]) == [threading.get_ident()]


def test_each_uses_the_cores(cores):
    together = threading.Barrier(cores, timeout=10)  # passes only when as many wait at it
    each(lambda _: together.wait(), range(cores))


def test_results_do_not_depend_on_the_cores(monkeypatch):
    rng = np.random.default_rng(0)
    rows, codes = rng.normal(size=(301, 130)).astype(np.float32), rng.permutation(np.arange(301) % 11)
    members = list(arrays.members(codes))
    monkeypatch.setattr("cytominer_tools.correlations._BLOCK", 32)
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


def wait_until(condition):
    end = time.monotonic() + 5
    while not condition() and time.monotonic() < end:
        time.sleep(0.002)
    return condition()


# --- map_ahead
@pytest.mark.parametrize("ahead", [0, 1, 4, 99])
def test_results_come_in_order_however_long_each_takes(ahead):
    def slow(i):
        time.sleep(0.002 * (5 - i % 6))
        return i * i

    assert list(map_ahead(slow, range(20), ahead)) == [i * i for i in range(20)]
    assert list(map_ahead(slow, [], ahead)) == []


@pytest.mark.parametrize("ahead", [0, 3])
def test_no_more_is_in_memory_than_was_said(ahead):
    asked, taken, most = [], 0, 0

    def items():
        for i in range(30):
            asked.append(i)
            yield i

    for _ in map_ahead(lambda i: i, items(), ahead):
        taken += 1
        most = max(most, len(asked) - taken)
    assert (taken, most) == (30, ahead)


def test_items_are_made_before_they_are_asked_for():
    done = []
    results = map_ahead(done.append, range(9), 3)
    next(results)
    assert wait_until(lambda: len(done) == 4)


def test_an_error_comes_in_its_place_and_ends_the_work():
    seen, asked = [], []

    def work(i):
        asked.append(i)
        if i == 3:
            raise ValueError("site 3")
        return i

    with pytest.raises(ValueError, match="site 3"):  # noqa: PT012
        for value in map_ahead(work, range(100), 2):
            seen.append(value)
    assert seen == [0, 1, 2]
    assert len(asked) < 10


def test_an_error_of_the_items_is_told():
    def items():
        yield 1
        raise OSError("index")

    with pytest.raises(OSError, match="index"):
        list(map_ahead(str, items(), 0))


def test_an_early_end_leaves_no_thread():
    before = threading.active_count()
    results = map_ahead(str, range(50), 4)
    next(results)
    results.close()
    assert wait_until(lambda: threading.active_count() == before)


# --- in_background
def test_the_same_items_in_the_same_order():
    assert list(in_background(iter(range(50)), 2)) == list(range(50))
    assert list(in_background([], 2)) == []
    assert list(in_background([None, False, None], 1)) == [None, False, None]


def test_another_thread_makes_them_and_stays_close():
    names, made = set(), []

    def items():
        for i in range(20):
            names.add(threading.current_thread().name)
            made.append(i)
            yield i

    results = in_background(items(), 2)
    assert next(results) == 0
    assert wait_until(lambda: len(made) == 4)  # one taken, two wait, one is held by the thread
    time.sleep(0.05)
    assert len(made) == 4
    assert list(results) == list(range(1, 20))
    assert names != {threading.current_thread().name}


def test_an_error_comes_after_the_items_before_it():
    def items():
        yield 1
        raise KeyError("well")

    results = in_background(items(), 5)
    assert next(results) == 1
    with pytest.raises(KeyError, match="well"):
        next(results)


def test_an_early_close_ends_the_thread_and_closes_the_items():
    closed = []

    def items():
        try:
            yield from range(1000)
        finally:
            closed.append(threading.current_thread())

    before = threading.active_count()
    results = in_background(items(), 1)
    next(results)
    results.close()
    assert len(closed) == 1
    assert closed[0] is not threading.current_thread()
    assert threading.active_count() == before


def test_an_error_of_the_consumer_ends_the_thread():
    before = threading.active_count()
    with pytest.raises(RuntimeError):  # noqa: PT012
        for _ in in_background(iter(range(1000)), 1):
            raise RuntimeError
    assert wait_until(lambda: threading.active_count() == before)

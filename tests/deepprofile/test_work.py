import threading
import time

import pytest

from cytominer_tools.threads import in_background, map_ahead
from deepprofile.work import Done, Progress, by_reason, progress


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


# --- what is said
def test_what_a_stage_says_at_its_end():
    assert str(Done("locate", 3, 0, 1234, "cells")) == "locate: 1,234 cells (3 made)"
    assert (
        str(Done("locate", 1, 2, 5, "cells", (("A01", "flat"),))) == "locate: 5 cells (1 made, 2 current); 1 left out"
    )


def test_no_bar_where_nobody_looks(capsys):
    with progress("locate", 3, "sites") as advance:
        advance(3)
    assert capsys.readouterr() == ("", "")


def test_what_was_left_out_by_reason():
    why = ["/data/a b/1.tif: no such image", "s3://bucket/2.tif: no such image", "C:\\x\\3.tif: no such image"]
    size = [f"/data/{i}.tif: {i} x 5 pixels, expected 9 x 9" for i in (7, 8, 6, 4)]
    skipped = [(f"P1 A0{i} site 1", text) for i, text in enumerate([*why, *size, "no cells"])]
    assert by_reason(skipped) == [
        {"reason": "7 x 5 pixels, expected 9 x 9", "count": 4, "first": [f"P1 A0{i} site 1" for i in (3, 4, 5)]},
        {"reason": "no such image", "count": 3, "first": [f"P1 A0{i} site 1" for i in (0, 1, 2)]},
        {"reason": "no cells", "count": 1, "first": ["P1 A07 site 1"]},
    ]
    assert by_reason([]) == []


def test_the_clock_starts_behind_what_needs_no_work():
    shown, started = [], []
    advance = Progress(shown.append, lambda n: None, started.append)
    time.sleep(0.05)
    advance.skip(10)
    assert advance.seconds < 0.05
    advance(2)
    assert shown == []  # no cells, no speed
    advance(1, 30)
    advance.skip(5)  # of another process
    assert (advance.done, advance.cells, started) == (3, 30, [10, 18])
    assert " sites/s, " in shown[-1]
    assert shown[-1].endswith(" cells/s")

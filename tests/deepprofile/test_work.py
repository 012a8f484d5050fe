import time

from deepprofile.work import Done, Progress, by_reason, progress


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

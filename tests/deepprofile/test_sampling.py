import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cytominer_tools.errors import InputError
from deepprofile.sampling import epoch_rows, validation_rows

CODES = st.lists(st.integers(-1, 5), min_size=1, max_size=60).filter(lambda x: max(x) >= 0).map(np.array)


def draw(codes, balance="class", plates=None, size=None, seed=0, epoch=0):
    return epoch_rows(np.asarray(codes), balance=balance, plates=plates, size=size, seed=seed, epoch=epoch)


def times(rows, n):
    return np.bincount(rows, minlength=n)


# --- golden: classes of 1, 3 and 8 cells, and two cells that do not train
SMALL = np.repeat([0, -1, 1, 2], [1, 2, 3, 8])


def test_an_epoch_holds_the_median_count_of_each_class():
    found = times(draw(SMALL), len(SMALL))
    assert found[0] == 3  # the one cell of class 0, three times
    assert found[1:3].tolist() == [0, 0]
    assert found[3:6].tolist() == [1, 1, 1]
    assert sorted(found[6:]) == [0] * 5 + [1] * 3


def test_a_size_is_spread_over_the_classes_and_the_rest_falls_by_lot():
    extra = set()
    for seed in range(20):
        found = times(draw(SMALL, size=14, seed=seed), len(SMALL))
        per_class = [int(found[k == SMALL].sum()) for k in range(3)]
        assert sorted(per_class) == [4, 5, 5]
        assert set(found[SMALL == 1]) <= {1, 2}  # three cells, four or five times: each once or twice
        assert set(found[SMALL == 2]) == {0, 1}
        extra.add(per_class.index(4))
    assert extra == {0, 1, 2}
    assert len(draw(SMALL, size=2)) == 2


def test_classes_are_spread_over_their_plates():
    codes = np.repeat([0, 0, 1, 1, 1], [10, 2, 6, 3, 9])
    plates = np.repeat(["P1", "P2", "P1", "P2", "P3"], [10, 2, 6, 3, 9])
    found = times(draw(codes, "class_plate", plates, size=30), len(codes))
    per_plate = [int(found[(codes == c) & (plates == p)].sum()) for c in (0, 1) for p in ("P1", "P2", "P3")]
    assert per_plate[:3] in ([8, 7, 0], [7, 8, 0])
    assert per_plate[3:] == [5, 5, 5]
    assert set(found[(codes == 0) & (plates == "P2")]) <= {3, 4}
    assert set(found[(codes == 1) & (plates == "P1")]) == {0, 1}


def test_without_balance_all_cells_come_once_or_so_many():
    codes = np.array([0, -1, 1, 1, 1, 0])
    assert sorted(draw(codes, "none")) == [0, 2, 3, 4, 5]
    assert len(set(draw(codes, "none", size=3)) - {1}) == 3
    assert sorted(draw(codes, "none", size=99)) == [0, 2, 3, 4, 5]


def test_validation_takes_no_cell_twice():
    found = validation_rows(SMALL, seed=0)
    assert [int((SMALL[found] == k).sum()) for k in range(3)] == [1, 3, 3]
    assert [int((SMALL[validation_rows(SMALL, seed=0, size=6)] == k).sum()) for k in range(3)] == [1, 2, 2]


# --- parity: the counts are those of DeepProfiler's rule
@settings(deadline=None, max_examples=50)
@given(CODES)
def test_counts_of_classes_are_those_of_pandas(codes):
    table = pd.DataFrame({"row": np.arange(len(codes)), "target": codes})[codes >= 0]
    n = int(table.groupby("target").size().median())
    peer = pd.concat([g.sample(n, replace=len(g) < n, random_state=0) for _, g in table.groupby("target")])
    assert np.bincount(codes[draw(codes)]).tolist() == np.bincount(peer["target"]).tolist()
    held = np.bincount(codes[validation_rows(codes, seed=0)])
    assert held.tolist() == np.minimum(np.bincount(table["target"]), n).tolist()


# --- properties
@settings(deadline=None, max_examples=50)
@given(CODES, st.sampled_from(["class", "class_plate"]), st.one_of(st.none(), st.integers(1, 200)), st.integers(0, 9))
def test_cells_of_a_stratum_come_equally_often_or_once_more(codes, balance, size, seed):
    plates = np.arange(len(codes)) % 3
    rows = draw(codes, balance, plates, size, seed)
    assert rows.dtype == np.int64
    assert (codes[rows] >= 0).all()
    kinds = len(set(codes[codes >= 0]))
    median = int(np.median(np.unique(codes[codes >= 0], return_counts=True)[1]))
    assert len(rows) == (median * kinds if size is None else size)
    found = times(rows, len(codes))
    per_class = [found[codes == k].sum() for k in set(codes[codes >= 0])]
    assert max(per_class) - min(per_class) <= 1
    strata = [(codes == k) & ((plates == p) | (balance == "class")) for k in set(codes[codes >= 0]) for p in range(3)]
    for stratum in filter(np.any, strata):
        assert np.ptp(found[stratum]) <= 1
    for k in set(codes[codes >= 0]) if balance == "class_plate" else ():
        of_plates = [found[(codes == k) & (plates == p)].sum() for p in set(plates[codes == k])]
        assert max(of_plates) - min(of_plates) <= 1


@settings(deadline=None, max_examples=50)
@given(CODES, st.one_of(st.none(), st.integers(1, 99)))
def test_validation_rows_are_ascending_and_balanced(codes, size):
    rows = validation_rows(codes, seed=1, size=size)
    assert (np.diff(rows) > 0).all()
    assert (codes[rows] >= 0).all()
    if size is not None:
        assert len(rows) <= size


@pytest.mark.parametrize("balance", ["class", "class_plate", "none"])
def test_epochs_differ_and_repeat(balance):
    codes = np.arange(300) % 3
    plates = np.arange(300) // 30
    first, again, second, other = (
        draw(codes, balance, plates, 60, seed, epoch) for seed, epoch in ((1, 0), (1, 0), (1, 1), (2, 0))
    )
    np.testing.assert_array_equal(first, again)
    assert set(first) != set(second)
    assert set(first) != set(other)
    assert sorted(first) != first.tolist()  # shuffled


def test_every_cell_is_as_likely():
    codes = np.repeat([0, 1], [40, 10])
    found = sum(times(draw(codes, size=20, epoch=epoch), 50) for epoch in range(400))
    np.testing.assert_allclose(found[:40], 400 * 10 / 40, atol=5 * np.sqrt(75))  # of a binomial of 400 and 1/4
    assert found[40:].tolist() == [400] * 10


def test_ten_times_the_strata_that_16_bits_can_count():
    codes = np.arange(655_360)
    rows = draw(np.repeat(codes, 2))
    assert np.bincount(rows // 2).tolist() == [2] * len(codes)


# --- the words of each error
def test_no_cell_to_draw_from():
    for empty in (np.array([], int), np.array([-1, -1])):
        with pytest.raises(InputError, match="there is no cell to draw from: none has a class"):
            draw(empty)
        with pytest.raises(InputError, match="there is no cell to draw from"):
            validation_rows(empty, seed=0)

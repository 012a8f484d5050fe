import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cytominer_tools.errors import InputError
from evaluation.baselines import Null, can_move, permuted_labels


# --- property
@given(st.integers(0, 999), st.integers(1, 30))
def test_each_group_keeps_its_labels(seed, n):
    rng = np.random.default_rng(seed)
    labels, groups = rng.integers(-1, 5, n), rng.integers(-1, 3, n)
    for row in permuted_labels(labels, groups, n=5, rng=rng):
        for group in np.unique(groups):
            assert sorted(row[groups == group]) == sorted(labels[groups == group])


def test_every_order_is_as_likely():
    rows = permuted_labels([0, 1, 2, 9], [0, 0, 0, 1], n=6000, rng=np.random.default_rng(0))
    orders, counts = np.unique(rows, axis=0, return_counts=True)
    assert len(orders) == 6
    assert (np.abs(counts - 1000) < 5 * np.sqrt(1000)).all()


def test_same_seed_same_labels():
    one, two = (permuted_labels(np.arange(50), n=3, rng=np.random.default_rng(7)) for _ in range(2))
    assert np.array_equal(one, two)
    assert not np.array_equal(one[0], one[1])


# --- golden
def test_summary_of_twenty_permutations():
    null = Null(np.arange(1.0, 21.0))
    assert (null.mean, null.mark_95, null.note) == (10.5, 19, "")
    assert (null.p(20), null.p(20.5), null.p(0)) == (2 / 21, 1 / 21, 1)


def test_infinite_values_count_for_p_and_not_for_the_mean():
    null = Null(np.array([1.0, 3.0, np.inf, np.nan]))
    assert null.mean == 2
    assert np.isnan(null.mark_95)
    assert null.p(3) == 4 / 5
    assert null.p(np.inf) == 3 / 5
    assert null.note == "2 of 4 have no finite value: left out of the mean, above it for p"


def test_no_permutations_no_summary():
    null = Null(np.empty(0))
    assert np.isnan([null.mean, null.mark_95, null.p(1)]).all()


def test_what_can_move():
    assert can_move(np.array([0, 1]), None)
    assert not can_move(np.array([0, 0]), None)
    assert not can_move(np.array([0, 0, 1]), np.array([5, 5, 6]))
    assert can_move(np.array([0, 1, 1]), np.array([5, 5, 6]))


# --- the words
def test_wrong_input_is_refused():
    with pytest.raises(InputError, match="groups: expected 3 codes"):
        permuted_labels([0, 1, 2], [0, 0], rng=np.random.default_rng(0))
    with pytest.raises(InputError, match="permutations=-1: expected 0 or more"):
        permuted_labels([0, 1, 2], n=-1, rng=np.random.default_rng(0))

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight

from cytominer_tools.errors import InputError
from deepprofile.labels import class_weights, make_labels
from deepprofile.splits import NEITHER, TRAIN, VALIDATION

T, V, N = TRAIN, VALIDATION, NEITHER


def cells(**counts):
    """A table and its split: `name=(training cells, validation cells)` or with those of neither side."""
    rows = [
        (None if name == "empty" else name, part)
        for name, sides in counts.items()
        for part, n in zip((T, V, N), sides, strict=False)
        for _ in range(n)
    ]
    return pd.DataFrame(rows, columns=["Metadata_Compound", "part"]).pipe(lambda t: (t, t["part"].to_numpy(np.int8)))


def labels(min_cells=3, **counts):
    table, parts = cells(**counts)
    return make_labels(table, ["Compound"], parts, min_cells=min_cells)


# --- golden
def test_classes_that_cannot_be_learned_are_named_and_left_out():
    found = labels(few=(2, 5), DMSO=(4, 2), late=(0, 3), none=(0, 0, 6), empty=(1, 1, 1), aaa=(3, 0, 2))
    assert found.classes == ("DMSO", "aaa")
    wanted = [-1] * 7 + [0] * 6 + [-1] * 3 + [-1] * 6 + [-1] * 3 + [1] * 3 + [-1] * 2
    assert found.codes.tolist() == wanted
    assert found.codes.dtype == np.int64
    assert found.left_out == (
        ("3 cells", "Metadata_Compound is empty"),
        ("few", "2 cells to train on, fewer than min_cells 3"),
        ("late", "only in validation (3 cells): there is nothing to learn it from"),
    )


def test_any_columns_make_the_class():
    table = pd.DataFrame({"Metadata_Plate": [1, 1, 2, 2], "Metadata_Well": ["A01", "A02", "A01", "A01"]})
    found = make_labels(table, ["Plate", "Well"], np.array([T, T, T, V]), min_cells=1)
    assert found.classes == ("1 | A01", "1 | A02", "2 | A01")
    assert found.codes.tolist() == [0, 1, 2, 2]
    assert found.left_out == ()


def test_weights_by_hand():
    codes = np.array([0, 0, 0, 1, -1, -1])
    assert class_weights(codes, None, ["a", "b"]).tolist() == [1, 1]
    np.testing.assert_allclose(class_weights(codes, "balanced", ["a", "b"]), [4 / 6, 4 / 2], rtol=1e-6)
    # b counts three times as much as a: 3 cells at w and 1 at 3 w have a mean of 1 for w = 2 / 3
    np.testing.assert_allclose(class_weights(codes, {"b": 3}, ["a", "b"]), [2 / 3, 2], rtol=1e-6)
    assert class_weights(codes, {"b": 0.0}, ["a", "b"]).tolist() == pytest.approx([4 / 3, 0])


# --- parity
@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 3), min_size=1).map(lambda x: [*x, 0, 1, 2, 3]))
def test_balanced_weights_are_those_of_scikit_learn(codes):
    found = class_weights(np.array(codes), "balanced", list("abcd"))
    np.testing.assert_allclose(found, compute_class_weight("balanced", classes=np.arange(4), y=codes), rtol=1e-6)
    assert found.dtype == np.float32


# --- property
@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 2), min_size=1).map(lambda x: [*x, 0, 1, 2, -1]), st.floats(0, 9), st.floats(0.1, 9))
def test_the_mean_weight_of_training_cells_is_one(codes, first, second):
    codes = np.array(codes)
    for how in (None, "balanced", {"a": first, "b": second}):
        assert class_weights(codes, how, list("abc"))[codes[codes >= 0]].mean() == pytest.approx(1, rel=1e-5)


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.tuples(st.sampled_from(["a", "b", "c", "d", ""]), st.sampled_from([T, V, N])), min_size=1),
    st.integers(1, 4),
)
def test_every_class_that_is_left_has_its_training_cells(rows, least):
    table = pd.DataFrame(rows, columns=["Metadata_Compound", "part"])
    try:
        found = make_labels(table, ["Compound"], table["part"].to_numpy(), min_cells=least)
    except InputError:
        counts = table[table["part"] == T].groupby("Metadata_Compound").size().drop("", errors="ignore")
        assert (counts >= least).sum() < 2
        return
    train = found.codes[(table["part"] == T).to_numpy()]
    assert (np.bincount(train[train >= 0], minlength=len(found.classes)) >= least).all()
    assert (found.codes[(table["part"] == N).to_numpy()] == -1).all()
    names = np.array([*found.classes, None], object)[found.codes]
    kept = found.codes >= 0
    assert (names[kept] == table["Metadata_Compound"].to_numpy()[kept]).all()
    gone = set(table["Metadata_Compound"][(table["part"] != N) & ~kept]) - {""}
    assert gone == {name for name, _ in found.left_out if not name.endswith(("cell", "cells"))}


# --- the words of each error
def test_fewer_than_two_classes():
    with pytest.raises(
        InputError, match=r"train\.label Metadata_Compound: only 'DMSO' has 3 cells or more to train on"
    ):
        labels(DMSO=(5, 5))
    with pytest.raises(InputError, match=r"lower train\.min_cells\n  few: 2 cells to train on, fewer than min_cells 3"):
        labels(few=(2, 1), DMSO=(5, 5))
    with pytest.raises(InputError, match="no class has 3 cells or more to train on, and a network needs two classes"):
        labels(few=(0, 9))


def test_every_label_is_empty():
    with pytest.raises(InputError, match=r"train\.label Metadata_Compound: it is empty for all 9 cells"):
        labels(empty=(5, 4))


def test_wrong_weights():
    codes = np.array([0, 1])
    with pytest.raises(InputError, match=r"train.class_weights: no class 'DSMO', is it 'DMSO'\?; there are DMSO, aaa"):
        class_weights(codes, {"DSMO": 2}, ["DMSO", "aaa"])
    for wrong in ({"aaa": -1.0}, {"aaa": float("nan")}, {"aaa": 0.0, "DMSO": 0.0}):
        with pytest.raises(InputError, match="weights are numbers from 0 on, and not all of them 0"):
            class_weights(codes, wrong, ["DMSO", "aaa"])

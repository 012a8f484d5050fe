import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cytominer_tools.errors import InputError
from deepprofile.codes import class_codes, find_column, label_columns, no_value, text_codes


# --- golden
@pytest.mark.parametrize(
    ("values", "names", "codes"),
    [
        (["b", "a", None, " ", "b"], ("a", "b"), [1, 0, -1, -1, 1]),
        ([10.0, np.nan, 3.3333, 2.0, 10.0], ("10", "2", "3.3333"), [0, -1, 2, 1, 0]),
        ([3, 10, 3, 3, 3], ("10", "3"), [1, 0, 1, 1, 1]),
        ([True, False, True, True, True], ("False", "True"), [1, 0, 1, 1, 1]),
        (["1", 1, 1.0, "01", np.nan], ("01", "1"), [1, 1, 1, 0, -1]),
        ([None] * 5, (), [-1] * 5),
    ],
)
def test_values_of_any_type_become_sorted_text(values, names, codes):
    column = pd.Series(values)
    for same in (column, column.astype("category")):
        found, places = text_codes(same)
        assert found == names
        assert places.tolist() == codes


def test_several_columns_are_one_class():
    table = pd.DataFrame({"drug": ["b", "a", "a", None, "b"], "dose": [1.0, 10.0, np.nan, 1.0, 1.0]})
    names, codes = class_codes(table, ["drug", "dose"])
    assert names == ("a | 10", "b | 1")
    assert codes.tolist() == [1, 0, -1, -1, 1]


def test_columns_are_found_with_or_without_their_prefix():
    table = pd.DataFrame(columns=["Metadata_Plate", "Metadata_Compound"])
    assert find_column(table, "Compound", "here") == "Metadata_Compound"
    assert label_columns(table, ["Metadata_Compound", "Plate"]) == ["Metadata_Compound", "Metadata_Plate"]


# --- property
@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.sampled_from(["a", "b", None]), st.sampled_from([1.5, 2.0, None])), min_size=1))
def test_codes_give_back_the_values(rows):
    table = pd.DataFrame(rows, columns=["x", "y"])
    if not any(x is not None and y is not None for x, y in rows):
        with pytest.raises(InputError, match="is empty for all"):
            class_codes(table, ["x", "y"])
        return
    names, codes = class_codes(table, ["x", "y"])
    texts = {1.5: "1.5", 2.0: "2"}
    wanted = [None if x is None or y is None else f"{x} | {texts[y]}" for x, y in rows]
    assert [None if code < 0 else names[code] for code in codes] == wanted
    assert list(names) == sorted({one for one in wanted if one})


# --- the words of each error
def test_what_cannot_be_a_label():
    table = pd.DataFrame({"Metadata_Compound": ["x"], "Metadata_Empty": [None]})
    with pytest.raises(InputError, match=r"train.label: no column; name one or more, or set columns\.treatment"):
        label_columns(table, [])
    with pytest.raises(InputError, match=r"no column 'compund', is it 'Metadata_Compound'\?; there are Metadata_Com"):
        label_columns(table, ["compund"])
    with pytest.raises(InputError, match=r"train\.label Metadata_Empty: it is empty for all 1 cells; fill it in"):
        class_codes(table, ["Metadata_Empty"])
    with pytest.raises(InputError, match="there are no crops to train on; export some with `deepprofile export`"):
        class_codes(table.iloc[:0], ["Metadata_Compound"])


def test_a_long_list_of_what_there_is_ends():
    assert no_value("x", [f"plate {i}" for i in range(99)], "plate").endswith("plate 10, plate 11 and 87 more")

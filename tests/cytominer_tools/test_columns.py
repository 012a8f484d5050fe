import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cytominer_tools.columns import feature_columns, metadata_columns, require_columns, well_name
from cytominer_tools.errors import InputError


def test_cellprofiler_prefixes_are_the_features_where_there_are_any():
    table = pd.DataFrame({"Metadata_Well": ["A01"], "Nuclei_Area": [1.0], "Cells_Name": ["x"], "net_0": [2.0]})
    assert feature_columns(table) == ["Nuclei_Area"]
    assert feature_columns(table.drop(columns="Nuclei_Area")) == ["net_0"]
    assert metadata_columns(table) == ["Metadata_Well"]


def test_numeric_metadata_and_booleans_are_no_features():
    table = pd.DataFrame({"Metadata_Count": [1], "flag": [True], "b": [1], "a": [0.5]})
    assert feature_columns(table) == ["b", "a"]


def test_named_features_keep_their_order_and_must_exist():
    table = pd.DataFrame({"a": [1], "b": [1]})
    assert feature_columns(table, ["b", "a"]) == ["b", "a"]
    with pytest.raises(InputError, match=r"2 feature column\(s\) are not in the table: c, d"):
        feature_columns(table, ["a", "c", "d"])


def test_no_feature_at_all():
    with pytest.raises(InputError, match="no feature columns among Metadata_Well, name"):
        feature_columns(pd.DataFrame({"Metadata_Well": ["A01"], "name": ["x"]}))


@given(st.integers(0, 31), st.integers(1, 48), st.integers(0, 3), st.booleans())
def test_a_well_has_one_name_however_it_is_written(row, column, zeros, lower):
    letters = chr(65 + row) if row < 26 else "A" + chr(65 + row - 26)
    written = f" {letters.lower() if lower else letters}{'0' * zeros}{column} "
    assert well_name(written) == f"{letters}{column:02d}"
    assert well_name(well_name(written)) == well_name(written)


@pytest.mark.parametrize("well", ["", "A", "1", "A0", "A100", "ABC1", "A1.0", "A-1", "nan", "A01 B01", "Ä1", "1A"])
def test_what_is_no_well(well):
    with pytest.raises(InputError, match="is not a well; expected a row letter"):
        well_name(well)


def test_every_absent_column_is_named():
    with pytest.raises(InputError, match=r"plates\.csv: no column 'b', 'c'; it has a"):
        require_columns(pd.DataFrame({"a": [1]}), ["a", "b", "c"], "plates.csv")
    require_columns(pd.DataFrame({"a": [1]}), ["a"], "plates.csv")

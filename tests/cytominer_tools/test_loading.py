import pandas as pd
import pytest

from cytominer_tools import (
    infer_delim,
    is_path_a_parquet_dataset_dir,
    is_path_a_parquet_file,
    load_cytotable_profiles,
    load_platemap,
    load_profiles,
    resolve_cytotable_profiles_target,
)
from cytominer_tools.errors import InputError


def table():
    return pd.DataFrame({"Metadata_Well": ["A01", "A02"], "Cells_a": [0.5, 1.25]})


def test_frames_pass_through():
    frame = table()
    assert load_profiles(frame) is frame
    platemap = pd.DataFrame({"well": ["A01"], "Metadata_x": [1]})
    assert list(load_platemap(platemap).columns) == ["Metadata_well", "Metadata_x"]
    assert list(load_platemap(platemap, add_metadata_id=False).columns) == ["well", "Metadata_x"]


@pytest.mark.parametrize("sep", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_separators_and_a_byte_order_mark(tmp_path, sep, encoding):
    path = tmp_path / "a.csv"
    table().to_csv(path, sep=sep, encoding=encoding, index=False)
    assert infer_delim(path) == sep
    pd.testing.assert_frame_equal(load_profiles(path), table())


def warehouse(root, *names):
    for name in names:
        (root / "warehouse" / "profiles" / name / "data").mkdir(parents=True)
        table().to_parquet(root / "warehouse" / "profiles" / name / "data" / "0.parquet")
    return root


def test_warehouse_with_one_table_and_with_two(tmp_path):
    one = warehouse(tmp_path / "one", "joined_profiles")
    pd.testing.assert_frame_equal(load_profiles(one), table())
    assert resolve_cytotable_profiles_target(one)[1:] == ("profiles", "joined_profiles")
    two = warehouse(tmp_path / "two", "joined_profiles", "other")
    with pytest.raises(InputError, match="found multiple parquet-backed profile tables, joined_profiles, other; name"):
        load_profiles(two)
    pd.testing.assert_frame_equal(load_cytotable_profiles(two, "other"), table())
    with pytest.raises(InputError, match="no table profiles/absent with Parquet files"):
        load_cytotable_profiles(two, "absent")


def test_parquet_paths(tmp_path):
    table().to_parquet(tmp_path / "a.parquet")
    assert is_path_a_parquet_file(tmp_path / "a.parquet")
    assert is_path_a_parquet_dataset_dir(tmp_path)
    assert not is_path_a_parquet_file(3)
    (tmp_path / "b.txt").write_text("x")
    assert not is_path_a_parquet_dataset_dir(tmp_path)


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "a.parquet").write_text("no")
    with pytest.raises(InputError, match=r"a\.parquet: cannot be read as parquet"):
        load_profiles(tmp_path / "a.parquet")
    (tmp_path / "a.csv").write_text("")
    with pytest.raises(InputError, match=r"a\.csv: cannot be read as text"):
        load_profiles(tmp_path / "a.csv")
    for load in (load_profiles, load_platemap, infer_delim, is_path_a_parquet_file, is_path_a_parquet_dataset_dir):
        with pytest.raises(FileNotFoundError) as caught:
            load(tmp_path / "absent.csv")
        assert isinstance(caught.value, InputError)

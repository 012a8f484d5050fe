import gzip
import time

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cytominer_tools.errors import InputError
from cytominer_tools.tables import SUFFIXES, read_table, write_table


def table(rows=50):
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "Metadata_Plate": ["0012"] * rows,
            "Metadata_Well": [f"A{i % 12 + 1:02d}" for i in range(rows)],
            "Metadata_Site": [str(i % 9) for i in range(rows)],
            "Metadata_Compound": pd.Series(
                [["aspirin", "NA", "0012", 'ü, "x"\ny', None][i % 5] for i in range(rows)], dtype="str"
            ),
            "Metadata_Concentration": [[0.1, None, 1e-7, 30.0][i % 4] for i in range(rows)],
            "Metadata_Count": range(rows),
            "net_0": rng.normal(size=rows) * 10.0 ** rng.integers(-300, 300, rows),
            "net_1": [None if i % 7 == 0 else i / 3 for i in range(rows)],
        }
    )


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_is_written_is_read(suffix, tmp_path):
    path = tmp_path / f"a.b{suffix}"
    assert write_table(table(), path) == path
    pd.testing.assert_frame_equal(read_table(path), table(), check_exact=True)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_equal_tables_are_equal_files(suffix, tmp_path, monkeypatch):
    first = write_table(table(), tmp_path / f"one{suffix}").read_bytes()
    monkeypatch.setattr(time, "time", lambda: 2e9)
    assert write_table(table(), tmp_path / f"two{suffix}").read_bytes() == first
    assert write_table(table().iloc[::-1], tmp_path / f"two{suffix}").read_bytes() != first


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_table_without_rows_keeps_its_columns(suffix, tmp_path):
    path = write_table(table().iloc[:0], tmp_path / f"t{suffix}")
    assert read_table(path).columns.tolist() == table().columns.tolist()
    assert len(read_table(path)) == 0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(allow_infinity=False), min_size=1))
def test_no_digit_is_lost_in_a_csv(tmp_path_factory, values):
    path = tmp_path_factory.getbasetemp() / "floats.csv"
    write_table(pd.DataFrame({"net_0": values, "Metadata_Dose": values}), path)
    for name in ("net_0", "Metadata_Dose"):
        if not np.isnan(values).all():
            np.testing.assert_array_equal(read_table(path)[name], values)


def test_keys_are_text_in_every_format(tmp_path):
    keys = pd.DataFrame(
        {"Metadata_Plate": [12, 7], "Metadata_Well": ["A01", "A02"], "Metadata_Site": [1, 2], "x": [1, 2]}
    )
    for suffix in SUFFIXES:
        path = tmp_path / f"t{suffix}"
        write_table(keys, path)
        assert read_table(path)["Metadata_Plate"].tolist() == ["12", "7"]
        assert read_table(path)["Metadata_Site"].tolist() == ["1", "2"]


def test_a_missing_key_is_empty_text_in_every_format(tmp_path):
    keys = pd.DataFrame({"Metadata_Plate": ["P1", None], "Metadata_Well": [None, "A02"]})
    for suffix in SUFFIXES:
        found = read_table(write_table(keys, tmp_path / f"t{suffix}"))
        assert found.to_dict("list") == {"Metadata_Plate": ["P1", ""], "Metadata_Well": ["", "A02"]}


def test_empty_text_is_missing_in_every_format(tmp_path):
    table = pd.DataFrame(
        {"Metadata_Well": ["A01", "A02", "A03"], "Metadata_Compound": ["", "x", None], "note": ["", "", "y"]}
    )
    for suffix in SUFFIXES:
        path = write_table(table, tmp_path / f"t{suffix}")
        assert read_table(path)["Metadata_Compound"].isna().tolist() == [True, False, True]
        assert read_table(path, metadata=True)["note"].isna().tolist() == [True, True, False]


@pytest.mark.parametrize(
    ("words", "read"),
    [
        (["0012", "12"], ["0012", "12"]),
        (["-012", "1"], ["-012", "1"]),
        (["12", "7"], [12, 7]),
        (["0.5", "0"], [0.5, 0.0]),
        (["NA", "x"], ["NA", "x"]),
        (["nan", "null", "None", "0012"], ["nan", "null", "None", "0012"]),
        (["12345678901234567", "1"], ["12345678901234567", "1"]),
        (["1234567890123456", ""], ["1234567890123456", None]),
        (["True", "False"], ["True", "False"]),
        (["12:30", "1_000"], ["12:30", "1_000"]),
    ],
)
def test_an_identifier_stays_what_it_is(words, read, tmp_path):
    path = write(tmp_path / "t.csv", "Metadata_Id,n\n" + "".join(f"{word},1\n" for word in words))
    found = read_table(path)["Metadata_Id"]
    assert [None if pd.isna(value) else value for value in found] == read


def test_words_for_missing_are_missing_in_a_column_of_numbers(tmp_path):
    path = write(tmp_path / "t.csv", "Metadata_Dose,n\n1,1\nNA,1\nnan,1\n,1\n2.5,1\n")
    np.testing.assert_array_equal(read_table(path)["Metadata_Dose"], [1, np.nan, np.nan, np.nan, 2.5])


def test_every_column_is_metadata_on_request(tmp_path):
    path = write(tmp_path / "t.csv", "well,broad_sample,dose\nA01,0012,1\nA02,NA,2\n")
    found = read_table(path, metadata=True)
    assert found.to_dict("list") == {"well": ["A01", "A02"], "broad_sample": ["0012", "NA"], "dose": [1, 2]}


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path):
    found = read_table(write(tmp_path / "t.csv", "\ufeffMetadata_Plate,x\n01,2\n"))
    assert found.columns.tolist() == ["Metadata_Plate", "x"]
    assert found["Metadata_Plate"].tolist() == ["01"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("t.csv", "a,b,a\n1,2,3\n", "distinct column names, 'a' stands in it twice"),
        ("t.csv", "a,b\n1,2,3\n", "more values than its header"),
        ("t.csv", "Metadata_a,b\n1,2,3\n4,5\n", "more values than its header"),
        ("t.csv", "a,b\n1,2\n1,2,3\n", "cannot be read as csv: .*line 3"),
        ("t.csv", "", "cannot be read as csv: No columns"),
        ("t.csv", "\n\n", "cannot be read as csv: No columns"),
        ("t.csv", b"a\n\xff\xfe\n", "cannot be read as csv: it is not UTF-8; save it"),
        ("t.csv", 'Metadata_a\n"x\n', "cannot be read as csv"),
        ("t.csv.gz", "a,b\n", r"cannot be read as csv\.gz"),
        ("t.csv.gz", gzip.compress(b"a,b\n" + b"1,2\n" * 999, mtime=0)[:40], r"cannot be read as csv\.gz"),
        ("t.csv.gz", b"", r"cannot be read as csv\.gz"),
        ("t.parquet", "PAR1", "cannot be read as parquet"),
        ("t.parquet", "", "cannot be read as parquet"),
        ("t.xlsx", "", r"suffix must be one of \.parquet, \.csv, \.csv\.gz"),
    ],
)
def test_a_file_that_is_no_table_is_named(name, content, words, tmp_path):
    with pytest.raises(InputError, match=rf"{name}: .*{words}"):
        read_table(write(tmp_path / name, content))


@pytest.mark.parametrize("suffix", [".parquet", ".csv.gz"])
def test_no_damage_is_read_or_ends_in_another_error(suffix, tmp_path):
    path = write_table(table(500), tmp_path / f"t{suffix}")
    whole = path.read_bytes()
    for share in (0.01, 0.3, 0.6, 0.9, 0.999):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(InputError, match="cannot be read"):
            read_table(path)
    for at in range(20, len(whole), len(whole) // 25):
        path.write_bytes(whole[:at] + bytes(b ^ 0xFF for b in whole[at : at + 8]) + whole[at + 8 :])
        try:
            read_table(path)
        except InputError as error:
            assert "cannot be read" in str(error)  # noqa: PT017


def test_an_absent_file_and_a_wrong_suffix(tmp_path):
    with pytest.raises(InputError, match=r"no\.csv: no such file"):
        read_table(tmp_path / "no.csv")
    with pytest.raises(InputError, match="suffix must be one of"):
        write_table(table(), tmp_path / "t.feather")
    assert not list(tmp_path.iterdir())


# --- text tables that are read but never written
@pytest.mark.parametrize("name", ["t.tsv", "t.txt", "t.csv", "t.csv.gz", "t.tsv.gz"])
@pytest.mark.parametrize("separator", ["\t", ";", ","])
def test_the_header_says_what_separates(name, separator, tmp_path):
    rows = [["Metadata_Plate", "Metadata_Dose", "note"], ["0012", "1.5", '"a;b,c\td"'], ["0013", "2", ""]]
    text = "\ufeff" + "\n".join(separator.join(row) for row in rows) + "\n"
    content = text.encode()
    read = read_table(write(tmp_path / name, gzip.compress(content, mtime=0) if name.endswith(".gz") else content))
    assert read["Metadata_Plate"].tolist() == ["0012", "0013"]
    assert read["Metadata_Dose"].tolist() == [1.5, 2]
    assert read["note"][0] == "a;b,c\td"


def test_separators_in_quotes_do_not_count(tmp_path):
    read = read_table(write(tmp_path / "t.csv", '"a;b;c;d",x\n"1;2",2\n'))
    assert read.columns.tolist() == ["a;b;c;d", "x"]


def test_a_header_and_rows_that_are_separated_differently(tmp_path):
    with pytest.raises(InputError, match="its header is separated by tabs and the rows by commas; separate both"):
        read_table(write(tmp_path / "t.txt", "a\tb\tc\n1,2,3\n"))


def test_other_text_tables_are_not_written(tmp_path):
    with pytest.raises(InputError, match=r"the suffix must be one of \.parquet, \.csv, \.csv\.gz$"):
        write_table(table(), tmp_path / "t.tsv")

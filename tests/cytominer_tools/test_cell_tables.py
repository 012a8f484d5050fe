"""Parquet files by batches give what the frame in memory gives."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cytominer_tools import aggregate, aggregate_parquet, normalize, normalize_parquet
from cytominer_tools.errors import InputError, NoFileError, ProfileWarning


def cells(n=3000, dtype="float32"):
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.normal(size=(n, 4)).astype(dtype), columns=[f"Cells_{i}" for i in range(4)])
    table["Cells_1"] = table["Cells_1"].round(1)
    table["Cells_3"] = np.where(np.arange(n) % 5 == 0, table["Cells_3"], 2).astype(dtype)  # a MAD of 0
    well = np.arange(n) * 20 // n
    table.insert(0, "Metadata_Plate", np.where(well < 9, "q", "p"))
    table.insert(1, "Metadata_Well", [f"A{w:02d}" for w in well])
    table.insert(2, "Metadata_Compound", np.where(well % 3 == 0, "dmso", "x"))
    table["note"] = "text"
    return table


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setattr("cytominer_tools.cell_tables._VALUES", 2000)  # 256 rows, the least


@pytest.fixture(params=["float32", "float64"])
def table(request):
    return cells(dtype=request.param)


def written(table, path, rows=700):
    """In two files and row groups that cut through wells."""
    path.mkdir()
    for name, part in (("a", table.iloc[:1700]), ("b", table.iloc[1700:])):
        pq.write_table(pa.Table.from_pandas(part, preserve_index=False), path / f"{name}.parquet", row_group_size=rows)
    return path


# --- parity: the frame in memory
@pytest.mark.parametrize("operation", ["median", "mean", "trimmed_mean"])
def test_aggregate(tmp_path, table, operation):
    table.loc[5, "Cells_0"], table.loc[2990:, "Metadata_Well"] = np.nan, None
    result = aggregate_parquet(written(table, tmp_path / "cells"), operation=operation, compute_object_count=True)
    expected = aggregate(table, operation=operation)
    counts = result.pop("Metadata_Object_Count")
    pd.testing.assert_frame_equal(result, expected, rtol=1e-6 if operation == "mean" else 1e-12)
    assert counts.tolist() == table.groupby(["Metadata_Plate", "Metadata_Well"], dropna=False).size().tolist()


@pytest.mark.parametrize("operation", ["median", "mean"])
def test_groups_in_pieces(tmp_path, table, operation):
    shuffled = table.sample(frac=1, random_state=0)
    result = aggregate_parquet(written(shuffled, tmp_path / "cells"), "Metadata_Compound", operation=operation)
    expected = aggregate(shuffled, "Metadata_Compound", operation=operation)
    pd.testing.assert_frame_equal(result, expected, rtol=1e-6 if operation == "mean" else 1e-12)


@pytest.mark.parametrize("method", ["standardize", "robustize", "mad_robustize"])
@pytest.mark.parametrize("options", [{}, {"by": "Metadata_Plate", "samples": "Metadata_Compound == 'dmso'"}])
@pytest.mark.filterwarnings("ignore::cytominer_tools.errors.ProfileWarning")
def test_normalize(tmp_path, table, method, options):
    path = normalize_parquet(written(table, tmp_path / "cells"), tmp_path / "out.parquet", method=method, **options)
    expected = normalize(table, method=method, **options)
    result = pd.read_parquet(path)
    pd.testing.assert_frame_equal(result, expected, rtol=1e-6, atol=1e-6, check_column_type=False)
    if method == "mad_robustize":  # medians are found, not calculated
        np.testing.assert_array_equal(result["Cells_0"], expected["Cells_0"])
        assert result["Cells_3"].isna().any()


def test_text_as_categories_and_whole_numbers(tmp_path):
    table = cells().astype({"Metadata_Plate": "category"}).assign(Cells_2=lambda t: (t["Cells_2"] * 9).astype("int32"))
    path = tmp_path / "a.parquet"
    table.to_parquet(path)
    result = aggregate_parquet([path])
    expected = aggregate(table)
    pd.testing.assert_frame_equal(result, expected, check_categorical=False)
    assert result["Cells_2"].dtype == "float64"


def test_no_rows(tmp_path):
    path = tmp_path / "a.parquet"
    cells().head(0).to_parquet(path)
    assert aggregate_parquet(path).shape == (0, 6)
    with pytest.raises(InputError, match="the table has no rows"):
        normalize_parquet(path, tmp_path / "b.parquet")


# --- words
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "spherize"}, "method='spherize': expected one of standardize, robustize, mad_robustize"),
        ({"output_file": "out.csv"}, r"out\.csv: the suffix must be \.parquet"),
        ({"output_file": "a.parquet"}, "is what is read; write to another file"),
        ({"samples": "Metadata_Compound == 'y'"}, "no row is picked by samples=\"Metadata_Compound == 'y'\""),
        (
            {"samples": "Metadata_Plate == 'q'", "by": "Metadata_Plate"},
            "the group Metadata_Plate=p has no row picked by samples=",
        ),
        ({"samples": "Cells_0 > 1"}, "no column 'Cells_0'"),
        ({"features": ["note"]}, "feature note is .*, expected numbers"),
        ({"by": "Metadata_x"}, "no column 'Metadata_x'"),
    ],
)
def test_normalize_refuses(tmp_path, monkeypatch, options, words):
    monkeypatch.chdir(tmp_path)
    cells().to_parquet("a.parquet")
    with pytest.raises(InputError, match=words):
        normalize_parquet(**({"source": "a.parquet", "output_file": "b.parquet"} | options))
    assert [path.name for path in tmp_path.iterdir()] == ["a.parquet"]


def test_refuses(tmp_path):
    with pytest.raises(NoFileError, match="nowhere: no such file"):
        aggregate_parquet(tmp_path / "nowhere")
    with pytest.raises(InputError, match="no Parquet file in it"):
        aggregate_parquet(tmp_path)
    (tmp_path / "a.parquet").write_text("no")
    with pytest.raises(InputError, match=r"a\.parquet: cannot be read as parquet"):
        aggregate_parquet(tmp_path)
    table = cells()
    table.to_parquet(tmp_path / "a.parquet")
    with pytest.raises(InputError, match="strata is empty"):
        aggregate_parquet(tmp_path, [])
    shuffled = table.sample(frac=1, random_state=0)
    shuffled.to_parquet(tmp_path / "a.parquet")
    with pytest.raises(InputError, match="'trimmed_mean' needs the rows of a group together; sort the table by Meta"):
        aggregate_parquet(tmp_path, operation="trimmed_mean")
    shuffled.drop(columns="note").to_parquet(tmp_path / "b.parquet")
    with pytest.raises(InputError, match=r"b\.parquet: its columns are not those of .*a\.parquet"):
        aggregate_parquet(tmp_path)
    table.loc[7, "Cells_2"] = np.inf
    table.to_parquet(tmp_path / "c.parquet")
    with pytest.raises(InputError, match=r"infinite values in 1 feature\(s\): Cells_2"):
        normalize_parquet(tmp_path / "c.parquet", tmp_path / "d.parquet")
    with pytest.warns(ProfileWarning, match=r"1 feature\(s\) have a MAD of 0 among the reference rows \(Cells_3\)"):
        normalize_parquet(tmp_path / "c.parquet", tmp_path / "d.parquet", method="mad_robustize")

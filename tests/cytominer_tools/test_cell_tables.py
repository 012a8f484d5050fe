"""Parquet files by batches give what the frame in memory gives."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cytominer_tools import aggregate, aggregate_parquet, normalize, normalize_parquet
from cytominer_tools.cell_tables import CellTable
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


@pytest.fixture(autouse=True, params=["row groups", "few rows"])
def small_batches(monkeypatch, request):
    monkeypatch.setattr("cytominer_tools.cell_tables._VALUES", 2000)  # 256 rows, the least
    if request.param == "few rows":
        monkeypatch.setattr("cytominer_tools.cell_tables._ROW_GROUP", 0)


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


def as_lists(table, path, dtype="float32", name="features"):
    """The features of a table as one column of lists, a row group a well, as `deepprofile profile` writes them."""
    features = [column for column in table if column.startswith("Cells_")]
    values = pa.array(table[features].to_numpy(dtype).ravel())
    keys = pa.Table.from_pandas(table.drop(columns=features), preserve_index=False)
    lists = keys.append_column(name, pa.FixedSizeListArray.from_arrays(values, len(features)))
    with pq.ParquetWriter(path, lists.schema) as writer:
        for _, rows in table.reset_index().groupby(["Metadata_Plate", "Metadata_Well"], sort=False).groups.items():
            writer.write_table(lists.slice(rows[0], len(rows)))
    return path


@pytest.mark.parametrize("operation", ["median", "mean"])
@pytest.mark.parametrize("by", [["Metadata_Plate", "Metadata_Well"], ["Metadata_Compound"]])  # together, in pieces
def test_lists_aggregate_as_columns_do(tmp_path, operation, by):
    table = cells()
    result = aggregate_parquet(as_lists(table, tmp_path / "a.parquet"), by, operation=operation)
    expected = aggregate(table, by, operation=operation)
    expected.columns = [name.replace("Cells", "features") for name in expected]
    pd.testing.assert_frame_equal(result, expected, rtol=1e-6, atol=1e-7 if operation == "mean" else 0)


def test_lists_of_several_precisions(tmp_path):
    (tmp_path / "in").mkdir()
    as_lists(cells(), tmp_path / "in" / "a.parquet")
    as_lists(cells(), tmp_path / "in" / "b.parquet", "float64")
    assert aggregate_parquet(tmp_path / "in", "Metadata_Compound").dtypes.iloc[1] == np.float64


@pytest.mark.parametrize("method", ["standardize", "robustize"])
def test_normalized_lists_stay_lists(tmp_path, method):
    table = cells()
    path = as_lists(table, tmp_path / "a.parquet")
    options = {"samples": "Metadata_Compound == 'dmso'", "method": method, "by": "Metadata_Plate"}
    normalize_parquet(path, tmp_path / "out.parquet", **options)
    found = pq.read_table(tmp_path / "out.parquet")
    assert found.schema.field("features").type == pa.list_(pa.float32(), 4)
    expected = normalize(table.drop(columns="note"), **options)
    rows = np.stack(found["features"].to_numpy())
    np.testing.assert_allclose(rows, expected.filter(like="Cells_"), rtol=2e-5, atol=2e-6)
    assert found["Metadata_Well"].to_pylist() == table["Metadata_Well"].tolist()


def test_lists_of_half_precision_are_scaled_in_single(tmp_path):
    path = as_lists(cells(), tmp_path / "a.parquet", "float16")
    normalize_parquet(path, tmp_path / "out.parquet")
    assert pq.read_schema(tmp_path / "out.parquet").field("features").type == pa.list_(pa.float32(), 4)


def test_lists_are_features_by_name(tmp_path):
    table = pq.read_table(as_lists(cells(), tmp_path / "a.parquet"))
    pq.write_table(table.append_column("other", table["features"]), tmp_path / "two.parquet")
    assert list(aggregate_parquet(tmp_path / "two.parquet"))[2:] == [f"features_{i}" for i in range(4)]
    one = aggregate_parquet(tmp_path / "two.parquet", features=["other"])
    assert list(one)[2:] == [f"other_{i}" for i in range(4)]


@pytest.mark.parametrize("name", ["features", "Location_Center", "Metadata_Box"])
def test_lists_beside_columns_are_no_features(tmp_path, name):
    path, table = tmp_path / "a.parquet", cells()
    lists = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(2 * len(table))), 2)
    pq.write_table(pa.Table.from_pandas(table, preserve_index=False).append_column(name, lists), path)
    pd.testing.assert_frame_equal(aggregate_parquet(path), aggregate(table))


def test_row_groups_of_few_values_are_read_a_few_rows_at_a_time(tmp_path, monkeypatch):
    table = cells().assign(**{f"Cells_{i}": np.float32(1) for i in range(4)})
    table.to_parquet(tmp_path / "a.parquet", index=False)  # coded, a feature takes nearly nothing
    monkeypatch.setattr("cytominer_tools.cell_tables._ROW_GROUP", 16 * len(table) - 1)
    opened = CellTable.open(tmp_path / "a.parquet")
    assert max(map(len, opened.batches(opened.features))) == 2000 // 4


def test_the_rows_of_many_small_files_are_in_order(tmp_path):
    table = cells()
    for i in range(10):
        table.iloc[300 * i : 300 * (i + 1)].to_parquet(tmp_path / f"{i}.parquet", index=False)
    opened = CellTable.open(tmp_path)
    found = np.concatenate([opened.values(batch, opened.features) for batch in opened.batches(opened.features)])
    np.testing.assert_array_equal(found, table[opened.features].to_numpy())


def test_a_feature_without_a_reference_value_is_told(tmp_path):
    table = cells()
    table.loc[table["Metadata_Compound"] == "dmso", "Cells_2"] = np.nan
    table.to_parquet(tmp_path / "a.parquet", index=False)
    controls = "Metadata_Compound == 'dmso'"
    with pytest.warns(ProfileWarning, match=r"1 feature\(s\) have no value among the reference rows of a group"):
        normalize_parquet(tmp_path / "a.parquet", tmp_path / "out.parquet", samples=controls)
    assert pd.read_parquet(tmp_path / "out.parquet")["Cells_2"].isna().all()


def test_a_missing_list_is_refused(tmp_path):
    table = pq.read_table(as_lists(cells(), tmp_path / "a.parquet"))
    holed = table.set_column(
        table.schema.get_field_index("features"),
        "features",
        pa.array([None, *table["features"].to_pylist()[1:]], table.schema.field("features").type),
    )
    pq.write_table(holed, tmp_path / "holed.parquet")
    with pytest.raises(InputError, match=r"features is missing in 1 row\(s\); leave them out"):
        aggregate_parquet(tmp_path / "holed.parquet")


def test_lists_of_other_lengths_are_refused(tmp_path):
    (tmp_path / "in").mkdir()
    as_lists(cells(), tmp_path / "in" / "a.parquet")
    as_lists(cells().drop(columns="Cells_3"), tmp_path / "in" / "b.parquet")
    with pytest.raises(
        InputError, match=r"features is fixed_size_list.*\[3\] in .*b.parquet and .*\[4\] in .*a.parquet"
    ):
        aggregate_parquet(tmp_path / "in")


@pytest.mark.parametrize("operation", ["median", "mean"])
def test_groups_in_pieces(tmp_path, table, operation):
    shuffled = table.sample(frac=1, random_state=0)
    result = aggregate_parquet(written(shuffled, tmp_path / "cells"), "Metadata_Compound", operation=operation)
    expected = aggregate(shuffled, "Metadata_Compound", operation=operation)
    pd.testing.assert_frame_equal(result, expected, rtol=1e-6 if operation == "mean" else 1e-12)


@pytest.mark.parametrize("method", ["standardize", "robustize", "mad_robustize"])
@pytest.mark.parametrize("options", [{}, {"by": "Metadata_Plate", "samples": "Metadata_Compound == 'dmso'"}])
@pytest.mark.parametrize("held", [0, 2**28])  # medians by counting, or of whole groups
@pytest.mark.filterwarnings("ignore::cytominer_tools.errors.ProfileWarning")
def test_normalize(tmp_path, table, method, options, held, monkeypatch):
    monkeypatch.setattr("cytominer_tools.cell_tables._HELD", held)
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


# --- files of one table that were not written alike
def unlike(tmp_path):
    """Three files of one table, and the table."""
    table = cells(900, "float64").drop(columns="note")
    table["Metadata_Dose"] = np.repeat([1.0, 0.5, np.nan], 300)
    table["Cells_2"] = (table["Cells_2"] * 9).round()
    table.loc[600:, "Cells_3"] = np.nan
    table.loc[:299, "Cells_0"] = table.loc[:299, "Cells_0"].astype("float32")
    table.loc[600:, "Metadata_Compound"] = None
    parts = [table.iloc[i : i + 300] for i in (0, 300, 600)]
    parts[0] = parts[0].astype({"Cells_0": "float32", "Cells_2": "int32", "Metadata_Dose": "int64"})
    parts[1] = parts[1].astype({"Metadata_Plate": "category", "Metadata_Well": "category"})
    parts[2] = parts[2].assign(Cells_3=None, Metadata_Dose=None)  # a column of nothing has no type
    return [write(part, tmp_path / f"{i}.parquet") for i, part in enumerate(parts)], table


def write(table, path):
    table.to_parquet(path, index=False)
    return path


@pytest.mark.parametrize("turn", [1, -1])
def test_types_that_differ_are_brought_together(tmp_path, turn):
    paths, table = unlike(tmp_path)
    paths, table = paths[::turn], pd.concat([table.iloc[i : i + 300] for i in (0, 300, 600)[::turn]])
    by = ["Metadata_Plate", "Metadata_Well", "Metadata_Dose"]
    found = aggregate_parquet(paths, by)
    pd.testing.assert_frame_equal(found, aggregate(table, by))  # float64 in one file is float64
    for options in ({"by": "Metadata_Dose"}, {"samples": "Metadata_Dose == 1"}, {"by": "Metadata_Compound"}):
        found = pd.read_parquet(normalize_parquet(paths, tmp_path / "out.parquet", **options))
        expected = normalize(table, **options).reset_index(drop=True)
        pd.testing.assert_frame_equal(found, expected, check_column_type=False, rtol=1e-9, atol=1e-9)


def test_columns_in_another_order(tmp_path):
    table = cells(900)
    paths = [write(table.iloc[:450], tmp_path / "a.parquet"), write(table.iloc[450:, ::-1], tmp_path / "b.parquet")]
    pd.testing.assert_frame_equal(aggregate_parquet(paths), aggregate(table))


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        (
            ["1", "2"],
            [1, 2],
            r"Metadata_Dose is int64 in .*b\.parquet and (large_)?string in .*a\.parquet; write it in",
        ),
        (
            [1.5, 2],
            ["a", "b"],
            r"Metadata_Dose is (large_)?string in .*b\.parquet and double in .*a\.parquet; write it",
        ),
        ([True, False], [1, 2], r"Metadata_Dose is int64 in .*b\.parquet and bool in .*a\.parquet; write it in one"),
        ([b"a", b"b"], ["a", "b"], r"Metadata_Dose is (large_)?string in .*b\.parquet and binary in .*a\.parquet"),
        (
            [2**60 + 1, 2],
            [0.5, 2],
            r"a\.parquet: Metadata_Dose is double in other files, which does not hold it: .*1152",
        ),
    ],
)
def test_types_that_do_not_go_together(tmp_path, first, second, words):
    table = cells(2)
    paths = [
        write(table.assign(Metadata_Dose=values), tmp_path / f"{name}.parquet")
        for name, values in (("a", first), ("b", second))
    ]
    with pytest.raises(InputError, match=words):
        aggregate_parquet(paths, "Metadata_Dose")


def test_text_in_a_feature_of_a_later_file(tmp_path):
    table = cells(4)
    paths = [write(table, tmp_path / "a.parquet"), write(table.astype({"Cells_1": "str"}), tmp_path / "b.parquet")]
    with pytest.raises(InputError, match=r"Cells_1 is (large_)?string in .*b\.parquet and float in .*a\.parquet"):
        aggregate_parquet(paths)


def test_null_and_nan_are_one_key(tmp_path):
    table = cells(600, "float64").drop(columns="note")
    dose = np.where(np.arange(600) % 3 == 0, np.nan, np.arange(600) % 2 - 0.0)
    arrow = pa.Table.from_pandas(table, preserve_index=False)
    arrow = arrow.append_column("Metadata_Dose", pa.array(dose, mask=np.arange(600) % 6 == 0))  # the others stay NaN
    dose[dose == 0] = -0.0
    other = pa.Table.from_pandas(table.assign(Metadata_Dose=dose), preserve_index=False)
    pq.write_table(arrow, tmp_path / "a.parquet")
    pq.write_table(other, tmp_path / "b.parquet")
    both = pd.concat([arrow.to_pandas(), other.to_pandas()], ignore_index=True)
    found = aggregate_parquet(tmp_path, "Metadata_Dose", compute_object_count=True)
    assert found.pop("Metadata_Object_Count").tolist() == [400, 400, 400]
    pd.testing.assert_frame_equal(found, aggregate(both, "Metadata_Dose"))
    found = pd.read_parquet(normalize_parquet(tmp_path, tmp_path / "out" / "c.parquet", by="Metadata_Dose"))
    pd.testing.assert_frame_equal(found, normalize(both, by="Metadata_Dose"), check_column_type=False)


# --- keys that look like features
def test_a_number_without_metadata_before_it_can_be_a_key(tmp_path):
    table = cells().drop(columns="note")
    table.columns = [name.replace("Cells_", "net_") for name in table]
    table.insert(3, "plate", np.where(table.pop("Metadata_Plate") == "p", 1, 2))
    path = write(table, tmp_path / "a.parquet")
    pd.testing.assert_frame_equal(aggregate_parquet(path, "plate"), aggregate(table, "plate"))
    with pytest.warns(ProfileWarning, match=r"1 column\(s\) are neither features nor metadata .*\(plate\)"):
        expected = normalize(table, by="plate")
    assert expected["plate"].tolist() == table["plate"].tolist()
    found = pd.read_parquet(normalize_parquet(path, tmp_path / "b.parquet", by="plate"))
    pd.testing.assert_frame_equal(found, expected, check_column_type=False, atol=1e-6)
    for function in (
        lambda **options: normalize_parquet(path, tmp_path / "c.parquet", by="plate", **options),
        lambda **options: normalize(table, by="plate", **options),
        lambda **options: aggregate_parquet(path, "plate", **options),
    ):
        with pytest.raises(InputError, match="both a feature and a key: plate; leave it out of features="):
            function(features=["plate", "net_0"])


def test_numbers_of_objects_are_no_features(tmp_path):
    table = cells().drop(columns="note")
    table.columns = [name.replace("Cells_", "net_") for name in table]
    table["ObjectNumber"] = np.arange(len(table))
    path = write(table, tmp_path / "a.parquet")
    pd.testing.assert_frame_equal(aggregate_parquet(path), aggregate(table))


def test_features_alone(tmp_path):
    table = cells()[["Cells_0", "Cells_2"]]
    path = normalize_parquet(write(table, tmp_path / "a.parquet"), tmp_path / "b.parquet")
    pd.testing.assert_frame_equal(pd.read_parquet(path), normalize(table), check_column_type=False, atol=1e-6)


# --- how often the files are read
@pytest.mark.parametrize(
    ("method", "dtype", "groups", "held", "passes"),
    [
        ("standardize", "float64", 2, 0, 3),
        ("mad_robustize", "float64", 12, 2**28, 3),
        ("robustize", "float32", 2, 0, 4),
        ("mad_robustize", "float32", 2, 0, 6),
        ("robustize", "float64", 12, 0, 10),
        ("mad_robustize", "float64", 12, 0, 18),
    ],
)
@pytest.mark.filterwarnings("ignore:mad_robustize")
def test_passes(tmp_path, monkeypatch, method, dtype, groups, held, passes):
    table = cells(600, dtype).assign(Metadata_Group=np.arange(600) * groups // 600)
    path = write(table, tmp_path / "a.parquet")
    read = []
    plain = CellTable.batches
    monkeypatch.setattr(CellTable, "batches", lambda self, columns: read.append(columns) or plain(self, columns))
    monkeypatch.setattr("cytominer_tools.cell_tables._HELD", held)
    normalize_parquet(path, tmp_path / "b.parquet", method=method, by="Metadata_Group")
    assert len(read) == passes


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
        ({"samples": None}, "query None: expected text such as"),
        ({"method": "mad_robustize", "mad_robustize_epsilon": None}, "mad_robustize_epsilon=None: expected a finite"),
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
    lists = table.head(3).assign(Metadata_Pair=[[1, 2]] * 3)
    with pytest.raises(
        InputError, match=r"c\.parquet: Metadata_Pair is list<.*>; expected text, numbers or dates as a key"
    ):
        aggregate_parquet(write(lists, tmp_path / "c.parquet"), "Metadata_Pair")
    (tmp_path / "c.parquet").unlink()
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

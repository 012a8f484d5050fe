import sqlite3
from importlib import import_module

import numpy as np
import pandas as pd
import pytest

from cytominer_tools import CellLocation, SingleCells, infer_cp_features
from cytominer_tools.errors import InputError, ProfileWarning

COMPARTMENTS = ("Cells", "Cytoplasm", "Nuclei")


def tables(cells_of=(4, 3, 5)):
    """Two wells, the first with two sites; six cells or so, three compartments."""
    rng = np.random.default_rng(0)
    image = pd.DataFrame(
        {
            "TableNumber": [1, 2, 3],
            "ImageNumber": [1, 1, 1],
            "Metadata_Plate": "p",
            "Metadata_Well": ["A01", "A01", "A02"],
            "Metadata_Site": [1, 2, 1],
            "Count_Cells": cells_of,
            "Texture_a": [0.5, 1.5, 2.5],
            "Granularity_b": [1.0, 2.0, 3.0],
        }
    )
    found = {"Image": image}
    for name in COMPARTMENTS:
        keys = [(t, 1, n + 1) for t, count in zip((1, 2, 3), cells_of, strict=True) for n in range(count)]
        part = pd.DataFrame(keys, columns=["TableNumber", "ImageNumber", "ObjectNumber"])
        part[f"{name}_AreaShape_Area"] = rng.random(len(part))
        part[f"{name}_Texture_x"] = rng.random(len(part))
        if name == "Nuclei":
            part["Nuclei_Location_Center_X"] = rng.random(len(part)).round(3)
            part["Nuclei_Location_Center_Y"] = rng.random(len(part)).round(3)
        if name == "Cytoplasm":
            part["Cytoplasm_Parent_Cells"] = part["Cytoplasm_Parent_Nuclei"] = part["ObjectNumber"]
        found[name] = part
    return found


def database(path, found):
    connection = sqlite3.connect(path)
    for name, table in found.items():
        table.to_sql(name, connection, index=False)
    connection.close()
    return f"sqlite:///{path}"


@pytest.fixture
def file(tmp_path):
    return database(tmp_path / "p.sqlite", tables())


# --- parity
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"aggregation_operation": "mean"},
        {"add_image_features": True, "image_feature_categories": ["Count", "Texture"]},
        {"add_image_features": True, "image_feature_categories": ["Texture"]},
        {"fields_of_view": [1]},
        {"strata": ["Metadata_Well", "Metadata_Site"]},
    ],
)
def test_profiles(peer, quiet, file, options):
    expected = peer.SingleCells(file, **options)
    for n in (1, 5):
        result = SingleCells(file, **options).aggregate_profiles(n_aggregation_memory_strata=n)
        pd.testing.assert_frame_equal(result, quiet(expected.aggregate_profiles)(), check_dtype=False)
    counts = SingleCells(file, **options).count_cells()
    pd.testing.assert_frame_equal(counts, quiet(expected.count_cells)(), check_dtype=False)
    counts = SingleCells(file, **options).count_cells(image_count_col="absent")
    pd.testing.assert_frame_equal(counts, quiet(expected.count_cells)(image_count_col="absent"), check_dtype=False)


@pytest.mark.parametrize("options", [{}, {"single_cell_normalize": True}])
def test_cells(peer, quiet, file, options):
    expected = quiet(peer.SingleCells(file).merge_single_cells)(**options)
    pd.testing.assert_frame_equal(SingleCells(file).merge_single_cells(**options), expected, check_dtype=False)


@pytest.mark.parametrize("options", [{"subsample_frac": 0.5}, {"subsample_n": 2}])
def test_subsamples(peer, quiet, file, options):
    result = SingleCells(file, subsampling_random_state=1, **options)
    expected = peer.SingleCells(file, subsampling_random_state=1, **options)
    profiles = result.aggregate_profiles(compute_subsample=True)
    assert profiles["Metadata_Object_Count"].tolist() == ([2, 2] if "subsample_n" in options else [4, 2])
    assert result.count_cells(count_subset=True)["cell_count"].tolist() == profiles["Metadata_Object_Count"].tolist()
    pd.testing.assert_frame_equal(
        profiles, quiet(expected.aggregate_profiles)(compute_subsample=True), check_dtype=False
    )


@pytest.mark.data
def test_a_real_database(peer, data):
    folder = data / "cellprofiler_exports"
    options = {
        "strata": ["Image_Metadata_Plate", "Image_Metadata_Well"],
        "image_cols": ["TableNumber", "ImageNumber"],
        "fields_of_view_feature": "Image_Metadata_Site",
    }
    result = SingleCells(f"sqlite:///{folder}/test_SQ00014613.sqlite", **options).merge_single_cells()
    assert result.shape == (2, 1790)
    features = infer_cp_features(result)
    assert len(features) == 1781
    assert result[features].to_numpy().sum() == pytest.approx(89099.50669328593, rel=1e-12)
    assert list(result.columns) == list(pd.read_csv(folder / "test_SQ00014613.csv.gz", nrows=1).columns)


@pytest.mark.data
def test_locations(quiet, data, tmp_path):
    folder = data / "jump_metadata"
    metadata, cells = (folder / f"test_BR00126114{end}" for end in ("_load_data_with_illum.parquet", ".sqlite"))
    result = CellLocation(str(metadata), str(cells)).add_cell_location()
    theirs = quiet(import_module)("pycytominer.cyto_utils.cell_locations").CellLocation
    expected = quiet(quiet(theirs)(str(metadata), str(cells)).add_cell_location)()
    pd.testing.assert_frame_equal(result, expected, check_dtype=False)
    path = CellLocation(str(metadata), str(cells), tmp_path / "a.parquet").add_cell_location()
    assert path == CellLocation("absent.csv", "absent.sqlite", path).add_cell_location()


# --- what pycytominer loses
def test_a_well_without_nuclei_stays(tmp_path):
    found = tables()
    found["Nuclei"] = found["Nuclei"][found["Nuclei"]["TableNumber"] != 3]
    with pytest.warns(ProfileWarning, match="nuclei: some groups have no objects; their features are missing"):
        result = SingleCells(database(tmp_path / "p.sqlite", found)).aggregate_profiles()
    assert result["Metadata_Well"].tolist() == ["A01", "A02"]
    assert result["Nuclei_Texture_x"].isna().tolist() == [False, True]
    with pytest.warns(ProfileWarning, match="5 object.s. of cytoplasm have no partner in nuclei; they are left out"):
        assert len(SingleCells(f"{tmp_path}/p.sqlite").merge_single_cells()) == 7


def test_nothing_is_written(file):
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        SingleCells(file).conn.execute("drop table Image")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sql_file": "sqlite:///absent.sqlite"}, r"absent\.sqlite: no such file"),
        ({"strata": ["Metadata_x"]}, "no column 'Metadata_x'"),
        ({"image_table_name": "images"}, "no table 'images'"),
        ({"subsample_frac": 2}, "subsample_frac=2 must be between 0 and 1"),
        ({"subsample_frac": 0.5, "subsample_n": 3}, "Do not set both subsample_frac and subsample_n"),
        ({"subsample_n": "many"}, "subsample_n='many' must be an integer"),
        ({"aggregation_operation": "max"}, "operation='max': expected one of median, mean"),
        ({"fields_of_view": [9]}, "fields_of_view 9: some of the input fields of view are not present"),
        ({"add_image_features": True}, "image_feature_categories must be specified"),
        (
            {"add_image_features": True, "image_feature_categories": ["Threshold"]},
            "Threshold: some of the input image features are not present",
        ),
        ({"compartment_linking_cols": {"cells": {"nuclei": "a"}}}, "Missing column identifier between cells-nuclei"),
    ],
)
def test_refuses(file, options, words):
    with pytest.raises(InputError, match=words):
        SingleCells(**({"sql_file": file} | options))
    with pytest.raises(TypeError, match="Variable of type list expected"):
        SingleCells(file, fields_of_view=3)
    with pytest.raises(InputError, match="n_aggregation_memory_strata=0: must be > 0"):
        SingleCells(file).aggregate_profiles(n_aggregation_memory_strata=0)

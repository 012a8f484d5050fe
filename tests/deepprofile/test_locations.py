import numpy as np
import pandas as pd
import pytest
from study_factory import configure, derived, edit_index, write_images

from cytominer_tools.columns import CELL, PLATE, SITE, WELL
from cytominer_tools.errors import InputError
from deepprofile.locations import X, Y, locate_cells, plate_locations, read_located
from deepprofile.registry import register


def cells_of(study, plate, well):
    return plate_locations(study, plate).read(well).to_pandas()


def corner_cells(image, *, channels, pixel_size_um, n=3):
    """A locator whose answer is known: `n` cells on the diagonal, none where the image is dim."""
    assert image.dtype == np.float32
    assert image.shape[2] == len(channels) == 1
    n = n if image.max() > 1000 else 0
    step = np.arange(n, dtype=float)
    return pd.DataFrame({"x": 40 + 10 * step, "y": 50 + 10 * step, "area": np.arange(n)}), None


@pytest.fixture
def corners(fresh):
    register("deepprofile.locators", "corners", corner_cells)
    return configure(fresh.root, locate={"method": "corners", "channel": "ER"})


def write_locations(root, rows, header="Location_Center_X,Location_Center_Y"):
    for plate in ("P1", "P2"):
        for well in ("A01", "A02", "B01", "B02", "C01", "C02"):
            for site in (1, 2):
                path = root / "locations_in" / plate / f"{well}-{site}-Nuclei.csv"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text("\n".join([header, *rows]) + "\n")


FILES = {"files": "locations_in/{plate}/{well}-{site}-Nuclei.csv"}


# --- found by a plugin
def test_a_plugin_finds_the_cells(corners):
    told = locate_cells(corners)
    assert (told.made, told.kept, told.rows, told.skipped) == (12, 0, 72, ())
    cells = cells_of(corners, "P1", "A02")
    assert list(cells) == [PLATE, WELL, SITE, CELL, X, Y, "Metadata_Area"]
    assert cells[PLATE].tolist() == ["P1"] * 6
    assert cells[WELL].tolist() == ["A02"] * 6
    assert cells[SITE].tolist() == ["1"] * 3 + ["2"] * 3
    assert cells[CELL].tolist() == [0, 1, 2, 0, 1, 2]
    assert cells[X].tolist() == [40, 50, 60] * 2
    assert cells[Y].tolist() == [50, 60, 70] * 2


def test_parameters_reach_the_plugin(corners):
    study = configure(corners.root, locate={"method": "corners", "params": {"n": 2}})
    assert locate_cells(study).rows == 48


def test_a_plate_is_one_file_with_a_row_group_a_well(corners):
    import pyarrow.parquet as pq

    locate_cells(corners)
    assert sorted(p.name for p in (corners.root / "locations" / "P2").iterdir()) == ["cells.parquet", "manifest.json"]
    with pq.ParquetFile(corners.root / "locations" / "P2" / "cells.parquet") as file:
        assert file.num_row_groups == 6


def test_a_site_without_cells_is_done(corners):
    dim = np.random.default_rng(0).integers(0, 900, (128, 128, 3)).astype(np.uint16)
    write_images(corners.root, "P1", "A01", 1, dim)
    for site in (1, 2):
        write_images(corners.root, "P1", "B01", site, dim)
    told = locate_cells(corners)
    assert (told.made, told.rows, told.skipped) == (12, 72 - 9, ())
    assert cells_of(corners, "P1", "A01")[SITE].tolist() == ["2"] * 3
    assert cells_of(corners, "P1", "A01")[CELL].tolist() == [0, 1, 2]
    empty = cells_of(corners, "P1", "B01")
    assert len(empty) == 0
    assert list(empty) == list(cells_of(corners, "P1", "A01"))
    again = locate_cells(corners)
    assert (again.made, again.kept, again.rows) == (0, 12, 72 - 9)


def test_columns_keep_their_type_beside_an_empty_site(fresh):
    blank = np.full((128, 128, 3), 500, np.uint16)
    blank[0, 0] = 501
    write_images(fresh.root, "P1", "A01", 1, blank)
    locate_cells(fresh)
    table = plate_locations(fresh, "P1")
    assert table.read("A01").schema.types == table.read("A02").schema.types
    assert str(table.read("A01").schema.field("Metadata_Border").type) == "bool"


def test_the_same_bytes_whenever_it_runs(fresh, finished):
    locate_cells(fresh)
    names = [name for name in derived(finished.root) if name.startswith("locations/")]
    assert {name: derived(fresh.root)[name] for name in names} == {name: derived(finished.root)[name] for name in names}


def test_sites_are_numbers_in_order(corners):
    edit_index(corners.root, lambda t: t.assign(Metadata_Site=t["Metadata_Site"].map({1: 10, 2: 9})))
    locate_cells(corners)
    assert cells_of(corners, "P1", "A01")[SITE].tolist() == ["9"] * 3 + ["10"] * 3


def test_unknown_locator_and_parameter(fresh):
    with pytest.raises(InputError, match=r"no deepprofile\.locators plugin is called 'nukes'; installed: .*nuclei"):
        locate_cells(configure(fresh.root, locate={"method": "nukes"}))
    with pytest.raises(InputError, match=r"locate\.params: .*'diametre'; `deepprofile models` lists the parameters"):
        locate_cells(configure(fresh.root, locate={"params": {"diametre": 3}}))


def test_a_wrong_parameter_is_an_error_not_a_bad_site(fresh):
    with pytest.raises(InputError, match="diameter=-1"):
        locate_cells(configure(fresh.root, locate={"params": {"diameter": -1}}))


# --- from files
def test_centres_come_from_files(fresh):
    write_locations(fresh.root, ["30.5,60", "90,20.25"])
    study = configure(fresh.root, locate=FILES)
    told = locate_cells(study)
    assert (told.made, told.rows) == (12, 48)
    cells = cells_of(study, "P2", "C02")
    assert list(cells) == [PLATE, WELL, SITE, CELL, X, Y]
    assert cells[X].tolist() == [30.5, 90] * 2
    assert cells[Y].tolist() == [60, 20.25] * 2
    assert cells[CELL].tolist() == [0, 1] * 2


@pytest.mark.parametrize(
    ("header", "names"),
    [
        ("Nuclei_Location_Center_X,Nuclei_Location_Center_Y", {}),
        ("AreaShape_Center_X,AreaShape_Center_Y", {}),
        ("x,y", {}),
        ("col,row", {"x": "col", "y": "row"}),
    ],
)
def test_columns_of_centres(fresh, header, names):
    write_locations(fresh.root, ["3,7"], header)
    study = configure(fresh.root, locate={**FILES, **names})
    cells = read_located(study, {PLATE: "P1", WELL: "A01", SITE: "1"})
    assert cells.to_dict("list") == {"x": [3.0], "y": [7.0]}


def test_a_file_without_rows_is_a_site_without_cells(fresh):
    write_locations(fresh.root, ["3,7"])
    (fresh.root / "locations_in" / "P1" / "A01-1-Nuclei.csv").write_text("Location_Center_X,Location_Center_Y\n")
    study = configure(fresh.root, locate=FILES)
    told = locate_cells(study)
    assert (told.rows, told.skipped) == (23, ())
    assert cells_of(study, "P1", "A01")[SITE].tolist() == ["2"]


def test_a_changed_location_file_runs_its_well_alone(fresh):
    write_locations(fresh.root, ["3,7"])
    study = configure(fresh.root, locate=FILES)
    locate_cells(study)
    (fresh.root / "locations_in" / "P1" / "A01-1-Nuclei.csv").write_text("x,y\n1,2\n3,4\n")
    told = locate_cells(study)
    assert (told.made, told.kept, told.rows) == (1, 11, 25)


def test_bad_location_files(fresh):
    write_locations(fresh.root, ["3,7"])
    folder = fresh.root / "locations_in" / "P1"
    (folder / "A01-1-Nuclei.csv").unlink()
    (folder / "A02-2-Nuclei.csv").write_text("x,y\n1,2\n3,left\n")
    (folder / "B01-1-Nuclei.csv").write_text("a,b\n1,2\n")
    study = configure(fresh.root, locate=FILES)
    told = locate_cells(study)
    assert (told.made, told.rows) == (12, 21)
    why = dict(told.skipped)
    assert list(why) == ["P1 A01 site 1", "P1 A02 site 2", "P1 B01 site 1"]
    assert why["P1 A01 site 1"] == f"{folder / 'A01-1-Nuclei.csv'}: no such file"
    assert "A02-2-Nuclei.csv row 3: x, y are" in why["P1 A02 site 2"]
    assert "expected numbers" in why["P1 A02 site 2"]
    assert "B01-1-Nuclei.csv: no columns of cell centres; it has a, b; name them in locate.x" in why["P1 B01 site 1"]
    with pytest.raises(InputError, match=r"A01-1-Nuclei\.csv: no such file"):
        locate_cells(study, strict=True)  # also after a run that left them out
    (folder / "A01-1-Nuclei.csv").write_text("x,y\n1,2\n")
    again = locate_cells(study)
    assert (again.made, again.rows, len(again.skipped)) == (1, 22, 2)


def test_a_template_with_another_field(fresh):
    study = configure(fresh.root, locate={"files": "{plate}/{field}.csv"})
    with pytest.raises(InputError, match=r"only \{plate\}, \{well\} and \{site\} are filled in"):
        locate_cells(study)

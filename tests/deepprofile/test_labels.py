import os

import numpy as np
import pandas as pd
import pytest
import tifffile
from study_factory import configure, derived, edit_index, run, write_images

from cytominer_tools.columns import CELL, PLATE, SITE, WELL
from cytominer_tools.errors import InputError
from deepprofile.index import load_index
from deepprofile.location_files import X, Y
from deepprofile.locations import label_path, locate_cells, plate_locations, read_labels
from deepprofile.registry import register
from deepprofile.sites import site_rows

KEPT = {"labels": True}


def row(plate="P1", well="A01", site="1"):
    return {PLATE: plate, WELL: well, SITE: site}


def label_files(study):
    return sorted(p.relative_to(study.root / "locations").as_posix() for p in (study.root / "locations").rglob("*.tif"))


def write_label_images(root):
    """The DNA of each site above a threshold, so a mask; returns the template."""
    (root / "masks").mkdir()
    for plate in ("P1", "P2"):
        for path in (root / "images" / plate).glob("*_DNA.tif"):
            mask = (tifffile.imread(path) > 1500).astype(np.uint8) * 255
            tifffile.imwrite(root / "masks" / f"{plate}_{path.name.removesuffix('_DNA.tif')}.tif", mask)
    return "masks/{plate}_{well}_s{site}.tif"


def assert_labels_are_the_cells(study):
    for plate in ("P1", "P2"):
        for r in site_rows(load_index(study)):
            if r[PLATE] != plate:
                continue
            cells = plate_locations(study, plate).read(r[WELL]).to_pandas()
            cells = cells[cells[SITE] == r[SITE]]
            labels = read_labels(study, r)
            assert labels.shape == (128, 128)
            assert labels.max() == len(cells)
            for cell, x, y, area in cells[[CELL, X, Y, "Metadata_Area"]].itertuples(index=False):
                rows, columns = np.nonzero(labels == cell + 1)
                assert (len(rows), columns.mean(), rows.mean()) == (area, pytest.approx(x), pytest.approx(y))


# --- what is kept
def test_none_are_kept_by_default(fresh):
    locate_cells(fresh)
    assert label_files(fresh) == []
    with pytest.raises(InputError, match=r"A01_1\.tif: no label image; set locate\.labels to true and run"):
        read_labels(fresh, row())


def test_the_labels_of_a_locator(fresh):
    study = configure(fresh.root, locate=KEPT)
    locate_cells(study)
    assert len(label_files(study)) == 24
    assert label_files(study)[0] == "P1/labels/A01_1.tif"
    with tifffile.TiffFile(label_path(study, row())) as file:
        assert file.pages[0].dtype == np.uint16
        assert file.pages[0].compression != 1
    assert_labels_are_the_cells(study)


def test_the_labels_of_label_images(fresh):
    study = configure(fresh.root, locate={"files": write_label_images(fresh.root), **KEPT})
    told = locate_cells(study)
    assert (told.made, told.skipped) == (12, ())
    assert told.rows > 200
    assert_labels_are_the_cells(study)


def test_many_labels_need_more_than_16_bits(fresh):
    def crowd(image, *, channels, pixel_size_um):
        labels = np.arange(1, 128 * 128 + 1).reshape(128, 128) * 0
        labels[0, :2] = 1, 70_000
        return pd.DataFrame({"x": np.zeros(70_000), "y": np.zeros(70_000)}), labels

    register("deepprofile.locators", "crowd", crowd)
    edit_index(fresh.root, lambda table: table.iloc[:1])
    study = configure(fresh.root, locate={"method": "crowd", **KEPT})
    locate_cells(study)
    assert read_labels(study, row()).max() == 70_000


# --- when they are made, and when they go
def test_asking_for_labels_makes_them_and_changes_nothing_else(fresh):
    run(fresh)
    before = derived(fresh.root)
    study = configure(fresh.root, locate=KEPT)
    told = run(study)
    assert (told["locate"].made, told["profile"].made) == (12, 0)
    after = derived(fresh.root)
    assert {name: value for name, value in after.items() if not name.endswith(".tif")} == before
    assert locate_cells(study).made == 0
    label_path(study, row("P2", "B01", "2")).unlink()
    assert locate_cells(study).made == 1
    assert derived(fresh.root) == after
    assert locate_cells(configure(fresh.root)).made == 0  # no longer wanted
    assert derived(fresh.root) == before


def test_the_same_bytes_whenever_they_are_made(fresh):
    study = configure(fresh.root, locate=KEPT)
    locate_cells(study)
    before = derived(fresh.root)
    for path in (fresh.root / "locations").rglob("*"):
        if path.is_file():
            path.unlink()
    locate_cells(study)
    assert derived(fresh.root) == before


def test_the_labels_of_a_bad_or_absent_site_go(fresh):
    study = configure(fresh.root, locate=KEPT)
    locate_cells(study)
    names = write_images(fresh.root, "P1", "A01", 1, np.full((128, 128, 3), 7, np.uint16))
    os.utime(fresh.root / names["DNA"])
    edit_index(fresh.root, lambda t: t[(t["Metadata_Well"] != "C02") | (t["Metadata_Plate"] != "P2")])
    told = locate_cells(study)
    assert [what for what, _ in told.skipped] == ["P1 A01 site 1"]
    files = label_files(study)
    assert len(files) == 24 - 1 - 2
    assert not {"P1/labels/A01_1.tif", "P2/labels/C02_1.tif", "P2/labels/C02_2.tif"} & set(files)
    assert locate_cells(study).made == 0  # the bad site has none, and lacks none


def test_a_site_without_cells_has_an_empty_label_image(fresh):
    blank = np.full((128, 128, 3), 500, np.uint16)
    blank[0, 0] = 501
    write_images(fresh.root, "P1", "A01", 1, blank)
    study = configure(fresh.root, locate=KEPT)
    locate_cells(study)
    assert not read_labels(study, row()).any()
    assert locate_cells(study).made == 0


def test_a_kill_never_leaves_older_cells_beside_newer_labels(fresh, monkeypatch):
    """Killed under other settings between labels and record, then run again under the first settings."""
    from cytominer_tools.manifest import PlateTable

    first = configure(fresh.root, locate=KEPT)
    locate_cells(first)
    wanted = derived(fresh.root)
    second = configure(fresh.root, locate={**KEPT, "params": {"max_size": 1.2, "diameter": 9}})

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(PlateTable, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            locate_cells(second)
    configure(fresh.root, locate=KEPT)
    assert locate_cells(first).made >= 1
    assert derived(fresh.root) == wanted


# --- locators that cannot
def test_a_locator_without_labels(fresh):
    def centres(image, *, channels, pixel_size_um):
        return pd.DataFrame({"x": [3.0], "y": [4.0]}), None

    register("deepprofile.locators", "centres", centres)
    with pytest.raises(InputError, match=r"locate\.labels: the locator centres makes no label image; set it to false"):
        locate_cells(configure(fresh.root, locate={"method": "centres", **KEPT}))


@pytest.mark.parametrize(("shape", "value"), [((128, 64), 1), ((128, 128), 2)])
def test_a_locator_whose_labels_are_not_its_rows(fresh, shape, value):
    def wrong(image, *, channels, pixel_size_um):
        return pd.DataFrame({"x": [3.0], "y": [4.0]}), np.full(shape, value)

    register("deepprofile.locators", "wrong", wrong)
    with pytest.raises(InputError, match=r"locate\.method wrong: a label image of shape .* beside 1 rows; expected"):
        locate_cells(configure(fresh.root, locate={"method": "wrong", **KEPT}))


def test_label_images_of_another_size_than_the_image(fresh):
    template = write_label_images(fresh.root)
    tifffile.imwrite(fresh.root / "masks" / "P1_A01_s1.tif", np.zeros((64, 128), np.uint8))
    for size in (None, [128, 128]):
        study = configure(fresh.root, images={"size": size}, locate={"files": template})
        ((what, why),) = locate_cells(study).skipped
        assert what == "P1 A01 site 1"
        assert "P1_A01_s1.tif: labels of 64 x 128 pixels, the image is 128 x 128 (height x width)" in why


# --- the types of QC columns
def test_types_of_qc_columns_are_those_of_the_plate_whatever_the_site(fresh):
    def uneven(image, *, channels, pixel_size_um):
        n = int(image[0, 0, 0]) % 3
        area = np.arange(n) if n == 1 else np.arange(n) + 0.5  # whole at one site, fractions at the next
        table = {"x": np.ones(n), "y": np.ones(n), "area": area, "border": area > 1, "focus": np.float32(area)}
        return pd.DataFrame(table if n else {name: [] for name in table}), None

    register("deepprofile.locators", "uneven", uneven)
    for n, r in enumerate(site_rows(load_index(fresh))):
        image = np.arange(128 * 128 * 3, dtype=np.uint16).reshape(128, 128, 3)
        image[0, 0] = n % 5 if r[WELL] != "B02" else 0
        write_images(fresh.root, r[PLATE], r[WELL], int(r[SITE]), image)
    study = configure(fresh.root, locate={"method": "uneven"})
    locate_cells(study)
    for plate in ("P1", "P2"):
        table = plate_locations(study, plate)
        for well in ("A01", "A02", "B01", "B02", "C01", "C02"):
            schema = table.read(well).schema
            types = {name: str(schema.field(f"Metadata_{name}").type) for name in ("Area", "Border", "Focus")}
            assert types == {"Area": "double", "Border": "bool", "Focus": "double"}


def test_a_column_may_not_take_the_name_of_a_key(fresh):
    def clash(image, *, channels, pixel_size_um):
        return pd.DataFrame({"x": [3.0], "y": [4.0], "cell": [1]}), None

    register("deepprofile.locators", "clash", clash)
    with pytest.raises(InputError, match="column 'cell' would be Metadata_Cell, which is taken; rename it"):
        locate_cells(configure(fresh.root, locate={"method": "clash"}))

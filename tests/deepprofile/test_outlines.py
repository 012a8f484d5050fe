"""Outlines part the cells of a site as DeepProfiler's masks do."""

import cv2
import numpy as np
import pandas as pd
import pytest
import skimage.measure
from pydantic import ValidationError
from study_factory import configure

from cytominer_tools.columns import PLATE, SITE, WELL
from cytominer_tools.errors import InputError
from deepprofile.crop_source import read_source
from deepprofile.crop_store import Crops
from deepprofile.export import export_crops
from deepprofile.intensities import measure_intensities
from deepprofile.locations import locate_cells, read_labels
from deepprofile.outlines import regions, regions_of
from deepprofile.study import Locate

LINES = np.zeros((128, 128), np.uint8)
LINES[::32] = LINES[:, ::32] = 1
LOCATE = {
    "files": "centres.csv",
    "outlines": {"table": "outlines.csv", "root": "lines"},
    "labels": True,
    "method": "nuclei",
}


@pytest.fixture
def outlined(fresh):
    """The tiny study with three centres a site, in three squares of a grid of lines; one site lacks its outlines."""
    sites = pd.read_csv(fresh.root / "index.csv")[[PLATE, WELL, SITE]]
    cells = sites.merge(pd.DataFrame({"x": [20.0, 50.2, 100.7], "y": [16.0, 80.5, 47.9]}), how="cross")
    cells.to_csv(fresh.root / "centres.csv", index=False)
    sites.assign(Outlines="grid.png").iloc[:-1].to_csv(fresh.root / "outlines.csv", index=False)
    (fresh.root / "lines").mkdir()
    cv2.imwrite(str(fresh.root / "lines/grid.png"), LINES)
    study = configure(
        fresh.root, locate=LOCATE, crops={"mask": True, "normalize": "none"}, export={"depth": "original"}
    )
    return study, locate_cells(study)


def test_regions_are_those_of_scikit_image():
    image = np.random.default_rng(0).integers(0, 3, (30, 40))
    np.testing.assert_array_equal(regions(image), skimage.measure.label(image, background=1))
    assert regions(LINES).max() == 16
    assert (regions(LINES)[LINES == 1] == 0).all()


def test_the_region_of_a_centre_is_the_median_around_it():
    labels = np.zeros((20, 30), np.int32)
    labels[:, 15:] = 4
    xy = np.array([[14.9, 10], [15.0, 10], [16, 10], [29.9, 19.9], [0, 0], [40, 5], [-30, 5]])
    assert regions_of(labels, xy).tolist() == [0, 2, 4, 4, 0, 0, 0]  # half of the pixels around 15 are in 4


def test_label_images_are_kept_and_cells_masked(outlined):
    study, told = outlined
    assert told.rows == 23 * 3
    assert told.skipped[0][0] == "P2 C02 site 2"
    assert told.skipped[0][1].endswith("outlines.csv: no outlines of P2 C02 site 2")
    row = {PLATE: "P1", WELL: "A01", SITE: "1"}
    np.testing.assert_array_equal(read_labels(study, row), regions(LINES))
    export_crops(study)
    crops = Crops(study.crop_store)
    image = read_source(study, {**row, **{c: f"images/P1/A01_s1_{c}.tif" for c in ("DNA", "ER", "Mito")}}).image
    padded = np.pad(np.where(LINES[..., None] == 1, 0, image), ((32, 32), (32, 32), (0, 0)))
    for crop, (x, y) in zip(crops[:3], ((20, 16), (50, 81), (101, 48)), strict=True):
        rows, columns = (slice(32 + 32 * (v // 32), 64 + 32 * (v // 32)) for v in (y, x))
        own = np.zeros_like(padded)
        own[rows, columns] = padded[rows, columns]
        np.testing.assert_array_equal(crop, own[32 + y - 16 : 48 + y, 32 + x - 16 : 48 + x])
        assert crop.any()


def test_other_outlines_are_other_cells(outlined):
    study, _ = outlined
    measure_intensities(study)
    assert (locate_cells(study).made, export_crops(study).made) == (0, 12)
    moved = np.roll(LINES, 3)
    cv2.imwrite(str(study.root / "lines/grid.png"), moved)
    assert (locate_cells(study).made, export_crops(study).made) == (12, 12)
    np.testing.assert_array_equal(read_labels(study, {PLATE: "P1", WELL: "A01", SITE: "1"}), regions(moved))


def test_what_is_refused(outlined):
    study, _ = outlined
    with pytest.raises(ValidationError, match="outlines part cells whose centres are in tables: give files"):
        Locate(outlines=LOCATE["outlines"])
    with pytest.raises(ValidationError, match="outlines part cells whose centres are in tables: give files"):
        Locate(files="{plate}.tif", outlines=LOCATE["outlines"])
    pd.read_csv(study.root / "outlines.csv").drop(columns="Outlines").to_csv(study.root / "outlines.csv", index=False)
    with pytest.raises(InputError, match=r"outlines\.csv: no column 'Outlines'"):
        locate_cells(study)

import json

import cv2
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from matplotlib.collections import LineCollection
from study_factory import CHANNELS, configure

from cytominer_tools.columns import PLATE, SITE, WELL
from cytominer_tools.errors import InputError
from deepprofile.cli import main
from deepprofile.index import load_index
from deepprofile.locations import find_cells, locate_cells, plate_locations, read_labels
from deepprofile.preview import COLOURS, _close_up, _kinds, _spread, preview_figure, preview_study
from deepprofile.sites import site_rows
from plugins.locators.nuclei import locate

CELL, BORDER, ODD = COLOURS


@pytest.fixture(scope="module")
def site():
    """A plane with six discs, one of them cut by the edge, and its cells."""
    rows, columns = np.indices((240, 320))
    centres = [(60, 60), (150, 50), (250, 70), (70, 170), (180, 180), (318, 150)]
    image = 300 + 900 * sum((np.hypot(columns - x, rows - y) < 12).astype(float) for x, y in centres)
    image = cv2.GaussianBlur(image, (0, 0), 1.5) + np.random.default_rng(0).normal(0, 8, image.shape)
    cells, labels = locate(image[..., None].astype(np.float32), channels=["DNA"])
    return image, cells, labels


def outlines(axis):
    """Number of outlines in an axis, by colour."""
    lines = [c for c in axis.collections if isinstance(c, LineCollection)]
    return [len(c.get_segments()) for c in lines]


# --- one site


def test_every_label_is_outlined_in_the_colour_of_its_kind(site):
    image, cells, labels = site
    axis = preview_figure(image, cells, labels, title="P1 A01").axes[0]
    assert axis.get_title(loc="left") == "P1 A01: 6 cells (1 border)"
    assert outlines(axis) == [5, 1, 0]


def test_outline_runs_around_its_cell(site):
    image, cells, labels = site
    axis = preview_figure(image, cells, labels, title="").axes[0]
    rims = axis.collections[0].get_segments()
    for rim, (x, y) in zip(rims, cells.loc[~cells.border, ["x", "y"]].to_numpy(), strict=True):
        np.testing.assert_allclose((rim.min(0) + rim.max(0)) / 2, (x, y), atol=1)


def test_without_labels_there_are_crosses(site):
    image, cells, _ = site
    axis = preview_figure(image, cells[["x", "y"]], title="").axes[0]
    assert outlines(axis) == []
    np.testing.assert_array_equal(axis.lines[0].get_xydata(), cells[["x", "y"]])


def test_large_site_gets_a_close_up_of_the_crowd(site):
    image, cells, labels = (np.pad(site[0], ((0, 500), (0, 700)), mode="edge"), *site[1:])
    labels = np.pad(labels, ((0, 500), (0, 700)))
    whole, near = preview_figure(image, cells, labels, title="").axes
    assert whole.get_xlim() == (-0.5, 1019.5)
    (left, right), (bottom, top) = near.get_xlim(), near.get_ylim()
    inside = cells.x.between(left, right) & cells.y.between(top, bottom)
    assert inside.sum() >= 3
    assert (right - left) / (bottom - top) == pytest.approx(1020 / 740)


@pytest.mark.parametrize(("pixel_size", "words"), [(None, []), (0.65, ["50 µm"]), (0.1, ["5 µm"])])
def test_scale_bar_only_where_the_pixel_size_is_known(site, pixel_size, words):
    axis = preview_figure(*site, title="", pixel_size_um=pixel_size).axes[0]
    assert [text.get_text() for text in axis.texts] == words
    if words:
        x = axis.lines[-1].get_xdata()
        assert (x[1] - x[0]) * pixel_size == pytest.approx(float(words[0].split()[0]))


def test_no_cells_is_a_figure_too(site):
    image, cells, labels = site
    for few in (0, 1):
        axis = preview_figure(image, cells[:few], np.where(labels <= few, labels, 0), title="t").axes[0]
        assert axis.get_title(loc="left") == f"t: {few} cell{'' if few else 's'}"


def test_second_channel_is_drawn_in_colour(site):
    image, cells, labels = site
    axis = preview_figure(np.dstack([image, image[::-1]]), cells, labels, title="").axes[0]
    assert axis.images[0].get_array().shape == (240, 320, 3)


def test_kinds():
    table = {"area": [100, 100, 110, 300, 30, 20], "focus": [3, 3, 0.5, 3, 3, 3], "border": [False] * 5 + [True]}
    cells = pd.DataFrame({"x": 0.0, "y": 0.0, **table})
    assert _kinds(cells).tolist() == [CELL, CELL, ODD, ODD, ODD, BORDER]
    assert set(_kinds(cells[["x", "y"]])) == {CELL}


@pytest.mark.parametrize("n", [0, 1, 50])
def test_close_up_lies_within_the_site(n):
    rng = np.random.default_rng(n)
    cells = pd.DataFrame({"x": rng.uniform(0, 900, n), "y": rng.uniform(0, 600, n), "area": 500})
    left, top, wide, high = _close_up((600, 900), cells)
    assert 0 <= left <= left + wide <= 900
    assert 0 <= top <= top + high <= 600
    assert wide / high == pytest.approx(1.5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda image, cells, labels: (image[0], cells, labels), r"here: image has shape \(320,\)"),
        (lambda image, cells, labels: (image, cells.drop(columns="x"), labels), "no column x; there are y, area"),
        (lambda image, cells, labels: (image, cells, labels[:9]), r"labels of shape \(9, 320\)"),
    ],
)
def test_what_does_not_fit_is_named(site, change, words):
    with pytest.raises(InputError, match=words):
        preview_figure(*change(*site), title="here")


# --- a study


def test_sites_are_spread_over_plates_then_wells():
    index = pd.DataFrame([(p, w, s) for p in "PQ" for w in "ABCD" for s in "123"], columns=[PLATE, WELL, SITE])
    for seed in range(5):
        rows = pd.DataFrame(_spread(index, 6, np.random.default_rng(seed)))
        assert rows[PLATE].value_counts().to_dict() == {"P": 3, "Q": 3}
        assert not rows.duplicated([PLATE, WELL]).any()
    assert len(_spread(index, 99, np.random.default_rng(0))) == 24


def test_preview_of_a_study_needs_no_run(fresh):
    path = preview_study(fresh)
    assert path == fresh.root / "locations" / "preview.png"
    assert cv2.imread(str(path)).shape[1] > 800
    assert [p.name for p in path.parent.iterdir()] == ["preview.png"]
    first = path.read_bytes()
    assert preview_study(fresh).read_bytes() == first
    assert preview_study(fresh, seed=8).read_bytes() != first


def test_bad_site_is_named_in_the_figure_and_bad_study_is_refused(fresh):
    for path in sorted((fresh.root / "images").rglob("*_DNA.tif"))[:12]:
        path.write_bytes(b"broken")
    assert preview_study(fresh, sites=24).is_file()
    for path in (fresh.root / "images").rglob("*_DNA.tif"):
        path.write_bytes(b"broken")
    with pytest.raises(InputError, match=r"none of 6 site\(s\) could be drawn; the first: .*truncated or damaged"):
        preview_study(fresh)
    with pytest.raises(InputError, match="sites=0: expected at least 1"):
        preview_study(fresh, sites=0)


def test_command_draws_and_locates_nothing(fresh):
    result = CliRunner().invoke(main, ["locate", str(fresh.root), "--preview"])
    assert result.exit_code == 0, result.output
    assert "preview.png: look at it; no cells were written" in result.output
    assert not list((fresh.root / "locations").rglob("*.parquet"))
    result = CliRunner().invoke(main, ["locate", str(fresh.root), "--preview", "--json"])
    assert json.loads(result.output)["preview"].endswith("preview.png")


def test_preview_of_whole_cells_from_two_channels(fresh):
    study = configure(fresh.root, locate={"method": "cells", "channel": list(CHANNELS[:2])})
    assert preview_study(study, sites=2).is_file()


def test_whole_cells_are_located_from_a_list_of_channels(fresh):
    study = configure(fresh.root, locate={"method": "cells", "channel": list(CHANNELS[:2]), "labels": True})
    assert locate_cells(study).rows > 0
    row = site_rows(load_index(study))[0]
    found = plate_locations(study, row[PLATE]).read(row[WELL]).to_pandas()
    found = found[found[SITE] == row[SITE]]
    labels = read_labels(study, row)
    np.testing.assert_array_equal(np.bincount(labels.ravel())[1:], found["Metadata_Cell_area"])
    assert (found["Metadata_Cell_area"] > found["Metadata_Area"]).all()
    cells, _ = find_cells(study, row)
    np.testing.assert_array_equal(cells.x, found["Metadata_Location_X"])
    assert locate_cells(study).made == 0
    with pytest.raises(InputError, match=r"locate\.channel: 'ER2' is not one of DNA, ER, Mito"):
        configure(fresh.root, locate={"channel": ["DNA", "ER2"]})

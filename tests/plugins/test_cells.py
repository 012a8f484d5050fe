import inspect

import numpy as np
import pandas as pd
import pytest
from scipy import ndimage

from cytominer_tools.errors import InputError
from plugins.locators import cells, nuclei

ROWS, COLUMNS = np.indices((240, 240))
CENTRES = [(50, 50), (110, 55), (180, 60), (60, 130), (130, 140), (190, 190), (70, 200)]  # (x, y)


def two_channels(radii=20, *, centres=CENTRES, seed=0, noise=8):
    """Nuclei 16 px wide in the first channel, round cells in the second, and the labels of the cells."""
    rng = np.random.default_rng(seed)
    truth, depth = np.zeros((240, 240), np.int32), np.full((240, 240), np.inf)
    dna = np.zeros((240, 240))
    for i, ((x, y), radius) in enumerate(zip(centres, np.broadcast_to(radii, len(centres)), strict=True), start=1):
        away = np.hypot(COLUMNS - x, ROWS - y)
        nearer = (away < radius) & (away / radius < depth)
        truth[nearer], depth[nearer] = i, (away / radius)[nearer]
        dna += 800 * (away < 8)
    body = np.where(truth > 0, 900 * (1.2 - np.minimum(depth, 1)), 0)
    planes = [ndimage.gaussian_filter(plane, 1) + 300 + rng.normal(0, noise, plane.shape) for plane in (dna, body)]
    return np.dstack(planes).astype(np.float32), truth


def find(image, **params):
    return cells.locate(image, channels=["DNA", "AGP"][: image.shape[2]], **params)


def overlaps(labels, truth, table):
    """Intersection over union of each cell with the true cell under its nucleus."""
    shares = []
    for i, (x, y) in enumerate(zip(table.x.round().astype(int), table.y.round().astype(int), strict=True), start=1):
        mine, true = labels == i, truth == truth[y, x]
        shares.append((mine & true).sum() / (mine | true).sum())
    return np.array(shares)


# --- golden: round cells


def test_cells_apart_are_found_whole():
    image, truth = two_channels()
    table, labels = find(image, radius=30)
    assert len(table) == 7
    assert overlaps(labels, truth, table).min() > 0.8


def test_border_follows_the_valley_and_not_the_middle():
    """A large cell beside a small one: the nearest nucleus would take a part of the large one."""
    centres, radii = [(80, 120), (150, 120)], [45, 25]
    image, truth = two_channels(radii, centres=centres)
    table, labels = find(image, radius=40)
    nearest, voronoi = find(image[..., :1], radius=40)
    ours, plain = overlaps(labels, truth, table), overlaps(voronoi, truth, nearest)
    assert len(table) == 2
    assert ours.min() > 0.85
    assert (ours > plain + 0.05).all()


def test_without_a_second_channel_it_is_the_nearest_nucleus_within_reach():
    image, _ = two_channels()
    table, labels = find(image[..., :1], radius=12)
    found, inner = nuclei.locate(image[..., :1], channels=["DNA"])
    gap, (rows, columns) = ndimage.distance_transform_edt(inner == 0, return_indices=True)
    sure = np.abs(gap - 12) > 0.5  # cv2's distances are good to some percent
    np.testing.assert_array_equal((labels > 0)[sure], (gap <= 12)[sure])
    same = labels[sure & (gap < 12)] == inner[rows, columns][sure & (gap < 12)]
    assert same.mean() > 0.99
    pd.testing.assert_frame_equal(table.drop(columns="cell_area"), found)


def test_vacuoles_are_filled_and_neighbours_are_not():
    image, _ = two_channels(30, centres=[(120, 120)])
    image[..., 1] = np.where(np.hypot(COLUMNS - 136, ROWS - 120) < 4, 300, image[..., 1])
    _, labels = find(image, radius=30)
    np.testing.assert_array_equal(ndimage.binary_fill_holes(labels == 1), labels == 1)


# --- property


@pytest.mark.parametrize("second", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_each_label_is_one_piece_around_its_nucleus(seed, second):
    rng = np.random.default_rng(seed)
    image, _ = two_channels(rng.uniform(12, 40, 12), centres=rng.uniform(10, 230, (12, 2)), seed=seed)
    image = image if second else image[..., :1]
    table, labels = find(image)
    found, inner = nuclei.locate(image[..., :1], channels=["DNA"])
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(labels[inner > 0], inner[inner > 0])
    np.testing.assert_array_equal(np.bincount(labels.ravel(), minlength=len(table) + 1)[1:], table.cell_area)
    assert (table.cell_area >= table.area).all()
    if second:
        assert [ndimage.label(labels == i + 1, np.ones((3, 3)))[1] for i in range(len(table))] == [1] * len(table)
    pd.testing.assert_frame_equal(table.drop(columns="cell_area"), found)


def test_a_cell_ends_at_its_reach():
    image, _ = two_channels(60, centres=[(120, 120)])
    for radius in (6.0, 15.0):
        table, _ = find(image, radius=radius)
        um, _ = find(image, radius=radius / 2, pixel_size_um=0.5, diameter=8.0)
        for found in (table, um):
            assert np.sqrt(found.cell_area[0] / np.pi) == pytest.approx(8 + radius, abs=1.5)


def test_gain_and_offset_of_the_second_channel_change_nothing():
    image, _ = two_channels()
    _, labels = find(image)
    _, same = find(np.dstack([image[..., 0], 4 * image[..., 1] + 1000]))
    assert (labels != same).mean() < 1e-3


# --- nothing to find


def test_zero_cells_have_the_same_columns():
    image, _ = two_channels()
    some, _ = find(image)
    for empty in (np.zeros((64, 64, 2), np.float32), np.zeros((64, 64, 1), np.float32)):
        none, labels = find(empty)
        assert len(none) == labels.max() == 0
        pd.testing.assert_series_equal(none.dtypes, some.dtypes)
        assert list(none) == ["x", "y", "area", "border", "intensity", "focus", "cell_area"]


@pytest.mark.parametrize("empty", ["flat", "noise"])
def test_empty_second_channel_leaves_little_more_than_nuclei(empty):
    image, _ = two_channels()
    noise = np.random.default_rng(1).normal(300, 8, (240, 240))
    image[..., 1] = 300 if empty == "flat" else noise
    table, _ = find(image)
    most = 12 if empty == "flat" else 1.5  # a flat channel says nothing: the nearest nucleus
    assert (table.cell_area <= most * table.area).all()


# --- errors say what to do


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"radius": 0.0}, r"radius=0\.0: expected a positive number \(um or px\)"),
        ({"foreground": float("nan")}, "foreground=nan: expected a positive number of standard deviations"),
        ({"min_size": 9.0}, r"min_size=9\.0, max_size=2\.5"),
    ],
)
def test_what_cannot_be_used_is_named(params, words):
    with pytest.raises(InputError, match=words):
        find(two_channels()[0], **params)


def test_bad_second_channel_is_named_even_without_nuclei():
    image = np.zeros((64, 64, 2), np.float32)
    image[3, 4, 1] = np.nan
    with pytest.raises(InputError, match="AGP: 1 of 4096 pixels are not finite"):
        find(image)


def test_nuclei_have_the_same_parameters_and_defaults():
    mine, theirs = (inspect.signature(plugin.locate).parameters for plugin in (cells, nuclei))
    assert set(mine) - set(theirs) == {"radius", "foreground"}
    assert all(mine[name].default == parameter.default for name, parameter in theirs.items())

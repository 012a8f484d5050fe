import os
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from cytominer_tools.errors import InputError
from plugins.locators.nuclei import locate

DATA = Path(os.environ.get("DEEPPROFILE_DATA", Path(__file__).parents[3] / "shared" / "data"))


def find(image, **params):
    return locate(np.asarray(image, np.float32)[..., None], channels=["DNA"], **params)


def discs(centres, *, radius=10.0, height=500.0, shape=(240, 240), noise=10.0, background=300.0, seed=0):
    """Soft discs at (x, y), in counts, on a noisy background."""
    rows, columns = np.indices(shape)
    image = np.zeros(shape)
    for (x, y), h in zip(centres, np.broadcast_to(height, len(centres)), strict=True):
        image = np.maximum(image, h * (np.hypot(columns - x, rows - y) < radius))
    image = ndimage.gaussian_filter(image, 1.5)
    return np.rint(background + image + np.random.default_rng(seed).normal(0, noise, shape)).astype(np.float32)


def matched(table, centres, within=2.0):
    """Number of one-to-one pairs closer than `within` px."""
    if not len(table) or not len(centres):
        return 0
    distance = cdist(table[["x", "y"]], centres)
    return int((distance[linear_sum_assignment(np.minimum(distance, 10 * within))] < within).sum())


APART = [(40, 50), (120, 45), (200, 60), (60, 130), (130, 140), (190, 190), (70, 200)]


# --- golden: discs whose centres are known


def test_discs_are_found_where_they_are():
    table, labels = find(discs(APART))
    assert len(table) == matched(table, APART, within=0.5) == 7
    np.testing.assert_allclose(table.area, np.pi * 100, rtol=0.2)
    np.testing.assert_allclose(table.intensity, 450, rtol=0.15)
    assert not table.border.any()
    assert labels.dtype == np.int32
    assert labels.shape == (240, 240)


def test_rows_are_sorted_and_label_i_plus_1_is_row_i():
    table, labels = find(discs(APART))
    assert table.equals(table.sort_values(["y", "x"], ignore_index=True))
    for i, row in table.iterrows():
        rows, columns = np.nonzero(labels == i + 1)
        assert (row.x, row.y, row.area) == (columns.mean(), rows.mean(), len(rows))


@pytest.mark.parametrize("gap", [16, 18, 20])
def test_touching_pair_is_split(gap):
    centres = [*APART, (125, 90), (125 + gap, 90)]
    table, _ = find(discs(centres))
    assert len(table) == matched(table, centres, within=3) == 9


@pytest.mark.parametrize("dim", [100, 150, 250])
def test_dim_beside_bright_is_kept(dim):
    centres = [*APART, (120, 90), (142, 90)]
    heights = [500] * 8 + [dim]
    table, _ = find(discs(centres, height=heights))
    assert len(table) == matched(table, centres, within=3) == 9


def test_nucleus_at_the_border_is_kept_and_flagged():
    centres = [*APART, (0, 100), (239, 120)]
    table, _ = find(discs(centres))
    assert len(table) == 9
    half = 4 * 10 / (3 * np.pi)  # from the diameter of a half disc to its centroid
    np.testing.assert_allclose(sorted(table.x[table.border]), [half, 239 - half], atol=1)


def test_uneven_background_and_hot_pixels_add_nothing():
    image = discs(APART) + np.linspace(0, 400, 240, dtype=np.float32)[:, None]
    image[20, 20] = image[150, 90] = 60_000
    table, _ = find(image)
    assert len(table) == matched(table, APART) == 7


# --- zero cells


@pytest.mark.parametrize(
    "image",
    [np.zeros((64, 64)), np.full((64, 64), 700), np.ones((3, 200)), np.pad([[9.0]], ((0, 0), (0, 4)))],
    ids=["black", "grey", "a strip", "a strip with a bright pixel"],
)
def test_flat_image_gives_an_empty_table_with_the_same_columns(image):
    table, labels = find(image)
    some, _ = find(discs(APART))
    assert len(table) == labels.max() == 0
    pd.testing.assert_series_equal(table.dtypes, some.dtypes)
    assert list(table) == ["x", "y", "area", "border", "intensity", "focus"]


def blurred_noise(sigma, floor):
    """Noise smoothed, then cut at `floor` standard deviations: what a detector, or a subtracted background, leaves."""
    noise = ndimage.gaussian_filter(np.random.default_rng(7).normal(0, 1, (512, 512)), sigma)
    return np.maximum(noise / noise.std(), floor)


def jpeg(image, quality):
    """What a JPEG keeps of `image`."""
    return cv2.imdecode(cv2.imencode(".jpg", np.clip(image, 0, 255).astype(np.uint8), [1, quality])[1], -1)


def lit(sources):
    """Stray light: broad lobes (x, y, width, height) on camera noise."""
    rows, columns = np.indices((512, 512))
    lobes = [h * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / w**2) for x, y, w, h in sources]
    return 300 + sum(lobes) + np.random.default_rng(7).normal(0, 10, (512, 512))


RNG = np.random.default_rng(5)
NOISES = {
    **{f"blurred by {sigma}, clipped at zero": blurred_noise(sigma, 0) for sigma in (0.7, 1.5, 3, 8, 40)},
    **{f"blurred by {sigma}, in few counts": np.rint(3 * blurred_noise(sigma, -2 / 3)) for sigma in (0.7, 2, 8)},
    **{f"JPEG {quality}": jpeg(np.random.default_rng(7).normal(3, 2, (512, 512)), quality) for quality in (10, 30, 90)},
    "heavy tails": np.random.default_rng(7).standard_t(2, (512, 512)),
    "exponential": np.random.default_rng(7).exponential(10, (512, 512)),
    "stitched": 300 + 50.0 * (np.indices((512, 512))[1] > 256) + np.random.default_rng(7).normal(0, 10, (512, 512)),
    "light at a corner": lit([(0, 0, 90, 800)]),
    "two lobes of light": lit([(400, 100, 140, 200), (100, 400, 170, 300)]),
    "camera": RNG.normal(300, 10, (400, 400)),
    "photons": RNG.poisson(3, (400, 400)),
    "few photons": RNG.poisson(0.1, (400, 400)),
    "one bit": RNG.integers(0, 2, (400, 400)),
    "clipped at zero": np.rint(np.maximum(RNG.normal(0, 2, (400, 400)), 0)),
    "blurred": ndimage.gaussian_filter(RNG.normal(0, 1, (400, 400)), 2),
    "ramp": np.indices((400, 400))[0],
    "noisy ramp": np.indices((400, 400)).sum(0) + RNG.normal(0, 5, (400, 400)),
    "vignette": 1000 * np.exp(-((np.indices((400, 400)) - 200) ** 2).sum(0) / 80_000) + RNG.normal(0, 5, (400, 400)),
    "haze": ndimage.gaussian_filter(RNG.normal(0, 1, (400, 400)), 10),
}


@pytest.mark.parametrize("noise", NOISES)
def test_noise_has_no_nuclei(noise):
    assert len(find(NOISES[noise])[0]) <= 2


# --- hard fields, drawn with their truth: F1 of centres in true nuclei, a little below what was measured


def field(n, diameter, *, shape=(512, 512), apart=1.0, heights=(300, 900), rough=0.12, seed=1):
    """Light and labels of up to `n` textured ellipses, centres at least `apart` mean diameters from each other."""
    rng = np.random.default_rng(seed)
    light, truth, placed = np.zeros(shape), np.zeros(shape, np.int32), []
    for _ in range(100 * n):
        x, y, d = rng.uniform(0, shape[1] - 1), rng.uniform(0, shape[0] - 1), diameter * np.exp(rng.normal(0, 0.15))
        if len(placed) == n:
            break
        if any(np.hypot(x - a, y - b) < apart * (d + e) / 2 for a, b, e in placed):
            continue
        placed.append((x, y, d))
        top, left = max(0, int(y - d)), max(0, int(x - d))
        window = np.s_[top : int(y + d) + 2, left : int(x + d) + 2]
        rows, columns = np.indices(light[window].shape)
        angle, stretch = rng.uniform(0, np.pi), np.exp(rng.normal(0, 0.12))
        u = (columns + left - x) * np.cos(angle) + (rows + top - y) * np.sin(angle)
        v = (rows + top - y) * np.cos(angle) - (columns + left - x) * np.sin(angle)
        inside = np.hypot(u * stretch, v / stretch) < d / 2
        texture = ndimage.gaussian_filter(rng.normal(0, 1, inside.shape), d / 10)
        height = np.exp(rng.uniform(*np.log(heights)))
        light[window] += inside * height * (1 + rough * texture / texture.std())
        truth[window][inside] = len(placed)
    return ndimage.gaussian_filter(light, max(0.7, diameter / 25)), truth


def snap(light, *, noise=12, highest=65_535, seed=2):
    """Counts of a camera with an offset of 300 and photon noise."""
    rng = np.random.default_rng(seed)
    return np.clip(np.rint(300 + light + rng.normal(0, 1, light.shape) * np.sqrt(noise**2 + 0.3 * light)), 0, highest)


def hard_score(image, truth, diameter):
    """F1, without the slivers that others hide."""
    areas = np.bincount(truth.ravel())
    truth = np.where(areas[truth] < 0.15 * np.pi / 4 * diameter**2, 0, truth)
    return f1(centres_inside(find(image)[0], truth))


@pytest.mark.parametrize(
    ("n", "diameter", "settings", "least"),
    [
        (1, 30, {}, 1.0),
        (2, 14, {"shape": (1080, 1080)}, 1.0),
        (3, 30, {}, 1.0),
        (5, 7, {}, 1.0),
        (300, 6, {}, 0.98),
        (900, 8, {}, 0.96),
        (400, 30, {}, 0.90),
        (500, 24, {"apart": 0.9}, 0.84),
        (150, 30, {"apart": 0.7}, 0.76),
        (3, 200, {"shape": (1080, 1080)}, 1.0),
        (30, 180, {"shape": (1080, 1080)}, 0.90),
        (60, 30, {"heights": (150, 1500)}, 0.94),
        (40, 40, {"rough": 0.35}, 0.90),
    ],
    ids=lambda value: str(value).replace("'", ""),
)
def test_sparse_dense_small_and_large(n, diameter, settings, least):
    light, truth = field(n, diameter, **settings)
    assert hard_score(snap(light), truth, diameter) >= least


ROWS, COLUMNS = np.indices((512, 512))
LIGHTS = {
    "saturated": (lambda light, truth: np.minimum(light, 300), 0.95),
    "vignette": (
        lambda light, truth: light * (0.3 + 0.7 * np.exp(-((ROWS - 256) ** 2 + (COLUMNS - 256) ** 2) / 6e4)),
        0.93,
    ),
    "bright ramp": (lambda light, truth: light + 2.0 * COLUMNS, 0.95),
    "lobe": (lambda light, truth: light + 800 * np.exp(-((ROWS - 100) ** 2 + (COLUMNS - 100) ** 2) / 9e4), 0.95),
    "mitotic": (lambda light, truth: light * np.where(np.isin(truth, [1, 2, 3, 4, 5]), 6, 1), 0.94),
    "haze": (lambda light, truth: light + 0.9 * ndimage.gaussian_filter(light, 18), 0.95),
    "defocus": (lambda light, truth: ndimage.gaussian_filter(light, 6), 0.90),
    "dim": (lambda light, truth: light / 8, 0.95),
}


@pytest.mark.parametrize("name", LIGHTS)
def test_light_and_focus(name):
    change, least = LIGHTS[name]
    light, truth = field(60, 30)
    assert hard_score(snap(change(light, truth)), truth, 30) >= least


def test_a_saturated_crowd_is_not_taken_for_the_background():
    light, truth = field(300, 30, seed=10)
    assert hard_score(snap(light, highest=500), truth, 30) >= 0.92


def test_bright_specks_are_not_nuclei():
    light, truth = field(40, 30)
    specks = np.random.default_rng(4).random(light.shape) < 2e-4
    assert hard_score(snap(light + ndimage.gaussian_filter(60_000.0 * specks, 1.5)), truth, 30) >= 0.85


# --- quality columns


def test_focus_falls_with_blur_and_has_no_unit():
    image = discs(APART, noise=0)
    focus = [find(ndimage.gaussian_filter(image, sigma))[0].focus.median() for sigma in (0, 1, 2, 3)]
    assert focus == sorted(focus, reverse=True)
    assert focus[0] > 2.5 * focus[-1]
    np.testing.assert_allclose(find(7.5 * image + 100)[0].focus, find(image)[0].focus, rtol=1e-3)


def test_focus_is_of_each_nucleus():
    image = discs(APART)
    image[120:] = ndimage.gaussian_filter(image, 3)[120:]
    table, _ = find(image)
    sharp = table.y < 120
    assert table.focus[sharp].min() > 1.5 * table.focus[~sharp].max()


# --- property: true of any image


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 99), power=st.integers(-3, 4), offset=st.integers(-200, 5000))
def test_gain_and_offset_change_nothing(seed, power, offset):
    image = discs(APART, seed=seed)  # whole counts: the arithmetic below is exact
    table, labels = find(image)
    scaled, same = find(image * 2.0**power + offset)
    np.testing.assert_array_equal(same, labels)
    pd.testing.assert_frame_equal(scaled.assign(intensity=scaled.intensity / 2.0**power), table)


@settings(max_examples=10, deadline=None)
@given(gain=st.floats(0.01, 90), offset=st.floats(-999, 999))
def test_any_gain_leaves_the_centres(gain, offset):
    table, _ = find(discs(APART))
    scaled, _ = find(discs(APART) * gain + offset)
    np.testing.assert_allclose(scaled[["x", "y"]], table[["x", "y"]], atol=0.1)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 99))
def test_flipped_image_gives_flipped_centres(seed):
    centres = np.random.default_rng(seed).uniform(20, 220, (9, 2))
    image = discs(centres, seed=seed)
    table, _ = find(image)
    mirrored, _ = find(image[:, ::-1])
    turned, _ = find(image.T)
    assert len(table) == len(mirrored) == len(turned)
    assert matched(mirrored, np.c_[239 - table.x, table.y], within=1) == len(table)
    assert matched(turned, np.c_[table.y, table.x], within=1) == len(table)


@pytest.mark.parametrize("zoom", [0.5, 2, 4])
def test_magnification_does_not_matter(zoom):
    image = ndimage.zoom(discs(APART), zoom, order=1, grid_mode=True, mode="grid-constant")
    table, _ = find(image)
    assert len(table) == matched((table + 0.5) / zoom - 0.5, APART) == 7


def test_units_of_length():
    image = discs(APART)
    um, _ = find(image, pixel_size_um=0.6, diameter=12.0)
    px, _ = find(image, diameter=20.0)
    pd.testing.assert_frame_equal(um, px)
    assert len(um) == 7


def test_only_the_first_channel_counts_and_the_image_is_left_alone():
    image = np.dstack([discs(APART), discs([(9, 9)])])
    before = image.copy()
    table, _ = locate(image, channels=["DNA", "ER"])
    np.testing.assert_array_equal(image, before)
    pd.testing.assert_frame_equal(table, find(discs(APART))[0])


# --- errors say what to do

IMAGE = discs([(40, 40)], shape=(80, 80))[..., None]


@pytest.mark.parametrize(
    ("image", "params", "words"),
    [
        (IMAGE[..., 0], {}, r"\(80, 80\).*use image\[\.\.\., None\]"),
        (np.dstack([IMAGE, IMAGE]), {}, r"2 channel\(s\).*\['DNA'\].*name every channel"),
        (IMAGE[:0], {}, r"\(0, 80, 1\).*at least one pixel"),
        (np.where(IMAGE > 700, np.nan, IMAGE), {}, r"DNA: \d+ of 6400 pixels are not finite"),
        (IMAGE, {"pixel_size_um": 0.0}, r"pixel_size_um=0\.0: expected a positive number \(um\)"),
        (IMAGE, {"pixel_size_um": float("nan")}, r"pixel_size_um=nan"),
        (IMAGE, {"diameter": -3.0}, r"diameter=-3\.0: expected a positive number"),
        (IMAGE, {"diameter": 1.0}, r"is the unit um or px\?"),
        (IMAGE, {"noise": 0.0}, r"noise=0\.0"),
        (IMAGE, {"min_contrast": 1.0}, r"min_contrast=1\.0"),
        (IMAGE, {"min_size": 3.0}, r"min_size=3\.0, max_size=2\.5"),
        (IMAGE, {"convexity": 1.2}, r"convexity=1\.2"),
    ],
)
def test_what_cannot_be_used_is_named(image, params, words):
    with pytest.raises(InputError, match=words):
        locate(image, channels=["DNA"], **params)


def test_plugin_says_where_it_comes_from():
    assert "no learned weights" in locate.source
    assert locate.licence == "BSD-3-Clause"


# --- real images; the bounds leave a little slack below what was measured


def folder(name):
    if not (DATA / name).is_dir():
        pytest.skip(f"{DATA / name} is absent; set DEEPPROFILE_DATA")
    return DATA / name


def read(path):
    """Image as stored; imported here so that collecting the tests stays quick."""
    if path.suffix in {".tif", ".tiff"}:
        import tifffile

        return tifffile.imread(path)
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


def centres_inside(table, truth):
    """True nuclei that hold a predicted centre, predictions, true nuclei."""
    hit = truth[table.y.round().astype(int), table.x.round().astype(int)]
    return np.array([len(set(hit[hit > 0])), len(table), len(np.unique(truth[truth > 0]))])


def f1(counts):
    return 2 * counts[0] / (counts[1] + counts[2])


@pytest.mark.data
@pytest.mark.parametrize(("half", "least"), [(0, 0.92), (1, 0.88)], ids=["developed on", "not developed on"])
def test_dsb2018(half, least):
    home = folder("dsb2018_nuclei")
    index = pd.read_csv(home / "index.csv")[half::2].query("culture_like")
    counts = sum(
        centres_inside(
            find(read(next((home / "images").glob(f"{name}*"))))[0], read(next((home / "masks").glob(f"{name}*")))
        )
        for name in index.image_id
    )
    assert f1(counts) >= least, counts


@pytest.mark.data
@pytest.mark.parametrize("pixel_size_um", [None, 0.65])
def test_cpg0000(pixel_size_um):
    home = folder("cpg0000_BR00116991") / "A01-1"
    nuclei = pd.read_csv(home / "Nuclei.csv")[["Location_Center_X", "Location_Center_Y"]]
    table, _ = find(read(home / "r01c01f01p01-ch5sk1fk1fl1.tiff"), pixel_size_um=pixel_size_um)
    table = table[~table.border]  # CellProfiler left these out
    assert f1((matched(table, nuclei, within=10), len(table), len(nuclei))) >= 0.97


@pytest.mark.data
def test_imagehts_counts():
    home = folder("imagehts_submorph")
    index = pd.read_csv(home / "index.csv")
    published = pd.read_csv(home / "data" / "profiles.tab", sep="\t").set_index("uname").n
    plate = index.Metadata_Plate.map({"PK-10B-pl1": "001-01-", "PK-11B-pl1": "001-02-"})
    counts = [len(find(read(home / name))[0]) for name in index.FileName_Hoechst]
    assert np.corrcoef(counts, published[plate + index.Metadata_Well])[0, 1] >= 0.985


@pytest.mark.data
def test_nf1_counts():
    home = folder("nf1_plate2")
    images = sorted((home / "images").glob("*DAPI*"))
    assert len(images) == 5
    for path in images:
        truth, n = ndimage.label(read(home / "masks" / f"{path.stem}_MaskNuclei.tiff") > 0)
        table, _ = find(read(path))
        inside = table[~table.border]
        assert abs(len(inside) - n) <= 4, path.name
        assert centres_inside(inside, truth)[0] >= n - 2, path.name

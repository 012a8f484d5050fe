import numpy as np
import pytest
import scipy.stats
import skimage.filters
import skimage.morphology
import skimage.transform
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from cytominer_tools.errors import InputError
from deepprofile.illumination import (
    Correction,
    area_thumbnail,
    blur,
    deepprofiler_function,
    disk_median,
    read_function,
    shrink,
    smooth_function,
    unevenness,
)


def shrunk(image, scale):
    return skimage.transform.resize(
        image, (image.shape[0] / scale, image.shape[1] / scale), mode="reflect", anti_aliasing=True, preserve_range=True
    )


def by_deepprofiler(images, down_scale_factor, median_filter_size):
    """What DeepProfiler 0.3.1 does, site after site (illumination_statistics.py, illumination_correction.py)."""
    mean = np.zeros_like(shrunk(images[0], down_scale_factor))
    for image in images:
        mean += shrunk(image, down_scale_factor)
    mean /= len(images)
    footprint = skimage.morphology.disk(median_filter_size / 2)
    smooth = skimage.filters.median(mean.astype(np.uint16), footprint)
    full = skimage.transform.resize(smooth, images[0].shape, mode="reflect", anti_aliasing=True, preserve_range=True)
    robust_minimum = scipy.stats.scoreatpercentile(full, 2)
    return np.maximum(full, robust_minimum) / robust_minimum


def by_us(images, downscale, radius, kind=np.uint16):
    mean = np.mean(np.asarray(images, np.float64), axis=0)
    function = deepprofiler_function(shrink(mean, downscale), mean.shape, radius)[..., None]
    return Correction(function.astype(np.float32), mean.shape, np.dtype(kind), 1.0).expand()[..., 0]


def vignette(height, width, loss=0.3, middle=(0.1, -0.2)):
    down = (np.linspace(-1, 1, height) - middle[0])[:, None] ** 2 / 2
    return 1 - loss * (down + (np.linspace(-1, 1, width) - middle[1]) ** 2 / 2)


def fields(n, height=120, width=160, seed=0, light=None):
    """Sites with cells anywhere, so that their mean is flat but for noise, under `light`."""
    rng = np.random.default_rng(seed)
    light = np.ones((height, width)) if light is None else light
    cells = np.stack(
        [np.roll(blur(rng.random((height, width)) < 0.004, 3), rng.integers(0, 99, 2), (0, 1)) for _ in range(n)]
    )
    return (light * (600 + 30000 * cells) + rng.normal(0, 5, cells.shape)).clip(0, 65535).astype(np.uint16)


def to_mean(function):
    return function / function.mean()


# --- parity: skimage and scipy, independently
@pytest.mark.parametrize("radius", [1, 2, 5, 12])
@pytest.mark.parametrize("most", [3, 500, 1023, 20000, 65535])
def test_disk_median_equals_scikit_image(radius, most):
    image = np.random.default_rng(radius).integers(0, most + 1, (61, 47)).astype(np.uint16)
    expected = skimage.filters.median(image, skimage.morphology.disk(radius))
    found = disk_median(image, radius)
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == np.uint16


@settings(max_examples=40, deadline=None)
@given(arrays("uint16", st.tuples(st.integers(1, 30), st.integers(1, 30))), st.integers(1, 9))
def test_disk_median_of_anything_equals_scikit_image(image, radius):
    expected = skimage.filters.median(image, skimage.morphology.disk(radius))
    np.testing.assert_array_equal(disk_median(image, radius), expected)


@pytest.mark.parametrize("radius", [9, 12, 24])
def test_disk_median_of_more_neighbours_than_a_byte_counts(radius):
    image = (np.random.default_rng(0).gamma(2, 4000, (70, 90))).clip(0, 65535).astype(np.uint16)
    expected = skimage.filters.median(image, skimage.morphology.disk(radius))
    np.testing.assert_array_equal(disk_median(image, radius), expected)


@pytest.mark.parametrize("shape", [(120, 160), (121, 163)])
@pytest.mark.parametrize(("scale", "size"), [(4, 24), (2, 10), (1, 8)])
def test_the_function_of_deepprofiler(shape, scale, size):
    images = fields(6, *shape, light=vignette(*shape))
    found = by_us(images, scale, size // 2)
    # a mean that rounding moves across a whole count is off by one in some hundred
    np.testing.assert_allclose(found, by_deepprofiler(images, scale, size), rtol=1e-6)
    assert found.dtype == np.float32


@pytest.mark.data
def test_the_function_of_deepprofiler_on_real_images(data):
    paths = sorted((data / "cpg0000_BR00116991" / "A01-1").glob("*.tiff"))
    images = [tifffile.imread(path) for path in paths]
    assert len(images) == 5
    for image in images:
        np.testing.assert_allclose(by_us([image], 4, 12), by_deepprofiler([image], 4, 24), rtol=1e-6)
    np.testing.assert_allclose(by_us(images, 4, 12), by_deepprofiler(images, 4, 24), rtol=1e-6)


def test_resizing_is_linear_so_the_mean_may_be_resized():
    images = fields(4)
    one_by_one = np.mean([shrunk(image, 4) for image in images], axis=0)
    np.testing.assert_allclose(shrink(images.mean(axis=0), 4), one_by_one, rtol=1e-12)


def test_the_smooth_median_of_cellprofiler():
    """correctilluminationcalculate.py: sigma = size / 2.35, a disk of that radius, 2nd percentile to 1."""
    mean = np.zeros((60, 80)) + 3000 * vignette(60, 80) + np.random.default_rng(0).normal(0, 60, (60, 80))
    found = smooth_function(mean, 20, "median")
    footprint = skimage.morphology.disk(int(20 / 2.35 + 0.5))
    smooth = skimage.filters.median(mean.astype(np.uint16), footprint).astype(float)
    least = np.sort(smooth[smooth > 0])[int(smooth.size * 0.02)]
    expected = np.maximum(smooth, least) / least
    inside = (slice(9, -9), slice(9, -9))  # at the edge CellProfiler leaves out what lies outside
    ratio = found[inside] / expected[inside]
    np.testing.assert_allclose(ratio / np.median(ratio), 1, atol=2 / 2000)


def test_the_smooth_gaussian_of_cellprofiler():
    mean = 500 * vignette(60, 80)
    found = smooth_function(mean, 20, "gaussian")
    kernel = {"sigma": 20 / 2.35, "mode": "constant", "cval": 0}
    smooth = ndimage.gaussian_filter(mean, **kernel) / ndimage.gaussian_filter(np.ones_like(mean), **kernel)
    least = np.sort(smooth.ravel())[int(smooth.size * 0.02)]
    np.testing.assert_allclose(found, np.maximum(smooth, least) / least, rtol=1e-9)


# --- properties
KINDS = {
    "deepprofiler": lambda mean: deepprofiler_function(mean, mean.shape, 6),
    "median": lambda mean: smooth_function(mean, 20, "median"),
    "gaussian": lambda mean: smooth_function(mean, 10, "gaussian"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_flat_field_has_function_one(kind):
    np.testing.assert_allclose(KINDS[kind](np.full((40, 50), 700.0)), 1, rtol=1e-12)
    mean = np.random.default_rng(0).normal(700, 7, (40, 50))
    np.testing.assert_allclose(KINDS[kind](mean), 1, atol=0.02)


@pytest.mark.parametrize("kind", KINDS)
def test_a_gain_cancels(kind):
    mean = np.round(3000 * vignette(40, 50) + np.random.default_rng(0).normal(0, 30, (40, 50)))
    np.testing.assert_allclose(KINDS[kind](4 * mean), KINDS[kind](mean), rtol=1e-6 if kind != "median" else 1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_no_light_is_left_as_it_is(kind):
    assert (KINDS[kind](np.zeros((20, 30))) == 1).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_known_vignetting_is_found_and_its_mean_flattened(kind):
    light = vignette(120, 160)
    images = fields(400, light=light)
    mean = images.mean(axis=0)
    function = KINDS[kind](shrink(mean, 2))
    full = Correction(function[..., None].astype(np.float32), mean.shape, images.dtype, 1.0).expand()[..., 0]
    off = to_mean(full) / to_mean(light) - 1
    middle = (slice(12, -12), slice(12, -12))  # nearer to the edge a filter sees one side of its surroundings
    assert np.abs(off[middle]).max() < 0.02
    assert unevenness(mean / full) < unevenness(mean) / 4
    assert unevenness(mean) == pytest.approx(light.std() / light.mean(), rel=0.15)


def test_dim_images_have_no_steps():
    """Whole counts, as in DeepProfiler, leave steps of a twentieth in an 8-bit mean of 20."""
    mean = 20 * vignette(64, 64)
    assert len(np.unique(smooth_function(mean, 12, "median"))) > 5 * len(
        np.unique(deepprofiler_function(mean, (64, 64), 3))
    )


def test_expanded_functions_are_at_least_one_and_files_keep_theirs():
    small = np.array([[0.5, 1.0], [1.5, 2.0]], np.float32)[..., None]
    full = Correction(small, (4, 4), np.dtype("uint16"), 1.0).expand()
    assert (full.shape, full.dtype, full.min()) == ((4, 4, 1), np.float32, 1.0)
    assert Correction(small, (4, 4), np.dtype("uint16"), 0.0).expand().min() < 1
    np.testing.assert_array_equal(Correction(small, (2, 2), np.dtype("uint16"), 0.0).expand(), small)


def test_the_digest_tells_functions_apart():
    one = Correction(np.ones((2, 2, 1), np.float32), (8, 8), np.dtype("uint16"), 1.0)
    other = Correction(np.full((2, 2, 1), np.float32(1.0000001)), (8, 8), np.dtype("uint16"), 1.0)
    assert one.digest == Correction(np.ones((2, 2, 1), np.float32), (8, 8), np.dtype("uint16"), 1.0).digest
    assert len({one.digest, other.digest, Correction(one.function, (8, 9), one.dtype, 1.0).digest}) == 3


def test_a_thumbnail_is_made_of_means():
    image = np.arange(2 * 4 * 4, dtype=np.uint16).reshape(4, 4, 2)
    expected = image.reshape(2, 2, 2, 2, 2).mean(axis=(1, 3))
    np.testing.assert_allclose(area_thumbnail(image.astype(np.float32), 2), expected)
    assert area_thumbnail(image[..., :1], 2).shape == (2, 2, 1)


# --- files of CellProfiler
def test_a_function_of_cellprofiler(tmp_path):
    function = vignette(30, 40) / vignette(30, 40).min()
    np.save(tmp_path / "dna.npy", function)
    found = read_function(tmp_path / "dna.npy", (30, 40))
    np.testing.assert_array_equal(found, function.astype(np.float32))
    np.testing.assert_array_equal(read_function(tmp_path / "dna.npy", (120, 160)), found)  # resized when it is applied


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.ones((30, 31)), "30 x 31, which is no scale of the images, 30 x 40"),
        (np.ones((2, 30, 40)), r"shape \(2, 30, 40\), expected one plane"),
        (np.zeros((30, 40)), "holds NaN, infinite or no positive values"),
        (np.full((30, 40), np.nan), "holds NaN, infinite or no positive values"),
        (np.full((30, 40), "a"), "not an array of numbers in .npy format"),
        (np.full((30, 40), None), "not an array of numbers in .npy format"),
    ],
)
def test_a_file_that_is_no_function(tmp_path, array, words):
    np.save(tmp_path / "dna.npy", array, allow_pickle=True)
    with pytest.raises(InputError, match=words) as told:
        read_function(tmp_path / "dna.npy", (30, 40))
    assert str(told.value).startswith(str(tmp_path / "dna.npy"))


def test_a_file_that_is_missing_or_something_else(tmp_path):
    with pytest.raises(InputError, match="no such illumination function; look at"):
        read_function(tmp_path / "dna.npy", (30, 40))
    (tmp_path / "dna.npy").write_bytes(b"\x80\x04K\x01.")  # a pickle is data, and not opened
    with pytest.raises(InputError, match="not an array of numbers"):
        read_function(tmp_path / "dna.npy", (30, 40))
    (tmp_path / "dna.npy").write_bytes(b"")
    with pytest.raises(InputError, match="not an array of numbers"):
        read_function(tmp_path / "dna.npy", (30, 40))
    np.savez(tmp_path / "dna.npz", a=np.ones((30, 40)))
    with pytest.raises(InputError, match="not an array of numbers"):
        read_function(tmp_path / "dna.npz", (30, 40))

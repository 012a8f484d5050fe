import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepprofile.crops import inside, interpolate_crops, nearest_crops, slice_crops
from deepprofile.images import read_site


def picture(height=40, width=50, channels=2, dtype="uint16", seed=0):
    return np.random.default_rng(seed).integers(1, 200, (height, width, channels)).astype(dtype)


# --- golden: worked out on paper
def test_a_slice_is_the_pixels_as_they_are():
    image = np.arange(48, dtype="uint16").reshape(6, 8, 1)
    crops = slice_crops(image, np.array([[4.0, 2.0]]), 4)  # column 4, row 2: the centre is pixel (2, 2) of the crop
    assert crops[0, :, :, 0].tolist() == [[2, 3, 4, 5], [10, 11, 12, 13], [18, 19, 20, 21], [26, 27, 28, 29]]
    assert crops[0, 2, 2, 0] == image[2, 4, 0]
    assert crops.dtype == "uint16"


@pytest.mark.parametrize(("x", "column"), [(3.49, 3), (3.5, 4), (4.5, 5), (-0.5, 0), (-0.51, -1), (2.0, 2)])
def test_a_centre_is_rounded_half_up(x, column):
    image = picture()
    np.testing.assert_array_equal(slice_crops(image, [[x, 9.0]], 8), slice_crops(image, [[column, 9.0]], 8))
    np.testing.assert_array_equal(slice_crops(image, [[9.0, x]], 8), slice_crops(image, [[9.0, column]], 8))
    assert not np.array_equal(slice_crops(image, [[x, 9.0]], 8), slice_crops(image, [[column + 1, 9.0]], 8))


def test_outside_is_zero_or_the_mirror_image():
    image = np.arange(1, 10, dtype="uint8").reshape(3, 3, 1)
    zero = slice_crops(image, [[0.0, 0.0]], 4, "zero")[0, :, :, 0]
    assert zero.tolist() == [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 1, 2], [0, 0, 4, 5]]
    mirror = slice_crops(image, [[0.0, 0.0]], 4, "reflect")[0, :, :, 0]
    assert mirror.tolist() == [[9, 8, 7, 8], [6, 5, 4, 5], [3, 2, 1, 2], [6, 5, 4, 5]]


def test_inside_is_the_whole_box():
    xy = np.array([[4.0, 4.0], [3.9, 4.0], [3.4, 4.0], [46, 36], [46.4, 36.4], [46.5, 36], [46, 36.5]])
    assert inside(xy, 8, (40, 50, 2)).tolist() == [True, True, False, True, True, False, False]
    assert inside(np.empty((0, 2)), 8, (40, 50, 2)).tolist() == []


def test_no_cell_no_crop():
    for cut in (slice_crops, interpolate_crops):
        assert cut(picture(), np.empty((0, 2)), 8).shape == (0, 8, 8, 2)


# --- parity: numpy.pad around the image, cell by cell
@pytest.mark.parametrize(("border", "mode"), [("zero", "constant"), ("reflect", "reflect")])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.floats(-20, 70), st.floats(-20, 60)), min_size=1, max_size=4), st.sampled_from([8, 10, 16])
)
def test_slices_against_numpy_pad(border, mode, dtype, xy, size):
    image = picture(dtype=dtype)
    far = 40  # farther than any box reaches
    padded = np.pad(image, ((far, far), (far, far), (0, 0)), mode=mode)
    expected = []
    for x, y in xy:
        column, row = int(np.floor(x + 0.5)) + far, int(np.floor(y + 0.5)) + far
        expected.append(padded[row - size // 2 : row + size // 2, column - size // 2 : column + size // 2])
    found = slice_crops(image, np.array(xy), size, border)
    np.testing.assert_array_equal(found, np.stack(expected))
    assert found.dtype == dtype


def test_the_other_cells_of_a_call_change_nothing():
    image = picture()
    xy = np.array([[20.0, 20.0], [1.0, 39.0], [49.2, 3.0], [-3.0, 20.0]])
    for cut in (slice_crops, interpolate_crops):
        for border in ("zero", "reflect"):
            alone = np.concatenate([cut(image, xy[i : i + 1], 16, border) for i in range(len(xy))])
            np.testing.assert_array_equal(cut(image, xy, 16, border), alone)


def test_the_image_is_left_as_it_was():
    image = picture(dtype="float32")
    before = image.copy()
    for cut in (slice_crops, interpolate_crops):
        cut(image, np.array([[20.0, 20.0], [0.0, 0.0]]), 16)[...] = -1
    np.testing.assert_array_equal(image, before)


# --- parity: tf.image.crop_and_resize as DeepProfiler 0.3.1 calls it
def deepprofiler_crops(image, xy, size):
    """imaging/boxes.py: boxes in float32, Y over height, X over width; imaging/cropping.py: crop_and_resize."""
    import tensorflow as tf

    height, width = image.shape[:2]
    x, y = np.asarray(xy, "float64").T
    boxes = np.stack([y - size / 2, x - size / 2, y + size / 2, x + size / 2], axis=1).astype("float32")
    boxes /= np.array([height, width, height, width], "float32")
    with tf.device("/CPU:0"):
        pixels = tf.constant(image[None], tf.float32)
        return tf.image.crop_and_resize(pixels, boxes, np.zeros(len(xy), "int32"), (size, size)).numpy()


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("size", [8, 32, 96, 128])
@pytest.mark.parametrize("shape", [(128, 128), (200, 317), (317, 200), (64, 500)])
def test_interpolated_crops_are_those_of_deepprofiler(shape, size, dtype):
    rng = np.random.default_rng(shape[0] + size)
    image = rng.integers(0, np.iinfo(dtype).max + 1, (*shape, 3)).astype(dtype)
    height, width = shape
    inner = rng.uniform(0, 1, (8, 2)) * (width, height)
    whole = np.floor(inner[:3])
    border = np.array(
        [[0, 0], [width, height], [width - 1, 3.3], [-5.7, height / 2], [width / 2, height + size], [2.5, 2.5]]
    )
    xy = np.concatenate([inner, whole, border])
    found = interpolate_crops(image, xy, size)
    assert np.array_equal(found, deepprofiler_crops(image, xy, size))
    assert found.dtype == "float32"


@pytest.mark.data
def test_interpolated_crops_of_a_real_site_are_those_of_deepprofiler(data):
    folder = data / "cpg0000_BR00116991" / "A01-1"
    image = read_site({c: folder / f"r01c01f01p01-ch{c}sk1fk1fl1.tiff" for c in "54312"})
    nuclei = pd.read_csv(folder / "Nuclei.csv")
    xy = nuclei[["AreaShape_Center_X", "AreaShape_Center_Y"]].to_numpy()
    assert len(xy) == 109
    assert np.array_equal(interpolate_crops(image, xy, 128), deepprofiler_crops(image, xy, 128))


# --- property
def test_interpolated_and_sliced_crops_show_the_same_cell():
    rows, columns = np.mgrid[:100, :120]
    image = np.exp(-((columns - 61.0) ** 2 + (rows - 47.0) ** 2) / 30)[..., None].astype("float32")
    sliced, smooth = (cut(image, [[61.0, 47.0]], 32)[0, ..., 0] for cut in (slice_crops, interpolate_crops))
    peak = np.unravel_index(smooth.argmax(), smooth.shape)
    assert np.unravel_index(sliced.argmax(), sliced.shape) == (16, 16)
    assert np.abs(np.subtract(peak, 16)).max() <= 1


def test_interpolated_reflection_has_no_edge():
    image = np.full((30, 30, 1), 9, "uint8")
    assert (interpolate_crops(image, [[0.0, 29.0], [-40.0, 70.0]], 16, "reflect") == 9).all()
    assert (interpolate_crops(image, [[0.0, 29.0]], 16, "zero") == 0).any()
    gradient = np.broadcast_to(np.arange(30.0, dtype="float32")[None, :, None], (30, 30, 1))
    row = interpolate_crops(gradient, [[0.0, 15.0]], 16, "reflect")[0, 0, :, 0]
    at = -8 / 30 * 29 + np.arange(16) * 16 / 30 * 29 / 15
    np.testing.assert_allclose(row, np.abs(at), atol=1e-5)


# --- labels at the samples
@pytest.mark.parametrize("border", ["zero", "reflect"])
def test_the_nearest_pixel_of_each_sample(border):
    """A ramp of columns, and one of rows, interpolates to where a sample stands; its nearest is that, rounded."""
    rows, columns = np.mgrid[:40, :50]
    xy = np.array([[9.3, 9.9], [24.0, 20.2], [49.0, 39.0], [1.6, 30.7]])
    for axis, ramp in enumerate((rows, columns)):
        at = interpolate_crops(ramp[..., None].astype("float32"), xy, 10, border)[..., 0]
        nearest = nearest_crops(ramp.astype("int32"), xy, 10, border)
        assert (nearest.shape, nearest.dtype) == ((4, 10, 10), np.int32)
        inside = interpolate_crops(np.ones((40, 50, 1), "float32"), xy, 10, border)[..., 0] == 1
        clear = inside & (np.abs(at % 1 - 0.5) > 1e-3)
        assert clear.sum() > 200
        np.testing.assert_array_equal(nearest[clear], np.floor(at[clear] + 0.5), err_msg=f"axis {axis}")


def test_no_cell_no_labels():
    assert nearest_crops(np.zeros((9, 9), "int32"), np.empty((0, 2)), 8).shape == (0, 8, 8)

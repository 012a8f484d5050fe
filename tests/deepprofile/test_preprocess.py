import json

import numpy as np
import pytest
from pydantic import ValidationError

from deepprofile.crops import interpolate_crops, slice_crops
from deepprofile.preprocess import CropSettings, Preprocess

LEVELS = np.array([[100, 0], [300, 50]], "float32")


def preprocess(**settings):
    return Preprocess(**{"channels": ("DNA", "ER"), "size": 8, **settings})


def one_crop(*values, dtype="uint16"):
    return np.array(values, dtype).reshape(1, 1, -1, 2)


# --- plate_control: one scale for a plate
def test_levels_become_zero_and_one_and_the_rest_is_clipped():
    crops = one_crop(100, 0, 300, 50, 200, 25, 50, 0, 999, 65535)
    scaled = preprocess().scale(crops, LEVELS, np.dtype("uint16"))
    np.testing.assert_allclose(scaled.reshape(-1, 2), [[0, 0], [1, 1], [0.5, 0.5], [0, 0], [1, 1]])
    assert scaled.dtype == "float32"


def test_differences_of_intensity_between_cells_stay():
    crops = np.random.default_rng(0).integers(110, 150, (2, 8, 8, 2)).astype("uint16")
    crops[1] = crops[0]
    crops[1, ..., 0] += 100
    levels = np.array([[100, 100], [300, 200]])
    kept = preprocess().scale(crops, levels, crops.dtype)
    np.testing.assert_allclose((kept[1] - kept[0])[..., 0], 0.5, atol=1e-6)
    np.testing.assert_array_equal(kept[1][..., 1], kept[0][..., 1])
    lost = preprocess(normalize="minmax").scale(crops, None, crops.dtype)
    np.testing.assert_allclose(lost[1], lost[0], atol=1e-6)


def test_a_plate_that_is_flat_gives_zeros_and_ones():
    scaled = preprocess().scale(one_crop(7, 7, 8, 6), np.array([[7, 7], [7, 7]]), np.dtype("uint16"))
    assert scaled.ravel().tolist() == [0, 0, 1, 0]


# --- minmax: the formula of DeepProfiler 0.3.1
def test_minmax_is_by_crop_and_channel():
    crops = np.random.default_rng(0).integers(0, 65536, (3, 8, 8, 2)).astype("uint16")
    crops[2, ..., 1] = 5  # flat
    found = preprocess(normalize="minmax").scale(crops, None, crops.dtype)
    for n in range(3):
        for c in range(2):
            x = crops[n, ..., c].astype("float32")
            np.testing.assert_allclose(found[n, ..., c], (x - x.min()) / (x.max() - x.min() + 1e-7), rtol=1e-6)
    assert (found[2, ..., 1] == 0).all()


# --- percentile: the levels are those of the image
def test_the_levels_of_an_image_are_its_percentiles():
    image = np.random.default_rng(0).integers(0, 4000, (50, 61, 2)).astype("uint16")
    one = preprocess(normalize="percentile", percentiles=(1, 99))
    assert preprocess().own_levels(image) is None
    expected = np.percentile(image, (1, 99), axis=(0, 1), method="inverted_cdf")
    for kind in ("uint16", "float32"):
        levels = one.own_levels(image.astype(kind))
        np.testing.assert_array_equal(levels, expected)
        assert (levels.dtype, levels.shape) == (np.float32, (2, 2))
    np.testing.assert_array_equal(one.own_levels(image[:, ::-1]), expected)  # a view
    xy = np.array([[20.0, 20.0], [40.0, 30.0]])
    crops = one.cut(image, xy)
    low, high = expected
    scaled = np.clip((crops.astype("float64") - low) / (high - low), 0, 1)
    np.testing.assert_allclose(one.scale(crops, levels, image.dtype), scaled, rtol=1e-5)


@pytest.mark.parametrize("normalize", ["plate_control", "percentile"])
def test_each_crop_may_have_levels_of_its_own(normalize):
    crops = np.random.default_rng(0).integers(0, 400, (3, 8, 8, 2)).astype("uint16")
    levels = np.stack([LEVELS, LEVELS + 20, 2 * LEVELS])
    one = preprocess(normalize=normalize)
    together = one.scale(crops, levels, crops.dtype)
    for crop, level, scaled in zip(crops, levels, together, strict=True):
        np.testing.assert_array_equal(one.scale(crop[None], level, crop.dtype)[0], scaled)


# --- the eras of DeepProfiler before August 2024
def test_legacy_over_max_divides_by_the_maximum_alone():
    crops = np.random.default_rng(0).integers(100, 65536, (2, 8, 8, 2)).astype("uint16")
    found = preprocess(normalize="legacy_over_max").scale(crops, None, crops.dtype)
    x = crops.astype("float32")
    low, high = x.min(axis=(1, 2), keepdims=True), x.max(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(found, (x - low) / high, rtol=1e-6)
    golden = preprocess(normalize="legacy_over_max").scale(one_crop(100, 1, 400, 4), None, crops.dtype)
    assert golden.ravel().tolist() == [0, 0, 0.75, 0.75]  # never 1 where there is a background


def test_zscore_is_by_crop_and_channel():
    crops = np.random.default_rng(0).integers(0, 65536, (3, 8, 8, 2)).astype("uint16")
    found = preprocess(normalize="zscore").scale(crops, None, crops.dtype)
    np.testing.assert_allclose(found.mean(axis=(1, 2)), 0, atol=1e-6)
    np.testing.assert_allclose(found.std(axis=(1, 2)), 1, rtol=1e-6)
    moved = preprocess(normalize="zscore").scale(crops.astype("float32") * 3 + 50, None, np.dtype("float32"))
    np.testing.assert_allclose(moved, found, atol=1e-5)


@pytest.mark.parametrize("normalize", ["minmax", "legacy_over_max", "zscore"])
@pytest.mark.parametrize("value", [0, 0.1, 7, -3])
def test_flat_crops_become_zero(normalize, value):
    crops = np.full((2, 8, 8, 2), value, "float32")
    crops[1, 0, 0, 1] = -5 if value < 0 else 9  # one channel is not flat
    found = preprocess(normalize=normalize).scale(crops, None, np.dtype("float32"))
    assert np.isfinite(found).all()
    assert not found[0].any()
    assert not found[1, ..., 0].any()
    assert found[1, ..., 1].any() == (value >= 0 or normalize != "legacy_over_max")


# --- none
@pytest.mark.parametrize(("kind", "largest"), [("uint8", 255), ("uint16", 65535), ("float32", 1)])
def test_none_is_the_share_of_what_the_image_can_hold(kind, largest):
    crops = one_crop(0, 10, 20, 200)
    for cut in (crops.astype(kind), crops.astype("float32")):  # interpolated crops of counts are float32
        scaled = preprocess(normalize="none").scale(cut, None, np.dtype(kind))
        np.testing.assert_allclose(scaled, crops / np.float32(largest), rtol=1e-6)


@pytest.mark.parametrize("normalize", ["plate_control", "percentile", "minmax", "legacy_over_max", "zscore", "none"])
def test_scaling_leaves_the_crops_as_they_were(normalize):
    crops = np.random.default_rng(0).random((2, 8, 8, 2), "float32") * 400
    before = crops.copy()
    scaled = preprocess(normalize=normalize).scale(crops, LEVELS, np.dtype("uint16"))
    np.testing.assert_array_equal(crops, before)
    if normalize != "zscore":
        assert scaled.min() >= 0
        assert scaled.max() <= 1


# --- cut and keep
def test_cut_is_what_its_mode_says():
    image = np.random.default_rng(0).integers(0, 99, (30, 40, 2)).astype("uint16")
    xy = np.array([[9.3, 9.9], [0.0, 29.0]])
    for border in ("zero", "reflect"):
        np.testing.assert_array_equal(preprocess(border=border).cut(image, xy), slice_crops(image, xy, 8, border))
        smooth = preprocess(mode="interpolate", border=border).cut(image, xy)
        np.testing.assert_array_equal(smooth, interpolate_crops(image, xy, 8, border))


def test_pixels_of_other_cells_are_zero():
    image = np.arange(1, 33, dtype="uint16").reshape(4, 4, 2)
    labels = np.array([[1, 1, 0, 0], [1, 1, 0, 2], [0, 0, 2, 2], [0, 0, 2, 2]])
    masked = preprocess(mask=True).cut(image, np.array([[2.0, 2.0], [2.0, 2.0]]), labels, np.array([2, 1]))
    where = (slice(2, 6), slice(2, 6))  # of the image in the crop
    for crop, own in zip(masked, (2, 1), strict=True):
        np.testing.assert_array_equal(crop[where], np.where((labels == own)[..., None], image, 0))
        assert crop.sum() == crop[where].sum()
    assert (masked.dtype, masked.shape) == (np.dtype("uint16"), (2, 8, 8, 2))


def test_a_mask_is_mirrored_with_the_image():
    image = np.random.default_rng(0).integers(1, 99, (30, 40, 2)).astype("uint16")
    labels = np.zeros((30, 40), int)
    labels[:3, :5] = 4
    one = preprocess(mask=True, border="reflect")
    masked = one.cut(image, np.array([[1.0, 0.0]]), labels, np.array([4]))
    expected = preprocess(border="reflect").cut(np.where(labels[..., None], image, 0), np.array([[1.0, 0.0]]))
    np.testing.assert_array_equal(masked, expected)
    assert masked[0, :4].any()  # rows above the image


def test_the_mask_of_interpolated_crops_is_the_label_nearest_to_each_sample():
    image = np.random.default_rng(0).integers(1, 99, (30, 40, 2)).astype("uint16")
    xy = np.array([[12.3, 9.9], [38.0, 4.0]])
    labels = np.full((30, 40), 7)
    labels[:, :12] = 3
    whole, smooth = preprocess(mode="interpolate"), preprocess(mode="interpolate", mask=True)
    left = smooth.cut(image, xy, labels, np.array([3, 3]))
    right = smooth.cut(image, xy, labels, np.array([7, 7]))
    np.testing.assert_array_equal(left + right, whole.cut(image, xy))  # each pixel is of one of the two
    assert not (left.astype(bool) & right.astype(bool)).any()
    assert left[0, :, :3].any()
    assert right[0, :, 5:].any()
    assert not left[1].any()


def test_labels_change_nothing_without_a_mask():
    image = np.random.default_rng(0).integers(1, 99, (30, 40, 2)).astype("uint16")
    xy = np.array([[12.3, 9.9]])
    crops = preprocess().cut(image, xy, np.zeros((30, 40), int), np.array([1]))
    np.testing.assert_array_equal(crops, preprocess().cut(image, xy))


def test_kept_are_cells_with_their_centre_or_their_box_in_the_image():
    xy = np.array(
        [[-0.5, -0.5], [-0.51, 3], [39.4, 29.4], [39.5, 3], [3, 29.5], [4, 4], [3.4, 4], [36, 26], [36.5, 26]]
    )
    assert preprocess().keep(xy, (30, 40, 2)).tolist() == [True, False, True, False, False, True, True, True, True]
    dropped = preprocess(border="drop").keep(xy, (30, 40, 2))
    assert dropped.tolist() == [False, False, False, False, False, True, False, True, False]
    assert preprocess().keep(np.empty((0, 2)), (30, 40, 2)).tolist() == []


# --- the object in the model card
def test_the_order_of_channels_counts():
    assert preprocess(channels=("DNA", "ER")) != preprocess(channels=("ER", "DNA"))
    assert preprocess() == preprocess()


def test_json_brings_back_the_same_object():
    one = preprocess(mode="interpolate", percentiles=(0.5, 99.5), normalize="minmax", border="reflect")
    assert Preprocess.model_validate_json(one.model_dump_json()) == one
    assert json.loads(one.model_dump_json())["channels"] == ["DNA", "ER"]
    assert hash(one) == hash(Preprocess(**json.loads(one.model_dump_json())))


@pytest.mark.parametrize(
    "bad",
    [
        {"size": 9},
        {"size": 4},
        {"mode": "cut"},
        {"border": "wrap"},
        {"normalize": "over_max"},
        {"percentiles": (99, 1)},
        {"percentiles": (0, 101)},
        {"percentiles": (1,)},
        {"colour": 1},
    ],
)
def test_settings_that_are_refused(bad):
    with pytest.raises(ValidationError, match=next(iter(bad))):
        CropSettings(**bad)


def test_settings_are_frozen_and_a_channel_is_needed():
    with pytest.raises(ValidationError, match="frozen"):
        preprocess().size = 16
    with pytest.raises(ValidationError, match="channels"):
        preprocess(channels=())

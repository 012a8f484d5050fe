import cv2
import keras
import numpy as np
import pytest

from deepprofile.augmentation import AugmentCrops, draw, mix_targets
from deepprofile.study import Augment

# of Keras with torch, when a tensor becomes an array
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")
NOTHING = {"crop": 1, "flip": False, "rotate": False, "brightness": 0, "contrast": 0}
EVERYTHING = Augment(jitter=0.3, mixup=0.4)


def crops(n=8, side=24, channels=5, seed=0):
    return np.random.default_rng(seed).random((n, side, side, channels), np.float32)


def drawn(settings, n=8, side=24, channels=5, seed=0):
    return draw(settings, n, (side, side, channels), np.random.default_rng(seed))


def augmented(x, what):
    return keras.ops.convert_to_numpy(AugmentCrops()([x, what]))


def reference(x, what):
    """The same from OpenCV and plain numpy, crop by crop."""
    out = []
    for i, crop in enumerate(x):
        if "box" in what:
            top, left, side = what["box"][i]
            cut = np.ascontiguousarray(crop[top : top + side, left : left + side])
            crop = cv2.resize(cut, crop.shape[:2], interpolation=cv2.INTER_LINEAR)
        if "flip" in what and what["flip"][i]:
            crop = np.fliplr(crop)
        if "turn" in what:
            crop = np.rot90(crop, what["turn"][i])
        if "gain" in what:
            crop = crop * what["gain"][i]
            crop = crop + what["brightness"][i]
            mean = crop.mean(axis=(0, 1))
            crop = (crop - mean) * what["contrast"][i] + mean
        out.append(crop)
    if "share" in what:
        out = [
            s * out[i] + (1 - s) * out[p] for i, (s, p) in enumerate(zip(what["share"], what["partner"], strict=True))
        ]
    return np.stack(out)


# --- parity
@pytest.mark.parametrize(
    "settings",
    [
        Augment(),
        EVERYTHING,
        Augment(**(NOTHING | {"crop": 0.3, "crop_probability": 1})),
        Augment(**(NOTHING | {"crop": 0.5, "flip": True})),
        Augment(**(NOTHING | {"flip": True})),
        Augment(**(NOTHING | {"rotate": True})),
        Augment(**(NOTHING | {"flip": True, "rotate": True})),
        Augment(**(NOTHING | {"jitter": 0.5})),
        Augment(**(NOTHING | {"mixup": 1})),
    ],
    ids=lambda settings: ",".join(drawn(settings)),
)
def test_as_opencv_and_numpy_do_it(settings):
    x, what = crops(32), drawn(settings, 32)
    result = augmented(x, what)
    assert result.dtype == np.float32
    assert not np.array_equal(result, x)
    np.testing.assert_allclose(result, reference(x, what), rtol=0, atol=1e-5)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="compares with functions of TensorFlow")
def test_as_deepprofiler_does_it():
    import tensorflow as tf

    x, what = crops(16, 40), drawn(Augment(crop_probability=1), 16, 40)
    for crop, result, box, flip, turn, contrast, brightness in zip(
        x, augmented(x, what), *(what[k] for k in ("box", "flip", "turn", "contrast", "brightness")), strict=True
    ):
        top, left, side = box
        theirs = tf.image.resize(crop[top : top + side, left : left + side], (40, 40))
        theirs = tf.image.rot90(tf.image.flip_left_right(theirs) if flip else theirs, k=turn)
        channels = [
            tf.image.adjust_contrast(tf.image.adjust_brightness(theirs[..., c : c + 1], brightness[c]), contrast[c])
            for c in range(5)
        ]
        np.testing.assert_allclose(result, tf.concat(channels, axis=-1), rtol=0, atol=1e-5)


# --- golden: worked out on paper
def picture(rows):
    return np.array(rows, np.float32)[None, :, :, None]


def test_a_square_of_four_pixels_is_resized_flipped_and_turned():
    x = picture([[9, 9, 9, 9], [9, 9, 0, 4], [9, 9, 8, 12], [9, 9, 9, 9]])
    what = {"box": np.array([[1, 2, 2]], np.int32)}
    # halfway between two centres stand 1/4 and 3/4 of each; beyond the outer centres nothing changes
    resized = [[0, 1, 3, 4], [2, 3, 5, 6], [6, 7, 9, 10], [8, 9, 11, 12]]
    np.testing.assert_array_equal(augmented(x, what), picture(resized))
    what["flip"] = np.array([1], np.int32)
    np.testing.assert_array_equal(augmented(x, what), picture([row[::-1] for row in resized]))
    what["turn"] = np.array([1], np.int32)  # against the clock: the last column becomes the first row
    turned = [[0, 2, 6, 8], [1, 3, 7, 9], [3, 5, 9, 11], [4, 6, 10, 12]]
    np.testing.assert_array_equal(augmented(x, what), picture(turned))


def test_light_of_two_channels():
    x = np.stack([np.full((2, 2), 0.5), [[0, 0], [0, 1]]], axis=-1)[None].astype(np.float32)
    what = {"gain": [[1, 2]], "contrast": [[0.5, 1.5]], "brightness": [[0.25, 0.125]]}
    result = augmented(x, {name: np.array(values, np.float32) for name, values in what.items()})
    np.testing.assert_array_equal(result[0, ..., 0], 0.75)  # flat: contrast does nothing
    # twice 0 and 1 are 0 and 2, of mean 0.5: 1.5 (0 - 0.5) + 0.5 and 1.5 (2 - 0.5) + 0.5, and 0.125 more
    np.testing.assert_array_equal(result[0, ..., 1], [[-0.125, -0.125], [-0.125, 2.875]])


def test_mixed_crops_and_targets():
    x = np.repeat(np.array([0, 1], np.float32), 4).reshape(2, 2, 2, 1)
    what = {"partner": np.array([1, 0], np.int32), "share": np.array([0.75, 0.5], np.float32)}
    np.testing.assert_array_equal(augmented(x, what)[:, 0, 0, 0], [0.25, 0.5])
    targets = np.array([[1, 0, 0], [0, 0.5, 0.5]], np.float32)
    mixed = mix_targets(targets, what)
    np.testing.assert_array_equal(mixed, [[0.75, 0.125, 0.125], [0.5, 0.25, 0.25]])
    assert mixed.dtype == np.float32
    assert mix_targets(targets, {}) is targets


# --- properties
def test_nothing_drawn_is_nothing_done():
    x, what = crops(), drawn(EVERYTHING)
    what = {
        **{name: np.zeros_like(values) for name, values in what.items()},
        "box": np.array([[0, 0, 24]] * 8, np.int32),
        "partner": what["partner"],
        **{name: np.ones_like(what[name]) for name in ("gain", "contrast", "share")},
    }
    np.testing.assert_array_equal(augmented(x, what), x)
    assert drawn(Augment(**NOTHING)) == {}
    np.testing.assert_array_equal(augmented(x, {}), x)


def test_four_quarter_turns_and_two_flips():
    x = crops()
    once = {"turn": np.ones(8, np.int32)}
    turns = [x]
    for _ in range(4):
        turns.append(augmented(turns[-1], once))
    for k in (1, 2, 3):
        assert not np.array_equal(turns[k], x)
        np.testing.assert_array_equal(turns[k], augmented(x, {"turn": np.full(8, k, np.int32)}))
    np.testing.assert_array_equal(turns[4], x)
    flip = {"flip": np.ones(8, np.int32)}
    assert not np.array_equal(augmented(x, flip), x)
    np.testing.assert_array_equal(augmented(augmented(x, flip), flip), x)


def test_turns_and_flips_keep_every_pixel():
    x, what = crops(), drawn(Augment(**(NOTHING | {"flip": True, "rotate": True})))
    np.testing.assert_array_equal(np.sort(augmented(x, what).reshape(8, -1)), np.sort(x.reshape(8, -1)))


@pytest.mark.parametrize("name", ["contrast", "brightness", "jitter"])
def test_light_and_the_mean_of_a_channel(name):
    x, what = crops(), drawn(Augment(**(NOTHING | {name: 0.4})))
    result = augmented(x, what)
    mean, deviation = x.mean(axis=(1, 2)), x.std(axis=(1, 2))
    expected = {"contrast": mean, "brightness": mean + what["brightness"], "jitter": mean * what["gain"]}[name]
    np.testing.assert_allclose(result.mean(axis=(1, 2)), expected, rtol=1e-5)
    expected = {"contrast": what["contrast"], "brightness": 1, "jitter": what["gain"]}[name] * deviation
    np.testing.assert_allclose(result.std(axis=(1, 2)), expected, rtol=1e-4)
    assert np.ptp(expected / mean) > 0.05


def test_a_ramp_stays_a_ramp_within_its_square():
    ramp = np.broadcast_to(np.arange(24, dtype=np.float32)[:, None, None], (24, 24, 1))
    x, what = np.repeat(ramp[None], 32, axis=0), drawn(Augment(**(NOTHING | {"crop": 0.5})), 32, channels=1)
    result = augmented(x, what)[:, :, :, 0]
    top, side = what["box"][:, 0], what["box"][:, 2]
    np.testing.assert_array_equal(result, result[:, :, :1].repeat(24, axis=2))
    np.testing.assert_allclose(result[:, [0, -1], 0], np.stack([top, top + side - 1], axis=1), atol=1e-5)
    steps = np.diff(result[:, 2:-2, 0], axis=1)
    np.testing.assert_allclose(steps, np.broadcast_to(side[:, None] / 24, steps.shape), atol=1e-5)


# --- what is drawn
def test_draws_are_uniform_over_what_the_thesis_says():
    n = 20000
    what = drawn(Augment(jitter=0.3), n, 128)
    top, left, side = what["box"].T
    cropped = side < 128
    assert cropped.mean() == pytest.approx(0.5, abs=0.01)
    assert set(side[cropped]) == set(range(102, 128))
    assert side[cropped].mean() == pytest.approx((102 + 127) / 2, abs=0.3)
    for start in (top, left):
        assert (start[~cropped] == 0).all()
        room = (128 - side)[cropped]
        assert ((start[cropped] >= 0) & (start[cropped] <= room)).all()
        assert (start[cropped] / room).mean() == pytest.approx(0.5, abs=0.02)
        assert set(start[side == 125]) == {0, 1, 2, 3}
    assert np.corrcoef(top[side < 110], left[side < 110])[0, 1] == pytest.approx(0, abs=0.1)
    assert what["flip"].mean() == pytest.approx(0.5, abs=0.02)
    np.testing.assert_allclose(np.bincount(what["turn"]) / n, 0.25, atol=0.02)
    for name, low, high in (("brightness", -0.1, 0.1), ("contrast", 0.8, 1.2), ("gain", 0.7, 1.3)):
        values = what[name]
        assert values.shape == (n, 5)
        assert values.min() == pytest.approx(low, abs=1e-3)
        assert values.max() == pytest.approx(high, abs=1e-3)
        np.testing.assert_allclose(values.mean(axis=0), (low + high) / 2, atol=0.01)
        assert np.corrcoef(values[:, 0], values[:, 1])[0, 1] == pytest.approx(0, abs=0.05)


def test_mixup_draws_a_partner_and_a_beta():
    what = drawn(Augment(mixup=0.2), 20000)
    assert sorted(what["partner"]) == list(range(20000))
    assert what["share"].min() >= 0
    assert what["share"].max() <= 1
    assert what["share"].mean() == pytest.approx(0.5, abs=0.02)
    assert what["share"].var() == pytest.approx(0.25 / 1.4, rel=0.03)  # of beta(a, a): 1 / (4 (2 a + 1))


def test_the_same_generator_gives_the_same_draw():
    first, again, other = drawn(EVERYTHING, seed=1), drawn(EVERYTHING, seed=1), drawn(EVERYTHING, seed=2)
    for name, values in first.items():
        np.testing.assert_array_equal(values, again[name])
        assert not np.array_equal(values, other[name])


def test_settings_alone_decide_what_a_step_is_compiled_for():
    kinds = {tuple((k, v.dtype.str, v.shape) for k, v in drawn(EVERYTHING, 2, seed=s).items()) for s in range(20)}
    assert len(kinds) == 1
    names = "box", "flip", "turn", "gain", "contrast", "brightness", "partner", "share"
    assert tuple(drawn(EVERYTHING)) == names
    assert tuple(drawn(Augment(crop_probability=0, rotate=False))) == ("flip", "gain", "contrast", "brightness")
    assert {v.dtype.name for v in drawn(EVERYTHING).values()} == {"int32", "float32"}


def test_a_crop_that_is_not_square_is_a_bug():
    with pytest.raises(AssertionError, match="24, 32, 3"):
        draw(Augment(), 2, (24, 32, 3), np.random.default_rng(0))


# --- within a network
def test_it_computes_in_float32_whatever_the_policy():
    x, what = crops(), drawn(EVERYTHING)
    expected = augmented(x, what)
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        np.testing.assert_array_equal(augmented(x, what), expected)
    finally:
        keras.config.set_dtype_policy("float32")


def test_batches_of_any_size_within_a_compiled_network():
    inputs = [
        keras.Input((24, 24, 5)),
        {k: keras.Input(v.shape[1:], dtype=v.dtype.name, name=k) for k, v in drawn(EVERYTHING).items()},
    ]
    layer = AugmentCrops()
    model = keras.Model(inputs, layer(inputs))
    model.compile(jit_compile=False if keras.backend.backend() == "tensorflow" else "auto")
    assert not layer.weights
    for n in (3, 5):
        x, what = crops(n), drawn(EVERYTHING, n)
        np.testing.assert_allclose(model.predict_on_batch([x, what]), reference(x, what), rtol=0, atol=1e-5)

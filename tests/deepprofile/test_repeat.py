"""Repeat-channel mode: pictures and features as DeepProfiler makes them."""

import json

import keras
import numpy as np
import pytest
from study_factory import CHANNELS, configure

from cytominer_tools.errors import InputError
from cytominer_tools.tables import read_table
from deepprofile.extractor import feature_network
from deepprofile.features import profile_cells
from deepprofile.networks import build_network
from deepprofile.profiles import WELLS, aggregate_wells, feature_names
from deepprofile.repeat import repeat_channels, see_each_channel, see_minus_one_to_one
from deepprofile.study import ProfileModel

# of keras.Model.save
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")


def crops(n=3, height=16, width=16, channels=5):
    return np.random.default_rng(n).random((n, height, width, channels), np.float32)


# --- parity
@pytest.mark.parametrize(("height", "width", "size"), [(16, 16, 28), (128, 128, 224), (32, 20, 32), (48, 48, 31)])
def test_pictures_are_those_of_tensorflow_1(height, width, size):
    tf = pytest.importorskip("tensorflow")
    x = crops(2, height, width, 3)
    expected = []
    for channel in range(3):
        small = tf.compat.v1.image.resize_images(x[..., channel : channel + 1], [size, size]).numpy()
        low, high = small.min(axis=(1, 2), keepdims=True), small.max(axis=(1, 2), keepdims=True)
        expected.append(np.repeat((small - low) / (high - low) * 2 - 1, 3, axis=3))
    found = np.asarray(repeat_channels(x, size))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, np.concatenate(expected), rtol=0, atol=2e-6)


def test_golden_sample_of_a_ramp():
    """Sample i stands at i * 2 / 4: 0, 1/2, 1, and 1 again where the picture has ended."""
    x = np.array([[0, 8], [0, 8]], np.float32).reshape(1, 2, 2, 1)
    found = np.asarray(repeat_channels(x, 4))
    assert found.shape == (1, 4, 4, 3)
    np.testing.assert_array_equal(found[0, :, :, 1], [[-1, 0, 1, 1]] * 4)


# --- properties
def test_of_its_own_size_a_picture_is_only_rescaled():
    x = crops()
    found = np.asarray(repeat_channels(x, 16))
    assert found.shape == (15, 16, 16, 3)
    planes = np.moveaxis(x, 3, 0).reshape(15, 16, 16, 1)
    low, high = planes.min(axis=(1, 2), keepdims=True), planes.max(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(found, np.repeat(2 * (planes - low) / (high - low) - 1, 3, axis=3), atol=1e-6)
    np.testing.assert_array_equal(found.min(axis=(1, 2, 3)), -1)
    np.testing.assert_array_equal(found.max(axis=(1, 2, 3)), 1)


def test_gain_and_offset_of_a_channel_cancel():
    x = crops()
    moved = x * np.array([1, 2, 4, 8, 0.5], np.float32) + np.array([0, 1, 2, 3, 4], np.float32)
    np.testing.assert_allclose(np.asarray(repeat_channels(moved, 24)), np.asarray(repeat_channels(x, 24)), atol=2e-5)


def test_a_flat_channel_is_black():
    x = crops()
    x[1, ..., 2] = 0.3
    found = np.asarray(repeat_channels(x, 20))
    assert np.isfinite(found).all()
    black = np.all(found == -1, axis=(1, 2, 3))
    assert np.flatnonzero(black).tolist() == [2 * 3 + 1]  # the third channel of the second of three cells


# --- features
def colours(units=4, size=20):
    """A network of colours without activation at its end, with the mean of the first unit known."""
    inputs = keras.Input((size, size, 3))
    x = keras.layers.Conv2D(units, 3, name="conv")(inputs)
    x = keras.layers.GlobalAveragePooling2D(name="features")(x)
    return keras.Model(inputs, x)


def test_features_of_a_cell_stand_channel_after_channel():
    network, x = colours(), crops()
    whole = see_each_channel(network, (16, 16, 5))
    found = np.asarray(whole(x))
    assert whole.output_shape == (None, 20)
    assert found.shape == (3, 20)
    for cell in range(3):
        for channel in range(5):
            picture = repeat_channels(x[cell : cell + 1, ..., channel : channel + 1], 20)
            alone = np.asarray(network((picture + 1) / 2))[0]
            np.testing.assert_allclose(found[cell, 4 * channel : 4 * channel + 4], alone, rtol=1e-5, atol=1e-6)
    swapped = np.asarray(whole(x[..., ::-1])).reshape(3, 5, 4)[:, ::-1].reshape(3, 20)
    np.testing.assert_allclose(swapped, found, rtol=1e-5, atol=1e-6)


def test_several_outputs_are_each_put_side_by_side():
    network = colours()
    pooled = keras.layers.GlobalMaxPooling2D()(network.get_layer("conv").output)
    both = keras.Model(network.input, [network.output, pooled])
    first, second = see_each_channel(both, (16, 16, 5))(crops())
    np.testing.assert_allclose(first, see_each_channel(network, (16, 16, 5))(crops()), rtol=1e-6, atol=1e-6)
    assert second.shape == (3, 20)


@pytest.mark.parametrize(
    ("name", "layer", "width"),
    [
        ("efficientnet_b0", "features", 5 * 1280),
        ("efficientnet_b0", "block6a_activation", 5 * 672),
        ("keras_resnet50v2", "features", 5 * 2048),
    ],
)
def test_the_widths_of_deepprofiler(name, layer, width):
    model = build_network(name, channels=3, size=(32, 32))
    network = see_each_channel(feature_network(model, [layer]), (16, 16, 5))
    assert network.output_shape == (None, width)
    assert network(crops(2)).shape == (2, width)


@pytest.mark.parametrize("name", ["efficientnet_b0", "keras_resnet50v2"])
def test_the_first_convolution_sees_minus_one_to_one(name):
    model = build_network(name, channels=3, size=(32, 32))
    stem = next(layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D))
    for layer in model.layers:
        if isinstance(layer, keras.layers.Normalization):  # as ImageNet's weights leave it
            layer.set_weights([np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225]) ** 2, np.array(0)])
            layer.finalize_state()
    see_minus_one_to_one(model)
    sees = see_each_channel(keras.Model(model.input, keras.layers.Flatten()(_before(model, stem))), (16, 16, 5))
    x = crops(2)
    found = np.asarray(sees(x)).reshape(2, 5, -1)
    pictures = np.asarray(repeat_channels(x, 32)).reshape(5, 2, 32, 32, 3)
    pad = found.shape[2] - 32 * 32 * 3  # of zeros around the picture, before the stem
    np.testing.assert_allclose(found.sum(axis=2), pictures.sum(axis=(2, 3, 4)).T, rtol=1e-4, atol=0.02)
    np.testing.assert_allclose(
        np.sort(np.abs(found), axis=2)[..., pad:], np.sort(np.abs(pictures.swapaxes(0, 1).reshape(2, 5, -1)), axis=2),
        atol=1e-5,
    )  # fmt: skip


def _before(model, layer):
    return layer.input


# --- a study
@pytest.fixture
def repeated(done):
    done = configure(
        done.root, profile={"options": {"width": 4, "depth": 2}, "mode": "repeat_channel", "input_size": 32}
    )
    return done, profile_cells(done)


def test_a_study_channel_by_channel(repeated):
    study, told = repeated
    assert told.made == 12
    assert study.profile.name == "small_cnn_untrained_repeat"
    card = json.loads((study.features / "card.json").read_text())
    assert (card["mode"], card["input_size"], card["width"]) == ("repeat_channel", 32, 3 * 8)
    aggregate_wells(study)
    wells = read_table(study.profiles_folder / WELLS)
    names = [name for name in wells if not name.startswith("Metadata_")]
    assert names == [f"small_cnn_untrained_repeat_{channel}_{i}" for channel in CHANNELS for i in range(8)]
    assert names == feature_names(study, 24)
    changed = configure(study.root, profile={**study.profile.model_dump(exclude_unset=True), "input_size": 48})
    with pytest.raises(InputError, match="input_size: 32 -> 48"):
        aggregate_wells(changed)


def test_input_size_belongs_to_the_mode():
    assert ProfileModel(mode="repeat_channel").input_size == 224
    with pytest.raises(ValueError, match="multi_channel takes crops as they are; leave it out, or set mode"):
        ProfileModel(input_size=224)


def test_weights_of_the_channels_together_are_refused(done):
    model = build_network("small_cnn", channels=3, size=(32, 32), width=4, depth=3)
    folder = done.root / "models" / "trained"
    folder.mkdir(parents=True)
    model.save(folder / "model.keras")
    preprocess = json.loads(done.preprocess.model_dump_json())
    card = {"training": {}, "network": "small_cnn", "preprocess": preprocess, "illumination": None}
    (folder / "card.json").write_text(json.dumps(card))
    study = configure(done.root, profile={"weights": "trained", "mode": "repeat_channel", "input_size": 32})
    with pytest.raises(
        InputError, match=r"was trained on DNA, ER, Mito together; .*: set profile\.mode to multi_channel"
    ):
        profile_cells(study)

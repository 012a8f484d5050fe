"""What every registered network promises, and what EfficientNet's ImageNet weights mean for other channels."""

import inspect

import keras
import numpy as np
import pytest

from cytominer_tools.errors import InputError
from deepprofile.networks import GROUP, build_network, initialize, load_imagenet, weights_hash
from deepprofile.registry import load, names

# of keras.Model.save
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")
CHANNELS, SIDE, CLASSES = 5, 32, 4


# the larger sizes of what is made by one function, a minute each: two small tests are theirs
LARGER = {f"efficientnet_b{number}" for number in range(1, 8)} | {"keras_resnet101v2", "keras_resnet152v2"}


@pytest.fixture(scope="module", params=sorted(set(names(GROUP)) - LARGER))
def network(request):
    """Name, plugin, and a model of it with classes."""
    name = request.param
    model = build_network(name, channels=CHANNELS, size=(SIDE, SIDE), classes=CLASSES)
    return name, load(GROUP, name), model


def crops(n, channels=CHANNELS, side=SIDE):
    return np.random.default_rng(n).random((n, side, side, channels), np.float32)


# --- the contract
def test_logits_are_float32(network):
    _, _, model = network
    logits = model(crops(3))
    assert tuple(logits.shape) == (3, CLASSES)
    assert keras.backend.standardize_dtype(logits.dtype) == "float32"
    assert model.output_shape == (None, CLASSES)
    assert np.isfinite(np.asarray(logits)).all()


def test_without_classes_it_ends_in_its_features(network):
    name, _, with_head = network
    model = build_network(name, channels=CHANNELS, size=(SIDE, SIDE))
    features = np.asarray(model(crops(3)))
    assert features.dtype == np.float32
    assert features.ndim == 2
    assert model.layers[-1].name == "features"
    assert features.shape[1] == with_head.get_layer("features").output.shape[-1]
    assert np.ptp(features, axis=0).max() > 0  # different crops, different features
    # names do not count the networks of this process: weights are matched by them
    assert [layer.name for layer in model.layers] == [layer.name for layer in with_head.layers[:-1]]


def test_layers_that_make_features_exist(network):
    _, plugin, model = network
    have = {layer.name for layer in model.layers}
    assert "features" in plugin.feature_layers
    assert set(plugin.feature_layers) <= have
    assert model.get_layer("features").dtype_policy.compute_dtype == "float32"


def test_source_licence_and_docstring_are_given(network):
    _, plugin, _ = network
    assert plugin.source
    assert plugin.licence
    assert inspect.getdoc(plugin)
    signature = inspect.signature(plugin)
    assert all(p.kind is inspect.Parameter.KEYWORD_ONLY for p in signature.parameters.values())
    assert list(signature.parameters)[:3] == ["channels", "size", "classes"]


def test_saved_and_read_again_it_is_the_same(network, tmp_path):
    _, _, model = network
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras", compile=False, safe_mode=True)
    np.testing.assert_array_equal(np.asarray(again(crops(2))), np.asarray(model(crops(2))))
    assert weights_hash(again) == weights_hash(model)


def test_a_step_of_training_changes_the_loss(network):
    name, _, _ = network
    model = build_network(name, channels=CHANNELS, size=(SIDE, SIDE), classes=CLASSES)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(1e-3), loss, jit_compile=False)
    x, y = crops(4), np.arange(4)
    before = float(model.train_on_batch(x, y))
    after = float(model.train_on_batch(x, y))
    assert np.isfinite([before, after]).all()
    assert before != after


def test_one_channel_and_a_side_longer_than_the_other(network):
    name, _, _ = network
    model = build_network(name, channels=1, size=(SIDE, 2 * SIDE))
    assert model(np.zeros((2, SIDE, 2 * SIDE, 1), np.float32)).shape[0] == 2


# --- the larger sizes
@pytest.mark.parametrize("name", ["efficientnet_b1", pytest.param("keras_resnet101v2", marks=pytest.mark.slow)])
def test_a_larger_network_is_that_of_keras(name):
    """With its weights by layer name it computes the same, so no layer is left out."""
    kind = keras.applications.EfficientNetB1 if "efficient" in name else keras.applications.ResNet101V2
    theirs = kind(include_top=False, weights=None, input_shape=(SIDE, SIDE, 3))
    initialize(theirs, 1)
    ours = build_network(name, channels=3, size=(SIDE, SIDE))
    build = load(GROUP, name)
    donors = iter([layer for layer in theirs.layers if layer.weights])
    for layer in ours.layers:
        if layer.weights:
            layer.set_weights(next(donors).get_weights())
    x = crops(2, channels=3)
    expected = np.asarray(theirs(255 * x if "efficient" in name else 2 * x - 1)).mean(axis=(1, 2))
    np.testing.assert_allclose(np.asarray(ours(x)), expected, rtol=1e-4, atol=1e-4)
    assert set(build.feature_layers) <= {layer.name for layer in ours.layers}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(LARGER))
def test_what_a_larger_network_says_of_itself_is_so(name):
    build = load(GROUP, name)
    model = build(channels=CHANNELS, size=(SIDE, SIDE))
    assert model.name == name
    assert build.__name__ == f"build_{name}"
    assert f"(n, {model.output_shape[1]})" in inspect.getdoc(build)
    assert set(build.feature_layers) <= {layer.name for layer in model.layers}
    assert build.source
    assert build.licence


# --- EfficientNet with ImageNet's weights
@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    """A file as keras.applications downloads it: ImageNet's mean and variance, and weights that keep crops apart."""
    import h5py
    from keras.src.legacy.saving.legacy_h5_format import save_weights_to_hdf5_group

    donor = keras.applications.EfficientNetB0(include_top=False, weights=None, input_shape=(SIDE, SIDE, 3))
    initialize(donor, 0)
    rng = np.random.default_rng(0)
    for layer in donor.layers:
        if isinstance(layer, keras.layers.Normalization):
            layer.set_weights([np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225]), np.array(0)])
        elif isinstance(layer, keras.layers.BatchNormalization):
            ends = (0.5, 1.5), (-0.5, 0.5), (-0.2, 0.2), (0.5, 1.5)
            layer.set_weights([rng.uniform(*e, w.shape) for e, w in zip(ends, layer.get_weights(), strict=True)])
    path = tmp_path_factory.mktemp("imagenet") / "efficientnetb0_notop.h5"
    with h5py.File(path, "w") as file:
        save_weights_to_hdf5_group(file, donor)
    return path


@pytest.fixture(scope="module")
def downloaded(imagenet):
    """keras.applications finds its file without a network; the real loading code runs."""
    from keras.src.applications import efficientnet

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(efficientnet.file_utils, "get_file", lambda *_, **__: str(imagenet))
        yield


def cut(model, layer):
    return keras.Model(model.input, model.get_layer(layer).output)


@pytest.fixture(scope="module")
def theirs(downloaded):
    return keras.applications.EfficientNetB0(include_top=False, weights="imagenet", input_shape=(SIDE, SIDE, 3))


def replicated(channels):
    model = build_network("efficientnet_b0", channels=channels, size=(SIDE, SIDE))
    load_imagenet(model, "efficientnet_b0", "replicate")
    return model


@pytest.fixture(scope="module")
def replicated_to_five(downloaded):
    return replicated(5)


def test_three_channels_are_those_of_keras(theirs):
    ours = build_network("efficientnet_b0", channels=3, size=(SIDE, SIDE), weights="imagenet")
    x = crops(2, channels=3)
    expected = np.asarray(theirs(255 * x)).mean(axis=(1, 2))
    assert np.abs(expected[0] - expected[1]).max() > 0.02
    np.testing.assert_allclose(np.asarray(ours(x)), expected, rtol=0, atol=1e-4)
    assert weights_hash(ours) == weights_hash(replicated(3))  # red, green and blue are themselves with any stem


def test_five_equal_channels_with_a_replicated_stem_are_a_grey_picture_of_keras(theirs, replicated_to_five):
    grey = crops(2, channels=1)
    expected = np.asarray(theirs(255 * np.repeat(grey, 3, axis=3))).mean(axis=(1, 2))
    ours = np.asarray(replicated_to_five(np.repeat(grey, 5, axis=3)))
    assert np.abs(expected[0] - expected[1]).max() > 0.02
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-4)


def test_channels_take_turns_at_the_colours_and_share_them(theirs, replicated_to_five):
    red, green, blue = np.moveaxis(theirs.get_layer("stem_conv").get_weights()[0], 2, 0)
    for model, colours, kernels in (
        (replicated_to_five, [0, 1, 2, 0, 1], [red / 2, green / 2, blue, red / 2, green / 2]),
        (replicated(2), [0, 1], [1.5 * red, 1.5 * green]),
    ):
        np.testing.assert_allclose(model.get_layer("stem_conv").get_weights()[0], np.stack(kernels, 2), rtol=1e-6)
        mean, variance, _ = model.get_layer("normalization").get_weights()
        np.testing.assert_allclose(mean, np.array([0.485, 0.456, 0.406])[colours], rtol=1e-6)
        np.testing.assert_allclose(np.sqrt(variance), np.array([0.229, 0.224, 0.225])[colours], rtol=1e-6)


def test_the_statistics_of_the_input_go_with_the_weights(replicated_to_five, tmp_path):
    replicated_to_five.save(tmp_path / "a.keras")
    again = build_network("efficientnet_b0", channels=5, size=(SIDE, SIDE), weights=tmp_path / "a.keras")
    np.testing.assert_array_equal(np.asarray(again(crops(2))), np.asarray(replicated_to_five(crops(2))))
    assert weights_hash(again) == weights_hash(replicated_to_five)


def test_five_equal_channels_with_an_inflated_stem_are_a_grey_picture(theirs):
    ours = build_network("efficientnet_b0", channels=5, size=(SIDE, SIDE))
    load_imagenet(ours, "efficientnet_b0", "inflate")
    grey = crops(2, channels=1)
    stem = np.asarray(cut(ours, "stem_conv")(np.repeat(grey, 5, axis=3)))
    # the same grey in red, green and blue, all three normalised by the mean of ImageNet's means and deviations
    kernel = theirs.get_layer("stem_conv").get_weights()[0]
    scaled = np.repeat((grey - 0.449) / 0.226, 3, axis=3)
    expected = keras.ops.conv(np.pad(scaled, ((0, 0), (0, 1), (0, 1), (0, 0))), kernel, 2, "valid")
    np.testing.assert_allclose(stem, np.asarray(expected), rtol=1e-4, atol=1e-4)
    # and nearly what Keras makes of the grey picture, whose channels it normalises one by one
    keras_stem = np.asarray(cut(theirs, "stem_conv")(255 * np.repeat(grey, 3, axis=3)))
    assert np.corrcoef(stem.ravel(), keras_stem.ravel())[0, 1] > 0.99
    # all but the stem is copied
    np.testing.assert_array_equal(ours.get_layer("top_conv").get_weights(), theirs.get_layer("top_conv").get_weights())


def test_a_failed_download_says_what_to_do(monkeypatch):
    from keras.src.applications import efficientnet

    def fail(*_, **__):
        raise Exception("URL fetch failure on https://storage.googleapis.com/x: 403 -- Forbidden")  # as Keras does

    monkeypatch.setattr(efficientnet.file_utils, "get_file", fail)
    with pytest.raises(InputError, match=r"ImageNet weights of EfficientNet-B0: URL fetch failure.*: 403") as told:
        build_network("efficientnet_b0", channels=5, size=(SIDE, SIDE), weights="imagenet")
    assert "put efficientnetb0_notop.h5 of keras.applications in ~/.keras/models" in str(told.value)
    assert str(told.value).endswith("in ~/.keras/models, or set profile.weights to a file, or leave it out")


def test_a_crop_too_small_is_refused():
    with pytest.raises(InputError, match=r"at least 32 x 32 px, got 24 x 32; set crops\.size"):
        build_network("efficientnet_b0", channels=3, size=(24, 32))

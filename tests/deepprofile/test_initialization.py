"""What a training starts from. DeepProfiler's Cell Painting CNN is a file of its layout with random weights."""

import shutil

import keras
import numpy as np
import pytest
from keras import layers
from study_factory import configure

from cytominer_tools.errors import InputError
from deepprofile.initialization import freeze, initial_network
from deepprofile.networks import GROUP, build_network, weights_hash
from deepprofile.registry import register

# of Keras' saving, and of Keras with torch when a tensor becomes an array
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")
CHANNELS, SIDE, CLASSES = 5, 64, 4
PAINTED = {name: name for name in ("DNA", "RNA", "ER", "AGP", "Mito")}
B0 = {"network": "efficientnet_b0", "options": {}}


def study(root, *, init, **changes):
    return configure(root, train={"init": init, **changes.pop("train", {})}, **changes)


def small(root, init, classes=CLASSES, **changes):
    return initial_network(study(root, init=init, **changes), classes)


def kernel(model, layer):
    return model.get_layer(layer).get_weights()[0]


# --- random
def test_random_weights_are_those_of_the_seed(tmp_path):
    keras.utils.set_random_seed(7)  # nothing global counts
    first = small(tmp_path, "random")
    options = {"width": 4, "depth": 3}
    same = build_network("small_cnn", channels=3, size=(32, 32), classes=CLASSES, seed=3, **options)
    assert weights_hash(first) == weights_hash(same)
    assert first.output_shape == (None, CLASSES)
    assert weights_hash(small(tmp_path, "random", seed=4)) != weights_hash(first)


# --- ImageNet
def test_imagenet_weights_and_the_stem_that_is_asked_for(tmp_path):
    def build(*, channels, size, classes=None):
        x = inputs = keras.Input((*size, channels))
        x = layers.Dense(2, name="features")(layers.GlobalAveragePooling2D()(x))
        return keras.Model(inputs, layers.Dense(classes, name="logits")(x))

    def imagenet(model, stem):
        asked.append(stem)
        model.get_layer("features").set_weights([np.full((3, 2), 0.5), np.ones(2)])

    asked = []
    build.imagenet = imagenet
    register(GROUP, "painted", build)
    changes = {"profile": {"network": "painted", "options": {}}}
    model = small(tmp_path, "imagenet", **changes)
    np.testing.assert_array_equal(kernel(model, "features"), 0.5)
    np.testing.assert_array_equal(kernel(model, "logits"), kernel(small(tmp_path, "random", **changes), "logits"))
    small(tmp_path, "imagenet", **changes, train={"stem": "inflate"})
    assert asked == ["replicate", "inflate"]


def test_imagenet_weights_that_cannot_be_had(tmp_path, monkeypatch):
    with pytest.raises(
        InputError, match=r"^small_cnn has no ImageNet weights; set train\.init to random or to a file$"
    ):
        small(tmp_path, "imagenet")

    from keras.src.applications import efficientnet

    def fail(*_, **__):
        raise Exception("URL fetch failure on https://storage.googleapis.com/x: 403 -- Forbidden")  # as Keras does

    monkeypatch.setattr(efficientnet.file_utils, "get_file", fail)
    words = r"URL fetch failure.*in ~/\.keras/models, or set train\.init to random or to a file$"
    with pytest.raises(InputError, match=words):
        small(tmp_path, "imagenet", profile=B0)


# --- a file
@pytest.mark.parametrize("name", ["a.keras", "a.weights.h5"])
@pytest.mark.parametrize("classes", [CLASSES, 7])
def test_weights_of_a_file_and_a_head_of_other_classes(tmp_path, name, classes):
    donor = small(tmp_path, "random", classes, seed=9)
    {"a.keras": donor.save, "a.weights.h5": donor.save_weights}[name](tmp_path / name)
    model, untrained = small(tmp_path, name), small(tmp_path, "random")
    for layer in ("block1_conv", "block3_bn"):
        np.testing.assert_array_equal(kernel(model, layer), kernel(donor, layer))
    np.testing.assert_array_equal(kernel(model, "logits"), kernel(donor if classes == CLASSES else untrained, "logits"))


def test_no_such_file(tmp_path):
    with pytest.raises(
        InputError, match=r"w\.keras: no such weights file; set train\.init to random or to a file that"
    ):
        small(tmp_path, "w.keras")
    with pytest.raises(
        InputError, match=r"train\.init: 'imagnet' is neither random nor imagenet nor a file \(\.keras, "
    ):
        small(tmp_path, "imagnet")


# --- DeepProfiler's Cell Painting CNN
def peer_network(side, classes):
    """EfficientNet-B0 as the package efficientnet 1.1.1 builds it for DeepProfiler: no scaling, "same" padding."""

    def normalized(x, name, active=True):
        x = layers.BatchNormalization(name=f"{name}bn")(x)
        return layers.Activation("swish", name=f"{name}activation")(x) if active else x

    def block(x, name, size, stride, expand, filters):
        narrow = skip = x
        if expand > 1:
            x = layers.Conv2D(narrow.shape[-1] * expand, 1, padding="same", use_bias=False, name=f"{name}expand_conv")(
                x
            )
            x = normalized(x, f"{name}expand_")
        x = layers.DepthwiseConv2D(size, stride, padding="same", use_bias=False, name=f"{name}dwconv")(x)
        x = normalized(x, name)
        gate = layers.GlobalAveragePooling2D(name=f"{name}se_squeeze")(x)
        gate = layers.Reshape((1, 1, x.shape[-1]), name=f"{name}se_reshape")(gate)
        gate = layers.Conv2D(narrow.shape[-1] // 4, 1, activation="swish", name=f"{name}se_reduce")(gate)
        gate = layers.Conv2D(x.shape[-1], 1, activation="sigmoid", name=f"{name}se_expand")(gate)
        x = layers.multiply([x, gate], name=f"{name}se_excite")
        x = layers.Conv2D(filters, 1, padding="same", use_bias=False, name=f"{name}project_conv")(x)
        x = normalized(x, f"{name}project_", active=False)
        return layers.add([x, skip], name=f"{name}add") if stride == 1 and skip.shape[-1] == filters else x

    inputs = keras.Input((side, side, CHANNELS))
    x = layers.Conv2D(32, 3, 2, padding="same", use_bias=False, name="stem_conv")(inputs)
    x = normalized(x, "stem_")
    stages = ((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112))
    stages += ((4, 5, 2, 6, 192), (1, 3, 1, 6, 320))
    for number, (repeats, size, stride, expand, filters) in enumerate(stages, 1):
        for repeat in range(repeats):
            name = f"block{number}{'abcd'[repeat]}_"
            x = block(x, name, size, 1 if repeat else stride, expand, filters)
    x = layers.Conv2D(1280, 1, padding="same", use_bias=False, name="top_conv")(x)
    x = layers.GlobalAveragePooling2D(name="pool5")(normalized(x, "top_"))
    return keras.Model(inputs, layers.Dense(classes, activation="softmax", name="ClassProb")(x))


def draw_weights(model):
    """Weights that keep activations alive, and means and variances that are not those of a new network."""
    rng = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            width = layer.gamma.shape[0]
            values = [rng.uniform(*ends, width) for ends in ((0.5, 1.5), (-0.5, 0.5), (-0.2, 0.2), (0.5, 1.5))]
            layer.set_weights(values)
        elif layer.weights:
            shape = layer.get_weights()[0].shape
            fan = np.prod(shape[:2] if isinstance(layer, layers.DepthwiseConv2D) else shape[:-1])
            values = [rng.normal(0, (2 / fan) ** 0.5, shape)]
            layer.set_weights(values + [rng.normal(0, 0.3, w.shape) for w in layer.get_weights()[1:]])


def write_legacy(model, path):
    """What Keras 2 wrote with save_weights: a group a layer, names in attributes."""
    import h5py

    bn = ["gamma:0", "beta:0", "moving_mean:0", "moving_variance:0"]
    with h5py.File(path, "w") as file:
        file.attrs.update({"layer_names": [layer.name.encode() for layer in model.layers], "backend": b"tensorflow"})
        file.attrs["keras_version"] = b"2.5.0"
        for layer in model.layers:
            kernel = "depthwise_kernel:0" if isinstance(layer, layers.DepthwiseConv2D) else "kernel:0"
            names = bn if isinstance(layer, layers.BatchNormalization) else [kernel, "bias:0"]
            names = [f"{layer.name}/{name}" for name in names[: len(layer.get_weights())]]
            group = file.create_group(layer.name)
            group.attrs["weight_names"] = [name.encode() for name in names]
            for name, values in zip(names, layer.get_weights(), strict=True):
                group[name] = values


@pytest.fixture(scope="module")
def peer(tmp_path_factory):
    """DeepProfiler's network, and the file of its weights."""
    model, path = peer_network(SIDE, 490), tmp_path_factory.mktemp("cpcnn") / "Cell_Painting_CNN_v1.hdf5"
    draw_weights(model)
    write_legacy(model, path)
    return model, path


@pytest.fixture(scope="module")
def cell_painting(peer, tmp_path_factory):
    """Our network of five channels with those weights."""
    root = tmp_path_factory.mktemp("study")
    return small(root, str(peer[1]), channels=PAINTED, crops={"size": SIDE}, profile=B0)


def test_the_cell_painting_cnn_gives_the_features_that_deepprofiler_reads(peer, cell_painting):
    def features(model, pooled):
        outputs = [model.get_layer(name).output for name in ("block6a_activation", pooled)]
        cut = keras.Model(model.input, outputs)
        cut.compile(jit_compile=False if keras.backend.backend() == "tensorflow" else "auto")
        before, after = cut.predict_on_batch(x)
        return before.mean(axis=(1, 2)), after

    x = np.random.default_rng(1).random((3, SIDE, SIDE, CHANNELS), np.float32)
    for theirs, ours, width in zip(
        features(peer[0], "pool5"), features(cell_painting, "features"), (672, 1280), strict=True
    ):
        assert theirs.shape == (3, width)
        assert np.ptp(theirs, axis=0).max() > 0.01
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)


def test_all_of_it_but_its_head_is_taken_over(peer, cell_painting, tmp_path):
    weighted = [layer.name for layer in peer[0].layers if layer.weights]
    assert len(weighted) == 131
    for name in weighted[:-1]:
        for ours, theirs in zip(
            cell_painting.get_layer(name).get_weights(), peer[0].get_layer(name).get_weights(), strict=True
        ):
            np.testing.assert_array_equal(ours, theirs)
    head = build_network("efficientnet_b0", channels=CHANNELS, size=(SIDE, SIDE), classes=CLASSES, seed=3)
    np.testing.assert_array_equal(kernel(cell_painting, "logits"), kernel(head, "logits"))


def test_the_cell_painting_cnn_in_a_study_of_three_channels(peer, tmp_path):
    words = (
        r"Cell_Painting_CNN_v1\.hdf5 was trained on the channels DNA, RNA, ER, AGP, Mito, in this order \(the order of "
        r"Cell Painting CNN v1\); study\.yaml has DNA, ER, Mito: write `channels` in that order"
    )
    with pytest.raises(InputError, match=words):
        small(tmp_path, str(peer[1]), profile=B0)
    words = (
        r"renamed\.hdf5: 1 layer\(s\) of efficientnet_b0 are absent .* first 'stem_conv'; "
        r"it has \(3, 3, 5, 32\) there, \(3, 3, 3, 32\) here; check profile\.network, its options and the number of"
    )
    renamed = shutil.copy(peer[1], tmp_path / "renamed.hdf5")
    with pytest.raises(InputError, match=words):
        small(tmp_path, str(renamed), profile=B0)


def test_the_cell_painting_cnn_in_another_network(peer, tmp_path):
    renamed = shutil.copy(peer[1], tmp_path / "renamed.hdf5")
    with pytest.raises(
        InputError, match=r"6 layer\(s\) of small_cnn are absent .* first 'block1_conv'; it has nothing"
    ):
        small(tmp_path, str(renamed))


# --- frozen layers
def test_frozen_layers_stay_as_they_are(tmp_path):
    model = small(tmp_path, "random")
    before = weights_hash(model)
    # block 1: 3 x 3 x 3 x 4 and two of 4; block 2: 3 x 3 x 4 x 8 and two of 8
    assert freeze(model, "block2_activation") == 108 + 8 + 288 + 16
    assert weights_hash(model) == before
    old = {layer.name: layer.get_weights() for layer in model.layers}
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), loss, jit_compile=False)
    rng = np.random.default_rng(0)
    model.train_on_batch(rng.random((8, 32, 32, 3), np.float32), np.arange(8) % CLASSES)
    for layer in model.layers:
        changed = [not np.array_equal(new, was) for new, was in zip(layer.get_weights(), old[layer.name], strict=True)]
        frozen = layer.name.startswith(("block1", "block2"))  # their running means and variances too
        assert not any(changed) if frozen else all(changed), layer.name


def test_only_what_a_layer_depends_on_is_frozen():
    inputs = keras.Input((4,))
    left, right = (layers.Dense(3, name=name)(inputs) for name in ("left", "right"))
    both = layers.Dense(2, name="logits")(layers.concatenate([left, right]))
    model = keras.Model(inputs, both)
    assert freeze(model, "right") == 15
    assert [layer.name for layer in model.layers if layer.trainable_weights] == ["left", "logits"]


def test_a_layer_that_cannot_be_frozen(tmp_path):
    model = small(tmp_path, "random")
    words = r"train\.freeze: small_cnn has no layer 'block2'; did you mean block\d_\w+, "
    with pytest.raises(InputError, match=words):
        freeze(model, "block2")
    with pytest.raises(InputError, match="no layer 'stem'; it begins with crops, block1_conv, block1_bn"):
        freeze(model, "stem")
    with pytest.raises(InputError, match=r"train\.freeze: nothing is trained after 'logits', .*name one before it"):
        freeze(model, "logits")

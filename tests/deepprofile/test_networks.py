import keras
import numpy as np
import pytest

from cytominer_tools.errors import InputError
from deepprofile.networks import GROUP, build_network, initialize, load_weights, weights_hash
from deepprofile.registry import package, register

# of keras.Model.save and save_weights
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")
SMALL = {"width": 4, "depth": 2}
X = np.random.default_rng(0).random((3, 16, 16, 2), np.float32)


def small(seed=0, channels=2, **options):
    return build_network("small_cnn", channels=channels, size=(16, 16), seed=seed, **SMALL, **options)


def output(model):
    return np.asarray(model(X))


def save_legacy(model, path):
    """As Keras 2 wrote it: groups named after the layers, matched by name."""
    import h5py
    from keras.src.legacy.saving.legacy_h5_format import save_weights_to_hdf5_group

    with h5py.File(path, "w") as file:
        save_weights_to_hdf5_group(file, model)


# --- found by name
def test_one_of_ones_own():
    def build(*, channels, size, classes=None, units=5):
        inputs = keras.Input((*size, channels))
        x = keras.layers.GlobalAveragePooling2D()(inputs)
        x = keras.layers.Dense(units, name="features")(x)
        return keras.Model(inputs, x if classes is None else keras.layers.Dense(classes, name="logits")(x), name="mine")

    register(GROUP, "mine", build)
    assert package(GROUP, "mine") == "this process"
    assert output(build_network("mine", channels=2, size=(16, 16), units=7)).shape == (3, 7)
    assert output(build_network("mine", channels=2, size=(16, 16), classes=4)).shape == (3, 4)


def test_unknown_name_and_option():
    with pytest.raises(InputError, match=r"plugin is called 'smal_cnn'; installed: .*small_cnn"):
        build_network("smal_cnn", channels=1, size=(16, 16))
    with pytest.raises(InputError, match=r"small_cnn: .*'widht'; `deepprofile models` lists its options"):
        build_network("small_cnn", channels=1, size=(16, 16), widht=3)
    with pytest.raises(InputError, match=r"small_cnn has no ImageNet weights; set profile\.weights to a file"):
        build_network("small_cnn", channels=1, size=(16, 16), weights="imagenet")


# --- untrained weights
def test_untrained_weights_come_from_the_seed():
    assert weights_hash(small(1)) == weights_hash(small(1)) != weights_hash(small(2))
    keras.utils.set_random_seed(5)  # nothing global counts
    assert weights_hash(small(1)) == weights_hash(small(1))
    np.testing.assert_array_equal(output(small(1)), output(small(1)))


def test_golden_hash():
    assert weights_hash(small(0)) == "d669b14ef0002153"  # the same on every machine and backend


def test_variance_is_two_over_fan_in():
    inputs = keras.Input((8, 8, 40))
    x = keras.layers.Conv2D(60, 3, name="conv")(inputs)
    x = keras.layers.DepthwiseConv2D(5, depth_multiplier=8, padding="same", name="depthwise")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, keras.layers.Dense(50, name="dense")(x))
    model.get_layer("dense").bias.assign(np.full(50, 0.25))
    initialize(model, 0)
    for name, fan in (("conv", 9 * 40), ("depthwise", 25), ("dense", 480)):
        kernel = np.asarray(model.get_layer(name).get_weights()[0])
        assert kernel.var() == pytest.approx(2 / fan, rel=0.05)
        assert kernel.mean() == pytest.approx(0, abs=5 * np.sqrt(2 / fan / kernel.size))
    np.testing.assert_array_equal(model.get_layer("dense").get_weights()[1], 0.25)


def test_the_hash_sees_one_weight_and_its_place():
    model = small()
    before = weights_hash(model)
    assert len(before) == 16
    kernel = model.get_layer("block1_conv").kernel
    values = np.array(kernel.numpy())
    values[0, 0, 0, 0] += 1e-3
    kernel.assign(values)
    assert weights_hash(model) != before
    kernel.assign(values[..., ::-1])
    assert weights_hash(model) not in (before, weights_hash(small()))


# --- weights from a file
@pytest.mark.parametrize("name", ["a.keras", "a.weights.h5", "a.h5", "a.hdf5"])
@pytest.mark.parametrize("classes", [None, 3])
def test_weights_come_back_from_a_file(tmp_path, name, classes):
    donor, path = small(7, classes=classes), tmp_path / name
    donor.get_layer("block1_bn").moving_mean.assign(np.linspace(0, 1, 4))
    if name == "a.keras":
        donor.save(path)
    elif name == "a.weights.h5":
        donor.save_weights(path)
    else:
        save_legacy(donor, path)
    model = small(weights=path)
    features = keras.Model(donor.input, donor.get_layer("features").output)
    np.testing.assert_array_equal(output(model), output(features))


@pytest.mark.parametrize("name", ["a.keras", "a.weights.h5", "a.h5"])
def test_a_head_of_other_classes_is_left_untrained(tmp_path, name):
    donor, path = small(7, classes=3), tmp_path / name
    {"a.keras": donor.save, "a.weights.h5": donor.save_weights}.get(name, lambda p: save_legacy(donor, p))(path)
    model = small(weights=path, classes=5)
    np.testing.assert_array_equal(model.get_layer("block2_conv").kernel, donor.get_layer("block2_conv").kernel)
    assert output(model).shape == (3, 5)
    np.testing.assert_array_equal(model.get_layer("logits").kernel, small(classes=5).get_layer("logits").kernel)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("a.keras", r"first 'block1_conv'; it has \(3, 3, 5, 4\) there, \(3, 3, 2, 4\) here; .*number of channels"),
        (
            "a.weights.h5",
            r"does not fit small_cnn: .*block1_conv.*\(3, 3, 5, 4\).*; check profile\.network and channels",
        ),
        ("a.h5", r"first 'block1_conv'; it has \(3, 3, 5, 4\) there, \(3, 3, 2, 4\) here; .*number of channels"),
    ],
)
def test_other_channels_do_not_fit(tmp_path, name, words):
    donor, path = small(channels=5), tmp_path / name
    {"a.keras": donor.save, "a.weights.h5": donor.save_weights}.get(name, lambda p: save_legacy(donor, p))(path)
    with pytest.raises(InputError, match=words) as told:
        small(weights=path)
    assert str(told.value).startswith(str(path))
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("name", ["a.keras", "a.weights.h5", "a.h5"])
def test_another_depth_does_not_fit(tmp_path, name):
    donor, path = build_network("small_cnn", channels=2, size=(16, 16), width=4, depth=1), tmp_path / name
    {"a.keras": donor.save, "a.weights.h5": donor.save_weights}.get(name, lambda p: save_legacy(donor, p))(path)
    with pytest.raises(InputError, match="small_cnn") as told:
        small(weights=path)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("name", ["a.keras", "a.weights.h5", "a.h5", "a.hdf5"])
def test_a_damaged_file(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"\x89HDF\r\n\x1a\n and then noise")
    with pytest.raises(InputError, match="does not fit small_cnn: ") as told:
        small(weights=path)
    assert str(told.value).startswith(str(path))
    assert "\n" not in str(told.value)


def test_no_file_and_no_weights_file(tmp_path):
    with pytest.raises(InputError, match=r"a\.keras: no such weights file; .*, and left out for none"):
        small(weights=tmp_path / "a.keras")
    (tmp_path / "a.ckpt").touch()
    with pytest.raises(InputError, match=r"a\.ckpt: expected a \.keras, \.weights\.h5, \.h5 or \.hdf5 file"):
        small(weights=tmp_path / "a.ckpt")


def test_nothing_in_a_file_is_executed(tmp_path):
    ran = []
    inputs = keras.Input((16, 16, 2))
    model = keras.Model(inputs, keras.layers.Lambda(lambda x: ran.append(1) or x)(inputs))
    ran.clear()
    model.save(tmp_path / "evil.keras")
    with pytest.raises(InputError, match=r"evil\.keras: .*Lambda"):
        load_weights(small(), tmp_path / "evil.keras")
    assert not ran


def test_weights_that_link_to_another_file_are_refused(tmp_path):
    import h5py

    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["x"] = [1.0]
    with h5py.File(tmp_path / "w.h5", "w") as file:
        file.attrs["layer_names"] = ["block1_conv"]
        file["block1_conv"] = h5py.ExternalLink("secret.h5", "x")
    with pytest.raises(InputError, match="'block1_conv' is a link to elsewhere; save the weights into one file"):
        build_network("small_cnn", channels=2, size=(16, 16), weights=tmp_path / "w.h5")

import json
import math
import zipfile
from importlib.util import find_spec

import keras
import numpy as np
import pytest

from cytominer_tools.errors import InputError
from deepprofile import runtimes
from deepprofile.extractor import feature_network
from deepprofile.networks import build_network, weights_hash
from deepprofile.runtimes import exported_runtime, keras_runtime, require_runtime, runtime_versions

LAYERS = ("block1_activation", "features")


def installed(runtime):
    missing = [name for name in runtimes.EXTRAS[runtime] if find_spec(name) is None]
    return pytest.param(
        runtime, marks=pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} is not installed")
    )


EXPORTED = [installed(name) for name in runtimes.EXTRAS]


@pytest.fixture(scope="module")
def network():
    model = build_network("small_cnn", channels=3, size=(16, 16), seed=1, width=4, depth=2)
    rng = np.random.default_rng(0)
    for layer in model.layers:  # a normalization that does something
        if layer.name.endswith("_bn"):
            layer.set_weights([rng.uniform(0.5, 1.5, v.shape) for v in layer.get_weights()])
    return feature_network(model, LAYERS)


@pytest.fixture(scope="module")
def crops():
    return np.random.default_rng(0).random((21, 16, 16, 3), np.float32)


def exported(network, folder, runtime, batch=21, precision="float32", name="tiny"):
    about = {"weights_hash": weights_hash(network)}
    pixels = math.prod(network.input_shape[1:3])
    return exported_runtime(network, batch, runtime, precision, pixels=pixels, folder=folder, name=name, about=about)


def plain(network, crops):
    """By Keras, as a list."""
    found = network.predict_on_batch(crops)
    return found if isinstance(found, list) else [found]


# --- parity with Keras' predict
def test_keras_equals_predict(network, crops):
    found = keras_runtime(network, crops.shape)(crops)
    assert [features.shape for features in found] == [(21, 4), (21, 8)]
    for ours, theirs in zip(found, plain(network, crops), strict=True):
        assert ours.dtype == np.float32
        assert np.abs(theirs).max() > 0.1
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("runtime", EXPORTED)
@pytest.mark.parametrize("batch", [21, 3])  # whole parts and the rest of one; less than a part
def test_exported_equals_predict(network, crops, tmp_path, runtime, batch):
    run = exported(network, tmp_path, runtime, batch)
    found = run(crops[:batch])
    for ours, theirs in zip(found, plain(network, crops[:batch]), strict=True):
        assert (ours.shape, ours.dtype) == (theirs.shape, np.float32)
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("runtime", EXPORTED)
def test_zeros_and_strided_crops_are_crops_too(network, crops, tmp_path, runtime):
    run = exported(network, tmp_path, runtime)
    for batch in (np.zeros_like(crops), crops[::-1, :, ::-1]):
        for ours, theirs in zip(run(batch), plain(network, batch), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("runtime", EXPORTED)
def test_the_features_of_a_batch_outlive_the_next(network, crops, tmp_path, runtime):
    run = exported(network, tmp_path, runtime)
    first = run(crops)
    kept = [features.copy() for features in first]
    run(np.zeros_like(crops))
    for a, b in zip(first, kept, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("runtime", EXPORTED)
def test_layers_that_networks_are_made_of(tmp_path, runtime):
    """Strides, padding of one side, depthwise kernels, swish, squeezing and exciting."""
    inputs = x = keras.Input((17, 17, 2))
    x = keras.layers.Rescaling(255.0)(x)
    x = keras.layers.Conv2D(6, 3, strides=2, padding="same", activation="swish")(x)
    x = keras.layers.DepthwiseConv2D(3, strides=2, padding="same", name="wide")(x)
    squeezed = keras.layers.Reshape((1, 1, 6))(keras.layers.GlobalAveragePooling2D()(x))
    x = keras.layers.Multiply()([x, keras.layers.Conv2D(6, 1, activation="sigmoid")(squeezed)])
    x = keras.layers.Dense(3, name="features")(keras.layers.GlobalMaxPooling2D()(x))
    network = feature_network(keras.Model(inputs, x), ("wide", "features"))
    crops = np.random.default_rng(0).random((4, 17, 17, 2), np.float32)
    for ours, theirs in zip(exported(network, tmp_path, runtime, 4)(crops), plain(network, crops), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4 * np.abs(theirs).max())


def test_no_more_than_a_part_a_core(network, crops, tmp_path, monkeypatch):
    """However many cores there are, and however the cells fall on them."""
    if find_spec("onnxruntime") is None:
        pytest.skip("onnxruntime is not installed")
    for cores in (1, 3, 64):
        monkeypatch.setattr(runtimes, "workers", lambda cores=cores: cores)
        found = exported(network, tmp_path, "onnx")(crops)
        np.testing.assert_allclose(found[1], plain(network, crops)[1], rtol=1e-4, atol=1e-5)


# --- the exported file
@pytest.mark.parametrize("runtime", EXPORTED)
def test_an_export_is_used_again(network, crops, tmp_path, runtime, monkeypatch):
    found = exported(network, tmp_path, runtime)(crops)
    (path,) = tmp_path.iterdir()
    before = path.stat().st_mtime_ns
    monkeypatch.setattr(runtimes, "frozen_graph", None)  # nothing can be exported any more
    again = exported(network, tmp_path, runtime)(crops)
    assert path.stat().st_mtime_ns == before
    for a, b in zip(found, again, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


@pytest.mark.parametrize("runtime", EXPORTED)
def test_other_weights_or_layers_are_another_export(crops, tmp_path, runtime):
    names = set()
    for seed, layers in ((1, ("features",)), (2, ("features",)), (2, ("block1_activation",))):
        model = build_network("small_cnn", channels=3, size=(16, 16), seed=seed, width=4, depth=2)
        network = feature_network(model, layers)
        (found,) = exported(network, tmp_path, runtime)(crops)
        np.testing.assert_allclose(found, plain(network, crops)[0], rtol=1e-4, atol=1e-5)
        (path,) = tmp_path.glob("tiny-*")  # that of the old weights is gone
        names.add(path.name)
        (tmp_path / f"other-{runtime}-0123456789abcdef.zip").touch()
    assert len(names) == 3
    assert (tmp_path / f"other-{runtime}-0123456789abcdef.zip").exists()  # of another model


@pytest.mark.parametrize("runtime", EXPORTED)
def test_an_export_of_old_weights_under_this_name_is_refused(network, tmp_path, runtime):
    exported(network, tmp_path, runtime)
    (path,) = tmp_path.iterdir()
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    about = json.loads(files["about.json"])
    assert about["shape"] == [16, 16, 3]
    assert set(about["versions"]) == {"keras", "tensorflow", *runtimes.EXTRAS[runtime]}
    files["about.json"] = json.dumps(about | {"weights_hash": "old"}).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    with pytest.raises(InputError, match=r"holds another network than its name says \(weights_hash: old -> .*delete"):
        exported(network, tmp_path, runtime)


def truncated(data):
    return data[: len(data) // 2]


def flipped(data):
    at = len(data) // 2
    return data[:at] + bytes([data[at] ^ 255]) + data[at + 1 :]


@pytest.mark.parametrize("runtime", EXPORTED)
@pytest.mark.parametrize("damage", [truncated, flipped, lambda data: b""])
def test_a_damaged_export_is_named(network, tmp_path, runtime, damage):
    exported(network, tmp_path, runtime)
    (path,) = tmp_path.iterdir()
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=r"tiny-.*zip: the exported network cannot be read \(.*\); delete it, and it"):
        exported(network, tmp_path, runtime)
    path.unlink()
    exported(network, tmp_path, runtime)


# --- precision
@pytest.mark.skipif(find_spec("openvino") is None, reason="openvino is not installed")
def test_bfloat16_by_openvino_where_the_cpu_has_it(network, crops, tmp_path):
    import openvino

    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this CPU has no bfloat16")
    require_runtime("openvino", "bfloat16")
    exact = exported(network, tmp_path, "openvino")(crops)
    near = exported(network, tmp_path, "openvino", precision="bfloat16")(crops)
    assert len(list(tmp_path.iterdir())) == 1  # one file for all precisions
    for a, b, c in zip(exact, near, plain(network, crops), strict=True):
        assert np.abs(a - c).max() < 1e-4 * np.abs(c).max()  # float32 stays float32
        assert 1e-4 * np.abs(c).max() < np.abs(b - c).max() < 0.05 * np.abs(c).max()


def test_precisions_that_cannot_be_had_are_refused(monkeypatch):
    monkeypatch.setattr(runtimes, "device_names", list)
    with pytest.raises(InputError, match=r"float16 with the runtime keras needs a GPU, and .* sees none; set bfloat16"):
        require_runtime("keras", "float16")
    monkeypatch.setattr(runtimes, "device_names", lambda: ["gpu:0"])
    require_runtime("keras", "float16")
    monkeypatch.setattr(runtimes, "find_spec", lambda name: True)
    for precision in ("float16", "bfloat16"):
        with pytest.raises(InputError, match=f"ONNX Runtime computes in float32 whatever it is given, got {precision}"):
            require_runtime("onnx", precision)


def test_openvino_is_asked_what_the_cpu_has(monkeypatch):
    openvino = pytest.importorskip("openvino")

    class Core:
        def get_property(self, device, name):
            return ["FP32"]

    monkeypatch.setattr(openvino, "Core", Core)
    with pytest.raises(InputError, match="this CPU has no instructions for bfloat16; set float32, or run where it has"):
        require_runtime("openvino", "bfloat16")
    require_runtime("openvino", "float32")


# --- what is not there
@pytest.mark.parametrize(
    ("runtime", "words"),
    [
        ("onnx", r"onnx needs onnxruntime and tf2onnx: python -m pip install 'deepprofile\[onnx\]'"),
        ("openvino", r"openvino needs openvino: python -m pip install 'deepprofile\[openvino\]'"),
    ],
)
def test_a_missing_extra_names_its_command(monkeypatch, runtime, words):
    monkeypatch.setattr(runtimes, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=words):
        require_runtime(runtime, "float32")


def test_another_backend_cannot_export(monkeypatch):
    monkeypatch.setattr(runtimes, "find_spec", lambda name: True)
    monkeypatch.setattr(keras.backend, "backend", lambda: "torch")
    with pytest.raises(InputError, match="onnx takes networks from TensorFlow, and KERAS_BACKEND is torch; leave"):
        require_runtime("onnx", "float32")


def test_versions_are_those_of_what_computes():
    assert set(runtime_versions("keras")) == {"tensorflow"}
    if find_spec("openvino"):
        assert set(runtime_versions("openvino")) == {"openvino"}

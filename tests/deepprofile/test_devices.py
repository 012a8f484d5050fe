"""Several devices, as logical CPUs: they must be set up before the backend starts, so this file is also a script."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from cytominer_tools.errors import InputError
from deepprofile.study import Augment, Train

CASES = {
    "sgd": {"l2": 0.05, "clip": 0.05},
    "adamw": {"optimizer": "adamw", "weight_decay": 0.1, "l2": 0.05, "ema": 0.5},
    "overflow": {"precision": "mixed_float16", "clip": 0.05, "l2": 0},
}
STEPS, BATCH, CLASSES, SHAPE = 3, 8, 3, (8, 8, 2)


def run(*arguments, backend="tensorflow"):
    """This file as a script with two logical CPUs; what it prints last, as JSON."""
    environment = {
        **os.environ,
        "KERAS_BACKEND": backend,
        "CUDA_VISIBLE_DEVICES": "-1",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    command = [sys.executable, __file__, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module", params=["tensorflow", "jax"])
def compared(request):
    if not find_spec(request.param):
        pytest.skip(f"{request.param} is not installed")
    return run("compare", backend=request.param)


# --- property: two devices do what one does
@pytest.mark.parametrize("case", CASES)
def test_two_devices_train_as_one_does(compared, case):
    if case not in compared:
        pytest.skip("not with this backend")
    found = compared[case]
    assert found["devices"] == 2
    assert found["moved"] > 1e-3
    half = 50 if case == "overflow" else 1  # which has three digits
    assert found["weights"] < half * 1e-6
    assert found["accuracy"] == 0
    assert found["loss"] < 1e-5
    assert found["logits"] < half * 1e-5


def test_a_state_loaded_two_devices_goes_on(compared):
    assert compared["resumed"] == {"weights": 0, "optimizer": 0}
    assert compared["on one"] == 0


@pytest.mark.slow
def test_a_whole_training(located, tmp_path):
    """Two devices end where one does, and where they would have ended had they not been stopped."""
    import keras
    from study_factory import configure

    from deepprofile.export import export_crops
    from deepprofile.registry import register
    from deepprofile.training import train_network

    settings = {
        "train": {"init": "random", "epochs": 3, "batch": 16, "split": "site", "min_cells": 1, "track": []},
        "profile": {"network": "plain", "options": {}, "weights": "trained"},
    }
    settings["train"] |= {"clip": 0.5, "augment": {"mixup": 0}}
    study = configure(located.root, **settings)
    export_crops(study)
    places = {name: tmp_path / name for name in ("two", "stopped")}
    for place in places.values():
        shutil.copytree(study.root, place)
    register("deepprofile.networks", "plain", plain)
    train_network(study)
    assert run("train", *places.values()) == {"stopped_after": 1}
    one, two, stopped = (
        keras.saving.load_model(root / "models/trained/model.keras", compile=False).get_weights()
        for root in (study.root, *places.values())
    )
    for a, b, c in zip(one, two, stopped, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-4)  # three epochs make more of what is rounded otherwise
        np.testing.assert_array_equal(b, c)


# --- what a batch must be
def three():
    from deepprofile.devices import Replicas

    devices = Replicas()
    devices.number = 3
    return devices


def test_one_device_takes_what_there_is():
    from deepprofile.devices import Replicas

    assert [Replicas().batch(64, cells) for cells in (1, 63, 64, 65)] == [1, 63, 64, 64]


def test_a_batch_is_shared_evenly():
    assert [three().batch(66, cells) for cells in (3, 65, 66, 1000)] == [3, 63, 66, 66]
    with pytest.raises(InputError, match=r"train\.batch: 64 cells cannot be shared evenly by 3 devices; make it 63 or"):
        three().batch(64, 1000)
    with pytest.raises(InputError, match=r"make it 3, or hide devices \(CUDA_VISIBLE_DEVICES\)"):
        three().batch(2, 1000)
    with pytest.raises(InputError, match="an epoch has 2 cells, fewer than the 3 devices"):
        three().batch(66, 2)


class Store:
    """What `Batches` needs of a crop store."""

    scaled, shape = True, SHAPE

    def __getitem__(self, rows):
        return np.random.default_rng(0).integers(0, 256, (100, *SHAPE)).astype(np.uint8)[rows]


def batches(shares, **augment):
    from deepprofile.batches import Batches
    from deepprofile.soft_labels import Targets

    targets = Targets(np.arange(100) % CLASSES, CLASSES, 0.1)
    return Batches(Store(), targets, np.array([0.5, 1, 2], np.float32), Augment(**augment), 5, shares)


def test_crops_are_mixed_on_their_device():
    rows = np.arange(40)
    whole, parts = (batches(shares, mixup=0.4).read(1, 0, rows) for shares in (1, 4))
    partner = parts[0]["partner"]
    assert sorted(partner) == list(range(40))
    np.testing.assert_array_equal(partner // 10, np.arange(40) // 10)
    assert sorted(whole[0]["partner"]) == list(range(40))
    assert (whole[0]["partner"] // 10 != np.arange(40) // 10).any()
    for name in whole[0].keys() - {"partner"}:
        np.testing.assert_array_equal(whole[0][name], parts[0][name])
    onehot = 0.9 * np.eye(CLASSES)[rows % CLASSES] + 0.1 / CLASSES
    share = parts[0]["share"][:, None]
    np.testing.assert_allclose(parts[1], share * onehot + (1 - share) * onehot[partner], rtol=1e-5)


# --- errors and words
def test_torch_trains_on_one_device(caplog, monkeypatch):
    import keras

    from deepprofile.devices import Replicas, replicas

    monkeypatch.setattr(keras.backend, "backend", lambda: "torch")
    caplog.set_level("INFO", "deepprofile")
    assert type(replicas()) is Replicas
    assert "on one device, as always with the backend torch" in caplog.text


# --- the script
def plain(*, channels, size, classes=None):
    """A network without batch normalization, whose mean would be that of a device's share."""
    import keras
    from keras import layers

    inputs = keras.Input((*size, channels))
    x = layers.Conv2D(6, 3, strides=2, activation="relu", name="conv")(inputs)
    x = layers.GlobalAveragePooling2D(dtype="float32", name="features")(x)
    return keras.Model(inputs, x if classes is None else layers.Dense(classes, dtype="float32", name="logits")(x))


def with_state():
    """A network that keeps more than its weights: moving averages, and the state of what drops units."""
    import keras
    from keras import layers

    inputs = keras.Input(SHAPE)
    x = layers.Conv2D(4, 3, use_bias=False, name="conv")(inputs)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.Dropout(0.5, seed=3)(layers.GlobalAveragePooling2D(name="features")(x))
    return keras.Model(inputs, layers.Dense(CLASSES, name="logits")(x))


def made(devices, settings, build):
    """(network, trainee) as a training makes them, the first weights from one seed."""
    import keras

    from deepprofile.networks import initialize
    from deepprofile.trainee import Trainee, compile_trainee, jit_compile

    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy(settings.precision)
    with devices.scope():
        network = build()
        network.compile(jit_compile=jit_compile())
        initialize(network, 1)
    keras.config.set_dtype_policy("float32")
    trainee = Trainee(network, augment=bool(settings.augment), l2=settings.l2)
    with devices.scope():
        compile_trainee(trainee, settings, CLASSES)
        devices.agree(trainee.optimizer)
    return network, trainee


def epoch(devices, trainee, number, bright=None):
    """One epoch of as many batches; bright : what the second half of the second batch is multiplied by."""
    from deepprofile.training import fit_epoch

    rows = np.random.default_rng([7, number]).permutation(100)[: STEPS * BATCH].reshape(STEPS, BATCH)

    # mixed in two parts for one device too: that decides what is mixed, not who does it
    source = batches(2, mixup=0.3, jitter=0.1, crop=1, rotate=False)

    def read(at):
        drawn, *rest = source.read(number, at, rows[at])
        if bright and at == 1:
            drawn["gain"][BATCH // 2 :] *= bright
        return drawn, *rest

    return fit_epoch(trainee, read, STEPS, devices=devices)


def values(variables):
    import keras

    return [np.array(keras.ops.convert_to_numpy(v.value), np.float64) for v in variables]


def difference(these, others):
    return max(float(np.abs(a - b).max()) for a, b in zip(these, others, strict=True))


def trained(devices, settings, bright):
    from deepprofile.trainee import predict_logits

    network, trainee = made(devices, settings, lambda: plain(channels=SHAPE[-1], size=SHAPE[:2], classes=CLASSES))
    start = values(network.variables)
    logs = epoch(devices, trainee, 0, bright)
    crops = Store()[np.arange(5)].astype(np.float32) / 255
    with devices.scope():
        logits = predict_logits(network, crops, BATCH, devices.share)
    assert logits.shape == (5, CLASSES)
    return values(network.variables), logs, logits, start


def compare():
    """How far two devices and one are apart, for each case; and a training that goes on from what it saved."""
    import tempfile

    import keras

    from deepprofile.checkpoints import load_state, save_state
    from deepprofile.devices import Replicas, replicas

    two = replicas("CPU")
    found = {}
    for name, changes in CASES.items():
        if "ema" in changes and keras.backend.backend() == "jax":
            continue
        settings = Train(**changes)
        bright = 1e9 if name == "overflow" else None
        (one, logs, logits, start), (both, their_logs, their_logits, _) = (
            trained(devices, settings, bright) for devices in (Replicas(), two)
        )
        found[name] = {
            "devices": two.number,
            "moved": difference(one, start),
            "weights": difference(one, both),
            "accuracy": abs(logs["accuracy"] - their_logs["accuracy"]),
            "loss": 0 if bright else abs(logs["loss"] - their_logs["loss"]),
            "logits": difference([logits], [their_logits]),
        }
    settings = Train(optimizer="adamw", clip=0.5)
    ends = []
    with tempfile.TemporaryDirectory() as folder:
        for saved in (False, True):
            network, trainee = made(two, settings, with_state)
            if saved:
                load_state(Path(folder) / "state_0001", trainee)
            else:
                epoch(two, trainee, 0)
                save_state(Path(folder), trainee, [{}], None, "", {})
            epoch(two, trainee, 1)
            ends.append((values(network.variables), values(trainee.optimizer.variables)))
        loaded = []
        for devices in (two, Replicas()):
            network, trainee = made(devices, settings, with_state)
            load_state(Path(folder) / "state_0001", trainee)
            loaded.append(values([*trainee.variables, *trainee.optimizer.variables]))
    found["on one"] = difference(*loaded)
    found["resumed"] = dict(zip(("weights", "optimizer"), map(difference, *ends), strict=True))
    return found


def train(whole, stopped):
    """Train the studies in two folders on two devices, the second after a stop in its second epoch."""
    from deepprofile import training
    from deepprofile.batches import Batches
    from deepprofile.devices import replicas
    from deepprofile.registry import register
    from deepprofile.study import read_study

    register("deepprofile.networks", "plain", plain)
    two = replicas("CPU")
    assert two.number == 2
    training.replicas = lambda: two
    training.train_network(read_study(whole))
    read = Batches.read

    def dying(self, epoch, number, rows):
        if (epoch, number) == (1, 2):
            raise KeyboardInterrupt
        return read(self, epoch, number, rows)

    Batches.read = dying
    with contextlib.suppress(BaseException):
        training.train_network(read_study(stopped))
    Batches.read = read
    (state,) = Path(stopped).glob("models/trained/state_*")
    training.train_network(read_study(stopped))
    return {"stopped_after": int(state.name[-4:])}


if __name__ == "__main__":
    if os.environ["KERAS_BACKEND"] == "tensorflow":
        import tensorflow as tf

        cpus = tf.config.list_physical_devices("CPU")
        tf.config.set_logical_device_configuration(cpus[0], [tf.config.LogicalDeviceConfiguration()] * 2)
    print(json.dumps({"compare": compare, "train": train}[sys.argv[1]](*sys.argv[2:])))

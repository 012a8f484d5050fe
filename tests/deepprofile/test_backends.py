"""The same training on every Keras backend that is installed, each in a process of its own."""

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pandas as pd
import pytest
from study_factory import configure, run

from deepprofile.export import export_crops

TRAIN = {"init": "random", "epochs": 2, "batch": 16, "split": "site", "min_cells": 1, "track": []}
SCRIPT = """
import sys, warnings
import keras
from deepprofile.study import read_study
from deepprofile.training import train_network
from deepprofile.features import profile_cells
study = read_study(sys.argv[1])
train_network(study)
profile_cells(study)
print(keras.backend.backend())
"""
EXTRACT = """
import sys
import keras
import numpy as np
from deepprofile.extractor import feature_network
from deepprofile.networks import build_network
from deepprofile.runtimes import keras_runtime
crops = np.random.default_rng(0).random((21, 16, 16, 3), np.float32)
models = []
for policy in ("float32", sys.argv[1] if sys.argv[1] == "float32" else f"mixed_{sys.argv[1]}"):
    keras.config.set_dtype_policy(policy)
    models.append(build_network("small_cnn", channels=3, size=(16, 16), seed=1, width=4, depth=2))
exact, model = models
found = keras_runtime(feature_network(model, ("block1_activation", "features")), crops.shape)(crops)
(alone,) = keras_runtime(feature_network(model, ("features",)), crops.shape)(crops)
beside = feature_network(exact, ("block1_activation", "features")).predict_on_batch(crops)
beside = {f"beside{i}": a for i, a in enumerate(found)} | {f"beside{i}_by_keras": a for i, a in enumerate(beside)}
np.savez(sys.argv[2], alone=alone, alone_by_keras=exact.predict_on_batch(crops), **beside)
"""
BACKENDS = ("tensorflow", "torch", "jax")


def installed(backend):
    return pytest.param(
        backend, marks=pytest.mark.skipif(find_spec(backend) is None, reason=f"{backend} is not installed")
    )


@pytest.fixture(scope="module")
def exported(images, tmp_path_factory):
    root = tmp_path_factory.mktemp("backends") / "study"
    shutil.copytree(images, root)
    study = configure(root)
    run(study)
    study = configure(root, train=TRAIN, profile={"weights": "trained"})
    export_crops(study)
    return root


def trained(exported, root, backend):
    """The history of a training of two epochs by `backend`, and the features of its network."""
    shutil.copytree(exported, root)
    environment = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-c", SCRIPT, str(root)]
    told = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=280, check=False)
    assert told.returncode == 0, told.stderr[-3000:]
    assert told.stdout.split() == [backend]
    features = pd.read_parquet(root / "features" / "small_cnn_trained" / "P1" / "cells.parquet", columns=["features"])
    return pd.read_csv(root / "models" / "trained" / "history.csv"), np.stack(features["features"].to_numpy())


@pytest.fixture(scope="module")
def by_tensorflow(exported, tmp_path_factory):
    return trained(exported, tmp_path_factory.mktemp("tensorflow") / "study", "tensorflow")


# --- parity: what is random was drawn by numpy, so the backends differ by rounding alone
@pytest.mark.parametrize("backend", [installed(name) for name in BACKENDS[1:]])
def test_backends_train_alike(exported, by_tensorflow, tmp_path, backend):
    history, features = trained(exported, tmp_path / "study", backend)
    theirs, other = by_tensorflow
    np.testing.assert_allclose(history["loss"], theirs["loss"], rtol=1e-3)
    np.testing.assert_allclose(history["val_loss"], theirs["val_loss"], rtol=1e-2)
    assert features.shape == other.shape
    assert np.corrcoef(features.ravel(), other.ravel())[0, 1] > 0.999


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("backend", [installed(name) for name in BACKENDS])
def test_backends_extract_alike(tmp_path, backend, precision):
    """Each compiles the same network in its own way."""
    environment = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-c", EXTRACT, precision, str(tmp_path / "found.npz")]
    told = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=280, check=False)
    assert told.returncode == 0, told.stderr[-3000:]
    with np.load(tmp_path / "found.npz") as found:
        assert found["alone"].shape == (21, 8)
        for name, widths in (("beside0", 4), ("beside1", 8), ("alone", 8)):
            ours, theirs = found[name], found[f"{name}_by_keras"]
            assert (ours.shape, ours.dtype) == ((21, widths), np.float32)
            limit = 1e-5 if precision == "float32" else 3e-2
            assert np.abs(ours - theirs).max() < limit * np.abs(theirs).max()
            if precision == "bfloat16":
                assert np.abs(ours - theirs).max() > 1e-5 * np.abs(theirs).max()


@pytest.mark.parametrize("backend", [installed(name) for name in BACKENDS[1:]])
def test_layers_and_loss_on(backend):
    files = [f"tests/deepprofile/test_{name}.py" for name in ("trainee", "augmentation")]
    environment = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files]
    told = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=280, check=False)
    assert told.returncode == 0, told.stdout[-3000:]

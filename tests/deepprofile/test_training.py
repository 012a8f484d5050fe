import json
import os
import shutil
import signal
import subprocess
import sys
import warnings

import numpy as np
import pandas as pd
import pytest
from study_factory import configure, run

from cytominer_tools.errors import InputError
from cytominer_tools.threads import workers
from deepprofile import devices, training
from deepprofile.batches import Batches
from deepprofile.checks import check_study
from deepprofile.export import export_crops
from deepprofile.extractor import load_extractor
from deepprofile.networks import build_network
from deepprofile.training import train_network

TRAIN = {
    "init": "random",
    "epochs": 3,
    "batch": 16,
    "split": "site",
    "min_cells": 1,
    "learning_rate": 0.05,
    "track": [],
}
PROFILE = {"network": "small_cnn", "weights": "trained"}


@pytest.fixture(scope="session")
def exported(finished, tmp_path_factory):
    """The tiny study with its crops exported; not to be written to."""
    root = tmp_path_factory.mktemp("exported") / "study"
    shutil.copytree(finished.root, root)
    export_crops(configure(root, train=TRAIN, profile=PROFILE))
    return root


@pytest.fixture(scope="session")
def trained(exported, tmp_path_factory):
    """The tiny study after an undisturbed training; not to be written to."""
    root = tmp_path_factory.mktemp("trained") / "study"
    shutil.copytree(exported, root)
    train_network(configure(root, train=TRAIN, profile=PROFILE))
    return root


@pytest.fixture
def study(exported, tmp_path):
    """A function that gives a copy of the exported study another section `train`."""
    root = tmp_path / "study"
    shutil.copytree(exported, root)
    return lambda **changes: configure(root, train={**TRAIN, **changes}, profile=PROFILE)


def weights(root, name="trained"):
    import keras

    model = keras.saving.load_model(root / "models" / name / "model.keras", compile=False)
    return model.get_weights()


def history(root):
    return pd.read_csv(root / "models" / "trained" / "history.csv")


def require_same_weights(root, other):
    for a, b in zip(weights(root), weights(other), strict=True):
        np.testing.assert_array_equal(a, b)


# --- what a training leaves behind
def test_a_training_leaves_a_model_a_card_and_its_history(trained):
    folder = trained / "models" / "trained"
    rows = history(trained)
    assert rows["epoch"].tolist() == [1, 2, 3]
    assert rows["learning_rate"].tolist() == pytest.approx([0.01, 0.02, 0.03])  # three of five epochs of warm-up
    np.testing.assert_allclose(rows["gap"], rows["accuracy"] - rows["val_accuracy"])
    assert {p.name for p in (folder / "epochs").iterdir()} == {"0001.keras", "0002.keras", "0003.keras"}
    assert (folder / "curves.png").stat().st_size > 10_000
    card = json.loads((folder / "card.json").read_text())
    assert card["training"]["classes"] == ["DMSO", "aaa", "bbb"]
    assert card["preprocess"]["channels"] == ["DNA", "ER", "Mito"]
    assert card["training"]["split"]["warnings"]  # by site: every well is on both sides
    classes = pd.read_csv(folder / "classes.csv")
    assert classes["class"].tolist() == ["DMSO", "aaa", "bbb"]
    split = pd.read_csv(folder / "split.csv")
    assert set(split["Split"]) == {"train", "validation"}


def test_it_learns(study):
    settings = study(
        epochs=20,
        split="well",
        label_smoothing=0.0,
        learning_rate=0.1,
        augment={"crop": 1.0, "brightness": 0, "contrast": 0},
    )
    train_network(settings)
    rows = history(settings.root)
    assert rows["val_accuracy"].iloc[-1] > 0.8  # the three treatments differ in size and brightness
    assert rows["loss"].iloc[-1] < rows["loss"].iloc[0] / 2


def test_what_is_done_is_left_alone(trained, tmp_path):
    root = tmp_path / "study"
    shutil.copytree(trained, root)
    before = (root / "models/trained/model.keras").stat().st_mtime_ns
    done = train_network(configure(root, train=TRAIN, profile=PROFILE))
    assert (done.made, done.kept) == (0, 1)
    assert (root / "models/trained/model.keras").stat().st_mtime_ns == before


def test_the_whole_pipeline_profiles_what_it_trained(exported, tmp_path):
    root = tmp_path / "study"
    shutil.copytree(exported, root)
    study = configure(root, train={**TRAIN, "epochs": 1}, profile=PROFILE)
    done = run(study)
    assert [done[name].made for name in ("export", "train")] == [0, 1]
    assert study.profile.name == "small_cnn_trained"
    card = json.loads((study.features / "card.json").read_text())
    assert card["training"]["classes"] == ["DMSO", "aaa", "bbb"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert not any(one.made for one in run(study).values())


# --- the same whatever happens
SCRIPT = """
import os, signal, sys
where, n = sys.argv[2], int(sys.argv[3])
calls = 0
def count(name):
    global calls
    calls += where in name
    if calls == n:
        os.kill(os.getpid(), signal.SIGKILL)
fsync = os.fsync
def dying(number):
    count(os.readlink(f"/proc/self/fd/{number}"))
    fsync(number)
os.fsync = dying
from deepprofile import training
from deepprofile.batches import Batches
from deepprofile.checks import check_study
read = Batches.read
def reading(self, *what):
    count("step")
    return read(self, *what)
Batches.read = reading
from deepprofile.study import read_study
print(training.train_network(read_study(sys.argv[1])))
"""


def kill(root, where, n):
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-c", SCRIPT, str(root), where, str(n)]
    process = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200, check=False)
    assert process.returncode == -signal.SIGKILL, process.stderr


@pytest.mark.parametrize(
    ("where", "n"),
    [
        ("step", 20),  # within the second epoch
        ("history.csv", 2),  # the second epoch is in the state, not in the history
        ("model.keras", 1),  # everything but the end
    ],
)
def test_killed_and_started_again(study, trained, where, n):
    settings = study()
    kill(settings.root, where, n)
    assert not (settings.root / "models/trained/model.keras").exists()
    done = train_network(settings)
    assert done.made == 1
    require_same_weights(settings.root, trained)
    wanted, found = history(trained), history(settings.root)
    timed = ["seconds", "cells_per_second"]
    pd.testing.assert_frame_equal(found.drop(columns=timed), wanted.drop(columns=timed))


EVERYTHING = {
    "epochs": 4,
    "optimizer": "adamw",
    "weight_decay": 0.01,
    "ema": 0.9,
    "online_smoothing": 0.3,
    "schedule": {"kind": "plateau", "patience": 1},
    "clip": 1.0,
    "class_weights": {"aaa": 2.0},
    "balance": "class_plate",
    "augment": {"mixup": 0.2, "jitter": 0.1},
    "learning_rate": 0.002,
}


def stop_after(monkeypatch, epochs):
    """Let the training stop as Ctrl-C would stop it, in the epoch after `epochs`."""
    read = Batches.read

    def reading(self, epoch, number, rows):
        if (epoch, number) == (epochs, 2):
            raise KeyboardInterrupt
        return read(self, epoch, number, rows)

    monkeypatch.setattr(Batches, "read", reading)


def with_dropout(*, channels, size, classes=None):
    """A network whose layers draw at random while it trains."""
    import keras
    from keras import layers

    inputs = keras.Input((*size, channels))
    x = layers.Conv2D(6, 3, strides=4, activation="relu", name="conv")(inputs)
    x = layers.Dropout(0.3)(x)
    x = layers.GlobalAveragePooling2D(name="features")(x)
    return keras.Model(inputs, x if classes is None else layers.Dense(classes, name="logits")(x))


def test_all_of_the_state_is_kept(study, monkeypatch, tmp_path):
    from deepprofile.registry import register

    register("deepprofile.networks", "with_dropout", with_dropout)
    settings = study(**EVERYTHING)
    settings = settings.model_copy(
        update={"profile": settings.profile.model_copy(update={"network": "with_dropout", "options": {}})}
    )
    other = tmp_path / "other"
    shutil.copytree(settings.root, other)
    undisturbed = settings.model_copy(update={"root": other})
    train_network(undisturbed)
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises((KeyboardInterrupt, Exception)):
            train_network(settings)
    assert [p.name for p in (settings.root / "models/trained").glob("state_*")] == ["state_0002"]
    train_network(settings)
    require_same_weights(settings.root, other)


def test_workers_do_not_matter(study, trained, monkeypatch):
    monkeypatch.setattr(devices, "workers", lambda: workers() + 3)
    settings = study()
    train_network(settings)
    require_same_weights(settings.root, trained)


# --- settings
def test_the_average_of_the_weights_is_what_is_kept(study):
    settings = study(ema=0.999, epochs=1)
    train_network(settings)
    averaged, start = (
        weights(settings.root),
        build_network("small_cnn", channels=3, size=(32, 32), classes=3, seed=3, **settings.profile.options),
    )
    # an average this slow has hardly left the first weights, though the network has
    assert np.abs(averaged[0] - start.get_weights()[0]).max() < 0.01
    state = np.load(settings.root / "models/trained/state_0001/variables.npz")
    assert np.abs(state["arr_0"] - start.get_weights()[0]).max() > 0.01


def test_training_stops_when_nothing_gets_better(study):
    settings = study(patience=1, epochs=30, learning_rate=1e-9)
    train_network(settings)
    rows = history(settings.root)
    assert len(rows) < 30
    best = int(rows["val_accuracy"].idxmax())
    assert len(rows) == best + 2
    import keras

    epoch = keras.saving.load_model(settings.root / f"models/trained/epochs/{best + 1:04d}.keras", compile=False)
    for a, b in zip(weights(settings.root), epoch.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_frozen_layers_keep_their_weights(study):
    settings = study(freeze="block1_activation", epochs=1)
    train_network(settings)
    start = build_network("small_cnn", channels=3, size=(32, 32), classes=3, seed=3, **settings.profile.options)
    found = weights(settings.root)
    for number, (a, b) in enumerate(zip(found, start.get_weights(), strict=True)):
        assert np.array_equal(a, b) == (number < 5), number  # a kernel, and four of batch normalization


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_keeps_float32_weights(study, precision):
    import keras

    settings = study(precision=precision, epochs=2)
    train_network(settings)
    assert keras.config.dtype_policy().name == "float32"
    assert {w.dtype.name for w in weights(settings.root)} == {"float32"}
    assert np.isfinite(history(settings.root)["loss"]).all()
    extractor, _ = load_extractor(settings)  # profiled in float32
    (features,) = extractor(np.zeros((settings.profile.batch, 32, 32, 3), np.float32))
    assert features.dtype == np.float32


def test_scores_while_it_trains(study):
    settings = study(score_every=2, epochs=2)
    scores = settings.scores.model_copy(update={"baselines": ("permutation", "untrained")})  # only of the whole study
    settings = settings.model_copy(update={"scores": scores})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        train_network(settings)
    rows = history(settings.root)
    scores = [name for name in rows if name.endswith("precision_at_r")]
    assert scores
    assert rows[scores].isna().iloc[0].all()
    assert rows[scores].notna().iloc[1].any()
    assert (settings.root / "profiles/small_cnn_trained-epoch2/deep/consensus.parquet").exists()


def test_profiles_that_cannot_be_scored_do_not_stop_a_training(study, caplog):
    settings = study(score_every=1, epochs=1).model_copy(update={"controls": None})
    train_network(settings)
    assert "the profiles of epoch 1 are not scored: study.yaml names no controls" in caplog.text
    assert len(history(settings.root)) == 1


# --- errors
def test_weights_that_are_not_numbers_are_not_the_best(study, monkeypatch):
    settings = study(epochs=2)
    predict = training.predict_logits
    monkeypatch.setattr(training, "predict_logits", lambda *args: predict(*args) * np.nan)
    with pytest.raises(InputError, match=r"the val_loss of epoch 1 is nan; lower train\.learning_rate"):
        train_network(settings)
    assert not (settings.root / "models/trained/best.keras").exists()


def test_equal_logits_are_no_answer(study, monkeypatch):
    settings = study(epochs=1)
    predict = training.predict_logits
    monkeypatch.setattr(training, "predict_logits", lambda *args: predict(*args) * 0)
    train_network(settings)
    assert history(settings.root)["val_accuracy"].tolist() == [0.0]


def test_a_model_that_was_deleted_is_made_again_from_its_state(trained, tmp_path):
    root = tmp_path / "study"
    shutil.copytree(trained, root)
    (root / "models/trained/model.keras").unlink()
    assert train_network(configure(root, train=TRAIN, profile=PROFILE)).made == 1
    require_same_weights(root, trained)


def test_what_makes_no_weights_may_change(trained, tmp_path):
    root = tmp_path / "study"
    shutil.copytree(trained, root)
    columns = {"compound": "Metadata_Compound", "moa": "Metadata_Compound"}
    study = configure(root, train={**TRAIN, "checkpoint_every": 2}, profile=PROFILE, columns=columns)
    assert train_network(study).made == 0


def test_a_study_without_the_section(fresh):
    with pytest.raises(InputError, match=r"has no section train; add the line `train: \{\}`"):
        train_network(fresh)


def test_no_crops(fresh):
    study = configure(fresh.root, train=TRAIN)
    with pytest.raises(InputError, match="deepprofile export"):
        train_network(study)


def test_other_settings_do_not_overwrite_a_training(trained, tmp_path):
    root = tmp_path / "study"
    shutil.copytree(trained, root)
    with pytest.raises(
        InputError, match=r"holds a training with other settings \(train.epochs: 3 -> 4\); give train.name"
    ):
        train_network(configure(root, train={**TRAIN, "epochs": 4}, profile=PROFILE))
    (root / "models/trained/manifest.json").unlink()  # the same of one that is not done
    with pytest.raises(InputError, match=r"other settings \(train.batch: 16 -> 8\)"):
        train_network(configure(root, train={**TRAIN, "batch": 8}, profile=PROFILE))


def test_other_channels(exported, tmp_path):
    root = tmp_path / "study"
    shutil.copytree(exported, root)
    study = configure(root, train=TRAIN, channels={"ER": "ER", "DNA": "DNA", "Mito": "Mito"})
    with pytest.raises(InputError, match=r"its channels are DNA, ER, Mito, those of study\.yaml ER, DNA, Mito"):
        train_network(study)


def test_other_crops(exported, tmp_path):
    root = tmp_path / "study"
    shutil.copytree(exported, root)
    study = configure(root, train=TRAIN, crops={"normalize": "minmax"})
    with pytest.raises(InputError, match=r"exported with other crops \(normalize: plate_control -> minmax\)"):
        train_network(study)


def test_profiling_refuses_the_channels_of_another_order(trained, tmp_path):
    root = tmp_path / "study"
    shutil.copytree(trained, root)
    study = configure(root, profile=PROFILE, channels={"ER": "ER", "DNA": "DNA", "Mito": "Mito"})
    with pytest.raises(
        InputError, match=r"was trained on the channels DNA, ER, Mito, in this order; study\.yaml has ER, DNA"
    ):
        load_extractor(study)
    study = configure(root, profile=PROFILE, crops={"normalize": "minmax"})
    with pytest.raises(InputError, match=r"trained on other crops \(normalize: plate_control -> minmax\)"):
        load_extractor(study)


def test_a_damaged_part_is_named_while_training(study):
    settings = study()
    part = next((settings.root / "crops" / "P1").glob("B01-*.arrow"))
    part.write_bytes(part.read_bytes()[:3000])
    with pytest.raises(InputError, match="B01-"):
        train_network(settings)


def test_a_loss_that_is_not_finite(study):
    settings = study(learning_rate=1e9, schedule="constant", augment=False)
    with pytest.raises(InputError, match=r"the loss of epoch \d is nan; lower train.learning_rate"):
        train_network(settings)


def test_a_full_disk_keeps_what_is_complete(study, monkeypatch, trained):
    settings = study()
    save = np.savez
    calls = []

    def full(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        save(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", full)
        with pytest.raises(InputError, match="the disk is full"):
            train_network(settings)
    assert [p.name for p in (settings.root / "models/trained").glob("state_*")] == ["state_0001"]
    train_network(settings)
    require_same_weights(settings.root, trained)


def test_a_state_that_cannot_be_read(study, monkeypatch):
    settings = study()
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        with pytest.raises((KeyboardInterrupt, Exception)):
            train_network(settings)
    place = settings.root / "models/trained/state_0001"
    whole = (place / "variables.npz").read_bytes()
    (place / "variables.npz").write_bytes(whole[:1000])
    with pytest.raises(InputError, match=r"state_0001: it cannot be read .*; delete .* to train anew"):
        train_network(settings)


# --- before anything is computed
def test_check_says_what_keeps_it_from_training(fresh):
    def told(**train):
        study = configure(fresh.root, train={**TRAIN, **train}, profile=PROFILE)
        return [(p.level, p.place, p.what) for p in check_study(study) if "train" in p.place or "weights" in p.place]

    assert told(split="well") == []  # the weights that profile asks for are those to come
    assert told(label=["Metadata_Compund"])[0][:2] == ("error", "study.yaml train")
    assert "is it 'Metadata_Compound'" in told(label=["Metadata_Compund"])[0][2]
    assert told(init="no.keras", split="well") == [
        ("error", "study.yaml train.init", f"{fresh.root / 'no.keras'}: no such file")
    ]
    assert told(split="site")[0][:2] == ("warning", "study.yaml train.split")
    controls = told(split="well", select="Metadata_Compound == 'DMSO'")  # a query on the index is applied
    assert "only 'DMSO' has 1 cell or more to train on" in controls[0][2]
    assert told(split="site", select="Metadata_AreaShape_Area > 5") == []  # what cells have is known once located
    study = configure(fresh.root, profile={"weights": "other"})
    assert any("models/other/model.keras: no such file" in p.what for p in check_study(study))

"""Weakly supervised training: a network is taught to tell treatments apart, and its last layer becomes the features."""

import hashlib
import json
import math
import platform
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import pandas as pd

from cytominer_tools.columns import PLATE
from cytominer_tools.errors import InputError
from cytominer_tools.files import atomic_path, safe_name
from cytominer_tools.manifest import Manifest, changes
from cytominer_tools.queries import select
from cytominer_tools.tables import read_table, write_table
from cytominer_tools.threads import map_ahead, workers
from deepprofile.augmentation import draw
from deepprofile.batches import Batch, Batches
from deepprofile.checkpoints import assign, load_state, read_state, save_state, states, values
from deepprofile.crop_selection import read_treatments
from deepprofile.crop_source import require_same_crops
from deepprofile.crop_store import Crops, open_crops, with_metadata
from deepprofile.curves import draw_curves
from deepprofile.devices import Replicas, replicas
from deepprofile.features import profile_cells
from deepprofile.index import load_index
from deepprofile.initialization import freeze, initial_network
from deepprofile.labels import Labels, class_weights, make_labels
from deepprofile.networks import GROUP, jit_compile
from deepprofile.profiles import aggregate_wells, consensus_profiles, normalize_wells, score_profiles
from deepprofile.registry import load, package
from deepprofile.sampling import epoch_rows, validation_rows
from deepprofile.schedules import best_epoch, is_over, learning_rate
from deepprofile.soft_labels import Targets
from deepprofile.splits import NEITHER, TRAIN, VALIDATION, SplitCells, split_cells
from deepprofile.study import NAME, Study, Train
from deepprofile.trackers import trackers
from deepprofile.trainee import CROPS, Trainee, compile_trainee, predict_logits
from deepprofile.work import Done, log, progress

if TYPE_CHECKING:
    from deepprofile.deepprofiler_crops import DeepProfilerCrops

STAGE = "models"
_PART = "model"


@dataclass(frozen=True)
class Cells:
    """The cells of a training: rows of the crop store, their classes, and who trains and who validates."""

    crops: "Crops | DeepProfilerCrops"
    split: SplitCells
    labels: Labels
    train: np.ndarray  # int64, a class for each row of the store, -1 where it does not train
    validation: np.ndarray  # row numbers, drawn once

    @property
    def digest(self) -> str:
        """SHA-256 of who is taught what; a treatment that is renamed in the index changes it and no crop."""
        sha = hashlib.sha256("\n".join(self.labels.classes).encode())
        sha.update(self.train.tobytes())
        sha.update(self.validation.tobytes())
        sha.update(self.labels.codes[self.validation].tobytes())
        return sha.hexdigest()[:16]


def train_network(study: Study) -> Done:
    """Train the network of `study` on its crops; write models/NAME with model.keras, card.json and history.csv.

    A training that was stopped goes on from its last whole epoch and ends with the weights of an undisturbed one. One
    that is done is left alone.

    Raises
    ------
    InputError
        There is no section `train`, the crops are not exported, what they hold does not make two classes, weights
        cannot be had, or models/NAME holds a training with other settings or crops.
    """
    settings = train_section(study)
    folder = study.models / safe_name(settings.name)
    with study.writing():
        crops = open_crops(study.path(settings.crops), tuple(study.channels))
        cut = crops.preprocess.model_dump(mode="json")
        require_same_crops(study, crops.path, cut, crops.illumination, exact=crops.same_as_profiling)
        manifest = Manifest.read(folder, STAGE)
        described = training_settings(study)
        manifest.settings, earlier = described, manifest.settings
        cells = choose_cells(study, crops)
        key = manifest.key([crops.key, cells.digest])
        if not manifest.is_current(_PART, key):
            if manifest.parts and manifest.parts[_PART].key != key:
                _refuse(folder, earlier, described)
            if found := states(folder):
                state = read_state(found[-1])
                if state["key"] != key:
                    _refuse(folder, state["settings"], described)
            rows = _Training(study, folder, key, cells).run()
            manifest.record(_PART, key, "model.keras", rows, cells.labels.left_out)
            made = 1
        else:
            made = 0
    part = manifest.parts[_PART]
    return Done("train", made, 1 - made, part.rows, "cells an epoch", part.skipped)


def choose_cells(study: Study, crops: "Crops | DeepProfilerCrops") -> Cells:
    """Who trains and who validates on `crops` under the settings of `study`; drawn by its seed.

    Raises
    ------
    InputError
        A column or class is unknown, or fewer than two classes are left.
    """
    settings = train_section(study)
    # DeepProfiler's table of single cells holds the label alone
    table = crops.table if crops.same_as_profiling else with_metadata(crops.table, load_index(study))
    if not study.label:
        raise InputError("train.label: name the column that the network is to tell apart, or columns.treatment")
    treatments = None
    if settings.treatments is not None:
        treatments = read_treatments(study.path(settings.treatments), _column(study))
    used = np.ones(len(table), bool) if settings.select is None else select(table, settings.select).to_numpy()
    if not used.any():
        raise InputError(f"train.select: {settings.select!r} picks none of {len(table):,} cells")
    chosen = table if used.all() else table[used]
    split = split_cells(
        chosen,
        settings.split,
        study.columns,
        label=study.label,
        seed=study.seed,
        controls=None if study.controls is None else select(chosen, study.controls).to_numpy(),
        treatments=treatments,
    )
    parts = np.full(len(table), NEITHER, np.int8)
    parts[used] = split.parts
    labels = make_labels(table, study.label, parts, min_cells=settings.min_cells)
    held = np.where(parts == VALIDATION, labels.codes, -1)
    if not (held >= 0).any():
        raise InputError("no cell of the classes that train is left to validate; look at train.split and train.select")
    validation = validation_rows(held, seed=study.seed, size=settings.epoch_cells)
    return Cells(crops, split, labels, np.where(parts == TRAIN, labels.codes, -1), validation)


def training_settings(study: Study) -> dict[str, Any]:
    """What study.yaml says about the weights that come out; where curves are kept and what is scored is not of it."""
    settings = train_section(study)
    # what is named here makes no weights, or is known by what it picks: crops, cells and their labels
    aside = {"name", "track", "score_every", "checkpoint_every", "crops", "treatments", "init"}
    init = study.path(settings.init)
    return {
        "train": json.loads(settings.model_dump_json(exclude=aside)),
        "init": hashlib.sha256(init.read_bytes()).hexdigest()[:16] if init.is_file() else settings.init,
        "label": list(study.label),
        "network": study.profile.network,
        "options": study.profile.options,
        "seed": study.seed,
    }


def train_section(study: Study) -> Train:
    """The section `train` of `study`; an InputError where it has none."""
    if study.train is None:
        raise InputError(f"{study.root / NAME} has no section train; add the line `train: {{}}`")
    return study.train


def epoch_line(row: dict[str, Any], epochs: int) -> str:
    """One epoch of the history in words.

    >>> epoch_line({"epoch": 2, "loss": 1.5, "accuracy": 0.5, "val_accuracy": 0.25, "cells_per_second": 812.3}, 30)
    'epoch 2 of 30: loss 1.500, accuracy .500, validation .250, 812 cells/s'
    """
    accuracies = [f"{row[name]:.3f}".removeprefix("0") for name in ("accuracy", "val_accuracy")]
    speed = f"{row['cells_per_second']:,.0f} cells/s"
    learned = f"loss {row['loss']:.3f}, accuracy {accuracies[0]}, validation {accuracies[1]}"
    return f"epoch {row['epoch']} of {epochs}: {learned}, {speed}"


def fit_epoch(
    trainee: Trainee,
    read: Callable[[int], Batch],
    steps: int,
    *callbacks: keras.callbacks.Callback,
    devices: Replicas,
    advance: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Train on read(0), ..., read(steps - 1) by Keras' fit, on `devices`; the means of loss and metrics.

    `read` runs in threads ahead of the training, and `advance` is called after each. An error of `read` comes out as it
    was.
    """
    failed: list[BaseException] = []
    lock = threading.Lock()

    def noted(number: int) -> Batch:
        try:
            batch = read(number)
            with lock:
                advance()
            return batch
        except BaseException as error:
            failed.append(error)
            raise

    trainee.steps_per_execution = devices.steps_at_once
    try:
        with devices.scope(), devices.feed(noted, steps) as batches:
            ended = trainee.fit(batches, steps_per_epoch=steps, shuffle=False, verbose=0, callbacks=list(callbacks))
    except Exception:
        if failed:  # the backend says it in words of its own
            raise failed[0] from None
        raise
    return {name: float(values[-1]) for name, values in ended.history.items()}


def training_rate(study: Study, crops: np.ndarray, classes: int, seconds: float) -> float:
    """Cells a second that the network of `study` learns from on this device, measured for about `seconds`.

    crops : float32 (n, H, W, C) in [0, 1], repeated to a batch. The weights are drawn at random, and nothing is kept.
    """
    settings = train_section(study)
    random = settings.model_copy(update={"init": "random"})
    network = _network(study.model_copy(update={"train": random}), classes)
    trainee = Trainee(network, augment=bool(settings.augment), l2=settings.l2)
    compile_trainee(trainee, settings, classes)
    rng = np.random.default_rng(study.seed)
    inputs = {CROPS: np.resize(crops, (settings.batch, *crops.shape[1:]))}
    if settings.augment:
        inputs |= draw(settings.augment, settings.batch, crops.shape[1:], rng)
    targets = np.eye(classes, dtype=np.float32)[rng.integers(0, classes, settings.batch)]
    trainee.train_on_batch(inputs, targets)  # compiled at the first call
    times: list[float] = []
    while len(times) < 2 or (sum(times) < seconds and len(times) < 30):
        began = time.perf_counter()
        trainee.train_on_batch(inputs, targets)
        times.append(time.perf_counter() - began)
    return settings.batch / float(np.median(times))


class _Training:
    """One training from its first epoch, or from where it was, to its last."""

    def __init__(self, study: Study, folder: Path, key: str, cells: Cells) -> None:
        self.study, self.folder, self.key, self.cells = study, folder, key, cells
        self.described = training_settings(study)
        self.settings = settings = train_section(study)
        labels = cells.labels
        self.classes = len(labels.classes)
        keras.utils.set_random_seed(study.seed)  # of dropout; everything else is drawn by numpy
        self.replicas = replicas()
        with self.replicas.scope():
            self.network = _network(study, self.classes)
            self.network.compile(jit_compile=jit_compile())
        self.trainee = Trainee(self.network, augment=bool(settings.augment), l2=settings.l2)
        with self.replicas.scope():
            compile_trainee(self.trainee, settings, self.classes)
            self.replicas.agree(self.trainee.optimizer)
        self.targets = Targets(cells.train, self.classes, settings.label_smoothing, settings.online_smoothing)
        weights = class_weights(cells.train, settings.class_weights, labels.classes)
        shares = self.replicas.number
        self.batches = Batches(cells.crops, self.targets, weights, settings.augment or None, study.seed, shares)
        self.plates = pd.factorize(cells.crops.table[PLATE])[0]
        self.history: list[dict[str, Any]] = []
        cells_an_epoch = len(self._rows(0))
        self.batch = self.replicas.batch(settings.batch, cells_an_epoch)
        self.steps = cells_an_epoch // self.batch  # the rest of the cells has its turn in another epoch

    def run(self) -> int:
        """All epochs that are not done yet; returns the number of cells of one."""
        settings = self.settings
        self._tell()
        if found := states(self.folder):
            self.history, self.targets.soft = load_state(found[-1], self.trainee)
            log.info("train: goes on after epoch %d of %d", len(self.history), settings.epochs)
        write_table(self.cells.split.table, self.folder / "split.csv")
        self._write_card()
        left = (settings.epochs - len(self.history)) * self.steps * self.batch
        with (
            trackers(self.study, self.folder, self.history) as track,
            progress("train", left, "cells") as advance,
        ):
            while not is_over(settings.epochs, settings.patience, self._column("val_accuracy")):
                row = self._epoch(len(self.history), advance)
                self.history.append(row)
                track(row)
                log.info("train: %s", epoch_line(row, settings.epochs))
            self._finish()
        return self.steps * self.batch

    def _epoch(self, epoch: int, advance: Callable[[int], None]) -> dict[str, Any]:
        settings, trainee = self.settings, self.trainee
        rate = learning_rate(settings.schedule, settings.learning_rate, settings.epochs, self._column("val_loss"))
        trainee.optimizer.learning_rate = rate
        began = time.perf_counter()
        before_average = _Weights(settings.ema is not None)
        rows = self._rows(epoch)[: self.steps * self.batch].reshape(self.steps, self.batch)
        logs = fit_epoch(
            trainee,
            lambda number: self.batches.read(epoch, number, rows[number]),
            self.steps,
            before_average,
            devices=self.replicas,
            advance=lambda: advance(self.batch),
        )
        seconds = time.perf_counter() - began
        row = {"epoch": epoch + 1, "learning_rate": rate, **logs, **self._validate()}
        if bad := [name for name in ("loss", "val_loss") if not math.isfinite(row[name])]:  # the last step may be bad
            raise InputError(
                f"train: the {bad[0]} of epoch {epoch + 1} is {row[bad[0]]}; lower train.learning_rate ({rate:g} in "
                "this epoch), or give train.clip a norm such as 1; the epochs before it are kept"
            )
        row |= {"gap": row["accuracy"] - row["val_accuracy"], "seconds": seconds}
        row["cells_per_second"] = self.steps * self.batch / seconds
        row |= self._keep(row)
        if settings.ema is not None:
            before_average.restore()
        if settings.online_smoothing is not None:
            self._follow()
        history = [*self.history, row]
        save_state(self.folder, trainee, history, self.targets.soft, self.key, self.described)
        self._write_history(history)
        return row

    def _write_history(self, history: list[dict[str, Any]]) -> None:
        write_table(pd.DataFrame(history), self.folder / "history.csv")
        draw_curves(pd.DataFrame(history), self.folder / "curves.png")

    def _rows(self, epoch: int) -> np.ndarray:
        return epoch_rows(
            self.cells.train,
            balance=self.settings.balance,
            plates=self.plates,
            size=self.settings.epoch_cells,
            seed=self.study.seed,
            epoch=epoch,
        )

    def _validate(self) -> dict[str, float]:
        """Loss without smoothing, accuracy and top 5 of the validation cells; each class alone into classes.csv."""
        rows = self.cells.validation
        codes, ranks, losses = self.cells.labels.codes[rows], [], []
        for at, logits in self._predict(rows):
            shifted = logits - logits.max(axis=1, keepdims=True)
            right = shifted[np.arange(len(at)), self.cells.labels.codes[at]]
            losses.append(np.log(np.exp(shifted).sum(axis=1)) - right)
            ranks.append((shifted >= right[:, None]).sum(axis=1) - 1)  # a tie is not an answer
        loss, rank = np.concatenate(losses), np.concatenate(ranks)
        cells = np.bincount(codes, minlength=self.classes)
        right = np.bincount(codes, rank == 0, minlength=self.classes)
        accuracy = np.where(cells > 0, right / np.maximum(cells, 1), np.nan)
        table = pd.DataFrame({"class": self.cells.labels.classes, "cells": cells, "accuracy": accuracy})
        write_table(table, self.folder / "classes.csv")
        found = {"val_loss": float(loss.mean()), "val_accuracy": float((rank == 0).mean())}
        return found | ({"val_top5": float((rank < 5).mean())} if self.classes > 5 else {})

    def _follow(self) -> None:
        """Online label smoothing: the targets move to what the network says of every training cell."""
        for at, logits in self._predict(self.targets.rows):
            odds = np.exp(logits - logits.max(axis=1, keepdims=True))
            self.targets.follow(at, odds / odds.sum(axis=1, keepdims=True))

    def _predict(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        parts = (rows[i : i + self.batch] for i in range(0, len(rows), self.batch))
        with closing(map_ahead(lambda at: (at, self.cells.crops.network_input(at)), parts, 2 * workers())) as read:
            for at, crops in read:
                with self.replicas.scope():
                    logits = predict_logits(self.network, crops, self.batch, self.replicas.share)
                yield at, logits

    def _keep(self, row: dict[str, Any]) -> dict[str, float]:
        """Write the network of this epoch where it is one to keep, and score its profiles where that is asked for."""
        settings, epoch = self.settings, row["epoch"]
        file = self.folder / "epochs" / f"{epoch:04d}.keras"
        scored = settings.score_every is not None and epoch % settings.score_every == 0
        if epoch % settings.checkpoint_every == 0 or epoch == settings.epochs or scored:
            _save(self.network, file)
        if best_epoch([*self._column("val_accuracy"), row["val_accuracy"]]) == epoch - 1:
            _save(self.network, self.folder / "best.keras")
        return profile_scores(self.study, file, epoch) if scored else {}

    def _finish(self) -> None:
        """The model to profile with: that of the best epoch where training may stop early, else of the last."""
        self._write_history(self.history)  # a kill may have come before those of the last epoch
        last = f"epochs/{len(self.history):04d}.keras"
        with atomic_path(self.folder / "model.keras") as path:
            shutil.copyfile(self.folder / ("best.keras" if self.settings.patience else last), path)

    def _write_card(self) -> None:
        cells, study = self.cells, self.study
        build = load(GROUP, study.profile.network)
        card = {
            "network": study.profile.network,
            "options": study.profile.options,
            "package": package(GROUP, study.profile.network),
            "source": getattr(build, "source", None),
            "licence": getattr(build, "licence", None),
            "preprocess": json.loads(cells.crops.preprocess.model_dump_json()),
            "illumination": cells.crops.illumination,
            "same_as_profiling": cells.crops.same_as_profiling,
            "training": {
                **self.described,
                "classes": list(cells.labels.classes),
                "left_out": [list(row) for row in cells.labels.left_out],
                "crops": {"key": cells.crops.key, "dtype": str(cells.crops.dtype), "cells": len(cells.crops)},
                "training_cells": int((cells.train >= 0).sum()),
                "validation_cells": len(cells.validation),
                "cells_an_epoch": self.steps * self.batch,
                "split": {"shares": cells.split.shares, "warnings": list(cells.split.warnings)},
                "runtime": f"keras-{keras.backend.backend()} {self.settings.precision}",
            },
            "versions": {"keras": keras.__version__, "python": platform.python_version()},
        }
        with atomic_path(self.folder / "card.json") as path:
            path.write_text(json.dumps(card, indent=1) + "\n", "utf-8")

    def _tell(self) -> None:
        cells, settings = self.cells, self.settings
        log.info(
            "train: %s: %d classes, %s training cells, %s in an epoch, %s that validate, split by %s",
            settings.name,
            self.classes,
            f"{(cells.train >= 0).sum():,}",
            f"{self.steps * self.batch:,}",
            f"{len(cells.validation):,}",
            settings.split.by,
        )
        if self.replicas.number > 1:
            log.info("train: %d devices share each batch of %d", self.replicas.number, self.batch)
        for warning in cells.split.warnings:
            log.warning("train: %s", warning)
        if not cells.crops.same_as_profiling:
            log.warning(
                "train: the crops in %s were scaled by another rule than profiling scales by; features of this network "
                "fit its training better after `deepprofile export`",
                settings.crops,
            )

    def _column(self, name: str) -> list[float]:
        return [row[name] for row in self.history]


class _Weights(keras.callbacks.Callback):
    """The trained weights at the end of an epoch, before Keras puts their moving average in their place."""

    def __init__(self, averaged: bool) -> None:
        super().__init__()
        self._averaged = averaged

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if self._averaged:
            self._kept = values(self.model.trainable_variables)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        if self._averaged:  # copies: with JAX the average would be given away with the weights by the next prediction
            assign(self.model.trainable_variables, values(self.model.trainable_variables))

    def restore(self) -> None:
        assign(self.model.trainable_variables, self._kept)


def profile_scores(study: Study, weights: Path, epoch: int) -> dict[str, float]:
    """Precision at R of the study's profiles by the network in `weights`, its first layer and its first recipe."""
    name = f"{study.profile.network}_{train_section(study).name}-epoch{epoch}"
    layer = study.profile.layers[0]
    chosen = study.profile.model_copy(update={"weights": str(weights), "model": name, "layer": layer})
    twin = study.with_recipe(study.profiles.recipes[0]).without_untrained.model_copy(update={"profile": chosen})
    try:
        for stage in (profile_cells, aggregate_wells, normalize_wells, consensus_profiles, score_profiles):
            stage(twin)
    except InputError as error:
        log.warning("train: the profiles of epoch %d are not scored: %s", epoch, error)
        return {}
    table = read_table(twin.scores_folder / "scores.csv")
    table = table[(table["score"] == "precision_at_r") & table["across"].isna()]
    return {f"{row['profiles']}_{row['score']}": float(row["value"]) for row in table.to_dict("records")}


def _network(study: Study, classes: int) -> keras.Model:
    """The network with its first weights, under the precision of the training."""
    settings = train_section(study)
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(settings.precision)
    try:
        network = initial_network(study, classes)
    finally:
        keras.config.set_dtype_policy(before)
    if settings.freeze is not None:
        frozen = freeze(network, settings.freeze)
        log.info("train: %s of %s weights are frozen", f"{frozen:,}", f"{network.count_params():,}")
    return network


def _save(network: keras.Model, file: Path) -> None:
    with atomic_path(file) as path:
        network.save(path)


def _refuse(folder: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    what = (changes(found, wanted) or ["other crops or labels"])[0]
    raise InputError(
        f"{folder} holds a training with other settings ({what}); give train.name another name to keep it, or delete "
        "the folder"
    )


def _column(study: Study) -> str:
    if study.treatment is None:
        raise InputError("train.treatments: name the column of the treatments in columns.treatment")
    return study.treatment

"""Where the course of a training is followed while it runs: TensorBoard, MLflow, Weights & Biases."""

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from cytominer_tools.errors import InputError
from cytominer_tools.files import atomic_path
from deepprofile.study import Study
from deepprofile.work import log

_FILE = "tracking.json"
_BATCH = 100  # parameters that MLflow takes at once


@contextmanager
def trackers(study: Study, folder: Path, history: list[dict[str, Any]]) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Yield a function that takes the row of each epoch to the trackers that `train.track` names.

    Parameters
    ----------
    study : Study
        With a section `train`.
    folder : Path
        Of the model; folder/logs is TensorBoard's, folder/tracking.json says which runs of the others are ours.
    history : list of rows
        The epochs so far. What a tracker lacks of them is made up for, so that a training that was stopped goes on in
        the same run without a gap and without an epoch twice.

    A tracker that fails while training runs is left out with a warning.

    Raises
    ------
    InputError
        One is not installed, or cannot begin. TensorBoard that is not installed is only said.
    """
    assert study.train is not None
    file = folder / _FILE
    runs: dict[str, str] = json.loads(file.read_text("utf-8")) if file.exists() else {}
    running: dict[str, _Tracker] = {}

    def track(row: dict[str, Any]) -> None:
        for name, tracker in list(running.items()):
            if row["epoch"] <= tracker.epochs:
                continue
            try:
                tracker.write(row)
            except Exception as error:
                log.warning("train: %s fails and is left out from here on (%s)", name, _first_line(error))
                running.pop(name)
                _close(name, tracker, failed=True)

    failed = True
    try:
        wanted: Iterable[str] = dict.fromkeys(study.train.track)
        for name in wanted:
            if tracker := _begin(name, study, folder, runs.get(name)):
                running[name] = tracker
                if tracker.run is not None:
                    runs[name] = tracker.run
                    with atomic_path(file) as path:
                        path.write_text(json.dumps(runs, indent=1) + "\n", "utf-8")
        for row in history:
            track(row)
        yield track
        failed = False
    finally:
        for name, tracker in running.items():
            _close(name, tracker, failed)


class _Tracker(Protocol):
    run: str | None  # by which a later training goes on with it
    epochs: int  # that it held when it began

    def write(self, row: dict[str, Any]) -> None: ...

    def close(self, failed: bool) -> None: ...


class _TensorBoard:
    """Event files that are written anew from the first epoch on, so that they hold each epoch once."""

    run: str | None = None

    def __init__(self, study: Study, folder: Path, run: str | None) -> None:
        from tensorboard.summary import Writer

        places = {"": folder / "logs" / "train", "val_": folder / "logs" / "validation"}
        for place in places.values():
            for earlier in place.glob("events.out.tfevents.*"):
                earlier.unlink()
        self.epochs = 0
        self._writers = {prefix: Writer(str(place)) for prefix, place in places.items()}

    def write(self, row: dict[str, Any]) -> None:
        for name, value in _metrics(row).items():
            prefix = "val_" if name.startswith("val_") else ""
            # under one name, so that training and validation are two lines in one chart
            self._writers[prefix].add_scalar(name.removeprefix(prefix), value, row["epoch"])
        for writer in self._writers.values():
            writer.flush()

    def close(self, failed: bool) -> None:
        for writer in self._writers.values():
            writer.close()


class _MLflow:
    """A run where MLflow's own settings say (MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME, ..)."""

    def __init__(self, study: Study, folder: Path, run: str | None) -> None:
        import mlflow

        self._mlflow = mlflow
        begun = mlflow.start_run(run_id=run, run_name=None if run else _name(study), nested=True)  # in a notebook's
        self.run = begun.info.run_id
        self.epochs = int(begun.data.metrics.get("epoch", 0))
        if run is None:
            settings = list(_flat_settings(study).items())
            try:
                for start in range(0, len(settings), _BATCH):
                    mlflow.log_params(dict(settings[start : start + _BATCH]))
            except Exception:
                mlflow.end_run("FAILED")
                raise

    def write(self, row: dict[str, Any]) -> None:
        self._mlflow.log_metrics({**_metrics(row), "epoch": row["epoch"]}, step=row["epoch"])

    def close(self, failed: bool) -> None:
        self._mlflow.end_run("FAILED" if failed else "FINISHED")


class _WandB:
    """A run where Weights & Biases' own settings say (WANDB_MODE, WANDB_PROJECT, ..); no code and no output is sent.

    Offline it does not know what an earlier training wrote (and a kill may have lost), so its newest folder holds all.
    """

    def __init__(self, study: Study, folder: Path, run: str | None) -> None:
        import wandb

        self._run = wandb.init(
            id=run,
            resume="allow" if run else None,
            name=_name(study),
            config=_flat_settings(study),
            dir=os.environ.get("WANDB_DIR", str(folder)),
            reinit="create_new",  # beside that of a notebook
            settings={"console": "off", "disable_code": True, "disable_git": True},
        )
        self.run = self._run.id
        self.epochs = max(self._run.step - 1, 0)  # step is the one that comes next

    def write(self, row: dict[str, Any]) -> None:
        self._run.log({**_metrics(row), "epoch": row["epoch"]}, step=row["epoch"], commit=True)

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


_TRACKERS: dict[str, Callable[[Study, Path, str | None], _Tracker]] = {
    "tensorboard": _TensorBoard,
    "mlflow": _MLflow,
    "wandb": _WandB,
}


def _begin(name: str, study: Study, folder: Path, run: str | None) -> _Tracker | None:
    try:
        return _TRACKERS[name](study, folder, run)
    except ImportError as error:
        if name == "tensorboard":
            log.info("train: no logs for TensorBoard, which is not installed; history.csv and curves.png hold the same")
            return None
        raise InputError(
            f"train.track: {name} is not installed; `pip install 'deepprofile[{name}]'`, or leave it out"
        ) from error
    except Exception as error:
        anew = f", or delete {folder / _FILE} for new runs" if run else ""
        raise InputError(
            f"train.track: {name} cannot begin ({_first_line(error)}); mend that, or leave it out{anew}"
        ) from error


def _close(name: str, tracker: _Tracker, failed: bool) -> None:
    try:
        tracker.close(failed)
    except Exception as error:
        log.warning("train: %s could not be closed (%s)", name, _first_line(error))


def _metrics(row: dict[str, Any]) -> dict[str, float]:
    """What can be drawn of a row of the history."""
    return {name: float(value) for name, value in row.items() if name != "epoch" and math.isfinite(value)}


def _name(study: Study) -> str:
    assert study.train is not None
    return f"{study.root.name}/{study.train.name}"


def _flat_settings(study: Study) -> dict[str, Any]:
    """The settings of the training by dotted names; a dict whose keys are data, such as classes, stays one value."""
    from deepprofile.training import training_settings  # which imports this module

    flat: dict[str, Any] = {}

    def add(name: str, value: Any) -> None:
        if isinstance(value, dict) and value and all(key.isidentifier() for key in value):
            for key, inner in value.items():
                add(f"{name}.{key}" if name else key, inner)
        else:
            flat[name] = json.dumps(value) if isinstance(value, dict | list) else value

    add("", training_settings(study))
    return flat


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]

"""The whole state of a training on disk: killed and resumed, it ends where an undisturbed one ends."""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np

from cytominer_tools.errors import InputError
from cytominer_tools.files import atomic_folder

if TYPE_CHECKING:
    import keras

FORMAT_VERSION = 1
_PREFIX = "state_"


def save_state(
    folder: Path,
    model: "keras.Model",
    history: list[dict[str, Any]],
    soft: np.ndarray | None,
    key: str,
    settings: dict[str, Any],
) -> None:
    """Keep the weights, the random states of layers, the optimizer, the soft labels and the history of `model`.

    The state of epoch 7 is folder/state_0007; the one before it is deleted once this one is complete.
    """
    place = folder / f"{_PREFIX}{len(history):04d}"
    with atomic_folder(place) as part:
        np.savez(part / "variables.npz", *values(_variables(model)))
        if soft is not None:
            np.save(part / "soft_labels.npy", soft)
        state = {"format_version": FORMAT_VERSION, "key": key, "settings": settings, "history": history}
        (part / "state.json").write_text(json.dumps(state, indent=1) + "\n", "utf-8")
        for path in part.iterdir():  # on disk before the older state goes
            with path.open("rb+") as file:
                os.fsync(file.fileno())
    for older in states(folder):
        if older != place:
            shutil.rmtree(older, ignore_errors=True)


def load_state(place: Path, model: "keras.Model") -> tuple[list[dict[str, Any]], np.ndarray | None]:
    """Put the state at `place` into `model`, whose optimizer is built, and return its history and soft labels.

    Raises
    ------
    InputError
        It cannot be read, or is of another network or optimizer.
    """
    mend = f"delete {place.parent} to train anew"
    state = read_state(place)
    try:
        # opened here, as numpy leaves a damaged one open
        with (place / "variables.npz").open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            found = [file[f"arr_{i}"] for i in range(len(file.files))]
        labels = place / "soft_labels.npy"
        soft = np.load(labels, allow_pickle=False) if labels.exists() else None
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise InputError(f"{place}: it cannot be read ({str(error).splitlines()[0]}); {mend}") from error
    variables = _variables(model)
    theirs, ours = [tuple(v.shape) for v in found], [tuple(v.shape) for v in variables]
    if theirs != ours:
        at = next(
            (i for i, (a, b) in enumerate(zip(theirs, ours, strict=False)) if a != b), min(len(theirs), len(ours))
        )
        what = f"{variables[at].path} has shape {ours[at]}" if at < len(ours) else f"there are {len(ours)} variables"
        other = f"{theirs[at]} there" if at < len(theirs) else f"{len(theirs)} there"
        raise InputError(f"{place}: it is of another network or optimizer: {what}, {other}; {mend}")
    assign(variables, found)
    return state["history"], soft


def read_state(place: Path) -> dict[str, Any]:
    """The state of a training without its arrays: its key, its settings and its history.

    Raises
    ------
    InputError
        It cannot be read, or is of another format version.
    """
    try:
        state: dict[str, Any] = json.loads((place / "state.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{place}: it cannot be read ({error}); delete {place.parent} to train anew") from error
    if state["format_version"] != FORMAT_VERSION:
        raise InputError(
            f"{place}: format version {state['format_version']}, this deepprofile writes {FORMAT_VERSION}; update it, "
            f"or delete {place.parent} to train anew"
        )
    return state


def states(folder: Path) -> list[Path]:
    """The states in `folder`, oldest first; more than one where a kill came before the older was deleted."""
    return sorted(path for path in folder.glob(f"{_PREFIX}*") if path.is_dir())


def values(variables: Sequence[Any]) -> list[np.ndarray]:
    """Copies of Keras variables in the memory of the host."""
    import keras

    return [np.array(keras.ops.convert_to_numpy(keras.ops.convert_to_tensor(v))) for v in variables]


def assign(variables: Sequence[Any], values: Sequence[np.ndarray]) -> None:
    """Put `values` into Keras variables."""
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


def _variables(model: "keras.Model") -> list[Any]:
    return [*model.variables, *model.optimizer.variables]

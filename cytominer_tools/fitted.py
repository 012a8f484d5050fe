"""What a transformer has learnt, in a file: arrays as npz, the rest as JSON in it; nothing that could be executed."""

import io
import json
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.preprocessing import QuantileTransformer

from cytominer_tools import batches, positions, transformers
from cytominer_tools.errors import InputError
from cytominer_tools.files import atomic_path

FORMAT_VERSION = 1
CLASSES: dict[str, type[BaseEstimator]] = {
    known.__name__: known
    for known in (
        transformers.Standardize,
        transformers.Robustize,
        transformers.RobustMAD,
        transformers.InverseNormalTransform,
        transformers.InverseNormal,
        transformers.Spherize,
        transformers.PCA,
        batches.PerBatch,
        batches.TVN,
        positions.WellPosition,
        positions.CellCountRegression,
        positions.MedianPolish,
        QuantileTransformer,
    )
}

_STATE = "state.json"
_PLAIN = (bool, int, float, str, type(None))


def save_transformer(transformer: Any, path: str | Path) -> Path:
    """Write a fitted transformer to a .npz file, and return its path.

    Raises
    ------
    InputError
        It is no transformer of this package that can transform other rows, or the suffix is not .npz.
    """
    path = Path(path)
    if path.suffix != ".npz":
        raise InputError(f"{path}: expected the suffix .npz")
    arrays: dict[str, Any] = {}
    state = {"format_version": FORMAT_VERSION, "transformer": _packed(transformer, arrays)}
    with atomic_path(path) as part, zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in (
            (_STATE, json.dumps(state, indent=1).encode()),
            *((f"{name}.npy", _npy(array)) for name, array in arrays.items()),
        ):
            # a date of its own would make equal files differ
            file.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), content, zipfile.ZIP_DEFLATED)
    return path


def load_transformer(path: str | Path) -> Any:
    """The fitted transformer that `save_transformer` wrote; nothing in the file is executed.

    Raises
    ------
    InputError
        No such file, one of another kind or format version, or a transformer that is not known here.
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as file:
            state = json.loads(file.read(_STATE))
            arrays = {
                name.removesuffix(".npy"): np.load(io.BytesIO(file.read(name)), allow_pickle=False)
                for name in file.namelist()
                if name.endswith(".npy")
            }
        if (version := state["format_version"]) != FORMAT_VERSION:
            raise InputError(f"{path}: format version {version}, this reads {FORMAT_VERSION}; update it")
        return _unpacked(state["transformer"], arrays)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except InputError:
        raise
    except (ValueError, LookupError, TypeError, AttributeError, OSError, EOFError, RuntimeError, *_ZIP) as error:
        raise InputError(f"{path}: not a fitted transformer; write it with save_transformer") from error


# a damaged member can name a compression that there is not, and nested lists can be deeper than Python goes
_ZIP = (zipfile.BadZipFile, zlib.error)


def _packed(value: Any, arrays: dict[str, Any]) -> Any:
    """`value` as JSON, its arrays put into `arrays` under the numbers that stand for them."""
    if isinstance(value, BaseEstimator):
        if CLASSES.get(type(value).__name__) is not type(value):
            raise InputError(f"{type(value).__name__} cannot be saved; there are {', '.join(CLASSES)}")
        return {"class": type(value).__name__, "state": {k: _packed(v, arrays) for k, v in vars(value).items()}}
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, _PLAIN):
        return {"value": value}
    if isinstance(value, list | tuple):
        return {"list": [_packed(one, arrays) for one in value]}
    if isinstance(value, np.ndarray):
        if value.dtype == object:  # names of features
            return {"names": [str(one) for one in value]}
        name = str(len(arrays))
        arrays[name] = value
        return {"array": name}
    raise InputError(f"{type(value).__name__} cannot be saved; use a number, such as of random_state")


def _unpacked(packed: dict[str, Any], arrays: dict[str, Any]) -> Any:
    ((kind, value),) = [(k, v) for k, v in packed.items() if k != "state"]
    if kind == "class":
        if value not in CLASSES:
            raise InputError(f"{value!r} is not a transformer that is known here; there are {', '.join(CLASSES)}")
        made = CLASSES[value]() if value != "PerBatch" else batches.PerBatch(None)
        for name, one in packed["state"].items():
            if not name.isidentifier() or name.startswith("__"):
                raise ValueError(name)
            setattr(made, name, _unpacked(one, arrays))
        return made
    if kind == "list":
        return [_unpacked(one, arrays) for one in value]
    if kind == "names":
        return np.array(value, dtype=object)
    return arrays[value] if kind == "array" else {"value": value}[kind]


def _npy(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()

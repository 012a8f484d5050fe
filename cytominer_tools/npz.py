"""DeepProfiler's npz files, read as data: what is pickled in them is taken apart, never executed."""

import io
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePath
from typing import Any, BinaryIO

import imagecodecs
import numpy as np
import numpy.typing as npt
import pandas as pd

from cytominer_tools.columns import METADATA
from cytominer_tools.errors import InputError

_PLAIN = frozenset("?bhilqpBHILQPefdgFDGUS")  # kinds of numbers and text that a pickled numpy scalar may have


class _Type:
    """Stands for numpy.dtype while a pickle is read: its code, such as O8, and nothing else."""

    def __init__(self, code: str, *_: Any):
        self.code = str(code)

    def __setstate__(self, state: Any) -> None:
        """The byte order and the like, which numbers this small do not need."""


class _Array:
    """Stands for numpy.ndarray while a pickle is read: a list of plain objects and a shape."""

    def __init__(self) -> None:
        self.shape: tuple[int, ...] = ()
        self.items: list[Any] = []

    def __setstate__(self, state: Any) -> None:
        _, self.shape, _, _, items = state
        if not isinstance(items, list):
            raise pickle.UnpicklingError("an array of other things than objects")
        self.items = items


def _reconstruct(*_: Any) -> _Array:
    return _Array()


def _scalar(kind: _Type, data: bytes) -> Any:
    code = kind.code.lstrip("<=|")
    if not code or code[0] not in _PLAIN:
        raise pickle.UnpicklingError(f"a scalar of type {kind.code}")
    return np.frombuffer(data, dtype=code)[0].item()


class _Plain(pickle.Unpickler):
    """Builds text, numbers, lists and dicts; anything that would be imported is refused."""

    def find_class(self, module: str, name: str) -> Any:
        known: dict[tuple[str, str], Callable[..., Any]] = {
            ("multiarray", "_reconstruct"): _reconstruct,
            ("multiarray", "scalar"): _scalar,
            ("numpy", "ndarray"): _Array,
            ("numpy", "dtype"): _Type,
        }
        if module == "numpy" or module.startswith(("numpy.core.", "numpy._core.")):
            found = known.get((module.rsplit(".", 1)[-1], name))
            if found is not None:
                return found
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def read_npz(path: str | Path, names: tuple[str, ...] | None = None) -> dict[str, Any]:
    """The arrays of an npz file, those in `names` if it is given and they are there.

    An array of objects comes as nested lists and dicts of text and numbers: what an array of shape () holds, or a list.

    Raises
    ------
    InputError
        The file is damaged, or holds an object that is not plain data.
    FileNotFoundError
        There is no such file.
    """
    found: dict[str, Any] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.namelist():
                name = member.removesuffix(".npy")
                if names is None or name in names:
                    found[name] = _read_npy(io.BytesIO(_inflated(archive, member)))
    except FileNotFoundError:
        raise
    except pickle.UnpicklingError as error:
        raise InputError(f"{path}: holds an object that is not plain data, {error}; it is not read") from None
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, OSError, LookupError, AttributeError, TypeError) as e:
        raise InputError(f"{path}: cannot be read as npz: {e}") from e
    return found


def _inflated(archive: zipfile.ZipFile, member: str) -> bytes:
    """A member's bytes; libdeflate takes half the time of zlib, which is most of the time of reading a file."""
    info = archive.getinfo(member)
    if info.compress_type != zipfile.ZIP_DEFLATED or archive.fp is None:
        return archive.read(member)
    archive.fp.seek(info.header_offset + 26)
    name_length, extra_length = struct.unpack("<HH", archive.fp.read(4))
    archive.fp.seek(name_length + extra_length, io.SEEK_CUR)
    try:
        data = bytes(imagecodecs.deflate_decode(archive.fp.read(info.compress_size), raw=True, out=info.file_size))
    except imagecodecs.DeflateError as error:
        raise zipfile.BadZipFile(f"{member}: {error}") from error
    if len(data) != info.file_size or imagecodecs.deflate_crc32(data) != info.CRC:
        raise zipfile.BadZipFile(f"{member}: its checksum is another")
    return data


def _read_npy(file: BinaryIO) -> Any:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, kind = read(file)
    data = file.read()
    if not kind.hasobject:
        return np.frombuffer(data, dtype=kind).reshape(shape, order="F" if fortran else "C")
    if kind.kind != "O":
        raise pickle.UnpicklingError(f"an array of type {kind}")
    return _unpickle(io.BytesIO(data))


def _unpickle(file: BinaryIO) -> Any:
    array = _Plain(file).load()
    if not isinstance(array, _Array):
        raise pickle.UnpicklingError("no array")
    return array.items[0] if array.shape == () else array.items


def load_npz_features(npz_file: str | Path, fallback_feature_prefix: str = "DP", metadata: bool = True) -> pd.DataFrame:
    """The single-cell features of one npz file of DeepProfiler, a row a cell, its metadata (as text) in front.

    Features are called PREFIX_0 and so on, the prefix being the value of Metadata_Model where there is one. A file that
    does not exist is an empty table; with ``metadata=False`` there are the features alone, named 0, 1, ...

    Raises
    ------
    InputError
        The file holds no features, or not plain data.
    """
    try:
        arrays = read_npz(npz_file, ("features", "metadata"))
    except FileNotFoundError:
        return pd.DataFrame([])
    features, cells = site_features(npz_file, arrays, fallback_feature_prefix)
    if not metadata:
        return pd.DataFrame(features)
    columns = [f"{cells.prefix}_{i}" for i in range(features.shape[1])]
    table = pd.DataFrame(features, columns=columns)
    if not cells.metadata:
        return table
    words = pd.DataFrame({name: [value] * len(table) for name, value in cells.metadata.items()}, dtype=str)
    return pd.concat([words, table], axis=1)


class SiteMetadata:
    """What DeepProfiler says of all cells of a site.

    Attributes
    ----------
    metadata : dict of str
        ``Metadata_`` names and their values as text; empty where the file has none.
    prefix : str
        What the features are called.
    """

    def __init__(self, metadata: dict[str, str], prefix: str):
        self.metadata, self.prefix = metadata, prefix


def site_features(
    path: str | PurePath, arrays: dict[str, Any], fallback_feature_prefix: str = "DP"
) -> tuple[npt.NDArray[np.floating], SiteMetadata]:
    """Features and metadata of what `read_npz` found in a file.

    Raises
    ------
    InputError
        No features of two axes, or metadata that is not a mapping.
    """
    features = arrays.get("features")
    if not isinstance(features, np.ndarray) or features.ndim != 2:
        raise InputError(f"{path}: expected features of shape (cells, features)")
    given = arrays.get("metadata", {})
    if not isinstance(given, dict):
        raise InputError(f"{path}: expected metadata to be a mapping, got {type(given).__name__}")
    metadata = {
        name if (name := str(key)).startswith(METADATA) else f"{METADATA}{name}": str(value)
        for key, value in given.items()
    }
    return features, SiteMetadata(metadata, metadata.get("Metadata_Model", fallback_feature_prefix))


def load_npz_locations(
    npz_file: str | Path, location_x_col_index: int = 0, location_y_col_index: int = 1
) -> pd.DataFrame:
    """Location_Center_X and Location_Center_Y of each cell, in pixels; an empty table where there is no file.

    Raises
    ------
    InputError
        The file holds no locations.
    IndexError
        A column that the locations do not have.
    """
    try:
        locations = read_npz(npz_file, ("locations",)).get("locations")
    except FileNotFoundError:
        return pd.DataFrame([])
    if not isinstance(locations, np.ndarray) or locations.ndim != 2:
        raise InputError(f"{npz_file}: expected locations of shape (cells, 2)")
    columns = {"location_x_col_index": location_x_col_index, "location_y_col_index": location_y_col_index}
    for name, index in columns.items():
        if index >= locations.shape[1]:
            raise IndexError(f"OutOfBounds indexing via {name}: {index} of {locations.shape[1]} columns")
    return pd.DataFrame(locations[:, list(columns.values())], columns=["Location_Center_X", "Location_Center_Y"])

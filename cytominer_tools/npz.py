"""DeepProfiler's npz files, read as data: nothing in them is executed."""

import io
import math
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt
import pandas as pd

from cytominer_tools.columns import METADATA
from cytominer_tools.errors import InputError
from cytominer_tools.plain_pickle import read_plain

_LARGEST = 2**31  # bytes of an array, which a file of a stranger could make of a few


def read_npz(path: str | Path, names: tuple[str, ...] | None = None) -> dict[str, Any]:
    """The arrays of an npz file, those in `names` if it is given and they are there; see `plain_pickle.read_plain`.

    A pickled array of no axes comes as the object in it: a dict of metadata.

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
            for member in archive.infolist():
                name = member.filename.removesuffix(".npy")
                if names is None or name in names:
                    found[name] = _read_npy(archive, member, f"{path}: {name}")
    except (FileNotFoundError, InputError):
        raise
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, NotImplementedError) as error:
        raise InputError(f"{path}: not a .npz file, or damaged ({error}); make or copy it again") from None
    return found


def _read_npy(archive: zipfile.ZipFile, member: zipfile.ZipInfo, what: str) -> Any:
    """One array, a pickled one by `read_plain`; as long as its header says, before memory is taken."""
    if member.file_size > _LARGEST:
        raise InputError(
            f"{what}: {member.file_size:,} bytes, more than {_LARGEST:,}; it is not what DeepProfiler writes"
        )
    data = _inflated(archive, member)
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(stream)
    start = stream.tell()
    if dtype.hasobject:
        found = read_plain(data[start:], what)
        if not isinstance(found, np.ndarray):
            raise InputError(f"{what}: a pickle that is no array; it is not what DeepProfiler writes")
        return found.item() if found.shape == () else found
    if dtype.names or math.prod(shape) * dtype.itemsize != len(data) - start:
        raise InputError(f"{what}: {len(data) - start:,} bytes for an array of {shape}, {dtype}; copy the file again")
    return np.frombuffer(data, dtype, offset=start).reshape(shape, order="F" if fortran else "C")


def _inflated(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    """A member's bytes; libdeflate takes half the time of zlib, which is most of the time of reading a file."""
    if member.compress_type != zipfile.ZIP_DEFLATED or member.flag_bits & 1 or archive.fp is None:
        return archive.read(member)
    archive.fp.seek(member.header_offset + 26)
    lengths = archive.fp.read(4)
    if len(lengths) < 4:
        raise zipfile.BadZipFile(f"{member.filename}: ends before its data")
    archive.fp.seek(sum(struct.unpack("<HH", lengths)), io.SEEK_CUR)
    try:
        packed = archive.fp.read(member.compress_size)
        data = bytes(imagecodecs.deflate_decode(packed, raw=True, out=member.file_size))
    except imagecodecs.DeflateError as error:
        raise zipfile.BadZipFile(f"{member.filename}: {error}") from None
    if len(data) != member.file_size or imagecodecs.deflate_crc32(data) != member.CRC:
        raise zipfile.BadZipFile(f"{member.filename}: its checksum is another")
    return data


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
    features = feature_array(path, arrays)
    given = arrays.get("metadata", {})
    if not isinstance(given, dict):
        raise InputError(f"{path}: expected metadata to be a mapping, got {type(given).__name__}")
    metadata = {
        name if (name := str(key)).startswith(METADATA) else f"{METADATA}{name}": str(value)
        for key, value in given.items()
    }
    return features, SiteMetadata(metadata, metadata.get("Metadata_Model", fallback_feature_prefix))


def feature_array(path: str | PurePath, arrays: Mapping[str, Any]) -> npt.NDArray[Any]:
    """`features` of what `read_npz` found in a file: numbers, shape (cells, width).

    Raises
    ------
    InputError
        There is none, or it is something else.
    """
    if "features" not in arrays:
        raise InputError(f"{path}: no array `features`; it holds {', '.join(arrays) or 'nothing that is looked for'}")
    features = arrays["features"]
    if not isinstance(features, np.ndarray) or features.ndim != 2 or features.dtype.kind not in "fiu":
        kind = f"of shape {features.shape}, {features.dtype}" if isinstance(features, np.ndarray) else repr(features)
        raise InputError(f"{path}: features {kind}; expected (cells, width) numbers")
    return features


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

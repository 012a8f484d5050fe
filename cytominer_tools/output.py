"""Profiles out: CSV, Parquet, AnnData and GCT, with pycytominer's arguments."""

import csv
import gzip
import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from types import MappingProxyType
from typing import Any, ParamSpec

import numpy as np
import pandas as pd

from cytominer_tools.cellprofiler import infer_cp_features
from cytominer_tools.columns import METADATA, require_columns
from cytominer_tools.compat import as_peer
from cytominer_tools.errors import InputError, ProfileWarning
from cytominer_tools.files import atomic_path
from cytominer_tools.tables import write_table

P = ParamSpec("P")

TYPES = ("csv", "parquet", "anndata_h5ad", "anndata_zarr")
COMPRESSIONS = ("gzip", None)

_GZIP = MappingProxyType({"method": "gzip", "mtime": 1})
_OPTIONS = ("output_file", "output_type", "compression_options", "float_format")
_SUFFIXES = {".parquet": "parquet", ".h5ad": "anndata_h5ad", ".zarr": "anndata_zarr"}
_TEXT = (".csv", ".tsv", ".txt", ".csv.gz", ".tsv.gz", ".txt.gz")


def write_to_file_if_user_specifies_output_details(function: Callable[P, pd.DataFrame]) -> Callable[P, pd.DataFrame]:
    """Give a function that makes a frame pycytominer's output arguments, which its signature must name.

    The name is pycytominer's.
    With `output_file` the frame is written and its path (text) is returned in place of the frame.
    """
    signature = inspect.signature(function)

    @wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> Any:
        bound = signature.bind(*args, **kwargs)
        given = {name: bound.arguments.pop(name, signature.parameters[name].default) for name in _OPTIONS}
        result = function(*bound.args, **bound.kwargs)
        if given["output_file"] is None:
            return result
        return output(
            result,
            given["output_file"],
            output_type=given["output_type"],
            float_format=given["float_format"],
            compression_options=given["compression_options"],
            compat=bound.arguments.get("compat"),
        )

    return wrapper


def output(
    df: pd.DataFrame,
    output_filename: str | Path,
    output_type: str | None = "csv",
    sep: str = ",",
    float_format: str | None = None,
    compression_options: str | Mapping[str, Any] | None = _GZIP,
    *,
    compat: str | None = None,
) -> str:
    """Write `df` without its index and return the path.

    The suffix says what is written: .csv, .tsv and .txt (gzip with .gz), .parquet, .h5ad, .zarr; `output_type` does
    where it has none of these.

    Parameters
    ----------
    output_type : "csv", "parquet", "anndata_h5ad" or "anndata_zarr"
    sep, float_format
        Of text tables. Parquet and AnnData hold numbers as they are.
    compression_options : "gzip", or {"method": "gzip"}, or {"method": None}
        Of a text table whose suffix does not say it.
    compat : "pycytominer-1.7.1", optional
        `output_type` and `compression_options` decide, whatever the suffix says.

    Raises
    ------
    InputError
        An unknown type or compression, a full disk or an unwritable folder.
    """
    path, kind = Path(output_filename), output_type or "csv"
    if kind not in TYPES:
        raise InputError(f"output_type={output_type!r}: expected one of {', '.join(TYPES)}")
    method = set_compression_method(compression_options)["method"]
    if not as_peer(compat):
        named = "csv" if path.name.endswith(_TEXT) else _SUFFIXES.get(path.suffix)
        packed = "gzip" if path.suffix == ".gz" else None if named == "csv" else method
        if ((named or kind) == "csv" and packed != method) or (named or kind) != kind:
            what = f"{named or kind}{' with gzip' if packed and (named or kind) == 'csv' else ''}"
            warnings.warn(f"{path}: written as {what}, as its suffix says", ProfileWarning, stacklevel=3)
        kind, method = named or kind, packed
    if kind.startswith("anndata"):
        from cytominer_tools.anndata import write_anndata

        return write_anndata(df, path, kind)
    if kind == "parquet":
        if path.suffix == ".parquet":
            write_table(df, path)
        else:
            with atomic_path(path) as part:
                df.to_parquet(part, index=False)
        return str(output_filename)
    with atomic_path(path) as part, part.open("wb") as raw:
        if method is None:
            df.to_csv(raw, sep=sep, index=False, float_format=float_format, lineterminator="\n")
        else:
            with gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=1) as file:
                df.to_csv(file, sep=sep, index=False, float_format=float_format, lineterminator="\n")
    return str(output_filename)


def options_of_suffix(path: str | Path) -> dict[str, Any]:
    """The `output_type` and `compression_options` with which `output` writes what the suffix of `path` says.

    >>> options_of_suffix("wells.csv.gz")
    {'output_type': 'csv', 'compression_options': 'gzip'}
    """
    suffix = Path(path).suffix
    return {"output_type": _SUFFIXES.get(suffix, "csv"), "compression_options": "gzip" if suffix == ".gz" else None}


def set_compression_method(compression: str | Mapping[str, Any] | None) -> dict[str, Any]:
    """Compression as a dictionary with the key method.

    Raises
    ------
    InputError
        A method other than gzip and None.
    """
    found = dict(compression) if isinstance(compression, Mapping) else {"method": compression}
    check_compression_method(found.get("method"))
    return {"method": None} | found


def check_compression_method(compression: str | None) -> None:
    """Raise InputError unless a compression is gzip or None."""
    if compression not in COMPRESSIONS:
        raise InputError(f"compression {compression!r} is not supported, select one of gzip, None")


def write_gct(
    profiles: pd.DataFrame,
    output_file: str | Path,
    features: Sequence[str] | str = "infer",
    meta_features: Sequence[str] | str = "infer",
    feature_metadata: pd.DataFrame | None = None,
    version: str = "#1.3",
) -> None:
    """Write profiles as a gene cluster text file (GCT 1.3): a column a profile, a row a feature, metadata above.

    Parameters
    ----------
    feature_metadata : DataFrame, optional
        A row a feature, and a row ``id`` with the names of its columns; written between feature names and values.

    Raises
    ------
    InputError
        Another version, an absent column, feature metadata without a row id.

    References
    ----------
    https://clue.io/connectopedia/gct_format
    """
    if version != "#1.3":
        raise InputError(f"version={version!r}: only version #1.3 is currently supported")
    chosen = infer_cp_features(profiles) if isinstance(features, str) else list(features)
    metadata = infer_cp_features(profiles, metadata=True) if isinstance(meta_features, str) else list(meta_features)
    require_columns(profiles, [*chosen, *metadata], "profiles")
    if feature_metadata is None:
        extra: dict[str, list[Any]] = {"id": ["cp_feature_name"]} | {name: [name] for name in chosen}
        width = 1
    else:
        if "id" not in feature_metadata.index:
            raise InputError("feature_metadata: no row 'id'; it stores the names of the feature metadata")
        extra = {str(name): list(row) for name, *row in feature_metadata.itertuples(name=None)}
        width = feature_metadata.shape[1]
    empty = [np.nan] * width
    rows: list[list[Any]] = [["id", *extra["id"], *(f"SAMPLE_{name}" for name in profiles.index)]]
    rows += [[name.replace(METADATA, ""), *empty, *profiles[name]] for name in metadata]
    rows += [[name, *extra.get(name, empty), *profiles[name]] for name in chosen]
    with atomic_path(Path(output_file)) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter="\t")
        writer.writerow([version])
        writer.writerow([len(chosen), len(profiles), width, len(metadata)])
        writer.writerows(rows)

"""Profiles as AnnData on disk (h5ad, zarr), written and read by its published format, and back without a change."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pandas as pd

from cytominer_tools.columns import METADATA
from cytominer_tools.errors import InputError, NoFileError
from cytominer_tools.files import atomic_folder, atomic_path
from cytominer_tools.frames import require_names

_ARRAY, _TEXT, _DICT = ("array", "0.2.0"), ("string-array", "0.2.0"), ("dict", "0.1.0")


@runtime_checkable
class AnnDataLike(Protocol):
    """What is taken for AnnData, whichever package made it: a matrix, and tables of its rows and its columns."""

    X: Any
    obs: Any
    var: Any


def write_anndata(df: pd.DataFrame, output_filename: str | Path, output_type: str = "anndata_h5ad") -> str:
    """Write profiles as AnnData: X the numeric columns without ``Metadata_``, obs all others, the index as names.

    pycytominer puts numeric metadata into X and sorts obs by name; here `read_anndata` gives the same frame back.

    Raises
    ------
    InputError
        Another type, column names that are not text, or a column that is neither numbers, booleans nor text.

    References
    ----------
    https://anndata.readthedocs.io/en/latest/fileformat-prose.html
    """
    require_names(df)
    features = [
        str(name)
        for name, kind in df.dtypes.items()
        if not str(name).startswith(METADATA) and isinstance(kind, np.dtype) and kind.kind in "fiu"
    ]
    chosen = set(features)
    others = df[[name for name in df.columns if name not in chosen]]
    if slashed := [name for name in others.columns if "/" in name]:
        raise InputError(f"column {slashed[0]}: AnnData takes no / in the names of obs; rename it")
    columns = {str(name): _storable(others[name]) for name in others.columns}
    path = Path(output_filename)
    if output_type == "anndata_h5ad":
        import h5py

        with atomic_path(path) as part, h5py.File(part, "w") as root:
            _write(_H5(root), df, columns, features)
    elif output_type == "anndata_zarr":
        zarr = _zarr()
        with atomic_folder(path) as folder:
            _write(_Zarr(zarr.open_group(str(folder), mode="w", zarr_format=2)), df, columns, features)
    else:
        raise InputError(f"output_type={output_type!r}: expected anndata_h5ad or anndata_zarr")
    return str(output_filename)


def read_anndata(path: str | Path, anndata_category: str | None = None) -> pd.DataFrame:
    """A frame of obs and X; sparse X becomes dense, categories text.

    Parameters
    ----------
    path : .h5ad, .zarr or zipped zarr (.zip)
    anndata_category : "h5ad" or "zarr", optional
        Where the suffix does not say it.

    Raises
    ------
    InputError
        There is no such file, or it is not AnnData.
    """
    path = Path(path)
    if not path.exists():
        raise NoFileError(f"{path}: no such file")
    kind = anndata_category or is_anndata(path)
    try:
        if kind == "h5ad":
            import h5py

            with h5py.File(path, "r") as root:
                return _frame(root)
        if kind == "zarr":
            return _frame(_open_zarr(path))
    except (KeyError, OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as AnnData: {error}") from error
    raise InputError(f"{path}: is not AnnData")


def is_anndata(path_or_anndata_object: Any) -> str | None:
    """ "in-memory", "h5ad" or "zarr"; None for anything else."""
    if isinstance(path_or_anndata_object, AnnDataLike):
        return "in-memory"
    path = Path(path_or_anndata_object)
    if not path.exists():
        return None
    try:
        if path.is_dir() or path.suffix == ".zip":
            return "zarr" if _open_zarr(path).attrs.get("encoding-type") == "anndata" else None
        import h5py

        with h5py.File(path, "r") as root:
            return "h5ad" if root.attrs.get("encoding-type") == "anndata" else None
    except (OSError, KeyError, ValueError):
        return None


def from_anndata(adata: Any) -> pd.DataFrame:
    """A frame of the obs and X of an AnnData object in memory; the index is numbers where the names are."""
    return _indexed(adata.obs.join(adata.to_df(), how="left"))


# --- writing


class _H5:
    def __init__(self, group: Any):
        self.group, self.attrs = group, group.attrs

    def make(self, name: str) -> "_H5":
        return _H5(self.group.create_group(name))

    def put(self, name: str, values: Any, encoding: tuple[str, str]) -> None:
        import h5py

        kind = h5py.string_dtype() if encoding == _TEXT else None
        _label(self.group.create_dataset(name, data=values, dtype=kind).attrs, encoding)


class _Zarr:
    def __init__(self, group: Any):
        self.group, self.attrs = group, group.attrs

    def make(self, name: str) -> "_Zarr":
        return _Zarr(self.group.create_group(name))

    def put(self, name: str, values: Any, encoding: tuple[str, str]) -> None:
        array = np.asarray(values, dtype=str).astype(np.dtypes.StringDType()) if encoding == _TEXT else values
        _label(self.group.create_array(name, data=array).attrs, encoding)


def _write(root: Any, df: pd.DataFrame, columns: dict[str, Any], features: list[str]) -> None:
    _label(root.attrs, ("anndata", "0.1.0"))
    root.put("X", df[features].to_numpy(), _ARRAY)
    _write_frame(root.make("obs"), df.index, columns)
    _write_frame(root.make("var"), pd.Index(features), {})
    for name in ("layers", "obsm", "varm", "obsp", "varp"):
        _label(root.make(name).attrs, _DICT)
    extra = root.make("uns")
    _label(extra.attrs, _DICT)
    extra.put("column_order", list(df.columns), _TEXT)
    extra.put("feature_types", [str(df[name].dtype) for name in features], _TEXT)


def _write_frame(group: Any, index: pd.Index, columns: dict[str, Any]) -> None:
    _label(group.attrs, ("dataframe", "0.2.0"))
    group.attrs["_index"] = "_index"
    group.attrs["column-order"] = list(columns) if columns else np.zeros(0).tolist()
    group.put("_index", [str(name) for name in index], _TEXT)
    for name, values in columns.items():
        if isinstance(values, pd.Categorical):
            part = group.make(name)
            _label(part.attrs, ("categorical", "0.2.0"))
            part.attrs["ordered"] = False
            part.put("categories", [str(value) for value in values.categories], _TEXT)
            part.put("codes", values.codes, _ARRAY)
        else:
            group.put(name, values, _ARRAY)


def _label(attrs: Any, encoding: tuple[str, str]) -> None:
    attrs["encoding-type"], attrs["encoding-version"] = encoding


def _storable(column: pd.Series) -> Any:
    if isinstance(column.dtype, np.dtype) and column.dtype.kind in "fiub":
        return column.to_numpy()
    known = column[column.notna()]
    if not known.map(lambda value: isinstance(value, str)).all():
        raise InputError(f"column {column.name}: expected numbers, booleans or text; make it one of these first")
    return pd.Categorical(column.astype(object))


def _zarr() -> Any:
    try:
        import zarr
    except ImportError as error:
        raise InputError("zarr is not installed; pip install 'deepprofile[zarr]', or write .h5ad") from error
    return zarr


def _open_zarr(path: Path) -> Any:
    zarr = _zarr()
    store = zarr.storage.ZipStore(str(path), mode="r") if path.suffix == ".zip" else str(path)
    # what is consolidated may leave out the groups inside a column
    return zarr.open_group(store, mode="r", use_consolidated=False)


# --- reading


def _frame(root: Any) -> pd.DataFrame:
    if root.attrs.get("encoding-type") != "anndata":
        raise ValueError("its encoding-type is not anndata")
    obs, var = _table(root["obs"]), _table(root["var"])
    x = root["X"]
    matrix = x[...] if hasattr(x, "shape") else _dense(x)
    features = pd.DataFrame(matrix, index=obs.index, columns=var.index.tolist())
    extra = root.get("uns", {})
    if "feature_types" in extra:
        kinds = dict(zip(features.columns, _texts(extra["feature_types"]), strict=True))
        features = features.astype({name: kind for name, kind in kinds.items() if str(features[name].dtype) != kind})
    table = pd.concat([obs, features], axis=1)
    if "column_order" in extra and set(order := _texts(extra["column_order"])) == set(table.columns):
        table = table[order]
    return _indexed(table)


def _table(group: Any) -> pd.DataFrame:
    index = pd.Index(_texts(group[group.attrs["_index"]]))
    names = [name.decode() if isinstance(name, bytes) else str(name) for name in group.attrs["column-order"]]
    return pd.DataFrame({name: _column(group[name]) for name in names}, index=index)


def _column(item: Any) -> Any:
    if item.attrs.get("encoding-type") == "categorical":
        words = np.array([*_values(item["categories"]), np.nan], dtype=object)
        return pd.Series(words[item["codes"][...]]).infer_objects().to_numpy()
    if "mask" in item and not hasattr(item, "shape"):  # a nullable array
        return pd.Series(item["values"][...]).where(~item["mask"][...]).to_numpy()
    return _values(item)


def _values(item: Any) -> Any:
    return np.array(_texts(item), dtype=object) if item.attrs.get("encoding-type") == "string-array" else item[...]


def _texts(item: Any) -> Sequence[str]:
    return [value.decode() if isinstance(value, bytes) else str(value) for value in item[...].tolist()]


def _dense(group: Any) -> Any:
    from scipy import sparse

    make = {"csr_matrix": sparse.csr_matrix, "csc_matrix": sparse.csc_matrix}[group.attrs["encoding-type"]]
    parts = tuple(group[name][...] for name in ("data", "indices", "indptr"))
    return make(parts, shape=tuple(group.attrs["shape"])).toarray()


def _indexed(table: pd.DataFrame) -> pd.DataFrame:
    """The index as numbers where its names are all numbers as they would be written."""
    names = table.index.astype(str)
    if len(names) and names.str.fullmatch(r"0|-?[1-9]\d*").all():
        table = table.set_axis(names.astype("int64"), axis=0)
        if table.index.equals(pd.RangeIndex(len(table))):
            table.index = pd.RangeIndex(len(table))
    return table

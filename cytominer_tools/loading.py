"""Profiles and plate maps from files as pycytominer takes them: CSV, Parquet, CytoTable warehouses, AnnData."""

from pathlib import Path
from typing import Any

import pandas as pd

from cytominer_tools.anndata import AnnDataLike, from_anndata, read_anndata
from cytominer_tools.columns import METADATA
from cytominer_tools.errors import InputError, NoFileError
from cytominer_tools.tables import separator

_ANNDATA = (".h5ad", ".zarr", ".zip")


def load_profiles(profiles: Any) -> pd.DataFrame:
    """A table of profiles: itself, from a file, from a CytoTable warehouse, or from AnnData.

    Text tables are UTF-8 with a byte order mark or without, separated by commas, semicolons or tabs, with .gz or
    without; pandas decides what is a number. (`read_table` is for tables of a study, whose plates stay text.)

    Raises
    ------
    InputError
        There is no such file, it cannot be read, or a warehouse holds several tables.
    """
    if isinstance(profiles, pd.DataFrame):
        return profiles
    if isinstance(profiles, AnnDataLike):
        return from_anndata(profiles)
    if not isinstance(profiles, str | Path):
        raise InputError(f"profiles: expected a DataFrame or a path, got {type(profiles).__name__}")
    path = Path(profiles)
    if not path.exists():
        raise NoFileError(f"{path}: no such file")
    if (found := resolve_parquet_path(path)) is not None:
        return _read_parquet(found)
    if (target := resolve_cytotable_profiles_target(path)) is not None:
        return load_cytotable_profiles(target[0], target[2], target[1])
    if path.suffix in _ANNDATA:
        return read_anndata(path)
    return _read_text(path, None)


def load_platemap(platemap: Any, add_metadata_id: bool = True, sep: str | None = None) -> pd.DataFrame:
    """A copy of a plate map, from a file unless it is a frame; ``Metadata_`` in front of its names if asked for.

    Raises
    ------
    InputError
        There is no such file, or it cannot be read.
    """
    if isinstance(platemap, pd.DataFrame):
        table = platemap.copy()
    else:
        if not Path(platemap).exists():
            raise NoFileError(f"{platemap} platemap file not found")
        table = _read_text(Path(platemap), sep)
    if add_metadata_id:
        table.columns = pd.Index([prefixed(name) for name in table.columns])
    return table


def prefixed(name: Any) -> Any:
    """A column name with ``Metadata_`` in front; what is not text, or has it, stays."""
    return f"{METADATA}{name}" if isinstance(name, str) and not name.startswith(METADATA) else name


def infer_delim(file: str | Path) -> str:
    """What separates the values of a text table: comma, semicolon or tab, whichever its header holds most of."""
    if not Path(file).exists():
        raise NoFileError(f"{file}: no such file")
    try:
        return separator(Path(file))
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: is not UTF-8; save it as UTF-8") from error
    except OSError as error:
        raise InputError(f"{file}: cannot be read as text: {error}") from error


def is_path_a_parquet_file(file: str | Path) -> bool:
    """Whether a path that exists ends with .parquet.

    Raises
    ------
    InputError
        There is no such file.
    """
    if not isinstance(file, str | Path):
        return False
    if not Path(file).exists():
        raise NoFileError(f"load_profiles() didn't find the path: {file}")
    return Path(file).suffix == ".parquet"


def is_path_a_parquet_dataset_dir(file: str | Path) -> bool:
    """Whether a path is a folder with files in it, all of them Parquet.

    Raises
    ------
    InputError
        There is no such folder.
    """
    if not isinstance(file, str | Path):
        return False
    if not (path := Path(file)).exists():
        raise NoFileError(f"load_profiles() didn't find the path: {file}")
    files = [child for child in path.iterdir() if child.is_file()] if path.is_dir() else []
    return bool(files) and all(child.suffix == ".parquet" for child in files)


def resolve_parquet_path(path_like: str | Path) -> Path | None:
    """The Parquet file or folder of Parquet files at a path, or in its data/ as Iceberg has it, or None."""
    path = Path(path_like)
    for candidate in (path, path / "data"):
        if candidate.is_file() and candidate.suffix == ".parquet":
            return candidate
        if candidate.is_dir() and is_path_a_parquet_dataset_dir(candidate):
            return candidate
    return None


def resolve_cytotable_profiles_target(warehouse_path: str | Path) -> tuple[Path, str, str] | None:
    """Root, namespace and name of the one table of profiles in a CytoTable warehouse; None where there is none.

    Raises
    ------
    InputError
        There are several: `load_cytotable_profiles` takes the name of one.
    """
    root = Path(warehouse_path)
    found = [
        (folder.parent, "profiles", child.name)
        for folder in (root / "profiles", root / "warehouse" / "profiles")
        if folder.is_dir()
        for child in sorted(folder.iterdir())
        if child.is_dir() and resolve_parquet_path(child) is not None
    ]
    if len(found) > 1:
        raise InputError(
            f"{root}: found multiple parquet-backed profile tables, {', '.join(name for _, _, name in found)}; "
            "name one: load_cytotable_profiles(path, table_name=...)"
        )
    return found[0] if found else None


def load_cytotable_profiles(
    warehouse_path: str | Path, table_name: str = "joined_profiles", namespace: str = "profiles"
) -> pd.DataFrame:
    """A table of a CytoTable warehouse: every Parquet file of ``NAMESPACE/TABLE/data``, whatever its snapshots say.

    Raises
    ------
    InputError
        There is no such table.
    """
    root = Path(warehouse_path)
    for folder in (root / namespace / table_name, root / "warehouse" / namespace / table_name):
        if folder.is_dir() and (found := resolve_parquet_path(folder)) is not None:
            return _read_parquet(found)
    raise NoFileError(f"{root}: no table {namespace}/{table_name} with Parquet files in it, nor in warehouse/ below")


def _read_parquet(path: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(path)
    except (ValueError, OSError) as error:  # the errors of pyarrow
        raise InputError(f"{path}: cannot be read as parquet: {str(error).splitlines()[0]}") from error


def _read_text(path: Path, sep: str | None) -> pd.DataFrame:
    try:
        return pd.read_csv(path, sep=separator(path) if sep is None else sep, encoding="utf-8-sig", low_memory=False)
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8; save it as UTF-8") from error
    except (ValueError, OSError, EOFError) as error:  # those of pandas are ValueErrors
        raise InputError(f"{path}: cannot be read as text: {(str(error).splitlines() or ['?'])[0]}") from error

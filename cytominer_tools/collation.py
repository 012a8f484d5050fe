"""CellProfiler's CSV files of a plate, a folder an image set, as one SQLite file and the profiles of its wells."""

import configparser
import hashlib
import shutil
import sqlite3
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pandas as pd

from cytominer_tools.columns import PLATE, WELL
from cytominer_tools.errors import InputError, NoFileError
from cytominer_tools.files import atomic_path
from cytominer_tools.single_cells import SingleCells, quoted

COMPARTMENTS = ("Cells", "Cytoplasm", "Nuclei")
TABLE_NUMBER = "TableNumber"  # which image set a row is of

_FILES = {"image": "Image.csv", "object": "Object.csv", "experiment": "Experiment.csv"}
_NUMBERS = ("ImageNumber", "ObjectNumber")  # not called after their table


def run_check_errors(cmd: Sequence[str]) -> None:
    """Run a system command.

    Raises
    ------
    InputError
        It fails, or there is no such command.
    """
    try:
        done = subprocess.run(cmd, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise InputError(f"{cmd[0]}: no such command; install it") from None
    if done.returncode != 0:
        why = done.stderr.strip() or done.stdout.strip() or f"exit status {done.returncode}"
        raise InputError(f"{' '.join(cmd)}: {why}")


def collate(
    batch: str,
    config: str | Path,
    plate: str,
    base_directory: str | Path = "../..",
    column: str | None = None,
    munge: bool = False,
    csv_dir: str = "analysis",
    aws_remote: str | None = None,
    aggregate_only: bool = False,
    tmp_dir: str | Path | None = None,
    overwrite: bool = False,
    add_image_features: bool = True,
    image_feature_categories: Sequence[str] | None = ("Granularity", "Texture", "ImageQuality", "Threshold"),
    printtoscreen: bool = True,
) -> None:
    """Make BASE/backend/BATCH/PLATE/PLATE.sqlite of the CSV files of a plate, and PLATE.csv: the mean of each well.

    The files are BASE/analysis/BATCH/PLATE/CSV_DIR/SET/{Image,Cells,Cytoplasm,Nuclei}.csv, a folder SET for each run of
    the pipeline. Tables and columns are those of cytominer-database, which is not needed. A site without cells stays in
    the image table; a compartment of which no site has an object is a table without rows, and its features are missing
    in the profiles.

    Parameters
    ----------
    config : path
        An INI file whose section [filenames] may name the files `image`, `object` and `experiment`.
    column : str, optional
        Copied to Metadata_Plate, where the image table has none.
    munge : bool
        All objects stand in one file, with their compartment in a first header row.
    aws_remote : str, optional
        Where ``aws s3`` gets the CSV files, and puts the results; then the local files of both are deleted.
    aggregate_only : bool
        The SQLite file is there.
    tmp_dir : path, optional
        Where the SQLite file is built.
    overwrite : bool
        Replace one that an earlier run has left there.

    Raises
    ------
    InputError
        A folder or file is absent or cannot be read, or ``aws`` fails.
    """

    def say(text: str) -> None:
        if printtoscreen:
            print(text)

    names = _file_names(Path(config))
    base = Path(base_directory)
    source, backend = base / "analysis" / batch / plate / csv_dir, base / "backend" / batch / plate
    database, profiles = backend / f"{plate}.sqlite", backend / f"{plate}.csv"
    remote = f"{aws_remote}/backend/{batch}/{plate}"
    if not aggregate_only:
        built = Path(tempfile.gettempdir() if tmp_dir is None else tmp_dir) / "backend" / batch / plate / database.name
        if built.exists() and not overwrite:
            raise InputError(f"{built}: is there from an earlier run; delete it, or pass overwrite=True")
        if aws_remote:
            say(f"Downloading CSVs to {source}")
            files = [names["image"], *([names["object"]] if munge else [f"{name}.csv" for name in COMPARTMENTS])]
            wanted = [word for name in files for word in ("--include", f"*/{name}")]
            place = f"{aws_remote}/analysis/{batch}/{plate}/{csv_dir}"
            run_check_errors(["aws", "s3", "sync", "--exclude", "*", *wanted, place, str(source)])
        say(f"Ingesting {source}")
        with atomic_path(built) as part:
            _ingest(source, part, names, column, munge)
        if aws_remote:
            say(f"Uploading {built} to {remote}")
            run_check_errors(["aws", "s3", "cp", str(built), f"{remote}/{database.name}"])
            shutil.rmtree(source)
        with atomic_path(database) as part:  # which may be on another disk
            shutil.copyfile(built, part)
        built.unlink()
    elif aws_remote:
        backend.mkdir(parents=True, exist_ok=True)
        run_check_errors(["aws", "s3", "cp", f"{remote}/{database.name}", str(database)])
    say(f"Aggregating {database}")
    cells = SingleCells(
        str(database),
        aggregation_operation="mean",
        add_image_features=add_image_features,
        image_feature_categories=image_feature_categories if add_image_features else None,
    )
    with closing(cells):
        cells.aggregate_profiles(output_file=profiles)
    if aws_remote:
        say(f"Uploading {profiles} to {remote}")
        run_check_errors(["aws", "s3", "cp", str(profiles), f"{remote}/{profiles.name}"])
        shutil.rmtree(backend)


def _file_names(config: Path) -> dict[str, str]:
    found = configparser.ConfigParser()
    try:
        if not found.read(config, encoding="utf-8"):
            raise NoFileError(f"{config}: no such file")
    except (configparser.Error, UnicodeDecodeError) as error:
        raise InputError(f"{config}: cannot be read as INI: {str(error).splitlines()[0]}") from None
    return _FILES | (dict(found["filenames"]) if found.has_section("filenames") else {})


def _ingest(source: Path, database: Path, names: dict[str, str], column: str | None, munge: bool) -> None:
    folders = sorted(path.parent for path in source.glob(f"*/{names['image']}"))
    if not folders:
        raise InputError(f"{source}: no folder in it has a file {names['image']}")
    seen: dict[str, list[str]] = {}
    with closing(sqlite3.connect(database)) as connection, connection:
        for folder in folders:
            image = folder / names["image"]
            number = hashlib.md5(image.read_bytes(), usedforsecurity=False).hexdigest()
            _append(connection, "Image", _read(image), number, image)
            for name, (path, table) in _objects(folder, names, munge).items():
                renamed = {one: f"{name}_{one}" for one in table.columns if one not in _NUMBERS}
                table = table.rename(columns=renamed)
                seen.setdefault(name, list(table.columns))
                _append(connection, name, table, number, path)
        for name, columns in seen.items():
            kinds = {one: "INTEGER" if one in _NUMBERS else "REAL" for one in columns}
            said = ", ".join(f"{quoted(one)} {kind}" for one, kind in ({TABLE_NUMBER: "TEXT"} | kinds).items())
            connection.execute(f"CREATE TABLE IF NOT EXISTS {quoted(name)} ({said})")  # of an object, no site has one
        known = [row[1] for row in connection.execute("PRAGMA table_info(Image)")]
        if lacking := [name for name in (column or PLATE, WELL) if name not in known]:
            raise InputError(
                f"{source}: the image tables have no column {lacking[0]}; `column` names that of the plate"
            )
        if column is not None:
            if PLATE not in known:
                connection.execute(f"ALTER TABLE Image ADD COLUMN {PLATE} TEXT")
            connection.execute(f"UPDATE Image SET {PLATE} = {quoted(column)}")
        connection.execute(f"CREATE INDEX table_image ON Image({TABLE_NUMBER}, ImageNumber)")
        connection.execute(f"CREATE INDEX plate_well_image ON Image({PLATE}, {WELL})")
        for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            if (name := str(row[0])) != "Image":
                keys = f"{TABLE_NUMBER}, ImageNumber, ObjectNumber"
                connection.execute(f"CREATE INDEX {quoted(f'table_image_object_{name}')} ON {quoted(name)}({keys})")


def _objects(folder: Path, names: dict[str, str], munge: bool) -> dict[str, tuple[Path, pd.DataFrame]]:
    """Compartment to its file and table."""
    if not munge:
        paths = [path for path in sorted(folder.glob("*.csv")) if path.name not in names.values()]
        return {path.stem.capitalize(): (path, _read(path)) for path in paths}
    path = folder / names["object"]
    table = _read(path, header=[0, 1])
    out = {}
    for name in sorted({str(pair[0]) for pair in table.columns} - {"Image"}):
        part = pd.concat([table["Image"], table[name]], axis=1)
        part.insert(1, "ObjectNumber", part["Number_Object_Number"])
        out[name] = path, part
    return out


def _read(path: Path, header: int | list[int] = 0) -> pd.DataFrame:
    try:
        return pd.read_csv(path, header=header, encoding="utf-8-sig", low_memory=False)
    except FileNotFoundError:
        raise NoFileError(f"{path}: no such file") from None
    except (ValueError, OSError) as error:  # those of pandas are ValueErrors
        raise InputError(f"{path}: cannot be read as text: {(str(error).splitlines() or ['?'])[0]}") from None


def _append(connection: sqlite3.Connection, name: str, table: pd.DataFrame, number: str, path: Path) -> None:
    table = pd.concat([pd.DataFrame({TABLE_NUMBER: [number] * len(table)}, index=table.index), table], axis=1)
    if table.empty:  # its columns have no types, and would make text of what comes after
        return
    try:
        table.to_sql(name, connection, if_exists="append", index=False)
    except (sqlite3.Error, pd.errors.DatabaseError) as error:
        raise InputError(f"{path}: its columns are not those of the folders before it ({error})") from error

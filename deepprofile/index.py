"""The sites of a study: one row each, from a table, from LoadData tables, or from the names of the image files."""

from collections.abc import Sequence
from difflib import get_close_matches
from glob import glob, has_magic
from pathlib import Path

import pandas as pd

from cytominer_tools.columns import COUNT, PLATE, SITE, WELL, metadata_columns, require_columns
from cytominer_tools.errors import InputError
from cytominer_tools.tables import read_table, write_table
from deepprofile.loaddata import (
    common_start,
    drop_image_columns,
    has_image,
    image_column,
    image_names,
    is_windows,
    move_root,
)
from deepprofile.ome_zarr import scan_plates
from deepprofile.patterns import PLANES, scan_folder
from deepprofile.platemaps import join_metadata, join_platemaps, plain_well, prefixed
from deepprofile.problems import Problem as Problem
from deepprofile.problems import problem_lines
from deepprofile.references import is_url, parse, split_fragment, with_fragment
from deepprofile.study import Study
from deepprofile.work import log


def load_index(study: Study, *, tell: bool = False) -> pd.DataFrame:
    """The sites of `study`, sorted by plate, well and site; with `tell`, what the joins lost is logged in one line.

    Returns
    -------
    DataFrame, a row per site
        Metadata_Plate, Metadata_Well (A01), Metadata_Site as text, the other ``Metadata_`` columns, and a column per
        channel with the image's path relative to ``images.root`` (or the folder of the pattern), or its URL; the planes
        of a stack with ``|`` between them, and the choice of a plane after ``#`` (`deepprofile.references`).

    Raises
    ------
    InputError
        Lists every problem that keeps the table from being an index.
    """
    table, problems = read_index(study)
    if errors := [problem for problem in problems if problem.level == "error"]:
        raise InputError("\n  ".join([f"the index has {len(errors)} problem(s)", *problem_lines(errors)]))
    if tell:
        _log_losses(study, problems)
    return table


def write_index(study: Study, table: pd.DataFrame) -> None:
    """Keep `table` as index.parquet, for people and other programs; written only where it differs."""
    path = study.root / "index.parquet"
    if not path.exists() or not read_table(path).equals(table):
        write_table(table, path)


def read_index(study: Study) -> tuple[pd.DataFrame, list[Problem]]:
    """The sites of `study` as far as they can be read, and every problem found on the way.

    Raises
    ------
    InputError
        There is no table at all: a file or a needed column is absent, or no image name matches the pattern.
    """
    images = study.images
    if images.zarr is not None:
        plates = (images.zarr,) if isinstance(images.zarr, str) else images.zarr
        place = ", ".join(plates)
        table = scan_plates(plates, study.image_base, study.channels)
        rows = [f"{place} site {' '.join(key)}" for key in table[[PLATE, WELL, SITE]].itertuples(index=False)]
    elif images.folder is not None and images.pattern is not None:
        place = str(study.image_root)
        table = scan_folder(study.image_root, images.pattern, study.channels)
        rows = [f"{place} site {' '.join(key)}" for key in table[[PLATE, WELL, SITE]].itertuples(index=False)]
    else:
        place = str(study.path(str(images.index)))
        table, rows = _read_tables(place)
    require_columns(table, [PLATE, WELL], place)
    if SITE not in table:
        table[SITE] = "1"  # one image a well; two of them are found as duplicates below
    paths, problems = _paths(study, table, place)
    used = {column for column, _ in _columns(study, table).values()}
    table = drop_image_columns(table.drop(columns=[c for c in table.columns if c in used]))
    table.columns = prefixed(table, place)
    if images.platemaps is not None:
        maps = images.platemaps
        table, lost = join_platemaps(table, study.path(maps.barcodes), study.path(maps.folder))
        problems += lost
    for more in images.metadata:
        table, lost = join_metadata(table, study.path(more.table), more.on)
        problems += lost
    problems += [*_absent(study, table, place), *_number_problems(study, table)]
    wells = table[WELL].map({well: plain_well(well) for well in table[WELL].unique()})
    problems += [
        Problem(rows[i], f"{table[WELL].iloc[i]!r} is not a well such as A01")
        for i in wells.isna().to_numpy().nonzero()[0]
    ]
    table[WELL] = wells.fillna(table[WELL])
    for name in (PLATE, SITE):
        table[name] = table[name].astype(str)
        problems += [Problem(rows[i], f"{name} is empty") for i in (table[name] == "").to_numpy().nonzero()[0]]
    for channel in paths:
        problems += [
            Problem(rows[i], f"no image for channel {channel}; this site is left out", "warning")
            for i in (paths[channel] == "").to_numpy().nonzero()[0]
        ]
    twice = table.duplicated([PLATE, WELL, SITE], keep="first")
    for i in twice.to_numpy().nonzero()[0]:
        key = " ".join(table.iloc[i][[PLATE, WELL, SITE]])
        problems.append(Problem(rows[i], f"site {key} stands in an earlier row too; remove one"))
    first = [PLATE, WELL, SITE]
    table = table[[*first, *(c for c in metadata_columns(table) if c not in first)]]
    problems += _many_in_a_well(study, table, place)
    table = pd.concat([table, paths], axis=1)
    order = table[SITE].str.zfill(8)  # site 10 after site 9
    table = table.assign(_order=order).sort_values([PLATE, WELL, "_order"], kind="stable").drop(columns="_order")
    return table.reset_index(drop=True), problems


def other_machine(study: Study, index: pd.DataFrame) -> list[Problem]:
    """A problem where images lie in folders that are not on this machine, one for all of them.

    It looks at folders, not at files, and at no URL.
    """
    named = pd.unique(index[list(study.channels)].to_numpy().ravel())
    paths = [one for path in named for one in _files(path) if one and not is_url(one)]
    folders = {path.rpartition("/")[0] for path in paths if Path(path).is_absolute() or is_windows(path)}
    gone = sorted(folder for folder in folders if not Path(folder).is_dir())
    if not gone:
        return []
    lost = [path for path in paths if path.rpartition("/")[0] in set(gone)]
    start = common_start(lost)
    what = (
        f"{len(lost)} of {len(paths)} image paths start with {start}, where this machine has no such folder "
        f"({gone[0]}); say where they are with images.roots: {{{start!r}: 'folder/'}}"
    )
    return [Problem("images", what)]


def _log_losses(study: Study, problems: Sequence[Problem]) -> None:
    tables = [study.path(more.table) for more in study.images.metadata]
    if study.images.platemaps is not None:
        tables.append(study.path(study.images.platemaps.folder))
    lost = [str(p) for p in problems if p.level == "warning" and p.place in map(str, tables)]
    if lost:
        log.info("index: %s", "; ".join(lost))


def _files(path: str) -> tuple[str, ...]:
    try:
        return parse(path).files
    except InputError:  # said where the image is read
        return ()


def _columns(study: Study, table: pd.DataFrame) -> dict[str, tuple[str, str]]:
    """Channel -> the column, or the LoadData image, that it is read from, and which plane of the file it is."""
    if study.images.index is None:
        return {name: (name, "") for name in study.channels}
    return {k: (name, "") if name in table else split_fragment(name) for k, name in study.channels.items()}


def _read_tables(place: str) -> tuple[pd.DataFrame, list[str]]:
    """The table at `place`, or all of a pattern such as load_data_csv/*/load_data.csv, and what to call each row."""
    paths = sorted(glob(place, recursive=True)) if has_magic(place) and not Path(place).exists() else [place]
    if not paths:
        raise InputError(f"{place}: no such file")
    tables = [read_table(path, metadata=True) for path in paths]
    if len(tables) > 1:
        odd = next((i for i, one in enumerate(tables) if set(one.columns) != set(tables[0].columns)), None)
        if odd is not None:
            name = sorted(map(str, set(tables[odd].columns) ^ set(tables[0].columns)))[0]
            raise InputError(f"{paths[odd]}: its columns are not those of {paths[0]}; one alone has {name!r}")
    rows = [f"{path} row {i + 2}" for path, one in zip(paths, tables, strict=True) for i in range(len(one))]
    return pd.concat(tables, ignore_index=True), rows


def _paths(study: Study, table: pd.DataFrame, place: str) -> tuple[pd.DataFrame, list[Problem]]:
    """A column of paths per channel, with the roots of another machine replaced."""
    columns = _columns(study, table)
    problems = []
    if absent := [name for name, _ in columns.values() if name not in table and not has_image(table, name)]:
        have = [*image_names(table), *map(str, table.columns)]
        close = {name: get_close_matches(name, have, 1) for name in absent}
        said = "; ".join(f"no column {n!r}" + (f", is it {c[0]!r}?" if c else "") for n, c in close.items())
        raise InputError(f"{place}: {said}; `channels` in study.yaml names a column of image paths per channel")
    found = {}
    for channel, (name, plane) in columns.items():
        paths = table[name].fillna("").astype("str") if name in table else image_column(table, name)
        if study.images.folder is None:
            moved = {path: _moved(study, path) for path in paths.unique()}
            paths = paths.map({old: with_fragment(new, plane) if new else "" for old, new in moved.items()})
        found[channel] = paths.astype("str")
        folder = f"PathName_{name.removeprefix('FileName_')}"
        if name.startswith("FileName_") and folder in table:
            what = f"{name} is read without {folder}; write {name.removeprefix('FileName_')} to use both"
            problems.append(Problem(f"study.yaml channels.{channel}", what, "warning"))
    return pd.DataFrame(found, index=table.index), problems


def _moved(study: Study, path: str) -> str:
    """`path`, of one file or of the planes of a stack, as it is called on this machine."""
    return PLANES.join(move_root(one, study.images.roots) for one in path.split(PLANES))


def _absent(study: Study, table: pd.DataFrame, place: str) -> list[Problem]:
    named = {f"columns.{key}": name for key, name in study.columns.model_dump().items() if name is not None}
    named |= {f"profiles.consensus.{i}": name for i, name in enumerate(study.profiles.consensus)}
    named |= {f"scores.{k}": v for k in ("labels", "replicates") if (v := getattr(study.scores, k)) is not None}
    named |= {f"scores.exclude_same.{i}": name for i, name in enumerate(study.scores.exclude_same)}
    have = metadata_columns(table)
    taken = [Problem(place, f"{COUNT} is what the number of cells of a well will be called; rename that column")]
    return (taken if COUNT in have else []) + [
        Problem(f"study.yaml {key}", f"no column {name!r} in {place}; it has {', '.join(have)}")
        for key, name in named.items()
        if name not in have
    ]


def _many_in_a_well(study: Study, table: pd.DataFrame, place: str) -> list[Problem]:
    """The columns that the profile of a well must have one value of, where a well has several."""
    problems = []
    labels = (study.scores.replicates or study.treatment, study.scores.labels or study.columns.moa)
    for name in dict.fromkeys((*study.consensus, *labels, *study.scores.exclude_same)):
        if name is not None and name in table and name not in (PLATE, WELL):
            values = table.groupby([PLATE, WELL], observed=True)[name].nunique(dropna=False)
            if len(many := values[values > 1]):
                what = f"{name} has several values in {len(many)} well(s), first {' '.join(many.index[0])}"
                problems.append(Problem(place, f"{what}; a profile is of a whole well: give its sites one value"))
    return problems


def _number_problems(study: Study, table: pd.DataFrame) -> list[Problem]:
    name = study.columns.concentration
    if name is None or name not in table or pd.api.types.is_numeric_dtype(table[name]):
        return []
    numbers = pd.to_numeric(table[name], errors="coerce")
    bad = (numbers.isna() & table[name].notna() & (table[name] != "")).to_numpy().nonzero()[0]
    return [Problem(f"index row {i + 2}", f"{name} is {table[name].iloc[i]!r}, expected a number") for i in bad]


def sites_by_well(index: pd.DataFrame, plate: str) -> dict[str, pd.DataFrame]:
    """The sites of each well of `plate`, in the order of the index."""
    rows = index[index[PLATE] == plate]
    return {str(well): sites for well, sites in rows.groupby(WELL, sort=True)}


def constant_metadata(index: pd.DataFrame, by: Sequence[str]) -> list[str]:
    """The ``Metadata_`` columns that have one value (or none) in each group of `by`, without `by` and the site."""
    names = [c for c in metadata_columns(index) if c not in by and c != SITE]
    groups = index.groupby(list(by), dropna=False, observed=True)
    return [name for name in names if (groups[name].nunique(dropna=False) <= 1).all()]

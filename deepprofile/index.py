"""The sites of a study: one row each, from a table or from the names of the image files."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

import pandas as pd

from cytominer_tools.columns import METADATA, PLATE, SITE, WELL, metadata_columns, require_columns, well_name
from cytominer_tools.errors import InputError
from cytominer_tools.tables import read_table, write_table
from deepprofile.images import SUFFIXES
from deepprofile.study import Study

# Tried in this order where no pattern is given. A leading zero of a site is not part of its name.
PATTERNS = {
    "Phenix, Operetta (r01c01f01p01-ch1sk1fk1fl1.tiff)": (
        r"r(?P<row>\d+)c(?P<col>\d+)f0*(?P<site>\d+)p0*1-ch(?P<channel>\d+)sk1fk1fl1\.tiff?$"
    ),
    "generic (PLATE/A01_s1_DNA.tif)": (
        r"(?:(?P<plate>[^/]+)/)?(?P<well>[A-Za-z]{1,2}\d{1,2})_s?0*(?P<site>\d+)_(?P<channel>[^/_]+)\.\w+$"
    ),
}


@dataclass(frozen=True)
class Problem:
    """Something in a study that its owner should look at."""

    place: str
    what: str
    level: Literal["error", "warning"] = "error"

    def __str__(self) -> str:
        return f"{self.place}: {self.what}"


def load_index(study: Study) -> pd.DataFrame:
    """The sites of `study`, sorted by plate, well and site.

    Returns
    -------
    DataFrame, a row per site
        Metadata_Plate, Metadata_Well (A01), Metadata_Site as text, the other ``Metadata_`` columns, and a column per
        channel with the image's path relative to ``images.root`` (or the folder of the pattern).

    Raises
    ------
    InputError
        Lists every problem that keeps the table from being an index.
    """
    table, problems = read_index(study)
    if errors := [str(problem) for problem in problems if problem.level == "error"]:
        shown = errors[:20] + ([f"... and {len(errors) - 20} more"] if len(errors) > 20 else [])
        raise InputError("\n  ".join([f"the index has {len(errors)} problem(s)", *shown]))
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
    if study.images.folder is not None and study.images.pattern is not None:
        place = str(study.image_root)
        table = scan_folder(study.image_root, study.images.pattern, study.channels)
    else:
        path = study.path(str(study.images.index))
        place, table = str(path), read_table(path, metadata=True)
    require_columns(table, [PLATE, WELL], place)
    for name in study.images.metadata:
        table = _joined(table, study.path(name))
    if SITE not in table:
        table[SITE] = "1"  # one image a well; two of them are found as duplicates below
    columns = list(study.channels.values()) if study.images.folder is None else list(study.channels)
    if absent := [name for name in columns if name not in table]:
        close = {name: get_close_matches(name, map(str, table.columns), 1) for name in absent}
        said = "; ".join(f"no column {n!r}" + (f", is it {c[0]!r}?" if c else "") for n, c in close.items())
        raise InputError(f"{place}: {said}; `channels` in study.yaml names a column of image paths per channel")
    paths = table[columns].set_axis(list(study.channels), axis="columns")
    table = table.drop(columns=[c for c in table.columns if c in columns])
    table.columns = _prefixed(table, place)
    problems = [*_absent(study, table, place), *_number_problems(study, table)]
    wells = table[WELL].map({well: _well(well) for well in table[WELL].unique()})
    problems += [
        Problem(f"{place} row {i + 2}", f"{table[WELL].iloc[i]!r} is not a well such as A01")
        for i in range(len(table))
        if pd.isna(wells.iloc[i])
    ]
    table[WELL] = wells.fillna(table[WELL])
    for name in (PLATE, SITE):
        table[name] = table[name].astype(str)
        problems += [
            Problem(f"{place} row {i + 2}", f"{name} is empty") for i in (table[name] == "").to_numpy().nonzero()[0]
        ]
    for channel in paths:
        empty = paths[channel].isna() | (paths[channel].astype(str) == "")
        problems += [
            Problem(f"{place} row {i + 2}", f"no image for channel {channel}; this site is left out", "warning")
            for i in empty.to_numpy().nonzero()[0]
        ]
    twice = table.duplicated([PLATE, WELL, SITE], keep="first")
    for i in twice.to_numpy().nonzero()[0]:
        key = " ".join(table.iloc[i][[PLATE, WELL, SITE]])
        problems.append(Problem(f"{place} row {i + 2}", f"site {key} stands in an earlier row too; remove one"))
    first = [PLATE, WELL, SITE]
    table = table[[*first, *(c for c in metadata_columns(table) if c not in first)]]
    table = pd.concat([table, paths.fillna("").astype(str)], axis=1)
    order = table[SITE].str.zfill(8)  # site 10 after site 9
    table = table.assign(_order=order).sort_values([PLATE, WELL, "_order"], kind="stable").drop(columns="_order")
    return table.reset_index(drop=True), problems


def scan_folder(folder: Path, pattern: str, channels: Mapping[str, str] | None = None) -> pd.DataFrame:
    """A row per site from the names of the image files under `folder`.

    Parameters
    ----------
    folder : Path
    pattern : str
        A regular expression, searched in the path relative to `folder` (with ``/``), with the named groups ``well``
        (or ``row`` and ``col`` numbers) and ``channel``; ``site`` is 1 and ``plate`` the first folder where they are
        absent.
    channels : name -> value of the group `channel`, optional
        By default each value names itself.

    Returns
    -------
    DataFrame
        Metadata_Plate, _Well, _Site and a path column per channel (empty where there is no image).

    Raises
    ------
    InputError
        Not a pattern, no such folder, no name matches, or two files are the same site and channel.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise InputError(f"images.pattern: {error} in {pattern!r}") from None
    groups = set(compiled.groupindex)
    if "channel" not in groups or not ("well" in groups or {"row", "col"} <= groups):
        raise InputError(f"images.pattern {pattern!r}: expected named groups channel and well (or row and col)")
    names = list_images(folder)
    found: dict[tuple[str, str, str], dict[str, str]] = {}
    values: dict[str, None] = {}
    for name in names:
        match = compiled.search(name)
        if match is None:
            continue
        part = match.groupdict()
        well = part.get("well") or _letters(int(part["row"])) + part["col"]
        plate = part.get("plate") or (name.split("/")[0] if "/" in name else folder.resolve().name)
        site = found.setdefault((plate, well, part.get("site") or "1"), {})
        if part["channel"] in site:
            raise InputError(
                f"{folder}: {site[part['channel']]} and {name} are the same site and channel; "
                "narrow images.pattern to one plane and time point"
            )
        site[part["channel"]] = name
        values[part["channel"]] = None
    if not found:
        raise InputError(f"{folder}: none of {len(names)} image names matches {pattern!r}; one is {names[0]}")
    channels = channels or {value: value for value in sorted(values)}
    if absent := [f"{name} ({value!r})" for name, value in channels.items() if value not in values]:
        raise InputError(
            f"{folder}: no image of channel {', '.join(absent)}; the names hold {', '.join(sorted(values))}"
        )
    rows = [[*key, *(site.get(value, "") for value in channels.values())] for key, site in sorted(found.items())]
    return pd.DataFrame(rows, columns=[PLATE, WELL, SITE, *channels])


def list_images(folder: Path) -> list[str]:
    """The image files under `folder`, as sorted paths relative to it; an InputError where there are none."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
    if not names:
        raise InputError(f"{folder}: no image ({', '.join(SUFFIXES)}) in it or below")
    return names


def guess_pattern(folder: Path) -> str:
    """The known pattern that matches most image names under `folder`; an InputError where none does."""
    names = list_images(folder)
    counts = {p: sum(re.search(p, name) is not None for name in names) for p in PATTERNS.values()}
    best = max(counts, key=lambda p: counts[p])
    if not counts[best]:
        raise InputError(
            f"{folder}: no known pattern matches names like {names[0]}; give --pattern, a regular expression such as "
            r"'(?P<plate>[^/]+)/(?P<well>[A-P]\d\d)_(?P<site>\d+)_(?P<channel>\w+)\.tif'"
        )
    return best


def _joined(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    more = read_table(path, metadata=True)
    usual = {"plate": PLATE, "well": WELL, "well_position": WELL}
    more = more.rename(columns=usual | {f"{METADATA}{name}": key for name, key in usual.items()})
    more.columns = _prefixed(more, str(path))
    require_columns(more, [WELL], str(path))
    if PLATE in more:
        more[PLATE] = more[PLATE].astype(str)  # a column called plate may have been read as numbers
    on = [name for name in (PLATE, WELL) if name in more]
    for side in (table, more):
        side["_well"] = side[WELL].map({well: _well(well) or well for well in side[WELL].unique()})
    keys = [n for n in on if n != WELL] + ["_well"]
    if (twice := more[more.duplicated(keys)]).shape[0]:
        raise InputError(f"{path}: well {twice[WELL].iloc[0]} stands in it more than once; keep one row a well")
    new = [c for c in more.columns if c not in table.columns]
    return table.merge(more[[*keys, *new]], on=keys, how="left", validate="m:1").drop(columns="_well")


def _prefixed(table: pd.DataFrame, place: str) -> list[str]:
    names = [name if name.startswith(METADATA) else f"{METADATA}{name}" for name in map(str, table.columns)]
    if twice := [name for i, name in enumerate(names) if name in names[:i]]:
        raise InputError(f"{place}: two columns for {twice[0]}; remove one, or rename it")
    return names


def _absent(study: Study, table: pd.DataFrame, place: str) -> list[Problem]:
    named = {f"columns.{key}": name for key, name in study.columns.model_dump().items() if name is not None}
    named |= {f"profiles.consensus.{i}": name for i, name in enumerate(study.profiles.consensus)}
    named |= {f"scores.{k}": v for k in ("labels", "replicates") if (v := getattr(study.scores, k)) is not None}
    named |= {f"scores.exclude_same.{i}": name for i, name in enumerate(study.scores.exclude_same)}
    have = metadata_columns(table)
    return [
        Problem(f"study.yaml {key}", f"no column {name!r} in {place}; it has {', '.join(have)}")
        for key, name in named.items()
        if name not in have
    ]


def _number_problems(study: Study, table: pd.DataFrame) -> list[Problem]:
    name = study.columns.concentration
    if name is None or name not in table or pd.api.types.is_numeric_dtype(table[name]):
        return []
    numbers = pd.to_numeric(table[name], errors="coerce")
    bad = (numbers.isna() & table[name].notna() & (table[name] != "")).to_numpy().nonzero()[0]
    return [Problem(f"index row {i + 2}", f"{name} is {table[name].iloc[i]!r}, expected a number") for i in bad]


def _well(well: object) -> str | None:
    try:
        return well_name(str(well))
    except InputError:
        return None


def _letters(row: int) -> str:
    """Row 1 is A, row 27 AA.

    >>> _letters(1), _letters(16), _letters(32)
    ('A', 'P', 'AF')
    """
    return chr(64 + row) if row <= 26 else "A" + chr(64 + row - 26)


def sites_by_well(index: pd.DataFrame, plate: str) -> dict[str, pd.DataFrame]:
    """The sites of each well of `plate`, in the order of the index."""
    rows = index[index[PLATE] == plate]
    return {str(well): sites for well, sites in rows.groupby(WELL, sort=True)}


def constant_metadata(index: pd.DataFrame, by: Sequence[str]) -> list[str]:
    """The ``Metadata_`` columns that have one value (or none) in each group of `by`, without `by` and the site."""
    names = [c for c in metadata_columns(index) if c not in by and c != SITE]
    groups = index.groupby(list(by), dropna=False, observed=True)
    return [name for name in names if (groups[name].nunique(dropna=False) <= 1).all()]

"""What the wells were treated with: plate maps by barcode, and tables of wells or compounds, joined to the sites."""

import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from cytominer_tools.columns import METADATA, PLATE, SITE, WELL, require_columns, well_name
from cytominer_tools.errors import InputError
from cytominer_tools.tables import read_table
from deepprofile.problems import Problem, named

_USUAL = {"plate": PLATE, "well": WELL, "well_position": WELL, "Assay_Plate_Barcode": PLATE}
PLATE_MAP = f"{METADATA}Plate_Map_Name"
_SUFFIXES = (".txt", ".tsv", ".csv")


def join_platemaps(table: pd.DataFrame, barcodes: Path, folder: Path) -> tuple[pd.DataFrame, list[Problem]]:
    """Join to each site what its plate's map says of its well.

    Parameters
    ----------
    table : DataFrame
        A row per site, with Metadata_Plate and Metadata_Well.
    barcodes : Path
        A table with Assay_Plate_Barcode and Plate_Map_Name, as the Cell Painting Gallery has it.
    folder : Path
        Of the maps: a .txt, .tsv or .csv called as in Plate_Map_Name, with well_position.

    Returns
    -------
    DataFrame
        The rows of `table` in their order, with Metadata_Plate_Map_Name and the columns of the maps.
    list of Problem
        Errors: plates that no row of `barcodes` names, maps that are no file. Warnings: wells that a map lacks.

    Raises
    ------
    InputError
        `barcodes` or a map cannot be read, lacks a column, or names a plate or a well more than once.
    """
    names = _metadata_table(barcodes)
    require_columns(names, [PLATE, PLATE_MAP], str(barcodes))
    names = pd.DataFrame({name: _text(names[name]) for name in (PLATE, PLATE_MAP)}).drop_duplicates()
    names = names[names[PLATE] != ""]
    if (twice := names.loc[names[PLATE].duplicated(), PLATE]).size:
        raise InputError(f"{barcodes}: plate {twice.iloc[0]} has more than one map; keep one row a plate")
    map_of = dict(zip(names[PLATE], names[PLATE_MAP], strict=True))
    problems: list[Problem] = []
    plates = list(dict.fromkeys(table[PLATE].astype("str")))
    if bare := [plate for plate in plates if plate not in map_of]:
        what = f"no plate map for {len(bare)} of {len(plates)} plates: {named(bare, 10)}"
        problems.append(Problem(str(barcodes), f"{what}; add them, or take their rows out of the index"))
    maps = []
    for name in dict.fromkeys(map_of[plate] for plate in plates if plate in map_of):
        found = [path for suffix in _SUFFIXES if (path := folder / f"{name}{suffix}").is_file()]
        of = [plate for plate in plates if map_of.get(plate) == name]
        if not found:
            what = f"no file {name}.txt, .tsv or .csv, the map of {named(of, 10)}"
            problems.append(Problem(str(folder), what))
            continue
        wells = _metadata_table(found[0])
        require_columns(wells, [WELL], str(found[0]))
        wells = wells.drop(columns=[n for n in (PLATE, PLATE_MAP) if n in wells])  # the barcodes say which plates
        _once(wells, [WELL], str(found[0]))
        maps += [wells.assign(**{PLATE: plate, PLATE_MAP: name}) for plate in of]
    if not maps:
        return table, problems
    known = {plate for one in maps for plate in one[PLATE].unique()}
    more = pd.concat(maps, ignore_index=True)
    joined, lost = _join(table, more, [PLATE, WELL], str(folder), asked=table[PLATE].astype("str").isin(known))
    return joined, problems + lost


def join_metadata(table: pd.DataFrame, path: Path, on: Sequence[str] = ()) -> tuple[pd.DataFrame, list[Problem]]:
    """Join to each site the row of the table at `path` that has its keys.

    Parameters
    ----------
    table : DataFrame
        A row per site, with Metadata_Plate and Metadata_Well.
    path : Path
        A table with a row per key; its columns get the prefix Metadata_.
    on : names of columns, optional
        The keys, with or without Metadata_, such as broad_sample; by default plate and well, as far as it has
        them. A missing value is a value: wells without a compound get the row without a compound, where there is one.

    Returns
    -------
    DataFrame
        The rows of `table` in their order, with the columns that it did not have.
    list of Problem
        Warnings that name what is lost: wells without a row, rows without a well, columns that stand in both tables
        and differ (those of `table` stay).

    Raises
    ------
    InputError
        The table cannot be read, lacks a key, or names a key more than once.
    """
    more = _metadata_table(path)
    if on:
        keys = [_USUAL.get(bare := name.removeprefix(METADATA), f"{METADATA}{bare}") for name in on]
        require_columns(table, keys, "the index and what was joined before")
    else:
        keys = [name for name in (PLATE, WELL) if name in more] or [WELL]
    require_columns(more, keys, str(path))
    _once(more, keys, str(path))
    return _join(table, more, keys, str(path))


def plain_well(well: object) -> str | None:
    """`well` as A01, or None where it is none."""
    try:
        return well_name(str(well))
    except InputError:
        return None


def well_spellings(well: str) -> list[str]:
    """The ways in which the files of a well may write it, the usual one first.

    >>> well_spellings("f01"), well_spellings("P24")
    (['F01', 'F1', 'f01', 'f1'], ['P24', 'p24'])
    """
    name = plain_well(well) or well
    short = re.sub(r"(?<=\D)0(?=\d$)", "", name)
    return list(dict.fromkeys([name, short, name.lower(), short.lower()]))


def prefixed(table: pd.DataFrame, place: str) -> list[str]:
    """The columns of `table`, each with Metadata_; an InputError where two become one."""
    names = [name if name.startswith(METADATA) else f"{METADATA}{name}" for name in map(str, table.columns)]
    if twice := [name for i, name in enumerate(names) if name in names[:i]]:
        raise InputError(f"{place}: two columns for {twice[0]}; remove one, or rename it")
    return names


def _metadata_table(path: Path) -> pd.DataFrame:
    table = read_table(path, metadata=True)
    table = table.rename(columns=_USUAL | {f"{METADATA}{name}": key for name, key in _USUAL.items()})
    table.columns = prefixed(table, str(path))
    return table


def _keys(table: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """The key columns as text that compares: wells as A01, 1.0 as 1, missing as ""."""
    return pd.DataFrame({name: _wells(table[name]) if name == WELL else _text(table[name]) for name in keys})


def _wells(column: pd.Series) -> pd.Series:
    return column.map({well: plain_well(well) or str(well) for well in column.unique()})


def _text(column: pd.Series) -> pd.Series:
    if pd.api.types.is_float_dtype(column) and (column.dropna() % 1 == 0).all():
        column = column.astype("Int64")
    return column.astype("str").where(column.notna(), "")


def _once(table: pd.DataFrame, keys: Sequence[str], place: str) -> None:
    twice = table[_keys(table, keys).duplicated()]
    if len(twice):
        first = ", ".join(f"{_plain(name)} {twice[name].iloc[0]}" for name in keys)
        raise InputError(
            f"{place}: {first} stands in it more than once; keep one row a {' and '.join(map(_plain, keys))}"
        )


def _join(
    table: pd.DataFrame, more: pd.DataFrame, keys: Sequence[str], place: str, asked: pd.Series | None = None
) -> tuple[pd.DataFrame, list[Problem]]:
    """`more` joined to the rows of `table`; `asked`: the rows that should find one, by default all."""
    ours, theirs = pd.MultiIndex.from_frame(_keys(table, keys)), pd.MultiIndex.from_frame(_keys(more, keys))
    row = theirs.get_indexer(ours)  # -1 where there is none
    by = " and ".join(map(_plain, keys))
    problems = []
    wells = pd.DataFrame({PLATE: table[PLATE].astype("str"), WELL: _wells(table[WELL]), "found": row >= 0})
    wells = wells if asked is None else wells[asked]
    every = wells.drop_duplicates([PLATE, WELL])
    if len(bare := every[~every["found"]]):
        first = named(bare[PLATE] + " " + bare[WELL], 10)
        what = f"no row of it has the {by} of {len(bare)} of {len(every)} wells: {first}"
        problems.append(Problem(place, what, "warning"))
    used = pd.Series(range(len(more))).isin(row)
    if len(unused := theirs[~used.to_numpy()]):
        first = named((" ".join(map(str, key)) or "(none)" for key in unused), 10)
        problems.append(Problem(place, f"{len(unused)} of its {len(more)} rows are not used, {by} {first}", "warning"))
    for name in [name for name in more.columns if name in table and name not in (*keys, PLATE, WELL, SITE)]:
        differ = (row >= 0) & (_text(table[name]).to_numpy() != _text(more[name]).to_numpy()[row])
        if differ.any():
            what = f"its {name} differs from that of the index in {differ.sum()} of {len(table)} rows and is not used"
            problems.append(Problem(place, what, "warning"))
    new = more[[name for name in more.columns if name not in table]].reset_index(drop=True)
    return pd.concat([table, new.reindex(row).set_axis(table.index)], axis=1), problems


def _plain(name: str) -> str:
    """A column's name as people say it.

    >>> _plain("Metadata_Well"), _plain("Metadata_broad_sample")
    ('well', 'broad_sample')
    """
    return {PLATE: "plate", WELL: "well"}.get(name, name.removeprefix(METADATA))

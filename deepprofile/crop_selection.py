"""Which cells are kept: by a query, a list of treatments, and chance, which is that of the seed alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from cytominer_tools.columns import METADATA, PLATE, SITE, WELL
from cytominer_tools.errors import InputError
from cytominer_tools.manifest import digest
from cytominer_tools.queries import select
from cytominer_tools.tables import SUFFIXES, read_table
from deepprofile.codes import plain_text, text_codes
from deepprofile.crop_source import CropSource
from deepprofile.crop_store import with_metadata
from deepprofile.problems import named
from deepprofile.study import Study
from deepprofile.work import log

_TABLES = (*SUFFIXES, ".tsv", ".tsv.gz")


def chosen_cells(study: Study, index: pd.DataFrame, sources: Sequence[CropSource]) -> dict[tuple[str, str], np.ndarray]:
    """Which cells of each (plate, well) `export` keeps: bool, as located; wells whose cells are all kept are absent.

    The filters come first: `query` and `treatments`. Of what is left, the cells with the smallest of the `draws` are
    kept: `fraction` and `per_well` of each well, `per_treatment` of each treatment over all wells. So a larger number
    keeps the cells of a smaller one and more, and workers do not matter, nor other wells but for `per_treatment`.

    Raises
    ------
    InputError
        The query fails, or names a column that is neither in the index nor among the locations; there is no treatment
        column; the file of treatments cannot be read, or none of its treatments is in the study.
    """
    export = study.export
    asked = export.query, export.treatments, export.fraction, export.per_well, export.per_treatment
    if all(one is None for one in asked):
        return {}
    names, of_site = _treatments(study, index)
    wanted = None if export.treatments is None else _wanted(study, names)
    chosen: dict[tuple[str, str], np.ndarray] = {}
    drawn: list[_Cells] = []
    for source in sources:
        for well, sites in source.sites.items():
            if not source.located.manifest.parts[well].rows:
                continue
            cells = source.located.read(well, None if export.query else [PLATE, WELL, SITE]).to_pandas()
            codes = dict(zip(sites[SITE], of_site[sites.index], strict=True))
            treatment = cells[SITE].map(codes).fillna(-1).to_numpy(np.int32)
            kept = (
                cells[SITE].isin(codes).to_numpy(copy=True)
            )  # a site may have left the index since the cells were located
            if export.query is not None:
                kept &= select(with_metadata(cells, sites), export.query).to_numpy()
            if wanted is not None:
                kept &= np.isin(treatment, wanted)
            chance = draws(study.seed, source.plate, well, len(cells))
            if export.fraction is not None:
                kept = lowest(chance, kept, int(export.fraction * kept.sum() + 0.5))
            if export.per_well is not None:
                kept = lowest(chance, kept, export.per_well)
            chosen[source.plate, well] = kept
            if export.per_treatment is not None:
                drawn.append(_Cells(kept, chance, treatment))
    if export.per_treatment is not None:
        _keep_of_treatments(drawn, len(names), export.per_treatment)
    if chosen and not any(kept.any() for kept in chosen.values()):
        raise InputError(
            "export: no cell is left by the query, the treatments and the numbers of `export`; nothing was changed "
            "(plate, well and site are text: Metadata_Site == '1')"
        )
    return {well: kept for well, kept in chosen.items() if not kept.all()}


def draws(seed: int, plate: str, well: str, n: int) -> np.ndarray:
    """A number in [0, 1) for each of the `n` cells of a well in the order they were located, float64 (n,)."""
    return np.random.default_rng([seed, int(digest([plate, well]), 16)]).random(n)


def lowest(chance: np.ndarray, kept: np.ndarray, n: int) -> np.ndarray:
    """The `n` of the cells that are `kept` whose `chance` is lowest, all where there are fewer; bool (n_cells,)."""
    among = np.flatnonzero(kept)
    few = np.zeros(len(kept), bool)
    few[among[np.argsort(chance[among], kind="stable")[:n]]] = True
    return few


def read_treatments(path: str | Path, column: str) -> list[str]:
    """The treatments that a file lists, in its order, each once.

    Parameters
    ----------
    path : str or Path
        A table (.csv, .tsv, .parquet) with a column called `column`, with or without ``Metadata_`` before it; any other
        file is text in UTF-8 with a treatment a line.
    column : str
        The treatment column of the index.

    Raises
    ------
    InputError
        No such file, no such column, or nothing in it.
    """
    path = Path(path)
    if path.name.endswith(_TABLES):
        table = read_table(path, metadata=True)
        short = column.removeprefix(METADATA)
        name = next((one for one in (column, METADATA + short, short) if one in table), None)
        if name is None:
            raise InputError(
                f"{path}: no column {column!r} or {short!r}; it has {named(list(map(str, table.columns)), 12)}; name "
                "the column of treatments so, or list them in a .txt file, one a line"
            )
        values = [plain_text(value) for value in table[name].dropna()]
    else:
        try:
            values = path.read_text("utf-8-sig").splitlines()
        except FileNotFoundError:
            raise InputError(f"{path}: no such file; it should list treatments, one a line") from None
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: cannot be read ({error}); save it as UTF-8 text, a treatment a line") from error
    listed = list(dict.fromkeys(value.strip() for value in values if value.strip()))
    if not listed:
        raise InputError(f"{path}: it lists no treatment")
    return listed


@dataclass
class _Cells:
    kept: np.ndarray  # bool
    chance: np.ndarray
    treatment: np.ndarray  # its number, -1 where there is none


def _treatments(study: Study, index: pd.DataFrame) -> tuple[tuple[str, ...], np.ndarray]:
    """The names of all treatments, and the number of the treatment of each site of `index`, -1 where it has none."""
    if study.treatment is not None:
        return text_codes(index[study.treatment])
    for key in ("treatments", "per_treatment"):
        if getattr(study.export, key) is not None:
            raise InputError(f"export.{key}: name the column of the treatments in columns.treatment")
    return (), np.full(len(index), -1)


def _wanted(study: Study, names: Sequence[str]) -> list[int]:
    """The numbers of the treatments that `export.treatments` lists."""
    path = study.path(str(study.export.treatments))
    listed = read_treatments(path, str(study.treatment))
    number = {name: i for i, name in enumerate(names)}
    absent = [name for name in listed if name not in number]
    if len(absent) == len(listed):
        raise InputError(
            f"export.treatments: none of the {len(listed)} treatments in {path} is in {study.treatment}; it lists "
            f"{named(listed)}, the study has {named(names)}"
        )
    if absent:
        log.warning("export: %d treatment(s) of %s are not in the study: %s", len(absent), path, named(absent, 12))
    return [number[name] for name in listed if name in number]


def _keep_of_treatments(wells: Sequence[_Cells], treatments: int, n: int) -> None:
    """Keep, in place, the `n` cells of each treatment with the lowest draws over all wells, and none without one."""
    lows = [np.empty(0)] * treatments
    for cells in wells:
        for number in np.unique(cells.treatment[cells.kept & (cells.treatment >= 0)]):
            mine = cells.chance[cells.kept & (cells.treatment == number)]
            lows[number] = np.sort(np.concatenate([lows[number], mine]))[:n]
    highest = np.array([*(low[-1] if len(low) else -1.0 for low in lows), -1.0])  # the last for those without
    for cells in wells:
        cells.kept &= cells.chance <= highest[cells.treatment]

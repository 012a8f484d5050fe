"""What profiling looks at: the cells of images, tiles of images, or the crops of the store; each read by a thread."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd

from cytominer_tools.columns import CELL, METADATA, PLATE, SITE, WELL
from cytominer_tools.errors import InputError
from cytominer_tools.manifest import PlateTable
from deepprofile.crop_source import (
    CropSource,
    keep_earlier_parts,
    lacks_site,
    lost_cells,
    open_source,
    read_source,
    require_same_crops,
    site_name,
)
from deepprofile.crop_store import MEND, Crops, plate_crops, store_keys
from deepprofile.index import sites_by_well
from deepprofile.locations import X, Y
from deepprofile.sites import image_fingerprint, site_rows
from deepprofile.study import Study

_CHUNK = 16  # crops that a thread reads at a time
_CUT = 4  # crops that are cut at a time and scaled while they are in the cache

# fills (n, H, W, C), float32, with the network's input of rows start to start + n
Fill = Callable[[int, np.ndarray], None]


@dataclass(frozen=True)
class View:
    """A site, or a few crops: a row of the table for each, and what fills a batch with them."""

    cells: pd.DataFrame | None  # the key, the centre and what else is known; None where there is none
    fill: Fill | None = None
    skipped: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Job:
    """A piece of a well that one thread reads."""

    read: Callable[[], View]
    sites: int  # that are done with it
    last: bool  # of its well


class Views(Protocol):
    """What there is to look at of one plate."""

    @property
    def sites(self) -> dict[str, pd.DataFrame]:
        """Rows of the index by well."""

    @property
    def depth(self) -> str | None:
        """That of the crop store; None where the images are looked at."""

    def inputs(self, well: str) -> Any:
        """What the features of `well` depend on beside the settings, as JSON values."""

    def jobs(self, well: str) -> Iterator[Job]:
        """The pieces of `well`, at least one, in the order of its rows."""


@dataclass(frozen=True)
class _Images:
    """The cells that were located, cut out of the images."""

    study: Study
    source: CropSource
    strict: bool
    depth: None = None

    @property
    def sites(self) -> dict[str, pd.DataFrame]:
        return self.source.sites

    def inputs(self, well: str) -> Any:
        return self.source.inputs(self.study, well)

    def jobs(self, well: str) -> Iterator[Job]:
        rows = site_rows(self.sites[well])
        cells = self._cells(well)
        for row in rows:
            here = None if cells is None else cells[cells[SITE] == row[SITE]]
            yield Job(partial(self._read, row, here), 1, row is rows[-1])

    def _cells(self, well: str) -> pd.DataFrame | None:
        return self.source.located.read(well).to_pandas()

    def _read(self, row: Mapping[str, str], cells: pd.DataFrame | None) -> View:
        if cells is not None and not len(cells):
            return View(None)
        site, what = read_source(self.study, row, strict=self.strict), site_name(row)
        if isinstance(site, str):
            return View(None, skipped=[(what, site)])
        preprocess = self.study.preprocess
        if cells is None:
            cells = tiles(row, site.image.shape, preprocess.size)
        xy = cells[[X, Y]].to_numpy()
        kept = preprocess.keep(xy, site.image.shape)
        lost = lost_cells(preprocess, what, kept)
        cells, xy = cells[kept], xy[kept]
        numbers = cells[CELL].to_numpy()

        def fill(start: int, out: np.ndarray) -> None:
            for first in range(0, len(out), _CUT):
                some = slice(start + first, min(start + first + _CUT, start + len(out)))
                cut = site.cut(preprocess, xy[some], numbers[some])
                self.source.scale(preprocess, site, cut, out[first : first + _CUT])

        return View(cells, fill, lost)


class _Tiles(_Images):
    """Views that cover the site, whatever is in it."""

    def inputs(self, well: str) -> Any:
        levels = None if self.source.levels is None else self.source.levels.tolist()
        return ["tiles", image_fingerprint(self.study, self.sites[well]), levels, self.source.correction]

    def _cells(self, well: str) -> pd.DataFrame | None:
        return None


@dataclass(frozen=True)
class _Crops:
    """The crops of the store."""

    study: Study
    store: "_Store"
    plate: str
    sites: dict[str, pd.DataFrame]
    table: PlateTable  # of the store
    strict: bool
    depth: str

    def inputs(self, well: str) -> Any:
        return ["crops", self.table.manifest.parts[well].key]

    def jobs(self, well: str) -> Iterator[Job]:
        part, sites = self.table.manifest.parts[well], len(self.sites[well])
        if self.strict and lacks_site(part):
            what, why = part.skipped[0]
            raise InputError(f"{self.table.folder}: {what} is not among the crops: {why}")
        said = list(part.skipped)
        if not part.rows:
            yield Job(lambda: View(None, skipped=said), sites, last=True)
            return
        crops = self.store.crops(self.plate)
        cells = self.table.read(well)
        cells = cells.select([name for name in cells.column_names if name.startswith(METADATA)])  # not where it lies
        frame, first = cells.to_pandas(), int((crops.table[WELL] == well).to_numpy().argmax())
        size = min(self.study.profile.batch, _CHUNK)
        for start in range(0, len(frame), size):
            some = frame.iloc[start : start + size]
            read = partial(_read_crops, crops, some, first + start, [] if start else said)
            last = start + size >= len(frame)
            yield Job(read, sites if last else 0, last)


def _read_crops(crops: Crops, cells: pd.DataFrame, first: int, skipped: list[tuple[str, str]]) -> View:
    pixels = crops.network_input(slice(first, first + len(cells)))

    def fill(start: int, out: np.ndarray) -> None:
        out[:] = pixels[start : start + len(out)]

    return View(cells, fill, skipped)


@dataclass
class _Store:
    """The crop store, a plate of it at a time, as the table of one may have a million rows."""

    folder: Path
    opened: tuple[str, Crops] | None = None

    def crops(self, plate: str) -> Crops:
        if self.opened is None or self.opened[0] != plate:
            self.opened = None  # let go of before the next is read
            self.opened = plate, Crops(self.folder, plates=[plate])
        return self.opened[1]


def open_views(study: Study, index: pd.DataFrame, plates: Iterable[str], *, strict: bool = False) -> dict[str, Views]:
    """What there is to look at of each of `plates` under `profile.source` and `profile.tiles`.

    Raises
    ------
    InputError
        The locations or intensities are not made. Of the crop store: there is none, it is not finished, or was exported
        with other channels or by other settings.
    """
    if study.profile.source == "images":
        kind = _Tiles if study.profile.tiles else _Images
        tiled = study.profile.tiles
        return {name: kind(study, open_source(study, index, name, located=not tiled), strict) for name in plates}
    store, keys = _Store(study.crop_store), store_keys(study.crop_store)
    return {name: _open_crops(study, index, store, keys, name, strict) for name in plates}


def keep_earlier_views(study: Study, what: str, todo: Sequence[tuple[Views, PlateTable, str]]) -> None:
    """Stop before results in (views, table, well) are replaced by nothing.

    Raises
    ------
    InputError
        None of a few sites that they were made from can be used any more, or the crop store is empty.
    """
    images = [(views.source, table, well) for views, table, well in todo if isinstance(views, _Images)]
    keep_earlier_parts(study, what, images)
    stored = []
    for views, table, well in todo:
        before = table.manifest.parts.get(well)
        if isinstance(views, _Crops) and before is not None and before.rows:
            stored.append(views.table.manifest.parts[well])
    if stored and not any(part.rows for part in stored):
        raise InputError(
            f"{what} would be replaced by nothing, as none of {len(stored)} wells has a crop in {study.crop_store}; "
            "nothing was changed: look at `export` in study.yaml, or delete them to go on without"
        )


def tiles(row: Mapping[str, str], shape: tuple[int, ...], size: int) -> pd.DataFrame:
    """The views of `size` px that cover an image of `shape` (H, W, ..), by rows; numbered in the column of the cells.

    As few as do, from edge to edge, evenly: they overlap where the side is no multiple of `size`. One that is larger
    than the image has its middle in the image's.
    """
    y, x = (_starts(side, size) + size // 2 for side in shape[:2])
    rows, columns = np.meshgrid(y, x, indexing="ij")
    key = {name: row[name] for name in (PLATE, WELL, SITE)}
    table = pd.DataFrame({CELL: np.arange(rows.size, dtype=np.int32), X: columns.ravel(), Y: rows.ravel()})
    return pd.DataFrame({**key, **table}).astype({X: float, Y: float})


def _starts(side: int, size: int) -> np.ndarray:
    """First pixel of each view along one side."""
    if side <= size:
        return np.array([(side - size) // 2])
    n = -(-side // size)
    return np.arange(n) * (side - size) // (n - 1)


def _open_crops(
    study: Study,
    index: pd.DataFrame,
    store: _Store,
    keys: Mapping[tuple[str, str], str],
    plate: str,
    strict: bool,
) -> _Crops:
    sites, table = sites_by_well(index, plate), plate_crops(store.folder, plate)
    parts = table.manifest.parts
    if lacking := [well for well in sites if well not in parts or keys.get((plate, well)) != parts[well].key]:
        raise InputError(
            f"{store.folder}: {len(lacking)} of {len(sites)} wells of plate {plate} are not as the last export wants "
            f"them, first {lacking[0]}; {MEND}"
        )
    settings = table.manifest.settings
    require_same_crops(study, store.folder, settings["preprocess"], settings["illumination"])
    return _Crops(study, store, plate, sites, table, strict, settings["depth"])

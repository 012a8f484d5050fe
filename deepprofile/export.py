"""The export stage: cells cut out once and kept in the crop store, wells in parallel."""

import json
import math
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from cytominer_tools.columns import CELL, PLATE, SITE
from cytominer_tools.errors import InputError
from cytominer_tools.manifest import PlateTable, digest
from cytominer_tools.threads import map_ahead, workers
from deepprofile.crop_selection import chosen_cells
from deepprofile.crop_source import (
    CropSource,
    SiteSource,
    keep_earlier_parts,
    lacks_site,
    lost_cells,
    open_source,
    read_source,
    site_name,
)
from deepprofile.crop_store import (
    ABOUT,
    FILE,
    FORMAT_VERSION,
    IMAGE_TYPE,
    LENGTH,
    LEVELS,
    OFFSET,
    ONE_TYPE,
    is_whole,
    part_name,
    plate_crops,
    write_part,
    write_sites,
)
from deepprofile.index import load_index
from deepprofile.locations import X, Y
from deepprofile.parts import Share, dealt_sites, dealt_wells
from deepprofile.preprocess import Preprocess
from deepprofile.sites import site_rows
from deepprofile.study import Study
from deepprofile.work import Done, log, progress

EIGHT_BITS = "crops.normalize zscore has no limits, and 8 bits hold 0 to 1; set export.depth to original"
_MEMORY = 1 << 25  # bytes of crops that each thread holds
# what is scaled at a time, little enough for the cache of a processor
_BLOCK = 4  # crops


@dataclass
class _Plate:
    source: CropSource
    table: PlateTable
    about: dict[str, Any]
    keys: dict[str, str] = field(default_factory=dict)  # of every well
    left: int = 0  # wells that are not yet made
    values: dict[np.dtype, np.ndarray] = field(default_factory=dict)  # of counts in 8 bits, by type of image


@dataclass(frozen=True)
class _Well:
    plate: _Plate
    name: str
    key: str
    chosen: np.ndarray | None  # bool, of the cells as located; None: all


@dataclass(frozen=True)
class _Made:
    well: _Well
    table: pa.Table
    skipped: list[tuple[str, str]]


def export_crops(study: Study, *, strict: bool = False, share: Share | None = None) -> Done:
    """Write the crop store: an Arrow file a well with the crops, and crops/PLATE/cells.parquet with a row per crop.

    Wells that are current are left alone; which cells are kept is drawn by the seed alone. A site that cannot be read
    is left out and reported. Each thread holds an image and a few crops, whatever the number of sites. With
    `share` only its wells are made, where other processes have the rest.

    Raises
    ------
    InputError
        The locations, the intensities or, with `crops.mask`, the label images are not made; the selection picks by a
        column that is not there; 8 bits cannot hold the crops; with `strict`, also the first bad site.
    """
    if study.crops.normalize == "zscore" and study.export.depth == "uint8":
        raise InputError(EIGHT_BITS)
    index = load_index(study)
    dealt = dealt_wells(index, share)
    with study.writing(share), progress("export", dealt_sites(index, dealt), "sites") as advance:
        plates = [_open(study, index, name, share) for name in index[PLATE].unique()]
        chosen = chosen_cells(study, index, [plate.source for plate in plates])
        keys: dict[tuple[str, str], str] = {}
        todo: list[_Well] = []
        for plate in plates:
            for well in plate.source.sites:
                mine = chosen.get((plate.source.plate, well))
                said = None if mine is None else digest(np.flatnonzero(mine).tolist())
                key = plate.table.manifest.key([*plate.source.inputs(study, well), said])
                keys[plate.source.plate, well] = plate.keys[well] = key
                if well in dealt.get(plate.source.plate, ()) and not _is_current(plate, well, key, strict):
                    todo.append(_Well(plate, well, key, mine))
                    plate.left += 1
        earlier = [(well.plate.source, well.plate.table, well.name) for well in todo]
        keep_earlier_parts(study, f"the crops in {study.crop_store}", earlier)
        write_sites(study.crop_store, index, keys)
        for plate in plates:
            if not plate.left and plate.source.plate in dealt:
                _finish(plate)
        advance(dealt_sites(index, dealt) - sum(len(well.plate.source.sites[well.name]) for well in todo))
        maker = _Maker(study, strict)
        threads = workers() + 1  # while one waits for the disk, the others cut
        # closed whatever happens: the threads of an error that is kept would go on
        with closing(map_ahead(maker.make, todo, 2 * threads, threads)) as done:
            for made in done:
                _keep(made)
                advance(len(made.well.plate.source.sites[made.well.name]))
    parts = [p.table.manifest.parts[well] for p in plates for well in sorted(dealt.get(p.source.plate, ()))]
    skipped = tuple(row for part in parts for row in part.skipped)
    return Done("export", len(todo), len(parts) - len(todo), sum(part.rows for part in parts), "crops", skipped)


def eight_bits(scaled: np.ndarray) -> np.ndarray:
    """float32 in [0, 1] as uint8, 255 times as much, rounded half up; the same shape."""
    return (scaled.astype(np.float64) * 255 + 0.5).astype(np.uint8)  # exact: 24 bits by 8 fit into 53


def _open(study: Study, index: pd.DataFrame, name: str, share: Share | None) -> _Plate:
    source = open_source(study, index, name)
    table = plate_crops(study.crop_store, name, None if share is None else study.root)
    settings = {
        "format_version": FORMAT_VERSION,
        **study.export.model_dump(include={"depth", "compression"}),
        "channels": list(study.channels),
        "preprocess": json.loads(study.preprocess.model_dump_json()),
        "illumination": study.correction,
    }
    for change in table.manifest.expect(settings):
        log.info("export: plate %s: %s: it runs again", name, change)
    levels = None if source.levels is None else source.levels.tolist()
    return _Plate(source, table, {**settings, "levels": levels})


def _is_current(plate: _Plate, well: str, key: str, strict: bool) -> bool:
    if not plate.table.manifest.is_current(well, key):
        return False
    part = plate.table.manifest.parts[well]
    if strict and lacks_site(part):
        return False
    return not part.rows or is_whole(plate.table.folder / part_name(well, key))


@dataclass
class _Maker:
    """What the threads that make wells share."""

    study: Study
    strict: bool
    types: dict[np.dtype, str] = field(default_factory=dict)  # of crops, each with a site that has it
    spare: list[np.ndarray] = field(default_factory=list)  # memory that no thread uses: new one is slow to get

    def make(self, well: _Well) -> _Made:
        """Cut and write the crops of a well; not yet recorded, so that one thread alone writes the manifest."""
        skipped: list[tuple[str, str]] = []
        path = well.plate.table.folder / part_name(well.name, well.key)
        cells = well.plate.source.located.read(well.name)
        table = write_part(path, well.plate.about, self._batches(well, cells, skipped))
        if table is None:
            table = cells.slice(0, 0)
            empty = {IMAGE_TYPE: pa.string(), FILE: pa.string(), OFFSET: pa.int64(), LENGTH: pa.int64()}
            for name, kind in empty.items():
                table = table.append_column(name, pa.array([], kind))
        said = {ABOUT: json.dumps(well.plate.about, sort_keys=True)}
        return _Made(well, table.replace_schema_metadata(said), skipped)

    def _batches(
        self, well: _Well, cells: pa.Table, skipped: list[tuple[str, str]]
    ) -> Iterator[tuple[pa.Table, np.ndarray]]:
        """The crops of a well, site after site, and in `skipped` what is left out; a batch is gone with the next."""
        source, preprocess = well.plate.source, self.study.preprocess
        if well.chosen is not None:
            cells = cells.filter(pa.array(well.chosen))
        for row in site_rows(source.sites[well.name]):
            here = cells.filter(pc.equal(cells[SITE], row[SITE]))
            if not len(here):
                continue
            site, what = read_source(self.study, row, strict=self.strict), site_name(row)
            if isinstance(site, str):
                skipped.append((what, site))
                continue
            xy = np.stack([here[X].to_numpy(), here[Y].to_numpy()], axis=1)
            kept = preprocess.keep(xy, site.image.shape)
            skipped += lost_cells(preprocess, what, kept)
            here, xy = here.filter(pa.array(kept)), xy[kept]
            image_type, numbers = source.image_type(site.image), here[CELL].to_numpy()
            here = here.append_column(IMAGE_TYPE, pa.array([image_type.name] * len(here), pa.string()))
            if site.levels is not None:
                levels = pa.array([site.levels.ravel()] * len(here), pa.list_(pa.float32(), site.levels.size))
                here = here.append_column(LEVELS, levels)
            cut = _cutter(self.study, well.plate, site)
            memory = self._memory(site, what)
            for start in range(0, len(xy), len(memory)):
                some = slice(start, start + len(memory))
                yield here[some], cut(xy[some], numbers[some], memory[: len(xy[some])])
            self.spare.append(memory)

    def _memory(self, site: SiteSource, what: str) -> np.ndarray:
        """Memory for some crops of `site`.

        Raises
        ------
        InputError
            They are of another type than those of an earlier site.
        """
        preprocess = self.study.preprocess
        kind = site.image.dtype if preprocess.mode == "slice" else np.dtype(np.float32)
        kind = np.dtype(np.uint8) if self.study.export.depth == "uint8" else kind
        self.types.setdefault(kind, what)
        if len(self.types) > 1:
            other = next(one for one in list(self.types.values()) if one != what)
            raise InputError(f"{what}: {kind} images, those of {other} are not; {ONE_TYPE}")
        with suppress(IndexError):  # other threads take from it too
            return self.spare.pop()
        shape = (preprocess.size, preprocess.size, len(preprocess.channels))
        return np.empty((max(1, _MEMORY // (math.prod(shape) * kind.itemsize)), *shape), kind)


def _cutter(
    study: Study, plate: _Plate, site: SiteSource
) -> Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]:
    """What fills an array (n, H, W, C) from centres (n, 2) and numbers of cells (n,), in the depth of the store."""
    preprocess, source = study.preprocess, plate.source
    if study.export.depth == "original":
        return partial(site.cut, preprocess)
    if preprocess.by_pixel and preprocess.mode == "slice" and np.issubdtype(site.image.dtype, np.integer):
        return partial(replace(site, image=_looked_up(plate, preprocess, site)).cut, preprocess)

    def cut(xy: np.ndarray, numbers: np.ndarray, out: np.ndarray) -> np.ndarray:
        for start in range(0, len(out), _BLOCK):
            some = slice(start, start + _BLOCK)
            crops = site.cut(preprocess, xy[some], numbers[some])
            scaled = source.scale(preprocess, site, crops)
            low, high = scaled.min(), scaled.max()
            if low < 0 or high > 1:
                raise InputError(
                    f"plate {source.plate}: scaled crops reach from {low:g} to {high:g}, and 8 bits hold 0 to 1; set "
                    "export.depth to original, or crops.normalize to plate_control"
                )
            out[some] = eight_bits(scaled)
        return out

    return cut


def _looked_up(plate: _Plate, preprocess: Preprocess, site: SiteSource) -> np.ndarray:
    """An image of counts in 8 bits, by a table of every count there can be: the same, and 15 times as fast."""
    image, values = site.image, plate.values.get(site.image.dtype)
    if values is None:
        counts = np.arange(np.iinfo(image.dtype).max + 1).astype(image.dtype)
        every = np.broadcast_to(counts[None, :, None, None], (1, len(counts), 1, image.shape[2]))
        scaled = plate.source.scale(preprocess, site, every)
        values = np.ascontiguousarray(eight_bits(scaled)[0].swapaxes(0, 1))
        if site.levels is None:  # then it is that of every site of the plate
            plate.values[image.dtype] = values
    return cv2.LUT(image, values).reshape(image.shape)


def _keep(made: _Made) -> None:
    """Record a well that is written, and let go of the crops that it had."""
    well, table = made.well, made.well.plate.table
    before = table.manifest.parts.get(well.name)
    table.write(well.name, well.key, made.table, made.skipped)
    if before and before.key != well.key:
        (table.folder / part_name(well.name, before.key)).unlink(missing_ok=True)
    well.plate.left -= 1
    if not well.plate.left:
        _finish(well.plate)


def _finish(plate: _Plate) -> None:
    if not plate.table.complete(plate.keys):
        return
    named = {part_name(well, part.key) for well, part in plate.table.manifest.parts.items()}
    for path in plate.table.folder.glob("*.arrow"):
        if path.name not in named:
            path.unlink()

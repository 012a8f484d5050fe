"""Single-cell features: sites read ahead, cells of several sites in batches of one shape, a Parquet part a well."""

import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa

from cytominer_tools.columns import PLATE, SITE, WELL
from cytominer_tools.errors import InputError
from cytominer_tools.files import atomic_path, safe_name
from cytominer_tools.manifest import PlateTable
from cytominer_tools.threads import in_background, map_ahead, workers
from deepprofile.crop_source import lacks_site
from deepprofile.index import load_index
from deepprofile.parts import Share, dealt_sites, dealt_wells, plate_lock
from deepprofile.study import Study
from deepprofile.views import Job, View, Views, keep_earlier_views, open_views
from deepprofile.work import Done, log, progress

if TYPE_CHECKING:
    from deepprofile.extractor import Extractor

STAGE = "features"
CARD = b"deepprofile.card"


@dataclass(frozen=True)
class _Set:
    """A set of features: one layer of one network."""

    study: Study
    card: dict[str, Any]
    settings: dict[str, Any]


@dataclass(frozen=True)
class _Network:
    """A network that is run on every batch."""

    extract: Callable[[np.ndarray], tuple[np.ndarray, ...]]  # to the features of each of its sets
    sets: tuple[int, ...]  # numbers


@dataclass
class _Plate:
    name: str
    views: Views
    tables: list[PlateTable]  # by set
    keys: list[dict[str, str]]  # of every well, by set
    left: int = 0  # wells that are not yet made


@dataclass
class _Well:
    """A part on its way through the engine."""

    plate: _Plate
    name: str
    stale: tuple[int, ...]  # the sets that it is made for
    cells: list[pd.DataFrame] = field(default_factory=list)
    features: dict[int, list[np.ndarray]] = field(default_factory=dict)  # by set
    skipped: list[tuple[str, str]] = field(default_factory=list)


@dataclass
class _Batch:
    crops: np.ndarray  # (batch, H, W, C)
    fills: "list[Future[None]]" = field(default_factory=list)
    rows: list[tuple[_Well, int]] = field(default_factory=list)  # how many of its rows go to which well, in order
    ended: list[_Well] = field(default_factory=list)  # wells that are complete with this batch
    filled: int = 0
    sites: int = 0  # that are done with it

    def wait(self) -> None:
        """Until its rows are filled; those that are left over become 0."""
        for fill in self.fills:
            fill.result()
        self.crops[self.filled :] = 0


def profile_cells(
    study: Study,
    *,
    strict: bool = False,
    epochs: Sequence[int] = (),
    share: Share | None = None,
    tell: Callable[[int, int], None] = lambda sites, cells: None,
) -> Done:
    """Write features/MODEL/PLATE/cells.parquet: a row per cell with its key, centre, QC columns and `features`.

    Wells that are current are left alone. A site that cannot be read is left out and reported. Memory holds a few
    images and batches and the features of the wells in work, whatever the number of sites. With `profile.files` the
    features are read, not made; see `deepprofile.deepprofiler_npz.import_features`.

    Parameters
    ----------
    study : Study
        Several layers in `profile.layer` make a set of features each, in features/MODEL-LAYER.
    strict : bool
        Stop at a site that cannot be read.
    epochs : sequence of int
        Instead of the weights of `profile.weights` those that its training kept after these epochs, all in one pass;
        in features/MODEL-epoch8 and so on.
    share : Share, optional
        The wells of this process, where others have the rest. Whoever makes the last well of a plate makes its file.
    tell : function of sites and cells
        Called with the sites that need no work, and then whenever more are done.

    Raises
    ------
    InputError
        The locations, intensities or crops are not made, the network or its weights cannot be had, features do not
        fit `profile.dtype`; with `strict`, also the first bad site.
    """
    if study.profile.files is not None:
        from deepprofile.deepprofiler_npz import import_features

        if epochs or share is not None:
            raise InputError("--epoch, --part and --devices are for networks, and profile.files holds what is made")
        return import_features(study, strict=strict)
    index = load_index(study)
    studies = [study.at_epoch(epoch) for epoch in dict.fromkeys(epochs)] or [study]
    networks, sets = _networks(studies)
    dealt = dealt_wells(index, share)
    with study.writing(share), progress("profile", dealt_sites(index, dealt), "sites") as advance:
        opened = open_views(study, index, dealt, strict=strict)
        sets = [_with_depth(one, opened) for one in sets]
        for one in sets:
            with atomic_path(one.study.features / "card.json") as path:
                path.write_text(json.dumps(one.card, indent=1) + "\n", "utf-8")
        plates = [_open(sets, name, views, share) for name, views in opened.items()]
        todo = [well for plate in plates for well in _stale(plate, dealt[plate.name], strict)]
        made = len(todo)
        for number, one in enumerate(sets):
            earlier = [
                (well.plate.views, well.plate.tables[number], well.name) for well in todo if number in well.stale
            ]
            keep_earlier_views(study, f"the features in {one.study.features}", earlier)
        current = dealt_sites(index, dealt) - sum(len(well.plate.views.sites[well.name]) for well in todo)
        advance.skip(current)
        tell(current, 0)
        asked = {number for well in todo for number in well.stale}
        networks = [network for network in networks if asked.intersection(network.sets)]
        feeder = _Feeder((study.profile.batch, *[study.crops.size] * 2, len(study.channels)))
        # closed whatever happens: an error that a notebook keeps would keep the reading threads and their images
        with _Writer(sets) as writer, closing(in_background(feeder.batches(todo), 2)) as batches:
            for batch in batches:
                if batch.filled:
                    for network in networks:
                        _deal(batch, network.sets, network.extract(batch.crops))
                feeder.spare.append(batch.crops)
                for well in batch.ended:
                    writer.write(well)
                advance(batch.sites, batch.filled)
                tell(batch.sites, batch.filled)
        seconds = advance.seconds
    parts = [plate.tables[0].manifest.parts[well] for plate in plates for well in sorted(dealt[plate.name])]
    skipped = tuple(row for part in parts for row in part.skipped)
    unit = (
        f"{'tiles' if study.profile.tiles else 'cells'} x {' + '.join(str(one.card['width']) for one in sets)} features"
    )
    rows, kept = sum(part.rows for part in parts), len(parts) - made
    return Done("profile", made, kept, rows, unit, skipped, advance.done, advance.cells, seconds)


def _networks(studies: Sequence[Study]) -> tuple[list[_Network], list[_Set]]:
    networks: list[_Network] = []
    sets: list[_Set] = []
    for study in studies:
        extractor, cards = load_extractor(study)
        for one, card in zip(study.feature_sets, cards, strict=True):
            chosen = one.profile
            card = card | {"model": chosen.name, "views": _views_settings(one), "dtype": chosen.dtype}
            settings = feature_settings(one) | {name: card[name] for name in ("weights_hash", "runtime")}
            sets.append(_Set(one, card, settings))
        numbers = tuple(range(len(sets) - len(cards), len(sets)))
        networks.append(_Network(extractor, numbers))
    return networks, sets


def load_extractor(study: Study) -> "tuple[Extractor, tuple[dict[str, Any], ...]]":
    """`deepprofile.extractor.load_extractor`; Keras waits until it is asked for, as later stages have no need of it."""
    from deepprofile.extractor import load_extractor as load

    return load(study)


def feature_settings(study: Study) -> dict[str, Any]:
    """What study.yaml says about features; the weights and the runtime are known once the network is built."""
    chosen = study.profile
    if chosen.files is not None:
        return {"files": chosen.files} | study.channel_mode
    preprocess = json.loads(study.preprocess.model_dump_json())
    settings = {"network": chosen.network, "options": chosen.options, "layer": chosen.layer, "preprocess": preprocess}
    settings |= {"illumination": study.correction, "views": _views_settings(study), "dtype": chosen.dtype}
    return settings | study.channel_mode


def plate_features(study: Study, plate: str, share: Share | None = None) -> PlateTable:
    """The features of `plate`, as far as they are made; with `share`, for a process that makes some of them."""
    folder = study.features / safe_name(plate)
    return PlateTable(folder, STAGE, None if share is None else plate_lock(study.root, folder))


def _views_settings(study: Study) -> dict[str, Any]:
    return {"source": study.profile.source, "tiles": study.profile.tiles}


def _with_depth(one: _Set, opened: Mapping[str, Views]) -> _Set:
    """The set with the depth of the crop store in its card, where it is made from one."""
    depths = sorted({views.depth for views in opened.values() if views.depth is not None})
    return replace(one, card=one.card | {"views": one.card["views"] | {"depth": depths[0]}}) if depths else one


def _open(sets: Sequence[_Set], name: str, views: Views, share: Share | None) -> _Plate:
    tables = [plate_features(one.study, name, share) for one in sets]
    keys = []
    inputs = {well: views.inputs(well) for well in views.sites}
    for one, table in zip(sets, tables, strict=True):
        for change in table.manifest.expect(one.settings):
            log.info("profile: plate %s: %s: it runs again", name, change)
        keys.append({well: table.manifest.key(inputs[well]) for well in views.sites})
    return _Plate(name, views, tables, keys)


def _stale(plate: _Plate, wells: set[str], strict: bool) -> list[_Well]:
    """Those of `wells` that are not current; a plate without any is brought into its final form.

    With `strict` a well that was made without one of its sites is not current either.
    """
    todo = []
    for well in plate.views.sites:
        stale = []
        for number, (table, keys) in enumerate(zip(plate.tables, plate.keys, strict=True)):
            current = table.manifest.is_current(well, keys[well])
            if not current or (strict and lacks_site(table.manifest.parts[well])):
                stale.append(number)
        if stale and well in wells:
            todo.append(_Well(plate, well, tuple(stale), features={number: [] for number in stale}))
    plate.left = len(todo)
    if not todo:
        _complete(plate)
    return todo


def _complete(plate: _Plate) -> None:
    for table, keys in zip(plate.tables, plate.keys, strict=True):
        table.complete(keys)


def _jobs(todo: list[_Well]) -> Iterator[tuple[_Well, Job]]:
    while todo:  # emptied, so that the features of a well are let go of once they are written
        well = todo.pop(0)
        for job in well.plate.views.jobs(well.name):
            yield well, job


def _read(item: tuple[_Well, Job]) -> tuple[_Well, Job, View]:
    well, job = item
    return well, job, job.read()


@dataclass
class _Feeder:
    """Batches of one shape from whatever is looked at, read and cut ahead by threads."""

    shape: tuple[int, ...]  # (batch, H, W, C)
    spare: list[np.ndarray] = field(default_factory=list)  # memory that is used again: new one is slow to get

    def batches(self, todo: list[_Well]) -> Iterator[_Batch]:
        """Cells in the order of the sites; the last batch is filled up with zeros."""
        # each holds an image until its cells are cut
        cutters, cutting = ThreadPoolExecutor(workers()), deque[Future[None]]()
        batch = self._batch()
        try:
            with closing(map_ahead(_read, _jobs(todo), 2 * workers())) as read:
                for well, job, view in read:
                    well.skipped += view.skipped
                    start, n = 0, 0 if view.cells is None else len(view.cells)
                    if view.cells is not None and n:
                        well.cells.append(view.cells)
                    while start < n and view.fill is not None:
                        some = min(n - start, self.shape[0] - batch.filled)
                        out = batch.crops[batch.filled : batch.filled + some]
                        cutting.append(cutters.submit(view.fill, start, out))
                        batch.fills.append(cutting[-1])
                        batch.rows.append((well, some))
                        batch.filled, start = batch.filled + some, start + some
                        if len(cutting) > 2 * workers():
                            cutting.popleft().result()
                        if batch.filled == self.shape[0]:
                            batch.wait()
                            yield batch
                            batch = self._batch()
                    batch.sites += job.sites
                    if job.last:
                        batch.ended.append(well)
                if batch.filled or batch.ended:
                    batch.wait()
                    yield batch
        finally:
            cutters.shutdown(wait=True, cancel_futures=True)

    def _batch(self) -> _Batch:
        return _Batch(self.spare.pop() if self.spare else np.empty(self.shape, np.float32))


def _deal(batch: _Batch, numbers: Sequence[int], outputs: Sequence[np.ndarray]) -> None:
    """Give the features of a batch to the wells that they are of."""
    for number, features in zip(numbers, outputs, strict=True):
        start = 0
        for well, n in batch.rows:
            if number in well.features:
                well.features[number].append(features[start : start + n].copy())
            start += n


class _Writer:
    """Writes wells in a thread of its own, one at a time, so that the network need not wait for the disk."""

    def __init__(self, sets: Sequence[_Set]):
        self._sets = sets
        self._pool = ThreadPoolExecutor(1)
        self._waiting = deque[Future[None]]()

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            while self._waiting and kind is None:
                self._waiting.popleft().result()
        finally:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def write(self, well: _Well) -> None:
        self._waiting.append(self._pool.submit(self._write, well))
        while len(self._waiting) > 2:
            self._waiting.popleft().result()

    def _write(self, well: _Well) -> None:
        plate = well.plate
        for number in well.stale:
            table = _table(well, number, self._sets[number])
            plate.tables[number].write(well.name, plate.keys[number][well.name], table, well.skipped)
        plate.left -= 1
        if not plate.left:
            _complete(plate)


def _table(well: _Well, number: int, one: _Set) -> pa.Table:
    width, dtype = one.card["width"], np.dtype(one.study.profile.dtype)
    features = np.concatenate([np.empty((0, width), np.float32), *well.features[number]])
    where = f"{well.plate.name} {well.name}"
    if bad := int((~np.isfinite(features)).any(axis=1).sum()):
        raise InputError(f"{where}: {bad} cells have features that are not finite; check the weights")
    if len(features) and (highest := np.abs(features).max()) > np.finfo(dtype).max:
        raise InputError(
            f"{where}: features of up to {highest:.3g}, and {dtype} holds {np.finfo(dtype).max:g} at most; set "
            "profile.dtype to float32"
        )
    values = pa.FixedSizeListArray.from_arrays(pa.array(features.astype(dtype, copy=False).ravel()), width)
    keys = pd.concat(well.cells, ignore_index=True) if well.cells else pd.DataFrame({PLATE: [], WELL: [], SITE: []})
    table = pa.Table.from_pandas(keys, preserve_index=False)
    text = [pa.field(f.name, pa.string()) if f.name in (PLATE, WELL, SITE) else f for f in table.schema]
    table = table.cast(pa.schema(text)).append_column("features", values)
    return table.replace_schema_metadata({CARD: json.dumps(one.card, sort_keys=True)})

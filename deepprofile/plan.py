"""What a study will take, before hours are spent: cells, disk, hours and money, from a short calibration."""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

import imagecodecs
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from cytominer_tools.arrays import group_median
from cytominer_tools.columns import PLATE, SITE, WELL
from cytominer_tools.errors import InputError
from cytominer_tools.queries import select
from cytominer_tools.threads import map_ahead, workers
from deepprofile.crop_store import encode_crops
from deepprofile.export import eight_bits
from deepprofile.index import load_index, sites_by_well
from deepprofile.intensities import read_levels
from deepprofile.locations import X, Y, find_cells, location_settings, plate_locations
from deepprofile.sites import site_image, site_rows
from deepprofile.study import Study
from deepprofile.views import tiles

R = TypeVar("R")

SECONDS = 20.0  # that the calibration may take, about; building the network comes on top
TRAINING = 3.0  # passes forward that a pass forward and back takes: what validation is counted in
_SITES = 64  # that are looked at, at most
_GIGA = 1e9


@dataclass(frozen=True)
class StagePlan:
    """What one stage will take; None where that is not known."""

    stage: str
    count: int
    unit: str
    per_second: float | None
    gigabytes: float | None = None  # that it writes
    price: float | None = None  # an hour

    @property
    def hours(self) -> float | None:
        return self.count / self.per_second / 3600 if self.per_second else None

    @property
    def money(self) -> float | None:
        return None if self.price is None or self.hours is None else self.hours * self.price


@dataclass(frozen=True)
class Plan:
    """What a study will take on this machine, from its start."""

    plates: int
    wells: int
    sites: int
    cells: int
    unit: str  # cells or tiles
    cells_from: str  # how their number is known
    stages: tuple[StagePlan, ...]
    unknown: tuple[str, ...]  # what could not be known, in words

    def as_json(self) -> dict[str, Any]:
        """The same as JSON values."""
        stages = [{**asdict(one), "hours": one.hours, "money": one.money} for one in self.stages]
        return {**asdict(self), "stages": stages, "unknown": list(self.unknown), **self._totals()}

    def lines(self) -> list[str]:
        """The same as a table."""
        rows = [["stage", "of", "a second", "hours", "GB", "money"]]
        for one in self.stages:
            count = f"{one.count:,} {one.unit}"
            rows.append([one.stage, count, *map(_number, (one.per_second, one.hours, one.gigabytes, one.money))])
        totals = self._totals()
        rows.append(["together", "", "", *(_number(totals[name]) for name in ("hours", "gigabytes", "money"))])
        if all(one.price is None for one in self.stages):
            rows = [row[:-1] for row in rows]
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        table = [
            "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
            for row in rows
        ]
        head = f"{self.plates:,} plate(s), {self.wells:,} wells, {self.sites:,} sites, {self.cells:,} {self.unit}"
        head += f" ({self.cells_from})"
        notes = [f"Not known: {one}" for one in self.unknown]
        return [head, "", *(line.rstrip() for line in table), "", *notes]

    def _totals(self) -> dict[str, float | None]:
        totals: dict[str, float | None] = {}
        for name in ("hours", "gigabytes", "money"):
            known = [value for one in self.stages if (value := getattr(one, name)) is not None]
            totals[name] = sum(known) if known else None
        return totals


def plan_study(study: Study, *, price: float | None = None, seconds: float = SECONDS) -> Plan:
    """Measure for a short while on a few sites of `study`, and say what all of it will take; nothing is written.

    Parameters
    ----------
    study : Study
    price : float, optional
        Of an hour of this machine.
    seconds : float
        That the measurements may take, about.

    Raises
    ------
    InputError
        There is no index, none of a few sites can be read, or the network is unknown.
    """
    return _Planner(study, price, seconds).plan()


@dataclass
class _Seen:
    """A site of the calibration."""

    image: np.ndarray
    xy: np.ndarray


@dataclass
class _Planner:
    study: Study
    price: float | None
    seconds: float
    unknown: list[str] = field(default_factory=list)

    def plan(self) -> Plan:
        study = self.study
        index = load_index(study)
        few = index.iloc[np.unique(np.linspace(0, len(index) - 1, min(_SITES, len(index))).round().astype(int))]
        images, reading = self._read(few)
        cells, known, locating = self._cells(index, few)
        per_site = cells / len(index)
        seen = [_Seen(image, xy) for row, image in images if len(xy := self._centres(row, image))]
        stages: list[StagePlan] = []
        chosen = self._measured(index)
        if chosen:
            stages.append(self._stage("illumination", chosen, "sites", reading))
        exported, trained = self._exports(), study.train is not None
        if exported or trained or not study.profile.tiles:
            stages.append(self._stage("locate", len(index), "sites", locating))
        crops, encoding, size = self._crops(seen)
        feeding = _serial(reading, None if encoding is None else encoding[0] / max(per_site, 1e-9))
        if exported:
            rate = _serial(reading, None if encoding is None else encoding[1] / max(per_site, 1e-9))
            stored = round(cells * self._kept())
            stages.append(self._stage("export", len(index), "sites", rate, None if size is None else stored * size))
        if study.profile.source == "crops":
            feeding = None if encoding is None else encoding[2] / max(per_site, 1e-9)
            cells = round(cells * self._kept())
        speed, written = self._network(crops)
        if trained:
            stages.append(self._training(index, per_site, crops))
        unit = "tiles" if study.profile.tiles else "cells"
        fed = None if feeding is None else feeding * per_site
        rate = self._together(speed, fed)
        stages.append(self._stage("profile", cells, unit, rate, None if written is None else cells * written[0]))
        if written is not None:
            stages.append(self._stage("aggregate", cells * written[1], unit, _median_speed(written[2])))
        self.unknown.append(
            "normalize, consensus and score: their time is that of the wells, seconds for a few hundred"
        )
        wells = len(index[[PLATE, WELL]].drop_duplicates())
        unknown = tuple(dict.fromkeys(self.unknown))
        return Plan(index[PLATE].nunique(), wells, len(index), cells, unit, known, tuple(stages), unknown)

    def _stage(self, name: str, count: int, unit: str, rate: float | None, size: float | None = None) -> StagePlan:
        return StagePlan(name, count, unit, rate, None if size is None else size / _GIGA, self.price)

    def _read(self, few: pd.DataFrame) -> tuple[list[tuple[dict[str, str], np.ndarray]], float]:
        """Some images, and how many sites are read a second, by all threads."""
        bad: list[str] = []

        def read(row: dict[str, str]) -> tuple[dict[str, str], np.ndarray] | None:
            try:
                return row, site_image(self.study, row, corrected=False)
            except InputError as error:
                bad.append(str(error))
                return None

        found, rate = _rate(read, site_rows(few), 0.2 * self.seconds)
        kept = [one for one in found if one is not None]
        if not kept:
            raise InputError(f"none of {len(found)} sites can be read, the last: {bad[-1]}; run `deepprofile check`")
        if bad:
            self.unknown.append(f"{len(bad)} of {len(found)} sites cannot be read, the first: {bad[0]}")
        return kept[:8], rate  # a few are enough to cut from

    def _cells(self, index: pd.DataFrame, few: pd.DataFrame) -> tuple[int, str, float | None]:
        """How many cells (or tiles) there are, how that is known, and how many sites are located a second."""
        study = self.study
        if study.profile.tiles and not (self._exports() or study.train):
            shape = study.images.size or site_image(study, site_rows(few)[0], corrected=False).shape[:2]
            n = len(tiles(site_rows(few)[0], shape, study.crops.size))
            return n * len(index), f"{n} tiles a site", None
        counted, located = 0, 0
        settings = location_settings(study)
        for plate in map(str, index[PLATE].unique()):
            manifest, sites = plate_locations(study, plate).manifest, sites_by_well(index, plate)
            if manifest.settings == json.loads(json.dumps(settings)):
                wells = [well for well in sites if well in manifest.parts]
                counted += sum(manifest.parts[well].rows for well in wells)
                located += sum(len(sites[well]) for well in wells)
        bad: list[str] = []

        def locate(row: dict[str, str]) -> int | None:
            try:
                return len(find_cells(study, row)[0])
            except InputError as error:
                bad.append(str(error))
                return None

        rows = site_rows(few)
        locate(rows[0])  # a locator imports what it needs when it is first called
        bad.clear()
        found, rate = _rate(locate, rows, 0.25 * self.seconds)
        known = [n for n in found if n is not None]
        if located == len(index):
            return counted, "located", rate
        if located:
            return round(counted / located * len(index)), f"an estimate: {located:,} of the sites are located", rate
        if not known:
            raise InputError(
                f"none of {len(found)} sites can be searched for cells, the last: {bad[-1]}; run `deepprofile check`"
            )
        mean, spread = float(np.mean(known)), float(np.std(known)) / math.sqrt(len(known))
        about = f"an estimate: {mean:,.0f} a site in {len(known)} sites"
        if len(known) > 1 and mean:
            about += f", {200 * spread / mean:.0f} % either way"
        return round(mean * len(index)), about, rate

    def _centres(self, row: Mapping[str, str], image: np.ndarray) -> np.ndarray:
        """Of the cells of a site, (n, 2)."""
        study = self.study
        if study.profile.tiles:
            return tiles(row, image.shape, study.crops.size)[[X, Y]].to_numpy()
        table = plate_locations(study, row[PLATE])
        if row[WELL] in table.manifest.parts:
            cells = table.read(row[WELL], [SITE, X, Y]).to_pandas()
            xy = cells.loc[cells[SITE] == row[SITE], [X, Y]].to_numpy()
        else:
            try:
                xy = find_cells(study, row)[0][["x", "y"]].to_numpy()
            except InputError:
                xy = np.empty((0, 2))
        return xy[study.preprocess.keep(xy, image.shape)]

    def _crops(
        self, seen: Sequence[_Seen]
    ) -> tuple[np.ndarray | None, tuple[float, float, float] | None, float | None]:
        """Network input, crops a second for (cutting, exporting, reading a store) by all threads, bytes of a crop."""
        study = self.study
        preprocess = study.preprocess.model_copy(update={"mask": False})
        if study.crops.mask:
            self.unknown.append("masked crops take less space than those that were measured")
        if not seen:
            self.unknown.append("no site that was looked at has a cell, so that nothing is known of crops and features")
            return None, None, None
        cut, seconds = [], np.zeros(3)
        sizes: list[int] = []
        levels = self._levels(seen[0].image)
        for one in seen:
            xy = one.xy[:128]
            began = time.perf_counter()
            counts = preprocess.cut(one.image, xy)
            scaled = preprocess.scale(counts, levels, one.image.dtype)
            cut.append(scaled)
            between = time.perf_counter()
            kept = counts if study.export.depth == "original" else eight_bits(np.clip(scaled, 0, 1))
            frames = encode_crops(kept, study.export.compression)
            after = time.perf_counter()
            if pa.types.is_large_binary(frames.type):
                for frame in frames:
                    imagecodecs.blosc_decode(frame.as_py())
            np.divide(kept, np.float32(255), dtype=np.float32)
            end = time.perf_counter()
            sizes += [len(frame.as_py()) for frame in frames]
            seconds += (between - began, after - began, end - after)
            if seconds.sum() > 0.2 * self.seconds:
                break
        crops = np.concatenate(cut)
        cutting, exporting, reading = len(crops) * workers() / np.maximum(seconds, 1e-9)
        return crops, (cutting, exporting, reading), float(np.mean(sizes))

    def _levels(self, image: np.ndarray) -> np.ndarray:
        """What counts are scaled by: the levels of the first plate, or where they are not made those of the site."""
        study = self.study
        if study.crops.normalize == "plate_control":
            with suppress(InputError):
                return read_levels(study, str(load_index(study)[PLATE].iloc[0]))
            self.unknown.append(
                "the intensities are not measured yet (`deepprofile illumination`): crops were scaled by their site"
            )
        pixels = image[::4, ::4].reshape(-1, image.shape[-1])
        return np.percentile(pixels, study.crops.percentiles, axis=0).astype(np.float32)

    def _network(self, crops: np.ndarray | None) -> tuple[float | None, tuple[float, int, int] | None]:
        """Cells a second of the network; and bytes of the features of a cell, number of sets, features in each."""
        if crops is None:
            return None, None
        from deepprofile.features import load_extractor

        study = self.study
        weights = study.weights
        profile = study.profile
        if weights not in (None, "imagenet") and not study.path(str(weights)).is_file():
            self.unknown.append("the network is not trained yet: one with untrained weights, as fast, was measured")
            profile = profile.model_copy(update={"weights": None})
        plain = profile.model_copy(update={"weights": None, "precision": "float32"})
        try:
            extractor, _ = load_extractor(study.model_copy(update={"profile": profile}))
        except InputError as error:  # for a lower precision cells have to be located, for instance
            if profile == plain:
                raise
            self.unknown.append(f"the speed as asked ({error}): untrained weights in float32 were measured instead")
            extractor, _ = load_extractor(study.model_copy(update={"profile": plain}))
        size = study.profile.batch
        batch = np.ascontiguousarray(np.resize(crops, (size, *crops.shape[1:])))
        features = extractor(batch)  # compiled at the first call
        times: list[float] = []
        began = time.perf_counter()
        while len(times) < 2 or (time.perf_counter() - began < 0.15 * self.seconds and len(times) < 30):
            start = time.perf_counter()
            extractor(batch)
            times.append(time.perf_counter() - start)
        stored = sum(_stored(one[: len(crops)], study.profile.dtype) for one in features)
        return size / float(np.median(times)), (stored, len(features), max(one.shape[1] for one in features))

    def _together(self, speed: float | None, fed: float | None) -> float | None:
        """Cells a second where a network and those who feed it work side by side."""
        from deepprofile.devices import device_names

        if speed is None or fed is None:
            return speed
        return min(speed, fed) if device_names() else _serial(speed, fed)  # on a CPU they share its cores

    def _exports(self) -> bool:
        study = self.study
        trained = study.train is not None and study.path(study.train.crops) == study.crop_store.resolve()
        return trained or study.profile.source == "crops"

    def _kept(self) -> float:
        """Share of the cells that is exported, as far as numbers say it."""
        export = self.study.export
        if any(one is not None for one in (export.query, export.treatments, export.per_well, export.per_treatment)):
            self.unknown.append("how many cells the query, the list and the numbers of `export` leave; all are counted")
        return export.fraction or 1.0

    def _measured(self, index: pd.DataFrame) -> int:
        """How many sites are read for intensities and illumination."""
        study = self.study
        light = study.illumination
        if light.method in ("deepprofiler", "smooth") or light.qc:
            return len(index)
        if study.crops.normalize != "plate_control":
            return 0
        if study.controls is None:
            return len(index)
        plates = [select(sites, study.controls).sum() or len(sites) for _, sites in index.groupby(PLATE)]
        return int(sum(plates))

    def _training(self, index: pd.DataFrame, per_site: float, crops: np.ndarray | None) -> StagePlan:
        from deepprofile.training import train_section, training_rate

        names = [name for name in self.study.label if name in index]
        classes = max(2, len(index[names].drop_duplicates())) if names else 2
        rate = None if crops is None else training_rate(self.study, crops, classes, 0.2 * self.seconds)
        drawn, checked = self._epoch(index, per_site)
        self.unknown.append("how many cells each class has, until the crops are exported: sites are taken for equal")
        # validation is a pass forward alone
        count = round(train_section(self.study).epochs * (drawn + checked / TRAINING))
        return self._stage("train", count, "cells", rate)

    def _epoch(self, index: pd.DataFrame, per_site: float) -> tuple[float, float]:
        """Cells that are drawn for an epoch, and cells that validate, as if each site had as many."""
        train = self.study.train
        assert train is not None
        cells = len(index) * per_site * self._kept()
        fraction = train.split.fraction
        names = [name for name in self.study.label if name in index]
        if train.epoch_cells is not None:
            return train.epoch_cells, min(train.epoch_cells, cells * fraction)
        if not names:
            return cells * (1 - fraction), cells * fraction
        sites = index.groupby(names, dropna=True).size()
        return float(sites.median() * len(sites) * per_site * self._kept() * (1 - fraction)), cells * fraction


def _rate(function: Callable[[dict[str, str]], R], rows: list[dict[str, str]], seconds: float) -> tuple[list[R], float]:
    """What `function` makes of `rows` until the time is over, in threads, and how many a second."""
    found: list[R] = []
    began = time.perf_counter()
    with closing(map_ahead(function, rows, 2 * workers())) as results:
        for one in results:
            found.append(one)
            if time.perf_counter() - began > seconds:
                break
    return found, len(found) / max(time.perf_counter() - began, 1e-9)


def _serial(one: float | None, other: float | None) -> float | None:
    """The rate of two things done one after the other, each at its own."""
    return None if one is None or other is None else 1 / (1 / max(one, 1e-9) + 1 / max(other, 1e-9))


def _stored(features: np.ndarray, dtype: str) -> float:
    """Bytes of the features of a cell in Parquet."""

    def size(values: np.ndarray) -> int:
        column = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table({"features": column}), sink, compression="zstd", use_dictionary=False)
        return int(sink.getvalue().size)

    stored = features.astype(dtype)
    return (size(stored) - size(stored[:0])) / len(stored)  # without what a file has beside its rows


def _median_speed(width: int) -> float:
    """Cells a second that a well's median is taken of."""
    values = np.random.default_rng(0).random((1000, width), np.float32)
    began = time.perf_counter()
    group_median(values, np.zeros(len(values), np.int64))
    return len(values) / (time.perf_counter() - began)


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    if value >= 100:
        return f"{value:,.0f}"
    return "< 0.01" if 0 < value < 0.01 else f"{value:.3g}"

"""Single-cell features: sites read ahead, cells of several sites in batches of one shape, a Parquet part a well."""

import json
import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa

from cytominer_tools.columns import CELL, PLATE, SITE, WELL
from cytominer_tools.errors import InputError
from cytominer_tools.files import atomic_path, safe_name
from cytominer_tools.manifest import PlateTable, changes
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
from deepprofile.index import load_index
from deepprofile.locations import X, Y
from deepprofile.preprocess import Preprocess
from deepprofile.sites import site_rows
from deepprofile.study import Study
from deepprofile.work import Done, in_background, log, map_ahead, progress, workers

if TYPE_CHECKING:
    import keras

STAGE = "features"
CARD = b"deepprofile.card"


@dataclass
class Extractor:
    """A network cut at a layer, compiled for one batch shape.

    Parameters
    ----------
    model : keras.Model
        float32 (n, H, W, C) to whatever.
    layer : str
        Its output, averaged over the image where it is one, becomes the features.
    channels : (H, W, C), optional
        The shape of crops whose channels `model`, which has three, sees one by one; see `deepprofile.repeat`.

    Raises
    ------
    InputError
        No such layer.
    """

    model: "keras.Model"
    layer: str = "features"
    channels: tuple[int, int, int] | None = None

    def __post_init__(self) -> None:
        import keras

        from deepprofile.networks import jit_compile
        from deepprofile.repeat import see_each_channel

        known = [layer.name for layer in self.model.layers]
        if self.layer not in known:
            raise InputError(f"{self.model.name} has no layer {self.layer!r}; its last are {', '.join(known[-6:])}")
        output = self.model.get_layer(self.layer).output
        if len(output.shape) == 4:
            output = keras.layers.GlobalAveragePooling2D(dtype="float32", name="pooled")(output)
        self._network = keras.Model(self.model.input, output)
        if self.channels is not None:
            self._network = see_each_channel(self._network, self.channels)
        self._network.compile(jit_compile=jit_compile())
        self.width = int(self._network.output_shape[-1])

    def __call__(self, crops: np.ndarray) -> np.ndarray:
        """float32 (batch, H, W, C) to float32 (batch, width)."""
        return np.asarray(self._network.predict_on_batch(crops), np.float32)


@dataclass
class _Plate:
    source: CropSource
    table: PlateTable
    left: int = 0  # wells that are not yet made


@dataclass
class _Well:
    """A part on its way through the engine."""

    plate: _Plate
    name: str
    key: str
    cells: list[pd.DataFrame] = field(default_factory=list)
    features: list[np.ndarray] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)


@dataclass
class _Job:
    """A site to read: `site` is why it cannot be used where it is bad, and None where it has no cells."""

    well: _Well
    row: Mapping[str, str]
    cells: pd.DataFrame
    last: bool  # of its well
    site: SiteSource | str | None = None


@dataclass
class _Batch:
    crops: np.ndarray | None  # (batch, H, W, C); None where wells end without a cell in it
    rows: list[tuple[_Well, int]]  # how many of its rows go to which well, in order
    ended: list[_Well]  # wells that are complete with this batch


def profile_cells(study: Study, *, strict: bool = False) -> Done:
    """Write features/MODEL/PLATE/cells.parquet: a row per cell with its key, centre, QC columns and `features`.

    Wells that are current are left alone. A site that cannot be read is left out and reported. Memory holds a few
    images and batches and the features of the wells in work, whatever the number of sites. With `profile.files` the
    features are read, not made; see `deepprofile.deepprofiler_npz.import_features`.

    Raises
    ------
    InputError
        The locations or intensities are not made, the network or its weights cannot be had; with `strict`, also the
        first bad site.
    """
    if study.profile.files is not None:
        from deepprofile.deepprofiler_npz import import_features

        return import_features(study, strict=strict)
    index = load_index(study)
    extractor, card = load_extractor(study)
    settings = feature_settings(study) | {name: card[name] for name in ("weights_hash", "runtime")}
    with study.writing(), progress("profile", len(index), "sites") as advance:
        with atomic_path(study.features / "card.json") as path:
            path.write_text(json.dumps(card, indent=1) + "\n", "utf-8")
        plates = [_open(study, index, name, settings) for name in index[PLATE].unique()]
        todo = [well for plate in plates for well in _stale(study, plate, strict)]
        made = len(todo)
        earlier = [(well.plate.source, well.plate.table, well.name) for well in todo]
        keep_earlier_parts(study, f"the features in {study.features}", earlier)
        advance(len(index) - sum(len(well.plate.source.sites[well.name]) for well in todo))
        images = map_ahead(lambda job: _read(study, job, strict), _jobs(todo), 2 * workers())
        # closed whatever happens: an error that a notebook keeps would keep the reading threads and their images
        with closing(in_background(_batches(images, study.preprocess, study.profile.batch, advance), 2)) as batches:
            for batch in batches:
                if batch.crops is not None:
                    features, start = extractor(batch.crops), 0
                    for well, n in batch.rows:
                        well.features.append(features[start : start + n].copy())
                        start += n
                for well in batch.ended:
                    well.plate.table.write(well.name, well.key, _table(well, extractor.width, card), well.skipped)
                    well.plate.left -= 1
                    if not well.plate.left:
                        well.plate.table.finish(well.plate.source.sites)
    parts = [part for plate in plates for part in plate.table.manifest.parts.values()]
    skipped = tuple(row for part in parts for row in part.skipped)
    rows = sum(part.rows for part in parts)
    return Done("profile", made, len(parts) - made, rows, f"cells x {extractor.width} features", skipped)


def load_extractor(study: Study) -> tuple[Extractor, dict[str, Any]]:
    """The network of `study`, ready to extract, and its model card: all that makes two sets of features comparable."""
    import keras

    from deepprofile.deepprofiler_weights import require_channels
    from deepprofile.networks import GROUP, build_network, weights_hash
    from deepprofile.registry import load, package
    from deepprofile.repeat import COLOURS, see_minus_one_to_one

    chosen, preprocess = study.profile, study.preprocess
    weights = study.weights
    trained = None if weights is None else trained_card(Path(weights))
    if trained is not None:
        require_as_trained(study, trained, str(weights))
    elif isinstance(weights, Path) and chosen.mode == "multi_channel":
        require_channels(study, weights)
    repeat = chosen.mode == "repeat_channel"
    size, channels = (chosen.input_size, COLOURS) if repeat else (preprocess.size, len(preprocess.channels))
    model = build_network(
        chosen.network, channels=channels, size=(size, size), weights=weights, seed=study.seed, **chosen.options
    )
    if repeat and not str(weights).endswith((".keras", ".weights.h5")):  # which were saved with what they are to see
        see_minus_one_to_one(model)
    if weights is None:
        log.warning(
            "profile: profile.weights is none: %s is untrained, a baseline rather than a result", chosen.network
        )
    crops = (preprocess.size, preprocess.size, len(preprocess.channels))
    extractor = Extractor(model, chosen.layer, crops if repeat else None)
    build = load(GROUP, chosen.network)
    card = {
        "model": chosen.name,
        "network": chosen.network,
        "options": chosen.options,
        "package": package(GROUP, chosen.network),
        "source": getattr(build, "source", None),
        "licence": getattr(build, "licence", None),
        "weights": chosen.weights or f"untrained, seed {study.seed}",
        "weights_hash": weights_hash(model),
        "layer": chosen.layer,
        "width": extractor.width,
        "preprocess": json.loads(preprocess.model_dump_json()),
        "illumination": study.correction,
        **_mode(study),
        "runtime": f"keras-{keras.backend.backend()} float32",
        "versions": {"keras": keras.__version__, "python": platform.python_version()},
    }
    return extractor, card if trained is None else card | {"training": trained["training"]}


def trained_card(weights: Path) -> dict[str, Any] | None:
    """The model card that training left beside `weights`, or above the epochs; None where there is none."""
    for folder in (weights.parent, weights.parent.parent):
        path = folder / "card.json"
        if weights.is_file() and path.is_file():
            try:
                card: dict[str, Any] = json.loads(path.read_text("utf-8"))
            except ValueError as error:
                raise InputError(f"{path}: not a model card; delete it to profile without one") from error
            return card if "training" in card else None
    return None


def require_as_trained(study: Study, card: dict[str, Any], weights: str) -> None:
    """Refuse to profile with other channels or crops than the network was trained on.

    Raises
    ------
    InputError
        It says what differs and how to mend it.
    """
    from deepprofile.deepprofiler_weights import require_order

    found, wanted = card["preprocess"], json.loads(study.preprocess.model_dump_json())
    require_order(weights, found["channels"], wanted["channels"])
    if study.profile.mode == "repeat_channel":
        raise InputError(
            f"{weights} was trained on {', '.join(found['channels'])} together; repeat_channel is for networks of "
            "pictures in red, green and blue: set profile.mode to multi_channel"
        )
    found, wanted = found | {"illumination": card["illumination"]}, wanted | {"illumination": study.correction}
    if not card.get("same_as_profiling", True):  # then the size alone has to be that of the training
        found, wanted = {"size": found["size"]}, {"size": wanted["size"]}
    if changed := changes(found, wanted):
        raise InputError(f"{weights} was trained on other crops ({'; '.join(changed)}); set them as they were there")


def feature_settings(study: Study) -> dict[str, Any]:
    """What study.yaml says about features; the weights and the runtime are known once the network is built."""
    chosen = study.profile
    if chosen.files is not None:
        return {"files": chosen.files} | _mode(study)
    preprocess = json.loads(study.preprocess.model_dump_json())
    settings = {"network": chosen.network, "options": chosen.options, "layer": chosen.layer, "preprocess": preprocess}
    return settings | {"illumination": study.correction} | _mode(study)


def _mode(study: Study) -> dict[str, Any]:
    """How the network sees the channels of a crop, where it is not all at once."""
    return study.profile.model_dump(include={"mode", "input_size"}) if study.profile.mode == "repeat_channel" else {}


def plate_features(study: Study, plate: str) -> PlateTable:
    """The features of `plate`, as far as they are made."""
    return PlateTable(study.features / safe_name(plate), STAGE)


def _open(study: Study, index: pd.DataFrame, name: str, settings: dict[str, Any]) -> _Plate:
    source = open_source(study, index, name)
    table = plate_features(study, name)
    for change in table.manifest.expect(settings):
        log.info("profile: plate %s: %s: it runs again", name, change)
    return _Plate(source, table)


def _stale(study: Study, plate: _Plate, strict: bool) -> list[_Well]:
    """The wells of `plate` that are not current; a plate without any is brought into its final form.

    With `strict` a well that was made without one of its sites is not current either.
    """
    todo = []
    for well in plate.source.sites:
        key = plate.table.manifest.key(plate.source.inputs(study, well))
        current = plate.table.manifest.is_current(well, key)
        if not current or (strict and lacks_site(plate.table.manifest.parts[well])):
            todo.append(_Well(plate, well, key))
    plate.left = len(todo)
    if not todo:
        plate.table.finish(plate.source.sites)
    return todo


def _jobs(todo: list[_Well]) -> Iterator[_Job]:
    while todo:  # emptied, so that the features of a well are let go of once they are written
        well = todo.pop(0)
        cells = well.plate.source.located.read(well.name).to_pandas()
        rows = site_rows(well.plate.source.sites[well.name])
        for row in rows:
            yield _Job(well, row, cells[cells[SITE] == row[SITE]], last=row is rows[-1])


def _read(study: Study, job: _Job, strict: bool) -> _Job:
    if len(job.cells):
        job.site = read_source(study, job.row, strict=strict)
    return job


def _batches(
    jobs: Iterator[_Job], preprocess: Preprocess, size: int, advance: Callable[[int], None]
) -> Iterator[_Batch]:
    """Cells in the order of the sites, `size` to a batch; the last one is filled up with zeros."""
    shape = (size, preprocess.size, preprocess.size, len(preprocess.channels))
    crops, filled = np.zeros(shape, np.float32), 0
    rows: list[tuple[_Well, int]] = []
    ended: list[_Well] = []
    for job in jobs:
        well, source = job.well, job.well.plate.source
        if isinstance(job.site, str):
            well.skipped.append((site_name(job.row), job.site))
        elif job.site is not None:
            site = job.site
            xy, numbers = job.cells[[X, Y]].to_numpy(), job.cells[CELL].to_numpy()
            kept = preprocess.keep(xy, site.image.shape)
            well.skipped += lost_cells(preprocess, site_name(job.row), kept)
            well.cells.append(job.cells[kept])
            xy, numbers = xy[kept], numbers[kept]
            while len(xy):
                n = min(len(xy), size - filled)
                cut = site.cut(preprocess, xy[:n], numbers[:n])
                crops[filled : filled + n] = source.scale(preprocess, site, cut)
                rows.append((well, n))
                xy, numbers, filled = xy[n:], numbers[n:], filled + n
                if filled == size:
                    yield _Batch(crops, rows, ended)
                    crops, filled, rows, ended = np.zeros(shape, np.float32), 0, [], []
        if job.last:
            ended.append(well)
        advance(1)
    if filled or ended:
        yield _Batch(crops if filled else None, rows, ended)


def _table(well: _Well, width: int, card: dict[str, Any]) -> pa.Table:
    features = np.concatenate([np.empty((0, width), np.float32), *well.features])
    if bad := int((~np.isfinite(features)).any(axis=1).sum()):
        raise InputError(
            f"{well.plate.source.plate} {well.name}: {bad} cells have features that are not finite; check the weights"
        )
    values = pa.FixedSizeListArray.from_arrays(pa.array(features.ravel()), width)
    keys = pd.concat(well.cells, ignore_index=True) if well.cells else pd.DataFrame({PLATE: [], WELL: [], SITE: []})
    table = pa.Table.from_pandas(keys, preserve_index=False)
    text = [pa.field(f.name, pa.string()) if f.name in (PLATE, WELL, SITE) else f for f in table.schema]
    table = table.cast(pa.schema(text)).append_column("features", values)
    return table.replace_schema_metadata({CARD: json.dumps(card, sort_keys=True)})

"""The illumination stage: the range of counts of each plate and channel, functions of uneven light, quality of sites.

Without a correction the control wells are read, and their values counted. With one, a single pass over the plate sums
the images and keeps a bounded sample of the controls' pixels, whose percentiles are taken once the functions are known.
"""

import math
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from cytominer_tools.columns import PLATE, SITE, WELL
from cytominer_tools.errors import InputError
from cytominer_tools.files import atomic_path, safe_name
from cytominer_tools.manifest import Manifest, fingerprint
from cytominer_tools.queries import select
from cytominer_tools.tables import write_table
from cytominer_tools.threads import map_ahead, workers
from deepprofile.illumination import (
    FOLDER,
    Correction,
    area_thumbnail,
    correction_arrays,
    correction_path,
    deepprofiler_function,
    function_files,
    read_correction,
    read_function,
    shrink,
    smooth_function,
    unevenness,
)
from deepprofile.index import load_index
from deepprofile.percentiles import Counts, Sample
from deepprofile.quality import SiteQuality, quality_line, quality_table, site_quality
from deepprofile.sites import image_fingerprint, site_image, site_rows
from deepprofile.study import Study
from deepprofile.work import Done, keep_earlier, log, progress

STAGE = FOLDER
MEND = "deepprofile illumination"


def measure_intensities(study: Study, *, strict: bool = False) -> Done:
    """Write illumination/PLATE.npz with the low and high count of each channel (`crops.percentiles`).

    Over the control wells of a plate, or all its wells where none can be read. With `illumination.method` also the
    illumination functions, from the mean image of all wells, and PLATE.png, which shows them; the counts are then those
    of corrected images. Where all sites are read, or `illumination.qc` asks for it, PLATE_sites.parquet has the quality
    of each site. A site that cannot be read is left out; the stages that follow report it.

    Raises
    ------
    InputError
        The images of a plate differ in type, or, for a correction, in size; a function of `illumination.files` is
        missing or does not fit; with `strict`, a site cannot be read.
    """
    index = load_index(study)
    with study.writing():
        manifest = Manifest.read(study.root / STAGE, STAGE)
        for change in manifest.expect(_settings(study)):
            log.info("illumination: %s: it runs again", change)
        made = 0
        plates = index[PLATE].unique()
        to_read = {}
        for plate in plates:
            sites = index[index[PLATE] == plate]
            to_read[plate] = (sites, _control_sites(study, sites))
        total = sum(len(sites if _reads_all(study) else controls) for sites, controls in to_read.values())
        with progress(STAGE, total, "sites") as advance:
            for plate, (sites, controls) in to_read.items():
                chosen = sites if _reads_all(study) else controls
                key = manifest.key(_inputs(study, plate, chosen, controls))
                # the key of a plate whose controls could not be read, see below
                instead = manifest.key(_inputs(study, plate, sites, sites))
                if manifest.is_current(plate, key) or manifest.is_current(plate, instead):
                    advance(len(chosen))
                    continue
                seen = _look(study, plate, chosen, controls, strict, advance)
                if not seen.controls and len(seen.skipped) < len(sites) > len(controls):
                    chosen, key = sites, instead
                    seen = _look(study, plate, sites, sites, strict, lambda n: None)
                if len(seen.skipped) == len(chosen):
                    if plate in manifest.parts and manifest.parts[plate].rows:
                        what = f"the illumination of plate {plate}, in {manifest.folder},"
                        keep_earlier(what, seen.skipped, lambda site: site[1])
                    log.warning("illumination: plate %s: none of its sites can be read: %s", plate, seen.skipped[0][1])
                _write(study, plate, chosen, seen)
                name = correction_path(study, plate).name
                manifest.record(plate, key, name, len(chosen) - len(seen.skipped), seen.skipped)
                made += 1
    rows = sum(manifest.parts[plate].rows for plate in plates)
    return Done(STAGE, made, len(plates) - made, rows, "sites measured")


def read_levels(study: Study, plate: str) -> np.ndarray:
    """Low and high count of each channel of `plate`, float32 (2, C), as `measure_intensities` left them.

    Raises
    ------
    InputError
        The stage has not run for this plate, or under other settings.
    """
    _require(study, plate)
    with np.load(correction_path(study, plate), allow_pickle=False) as file:
        return file["levels"]


def plate_correction(study: Study, plate: str) -> Correction | None:
    """The illumination functions of `plate`; None where `illumination.method` is none.

    Raises
    ------
    InputError
        The stage has not run for this plate, or under other settings.
    """
    if study.correction is None:
        return None
    _require(study, plate)
    return read_correction(study, plate)


@dataclass
class _Seen:
    """What one pass over the sites of a plate leaves behind."""

    levels: np.ndarray  # (2, C)
    controls: int  # sites that they come from
    skipped: list[tuple[str, str]]
    quality: list[SiteQuality | str]  # empty, or a row a site
    dtype: np.dtype | None = None
    correction: Correction | None = None
    shown: "_Shown | None" = None


@dataclass
class _Shown:
    """What the figure shows, at its size."""

    mean: np.ndarray  # (h, w, C), counts
    function: np.ndarray  # (h, w, C)
    unevenness: np.ndarray  # (3, C): before, after, and of the function itself


@dataclass
class _Light:
    """The sum of the images of a plate, and of every other one at reduced size."""

    shape: tuple[int, ...]
    dtype: np.dtype
    total: np.ndarray  # float64, so that sums of integers are exact, whatever their order
    halves: tuple[np.ndarray, np.ndarray]
    sites: int = 0


def _settings(study: Study) -> dict[str, Any]:
    size = list(study.images.size) if study.images.size else None
    settings: dict[str, Any] = {"percentiles": list(study.crops.percentiles), "channels": study.channels, "size": size}
    if study.correction is not None:
        settings["illumination"] = study.correction
    if study.illumination.qc:
        settings["qc"] = True
    return settings


def _require(study: Study, plate: str) -> None:
    Manifest.read(study.root / STAGE, STAGE).require([plate], _settings(study), MEND)


def _reads_all(study: Study) -> bool:
    return study.illumination.qc or study.illumination.method in ("deepprofiler", "smooth")


def _control_sites(study: Study, sites: pd.DataFrame) -> pd.DataFrame:
    chosen = sites[select(sites, study.controls)] if study.controls else sites.iloc[:0]
    return chosen if len(chosen) else sites


def _inputs(study: Study, plate: str, chosen: pd.DataFrame, controls: pd.DataFrame) -> Any:
    images = image_fingerprint(study, controls)
    if chosen is controls and study.illumination.method != "files":
        return images
    files = fingerprint(function_files(study, plate), study.root) if study.illumination.method == "files" else []
    return [images, [] if chosen is controls else image_fingerprint(study, chosen), files]


def _look(study: Study, plate: str, sites: pd.DataFrame, controls: pd.DataFrame, strict: bool, advance: Any) -> _Seen:
    """Read every one of `sites` once; the levels come from those that are `controls`."""
    wants_quality = _reads_all(study)
    counts, sample, light = Counts(len(study.channels)), None, None
    downscale = study.illumination.downscale
    skipped: list[tuple[str, str]] = []
    quality: list[SiteQuality | str] = []
    used, dtype = 0, None

    def read(row: Mapping[str, str]) -> tuple[np.ndarray, np.ndarray | None, SiteQuality | None] | InputError:
        try:
            image = site_image(study, row, corrected=False)
        except InputError as error:
            return error
        small = None if study.correction is None else area_thumbnail(image, downscale)
        return image, small, site_quality(image) if wants_quality else None

    rows, is_control = site_rows(sites), sites.index.isin(controls.index)
    # closed whatever happens: the threads of an error that is kept would go on
    with closing(map_ahead(read, rows, 2 * workers())) as found:
        for row, control, answer in zip(rows, is_control, found, strict=True):
            advance(1)
            if isinstance(answer, InputError):
                if strict:
                    raise answer
                skipped.append((f"{row[WELL]} site {row[SITE]}", str(answer)))
                quality += [str(answer)] if wants_quality else []
                continue
            image, small, measured = answer
            quality += [] if measured is None else [measured]
            used += int(control)
            dtype = dtype or image.dtype
            if small is None:
                if control:
                    counts.add(image)
                continue
            if light is None or sample is None:
                halves = (np.zeros(small.shape), np.zeros(small.shape))
                light = _Light(image.shape, image.dtype, np.zeros(image.shape), halves)
                sample = Sample(image.shape, len(controls))
            _check_alike(row, image, light)
            np.add(light.total, image, out=light.total)
            np.add(light.halves[light.sites % 2], small, out=light.halves[light.sites % 2])
            light.sites += 1
            if control:
                sample.add(image)
    q = study.crops.percentiles
    if study.correction is None:
        return _Seen(counts.percentiles(q), used, skipped, quality, dtype)
    if light is None or sample is None:
        nothing = Correction(np.ones((0, 0, len(study.channels)), np.float32), (0, 0), np.dtype(np.uint16), 1.0)
        return _Seen(counts.percentiles(q), used, skipped, quality, dtype, nothing)
    light.total /= light.sites
    small_means = np.stack([shrink(plane, downscale) for plane in np.moveaxis(light.total, 2, 0)], axis=-1)
    correction = _functions(study, plate, small_means, light)
    full = correction.expand()
    function = area_thumbnail(full, downscale)
    shown = _Shown(small_means.astype(np.float32), function, _unevenness(study, plate, function, light))
    return _Seen(sample.percentiles(q, full), used, skipped, quality, dtype, correction, shown)


def _check_alike(row: Mapping[str, str], image: np.ndarray, light: _Light) -> None:
    what = f"{row[PLATE]} {row[WELL]} site {row[SITE]}"
    if image.shape != light.shape:
        sizes = [" x ".join(map(str, shape[:2])) for shape in (image.shape, light.shape)]
        raise InputError(
            f"{what}: {sizes[0]} pixels after {sizes[1]} ones; the illumination of a plate is that of one camera: "
            "set images.size to leave the others out"
        )
    if image.dtype != light.dtype:
        raise InputError(
            f"{what}: {image.dtype} pixels after {light.dtype} ones; the images of a plate must be of one type"
        )


def _functions(study: Study, plate: str, means: np.ndarray, light: _Light) -> Correction:
    """The functions by `illumination.method`, from the mean images (h, w, C)."""
    size = (light.shape[0], light.shape[1])
    if study.illumination.method == "files":
        functions = [read_function(path, size) for path in function_files(study, plate)]
        if len({function.shape for function in functions}) > 1:
            raise InputError(f"illumination.files: the functions of plate {plate} differ in shape; make them again")
        return Correction(np.stack(functions, axis=-1), size, light.dtype, least=0.0)
    function = _measured(study, means, size)
    if dark := [name for name, most in zip(study.channels, function.max(axis=(0, 1)), strict=True) if most == 1]:
        reason = ": deepprofiler counts in whole numbers" if light.dtype == np.float32 else ""
        log.warning("illumination: plate %s: no light to correct %s by%s", plate, ", ".join(dark), reason)
    return Correction(function, size, light.dtype, least=1.0)


def _measured(study: Study, means: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    settings = study.illumination
    window = study.illumination_window / settings.downscale

    def function(mean: np.ndarray) -> np.ndarray:
        if settings.method == "deepprofiler":
            return deepprofiler_function(mean, size, round(window / 2))
        return smooth_function(mean, window, settings.filter)

    planes = [np.ascontiguousarray(means[..., channel]) for channel in range(means.shape[2])]
    return np.stack(list(map_ahead(function, planes, len(planes))), axis=-1).astype(np.float32)


def _unevenness(study: Study, plate: str, function: np.ndarray, light: _Light) -> np.ndarray:
    """Of the mean image of each channel before and after, and how far the function itself is off; shape (3, C).

    The mean after says little: what made the function is flat by it, be it light or cells. So the function of one half
    of the sites corrects the other half; what is left is the noise of both halves, twice that of all sites together.
    """
    whole = (light.halves[0] + light.halves[1]) / light.sites
    before, after = _channels_unevenness(whole), _channels_unevenness(whole / function)
    off = np.full(len(before), np.nan)  # of a function from a file, or from one site, nothing is known
    if study.illumination.method != "files" and light.sites > 1:
        means = [half / n for half, n in zip(light.halves, ((light.sites + 1) // 2, light.sites // 2), strict=True)]
        small = (whole.shape[0], whole.shape[1])
        left = [
            _channels_unevenness(mean / np.maximum(_measured(study, other, small), 1))
            for mean, other in zip(means, means[::-1], strict=True)
        ]
        off = np.mean(left, axis=0) / 2
        few = [name for name, b, o in zip(study.channels, before, off, strict=True) if o > b / math.sqrt(2)]
        if few:
            log.warning(
                "illumination: plate %s: its %d sites are too few to tell the light from the cells: the functions of "
                "%s add more unevenness than they take away",
                plate, light.sites, ", ".join(few),
            )  # fmt: skip
    return np.array([before, after, off])


def _channels_unevenness(means: np.ndarray) -> np.ndarray:
    return np.array([unevenness(plane) for plane in np.moveaxis(means, 2, 0)])


def _write(study: Study, plate: str, sites: pd.DataFrame, seen: _Seen) -> None:
    """The files of one plate; the npz, by which the part counts as made, is last."""
    folder = study.root / STAGE
    table, figure = folder / f"{safe_name(plate)}_sites.parquet", folder / f"{safe_name(plate)}.png"
    for left in (table, figure):
        left.unlink(missing_ok=True)
    if seen.quality:
        found = quality_table(sites[[PLATE, WELL, SITE]], seen.quality, list(study.channels), seen.dtype)
        write_table(found, table)
        log.info("illumination: plate %s: %s; see %s/%s", plate, quality_line(found), STAGE, table.name)
    if seen.shown is not None:
        from deepprofile.illumination_figure import illumination_figure

        for channel, (before, after, off) in zip(study.channels, seen.shown.unevenness.T, strict=True):
            said = "" if np.isnan(off) else f"; the function itself errs by {off:.1%}"
            log.info(
                "illumination: plate %s: %s uneven by %s, after correction %s%s",
                plate, channel, f"{before:.1%}", f"{after:.1%}", said,
            )  # fmt: skip
        shown = seen.shown
        drawn = illumination_figure(plate, list(study.channels), shown.mean, shown.function, shown.unevenness)
        with atomic_path(figure) as path:
            drawn.savefig(path, dpi=110, metadata={"Software": None})
    arrays: dict[str, Any] = {"levels": seen.levels}
    if seen.correction is not None:
        arrays |= correction_arrays(study, seen.correction)
    if seen.shown is not None:
        arrays |= {"mean": seen.shown.mean, "unevenness": seen.shown.unevenness}
    with atomic_path(correction_path(study, plate)) as path, path.open("wb") as file:
        np.savez(file, **arrays)

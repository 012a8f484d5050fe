"""The range of counts of each plate and channel, over its control wells, in one pass of bounded memory."""

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import numpy as np
import pandas as pd

from cytominer_tools.columns import PLATE, SITE, WELL
from cytominer_tools.errors import InputError
from cytominer_tools.files import atomic_path, safe_name
from cytominer_tools.manifest import Manifest
from cytominer_tools.queries import select
from deepprofile.index import load_index
from deepprofile.sites import image_fingerprint, site_image, site_rows
from deepprofile.study import Study
from deepprofile.work import Done, log, map_ahead, progress, workers

STAGE = "illumination"
# float images: sign, exponent and 11 bits of the mantissa, so a percentile is right to 1 part in 2048
_FLOAT_SHIFT = 12


class Counts:
    """How often each value occurs, by channel: exact for 8 and 16 bits, to 1 part in 2048 for float32; mergeable."""

    def __init__(self, channels: int):
        self.channels = channels
        self.counts: np.ndarray | None = None
        self.dtype: np.dtype | None = None

    def add(self, image: np.ndarray) -> None:
        """Count the pixels of `image`, shape (H, W, C).

        Raises
        ------
        InputError
            Its type differs from that of the images before it.
        """
        if self.counts is None:
            bins = 1 << (32 - _FLOAT_SHIFT) if image.dtype == np.float32 else np.iinfo(image.dtype).max + 1
            self.counts, self.dtype = np.zeros((self.channels, bins), np.int64), image.dtype
        if image.dtype != self.dtype:
            raise InputError(f"{image.dtype} pixels after {self.dtype} ones; the images of a plate must be of one type")
        for channel, counts in enumerate(self.counts):
            counts += np.bincount(_bins(image[..., channel]).ravel(), minlength=len(counts))

    def percentiles(self, q: tuple[float, ...]) -> np.ndarray:
        """The smallest value with at least q percent of the pixels at or below it; 0 where none was counted.

        Returns
        -------
        float32 array, shape (len(q), channels)
        """
        if self.counts is None or self.dtype is None:
            return np.zeros((len(q), self.channels), np.float32)
        reached = self.counts.cumsum(axis=1)
        total = int(reached[0, -1])
        # exact, as 0.9 / 100 * 1000 is a little over 9
        ranks = [max(1, math.ceil(Fraction(str(share)) * total / 100)) for share in q]
        bins = np.array([[np.searchsorted(row, rank) for row in reached] for rank in ranks])
        return _values(bins) if self.dtype == np.float32 else bins.astype(np.float32)


def measure_intensities(study: Study, *, strict: bool = False) -> Done:
    """Write illumination/PLATE.npz with the low and high count of each channel (`crops.percentiles`).

    Over the control wells of a plate, or all its wells where none can be read. A site that cannot be read is left
    out; the stages that follow report it.

    Raises
    ------
    InputError
        With `strict`, a site cannot be read.
    """
    index = load_index(study)
    with study.writing():
        manifest = Manifest.read(study.root / STAGE, STAGE)
        for change in manifest.expect(_settings(study)):
            log.info("illumination: %s: it runs again", change)
        made = 0
        plates = index[PLATE].unique()
        with progress(STAGE, len(plates), "plates") as advance:
            for plate in plates:
                sites = index[index[PLATE] == plate]
                controls = _control_sites(study, sites)
                key = manifest.key(image_fingerprint(study, controls))
                name = f"{safe_name(plate)}.npz"
                if not manifest.is_current(plate, key):
                    measured = controls
                    counts, skipped = _count(study, measured, strict)
                    if len(skipped) == len(controls) < len(sites):
                        measured = sites
                        counts, skipped = _count(study, measured, strict)
                    if len(skipped) == len(measured):
                        log.warning("illumination: plate %s: none of its sites can be read: %s", plate, skipped[0][1])
                    with atomic_path(manifest.folder / name) as path, path.open("wb") as file:
                        np.savez(file, levels=counts.percentiles(study.crops.percentiles))
                    manifest.record(plate, key, name, len(measured) - len(skipped), skipped)
                    made += 1
                advance(1)
    rows = sum(manifest.parts[plate].rows for plate in plates)
    return Done(STAGE, made, len(plates) - made, rows, "sites measured")


def read_levels(study: Study, plate: str) -> np.ndarray:
    """Low and high count of each channel of `plate`, float32 (2, C), as `measure_intensities` left them.

    Raises
    ------
    InputError
        The stage has not run for this plate, or under other settings.
    """
    manifest = Manifest.read(study.root / STAGE, STAGE)
    manifest.require([plate], _settings(study), "deepprofile illumination")
    with np.load(manifest.folder / manifest.parts[plate].file, allow_pickle=False) as file:
        return file["levels"]


def _settings(study: Study) -> dict[str, Any]:
    size = list(study.images.size) if study.images.size else None
    return {"percentiles": list(study.crops.percentiles), "channels": study.channels, "size": size}


def _control_sites(study: Study, sites: pd.DataFrame) -> pd.DataFrame:
    chosen = sites[select(sites, study.controls)] if study.controls else sites.iloc[:0]
    return chosen if len(chosen) else sites


def _count(study: Study, sites: pd.DataFrame, strict: bool) -> tuple[Counts, list[tuple[str, str]]]:
    counts = Counts(len(study.channels))
    skipped = []

    def read(row: Mapping[str, str]) -> np.ndarray | InputError:
        try:
            return site_image(study, row)
        except InputError as error:
            return error

    rows = site_rows(sites)
    for row, image in zip(rows, map_ahead(read, rows, 2 * workers()), strict=True):
        if isinstance(image, InputError):
            if strict:
                raise image
            skipped.append((f"{row[WELL]} site {row[SITE]}", str(image)))
        else:
            counts.add(image)
    return counts, skipped


def _bins(pixels: np.ndarray) -> np.ndarray:
    if pixels.dtype != np.float32:
        return pixels
    bits = np.ascontiguousarray(pixels).view(np.uint32)
    # flipped so that unsigned order is the order of the numbers
    ordered = np.where(bits >> 31, ~bits, bits | np.uint32(0x80000000))
    return (ordered >> _FLOAT_SHIFT).astype(np.int64)


def _values(bins: np.ndarray) -> np.ndarray:
    ordered = (bins.astype(np.uint32) << _FLOAT_SHIFT) | np.uint32(1 << (_FLOAT_SHIFT - 1))  # the middle of the bin
    bits = np.where(ordered >> 31, ordered & np.uint32(0x7FFFFFFF), ~ordered)
    return bits.astype(np.uint32).view(np.float32)

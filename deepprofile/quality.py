"""Quality control of sites: brightness, saturation and focus of each channel."""

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import fft

from cytominer_tools.columns import METADATA

SATURATED = 0.01  # share of a site's pixels at the ceiling from which it counts as saturated
OUT_OF_FOCUS = -3.5  # robust z of the focus below which a site does: Iglewicz & Hoaglin 1993
WHY = f"{METADATA}Unreadable"
_LEAST_SPREAD = 0.03  # of the slope: a plate of nearly equal sites has none out of focus


def focus_slope(plane: np.ndarray) -> float:
    """Slope of log power over log frequency: about -2 where an image is sharp, below -3 where it is out of focus.

    CellProfiler's PowerLogLogSlope (MeasureImageQuality), but for one shortcut: the image is halved first and the
    halving undone in the spectrum, which keeps all frequencies that count (up to an eighth of the side, in cycles an
    image) and is 12 times faster. At 1080 x 1080 px the slope is within 0.06 of CellProfiler's, which has negative
    frequencies one off; smaller images show that more. It hardly depends on brightness, number of cells and camera
    noise, where the variance of the Laplacian does.

    Parameters
    ----------
    plane : array, shape (H, W)

    Returns
    -------
    float
        NaN under 48 px, or where all is equal.

    References
    ----------
    Bray et al. 2012, doi:10.1177/1087057111420292; Field 1997, doi:10.1088/0954-898X_8_4_003.
    """
    height, width = plane.shape
    if min(height, width) < 48:
        return float("nan")
    small = cv2.resize(np.asarray(plane, np.float32), (width // 2, height // 2), interpolation=cv2.INTER_AREA)
    spectrum = fft.rfft2(small - small.mean())
    power = spectrum.real**2 + spectrum.imag**2
    radius, weight, rings = _rings(height, width)
    sums = np.bincount(radius, (power * weight).ravel())[rings]
    if not (sums > 0).all():
        return float("nan")
    x, y = np.log(rings), np.log(sums)
    return float(np.polyfit(x - x.mean(), y, 1)[0])


@lru_cache(maxsize=2)
def _rings(height: int, width: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Of the spectrum of a halved image: rings of the frequencies, factors of their power, and the rings that count."""
    down = np.abs(fft.fftfreq(height // 2) * (height // 2))[:, None]
    across = np.arange(width // 2 // 2 + 1)[None]
    radius = np.hypot(down, across).astype(np.int64) + 1
    twice = np.where((across == 0) | (2 * across == width // 2), 1, 2)  # the half that rfft2 leaves out
    halving = (np.cos(np.pi * down / height) * np.cos(np.pi * across / width)) ** 2
    return radius.ravel(), (twice / halving).astype(np.float32), np.arange(2, min(height, width) // 8)


@dataclass(frozen=True)
class SiteQuality:
    """What one pass over a site tells, by channel; shape (C,)."""

    mean: npt.NDArray[np.float64]  # counts
    top: npt.NDArray[np.float64]  # the largest count
    at_top: npt.NDArray[np.float64]  # share of pixels that have it
    focus: npt.NDArray[np.float64]


def site_quality(image: np.ndarray) -> SiteQuality:
    """Of an image (H, W, C) in its own counts, before any correction."""
    planes = [np.ascontiguousarray(image[..., channel]) for channel in range(image.shape[2])]
    tops = [plane.max() for plane in planes]
    return SiteQuality(
        np.array([plane.mean(dtype=np.float64) for plane in planes]),
        np.array(tops, np.float64),
        np.array([np.count_nonzero(plane == top) / plane.size for plane, top in zip(planes, tops, strict=True)]),
        np.array([focus_slope(plane) for plane in planes]),
    )


def quality_table(
    keys: pd.DataFrame, found: list[SiteQuality | str], channels: list[str], dtype: np.dtype | None
) -> pd.DataFrame:
    """A row a site, and columns by channel.

    Parameters
    ----------
    keys : DataFrame
        Plate, well and site of each row.
    found : list, one a row
        What was measured, or why the site cannot be read.
    dtype : dtype, optional
        Of the images: the largest value of an integer type is a ceiling.

    Returns
    -------
    DataFrame
        `keys`, and for each channel Mean (counts), Saturated (share of pixels at the ceiling: the largest count of the
        type, or that the channel reaches anywhere on the plate, as cameras of 12 bits do in files of 16), Focus (the
        slope of `focus_slope`) and FocusZ (its robust z among the sites of the plate), NaN where a site cannot be read;
        `Metadata_Unreadable` says why, and is empty elsewhere.
    """
    nothing = np.full(len(channels), np.nan)
    none = SiteQuality(nothing, nothing, nothing, nothing)
    sites = [none if isinstance(site, str) else site for site in found]
    table = keys.reset_index(drop=True)
    table[WHY] = [site if isinstance(site, str) else "" for site in found]
    for at, channel in enumerate(channels):
        mean, top, share, focus = (
            np.array([getattr(site, name)[at] for site in sites], np.float64)
            for name in ("mean", "top", "at_top", "focus")
        )
        ceiling = np.nanmax(top) if np.isfinite(top).any() else np.nan
        if dtype is not None and dtype.kind == "u":
            ceiling = min(ceiling, float(np.iinfo(dtype).max))
        table[f"Mean_{channel}"] = mean
        table[f"Saturated_{channel}"] = np.where(np.isnan(top), np.nan, np.where(top >= ceiling, share, 0.0))
        table[f"Focus_{channel}"] = focus
        table[f"FocusZ_{channel}"] = robust_z(focus)
    return table


def robust_z(focus: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Distance from the median in robust standard deviations, of at least 0.03; NaN stays."""
    known = focus[np.isfinite(focus)]
    if not len(known):
        return np.full(focus.shape, np.nan)
    middle = np.median(known)
    return (focus - middle) / max(1.4826 * float(np.median(np.abs(known - middle))), _LEAST_SPREAD)


def quality_line(table: pd.DataFrame) -> str:
    """How many sites of a quality table are bad, in words."""
    saturated = (table.filter(regex="^Saturated_") > SATURATED).any(axis=1)
    blurred = (table.filter(regex="^FocusZ_") < OUT_OF_FOCUS).any(axis=1)
    return (
        f"{len(table)} sites, {saturated.sum()} with over {SATURATED:.0%} saturated pixels, "
        f"{blurred.sum()} out of focus (robust z < {OUT_OF_FOCUS:g}), {(table[WHY] != '').sum()} unreadable"
    )

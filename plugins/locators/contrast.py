"""From counts to contrast: one channel above its background, and the least contrast that is not noise."""

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt
from skimage.filters import threshold_otsu

from cytominer_tools.errors import InputError

Floats = npt.NDArray[np.float32]

# The diameter is estimated between these; fewer than 6 px show no shape, and a field needs some background.
NUCLEUS_UM = (8.0, 30.0)
SMALLEST_PX, LARGEST_FRACTION = 6.0, 1 / 3
MODE_SHARES = (1 / 4, 1 / 10)  # of the pixels: steady, and for fields with little background
PARTED = 4.0  # distance of two classes over the spread of the darker one; the halves of normal noise have 2.3


def channel_counts(
    image: npt.NDArray[np.float32], channels: Sequence[str], channel: int = 0
) -> npt.NDArray[np.float64]:
    """One channel as float64, so that a large offset takes no digits; refused where it cannot be used."""
    image = np.asarray(image)
    if image.ndim != 3:
        raise InputError(f"image has shape {image.shape}: expected (height, width, channels); use image[..., None]")
    if image.shape[2] != len(channels):
        raise InputError(f"image has {image.shape[2]} channel(s), the names are {list(channels)}: name every channel")
    if 0 in image.shape:
        raise InputError(f"image has shape {image.shape}: expected at least one pixel and one channel")
    counts: npt.NDArray[np.float64] = image[..., channel].astype(np.float64)
    if bad := int((~np.isfinite(counts)).sum()):
        raise InputError(
            f"{channels[channel]}: {bad} of {counts.size} pixels are not finite; replace them or leave the site out"
        )
    return counts


def least_step(counts: npt.NDArray[np.float64]) -> float:
    """The least difference between two counts, of every 16th pixel: blocks of JPEG may differ by it, not nuclei."""
    steps = np.diff(np.unique(counts[::4, ::4]))
    return float(steps.min()) if len(steps) else 0.0


def floats(x: npt.ArrayLike) -> Floats:
    """cv2 does not say what it returns; no copy is made."""
    return np.asarray(x, np.float32)


def resized(x: Floats, zoom: float) -> Floats:
    """`x` with its sides times `zoom`, area-averaged when shrunk."""
    if zoom == 1:
        return x
    sides = (max(1, round(x.shape[1] * zoom)), max(1, round(x.shape[0] * zoom)))
    return floats(cv2.resize(x, sides, interpolation=cv2.INTER_AREA if zoom < 1 else cv2.INTER_LINEAR))


def blurred(x: Floats, sigma: float) -> Floats:
    return floats(cv2.GaussianBlur(x, (0, 0), sigma))


def smoothing(size: float) -> float:
    """Sigma (px) of the smoothing for nuclei `size` px wide: far below their width, yet it averages the noise."""
    return max(0.7, size / 16)


def disc(radius: float) -> npt.NDArray[np.uint8]:
    """A flat disc, at least one pixel in radius."""
    side = 2 * max(1, round(radius)) + 1
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side)).astype(np.uint8)


def estimate_diameter(x: Floats, pixel_size_um: float | None) -> float:
    """Typical diameter of a nucleus in pixels, from the circles that fit into the bright class."""
    smallest, largest = SMALLEST_PX, max(SMALLEST_PX, min(x.shape) * LARGEST_FRACTION)
    if pixel_size_um is not None:
        smallest, largest = (max(3.0, um / pixel_size_um) for um in NUCLEUS_UM)
    zoom = min(1.0, 800 / min(x.shape), 8 / smallest)
    small = blurred(resized(x, zoom), 1.0)
    small = small - background_of(small, min(largest * zoom, min(small.shape) / 10))  # half the field at most
    mask = (small > threshold_otsu(small)).astype(np.uint8)
    distance = blurred(floats(cv2.distanceTransform(mask, cv2.DIST_L2, 5)), 1.0)
    summit = (distance == cv2.dilate(distance, np.ones((5, 5), np.uint8))) & (distance > 1)
    radii = np.sort(distance[summit])
    if not len(radii):
        return float(np.clip(2 * SMALLEST_PX, smallest, largest))
    weight = np.cumsum(radii**1.5)  # between counting nuclei (debris counts too) and pixels (clumps count more)
    middle = radii[np.searchsorted(weight, weight[-1] / 2)]
    # a nucleus is an ellipse, about 1.25 times as wide as the circle that fits into it
    return float(np.clip(2 * 1.25 * middle / zoom, smallest, largest))


def fit_plane(x: Floats) -> Floats:
    """The plane under the nuclei: least squares in which what lies above counts for a twentieth."""
    rows, columns = np.indices(x.shape)
    terms = np.stack([np.ones(x.size), rows.ravel() / x.shape[0], columns.ravel() / x.shape[1]])
    values = x.ravel().astype(np.float64)
    weight = np.ones(x.size)
    fit = np.zeros(x.size)
    for _ in range(10):
        weighted = terms * weight
        fit = np.linalg.lstsq(weighted @ terms.T, weighted @ values, rcond=None)[0] @ terms
        weight = np.where(values > fit, 0.05, 1.0)
    return floats(fit.reshape(x.shape))


def background_of(x: Floats, size: float) -> Floats:
    """What varies over five diameters or more: a smooth opening, computed on a coarse grid."""
    coarse = floats(cv2.medianBlur(resized(x, min(1.0, 4 / size)), 3))
    width = 2 * round(2.5 * min(size, 4.0)) + 1
    plane = fit_plane(coarse)  # an opening alone cuts the high edge off a slope
    opened = cv2.morphologyEx(coarse - plane, cv2.MORPH_OPEN, np.ones((width, width), np.uint8))
    opened = cv2.GaussianBlur(opened, (0, 0), width / 4) + plane
    return floats(cv2.resize(opened, x.shape[::-1], interpolation=cv2.INTER_LINEAR))


def grain_of(x: Floats, contrast: Floats, sigma: float) -> float:
    """What the pixel noise of the darker half leaves after smoothing; it is seen even where a camera clips at zero."""
    dark = contrast <= np.median(contrast)
    fine = np.abs(x - blurred(x, 1.0))[dark]
    fine = np.minimum(fine, np.percentile(fine, 99))  # hot pixels are not grain
    return max(float(np.sqrt(np.mean(fine * fine))) / (2 * np.sqrt(np.pi) * sigma), 1e-5)  # the floor is rounding


def contrast_of(x: Floats, calm: Floats, size: float, noise: float) -> tuple[Floats, float]:
    """Smoothed image above background, and the least contrast that is not noise."""
    sigma = smoothing(size)
    smooth = blurred(calm, sigma)
    contrast = smooth - background_of(smooth, size)
    grain = grain_of(x, contrast, sigma)
    step = max(1, min(x.shape) // 512)
    sample = np.sort(contrast[::step, ::step].ravel())
    # two well-parted classes: the nuclei may outnumber the background, whose mode is then sought in the darker class
    otsu = float(threshold_otsu(sample))
    below, above = sample[sample <= otsu], sample[sample > otsu]
    center = float(np.median(below))
    spread = max(1.4826 * float(np.median(np.abs(below - center))), grain)
    parted = len(above) > 0 and float(np.median(above)) - center > PARTED * spread
    dark = below if parted else sample
    for share in MODE_SHARES:
        # mode: the shortest interval that holds a share of the pixels; left of it there are no nuclei, only noise
        width = max(1, int(len(dark) * share))
        start = int(np.argmin(dark[width:] - dark[:-width]))
        mode = float(np.median(dark[start : start + width]))
        left = dark[dark <= mode]
        threshold = noise * max(float(np.sqrt(np.mean((left - mode) ** 2))), grain)
        if mode + threshold < sample[int(0.98 * len(sample))]:
            break  # otherwise hardly a pixel stands out: there are no nuclei, or the mode lies in them
    return contrast - np.float32(mode), min(threshold, otsu - mode) if parted else threshold

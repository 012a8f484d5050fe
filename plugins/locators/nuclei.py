"""A classical nuclei detector: level sets of the DNA channel, chosen by shape, size and contrast."""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import ndimage
from skimage.morphology import h_maxima
from skimage.segmentation import watershed

from cytominer_tools.errors import InputError
from plugins.locators.contrast import (
    SMALLEST_PX,
    Floats,
    blurred,
    channel_counts,
    contrast_of,
    disc,
    estimate_diameter,
    floats,
    least_step,
    resized,
    smoothing,
)
from plugins.locators.regions import Labels, mean_within, nearest_label, tabulate

Contour = npt.NDArray[np.int32]  # (n, 1, 2), x before y, as cv2 gives it

# Nuclei are searched at this width (px): larger ones are shrunk to it, smaller ones enlarged up to ENLARGE times.
WORKING_DIAMETER, ENLARGE = 20.0, 1.5
LEAST_AREA = 12.0  # px of the full image: below, the grain of an image looks like nuclei
LEVEL_RATIO = 1.2  # between neighbouring level sets
DEEP = 0.45  # of a nucleus's peak: level sets below this no longer describe its shape
SHALLOW = 0.65  # saddle over peak: a deeper valley separates two nuclei even if together they are convex
# A shape is cut where (distance from its rim x contrast) falls by this share of its maximum, unless it is this convex.
NECK, NEARLY_DISC = 0.05, 0.95
# A dim nucleus on the flank of a bright one has no summit of its own: what bulges (Laplacian < 0 at this scale, in
# diameters) away from the found nuclei, above this share of the neighbour's contrast, wide, large and convex enough.
BULGE_SCALE, FLANK, GAP, WIDTH, LEFTOVER_SIZE, LEFTOVER_CONVEXITY = 0.14, 0.25, 0.12, 0.2, 0.45, 0.8
# The share of a nucleus above 0.25 of its summit that is also above 0.75: a parabolic bump has 1/3, a flat disc 1.
# Below PLATEAU nuclei must stand out by CLEAR times `noise` (real ones: over 3, bumps of noise: under 1.6) and be
# narrower than RESOLVED px: defocus and haze blur a small nucleus to a bump, but never one so wide.
PLATEAU_LEVELS, PLATEAU, CLEAR, RESOLVED = (0.25, 0.75), 0.4, 2.0, 80.0
OUTLINE, REACH = 0.4, 0.25  # outline at this share of a nucleus's mean contrast, at most so many diameters further out


def locate(
    image: npt.NDArray[np.float32],
    *,
    channels: Sequence[str],
    pixel_size_um: float | None = None,
    diameter: float | None = None,
    noise: float = 5.0,
    min_contrast: float = 0.15,
    min_size: float = 0.4,
    max_size: float = 2.5,
    convexity: float = 0.9,
) -> tuple[pd.DataFrame, Labels]:
    """Find nuclei as the largest convex level sets of the DNA channel; cut what is not convex where it necks.

    A gain or an offset of the counts changes nothing but `intensity`. Every step is deterministic.

    Parameters
    ----------
    image : float array, shape (height, width, n_channels), finite
        Raw counts; nuclei are bright in the first channel, the others are not looked at.
    channels : names of the channels of `image`
    pixel_size_um : float, optional
        Edge of a pixel in um. Given, the estimated diameter stays within 8 to 30 um.
    diameter : float, optional
        Typical diameter of a nucleus, in um if `pixel_size_um` is given, otherwise in pixels; None estimates it.
    noise : float
        Least contrast of a nucleus, in standard deviations of the smoothed background.
    min_contrast : float
        Least contrast of a nucleus, as a share of the median nucleus of the image.
    min_size, max_size : float
        Least and greatest diameter of a nucleus, in typical diameters; never under 12 px**2 of area.
    convexity : float
        Area over convex area from which a shape counts as one nucleus.

    Returns
    -------
    table : DataFrame, a row a nucleus, sorted by y, then x
        x, y (px, centroid; (0, 0) is the centre of the top-left pixel), area (px**2), border (it touches the edge of
        the image), intensity (mean counts above background), focus (variance of the scale-normalised Laplacian in the
        box of the nucleus over its squared intensity: no unit, and lower the more blurred). No row where there is no
        nucleus.
    labels : int32 array, shape (height, width)
        0 is background, i + 1 is row i of the table.

    Raises
    ------
    InputError
        The shape is wrong, a count is not finite, or a parameter is out of its range.

    References
    ----------
    Nested level sets with one choice a branch: Arteta et al. 2012, doi:10.1007/978-3-642-33415-3_43; ours needs no
    training, its choice is by convexity, size and depth of the valley.
    """
    _check_parameters(pixel_size_um, diameter, noise, min_contrast, min_size, max_size, convexity)
    counts = channel_counts(image, channels)
    low, high = float(counts.min()), float(counts.max())
    if low == high or min(counts.shape) < SMALLEST_PX:
        return tabulate(np.zeros(counts.shape, np.int32), np.zeros(counts.shape, np.float32), 1.0)
    x = ((counts - low) / (high - low)).astype(np.float32)
    calm = floats(cv2.medianBlur(x, 3))  # without hot pixels
    size = estimate_diameter(calm, pixel_size_um) if diameter is None else diameter / (pixel_size_um or 1.0)
    contrast, threshold = contrast_of(x, calm, size, noise)
    threshold = max(threshold, least_step(counts) / (high - low))
    zoom = min(ENLARGE, WORKING_DIAMETER / size)
    least_area = max(min_size**2, LEAST_AREA / (np.pi / 4 * size**2))  # in typical areas
    found = _search(
        resized(contrast, zoom),
        threshold=threshold,
        size=size * zoom,
        min_contrast=min_contrast,
        min_area=least_area,
        max_area=max_size**2,
        convexity=convexity,
    )
    labels = _outline(contrast, found, threshold=threshold, size=size, noise=noise)
    return tabulate(labels, contrast * np.float32(high - low), smoothing(size))


locate.source = "written for deepprofile; no learned weights"  # type: ignore[attr-defined]
locate.licence = "BSD-3-Clause"  # type: ignore[attr-defined]


def _check_parameters(
    pixel_size_um: float | None,
    diameter: float | None,
    noise: float,
    min_contrast: float,
    min_size: float,
    max_size: float,
    convexity: float,
) -> None:
    """Refuse a parameter out of its range."""
    for name, value, unit in (("pixel_size_um", pixel_size_um, "um"), ("diameter", diameter, "um or px")):
        if value is not None and not 0 < value < np.inf:
            raise InputError(f"{name}={value}: expected a positive number ({unit}); leave it out if it is not known")
    if diameter is not None and diameter / (pixel_size_um or 1.0) < 3:
        raise InputError(f"diameter={diameter}: under 3 pixels a nucleus has no shape; is the unit um or px?")
    if not 0 < noise < np.inf:
        raise InputError(f"noise={noise}: expected a positive number of standard deviations, such as 5")
    if not 0 <= min_contrast < 1:
        raise InputError(f"min_contrast={min_contrast}: expected a share from 0 to below 1, such as 0.15")
    if not 0 < min_size < max_size < np.inf:
        raise InputError(f"min_size={min_size}, max_size={max_size}: expected 0 < min_size < max_size")
    if not 0 < convexity <= 1:
        raise InputError(f"convexity={convexity}: expected a share above 0 and at most 1, such as 0.9")


class _LevelSet(NamedTuple):
    """One connected region above a level; `parent` is the index of the region one level lower that holds it."""

    level: float
    parent: int
    area: float
    solidity: float
    contour: Contour


def _measure(contour: Contour) -> tuple[float, float]:
    """Area (px) and solidity of a filled contour through pixel centres, by Pick's theorem."""
    area = cv2.contourArea(contour) + len(contour) / 2 + 1
    hull = cv2.convexHull(contour)
    return area, min(1.0, area / (cv2.contourArea(hull) + cv2.arcLength(hull, True) / 2 + 1))


def _level_sets(contrast: Floats, threshold: float, least_area: float) -> list[_LevelSet]:
    """All regions above all levels, parents before children."""
    regions: list[_LevelSet] = []
    labels_below, index_below = np.zeros(contrast.shape, np.int32), dict[int, int]()
    n_levels = 1 + int(np.log(float(contrast.max()) / threshold) / np.log(LEVEL_RATIO))
    for level in threshold * LEVEL_RATIO ** np.arange(n_levels):
        mask = (contrast > level).astype(np.uint8)
        contours, hierarchy = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        _, labels = cv2.connectedComponents(mask, connectivity=8)
        index: dict[int, int] = {}
        for contour, (*_, outer) in zip(contours, hierarchy[0] if contours else (), strict=True):
            if outer >= 0 or len(contour) < 4:  # the rim of a hole, or a speck
                continue
            area, solidity = _measure(contour)
            if area < least_area:
                continue
            column, row = contour[0, 0]
            index[labels[row, column]] = len(regions)
            parent = index_below.get(labels_below[row, column], -1)
            regions.append(_LevelSet(float(level), parent, area, solidity, contour))
        labels_below, index_below = labels, index
    return regions


def _choose(regions: list[_LevelSet], max_area: float, convexity: float) -> list[tuple[int, float]]:
    """Disjoint regions that each look like a nucleus, with their peak level; areas in px.

    From the summits down: a region replaces the one nucleus inside while it stays convex and not too deep, and several
    nuclei inside only if it is convex and the valley between them is shallow (chromatin texture, not a gap).
    """
    peak = [region.level for region in regions]
    chosen: list[list[int]] = [[] for _ in regions]  # what the children of a region propose
    final: list[tuple[int, float]] = []
    for i in range(len(regions) - 1, -1, -1):
        region, inside = regions[i], chosen[i]
        fits = region.area <= max_area
        if not inside:
            keep = [i]
        elif len(inside) == 1:
            (child,) = inside
            convex = region.solidity >= convexity or region.solidity >= regions[child].solidity - 0.02
            deep = region.level < DEEP * peak[child]
            keep = [i] if fits and convex and not deep else inside
        else:
            second = sorted(peak[child] for child in inside)[-2]
            keep = [i] if fits and region.solidity >= convexity and region.level > SHALLOW * second else inside
        if region.parent < 0:
            final += [(k, peak[k]) for k in keep]
        else:
            chosen[region.parent] += keep
            peak[region.parent] = max(peak[region.parent], peak[i])
    return final


def _search(
    contrast: Floats,
    *,
    threshold: float,
    size: float,
    min_contrast: float,
    min_area: float,
    max_area: float,
    convexity: float,
) -> Labels:
    """Label the nuclei of an image whose nuclei are about `size` px wide; areas in typical areas."""
    labels = np.zeros(contrast.shape, np.int32)
    if float(contrast.max()) <= threshold:
        return labels
    typical = np.pi / 4 * size**2
    regions = _level_sets(contrast, threshold, min_area * typical)
    final = _choose(regions, max_area * typical, convexity)
    if not final:
        return labels
    peaks = np.array([peak for _, peak in final])
    # the median nucleus, weighted by the light it holds so that a crowd of specks cannot pull it down
    order = np.argsort(peaks)
    light = np.cumsum((peaks * np.array([regions[i].area for i, _ in final]))[order])
    faint = max(threshold, min_contrast * float(peaks[order][np.searchsorted(light, light[-1] / 2)]))
    smooth = np.maximum(blurred(contrast, 0.06 * size), 0)
    count = 0
    for i, peak in sorted(final):
        region = regions[i]
        if peak < faint:
            continue
        left, top, width, height = cv2.boundingRect(region.contour)
        window = np.s_[top : top + height, left : left + width]
        shape = np.zeros((height, width), np.uint8)
        cv2.drawContours(shape, [region.contour - np.array([left, top], np.int32)], 0, 1, cv2.FILLED)
        if region.solidity < NEARLY_DISC:
            parts = _cut(shape, smooth[window], size)
        else:
            parts = shape.astype(np.int32)
        labels[window] = np.where(parts > 0, parts + count, labels[window])
        count += int(parts.max())
    return _add_leftovers(contrast, labels, faint, size, max(min_area, LEFTOVER_SIZE**2) * typical)


def _cut(shape: npt.NDArray[np.uint8], height: Floats, size: float) -> Labels:
    """Parts of a shape, cut where the product of distance from the rim and contrast necks."""
    padded = np.pad(shape, 2)
    relief = blurred(floats(cv2.distanceTransform(padded, cv2.DIST_L2, 5)), max(0.7, size / 20))
    relief *= np.pad(height, 2, mode="edge")
    relief /= np.maximum(relief.max(), np.finfo(np.float32).tiny)
    markers, n = ndimage.label(h_maxima(relief, NECK), np.ones((3, 3)))
    if n < 2:
        return shape.astype(np.int32)
    parts: Labels = watershed(-relief, markers, mask=padded > 0)[2:-2, 2:-2].astype(np.int32)
    return parts


def _add_leftovers(contrast: Floats, labels: Labels, faint: float, size: float, min_area: float) -> Labels:
    """Label the dim nuclei that sit on the flank of a brighter one; `min_area` in px."""
    bulge = floats(cv2.Laplacian(blurred(contrast, BULGE_SCALE * size), cv2.CV_32F, ksize=3)) < 0
    mask = bulge & (contrast > faint)
    count = int(labels.max())
    if count:
        owner, gap = nearest_label(labels)
        flank = FLANK * mean_within(contrast, labels)[owner]
        mask &= (gap > GAP * size) & ((contrast > flank) | (gap >= size))
    opened = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_OPEN, disc(WIDTH * size))
    contours, _ = cv2.findContours(opened, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    for contour in contours:
        area, solidity = _measure(np.asarray(contour, np.int32))
        if area >= min_area and solidity >= LEFTOVER_CONVEXITY:
            count += 1
            cv2.drawContours(labels, [contour], 0, count, cv2.FILLED)
    return labels


def _outline(contrast: Floats, found: Labels, *, threshold: float, size: float, noise: float) -> Labels:
    """Full-resolution regions, each where the contrast is above a share of its own mean; holes are filled."""
    # labels up to 2**24 pass through float32, which is what cv2 resizes
    sides = contrast.shape[::-1]
    core = cv2.resize(found.astype(np.float32), sides, interpolation=cv2.INTER_NEAREST).astype(np.int32)
    if not core.any():
        return np.zeros(contrast.shape, np.int32)  # too small to see at full resolution
    owner, gap = nearest_label(core)
    height = mean_within(contrast, core)
    if _is_grain(contrast, owner, gap, height, size, noise):
        return np.zeros(contrast.shape, np.int32)
    cut = np.maximum(threshold, OUTLINE * height)
    grown = np.where((gap <= max(1.0, REACH * size)) & (contrast > cut[owner]), owner, 0).astype(np.int32)
    labels = np.zeros_like(grown)
    for i, window in enumerate(ndimage.find_objects(grown), start=1):
        if window is None:
            continue
        pieces, n = ndimage.label(grown[window] == i)
        largest = pieces == 1 + int(np.argmax(np.bincount(pieces.ravel())[1:])) if n > 1 else pieces == 1
        free = (grown[window] == 0) | largest
        labels[window][ndimage.binary_fill_holes(largest) & free] = i
    return labels


def _is_grain(
    contrast: Floats, owner: Labels, gap: Floats, height: npt.NDArray[np.float64], size: float, noise: float
) -> bool:
    """Whether what was found are bumps of noise or haze: hardly above what was passed over, and without flat tops.

    In a crowded field nuclei too are hardly above the rest, but they have flat tops.
    """
    near = gap <= REACH * size
    outside = contrast[~near]
    rest = float(np.std(np.minimum(outside, np.percentile(outside, 98)))) if outside.size else 0.0
    if size < RESOLVED and np.median(height[1:][height[1:] > 0]) >= CLEAR * noise * rest:
        return False
    top = ndimage.maximum(contrast, np.where(near, owner, 0), np.arange(len(height)))
    share = (contrast / np.maximum(top, np.finfo(np.float32).tiny)[owner])[near]
    low, high = (np.bincount(owner[near][share > level], minlength=len(height)) for level in PLATEAU_LEVELS)
    return bool(np.median(high[low > 0] / low[low > 0]) < PLATEAU)

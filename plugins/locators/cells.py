"""Whole cells around the nuclei: a watershed on a second channel, or the nearest nucleus, within a greatest reach."""

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import ndimage
from skimage.filters import threshold_otsu
from skimage.segmentation import watershed

from cytominer_tools.errors import InputError
from plugins.locators import nuclei
from plugins.locators.contrast import (
    Floats,
    background_of,
    blurred,
    channel_counts,
    floats,
    grain_of,
    resized,
    smoothing,
)
from plugins.locators.regions import Labels, nearest_label

CELL_WIDTH = 2.5  # of a cell, in nuclei: what varies over five cells or more is background
GRID = 20.0  # the watershed runs where nuclei are at most this wide (px): a border between cells is no finer
# The relief that is flooded: distance to the nucleus (in nuclei), less VALLEY times the brightness (0 to 1). Over one
# nucleus of distance a cell loses about half its brightness, so the brightness outweighs the distance, which decides
# where a cell is evenly bright.
VALLEY = 4.0


def locate(
    image: npt.NDArray[np.float32],
    *,
    channels: Sequence[str],
    pixel_size_um: float | None = None,
    radius: float | None = None,
    foreground: float = 5.0,
    diameter: float | None = None,
    noise: float = 5.0,
    min_contrast: float = 0.15,
    min_size: float = 0.4,
    max_size: float = 2.5,
    convexity: float = 0.9,
) -> tuple[pd.DataFrame, Labels]:
    """Find the nuclei, and the cell around each: labels for masking.

    Parameters
    ----------
    image : float array, shape (height, width, n_channels), finite
        Raw counts; nuclei are bright in the first channel, cells in the second. Without a second channel a cell is what
        is nearest to its nucleus. Further channels are not looked at.
    channels : names of the channels of `image`
    pixel_size_um : float, optional
        Edge of a pixel in um.
    radius : float, optional
        How far a cell reaches from the rim of its nucleus, in um if `pixel_size_um` is given, otherwise in pixels; None
        takes the median diameter of the nuclei of the image.
    foreground : float
        Least contrast of a cell in the second channel, in standard deviations of its smoothed background.
    diameter, noise, min_contrast, min_size, max_size, convexity
        Of the nuclei, as in `plugins.locators.nuclei.locate`.

    Returns
    -------
    table : DataFrame, a row a nucleus, sorted by y, then x
        As `nuclei`, and cell_area (px**2), the whole cell with its nucleus.
    labels : int32 array, shape (height, width)
        Whole cells: 0 is background, i + 1 is row i of the table. Each holds its nucleus.

    Raises
    ------
    InputError
        The shape is wrong, a count is not finite, or a parameter is out of its range.
    """
    if radius is not None and not 0 < radius < np.inf:
        raise InputError(f"radius={radius}: expected a positive number (um or px); leave it out for one nucleus")
    if not 0 < foreground < np.inf:
        raise InputError(f"foreground={foreground}: expected a positive number of standard deviations, such as 5")
    table, found = nuclei.locate(
        image,
        channels=channels,
        pixel_size_um=pixel_size_um,
        diameter=diameter,
        noise=noise,
        min_contrast=min_contrast,
        min_size=min_size,
        max_size=max_size,
        convexity=convexity,
    )
    second = channel_counts(image, channels, 1) if len(channels) > 1 else None  # refused even where there is no nucleus
    if not len(table):
        return table.assign(cell_area=np.zeros(0, np.int64)), found
    size = 2 * float(np.sqrt(table.area.median() / np.pi))
    reach = size if radius is None else radius / (pixel_size_um or 1.0)
    owner, gap = nearest_label(found)
    allowed = gap <= reach
    if second is None or second.min() == second.max():
        labels = np.where(allowed, owner, 0).astype(np.int32)
    else:
        contrast, threshold = _cell_contrast(second, size, foreground)
        labels = _grow(found, contrast, allowed & (contrast > threshold), gap / np.float32(size), size)
    area = np.bincount(labels.ravel(), minlength=len(table) + 1)[1:]
    return table.assign(cell_area=area.astype(np.int64)), labels


locate.source = "written for deepprofile; no learned weights"  # type: ignore[attr-defined]
locate.licence = "BSD-3-Clause"  # type: ignore[attr-defined]


def _cell_contrast(counts: npt.NDArray[np.float64], size: float, noise: float) -> tuple[Floats, float]:
    """The second channel above its background, 1 where it is bright, and what parts cells from background.

    Otsu's threshold on a logarithmic scale, as cells may differ tenfold in brightness, with all noise at one value.
    """
    x = ((counts - counts.min()) / (counts.max() - counts.min())).astype(np.float32)
    smooth = blurred(floats(cv2.medianBlur(x, 3)), smoothing(size))
    contrast = smooth - background_of(smooth, CELL_WIDTH * size)
    grain = noise * grain_of(x, contrast, smoothing(size))
    step = max(1, min(x.shape) // 512)
    threshold = float(np.exp(threshold_otsu(np.log(np.maximum(contrast[::step, ::step], grain)))))
    top = max(float(np.percentile(contrast, 99)), threshold)  # the brightest hundredth is debris and dividing cells
    return np.minimum(contrast / np.float32(top), 1), threshold / top


def _grow(found: Labels, contrast: Floats, mask: npt.NDArray[np.bool_], gap: Floats, size: float) -> Labels:
    """Cells from their nuclei outwards, nearer and brighter pixels first; a cell is in one piece."""
    zoom = min(1.0, GRID / size)
    relief = gap - np.float32(VALLEY) * blurred(contrast, smoothing(size))
    sides = resized(relief, zoom).shape
    coarse = [
        cv2.resize(x.astype(np.float32), sides[::-1], interpolation=cv2.INTER_NEAREST)
        for x in (found, mask | (found > 0))
    ]
    grown = watershed(resized(relief, zoom), coarse[0].astype(np.int32), mask=coarse[1] > 0)
    fine = cv2.resize(grown.astype(np.float32), found.shape[::-1], interpolation=cv2.INTER_NEAREST).astype(np.int32)
    labels: Labels = np.where(found > 0, found, np.where(mask, fine, 0)).astype(np.int32)
    for i, window in enumerate(ndimage.find_objects(labels), start=1):
        if window is None:
            continue
        view = labels[window]
        pieces, n = ndimage.label(view == i)
        if n > 1:  # cut off by a neighbour's nucleus, or by the coarse grid
            kept = np.unique(pieces[found[window] == i])
            view[(pieces > 0) & ~np.isin(pieces, kept)] = 0
        view[ndimage.binary_fill_holes(view == i) & (view == 0)] = i  # vacuoles
    return labels

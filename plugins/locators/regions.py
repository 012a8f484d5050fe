"""Label images: the nearest label, means within labels, and the table of the regions."""

import cv2
import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import ndimage

from plugins.locators.contrast import Floats, floats

Labels = npt.NDArray[np.int32]
MARGIN = 2  # px around a region's box, to hold its rim whole


def nearest_label(labels: Labels) -> tuple[Labels, Floats]:
    """For every pixel the closest label, and the distance to it in pixels; at least one label is needed."""
    gap, pixel = cv2.distanceTransformWithLabels(
        (labels == 0).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    owner = np.zeros(int(pixel.max()) + 1, np.int32)
    inside = labels > 0
    owner[pixel[inside]] = labels[inside]
    return owner[pixel], gap


def mean_within(values: npt.NDArray[np.floating], labels: Labels) -> npt.NDArray[np.float64]:
    """Mean of `values` within label 0, 1, ..; 0 where a label has no pixel."""
    flat = labels.ravel()
    return np.bincount(flat, values.ravel()) / np.maximum(np.bincount(flat), 1)


def tabulate(labels: Labels, contrast: Floats, sigma: float) -> tuple[pd.DataFrame, Labels]:
    """The table of the regions, and the labels renumbered in its order; `contrast` was smoothed by `sigma`."""
    ids = np.flatnonzero(np.bincount(labels.ravel()))
    ids = ids[ids > 0]
    rows, columns = np.nonzero(labels)
    owner = labels[rows, columns]
    n = int(labels.max()) + 1
    area = np.bincount(owner, minlength=n)
    x, y, intensity = (
        np.bincount(owner, values, n)[ids] / area[ids] for values in (columns, rows, contrast[rows, columns])
    )
    border = np.zeros(n, bool)
    for edge in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
        border[edge] = True
    # times sigma squared: the Laplacian of one shape is then the same at any magnification
    edges = floats(cv2.Laplacian(contrast, cv2.CV_32F)) * np.float32(sigma**2)
    variance = np.zeros(n)
    for i, window in enumerate(ndimage.find_objects(labels), start=1):
        if window is not None:
            box = tuple(slice(max(0, s.start - MARGIN), s.stop + MARGIN) for s in window)
            variance[i] = edges[box][(labels[box] == i) | (labels[box] == 0)].var()
    focus = variance[ids] / np.maximum(intensity, np.finfo(np.float32).tiny) ** 2
    order = np.lexsort((x, y))
    renumbered = np.zeros(n, np.int32)
    renumbered[ids[order]] = np.arange(1, len(ids) + 1)
    table = pd.DataFrame(
        {
            "x": x,
            "y": y,
            "area": area[ids].astype(np.int64),
            "border": border[ids],
            "intensity": intensity,
            "focus": focus,
        }
    )
    return table.iloc[order].reset_index(drop=True), renumbered[labels]

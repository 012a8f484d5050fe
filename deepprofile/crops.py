"""Cut cells out of an image: arithmetic on arrays, no files, no settings."""

from typing import Literal

import numpy as np

Border = Literal["zero", "reflect", "drop"]


def inside(xy: np.ndarray, size: int, shape: tuple[int, ...]) -> np.ndarray:
    """Whether the whole `slice_crops` box of each cell lies in the image.

    Parameters
    ----------
    xy : float array, shape (n, 2)
        Column and row of each centre, px.
    size : int
        Side of the box, px.
    shape : (H, W, ...)

    Returns
    -------
    bool array, shape (n,)
    """
    corner = _corners(xy, size)
    return np.all((corner >= 0) & (corner + size <= (shape[1], shape[0])), axis=1)


def slice_crops(
    image: np.ndarray, xy: np.ndarray, size: int, border: Border = "zero", out: np.ndarray | None = None
) -> np.ndarray:
    """The `size` x `size` pixels around each centre, as they are; the centre is pixel size // 2 of the crop.

    Parameters
    ----------
    image : array, shape (H, W, C)
    xy : float array, shape (n, 2)
        Column and row of each centre, px; rounded half up.
    size : int
        Side of a crop, px.
    border : "zero" or "reflect"
        What stands outside the image: 0, or the image mirrored about its outermost pixels.
    out : array, optional
        What is filled and returned; fresh memory takes longer to get than to fill.

    Returns
    -------
    array, shape (n, size, size, C), the type of `image`
    """
    height, width = image.shape[:2]
    crops = np.empty((len(xy), size, size, image.shape[2]), image.dtype) if out is None else out
    boxes = zip(crops, _corners(xy, size).tolist(), inside(xy, size, image.shape).tolist(), strict=True)
    for crop, (x, y), whole in boxes:
        if whole:
            crop[...] = image[y : y + size, x : x + size]
        elif border == "reflect":
            crop[...] = image[np.ix_(_mirrored(y, size, height), _mirrored(x, size, width))]
        else:
            crop[...] = 0
            top, bottom, left, right = max(0, -y), min(size, height - y), max(0, -x), min(size, width - x)
            if top < bottom and left < right:
                crop[top:bottom, left:right] = image[y + top : y + bottom, x + left : x + right]
    return crops


def interpolate_crops(
    image: np.ndarray, xy: np.ndarray, size: int, border: Border = "zero", out: np.ndarray | None = None
) -> np.ndarray:
    """Crops as DeepProfiler cuts them: ``tf.image.crop_and_resize``, bilinear, bit for bit.

    Sample i of a side stands at ``y1 * (H - 1) + i * (y2 - y1) * (H - 1) / (size - 1)`` with y1 and y2 the box in
    units of the image: size samples span size + 1 pixels less a drift of up to one pixel toward the origin.

    Parameters
    ----------
    image : array, shape (H, W, C)
    xy : float array, shape (n, 2)
        Column and row of each centre, px; not rounded.
    size : int
        Side of a crop, px, at least 2.
    border : "zero" or "reflect"
        What stands outside the image. The peer knows "zero" only.
    out : array, optional
        What is filled and returned.

    Returns
    -------
    float32 array, shape (n, size, size, C)

    References
    ----------
    DeepProfiler 0.3.1, imaging/boxes.py and imaging/cropping.py.
    """
    pixels = image.astype(np.float32, copy=False)
    crops = np.empty((len(xy), size, size, image.shape[2]), np.float32) if out is None else out
    for crop, (x, y) in zip(crops, np.asarray(xy, np.float64), strict=True):
        top, bottom, down, rows = _samples(y, size, image.shape[0], border)
        left, right, across, columns = _samples(x, size, image.shape[1], border)
        first = min(top.min(), bottom.min())
        slab = pixels[first : max(top.max(), bottom.max()) + 1]
        lines = slab[:, left]
        lines += (slab[:, right] - lines) * across[:, None]
        upper = lines[top - first]
        np.add(upper, (lines[bottom - first] - upper) * down[:, None, None], out=crop)
        if not (rows.all() and columns.all()):
            crop[~rows] = 0
            crop[:, ~columns] = 0
    return crops


def nearest_crops(image: np.ndarray, xy: np.ndarray, size: int, border: Border = "zero") -> np.ndarray:
    """What stands nearest to each sample of `interpolate_crops`, for values that have no mean, such as labels.

    Parameters
    ----------
    image : array, shape (H, W)
    xy, size, border
        As there; outside of the image stands anything.

    Returns
    -------
    array, shape (n, size, size), the type of `image`
    """
    crops = np.empty((len(xy), size, size), image.dtype)
    for crop, (x, y) in zip(crops, np.asarray(xy, np.float64), strict=True):
        top, bottom, down, _ = _samples(y, size, image.shape[0], border)
        left, right, across, _ = _samples(x, size, image.shape[1], border)
        crop[...] = image[np.ix_(np.where(down < 0.5, top, bottom), np.where(across < 0.5, left, right))]
    return crops


def _corners(xy: np.ndarray, size: int) -> np.ndarray:
    """Column and row of each box's first pixel; half up, since rounding half to even would depend on parity."""
    return np.floor(np.asarray(xy, np.float64).reshape(-1, 2) + 0.5).astype(np.int64) - size // 2


def _mirrored(start: int, size: int, length: int) -> np.ndarray:
    """Pixels of a line of `length` that stand at `start` and the places after it, mirrored about its outermost ones."""
    period = 2 * max(length - 1, 1)
    at = np.arange(start, start + size) % period
    return np.minimum(np.minimum(at, period - at), length - 1)


def _samples(
    centre: float, size: int, length: int, border: Border
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Lower pixel, upper pixel, weight of the upper, and validity of each sample along one side, in float32 steps."""
    f = np.float32
    low, high = f(centre - size / 2) / f(length), f(centre + size / 2) / f(length)
    step = (high - low) * f(length - 1) / f(size - 1)
    at = low * f(length - 1) + np.arange(size, dtype=f) * step
    if border == "reflect":
        period = f(2 * max(length - 1, 1))
        at = np.abs(np.mod(at + f(length - 1), period) - f(length - 1))
    valid = (at >= 0) & (at <= length - 1)
    at = np.where(valid, at, f(0))
    floor = np.floor(at)
    return floor.astype(np.intp), np.ceil(at).astype(np.intp), at - floor, valid

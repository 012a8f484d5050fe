"""Images that are drawn at random: smooth fields, spots, and the distance to an ellipse."""

from typing import Any, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.float32]
Ints: TypeAlias = npt.NDArray[np.intp]


def field(rng: np.random.Generator, size: tuple[int, int], sigma: float) -> Floats:
    """A random image of `size` with mean 0 and variance 1, smooth over `sigma` px."""
    step = max(1, int(sigma / 2))  # a smooth field is drawn small and enlarged
    pad = int(2 * sigma / step) + 1  # where the mirrored edge would add to the variance
    small = (size[0] // step + 2 + 2 * pad, size[1] // step + 2 + 2 * pad)
    noise: Any = rng.standard_normal(small, dtype=np.float32)
    noise = cv2.GaussianBlur(noise, (0, 0), sigma / step)[pad:-pad, pad:-pad]
    noise /= np.float32(_kernel_norm(sigma / step))
    if step > 1:
        noise = cv2.resize(noise, (noise.shape[1] * step, noise.shape[0] * step), interpolation=cv2.INTER_LINEAR)
    cut: Floats = noise[: size[0], : size[1]]
    return cut


def _kernel_norm(sigma: float) -> float:
    """What a Gaussian blur of `sigma` px leaves of the standard deviation of white noise."""
    width = 2 * int(4 * sigma + 1) + 1
    return float(np.sum(cv2.getGaussianKernel(width, sigma) ** 2))


def spots(size: tuple[int, int], x: Floats, y: Floats, peak: npt.NDArray[np.float64], sigma: float) -> Floats:
    """An image of round spots with centres (x, y) px; those outside of it are left out."""
    row, column = np.rint(y).astype(int), np.rint(x).astype(int)
    seen = (row >= 0) & (row < size[0]) & (column >= 0) & (column < size[1])
    image: Any = np.zeros(size, np.float32)
    np.add.at(image, (row[seen], column[seen]), (peak[seen] * 2 * np.pi * sigma**2).astype(np.float32))
    blurred: Floats = cv2.GaussianBlur(image, (0, 0), sigma, borderType=cv2.BORDER_REFLECT)
    return blurred


def ellipse(dx: Floats, dy: Floats, angle: float, radius: float, stretch: float) -> Floats:
    """Squared distance from the centre, 1 on an ellipse with the area of a disc of `radius`."""
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    long, short = np.float32(1 / (radius * stretch)), np.float32(stretch / radius)
    along = (cos * long) * dx + (sin * long) * dy
    across = (cos * short) * dy - (sin * short) * dx
    along *= along
    across *= across
    along += across
    return along

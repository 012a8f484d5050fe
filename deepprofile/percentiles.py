"""Percentiles of the pixels of many images, in bounded memory: from counts of values, or from a sample."""

import math
from fractions import Fraction

import numpy as np

from cytominer_tools.errors import InputError

# float images: sign, exponent and 11 bits of the mantissa, so a percentile is right to 1 part in 2048
_FLOAT_SHIFT = 12
_SAMPLE = 1 << 22  # pixels a channel: the 99.9th percentile is then right to 0.002 of a percent of the pixels


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
        ranks = _ranks(q, int(reached[0, -1]))
        bins = np.array([[np.searchsorted(row, rank) for row in reached] for rank in ranks])
        return _values(bins) if self.dtype == np.float32 else bins.astype(np.float32)


class Sample:
    """Pixels of some images of one shape, evenly spaced, at most about `most` a channel whatever their number.

    Parameters
    ----------
    shape : (H, W, C)
    images : int
        How many may come.
    most : int
        Where they have fewer pixels, all are kept.
    """

    def __init__(self, shape: tuple[int, ...], images: int, most: int = _SAMPLE):
        self.shape = shape
        pixels = shape[0] * shape[1]
        self.step = max(1, -(-images * pixels // most))
        while self.step > 1 and math.gcd(self.step, shape[1]) > 1:  # else it would see some columns alone
            self.step += 1
        self.kept: list[tuple[int, np.ndarray]] = []

    def add(self, image: np.ndarray) -> None:
        """Take pixels of `image`, shape (H, W, C); where it starts moves on from image to image."""
        start = len(self.kept) * 7919 % self.step
        self.kept.append((start, image.reshape(-1, self.shape[2])[start :: self.step].copy()))

    def percentiles(self, q: tuple[float, ...], function: np.ndarray) -> np.ndarray:
        """Of the pixels over `function` (H, W, C), as `Counts.percentiles`; float32, shape (len(q), channels)."""
        found = np.zeros((len(q), self.shape[2]), np.float32)
        for channel in range(self.shape[2]) if self.kept else ():
            light = function[..., channel].ravel()
            values = np.concatenate(
                [np.divide(kept[:, channel], light[start :: self.step], dtype=np.float32) for start, kept in self.kept]
            )
            ranks = np.array(_ranks(q, len(values))) - 1
            values.partition(np.unique(ranks))
            found[:, channel] = values[ranks]
        return found


def image_percentiles(image: np.ndarray, q: tuple[float, ...]) -> np.ndarray:
    """As `Counts.percentiles` of the pixels of one image (H, W, C), exact for every type; float32 (len(q), C)."""
    ranks = np.array(_ranks(q, image.shape[0] * image.shape[1])) - 1
    return np.stack(
        [np.partition(image[..., channel], np.unique(ranks), axis=None)[ranks] for channel in range(image.shape[2])],
        axis=1,
        dtype=np.float32,
        casting="unsafe",
    )


def _ranks(q: tuple[float, ...], total: int) -> list[int]:
    """Which of `total` ordered values, from 1, is each percentile."""
    # exact, as 0.9 / 100 * 1000 is a little over 9
    return [max(1, math.ceil(Fraction(str(share)) * total / 100)) for share in q]


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

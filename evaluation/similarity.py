"""Similarity of profiles as blocks of rows: a pair exists while its block is read, and never as a table row."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from cytominer_tools.errors import InputError

Floats = npt.NDArray[np.float64]
Floats32 = npt.NDArray[np.float32]
Some = slice | npt.NDArray[np.int64]

# Rows of unit length are rounded to multiples of 2**-26, so a product of two is a multiple of 2**-52 and every partial
# sum of a dot product (at most 1, by Cauchy-Schwarz) is exact in float64. Float32 products would be twice as fast, but
# their last bit depends on block, BLAS and threads: equal pairs would not tie, and two runs could rank differently.
_GRID = 2.0**26
_CHUNK = 64  # rows that fit a core's cache


class Similarity(Protocol):
    """Similarity of n items, symmetric and finite; larger is more alike. Its diagonal is never used."""

    @property
    def name(self) -> str:
        """What a table calls it, such as ``cosine``."""

    @property
    def n(self) -> int:
        """Number of items."""

    def rows(self, start: int, stop: int) -> Floats32:
        """Items ``start:stop`` against all: float32, shape (stop - start, n), a new array each time."""

    def tile(self, rows: Some, columns: slice) -> Floats32:
        """Some items (a slice, or their places) against a stretch of them: float32, a new array each time."""

    def take(self, items: npt.NDArray[np.int64]) -> "Similarity":
        """The same similarity of some of the items."""


class Tiled(ABC):
    """`rows` by way of `tile`."""

    @abstractmethod
    def tile(self, rows: Some, columns: slice) -> Floats32:
        """As in `Similarity`."""

    def rows(self, start: int, stop: int) -> Floats32:
        """As in `Similarity`."""
        return self.tile(slice(start, stop), slice(None))


@dataclass(frozen=True)
class _Products(Tiled):
    name: str
    unit: Floats

    @property
    def n(self) -> int:
        return len(self.unit)

    def tile(self, rows: Some, columns: slice) -> Floats32:
        return (self.unit[rows] @ self.unit[columns].T).astype(np.float32)

    def take(self, items: npt.NDArray[np.int64]) -> Similarity:
        return _Products(self.name, self.unit[items])


@dataclass(frozen=True)
class _Distances(Tiled):
    name: str
    place: Floats

    @property
    def n(self) -> int:
        return len(self.place)

    def tile(self, rows: Some, columns: slice) -> Floats32:
        return -np.abs(self.place[rows, None] - self.place[None, columns]).astype(np.float32)

    def take(self, items: npt.NDArray[np.int64]) -> Similarity:
        return _Distances(self.name, self.place[items])


@dataclass(frozen=True)
class _Matrix(Tiled):
    name: str
    matrix: Floats32

    @property
    def n(self) -> int:
        return len(self.matrix)

    def tile(self, rows: Some, columns: slice) -> Floats32:
        return self.matrix[rows, columns].copy()

    def take(self, items: npt.NDArray[np.int64]) -> Similarity:
        return _Matrix(self.name, self.matrix[np.ix_(items, items)])


def cosine(X: npt.ArrayLike) -> Similarity:
    """Cosine of the angle between rows, from -1 to 1.

    The same for any block size, BLAS and number of threads, and equal rows tie exactly (see ``_GRID``); rounding to
    that grid moves a cosine by about 1e-8, less than float32 resolves at 1. Holds one float64 copy of X.

    Parameters
    ----------
    X : array, shape (n, n_features), finite

    Raises
    ------
    InputError
        Not two-dimensional or not finite, or a row of zeros, which has no direction.
    """
    return _Products("cosine", _unit_rows(X, center=False))


def pearson(X: npt.ArrayLike) -> Similarity:
    """Pearson correlation between rows: the cosine of rows that had their own mean taken off.

    Parameters
    ----------
    X : array, shape (n, n_features), finite

    Raises
    ------
    InputError
        Not two-dimensional or not finite, or a constant row.
    """
    return _Products("pearson", _unit_rows(X, center=True))


def count_similarity(counts: npt.ArrayLike) -> Similarity:
    """Minus the absolute difference of log(count + 1): the similarity of someone who only counts cells.

    The 1 lets empty wells take part (0 cells against 0 is 0, the highest); for counts of fifty and more it changes
    a difference by less than 2 % of its size.

    Parameters
    ----------
    counts : array, shape (n,), finite, not negative

    Raises
    ------
    InputError
        A count is missing, infinite or negative.
    """
    counts = np.asarray(counts, dtype=np.float64)
    if counts.ndim != 1:
        raise InputError(f"shape {counts.shape}: expected one count a row")
    if bad := int((~np.isfinite(counts) | (counts < 0)).sum()):
        raise InputError(f"{bad} of {len(counts)} counts are missing, infinite or negative; fill in or drop those rows")
    return _Distances("cell count", np.log1p(counts))


def precomputed(matrix: npt.ArrayLike, name: str = "precomputed") -> Similarity:
    """A similarity that is already a matrix; for small n, since it is held whole.

    Parameters
    ----------
    matrix : array, shape (n, n), symmetric; compared as float32

    Raises
    ------
    InputError
        Not square or not symmetric.
    """
    matrix = np.asarray(matrix, dtype=np.float32)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not np.array_equal(matrix, matrix.T, equal_nan=True):
        raise InputError(f"shape {matrix.shape}: expected a square symmetric matrix, a row and a column for each item")
    return _Matrix(name, matrix)


def distances(similarity: Similarity, values: Floats32) -> Floats:
    """Distances for similarities: between rows of unit length for a cosine or correlation, otherwise minus them."""
    if isinstance(similarity, _Products):
        return np.sqrt(np.maximum(2 - 2 * values.astype(np.float64), 0))
    return -values.astype(np.float64)


def held(similarity: Similarity, name: str) -> Similarity:
    """`similarity` as a matrix in memory, under another name; for small n."""
    return _Matrix(name, similarity.rows(0, similarity.n))


def _unit_rows(X: npt.ArrayLike, *, center: bool) -> Floats:
    X = np.asarray(X)
    if X.ndim != 2:
        raise InputError(f"shape {X.shape}: expected a row for each profile and a column for each feature")
    unit = np.empty(X.shape, dtype=np.float64)
    for start in range(0, len(X), _CHUNK):
        rows = X[start : start + _CHUNK].astype(np.float64)
        if not np.isfinite(rows).all():
            bad = start + int(np.flatnonzero(~np.isfinite(rows).all(axis=1))[0])
            raise InputError(f"row {bad} is not finite; fill in or drop the feature or the row first")
        if rows.size:
            rows /= np.maximum(np.abs(rows).max(axis=1, keepdims=True), np.finfo(np.float64).tiny)  # no overflow below
        if center and rows.size:
            rows -= rows.mean(axis=1, keepdims=True)
        # a constant row keeps rounding noise of its mean, some 1e-16 for values of at most 1
        length = np.sqrt((rows * rows).sum(axis=1, keepdims=True))
        flat = length[:, 0] <= (1e-14 * np.sqrt(X.shape[1]) if center else 0)
        if flat.any():
            bad = start + int(np.flatnonzero(flat)[0])
            state = "constant, so it has no correlation" if center else "all zeros, so it has no direction"
            raise InputError(f"row {bad} is {state}; leave that profile out, for example with select=")
        unit[start : start + _CHUNK] = np.round(rows / length * _GRID) / _GRID
    return unit

"""Statistics of groups of rows that come a batch at a time: in memory that does not grow with the rows.

Means, variances and extremes are sums that can be merged. A median cannot, but it can be found: the bits of a float,
sign turned round, order as the numbers do, so counting how often each pattern of leading bits occurs tells in which one
the k-th smallest value lies, and the next pass over the rows looks at the bits after these. Two passes of 16 bits find
the exact k-th value of float32, four that of float64.
"""

from collections.abc import Callable, Iterator
from typing import Self

import numpy as np
import numpy.typing as npt

from cytominer_tools import arrays
from cytominer_tools.arrays import Codes, Doubles, Floats
from cytominer_tools.errors import InputError

Batches = Callable[[Codes], Iterator[tuple[Codes, Floats]]]
"""Called with the numbers of some features: the group of each row and these features, (n,) and (n, n_features), a batch
at a time; the same rows each time it is called."""

Unsigned = npt.NDArray[np.unsignedinteger]

_COUNTS = 2**28  # bytes of counters in work at once
_FEW_GROUPS = 8  # up to here 16 bits a pass, else 8


class Moments:
    """Count, mean, squares about the mean, smallest and largest value of each feature in each group.

    Attributes
    ----------
    count : int64 array, shape (n_groups, n_features)
        Missing values are left out.
    mean, squares, low, high : float64 arrays, shape (n_groups, n_features)
        In the unit of the feature, `squares` in its square; where there is no value mean and squares are 0, low inf.

    References
    ----------
    Merging: Chan, Golub & LeVeque 1983, doi:10.1080/00031305.1983.10483115.
    """

    def __init__(self, n_groups: int, n_features: int):
        shape = n_groups, n_features
        self.count = np.zeros(shape, dtype=np.int64)
        self.mean, self.squares = np.zeros(shape), np.zeros(shape)
        self.low, self.high = np.full(shape, np.inf), np.full(shape, -np.inf)

    def add(self, codes: Codes, rows: Floats) -> Self:
        """Take in a batch of rows, shape (n, n_features), of groups `codes`, shape (n,); infinite values make NaN."""
        with np.errstate(invalid="ignore"):
            return self._add(codes, rows)

    def _add(self, codes: Codes, rows: Floats) -> Self:
        present, local = np.unique(codes, return_inverse=True)
        for group, which in zip(present, arrays.members(local), strict=True):
            part = rows[which].astype(np.float64)
            holes = np.isnan(part) if arrays.has_holes(part).any() else None
            count = np.full(part.shape[1], len(part)) if holes is None else (~holes).sum(axis=0)
            total = part.sum(axis=0) if holes is None else np.where(holes, 0.0, part).sum(axis=0)
            mean = total / np.maximum(count, 1)
            self.low[group] = np.fmin(self.low[group], np.fmin.reduce(part, axis=0))
            self.high[group] = np.fmax(self.high[group], np.fmax.reduce(part, axis=0))
            part -= mean
            if holes is not None:
                part[holes] = 0
            self._merge(group, count, mean, np.einsum("ij,ij->j", part, part))
        return self

    def merge(self, other: "Moments") -> Self:
        """Take in what another process has seen of the same groups and features."""
        self.low, self.high = np.minimum(self.low, other.low), np.maximum(self.high, other.high)
        self._merge(slice(None), other.count, other.mean, other.squares)
        return self

    def _merge(self, where: int | slice, count: Codes, mean: Doubles, squares: Doubles) -> None:
        before, both = self.count[where], np.maximum(self.count[where] + count, 1)
        away = mean - self.mean[where]
        self.squares[where] += squares + np.square(away) * before * count / both
        self.mean[where] += away * count / both
        self.count[where] = before + count

    def mean_sd(self, ddof: int = 1) -> tuple[Doubles, Doubles]:
        """Mean and standard deviation as in `arrays.mean_sd`, shape (n_groups, n_features); NaN without values."""
        none = self.count == 0
        size = np.where(none, 0.0, np.maximum(np.abs(self.low), np.abs(self.high)))
        variance = arrays.variance_of(self.squares, np.maximum(self.count - ddof, 1), size)
        return np.where(none, np.nan, self.mean), np.where(none, np.nan, np.sqrt(variance))


def group_quantiles(
    batches: Batches, n_groups: int, n_features: int, percents: tuple[int, ...], dtype: npt.DTypeLike
) -> Floats:
    """Exact percentiles of each feature in each group (linear interpolation), missing values left out.

    Parameters
    ----------
    batches : see `Batches`
        Called twice for float32 and four times for float64 (twice as often with over 8 groups), and again for each
        block of features whose counters fit into 256 MB.
    n_groups, n_features : int
    percents : tuple of int
    dtype : float32 or float64
        Of the rows.

    Returns
    -------
    float array, shape (n_percents, n_groups, n_features), in `dtype`; NaN where there is no value
    """
    kind = np.dtype(dtype)
    if kind not in (np.float32, np.float64):
        raise InputError(f"dtype={dtype}: expected float32 or float64")
    bits = 16 if n_groups <= _FEW_GROUPS else 8
    each = 8 * n_groups * (1 << bits) * (2 * len(percents) + 1)
    step = max(1, _COUNTS // max(1, each))
    blocks = [
        _quantiles(batches, np.arange(start, min(start + step, n_features)), n_groups, percents, kind, bits)
        for start in range(0, n_features, step)
    ]
    return np.concatenate(blocks, axis=2) if blocks else np.empty((len(percents), n_groups, 0), dtype=kind)


def group_median_mad(batches: Batches, n_groups: int, n_features: int, dtype: npt.DTypeLike) -> tuple[Doubles, Doubles]:
    """`arrays.median_mad` of each group, bit for bit where nothing is missing, else to the last digit.

    Parameters as in `group_quantiles`; shapes (n_groups, n_features).
    """
    median = group_quantiles(batches, n_groups, n_features, (50,), dtype)[0]

    def away(features: Codes) -> Iterator[tuple[Codes, Floats]]:
        for codes, rows in batches(features):
            with np.errstate(invalid="ignore"):  # the distance of an infinite value from an infinite median
                yield codes, np.abs(rows - median[codes][:, features])

    mad = 1.4826 * group_quantiles(away, n_groups, n_features, (50,), dtype)[0].astype(np.float64)
    center = median.astype(np.float64)
    return center, np.where(mad <= 8 * np.finfo(np.float64).eps * np.abs(center), 0.0, mad)


def _quantiles(
    batches: Batches, features: Codes, n_groups: int, percents: tuple[int, ...], kind: np.dtype, bits: int
) -> Floats:
    width, shape = 8 * kind.itemsize, (n_groups, len(features))
    unsigned = np.dtype(f"u{kind.itemsize}")
    # two ranks a percentile, whose values it lies between
    prefix = np.zeros((2 * len(percents), *shape), dtype=unsigned)
    ranks: Codes = np.zeros(prefix.shape, dtype=np.int64)
    total: Codes = np.zeros(shape, dtype=np.int64)
    for shift in range(width - bits, -1, -bits):
        first = shift == width - bits
        # all ranks look at the same values at first, and most of them ever after
        same = [0] * len(prefix) if first else [_first_like(prefix, i) for i in range(len(prefix))]
        counts = {i: np.zeros((*shape, 1 << bits), dtype=np.int64) for i in sorted(set(same))}
        for codes, rows in batches(features):
            for j, column in enumerate(np.ascontiguousarray(rows.T)):
                here = ~np.isnan(column)
                group = codes if here.all() else codes[here]
                keys = _ordered(column if here.all() else column[here], unsigned)
                for i, count in counts.items():
                    count[:, j] += _count(keys, group, None if first else prefix[i, :, j], shift, bits, n_groups)
        if first:
            total = counts[0].sum(axis=2)
            ranks = _ranks(total, percents)
        for i, like in enumerate(same):
            below = np.cumsum(counts[like], axis=2)
            digit = (below <= ranks[i][..., None]).sum(axis=2)
            digit = np.minimum(digit, (1 << bits) - 1)  # of no value at all
            before = np.take_along_axis(below, np.maximum(digit - 1, 0)[..., None], axis=2)[..., 0]
            ranks[i] -= np.where(digit > 0, before, 0)
            prefix[i] = (prefix[i] << np.asarray(bits, unsigned)) | digit.astype(unsigned)
    found = _floats(prefix, kind)
    out = np.empty((len(percents), *shape), dtype=kind)
    with np.errstate(invalid="ignore", over="ignore"):
        for p, percent in enumerate(percents):
            low, high = found[2 * p], found[2 * p + 1]
            part = np.asarray((percent / 100) * np.maximum(total - 1, 0) % 1, dtype=kind)
            # the two middle values are added before they are halved, as numpy does
            out[p] = (low + high) / kind.type(2) if percent == 50 else low + (high - low) * part
    out[:, total == 0] = np.nan
    return out


def _first_like(prefix: Unsigned, i: int) -> int:
    return next(j for j in range(i + 1) if np.array_equal(prefix[j], prefix[i]))


def _count(keys: Unsigned, group: Codes, prefix: Unsigned | None, shift: int, bits: int, n_groups: int) -> Codes:
    """How often each next pattern of `bits` occurs in each group behind its `prefix`; shape (n_groups, 2**bits)."""
    if prefix is not None:
        chosen = (keys >> np.asarray(shift + bits, keys.dtype)) == prefix[group]
        keys, group = keys[chosen], group[chosen]
    digits = ((keys >> np.asarray(shift, keys.dtype)) & np.asarray((1 << bits) - 1, keys.dtype)).astype(np.int64)
    places = digits if n_groups == 1 else (group.astype(np.int64) << bits) + digits
    return np.bincount(places, minlength=n_groups << bits).reshape(n_groups, 1 << bits)


def _ranks(total: Codes, percents: tuple[int, ...]) -> Codes:
    """The ranks below and above each percentile among `total` values, from 0; shape (2 * n_percents, ...)."""
    last = np.maximum(total - 1, 0)
    pairs = [(last * p // 100, -(-last * p // 100)) for p in percents]
    return np.stack([rank for pair in pairs for rank in pair])


def _ordered(column: Floats, unsigned: np.dtype) -> Unsigned:
    """Unsigned integers that order as the floats do."""
    keys = column + 0  # makes 0 of -0
    bits = 8 * unsigned.itemsize - 1
    turned = (keys.view(f"i{unsigned.itemsize}") >> bits).view(unsigned) | np.asarray(1 << bits, unsigned)
    return np.bitwise_xor(keys.view(unsigned), turned, out=turned)


def _floats(keys: Unsigned, kind: np.dtype) -> Floats:
    top = np.asarray(1 << (8 * kind.itemsize - 1), keys.dtype)
    found: Floats = np.where(keys & top, keys & ~top, ~keys).view(kind)
    return found

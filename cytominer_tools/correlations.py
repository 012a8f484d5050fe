"""Correlation of features (which of a pair to drop) and of replicates (how much each one counts), on arrays."""

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import rankdata

from cytominer_tools.arrays import Codes, Doubles, Floats
from cytominer_tools.errors import InputError
from cytominer_tools.threads import each, shares

Method = Literal["pearson", "spearman", "kendall"]
METHODS = ("pearson", "spearman", "kendall")

_BLOCK = 256  # features whose correlations are in work at once: what lies above the diagonal of a block is lost work
_CLOSE = 2e-5  # what a float32 product of unit columns may be wrong by; pairs as close to a threshold are done again


def check_correlation_method(method: str) -> Method:
    """The name of a correlation in lower case.

    Raises
    ------
    InputError
        None of pearson, spearman, kendall.
    """
    match method.lower():
        case "pearson" | "spearman" | "kendall" as known:
            return known
    raise InputError(f"method={method!r} not supported, select one of {', '.join(METHODS)}")


def ranks(rows: Floats) -> Doubles:
    """Average ranks along the last axis, without missing values."""
    order = np.argsort(rows, axis=-1)
    ordered = np.take_along_axis(rows, order, axis=-1)
    out = np.empty(rows.shape)
    np.put_along_axis(out, order, np.arange(1.0, rows.shape[-1] + 1)[None], axis=-1)
    ties = (ordered[:, 1:] == ordered[:, :-1]).any(axis=-1)
    if ties.any():
        out[ties] = rankdata(rows[ties], axis=-1)
    return out


# --- features


class Pairs(NamedTuple):
    """Pairs of features over a threshold, and how much each feature correlates with all.

    Attributes
    ----------
    first, second : int arrays, shape (n_pairs,)
        Column numbers.
    r : float array, shape (n_pairs,)
    sums : float64 array, shape (n_features,)
        Sum of |r| over all features; pairs without a correlation (no spread, no common rows) count 0.
    """

    first: Codes
    second: Codes
    r: Doubles
    sums: Doubles


def correlated_pairs(rows: Floats, threshold: float, method: Method = "pearson") -> Pairs:
    """Pairs of columns with |r| > threshold: one float32 product in blocks, what lies close to a limit in float64.

    Parameters
    ----------
    rows : float array, shape (n, n_features)
        Missing and infinite values leave a row out of those pairs that they are part of.
    threshold : float, 0 to 1
    method : "pearson", "spearman" or "kendall"
        Ranks of incomplete columns are those among the rows that both columns have, so pandas does these.

    Returns
    -------
    Pairs
    """
    holes = ~(np.isfinite(rows.min(axis=0, initial=np.inf)) & np.isfinite(rows.max(axis=0, initial=-np.inf)))
    if len(rows) == 0 or rows.shape[1] == 0:
        holes = np.zeros(rows.shape[1], dtype=bool)
    if method == "kendall" or (method == "spearman" and holes.any()):
        finite = pd.DataFrame(np.where(np.isfinite(rows), rows, np.nan))
        return _of_matrix(finite.corr(method=method).to_numpy(), threshold)
    if method == "spearman":
        rows = np.ascontiguousarray(ranks(rows.T).T)
    columns = _Columns(rows, holes)
    found = [columns.block(start, threshold) for start in range(0, rows.shape[1], _BLOCK)]
    if not found:
        found = [(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))]
    first, second = (np.concatenate([block[i] for block in found]) for i in (0, 1))
    r = np.concatenate([block[2] for block in found])
    close = np.flatnonzero(np.abs(np.abs(r) - threshold) <= columns.close)
    r[close] = columns.exact(first[close], second[close])
    over = np.abs(r) > threshold
    return Pairs(first[over], second[over], r[over], columns.sums_to_compare(first[over], second[over]))


def drop_of_each_pair(pairs: Pairs, names: npt.NDArray[np.str_]) -> npt.NDArray[np.bool_]:
    """Which columns go: of each pair the one that correlates more with all others, of equal ones the later name."""
    slack = 1e-9 * len(pairs.sums)
    gap = pairs.sums[pairs.first] - pairs.sums[pairs.second]
    later = names[pairs.first] > names[pairs.second]
    first = np.where(np.abs(gap) <= slack, later, gap > 0)
    out = np.zeros(len(pairs.sums), dtype=bool)
    out[np.where(first, pairs.first, pairs.second)] = True
    return out


class _Columns:
    """Columns of mean 0 and norm 1 in float32, and their correlations, exact ones on demand."""

    def __init__(self, rows: Floats, holes: npt.NDArray[np.bool_]):
        n, d = rows.shape
        self.rows, self.holes = rows, holes
        self.center, self.norm = np.zeros(d), np.zeros(d)
        self.unit = np.empty((n, d), dtype=np.float32)
        self.sums = np.zeros(d)
        # sums of squares over fewer rows lose digits that the norm of 1 does not
        self.close = 10 * _CLOSE if holes.any() else _CLOSE
        each(self._standardize, [slice(start, start + _BLOCK) for start in range(0, d, _BLOCK)])
        missing = ~np.isfinite(rows[:, holes])
        some = missing.any(axis=1)  # only in these rows anything differs from complete columns
        self.missing, self.incomplete = missing[some].astype(np.float32), self.unit[some]
        self.lost = np.zeros(d, dtype=np.float32)
        self.lost[holes] = missing.sum(axis=0)
        self.place = np.cumsum(holes) - 1  # of a column with holes among `missing`

    def _standardize(self, cols: slice) -> None:
        """Fill `unit` of some columns, their centres and norms."""
        part = self.rows[:, cols].astype(np.float64)
        if self.holes[cols].any():
            part[~np.isfinite(part)] = np.nan
            count = np.maximum((~np.isnan(part)).sum(axis=0), 1)
            mean = np.nansum(part, axis=0) / count
            part = np.nan_to_num(part - mean, nan=0.0)
        else:
            count, mean = np.array(len(part)), part.mean(axis=0)
            part -= mean
        norm = np.sqrt(np.einsum("ij,ij->j", part, part))
        norm[norm <= 8 * np.finfo(np.float64).eps * np.abs(mean) * np.sqrt(count)] = 0
        self.center[cols], self.norm[cols] = mean, norm
        self.unit[:, cols] = np.divide(part, norm, out=np.zeros_like(part), where=norm > 0)

    def block(self, start: int, threshold: float) -> tuple[Codes, Codes, Doubles]:
        """Pairs of columns `start` .. `start` + _BLOCK with earlier ones; adds to the sums of both."""
        stop = min(start + _BLOCK, len(self.sums))
        r = self.unit[:, start:stop].T @ self.unit[:, :stop]
        if self.holes[:stop].any():
            self._complete_pairwise(r, start, stop)
        size = np.abs(r)
        self.sums[start:stop] += size.sum(axis=1, dtype=np.float64)
        self.sums[:start] += size[:, :start].sum(axis=0, dtype=np.float64)
        over = size > threshold - self.close
        for i in range(stop - start):
            over[i, start + i :] = False
        first, second = np.nonzero(over)
        return first + start, second, r[first, second].astype(np.float64)

    def _complete_pairwise(self, r: Floats, start: int, stop: int) -> None:
        """Turn products into correlations over the rows that both columns have, where one of them has holes."""
        rows, columns = np.arange(start, stop), np.arange(stop)
        holed, full = rows[self.holes[rows]], rows[~self.holes[rows]]
        for left, right in ((holed, columns), (full, columns[self.holes[:stop]])):
            if len(left) == 0 or len(right) == 0:
                continue
            # columns add up to 0 and their squares to 1; what a hole of the other takes away is subtracted
            x, y = self.incomplete[:, left], self.incomplete[:, right]
            no_x, no_y = self._mask(left), self._mask(right)
            counts = len(self.rows) - self.lost[left][:, None] - self.lost[right] + no_x.T @ no_y
            sum_x, sum_y = -(x.T @ no_y), -(no_x.T @ y)
            square_x, square_y = 1 - np.square(x).T @ no_y, 1 - no_x.T @ np.square(y)
            where = np.ix_(left - start, right)
            with np.errstate(divide="ignore", invalid="ignore"):
                product = r[where] - sum_x * sum_y / counts
                spread_x, spread_y = square_x - sum_x**2 / counts, square_y - sum_y**2 / counts
                sure = (counts > 1) & (spread_x > 0.01) & (spread_y > 0.01)
                found = np.where(sure, product / np.sqrt(spread_x * spread_y), 0)
            # common rows with little of a column's spread: too few digits are left
            unsure = np.nonzero(~sure & (counts > 1))
            found[unsure] = self.exact(left[unsure[0]], right[unsure[1]])
            r[where] = found

    def _mask(self, columns: Codes) -> Floats:
        mask = np.zeros((len(self.missing), len(columns)), dtype=np.float32)
        holed = self.holes[columns]
        mask[:, holed] = self.missing[:, self.place[columns[holed]]]
        return mask

    def exact(self, first: Codes, second: Codes) -> Doubles:
        """Correlations of some pairs in float64; 0 where there is none."""
        out = np.zeros(len(first))
        for some in _chunks(len(first), len(self.rows)):
            x, y = (self.rows[:, cols[some]].astype(np.float64) for cols in (first, second))
            both = np.isfinite(x) & np.isfinite(y)
            count = np.maximum(both.sum(axis=0), 1)
            x, y = np.where(both, x, 0), np.where(both, y, 0)
            mx, my = x.sum(axis=0) / count, y.sum(axis=0) / count
            x, y = np.where(both, x - mx, 0), np.where(both, y - my, 0)
            sx, sy = (np.sqrt(np.einsum("ij,ij->j", z, z)) for z in (x, y))
            tiny = 8 * np.finfo(np.float64).eps * np.sqrt(count)
            spread = (sx > tiny * np.abs(mx)) & (sy > tiny * np.abs(my))
            product = np.einsum("ij,ij->j", x, y)
            out[some] = np.divide(product, sx * sy, out=np.zeros_like(product), where=spread)
        return out

    def sums_to_compare(self, first: Codes, second: Codes) -> Doubles:
        """The sums, those of a pair too close to tell in float32 in float64."""
        gap = np.abs(self.sums[first] - self.sums[second])
        close = gap <= 0.1 * self.close * len(self.sums)
        unsure = np.unique(np.concatenate([first[close], second[close]]))
        sums = self.sums.copy()
        if len(unsure) == 0:
            return sums
        if self.holes.any():
            for i in unsure:
                others = np.arange(len(sums))
                sums[i] = np.abs(self.exact(np.full(len(sums), i), others)).sum()
            return sums
        x = self._double(unsure)
        sums[unsure] = 0
        for start in range(0, len(self.sums), _BLOCK):
            columns = np.arange(start, min(start + _BLOCK, len(self.sums)))
            sums[unsure] += np.abs(x.T @ self._double(columns)).sum(axis=1)
        return sums

    def _double(self, columns: Codes) -> Doubles:
        part = self.rows[:, columns].astype(np.float64) - self.center[columns]
        norm = self.norm[columns]
        return np.divide(part, norm, out=np.zeros_like(part), where=norm > 0)


def _of_matrix(r: Doubles, threshold: float) -> Pairs:
    r = np.nan_to_num(r, nan=0.0)
    first, second = np.nonzero(np.tril(np.abs(r) > threshold, k=-1))
    return Pairs(first, second, r[first, second], np.abs(r).sum(axis=0))


def _chunks(n_pairs: int, n_rows: int) -> Iterator[slice]:
    step = max(1, 2**22 // max(1, n_rows))
    return (slice(start, start + step) for start in range(0, n_pairs, step))


# --- replicates


def replicate_weights(correlations: Doubles, min_weight: float, precision: int) -> Doubles:
    """How much each replicate counts: its mean correlation with the others, negative ones as 0, adding up to 1.

    Parameters
    ----------
    correlations : float64 array, shape (k, k), NaN where there is none
    min_weight : float
        The least a replicate weighs before weights are divided by their sum.
    precision : int
        Digits after the point that weights are rounded to.

    Returns
    -------
    float64 array, shape (k,), NaN for a replicate without any correlation

    References
    ----------
    Subramanian et al. 2017, doi:10.1016/j.cell.2017.10.049 (MODZ); rounding as cmapPy does it.
    """
    k = len(correlations)
    others = correlations.copy()
    np.fill_diagonal(others, np.nan)
    others = np.maximum(others, 0)
    known = ~np.isnan(others)
    counts = known.sum(axis=1)
    mean = np.divide(np.where(known, others, 0).sum(axis=1), counts, out=np.full(k, np.nan), where=counts > 0)
    weights = np.maximum(mean, min_weight)
    total = np.nansum(weights)
    weights = np.full(k, 1 / k) if total == 0 else weights / total
    rounded: Doubles = weights.round(precision)
    return rounded


def weighted_replicates(
    rows: Floats, members: Sequence[slice | Codes], method: Method, min_weight: float, precision: int
) -> Doubles:
    """One row a group: the sum of its rows, each times its weight; missing values count as 0, as in pycytominer.

    Missing and infinite values are left out of correlations; an infinite one makes the sum infinite.

    Parameters
    ----------
    rows : float array, shape (n, n_features)
    members : list of slices or int arrays
        The rows of each group.

    Returns
    -------
    float64 array, shape (n_groups, n_features)
    """
    out = np.empty((len(members), rows.shape[1]))

    def some(groups: slice) -> None:
        for group in range(groups.start, groups.stop):
            out[group] = _weighted(rows[members[group]], method, min_weight, precision)

    each(some, shares(len(members)))
    return out


def _weighted(rows: Floats, method: Method, min_weight: float, precision: int) -> Doubles:
    part = rows.astype(np.float64)
    known = np.where(np.isnan(part), 0.0, part)
    if len(part) == 1:
        return known[0]
    if rows.shape[1] < 2:  # one feature has no correlation
        correlations = np.full((len(part), len(part)), np.nan)
    elif method == "kendall" or not np.isfinite(part).all():
        correlations = pd.DataFrame(part.T).corr(method=method).to_numpy()
    else:
        correlations = _row_correlations(ranks(part) if method == "spearman" else part)
    weights = replicate_weights(correlations, min_weight, precision)
    with np.errstate(invalid="ignore"):  # infinite values of either sign
        return np.nan_to_num(weights, nan=0.0) @ known


def _row_correlations(rows: Doubles) -> Doubles:
    away = rows - rows.mean(axis=1, keepdims=True)
    norm = np.sqrt(np.einsum("ij,ij->i", away, away))
    with np.errstate(divide="ignore", invalid="ignore"):  # a profile without spread has no correlation
        r: Doubles = (away @ away.T) / np.outer(norm, norm)
    return np.clip(r, -1, 1)

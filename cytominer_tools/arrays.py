"""Arithmetic on arrays: centre and spread, spherizing, rows by group. Shapes only; names of columns are for frames."""

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Literal

import numpy as np
import numpy.typing as npt

from cytominer_tools.errors import InputError
from cytominer_tools.threads import each, shares

Floats = npt.NDArray[np.floating]
Doubles = npt.NDArray[np.float64]
Codes = npt.NDArray[np.integer]

TRIM = 10  # one part in this many goes at each end

_BLOCK = 2**23  # values of float64 in work at once, 64 MB
_FEWEST = 32  # features for a thread of their own
_FEW = 16  # rows added in float32 before they go on in float64
_ROWS = 256  # spherized at once at least, or products read the axes more often than they use them
_SMALL_BLOCK = 2**20  # values scaled or spherized at once: they are gone over several times, in the processor's cache
_WHOLE = 2048  # features, up to which one matrix for all axes is worth its making
_EVEN = 1e2  # gains within this factor
_STEEP = 1e-9  # of eigenvalues: below, those of a Gram matrix in float64 have less than seven digits


# --- centre and spread


def mean_sd(reference: Floats, ddof: int = 1) -> tuple[Doubles, Doubles]:
    """Mean and standard deviation of the reference rows: `mean_variance` and its square root."""
    mean, variance = mean_variance(reference, ddof)
    return mean, np.sqrt(variance)


def mean_variance(reference: Floats, ddof: int = 1) -> tuple[Doubles, Doubles]:
    """Mean and variance of the reference rows, in double precision.

    Parameters
    ----------
    reference : float array, shape (n_samples, n_features)
        Missing values are left out; a feature that has none left is NaN.
    ddof : int
        The squares are divided by n - ddof.

    Returns
    -------
    mean, variance : float64 arrays, shape (n_features,)
        In the unit of the column, and its square; the variance is exactly 0 where the values differ by nothing but
        rounding in float64.

    Raises
    ------
    InputError
        Fewer than two rows.
    """
    if (n := len(reference)) < 2:
        raise InputError(f"n_samples={n}: a spread needs at least 2 reference rows")
    holes = has_holes(reference)
    if holes.any():
        mean, variance = np.full(len(holes), np.nan), np.full(len(holes), np.nan)
        if not holes.all():
            mean[~holes], variance[~holes] = mean_variance(reference[:, ~holes], ddof)
        some = holes.copy()
        some[holes] = ~np.isnan(reference[:, holes]).all(axis=0)
        part = reference[:, some].astype(np.float64)
        counts = (~np.isnan(part)).sum(axis=0)
        mean[some] = np.nanmean(part, axis=0)
        squares = np.nansum(np.square(part - mean[some]), axis=0)
        variance[some] = variance_of(squares, np.maximum(counts - ddof, 1), np.abs(mean[some]))
        return mean, variance
    mean = np.zeros(reference.shape[1])
    for block in _blocks(reference):
        mean += block.sum(axis=0, dtype=np.float64)
    mean /= n
    squares = np.zeros_like(mean)
    for block in _blocks(reference):
        away = block - mean
        squares += np.einsum("ij,ij->j", away, away)
    return mean, variance_of(squares, n - ddof, _size(reference))


def variance_of(squares: Doubles, count: int | Codes, size: Doubles) -> Doubles:
    """`squares` about the mean by `count`; 0 where values of at most `size` differ by nothing but rounding."""
    variance = squares / count
    return np.where(variance <= np.square(8 * np.finfo(np.float64).eps * size), 0.0, variance)


def median_iqr(reference: Floats) -> tuple[Doubles, Doubles]:
    """Median and distance between the quartiles (linear interpolation) of the reference rows, missing values left out.

    Parameters
    ----------
    reference : float array, shape (n_samples, n_features)

    Returns
    -------
    median, iqr : float64 arrays, shape (n_features,)
        In the unit of the column; NaN where a column has no value.
    """
    quartiles = np.concatenate([_quantiles(c, (25, 50, 75)) for c in _columns(reference)], axis=1, dtype=np.float64)
    return quartiles[1], quartiles[2] - quartiles[0]


def median_mad(reference: Floats) -> tuple[Doubles, Doubles]:
    """Location and scale of the reference rows, unmoved by a few outliers; missing values are left out.

    Parameters
    ----------
    reference : float array, shape (n_samples, n_features)

    Returns
    -------
    median, mad : float64 arrays, shape (n_features,)
        In the unit of the column; mad is 1.4826 times the median distance from the median, and exactly 0 where over
        half of the values are equal but for rounding in float64; NaN where a column has no value.

    References
    ----------
    Factor 1.4826: Rousseeuw & Croux 1993, doi:10.1080/01621459.1993.10476408.
    """
    medians, mads = [], []
    for columns in _columns(reference):
        median = _quantiles(columns, (50,))[0]
        with np.errstate(invalid="ignore"):  # the distance of an infinite value from an infinite median
            away = np.abs(columns - median[:, None])
        medians.append(median)
        mads.append(_quantiles(away, (50,))[0])
    median, mad = np.concatenate(medians, dtype=np.float64), 1.4826 * np.concatenate(mads, dtype=np.float64)
    return median, np.where(mad <= 8 * np.finfo(np.float64).eps * np.abs(median), 0.0, mad)


def has_holes(rows: Floats) -> npt.NDArray[np.bool_]:
    """Which columns hold a missing value."""
    holes: npt.NDArray[np.bool_] = np.isnan(rows.min(axis=0, initial=np.inf))
    return holes


def scaled(rows: Floats, center: Doubles, scale: Doubles) -> Floats:
    """(rows - center) / scale in the dtype of `rows`, calculated in double precision in blocks of rows."""
    out = np.empty(rows.shape, dtype=rows.dtype)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):  # a scale of 0, where it is asked for
        for block, target in zip(_blocks(rows, _SMALL_BLOCK), _blocks(out, _SMALL_BLOCK), strict=True):
            np.divide(block - center, scale, out=target, casting="same_kind")
    return out


def _columns(rows: Floats) -> Iterator[Floats]:
    """Copies of consecutive columns, each contiguous, as rows of a block: what partitioning wants."""
    step = max(1, _BLOCK // max(1, len(rows)))
    return (np.array(rows[:, i : i + step].T, order="C") for i in range(0, rows.shape[1], step))


def _quantiles(columns: Floats, percents: tuple[int, ...]) -> Floats:
    """Percentiles of each row of `columns`, missing values left out; shape (n_percents, n_columns)."""
    holes = np.isnan(columns.min(axis=1, initial=np.inf))
    out = np.full((len(percents), len(columns)), np.nan, dtype=columns.dtype)
    some = holes.copy()
    some[holes] = ~np.isnan(columns[holes]).all(axis=1)
    with np.errstate(invalid="ignore"):
        if not holes.all() and columns.shape[1]:
            full = columns if not holes.any() else columns[~holes]
            out[:, ~holes] = np.median(full, axis=1) if percents == (50,) else np.percentile(full, percents, axis=1)
        if some.any():
            out[:, some] = np.nanpercentile(columns[some], percents, axis=1)
    return out


# --- spherizing


def low_variance(rows: Floats, reference: Floats, min_variance: float) -> npt.NDArray[np.bool_]:
    """Which features have (nearly) no variance on the reference rows; unmoved by gain and, but for rounding, offset.

    Low means at most `min_variance` times the variance over all `rows`, so that dividing by the reference's sd would
    blow some row up to 1 / sqrt(min_variance) of them, or a sd under one float32 rounding step of the largest value:
    features are computed in float32, and what is below that is not a measurement.

    Parameters
    ----------
    rows : float array, shape (n, n_features), finite
    reference : float array, shape (n_samples, n_features), finite
        Those of `rows` that are controls.
    min_variance : float
        A ratio, no unit.

    Returns
    -------
    bool array, shape (n_features,)
    """
    _, sd = mean_sd(reference)
    _, spread = mean_sd(rows)
    step = np.finfo(np.float32).eps * _size(reference)
    low: npt.NDArray[np.bool_] = (sd <= np.sqrt(min_variance) * spread) | (sd <= step)
    return low


def principal_axes(centered: Doubles) -> tuple[Doubles, Doubles]:
    """Eigenvalues and eigenvectors of the covariance of centred rows, through the smaller of the two Gram matrices.

    Directions that no row spans are left out; nothing of shape (n_features, n_features) is formed when there are
    fewer rows than features. Squaring costs digits, so what is weak beside the strongest axes is decomposed again
    without them: turned by the eigenvectors, the rows (or features) that belong to weak axes have all their digits.

    Parameters
    ----------
    centered : float64 array, shape (n_samples, n_features), columns of mean 0 (or as they are, to spherize uncentred)

    Returns
    -------
    eigenvalues : float64 array, shape (rank,)
        Largest first, all positive; with columns of sd 1 those of the correlation matrix.
    axes : float64 array, shape (rank, n_features)
        Orthonormal rows (right singular vectors of `centered`), each up to its sign.
    """
    n, d = centered.shape
    wide, eps = n < d, np.finfo(np.float64).eps
    found, axes = [np.zeros(0)], [np.zeros((0, d))]
    part, basis, least = centered, None, 0.0
    # centred rows add up to nothing, which takes one direction away
    null = int(n <= d and _adds_up_to_nothing(centered))
    while True:
        values, vectors = np.linalg.eigh(part @ part.T if wide else part.T @ part)
        values, vectors = values[::-1], vectors[:, ::-1]
        least = least or (max(n, d) * eps) ** 2 * values[0]
        sure = values > max(_STEEP * values[0], least)
        last = bool((~sure).sum() <= null) or not sure.any()
        if not last:
            # an eigenvector of l is off by eps * top / l, which must stay under what counts as no spread at all
            sure = values > max(min(0.5, (4 / max(n, d)) ** 2) * values[0], least)  # the largest at least
        if wide:
            new = (vectors[:, sure] / np.sqrt(values[sure])).T @ part
            if basis is not None:  # rounding leaves a little of the strong axes in weak ones
                known = np.concatenate(axes)
                new -= (new @ known.T) @ known
                new /= np.linalg.norm(new, axis=1, keepdims=True)
        else:
            new = (vectors[:, sure] if basis is None else basis @ vectors[:, sure]).T
        found.append(values[sure])
        axes.append(new)
        if last:
            return np.concatenate(found) / (n - 1), np.ascontiguousarray(np.concatenate(axes))
        left = vectors[:, ~sure]
        part = left.T @ part if wide else part @ left
        basis = left if basis is None else basis @ left


def _adds_up_to_nothing(rows: Doubles) -> bool:
    n, d = rows.shape
    limit = n * d * np.finfo(np.float64).eps * np.abs(rows).max(initial=0.0)
    return bool(np.abs(rows.sum(axis=0)).max(initial=0.0) <= limit)


def completed(axes: Doubles) -> Doubles:
    """Orthonormal rows, the given ones first, that span everything; those added are any that do."""
    rank, d = axes.shape
    basis, _ = np.linalg.qr(axes.T, mode="complete")
    return np.concatenate([axes, basis[:, rank:].T], axis=0) if rank < d else axes


def spherizing_gains(eigenvalues: Doubles, n_features: int, ridge: float) -> tuple[Doubles, float]:
    """How much spherizing stretches each principal axis of the controls, and every direction outside them.

    An axis with eigenvalue l is scaled by 1 / sqrt(l + ridge * mean(l)), the mean taken over all `n_features`
    directions; one that no control spans has l = 0 and gets 1 / sqrt(ridge * mean(l)), never more.

    Parameters
    ----------
    eigenvalues : float64 array, shape (rank,), positive
    n_features : int
    ridge : float, 0 or more
        Relative to the mean eigenvalue, so without a unit. 0 is full whitening and needs rank = n_features.

    Returns
    -------
    gains : float64 array, shape (rank,)
    rest : float
        The gain outside the axes; 0 where they span everything, so that it is not needed.

    Raises
    ------
    InputError
        `ridge` is negative or not finite; it is 0 and some directions are not spanned; no row varies at all.

    References
    ----------
    Ridge 1 is the best of eleven values on real wells (BBBC021, 632 wells, 516 features: nearest-neighbour MOA
    accuracy .932, against .845 for 1e-6; tests/cytominer_tools/test_normalization.py repeats both, and
    benchmarks/recipes.py the table). Why a small ridge fails where features outnumber controls, stretching unseen
    directions a thousand times and making the fitted controls uncorrelated by construction: Bornholdt, thesis, TU
    München 2021. A ridge as shrinkage towards the mean eigenvalue: Ledoit & Wolf 2004,
    doi:10.1016/S0047-259X(03)00096-4.
    """
    if not (np.isfinite(ridge) and ridge >= 0):
        raise InputError(f"ridge={ridge}: expected a finite number of 0 or more; 1 suits most data")
    rank = len(eigenvalues)
    if rank == 0:
        raise InputError("no spread among the reference rows: all of them are equal; choose other controls")
    if rank == n_features:
        return 1 / np.sqrt(eigenvalues + ridge * eigenvalues.mean()), 0.0
    if ridge == 0:
        raise InputError(
            f"ridge=0: the controls span {rank} of {n_features} directions, the others would be stretched without "
            "bound; use a ridge above 0, such as 1"
        )
    floor = ridge * eigenvalues.sum() / n_features
    return 1 / np.sqrt(eigenvalues + floor), float(1 / np.sqrt(floor))


def epsilon_gains(
    eigenvalues: Doubles, n_samples: int, n_features: int, epsilon: float, *, unseen: Literal["smallest", "epsilon"]
) -> tuple[Doubles, float]:
    """Gains as in `spherizing_gains`, but with pycytominer's epsilon, which is added to the singular values.

    An axis with singular value s = sqrt((n_samples - 1) * eigenvalue) is scaled by sqrt(n_samples - 1) / (s + epsilon);
    a direction that no row spans as the last axis that one does, or with unseen="epsilon" as if s were 0.
    """
    size = np.sqrt(n_samples - 1)
    singular = size * np.sqrt(eigenvalues)
    if len(singular) == 0:
        raise InputError("no spread among the reference rows: all of them are equal; choose other controls")
    with np.errstate(divide="ignore"):
        gains = size / (singular + epsilon)
        rest = 0.0 if len(singular) == n_features else size / ((singular[-1] if unseen == "smallest" else 0) + epsilon)
    return gains, float(rest)


def spherize(rows: Floats, mean: Doubles, scale: Doubles, axes: Doubles, gains: Doubles, rest: float) -> Floats:
    """Centre and scale `rows`, then stretch them by `gains` along `axes` and by `rest` elsewhere (ZCA: no rotation).

    Two thin products of 2 * n * n_features * rank operations each, or one of 2 * n * n_features ** 2 where up to
    `_WHOLE` axes span everything, in blocks of rows. In double precision; float32 rows in single precision where the
    gains differ by less than `_EVEN`, since a product then changes a row by less than 1e-4 of its length.

    Parameters
    ----------
    rows : float array, shape (n, n_features), finite
    mean, scale : float64 arrays, shape (n_features,)
    axes : float64 array, shape (rank, n_features)
    gains : float64 array, shape (rank,)
    rest : float

    Returns
    -------
    float array, shape (n, n_features), dtype of `rows`
        Dimensionless; where `scale` is 1 and the ridge tiny too.
    """
    n, d = rows.shape
    all_gains = np.append(gains, rest) if rest else gains
    even = rows.dtype == np.float32 and all_gains.max() < _EVEN * all_gains.min()
    axes = axes.astype(np.float32) if even else axes
    whole = ((axes.T * gains.astype(axes.dtype)) @ axes) if not rest and d <= _WHOLE else None
    step = max(_ROWS, _SMALL_BLOCK // max(1, d))
    out = np.empty(rows.shape, dtype=rows.dtype)
    order: Literal["C", "F"] = "F" if rows.flags.f_contiguous else "C"  # a frame's columns lie in one piece
    away, scaled = np.empty((step, d), order=order), np.empty((step, d), axes.dtype, order)
    along, product = np.empty((step, len(axes)), axes.dtype), np.empty((step, d), axes.dtype)
    for start in range(0, n, step):
        block, target = rows[start : start + step], out[start : start + step]
        double, one, turned = away[: len(block)], scaled[: len(block)], along[: len(block)]
        np.subtract(block, mean, out=double)
        np.divide(double, scale, out=one, casting="same_kind")
        if whole is not None:
            np.matmul(one, whole, out=product[: len(block)])
            target[:] = product[: len(block)]
            continue
        np.matmul(one, axes.T, out=turned)
        turned *= (gains - rest).astype(axes.dtype)
        np.matmul(turned, axes, out=product[: len(block)])
        one *= rest
        np.add(product[: len(block)], one, out=target, casting="same_kind")
    return out


def _blocks(rows: Floats, values: int = _BLOCK) -> Iterator[Floats]:
    """Views of consecutive rows, small enough that a copy of one in double precision does not matter."""
    step = max(1, values // max(1, rows.shape[1]))
    return (rows[start : start + step] for start in range(0, len(rows), step))


def _size(rows: Floats) -> Doubles:
    """Largest absolute value of each column."""
    return np.maximum(rows.max(axis=0), -rows.min(axis=0)).astype(np.float64)


# --- rows by group


def group_median(rows: Floats, codes: Codes) -> Floats:
    """Exact median of each group of rows.

    Parameters
    ----------
    rows : float array, shape (n, n_features), without NaN
    codes : int array, shape (n,)
        The group of each row, 0 to n_groups - 1, each at least once, in any order.

    Returns
    -------
    float array, shape (n_groups, n_features), dtype of `rows`
    """

    def median(block: Floats) -> Floats:
        n, half = block.shape[1], block.shape[1] // 2
        block.partition(half, axis=1)
        middle = block[:, half]
        # the two middle values are halved before they are added, so that large ones do not overflow
        with np.errstate(invalid="ignore"):  # infinite values of either sign
            return middle if n % 2 else 0.5 * block[:, :half].max(axis=1) + 0.5 * middle

    return _by_group(rows, codes, median)


def group_mean(rows: Floats, codes: Codes) -> Floats:
    """Mean of each group of rows, summed in double precision; parameters and result as in `group_median`."""
    out = np.empty((_n_groups(codes), rows.shape[1]), dtype=rows.dtype)
    if rows.flags.f_contiguous and len(rows):
        order, bounds = _order(codes)
        step = max(1, _BLOCK // len(rows))
        for start in range(0, rows.shape[1], step):
            columns = rows.T[start : start + step]
            columns = columns if order is None else columns[:, order]
            # in one piece, and so added in pairs: float32 loses nothing that counts
            out[:, start : start + step] = (np.add.reduceat(columns, bounds[:-1], axis=1) / np.diff(bounds)).T
        return out
    for group, which in enumerate(members(codes)):
        part = rows[which]
        total = np.zeros(rows.shape[1])
        # a few rows at a time in their own precision: adding float32 to float64 one by one takes four times as long
        for start in range(0, len(part), _FEW):
            total += part[start : start + _FEW].sum(axis=0)
        out[group] = total / len(part)
    return out


def group_trimmed_mean(rows: Floats, codes: Codes) -> Floats:
    """Mean of each group without the lowest and the highest tenth of the values of each feature.

    Of n values int(n / 10) go on either side. Parameters and result as in `group_median`.

    References
    ----------
    Tukey & McLaughlin 1963, Sankhya A 25, 331; a tenth is what scipy.stats.trim_mean is usually called with.
    """

    def mean(block: Floats) -> Floats:
        n = block.shape[1]
        cut = n // TRIM
        if cut:
            block.partition((cut, n - cut - 1), axis=1)
        with np.errstate(invalid="ignore"):  # infinite values of either sign
            return block[:, cut : n - cut].mean(axis=1, dtype=np.float64)

    return _by_group(rows, codes, mean)


def _by_group(rows: Floats, codes: Codes, reduce: Callable[[Floats], Floats]) -> Floats:
    """One row a group. `reduce` gets some features of a group, which it may reorder, shape (n_some, n_rows)."""
    out = np.empty((_n_groups(codes), rows.shape[1]), dtype=rows.dtype)
    groups = list(members(codes))

    def some(features: slice) -> None:
        for group, which in enumerate(groups):
            start = features.start
            # features first and contiguous: partitioning along the last axis is many times faster
            for block in _columns(rows[which, features]):
                out[group, start : (start := start + len(block))] = reduce(block)

    each(some, shares(rows.shape[1], _FEWEST))
    return out


def group_mad(rows: Floats, codes: Codes) -> Doubles:
    """The MAD of each group as in `median_mad`; missing values are left out, parameters as in `group_median`."""
    return np.stack([median_mad(rows[which])[1] for which in members(codes)])


def group_covariance(rows: Floats, codes: Codes) -> Doubles:
    """Covariance (divided by n - 1) of every two features in each group.

    Parameters
    ----------
    rows, codes
        As in `group_median`.

    Returns
    -------
    float64 array, shape (n_groups, n_features * (n_features + 1) / 2)
        The upper triangle with its diagonal, row by row; NaN in a group of one, and with a feature that is infinite.
    """
    upper = np.triu_indices(rows.shape[1])
    out = np.empty((_n_groups(codes), len(upper[0])))
    for group, which in enumerate(members(codes)):
        away = rows[which].astype(np.float64)
        n = len(away)
        with np.errstate(invalid="ignore"):
            away -= away.mean(axis=0)
            out[group] = (away.T @ away)[upper] / (n - 1) if n > 1 else np.nan
    return out


def _n_groups(codes: Codes) -> int:
    return int(codes.max()) + 1 if len(codes) else 0


def members(codes: Codes) -> Iterator[slice | Codes]:
    """The rows of each group in turn: a slice where groups lie in one piece, which spares a copy."""
    order, bounds = _order(codes)
    for start, end in pairwise(bounds.tolist()):
        yield slice(start, end) if order is None else order[start:end]


def _order(codes: Codes) -> tuple[Codes | None, Codes]:
    """How to sort rows by group (None: they are), and where each group starts; the last number is that of the rows."""
    in_order = bool((codes[1:] >= codes[:-1]).all())
    bounds = np.concatenate([[0], np.cumsum(np.bincount(codes))])
    return None if in_order else np.argsort(codes, kind="stable"), bounds

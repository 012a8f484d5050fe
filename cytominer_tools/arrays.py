"""Arithmetic on arrays: spherizing, and reducing rows by group. Shapes only; names of columns are for frames."""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from cytominer_tools.errors import InputError

Floats = npt.NDArray[np.floating]
Doubles = npt.NDArray[np.float64]
Codes = npt.NDArray[np.integer]

_BLOCK = 2**23  # values of float64 in work at once, 64 MB


# --- spherizing


def mean_sd(reference: Floats) -> tuple[Doubles, Doubles]:
    """Mean and standard deviation (n - 1) of the reference rows, in double precision.

    Parameters
    ----------
    reference : float array, shape (n_samples, n_features), finite

    Returns
    -------
    mean, sd : float64 arrays, shape (n_features,)
        In the unit of the column; sd is exactly 0 where the values differ by nothing but rounding in float64.

    Raises
    ------
    InputError
        Fewer than two rows.
    """
    if (n := len(reference)) < 2:
        raise InputError(f"n_samples={n}: a spread needs at least 2 reference rows")
    mean = reference.mean(axis=0, dtype=np.float64)
    squares = np.zeros_like(mean)
    for block in _blocks(reference):
        away = block - mean
        squares += np.einsum("ij,ij->j", away, away)
    sd, size = np.sqrt(squares / (n - 1)), _size(reference)
    return mean, np.where(sd <= 8 * np.finfo(np.float64).eps * size, 0.0, sd)


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
    fewer rows than features.

    Parameters
    ----------
    centered : float64 array, shape (n_samples, n_features), columns of mean 0

    Returns
    -------
    eigenvalues : float64 array, shape (rank,)
        Largest first, all positive; with columns of sd 1 those of the correlation matrix.
    axes : float64 array, shape (rank, n_features)
        Orthonormal rows (right singular vectors of `centered`), each up to its sign.
    """
    n, d = centered.shape
    wide = n < d
    gram = centered @ centered.T if wide else centered.T @ centered
    values, vectors = np.linalg.eigh(gram)
    seen = values > max(n, d) * np.finfo(np.float64).eps * values[-1]
    values, vectors = values[seen][::-1], vectors[:, seen][:, ::-1]
    axes = (vectors / np.sqrt(values)).T @ centered if wide else np.ascontiguousarray(vectors.T)
    return values / (n - 1), axes


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
    accuracy .932, against .845 for 1e-6; tests/cytominer_tools/test_frames.py repeats both). Why a small ridge fails
    where features outnumber controls, stretching unseen directions a thousand times and making the fitted controls
    uncorrelated by construction: Bornholdt, thesis, TU München 2021, as recomputed in
    shared/reference/thesis-protocol.md section 2; the table of ridges is in shared/reference/findings.md. A ridge
    as shrinkage towards the mean eigenvalue: Ledoit & Wolf 2004, doi:10.1016/S0047-259X(03)00096-4.
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


def spherize(rows: Floats, mean: Doubles, scale: Doubles, axes: Doubles, gains: Doubles, rest: float) -> Floats:
    """Centre and scale `rows`, then stretch them by `gains` along `axes` and by `rest` elsewhere (ZCA: no rotation).

    Two thin products of 2 * n * n_features * rank operations each, in blocks of rows in double precision.

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
    out = np.empty(rows.shape, dtype=rows.dtype)
    for block, target in zip(_blocks(rows), _blocks(out), strict=True):
        scaled = (block - mean) / scale
        target[:] = rest * scaled + ((scaled @ axes.T) * (gains - rest)) @ axes
    return out


def _blocks(rows: Floats) -> Iterator[Floats]:
    """Views of consecutive rows, small enough that a copy of one in double precision does not matter."""
    step = max(1, _BLOCK // max(1, rows.shape[1]))
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
    out = np.empty((_n_groups(codes), rows.shape[1]), dtype=rows.dtype)
    for group, members in enumerate(_members(codes)):
        # features first and contiguous: partitioning along the last axis is many times faster
        block = np.array(rows[members].T, order="C")
        n, half = block.shape[1], block.shape[1] // 2
        block.partition(half, axis=1)
        middle = block[:, half]
        # the two middle values are halved before they are added, so that large ones do not overflow
        out[group] = middle if n % 2 else 0.5 * block[:, :half].max(axis=1) + 0.5 * middle
    return out


def group_mean(rows: Floats, codes: Codes) -> Floats:
    """Mean of each group of rows, summed in double precision; parameters and result as in `group_median`."""
    out = np.empty((_n_groups(codes), rows.shape[1]), dtype=rows.dtype)
    for group, members in enumerate(_members(codes)):
        out[group] = rows[members].mean(axis=0, dtype=np.float64)
    return out


def _n_groups(codes: Codes) -> int:
    return int(codes.max()) + 1 if len(codes) else 0


def _members(codes: Codes) -> Iterator[slice | Codes]:
    """The rows of each group in turn: a slice where groups lie in one piece, which spares a copy."""
    in_order = bool((codes[1:] >= codes[:-1]).all())
    order = np.argsort(codes, kind="stable")
    bounds = np.concatenate([[0], np.cumsum(np.bincount(codes))]).tolist()
    for start, end in pairwise(bounds):
        yield slice(start, end) if in_order else order[start:end]

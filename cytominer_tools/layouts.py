"""Places on a plate, and whether groups of wells differ by more than chance. Shapes only."""

import numpy as np
import numpy.typing as npt

from cytominer_tools import arrays
from cytominer_tools.arrays import Codes, Doubles, Floats
from cytominer_tools.errors import InputError

PLATES = ((2, 3), (4, 6), (6, 8), (8, 12), (16, 24), (32, 48))  # rows and columns of 6 to 1536 wells

_FAR = 5.0  # robust z that a single value counts at most


def robust_scores(rows: Floats, reference: Floats) -> Doubles:
    """(x - median) / MAD of the reference, features without a MAD or with a missing value left out.

    Parameters
    ----------
    rows : float array, shape (n, n_features)
    reference : float array, shape (n_samples, n_features)

    Returns
    -------
    float64 array, shape (n, n_kept), dimensionless

    Raises
    ------
    InputError
        No feature is left.
    """
    median, mad = arrays.median_mad(reference)
    kept = (mad > 0) & np.isfinite(median) & ~arrays.has_holes(rows)
    if not kept.any():
        raise InputError(f"none of {len(kept)} features is complete and varies (MAD over 0); choose others")
    found: Doubles = (rows[:, kept] - median[kept]) / mad[kept]
    return found


def typical_distance(scores: Doubles) -> tuple[Doubles, Doubles]:
    """How far each row lies from the others, and whether that is far for them.

    Parameters
    ----------
    scores : float64 array, shape (n, n_features)
        Robust scores among the same rows.

    Returns
    -------
    distance : float64 array, shape (n,)
        The median of |score|, about 0.67 for a row like the others; half of the features may be anything.
    z : float64 array, shape (n,)
        Robust z of its logarithm; 0 where these have no spread.

    References
    ----------
    A robust z over 3.5 is an outlier: Iglewicz & Hoaglin 1993, How to detect and handle outliers, ASQC.
    """
    distance = np.median(np.abs(scores), axis=1)
    logs = np.log(np.maximum(distance, np.finfo(np.float64).tiny))[:, None]
    median, mad = arrays.median_mad(logs)
    return distance, (logs[:, 0] - median) / mad if mad[0] > 0 else np.zeros(len(logs))


def shifts(scores: Doubles, codes: Codes) -> Doubles:
    """How far each group lies from where the scores are 0: root mean square over features of its mean score.

    A score counts at most 5 either way. Shapes (n, n_features) and (n,) to (n_groups,).
    """
    means = _means(np.clip(scores, -_FAR, _FAR), codes)
    found: Doubles = np.sqrt(np.square(means).mean(axis=1))
    return found


def explained(rows: Floats, codes: Codes) -> float:
    """The part of the variance that lies between groups, in the mean of the features that vary; 0 to 1."""
    return _explained(_standardized(rows), codes)


def shift_test(
    scores: Doubles, codes: Codes, permutations: int, rng: np.random.Generator
) -> tuple[Doubles, Doubles, Doubles]:
    """`shifts`, their mean when rows are dealt to groups at random, and p; each of shape (n_groups,).

    p is the part of the deals, the real one among them, that shift the group as far.
    """
    clipped = np.clip(scores, -_FAR, _FAR)
    real = shifts(clipped, codes)
    dealt = np.stack([shifts(clipped, rng.permutation(codes)) for _ in range(permutations)])
    return real, dealt.mean(axis=0), (1 + (dealt >= real).sum(axis=0)) / (1 + permutations)


def effect_test(rows: Floats, codes: Codes, permutations: int, rng: np.random.Generator) -> tuple[float, float, float]:
    """`explained`, its mean when rows are dealt to groups at random, and p as in `shift_test`."""
    unit = _standardized(rows)
    real = _explained(unit, codes)
    dealt = np.array([_explained(unit, rng.permutation(codes)) for _ in range(permutations)])
    return real, float(dealt.mean()), float((1 + (dealt >= real).sum()) / (1 + permutations))


def plate_shape(rows: Codes, columns: Codes) -> tuple[int, int]:
    """Rows and columns of the smallest usual plate that has these places, counted from 0.

    Raises
    ------
    InputError
        None of up to 1536 wells has.
    """
    last = int(rows.max()), int(columns.max())
    for shape in PLATES:
        if last[0] < shape[0] and last[1] < shape[1]:
            return shape
    raise InputError(f"row {last[0] + 1}, column {last[1] + 1}: no plate of up to 1536 wells has that well")


def on_edge(rows: Codes, columns: Codes, shape: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Which places are in the outermost ring of a plate of `shape`."""
    n_rows, n_columns = shape
    found: npt.NDArray[np.bool_] = (rows == 0) | (columns == 0) | (rows == n_rows - 1) | (columns == n_columns - 1)
    return found


def _standardized(rows: Floats) -> Doubles:
    kept = rows[:, np.isfinite(rows.min(axis=0)) & np.isfinite(rows.max(axis=0))]
    mean, sd = arrays.mean_sd(kept, ddof=0)
    if not (sd > 0).any():
        raise InputError(f"none of {rows.shape[1]} features is complete and varies; choose others")
    unit: Doubles = (kept[:, sd > 0] - mean[sd > 0]) / sd[sd > 0]
    return unit


def _explained(unit: Doubles, codes: Codes) -> float:
    counts = np.bincount(codes)
    return float((counts[:, None] * np.square(_means(unit, codes))).sum(axis=0).mean() / len(unit))


def _means(rows: Doubles, codes: Codes) -> Doubles:
    counts = np.bincount(codes)
    member = np.zeros((len(counts), len(codes)))
    member[codes, np.arange(len(codes))] = 1 / counts[codes]
    return member @ rows

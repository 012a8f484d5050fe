"""Tests and intervals for scores that were measured on the same queries."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.stats import norm, rankdata

from cytominer_tools.errors import InputError
from evaluation.metrics import Codes
from evaluation.similarity import Floats

Alternative = Literal["greater", "less", "two-sided"]


@dataclass(frozen=True)
class Wilcoxon:
    """A signed-rank test of paired values.

    Attributes
    ----------
    n, zeros, ties : int
        Pairs that differ, pairs that do not (dropped), and differing pairs whose size of difference another one has.
    statistic : float
        Sum of the mid-ranks of positive differences.
    p : float
        NaN if no pair differs.
    method : str
        "exact", "normal", or "none".
    """

    n: int
    zeros: int
    ties: int
    statistic: float
    p: float
    method: str


def wilcoxon(
    a: npt.ArrayLike, b: npt.ArrayLike, *, alternative: Alternative = "greater", legacy: bool = False
) -> Wilcoxon:
    """Wilcoxon's signed-rank test of a against b: "greater" asks whether a is.

    Differences are rounded to 12 decimals, so that equal ones tie; the distribution of the mid-ranks is exact for up to
    50 differing pairs, normal with the correction for ties above.

    Parameters
    ----------
    a, b : arrays, shape (n,)
        Pairs with a NaN are left out.
    alternative : "greater", "less" or "two-sided"
    legacy : bool
        As scipy did until 2024 and papers print: raw differences (0.58 - 0.57 is not 0.53 - 0.52), and the exact
        distribution of untied ranks whatever the ties if no difference is 0, else the normal one.

    Raises
    ------
    InputError
        Shapes differ, a value is infinite, or the alternative is not known.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 1:
        raise InputError(f"wilcoxon: expected two lists of one length, got shapes {a.shape} and {b.shape}")
    if alternative not in ("greater", "less", "two-sided"):
        raise InputError(f'alternative={alternative!r}: expected "greater", "less" or "two-sided"')
    if np.isinf(a).any() or np.isinf(b).any():
        raise InputError("wilcoxon: a value is infinite; make it NaN, or leave the pair out")
    d = a - b if legacy else np.round(a - b, 12)
    d = d[~np.isnan(d)]
    zeros = int((d == 0).sum())
    d = d[d != 0]
    if not len(d):
        return Wilcoxon(0, zeros, 0, np.nan, np.nan, "none")
    ranks = rankdata(np.abs(d))
    _, sizes = np.unique(ranks, return_counts=True)
    statistic = float(ranks[d > 0].sum())
    exact = len(d) <= 50 and not (legacy and zeros)
    if exact:
        weights = np.arange(1, len(d) + 1) * 2 if legacy else (2 * ranks).astype(np.int64)
        at = 2 * int(statistic) if legacy else int(2 * statistic)
        pmf = _sums(weights)
        upper, lower = float(pmf[at:].sum()), float(pmf[: at + 1].sum())
    else:
        n = len(d)
        spread = np.sqrt((n * (n + 1) * (2 * n + 1) - 0.5 * (sizes * (sizes**2 - 1)).sum()) / 24)
        z = (statistic - n * (n + 1) / 4) / spread
        upper, lower = float(norm.sf(z)), float(norm.cdf(z))
    p = {"greater": upper, "less": lower, "two-sided": min(1.0, 2 * min(upper, lower))}[alternative]
    return Wilcoxon(len(d), zeros, int(sizes[sizes > 1].sum()), statistic, min(p, 1.0), "exact" if exact else "normal")


def _sums(weights: Codes) -> Floats:
    """Distribution of the sum of weights that a fair coin each keeps or drops."""
    pmf = np.zeros(int(weights.sum()) + 1)
    pmf[0] = 1
    for weight in weights:
        pmf[weight:] = (pmf[weight:] + pmf[: len(pmf) - weight]) / 2
        pmf[:weight] /= 2
    return pmf


@dataclass(frozen=True)
class Interval:
    """An estimate, the ends of its interval, and the number of values or groups behind it."""

    value: float
    low: float
    high: float
    n: int


def bootstrap(
    values: npt.ArrayLike,
    *,
    statistic: Callable[[Floats], Any] = np.mean,
    groups: npt.ArrayLike | None = None,
    draws: int = 2000,
    level: float = 0.95,
    rng: np.random.Generator,
) -> Interval:
    """Percentile interval of a statistic of values, redrawn with replacement.

    Parameters
    ----------
    values : array, shape (n,) or (n, k)
        One a query, or several for a paired statistic (then `statistic` gets shape (n, k)); rows with a NaN are left
        out.
    statistic : function of an array of values
    groups : int array, shape (n,), optional
        Codes such as the compound or MOA; whole groups are redrawn, since values of one depend on each other.
    draws : int
    level : float
        Between 0 and 1.

    Raises
    ------
    InputError
        A length or the level is wrong.
    """
    table = np.asarray(values, dtype=np.float64)
    if not 0 < level < 1 or draws < 1:
        raise InputError(f"level={level}, draws={draws}: expected a share such as 0.95, and 1 or more")
    codes = np.arange(len(table)) if groups is None else np.asarray(groups)
    if codes.shape != (len(table),):
        raise InputError(f"groups: expected {len(table)} codes, one a value; got shape {codes.shape}")
    known = ~np.isnan(table.reshape(len(table), -1)).any(axis=1)
    table, codes = table[known], np.unique(codes[known], return_inverse=True)[1].reshape(-1)
    if not len(table):
        return Interval(np.nan, np.nan, np.nan, 0)
    order = np.argsort(codes, kind="stable")
    members = np.split(order, np.flatnonzero(np.diff(codes[order])) + 1)
    single = len(members) == len(table)
    found = np.empty(draws)
    for k in range(draws):
        chosen = rng.integers(0, len(members), len(members))
        found[k] = statistic(table[order[chosen] if single else np.concatenate([members[c] for c in chosen])])
    low, high = np.nanquantile(found, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(statistic(table)), float(low), float(high), len(members))


@dataclass(frozen=True)
class Venkatraman:
    """Area between two error curves, and its p by exchanging ranks."""

    statistic: float
    p: float
    n: int


def venkatraman(
    truth: npt.ArrayLike, x: npt.ArrayLike, y: npt.ArrayLike, *, draws: int = 2000, rng: np.random.Generator
) -> Venkatraman:
    """Whether two scores of the same items have the same ROC curve, crossing curves of equal area included.

    At each of n cuts the errors of both are compared; the null exchanges the two ranks of an item by a fair coin.

    Parameters
    ----------
    truth : array of 0 and 1, shape (n,)
    x, y : arrays, shape (n,)
        Scores of the same items, higher for 1. Ties are broken at random.
    draws : int

    Raises
    ------
    InputError
        Lengths differ, a value is missing, or `truth` has one class.

    References
    ----------
    Venkatraman & Begg 1996, doi:10.1093/biomet/83.4.835.
    """
    labels, x, y = np.asarray(truth), np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if not labels.shape == x.shape == y.shape or labels.ndim != 1:
        raise InputError(f"venkatraman: expected three lists of one length, got {labels.shape}, {x.shape}, {y.shape}")
    if not (np.isin(labels, (0, 1)).all() and np.isfinite(x).all() and np.isfinite(y).all()):
        raise InputError("venkatraman: expected truth of 0 and 1 and scores that are finite")
    if len(np.unique(labels)) < 2:
        raise InputError("venkatraman: truth has one class, so there is no ROC curve")
    step = np.where(labels == 1, 1, -1)

    def ranked(scores: Floats) -> Codes:
        order = np.lexsort((rng.random(len(scores)), scores))
        ranks = np.empty(len(scores), dtype=np.int64)
        ranks[order] = np.arange(len(scores))
        return ranks

    def area(r: Codes, s: Codes) -> int:
        # errors at a cut: cases up to it and controls beyond it
        gap = np.zeros(len(step), dtype=np.int64)
        gap[r] += step
        gap[s] -= step
        return int(np.abs(np.cumsum(gap)).sum())

    if np.array_equal(x, y):
        return Venkatraman(0.0, 1.0, len(labels))
    r, s = ranked(x), ranked(y)
    seen = area(r, s)
    reached = 0
    for _ in range(draws):
        swap = rng.random(len(r)) < 0.5
        first, second = np.where(swap, s, r), np.where(swap, r, s)
        reached += area(ranked(first.astype(np.float64)), ranked(second.astype(np.float64))) >= seen
    return Venkatraman(float(seen), (1 + reached) / (1 + draws), len(labels))

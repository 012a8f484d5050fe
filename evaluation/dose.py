"""Responses against concentration: a logistic curve, its EC50 with an interval, and when not to believe it."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.ndimage import minimum_filter
from scipy.optimize import least_squares
from scipy.special import expit
from scipy.stats import t as student

from cytominer_tools.errors import InputError
from evaluation.similarity import Floats

_LN10 = float(np.log(10))
_STEEPEST = 30.0
_TINY = 1e-300
_LEAST_CHANGE = 1e-3  # of the span, for a tenfold EC50: below, the responses do not tell where it is
# where the search begins; the curves between two of these slopes are alike
_SLOPES = np.geomspace(0.1, _STEEPEST, 16)
_MIDDLES = 91
_STARTS = 6
_MOST_STEPS = 100  # a curve with a middle takes about ten


@dataclass(frozen=True)
class DoseResponse:
    """low + (high - low) / (1 + 10 ** (slope (log10 EC50 - log10 c))), fitted by least squares.

    Attributes
    ----------
    low, high, slope : float
        Responses at none and at infinite concentration (low < high; a falling curve has a negative slope).
    ec50, ec50_low, ec50_high : float
        In the unit of the concentrations; NaN where `reason` says why. The ends alone are NaN where other EC50s fit as
        well: after a step between two concentrations, or without more responses than parameters.
    r2 : float
        Share of the variance of the responses that the curve explains.
    n : int
        Responses.
    reason : str
        Empty, or why there is no EC50.
    """

    low: float
    high: float
    slope: float
    ec50: float
    ec50_low: float
    ec50_high: float
    r2: float
    n: int
    reason: str
    _middle: float = np.nan

    def __call__(self, concentrations: npt.ArrayLike) -> Floats:
        """The curve; NaN if nothing was fitted."""
        x = np.log10(np.asarray(concentrations, dtype=np.float64))
        return self.low + (self.high - self.low) * _rise(np.log10(self._middle), self.slope, x)


def fit_dose_response(
    concentrations: npt.ArrayLike,
    responses: npt.ArrayLike,
    *,
    bounds: tuple[float, float] | None = (0.0, 1.0),
    fixed: bool = False,
    least_span: float = 0.2,
    level: float = 0.95,
) -> DoseResponse:
    """Fit a logistic curve of four parameters, or of two.

    Parameters
    ----------
    concentrations : array, shape (n,), positive
        Any order; several responses at one concentration are replicates.
    responses : array, shape (n,)
        NaN are left out.
    bounds : (lowest, highest) of both plateaus, or None
        (0, 1) for probabilities.
    fixed : bool
        Put the plateaus at `bounds` and fit EC50 and slope alone.
    least_span : float
        Where the plateaus differ by less there is no EC50.
    level : float
        Of the interval of EC50 (Student's t on its logarithm, from the curvature of the fit).

    Raises
    ------
    InputError
        Lengths differ, a concentration is not positive, a response is infinite, bounds are not in order, or `fixed`
        without bounds.
    """
    c, y = np.asarray(concentrations, dtype=np.float64), np.asarray(responses, dtype=np.float64)
    if c.shape != y.shape or c.ndim != 1:
        raise InputError(f"expected a response for each concentration, got shapes {c.shape} and {y.shape}")
    if not (np.isfinite(c) & (c > 0)).all():
        raise InputError("concentrations: expected positive numbers; leave controls (0) out")
    if fixed and bounds is None:
        raise InputError("fixed=True puts the plateaus at bounds; give bounds")
    if bounds is not None and not bounds[0] < bounds[1]:
        raise InputError(f"bounds={bounds}: expected the lower one first, such as (0, 1)")
    if np.isinf(y).any():
        raise InputError(
            f"responses: {int(np.isinf(y).sum())} of {len(y)} are infinite; make them NaN or leave them out"
        )
    known = ~np.isnan(y)
    x, y = np.log10(c[known]), y[known]
    order = np.lexsort((y, x))  # sums in one order, whatever that of the rows
    x, y = x[order], y[order]
    n_free = 2 if fixed else 4
    if len(np.unique(x)) < n_free:
        words = f"{len(np.unique(x))} concentrations: at least {n_free} are needed"
        lost = np.nan
        return DoseResponse(lost, lost, lost, lost, lost, lost, lost, len(y), words)
    floor, top = bounds if bounds is not None else (-np.inf, np.inf)
    # in the unit of their range, since the search ends at a size of its steps
    unit = float(np.ptp(y)) or 1.0
    y, floor, top = y / unit, floor / unit, top / unit
    lowest, highest = float(x.min()), float(x.max())
    middle, slope = _search(x, y, floor, top, fixed)
    low, high = _plateaus(_rise(middle, slope, x)[None, :], y, floor, top, fixed)[:, 0].tolist()
    rise = _rise(middle, slope, x)
    fitted = low + (high - low) * rise
    rest = fitted - y
    scatter = float(((y - y.mean()) ** 2).sum())
    r2 = 1 - float((rest**2).sum()) / scatter if scatter > 0 else np.nan
    reason, span = "", unit * min(high - low, float(np.ptp(fitted)))
    if span < least_span:
        reason = f"flat: the curve spans {span:.3g}, less than {least_span:g}"
    elif not lowest <= middle <= highest:
        reason = f"EC50 {10**middle:.3g} is outside the tested {10**lowest:.3g} to {10**highest:.3g}"
    ends = (np.nan, np.nan)
    degrees = len(y) - n_free
    if not reason and degrees > 0:
        jacobian = _slopes_of(rise, middle, slope, x, high - low)
        if not fixed:
            jacobian = np.column_stack([jacobian, np.ones(len(x)), rise])
        # of length 1, so that a column of small numbers is not taken for none
        others = jacobian[:, 1:] / np.maximum(np.linalg.norm(jacobian[:, 1:], axis=0), _TINY)
        # what the curve changes with the EC50 and the other parameters cannot make up for
        alone = float(np.linalg.norm(jacobian[:, 0] - others @ np.linalg.lstsq(others, jacobian[:, 0])[0]))
        if abs(slope) < _STEEPEST - 1e-3 and alone > _LEAST_CHANGE * (high - low):
            half = float(student.ppf((1 + level) / 2, degrees)) * float(np.sqrt((rest**2).sum() / degrees)) / alone
            ends = (float(10 ** np.clip(middle - half, -300, 300)), float(10 ** np.clip(middle + half, -300, 300)))
    ec50 = np.nan if reason else float(10**middle)
    return DoseResponse(unit * low, unit * high, slope, ec50, *ends, r2, len(y), reason, float(10**middle))


def _rise(middle: npt.ArrayLike, slope: npt.ArrayLike, x: Floats) -> Floats:
    """The curve from 0 to 1 (falling: from 1 to 0) at log10 concentrations `x`."""
    return np.asarray(expit(_LN10 * np.asarray(slope) * (x - np.asarray(middle))))


def _slopes_of(rise: Floats, middle: float, slope: float, x: Floats, span: float) -> Floats:
    """Derivatives of the curve by its middle and slope, shape (n, 2)."""
    return (span * _LN10 * rise * (1 - rise))[:, None] * np.column_stack([np.full(len(x), -slope), x - middle])


def _plateaus(rises: Floats, y: Floats, floor: float, top: float, fixed: bool) -> Floats:
    """The plateaus that fit best for each row of `rises`, shape (k, n), with floor <= low <= high <= top: (2, k).

    The curve is linear in them, so that the best free ones have a formula; where those break a bound, the best are on
    an edge of the triangle that the bounds leave.
    """
    if fixed:
        return np.repeat([[floor], [top]], len(rises), axis=1)
    mean, centre = y.mean(), rises.mean(axis=1)
    away = rises - centre[:, None]
    span = (away @ (y - mean)) / np.maximum((away**2).sum(axis=1), _TINY)
    free = np.stack([mean - span * centre, mean + span * (1 - centre)])
    level = np.full(len(rises), np.clip(mean, floor, top))
    edges = [np.stack([level, level])]
    if np.isfinite(floor):
        high = floor + (rises @ (y - floor)) / np.maximum((rises**2).sum(axis=1), _TINY)
        edges.append(np.stack([np.full(len(rises), floor), np.clip(high, floor, top)]))
    if np.isfinite(top):
        low = top - ((1 - rises) @ (top - y)) / np.maximum(((1 - rises) ** 2).sum(axis=1), _TINY)
        edges.append(np.stack([np.clip(low, floor, top), np.full(len(rises), top)]))
    both = np.stack(edges)
    best = np.argmin([_misfit(rises, y, edge) for edge in both], axis=0)
    bound = both[best, :, np.arange(len(rises))].T
    return np.where((floor <= free[0]) & (free[0] <= free[1]) & (free[1] <= top), free, bound)


def _misfit(rises: Floats, y: Floats, plateaus: Floats) -> Floats:
    low, high = plateaus[:, :, None]
    return np.asarray(((low + (high - low) * rises - y) ** 2).sum(axis=1))


def _search(x: Floats, y: Floats, floor: float, top: float, fixed: bool) -> tuple[float, float]:
    """Middle (log10) and slope of the curve that fits best, whatever its plateaus: a grid, then Gauss and Newton's way.

    Only two numbers are searched, since the plateaus of each curve follow from them (variable projection: Golub &
    Pereyra 1973, doi:10.1137/0710036; the derivatives are Kaufman's, doi:10.1007/BF01932995).
    """
    reach = x.max() - x.min()
    edges = np.array([[x.min() - reach, -_STEEPEST], [x.max() + reach, _STEEPEST]])

    def one(p: Floats) -> tuple[Floats, float, float]:
        rise = _rise(p[0], p[1], x)
        low, high = _plateaus(rise[None, :], y, floor, top, fixed)[:, 0].tolist()
        return rise, low, high

    def rest(p: Floats) -> Floats:
        rise, low, high = one(p)
        return low + (high - low) * rise - y

    def derivatives(p: Floats) -> Floats:
        rise, low, high = one(p)
        along = _slopes_of(rise, p[0], p[1], x, high - low)
        free = [column for column, moves in ((1 - rise, floor < low), (rise, high < top)) if moves and not fixed]
        if not free:
            return along
        # what the plateaus make up for is no misfit
        A = np.column_stack(free)
        return along - A @ np.linalg.lstsq(A, along)[0]

    def costs(points: Floats) -> Floats:
        rises = _rise(points[:, :1], points[:, 1:], x)
        return _misfit(rises, y, _plateaus(rises, y, floor, top, fixed))

    middles = np.linspace(edges[0, 0], edges[1, 0], _MIDDLES)
    starts = []
    for sign in (1.0, -1.0):
        grid = np.stack(np.meshgrid(middles, sign * _SLOPES, indexing="ij"), axis=-1)
        cost = costs(grid.reshape(-1, 2)).reshape(grid.shape[:2])
        lowest = cost == minimum_filter(cost, 3, mode="nearest")
        starts.append(np.column_stack([cost[lowest], grid[lowest]]))
    found = np.concatenate(starts)
    found = found[np.argsort(found[:, 0], kind="stable")[:_STARTS]]
    # a steep curve that falls between two concentrations has a narrow valley of its own: look closer before choosing
    near = np.linspace(-1, 1, 7)
    width, ratio = middles[1] - middles[0], _SLOPES[1] / _SLOPES[0]
    for _ in range(3):
        around = [np.stack(np.meshgrid(a + width * near, b * ratio**near, indexing="ij"), -1) for _, a, b in found]
        points = np.stack(around).reshape(len(found), -1, 2).clip(*edges)
        cost = costs(points.reshape(-1, 2)).reshape(points.shape[:2])
        at = np.arange(len(found)), cost.argmin(axis=1)
        found = np.column_stack([cost[at], points[at]])
        width, ratio = width / 3, ratio ** (1 / 3)
    start = np.clip(found[found[:, 0].argmin(), 1:], edges[0] + 1e-9, edges[1] - 1e-9)
    # a step has a valley of equal curves, down which there is no end
    settings = {"xtol": 1e-12, "ftol": 1e-14, "gtol": 1e-15, "max_nfev": _MOST_STEPS}
    middle, slope = least_squares(rest, start, derivatives, bounds=edges, **settings).x
    return float(middle), float(slope)

"""Responses against concentration: a logistic curve, its EC50 with an interval, and when not to believe it."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import least_squares
from scipy.stats import t as student

from cytominer_tools.errors import InputError
from evaluation.similarity import Floats


@dataclass(frozen=True)
class DoseResponse:
    """low + (high - low) / (1 + 10 ** (slope (log10 EC50 - log10 c))), fitted by least squares.

    Attributes
    ----------
    low, high, slope : float
        Responses at none and at infinite concentration (low < high; a falling curve has a negative slope).
    ec50, ec50_low, ec50_high : float
        In the unit of the concentrations; NaN where `reason` says why.
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
        away = np.log10(self._middle) - np.log10(np.asarray(concentrations, dtype=np.float64))
        return self.low + (self.high - self.low) / (1 + 10 ** np.clip(self.slope * away, -300, 300))


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
        Lengths differ, a concentration is not positive, or `fixed` without bounds.
    """
    c, y = np.asarray(concentrations, dtype=np.float64), np.asarray(responses, dtype=np.float64)
    if c.shape != y.shape or c.ndim != 1:
        raise InputError(f"expected a response for each concentration, got shapes {c.shape} and {y.shape}")
    if not (np.isfinite(c) & (c > 0)).all():
        raise InputError("concentrations: expected positive numbers; leave controls (0) out")
    if fixed and bounds is None:
        raise InputError("fixed=True puts the plateaus at bounds; give bounds")
    known = ~np.isnan(y)
    x, y = np.log10(c[known]), y[known]
    n_free = 2 if fixed else 4
    if len(np.unique(x)) < n_free:
        words = f"{len(np.unique(x))} concentrations: at least {n_free} are needed"
        lost = np.nan
        return DoseResponse(lost, lost, lost, lost, lost, lost, lost, len(y), words)
    floor, top = bounds if bounds is not None else (-np.inf, np.inf)
    lowest, highest = float(x.min()), float(x.max())
    reach = highest - lowest

    def curve(p: Floats) -> Floats:
        low, high = (floor, top) if fixed else (p[2], p[2] + p[3])
        return low + (high - low) / (1 + 10 ** np.clip(p[1] * (p[0] - x), -300, 300))

    def misfit(p: Floats) -> Floats:
        # a high plateau beyond its bound costs, since low + span has none of its own
        beyond = max(0.0, p[2] + p[3] - top) * 1e3 if not fixed and np.isfinite(top) else 0.0
        return np.append(curve(p) - y, beyond)

    span = max(float(y.max() - y.min()), 1e-6)
    edges = ([lowest - reach, -30.0], [highest + reach, 30.0])
    if not fixed:
        edges = ([*edges[0], floor, 0.0], [*edges[1], top, top - floor if bounds is not None else np.inf])
    best = None
    for middle in np.linspace(lowest, highest, 4):
        for slope in (1.0, -1.0):
            start = [middle, slope] if fixed else [middle, slope, float(y.min()), span]
            start = np.clip(start, np.array(edges[0]) + 1e-9, np.array(edges[1]) - 1e-9)
            found = least_squares(misfit, start, bounds=edges, xtol=1e-15, ftol=1e-15, gtol=1e-15)
            if best is None or found.cost < best.cost * (1 - 1e-9):
                best = found
    assert best is not None
    p = best.x
    low, high = (floor, top) if fixed else (float(p[2]), float(p[2] + p[3]))
    rest = curve(p) - y
    scatter = float(((y - y.mean()) ** 2).sum())
    r2 = 1 - float((rest**2).sum()) / scatter if scatter > 0 else np.nan
    reason = ""
    fitted = curve(p)
    if high - low < least_span or float(fitted.max() - fitted.min()) < least_span:
        reason = f"flat: the curve spans {min(high - low, float(np.ptp(fitted))):.3g}, less than {least_span:g}"
    elif not lowest <= p[0] <= highest:
        reason = f"EC50 {10 ** p[0]:.3g} is outside the tested {10**lowest:.3g} to {10**highest:.3g}"
    ends = (np.nan, np.nan)
    degrees = len(y) - n_free
    if not reason and degrees > 0:
        jacobian = best.jac[:-1]
        spread = np.sqrt(max(float(np.linalg.pinv(jacobian.T @ jacobian)[0, 0]), 0) * float((rest**2).sum()) / degrees)
        half = float(student.ppf((1 + level) / 2, degrees)) * spread
        ends = (float(10 ** np.clip(p[0] - half, -300, 300)), float(10 ** np.clip(p[0] + half, -300, 300)))
    ec50 = np.nan if reason else float(10 ** p[0])
    return DoseResponse(low, high, float(p[1]), ec50, *ends, r2, len(y), reason, float(10 ** p[0]))

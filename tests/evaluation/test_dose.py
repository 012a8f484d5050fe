import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import curve_fit
from scipy.stats import t

import evaluation.dose
from cytominer_tools.errors import InputError
from evaluation import fit_dose_response

DOSES = np.geomspace(0.01, 100, 9)


def logistic(c, ec50, slope, low=0.0, high=1.0):
    return low + (high - low) / (1 + (ec50 / c) ** slope)


@settings(max_examples=15, deadline=None)
@given(st.floats(0.1, 10), st.floats(0.7, 3), st.floats(0, 0.3), st.floats(0.6, 0.95), st.booleans())
def test_a_curve_without_noise_is_found_again(ec50, slope, low, high, falling):
    slope = -slope if falling else slope
    got = fit_dose_response(DOSES, logistic(DOSES, ec50, slope, low, high))
    assert got.ec50 == pytest.approx(ec50, rel=1e-8)
    assert got.slope == pytest.approx(slope, rel=1e-8)
    assert got([got.ec50])[0] == pytest.approx((got.low + got.high) / 2)
    scaled = fit_dose_response(DOSES * 1000, logistic(DOSES, ec50, slope, low, high))
    assert scaled.ec50 == pytest.approx(1000 * got.ec50, rel=1e-5)


# --- parity: scipy's fit of all four parameters at once
@pytest.mark.parametrize("bounded", [True, False])
def test_fit_and_interval_are_scipys(bounded):
    rng = np.random.default_rng(4)
    doses = np.repeat(DOSES, 2)
    for _ in range(6):
        ec50, slope = 10 ** rng.uniform(-0.7, 0.7), rng.choice([-1, 1]) * rng.uniform(0.8, 2)
        y = logistic(doses, ec50, slope, 0.2, 0.8) + 0.03 * rng.normal(size=18)
        got = fit_dose_response(doses, y, bounds=(0, 1) if bounded else None)
        curve = lambda x, middle, h, low, high: low + (high - low) / (1 + 10 ** (h * (middle - x)))  # noqa: E731
        start = [np.log10(ec50), slope, 0.2, 0.8]
        p, cov = curve_fit(curve, np.log10(doses), y, start, xtol=1e-14, ftol=1e-14, gtol=1e-14)
        assert (got.ec50, got.slope, got.low, got.high) == pytest.approx((10 ** p[0], *p[1:]), rel=1e-6)
        half = t.ppf(0.975, 14) * np.sqrt(cov[0, 0])
        ends = 10 ** np.array([p[0] - half, p[0] + half])
        assert (got.ec50_low, got.ec50_high) == pytest.approx(ends, rel=1e-5)


def test_plateaus_stay_within_bounds():
    """On a bound the best curve is that of a search among curves that keep it."""
    y = logistic(DOSES, 1.0, 1.0, -0.1, 1.1) + 0.02 * np.random.default_rng(0).normal(size=9)
    got = fit_dose_response(DOSES, y)
    assert (got.low, got.high) == (0, 1)
    two = fit_dose_response(DOSES, y, fixed=True)
    assert (got.ec50, got.slope) == pytest.approx((two.ec50, two.slope), rel=1e-7)
    assert np.isfinite(got.ec50_low)


def test_few_curves_are_tried(monkeypatch):
    """Plateaus follow from the middle and the slope, which a grid finds, so that one descent is enough."""
    descents = []
    search = evaluation.dose.least_squares
    monkeypatch.setattr(
        evaluation.dose, "least_squares", lambda *a, **k: descents.append(search(*a, **k)) or descents[-1]
    )
    fit_dose_response(DOSES, logistic(DOSES, 1.0, 1.0, 0.1, 0.9) + 0.05 * np.random.default_rng(1).normal(size=9))
    assert len(descents) == 1
    assert descents[0].nfev < 40


def test_two_parameters():
    got = fit_dose_response(DOSES, logistic(DOSES, 2.0, 1.5), fixed=True)
    assert (got.ec50, got.slope) == (pytest.approx(2, rel=1e-6), pytest.approx(1.5, rel=1e-6))


def test_no_ec50_and_why():
    flat = fit_dose_response(DOSES, np.full(9, 0.4))
    assert np.isnan(flat.ec50)
    assert flat.reason.startswith("flat: the curve spans")
    beyond = fit_dose_response(DOSES, logistic(DOSES, 1e4, 1.0), fixed=True, least_span=0.001)
    assert "is outside the tested 0.01 to 100" in beyond.reason
    assert np.isnan(beyond.ec50_low)
    unknown = fit_dose_response(DOSES, np.full(9, np.nan))
    assert (unknown.n, unknown.reason) == (0, "0 concentrations: at least 4 are needed")
    few = fit_dose_response([1, 1, 2], [0, 0, 1])
    assert few.reason == "2 concentrations: at least 4 are needed"


@pytest.mark.parametrize("noise", [0, 0.02])
@pytest.mark.parametrize("edge", [0.05, 1.0])
def test_a_step_between_two_concentrations_has_no_interval(noise, edge):
    """Every EC50 between them fits as well, so that none is more than a guess."""
    doses = np.repeat(10.0 ** np.arange(-3, 4), 2)
    y = np.where(doses >= edge, 5.0, 1.0) + noise * np.random.default_rng(0).normal(size=14)
    got = fit_dose_response(doses, y, bounds=None)
    below, above = doses[doses < edge].max(), doses[doses >= edge].min()
    assert below < got.ec50 < above
    assert np.isnan([got.ec50_low, got.ec50_high]).all()
    for ec50 in (below * 2, above / 2):
        assert np.ptp(logistic(doses, ec50, 30, 1, 5) - np.where(doses >= edge, 5.0, 1.0)) < 1e-6


@pytest.mark.parametrize("unit", [1e-200, 1e-10, 1e8, 1e200])
@pytest.mark.parametrize("bounds", [None, (0.0, 1.0)])
def test_the_unit_of_responses_does_not_matter(unit, bounds):
    doses = np.repeat(DOSES, 2)
    y = logistic(doses, 1.0, 0.9, 0.1, 0.8) + 0.02 * np.random.default_rng(0).normal(size=18)
    one = fit_dose_response(doses, y, bounds=bounds)
    scaled = None if bounds is None else (bounds[0] * unit, bounds[1] * unit)
    got = fit_dose_response(doses, unit * y, bounds=scaled, least_span=0.2 * unit)
    names = ("ec50", "ec50_low", "ec50_high", "slope", "r2")
    assert [getattr(got, name) for name in names] == pytest.approx([getattr(one, name) for name in names], rel=1e-6)
    assert (got.low / unit, got.high / unit) == pytest.approx((one.low, one.high), rel=1e-6)


@pytest.mark.slow
def test_interval_holds_the_ec50():
    rng = np.random.default_rng(0)
    doses = np.repeat(DOSES, 3)
    inside = []
    for _ in range(60):
        got = fit_dose_response(doses, logistic(doses, 1.0, 1.2, 0.05, 0.9) + 0.04 * rng.normal(size=27))
        inside.append(got.ec50_low <= 1.0 <= got.ec50_high)
    assert 0.85 <= np.mean(inside) <= 1


def test_order_does_not_matter_and_words():
    y = logistic(DOSES, 1.0, 1.0) + 0.02 * np.random.default_rng(0).normal(size=9)
    order = np.random.default_rng(1).permutation(9)
    assert fit_dose_response(DOSES[order], y[order]) == fit_dose_response(DOSES, y)
    with pytest.raises(InputError, match="expected positive numbers; leave controls"):
        fit_dose_response([0, 1], [0, 1])
    with pytest.raises(InputError, match="expected a response for each concentration"):
        fit_dose_response([1], [0, 1])
    with pytest.raises(InputError, match="give bounds"):
        fit_dose_response([1], [1], bounds=None, fixed=True)
    with pytest.raises(InputError, match="responses: 1 of 9 are infinite"):
        fit_dose_response(DOSES, [*y[:8], np.inf])
    with pytest.raises(InputError, match="expected the lower one first"):
        fit_dose_response(DOSES, y, bounds=(1, 0))

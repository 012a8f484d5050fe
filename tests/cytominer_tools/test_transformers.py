import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.utils.estimator_checks import parametrize_with_checks

from cytominer_tools import arrays
from cytominer_tools.errors import InputError, ProfileWarning
from cytominer_tools.transformers import InverseNormalTransform, Robustize, RobustMAD, Spherize, Standardize


def correlated(n, d, seed=0):
    """Rows of a covariance with one strong axis, columns of different scale."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).normal(size=(d, d)) / np.sqrt(d)
    return 3 * rng.normal(size=(n, 1)) + rng.normal(size=(n, d)) @ mixing * np.linspace(1, 9, d) + np.arange(d)


@pytest.mark.filterwarnings("ignore::cytominer_tools.errors.ProfileWarning")
@parametrize_with_checks(
    [
        Spherize(method="ZCA-cor", ridge=1.0),
        Spherize(),
        Spherize(method="PCA", ridge=1e-3),
        Standardize(),
        Robustize(),
        RobustMAD(),
        InverseNormalTransform(random_state=0),
    ]
)
def test_scikit_learn_contract(estimator, check):
    check(estimator)


# --- property: what spherizing is for
@pytest.mark.parametrize("method", ["ZCA", "ZCA-cor"])
@pytest.mark.parametrize("ridge", [0.0, 1e-12])
def test_controls_become_white(method, ridge):
    z = Spherize(method=method, ridge=ridge).fit_transform(correlated(200, 12))
    np.testing.assert_allclose(np.cov(z.T), np.eye(12), atol=1e-6)
    np.testing.assert_allclose(z.mean(axis=0), 0, atol=1e-9)


def test_ridge_shrinks_each_axis_by_its_formula():
    x = correlated(200, 12)
    fitted = Spherize(method="ZCA-cor", ridge=0.5).fit(x)
    expected = fitted.eigenvalues_ / (fitted.eigenvalues_ + 0.5 * fitted.eigenvalues_.mean())
    values = np.linalg.eigvalsh(np.cov(fitted.transform(x).T))
    np.testing.assert_allclose(np.sort(values), np.sort(expected))
    assert fitted.eigenvalues_.mean() == pytest.approx(1)  # of a correlation matrix


@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.floats(0.01, 100), min_size=6, max_size=6),
    st.lists(st.floats(-100, 100), min_size=6, max_size=6),
    st.sampled_from([20, 4]),
)
@pytest.mark.filterwarnings("ignore::cytominer_tools.errors.ProfileWarning")
def test_units_of_measure_cancel(gain, offset, n_controls):
    x = correlated(40, 6)
    control = np.arange(40) < n_controls
    score = Spherize(method="ZCA-cor", ridge=1.0).fit_transform
    np.testing.assert_allclose(score(x * gain + offset, control=control), score(x, control=control), atol=1e-7)


@pytest.mark.parametrize("n_controls", [60, 20])
def test_order_of_rows_and_features_does_not_matter(n_controls):
    x, control = correlated(80, 30), np.arange(80) < n_controls
    rng = np.random.default_rng(1)
    rows, columns = rng.permutation(80), rng.permutation(30)
    z = Spherize(method="ZCA-cor", ridge=1.0).fit_transform(x, control=control)
    shuffled = Spherize(method="ZCA-cor", ridge=1.0).fit_transform(x[rows][:, columns], control=control[rows])
    np.testing.assert_allclose(shuffled, z[rows][:, columns], atol=1e-9)


def cosines(z):
    z = z / np.linalg.norm(z, axis=1, keepdims=True)
    return np.abs(z @ z.T)[~np.eye(len(z), dtype=bool)].mean()


def test_held_out_controls_look_like_fitted_ones():
    """thesis-protocol.md section 2: with more features than controls a tiny ridge makes rows that were not fitted a
    thousand times longer and fitted ones uncorrelated by construction; ridge 1 does neither."""
    x, control = correlated(160, 200), np.arange(160) < 80
    longer, alike = {}, {}
    for ridge in (1.0, 1e-6):
        z = Spherize(method="ZCA-cor", ridge=ridge).fit_transform(x, control=control)
        norms = np.linalg.norm(z, axis=1)
        longer[ridge] = np.median(norms[~control]) / np.median(norms[control])
        alike[ridge] = cosines(z[control]) / cosines(z[~control])
    assert 1 <= longer[1.0] < 2
    assert longer[1e-6] > 100
    assert 1 / 3 < alike[1.0] < 3
    assert alike[1e-6] < 1 / 5


def test_unseen_directions_get_the_floor_and_no_more():
    x, ridge = correlated(20, 50), 0.01
    fitted = Spherize(method="ZCA", ridge=ridge).fit(x)
    unseen = np.linalg.svd(x - x.mean(axis=0))[2][-1]  # a unit vector that no row has a part in
    stretch = np.linalg.norm(fitted.transform(x[:1] + unseen) - fitted.transform(x[:1]))
    assert stretch == pytest.approx(1 / np.sqrt(ridge * np.trace(np.cov(x.T)) / 50))
    assert fitted.gains_.max() <= fitted.rest_gain_


# --- parity: the textbook construction, d x d and eigh
@pytest.mark.parametrize("method", ["ZCA", "ZCA-cor"])
@pytest.mark.parametrize(("n", "d", "ridge"), [(100, 20, 1e-9), (100, 20, 1.0), (30, 45, 1e-2), (30, 45, 1.0)])
def test_matches_the_full_matrix(method, n, d, ridge):
    x, new = correlated(n, d), correlated(9, d, seed=5)
    scale = x.std(axis=0, ddof=1) if method == "ZCA-cor" else np.ones(d)
    covariance = np.cov((x / scale).T)
    values, vectors = np.linalg.eigh(covariance + ridge * np.trace(covariance) / d * np.eye(d))
    expected = ((new - x.mean(axis=0)) / scale) @ (vectors / np.sqrt(values)) @ vectors.T
    result = Spherize(method=method, ridge=ridge).fit(x).transform(new)
    np.testing.assert_allclose(result, expected, rtol=1e-6, atol=1e-6)


# --- types and errors
def test_float32_stays_float32_and_is_learnt_in_float64():
    x = correlated(60, 8).astype("float32")
    fitted = Spherize(method="ZCA-cor", ridge=1.0).fit(x)
    assert fitted.transform(x).dtype == "float32"
    assert {a.dtype.name for a in (fitted.mean_, fitted.scale_, fitted.axes_, fitted.gains_)} == {"float64"}
    np.testing.assert_allclose(
        fitted.transform(x), Spherize(method="ZCA-cor", ridge=1.0).fit_transform(x.astype("float64")), atol=1e-5
    )


def test_only_control_rows_are_learnt_from():
    x, control = correlated(60, 8), np.arange(60) % 3 == 0
    spherize = Spherize(method="ZCA-cor", ridge=1.0)
    of_controls = clone(spherize).fit(x[control])
    np.testing.assert_array_equal(clone(spherize).fit(x, control=control).axes_, of_controls.axes_)
    assert clone(spherize).fit(x, control=pd.Series(control), batch=x, well=x).n_controls_ == 20
    for scaler in (Standardize(), Robustize(), RobustMAD()):
        fitted = clone(scaler).fit(x, control=control, batch=x, well=x)
        np.testing.assert_array_equal(fitted.center_, clone(scaler).fit(x[control]).center_)
        np.testing.assert_array_equal(fitted.scale_, clone(scaler).fit(x[control]).scale_)


@pytest.mark.parametrize(
    ("parameters", "control", "words"),
    [
        ({}, np.arange(40) < 1, "n_samples=1 control rows: spherizing needs at least 2"),
        ({}, np.ones(39, dtype=bool), r"expected 40 booleans, one a row; got bool of shape \(39,\)"),
        ({}, np.ones(40), "expected 40 booleans, one a row; got float64"),
        ({"method": "zca"}, None, "method='zca': expected one of PCA, ZCA, PCA-cor, ZCA-cor"),
        ({"ridge": None, "epsilon": -1}, None, "epsilon=-1: expected a finite number of 0 or more"),
        ({"center": False}, None, "ZCA-cor requires center=True"),
        ({"compat": "1.7"}, None, "compat='1.7': expected 'pycytominer-1.7.1'"),
        ({"ridge": -1}, None, "ridge=-1: expected a finite number of 0 or more"),
        ({"ridge": 0}, np.arange(40) < 20, "span 19 of 30 directions"),
    ],
)
def test_refuses(parameters, control, words):
    with pytest.raises(InputError, match=words):
        Spherize(**({"method": "ZCA-cor", "ridge": 1.0} | parameters)).fit(correlated(40, 30), control=control)


def test_features_constant_on_the_controls_are_named():
    table = pd.DataFrame(correlated(40, 4), columns=["a", "b", "c", "d"])
    table.loc[:19, ["b", "d"]] = 0.1
    control = np.arange(40) < 20
    with pytest.raises(InputError, match=r"20 control rows in 2 feature\(s\): b, d; drop them first"):
        Spherize(method="ZCA-cor", ridge=1.0).fit(table, control=control)
    result = Spherize(method="ZCA", ridge=1.0).fit(table, control=control).transform(table)
    assert np.isfinite(result).all(axis=None)


def test_few_controls_warn_in_one_line():
    with pytest.warns(ProfileWarning, match=r"^[^\n]*15 control rows; under 16[^\n]*$"):
        Spherize(method="ZCA-cor", ridge=1.0).fit(correlated(15, 4))
    Spherize(method="ZCA-cor", ridge=1.0).fit(correlated(16, 4))


def test_names_survive():
    table = pd.DataFrame(correlated(40, 3), columns=["x", "y", "z"])
    fitted = clone(Spherize(method="ZCA-cor", ridge=1.0)).set_output(transform="pandas").fit(table)
    assert list(fitted.transform(table).columns) == ["x", "y", "z"]
    with pytest.raises(ValueError, match="feature names"):
        fitted.transform(table[["y", "x", "z"]])


# --- features one by one: golden, five controls and a treated row, worked out on paper
COLUMN = np.array([[1.0], [2.0], [3.0], [4.0], [900.0], [3.0]])
CONTROL = np.array([True] * 5 + [False])


@pytest.mark.parametrize(
    ("scaler", "center", "scale"),
    [
        (Standardize(), 182.0, np.sqrt(np.mean((np.array([1, 2, 3, 4, 900]) - 182.0) ** 2))),
        (Robustize(), 3.0, 2.0),
        (RobustMAD(epsilon=0), 3.0, 1.4826),
    ],
)
def test_center_and_scale(scaler, center, scale):
    fitted = scaler.fit(COLUMN, control=CONTROL)
    np.testing.assert_allclose([fitted.center_[0], fitted.scale_[0]], [center, scale])
    np.testing.assert_allclose(fitted.transform(COLUMN), (COLUMN - center) / scale)


def test_missing_values_are_left_out_and_stay():
    holed = np.vstack([COLUMN, [[np.nan]]])
    for scaler in (Standardize(), Robustize(), RobustMAD()):
        np.testing.assert_array_equal(
            clone(scaler).fit(holed, control=np.append(CONTROL, True)).transform(holed)[:-1],
            clone(scaler).fit(COLUMN, control=CONTROL).transform(COLUMN),
        )
        assert np.isnan(clone(scaler).fit_transform(holed)[-1, 0])
        assert np.isnan(clone(scaler).fit(np.full((4, 1), np.nan)).transform(COLUMN)).all()


def test_policies_for_a_mad_of_zero():
    x = pd.DataFrame({"flat": [5.0, 5, 5, 6], "fine": [1.0, 2, 3, 4]}, index=list("abcd"))
    expected = {"nan": [0, 0, 0, np.nan], "zero": [0, 0, 0, 0], "epsilon": [0, 0, 0, 1e18]}
    for policy, values in expected.items():
        result = RobustMAD(zero_mad=policy).fit_transform(x)
        np.testing.assert_allclose(result["flat"], values)
        np.testing.assert_allclose(result["fine"], (x["fine"] - 2.5) / 1.4826)
        assert list(result.index) == list("abcd")
    with pytest.raises(InputError, match=r"MAD of 0 among 4 control rows in 1 feature\(s\): flat; drop them first"):
        RobustMAD(zero_mad="error").fit(x)
    with pytest.raises(InputError, match="zero_mad='drop': expected one of nan, zero, error, epsilon"):
        RobustMAD(zero_mad="drop").fit(x)
    np.testing.assert_allclose(RobustMAD(epsilon=2.0).fit_transform(x)["flat"], [0, 0, 0, 0.5])


def test_epsilon_mode_warns_where_features_outnumber_controls():
    x = correlated(20, 30)
    with pytest.warns(ProfileWarning, match=r"20 control rows span 19 of 30 directions; .* use Spherize\(ridge=1\)"):
        fitted = Spherize(method="ZCA-cor").fit(x)
    assert fitted.rest_gain_ == pytest.approx(fitted.gains_.max())


def test_principal_components():
    x = correlated(200, 6)
    table = pd.DataFrame(x, columns=list("abcdef"), index=np.arange(200) + 5)
    result = Spherize(method="PCA-cor").fit_transform(table)
    assert list(result.columns) == [f"PC{i}" for i in range(1, 7)]
    assert result.index.equals(table.index)
    np.testing.assert_allclose(np.cov(result.T), np.eye(6), atol=1e-5)
    axes = Spherize(method="PCA-cor").fit(table).axes_
    assert (axes[np.arange(6), np.abs(axes).argmax(axis=1)] > 0).all()


def test_quantiles_of_many_rows_are_the_same_each_time():
    x = np.random.default_rng(0).normal(size=(10_500, 1))
    scores = [InverseNormalTransform(random_state=0).fit_transform(x) for _ in range(2)]
    np.testing.assert_array_equal(*scores)
    assert InverseNormalTransform().fit(x[:50]).n_quantiles_ == 50


@pytest.mark.parametrize("shape", [(4, 3), (3, 2), (4, 2), (2, 4), (3, 3)])
def test_components_of_a_few_rows_are_those_of_an_svd(shape):
    rng = np.random.default_rng(0)
    rows = rng.normal(size=shape)
    rows[:, -1] = rows[:, 0]  # a feature that depends on another
    rows -= rows.mean(axis=0)
    values, axes = arrays.principal_axes(rows)
    expected = np.linalg.svd(rows, compute_uv=False) ** 2 / (len(rows) - 1)
    np.testing.assert_allclose(values, expected[: len(values)], rtol=1e-6)
    assert (expected[len(values) :] < 1e-12).all()
    np.testing.assert_allclose(axes @ axes.T, np.eye(len(axes)), atol=1e-9)

"""Corrections of batches, positions and counts, against independent implementations and by what defines them."""

import warnings

import numpy as np
import pandas as pd
import pytest
from scipy.linalg import fractional_matrix_power
from sklearn.base import clone
from sklearn.utils.estimator_checks import parametrize_with_checks

from cytominer_tools.batches import TVN, ComBat, Harmony, PerBatch
from cytominer_tools.errors import InputError
from cytominer_tools.positions import CellCountRegression, MedianPolish, WellPosition
from cytominer_tools.transformers import PCA, InverseNormal, RobustMAD, Spherize, Standardize

pytestmark = pytest.mark.filterwarnings("ignore:spherizing learns from")


@parametrize_with_checks(
    [
        InverseNormal(),
        PCA(),
        PerBatch(Standardize()),
        PerBatch(Spherize(ridge=1.0)),
        TVN(),
        ComBat(),
        Harmony(),
        WellPosition(),
        CellCountRegression(),
        MedianPolish(),
    ]
)
def test_scikit_learn_contract(estimator, check):
    check(estimator)


def shifted(n=240, d=12, batches=3, seed=0):
    """Rows of two clusters; each batch has its own shift and spread. Every fourth row is a control."""
    rng = np.random.default_rng(seed)
    batch = np.arange(n) % batches
    cluster = rng.integers(0, 2, n)
    control = np.arange(n) // batches % 4 == 0
    cluster[control] = 0
    x = rng.normal(size=(n, d)) + 3 * cluster[:, None] * rng.normal(size=d)
    x = x * rng.uniform(0.5, 2, (batches, d))[batch] + 4 * rng.normal(size=(batches, d))[batch]
    return x, np.array(["b1", "b2", "b3", "b4"])[batch], control, cluster


# --- parity with independent implementations
def test_combat_is_neurocombat():
    combat = pytest.importorskip("neuroCombat").neuroCombat
    x, batch, _, _ = shifted()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = combat(x.T, pd.DataFrame({"batch": pd.factorize(batch)[0] + 1}), "batch")["data"].T
    np.testing.assert_allclose(ComBat().fit_transform(x, batch=batch), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("sizes", [(1000, 1000, 1000), (1000, 600, 400)])
def test_combat_is_inmooses(sizes):
    """The one that JUMP's recipes call. Its variances divide by n, R's and neuroCombat's by n - 1: many rows agree."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        combat = pytest.importorskip("inmoose.pycombat", reason="inmoose is not installed").pycombat_norm
        x, batch, _, _ = shifted(3000, 200)
        chosen = np.concatenate([np.flatnonzero(batch == f"b{i}")[:n] for i, n in enumerate(sizes, 1)])
        x, batch = x[chosen], batch[chosen]
        expected = np.asarray(combat(x.T, pd.factorize(batch)[0])).T
    found = ComBat().fit_transform(x, batch=batch)
    assert np.abs(found - expected).max() < 2e-3 * np.abs(found - x).max()


def test_tvn_is_efaar():
    """As published by EFAAR, with division by n - 1 throughout."""
    x, batch, control, _ = shifted()

    def scale(rows, which):
        reference = rows[which]
        return (rows - reference.mean(axis=0)) / reference.std(axis=0, ddof=1)

    z = (x - x[control].mean(axis=0)) / x[control].std(axis=0)
    _, vectors = np.linalg.eigh(np.cov(z[control].T))
    z = z @ vectors[:, ::-1]
    expected = np.empty_like(z)
    for name in np.unique(batch):
        rows = batch == name
        part = scale(z[rows], control[rows])
        expected[rows] = part @ fractional_matrix_power(np.cov(part[control[rows]].T) + 0.5 * np.eye(12), -0.5)
    found = TVN().fit_transform(x, batch=batch, control=control)
    np.testing.assert_allclose(np.abs(found), np.abs(expected), atol=1e-8)  # the sign of a component is anybody's


def test_harmony_agrees_with_harmonypy():
    harmonypy = pytest.importorskip("harmonypy")
    rng = np.random.default_rng(0)
    batch, cluster = np.arange(600) % 3, rng.integers(0, 5, 600)
    x = rng.normal(size=(600, 8)) + 3 * rng.normal(size=(5, 8))[cluster] + rng.normal(size=(3, 8))[batch]
    # it stops at the first step that does not improve, unless told not to
    theirs = harmonypy.run_harmony(
        x, pd.DataFrame({"b": batch.astype(str)}), ["b"], epsilon_harmony=-np.inf, verbose=False
    )
    theirs = np.asarray(theirs.Z_corr)
    theirs = theirs if len(theirs) == 600 else theirs.T
    moved = Harmony().fit_transform(x, batch=batch) - x
    assert np.corrcoef(moved.ravel(), (theirs - x).ravel())[0, 1] > 0.99


def test_median_polish_is_tukeys():
    """The algorithm in words, on one plate with a hole: medians of rows, then of columns, until it settles."""
    rng = np.random.default_rng(3)
    wells = [f"{row}{column:02d}" for row in "ABCDEF" for column in range(1, 9) if (row, column) != ("C", 4)]
    x = rng.normal(size=(len(wells), 2)) + 3 * np.array([ord(w[0]) for w in wells])[:, None]
    found = MedianPolish().fit_transform(x, well=wells)
    grid = np.full((6, 8), np.nan)
    for well, value in zip(wells, x[:, 1], strict=True):
        grid[ord(well[0]) - 65, int(well[1:]) - 1] = value
    for _ in range(10):
        grid -= np.nanmedian(grid, axis=1, keepdims=True)
        grid -= np.nanmedian(grid, axis=0, keepdims=True)
    rows, columns = [ord(w[0]) - 65 for w in wells], [int(w[1:]) - 1 for w in wells]
    np.testing.assert_allclose(found[:, 1], grid[rows, columns], atol=1e-12)
    np.testing.assert_allclose([np.median(found[np.array(rows) == r], axis=0) for r in range(6)], 0, atol=0.1)


# --- properties
def test_each_batch_is_scaled_by_its_own_controls():
    x, batch, control, _ = shifted()
    found = PerBatch(Standardize()).fit(x, batch=batch, control=control).transform(x, batch=batch)
    for name in np.unique(batch):
        rows = (batch == name) & control
        np.testing.assert_allclose(found[rows].mean(axis=0), 0, atol=1e-12)
        np.testing.assert_allclose(found[rows].std(axis=0), 1)


def test_combat_by_controls_keeps_what_treatments_share():
    """One cluster fills a batch: ComBat over all rows takes it for the batch, over the controls it does not."""
    rng = np.random.default_rng(0)
    batch, control = np.repeat(["a", "b"], 60), np.tile([True, False], 60)
    effect = 5.0 * ((batch == "b") & ~control)[:, None]
    x = rng.normal(size=(120, 8)) + effect + 2.0 * (batch == "b")[:, None]
    treated = (batch == "b") & ~control
    by_all, by_controls = (
        ComBat().fit_transform(x, batch=batch),
        ComBat().fit_transform(x, batch=batch, control=control),
    )
    assert by_controls[treated].mean() - by_controls[control].mean() == pytest.approx(5, abs=0.5)
    assert by_all[treated].mean() - by_all[control].mean() < 4


@pytest.mark.parametrize("transformer", [TVN(ridge=0.1), ComBat(), Harmony(), PerBatch(RobustMAD())])
def test_a_batch_can_no_longer_be_told(transformer):
    x, batch, control, cluster = shifted(600, 8)

    def separation(rows, labels):
        total = np.square(rows - rows.mean(axis=0)).sum()
        means = pd.DataFrame(rows).groupby(labels).transform("mean").to_numpy()
        return np.square(means - rows.mean(axis=0)).sum() / total

    found = transformer.fit_transform(x, batch=batch, control=control)
    assert separation(x, batch) > 0.5
    assert separation(found[control], batch[control]) < 0.2 * separation(x[control], batch[control])
    assert separation(found, cluster) > separation(x, cluster)


def test_the_mean_of_every_position_is_taken_out():
    rng = np.random.default_rng(0)
    wells = np.tile(["A01", "A02", "B01"], 4)
    found = WellPosition().fit_transform(rng.normal(size=(12, 5)), well=wells)
    np.testing.assert_allclose(pd.DataFrame(found).groupby(wells).mean(), 0, atol=1e-12)


def test_nothing_is_left_that_follows_the_count():
    rng = np.random.default_rng(0)
    count = rng.integers(10, 500, 60).astype(float)
    x = np.column_stack([rng.normal(size=60) + 0.01 * count, count, np.full(60, 3.0)])
    found = CellCountRegression(count=1).fit_transform(x)
    np.testing.assert_array_equal(found[:, 1], count)
    assert abs(np.corrcoef(found[:, 0], count)[0, 1]) < 1e-9
    np.testing.assert_allclose(found[:, 2], 0, atol=1e-9)


def test_components_keep_distances_and_are_not_correlated():
    x = shifted()[0]
    found = PCA().fit_transform(x)
    np.testing.assert_allclose(np.linalg.norm(found[0] - found[1]), np.linalg.norm(x[0] - x[1]))
    covariance = np.cov(found.T)
    np.testing.assert_allclose(covariance, np.diag(np.diag(covariance)), atol=1e-8)
    np.testing.assert_allclose(PCA(3).fit_transform(x), found[:, :3])


def test_combat_where_a_batch_has_one_value_of_a_feature():
    x, batch, _, _ = shifted()
    x[batch == "b2", 3] = 7.0
    found = ComBat().fit_transform(x, batch=batch)  # without a warning of numpy's
    assert np.isfinite(found).all()
    assert np.ptp(found[batch == "b2", 3]) < 1e-9
    others = np.arange(12) != 3
    means = pd.DataFrame(found[:, others]).groupby(batch).mean()
    assert np.ptp(means, axis=0).max() < 0.5  # the other features are corrected as ever


# --- golden
def test_ranks_worked_by_hand():
    fitted = InverseNormal().fit([[1.0], [2.0], [2.0], [9.0]])
    found = fitted.transform([[1.0], [2.0], [5.0], [100.0]])  # ranks 1, 2.5, 3.5, 4.5 of 4
    from scipy.stats import norm

    np.testing.assert_allclose(found[:, 0], norm.ppf(np.array([0.625, 2.125, 3.125, 4.125]) / 4.25))


def test_polished_by_hand():
    x = np.array([[1.0], [2.0], [11.0], [12.0]])  # 1 + 10 by row B, 1 by column 2
    fitted = MedianPolish().fit(x, well=["A01", "A02", "B01", "B02"])
    np.testing.assert_allclose(fitted.transform(x, well=["A01", "A02", "B01", "B02"]), 0)
    assert fitted.overall_.item() == 6.5
    np.testing.assert_allclose(fitted.rows_[0, :, 0], [-5, 5])
    np.testing.assert_allclose(fitted.columns_[0, :, 0], [-0.5, 0.5])


# --- what cannot be done
def test_one_label_a_row():
    x, _, _, _ = shifted()
    with pytest.raises(InputError, match="well: expected 240 names, one a row; got 3"):
        WellPosition().fit(x, well=["A01", "A02", "A03"])


def test_a_scope_of_a_transformer_that_makes_fewer_features():
    x, batch, _, _ = shifted()
    with pytest.raises(
        InputError, match="PCA makes 5 features of 12 in batch b1; take one that makes as many as it gets"
    ):
        PerBatch(PCA(5)).fit_transform(x, batch=batch)


@pytest.mark.parametrize("transformer", [PerBatch(Standardize()), TVN(), MedianPolish()])
def test_an_unseen_batch(transformer):
    x, batch, control, _ = shifted()
    fitted = clone(transformer).fit(x, batch=batch, control=control)
    with pytest.raises(InputError, match="batch b4 was not there when this was fitted; it knows b1, b2, b3"):
        fitted.transform(x[:2], batch=["b1", "b4"])


@pytest.mark.parametrize(
    ("fit", "words"),
    [
        (lambda x: PerBatch(Standardize()).fit(x, batch=["a", None, "a", "b"]), "batch: 1 of 4 rows have none"),
        (lambda x: PerBatch(Standardize()).fit(x, batch=["a"]), "batch: expected 4 labels, one a row; got 1"),
        (
            lambda x: PerBatch(Standardize()).fit(x, batch=list("aabb"), control=np.array([True, True, False, False])),
            "n_samples=0 control rows in batch b",
        ),
        (lambda x: ComBat().fit(x, batch=list("aaab")), r"batch b has 1 control row\(s\); ComBat needs 2"),
        (lambda x: ComBat().fit(x[:, :1], batch=list("aabb")), "n_features=1: ComBat learns from many features"),
        (lambda x: Harmony(9).fit(x, batch=list("aabb")), "n_clusters=9: there are 4 rows"),
        (lambda x: PCA(0).fit(x), "n_components=0: expected 1 or more"),
        (lambda x: CellCountRegression(7).fit(x), "count=7: X has columns 0 to 2"),
        (lambda x: MedianPolish().fit(x, well=["A1", "A2", "B1", "x"]), "'x' is not a well"),
        (
            lambda x: MedianPolish().fit(x, well=["A1", "A2", "B1", "B2"]).transform(x[:1], well=["C1"]),
            "batch all, well C1: its row or column was not there",
        ),
        (
            lambda x: WellPosition().fit(x, well=["A1", "A2", "B1", "B2"]).transform(x[:1], well=["C1"]),
            "well C1 was not there when this was fitted",
        ),
    ],
)
def test_errors_say_what_to_do(fit, words):
    with pytest.raises(InputError, match=words):
        fit(np.random.default_rng(0).normal(size=(4, 3)))

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from cytominer_tools.errors import InputError
from evaluation import component_association, group_association

FEATURES = [f"f{k}" for k in range(20)]


def wells(shift=0.0, n=120, seed=0, width=20):
    rng = np.random.default_rng(seed)
    batch = np.arange(n) % 4
    X = rng.normal(size=(n, width)) + shift * rng.normal(size=(4, width))[batch]
    names = [f"{'ABCDEFGH'[i // 12 % 8]}{i % 12 + 1:02d}" for i in range(n)]
    return pd.DataFrame(X).add_prefix("f").assign(Metadata_Batch=batch, Metadata_Well=names)


def test_a_batch_effect_is_seen_and_its_absence_too():
    seen = group_association(wells(1.5), ["Metadata_Batch"], percentile=95).iloc[0]
    assert seen["top_share"] > 0.8 > seen["expected_share"] + 0.4
    assert seen["nearest_share"] > 0.9
    assert (seen["n"], seen["pairs"], seen["same"]) == (120, 7140, 4 * 435)
    assert seen["top_same"] + seen["top_other"] == 357
    none = group_association(wells(), ["Metadata_Batch", "well row", "well column"], percentile=95)
    np.testing.assert_allclose(none["top_share"], none["expected_share"], atol=0.08)
    np.testing.assert_allclose(none["nearest_share"], none["nearest_expected"], atol=0.12)


def whiten(train):
    center = train.mean(axis=0)
    values, vectors = np.linalg.eigh(np.cov(train.T))
    weights = vectors / np.sqrt(np.maximum(values, 1e-6))
    return lambda X: (X - center) @ weights @ vectors.T


def test_a_correction_is_judged_on_wells_it_has_not_seen():
    # more features than wells: whitening makes the wells it was fitted on equally unlike each other
    table = wells(0.5, n=120, width=200)
    names = [c for c in table if c.startswith("f")]
    fitted = table.copy()
    fitted[names] = whiten(table[names].to_numpy())(table[names].to_numpy())
    naive = group_association(fitted, ["Metadata_Batch"], features=names, percentile=95).iloc[0]
    X = table[names].to_numpy()
    unseen = lambda part: whiten(np.delete(X, part, axis=0))(X[part])  # noqa: E731
    fair = group_association(table, ["Metadata_Batch"], features=names, percentile=95, held_out=unseen, folds=4).iloc[0]
    assert abs(naive["top_share"] - naive["expected_share"]) < 0.1
    assert fair["top_share"] > fair["expected_share"] + 0.05
    assert fair["folds"] == 4
    again = group_association(table, ["Metadata_Batch"], features=names, percentile=95, held_out=unseen, folds=4)
    assert fair.equals(again.iloc[0])


def test_folds_do_not_depend_on_the_order_of_rows():
    table = wells(0.5)
    order = np.random.default_rng(1).permutation(120)
    found, asked = [], []
    for one in (table, table.iloc[order]):
        X = one[FEATURES].to_numpy()
        held_out = lambda part, X=X: asked.append(part) or X[part]  # noqa: E731
        found.append(group_association(one, ["Metadata_Batch", "well row"], percentile=95, held_out=held_out))
    pd.testing.assert_frame_equal(found[1], found[0], check_exact=True)
    assert all((np.diff(part) > 0).all() for part in asked)


def test_one_batch_is_nan_with_the_reason():
    got = group_association(wells().assign(Metadata_Batch=1), ["Metadata_Batch"]).iloc[0]
    assert np.isnan(got["odds_ratio"])
    assert got["reason"] == "all wells share one"


def test_components_are_an_analysis_of_variance():
    table = wells(1.0)
    got = component_association(table, ["Metadata_Batch"], components=20)
    assert got["explained"].sum() == pytest.approx(1)
    X = table[FEATURES].to_numpy() - table[FEATURES].to_numpy().mean(axis=0)
    score = (X @ np.linalg.svd(X, full_matrices=False)[2].T)[:, 0]
    ratio, p = stats.f_oneway(*[score[table["Metadata_Batch"] == b] for b in range(4)])
    assert got["p"][0] == pytest.approx(p, rel=1e-6)
    assert got["r2"][0] == pytest.approx(ratio * 3 / (ratio * 3 + 116))
    random = component_association(wells(), ["Metadata_Batch"])
    assert random["r2"].mean() == pytest.approx(3 / 119, abs=0.03)
    assert component_association(wells().assign(Metadata_Batch=1), ["Metadata_Batch"])["r2"].isna().all()


def test_a_column_without_values():
    """Such as the batch of a study that gives none: NaN with the reason, and no warning of numpy's."""
    unknown = wells().assign(Metadata_Batch=np.nan)
    got = group_association(unknown, ["Metadata_Batch"]).iloc[0]
    assert np.isnan([got["odds_ratio"], got["nearest_share"], got["nearest_expected"]]).all()
    assert got["reason"] == "no well has one"
    found = component_association(unknown, ["Metadata_Batch"])
    assert found[["r2", "p", "expected_r2"]].isna().all(axis=None)
    assert found["n"].eq(0).all()


def test_a_component_that_only_other_wells_have():
    table = wells(n=40).assign(**dict.fromkeys(FEATURES[1:], 0.0))
    table.loc[:30, "f0"] = 0.0
    table["Metadata_Batch"] = np.where(table.index <= 30, table.index % 2, np.nan)
    assert component_association(table, ["Metadata_Batch"])["r2"].isna().all()


def test_words():
    with pytest.raises(InputError, match="by: no column 'Metadata_Plate'"):
        group_association(wells(), ["Metadata_Plate"])
    with pytest.raises(InputError, match="there are no controls"):
        group_association(wells().iloc[:0], ["Metadata_Batch"])
    with pytest.raises(InputError, match="folds=60: expected 2 to 40"):
        group_association(wells(), ["Metadata_Batch"], held_out=lambda part: whiten, folds=60)
    with pytest.raises(InputError, match="all profiles are equal"):
        component_association(wells().assign(**dict.fromkeys(FEATURES, 1.0)), ["Metadata_Batch"])

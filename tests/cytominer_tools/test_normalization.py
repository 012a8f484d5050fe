import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cytominer_tools import consensus, load_transformer, normalize, save_transformer, spherize
from cytominer_tools.errors import InputError, ProfileWarning

DATA = Path(os.environ.get("DEEPPROFILE_DATA", Path(__file__).parents[3] / "shared" / "data"))


def wells(n=60, d=8, seed=0):
    rng = np.random.default_rng(seed)
    table = pd.DataFrame(rng.normal(size=(n, d)) @ rng.normal(size=(d, d)), columns=[f"net_{i}" for i in range(d)])
    table.insert(0, "Metadata_Plate", "p1")
    table["Metadata_Compound"] = np.where(np.arange(n) % 2, "dmso", "taxol")
    table["note"] = "text"
    return table.set_index(np.arange(n)[::-1] * 10)


# --- spherize
def test_rows_columns_and_names_stay():
    table = wells()
    result = spherize(table, control=table["Metadata_Compound"] == "dmso").profiles
    assert list(result.columns) == list(table.columns)
    assert result.index.equals(table.index)
    others = ["Metadata_Plate", "Metadata_Compound", "note"]
    pd.testing.assert_frame_equal(result[others], table[others])


def test_controls_become_white_and_float32_stays():
    table = wells(400)
    table = table.astype({f"net_{i}": "float32" for i in range(8)})
    control = table["Metadata_Compound"] == "dmso"
    result = spherize(table, control=control, ridge=1e-9).profiles.filter(like="net_")
    np.testing.assert_allclose(np.cov(result[control].T), np.eye(8), atol=1e-4)
    assert set(result.dtypes) == {np.dtype("float32")}


def test_features_without_variance_on_controls_are_dropped():
    table = wells()
    control = table["Metadata_Compound"] == "dmso"
    table.loc[control, "net_2"] = 0.1  # varies, but not among the controls
    table["net_5"] = 7.0
    result = spherize(table, control=control)
    assert result.dropped == ["net_2", "net_5"]
    assert list(result.profiles.columns) == [c for c in table.columns if c not in ("net_2", "net_5")]
    without = spherize(table.drop(columns=["net_2", "net_5"]), control=control)
    pd.testing.assert_frame_equal(result.profiles, without.profiles)
    assert (without.dropped, without.transformer.n_controls_) == ([], 30)


@pytest.mark.parametrize("gain", [1e-9, 1e9])
def test_low_variance_does_not_depend_on_the_unit(gain):
    table = wells()
    table["net_3"] *= gain
    assert spherize(table, control=table["Metadata_Compound"] == "dmso").dropped == []


def two_plates():
    table = pd.concat([wells(80), wells(80, seed=1).assign(Metadata_Plate="p2")], ignore_index=True)
    return table.sample(frac=1, random_state=0), "Metadata_Compound == 'dmso'"


def test_spherized_plate_by_plate():
    table, controls = two_plates()
    result = spherize(table, controls, by="Metadata_Plate")
    assert result.profiles.index.equals(table.index)
    for plate, part in table.groupby("Metadata_Plate"):
        rows = table["Metadata_Plate"] == plate
        pd.testing.assert_frame_equal(result.profiles[rows], spherize(part, controls).profiles)
    both = table.assign(Metadata_Batch=table.pop("Metadata_Plate").str[1].astype(int), Metadata_Run="r")
    other = spherize(both, controls, by=["Metadata_Batch", "Metadata_Run"])
    pd.testing.assert_frame_equal(other.profiles.filter(like="net_"), result.profiles.filter(like="net_"))


def test_what_was_learnt_of_each_plate_is_kept(tmp_path):
    table, controls = two_plates()
    result = spherize(table, controls, by="Metadata_Plate")
    loaded = load_transformer(save_transformer(result.transformer, tmp_path / "fitted.npz"))
    again = loaded.transform(table.filter(like="net_"), batch=table["Metadata_Plate"])
    np.testing.assert_array_equal(again, result.profiles.filter(like="net_"))


def test_a_feature_without_variance_in_one_scope_is_dropped_from_all():
    table, controls = two_plates()
    table.loc[table["Metadata_Plate"] == "p2", "net_3"] = 1.0
    result = spherize(table, controls, by="Metadata_Plate")
    assert result.dropped == ["net_3"]
    assert spherize(table, controls).dropped == []
    assert np.isfinite(result.profiles.filter(like="net_")).all(axis=None)


def test_scopes_that_have_too_little():
    table, controls = two_plates()
    few = table[(table["Metadata_Plate"] == "p1") | (table["Metadata_Compound"] != "dmso")]
    with pytest.raises(
        InputError, match=r"the group Metadata_Plate=p2 has 0 control row\(s\); spherizing needs 2 in each"
    ):
        spherize(few, controls, by="Metadata_Plate")
    with pytest.raises(InputError, match="no column 'Metadata_Batch'"):
        spherize(table, controls, by="Metadata_Batch")
    with pytest.raises(InputError, match="batch: 1 of 160 rows have none; leave them out or name one"):
        spherize(table.assign(Metadata_Plate=[None, *table["Metadata_Plate"][1:]]), controls, by="Metadata_Plate")
    some = table.groupby(["Metadata_Plate", "Metadata_Compound"]).head(9)
    with pytest.warns(ProfileWarning, match="spherizing learns from 9 control rows; under 16 it follows their noise"):
        spherize(some, controls, by="Metadata_Plate")
    spherize(some, controls)  # 18 of both are enough


def test_missing_values_are_named():
    table = wells()
    table.iloc[3, 2], table.iloc[[3, 4], 4] = np.nan, np.inf
    with pytest.raises(InputError, match=r"in 2 feature\(s\), 2 of 60 rows: net_1, net_3; drop"):
        spherize(table, control=table["Metadata_Compound"] == "dmso")


def test_controls_that_do_not_vary():
    table = wells()
    table.loc[table["Metadata_Compound"] == "dmso", [f"net_{i}" for i in range(8)]] = 1.5
    with pytest.raises(InputError, match="none of 8 features varies among 30 control rows"):
        spherize(table, control=table["Metadata_Compound"] == "dmso")


def test_control_must_be_booleans_of_the_same_index():
    table = wells()
    with pytest.raises(InputError, match=r"Metadata_Compound: expected booleans, some True; got \['taxol', 'dmso'\]"):
        spherize(table, control=table["Metadata_Compound"])
    with pytest.raises(InputError, match="Metadata_Compound: expected booleans, some True"):
        spherize(table, control=table["Metadata_Compound"] == "none")
    with pytest.raises(InputError, match="its index is not that of the profiles"):
        spherize(table, control=(table["Metadata_Compound"] == "dmso").reset_index(drop=True))


def test_few_controls_warn():
    table = wells()
    control = pd.Series(np.arange(60) < 5, index=table.index, name="control")
    with pytest.warns(ProfileWarning, match="5 control rows"):
        spherize(table, control=control)


# --- real wells: what the default ridge rests on (shared/reference/findings.md)
def nsc_accuracy(profiles):
    """Nearest neighbour by cosine, not of the same compound: how often it has the same MOA."""
    x = profiles.drop(columns=[c for c in profiles.columns if c.startswith("Metadata_")]).to_numpy(dtype="float64")
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    compound, moa = profiles["Metadata_Compound"].to_numpy(), profiles["Metadata_moa"].to_numpy()
    similarity = np.where(compound[:, None] == compound, -np.inf, x @ x.T)
    return (moa[similarity.argmax(axis=1)] == moa).mean()


@pytest.mark.data
@pytest.mark.parametrize(
    ("ridge", "operation", "accuracy"), [(1.0, "mean", 0.932), (1.0, "median", 0.932), (1e-6, "mean", 0.845)]
)
def test_moa_accuracy_on_bbbc021(ridge, operation, accuracy):
    table = pd.read_parquet(DATA / "bbbc021_profiles" / "bbbc021_wells_raw.parquet")
    control = table["Metadata_Compound"] == "DMSO"
    result = spherize(table, control=control, ridge=ridge)
    treated = result.profiles[~control]
    keys = ["Metadata_Compound", "Metadata_Concentration"]
    treatments = consensus(treated, keys, operation, keep=["Metadata_moa"])
    assert (len(table), control.sum(), len(treatments), len(result.dropped)) == (632, 330, 103, 0)
    # one treatment of 103 is .0097; another BLAS may settle a near tie otherwise
    assert nsc_accuracy(treatments) == pytest.approx(accuracy, abs=0.011)


def test_the_peers_epsilon_warns_where_features_outnumber_controls():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(40, 5)) @ rng.normal(size=(5, 30)) + 1e-3 * rng.normal(size=(40, 30))
    rows[20:] += 0.5 * rng.normal(size=30)  # an effect where controls hardly vary
    table = pd.DataFrame(rows, columns=[f"Cells_{i}" for i in range(30)])
    table.insert(0, "Metadata_Compound", ["DMSO"] * 20 + ["x"] * 20)
    with pytest.warns(ProfileWarning, match=r"20 control rows span 19 of 30 directions; the others are stretched"):
        peer = normalize(table, samples="Metadata_Compound == 'DMSO'", method="spherize")
    ours = spherize(table, "Metadata_Compound == 'DMSO'").profiles  # which has nothing to warn of

    def longer(found):
        norms = np.linalg.norm(found.filter(like="Cells_"), axis=1)
        return np.median(norms[20:]) / np.median(norms[:20])

    assert longer(ours) < 3  # rows that were not fitted, over those that were
    assert longer(peer) > 100

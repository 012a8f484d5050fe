import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cytominer_tools import aggregate, consensus
from cytominer_tools.errors import InputError

DATA = Path(os.environ.get("DEEPPROFILE_DATA", Path(__file__).parents[3] / "shared" / "data"))


def cells():
    return pd.DataFrame(
        {
            "Metadata_Plate": ["p2", "p1", "p1", "p1", "p2"],
            "Metadata_Well": ["A01", "A02", "A01", "A02", "A01"],
            "Metadata_Compound": ["dmso", "taxol", "dmso", "taxol", "dmso"],
            "Metadata_Site": ["1", "1", "1", "2", "2"],
            "f_1": np.array([1, 2, 3, 4, 6], dtype="float32"),
            "f_0": np.array([0, 1, 0, 1, 1], dtype="float32"),
        }
    )


# --- aggregate and consensus. golden: five cells, worked out on paper
def test_wells_of_five_cells():
    result = aggregate(cells())
    expected = pd.DataFrame(
        {
            "Metadata_Plate": ["p1", "p1", "p2"],
            "Metadata_Well": ["A01", "A02", "A01"],
            "f_1": np.array([3, 3, 3.5], dtype="float32"),
            "f_0": np.array([0, 1, 0.5], dtype="float32"),
        }
    )
    pd.testing.assert_frame_equal(result, expected)


def test_keep_carries_what_is_constant():
    result = aggregate(cells(), keep=["Metadata_Compound"])
    assert list(result.columns) == ["Metadata_Plate", "Metadata_Well", "Metadata_Compound", "f_1", "f_0"]
    assert list(result["Metadata_Compound"]) == ["dmso", "taxol", "dmso"]


@pytest.mark.parametrize("other", ["taxol", None])
def test_keep_names_the_column_and_the_group_that_differ(other):
    table = cells()
    table.loc[4, "Metadata_Compound"] = other
    words = "Metadata_Compound is not constant in the group Metadata_Plate=p2, Metadata_Well=A01: .*'dmso'"
    with pytest.raises(InputError, match=words):
        aggregate(table, keep=["Metadata_Compound"])


def test_keep_takes_a_group_without_a_value():
    table = cells()
    table.loc[[0, 4], "Metadata_Compound"] = None
    assert aggregate(table, keep=["Metadata_Compound"])["Metadata_Compound"].isna().tolist() == [False, False, True]


def test_missing_keys_are_a_group_and_come_last():
    table = cells()
    table.loc[[1, 3], "Metadata_Compound"] = None
    result = consensus(table, ["Metadata_Compound"])
    assert result["Metadata_Compound"].isna().tolist() == [False, True]
    assert result["f_1"].tolist() == [3, 3]


def test_missing_features_are_skipped_as_pycytominer_does():
    table = cells()
    table.loc[[0, 1, 3], "f_1"] = np.nan
    for operation in ("median", "mean"):
        result = aggregate(table, operation=operation)
        np.testing.assert_array_equal(result["f_1"], [3, np.nan, 6])
        np.testing.assert_array_equal(result["f_0"], [0, 1, 0.5])


def test_numbers_as_objects_and_object_numbers():
    table = cells().assign(f_1=[1, 2.0, None, 4, 6], ObjectNumber=range(5))
    table["f_1"] = table["f_1"].astype(object)
    result = aggregate(table, ["Metadata_Plate"], features=["f_1"])
    assert result["f_1"].tolist() == [3, 3.5]
    assert list(aggregate(table, "Metadata_Plate").columns) == ["Metadata_Plate", "f_0"]


def test_the_table_is_left_alone():
    table = cells()
    aggregate(table)
    pd.testing.assert_frame_equal(table, cells())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"strata": []}, "strata is empty"),
        ({"strata": ["Plate"]}, "no column 'Plate'; it has Metadata_Plate"),
        ({"keep": ["Metadata_moa"]}, "no column 'Metadata_moa'"),
        ({"operation": "modz"}, "operation='modz': expected one of median, mean"),
        ({"features": ["Metadata_Well", "f_1"]}, "both a feature and a key: Metadata_Well"),
        ({"features": ["Metadata_Compound"]}, "feature Metadata_Compound: expected numbers"),
    ],
)
def test_aggregate_refuses(options, words):
    with pytest.raises(InputError, match=words):
        aggregate(cells(), **options)


# --- parity: pycytominer 1.7.1 on a LINCS plate (shared/reference/cytominer.md, P1, P2, P6)
@pytest.fixture(scope="module")
def lincs():
    return pd.read_csv(DATA / "lincs_plate_SQ00015054" / "SQ00015054_normalized_feature_select.csv.gz")


@pytest.mark.data
@pytest.mark.parametrize(
    ("operation", "total", "absolute", "norm", "dmso"),
    [
        ("median", -157.2007737495, 23599.3322129195, 303.21817724206187, 0.32613),
        ("mean", 36.28073904750008, 24508.16582545133, 298.84663415383187, 0.042620083333333336),
    ],
)
def test_aggregate_matches_pycytominer(lincs, operation, total, absolute, norm, dmso):
    result = aggregate(lincs, ["Metadata_broad_sample"], operation=operation)
    assert result.shape == (59, 455)
    x = result.drop(columns="Metadata_broad_sample").to_numpy()
    np.testing.assert_allclose([x.sum(), np.abs(x).sum(), np.linalg.norm(x)], [total, absolute, norm], rtol=1e-9)
    row = result[result["Metadata_broad_sample"] == "DMSO"]
    assert row["Cells_AreaShape_Compactness"].item() == pytest.approx(dmso, rel=1e-9)


@pytest.mark.data
def test_groups_without_a_moa_stay(lincs):
    result = aggregate(lincs, ["Metadata_broad_sample", "Metadata_moa"])
    assert len(result) == 59
    assert result["Metadata_moa"].isna().sum() == 4


@pytest.mark.data
@pytest.mark.parametrize(("operation", "total"), [("median", -2192.650693525), ("mean", -2139.046204794168)])
def test_consensus_matches_pycytominer(lincs, operation, total):
    result = consensus(lincs, ["Metadata_broad_sample", "Metadata_mg_per_ml"], operation)
    assert len(result) == 339
    assert result.iloc[:, 2:].to_numpy().sum() == pytest.approx(total, rel=1e-9)


# --- trimmed means, MAD, covariance
def test_trimmed_means_are_those_of_scipy():
    from scipy.stats import trim_mean

    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.standard_cauchy((57, 3)), columns=["Cells_a", "Cells_b", "Cells_c"])
    table.insert(0, "Metadata_Well", rng.choice(["A01", "A02", "A03"], 57))
    table.loc[::7, "Cells_b"] = np.nan
    result = aggregate(table, "Metadata_Well", operation="trimmed_mean")
    for _, row in result.iterrows():
        part = table[table["Metadata_Well"] == row["Metadata_Well"]]
        for name in ("Cells_a", "Cells_b", "Cells_c"):
            assert row[name] == pytest.approx(trim_mean(part[name].dropna(), 0.1))


def test_eleven_values_lose_the_first_and_the_last():
    table = pd.DataFrame({"Metadata_Well": "A01", "Cells_a": [*range(1, 11), 1000.0]})
    assert aggregate(table, "Metadata_Well", operation="trimmed_mean")["Cells_a"].tolist() == [6.0]


@pytest.mark.parametrize("missing", [False, True])
def test_spread_of_each_group(missing):
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.normal(size=(40, 3)), columns=["Cells_a", "Cells_b", "Cells_c"])
    table.insert(0, "Metadata_Well", ["A01", "A02"] * 20)
    if missing:
        table.loc[3, "Cells_b"] = np.nan
    result = aggregate(table, "Metadata_Well", spread=["mad", "covariance"])
    plain = aggregate(table, "Metadata_Well")
    pd.testing.assert_frame_equal(result[plain.columns], plain)
    assert result.shape == (2, 4 + 3 + 6)
    for _, row in result.iterrows():
        part = table[table["Metadata_Well"] == row["Metadata_Well"]]
        covariance = part[["Cells_a", "Cells_b", "Cells_c"]].cov()
        for one, other in (("a", "a"), ("a", "b"), ("b", "c")):
            assert row[f"Cells_{one}_Cov_Cells_{other}"] == pytest.approx(
                covariance.loc[f"Cells_{one}", f"Cells_{other}"]
            )
        mad = 1.4826 * (part["Cells_b"] - part["Cells_b"].median()).abs().median()
        assert row["Cells_b_MAD"] == pytest.approx(mad)
    one = aggregate(table.head(1), "Metadata_Well", spread="covariance")
    assert one["Cells_a_Cov_Cells_a"].isna().all()
    assert aggregate(table.head(0), "Metadata_Well", spread=["mad", "covariance"]).shape == (0, 13)


def test_spread_refuses():
    table = pd.DataFrame(np.ones((2, 500)), columns=[f"Cells_{i}" for i in range(500)]).assign(Metadata_Well="A01")
    with pytest.raises(InputError, match=r"125,250 covariances of 500 features; name fewer by features="):
        aggregate(table, "Metadata_Well", spread="covariance")
    with pytest.raises(InputError, match="spread='sd': expected one of mad, covariance"):
        aggregate(table, "Metadata_Well", spread="sd")

import numpy as np
import pandas as pd
import pytest

from cytominer_tools import (
    calculate_frequency,
    count_na_features,
    drop_outlier_features,
    feature_select,
    frequency_threshold,
    get_na_columns,
    get_pairwise_correlation,
    noise_removal,
    variance_threshold,
)
from cytominer_tools.errors import InputError


def table():
    return pd.DataFrame(
        {
            "Metadata_Well": ["A01", "A02", "A03", "A04"],
            "Metadata_Compound": ["x", "x", "y", "y"],
            "Cells_a": [1.0, 2, 3, 4],
            "Cells_flat": [7.0, 7, 7, 7],
            "Cells_holed": [1.0, np.nan, np.nan, 2],
            "Nuclei_far": [0.0, 1, -900, 2],
        }
    )


# --- golden
def test_each_operation_on_paper():
    assert variance_threshold(table()) == ["Cells_flat"]
    assert get_na_columns(table(), cutoff=0.5) == []
    assert get_na_columns(table(), cutoff=0.49) == ["Cells_holed"]
    assert drop_outlier_features(table()) == ["Nuclei_far"]
    assert drop_outlier_features(table(), outlier_cutoff=900) == []
    assert frequency_threshold(table(), freq_cut=0.6) == ["Cells_flat"]
    assert frequency_threshold(table(), unique_cut=0.6) == ["Cells_flat", "Cells_holed"]
    assert noise_removal(table(), "Metadata_Compound", noise_removal_stdev_cutoff=0.4) == ["Cells_a", "Nuclei_far"]
    assert calculate_frequency(pd.Series([1, 1, 1, 2, 2, 3, np.nan])) == 2 / 3
    assert count_na_features(table(), ["Cells_a", "Cells_holed"])["num_na"].tolist() == [0, 2]


def test_variance_of_exactly_the_threshold_is_low():
    assert variance_threshold(table(), ["Cells_a", "Nuclei_far"], min_variance=1.25) == ["Cells_a"]


def test_operations_follow_each_other():
    result = feature_select(table(), operation=["variance_threshold", "drop_na_columns", "drop_outliers"])
    assert list(result.columns) == ["Metadata_Well", "Metadata_Compound", "Cells_a"]
    same = feature_select(table(), operation=("blocklist",), blocklist=["Cells_a", "Cells_other"])
    assert list(same.columns) == [name for name in table() if name != "Cells_a"]


def test_everything_dropped_stops():
    result = feature_select(
        table()[["Metadata_Well", "Cells_holed"]], operation=["drop_na_columns", "variance_threshold"]
    )
    assert list(result.columns) == ["Metadata_Well"]


def test_samples_decide():
    query = "Metadata_Well in ['A01', 'A04']"
    assert get_na_columns(table(), samples=query) == []
    assert noise_removal(table(), ["x", "x", "y", "y"], samples="Metadata_Compound == 'x'") == []


def test_pairwise_correlation():
    matrix, pairs = get_pairwise_correlation(table()[["Cells_a", "Nuclei_far", "Cells_flat"]])
    expected = table()[["Cells_a", "Nuclei_far"]].corr()
    pd.testing.assert_frame_equal(matrix.iloc[:2, :2], expected, check_names=False)
    assert pairs.to_dict("records") == [
        {"pair_a": "Nuclei_far", "pair_b": "Cells_a", "correlation": pytest.approx(expected.iloc[0, 1])}
    ]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"operation": "variance"}, "operation 'variance' not supported. Choose of variance_threshold"),
        ({"operation": {"a": 1}}, "must be a list or string"),
        ({"operation": "noise_removal"}, "must provide both noise_removal_perturb_groups and"),
        ({"operation": "drop_na_columns", "na_cutoff": 2}, "cutoff=2 variable must be between"),
        ({"operation": "frequency_threshold", "freq_cut": -1}, "freq_cut=-1 variable must be between"),
        ({"min_variance": -1}, "min_variance=-1: expected a number that is non-negative"),
        ({"min_variance": 1e9}, "No feature in X meets the variance threshold"),
        ({"features": ["Cells_b"]}, r"1 feature column\(s\) are not in the table: Cells_b"),
        ({"features": "Cells_a"}, "expected a list of column names, or 'infer'"),
        ({"samples": 3}, "samples=3: expected 'all' or a query"),
        ({"samples": "Metadata_Well == @x"}, "@ is not allowed"),
    ],
)
def test_refuses(options, words):
    with pytest.raises(InputError, match=words):
        feature_select(table(), **options)


def test_noise_removal_refuses():
    with pytest.raises(InputError, match="the length of input list, 3, is not equivalent to your data, 4 rows"):
        noise_removal(table(), ["x", "y", "z"])
    with pytest.raises(InputError, match=r"Metadata_x not found\. Are you sure it is a metadata column"):
        noise_removal(table(), "Metadata_x")
    with pytest.raises(TypeError, match="must be a list, one a row, or the name of a column"):
        noise_removal(table(), 3)


def test_infinite_values_are_named():
    with pytest.raises(InputError, match=r"infinite values in 1 feature\(s\): Cells_a"):
        variance_threshold(table().assign(Cells_a=[1.0, np.inf, 2, 3]))


# --- why
def test_a_reason_for_each_dropped_feature():
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.normal(size=(60, 4)), columns=["Cells_a", "Cells_b", "Cells_c", "Cells_far"])
    table["Cells_again"] = table["Cells_b"] + 0.01 * table["Cells_c"]
    table["Cells_flat"], table["Cells_two"] = 3.0, [1.0] * 59 + [2.0]
    table.loc[::4, "Cells_c"] = np.nan
    table.loc[7, "Cells_far"] = -812.0
    table["Metadata_Well"], table["Nuclei_Granularity_14_DNA"] = "A01", rng.normal(size=60)
    operations = [
        "variance_threshold", "frequency_threshold", "drop_na_columns", "blocklist", "drop_outliers",
        "correlation_threshold",
    ]  # fmt: skip
    selected, dropped = feature_select(table, operation=operations, reasons=True)
    pd.testing.assert_frame_equal(selected, feature_select(table, operation=operations))
    assert {*dropped["feature"], *selected.columns} == set(table.columns)
    why = dropped.set_index("feature")
    one = "Cells_again" if "Cells_again" in why.index else "Cells_b"
    other = {"Cells_again": "Cells_b", "Cells_b": "Cells_again"}[one]
    assert why["operation"].to_dict() == {
        "Cells_flat": "variance_threshold",
        "Cells_two": "frequency_threshold",
        "Cells_c": "drop_na_columns",
        "Nuclei_Granularity_14_DNA": "blocklist",
        "Cells_far": "drop_outliers",
        one: "correlation_threshold",
    }
    reasons = why["reason"]
    assert reasons["Cells_flat"] == "variance 0, at most 1e-06"
    assert reasons["Cells_two"] == "its second value is 0.0169 times as frequent as its first, under 0.05"
    assert reasons["Cells_c"] == "0.25 of its values are missing, over 0.05"
    assert reasons["Nuclei_Granularity_14_DNA"] == "stands on the block list"
    assert reasons["Cells_far"] == "reaches 812, over 500"
    assert reasons[one] == f"r = 1 with {other}, over 0.9"
    few = pd.DataFrame({"Cells_a": [1.0, 2.0] * 60, "Cells_b": rng.normal(size=120)})
    _, dropped = feature_select(few, operation="frequency_threshold", unique_cut=0.02, reasons=True)
    assert dropped["reason"].tolist() == ["2 different values in 120 rows, under 0.02 of them"]
    noisy = few.assign(Metadata_Group=["a", "b"] * 60)
    options = {"noise_removal_perturb_groups": "Metadata_Group", "noise_removal_stdev_cutoff": 0.5}
    _, dropped = feature_select(noisy, operation="noise_removal", reasons=True, **options)
    assert dropped["feature"].tolist() == ["Cells_b"]
    assert dropped["reason"].str.fullmatch(r"sd [\d.]+ within perturbations, over 0\.5").all()

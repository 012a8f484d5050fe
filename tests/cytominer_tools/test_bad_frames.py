"""What each of the five functions does with tables that are not as they should be."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cytominer_tools import (
    Standardize,
    aggregate,
    annotate,
    concatenate,
    consensus,
    feature_select,
    get_pairwise_correlation,
    infer_delim,
    load_profiles,
    modz,
    normalize,
    plate_map,
    transform_profiles,
)
from cytominer_tools.errors import InputError, ProfileWarning


def wells(n=20, d=3):
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.normal(size=(n, d)), columns=[f"Cells_{i}" for i in range(d)])
    table.insert(0, "Metadata_Plate", "p")
    table.insert(1, "Metadata_Well", [f"A{i + 1:02d}" for i in range(n)])
    table.insert(2, "Metadata_Compound", ["dmso", "x"] * (n // 2))
    return table


FIVE = {
    "aggregate": lambda table: aggregate(table),
    "normalize": lambda table: normalize(table),
    "feature_select": lambda table: feature_select(table),
    "consensus": lambda table: consensus(table, ["Metadata_Compound"], "modz"),
    "annotate": lambda table: annotate(table, pd.DataFrame({"well_position": ["A01"], "a": [1]})),
}


@pytest.mark.parametrize("name", FIVE)
def test_names_that_are_not_text_or_stand_twice(name):
    with pytest.raises(InputError, match=r"1 column name\(s\) are not text: 7; rename them"):
        FIVE[name](wells().rename(columns={"Cells_1": 7}))
    with pytest.raises(InputError, match=r"1 column name\(s\) stand twice: Cells_0; rename or drop one"):
        FIVE[name](wells().rename(columns={"Cells_1": "Cells_0"}))


@pytest.mark.parametrize("name", ["aggregate", "normalize", "consensus"])
def test_text_in_a_feature(name):
    table = wells()
    table["Cells_1"] = ["1.5", "nan", "None", "NA", "", "n/a", *["2"] * 14]
    before = table.copy()
    result = FIVE[name](table)
    assert pd.api.types.is_float_dtype(result["Cells_1"])
    pd.testing.assert_frame_equal(table, before)
    table.loc[3, "Cells_1"] = "much"
    with pytest.raises(InputError, match=r"feature Cells_1: expected numbers, .*much"):
        FIVE[name](table)


def test_tables_without_rows():
    empty = wells().head(0)
    assert aggregate(empty).shape == (0, 5)
    assert consensus(empty, ["Metadata_Compound"]).shape == (0, 4)
    for call in (normalize, feature_select):
        with pytest.raises(InputError, match="the table has no rows"):
            call(empty)
    with pytest.raises(InputError, match="must include at least one sample"):
        consensus(empty, ["Metadata_Compound"], "modz")


def test_a_group_of_one():
    table = wells()
    for operation in ("mean", "median", "modz"):
        result = consensus(table, ["Metadata_Well"], operation)
        np.testing.assert_allclose(result[["Cells_0"]], table[["Cells_0"]])
    one = normalize(table.head(1))
    assert (one.filter(like="Cells_") == 0).all(axis=None)


def test_missing_keys_are_a_group():
    table = wells()
    table.loc[[0, 2], "Metadata_Compound"] = None
    for operation in ("mean", "modz"):
        result = consensus(table, ["Metadata_Compound"], operation)
        assert result["Metadata_Compound"].isna().tolist() == [False, False, True]


def test_missing_infinite_and_constant_features():
    table = wells()
    table.loc[0, "Cells_0"], table["Cells_1"] = np.nan, 4.0
    result = normalize(table)
    assert result["Cells_0"].isna().tolist() == [True] + [False] * 19
    assert (result["Cells_1"] == 0).all()
    table.loc[1, "Cells_2"] = np.inf
    for method in ("standardize", "robustize", "inverse_normal"):
        with pytest.raises(InputError, match=r"infinite values in 1 feature\(s\): Cells_2"):
            normalize(table, method=method)
    with pytest.raises(InputError, match=r"infinite values in 2 feature\(s\), 2 of 20 rows: Cells_0, Cells_2"):
        normalize(table, method="spherize")
    assert np.isinf(normalize(table, method="mad_robustize").loc[1, "Cells_2"])


def test_no_controls_and_a_plate_without():
    with pytest.raises(InputError, match="no row is picked by samples=\"Metadata_Compound == 'none'\""):
        normalize(wells(), samples="Metadata_Compound == 'none'")
    two = pd.concat([wells(), wells().assign(Metadata_Plate="q", Metadata_Compound="x")], ignore_index=True)
    with pytest.raises(InputError, match="the group Metadata_Plate=q has no row picked by samples="):
        normalize(two, samples="Metadata_Compound == 'dmso'", by="Metadata_Plate")


def test_by_plate_is_plate_by_plate():
    two = pd.concat([wells(), wells().assign(Metadata_Plate="q")], ignore_index=True)
    two.loc[20:, "Cells_0"] *= 3
    shuffled = two.sample(frac=1, random_state=0)
    result = normalize(shuffled, by="Metadata_Plate", samples="Metadata_Compound == 'dmso'", method="mad_robustize")
    for _, part in shuffled.groupby("Metadata_Plate"):
        expected = normalize(part, samples="Metadata_Compound == 'dmso'", method="mad_robustize")
        pd.testing.assert_frame_equal(result.loc[part.index], expected)


def test_fewer_controls_than_features_warn():
    table = wells(20, 30)
    with pytest.warns(ProfileWarning, match="10 control rows span 9 of 30 directions"):
        normalize(table, method="spherize", samples="Metadata_Compound == 'dmso'")


def test_columns_that_are_neither_stay_and_are_named():
    table = wells().assign(note="text", Image_Name="a.tif")
    with pytest.warns(ProfileWarning, match=r"1 column\(s\) are neither features nor metadata .*\(note\); pycytominer"):
        result = normalize(table)
    assert list(result.columns[:5]) == ["Metadata_Plate", "Metadata_Well", "Metadata_Compound", "Image_Name", "note"]
    peer = normalize(table, compat="pycytominer-1.7.1")
    assert "note" not in peer
    assert "Image_Name" in peer


def test_flags_of_cosmicqc():
    table = wells().assign(Metadata_cqc_small=[True] + [False] * 19)
    result = normalize(table, drop_cosmicqc_rows=True)
    pd.testing.assert_frame_equal(result, normalize(table.iloc[1:]))
    with pytest.raises(InputError, match="no column starts with Metadata_cqc_"):
        normalize(wells(), drop_cosmicqc_rows=True)
    with pytest.raises(InputError, match="all 20 rows are flagged by Metadata_cqc_small"):
        normalize(table.assign(Metadata_cqc_small=True), drop_cosmicqc_rows=True)


def test_fifty_thousand_columns():
    x = np.random.default_rng(0).normal(size=(8, 50_000)).astype("float32")
    table = pd.DataFrame(x, columns=[f"net_{i}" for i in range(50_000)])
    table.insert(0, "Metadata_Compound", ["a", "b"] * 4)
    assert consensus(table, ["Metadata_Compound"]).shape == (2, 50_001)
    assert normalize(table).dtypes.iloc[1] == "float32"
    assert feature_select(table).shape == table.shape


@pytest.mark.parametrize("separator", [",", ";"])
def test_text_whose_header_is_longer_than_a_field_may_be(tmp_path, separator):
    names = [f"network_{i}" for i in range(12_000)]  # 131,072 characters is the limit of csv
    (tmp_path / "a.csv").write_text(f"{separator.join(names)}\n{separator.join(map(str, range(12_000)))}\n")
    table = load_profiles(tmp_path / "a.csv")
    assert table.columns.tolist() == names
    assert table.iloc[0].tolist() == list(range(12_000))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "zscore"}, "method='zscore': expected one of standardize"),
        ({"method": "mad_robustize", "mad_robustize_epsilon": None}, "mad_robustize_epsilon must be a number"),
        ({"meta_features": "Metadata_Well"}, "expected a list of column names, or 'infer'"),
        ({"meta_features": ["Metadata_x"]}, "profiles: no column 'Metadata_x'"),
        ({"profiles": 3}, "profiles: expected a DataFrame or a path, got int"),
        ({"profiles": "nowhere.csv"}, "nowhere.csv: no such file"),
    ],
)
def test_normalize_refuses(options, words):
    with pytest.raises(InputError, match=words):
        normalize(**({"profiles": wells()} | options))


# --- annotate
def platemap():
    return pd.DataFrame({"well_position": [f"A{i + 1:02d}" for i in range(20)], "dose": range(20)})


def test_a_well_that_the_plate_map_names_twice():
    twice = pd.concat([platemap(), platemap().head(1).assign(dose=99)])
    with pytest.warns(ProfileWarning, match="the plate map names A01 more than once"):
        result = annotate(wells(), twice)
    assert len(result) == 21


@pytest.mark.parametrize(
    ("change", "options", "words"),
    [
        (
            lambda p: p.assign(well_position=p["well_position"].str.lower()),
            {},
            "no profile is on the plate map: .* a01",
        ),
        (lambda p: p.assign(well_position=range(20)), {}, "is a number in the plate map and Metadata_Well text"),
        (lambda p: p, {"join_on": "Metadata_Well"}, "expected two, the column of the plate map and that of"),
        (lambda p: p, {"join_on": ["Metadata_x", "Metadata_Well"]}, "platemap: no column 'Metadata_x'"),
        (lambda p: p, {"external_metadata": wells()}, "must be provided together"),
    ],
)
def test_annotate_refuses(change, options, words):
    with pytest.raises(InputError, match=words):
        annotate(wells(), change(platemap()), **options)


def test_a_missing_key_names_a_missing_key():
    table, names = wells(), platemap().astype({"well_position": object})
    table.loc[0, "Metadata_Well"] = None
    with pytest.warns(
        ProfileWarning, match=r"the plate map does not name .* \(1 of 20 profiles\); they are kept without"
    ):
        assert np.isnan(annotate(table, names)["Metadata_dose"].iloc[-1])
    names.loc[7, "well_position"] = None
    with pytest.warns(ProfileWarning, match="the plate map does not name A08"):
        result = annotate(table, names)
    assert result.loc[result["Metadata_Well"].isna(), "Metadata_dose"].tolist() == [7]


# --- infinite values, features without a value or a number
@pytest.mark.parametrize("method", ["spearman", "pearson", "kendall"])
def test_an_infinite_value_in_a_consensus_by_agreement(method):
    """It has no say in how much its replicate counts, and stays infinite."""
    table = wells(8, 6)
    table.loc[2, "Cells_3"] = np.inf
    result = modz(table, "Metadata_Compound", method=method)
    other = table.assign(Cells_3=table["Cells_3"].replace(np.inf, np.nan))
    expected = modz(other, "Metadata_Compound", method=method)
    assert np.isinf(result["Cells_3"]).tolist() == [True, False]
    pd.testing.assert_frame_equal(result.drop(columns="Cells_3"), expected.drop(columns="Cells_3"))
    table.loc[4, "Cells_3"] = -np.inf
    assert np.isnan(modz(table, "Metadata_Compound", method=method)["Cells_3"][0])


@pytest.mark.parametrize("method", ["spearman", "pearson", "kendall"])
def test_replicates_of_one_feature_weigh_the_same(method):
    table = wells(8, 1)
    means = table.groupby("Metadata_Compound")["Cells_0"].mean()
    np.testing.assert_allclose(modz(table, "Metadata_Compound", method=method)["Cells_0"], means)


def test_covariances_with_an_infinite_value_are_missing():
    table = wells()
    table.loc[2, "Cells_1"] = np.inf
    found = aggregate(table, "Metadata_Plate", spread="covariance").filter(like="_Cov_")
    assert found.columns[found.isna().all()].tolist() == [
        "Cells_0_Cov_Cells_1",
        "Cells_1_Cov_Cells_1",
        "Cells_1_Cov_Cells_2",
    ]


@pytest.mark.parametrize("method", ["standardize", "robustize", "mad_robustize", "inverse_normal"])
def test_a_feature_that_no_control_has_a_value_of(method):
    table = wells()
    table.loc[table["Metadata_Compound"] == "dmso", "Cells_1"] = np.nan
    with pytest.warns(
        ProfileWarning, match=r"1 feature\(s\) have no value among the reference rows \(Cells_1\), and so"
    ):
        result = normalize(table, samples="Metadata_Compound == 'dmso'", method=method)
    assert result["Cells_1"].isna().all()
    assert result["Cells_0"].notna().all()
    nowhere = normalize(table.assign(Cells_1=np.nan), samples="Metadata_Compound == 'dmso'", method=method)
    pd.testing.assert_frame_equal(nowhere, result)  # and nothing to warn of


def test_ranks_of_a_constant_feature():
    table = wells().assign(Cells_1=[1.0, 0.0, 1.0, 2.0] * 5)
    result = normalize(table, samples="Metadata_Compound == 'dmso'", method="inverse_normal")
    np.testing.assert_allclose(result["Cells_1"][:4], [-5.2, -5.2, -5.2, 5.2], atol=1e-3)


@pytest.mark.parametrize("name", ["aggregate", "normalize", "consensus", "feature_select"])
def test_complex_numbers(name):
    table = wells().assign(Cells_1=lambda t: t["Cells_1"] + 1j)
    with pytest.raises(InputError, match="feature Cells_1: expected real numbers, it is complex128; take a part of it"):
        FIVE[name](table)


def test_keys_that_are_lists():
    table = wells().assign(Metadata_Plate=[[1, 2]] * 20)
    for call in (aggregate, lambda t: normalize(t, by="Metadata_Plate"), lambda t: modz(t, "Metadata_Plate")):
        with pytest.raises(InputError, match=r"Metadata_Plate.*: expected text, numbers or dates as keys; unhashable"):
            call(table)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda t: modz(3, "Metadata_Compound"), "profiles: expected a DataFrame or a path, got int"),
        (lambda t: modz(t, []), "replicate_columns is empty: name the columns that replicates share"),
        (lambda t: normalize(t, []), "there is no feature beside the metadata; name some by features="),
        (
            lambda t: transform_profiles(t, Standardize(), features=[]),
            "there is no feature to transform; name some, or let the steps before drop fewer",
        ),
        (
            lambda t: aggregate(t.rename(columns={"Cells_1": "Cells_0"}), subset_data_df=t[["Metadata_Well"]]),
            r"1 column name\(s\) stand twice: Cells_0",
        ),
        (lambda t: get_pairwise_correlation(t.rename(columns={"Cells_1": "Cells_0"})), "stand twice: Cells_0"),
        (lambda t: plate_map(t.head(0), "Cells_0"), "the table has no rows"),
    ],
)
def test_each_says_what_it_lacks(call, words):
    with pytest.raises(InputError, match=words):
        call(wells())


def test_sets_with_infinite_or_no_values_beside_each_other():
    table = wells()
    other = table.rename(columns=lambda name: name.replace("Cells_", "net_"))
    result = concatenate([table, other.assign(net_1=np.nan)])
    assert result["net_1"].isna().all()
    assert result.filter(like="net_").var(ddof=0).sum() == pytest.approx(1)
    other.loc[3, "net_1"] = np.inf
    with pytest.raises(InputError, match="table 2: infinite values among its features, which say no size"):
        concatenate([table, other])
    assert np.isinf(concatenate([table, other], scale=False)["net_1"][3])


def test_correlations_of_one_row_are_none():
    matrix, pairs = get_pairwise_correlation(wells().head(1).filter(like="Cells_"))
    assert matrix.isna().all(axis=None)
    assert len(pairs) == 0


def test_features_as_an_index_or_an_array():
    table = wells()
    for features in (table.columns[3:], table.columns[3:].to_numpy(), tuple(table.columns[3:])):
        for call in (aggregate, normalize, feature_select):
            pd.testing.assert_frame_equal(call(table, features=features), call(table))


def test_values_of_several_types_are_not_written_as_parquet(tmp_path):
    table = wells().assign(Metadata_Dose=[1, "high"] * 10)
    with pytest.raises(InputError, match=r"a\.parquet: the table cannot be written as Parquet: .*column Metadata_Dose"):
        normalize(table, output_file=tmp_path / "a.parquet", output_type="parquet")
    assert not any(tmp_path.iterdir())


def test_text_that_is_not_utf_8(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes("Metadata_Größe,b\n1,2\n".encode("latin-1"))
    for call in (infer_delim, normalize):
        with pytest.raises(InputError, match=r"a\.csv: is not UTF-8; save it as UTF-8"):
            call(path)


# --- duplicates, dtypes, empty tables, text files
def test_duplicated_features():
    table = wells().assign(Cells_again=lambda t: t["Cells_0"])
    result = normalize(table)
    np.testing.assert_array_equal(result["Cells_again"], result["Cells_0"])
    selected = feature_select(table, operation="correlation_threshold")
    assert "Cells_again" not in selected  # the later name of two that correlate alike
    assert "Cells_0" in selected
    with pytest.warns(ProfileWarning, match="20 control rows span 3 of 4 directions, so some features depend on"):
        spherized = normalize(table, method="spherize")
    assert np.isfinite(spherized.filter(like="Cells_")).all(axis=None)
    assert spherized.filter(like="Cells_").abs().max(axis=None) < 20


def test_a_constant_feature_is_named_where_it_cannot_be_scaled():
    table = wells().assign(Cells_1=4.0)
    with pytest.raises(InputError, match=r"no spread among 20 control rows in 1 feature\(s\): Cells_1"):
        normalize(table, method="spherize")
    with pytest.warns(ProfileWarning, match=r"1 feature\(s\) have a MAD of 0"):
        result = normalize(table.assign(Cells_1=[4.0] * 19 + [5.0]), method="mad_robustize")
    assert result["Cells_1"].tolist()[:19] == [0] * 19
    assert np.isnan(result["Cells_1"][19])
    assert "Cells_1" not in feature_select(table)


def test_wells_that_stand_twice_are_one_group():
    twice = pd.concat([wells(), wells()], ignore_index=True)
    pd.testing.assert_frame_equal(aggregate(twice), aggregate(wells()))
    assert aggregate(twice, compute_object_count=True, object_feature="Cells_0")["Metadata_Object_Count"].eq(2).all()


@pytest.mark.parametrize("kind", ["int8", "int64", "uint16", "float16", "Float32", "Int64", "bool"])
def test_mixed_dtypes(kind):
    table = wells()
    table["Cells_1"] = (np.arange(20) % 7 > 2).astype("int8" if kind != "bool" else bool)
    mixed = table.astype({"Cells_1": kind})
    plain = table.astype({"Cells_1": "float64"})
    for name in ("aggregate", "normalize", "consensus"):
        pd.testing.assert_frame_equal(FIVE[name](mixed), FIVE[name](plain), check_dtype=False)
    missing = plain.astype({"Cells_1": "Float64"})
    missing.loc[3, "Cells_1"] = pd.NA
    assert normalize(missing)["Cells_1"].isna().sum() == 1


def test_annotate_of_no_rows():
    result = annotate(wells().head(0), platemap().assign(well_position=platemap()["well_position"].astype(object)))
    assert len(result) == 0
    assert {"Metadata_dose", "Metadata_Well", "Cells_0"} <= set(result.columns)


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("suffix", [".csv", ".csv.gz"])
def test_text_of_any_separator_with_and_without_a_byte_order_mark(tmp_path, separator, encoding, suffix):
    path = tmp_path / f"wells{suffix}"
    wells().to_csv(path, sep=separator, index=False, encoding=encoding)
    pd.testing.assert_frame_equal(normalize(str(path)), normalize(wells()))


# --- properties
@given(st.randoms(use_true_random=False), st.floats(0.5, 4), st.integers(-50, 50))
@settings(max_examples=25, deadline=None)
def test_order_of_rows_and_unit_of_measure_cancel(random, gain, offset):
    table = wells()
    order = random.sample(range(len(table)), len(table))
    shuffled = table.iloc[order]
    pd.testing.assert_frame_equal(aggregate(shuffled, "Metadata_Compound"), aggregate(table, "Metadata_Compound"))
    features = ["Cells_0", "Cells_1", "Cells_2"]
    moved = shuffled.assign(**{name: gain * shuffled[name] + offset for name in features})
    for method in ("standardize", "robustize", "mad_robustize"):
        result = normalize(moved, method=method, samples="Metadata_Compound == 'dmso'")
        expected = normalize(table, method=method, samples="Metadata_Compound == 'dmso'")
        pd.testing.assert_frame_equal(result.sort_index(), expected, atol=1e-9)

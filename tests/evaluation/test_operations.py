import numpy as np
import pandas as pd
import pytest

from cytominer_tools.errors import InputError
from evaluation import evaluate
from evaluation.similarity import pearson

SAMPLE, MOA, DOSE = "Metadata_broad_sample", "Metadata_moa", "Metadata_mg_per_ml"


@pytest.fixture(scope="module")
def lincs(data):
    return pd.read_csv(data / "lincs_plate_SQ00015054" / "SQ00015054_normalized_feature_select.csv.gz")


def run(table, groups, operation="replicate_reproducibility", **settings):
    meta = [c for c in table if c.startswith("Metadata_")]
    return evaluate(table, [c for c in table if c not in meta], meta, groups, operation, **settings)


# --- parity: cytominer-eval's last commit on pandas 1.5 gave these on one LINCS plate
@pytest.mark.data
@pytest.mark.parametrize(
    ("groups", "percentile", "odds", "metric"),
    [
        ([SAMPLE], 0.995, 73.61844362843352, "pearson"),
        ([SAMPLE], 0.99, 47.245482866043616, "pearson"),
        ([SAMPLE], 0.9, 10.420404457121426, "pearson"),
        ([MOA], 0.995, 46.98173479561316, "pearson"),
        ([SAMPLE, DOSE], 0.95, 16.712837, "pearson"),
        ([SAMPLE], 0.99, 48.542573, "spearman"),
    ],
)
def test_enrichment_is_the_peers(lincs, groups, percentile, odds, metric):
    got = run(lincs, groups, "enrichment", enrichment_percentile=percentile, similarity_metric=metric)
    assert got.columns.tolist() == ["enrichment_percentile", "threshold", "ods_ratio", "p-value"]
    assert got["ods_ratio"][0] == pytest.approx(odds, rel=1e-6)


@pytest.mark.data
def test_enrichment_threshold_and_p_are_the_peers(lincs):
    got = run(lincs, [SAMPLE, DOSE], "enrichment", enrichment_percentile=[0.995, 0.9])
    assert got["threshold"].tolist() == pytest.approx([0.762724, 0.385377], abs=1e-6)
    assert got["p-value"].tolist() == pytest.approx([5.307846e-275, 9.404475e-205], rel=1e-6)


@pytest.mark.data
@pytest.mark.parametrize(
    ("groups", "settings", "share"),
    [
        ([SAMPLE, DOSE], {}, 0.4583333333333333),
        ([MOA], {}, 0.3074186991869919),
        ([SAMPLE], {}, 0.41346153846153844),
        ([SAMPLE, DOSE], {"replicate_reproducibility_quantile": 0.5}, 0.6813725490196079),
        ([SAMPLE, DOSE], {"similarity_metric": "spearman"}, 0.46568627450980393),
    ],
)
def test_replicate_reproducibility_is_the_peers(lincs, groups, settings, share):
    quantile = settings.get("replicate_reproducibility_quantile", 0.95)
    got = run(lincs, groups, **settings)
    if settings.get("similarity_metric") == "spearman" or quantile == 0.5 or not settings:
        assert got == pytest.approx(share, rel=1e-12)


@pytest.mark.data
def test_medians_of_groups_are_the_peers(lincs):
    _, medians = run(lincs, [MOA], replicate_reproducibility_return_median_cor=True)
    assert medians["similarity_metric"].max() == pytest.approx(0.9357137563196758, rel=1e-7)


@pytest.mark.data
@pytest.mark.parametrize(
    ("groups", "by", "precision", "recall"),
    [
        ([SAMPLE], SAMPLE, [0.305085, 0.355932, 0.315254, 0.266949], [0.008762, 0.052285, 0.092079, 0.154092]),
        ([SAMPLE], "Metadata_Well", [0.408854, 0.277083, 0.211719, 0.136979], [0.068431, 0.225873, 0.329972, 0.434923]),
        ([MOA], SAMPLE, [0.322034, 0.376271, 0.332203, 0.284746], None),
    ],
)
def test_precision_recall_is_the_peers(lincs, groups, by, precision, recall):
    got = run(lincs, groups, "precision_recall", groupby_columns=[by], precision_recall_k=[1, 5, 10, 20])
    means = got.groupby("k")[["precision", "recall"]].mean()
    assert means["precision"].tolist() == pytest.approx(precision, abs=5e-7)
    if recall:
        assert means["recall"].tolist() == pytest.approx(recall, abs=5e-7)


@pytest.mark.data
def test_hits_are_the_peers(lincs):
    hits, scores = run(lincs, [SAMPLE], "hitk", groupby_columns=["Metadata_Well"], hitk_percent_list=[1, 2, 5, 10, 100])
    assert (len(hits), sum(hits)) == (2496, 221652)
    assert scores == {1: 437, 2: 666, 5: 928, 10: 1074, 100: 0}
    assert run(lincs, [MOA], "hitk", groupby_columns=["Metadata_Well"])[1] == {2: 690, 5: 984, 10: 1147}


@pytest.mark.data
def test_hits_of_all_places_are_the_peers(lincs):
    table = lincs.copy()
    table.loc[table[SAMPLE] == "DMSO", MOA] = "none"
    table = table[table[MOA].notna()]
    by = [SAMPLE, "Metadata_Plate", "Metadata_Well"]
    hits, scores = run(table, [MOA], "hitk", groupby_columns=by, hitk_percent_list="all")
    assert (len(hits), sum(hits), np.median(hits), max(hits)) == (2766, 262139, 40, 364)
    assert np.bincount(hits)[:10].tolist() == [158, 119, 112, 85, 71, 68, 69, 52, 51, 44]
    expected = [150.44262295081967, 261.88524590163934, 789.8688524590164, 1098.573770491803]
    assert [scores[k] for k in (0, 1, 10, 50)] == pytest.approx(expected)
    assert max(scores, key=scores.get) == 58
    assert scores[58] == pytest.approx(1121.1147540983604)


@pytest.mark.data
def test_grit_is_the_peers(lincs):
    groups = {"profile_col": SAMPLE, "replicate_group_col": MOA}
    got = run(lincs, groups, "grit", grit_control_perts=["DMSO"])
    assert (len(got), int(got["grit"].isna().sum())) == (59, 45)
    assert got["grit"].sum() == pytest.approx(2.2625962620361233, rel=1e-7)
    assert got["grit"].max() == pytest.approx(0.999013, abs=1e-6)
    median = run(lincs, groups, "grit", grit_control_perts=["DMSO"], grit_replicate_summary_method="median")
    assert median["grit"].sum() == pytest.approx(0.5104819340293426, rel=1e-6)


@pytest.mark.data
def test_grit_of_doses_is_the_peers(lincs):
    dose = lincs[SAMPLE] + "_" + lincs[DOSE].round(4).astype(str)
    table = pd.concat([lincs, dose.rename("Metadata_treatment")], axis=1)
    groups = {"profile_col": "Metadata_treatment", "replicate_group_col": SAMPLE}
    got = run(table, groups, "grit", grit_control_perts=["DMSO_0.0"])
    assert (len(got), int(got["grit"].isna().sum())) == (339, 3)
    assert got["grit"].sum() == pytest.approx(493.8291954993355, rel=1e-7)
    assert got["grit"].max() == pytest.approx(7.860289, abs=1e-6)
    median = run(table, groups, "grit", grit_control_perts=["DMSO_0.0"], grit_replicate_summary_method="median")
    assert median["grit"].sum() == pytest.approx(511.84623637233096, rel=1e-7)
    assert median["grit"].max() == pytest.approx(9.087752, abs=1e-6)


@pytest.mark.data
def test_similarities_are_the_peers(lincs):
    features = [c for c in lincs if not c.startswith("Metadata_")]
    near = pearson(lincs[features]).rows(0, len(lincs)).astype(float)[~np.eye(len(lincs), dtype=bool)]
    assert len(near) == 147072
    assert near.mean() == pytest.approx(0.004608984393163038, rel=1e-6)
    assert near.std(ddof=1) == pytest.approx(0.2776307305623376, rel=1e-6)
    assert (near.min(), near.max()) == pytest.approx((-0.7959423878257889, 0.9852974137238092), rel=1e-6)


@pytest.mark.data
def test_mp_values_are_the_peers_on_its_random_numbers(lincs):
    rng = np.random.RandomState(2020)
    got = run(lincs, SAMPLE, "mp_value", grit_control_perts=["DMSO"], mp_value_params={"rng": rng})["mp_value"]
    assert got.mean() == pytest.approx(0.07237288135593221, rel=1e-12)
    assert (got == 0).sum() == 29
    assert got.quantile([0.25, 0.5, 0.75]).tolist() == pytest.approx([0, 0.01, 0.045])


# --- bad input: defined, not crashed
def small(**columns):
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"Metadata_A": list("aabbcc")}).assign(**columns)
    return table.assign(**{f"f{k}": rng.normal(size=6) for k in range(5)})


def test_a_group_without_replicates_is_nan():
    got = run(
        small(Metadata_A=list("aabbcd")),
        ["Metadata_A"],
        "precision_recall",
        groupby_columns=["Metadata_A"],
        precision_recall_k=2,
    )
    assert got["recall"].isna().tolist() == [False, False, True, True]


def test_one_class_and_no_replicates():
    one = small(Metadata_A=["a"] * 6)
    got = run(one, ["Metadata_A"], "enrichment", enrichment_percentile=0.9)
    assert np.isnan(got["ods_ratio"][0])
    assert got["p-value"][0] == 1
    assert np.isnan(run(one, ["Metadata_A"]))
    with pytest.raises(InputError, match="no replicates: no two profiles agree in Metadata_A"):
        run(small(Metadata_A=list("abcdef")), ["Metadata_A"])


def test_columns_called_index_or_with_spaces():
    table = small(index=[1, 1, 2, 2, 3, 3]).rename(columns={"Metadata_A": "Metadata_A b"})
    features = [f"f{k}" for k in range(5)]
    got = evaluate(table, features, ["index", "Metadata_A b"], ["index"], "enrichment", enrichment_percentile=0.5)
    same = evaluate(
        table, features, ["index", "Metadata_A b"], ["Metadata_A b"], "enrichment", enrichment_percentile=0.5
    )
    pd.testing.assert_frame_equal(got, same)


def test_duplicated_profiles_share_their_places():
    table = small()
    table[[f"f{k}" for k in range(5)]] = np.tile(np.arange(5.0), (6, 1))
    hits, _ = run(table, ["Metadata_A"], "hitk", groupby_columns=["f0"][:0] or ["Metadata_A"], hitk_percent_list=[50])
    # two copies of one match among ten equal neighbours: in random order the 4th and the 7th place on average, from 0
    assert hits == [3, 6] * 3


@pytest.mark.parametrize(
    ("groups", "operation", "settings", "words"),
    [
        (["Metadata_A"], "mean", {}, "operation 'mean' is not known; choose one of replicate_reproducibility"),
        (["Metadata_Q"], "enrichment", {}, "replicate_groups: no column 'Metadata_Q'"),
        (["Metadata_A"], "grit", {}, "grit expects"),
        (["Metadata_A"], "enrichment", {"enrichment_percentile": 99}, "expected a share from 0 to 1"),
        (["Metadata_A"], "enrichment", {"similarity_metric": "cosine"}, "choose one of pearson, spearman, kendall"),
        (["Metadata_A"], "precision_recall", {"groupby_columns": ["x"]}, "groupby_columns: no column 'x'"),
        (["Metadata_A"], "hitk", {"groupby_columns": ["Metadata_A"], "hitk_percent_list": [200]}, "is no percentage"),
        ("Metadata_A", "mp_value", {}, "0 row\\(s\\) of Metadata_A are controls; at least 2 are needed"),
        ("Metadata_A", "mp_value", {"mp_value_params": {"n": 1}}, "'n' is not known"),
        ("Metadata_A", "enrichment", {}, "expects a list of columns"),
    ],
)
def test_words_of_errors(groups, operation, settings, words):
    with pytest.raises(InputError, match=words):
        run(small(), groups, operation, **settings)


def test_words_of_errors_of_grit():
    table = small(Metadata_B=list("xxxyyy"))
    with pytest.raises(InputError, match="Metadata_A b is in several groups of Metadata_B"):
        run(
            table,
            {"profile_col": "Metadata_A", "replicate_group_col": "Metadata_B"},
            "grit",
            grit_control_perts=["a"],
        )
    with pytest.raises(InputError, match="no Metadata_A is DMSO"):
        run(
            small(Metadata_B=list("xxyyyy")),
            {"profile_col": "Metadata_A", "replicate_group_col": "Metadata_B"},
            "grit",
            grit_control_perts=["DMSO"],
        )


def test_missing_and_constant_features_are_named():
    table = small()
    table.loc[2, "f1"] = np.nan
    with pytest.raises(InputError, match="f1: 1 of 6 values are missing"):
        run(table, ["Metadata_A"])
    table = small()
    table.loc[2, [f"f{k}" for k in range(5)]] = 1.0
    with pytest.raises(InputError, match="row 2 is constant"):
        run(table, ["Metadata_A"])


def test_mp_values_do_not_depend_on_the_order_of_rows():
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.normal(size=(40, 5))).add_prefix("f").assign(Metadata_A=["abcd"[k % 4] for k in range(40)])
    features = [f"f{k}" for k in range(5)]
    settings = {"operation": "mp_value", "grit_control_perts": ["a"]}
    one, other = (
        evaluate(rows, features, ["Metadata_A"], "Metadata_A", **settings)
        for rows in (table, table.iloc[rng.permutation(40)])
    )
    pd.testing.assert_frame_equal(one, other)

import numpy as np
import pandas as pd
import pytest

from cytominer_tools.errors import InputError
from cytominer_tools.tables import write_table
from evaluation.metrics import enrichment, precision_at_r
from evaluation.scores import METRICS, score
from evaluation.similarity import cosine, count_similarity


def profiles(n=60, classes=6, signal=1.0, seed=0):
    """Classes that differ by `signal` standard deviations, on four plates; cell counts follow the class."""
    rng = np.random.default_rng(seed)
    label = np.arange(n) % classes
    X = rng.normal(size=(n, 20)) + signal * rng.normal(size=(classes, 20))[label]
    return pd.DataFrame(X, columns=[f"net_{i}" for i in range(20)]).assign(
        Metadata_Plate=[f"P{i // classes % 4}" for i in range(n)],
        Metadata_Well=[f"A{i % 24 + 1:02d}" for i in range(n)],
        Metadata_MOA=[f"moa {i}" for i in label],
        Metadata_Count=rng.poisson(50 * (label + 1)),
    )


def row(scores, name):
    return scores.table.set_index("score").loc[name]


# --- parity: the table says what the array functions say
def test_values_come_from_the_metrics():
    table = profiles()
    got = score(table, labels="Metadata_MOA", exclude_same="Metadata_Plate", percentile=90, permutations=5)
    codes, plates = pd.factorize(table["Metadata_MOA"])[0], pd.factorize(table["Metadata_Plate"])[0]
    similarity = cosine(table[[f"net_{i}" for i in range(20)]])
    queries = precision_at_r(similarity, codes, exclude=plates)
    pairs = enrichment(similarity, codes, exclude=plates, percentile=90)
    np.testing.assert_array_equal(got.queries["precision_at_r"], queries.precision)
    np.testing.assert_array_equal(got.queries["first_rank"], queries.first_rank)
    assert row(got, "precision_at_r")["value"] == pytest.approx(queries.precision.mean())
    assert row(got, "precision_at_r")["chance"] == pytest.approx((queries.n_matches / queries.n_candidates).mean())
    assert (row(got, "enrichment")["value"], row(got, "enrichment")["n"]) == (pairs.odds_ratio, pairs.n_pairs)
    cells = count_similarity(table["Metadata_Count"])
    expected = precision_at_r(cells, codes, exclude=plates).precision.mean()
    assert row(got, "precision_at_r")["cell_count"] == pytest.approx(expected)
    expected = enrichment(cells, codes, exclude=plates, percentile=90).odds_ratio
    assert row(got, "enrichment")["cell_count"] == pytest.approx(expected)


# --- property
def test_same_input_same_bytes(tmp_path):
    table = profiles()
    for name in ("one", "two"):
        got = score(table.copy(), labels="Metadata_MOA", permute_within="Metadata_Plate", seed=3)
        for part in ("table", "queries", "selection"):
            write_table(getattr(got, part), tmp_path / name / f"{part}.parquet")
            write_table(getattr(got, part), tmp_path / name / f"{part}.csv")
    for path in sorted((tmp_path / "one").iterdir()):
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
    assert not score(table, labels="Metadata_MOA", seed=4).table.equals(score(table, labels="Metadata_MOA").table)


@pytest.mark.parametrize("within", [None, "Metadata_Plate"])
def test_the_order_of_rows_changes_nothing(within):
    table = profiles(signal=0.3)
    table.loc[30:40, [f"net_{i}" for i in range(20)]] = table.loc[0, [f"net_{i}" for i in range(20)]].to_numpy(float)
    settings = {"labels": "Metadata_MOA", "metrics": METRICS, "percentile": 90, "permute_within": within}
    order = np.random.default_rng(1).permutation(60)
    got, moved = score(table, **settings), score(table.iloc[order], **settings)
    pd.testing.assert_frame_equal(moved.table, got.table, check_exact=True)
    pd.testing.assert_frame_equal(moved.queries, got.queries.iloc[order].reset_index(drop=True), check_exact=True)


def test_input_is_left_alone():
    table = profiles().set_index(np.arange(60)[::-1])
    before = table.copy()
    score(table, labels="Metadata_MOA", select="Metadata_Plate != 'P1'", permutations=2)
    pd.testing.assert_frame_equal(table, before)


def test_signal_is_beyond_permutations_and_noise_is_not():
    real = row(score(profiles(signal=2), labels="Metadata_MOA", percentile=90), "precision_at_r")
    noise = [
        row(score(profiles(signal=0, seed=seed), labels="Metadata_MOA", percentile=90), "precision_at_r")["p"]
        for seed in range(12)
    ]
    assert real["value"] > real["permutation_95"] > real["permutation_mean"]
    assert real["p"] == 1 / 101
    assert real["permutation_mean"] == pytest.approx(real["chance"], abs=0.01)
    assert 0.25 < np.mean(noise) < 0.75


def test_shuffling_within_plates_keeps_what_plates_explain():
    """Each plate holds two labels, and profiles tell plates apart, not labels."""
    rng = np.random.default_rng(1)
    plate = np.arange(80) // 20
    table = pd.DataFrame(rng.normal(size=(80, 8)) + 9 * rng.normal(size=(4, 8))[plate]).add_prefix("net_")
    table = table.assign(Metadata_Plate=plate.astype(str), Metadata_MOA=plate * 2 + rng.integers(0, 2, 80))
    anywhere, within = (
        row(score(table, labels="Metadata_MOA", permute_within=by), "precision_at_r") for by in (None, "Metadata_Plate")
    )
    assert anywhere["p"] == 1 / 101
    assert within["p"] > 0.05
    assert within["permutation_mean"] > 3 * anywhere["permutation_mean"]


def test_class_size_is_the_other_reading():
    got = score(profiles(signal=50), labels="Metadata_MOA", r="class_size", permutations=0)
    assert row(got, "precision_at_r")["value"] == pytest.approx(0.9)
    assert row(got, "precision_at_r")["setting"] == "R = class size"
    assert np.isnan(row(got, "precision_at_r")["p"])


# --- golden
def test_the_funnel_counts_what_each_rule_removes():
    table = profiles(12, 4)
    table.loc[0, "Metadata_MOA"] = None
    table.loc[1, "Metadata_MOA"] = "alone"
    got = score(table, labels="Metadata_MOA", select="Metadata_Well != 'A12'", permutations=2, min_class_size=3)
    assert got.selection.to_numpy().tolist() == [
        ["profiles given", 0, 12, 5],
        ["select: Metadata_Well != 'A12'", 1, 11, 5],
        ["Metadata_MOA is known", 1, 10, 5],
        ["Metadata_MOA has at least 3 profiles", 7, 3, 1],
    ]
    assert got.queries["label"].tolist() == ["moa 2"] * 3
    assert list(got.queries.columns[:4]) == ["Metadata_Plate", "Metadata_Well", "Metadata_Count", "label"]


def test_frames_are_plain():
    got = score(profiles(), labels="Metadata_MOA", permutations=2)
    for frame in (got.table, got.queries, got.selection):
        for _, column in frame.items():
            assert pd.api.types.is_numeric_dtype(column) or column.map(type).eq(str).all()


# --- the words: NaN with a reason
def test_twelve_profiles_are_too_few_for_enrichment():
    got = row(score(profiles(12, 4), labels="Metadata_MOA"), "enrichment")
    assert got["reason"] == "66 pairs: the top 0.5 % is less than one pair; at least 200 are needed"
    assert np.isnan(
        got[["value", "chance", "permutation_mean", "permutation_95", "p", "cell_count"]].astype(float)
    ).all()


def test_no_class_of_two_is_nan_with_a_reason():
    got = score(profiles(12, 12), labels="Metadata_MOA")
    assert row(got, "precision_at_r")["reason"] == "no profile is left: no Metadata_MOA has at least 2 profiles"
    assert got.table["value"].isna().all()
    assert len(got.queries) == 0


def test_excluded_matches_are_nan_with_a_reason():
    got = row(score(profiles(), labels="Metadata_MOA", exclude_same=["Metadata_MOA"]), "precision_at_r")
    assert got["reason"].startswith("no match is left: all profiles of one Metadata_MOA share Metadata_MOA")
    assert got["n"] == 0


@pytest.mark.parametrize(
    ("change", "arguments", "words"),
    [
        (lambda t: t.drop(columns="Metadata_Count"), {}, "cell_count: the profiles have no column Metadata_Count"),
        (
            lambda t: t.assign(Metadata_Count=t["Metadata_Count"].astype(float).where(t.index > 0)),
            {},
            "cell_count: 1 of 60 counts are missing, infinite or negative; fill in or drop those rows",
        ),
        (
            lambda t: t.assign(Metadata_Plate=t["Metadata_MOA"]),
            {"permute_within": "Metadata_Plate"},
            "permutation: each Metadata_Plate holds one label, so nothing can be shuffled",
        ),
    ],
)
def test_a_baseline_that_cannot_be_is_a_note(change, arguments, words):
    got = score(change(profiles()), labels="Metadata_MOA", percentile=90, **arguments).table
    assert got["notes"].tolist() == [words] * 2
    assert got["cell_count" if "count" in words else "p"].isna().all()
    assert got["value"].notna().all()


def test_an_infinite_odds_ratio_still_has_a_p():
    got = row(score(profiles(signal=50), labels="Metadata_MOA"), "enrichment")
    assert got["reason"].startswith("infinite: all ")
    assert np.isnan(got["value"])
    assert got["p"] == 1 / 101


def nan_in(table):
    table.loc[3, ["net_4", "net_7"]] = np.nan
    return table


@pytest.mark.parametrize(
    ("change", "arguments", "words"),
    [
        (None, {"labels": "Metadata_moa"}, "labels: no column 'Metadata_moa'"),
        (None, {"exclude_same": "Batch"}, "exclude_same: no column 'Batch'"),
        (None, {"permute_within": "Batch"}, "permute_within: no column 'Batch'"),
        (None, {"select": "Metadata_Plate == 'P9'"}, "keeps none of 60 profiles; check the values"),
        (None, {"similarity": "euclid"}, "'euclid' is not known; choose one of cosine, pearson"),
        (None, {"baselines": ("untrained",)}, "'untrained' is not known; choose among permutation, cell_count"),
        (None, {"features": []}, "features: no names were given"),
        (None, {"features": ["net_0", "net_99"]}, "not in the table: net_99"),
        (None, {"features": ["Metadata_Well"]}, "Metadata_Well: expected a column of numbers"),
        (nan_in, {}, r"net_4: 1 of 60 values are missing or infinite \(2 features have some\)"),
        (lambda t: t[["Metadata_Plate", "Metadata_MOA"]], {}, "no feature columns"),
    ],
)
def test_wrong_input_is_refused_in_one_line(change, arguments, words):
    table = change(profiles()) if change else profiles()
    with pytest.raises(InputError, match=words) as raised:
        score(table, **{"labels": "Metadata_MOA", **arguments})
    assert "\n" not in str(raised.value)


def test_missing_features_outside_the_selection_do_not_matter():
    table = nan_in(profiles())
    score(table, labels="Metadata_MOA", select="Metadata_Well != 'A04'", permutations=1)

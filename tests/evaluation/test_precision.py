from itertools import combinations, pairwise, permutations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cytominer_tools.errors import InputError
from evaluation import (
    average_precision,
    mean_average_precision,
    mean_average_precision_hierarchical,
    multilabel_average_precision,
)
from evaluation.nulls import _by_exchange, _distinct
from evaluation.precision import expected_ap

peer = pytest.importorskip("copairs.map")
SAMPLE = ["Metadata_broad_sample"]
VALUES = ["n_pos_pairs", "n_total_pairs", "average_precision", "normalized_average_precision"]


@pytest.fixture(scope="module")
def lincs(data):
    table = pd.read_csv(data / "lincs_plate_SQ00015054" / "SQ00015054_normalized_feature_select.csv.gz")
    meta = table[[*SAMPLE, "Metadata_Well"]].copy()
    meta["reference"] = np.where(meta[SAMPLE[0]] == "DMSO", np.arange(len(meta)), -1)
    return meta, table[[c for c in table if not c.startswith("Metadata_")]].to_numpy()


@pytest.fixture(scope="module")
def activity(lincs):
    by = [*SAMPLE, "reference"]
    return average_precision(*lincs, by, [], [], by)


def groups(n=40, classes=5, seed=0, effect=0.0, features=30):
    rng = np.random.default_rng(seed)
    label = np.arange(n) % classes
    X = rng.normal(size=(n, features)) + effect * rng.normal(size=(classes, features))[label]
    return pd.DataFrame({"label": label, "plate": np.arange(n) // classes % 4}), X


# --- parity: copairs 0.5.5 in the same process
@pytest.mark.data
def test_activity_is_the_peers(lincs, activity):
    by = [*SAMPLE, "reference"]
    other = peer.average_precision(*lincs, by, [], [], by, progress_bar=False)
    assert activity.columns.tolist() == other.columns.tolist()
    np.testing.assert_allclose(activity[VALUES], other[VALUES], rtol=1e-12)
    assert activity["average_precision"].mean() == pytest.approx(0.6305710780151901, rel=1e-12)


@pytest.mark.data
@pytest.mark.parametrize(
    ("distance", "mean"),
    [
        ("cosine", 0.2855375276358683),
        ("correlation", 0.2853273402933603),
        ("euclidean", 0.2713970393522756),
        ("abs_cosine", 0.2621724944531442),
        ("cityblock", 0.27208945189395345),
    ],
)
def test_replicability_is_the_peers(lincs, distance, mean):
    got = average_precision(*lincs, SAMPLE, [], [], SAMPLE, distance=distance, ties="positives_first")
    assert got["average_precision"].mean() == pytest.approx(mean, rel=1e-12)


@pytest.mark.data
def test_peers_null_by_name(activity, tmp_path):
    other = peer.mean_average_precision(activity, SAMPLE, 1000, 0.05, 3, progress_bar=False, cache_dir=tmp_path)
    got = mean_average_precision(activity, SAMPLE, 1000, 0.05, 3, null="copairs")
    pd.testing.assert_frame_equal(got, other, rtol=1e-12, check_dtype=False)


@pytest.mark.parametrize(
    "rules",
    [
        (["label"], ["plate"], ["plate"], ["label"]),
        (["label"], [], ["plate"], ["label"]),
        (["label", "plate"], [], [], ["label", "plate"]),
        ([], ["label"], ["label"], []),
    ],
)
def test_rules_are_the_peers(rules):
    meta, X = groups()
    got, other = average_precision(meta, X, *rules), peer.average_precision(meta, X, *rules, progress_bar=False)
    np.testing.assert_allclose(got[VALUES], other[VALUES], rtol=1e-12)


def test_multilabel_is_the_peers():
    rng = np.random.default_rng(4)
    meta = pd.DataFrame({"labels": [sorted(rng.choice(list("abcde"), rng.integers(0, 3), False)) for _ in range(40)]})
    meta["labels"] = meta["labels"].map(lambda cell: [str(x) for x in cell])
    meta["row"] = np.arange(40)
    X = rng.normal(size=(40, 20))
    rules = (["labels"], [], [], ["labels"])
    got = multilabel_average_precision(meta, X, *rules, "labels")
    other = peer.multilabel.average_precision(meta, X, *rules, "labels", progress_bar=False)
    by = ["labels", "row"]
    got, other = got.sort_values(by, ignore_index=True), other.sort_values(by, ignore_index=True)
    np.testing.assert_allclose(got[VALUES].astype(float), other[VALUES].astype(float), rtol=1e-12)


def test_hierarchical_is_the_peers(tmp_path):
    meta, X = groups(80, 16, effect=0.5)
    meta["family"] = meta["label"] // 4
    by = ["family", "label"]
    ap = average_precision(meta, X, ["label"], [], [], ["label"])
    other = peer.mean_average_precision_hierarchical(
        ap, by, 500, 0.05, 0, ["family"], progress_bar=False, cache_dir=tmp_path
    )
    got = mean_average_precision_hierarchical(ap, by, 500, 0.05, 0, ["family"], null="copairs", group_p="min")
    pd.testing.assert_frame_equal(got[other.columns], other, check_dtype=False)


# --- ties: the mean over all orders
@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6))
def test_ties_are_the_mean_over_orders(seed):
    rng = np.random.default_rng(seed)
    X = np.array([[1.0, 0], [0, 1], [1, 1]])[rng.integers(0, 3, 6)]
    meta = pd.DataFrame({"label": [0, 0, 0, 1, 1, 1]})
    got = average_precision(meta, X, ["label"], [], [], ["label"])["average_precision"]
    unit = X / np.linalg.norm(X, axis=1, keepdims=True)
    near = np.round(unit @ unit.T, 6)
    for query in range(6):
        others = [j for j in range(6) if j != query]
        values = []
        for order in permutations(others):
            if all(near[query, a] >= near[query, b] for a, b in pairwise(order)):
                hit = np.array([meta["label"][j] == meta["label"][query] for j in order])
                values.append((np.cumsum(hit) / np.arange(1, 6))[hit].mean())
        assert got[query] == pytest.approx(np.mean(values), rel=1e-12)


def test_equal_profiles_score_one_only_for_the_peer():
    meta, X = groups()
    same = np.ones_like(X)
    rules = (["label"], [], [], ["label"])
    assert (average_precision(meta, same, *rules, ties="positives_first")["average_precision"] == 1).all()
    fair = average_precision(meta, same, *rules)["average_precision"]
    np.testing.assert_allclose(fair, expected_ap(7, 39), rtol=1e-12)


# --- properties
def test_random_profiles_score_the_expected_value():
    scores = [
        average_precision(*groups(60, 10, seed), ["label"], [], [], ["label"])["normalized_average_precision"].mean()
        for seed in range(30)
    ]
    assert abs(np.mean(scores)) < 4 * np.std(scores) / np.sqrt(30)


@pytest.mark.parametrize(("hits", "total", "mean"), [(3, 19, 0.27708723542192665), (5, 29, 0.2599503585493711)])
def test_expected_value_by_enumeration(hits, total, mean):
    assert expected_ap(hits, total) == pytest.approx(mean, rel=1e-12)


def test_p_depends_neither_on_order_nor_on_other_groups():
    meta, X = groups(120, 12, effect=0.25)
    rules = (["label"], [], [], ["label"])
    ap = average_precision(meta, X, *rules)
    p = mean_average_precision(ap, ["label"], 500, 0.05, 7).set_index("label")["p_value"]
    order = np.random.default_rng(1).permutation(120)
    moved = average_precision(meta.iloc[order], X[order], *rules)
    again = mean_average_precision(moved, ["label"], 500, 0.05, 7).set_index("label")["p_value"]
    pd.testing.assert_series_equal(p, again)
    some = mean_average_precision(ap[ap["label"] < 4], ["label"], 500, 0.05, 7).set_index("label")["p_value"]
    pd.testing.assert_series_equal(p[:4], some)


@pytest.mark.parametrize("rules", [(["label"], ["plate"], [], ["label"]), (["label"], [], ["plate"], ["label"])])
def test_p_does_not_depend_on_the_order_of_equal_profiles(rules):
    meta, X = groups(60, 6, effect=0.5)
    X[20:30] = X[20]
    meta["label"], meta["plate"] = "l" + meta["label"].astype(str), "p" + meta["plate"].astype(str)
    order = np.random.default_rng(2).permutation(60)
    p, moved = (
        mean_average_precision(average_precision(table, Y, *rules), ["label"], 200, 0.05, 0).set_index("label")
        for table, Y in ((meta, X), (meta.iloc[order], X[order]))
    )
    pd.testing.assert_series_equal(moved["p_value"], p["p_value"])


def test_p_of_groups_within_a_label_does_not_depend_on_the_order_of_equal_profiles():
    """Rules that do not name the dose tell nothing of equal profiles at two of them."""
    rules = (["label"], [], [], ["label"])
    by = ["label", "dose"]
    for seed in range(3):
        rng = np.random.default_rng(seed)
        X = rng.integers(1, 3, (40, 4)).astype(float)
        meta = pd.DataFrame({"label": np.arange(40) // 8, "dose": np.arange(40) % 2})
        order = rng.permutation(40)
        p, moved = (
            mean_average_precision(average_precision(table, Y, *rules), by, 300, 0.05, 0).set_index(by)["p_value"]
            for table, Y in ((meta, X), (meta.iloc[order], X[order]))
        )
        pd.testing.assert_series_equal(moved, p)
        # nor on which other groups are asked for
        ap = average_precision(meta, X, *rules)
        some = mean_average_precision(ap[ap["label"].isin([1, 3])], by, 300, 0.05, 0).set_index(by)["p_value"]
        pd.testing.assert_series_equal(some, p[p.index.isin([1, 3], level=0)])


@pytest.mark.parametrize("beside", [False, True])
def test_all_exchanges_contain_what_was_seen(beside):
    """However many profiles tie, positives among themselves too: p is never below one exchange of all."""
    lowest = []
    for seed in range(100):
        X = np.random.default_rng(seed).integers(1, 3, (12, 3)).astype(float)
        meta = pd.DataFrame({"label": np.arange(12) // 3})
        by = ["label"]
        if beside:
            meta["control"] = np.where(meta["label"] < 2, meta.index, -1)
            meta.loc[:5, "label"] = -1
            by = ["label", "control"]
        ap = average_precision(meta, X, by, [], [], by)
        lowest += mean_average_precision(ap, ["label"], 100, 0.05, seed)["p_value"].tolist()
    assert min(lowest) >= 1 / (84 if beside else 220) - 1e-12


def test_small_groups_are_enumerated():
    rng = np.random.default_rng(0)
    X = np.concatenate([rng.normal(size=(3, 40)) * 0.1 + 1, rng.normal(size=(9, 40))])
    meta = pd.DataFrame({"group": ["a"] * 3 + ["control"] * 9})
    meta["reference"] = np.where(meta["group"] == "control", np.arange(12), -1)
    by = ["group", "reference"]
    ap = average_precision(meta, X, by, [], [], by)
    p = [mean_average_precision(ap, ["group"], 5, 0.05, seed)["p_value"][0] for seed in range(3)]
    means = []
    for chosen in combinations(range(12), 3):
        other = pd.DataFrame({"group": ["a" if i in chosen else "control" for i in range(12)]})
        other["reference"] = np.where(other["group"] == "control", np.arange(12), -1)
        means.append(average_precision(other, X, by, [], [], by)["average_precision"].mean())
    # whatever null_size and seed
    assert p == [np.mean(np.array(means) >= ap["average_precision"].mean() - 1e-9)] * 3


@pytest.mark.slow
def test_null_of_labels_is_calibrated_and_the_peers_is_not():
    rng = np.random.default_rng(5)
    ours, theirs = [], []
    for _ in range(150):
        X = rng.normal(size=(20, 20))
        meta = pd.DataFrame({"group": ["a"] * 4 + ["control"] * 16})
        meta["reference"] = np.where(meta["group"] == "control", np.arange(20), -1)
        ap = average_precision(meta, X, ["group", "reference"], [], [], ["group", "reference"])
        ours.append(mean_average_precision(ap, ["group"], 99, 0.05, 0)["p_value"][0])
        theirs.append(mean_average_precision(ap, ["group"], 99, 0.05, 0, null="copairs")["p_value"][0])
    assert 0.03 < np.mean(np.array(ours) <= 0.1) < 0.18
    assert np.mean(np.array(theirs) <= 0.1) < 0.07


def test_general_rules_agree_with_the_quick_way():
    # a column that all share sends the same problem the long way round
    meta, X = groups(30, 6, effect=0.4)
    ap = average_precision(meta, X, ["label"], [], [], ["label"])
    quick = mean_average_precision(ap, ["label"], 4000, 0.05, 0)["p_value"]
    pairing = ap.attrs["average_precision"]
    for label in range(3):
        group = np.flatnonzero(meta["label"] == label)
        p = _by_exchange(pairing, group, group, np.setdiff1d(np.arange(30), group), 4000, 1)
        assert p == pytest.approx(quick[label], abs=0.03)


@pytest.mark.parametrize(("k", "total", "first", "pool"), [(3, 4000, 0, 1024), (3, 500, 3, 100), (60, 900, 60, 200)])
def test_draws_are_uniform(k, total, first, pool):
    draws = _distinct(np.random.default_rng(0), 4000, k, total, first, pool)
    assert all(len(set(row)) == k for row in draws[:200].tolist())
    assert draws.max() < first + pool
    # each of the places ahead comes as often as any of `total`, the others by the share of what they stand for
    share = (draws < first).sum() / draws.size
    assert share == pytest.approx(first / total, abs=4 * np.sqrt(first / total / draws.size) + 1e-12)


def test_what_groups_share_is_measured_once():
    """Of each group only its own profiles are compared with all others, however many the controls are."""
    asked = []

    def measure(a, b):
        asked.append(len(b))
        return -np.abs(a - b).sum(axis=1)

    meta, X = groups(130, 10, effect=0.5)
    meta["control"] = np.where(meta.index < 100, meta.index, -1)
    meta["label"] = np.where(meta.index < 100, -1, meta["label"])
    by = ["label", "control"]
    ap = average_precision(meta, X, by, [], [], by, distance=measure)
    asked.clear()
    got = mean_average_precision(ap, ["label"], 200, 0.05, 0)
    assert len(got) == 10
    assert sum(asked) <= 2 * 100 * 130 + 2 * 30 * 130


def test_groups_larger_than_the_pool_have_a_p():
    meta, X = groups(90, 2, effect=0.3)
    ap = average_precision(meta, X, ["label"], [], [], ["label"])
    assert mean_average_precision(ap, ["label"], 50, 0.05, 0)["p_value"].tolist() == [1 / 51] * 2


def test_pairs_within_plates_have_a_p():
    meta, X = groups(48, 4, effect=1.0)
    ap = average_precision(meta, X, ["label"], ["plate"], ["plate"], ["label"])
    got = mean_average_precision(ap, ["label"], 200, 0.05, 0)
    assert got["p_value"].between(1 / 201, 1).all()
    assert got["p_value"].mean() < 0.2


# --- words
def test_words_of_errors():
    meta, X = groups()
    rules = (["label"], [], [], ["label"])
    with pytest.raises(InputError, match="pos_sameby: no column 'moa'"):
        average_precision(meta, X, ["moa"], [], [], ["moa"])
    with pytest.raises(InputError, match="label is missing in 1 of 40 rows"):
        average_precision(meta.assign(label=meta["label"].where(meta.index > 0)), X, *rules)
    with pytest.raises(InputError, match="no positive pair: no pair of profiles agrees in label"):
        average_precision(meta.assign(label=np.arange(40)), X, *rules)
    with pytest.raises(InputError, match="no negative pair: no pair of profiles differs in label"):
        average_precision(meta.assign(label=1), X, *rules)
    with pytest.raises(InputError, match="meta has 40 rows and feats has 39"):
        average_precision(meta, X[1:], *rules)
    with pytest.raises(InputError, match="row 3 is all zeros"):
        average_precision(meta, np.where(np.arange(40)[:, None] == 3, 0, X), *rules)
    with pytest.raises(InputError, match="row 3 is not finite"):
        average_precision(meta, np.where(np.arange(40)[:, None] == 3, np.nan, X), *rules)
    with pytest.raises(InputError, match="distance 'nearest' is not known"):
        average_precision(meta, X, *rules, distance="nearest")
    ap = average_precision(meta, X, *rules)
    with pytest.raises(InputError, match="ap_scores has lost its profiles"):
        mean_average_precision(pd.DataFrame(ap.to_dict("list")), ["label"], 10, 0.05, 0)
    with pytest.raises(InputError, match="its index no longer tells which profile a row is"):
        mean_average_precision(ap.iloc[::-1].reset_index(drop=True), ["label"], 10, 0.05, 0)
    with pytest.raises(InputError, match="expected some, not all, of sameby"):
        mean_average_precision_hierarchical(ap, ["label"], 10, 0.05, 0, ["label"])
    with pytest.raises(InputError, match="expected a list of labels"):
        multilabel_average_precision(meta.assign(m="a"), X, ["m"], [], [], ["m"], "m")


def test_columns_called_index_or_with_spaces():
    meta, X = groups()
    plain = average_precision(meta, X, ["label"], [], [], ["label"])
    for name in ("index", "the label"):
        renamed = meta.rename(columns={"label": name})
        got = average_precision(renamed, X, [name], [], [], [name])
        np.testing.assert_array_equal(got[VALUES], plain[VALUES])
        p = mean_average_precision(got, [name], 50, 0.05, 0)["p_value"]
        np.testing.assert_array_equal(p, mean_average_precision(plain, ["label"], 50, 0.05, 0)["p_value"])


def test_the_table_can_be_written(tmp_path):
    meta, X = groups()
    ap = average_precision(meta, X, ["label"], [], [], ["label"])
    ap.to_parquet(tmp_path / "ap.parquet")
    np.testing.assert_array_equal(pd.read_parquet(tmp_path / "ap.parquet")[VALUES], ap[VALUES])

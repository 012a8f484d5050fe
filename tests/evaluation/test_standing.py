import numpy as np
import pandas as pd
import pytest

from evaluation import (
    average_precision,
    cosine,
    enrichment_curve,
    hit_curve,
    match_ranks,
    precision_recall_curve,
    robust_enrichment,
    score,
)
from evaluation.metrics import sweep
from evaluation.similarity import count_similarity, precomputed
from evaluation.standing import RANKED, Standing, average_precisions

NAMES = list(RANKED)


def made(n=90, classes=9, seed=0, signal=0.7):
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, classes, n)
    return rng.normal(size=(n, 12)) + signal * rng.normal(size=(classes, 12))[codes], codes


def standing(similarity, labellings, exclude=None):
    found = Standing(np.atleast_2d(labellings), NAMES)
    exclude = np.empty((similarity.n, 0), dtype=np.int64) if exclude is None else exclude[:, None]
    sweep(similarity, exclude, [found], block_rows=17)
    return found


# --- parity: the functions that read one labelling at a time
@pytest.mark.parametrize("seed", range(3))
def test_all_are_what_the_single_functions_say(seed):
    X, codes = made(seed=seed)
    plate = np.arange(len(X)) % 4
    rng = np.random.default_rng(seed)
    labellings = np.stack([codes, rng.permutation(codes), np.where(rng.random(len(codes)) < 0.2, -1, codes)])
    near = cosine(X)
    found = standing(near, labellings, plate).means()
    for k, labels in enumerate(labellings):
        ranks = match_ranks(near, labels, exclude=plate)
        curve = precision_recall_curve(ranks, [1, 5, 10])
        values = dict(zip(NAMES, found[:, k], strict=True))
        assert values["nearest"] == pytest.approx(curve["precision"][0])
        assert [values[f"precision_at_{d}"] for d in (5, 10)] == pytest.approx(curve["precision"][1:].tolist())
        assert [values[f"recall_at_{d}"] for d in (5, 10)] == pytest.approx(curve["recall"][1:].tolist())
        assert values["hit_s20"] == pytest.approx(hit_curve(ranks).s20)


@pytest.mark.parametrize("similarity", [lambda X: cosine(X), lambda X: count_similarity(np.abs(X[:, 0] * 3).round())])
def test_average_precision_is_that_of_average_precision(similarity):
    X, codes = made()
    near = similarity(X)
    found = standing(near, codes).values[0, 0]
    table = pd.DataFrame({"label": codes})
    if near.name == "cosine":
        expected = average_precision(table, X, ["label"], [], [], ["label"])["average_precision"]
    else:
        matrix = near.rows(0, near.n)
        matrix = np.exp(matrix)  # any similarity of the same order
        lookup = lambda a, b: matrix[a[:, 0].astype(int), b[:, 0].astype(int)]  # noqa: E731
        expected = average_precision(
            table, np.arange(len(X), dtype=float)[:, None], ["label"], [], [], ["label"], distance=lookup
        )["average_precision"]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


# --- property
def test_random_labels_score_what_chance_says():
    X, codes = made(n=120, classes=6, signal=0)
    rng = np.random.default_rng(1)
    found = standing(cosine(X), np.stack([rng.permutation(codes) for _ in range(60)]))
    matches, candidates = np.bincount(codes)[codes] - 1, np.full(120, 119)
    for k, name in enumerate(NAMES):
        weights = matches if RANKED[name].by_match else None
        expected = np.average(RANKED[name].chance(matches, candidates), weights=weights)
        values = found.means()[k]
        assert values.mean() == pytest.approx(expected, abs=4 * values.std() / np.sqrt(60) + 1e-9), name


def test_order_of_rows_does_not_matter():
    X, codes = made()
    order = np.random.default_rng(2).permutation(len(X))
    np.testing.assert_allclose(
        standing(cosine(X), codes).means(), standing(cosine(X[order]), codes[order]).means(), rtol=1e-12
    )


# --- golden: one query whose matches are first and third of four
def test_average_precision_on_paper():
    near = np.array([[0, 4, 3, 2, 1], [4, 0, 0, 0, 0], [3, 0, 0, 0, 0], [2, 0, 0, 0, 0], [1, 0, 0, 0, 0]], float)
    ranks = match_ranks(precomputed(near), [0, 0, 1, 0, 2])
    assert average_precisions(ranks)[0] == pytest.approx((1 + 2 / 3) / 2)
    # the second query: its first match is first; the other is one of three that tie: 2/2, 2/3 or 2/4
    assert average_precisions(ranks)[1] == pytest.approx((1 + (2 / 2 + 2 / 3 + 2 / 4) / 3) / 2)


# --- in the table of scores
def table(n=60, classes=6, signal=1.0):
    X, codes = made(n, classes, signal=signal)
    return pd.DataFrame(X).add_prefix("net_").assign(Metadata_MOA=codes, Metadata_Plate=np.arange(n) % 4)


ALL = (*NAMES, "robust_enrichment", "percent_replicating")


def test_every_metric_stands_beside_its_baselines():
    frame = table(60, 20, 2.0).assign(Metadata_Count=np.arange(60) + 20)
    got = score(frame, labels="Metadata_MOA", metrics=ALL, percentile=90, permutations=20).table.set_index("score")
    assert got.index.tolist() == ["precision_at_r", "enrichment", *ALL]
    assert got["value"].notna().all()
    assert (got["n"] > 0).all()  # a class of more rows than there are classes has no null
    assert (got["value"] > got["chance"]).all()
    assert got.loc[got.index != "percent_replicating", "p"].between(1 / 21, 0.2).all()
    assert got["cell_count"].notna().all()
    assert (got["across"] == "").all()
    queries = score(frame, labels="Metadata_MOA", metrics=["mean_average_precision"], permutations=1).queries
    assert queries["average_precision"].mean() == pytest.approx(got.loc["mean_average_precision", "value"])


def test_robust_enrichment_is_that_of_the_curve():
    frame = table(90, 9)
    got = score(
        frame, labels="Metadata_MOA", metrics=["robust_enrichment"], permutations=0, exclude_same="Metadata_Plate"
    )
    near = cosine(frame[[f"net_{k}" for k in range(12)]])
    plate = frame["Metadata_Plate"].to_numpy()[:, None]
    curve = enrichment_curve(near, frame["Metadata_MOA"].to_numpy(), exclude=plate)
    assert got.table["value"][2] == pytest.approx(robust_enrichment(curve), rel=1e-12)


def test_metrics_do_not_change_each_other():
    alone = score(table(), labels="Metadata_MOA", permutations=5, percentile=90).table
    pd.testing.assert_frame_equal(
        alone, score(table(), labels="Metadata_MOA", metrics=ALL, permutations=5, percentile=90).table[:2]
    )


def test_no_match_is_nan_with_a_reason_for_all():
    got = score(table(6, 6).assign(Metadata_MOA=range(6)), labels="Metadata_MOA", metrics=ALL, permutations=2).table
    assert got["value"].isna().all()
    assert (got["reason"] != "").all()


def test_across_is_told():
    got = score(table(), labels="Metadata_MOA", metrics=["nearest"], exclude_same="Metadata_Plate", permutations=1)
    assert set(got.table["across"]) == {"Metadata_Plate"}

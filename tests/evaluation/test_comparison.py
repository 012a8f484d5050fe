import numpy as np
import pandas as pd
import pytest

from cytominer_tools.errors import InputError
from evaluation import compare_runs, comparison_figure, cosine, enrichment, precision_at_r
from evaluation.comparison import _class_pairs, _weighted, enrichment_interval
from evaluation.metrics import text_codes


def run(signal, seed=0, n=80, classes=16, width=20):
    """Classes that differ by `signal` standard deviations; noise by the seed."""
    label = np.arange(n) % classes
    X = (
        np.random.default_rng(seed).normal(size=(n, width))
        + signal * np.random.default_rng(99).normal(size=(classes, width))[label]
    )
    meta = {"Metadata_Compound": [f"c{k}" for k in range(n)], "Metadata_MOA": [f"m{k}" for k in label]}
    return pd.DataFrame(meta).join(pd.DataFrame(X).add_prefix("f"))


def compare(runs, **settings):
    settings = {"draws": 300, "percentile": 97, **settings}
    return compare_runs(runs, key=["Metadata_Compound"], labels="Metadata_MOA", **settings)


# --- parity: each run says what the single functions say
def test_scores_are_those_of_the_metrics():
    table = run(1.0)
    got = compare({"one": table, "two": run(0.3, 5)}).table.iloc[0]
    codes = pd.factorize(table["Metadata_MOA"])[0]
    near = cosine(table[[f"f{k}" for k in range(20)]])
    assert got["enrichment"] == enrichment(near, codes, percentile=97).odds_ratio
    assert got["precision_at_r"] == pytest.approx(precision_at_r(near, codes).precision.mean())
    assert (got["n"], got["n_classes"], got["features"]) == (80, 16, 20)


def test_the_interval_of_one_run_is_that_of_a_comparison():
    table = run(1.0)
    got = compare({"one": table}, seed=3).table.iloc[0]
    near, codes = cosine(table[[f"f{k}" for k in range(20)]]), text_codes(table["Metadata_MOA"])[0]
    low, high = enrichment_interval(near, codes, percentile=97, draws=300, seed=3)
    assert (low, high) == (got["enrichment_low"], got["enrichment_high"])


def test_draws_do_not_depend_on_the_order_of_rows():
    table = run(0.5)
    moved = table.iloc[np.random.default_rng(1).permutation(80)]
    pd.testing.assert_frame_equal(compare({"one": moved}).table, compare({"one": table}).table, rtol=1e-12)


def test_pairs_of_redrawn_classes_are_counted_as_copies():
    """A draw of classes scores like the table in which each drawn class stands as often, under a name of its own."""
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 5, 30)
    exclude = rng.integers(-1, 4, (30, 2))
    candidates = _class_pairs(codes, exclude, 5)
    weights = np.array([2.0, 0, 1, 3, 1])
    within, between = (part.item() for part in _weighted(candidates, weights[None, :]))
    allowed = ~(((exclude[:, None] == exclude[None]) & (exclude[:, None] >= 0)).any(axis=2) | np.eye(30, dtype=bool))
    copies = [(c, copy) for c in range(5) for copy in range(int(weights[c]))]
    members = {c: np.flatnonzero(codes == c) for c in range(5)}
    same = sum(allowed[np.ix_(members[c], members[c])].sum() / 2 for c, _ in copies)
    other = sum(
        allowed[np.ix_(members[a], members[b])].sum()
        for k, (a, _) in enumerate(copies)
        for b, _ in copies[k + 1 :]
        if a != b
    )
    assert (within, between) == (same, other)


# --- property
def test_a_run_against_itself_and_against_noise():
    good = run(0.9)
    got = compare({"good": good, "same": good.copy(), "noise": run(0.0, 7)})
    pairs = got.pairs.set_index(["score", "run", "against"])
    for score, none in (("precision_at_r", 0), ("mean_average_precision", 0), ("enrichment", 1)):
        assert tuple(pairs.loc[(score, "same", "good"), ["difference", "low", "high"]]) == (none,) * 3
        worse = pairs.loc[(score, "noise", "good")]
        assert worse["high"] < none
        assert worse["p"] < 0.02
    table = got.table.set_index("run")
    for score in ("enrichment", "precision_at_r", "mean_average_precision"):
        assert (table[f"{score}_low"] <= table[f"{score}_high"]).all()
        assert table.loc["good", f"{score}_low"] > table.loc["noise", f"{score}_high"]


def test_equal_runs_are_told_apart_no_more_often_than_asked():
    p = [
        compare({"a": run(0.4, 2 * k), "b": run(0.4, 2 * k + 1)}, draws=200).pairs.set_index("score")["p"]
        for k in range(40)
    ]
    rejected = (pd.DataFrame(p) < 0.05).mean()
    assert (rejected <= 0.2).all()


def test_order_of_rows_and_runs_does_not_matter():
    one, two = run(0.8), run(0.5, 3)
    first = compare({"one": one, "two": two})
    again = compare({"one": one.iloc[::-1], "two": two.sample(frac=1, random_state=1)})
    pd.testing.assert_frame_equal(
        first.table.drop(columns=[c for c in first.table if "_low" in c or "_high" in c]),
        again.table.drop(columns=[c for c in again.table if "_low" in c or "_high" in c]),
    )
    assert compare({"one": one, "two": two}).table.equals(first.table)


# --- golden: only common profiles count
def test_runs_are_compared_on_what_they_share():
    one, two = run(1.0), run(1.0, 3).drop(columns="Metadata_MOA")
    two = two[two["Metadata_Compound"] != "c5"]
    one.loc[0, "Metadata_MOA"] = None
    two.loc[two["Metadata_Compound"] == "c7", [f"f{k}" for k in range(20)]] = 0.0
    got = compare({"one": one, "two": two})
    assert got.selection.to_numpy().tolist() == [
        ["profiles of one", 80],
        ["profiles of two", 79],
        ["in all runs", 79],
        ["Metadata_MOA is known", 78],
        ["no profile of zeros in any run", 77],
        ["Metadata_MOA has at least 2 profiles", 77],
    ]
    assert got.table["n"].tolist() == [77, 77]
    assert len(got.queries) == 77
    assert got.queries["one precision_at_r"].mean() == pytest.approx(got.table["precision_at_r"][0])


def test_numbers_of_a_key_are_compared_as_numbers():
    one = run(1.0).assign(Metadata_Dose=10)
    two = run(1.0, 3).assign(Metadata_Dose=10.0)
    got = compare_runs(
        {"one": one, "two": two}, key=["Metadata_Compound", "Metadata_Dose"], labels="Metadata_MOA", draws=5
    )
    assert got.selection["rows_left"].iloc[2] == 80


# --- figure
@pytest.mark.parametrize("n", [1, 3, 9])
def test_the_figure_shows_every_run(n):
    figure = comparison_figure(compare({f"run {k}": run(0.2 * k, k) for k in range(n)}, draws=20))
    labels = [t.get_text() for t in figure.axes[0].get_yticklabels()]
    assert labels == [f"run {k}" for k in range(n)]
    assert len(figure.axes[3].lines) == n


# --- the words of errors
@pytest.mark.parametrize(
    ("runs", "words"),
    [
        ({}, "there is nothing to compare; name a study"),
        ({"a": run(1).drop(columns="Metadata_Compound")}, "a: no column 'Metadata_Compound'"),
        ({"a": pd.concat([run(1), run(1)])}, "a: 80 profiles stand in it more than once, first c0"),
        ({"a": run(1).drop(columns="Metadata_MOA")}, "Metadata_MOA: no run has this column"),
        ({"a": run(1), "b": run(1).assign(Metadata_Compound=range(80))}, "nothing is left to compare .*in all runs: 0"),
        ({"a": run(1).assign(f3=np.nan)}, "f3: 80 of 80 values are missing"),
    ],
)
def test_words(runs, words):
    with pytest.raises(InputError, match=words):
        compare(runs)


def test_too_few_pairs_for_enrichment_is_nan_with_the_reason():
    got = compare({"a": run(1, n=10, classes=5)}, percentile=99.5).table.iloc[0]
    assert np.isnan(got[["enrichment", "enrichment_low"]].astype(float)).all()
    assert "45 pairs" in got["reason"]


def test_a_run_without_any_match_on_top_has_a_value_in_its_interval():
    rng = np.random.default_rng(0)
    labels = [f"m{i % 10}" for i in range(40)]
    good = np.repeat(np.eye(10), 4, axis=0)[np.argsort(np.argsort(np.arange(40) % 10, kind="stable"))]
    runs = {}
    for name, X in (("bad", rng.normal(size=(40, 12))), ("good", good + 0.01 * rng.normal(size=good.shape))):
        runs[name] = pd.DataFrame(X).add_prefix("f").assign(Metadata_Compound=range(40), Metadata_MOA=labels)
    table = compare_runs(runs, key=["Metadata_Compound"], labels="Metadata_MOA", draws=50).table
    known = table[table["enrichment"].notna()]
    assert ((known["enrichment_low"] <= known["enrichment"]) & (known["enrichment"] <= known["enrichment_high"])).all()


def test_the_interval_of_a_difference_holds_it():
    """Half a pair that draws count more weighs most where few pairs are on top."""
    for seed in range(10):
        runs = {"a": run(2.0, seed, n=24, classes=6, width=6), "b": run(0.0, seed, n=24, classes=6, width=6)}
        pairs = compare(runs, draws=100).pairs
        known = pairs[pairs["difference"].notna()]
        assert len(known) >= 2
        assert ((known["low"] <= known["difference"]) & (known["difference"] <= known["high"])).all()


def test_a_label_in_the_key_stands_once():
    got = compare_runs({"a": run(1.0)}, key=["Metadata_Compound", "Metadata_MOA"], labels="Metadata_MOA", draws=5)
    assert got.queries.columns[:2].tolist() == ["Metadata_Compound", "Metadata_MOA"]
    assert got.queries.columns.is_unique


def test_the_figure_says_a_reason_to_its_end():
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"k": list("abcd"), "m": list("xxyy")})
    runs = {name: table.join(pd.DataFrame(rng.normal(size=(4, 2))).add_prefix("f")) for name in "rs"}
    found = compare_runs(runs, key=["k"], labels="m", draws=10)
    [text] = comparison_figure(found).axes[0].texts
    reason = found.table["reason"][0]
    assert len(reason) > 60
    assert reason in " ".join(text.get_text().split())

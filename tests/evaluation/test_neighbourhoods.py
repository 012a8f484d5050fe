from contextlib import suppress

import harmonypy
import numpy as np
import pandas as pd
import pytest
from scipy import stats

from cytominer_tools.errors import InputError
from evaluation import component_association, cosine, lisi, mixing, mixing_scores
from evaluation.similarity import count_similarity

FEATURES = [f"f{k}" for k in range(20)]


def wells(shift=0.0, n=120, seed=0, batches=4):
    rng = np.random.default_rng(seed)
    batch = np.arange(n) % batches
    X = rng.normal(size=(n, 20)) + shift * rng.normal(size=(batches, 20))[batch]
    names = [f"{'ABCDEFGH'[i // 12 % 8]}{i % 12 + 1:02d}" for i in range(n)]
    counts = rng.poisson(200, n) + 100 * batch
    meta = {"Metadata_Batch": batch, "Metadata_Well": names, "Metadata_Count": counts}
    return pd.DataFrame(X).add_prefix("f").assign(**meta)


def points(table):
    return cosine(table[FEATURES]), table["Metadata_Batch"].to_numpy()


# --- kBET
def test_mixing():
    rejected, p = mixing(*points(wells(n=400)))
    assert rejected < 0.15
    assert p.shape == (400,)
    assert mixing(*points(wells(3.0, n=400)))[0] > 0.95
    near, batch = points(wells(n=400))
    assert np.isnan(mixing(near, np.zeros(400, dtype=int))[0])
    with pytest.raises(InputError, match="k=400: expected fewer neighbours"):
        mixing(near, batch, k=400)


def test_mixing_is_a_chi_square_test_of_each_neighbourhood():
    near, batch = points(wells(0.4, n=60))
    _, p = mixing(near, batch, k=12)
    values = near.rows(0, 60)
    np.fill_diagonal(values, -9)
    for row in (0, 17, 59):
        seen = np.bincount(batch[np.argsort(-values[row])[:12]], minlength=4)
        assert p[row] == pytest.approx(stats.chisquare(seen, np.bincount(batch) / 60 * 12).pvalue)


# --- LISI: parity with harmonypy, which takes Euclidean distances, here of rows of unit length
@pytest.mark.parametrize(("perplexity", "shift"), [(30, 0.0), (30, 1.0), (7, 0.5)])
def test_lisi_is_harmonypys(perplexity, shift):
    table = wells(shift, n=240)
    near, batch = points(table)
    unit = table[FEATURES].to_numpy() / np.linalg.norm(table[FEATURES], axis=1, keepdims=True)
    other = harmonypy.compute_lisi(unit, table, ["Metadata_Batch"], perplexity)[:, 0]
    median, index = lisi(near, batch, perplexity=perplexity)
    np.testing.assert_allclose(index, other, rtol=1e-4)
    assert median == np.median(index)


def test_lisi_of_five_on_paper():
    """On a line, at a perplexity of one: of two equally near neighbours each is half."""
    near = count_similarity(np.expm1([0.0, 1.0, 2.0, 3.0, 4.0]))
    median, index = lisi(near, np.array([0, 1, 0, 1, 1]), perplexity=1)
    assert index == pytest.approx([1, 1, 1, 2, 1])
    assert median == 1


def test_lisi_counts_batches():
    near, batch = points(wells(n=400))
    shuffled = [lisi(near, np.random.default_rng(k).permutation(batch))[0] for k in range(5)]
    assert lisi(near, batch)[0] == pytest.approx(np.mean(shuffled), abs=0.1)
    assert 3 < np.mean(shuffled) < 4
    assert lisi(*points(wells(5.0, n=400)))[0] == pytest.approx(1, abs=0.01)
    near, batch = points(wells(n=400))
    assert np.isnan(lisi(near, np.zeros(400, dtype=int))[0])
    index = lisi(near, np.where(batch == 0, -1, batch))[1]
    assert np.isnan(index).tolist() == (batch == 0).tolist()
    assert (index[batch > 0] <= 3).all()
    for wrong in (0.5, 200):
        with pytest.raises(InputError, match=f"perplexity={wrong:g}: expected 1 or more, and less than a third"):
            lisi(near, batch, perplexity=wrong)


# --- properties
@pytest.mark.parametrize("levels", [None, 3])
def test_neither_depends_on_the_order_of_rows(levels):
    """Equally near profiles at the last place share it."""
    table = wells(0.3, n=150)
    if levels:
        table[FEATURES] = np.random.default_rng(0).normal(size=(20, 20))[np.arange(150) % 20]
    order = np.random.default_rng(1).permutation(150)
    for measure in (mixing, lisi):
        value, each = measure(*points(table))
        moved, moved_each = measure(*points(table.iloc[order]))
        assert moved == pytest.approx(value, rel=1e-12)
        np.testing.assert_allclose(moved_each, each[order], rtol=1e-9)


def test_equal_profiles_are_mixed():
    same = wells().assign(**dict.fromkeys(FEATURES, 1.0))
    assert mixing(*points(same))[0] == 0
    sizes = np.bincount(same["Metadata_Batch"])
    around = np.array([sizes - (np.arange(4) == own) for own in same["Metadata_Batch"]]) / (len(same) - 1)
    np.testing.assert_allclose(lisi(*points(same))[1], 1 / (around**2).sum(axis=1))


# --- batches that lie wholly apart
def apart(*sizes):
    batch = np.repeat(np.arange(len(sizes)), sizes)
    rng = np.random.default_rng(0)
    X = rng.normal(size=(len(batch), 20)) + 30 * rng.normal(size=(len(sizes), 20))[batch]
    return pd.DataFrame(X).add_prefix("f").assign(Metadata_Batch=batch)


@pytest.mark.parametrize(("sizes", "k"), [((9, 9), None), ((30, 3), None), ((20, 20), 3), ((20, 20), 35)])
def test_kbet_is_not_told_where_nothing_could_be_rejected(sizes, k):
    """Of two batches of nine, ten neighbours are at most eight and two: p = 0.058."""
    near, batch = points(apart(*sizes))
    with pytest.raises(InputError, match=r"most would have p of 0\.05 or more even if groups lay wholly apart"):
        mixing(near, batch, k=k)
    if k is None:
        got = mixing_scores(apart(*sizes), ["Metadata_Batch"], metrics=["kbet"], counts=None).iloc[0]
        assert np.isnan(got["value"])
        words = f"10 neighbours of each of {sum(sizes)}, groups of at most {max(sizes)}: most would have"
        assert got["reason"].startswith(words)


@pytest.mark.parametrize("sizes", [(10, 10), (12, 10, 8), (9,) * 8, (4,) * 24, (2,) * 48])
def test_kbet_of_batches_apart_is_one(sizes):
    assert mixing(*points(apart(*sizes)))[0] == 1


def test_batches_apart_are_never_called_mixed():
    told = []
    for seed in range(30):
        sizes = np.random.default_rng(seed).integers(1, 25, 2 + seed % 3)
        with suppress(InputError):
            told.append(mixing(*points(apart(*sizes)))[0])
    assert 10 < len(told) < 30
    assert min(told) >= 0.5


def test_kbet_of_small_folds_is_nan_with_the_reason():
    table = apart(30, 30)
    X = table[FEATURES].to_numpy()
    shared = {"counts": None, "permutations": 3}
    got = mixing_scores(table, ["Metadata_Batch"], held_out=lambda part: X[part], **shared).set_index("score")
    assert np.isnan(got["value"]["kbet"])
    assert got["reason"]["kbet"].startswith("in a fold: 10 neighbours of each of 12, groups of at most")
    assert got["value"]["lisi"] == pytest.approx(1, abs=0.05)
    assert mixing_scores(table, ["Metadata_Batch"], **shared)["value"][0] == 1


# --- as scores
def test_scores_are_those_of_the_functions():
    table = wells(0.5, n=200)
    got = mixing_scores(table, ["Metadata_Batch", "well row"], permutations=20).set_index(["labels", "score"])
    assert len(got) == 6
    near, batch = points(table)
    assert got["value"]["Metadata_Batch", "kbet"] == mixing(near, batch)[0]
    assert got["value"]["Metadata_Batch", "lisi"] == pytest.approx(lisi(near, batch)[0], rel=1e-12)
    parts = component_association(table, ["Metadata_Batch"])
    share = (parts["explained"] * parts["r2"]).sum() / parts["explained"].sum()
    assert got["value"]["Metadata_Batch", "component_association"] == pytest.approx(share)
    counts = np.log1p(table["Metadata_Count"])
    cells = count_similarity(table["Metadata_Count"])
    assert got["cell_count"]["Metadata_Batch", "kbet"] == mixing(cells, batch)[0]
    assert got["cell_count"]["Metadata_Batch", "lisi"] == pytest.approx(lisi(cells, batch)[0], rel=1e-12)
    between = stats.f_oneway(*[counts[batch == b] for b in range(4)]).statistic * 3
    assert got["cell_count"]["Metadata_Batch", "component_association"] == pytest.approx(between / (between + 196))
    # batches that are there have the lowest p that 20 permutations allow, whichever way the score points
    assert got.loc["Metadata_Batch", "p"].tolist() == [1 / 21] * 3
    assert (got.loc["well row", "p"] > 0.05).all()
    assert got["permutation_95"]["Metadata_Batch", "lisi"] <= got["permutation_mean"]["Metadata_Batch", "lisi"]


def test_random_groups_score_their_chance():
    table = wells(n=300)
    got = mixing_scores(table, ["Metadata_Batch"], permutations=50).set_index("score")
    assert np.isnan(got["chance"]["kbet"])  # it depends on the sizes of batches; shuffled ones say what it is
    assert got["chance"]["component_association"] == pytest.approx(3 / 299)
    assert got["permutation_mean"]["component_association"] == pytest.approx(3 / 299, rel=0.1)
    assert got["permutation_mean"]["kbet"] == pytest.approx(0.05, abs=0.02)
    assert got["value"]["lisi"] == pytest.approx(got["permutation_mean"]["lisi"], abs=0.1)


def test_wells_are_compared_within_a_fold():
    table = wells(1.0, n=120)
    X = table[FEATURES].to_numpy()
    seen = []
    unseen = lambda part: seen.append(part) or X[part]  # noqa: E731
    got = mixing_scores(table, ["Metadata_Batch"], held_out=unseen, folds=4, permutations=5).set_index("score")
    assert sorted(np.concatenate(seen)) == list(range(120))
    parts = [mixing(*points(table.iloc[part]))[0] for part in seen]
    assert got["value"]["kbet"] == pytest.approx(np.mean(parts))
    whole = [lisi(*points(table.iloc[part]), perplexity=9)[1] for part in seen]
    assert got["value"]["lisi"] == pytest.approx(np.median(np.concatenate(whole)), rel=1e-12)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"Metadata_Batch": 1}, "all wells share one"),
        ({"Metadata_Batch": np.nan}, "no well has one"),
        ({"Metadata_Batch": np.arange(120)}, "no two wells share one"),
    ],
)
def test_undefined_with_the_reason(change, reason):
    got = mixing_scores(wells().assign(**change), ["Metadata_Batch"], permutations=3)
    assert got[["value", "p", "permutation_mean", "cell_count", "chance"]].isna().all(axis=None)
    assert got["reason"].tolist() == [reason] * 3


def test_few_wells_and_no_counts():
    got = mixing_scores(wells(n=4, batches=2), ["Metadata_Batch"], permutations=3).set_index("score")
    assert got["reason"]["kbet"] == "4 wells to compare: 10 neighbours of each need at least 11"
    assert got["reason"]["lisi"] == "4 wells to compare: at least 7 are needed"
    assert 0 <= got["value"]["component_association"] <= 1
    lost = mixing_scores(wells().assign(Metadata_Count=np.nan), ["Metadata_Batch"], permutations=3)
    assert lost["cell_count"].isna().all()
    assert lost["notes"].str.startswith("cell_count: 120 of 120 counts are missing").all()
    none = mixing_scores(wells().drop(columns="Metadata_Count"), ["Metadata_Batch"], permutations=3)
    assert none["notes"].eq("cell_count: the profiles have no column Metadata_Count").all()
    flat = wells().assign(**dict.fromkeys(FEATURES, 1.0))
    got = mixing_scores(flat, ["Metadata_Batch"], metrics=["component_association"])
    assert got["reason"].tolist() == ["all profiles are equal, so they have no components"]


@pytest.mark.parametrize("held", [False, True])
def test_scores_do_not_depend_on_the_order_of_rows(held):
    table = wells(0.3, n=150).assign(Metadata_Plate=[f"p{k % 3}" for k in range(150)])
    table.loc[20:29, FEATURES] = table.loc[20, FEATURES].to_numpy(float)
    order = np.random.default_rng(1).permutation(150)
    found = []
    for one in (table, table.iloc[order]):
        X = one[FEATURES].to_numpy()
        held_out = (lambda part, X=X: X[part]) if held else None
        by = ["Metadata_Batch", "Metadata_Plate", "well column"]
        found.append(mixing_scores(one, by, held_out=held_out, folds=3, permutations=20))
    pd.testing.assert_frame_equal(found[1], found[0], check_exact=True)


def test_a_recipe_that_leaves_a_missing_value_is_a_reason():
    """Such as a spread of zero among the controls of one fit."""
    table = wells(n=60)
    X = table[FEATURES].to_numpy(copy=True)
    X[3, 2] = np.nan
    got = mixing_scores(table, ["Metadata_Batch"], held_out=lambda part: X[part], permutations=3).set_index("score")
    assert got["value"].isna().all()
    words = "in a fold: 1 of 12 profiles are not finite; drop such features first"
    assert got["reason"]["component_association"] == words


def test_more_equal_profiles_than_can_be_weighed_are_a_reason(monkeypatch):
    monkeypatch.setattr("evaluation.neighbourhoods._MOST_LEVEL", 1000)
    got = mixing_scores(wells().assign(Metadata_Count=50), ["Metadata_Batch"], permutations=3).set_index("score")
    assert got["value"].notna().all()
    words = "cell_count: too many of 120 profiles are equal or equally near to weigh all neighbours"
    assert got["notes"][["kbet", "lisi"]].tolist() == [words] * 2


def test_words():
    with pytest.raises(InputError, match="metric 'ilisi' is not known; choose among kbet, lisi"):
        mixing_scores(wells(), ["Metadata_Batch"], metrics=["ilisi"])
    with pytest.raises(InputError, match="similarity 'euclidean' is not known"):
        mixing_scores(wells(), ["Metadata_Batch"], similarity="euclidean")
    with pytest.raises(InputError, match="there are no controls"):
        mixing_scores(wells()[:0], ["Metadata_Batch"])
    with pytest.raises(InputError, match="folds=60: expected 2 to 40"):
        mixing_scores(wells(), ["Metadata_Batch"], held_out=lambda part: part, folds=60)
    with pytest.raises(InputError, match="by: no column 'Metadata_Plate'"):
        mixing_scores(wells(), ["Metadata_Plate"])

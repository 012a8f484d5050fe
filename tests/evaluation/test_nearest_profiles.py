import numpy as np
import pytest
from scipy.stats import false_discovery_control

from cytominer_tools.errors import InputError
from evaluation import class_calls, cosine, nearest_profiles, target_ranks, unrelated_similarities


def made(n=120, classes=12, signal=1.0, seed=0, width=16):
    rng = np.random.default_rng(seed)
    codes = np.arange(n) % classes
    return rng.normal(size=(n, width)) + signal * rng.normal(size=(classes, width))[codes], codes


# --- parity: numpy, a query at a time
@pytest.mark.parametrize("reverse", [False, True])
def test_neighbours_are_what_sorting_says(reverse):
    X, codes = made()
    null = unrelated_similarities(X, codes)
    exclude = np.eye(len(X), dtype=bool)
    got = nearest_profiles(X, X, null, k=4, reverse=reverse, exclude=exclude)
    unit = X / np.linalg.norm(X, axis=1, keepdims=True)
    near = cosine(X).rows(0, len(X)).astype(float)  # as the null has them, in float32
    np.testing.assert_allclose(near, unit @ unit.T, atol=1e-6)
    for query in (0, 57):
        mine = got[got["query"] == query]
        values = np.delete(near[query], query)
        p = [(1 + ((null <= v) if reverse else (null >= v)).sum()) / (1 + len(null)) for v in values]
        order = np.argsort(values if reverse else -values)[:4]
        np.testing.assert_allclose(mine["similarity"], values[order], atol=1e-6)
        np.testing.assert_allclose(mine["p"], np.array(p)[order], rtol=1e-12)
        np.testing.assert_allclose(mine["q"], false_discovery_control(p)[order], rtol=1e-9)
        assert query not in set(mine["candidate"])
        assert mine["rank"].tolist() == [1, 2, 3, 4]


def test_unrelated_pairs_are_those_of_different_classes():
    X, codes = made(40, 4)
    codes = np.where(np.arange(40) < 5, -1, codes)
    compound = np.arange(40) // 2
    got = unrelated_similarities(X, codes, compound)
    near = cosine(X).rows(0, 40)
    pairs = [
        (i, j)
        for i in range(40)
        for j in range(i + 1, 40)
        if codes[i] >= 0 and codes[j] >= 0 and codes[i] != codes[j] and compound[i] != compound[j]
    ]
    assert sorted(got) == sorted(float(near[i, j]) for i, j in pairs)
    assert len(unrelated_similarities(X, np.full(40, -1))) == 40 * 39 // 2
    assert 100 < len(unrelated_similarities(X, np.full(40, -1), most=300)) <= 300


# --- property
def test_p_of_unrelated_profiles_is_uniform():
    X, codes = made(200, 20, signal=0)
    got = nearest_profiles(X, X, unrelated_similarities(X, codes), k=199, exclude=np.eye(200, dtype=bool))
    assert got["p"].mean() == pytest.approx(0.5, abs=0.02)
    assert (got["p"] < 0.05).mean() == pytest.approx(0.05, abs=0.01)


def test_what_is_opposite_reverses():
    X, codes = made(60, 6, signal=3.0)
    got = nearest_profiles(-X[:1], X, unrelated_similarities(X, codes), k=5, reverse=True)
    assert got["candidate"].iloc[0] == 0
    assert got["similarity"].iloc[0] == pytest.approx(-1)
    assert (codes[got["candidate"]] == codes[0]).all()
    assert (got["p"] < 0.02).all()


def test_calls_are_right_as_often_as_their_confidence_says():
    """Confidence learned on half of the profiles holds for the other half."""
    X, codes = made(1000, 25, signal=0.55, seed=3)
    hidden = np.random.default_rng(1).random(1000) < 0.5
    got = class_calls(X, np.where(hidden, -1, codes), [f"m{c}" for c in range(25)])
    right = got["called"] == [f"m{c}" for c in codes]
    asked = got[hidden]
    assert asked["known"].isna().all()
    assert right[hidden].mean() == pytest.approx(asked["confidence"].mean(), abs=0.06)
    sure = asked["confidence"] > asked["confidence"].median()
    assert right[hidden][sure].mean() > right[hidden][~sure].mean() + 0.15
    assert (np.diff(asked.sort_values("similarity")["confidence"]) >= 0).all()


def test_a_compound_does_not_vote_for_itself():
    X, codes = made(60, 6, signal=0)
    X[30:] = X[:30]  # a second dose that looks the same
    compound = np.arange(60) % 30
    names = [f"m{c}" for c in range(6)]
    codes = np.tile(codes[:30], 2)
    assert class_calls(X, codes, names)["right"].mean() == 1
    assert class_calls(X, codes, names, exclude=compound)["right"].mean() < 0.5


# --- golden
def test_ranks_of_targets_on_paper():
    similarity = np.array([[0.9, 0.1, 0.5, 0.3], [0.2, 0.2, 0.2, 0.8], [0.1, 0.2, 0.3, 0.4]])
    targets = np.array([[0, 0, 1, 0], [1, 0, 0, 1], [0, 0, 0, 0]], dtype=bool)
    got = target_ranks(similarity, targets)
    assert got["compound"].tolist() == [0, 1]
    assert got["best_rank"].tolist() == [2, 1]
    # one target among four is second or better half of the time; one of two is first half of the time
    assert got["p"].tolist() == pytest.approx([0.5, 0.5])
    tied = target_ranks(np.array([[0.5, 0.5, 0.5, 0.1]]), np.array([[True, False, False, False]])).iloc[0]
    assert (tied["best_rank"], tied["p"]) == (2, 0.75)


def test_random_targets_have_uniform_p():
    rng = np.random.default_rng(0)
    targets = np.zeros((2000, 50), dtype=bool)
    for row in targets:
        row[rng.permutation(50)[: rng.integers(1, 4)]] = True
    p = target_ranks(rng.random((2000, 50)), targets)["p"]
    assert (p <= 0.1).mean() == pytest.approx(0.08, abs=0.03)
    assert (p <= 0.5).mean() == pytest.approx(0.48, abs=0.04)


# --- words
def test_words():
    X, codes = made(20, 4)
    with pytest.raises(InputError, match="expected the same features"):
        nearest_profiles(X, X[:, :5], [0.0])
    with pytest.raises(InputError, match="k=0: expected 1 or more"):
        nearest_profiles(X, X, [0.0], k=0)
    with pytest.raises(InputError, match="there is no unrelated pair"):
        nearest_profiles(X, X, [])
    with pytest.raises(InputError, match="no profile is annotated"):
        class_calls(X, np.full(20, -1), [])
    with pytest.raises(InputError, match="expected the same, 2-d"):
        target_ranks(X, X[:, :3] > 0)
    assert class_calls(X[:6], codes[:6], list("abcd"))["confidence"].isna().all()

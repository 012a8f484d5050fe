import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata

from cytominer_tools import correlation_threshold, correlations
from cytominer_tools.correlations import correlated_pairs, ranks, replicate_weights
from cytominer_tools.errors import InputError, ProfileWarning


def table(n=60, d=40, seed=0, missing=0.0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 6)) @ rng.normal(size=(6, d)) + 0.3 * rng.normal(size=(n, d)) + 50 * rng.normal(size=d)
    return pd.DataFrame(x, columns=[f"f{i:02d}" for i in range(d)]).mask(rng.random((n, d)) < missing)


def slowly(frame, threshold, method="pearson"):
    """The rule word by word: of each pair the one that correlates more with all, of equal ones the later name."""
    r = frame.corr(method=method).abs()
    sums = r.sum().round(9)
    gone = set()
    for i, a in enumerate(frame.columns):
        for b in frame.columns[:i]:
            if r.loc[a, b] > threshold:
                gone.add(max((a, b), key=lambda name: (sums[name], name)))
    return gone


# --- parity with the rule, by pandas
@pytest.mark.filterwarnings("ignore::cytominer_tools.errors.ProfileWarning")
@pytest.mark.parametrize("missing", [0.0, 0.1])
@pytest.mark.parametrize("method", ["pearson", "spearman", "kendall"])
@pytest.mark.parametrize("threshold", [0.5, 0.9])
def test_rule(method, missing, threshold, monkeypatch):
    monkeypatch.setattr(correlations, "_BLOCK", 7)
    frame = table(missing=missing)
    assert set(correlation_threshold(frame, threshold=threshold, method=method)) == slowly(frame, threshold, method)


@pytest.mark.parametrize("missing", [0.0, 0.2])
def test_pairs_and_sums(missing, monkeypatch):
    monkeypatch.setattr(correlations, "_BLOCK", 7)
    frame = table(missing=missing)
    expected = np.nan_to_num(frame.corr().to_numpy())
    pairs = correlated_pairs(frame.to_numpy(), 0.5)
    np.testing.assert_allclose(pairs.r, expected[pairs.first, pairs.second], atol=1e-5)
    assert len(pairs.r) == np.tril(np.abs(expected) > 0.5, k=-1).sum()
    np.testing.assert_allclose(pairs.sums, np.abs(expected).sum(axis=0), rtol=1e-5)


# --- properties
@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**6))
@pytest.mark.filterwarnings("ignore::cytominer_tools.errors.ProfileWarning")
def test_order_of_columns_does_not_matter(seed):
    frame = table(30, 12, seed)
    frame = frame.assign(again=frame["f03"], minus=-frame["f05"])
    shuffled = frame[np.random.default_rng(seed).permutation(frame.columns)]
    assert set(correlation_threshold(frame)) == set(correlation_threshold(shuffled))


def test_of_two_equal_features_the_later_name_goes():
    frame = table(30, 3).assign(a=lambda t: t["f01"])
    for columns in (["a", "f01"], ["f01", "a"]):
        assert correlation_threshold(frame[columns]) == ["f01"]


def test_opposite_features_count_and_that_is_said():
    frame = pd.DataFrame({"a": [1.0, 2, 3, 5], "b": [-1.0, -2, -3, -5], "c": [1.0, -1, 2, 0]})
    with pytest.warns(ProfileWarning, match=r"1 feature\(s\) go for a correlation under -0.9 \(.\); pycytominer"):
        assert len(correlation_threshold(frame)) == 1
    assert correlation_threshold(frame, compat="pycytominer-1.7.1") == []


def test_constant_and_empty_columns_correlate_with_nothing():
    frame = table(20, 4).assign(flat=0.1, empty=np.nan, infinite=np.inf)
    assert not {"flat", "empty", "infinite"} & set(correlation_threshold(frame, threshold=0.0))


def test_a_value_at_the_threshold_is_not_over_it():
    frame = table(50, 2)
    r = frame.corr().to_numpy()[0, 1]
    assert correlated_pairs(frame.to_numpy(), abs(r) - 1e-9).r.tolist() == [pytest.approx(r, abs=1e-12)]
    assert len(correlated_pairs(frame.to_numpy(), abs(r) + 1e-9).r) == 0


def test_ranks():
    rows = np.array([[3.0, 1, 2, 2], [1, 2, 3, 4]])
    np.testing.assert_array_equal(ranks(rows), rankdata(rows, axis=1))


# --- golden: two replicates that agree and one that does not
def test_weights():
    r = np.array([[1, 0.8, -0.2], [0.8, 1, 0.0], [-0.2, 0.0, 1]])
    raw = np.array([0.4, 0.4, 0.01])
    np.testing.assert_allclose(replicate_weights(r, 0.01, 4), (raw / raw.sum()).round(4))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"threshold": 1.5}, r"threshold=1.5 variable must be between \(0 and 1\)"),
        ({"method": "cosine"}, "method='cosine' not supported, select one of pearson, spearman, kendall"),
        ({"samples": "f00 > 1e9"}, "no row is picked by samples='f00 > 1e9'"),
        ({"compat": "1.7.1"}, "compat='1.7.1': expected 'pycytominer-1.7.1'"),
    ],
)
def test_refuses(options, words):
    with pytest.raises(InputError, match=words):
        correlation_threshold(table(), **options)

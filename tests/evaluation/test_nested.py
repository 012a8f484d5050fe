import numpy as np
import pytest

from cytominer_tools.errors import InputError
from evaluation import average_precision, cosine, nested_search


def made(signal, seed, n=96, classes=8, width=12):
    rng = np.random.default_rng(seed)
    codes = np.arange(n) % classes
    return cosine(rng.normal(size=(n, width)) + signal * np.random.default_rng(50).normal(size=(classes, width))[codes])


LABELS = np.arange(96) % 8
COMPOUNDS = np.arange(96) % 48


def search(ways, **settings):
    return nested_search(ways, LABELS, COMPOUNDS, **{"rng": np.random.default_rng(0), "repeats": 1, **settings})


# --- parity
def test_the_ranking_is_by_mean_average_precision():
    import pandas as pd

    ways = {"poor": made(0.2, 1), "good": made(1.0, 2)}
    got = search(ways)
    assert got.table["name"].tolist() == ["good", "poor"]
    meta = pd.DataFrame({"label": LABELS})
    rng = np.random.default_rng(2)
    X = rng.normal(size=(96, 12)) + np.random.default_rng(50).normal(size=(8, 12))[LABELS]
    expected = average_precision(meta, X, ["label"], [], [], ["label"])["average_precision"].mean()
    assert got.table["mean_average_precision"][0] == pytest.approx(expected)
    # when one is always chosen, what is held out is its own score
    assert got.table["chosen"].tolist() == [5, 0]
    assert got.held_out == pytest.approx(expected)


# --- property: the best of many equal ones looks good, and the honest score does not
def test_the_winner_of_noise_is_not_believed():
    gain = []
    for trial in range(12):
        got = search({f"way {k}": made(0.0, 100 * trial + k) for k in range(12)})
        gain.append((got.table["mean_average_precision"][0], got.held_out, got.table["mean_average_precision"].mean()))
    best, honest, mean = np.mean(gain, axis=0)
    assert best > mean + 0.01
    assert honest == pytest.approx(mean, abs=0.006)


def test_every_compound_is_held_out_once_a_repeat():
    got = search({"a": made(0.5, 1), "b": made(0.5, 2)}, folds=4, repeats=3)
    assert len(got.splits) == 12
    assert got.splits["n"].sum() == 3 * 96


# --- words
@pytest.mark.parametrize(
    ("ways", "settings", "words"),
    [
        ({}, {}, "there is nothing to choose from"),
        ({"a": made(1, 0), "b": made(1, 0, n=40)}, {}, "b: 40 profiles, and a has 96"),
        ({"a": made(1, 0)}, {"folds": 49}, r"folds=49, repeats=1: expected 2 to 48 \(compounds\)"),
    ],
)
def test_words(ways, settings, words):
    with pytest.raises(InputError, match=words):
        search(ways, **settings)

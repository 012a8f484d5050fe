import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from cytominer_tools.errors import InputError
from evaluation import bootstrap, venkatraman, wilcoxon

# --- published: the one-sided p of few-shot models, 139 of 140 by the rule that scipy had; released task means
PUBLISHED = {
    ("8", "protonet_cp+", "multitask_cp"): 7.89e-01,
    ("8", "multitask_cp", "protonet_img"): 1.43e-04,
    ("16", "protonet_cp+", "protonet_cp"): 1.45e-02,
    ("16", "singletask_cp", "maml_img"): 3.49e-02,
    ("32", "multitask_cp", "logistic_cp+"): 3.81e-06,
    ("32", "logistic_cp+", "maml_img"): 7.97e-03,
    ("64", "protonet_cp+", "singletask_cp"): 6.97e-03,
    ("64", "maml_cp+", "logistic_cp+"): 4.10e-03,
    ("96", "protonet_cp+", "multitask_cp"): 2.84e-01,
    ("96", "maml_cp+", "protonet_img"): 4.44e-04,
}


@pytest.mark.data
@pytest.mark.parametrize(("models", "p"), PUBLISHED.items())
def test_published_p_values(data, models, p):
    means = json.loads((data.parent / "reference" / "fsl_cp_result_summaries.json").read_text())["auroc"]
    shots, first, second = models
    a, b = ([float(means[m][task][shots].split("+")[0]) for task in means[first]] for m in (first, second))
    assert len(a) == 18
    assert f"{wilcoxon(a, b, legacy=True).p:.2e}" == f"{p:.2e}"


def test_legacy_lets_noise_break_ties():
    a, b = np.array([0.3, 0.2, 0.7]), np.array([0.2, 0.1, 0.72])
    assert wilcoxon(a, b).ties == 2
    assert wilcoxon(a, b, legacy=True).ties == 0


# --- parity: scipy, where nothing ties; all signs, where something does
@settings(deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["greater", "less", "two-sided"]))
def test_untied_is_scipys(seed, alternative):
    a, b = np.random.default_rng(seed).normal(size=(2, 15))
    expected = stats.wilcoxon(a, b, alternative=alternative, method="exact")
    assert wilcoxon(a, b, alternative=alternative).p == pytest.approx(expected.pvalue, rel=1e-9)


@settings(deadline=None)
@given(st.lists(st.integers(-3, 3), min_size=1, max_size=9))
def test_tied_is_the_share_of_all_signs(differences):
    d = np.array(differences, dtype=float)
    got = wilcoxon(d, np.zeros(len(d)))
    kept = d[d != 0]
    assert (got.n, got.zeros) == (len(kept), len(d) - len(kept))
    if not len(kept):
        assert np.isnan(got.p)
        return
    ranks = stats.rankdata(np.abs(kept))
    signs = (np.arange(2 ** len(kept))[:, None] >> np.arange(len(kept))) & 1
    sums = signs @ ranks
    assert got.p == pytest.approx((sums >= ranks[kept > 0].sum()).mean(), rel=1e-12)
    # both tails overlap in the value that was seen
    other = wilcoxon(np.zeros(len(d)), d)
    assert got.p + other.p == pytest.approx(1 + (sums == ranks[kept > 0].sum()).mean(), rel=1e-12)


def test_golden_p():
    assert [wilcoxon(np.arange(1.0, 19), np.zeros(18)).p] == [pytest.approx(2**-18)]
    assert wilcoxon(np.arange(1, 200.0) - 80, np.zeros(199)).method == "normal"


# --- bootstrap
def test_interval_holds_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(200):
        got = bootstrap(rng.normal(size=40), draws=300, rng=rng)
        inside += got.low <= 0 <= got.high
    assert 0.87 < inside / 200 <= 0.99


def test_groups_widen_an_interval_and_pairs_narrow_it():
    rng = np.random.default_rng(1)
    group = np.repeat(np.arange(20), 10)
    values = rng.normal(size=20)[group] + 0.1 * rng.normal(size=200)
    plain = bootstrap(values, rng=np.random.default_rng(2))
    grouped = bootstrap(values, groups=group, rng=np.random.default_rng(2))
    assert grouped.n == 20
    assert grouped.high - grouped.low > 2 * (plain.high - plain.low)
    pairs = np.stack([values, values + 0.05], axis=1)
    gain = bootstrap(pairs, statistic=lambda v: float((v[:, 1] - v[:, 0]).mean()), rng=np.random.default_rng(2))
    assert gain.low == pytest.approx(0.05)
    assert bootstrap(np.full(3, np.nan), rng=rng).n == 0


# --- Venkatraman: the case of its description, on paper
def test_venkatraman_golden():
    truth, x = [0, 0, 0, 0, 1, 1, 1, 1], [1, 2, 3, 4, 5, 6, 7, 8]
    y = [6, 1, 7, 3, 2, 5, 4, 8]
    got = venkatraman(truth, x, y, rng=np.random.default_rng(0))
    assert got.statistic == 14
    assert got.p == pytest.approx(0.116, abs=0.03)
    assert venkatraman(truth, x, x, rng=np.random.default_rng(0)).p == 1
    turned = venkatraman(truth, np.exp(np.array(y, float)), x, rng=np.random.default_rng(0))
    assert turned.statistic == 14


@pytest.mark.slow
def test_venkatraman_is_calibrated_and_sees_crossing_curves():
    rng = np.random.default_rng(3)
    truth = np.arange(60) % 2
    p = [venkatraman(truth, *(truth + rng.normal(size=(2, 60))), draws=99, rng=rng).p for _ in range(100)]
    assert stats.kstest(p, "uniform").pvalue > 0.01
    truth = np.arange(400) % 2
    # same area, another shape: a narrow shift against a wide one
    wide = np.where(truth == 1, rng.normal(1.0, 3.0, 400), rng.normal(0, 1, 400))
    narrow = np.where(truth == 1, rng.normal(0.45, 1.0, 400), rng.normal(0, 1, 400))
    assert venkatraman(truth, wide, narrow, draws=199, rng=rng).p < 0.05


def test_words():
    rng = np.random.default_rng(0)
    with pytest.raises(InputError, match="two lists of one length"):
        wilcoxon([1, 2], [1])
    with pytest.raises(InputError, match="truth has one class"):
        venkatraman([1, 1], [0.1, 0.2], [0.3, 0.4], rng=rng)
    with pytest.raises(InputError, match="expected 3 codes, one a value"):
        bootstrap([1, 2, 3], groups=[1, 2], rng=rng)

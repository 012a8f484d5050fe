import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from cytominer_tools.errors import InputError
from evaluation import task_metrics, task_summary
from evaluation.tasks import METRICS, binary_metrics


# --- parity: scikit-learn
@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 20))
def test_metrics_are_scikit_learns(seed, levels):
    rng = np.random.default_rng(seed)
    y = np.array([0, 1, *rng.integers(0, 2, 30)])
    s = rng.integers(0, levels + 1, 32) / levels
    got = binary_metrics(y, s)
    called = s >= 0.5
    assert got["auroc"] == pytest.approx(metrics.roc_auc_score(y, s))
    assert got["auprc"] == pytest.approx(metrics.average_precision_score(y, s))
    assert got["f1"] == pytest.approx(metrics.f1_score(y, called, zero_division=0))
    assert got["balanced_accuracy"] == pytest.approx(metrics.balanced_accuracy_score(y, called))
    assert got["kappa"] == pytest.approx(metrics.cohen_kappa_score(y, called))
    turned = binary_metrics(1 - y, s)
    assert got["auroc"] + turned["auroc"] == pytest.approx(1)
    assert binary_metrics(y, s**3 + 7)["auroc"] == pytest.approx(got["auroc"])


# --- golden: 87 of 129 actives and 93 of 322 inactives were called
def test_hard_calls_golden():
    y = np.repeat([1, 0], [129, 322])
    s = np.concatenate([np.repeat([1, 0], [87, 42]), np.repeat([1, 0], [93, 229])]).astype(float)
    got = binary_metrics(y, s)
    expected = {"f1": 0.56311, "balanced_accuracy": 0.69280, "kappa": 0.34475, "auroc": 0.69280, "auprc": 0.41910}
    for name, value in expected.items():
        assert got[name] == pytest.approx(value, abs=5e-6)
    assert got["riptop"] == pytest.approx(0.1864, abs=5e-5)


# --- published: two case studies, from counts of (true, all) calls of 93 actives and 153 others, and 129 and 322
@pytest.mark.parametrize(
    ("active", "inactive", "tp", "called", "riptop", "auroc"),
    [
        (93, 153, 1, 1, 0.0108, 0.505),
        (93, 153, 15, 15, 0.161, 0.581),
        (93, 153, 62, 62, 0.667, 0.833),
        (93, 153, 69, 76, 0.632, 0.848),
        (93, 153, 75, 104, 0.445, 0.808),
        (93, 153, 77, 86, 0.689, 0.885),
        (129, 322, 2, 2, 0.0155, 0.508),
        (129, 322, 17, 26, 0.0679, 0.552),
        (129, 322, 57, 103, 0.165, 0.650),
        (129, 322, 87, 180, 0.186, 0.693),
        (129, 322, 85, 160, 0.226, 0.713),
    ],
)
def test_published_case_studies(active, inactive, tp, called, riptop, auroc):
    y = np.repeat([1, 0], [active, inactive])
    s = np.zeros(len(y))
    s[:tp] = s[active : active + called - tp] = 1
    got = binary_metrics(y, s)
    assert got["riptop"] == pytest.approx(riptop, abs=6e-4)
    assert got["auroc"] == pytest.approx(auroc, abs=6e-4)


def test_perfect_and_constant():
    y = np.array([0, 0, 0, 1])
    assert set(binary_metrics(y, y.astype(float)).values()) == {1.0, 0.75}
    flat = binary_metrics(y, np.full(4, 0.3))
    assert [flat[k] for k in ("auroc", "auprc", "delta_auprc", "riptop", "kappa")] == [0.5, 0.25, 0, 0, 0]


# --- tables
def test_only_known_labels_count():
    truth = pd.DataFrame({"a": [0, 1, np.nan, 1], "b": [1, 1, np.nan, np.nan]}, index=list("wxyz"))
    scores = pd.DataFrame({"b": [0.1, 0.2, 0.3, 0.4], "a": [0.9, 0.2, 0.7, 0.95]}, index=list("zyxw")[::-1])
    got = task_metrics(truth, scores).set_index("task")
    assert got.loc["a", ["n", "n_active", "auroc"]].tolist() == [3, 2, 0.5]
    assert np.isnan(got.loc["b", "auroc"])
    assert got.loc["b", "reason"] == "2 labels, 2 of them active: both kinds are needed"
    summary = task_summary(got.reset_index()).set_index("metric")
    assert summary.loc["auroc", ["n", "above_0.9", "above_0.7"]].tolist() == [1, 0, 0]
    assert summary.index.tolist() == list(METRICS)


@pytest.mark.data
def test_label_counts_of_hti_cnn(data):
    from scipy.io import mmread

    folder = data / "activity_hti_cnn"
    matrix = mmread(folder / "label-matrix.mtx").tocsc()
    counts = pd.read_csv(folder / "assay_counts.csv")
    assert matrix.shape == (10574, 209)
    assert ((matrix.data == 1).sum(), (matrix.data == -1).sum()) == (19274, 36268)
    truth = pd.DataFrame(np.nan, index=range(matrix.shape[0]), columns=range(209))
    rows, columns = matrix.nonzero()
    values = truth.to_numpy(copy=True)
    values[rows, columns] = np.asarray(matrix[rows, columns]).ravel() > 0
    truth = pd.DataFrame(values)
    got = task_metrics(truth, pd.DataFrame(np.full(values.shape, 0.5)))
    assert (int(got["n"].sum()), int(got["n_active"].sum())) == (55542, 19274)
    assert len(counts) == 209
    np.testing.assert_allclose(got["auprc"], got["prevalence"], rtol=1e-12)


def test_words():
    truth = pd.DataFrame({"a": [0, 1]})
    with pytest.raises(InputError, match="a: all scores are 0 or 1, calls and not probabilities"):
        task_metrics(truth, truth.astype(float))
    assert task_metrics(truth, truth.astype(float), hard_calls=True)["auroc"][0] == 1
    with pytest.raises(InputError, match="a: label -1; expected 0"):
        task_metrics(truth.replace(0, -1), pd.DataFrame({"a": [0.1, 0.2]}))
    with pytest.raises(InputError, match="expected the same names in both"):
        task_metrics(truth, pd.DataFrame({"b": [0.1, 0.2]}))
    with pytest.raises(InputError, match="a: 1 compounds with a label have no finite score"):
        task_metrics(truth, pd.DataFrame({"a": [0.1, np.nan]}))

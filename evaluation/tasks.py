"""Scores of predicted activities: one binary task a column, unknown labels left out."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import rankdata

from cytominer_tools.errors import InputError
from evaluation.similarity import Floats

METRICS = ("auroc", "auprc", "delta_auprc", "riptop", "f1", "balanced_accuracy", "kappa")


def binary_metrics(truth: npt.ArrayLike, scores: npt.ArrayLike, *, cut: float = 0.5) -> dict[str, float]:
    """AUROC, AUPRC and their kin of one task.

    Parameters
    ----------
    truth : array of 0 and 1, shape (n,)
    scores : float array, shape (n,), finite
        Higher for 1. Ties count half in AUROC and are one step of AUPRC.
    cut : float
        Scores from here on are called 1, for F1, balanced accuracy and kappa.

    Returns
    -------
    dict
        auroc, auprc (average precision), delta_auprc (less the prevalence), riptop ((auprc - prevalence) /
        (1 - prevalence)), f1, balanced_accuracy, kappa; NaN where undefined, all of them with one class.

    Examples
    --------
    >>> {k: round(v, 3) for k, v in binary_metrics([0, 0, 1, 1], [0.1, 0.6, 0.4, 0.9]).items()}["auroc"]
    0.75
    """
    y, s = np.asarray(truth, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    if y.shape != s.shape or y.ndim != 1 or not np.isin(y, (0, 1)).all() or not np.isfinite(s).all():
        raise InputError("expected truth of 0 and 1 and as many finite scores")
    active, n = int(y.sum()), len(y)
    if not 0 < active < n:
        return dict.fromkeys(METRICS, np.nan)
    auroc = (rankdata(s)[y == 1].sum() - active * (active + 1) / 2) / (active * (n - active))
    order = np.argsort(-s, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(s[order]) != 0, True))
    hits = np.cumsum(y[order])[ends]
    auprc = float((np.diff(hits, prepend=0) / active * hits / (ends + 1)).sum())
    share = active / n
    called = s >= cut
    tp, fp = float((called & (y == 1)).sum()), float((called & (y == 0)).sum())
    fn, tn = active - tp, n - active - fp
    bottom = (tp + fp) * (fp + tn) + (tp + fn) * (fn + tn)
    return {
        "auroc": float(auroc),
        "auprc": auprc,
        "delta_auprc": auprc - share,
        "riptop": (auprc - share) / (1 - share),
        "f1": 2 * tp / (2 * tp + fp + fn),
        "balanced_accuracy": (tp / active + tn / (n - active)) / 2,
        "kappa": 2 * (tp * tn - fn * fp) / bottom,
    }


def task_metrics(
    truth: pd.DataFrame, scores: pd.DataFrame, *, cut: float = 0.5, hard_calls: bool = False
) -> pd.DataFrame:
    """`binary_metrics` of each task, from probabilities.

    Parameters
    ----------
    truth : DataFrame of 0, 1 and NaN (unknown), a row a compound, a column a task
    scores : DataFrame of probabilities with the same index and columns, in any order
    cut : float
    hard_calls : bool
        Take scores that are all 0 or 1: their AUROC is the balanced accuracy, no ranking.

    Returns
    -------
    DataFrame, a row a task
        task, n, n_active, prevalence, the seven metrics, reason (empty where they are defined).

    Raises
    ------
    InputError
        Rows or columns differ, a label is no 0, 1 or NaN, a score of a known label is missing, or scores are hard
        calls.
    """
    if set(truth.columns) != set(scores.columns) or set(truth.index) != set(scores.index):
        raise InputError(
            f"truth has {truth.shape[0]} rows and {truth.shape[1]} tasks, scores {scores.shape[0]} and "
            f"{scores.shape[1]}; expected the same names in both"
        )
    if not truth.index.is_unique or not truth.columns.is_unique:
        raise InputError("truth: names of rows and tasks must be unique")
    scores = scores.loc[truth.index, truth.columns]
    rows = []
    for task in truth.columns:
        y = truth[task].to_numpy(dtype=np.float64, na_value=np.nan)
        s = scores[task].to_numpy(dtype=np.float64, na_value=np.nan)
        known = ~np.isnan(y)
        y, s = y[known], s[known]
        if len(bad := y[~np.isin(y, (0, 1))]):
            raise InputError(f"{task}: label {bad[0]:g}; expected 0 (inactive), 1 (active) or NaN (unknown)")
        if not np.isfinite(s).all():
            raise InputError(f"{task}: {int((~np.isfinite(s)).sum())} compounds with a label have no finite score")
        if len(s) and not hard_calls and np.isin(s, (0, 1)).all():
            raise InputError(
                f"{task}: all scores are 0 or 1, calls and not probabilities, which have no ranking; give "
                "probabilities, or hard_calls=True"
            )
        active = int(y.sum())
        reason = "" if 0 < active < len(y) else f"{len(y)} labels, {active} of them active: both kinds are needed"
        values = binary_metrics(y, s, cut=cut)
        share = active / len(y) if len(y) else np.nan
        rows.append({"task": task, "n": len(y), "n_active": active, "prevalence": share, **values, "reason": reason})
    return pd.DataFrame(rows, columns=["task", "n", "n_active", "prevalence", *METRICS, "reason"])


def task_summary(table: pd.DataFrame, *, marks: Sequence[float] = (0.9, 0.8, 0.7)) -> pd.DataFrame:
    """Mean and spread over tasks of each metric, and how many tasks have an AUROC above each mark.

    Parameters
    ----------
    table : DataFrame of `task_metrics`
    marks : numbers
        Strictly above.

    Returns
    -------
    DataFrame, a row a metric
        metric, mean, sd (of a sample), n (tasks where it is defined), and above_MARK for each mark.
    """
    rows = []
    for name in METRICS:
        values: Floats = table[name].dropna().to_numpy(dtype=np.float64)
        row: dict[str, object] = {
            "metric": name,
            "mean": float(values.mean()) if len(values) else np.nan,
            "sd": float(values.std(ddof=1)) if len(values) > 1 else np.nan,
            "n": len(values),
        }
        rows.append(row | {f"above_{mark:g}": int((values > mark).sum()) for mark in marks})
    return pd.DataFrame(rows)

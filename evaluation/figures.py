"""Scores and similarities as matplotlib figures; none of pyplot's global state is used or changed."""

import re
from collections.abc import Sequence
from itertools import pairwise
from textwrap import wrap
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from cytominer_tools.columns import METADATA, feature_columns, require_columns
from cytominer_tools.errors import InputError
from evaluation.scores import SIMILARITIES, finite_features
from evaluation.similarity import Floats, Similarity

TITLES = {
    "precision_at_r": "Precision at R",
    "enrichment": "Enrichment (odds ratio)",
    "mean_average_precision": "Mean average precision",
    "nearest": "Nearest profile matches",
    "hit_s20": "Hit@k, first 20 % (0 is random order, 0.9 the best)",
    "robust_enrichment": "Robust enrichment (odds ratio)",
    "percent_replicating": "Share of classes that replicate",
    "precision_at_5": "Precision at 5",
    "precision_at_10": "Precision at 10",
    "recall_at_5": "Recall at 5",
    "recall_at_10": "Recall at 10",
    "kbet": "kBET: wells among other batches than expected (1 is apart)",
    "lisi": "LISI: batches around each well, in effect (1 is apart)",
    "component_association": "Share of the variance of 10 components that is between batches",
}
INK, GREY, ORANGE, BLUE = (
    "#222222",
    "#8a8a8a",
    "#d55e00",
    "#0072b2",
)  # the last two: Okabe & Ito, safe for the colour blind
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "axes.edgecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "text.color": INK,
}
NO_LABEL = "(no label)"
_MOST_PIXELS = 1000
_HIGHEST = 10.0  # inches
_LOWEST_ROW = 0.095  # inches between two names of 6 points


def score_figure(table: pd.DataFrame, *, names: Sequence[str] | None = None) -> Figure:
    """Each score beside its baselines: permutations (mean to 95th percentile), cell count, and chance.

    Parameters
    ----------
    table : DataFrame
        `Scores.table`, or several of them one below the other; a panel for each kind of score, a line for each row.
    names : list of str, one a row of `table`, optional
        What to call the rows, such as the model; by default the label column and the similarity.

    Raises
    ------
    InputError
        The table has no rows or lacks a column, or `names` has another length.
    """
    columns = ["score", "labels", "similarity", "value", "reason", "permutation_mean", "permutation_95", "cell_count"]
    require_columns(table, columns, "score table")
    if table.empty:
        raise InputError("the score table has no rows; score some profiles first")
    if names is not None and len(names) != len(table):
        raise InputError(f"names: got {len(names)} for {len(table)} rows; give one a row")
    if names is None:
        names = [f"{row.labels}\n{row.similarity}" for row in table.itertuples()]
    table = table.assign(_name=list(names))
    panels = [(str(kind), part.reset_index(drop=True)) for kind, part in table.groupby("score", sort=False)]
    heights = [0.75 + 0.55 * len(part) for _, part in panels]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.2, sum(heights) + 0.55), layout="constrained", facecolor="white")
        axes = figure.subplots(len(panels), 1, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
        for axis, (kind, part) in zip(axes, panels, strict=True):
            _score_panel(axis, kind, part)
        drawn = {}
        for axis in axes:
            drawn.update({label: handle for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)})
        if drawn:
            figure.legend(
                drawn.values(), drawn.keys(), loc="outside lower center", ncols=4, frameon=False, handletextpad=0.5
            )
    return figure


def _score_panel(axis: mpl.axes.Axes, kind: str, part: pd.DataFrame) -> None:
    lines = np.arange(len(part))
    numbers = part[["value", "permutation_mean", "permutation_95", "cell_count"]].astype(float)
    chance = part["chance"].astype(float).to_numpy() if "chance" in part else np.full(len(part), np.nan)
    top = np.nanmax([0.0, *numbers.to_numpy().ravel(), *chance]) or 1.0
    axis.set_title(TITLES.get(kind, kind), loc="left", fontsize=10, fontweight="bold")
    axis.set_ylim(len(part) - 0.4, -0.6)
    axis.set_xlim(0, top * 1.16)
    axis.set_yticks(lines, part["_name"], fontsize=8)
    axis.tick_params(axis="y", length=0)
    axis.spines["left"].set_visible(False)
    values = numbers["value"].to_numpy()
    defined = ~np.isnan(values)
    if defined.any():
        axis.grid(axis="x", color="#e4e4e4", linewidth=0.7)
        axis.set_axisbelow(True)
    else:  # nothing to measure against
        axis.set_xticks([])
        axis.spines["bottom"].set_visible(False)
    for line in lines[defined]:
        value = float(values[line])
        axis.barh(line, value, height=0.34, color="#b9d3e6", zorder=1)
        axis.text(
            value + top * 0.015, line - 0.27, f"{value:.3g}", va="center", fontsize=9, fontweight="bold", color=BLUE
        )
    for line in lines[~defined]:
        reason = str(part.at[line, "reason"]) or "no reason given"
        text = "\n".join(wrap(reason if reason.startswith("infinite") else f"undefined: {reason}", 88)[:3])
        axis.text(
            0.01, line, text, transform=axis.get_yaxis_transform(), va="center", fontsize=8, style="italic", color=GREY
        )
    if defined.any():
        axis.plot(values, lines, "o", color=BLUE, markersize=8, label="score", zorder=5)
    marks = (
        ("permutation_mean", "D", 5, GREY, "permuted labels: mean to 95 %"),
        ("cell_count", "^", 7, ORANGE, "cell count"),
    )
    for column, shape, size, colour, label in marks:
        shown = numbers[column].notna().to_numpy() & defined
        if shown.any():
            axis.plot(numbers[column][shown], lines[shown], shape, color=colour, markersize=size, label=label, zorder=4)
    ranged = numbers[["permutation_mean", "permutation_95"]].notna().all(axis=1).to_numpy() & defined
    low, high = numbers["permutation_mean"][ranged], numbers["permutation_95"][ranged]
    axis.hlines(lines[ranged], low, high, color=GREY, linewidth=1.6, zorder=3)
    axis.vlines(high, lines[ranged] - 0.13, lines[ranged] + 0.13, color=GREY, linewidth=1.6, zorder=3)
    shown = ~np.isnan(chance) & defined
    if shown.any():
        low, high = lines[shown] - 0.3, lines[shown] + 0.3
        axis.vlines(chance[shown], low, high, color=INK, linewidth=1, linestyle=":", label="chance", zorder=2)


def similarity_figure(
    profiles: pd.DataFrame,
    labels: str,
    features: Sequence[str] | Literal["infer"] = "infer",
    *,
    similarity: str = "cosine",
    title: str | None = None,
) -> Figure:
    """Heat map of the similarity of all profiles, ordered by label, a frame around each class.

    Rows without a label come last. The figure grows to 10 inches if that lets every class have its name. Colours end at
    the 1st and 99th percentile of what is off the diagonal, the same distance on both sides of 0. Over 1000 profiles,
    neighbouring ones share a pixel, which shows their mean.

    Parameters
    ----------
    profiles : DataFrame, a row a profile
    labels : str
        The column to order by.
    features : list of names, or "infer"
    similarity : "cosine" or "pearson"
    title : str, optional

    Raises
    ------
    InputError
        Fewer than two profiles, an absent column, or a feature that is missing or infinite.
    """
    require_columns(profiles, [labels], "labels")
    if similarity not in SIMILARITIES:
        raise InputError(f"similarity {similarity!r} is not known; choose one of {', '.join(SIMILARITIES)}")
    if len(profiles) < 2:
        raise InputError(f"{len(profiles)} profile: a similarity needs at least 2")
    words = profiles[labels].astype("str").where(profiles[labels].notna(), "")
    places = {word: place for place, word in enumerate(sorted(set(words), key=natural))}
    order = np.argsort(words.map(places).to_numpy(), kind="stable")
    ordered = profiles.iloc[order]
    words = words.iloc[order].replace("", NO_LABEL)
    picture = _shrunk(SIMILARITIES[similarity](finite_features(ordered, feature_columns(profiles, features))))
    scale = len(picture) / len(profiles)
    off = picture[~np.eye(len(picture), dtype=bool)]
    limit = float(np.abs(np.quantile(off, [0.01, 0.99])).max()) or 1.0

    runs = words.ne(words.shift()).cumsum().to_numpy()
    starts = np.flatnonzero(np.diff(runs, prepend=0))
    stops = np.append(starts[1:], len(words))
    middle = (starts + stops) / 2
    gap = np.diff(middle).min() / len(words) if len(middle) > 1 else 1.0
    needed = _LOWEST_ROW / gap / 0.88  # inches at which the closest two names stay apart
    named = needed <= _HIGHEST
    height = max(6.2, needed) if named else 6.2
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(height + 2, height + 0.6), layout="constrained", facecolor="white")
        axis = figure.subplots()
        image = axis.imshow(
            picture,
            cmap="RdBu_r",
            vmin=-limit,
            vmax=limit,
            interpolation="nearest",
            extent=(0, len(words), len(words), 0),
        )
        axis.set_title(
            title or f"{similarity.capitalize()} similarity of {len(words)} profiles", loc="left", fontweight="bold"
        )
        axis.spines[["top", "right", "left", "bottom"]].set_visible(False)
        axis.set_xticks([])
        if named:
            size = float(np.clip(height * 0.88 * gap * 72 * 0.85, 5.8, 9))
            short = [clipped(words.iloc[i], 32) for i in starts]
            axis.set_yticks(middle, short, fontsize=size)
            axis.tick_params(axis="y", length=0, pad=4)
            axis.set_xlabel(labels.removeprefix(METADATA))
        else:
            axis.set_yticks([])
            axis.set_xlabel(
                f"{labels.removeprefix(METADATA)}: {len(starts)} classes in order of their names, too many to show"
            )
        if scale == 1 and len(starts) < len(words):
            known = words.iloc[starts].ne(NO_LABEL).to_numpy()
            for start, stop in zip(starts[known], stops[known], strict=True):
                axis.plot(
                    [start, stop, stop, start, start],
                    [start, start, stop, stop, start],
                    color=INK,
                    linewidth=0.8,
                    clip_on=False,
                )
        bar = figure.colorbar(image, ax=axis, shrink=0.6, aspect=25, extend="both", pad=0.02)
        bar.set_label(similarity)
        bar.outline.set_visible(False)
    return figure


def natural(word: str) -> tuple[bool, list[tuple[float, str]]]:
    """A sort key that puts 3 before 12, and no word at all last."""
    parts = re.split(r"(\d+(?:\.\d+)?)", word)
    return word == "", [(float(part) if at % 2 else -1.0, part) for at, part in enumerate(parts)]


def clipped(word: str, most: int) -> str:
    """A name of at most `most` letters, with a sign where it goes on.

    >>> clipped("tubulin inhibitor", 10), clipped("DMSO", 10)
    ('tubulin i…', 'DMSO')
    """
    return word if len(word) <= most else word[: most - 1] + "…"


def _shrunk(similarity: Similarity) -> Floats:
    """The matrix, or means over blocks of neighbours where it is wider than a screen."""
    pixels = min(similarity.n, _MOST_PIXELS)
    edges = np.linspace(0, similarity.n, pixels + 1).round().astype(int)
    widths = np.diff(edges)
    picture = np.empty((pixels, pixels))
    for pixel, (start, stop) in enumerate(pairwise(edges)):
        row = similarity.rows(int(start), int(stop)).mean(axis=0, dtype=np.float64)
        picture[pixel] = np.add.reduceat(row, edges[:-1]) / widths
    return picture

"""Profiles as matplotlib figures, those of the report too: `figure.savefig("map.svg")` writes SVG, PNG or PDF."""

from collections.abc import Mapping, Sequence
from string import ascii_uppercase
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from cytominer_tools.columns import METADATA, PLATE, WELL, feature_columns, require_columns
from cytominer_tools.errors import InputError
from evaluation.figures import BLUE, GREY, INK, ORANGE, STYLE, clipped, natural
from evaluation.plates import plate_format, plate_grid, require_places, well_places
from evaluation.report_parts import Curves, Dose, similarity_tree, usable
from evaluation.similarity import cosine

# Okabe & Ito and Tol, safe for the colour blind; orange is kept for what is pointed out
CLASSES = (BLUE, "#009e73", "#cc79a7", "#56b4e9", "#b89b00", "#332288", "#44aa99")
SHAPES = ("o", "s", "D", "^", "P", "X", "v")
PALE = "#c9c9c9"
_LETTERS = [*ascii_uppercase, *(f"A{letter}" for letter in ascii_uppercase[:6])]  # rows of a plate of 1536 wells
_MOST_ROWS = 1500  # in a tree, which grows with their square


def plate_figure(wells: pd.DataFrame, column: str, *, treatment: tuple[str, str] | None = None) -> Figure:
    """Heat maps of a column of numbers, a panel a plate, on one scale from the 1st to the 99th percentile.

    Parameters
    ----------
    wells : DataFrame, a row a well, with Metadata_Plate and Metadata_Well
    column : str
    treatment : (column, value), optional
        Wells to frame.

    Raises
    ------
    InputError
        A column is absent, `column` holds no number, or a well cannot be read.
    """
    require_places(wells, "wells")
    require_columns(wells, [column, *([treatment[0]] if treatment else [])], "wells")
    values = pd.to_numeric(wells[column], errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    known = values[np.isfinite(values)]
    if not len(known):
        raise InputError(f"{column}: no well has a number there")
    row, place = well_places(wells[WELL])
    rows, columns = plate_format(row, place)
    plates = wells[PLATE].astype("str").to_numpy(dtype=object)
    names = sorted(set(plates), key=natural)
    down = -(-len(names) // 5)
    across = -(-len(names) // down)
    low, high = np.quantile(known, [0.01, 0.99])
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(2.1 * across + 1, (2.1 * rows / columns + 0.3) * down + 0.3), layout="constrained")
        axes = figure.subplots(down, across, squeeze=False).ravel()
        for axis in axes[len(names) :]:
            axis.set_axis_off()
        for axis, name in zip(axes, names, strict=False):
            axis.set_xticks([0, columns // 2 - 1, columns - 1], [1, columns // 2, columns], fontsize=6)
            axis.set_yticks(
                [0, rows // 2 - 1, rows - 1], [_LETTERS[at] for at in (0, rows // 2 - 1, rows - 1)], fontsize=6
            )
            axis.tick_params(length=0, pad=2)
            axis.spines[:].set_visible(False)
            mine = plates == name
            grid = plate_grid(row[mine], place[mine], values[mine], (rows, columns))
            image = axis.imshow(grid, cmap="cividis", vmin=low, vmax=high, interpolation="nearest")
            axis.add_patch(Rectangle((-0.5, -0.5), columns, rows, fill=False, edgecolor=PALE))
            axis.set_title(clipped(str(name), 24), loc="left", fontsize=8)
            if treatment is not None:
                for at in np.flatnonzero(mine & (wells[treatment[0]] == treatment[1]).to_numpy(dtype=bool)):
                    axis.add_patch(
                        Rectangle((place[at] - 0.5, row[at] - 0.5), 1, 1, fill=False, edgecolor=ORANGE, linewidth=1.5)
                    )
        _bar(figure, image, list(axes), column.removeprefix(METADATA))
    return figure


def map_figure(
    points: npt.ArrayLike,
    colour: Sequence[Any],
    *,
    axes: tuple[str, str] = ("PC1", "PC2"),
    title: str = "",
    marked: npt.ArrayLike | None = None,
) -> Figure:
    """Profiles as points; of words the seven most frequent in colour and shape, of numbers a scale.

    Parameters
    ----------
    points : array, shape (n, 2)
        Such as the first two columns of `principal_components(X).points`, or of `neighbour_map(X)`.
    colour : n values
        The name of a Series stands beside its scale.
    axes, title : text
    marked : bool array, shape (n,), optional
        Points to circle.
    """
    places, values = np.asarray(points, dtype=np.float64), pd.Series(list(colour))
    if places.ndim != 2 or places.shape[1] < 2 or len(places) != len(values):
        raise InputError(f"points of shape {places.shape} and {len(values)} colours: expected (n, 2) and n")
    x, y = places[:, 0], places[:, 1]
    size = 6 if len(x) > 3000 else 12 if len(x) > 500 else 25
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 4.8), layout="constrained")
        axis = figure.subplots()
        if pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values):
            image = axis.scatter(x, y, c=values.to_numpy(dtype=np.float64, na_value=np.nan), s=size, cmap="viridis")
            _bar(figure, image, [axis], str(getattr(colour, "name", None) or "").removeprefix(METADATA))
        else:
            words = values.astype("object").map(lambda value: "" if pd.isna(value) else str(value))
            count = words[words != ""].value_counts(sort=False)
            first = sorted(count.index, key=lambda word: (-count[word], natural(word)))[: len(CLASSES)]
            rest = ~words.isin(first).to_numpy()
            if rest.any():
                others = len(count) - len(first)
                axis.scatter(x[rest], y[rest], s=size, color=PALE, label=f"{others} others" if others else "(none)")
            for word, shade, shape in zip(sorted(first, key=natural), CLASSES, SHAPES, strict=False):
                mine = (words == word).to_numpy()
                axis.scatter(x[mine], y[mine], s=size, color=shade, marker=shape, label=clipped(word, 40), alpha=0.85)
            longest = max((len(text) for text in axis.get_legend_handles_labels()[1]), default=0)
            ncols = 4 if longest < 14 else 3 if longest < 22 else 2  # that fit beside each other
            figure.legend(loc="outside lower center", ncols=ncols, frameon=False, fontsize=8)
        if marked is not None:
            chosen = np.asarray(marked, dtype=bool)
            axis.scatter(x[chosen], y[chosen], s=6 * size, facecolors="none", edgecolors=ORANGE, linewidths=2)
        axis.set(xlabel=axes[0], ylabel=axes[1])
        axis.set_title(title, loc="left", fontweight="bold")
    return figure


def cluster_figure(profiles: pd.DataFrame, names: str, features: Sequence[str] | None = None) -> Figure:
    """Cosine similarity of profiles in the order of a tree of average linkage, with the tree above.

    Parameters
    ----------
    profiles : DataFrame, a row a profile; those without a direction are left out
    names : str
        The column that rows are called by.
    features : list of names, optional

    Raises
    ------
    InputError
        A column is absent, or fewer than two or more than 1500 profiles have a direction.
    """
    require_columns(profiles, [names], "profiles")
    X = profiles[feature_columns(profiles, features or "infer")].to_numpy(dtype=np.float64, na_value=np.nan)
    good = usable(X)
    if not 2 <= good.sum() <= _MOST_ROWS:
        raise InputError(f"{good.sum()} profiles have a direction; a tree is drawn of 2 to {_MOST_ROWS}")
    near = cosine(X[good]).rows(0, int(good.sum())).astype(np.float64)
    tree = similarity_tree(near)
    words = profiles.loc[good, names].astype("str").to_numpy(dtype=object)[tree.order]
    n = len(words)
    off = near[~np.eye(n, dtype=bool)]
    limit = float(np.abs(np.quantile(off, [0.01, 0.99])).max()) or 1.0
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7, 7.6), layout="constrained")
        top, axis = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": [1, 6]})
        for across, up in zip(tree.across, tree.up, strict=True):
            top.plot(across, up, color=GREY, linewidth=0.8)
        top.set_title(f"Cosine similarity of {n} profiles, in the order of a tree", loc="left", fontweight="bold")
        top.set_ylabel("1 - cosine")
        top.spines["bottom"].set_visible(False)
        top.tick_params(axis="x", length=0, labelbottom=False)
        ordered = near[np.ix_(tree.order, tree.order)]
        image = axis.imshow(ordered, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest")
        axis.set_xticks([])
        if n <= 60:
            axis.set_yticks(range(n), [clipped(word, 32) for word in words], fontsize=6)
        else:
            axis.set_yticks([])
            axis.set_xlabel("too many to name here")
        _bar(figure, image, [axis], "cosine")
    return figure


def replicate_figure(table: pd.DataFrame, null: npt.ArrayLike, *, marked: str | None = None) -> Figure:
    """Medians of replicates beside those of shuffled ones; takes what `replicate_similarity` returns."""
    shuffled = np.asarray(null, dtype=np.float64)
    median = table["median"].to_numpy(dtype=np.float64)
    edges = np.linspace(min(shuffled.min(), median.min()), max(shuffled.max(), median.max()) + 1e-9, 41).tolist()
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 3.4), layout="constrained")
        axis = figure.subplots()
        for values, colour, label in ((shuffled, GREY, "shuffled"), (median, BLUE, "replicates")):
            axis.hist(
                values, edges, weights=np.full(len(values), 100 / len(values)), color=colour, alpha=0.65, label=label
            )
        if marked is not None:
            for value in median[(table["treatment"] == marked).to_numpy()]:
                axis.axvline(value, color=ORANGE, linewidth=2.5, label=marked)
        axis.set(xlabel="median correlation of a treatment's wells", ylabel="% of the values")
        share = 100 * float(table["replicates"].mean())
        axis.set_title(f"{len(table)} treatments, {share:.0f} % replicating", loc="left", fontweight="bold")
        axis.legend(frameon=False)
    return figure


def activity_figure(table: pd.DataFrame, *, marked: str | None = None) -> Figure:
    """Mean average precision against -log10 p; takes what `activity` or `class_precision` returns."""
    x, p = table["mean_average_precision"].to_numpy(float), table["p_value"].to_numpy(float)
    sure = (table["q_value"] < 0.05).to_numpy()
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 4), layout="constrained")
        axis = figure.subplots()
        axis.scatter(x[~sure], -np.log10(p[~sure]), s=25, facecolors="none", edgecolors=GREY, label="q ≥ 0.05")
        axis.scatter(x[sure], -np.log10(p[sure]), s=25, color=BLUE, alpha=0.8, label="q < 0.05")
        axis.axhline(-np.log10(0.05), color=GREY, linewidth=1, linestyle=":", label="p = 0.05")
        if marked is not None:
            mine = (table.iloc[:, 0] == marked).to_numpy()
            axis.scatter(x[mine], -np.log10(p[mine]), s=150, facecolors="none", edgecolors=ORANGE, linewidths=2)
        top = max(1.5, float(np.nanmax(-np.log10(p), initial=0)))
        axis.set(xlabel="mean average precision", ylabel="-log10 p", xlim=(0, 1.04), ylim=(0, 1.06 * top))
        axis.set_title(f"{int(sure.sum())} of {len(table)} have q < 0.05", loc="left", fontweight="bold")
        figure.legend(loc="outside lower center", ncols=3, frameon=False)  # points may lie anywhere
    return figure


def dose_figure(doses: Sequence[Dose], controls: npt.ArrayLike, *, unit: str = "concentration") -> Figure:
    """Responses and curves, a panel a compound; takes what `dose_responses` returns."""
    if not doses:
        raise InputError("there are no compounds to draw")
    low, middle, high = np.quantile(np.asarray(controls, dtype=np.float64), [0.05, 0.5, 0.95])
    across = min(3, len(doses))
    down = -(-len(doses) // across)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(max(3.4, 2.8 * across), 2.3 * down + 0.3), layout="constrained")
        axes = figure.subplots(down, across, squeeze=False).ravel()
        band = Rectangle((0, 0), 1, 1, color="#dddddd", label="middle 90 % of the control wells")
        figure.legend(handles=[band], loc="outside lower center", frameon=False, fontsize=8)
        for axis in axes[len(doses) :]:
            axis.set_axis_off()
        for axis, dose in zip(axes, doses, strict=False):
            axis.axhspan(low, high, color="#dddddd", zorder=0)
            axis.axhline(middle, color=GREY, linewidth=0.8, zorder=0)
            axis.plot(dose.concentrations, dose.responses, "o", color=BLUE, markersize=4, alpha=0.75)
            said = "no curve was fitted"
            if dose.fit is not None:
                grid = np.geomspace(dose.concentrations.min(), dose.concentrations.max(), 60)
                axis.plot(grid, dose.fit(grid), color=INK, linewidth=1.2, linestyle=":" if dose.fit.reason else "-")
                said = dose.fit.reason.split(",")[0] or f"EC50 {dose.fit.ec50:.3g}"
                if np.isfinite(dose.fit.ec50_low):
                    said += f" ({dose.fit.ec50_low:.3g} to {dose.fit.ec50_high:.3g})"
            axis.set_xscale("log")
            axis.set_ylim(0, None)
            axis.set_title(clipped(dose.compound, 30), loc="left", fontsize=9, fontweight="bold")
            axis.text(0.02, 0.98, clipped(said, 44), transform=axis.transAxes, va="top", fontsize=7)
            axis.set_xlabel(unit, fontsize=8)
        figure.supylabel("distance from controls", fontsize=9)
    return figure


def curves_figure(curves: Curves) -> Figure:
    """Precision and recall, enrichment, and hits beyond chance; takes what `score_curves` returns."""
    precision, enrichment, hits = curves.precision, curves.enrichment, curves.hits
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10, 3.1), layout="constrained")
        first, second, third = figure.subplots(1, 3)
        first.plot(precision["k"], precision["precision"], "o-", color=BLUE, markersize=4, label="precision")
        first.plot(precision["k"], precision["recall"], "s-", color=CLASSES[1], markersize=4, label="recall")
        first.plot(precision["k"], precision["chance"], ":", color=GREY, label="precision by chance")
        first.set(xlabel="k nearest profiles", ylabel="mean over profiles", ylim=(0, 1.03))
        first.legend(frameon=False, fontsize=8)
        x = enrichment["percentile"]
        second.fill_between(x, enrichment["robust_low"], enrichment["robust_high"], color=BLUE, alpha=0.18, linewidth=0)
        second.plot(x, enrichment["robust"], "o-", color=BLUE, markersize=4)
        second.axhline(1, color=GREY, linestyle=":")
        second.set(xlabel="percentile of similarity", ylabel="odds ratio", yscale="log")
        third.plot(hits["share"], hits["excess"], color=BLUE)
        third.axhline(0, color=GREY, linestyle=":")
        third.set(xlabel="share of the list of neighbours", ylabel="share of matches")
        for axis, title in ((first, "Precision and recall"), (second, "Enrichment"), (third, "Hits beyond chance")):
            axis.set_title(title, loc="left", fontweight="bold")
    return figure


def training_figure(history: pd.DataFrame) -> Figure:
    """Losses, accuracies and the learning rate of each epoch; the loss of validation is without label smoothing and L2.

    Parameters
    ----------
    history : DataFrame, a row an epoch
        epoch, loss, val_loss, accuracy, val_accuracy, learning_rate.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9, 2.8), layout="constrained", facecolor="white")
        axes = figure.subplots(1, 3)
        epochs = history["epoch"]
        for axis, name, title in ((axes[0], "loss", "Loss"), (axes[1], "accuracy", "Accuracy")):
            axis.plot(epochs, history[name], color=BLUE, label="training", marker="o", markersize=3)
            axis.plot(epochs, history[f"val_{name}"], color=GREY, label="validation", marker="s", markersize=3)
            axis.set_title(title, loc="left", fontweight="bold")
            axis.set_xlabel("epoch")
            axis.legend(frameon=False)
        axes[1].set_ylim(0, None)
        axes[2].plot(epochs, history["learning_rate"], color=BLUE, marker="o", markersize=3)
        axes[2].set_title("Learning rate", loc="left", fontweight="bold")
        axes[2].set(xlabel="epoch", ylim=(0, None))
    return figure


def montage_figure(montages: Mapping[str, npt.NDArray[np.uint8]]) -> Figure:
    """Cells of each treatment in a row of their own; the controls, called "", as well.

    Parameters
    ----------
    montages : mapping of names to arrays, shape (n, height, width, 3)

    Raises
    ------
    InputError
        There are none, or an array has another shape.
    """
    if not montages:
        raise InputError("there are no cells to draw")
    if bad := next((name for name, cells in montages.items() if cells.ndim != 4 or not len(cells)), None):
        raise InputError(f"{bad!r}: shape {montages[bad].shape}, expected (n, height, width, 3)")
    most = max(len(cells) for cells in montages.values())
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(0.9 * most + 0.2, 1.15 * len(montages)), layout="constrained")
        axes: list[Axes] = list(figure.subplots(len(montages), 1, squeeze=False).ravel())
        named = ((name or "controls", cells) for name, cells in montages.items())
        for axis, (name, cells) in zip(axes, named, strict=True):
            axis.imshow(np.concatenate(list(cells), axis=1))
            room = 18 + 14 * len(cells)  # letters above them
            axis.set_title(clipped(name, room), loc="left", fontsize=8)
            axis.set_anchor("W")
            axis.set_axis_off()
    return figure


def _bar(figure: Figure, image: Any, axes: list[Axes], label: str) -> None:
    bar = figure.colorbar(image, ax=axes, shrink=0.6, aspect=25, pad=0.02)
    bar.set_label(label)
    bar.outline.set_visible(False)

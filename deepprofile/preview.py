"""What the locate stage finds, drawn over the images, for a person to judge."""

from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from scipy import ndimage
from scipy.spatial import cKDTree
from skimage.measure import find_contours

from cytominer_tools.columns import PLATE, SITE, WELL
from cytominer_tools.errors import InputError
from cytominer_tools.files import atomic_path
from deepprofile.index import load_index
from deepprofile.location_files import Labels
from deepprofile.locations import STAGE, find_cells, located_channels
from deepprofile.sites import site_image, site_rows
from deepprofile.study import Study
from evaluation.figures import GREY, STYLE

# Okabe & Ito, safe for the colour blind and bright on grey
COLOURS = {"cell": "#f0e442", "touches the border": "#56b4e9", "odd: size or focus": "#ff7f50"}
ODD_AREA, ODD_FOCUS = 2.5, 3.0  # so many times larger or smaller, or less sharp, than the median cell of the site
GAMMA = 0.6  # lifts dim nuclei beside bright ones
ZOOM_FROM = 500  # px: sites with a longer side get a close-up beside them
CLOSE_UP = 8.0  # nuclei across a close-up
PANEL = 3.4  # inches
_OVERVIEW_LINE, _CLOSE_UP_LINE = 0.6, 1.1


def preview_figure(
    image: np.ndarray,
    cells: pd.DataFrame,
    labels: Labels | None = None,
    *,
    title: str,
    pixel_size_um: float | None = None,
) -> Figure:
    """One site with its cells outlined, or crossed where there are no labels; a large site with a close-up.

    Parameters
    ----------
    image : array, shape (height, width) or (height, width, channels)
        Counts of the nuclei channel; drawn from its 1st percentile to its brightest cells, dim ones lifted. Where a
        second channel follows, that is grey, and the nuclei blue.
    cells : DataFrame
        x and y (px); with columns area, border and focus cells are told apart by colour: those that touch the border,
        and those 2.5 times larger or smaller or 3 times less sharp than the median.
    labels : int array, shape (height, width), optional
        Label i + 1 is row i of `cells`.
    title : str
    pixel_size_um : float, optional
        Gives a scale bar.

    Raises
    ------
    InputError
        The image is not a plane, the labels have another shape, or a column is missing.
    """
    return _grid([(title, image, cells, labels)], pixel_size_um)


def preview_study(study: Study, *, sites: int = 6, seed: int | None = None) -> Path:
    """Draw locations/preview.png: a few sites, of different plates and wells, with the cells found in them now.

    Nothing need have run before, so that settings can be tried on a few sites; a site that cannot be read says why.

    Parameters
    ----------
    study : Study
    sites : int
    seed : int, optional
        Which sites; by default the seed of the study.

    Raises
    ------
    InputError
        `sites` is under 1, the index cannot be read, or none of the sites can be.
    """
    if sites < 1:
        raise InputError(f"sites={sites}: expected at least 1")
    index = load_index(study)
    drawn, bad = [], []
    for row in _spread(index, sites, np.random.default_rng(study.seed if seed is None else seed)):
        name = f"{row[PLATE]} {row[WELL]} site {row[SITE]}"
        try:
            cells, labels = find_cells(study, row)
            image = site_image(study, row, located_channels(study))
            drawn.append((name, image, cells, labels))
        except InputError as error:
            bad.append(f"{name}: {error}")
    if not drawn:
        raise InputError(f"none of {len(bad)} site(s) could be drawn; the first: {bad[0]}")
    figure = _grid(drawn, study.images.pixel_size_um, missing=bad)
    with atomic_path(study.root / STAGE / "preview.png") as part:
        figure.savefig(part, dpi=150)
    return study.root / STAGE / "preview.png"


def _spread(index: pd.DataFrame, sites: int, rng: np.random.Generator) -> list[dict[str, str]]:
    """Rows in random order, the plates in turn, and in each the wells in turn; in the order of the index."""
    shuffled = index.iloc[rng.permutation(len(index))]
    visit = shuffled.groupby([PLATE, WELL], sort=False).cumcount()  # which of its well's sites a row is
    shuffled = shuffled.iloc[np.argsort(visit.to_numpy(), kind="stable")]
    turn = shuffled.groupby(PLATE, sort=False).cumcount()
    chosen = shuffled.iloc[np.argsort(turn.to_numpy(), kind="stable")[:sites]]
    return site_rows(index.loc[index.index.isin(chosen.index)])


def _grid(
    drawn: list[tuple[str, np.ndarray, pd.DataFrame, Labels | None]],
    pixel_size_um: float | None,
    missing: list[str] | None = None,
) -> Figure:
    for name, image, cells, labels in drawn:
        _check(name, image, cells, labels)
    paired = max(max(image.shape[:2]) for _, image, _, _ in drawn) > ZOOM_FROM
    across = min(len(drawn), 2 if paired else 3)
    down = -(-len(drawn) // across)
    panels = across * (2 if paired else 1)
    height, width = drawn[0][1].shape[:2]
    row = PANEL * height / width + 0.35
    with mpl.rc_context(STYLE):
        size = (PANEL * panels, row * down + 0.45 + 0.18 * len(missing or ()))
        figure = Figure(figsize=size, layout="constrained", facecolor="white")
        axes = figure.subplots(down, panels, squeeze=False).ravel()
        for axis in axes:
            axis.set_axis_off()
        for at, (name, image, cells, labels) in enumerate(drawn):
            kinds = _kinds(cells)
            shown = _stretched(image, labels)
            if not paired:
                _draw(axes[at], shown, cells, labels, kinds, _CLOSE_UP_LINE)
                _scale_bar(axes[at], pixel_size_um)
                axes[at].set_title(_heading(name, kinds), loc="left", fontsize=8.5)
                continue
            whole, near = axes[2 * at], axes[2 * at + 1]
            _draw(whole, shown, cells, labels, kinds, _OVERVIEW_LINE)
            whole.set_title(_heading(name, kinds), loc="left", fontsize=8.5)
            left, top, wide, high = _close_up(image.shape[:2], cells)
            _draw(near, shown, cells, labels, kinds, _CLOSE_UP_LINE)
            near.set_xlim(left - 0.5, left + wide - 0.5)
            near.set_ylim(top + high - 0.5, top - 0.5)
            near.set_title("inside the frame", loc="right", fontsize=8.5, color=GREY)
            whole.add_patch(Rectangle((left, top), wide, high, fill=False, edgecolor="white", linewidth=1.0))
            for axis in (whole, near):
                _scale_bar(axis, pixel_size_um)
        handles = [Line2D([], [], color=colour, linewidth=2.5, label=kind) for kind, colour in COLOURS.items()]
        figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
        if missing:
            figure.suptitle("\n".join(f"not drawn: {why[:110]}" for why in missing), fontsize=8, x=0.01, ha="left")
    return figure


def _check(name: str, image: np.ndarray, cells: pd.DataFrame, labels: Labels | None) -> None:
    if image.ndim not in (2, 3) or 0 in image.shape:
        raise InputError(
            f"{name}: image has shape {image.shape}, expected (height, width) or (height, width, channels)"
        )
    if absent := [column for column in ("x", "y") if column not in cells]:
        raise InputError(f"{name}: the cells have no column {', '.join(absent)}; there are {', '.join(cells.columns)}")
    if labels is not None and labels.shape != image.shape[:2]:
        raise InputError(f"{name}: labels of shape {labels.shape} for an image of shape {image.shape}")


def _kinds(cells: pd.DataFrame) -> np.ndarray:
    """The kind of each cell, one of COLOURS."""
    usual, border, odd = COLOURS
    kinds = np.full(len(cells), usual, dtype=object)
    if "area" in cells and len(cells):
        share = cells["area"].to_numpy(float) / float(cells["area"].median())
        kinds[(share > ODD_AREA) | (share < 1 / ODD_AREA)] = odd
    if "focus" in cells and len(cells):
        kinds[cells["focus"].to_numpy(float) < float(cells["focus"].median()) / ODD_FOCUS] = odd
    if "border" in cells:
        kinds[cells["border"].to_numpy(bool)] = border  # what is cut off is small for that reason
    return kinds


def _heading(name: str, kinds: np.ndarray) -> str:
    _, border, odd = ((kinds == kind).sum() for kind in COLOURS)
    more = [f"{n} {what}" for n, what in ((border, "border"), (odd, "odd")) if n]
    return f"{name}: {len(kinds)} cell{'s' * (len(kinds) != 1)}" + (f" ({', '.join(more)})" if more else "")


def _stretched(image: np.ndarray, labels: Labels | None) -> np.ndarray:
    """0 to 1, from the background to the brightest cells, which debris may outshine."""
    if image.ndim == 3:
        planes = [_stretched(image[..., c], labels) for c in range(min(2, image.shape[2]))]
        if len(planes) == 1:
            return planes[0]
        nuclei, grey = planes
        return np.stack([grey * (1 - 0.6 * nuclei), grey * (1 - 0.3 * nuclei), np.maximum(grey, nuclei)], axis=-1)
    counts = image.astype(np.float64)
    low = float(np.percentile(counts, 1))
    bright = counts[labels > 0] if labels is not None and labels.any() else counts
    high = float(np.percentile(bright, 99))
    return np.asarray(np.clip((counts - low) / max(high - low, np.finfo(float).tiny), 0, 1) ** GAMMA)


def _draw(
    axis: Axes, shown: np.ndarray, cells: pd.DataFrame, labels: Labels | None, kinds: np.ndarray, line: float
) -> None:
    axis.imshow(shown, cmap="gray", vmin=0, vmax=1, interpolation="antialiased")
    for kind, colour in COLOURS.items():
        mine = np.flatnonzero(kinds == kind)
        if labels is None:
            axis.plot(cells["x"].iloc[mine], cells["y"].iloc[mine], "+", color=colour, markersize=5, mew=line)
        else:
            axis.add_collection(LineCollection(_outlines(labels, mine + 1), colors=colour, linewidths=line))
    axis.set_xlim(-0.5, shown.shape[1] - 0.5)
    axis.set_ylim(shown.shape[0] - 0.5, -0.5)


def _outlines(labels: Labels, which: np.ndarray) -> list[np.ndarray]:
    """The outer and inner rims of some labels, as (x, y)."""
    windows = ndimage.find_objects(labels)
    rims = []
    for label in which:
        if label <= len(windows) and (window := windows[label - 1]) is not None:
            mask = np.pad(labels[window] == label, 1).astype(np.float32)
            offset = np.array([window[1].start - 1, window[0].start - 1])
            rims += [rim[:, ::-1] + offset for rim in find_contours(mask, 0.5)]
    return rims


def _close_up(shape: tuple[int, ...], cells: pd.DataFrame) -> tuple[float, float, float, float]:
    """Left, top, width and height (px) of what to look at closely: where cells are closest, as errors hide there."""
    height, width = shape
    least, most = 40 / min(shape), 0.6
    share = 1 / 3
    if "area" in cells and len(cells):
        share = CLOSE_UP * 2 * float(np.sqrt(cells["area"].median() / np.pi)) / max(shape)
    share = min(max(share, least), most)
    wide, high = share * width, share * height  # in the proportions of the site
    x, y = width / 2, height / 2
    if len(cells):
        centres = cells[["x", "y"]].to_numpy(float)
        around = cKDTree(centres * [high, wide]).query_ball_point(
            centres * [high, wide], wide * high / 2, p=np.inf, return_length=True
        )
        x, y = centres[int(np.argmax(around))]
    return float(np.clip(x - wide / 2, 0, width - wide)), float(np.clip(y - high / 2, 0, height - high)), wide, high


def _scale_bar(axis: Axes, pixel_size_um: float | None) -> None:
    if pixel_size_um is None:
        return
    (left, right), (bottom, top) = sorted(axis.get_xlim()), sorted(axis.get_ylim(), reverse=True)
    most = 0.25 * (right - left) * pixel_size_um
    ten = 10.0 ** np.floor(np.log10(most))
    um = ten * max(step for step in (1, 2, 5) if step * ten <= most)
    start, y = left + 0.04 * (right - left), bottom - 0.05 * (bottom - top)
    axis.plot([start, start + um / pixel_size_um], [y, y], color="white", linewidth=2.5, solid_capstyle="butt")
    axis.text(start, y - 0.015 * (bottom - top), f"{um:g} µm", color="white", fontsize=8, va="bottom")

"""The illumination of a plate as a figure: mean images before and after, and the functions between them."""

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from evaluation.figures import BLUE, GREY, STYLE


def illumination_figure(
    plate: str, channels: list[str], mean: np.ndarray, function: np.ndarray, unevenness: np.ndarray
) -> Figure:
    """A column a channel: the mean image of the plate, its illumination function, and the mean over the function.

    Parameters
    ----------
    plate : str
    channels : list of str
    mean : float array, shape (h, w, C)
        Counts; before and after are drawn on one scale, from 50 % to 150 % of their mean at the most.
    function : float array, shape (h, w, C)
    unevenness : float array, shape (3, C)
        Coefficients of variation before and after, and the error of the function; NaN where it is not known.
    """
    n, (height, width) = len(channels), mean.shape[:2]
    wide = 2.3
    with mpl.rc_context(STYLE):
        size = (wide * n + 1.0, (wide * height / width + 0.25) * 3 + 0.95)
        figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(h_pad=0.02, hspace=0.0), facecolor="white")
        axes = figure.subplots(3, n, squeeze=False)
        for at, channel in enumerate(channels):
            before, light = mean[..., at], function[..., at]
            after = before / light
            average = after.mean()
            low, high = _span(before / before.mean(), after / average)
            views = (
                (before / before.mean(), low, high, "gray"),
                (light, min(1.0, float(light.min())), max(float(light.max()), 1.001), "viridis"),
                (after / average, low, high, "gray"),
            )
            for axis, (picture, least, most, colours) in zip(axes[:, at], views, strict=True):
                axis.imshow(picture, cmap=colours, vmin=least, vmax=most, interpolation="antialiased")
                axis.set_xticks([])
                axis.set_yticks([])
                axis.spines[:].set_visible(False)
            axes[0, at].set_title(channel, loc="left", fontsize=10, fontweight="bold")
            axes[0, at].set_xlabel(
                f"{before.mean():.4g} counts, ± {(high - low) / 2:.0%} shown", fontsize=7.5, color=GREY
            )
            was, now, off = unevenness[:, at]
            said = f"uneven by {was:.1%} → {now:.1%}"
            axes[2, at].set_xlabel(said, fontsize=8.5, color=BLUE, fontweight="bold")
            told = f"{light.min():.2f} to {light.max():.2f}" + ("" if np.isnan(off) else f", error {off:.1%}")
            axes[1, at].set_xlabel(told, fontsize=7.5, color=GREY)
        for axis, name in zip(axes[:, 0], ("mean image", "illumination function", "mean, corrected"), strict=True):
            axis.set_ylabel(name, fontsize=9)
        figure.suptitle(f"Illumination of plate {plate}", x=0.01, ha="left", fontsize=11, fontweight="bold")
    return figure


def _span(*pictures: np.ndarray) -> tuple[float, float]:
    """Limits of the grey scale, the same distance below and above 1, that show all but outliers."""
    values = np.concatenate([picture.ravel() for picture in pictures])
    far = float(np.clip(np.abs(np.quantile(values, [0.005, 0.995]) - 1).max(), 0.02, 0.5))
    return 1 - far, 1 + far

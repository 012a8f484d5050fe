"""The course of a training as a figure."""

from pathlib import Path

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from cytominer_tools.files import atomic_path
from evaluation.figures import BLUE, GREY, STYLE


def draw_curves(history: pd.DataFrame, path: Path) -> None:
    """Write the losses, the accuracies and the learning rate of each epoch of `history` to `path`, a PNG.

    The loss of validation is plain: without label smoothing, class weights and L2.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9, 2.8), layout="constrained", facecolor="white")
        axes = figure.subplots(1, 3)
        epochs = history["epoch"]
        for axis, name, title in ((axes[0], "loss", "Loss (validation: plain)"), (axes[1], "accuracy", "Accuracy")):
            axis.plot(epochs, history[name], color=BLUE, label="training", marker="o", markersize=3)
            axis.plot(epochs, history[f"val_{name}"], color=GREY, label="validation", marker="o", markersize=3)
            axis.set(title=title, xlabel="epoch")
            axis.legend(frameon=False)
        axes[1].set_ylim(0, None)
        axes[2].plot(epochs, history["learning_rate"], color=BLUE, marker="o", markersize=3)
        axes[2].set(title="Learning rate", xlabel="epoch", ylim=(0, None))
        with atomic_path(path) as part:
            figure.savefig(part, dpi=150, metadata={"Software": None})

"""The course of a training as a figure."""

from pathlib import Path

import pandas as pd

from cytominer_tools.files import atomic_path
from evaluation.figures_profiles import training_figure


def draw_curves(history: pd.DataFrame, path: Path) -> None:
    """Write the losses, the accuracies and the learning rate of each epoch of `history` to `path`, a PNG.

    The loss of validation is plain: without label smoothing, class weights and L2.
    """
    with atomic_path(path) as part:
        training_figure(history).savefig(part, dpi=150, metadata={"Software": None})

"""A locator that looks at nothing: one cell every `step` pixels. It serves where fields are profiled as tiles.

After ``pip install .`` in this folder, ``locate: {method: grid, params: {step: 96}}`` in a study.yaml uses it.
"""

import numpy as np
import pandas as pd


def locate(
    image: np.ndarray, *, channels: tuple[str, ...], pixel_size_um: float | None = None, step: int = 128
) -> tuple[pd.DataFrame, None]:
    """Centres on a square grid, `step` px apart, half a step from the border; image is (H, W, C)."""
    y, x = np.mgrid[step // 2 : image.shape[0] : step, step // 2 : image.shape[1] : step]
    return pd.DataFrame({"x": x.ravel().astype(float), "y": y.ravel().astype(float), "area": step**2}), None


locate.source = "deepprofile, examples/plugin"
locate.licence = "BSD-3-Clause"

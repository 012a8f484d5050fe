"""Draw docs/simulator.png, a real site above a simulated one: python docs/simulator.py

The real site is JUMP pilot plate BR00116991, well A01, site 1 (CC0; Chandrasekaran et al. 2024,
doi:10.1038/s41592-024-02241-6), found through DEEPPROFILE_DATA, by default ../shared/data. Its README has AGP and Mito
swapped: ch1 is Mito, ch2 is AGP.
"""

import os
import tempfile
from pathlib import Path

import numpy as np
import tifffile
from matplotlib.figure import Figure

from cytominer_tools import read_table
from deepprofile.simulator import CHANNELS, COMPOUND, CONTROL, simulate

DATA = Path(os.environ.get("DEEPPROFILE_DATA", Path(__file__).parents[2] / "shared" / "data"))
REAL = DATA / "cpg0000_BR00116991" / "A01-1"
NUMBERS = dict(zip(CHANNELS, (5, 4, 3, 2, 1), strict=True))
UM = 0.6  # of both: 20x, camera pixels binned by two
EDGE = 480  # px of the square that is shown


def real() -> list[np.ndarray]:
    """The top left corner, where the cells are."""
    images = [tifffile.imread(REAL / f"r01c01f01p01-ch{NUMBERS[name]}sk1fk1fl1.tiff") for name in CHANNELS]
    return [image[:EDGE, :EDGE] for image in images]


def simulated() -> list[np.ndarray]:
    """The corner with the most cells."""
    with tempfile.TemporaryDirectory() as name:
        index = simulate(
            Path(name), plates=1, sites=1, size=(1080, 1080), cells=109, pixel_size_um=UM,
            moas=1, compounds_per_moa=1, controls=1, seed=2,
        )  # fmt: skip
        row = read_table(index).set_index(COMPOUND).loc[CONTROL]
        cells = read_table(index.parent / "truth" / "cells.parquet").query("Metadata_Well == @row.Metadata_Well")
        corners = [(down, right) for down in (0, 1080 - EDGE) for right in (0, 1080 - EDGE)]
        inside = [(cells["y"].between(y, y + EDGE) & cells["x"].between(x, x + EDGE)).sum() for y, x in corners]
        down, right = corners[int(np.argmax(inside))]
        images = [tifffile.imread(index.parent / row[channel]) for channel in CHANNELS]
        return [image[down : down + EDGE, right : right + EDGE] for image in images]


def main() -> None:
    figure = Figure(figsize=(15, 6.3), layout="constrained")
    rows = {"real": real(), "simulated": simulated()}
    for axes, (name, images) in zip(figure.subplots(2, 5), rows.items(), strict=True):
        axes[0].set_ylabel(name, fontsize=15)
        for axis, channel, image in zip(axes, CHANNELS, images, strict=True):
            low, high = np.percentile(image, [0.5, 99.8])
            axis.imshow(image, cmap="gray", vmin=low, vmax=high, interpolation="antialiased")
            axis.set_title(f"{channel}  {low:.0f} to {high:.0f}", fontsize=12)
            axis.set_xticks([])
            axis.set_yticks([])
        axes[0].plot([20, 20 + 50 / UM], [460, 460], color="white", lw=3)
        axes[0].text(20, 448, "50 µm", color="white", fontsize=10)
    figure.savefig(Path(__file__).with_suffix(".png"), dpi=75, metadata={"Software": None})


if __name__ == "__main__":
    main()

"""Draw docs/pipeline.png from the demo's study: python docs/pipeline.py deepprofile-demo"""

import itertools
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import ConnectionPatch

from cytominer_tools import read_table
from deepprofile import load_index, read_study
from deepprofile.features import plate_features
from deepprofile.locations import X, Y, plate_locations
from deepprofile.sites import site_image, site_rows
from evaluation import cosine

PLATE = "SIM001"


def rgb(image: np.ndarray) -> np.ndarray:
    """Mito red, RNA green, DNA blue; each from its 1st to its 99.8th percentile."""
    shown = image[..., [4, 2, 0]].astype(float)
    low, high = np.percentile(shown, [1, 99.8], axis=(0, 1))
    return np.clip((shown - low) / (high - low), 0, 1)


def main() -> None:
    study = read_study(sys.argv[1] if len(sys.argv) > 1 else "deepprofile-demo")
    index = load_index(study)
    well = index[index["Metadata_Plate"] == PLATE]["Metadata_Well"].iloc[0]
    row = site_rows(index[(index["Metadata_Plate"] == PLATE) & (index["Metadata_Well"] == well)])[0]
    image = rgb(site_image(study, row))
    cells = plate_locations(study, PLATE).read(well).to_pandas()
    cells = cells[cells["Metadata_Site"] == row["Metadata_Site"]]
    xy = cells[[X, Y]].to_numpy()
    features = np.stack(plate_features(study, PLATE).read(well)["features"].to_numpy())
    treatments = read_table(study.profiles_folder / "consensus.parquet").dropna(subset="Metadata_MOA")
    treatments = treatments.sort_values("Metadata_MOA", kind="stable")
    profiles = treatments.drop(columns=[c for c in treatments if c.startswith("Metadata_")]).to_numpy()
    scores = read_table(study.scores_folder / "scores.csv")
    score = scores[(scores["score"] == "precision_at_r") & (scores["profiles"] == "treatments")].iloc[0]

    figure = Figure(figsize=(14, 3), layout="constrained")
    figure.get_layout_engine().set(wspace=0.12)
    axes = figure.subplots(1, 6, width_ratios=[1] * 6)
    titles = ("images", "locate", "crops", "profile", "spherize, consensus", "score")
    for axis, title in zip(axes, titles, strict=True):
        axis.set_title(title, fontsize=13, fontweight="bold", loc="left")
        axis.set_xticks([])
        axis.set_yticks([])
        axis.set_box_aspect(1)
    axes[0].imshow(image)
    axes[0].set_xlabel("plates x wells x sites\nx channels", fontsize=10)
    axes[1].imshow(image.mean(axis=2), cmap="gray")
    axes[1].plot(*xy.T, "+", color="#ffb000", markersize=9, markeredgewidth=1.6)
    axes[1].set_xlim(0, image.shape[1])
    axes[1].set_ylim(image.shape[0], 0)
    axes[1].set_xlabel(f"{len(xy)} cells", fontsize=10)
    half = study.crops.size // 2
    inner = [(int(x), int(y)) for x, y in xy if min(x, y) > half and max(x, y) < min(image.shape[:2]) - half]
    grid = np.ones((3 * (2 * half + 4), 3 * (2 * half + 4), 3))
    for i, (x, y) in enumerate(inner[:9]):
        r, c = divmod(i, 3)
        corner = r * (2 * half + 4), c * (2 * half + 4)
        grid[corner[0] : corner[0] + 2 * half, corner[1] : corner[1] + 2 * half] = image[
            y - half : y + half, x - half : x + half
        ]
    axes[2].imshow(grid)
    axes[2].set_xlabel("one a cell, intensity kept", fontsize=10)
    spread = (features - features.mean(axis=0)) / (features.std(axis=0) + 1e-9)
    axes[3].imshow(spread[:40, :80], aspect="auto", cmap="RdBu_r", vmin=-3, vmax=3)
    axes[3].set_xlabel(f"cells x {features.shape[1]} features", fontsize=10)
    similarity = cosine(profiles).rows(0, len(profiles))
    limit = np.percentile(np.abs(similarity[~np.eye(len(profiles), dtype=bool)]), 98)
    axes[4].imshow(similarity, cmap="RdBu_r", vmin=-limit, vmax=limit)
    axes[4].set_xlabel(f"{len(profiles)} treatments, by MOA", fontsize=10)
    bars = {"score": score["value"], "cell count": score["cell_count"], "permuted": score["permutation_mean"]}
    axes[5].barh(list(bars)[::-1], list(bars.values())[::-1], color=["#999999", "#d55e00", "#0072b2"])
    axes[5].set_yticks(range(3), list(bars)[::-1], fontsize=10)
    axes[5].set_xticks([0, 0.5, 1])
    axes[5].set_xlabel("precision at R, by MOA", fontsize=10)
    for side in ("top", "right"):
        axes[5].spines[side].set_visible(False)
    for left, right in itertools.pairwise(axes[:5]):
        figure.add_artist(
            ConnectionPatch(
                (1.02, 0.5),
                (-0.02, 0.5),
                "axes fraction",
                "axes fraction",
                axesA=left,
                axesB=right,
                arrowstyle="-|>",
                mutation_scale=16,
                lw=1.5,
                color="#333333",
            )
        )
    figure.savefig(Path(__file__).with_suffix(".png"), dpi=90, metadata={"Software": None})


if __name__ == "__main__":
    main()

"""Illumination functions: the median, and a plate from files to functions, against DeepProfiler's way.

    python benchmarks/illumination.py [SITES]

The median: a disk of radius 12 px (DeepProfiler's default) and 24 on 270 x 270 px, uint16, of the mean of SITES sites
and of one site, which has many more grey levels. The peers are scikit-image and scipy; results must be equal.

The plate: SITES sites (default 64) of 1080 x 1080 px x 5 channels, uint16 TIFF with LZW, drawn once from 12 simulated
ones. DeepProfiler's way is its code done plainly with scikit-image: read a site, resize it, add it up, histogram it; it
reads one site after another, whatever the number of cores. `reading alone` is the files, decoded by as many threads as
we use: nothing that reads them can be faster. Each is timed at a quarter of the sites too: `further sites/s` is without
what a plate costs once, whatever its size (functions, figure). The functions of both must be equal.
"""

import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import skimage.filters
import skimage.io
import skimage.morphology
import skimage.transform
import tifffile
from scipy import ndimage

from cytominer_tools.threads import map_ahead, workers
from deepprofile import measure_intensities, read_study
from deepprofile.illumination import disk_median, read_correction
from deepprofile.simulator import CHANNELS, simulate
from deepprofile.sites import site_image, site_rows
from deepprofile.study import Study

STUDY = """\
images: {{index: index.csv, pixel_size_um: 0.6}}
channels: {{DNA: DNA, ER: ER, RNA: RNA, AGP: AGP, Mito: Mito}}
controls: "Metadata_Compound == 'DMSO'"
illumination: {{method: {method}{more}}}
"""
SIDE = 1080


def best(function: Callable[[], Any], times: int = 3) -> tuple[float, Any]:
    seconds, answer = np.inf, None
    for _ in range(times):
        start = time.perf_counter()
        answer = function()
        seconds = min(seconds, time.perf_counter() - start)
    return seconds, answer


def draw(folder: Path, sites: int) -> list[dict[str, str]]:
    """A plate of `sites` sites: 12 are simulated, the others are those shifted, so that each file is another."""
    simulate(
        folder / "seed", plates=1, sites=1, size=(SIDE, SIDE), cells=150, moas=2, compounds_per_moa=4, controls=4
    )  # fmt: skip
    seeds = site_rows(pd.read_csv(folder / "seed" / "index.csv", dtype=str))
    rows = []
    for number in range(sites):
        row = dict(seeds[number % len(seeds)], Metadata_Site=str(number // len(seeds) + 1))
        for channel in CHANNELS:
            image = np.roll(tifffile.imread(folder / "seed" / row[channel]), 97 * (number // len(seeds)), axis=(0, 1))
            row[channel] = f"images/{number}_{channel}.tif"
            (folder / "images").mkdir(exist_ok=True)
            tifffile.imwrite(folder / row[channel], image, compression="lzw", predictor=True)
        rows.append(row)
    pd.DataFrame(rows).to_csv(folder / "index.csv", index=False)
    return rows


def study_of(folder: Path, method: str, more: str = "") -> Study:
    (folder / "study.yaml").write_text(STUDY.format(method=method, more=more))
    return read_study(folder)


def shrink(image: np.ndarray) -> np.ndarray:
    size = (image.shape[0] / 4, image.shape[1] / 4)
    return skimage.transform.resize(image, size, mode="reflect", anti_aliasing=True, preserve_range=True)


def deepprofiler(folder: Path, rows: list[dict[str, str]]) -> np.ndarray:
    """DeepProfiler 0.3.1, dataset/illumination_statistics.py and illumination_correction.py."""
    mean, counts = np.zeros((SIDE // 4, SIDE // 4, len(CHANNELS))), np.zeros((len(CHANNELS), 1 << 16))
    for row in rows:
        image = np.stack([skimage.io.imread(folder / row[channel]) for channel in CHANNELS], axis=-1)
        mean += shrink(image)
        for channel in range(len(CHANNELS)):
            counts[channel] += np.histogram(image[..., channel], bins=1 << 16, range=(0, 1 << 16))[0]
    mean /= len(rows)
    function = np.empty((SIDE, SIDE, len(CHANNELS)))
    for channel in range(len(CHANNELS)):
        smooth = skimage.filters.median(mean[..., channel].astype(np.uint16), skimage.morphology.disk(12))
        full = skimage.transform.resize(smooth, (SIDE, SIDE), mode="reflect", anti_aliasing=True, preserve_range=True)
        least = np.percentile(full, 2)
        function[..., channel] = np.maximum(full, least) / least
    return function


def medians(folder: Path, rows: list[dict[str, str]]) -> None:
    images = [tifffile.imread(folder / row["RNA"]) for row in rows]
    print("median over a disk, 270 x 270 px uint16\n")
    print("| image | grey levels | radius | skimage s | scipy s | ours s | x skimage | x scipy |")
    print("|---|---|---|---|---|---|---|---|")
    for name, image in ((f"mean of {len(images)} sites", np.mean(images, axis=0)), ("one site", images[0])):
        small = shrink(image).astype(np.uint16)
        for radius in (12, 24):
            footprint = skimage.morphology.disk(radius)
            peer, expected = best(lambda: skimage.filters.median(small, footprint), 2)  # noqa: B023
            scipy, _ = best(lambda: ndimage.median_filter(small, footprint=footprint, mode="nearest"), 2)  # noqa: B023
            ours, found = best(lambda: disk_median(small, radius), 5)  # noqa: B023
            assert (found == expected).all()
            levels = len(np.unique(small))
            times = f"{peer:.3f} | {scipy:.3f} | {ours:.4f} | {peer / ours:.0f} | {scipy / ours:.0f}"
            print(f"| {name} | {levels} | {radius} | {times} |")


def plates(folder: Path, rows: list[dict[str, str]]) -> None:
    """Each at a quarter of the sites and at all of them: what a further site costs, and what a plate costs anyway."""
    counts = (len(rows) // 4, len(rows))

    def read(n: int) -> None:
        study = study_of(folder, "none")
        for _ in map_ahead(lambda row: site_image(study, row, corrected=False), rows[:n], 2 * workers()):
            pass

    def measure(n: int, method: str, more: str = "") -> Study:
        pd.DataFrame(rows[:n]).to_csv(folder / "index.csv", index=False)
        study = study_of(folder, method, more)
        (folder / "illumination" / "manifest.json").unlink(missing_ok=True)
        measure_intensities(study)
        return study

    print(f"\n{SIDE} x {SIDE} x {len(CHANNELS)}, {workers()} threads, load {os.getloadavg()[0]:.1f}\n")
    print(f"| | {counts[1]} sites s | cpu s | further sites/s | x DeepProfiler | of reading |")
    print("|---|---|---|---|---|---|")
    found: dict[str, tuple[float, float, float]] = {}
    answers = {}
    ways: dict[str, Callable[[int], Any]] = {
        "DeepProfiler's way": lambda n: deepprofiler(folder, rows[:n]),
        "reading alone": read,
        "deepprofiler, quality, figure": lambda n: measure(n, "deepprofiler"),
        "smooth, quality, figure": lambda n: measure(n, "smooth"),
        "none, quality": lambda n: measure(n, "none", ", qc: true"),
    }
    for name, way in ways.items():
        times = 1 if name.startswith("DeepProfiler") else 2
        few, _ = best(lambda: way(counts[0]), times)  # noqa: B023
        cpu = time.process_time()
        many, answers[name] = best(lambda: way(counts[1]), times)  # noqa: B023
        found[name] = (many, (time.process_time() - cpu) / times, (counts[1] - counts[0]) / (many - few))
        if name.startswith("deepprofiler"):
            function = read_correction(answers[name], rows[0]["Metadata_Plate"]).expand()
            off = np.abs(function / answers["DeepProfiler's way"] - 1).max()
    peer, limit = found["DeepProfiler's way"][2], found["reading alone"][2]
    for name, (seconds, cpu, rate) in found.items():
        print(f"| {name} | {seconds:.1f} | {cpu:.1f} | {rate:.1f} | {rate / peer:.1f} | {rate / limit:.0%} |")
    print(f"\nthe functions differ from DeepProfiler's by {off:.1e} at most")
    assert off < 1e-6


def main() -> None:
    logging.getLogger("deepprofile").setLevel(logging.ERROR)
    sites = int(sys.argv[1]) if len(sys.argv) > 1 else 64
    with tempfile.TemporaryDirectory() as name:
        rows = draw(Path(name), sites)
        medians(Path(name), rows)
        plates(Path(name), rows)


if __name__ == "__main__":
    main()

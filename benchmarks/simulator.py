"""How many sites a second the simulator writes, and where the time goes.

    python benchmarks/simulator.py [WORKERS]

WORKERS threads, by default 2. The split is of one thread: processor time of each step for one site, best of five, and
for the files also the wait for the disk. On a machine that does something else all of it comes out too low, so the load
is printed.
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tifffile

from cytominer_tools.files import atomic_path
from deepprofile.simulator import (
    TIFF,
    TRAITS,
    Camera,
    Culture,
    Flaws,
    litter,
    outline,
    paint,
    photograph,
    place,
    simulate,
)

UM = 0.6
TARGET = 3.0  # sites of 1080 x 1080 x 5 a second on 2 cores


def best(act: Callable[[], object], clock: Callable[[], float], times: int = 5) -> float:
    seconds = []
    for _ in range(times):
        start = clock()
        act()
        seconds.append(clock() - start)
    return min(seconds)


def split(size: tuple[int, int], cells: int, folder: Path) -> None:
    none = dict.fromkeys(TRAITS, 1.0)

    def rng() -> np.random.Generator:
        return np.random.default_rng(0)

    found = place(rng(), cells, size, UM, none, Culture())
    at = outline(rng(), found, size, UM)
    light = paint(rng(), found, size, UM, at)
    images = photograph(rng(), light, Camera(), UM, rng())

    def write(**options: object) -> None:
        for channel, image in enumerate(images):
            tifffile.imwrite(folder / f"{channel}.tif", image, **{**TIFF, **options})

    def write_safely() -> None:
        for channel, image in enumerate(images):
            with atomic_path(folder / f"{channel}.tif") as part:
                tifffile.imwrite(part, image, **TIFF)

    steps = {
        "place": lambda: place(rng(), cells, size, UM, none, Culture()),
        "outline": lambda: outline(rng(), found, size, UM),
        "paint": lambda: paint(rng(), found, size, UM, at),
        "litter": lambda: litter(rng(), light.copy(), Flaws(), UM),
        "photograph": lambda: photograph(rng(), light, Camera(), UM, rng()),
        "LZW": write,
    }
    # the process, not the thread: OpenCV has threads of its own
    seconds = {name: best(act, time.process_time) for name, act in steps.items()}
    for name, spent in seconds.items():
        print(f"  {name:12} {1000 * spent:7.1f} ms  {spent / sum(seconds.values()):5.0%}")
    plain, safe = best(write, time.perf_counter), best(write_safely, time.perf_counter)
    print(f"  {'processor':12} {1000 * sum(seconds.values()):7.1f} ms; and {1000 * (safe - plain):.1f} ms for the disk")
    lzw = sum((folder / f"{channel}.tif").stat().st_size for channel in range(len(images)))
    write(compression="zlib", compressionargs={"level": 1})
    zlib = sum((folder / f"{channel}.tif").stat().st_size for channel in range(len(images)))
    print(f"  files: LZW {lzw / images.nbytes:.2f} of the pixels, zlib 1 {zlib / images.nbytes:.2f}")


def main() -> None:
    workers = int(sys.argv[1]) if len(sys.argv) > 1 else 2
    print(f"{os.cpu_count()} processors, {workers} threads, load {os.getloadavg()[0]:.1f}")
    for size, cells, sites in (((360, 360), 28, 8), ((1080, 1080), 110, 2)):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            start = time.perf_counter(), time.process_time()
            simulate(
                folder / "images", plates=1, sites=sites, size=size, cells=cells, moas=3, compounds_per_moa=3,
                controls=3, workers=workers,
            )  # fmt: skip
            wall, spent = time.perf_counter() - start[0], time.process_time() - start[1]
            rate = 12 * sites / wall
            target = f", {rate / TARGET:.1f} x the target of {TARGET:.0f}" if size[0] == 1080 else ""
            print(
                f"{size[0]} x {size[1]} x 5, {cells} cells: {rate:.1f} sites/s{target} "
                f"({12 * sites / spent:.1f} a processor; {spent / wall:.2f} processors were to be had)"
            )
            split(size, cells, folder)


if __name__ == "__main__":
    main()

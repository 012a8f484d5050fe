"""How fast cells are exported and read back, against a PNG a cell: python benchmarks/export.py

20 sites of 1080 x 1080 x 5 (uncompressed uint16 TIFF), 230 cells each, in 10 wells: a real JUMP site, rolled and
mirrored anew for each (DEEPPROFILE_DATA, by default ../shared/data; a simulated site without it). Everything is done by
processes of their own; the best of several rounds counts. TMPDIR says on which disk. "PNG by scikit-image" reads,
crops, scales to 8 bits and saves with scikit-image, one process, 4 of the sites. The limits are `deepprofile export`
without writing, and writing the bytes of the store without anything else, both flushed to the disk as every file of
`deepprofile` is. Memory is the peak of an export of 20 and of 60 sites; the floor is the same command with nothing to
do.
"""

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

SITES, MOST, CELLS, BATCH = 20, 60, 230, 256
ROUNDS = 3
CHANNELS = ("DNA", "ER", "RNA", "AGP", "Mito")
SITE = "cpg0000_BR00116991/A01-1"
STUDY: dict[str, Any] = {
    "images": {"index": "index.csv", "root": "../images"},
    "channels": {name: name for name in CHANNELS},
    "columns": {"compound": "Metadata_Compound"},
    "locate": {"files": "../centres/{well}-{site}.csv"},
}


def make(folder: Path) -> str:
    """Images and centres of the 60 sites, and two studies of them; returns where the pixels are from."""
    import numpy as np
    import tifffile

    data = Path(os.environ.get("DEEPPROFILE_DATA", Path(__file__).parents[2] / "shared" / "data"))
    names, what = sorted((data / SITE).glob("*.tif*")), "a real JUMP site"
    if not names:
        from deepprofile import simulate

        simulate(
            folder / "simulated", plates=1, sites=1, moas=1, compounds_per_moa=1, controls=1, size=(1080, 1080),
            cells=110,
        )  # fmt: skip
        names, what = sorted((folder / "simulated/images").rglob("*.tif"))[:5], "a simulated site"
    planes = [tifffile.imread(name) for name in names]
    rng = np.random.default_rng(0)
    (folder / "images").mkdir()
    (folder / "centres").mkdir()
    rows = [f"Metadata_Plate,Metadata_Well,Metadata_Site,Metadata_Compound,{','.join(CHANNELS)}"]
    for number in range(MOST):
        well, site = f"{'ABC'[number // 20]}{number // 2 % 10 + 1:02}", number % 2 + 1
        shift, mirror = rng.integers(0, 1080, 2), rng.integers(2)
        for channel, plane in zip(CHANNELS, planes, strict=True):
            moved = np.roll(plane, shift, (0, 1))[:, :: 1 - 2 * mirror]
            tifffile.imwrite(folder / f"images/{well}-{site}-{channel}.tif", moved, metadata=None)
        xy = rng.uniform(0, 1079, (CELLS, 2)).tolist()
        text = "\n".join(["x,y", *(f"{x:.2f},{y:.2f}" for x, y in xy)])
        (folder / f"centres/{well}-{site}.csv").write_text(text + "\n")
        images = ",".join(f"{well}-{site}-{channel}.tif" for channel in CHANNELS)
        rows.append(f"P1,{well},{site},c{number // 2 % 4},{images}")
    for sites in (SITES, MOST):
        study = folder / f"study{sites}"
        study.mkdir()
        (study / "index.csv").write_text("\n".join(rows[: sites + 1]) + "\n")
        configure(study)
        before(study)
    return what


def configure(study: Path, **export: str) -> Any:
    from deepprofile import read_study

    (study / "study.yaml").write_text(json.dumps({**STUDY, "export": export}))  # JSON is YAML
    return read_study(study)


def before(folder: Path) -> None:
    from deepprofile import locate_cells, measure_intensities, read_study

    study = read_study(folder)
    measure_intensities(study)
    locate_cells(study)


def cores(n: int) -> None:
    import cv2

    cv2.setNumThreads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[:n]))


def best(work: Callable[[], int], undo: Callable[[], None] = lambda: None, rounds: int = ROUNDS) -> float:
    """Cells a second of the fastest round."""
    most = 0.0
    for _ in range(rounds):
        undo()
        start = time.perf_counter()
        most = max(most, work() / (time.perf_counter() - start))
    return most


def scikit_image(folder: Path) -> float:
    """4 sites the plain way; one warm-up of the imports is not counted."""
    import numpy as np
    import skimage.io

    from deepprofile import read_study
    from deepprofile.intensities import read_levels

    low, high = read_levels(read_study(folder / f"study{SITES}"), "P1")
    (folder / "png").mkdir()
    skimage.io.imsave(folder / "png/first.png", np.zeros((8, 8), np.uint8), check_contrast=False)

    def work() -> int:
        cells = 0
        for well, site in (("A01", 1), ("A01", 2), ("A02", 1), ("A02", 2)):
            names = [folder / f"images/{well}-{site}-{channel}.tif" for channel in CHANNELS]
            image = np.pad(np.stack([skimage.io.imread(name) for name in names], -1), ((64, 64), (64, 64), (0, 0)))
            for line in (folder / f"centres/{well}-{site}.csv").read_text().split()[1:]:
                x, y = (int(np.floor(float(value) + 0.5)) for value in line.split(","))
                crop = image[y : y + 128, x : x + 128].astype(np.float32)
                crop = np.round(np.clip((crop - low) / (high - low), 0, 1) * 255).astype(np.uint8)
                name = folder / f"png/{well}-{site}-{cells}.png"
                skimage.io.imsave(name, crop.reshape(128, -1, order="F"), check_contrast=False)
                cells += 1
        return cells

    return best(work, rounds=1)


def png(folder: Path) -> float:
    from deepprofile import read_study
    from deepprofile.deepprofiler_crops import export_png

    study = read_study(folder / f"study{SITES}")
    remove = study.root / "single-cells"
    return best(lambda: export_png(study).rows, lambda: shutil.rmtree(remove, ignore_errors=True), 2)


def export(folder: Path, compression: str) -> float:
    from deepprofile import export_crops

    study = configure(folder / f"study{SITES}", compression=compression)
    return best(lambda: export_crops(study).rows, lambda: shutil.rmtree(study.crop_store, ignore_errors=True))


def unwritten(folder: Path) -> float:
    """The export without its writing: reading, cropping and scaling to 8 bits."""
    import numpy as np

    from deepprofile import export as module

    cells = []

    def nothing(path: Path, about: Any, batches: Iterator[tuple[Any, np.ndarray]]) -> None:
        cells.append(sum(len(crops) for _, crops in batches))

    module.write_part = nothing
    study = configure(folder / f"study{SITES}", compression="none")

    def work() -> int:
        cells.clear()
        module.export_crops(study)
        return sum(cells)

    return best(work, lambda: shutil.rmtree(study.crop_store, ignore_errors=True))


def plain_write(folder: Path) -> float:
    """A file a well of the bytes of its crops, flushed to the disk."""
    data = os.urandom(1 << 20) * (2 * CELLS * 128 * 128 * 5 // (1 << 20) + 1)

    def work() -> int:
        for number in range(SITES // 2):
            with (folder / f"plain{number}").open("wb") as file:
                file.write(memoryview(data)[: 2 * CELLS * 128 * 128 * 5])
                os.fsync(file.fileno())
        return SITES * CELLS

    return best(work, lambda: [path.unlink() for path in folder.glob("plain*")] and None)


def read(folder: Path, what: str, threads: int) -> float:
    """Shuffled batches of 256, every cell once, from the page cache."""
    import numpy as np

    from deepprofile.crop_store import open_crops

    crops = open_crops(folder / f"study{SITES}" / what, CHANNELS)

    def work() -> int:
        rows = np.random.default_rng(0).permutation(len(crops))
        batches = [rows[i : i + BATCH] for i in range(0, len(rows), BATCH)]
        if threads == 1:
            return sum(len(crops[batch]) for batch in batches)
        with ThreadPoolExecutor(threads) as pool:
            return sum(pool.map(lambda batch: len(crops[batch]), batches))

    return best(work)


def memory(folder: Path, sites: int, compression: str) -> tuple[float, float]:
    """Peak MiB of an export, and of a process of the same kind with nothing to do."""
    study = folder / f"study{sites}"
    shutil.rmtree(study / "crops", ignore_errors=True)
    configure(study, compression=compression)
    return tuple(child("peak", folder, str(study), n=2) for _ in range(2))


def peak(folder: Path, study: str) -> float:
    from deepprofile import export_crops, read_study

    export_crops(read_study(study))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


MODES: dict[str, Callable[..., Any]] = {
    "make": make, "scikit_image": scikit_image, "png": png, "export": export, "unwritten": unwritten,
    "plain_write": plain_write, "read": read, "peak": peak,
}  # fmt: skip


def child(mode: str, folder: Path, *more: str | int, n: int) -> Any:
    """What `mode` answers in a process of its own on `n` cores; a child's peak is at least what this one holds."""
    command = [sys.executable, __file__, mode, str(n), str(folder), json.dumps(more)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def size(folder: Path, pattern: str, sites: int = SITES) -> float:
    """Bytes a cell."""
    return sum(path.stat().st_size for path in folder.rglob(pattern)) / (sites * CELLS)


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        what = child("make", folder, n=2)
        study = folder / f"study{SITES}"
        print(f"{SITES} sites of {what}, {CELLS} cells each, in {folder}; cells a second\n")
        peer = child("scikit_image", folder, n=1)
        print("| | 1 core | x PNG | 2 cores | x PNG | bytes a cell |\n|---|---|---|---|---|---|")

        def row(title: str, one: float, two: float | None, bytes_a_cell: float | None) -> None:
            second = f"{two:,.0f} | {two / peer:.0f}" if two else " | "
            held = f"{bytes_a_cell:,.0f}" if bytes_a_cell else ""
            print(f"| {title} | {one:,.0f} | {one / peer:.0f} | {second} | {held} |", flush=True)

        row("PNG by scikit-image", peer, None, size(folder / "png", "A*.png", 4))
        row("`--format png`", child("png", folder, n=1), child("png", folder, n=2), size(study, "*.png"))
        stores = {"none": "uncompressed", "lz4": "lz4"}
        found = {}
        for compression, title in stores.items():
            one, two = (child("export", folder, compression, n=n) for n in (1, 2))
            row(f"crop store, {title}", one, two, size(study / "crops", "*"))
            found[title] = [child("read", folder, "crops", n, n=n) for n in (1, 2)]
        row("limit: without writing", *(child("unwritten", folder, n=n) for n in (1, 2)), None)
        row("limit: writing alone", child("plain_write", folder, n=1), None, 128 * 128 * 5)
        found["`--format png`"] = [child("read", folder, "single-cells", n, n=n) for n in (1, 2)]
        print("\n| read back, shuffled batches of 256 | 1 thread | 2 threads |\n|---|---|---|")
        for title, speeds in found.items():
            print(f"| {title} | {' | '.join(f'{speed:,.0f}' for speed in speeds)} |")
        print("\n| peak memory, MiB | floor | 20 sites | 60 sites | x |\n|---|---|---|---|---|")
        for compression, title in stores.items():
            (few, floor), (many, _) = (memory(folder, sites, compression) for sites in (SITES, MOST))
            print(f"| {title} | {floor:.0f} | {few:.0f} | {many:.0f} | {many / few:.2f} |", flush=True)


if __name__ == "__main__":
    if sys.argv[1:]:
        mode, n, name, more = sys.argv[1:]
        cores(int(n))
        print(json.dumps(MODES[mode](Path(name), *json.loads(more))))
    else:
        main()

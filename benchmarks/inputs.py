"""How fast images come in, against the libraries alone: python benchmarks/inputs.py

Planes a second of 1080 x 1080 uint16, read from the page cache, on one core and on all; each figure is the best of
several rounds in which the readers take turns, so that a busy machine is unfair to all of them alike.
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import skimage.io
import tifffile

from cytominer_tools.threads import workers
from deepprofile.images import read_image, read_site

SIZE = (1080, 1080)
FILES = 8  # of each format
ROUNDS = 7
FORMATS = {
    "TIFF uncompressed": {},
    "TIFF LZW": {"compression": "lzw", "rowsperstrip": 1080},  # as Harmony writes it
    "TIFF deflate": {"compression": "zlib", "rowsperstrip": 64},
}


def textured(rng: np.random.Generator) -> np.ndarray:
    """Blobs of cell size with shot noise, about as compressible as a fluorescence image (LZW: 0.9 to 1.1)."""
    light = cv2.GaussianBlur(rng.normal(size=SIZE), (0, 0), 6)
    return rng.poisson(np.clip(600 + 400 * light / light.std(), 50, None)).astype(np.uint16)


def rate(read: Callable[[str], object], names: list[str], pool: ThreadPoolExecutor | None) -> float:
    start, read_so_far, spent = time.perf_counter(), 0, 0.0
    while spent < 0.1:
        for _ in pool.map(read, names) if pool else map(read, names):
            read_so_far += 1
        spent = time.perf_counter() - start
    return read_so_far / spent


def compare(readers: dict[str, Callable[[str], object]], names: list[str], cores: int) -> dict[str, float]:
    """Files a second of each reader, threads on `cores` cores."""
    every = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    best = dict.fromkeys(readers, 0.0)
    if every:
        os.sched_setaffinity(0, set(sorted(every)[:cores]))
    cv2.setNumThreads(1)
    pool = ThreadPoolExecutor(cores) if cores > 1 else None
    try:
        for _ in range(ROUNDS):
            for name, read in readers.items():
                best[name] = max(best[name], rate(read, names, pool))
    finally:
        if pool:
            pool.shutdown()
        if every:
            os.sched_setaffinity(0, every)
    return best


def row(what: str, cores: int, found: dict[str, float]) -> None:
    ours, *others = found.values()
    cells = [f"{ours:.0f}", *(f"{other:.0f} ({ours / other:.2f} x)" if other else "" for other in others)]
    print(f"| {what} | {cores} | {' | '.join(cells)} |", flush=True)


def images(folder: Path) -> None:
    """One plane a file, each format against tifffile, scikit-image and OpenCV."""
    rng = np.random.default_rng(0)
    planes = [textured(rng) for _ in range(FILES)]
    print("| planes/s | cores | deepprofile | tifffile | scikit-image | OpenCV |\n|---|---|---|---|---|---|")
    for what, how in {**FORMATS, "PNG": None}.items():
        names = [str(folder / f"{what}{i}.{'png' if how is None else 'tif'}") for i in range(FILES)]
        for name, plane in zip(names, planes, strict=True):
            if how is None:
                cv2.imwrite(name, plane)
            else:
                tifffile.imwrite(name, plane, metadata=None, **how)
        readers: dict[str, Callable[[str], object]] = {"deepprofile": read_image}
        readers |= {"tifffile": tifffile.imread} if how is not None else {}
        readers |= {"scikit-image": skimage.io.imread, "OpenCV": lambda name: cv2.imread(name, cv2.IMREAD_UNCHANGED)}
        for name, plane in zip(names, planes, strict=True):
            for read in readers.values():
                assert np.array_equal(read(name), plane)
        for cores in sorted({1, workers()}):
            found = compare(readers, names, cores)
            if "tifffile" not in found:
                found = {k: found.get(k, 0.0) for k in ("deepprofile", "tifffile", "scikit-image", "OpenCV")}
            row(what, cores, found)


def sites(folder: Path) -> None:
    """Five channels of a site: a file each, one OME-TIFF, and OME-Zarr, against the bare library and np.stack."""
    rng = np.random.default_rng(1)
    stack = np.stack([textured(rng) for _ in range(5)])
    print("\n| sites/s, 5 channels | cores | deepprofile | library and np.stack |\n|---|---|---|---|")
    files, omes, zarrs = [], [], []
    for i in range(FILES // 2):
        names = [str(folder / f"site{i}-{c}.tif") for c in range(5)]
        for name, plane in zip(names, stack, strict=True):
            tifffile.imwrite(name, plane, metadata=None, **FORMATS["TIFF LZW"])
        files.append("|".join(names))
        omes.append(str(folder / f"site{i}.ome.tif"))
        tifffile.imwrite(omes[-1], stack, metadata={"axes": "CYX"}, **FORMATS["TIFF LZW"])
        zarrs.append(str(folder / f"site{i}.zarr"))
    kinds = {
        "5 files, LZW": (
            files,
            lambda names: read_site({str(c): name for c, name in enumerate(names.split("|"))}),
            lambda names: np.stack([tifffile.imread(name) for name in names.split("|")], axis=-1),
        ),
        "OME-TIFF, LZW": (
            omes,
            lambda name: read_site({str(c): f"{name}#c={c}" for c in range(5)}),
            lambda name: np.stack(list(tifffile.imread(name)), axis=-1),
        ),
    }
    try:
        import zarr
    except ImportError:
        print("(OME-Zarr is left out: pip install 'deepprofile[zarr]')")
    else:
        axes = [{"name": "c", "type": "channel"}, {"name": "y", "type": "space"}, {"name": "x", "type": "space"}]
        for name in zarrs:
            about = {"multiscales": [{"version": "0.4", "axes": axes, "datasets": [{"path": "0"}]}]}
            group = zarr.open_group(name, mode="w", zarr_format=2, attributes=about)
            group.create_array("0", shape=stack.shape, chunks=(1, *SIZE), dtype=stack.dtype)[...] = stack
        kinds["OME-Zarr, Blosc"] = (
            zarrs,
            kinds["OME-TIFF, LZW"][1],
            lambda name: np.stack([zarr.open_group(name, mode="r")["0"][c] for c in range(5)], axis=-1),
        )
    for what, (names, ours, theirs) in kinds.items():
        assert np.array_equal(ours(names[0]), theirs(names[0]))
        for cores in sorted({1, workers()}):
            row(what, cores, compare({"deepprofile": ours, "library": theirs}, names, cores))


def main() -> None:
    print(f"{os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}, Python {sys.version.split()[0]}\n")
    with tempfile.TemporaryDirectory() as name:
        images(Path(name))
        sites(Path(name))


if __name__ == "__main__":
    main()

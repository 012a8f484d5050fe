"""A tiny study on disk, the same bytes always: 2 plates x 6 wells x 2 sites x 3 channels of 128 x 128 px."""

import hashlib
import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import tifffile

from cytominer_tools.errors import ProfileWarning
from deepprofile.study import STAGES, Study, read_study
from deepprofile.work import Done

CHANNELS = ("DNA", "ER", "Mito")
WELLS = {"A01": "DMSO", "A02": "DMSO", "B01": "aaa", "B02": "aaa", "C01": "bbb", "C02": "bbb"}
SIDE = 128
STEP = 30  # px between cells, so that none touch
SETTINGS = {
    "images": {"index": "index.csv", "size": [SIDE, SIDE]},
    "channels": {name: name for name in CHANNELS},
    "columns": {"compound": "Metadata_Compound", "moa": "Metadata_MOA"},
    "controls": "Metadata_Compound == 'DMSO'",
    "seed": 3,
    "locate": {"method": "nuclei", "channel": "DNA"},
    "crops": {"size": 32},
    "profile": {"network": "small_cnn", "options": {"width": 4, "depth": 3}, "batch": 16},
    "scores": {"permutations": 20},
}


def draw_site(rng: np.random.Generator, treatment: str = "DMSO", n: int | None = None) -> np.ndarray:
    """One site, uint16 (H, W, C): round cells on a jittered grid; a treatment shifts size and brightness."""
    size, gain = {"DMSO": (4.0, 1.0), "aaa": (5.0, 1.0), "bbb": (4.0, 1.6)}.get(treatment, (4.0, 1.0))
    grid = [(x, y) for y in range(19, SIDE - 8, STEP) for x in range(19, SIDE - 8, STEP)]
    n = 11 + int(rng.integers(0, 5)) if n is None else n
    chosen = rng.choice(len(grid), n, replace=False)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    image = rng.normal(500, 8, (SIDE, SIDE, len(CHANNELS)))
    for number in chosen:
        x, y = np.array(grid[number]) + rng.uniform(-4, 4, 2)
        r = size * rng.uniform(0.9, 1.1)
        disc = 1 / (1 + np.exp(2 * (np.hypot(columns - x, rows - y) - r)))
        for c, height in enumerate((3000, 1500 * gain, 900)):
            image[..., c] += height * rng.uniform(0.9, 1.1) * disc
    return image.clip(0, 65535).astype(np.uint16)


def write_images(root: Path, plate: str, well: str, site: int, image: np.ndarray) -> dict[str, str]:
    """Write a file a channel and return the paths as they stand in the index."""
    paths = {}
    for c, channel in enumerate(CHANNELS):
        name = f"images/{plate}/{well}_s{site}_{channel}.tif"
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(root / name, image[..., c])
        # one time for all, or a study made twice would not have the same manifests
        os.utime(root / name, ns=(10**18, 10**18))
        paths[channel] = name
    return paths


def make_wells(root: Path, plate: str, wells: dict[str, str] = WELLS, sites: int = 2) -> list[dict[str, object]]:
    """Draw the sites of some wells; each depends on its plate, well and site alone. Returns rows of the index."""
    rows: list[dict[str, object]] = []
    for well, compound in wells.items():
        for site in range(1, sites + 1):
            rng = np.random.default_rng(list(f"{plate}{well}{site}".encode()))
            paths = write_images(root, plate, well, site, draw_site(rng, compound))
            moa = None if compound == "DMSO" else "kinase"
            key = {"Metadata_Plate": plate, "Metadata_Well": well, "Metadata_Site": site}
            rows.append({**key, "Metadata_Compound": compound, "Metadata_MOA": moa, **paths})
    return rows


def make_study(root: Path, **changes: object) -> Study:
    """Write the images, index.csv and study.yaml of the tiny study into `root` and read it; see `configure`."""
    rows = [row for plate in ("P1", "P2") for row in make_wells(root, plate)]
    pd.DataFrame(rows).to_csv(root / "index.csv", index=False)
    return configure(root, **changes)


def configure(root: Path, **changes: object) -> Study:
    """Write study.yaml with `changes`, such as ``crops={"size": 16}``, merged into SETTINGS; None removes a section."""
    settings: dict[str, object] = {}
    for name, value in {**SETTINGS, **changes}.items():
        before = SETTINGS.get(name)
        if value is not None:
            merged = isinstance(before, dict) and isinstance(value, dict) and name != "channels"
            settings[name] = {**before, **value} if merged else value
    (root / "study.yaml").write_text(json.dumps(settings, indent=1) + "\n")  # JSON is YAML
    return read_study(root)


def run(study: Study, **settings: bool) -> dict[str, Done]:
    """All stages, and what each of them did; four controls are too few to spherize by, which is said and not heard."""
    from deepprofile.pipeline import run_study

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ProfileWarning)
        return {done.stage: done for done in run_study(study, **settings)}


def made(done: dict[str, Done]) -> dict[str, int]:
    """How many parts each stage made."""
    return {stage: one.made for stage, one in done.items()}


def edit_index(root: Path, edit: Callable[[pd.DataFrame], pd.DataFrame | None]) -> None:
    """Read index.csv, let `edit` change the frame (or return another), and write it back."""
    table = pd.read_csv(root / "index.csv")
    changed = edit(table)
    (table if changed is None else changed).to_csv(root / "index.csv", index=False)


def derived(root: Path) -> dict[str, str]:
    """Every file that stages wrote, with a hash of its bytes."""
    files = [p for stage in STAGES for p in sorted((root / stage).rglob("*")) if p.is_file()]
    return {p.relative_to(root).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}

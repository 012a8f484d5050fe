"""Simulated studies that run as they are: one for a first look, or any size."""

from pathlib import Path
from typing import Any

from cytominer_tools.errors import InputError
from cytominer_tools.files import atomic_folder, atomic_path, locked, sweep
from deepprofile.simulator import simulate
from deepprofile.study import NAME, Study, read_study
from deepprofile.work import log

_STUDY = """\
# A simulated Cell Painting study. Half of its mechanisms leave intensity and cell count alone; the truth is in
# images/truth/.
images: {{index: images/index.csv, root: images, size: [{height}, {width}], pixel_size_um: {pixel}}}
channels: {{DNA: DNA, ER: ER, RNA: RNA, AGP: AGP, Mito: Mito}}
columns:
  compound: Metadata_Compound
  concentration: Metadata_Concentration
  moa: Metadata_MOA
  batch: Metadata_Batch
controls: "Metadata_Compound == 'DMSO'"
seed: 0
locate: {{method: nuclei, channel: DNA}}
crops: {{size: {crop}}}
"""
_UNTRAINED = """\
profile: {network: small_cnn}  # untrained: random filters, a baseline that every trained network must beat
scores: {select: "Metadata_Compound != 'DMSO'"}
"""
_TRAINED = """\
train: {init: random, epochs: 15, batch: 32}  # to tell the compounds apart, on two of the three wells of each
profile: {network: small_cnn, weights: trained, options: {width: 16}}
scores: {select: "Metadata_Compound != 'DMSO'", baselines: [permutation, cell_count, untrained]}
"""
_CROP_UM = 38.4  # a cell and what is next to it


def simulate_study(folder: Path, **settings: Any) -> Study:
    """Simulate images into `folder`/images and write the study.yaml that runs them.

    Parameters
    ----------
    folder : Path
    **settings
        Of `deepprofile.simulator.simulate`.

    Raises
    ------
    InputError
        `folder` has a study or images already, or a setting that `simulate` refuses.
    """
    folder = Path(folder)
    if taken := [name for name in (NAME, "images") if (folder / name).exists()]:
        raise InputError(f"{folder} has {' and '.join(taken)} already; choose another folder or delete this one")
    with locked(folder):
        _simulate(folder, settings, _UNTRAINED)
    return read_study(folder)


def prepare_demo(folder: Path) -> Study:
    """The demo's study in `folder`, simulated unless it is there: 3 plates, 24 compounds in 6 mechanisms, and DMSO."""
    folder = Path(folder)
    with locked(folder):
        sweep(folder, below=False)
        if not (folder / NAME).exists():
            log.info("demo: simulating 3 plates of microscope images in %s", folder / "images")
            _simulate(folder, {}, _TRAINED)
    return read_study(folder)


def _simulate(folder: Path, settings: dict[str, Any], rest: str) -> None:
    if not (folder / "images").exists():
        with atomic_folder(folder / "images") as images:
            simulate(images, **settings)
    height, width = settings.get("size", (360, 360))
    pixel = settings.get("pixel_size_um", 0.6)
    crop = max(8, 8 * round(_CROP_UM / pixel / 8))
    with atomic_path(folder / NAME) as path:
        path.write_text(_STUDY.format(height=height, width=width, pixel=pixel, crop=crop) + rest, "utf-8")

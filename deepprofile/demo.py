"""A small simulated study, from nothing to scores in a few minutes."""

from pathlib import Path

from cytominer_tools.files import atomic_folder, atomic_path, locked, sweep
from deepprofile.simulator import simulate
from deepprofile.study import Study, read_study
from deepprofile.work import log

_STUDY = """\
# A simulated Cell Painting study: 3 plates, 24 compounds in 6 mechanisms, 8 DMSO wells a plate. Half of the mechanisms
# leave intensity and cell count alone. The truth is in images/truth/.
images: {index: images/index.csv, root: images, size: [360, 360], pixel_size_um: 0.6}
channels: {DNA: DNA, ER: ER, RNA: RNA, AGP: AGP, Mito: Mito}
columns:
  compound: Metadata_Compound
  concentration: Metadata_Concentration
  moa: Metadata_MOA
  batch: Metadata_Batch
controls: "Metadata_Compound == 'DMSO'"
seed: 0
locate: {method: nuclei, channel: DNA}
crops: {size: 64}
profile: {network: small_cnn}  # untrained: random filters, a baseline that every trained network must beat
scores: {select: "Metadata_Compound != 'DMSO'"}
"""


def prepare_demo(folder: Path) -> Study:
    """Simulate the demo's images into `folder` and write its study.yaml, unless they are there; return the study."""
    folder = Path(folder)
    with locked(folder):
        sweep(folder, below=False)
        _simulate(folder)
    return read_study(folder)


def _simulate(folder: Path) -> None:
    if not (folder / "images").exists():
        log.info("demo: simulating 3 plates of microscope images in %s", folder / "images")
        with atomic_folder(folder / "images") as images:
            simulate(images)
    if not (folder / "study.yaml").exists():
        with atomic_path(folder / "study.yaml") as path:
            path.write_text(_STUDY, "utf-8")

"""One real Cell Painting site: 109 cells located by CellProfiler, and the same site located by deepprofile.

    python examples/one_site.py

Needs the folder cpg0000_BR00116991 under DEEPPROFILE_DATA (by default ../shared/data).
"""

import os
import sys
import tempfile
from pathlib import Path

import numpy as np

from deepprofile import locate_cells, measure_intensities, profile_cells, read_study
from deepprofile.features import plate_features

DATA = Path(os.environ.get("DEEPPROFILE_DATA", Path(__file__).parents[2] / "shared" / "data")) / "cpg0000_BR00116991"

STUDY = r"""
images:
  folder: {data}
  pattern: '(?P<plate>A01-1)/r(?P<row>\d+)c(?P<col>\d+)f0*(?P<site>\d+)p01-ch(?P<channel>\d)sk1fk1fl1\.tiff$'
  size: [1080, 1080]
channels: {{DNA: "5", ER: "4", RNA: "3", AGP: "2", Mito: "1"}}
locate: {locate}
profile: {{network: efficientnet_b0}}
"""


def main() -> None:
    if not DATA.is_dir():
        sys.exit(f"{DATA}: not there; set DEEPPROFILE_DATA to the folder that holds it")
    nuclei = DATA / "A01-1" / "Nuclei.csv"
    for name, locate in (
        ("CellProfiler", f"{{files: {nuclei}, x: Location_Center_X, y: Location_Center_Y}}"),
        ("deepprofile", "{method: nuclei, channel: DNA}"),
    ):
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "study.yaml").write_text(STUDY.format(data=DATA, locate=locate))
            study = read_study(folder)
            for stage in (measure_intensities, locate_cells, profile_cells):
                print(f"{name}: {stage(study)}")
            cells = plate_features(study, "A01-1").read("A01")
            features = np.stack(cells["features"].to_numpy())
            print(f"{name}: features {features.shape} {features.dtype}, all finite: {np.isfinite(features).all()}\n")


if __name__ == "__main__":
    main()

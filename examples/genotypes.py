"""Five wells of Schwann cells with and without the gene NF1 (DAPI, GFP, RFP): a table without replicates.

    python examples/genotypes.py

Needs the folder nf1_plate2 under DEEPPROFILE_DATA (by default ../shared/data).
"""

import os
import sys
import tempfile
from pathlib import Path

from deepprofile import check_study, read_study, run_study
from deepprofile.profiles import score_lines

DATA = Path(os.environ.get("DEEPPROFILE_DATA", Path(__file__).parents[2] / "shared" / "data")) / "nf1_plate2"

STUDY = f"""\
images: {{index: {DATA / "index.csv"}, root: {DATA / "images"}, size: [904, 1224]}}
channels: {{DNA: FileName_DAPI, GFP: FileName_GFP, RFP: FileName_RFP}}
columns: {{treatment: Metadata_genotype}}
locate: {{channel: DNA}}
profile: {{network: small_cnn}}
profiles: {{fit: all}}
"""


def main() -> None:
    if not DATA.is_dir():
        sys.exit(f"{DATA}: not there; set DEEPPROFILE_DATA to the folder that holds it")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "study.yaml").write_text(STUDY)
        study = read_study(folder)
        for problem in check_study(study):
            print(f"{problem.level}: {problem}")
        for done in run_study(study):
            print(done)
        print("", *score_lines(study), sep="\n")


if __name__ == "__main__":
    main()

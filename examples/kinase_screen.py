"""Two replicate plates of a real siRNA screen (HeLa; DNA, tubulin, actin), from images to scores.

    python examples/kinase_screen.py [FOLDER]

Needs the folder imagehts_submorph under DEEPPROFILE_DATA (by default ../shared/data).
"""

import os
import sys
import tempfile
from pathlib import Path

import pandas as pd

from cytominer_tools import read_table
from deepprofile import read_study, run_study
from deepprofile.profiles import score_lines

DATA = Path(os.environ.get("DEEPPROFILE_DATA", Path(__file__).parents[2] / "shared" / "data")) / "imagehts_submorph"

STUDY = f"""\
images: {{index: {DATA / "index.csv"}, root: {DATA}, size: [510, 1024]}}
channels: {{DNA: FileName_Hoechst, tubulin: FileName_FITC, actin: FileName_Tritc}}
columns: {{treatment: Metadata_GeneID}}
controls: "Metadata_GeneID == 'RLUC'"
locate: {{channel: DNA}}
crops: {{size: 64}}
profile: {{network: small_cnn}}
profiles: {{fit: all}}  # four control wells are too few to spherize by
scores: {{exclude_same: [Metadata_Plate]}}  # look for a well's replicate on the other plate
"""


def main() -> None:
    if not DATA.is_dir():
        sys.exit(f"{DATA}: not there; set DEEPPROFILE_DATA to the folder that holds it")
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="kinase-screen-"))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "study.yaml").write_text(STUDY)
    study = read_study(folder)
    for done in run_study(study):
        print(done)
    print("", *score_lines(study), "", sep="\n")

    published = pd.read_csv(DATA / "data" / "profiles.tab", sep="\t")[["uname", "n"]]
    plate = published["uname"].str[4:6].map({"01": "PK-10B-pl1", "02": "PK-11B-pl1"})  # such as 001-02-A03
    published = published.assign(Metadata_Plate=plate, Metadata_Well=published["uname"].str[-3:])
    wells = read_table(study.profiles_folder / "wells.parquet")
    queries = read_table(study.scores_folder / "queries_replicates.csv")
    key = ["Metadata_Plate", "Metadata_Well"]
    table = wells[[*key, "Metadata_GeneID", "Metadata_Count"]].merge(published[[*key, "n"]], on=key)
    table = table.merge(queries[[*key, "first_rank", "n_candidates"]], on=key)
    print(table.to_string(index=False))
    print(f"\nCells found and published, Pearson r over wells: {table['Metadata_Count'].corr(table['n']):.3f}")
    print(f"Files in {folder}")


if __name__ == "__main__":
    main()

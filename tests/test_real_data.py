"""Real images, from an index to scores, with nothing but a study.yaml."""

import hashlib
import json

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import tifffile
from scipy import ndimage

from cytominer_tools.columns import COUNT, METADATA, PLATE, WELL
from cytominer_tools.tables import read_table
from deepprofile.features import profile_cells
from deepprofile.intensities import measure_intensities
from deepprofile.locations import X, Y, locate_cells, plate_locations
from deepprofile.pipeline import run_study
from deepprofile.profiles import score_lines
from deepprofile.study import read_study

pytestmark = [
    pytest.mark.data,
    pytest.mark.filterwarnings("ignore:spherizing learns from"),
]


def study_at(root, **settings):
    (root / "study.yaml").write_text(json.dumps(settings))  # JSON is YAML
    return read_study(root)


def run(study):
    return {done.stage: done for done in run_study(study)}


def features_of(table):
    return [name for name in table if not name.startswith(METADATA)]


# --- a small siRNA screen: 2 plates of 6 wells, JPEG
@pytest.fixture(scope="module")
def submorph(data, tmp_path_factory):
    folder = data / "imagehts_submorph"
    study = study_at(
        tmp_path_factory.mktemp("submorph"),
        images={"index": str(folder / "index.csv"), "root": str(folder)},
        channels={"DNA": "FileName_Hoechst", "tubulin": "FileName_FITC", "actin": "FileName_Tritc"},
        columns={"treatment": "Metadata_GeneID"},
        controls="Metadata_Content == 'rluc'",
        crops={"size": 64},
        profile={"network": "small_cnn"},
    )
    with pytest.warns(UserWarning, match="spherizing learns from 4 control rows"):
        told = run(study)
    return study, told


def test_a_screen_runs_from_index_to_scores(submorph):
    study, told = submorph
    assert all(not done.skipped for done in told.values())
    assert told["profile"].rows == told["locate"].rows > 500
    wells = read_table(study.profiles_folder / "wells.parquet")
    assert len(wells) == 12
    profiles = read_table(study.profiles_folder / "consensus.parquet")
    assert profiles["Metadata_GeneID"].tolist() == ["AAK1", "PLK3", "RLUC", "UBC"]
    assert np.isfinite(profiles[features_of(profiles)].to_numpy()).all()


def test_as_many_cells_as_the_screeners_counted(submorph, data):
    study, _ = submorph
    published = pd.read_csv(data / "imagehts_submorph" / "data" / "profiles.tab", sep="\t")
    plates = {"001-01": "PK-10B-pl1", "001-02": "PK-11B-pl1"}
    theirs = {(plates[name[:6]], name[7:]): n for name, n in zip(published["uname"], published["n"], strict=True)}
    wells = read_table(study.profiles_folder / "wells.parquet")
    ours = dict(zip(zip(wells[PLATE], wells[WELL], strict=True), wells[COUNT], strict=True))
    assert ours.keys() == theirs.keys()
    counts = np.array([[ours[key], theirs[key]] for key in theirs])
    assert np.corrcoef(counts.T)[0, 1] >= 0.9
    killed = np.array([key[1] in ("A03", "B03") for key in theirs])  # siRNA against ubiquitin
    assert counts[killed, 0].max() < counts[~killed, 0].min()


def test_the_rank_of_each_replicate_is_told(submorph):
    study, _ = submorph
    queries = read_table(study.scores_folder / "queries_replicates.csv")
    assert len(queries) == 12
    assert (queries["n_matches"] == queries["label"].map({"AAK1": 1, "PLK3": 1, "RLUC": 3, "UBC": 3})).all()
    assert queries["first_rank"].between(1, 11).all()
    assert queries.loc[queries["label"] == "UBC", "first_rank"].median() == 1  # dying cells look like dying cells


def test_scores_that_twelve_wells_allow(submorph):
    study, _ = submorph
    table = read_table(study.scores_folder / "scores.csv").set_index("score")
    assert table.index.tolist()[:2] == ["precision_at_r", "enrichment"]
    assert set(table["profiles"]) == {"replicates"}  # no mechanism is named
    assert table["value"]["precision_at_r"] > table["permutation_mean"]["precision_at_r"]
    assert np.isnan(table["value"]["enrichment"])
    assert table["reason"]["enrichment"].startswith("66 pairs: ")
    assert any("66 pairs" in line for line in score_lines(study))


# --- one site of JUMP, with CellProfiler's nuclei
def jump(root, data, locate):
    folder = data / "cpg0000_BR00116991"
    return study_at(
        root,
        images={
            "folder": str(folder),
            "pattern": r"r(?P<row>\d+)c(?P<col>\d+)f0*(?P<site>\d+)p01-ch(?P<channel>\d)sk1fk1fl1\.tiff",
            "size": [1080, 1080],
        },
        channels={"DNA": "5", "ER": "4", "RNA": "3", "AGP": "1", "Mito": "2"},
        locate=locate,
        crops={"size": 96, "border": "zero"},
        profile={"network": "small_cnn"},
    )


def cells_of(study):
    (path,) = study.features.glob("*/cells.parquet")
    return pq.read_table(path), hashlib.sha256(path.read_bytes()).hexdigest()


def test_cellprofilers_cells_become_features(data, tmp_path):
    nuclei = data / "cpg0000_BR00116991" / "A01-1" / "Nuclei.csv"
    hashes = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        locate = {"files": str(nuclei), "x": "Location_Center_X", "y": "Location_Center_Y"}
        study = jump(tmp_path / name, data, locate)
        measure_intensities(study)
        assert locate_cells(study).rows == 109
        assert profile_cells(study).rows == 109  # those at the border too
        table, digest = cells_of(study)
        hashes.append(digest)
    assert hashes[0] == hashes[1]
    width = table.schema.field("features").type
    assert str(width.value_type) == "float"
    features = np.asarray(table["features"].combine_chunks().flatten()).reshape(109, width.list_size)
    assert np.isfinite(features).all()
    assert features.std(axis=0).max() > 0.01
    centres = table.select([X, Y]).to_pandas().to_numpy()
    near = ((centres < 48) | (centres > 1079 - 48)).any(axis=1)
    assert near.sum() > 0
    published = pd.read_csv(nuclei)[["Location_Center_X", "Location_Center_Y"]]
    np.testing.assert_array_equal(centres, published)


def test_the_locator_finds_about_as_many(data, tmp_path):
    study = jump(tmp_path, data, {"channel": "DNA"})
    locate_cells(study)
    cells = plate_locations(study, "A01-1").read("A01").to_pandas()
    assert (~cells["Metadata_Border"]).sum() == pytest.approx(109, rel=0.1)  # CellProfiler left those at the edge out
    found = cells[[X, Y]].to_numpy()
    nuclei = data / "cpg0000_BR00116991" / "A01-1" / "Nuclei.csv"
    published = pd.read_csv(nuclei)[["Location_Center_X", "Location_Center_Y"]].to_numpy()
    gaps = np.hypot(*(found[:, None] - published[None]).transpose(2, 0, 1)).min(axis=0)
    assert np.median(gaps) < 3  # px, so x is x and y is y
    assert (gaps < 10).mean() > 0.95


# --- five wells of Schwann cells, one of them wild type
def test_wells_without_replicates_get_profiles_and_words(data, tmp_path):
    folder = data / "nf1_plate2"
    study = study_at(
        tmp_path,
        images={"index": str(folder / "index.csv"), "root": str(folder / "images"), "size": [904, 1224]},
        channels={"DAPI": "FileName_DAPI", "GFP": "FileName_GFP", "RFP": "FileName_RFP"},
        columns={"treatment": "Metadata_genotype"},
        crops={"size": 128},
        profile={"network": "small_cnn"},
        profiles={"fit": "all"},
    )
    told = run(study)
    assert all(not done.skipped for done in told.values())
    assert told["aggregate"].rows == 5
    cells = pq.read_table(study.root / "locations" / "Plate_2" / "cells.parquet").to_pandas()
    index = read_table(folder / "index.csv")
    for name, mask in zip(["B07", "D06", "D07", "F07", "H12"], index["Mask_Nuclei"], strict=True):
        nuclei, n = ndimage.label(tifffile.imread(folder / "masks" / mask))
        x, y = cells.loc[cells[WELL] == name, [X, Y]].round().astype(int).to_numpy().T
        assert len(set(nuclei[y, x]) - {0}) >= 0.95 * n  # each of theirs holds one of ours
    wells = read_table(study.profiles_folder / "wells.parquet")
    assert wells[WELL].tolist() == ["B07", "D06", "D07", "F07", "H12"]
    profiles = read_table(study.profiles_folder / "consensus.parquet")
    assert profiles["Metadata_genotype"].tolist() == ["NF1_Null", "NF1_WT"]
    assert np.isfinite(profiles[features_of(profiles)].to_numpy()).all()
    table = read_table(study.scores_folder / "scores.csv").set_index("score")
    assert table["n"]["precision_at_r"] == 4  # the wild type has one well
    assert "each Metadata_Plate holds one label, so nothing can be shuffled" in table["notes"]["precision_at_r"]
    assert np.isnan(table["permutation_mean"]["precision_at_r"])
    assert table["reason"]["enrichment"].startswith("6 pairs: ")

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from matplotlib.figure import Figure
from study_factory import configure

from cytominer_tools.errors import InputError
from cytominer_tools.manifest import Manifest
from cytominer_tools.tables import read_table, write_table
from deepprofile.cli import main
from deepprofile.export import export_crops
from deepprofile.neighbours import find_neighbours
from deepprofile.profiles import WELLS, consensus_profiles, normalize_wells

COMPOUND, MOA, DOSE = "Metadata_Compound", "Metadata_MOA", "Metadata_Dose"
FEATURES = [f"small_cnn_untrained_{k}" for k in range(8)]


PLAIN = [{"normalize": {"method": "standardize"}}, "consensus"]


@pytest.fixture
def study(images, tmp_path):
    """A study whose consensus has 24 compounds of 6 mechanisms at two doses; four of them are not annotated."""
    root = tmp_path / "study"
    shutil.copytree(images, root)
    study = configure(root, columns={"concentration": DOSE}, profiles={"recipe": "plain"}, recipes={"plain": PLAIN})
    rng = np.random.default_rng(0)
    rows, direction = [], 2 * rng.normal(size=(6, 8))
    for compound in range(24):
        own = direction[compound % 6] + 0.5 * rng.normal(size=8)
        moa = None if compound >= 20 else f"moa {compound % 6}"
        for dose in (1.0, 10.0):
            values = dict(zip(FEATURES, own * dose + 0.3 * rng.normal(size=8), strict=True))
            rows.append(
                {COMPOUND: f"c{compound}", DOSE: dose, MOA: moa, "Metadata_Target": f"g{compound % 6}", **values}
            )
    for values in rng.permuted(np.tile(np.linspace(-1, 1, 16), (8, 1)), axis=1).T:
        rows.append({COMPOUND: "DMSO", DOSE: 0.0, MOA: None, **dict(zip(FEATURES, values, strict=True))})
    places = [f"{row}{column:02d}" for row in "ABCDEFGH" for column in range(1, 13)]
    wells = pd.DataFrame(rows)
    wells.insert(0, "Metadata_Plate", "P1")
    wells.insert(1, "Metadata_Well", places[: len(rows)])
    wells.insert(2, "Metadata_Count", 20)
    write_table(wells, study.profiles_folder / WELLS)
    Manifest(study.profiles_folder, "profiles").record(WELLS, "drawn", WELLS, len(wells))
    normalize_wells(study)
    consensus_profiles(study)
    write_table(
        pd.DataFrame(direction, columns=FEATURES).assign(Metadata_Gene=[f"g{k}" for k in range(6)]),
        root / "genes.csv",
    )
    return study


def test_neighbours_of_a_compound_share_its_moa(study):
    found = find_neighbours(study, "c1", k=5)
    assert found.table["query"].unique().tolist() == ["c1 1.0", "c1 10.0"]
    assert set(found.table["moa"].dropna()) == {"moa 1"}
    assert not found.table[COMPOUND].isin(["c1", "DMSO"]).any()  # another dose of it is no neighbour
    assert (found.table["p"] < 0.05).all()
    told = json.loads((found.folder / "neighbours.json").read_text())
    assert len(told["neighbours"]) == 10
    assert not (found.folder / "montage.png").exists()


def test_what_is_not_annotated_is_called(study):
    found = find_neighbours(study, k=3)
    assert len(found.table) == 48 * 3
    truth = [f"moa {int(name.split()[0][1:]) % 6}" for name in found.calls["treatment"]]
    assert found.calls["called"].tolist() == truth
    assert len(truth) == 8
    assert found.accuracy > 0.9
    assert (found.calls["confidence"] > 0.8).all()
    assert any("Calls of the MOA" in line for line in found.lines())


def test_a_phenotype_is_undone_by_its_opposite(study):
    genes = pd.read_csv(study.root / "genes.csv")
    genes[FEATURES] *= -1
    write_table(genes[:1], study.root / "sick.csv")
    found = find_neighbours(study, str(study.root / "sick.csv"), k=4, reverse=True)
    assert found.table["query"].unique().tolist() == ["g0"]
    assert found.table["moa"].dropna().unique().tolist() == ["moa 0"]
    assert (found.table["similarity"] < -0.9).all()


def test_compounds_meet_their_genes(study):
    found = find_neighbours(study, among=study.root / "genes.csv", targets="Metadata_Target", k=1)
    assert (
        found.table["neighbour"].str[1:].astype(int) == found.table["query"].str.extract(r"c(\d+)")[0].astype(int) % 6
    ).all()
    assert found.targets["best_rank"].tolist() == [1] * 48
    assert found.targets["p"].tolist() == pytest.approx([1 / 6] * 48)
    assert (found.folder / "targets.csv").exists()


def test_the_command_and_its_montage(done):
    study = configure(done.root, columns={"moa": None}, scores={"labels": COMPOUND})
    export_crops(study)
    told = CliRunner().invoke(main, ["neighbours", str(done.root), "--of", "aaa"])
    assert told.exit_code == 0, told.output
    assert "aaa  1. bbb" in told.output
    folder = done.root / "neighbours" / "small_cnn_untrained" / "deep"
    assert (folder / "montage.png").stat().st_size > 5000
    assert json.loads(CliRunner().invoke(main, ["neighbours", str(done.root), "--json"]).stdout)["neighbours"]


def test_a_profile_of_a_file_has_no_cells_in_the_montage(done, monkeypatch):
    study = configure(done.root, columns={"moa": None}, scores={"labels": COMPOUND})
    export_crops(study)
    drawn = []
    savefig = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, *a, **k: (drawn.append(figure), savefig(figure, *a, **k)))
    table = read_table(study.profiles_folder / "consensus.parquet")
    write_table(table[table[COMPOUND] == "bbb"].assign(**{COMPOUND: "aaa"}), study.root / "mine.csv")
    for of, labels in ((str(study.root / "mine.csv"), ["bbb", "aaa"]), ("aaa", ["aaa (query)", "bbb"])):
        find_neighbours(study, of)
        axis = drawn.pop().axes[0]
        assert [label.get_text() for label in axis.get_yticklabels()] == labels
        assert axis.get_title("left").startswith("aaa and what is nearest to it: DNA blue")
        assert ("The query is of a file" in axis.get_title("left")) == (of != "aaa")


def test_profiles_of_other_settings_are_refused(study):
    now = configure(
        study.root,
        columns={"concentration": DOSE},
        profiles={"recipe": "plain"},
        recipes={"plain": [{"normalize": {"method": "mad_robustize"}}, "consensus"]},
    )
    with pytest.raises(
        InputError, match=r"normalized\.parquet was made .* under other settings; run `deepprofile run`"
    ):
        find_neighbours(now)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"of": "c99"}, "c99: neither a file nor a treatment; Metadata_Compound holds c0, c1"),
        ({"of": "short.csv"}, "2 of 8 features of the study are not in it, first small_cnn_untrained_6"),
        ({"targets": "Metadata_Target"}, "say with --among where the profiles of the genes are"),
        ({"among": "nameless.csv"}, "no column starts with Metadata_"),
    ],
)
def test_words(study, settings, words, monkeypatch):
    monkeypatch.chdir(study.root)
    genes = pd.read_csv(study.root / "genes.csv")
    write_table(genes.drop(columns=FEATURES[6:]), study.root / "short.csv")
    write_table(genes[FEATURES], study.root / "nameless.csv")
    with pytest.raises(InputError, match=words):
        find_neighbours(study, **settings)


def test_no_profiles(fresh):
    with pytest.raises(InputError, match="run `deepprofile consensus`"):
        find_neighbours(fresh)

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from study_factory import configure, edit_index, run

from cytominer_tools.columns import PLATE, WELL
from cytominer_tools.errors import InputError
from cytominer_tools.tables import read_table, write_table
from deepprofile.cli import main
from deepprofile.compare import compare_studies
from deepprofile.profiles import CONSENSUS, NORMALIZED, consensus_profiles, normalize_wells
from deepprofile.steps import features_of

COMPOUND = "Metadata_Compound"
MODEL = "small_cnn_untrained"


def noisy(study, model, weights=None):
    """Another model's profiles: those of the study with noise, as stages would leave them."""
    for folder in ("profiles", "scores"):
        shutil.copytree(study.root / folder / MODEL, study.root / folder / model)
    for name in (NORMALIZED, CONSENSUS):
        path = study.root / "profiles" / model / "deep" / name
        table = read_table(path)
        names = features_of(table)
        noise = np.random.default_rng(0).normal(size=(len(table), len(names))).astype(np.float32)
        write_table(table.assign(**dict(zip(names, (table[names] + 3 * noise).to_numpy().T, strict=True))), path)
    (study.root / "features" / model).mkdir()
    (study.root / "features" / model / "card.json").write_text(json.dumps({"weights": weights}))


def trained(study, name, patience=None):
    folder = study.models / name
    folder.mkdir(parents=True)
    history = pd.DataFrame({"epoch": [1, 2, 3], "accuracy": [0.4, 0.6, 0.7], "val_accuracy": [0.3, 0.5, 0.4]})
    write_table(history, folder / "history.csv")
    (folder / "card.json").write_text(json.dumps({"training": {"train": {"patience": patience}}}))


def test_runs_of_a_study_stand_in_one_table(done):
    trained(done, "lr1")
    trained(done, "lr2", patience=1)
    noisy(done, "small_cnn_lr1", "lr1")
    noisy(done, "small_cnn_lr2", "lr2")
    noisy(done, "small_cnn_lr1-epoch2", str(done.models / "lr1" / "epochs" / "0002.keras"))
    found = compare_studies([done], level="replicates")
    table = read_table(done.root / "scores" / "compare.csv").set_index("run")
    assert table.index.tolist() == [f"small_cnn_{name}" for name in ("lr1", "lr1-epoch2", "lr2", "untrained")]
    # the last epoch, epoch 2, and the best one where training may stop early
    assert table["epoch"].tolist()[:3] == [3, 2, 2]
    assert table["train_accuracy"].tolist()[:3] == [0.7, 0.6, 0.6]
    assert table["val_accuracy"].tolist()[:3] == [0.4, 0.5, 0.5]
    assert table["epoch"].isna().tolist()[3:] == [True]
    scores = read_table(done.scores_folder / "scores.csv")
    assert table["precision_at_r"]["small_cnn_untrained"] == pytest.approx(scores["value"][0])
    assert table["mean_average_precision"]["small_cnn_untrained"] == pytest.approx(scores["value"][2])
    assert table["precision_at_r"]["small_cnn_lr1"] != table["precision_at_r"]["small_cnn_untrained"]
    batch = read_table(done.scores_folder / "batch.csv")
    assert table["batch_expected"].tolist() == [batch["expected_share"][0]] * 4
    told = json.loads((done.root / "scores" / "compare.json").read_text())
    assert told["level"] == "replicates"
    # every digit, as a p may be tiny
    pd.testing.assert_frame_equal(pd.DataFrame(told["pairs"]), found.comparison.pairs, check_exact=True)
    assert len(told["pairs"]) == 6 * 3
    assert set(told["curves"]) == set(table.index)
    assert (done.root / "scores" / "compare.png").stat().st_size > 10_000
    assert found.lines()[0].split()[:3] == ["run", "enrichment", "precision"]


def test_treatments_are_compared_where_a_moa_is_known(done):
    found = compare_studies([done])
    assert found.table["labels"].tolist() == ["Metadata_MOA"]
    assert found.table["n"].tolist() == [2]
    # the controls are no treatment
    assert found.comparison.selection["rows_left"].tolist() == [2, 2, 2, 2, 2]


def test_profiles_from_elsewhere(done, tmp_path):
    """Wells of another program: no MOA, a dose of its own, features with other names."""
    wells = read_table(done.profiles_folder / NORMALIZED)
    rng = np.random.default_rng(0)
    features = pd.DataFrame(rng.normal(size=(len(wells), 6))).add_prefix("Cells_")
    write_table(wells[[PLATE, WELL, COMPOUND]].join(features), tmp_path / "cellprofiler.csv.gz")
    found = compare_studies([done], profiles={"CellProfiler": tmp_path / "cellprofiler.csv.gz"}, out=tmp_path / "out")
    assert found.table["run"].tolist() == [MODEL, "CellProfiler"]
    assert found.table["features"].tolist()[1] == 6
    assert found.table["val_accuracy"].isna().all()
    assert found.table["n"].tolist() == [2, 2]
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"compare.csv", "compare.json", "compare.png"}
    replicates = compare_studies(
        [done], profiles={"CellProfiler": tmp_path / "cellprofiler.csv.gz"}, level="replicates", out=tmp_path / "out"
    )
    assert replicates.table["n"].tolist() == [12, 12]


def test_studies_may_name_their_columns_otherwise(done, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(done.root, other)
    edit_index(other, lambda table: table.rename(columns={COMPOUND: "Metadata_drug"}))
    second = configure(other, columns={"compound": "Metadata_drug"}, controls="Metadata_drug == 'DMSO'")
    run(second)
    found = compare_studies([done, second])
    assert found.table["run"].tolist() == [f"study {MODEL}", f"other {MODEL}"]
    assert found.table["precision_at_r"].nunique() == 1


# twelve wells are few to spherize by
@pytest.mark.filterwarnings("ignore::cytominer_tools.errors.ProfileWarning")
def test_profiles_of_other_settings_are_left_out(done):
    noisy(done, "small_cnn_lr1")
    now = configure(done.root, profiles={"fit": "all"})
    with pytest.raises(
        InputError, match=r"normalized\.parquet was made .* under other settings; run `deepprofile run`"
    ):
        compare_studies([now], level="replicates")
    for stage in (normalize_wells, consensus_profiles):
        stage(now)
    found = compare_studies([now], level="replicates")
    assert found.table["run"].tolist() == [MODEL]
    assert np.isnan(found.table["batch_before"][0])  # of scores that are older than the profiles
    [(other, why), (batch, how)] = sorted(found.left_out, reverse=True)
    assert other == "small_cnn_lr1"
    asked = "--model small_cnn_lr1 --recipe deep"
    assert f"run `deepprofile normalize {asked}`, then `deepprofile consensus {asked}`" in why
    assert batch == f"batch of {MODEL}"
    assert "run `deepprofile score" in how
    assert any(line.startswith("Left out: small_cnn_lr1: ") for line in found.lines())
    assert json.loads((done.root / "scores" / "compare.json").read_text())["left_out"] == [
        list(x) for x in found.left_out
    ]
    run(now)
    assert np.isfinite(compare_studies([now], level="replicates").table["batch_share_before"][0])


def test_profiles_whose_features_are_gone_are_to_be_deleted(done):
    shutil.copytree(done.profiles_folder.parent, done.profiles_folder.parent.with_name("old_net"))
    path = done.root / "profiles" / "old_net" / "deep" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["parts"][CONSENSUS]["key"] = "of other settings"
    path.write_text(json.dumps(manifest))
    [(what, why)] = compare_studies([done]).left_out
    assert what == "old_net"
    assert "under other settings; its features are gone: delete" in why
    assert "deepprofile normalize" not in why
    (done.root / "features" / "old_net").mkdir()
    (done.root / "features" / "old_net" / "card.json").write_text("{}")
    [(_, why)] = compare_studies([done]).left_out
    assert "run `deepprofile normalize --model old_net --recipe deep`" in why


def test_a_recipe_that_is_gone_is_left_out(done):
    shutil.copytree(done.profiles_folder, done.profiles_folder.with_name("mine"))
    [(what, why)] = compare_studies([done]).left_out
    assert what == f"{MODEL} mine"
    assert "study.yaml has no recipe of this name" in why


def test_the_command(done):
    told = CliRunner().invoke(main, ["compare", str(done.root), "--level", "replicates"])
    assert told.exit_code == 0, told.output
    assert "Compared, Compound: profiles of small_cnn_untrained: 12" in told.output
    told = CliRunner().invoke(main, ["compare", str(done.root), "--json"])
    assert json.loads(told.stdout)["runs"][0]["model"] == MODEL


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"profiles": {MODEL: "a.csv"}}, f"two runs are called {MODEL}; give the file another name"),
        ({"profiles": {"other": "b.csv"}}, r"b\.csv: no such file"),
        ({"profiles": {"other": "c.csv"}}, "no column 'Metadata_Compound'"),
    ],
)
def test_words(done, settings, words):
    write_table(read_table(done.profiles_folder / CONSENSUS), done.root / "a.csv")
    write_table(pd.DataFrame({"Metadata_x": [1], "f": [1.0]}), done.root / "c.csv")
    files = {name: done.root / file for name, file in settings["profiles"].items()}
    with pytest.raises(InputError, match=words):
        compare_studies([done], profiles=files)


def test_a_study_without_profiles(fresh):
    with pytest.raises(InputError, match="no profiles; run `deepprofile run`"):
        compare_studies([fresh])

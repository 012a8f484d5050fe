import shutil

import pytest
from click.testing import CliRunner
from study_factory import configure, derived

from cytominer_tools.errors import InputError
from cytominer_tools.tables import read_table
from deepprofile.cli import main
from deepprofile.export import export_crops
from deepprofile.sweep import read_sweep, run_sweep

pytestmark = pytest.mark.filterwarnings("ignore:spherizing learns from")
TRAIN = {
    "init": "random",
    "epochs": 2,
    "batch": 16,
    "split": "site",
    "min_cells": 1,
    "label_smoothing": 0,
    "track": [],
    "checkpoint_every": 2,
}


@pytest.fixture(scope="module")
def exported(finished, tmp_path_factory):
    """The tiny study with its crops; not to be written to."""
    root = tmp_path_factory.mktemp("sweep") / "study"
    shutil.copytree(finished.root, root)
    export_crops(configure(root, train=TRAIN))
    return root


@pytest.fixture
def study(exported, tmp_path):
    root = tmp_path / "study"
    shutil.copytree(exported, root)
    return configure(root, train=TRAIN)


def grid(study, text):
    path = study.root / "sweep.yaml"
    path.write_text(text)
    return path


def test_every_combination_is_a_study_of_its_own(study):
    found = read_sweep(study, grid(study, "train.learning_rate: [0.05, 0.5]\ntrain.init: [random]\nseed: [1, 2]\n"))
    assert [one.name for one in found] == [
        f"trained-learning_rate{rate}-random-seed{seed}" for rate in (0.05, 0.5) for seed in (1, 2)
    ]
    last = found[-1].study
    assert (last.train.learning_rate, last.seed, last.train.epochs) == (0.5, 2, 2)
    assert last.train.name == last.profile.weights == found[-1].name
    assert last.profile.name == f"small_cnn_{found[-1].name}"
    assert last.profile.options == study.profile.options


def test_a_sweep_ends_in_a_table_and_goes_on_where_it_was(study):
    path = grid(study, "train.learning_rate: [0.05, 0.01]\n")
    first = run_sweep(study, path)
    assert next(first).made == 1
    first.close()  # stopped after the first training
    told = CliRunner().invoke(main, ["train", str(study.root), "--sweep", str(path)])
    assert told.exit_code == 0, told.output
    table = read_table(study.root / "scores" / "compare.csv").set_index("run")
    assert table.index.tolist() == [
        "small_cnn_trained-learning_rate0.01",
        "small_cnn_trained-learning_rate0.05",
        "small_cnn_untrained",
    ]
    assert table["epoch"].tolist()[:2] == [2, 2]
    assert table["val_accuracy"].notna().tolist() == [True, True, False]
    before = derived(study.root)
    done = list(run_sweep(study, path))
    assert all(one.made == 0 for one in done)
    assert derived(study.root) == before


def test_a_setting_that_fails_is_left_out(study):
    path = grid(study, "train.select: [\"Metadata_Compound == 'none'\", \"Metadata_Plate != ''\"]\ntrain.epochs: [1]\n")
    *_, last = run_sweep(study, path)
    assert last.skipped[0][0].endswith("-epochs1")
    assert "picks none of" in last.skipped[0][1]
    assert (last.made, last.rows) == (1, 2)
    alone = grid(study, "train.select: [\"Metadata_Compound == 'none'\"]\n")
    with pytest.raises(InputError, match=r"none of 1 settings could be trained and scored; first train\.select"):
        list(run_sweep(study, alone))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("crops.size: [32]", r"sweep.yaml: crops.size is not swept; a sweep takes keys of train"),
        ("train.name: [a]", "train.name is not swept"),
        ("train.batch: 32", r"train.batch: expected a list of values, such as \[0.01, 0.02\], got 32"),
        ("train.batch: []", "expected a list of values"),
        ("{}", "it lists no setting"),
        ("train.batch: [32, 32]", "trained-batch32 is listed twice"),
        ("train.batch: [32, none]", r"trained-none has 1 problem.*\n.*train.batch"),
        ("train.optimiser: [sgd]", r"(?s)trained-sgd has 1 problem.*train.optimiser: unknown key, is it optimizer\?"),
    ],
)
def test_words(study, text, words):
    with pytest.raises(InputError, match=words):
        read_sweep(study, grid(study, text))

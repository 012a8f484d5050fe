import json

import pytest
from click.testing import CliRunner
from study_factory import configure

from cytominer_tools.errors import InputError
from cytominer_tools.tables import read_table
from deepprofile.cli import main
from deepprofile.recipe_search import search_recipes

pytestmark = pytest.mark.filterwarnings("ignore:spherizing learns from")
PLAIN = {"plain": [{"normalize": {"method": "standardize"}}, "consensus"]}
WELLS = {"columns": {"moa": None}, "recipes": PLAIN}  # no MOA: wells match by compound


def test_recipes_are_ranked_and_the_choice_is_scored(done):
    study = configure(done.root, **WELLS)
    found = search_recipes(study, ["deep", "plain"], folds=2, repeats=2)
    table = read_table(done.root / "scores" / "small_cnn_untrained" / "recipes.csv")
    assert set(table["name"]) == {"deep", "plain"}
    assert table["n"].tolist() == [8, 8]  # the wells of two compounds, without controls
    assert table["chosen"].sum() == 4
    assert table["mean_average_precision"].is_monotonic_decreasing
    told = json.loads((done.root / "scores" / "small_cnn_untrained" / "recipes.json").read_text())
    assert told["held_out"] == pytest.approx(found.search.held_out)
    assert "On compounds that had no say the choice scores" in found.lines()[2]
    # what was made is kept
    assert (done.root / "profiles" / "small_cnn_untrained" / "plain" / "consensus.parquet").is_file()


def test_the_command(done):
    configure(done.root, **WELLS)
    options = ["--recipe", "deep", "--recipe", "plain", "--folds", "2"]
    told = CliRunner().invoke(main, ["recipe", "search", str(done.root), *options])
    assert told.exit_code == 0, told.output
    assert told.output.startswith("1. ")


def test_a_recipe_that_cannot_be_run_is_left_out(done):
    by_batch = {"batches": [{"normalize": {"method": "standardize", "by": "batch"}}, "consensus"]}
    study = configure(done.root, columns={"moa": None}, recipes=PLAIN | by_batch)
    found = search_recipes(study, ["deep", "plain", "batches"], folds=2, repeats=1)
    assert found.left_out[0][0] == "batches"
    assert "set columns.batch" in found.left_out[0][1]
    with pytest.raises(InputError, match="1 of 2 recipes could be run; two are needed"):
        search_recipes(study, ["deep", "batches"], folds=2)
    with pytest.raises(InputError, match="no recipe is called 'best'"):
        search_recipes(study, ["best", "plain"])

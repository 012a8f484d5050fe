"""Recipes by name and as lists: what they make, where, and what a changed step makes again."""

import numpy as np
import pandas as pd
import pytest
from study_factory import configure, run

from cytominer_tools.columns import METADATA, PLATE
from cytominer_tools.errors import InputError
from cytominer_tools.tables import read_table
from deepprofile.profiles import CONSENSUS, NORMALIZED, SELECTED, WELLS, normalize_wells, score_profiles

pytestmark = pytest.mark.filterwarnings("ignore:spherizing learns from")
OWN = [
    {"normalize": {"method": "standardize", "by": "plate", "fit": "all"}},
    {"select": {"operation": ["variance_threshold", "correlation_threshold"], "corr_threshold": 0.5}},
    {"consensus": {"operation": "mean"}},
]


def features_of(table):
    return [name for name in table if not name.startswith(METADATA)]


# --- several recipes of one model
def test_a_table_of_recipes_is_one_run(done):
    study = configure(done.root, profiles={"recipe": ["deep", "mine"]}, recipes={"mine": OWN})
    run(study)
    deep, mine = study.recipe_sets
    assert mine.profiles_folder == done.root / "profiles" / study.profile.name / "mine"
    wells, normalized, selected, treatments = (
        read_table(mine.profiles_folder / name) for name in (WELLS, NORMALIZED, SELECTED, CONSENSUS)
    )
    assert (deep.profiles_folder / WELLS).read_bytes() == (mine.profiles_folder / WELLS).read_bytes()
    assert not (deep.profiles_folder / SELECTED).exists()
    names = features_of(wells)
    each = wells.groupby(PLATE)[names]
    expected = (wells[names] - each.transform("mean")) / each.transform(lambda x: x.std(ddof=0) or 1)
    np.testing.assert_allclose(normalized[names], expected, atol=1e-4)
    assert set(features_of(selected)) < set(names)
    corr = np.corrcoef(selected[features_of(selected)].to_numpy().T)
    assert np.abs(corr[np.triu_indices(len(corr), 1)]).max() <= 0.5
    compound = study.columns.compound
    means = selected.groupby(compound)[features_of(selected)].mean()
    pd.testing.assert_frame_equal(
        treatments.set_index(compound)[features_of(selected)], means, check_dtype=False, check_names=False, atol=1e-6
    )
    for one in (deep, mine):
        assert len(read_table(one.scores_folder / "scores.csv")) == 12


def test_a_changed_step_makes_what_depends_on_it(done):
    study = configure(done.root, profiles={"recipe": "mine"}, recipes={"mine": OWN})
    told = run(study)
    assert told["aggregate"].made == 1  # taken from the recipe deep
    steps = [OWN[0], {"select": {**OWN[1]["select"], "corr_threshold": 0.6}}, OWN[2]]
    before = (study.profiles_folder / NORMALIZED).stat().st_mtime_ns
    other = configure(done.root, profiles={"recipe": "mine"}, recipes={"mine": steps})
    with pytest.raises(InputError, match=r"selected\.parquet was made .* under other settings; run `deepprofile run`"):
        score_profiles(other)
    assert {name: one.made for name, one in run(other).items()} == {
        **dict.fromkeys(("illumination", "locate", "profile", "aggregate"), 0),
        **dict.fromkeys(("normalize", "consensus", "score"), 1),
    }
    assert (study.profiles_folder / NORMALIZED).stat().st_mtime_ns == before
    shorter = configure(done.root, profiles={"recipe": "mine"}, recipes={"mine": [OWN[0], "consensus"]})
    run(shorter)
    assert not (shorter.profiles_folder / SELECTED).exists()
    assert not any(one.made for one in run(shorter).values())


def test_one_recipe_of_a_study(done):
    study = configure(done.root, profiles={"recipe": ["deep", "cellprofiler"]})
    assert study.with_recipe("deep").profiles.recipe == "deep"
    assert normalize_wells(study.with_recipe("deep")).kept == 1
    with pytest.raises(InputError, match="no recipe is called 'none'; there are deep, cellprofiler"):
        study.with_recipe("none")


# --- study.yaml
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"profiles": {"recipe": "deeep"}}, "no recipe is called 'deeep'; there are deep, cellprofiler"),
        ({"profiles": {"recipe": []}}, r"profiles: recipe: name one or several different ones, got none"),
        ({"recipes": {"deep": OWN}}, "recipes: deep is built in; give yours another name"),
        ({"recipes": {"a": OWN[:2]}}, r"recipes\.a: has 0 consensus steps; one of them makes treatments of wells"),
        ({"recipes": {"a": [{"spherise": {}}]}}, r"recipes\.a\.steps\.0: .*'spherise'.*'spherize'"),
        ({"recipes": {"a": [{"spherize": {"rigde": 2}}]}}, r"recipes\.a\.steps\.0\.spherize\.rigde: .* is it ridge\?"),
        ({"recipes": {"a": [3, "consensus"]}}, r"recipes\.a\.steps\.0: expected a step such as `consensus`"),
    ],
)
def test_what_a_study_may_not_say(done, changes, words):
    with pytest.raises(InputError, match=words):
        configure(done.root, **changes)

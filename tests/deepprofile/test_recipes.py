"""Recipes by name and as lists: what they make, where, and what a changed step makes again."""

import numpy as np
import pandas as pd
import pytest
from study_factory import configure, edit_index, run

from cytominer_tools.aggregation import modz
from cytominer_tools.columns import METADATA, PLATE
from cytominer_tools.errors import InputError
from cytominer_tools.normalization import spherize
from cytominer_tools.tables import read_table, write_table
from deepprofile.checks import check_study
from deepprofile.profiles import CONSENSUS, NORMALIZED, SELECTED, WELLS, final_wells, normalize_wells, score_profiles
from deepprofile.recipes import BUILT_IN
from deepprofile.steps import apply_recipe

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


def test_a_consensus_by_agreement(done):
    study = configure(done.root, profiles={"recipe": "mine"}, recipes={"mine": [{"consensus": {"operation": "modz"}}]})
    assert run(study)["consensus"].rows == 3
    wells, found = read_table(study.profiles_folder / NORMALIZED), read_table(study.profiles_folder / CONSENSUS)
    expected = modz(wells, study.columns.compound, features_of(wells))
    np.testing.assert_allclose(found[features_of(wells)], expected[features_of(wells)])
    assert found["Metadata_MOA"].tolist()[1:] == ["kinase", "kinase"]


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


# --- every built-in recipe, on a study and on a table
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:mad_robustize")
@pytest.mark.parametrize("name", [name for name in BUILT_IN if name != "deep"])
def test_a_built_in_recipe_runs(done, name):
    settings = {"columns": {"batch": "Metadata_Plate"}, "profiles": {"recipe": name}}
    study = configure(done.root, **settings)
    told = run(study)
    assert told["consensus"].rows == 3
    wells, treatments = (read_table(study.profiles_folder / file) for file in (final_wells(study), CONSENSUS))
    assert len(wells) == 12
    assert features_of(wells)
    assert np.isfinite(wells[features_of(wells)]).all(axis=None)
    assert set(features_of(treatments)) <= set(features_of(wells))
    assert not any(one.made for one in run(study).values())


def test_a_recipe_on_a_table(done, tmp_path):
    wells = read_table(done.profiles_folder / WELLS)
    found = apply_recipe(
        done.profiles_folder / WELLS, by="Metadata_Compound", controls=done.controls, output_folder=tmp_path / "made"
    )
    pd.testing.assert_frame_equal(found.wells, read_table(done.profiles_folder / NORMALIZED))
    names = features_of(found.treatments)
    np.testing.assert_allclose(found.treatments[names], read_table(done.profiles_folder / CONSENSUS)[names])
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == ["consensus.parquet", "wells.parquet"]
    (tmp_path / "mine.yaml").write_text("steps: [{normalize: {method: standardize, fit: all}}, consensus]\n")
    mine = apply_recipe(wells, tmp_path / "mine.yaml", by="Metadata_Compound").wells
    np.testing.assert_allclose(mine[features_of(mine)].mean(), 0, atol=1e-5)
    (tmp_path / "mine.yaml").write_text("steps: [{normalize: {method: loess}}, consensus]\n")
    with pytest.raises(InputError, match=r"mine\.yaml: 1 problem\(s\)\n  steps\.0\.normalize\.method: "):
        apply_recipe(wells, tmp_path / "mine.yaml", by="Metadata_Compound")


def test_another_table_beside_the_features(done):
    wells = read_table(done.profiles_folder / WELLS)
    other = wells[[PLATE, "Metadata_Well"]].assign(Cells_AreaShape_Area=np.arange(12.0))
    write_table(other, done.root / "cellprofiler.csv")
    steps = [{"concatenate": {"table": "cellprofiler.csv", "fit": "all"}}, "consensus"]
    study = configure(done.root, profiles={"recipe": "both"}, recipes={"both": steps})
    run(study)
    found = read_table(study.profiles_folder / NORMALIZED)
    np.testing.assert_allclose(found["Cells_AreaShape_Area"], np.arange(12) / np.arange(12).std(), rtol=1e-6)
    assert found.filter(like="small_cnn").var(ddof=0).sum() == pytest.approx(1, rel=1e-4)
    write_table(other.assign(Cells_AreaShape_Area=np.arange(12.0)[::-1] + 0.5), done.root / "cellprofiler.csv")
    assert {name for name, one in run(study).items() if one.made} == {"normalize", "consensus", "score"}


def test_spherized_by_plate(done):
    """Each plate by its own controls, of which the factory makes two."""
    study = configure(
        done.root, profiles={"recipe": "mine"}, recipes={"mine": [{"spherize": {"by": "plate"}}, "consensus"]}
    )
    run(study)
    wells, found = (read_table(study.profiles_folder / name) for name in (WELLS, NORMALIZED))
    expected = spherize(wells, study.controls, by=PLATE, features=features_of(wells)).profiles
    pd.testing.assert_frame_equal(found, expected)
    assert features_of(found)
    by_all = read_table(done.profiles_folder / NORMALIZED)
    assert not np.allclose(found[features_of(found)], by_all[features_of(found)])
    edit_index(done.root, lambda t: t[(t["Metadata_Plate"] == "P1") | (t["Metadata_Well"] != "A02")])
    said = [p for p in check_study(study) if p.place == "study.yaml recipe mine"]
    assert [p.level for p in said] == ["error"]
    assert (
        "learns from the controls of each Plate, and 1 of 2 have fewer than 2, which spherizing needs" in said[0].what
    )


# --- scopes that have too little in them
@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        (
            "cellprofiler",
            "normalize by mad_robustize learns from the controls of each Plate, and 2 of 2 have fewer than 16, "
            "down to 2",
        ),
        (
            "plate-pca",
            "normalize by standardize learns from all wells of each Plate, and 2 of 2 hold fewer than 16 treatments, "
            "down to 2",
        ),
        (
            "mine",
            "spherize by ZCA-cor learns from the controls of each Plate, and 2 of 2 have fewer than 16, down to 2: its "
            "scale is noise; take a larger scope",
        ),
    ],
)
def test_check_names_a_scope_that_is_too_small(done, recipe, words):
    own = {"recipes": {"mine": [{"spherize": {"by": "plate"}}, "consensus"]}} if recipe == "mine" else {}
    said = [p for p in check_study(configure(done.root, profiles={"recipe": recipe}, **own)) if words in p.what]
    assert [(p.place, p.level) for p in said] == [(f"study.yaml recipe {recipe}", "warning")]


def test_a_recipe_that_learns_from_all_wells_needs_no_controls(done):
    def said(recipe):
        return [
            p
            for p in check_study(configure(done.root, controls=None, profiles={"recipe": recipe}))
            if "no controls" in p.what
        ]

    assert [p.level for p in said("deep")] == ["error"]
    assert said("plate-pca") == []


def test_check_of_scopes(done):
    def said(**changes):
        return [p for p in check_study(configure(done.root, **changes)) if p.place.startswith("study.yaml recipe")]

    assert said() == []  # deep has one scope, the study
    by_batch = [{"correct": {"method": "combat"}}, "consensus"]
    (problem,) = said(profiles={"recipe": "mine"}, recipes={"mine": by_batch})
    assert (problem.level, problem.what) == (
        "error",
        "a step is `by: batch`, and nothing says what a batch is; set columns.batch",
    )
    place = [{"correct": {"method": "well_position", "fit": "all"}}, "consensus"]
    edit_index(done.root, lambda t: t[t["Metadata_Well"].isin(["A01", "A02", "B01", "C01"])])
    (problem,) = said(profiles={"recipe": "mine"}, recipes={"mine": place})
    assert "2 of 2 treatments keep theirs: it takes them out too" in problem.what

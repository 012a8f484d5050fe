import json

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import scipy.stats
from study_factory import configure, edit_index, run

from cytominer_tools.columns import COUNT, METADATA, PLATE, WELL
from cytominer_tools.errors import InputError
from cytominer_tools.ledger import read_ledger
from cytominer_tools.tables import read_table, write_table
from deepprofile.checks import check_study
from deepprofile.crop_selection import read_treatments
from deepprofile.profiles import (
    CONSENSUS,
    NORMALIZED,
    WELLS,
    aggregate_wells,
    consensus_profiles,
    normalize_wells,
    read_profiles,
    score_lines,
    score_profiles,
    stale_scores,
)
from deepprofile.scoring import batch_scores

pytestmark = [
    pytest.mark.filterwarnings("ignore:spherizing learns from"),
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword"),  # of save_weights
]
COMPOUND = "Metadata_Compound"


def features_of(table):
    return [name for name in table if not name.startswith(METADATA)]


def by_cell(study):
    """Level 2 of all plates as a wide frame."""
    frames = []
    for plate in ("P1", "P2"):
        table = pq.read_table(study.features / plate / "cells.parquet")
        features = table["features"].combine_chunks()
        values = np.asarray(features.flatten()).reshape(len(table), -1)
        names = [f"{study.profile.name}_{i}" for i in range(values.shape[1])]
        frames.append(pd.concat([table.select([PLATE, WELL]).to_pandas(), pd.DataFrame(values, columns=names)], axis=1))
    return pd.concat(frames, ignore_index=True)


# --- level 3
@pytest.mark.parametrize("operation", ["median", "mean"])
def test_wells_are_what_pandas_makes_of_the_cells(done, operation):
    study = configure(done.root, profiles={"operation": operation})
    assert aggregate_wells(study).made == (operation == "mean")
    wells = read_table(study.profiles_folder / WELLS)
    cells = by_cell(study).groupby([PLATE, WELL])
    expected = cells.agg(operation)
    np.testing.assert_allclose(wells[features_of(wells)], expected.to_numpy(), rtol=1e-5, atol=1e-6)
    assert features_of(wells) == list(expected)
    assert wells[[PLATE, WELL]].to_records(index=False).tolist() == list(expected.index)
    assert wells[COUNT].tolist() == cells.size().tolist()


def test_a_trimmed_mean_is_that_of_scipy(done):
    study = configure(done.root, profiles={"operation": "trimmed_mean"})
    aggregate_wells(study)
    wells = read_table(study.profiles_folder / WELLS)
    cells = by_cell(study)
    chosen = cells[(cells[PLATE] == "P2") & (cells[WELL] == "B01")]
    expected = scipy.stats.trim_mean(chosen[features_of(cells)].to_numpy(), 0.1)
    row = wells[(wells[PLATE] == "P2") & (wells[WELL] == "B01")]
    np.testing.assert_allclose(row[features_of(wells)].to_numpy()[0], expected, rtol=1e-5, atol=1e-6)


def test_wells_with_few_cells_are_left_out_and_named(done):
    counts = by_cell(done).groupby([PLATE, WELL]).size()
    fewest = int(counts.min()) + 1
    told = aggregate_wells(configure(done.root, profiles={"min_cells": fewest}))
    gone = counts[counts < fewest]
    assert told.rows == 12 - len(gone) < 12
    assert told.skipped == tuple(
        (f"{plate} {well}", f"{n} cells, fewer than profiles.min_cells ({fewest})") for (plate, well), n in gone.items()
    )
    with pytest.raises(InputError, match=r"no well has 999 cells; lower profiles\.min_cells"):
        aggregate_wells(configure(done.root, profiles={"min_cells": 999}))


def test_tables_say_what_was_done_to_them(finished):
    """Golden: twelve wells, spherized as they are, and three treatments of them."""
    read = {name: read_ledger(finished.profiles_folder / name) for name in (WELLS, NORMALIZED, CONSENSUS)}
    steps = read[CONSENSUS]
    assert [step["step"] for step in steps] == ["aggregate", "spherize", "consensus"]
    assert read[WELLS] == steps[:1]
    assert read[NORMALIZED] == steps[:2]
    cells = len(by_cell(finished))
    assert [step["rows"] for step in steps] == [[cells, 12], [12, 12], [12, 3]]
    assert steps[0]["settings"] == {"operation": "median", "min_cells": 1}
    assert steps[1]["settings"]["fit"] == finished.controls
    dropped = steps[1]["dropped"]
    assert len(dropped) == steps[1]["features"][0] - steps[1]["features"][1]
    assert not set(dropped) & set(features_of(read_table(finished.profiles_folder / NORMALIZED)))


@pytest.mark.filterwarnings("ignore:correlation_threshold")
def test_the_reason_why_a_feature_is_dropped_stays_with_the_table(done):
    steps = [{"select": {"operation": "correlation_threshold", "corr_threshold": 0.1}}, "consensus"]
    study = configure(done.root, recipes={"few": steps}, profiles={"recipe": "few"})
    aggregate_wells(study)
    normalize_wells(study)
    *_, told = read_ledger(study.profiles_folder / "selected.parquet")
    assert (told["step"], told["settings"]["corr_threshold"]) == ("select", 0.1)
    assert len(told["dropped"]) == told["features"][0] - told["features"][1] > 0
    assert all(reason.startswith("correlation_threshold: ") for reason in told["dropped"].values())


def test_wells_carry_the_metadata_of_the_index(finished):
    wells = read_table(finished.profiles_folder / WELLS)
    assert wells[COMPOUND].tolist() == ["DMSO", "DMSO", "aaa", "aaa", "bbb", "bbb"] * 2
    assert wells["Metadata_MOA"].isna().tolist() == [True, True, False, False, False, False] * 2
    assert "Metadata_Site" not in wells


def test_a_well_that_left_the_index_leaves_the_profiles(done):
    edit_index(done.root, lambda t: t[(t["Metadata_Plate"] != "P2") | (t["Metadata_Well"] != "C02")])
    assert aggregate_wells(done).rows == 11  # without `profile` having run again
    wells = read_table(done.profiles_folder / WELLS)
    assert ("P2", "C02") not in set(wells[[PLATE, WELL]].itertuples(index=False, name=None))


def test_features_of_other_settings_are_refused(done):
    study = configure(done.root, crops={"size": 16})
    with pytest.raises(InputError, match=r"other settings \(preprocess\.size: 32 -> 16\); run `deepprofile profile`"):
        aggregate_wells(study)


# --- level 4
def test_spherized_wells_keep_rows_and_metadata(finished):
    wells, normalized = (read_table(finished.profiles_folder / name) for name in (WELLS, NORMALIZED))
    metadata = [name for name in wells if name.startswith(METADATA)]
    assert normalized[metadata].equals(wells[metadata])
    assert set(features_of(normalized)) <= set(features_of(wells))
    controls = normalized.loc[normalized[COMPOUND] == "DMSO", features_of(normalized)]
    np.testing.assert_allclose(controls.mean(), 0, atol=1e-4)
    assert np.isfinite(normalized[features_of(normalized)].to_numpy()).all()


def test_spherize_by_all_wells(done):
    study = configure(done.root, controls=None, profiles={"fit": "all"})
    assert normalize_wells(study).made == 1
    normalized = read_table(study.profiles_folder / NORMALIZED)
    np.testing.assert_allclose(normalized[features_of(normalized)].mean(), 0, atol=1e-4)


# --- level 5
def test_treatments_are_the_median_of_their_wells(finished):
    wells, profiles = (read_table(finished.profiles_folder / name) for name in (NORMALIZED, CONSENSUS))
    names = features_of(wells)
    expected = wells.groupby(COMPOUND)[names].median()
    assert profiles[COMPOUND].tolist() == list(expected.index) == ["DMSO", "aaa", "bbb"]
    np.testing.assert_allclose(profiles[names], expected.to_numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(profiles[COUNT], wells.groupby(COMPOUND)[COUNT].mean())
    assert profiles["Metadata_MOA"].fillna("").tolist() == ["", "kinase", "kinase"]
    assert PLATE not in profiles


def test_a_concentration_tells_treatments_apart(fresh):
    edit_index(fresh.root, lambda t: t.assign(Metadata_Dose=t["Metadata_Well"].str[-1].map({"1": 0.1, "2": 3})))
    study = configure(fresh.root, columns={"concentration": "Metadata_Dose"})
    assert run(study)["consensus"].rows == 6
    profiles = read_table(study.profiles_folder / CONSENSUS)
    pairs = profiles[[COMPOUND, "Metadata_Dose"]].to_records(index=False).tolist()
    assert pairs == [("DMSO", 0.1), ("DMSO", 3.0), ("aaa", 0.1), ("aaa", 3.0), ("bbb", 0.1), ("bbb", 3.0)]


def test_wells_without_a_treatment(fresh):
    blank = lambda t: t.assign(Metadata_Compound=t[COMPOUND].mask(t["Metadata_Well"] == "C02"))  # noqa: E731
    edit_index(fresh.root, blank)
    done = run(fresh)["consensus"]
    assert done.rows == 3
    assert done.skipped == (("P1 C02", "no Metadata_Compound"), ("P2 C02", "no Metadata_Compound"))
    profiles = read_table(fresh.profiles_folder / CONSENSUS)
    assert profiles[COMPOUND].notna().all()
    bbb = profiles.loc[profiles[COMPOUND] == "bbb", COUNT].item()
    wells = read_table(fresh.profiles_folder / NORMALIZED)
    assert bbb == wells.loc[wells[COMPOUND] == "bbb", COUNT].mean()


# --- scores
def test_scores_stand_beside_their_baselines(finished):
    table = read_table(finished.scores_folder / "scores.csv")
    assert table[["profiles", "score"]].to_records(index=False).tolist() == [
        (level, score)
        for level in ("replicates", "treatments")
        for score in (
            "precision_at_r",
            "enrichment",
            "mean_average_precision",
            "nearest",
            "hit_s20",
            "robust_enrichment",
        )
    ]
    first = table.iloc[0]
    assert first["labels"] == COMPOUND
    assert first["similarity"] == "cosine"
    assert first["n"] == 12
    assert 0 <= first["permutation_mean"] <= first["permutation_95"] <= 1
    assert 0 < first["p"] <= 1
    assert 0 <= first["cell_count"] <= 1
    assert np.isnan(table["value"][1])
    assert "66 pairs" in table["reason"][1]
    assert table["labels"][6] == "Metadata_MOA"
    assert table["n"][6] == 2
    names = {p.name for p in finished.scores_folder.iterdir()}
    assert {"scores.csv", "scores.json", "selection.csv", "queries_replicates.csv", "scores.png"} <= names


def test_the_lines_hold_every_score(finished):
    lines = score_lines(finished)
    assert lines[0].split()[:2] == ["profiles", "by"]
    assert sum("replicates by Compound" in line and "precision_at_r" in line for line in lines) == 1
    assert any(line.startswith("Similarity: cosine. Model: small_cnn_untrained. Recipe: deep.") for line in lines)
    assert any("66 pairs" in line for line in lines)


def test_the_untrained_baseline(done):
    from deepprofile.networks import build_network

    build_network("small_cnn", channels=3, size=(32, 32), seed=9, width=4, depth=3).save_weights(
        done.root / "a.weights.h5"
    )
    study = configure(
        done.root, profile={"weights": "a.weights.h5"}, scores={"baselines": ["permutation", "cell_count", "untrained"]}
    )
    assert study.untrained.profile.name == f"{study.profile.name}_untrained"
    run(study)
    table = read_table(study.scores_folder / "scores.csv")
    alone = read_table(done.scores_folder / "scores.csv")  # the same network, the same seed
    np.testing.assert_allclose(table["untrained"], alone["value"])
    assert "untrained" in score_lines(study)[0]


def test_other_scores_are_made_again(done):
    study = configure(done.root, scores={"select": f"{COMPOUND} != 'DMSO'"})
    assert score_profiles(study).made == 1
    assert score_profiles(study).kept == 1
    selection = read_table(study.scores_folder / "selection.csv")
    assert selection.loc[selection["rule"].str.startswith("select"), "rows_removed"].tolist() == [4, 1]


def test_pairs_that_share_a_column_are_no_match(done):
    study = configure(done.root, scores={"exclude_same": ["Metadata_Well"]})
    score_profiles(study)
    queries = read_table(study.scores_folder / "queries_replicates.csv")
    assert queries["n_candidates"].tolist() == [10] * 12
    assert queries["n_matches"].tolist() == [2] * 12


# --- out of order
@pytest.mark.parametrize(
    ("stage", "command"),
    [
        (aggregate_wells, "deepprofile profile"),
        (normalize_wells, "deepprofile aggregate"),
        (consensus_profiles, "deepprofile normalize"),
        (score_profiles, "deepprofile consensus"),
    ],
)
def test_a_stage_before_its_input_says_what_to_run(fresh, stage, command):
    with pytest.raises(InputError, match=f"run `{command}`"):
        stage(fresh)


def test_profiles_of_other_settings_are_not_taken_for_current(done):
    other = configure(done.root, controls=f"{COMPOUND} == 'aaa'")
    for stage in (consensus_profiles, score_profiles):
        with pytest.raises(
            InputError, match=r"normalized\.parquet was made .* under other settings; run `deepprofile run`"
        ):
            stage(other)
    normalize_wells(other)
    with pytest.raises(InputError, match=r"consensus\.parquet was made from other profiles .*; run `deepprofile run`"):
        score_profiles(other)
    consensus_profiles(other)
    assert score_profiles(other).made == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": 4}, "made under other settings (seed: 3 -> 4)"),
        ({"columns": {"moa": None}}, "made under other settings (labels.treatments: Metadata_MOA -> none)"),
        ({"columns": {"batch": PLATE}}, f"made under other settings (columns.batch: none -> {PLATE})"),
        ({"scores": {"permutations": 10}}, "made under other settings (scores.permutations: 20 -> 10)"),
    ],
)
def test_scores_are_stale_where_they_would_be_made_again(done, changes, words):
    study = configure(done.root, **changes)
    manifest, _ = read_profiles(study, CONSENSUS, "deepprofile consensus")
    assert stale_scores(study, manifest) == words
    assert score_profiles(study).made == 1
    assert stale_scores(study, manifest) == ""
    assert score_profiles(study).made == 0


def test_scores_beside_another_untrained_network_are_stale(done):
    path = done.scores_folder / "manifest.json"
    written = json.loads(path.read_text())
    written["settings"]["untrained"] = "of other weights"
    path.write_text(json.dumps(written))
    manifest, _ = read_profiles(done, CONSENSUS, "deepprofile consensus")
    assert stale_scores(done, manifest) == "made before the profiles of the untrained network"


def test_scores_across_plates_and_of_compounds_only(done):
    study = configure(
        done.root,
        scores={"across": ["plates", "positions"], "compounds_only": True, "metrics": ["nearest"], "strongest": 1},
    )
    score_profiles(study)
    table = read_table(study.scores_folder / "scores.csv")
    across = table["across"].fillna("")
    replicates = table["profiles"] == "replicates"
    assert across[replicates].tolist() == [""] * 3 + [PLATE] * 3 + [WELL] * 3
    assert across[~replicates].tolist() == [""] * 3  # treatments are of many plates
    nearest = table[replicates & (table["score"] == "nearest")]
    assert nearest["n"].tolist() == [8, 8, 8]
    # of seven others three match; two of four on the other plate; two of six in other positions
    assert nearest["chance"].tolist() == pytest.approx([3 / 7, 2 / 4, 2 / 6])
    selection = read_table(study.scores_folder / "selection.csv")
    assert selection["rule"][1] == f"select: not ({COMPOUND} == 'DMSO')"
    assert selection["rows_removed"][1] == 4
    assert any("replicates by Compound, across Plate" in line for line in score_lines(study))


def test_the_strongest_treatments_can_be_exported_and_trained_on(done):
    study = configure(done.root, scores={"strongest": 1})
    score_profiles(study)
    strong = read_table(study.scores_folder / "strong.csv")
    assert strong.columns.tolist() == [COMPOUND, "Metadata_Strength"]
    profiles = read_table(study.profiles_folder / CONSENSUS)
    controls = read_table(study.profiles_folder / NORMALIZED).query(f"{COMPOUND} == 'DMSO'")[features_of(profiles)]
    away = np.linalg.norm(profiles[features_of(profiles)] - controls.mean(), axis=1)
    treated = (profiles[COMPOUND] != "DMSO").to_numpy()
    assert strong[COMPOUND].tolist() == [profiles[COMPOUND][np.flatnonzero(treated)[away[treated].argmax()]]]
    assert read_treatments(study.scores_folder / "strong.csv", COMPOUND) == strong[COMPOUND].tolist()


@pytest.mark.parametrize(
    ("listed", "level", "words"),
    [
        (["aaa", "bbb"], None, ""),
        (["aaa", "zzz"], "warning", "1 of 2 treatments in strong.csv are not in Metadata_Compound: zzz"),
        (["yyy", "zzz"], "error", "2 of 2 treatments in strong.csv are not in Metadata_Compound: yyy, zzz"),
    ],
)
def test_check_says_which_listed_treatments_are_there(fresh, listed, level, words):
    write_table(pd.DataFrame({COMPOUND: listed, "Metadata_Strength": [2.0, 1.0]}), fresh.root / "strong.csv")
    study = configure(fresh.root, export={"treatments": "strong.csv"})
    found = [one for one in check_study(study) if one.place == "study.yaml export.treatments"]
    assert [(one.level, one.what) for one in found] == ([(level, words)] if level else [])


def test_batches_stand_beside_what_is_expected(done):
    table = read_table(done.scores_folder / "batch.csv")
    assert table["profiles"].unique().tolist() == ["wells", "normalized, held out"]
    assert table["by"][:4].tolist() == [PLATE, "well row", "well column", WELL]
    first = table.iloc[0]
    assert (first["n"], first["pairs"], first["same"]) == (4, 6, 2)
    assert first["expected_share"] == pytest.approx(2 / 6)
    # four controls cannot be split into folds of three
    assert table["reason"][4:].str.contains("folds=1: expected").all()


def test_batches_are_scored_by_name(done):
    study = configure(done.root, scores={"metrics": ["nearest", "kbet", "lisi", "component_association"]})
    score_profiles(study)
    table = read_table(study.scores_folder / "scores.csv")
    assert table["score"][:6].tolist() == ["precision_at_r", "enrichment", "nearest"] * 2
    mixed = table[6:].set_index(["profiles", "labels", "score"]).sort_index()
    assert len(mixed) == 2 * 4 * 3
    before = mixed.loc["controls before"]
    assert before["n"].eq(4).all()
    assert before["reason"][PLATE, "kbet"] == "4 wells to compare: 10 neighbours of each need at least 11"
    assert before["reason"]["well row", "component_association"] == "all wells share one"
    plates = before.loc[PLATE, "component_association"]
    wells = read_table(study.profiles_folder / WELLS).query(f"{COMPOUND} == 'DMSO'")
    X = wells[features_of(wells)].to_numpy(float)  # four wells have three components, which are all there is
    means = np.stack([X[(wells[PLATE] == plate).to_numpy()].mean(axis=0) for plate in wells[PLATE]])
    assert plates["value"] == pytest.approx(((means - X.mean(axis=0)) ** 2).sum() / ((X - X.mean(axis=0)) ** 2).sum())
    assert plates["chance"] == pytest.approx(1 / 3)
    assert plates[["permutation_mean", "p", "cell_count"]].notna().all()
    # four controls cannot be split into folds of three
    assert mixed.loc["controls", "reason"].str.contains("folds=1: expected").all()
    lines = score_lines(study)
    assert any("controls before by Plate" in line and "component_association" in line for line in lines)
    assert not any("controls" in line and "no better than the cell count" in line for line in lines)


def test_mixing_is_scored_before_and_after_the_recipe(done):
    """Two plates that lie apart, and a recipe that takes out what the wells of a plate share."""
    rng = np.random.default_rng(0)
    plate, place = np.arange(192) % 2, np.arange(192) // 2
    X = rng.normal(size=(192, 6)) + 3 * plate[:, None]
    compound = np.where(place % 4 < 3, "DMSO", "aaa")
    names = {PLATE: [f"P{k}" for k in plate], WELL: [f"{'ABCDEFGH'[k // 12]}{k % 12 + 1:02d}" for k in place]}
    wells = pd.DataFrame(X).add_prefix("net_").assign(**names, **{COMPOUND: compound, COUNT: 50})
    wells.columns = wells.columns.astype(str)
    study = configure(
        done.root,
        scores={"metrics": ["lisi", "kbet"], "permutations": 20},
        profiles={"recipe": "plates"},
        recipes={"plates": [{"normalize": {"method": "standardize", "by": "plate"}}, "consensus"]},
    )
    association, mixed = batch_scores(study, wells)
    assert association["profiles"].unique().tolist() == ["wells", "normalized, held out"]
    mixed = mixed.set_index(["profiles", "labels", "score"]).sort_index()
    assert mixed["value"]["controls before", PLATE, "kbet"] > 0.7
    assert mixed["value"]["controls before", PLATE, "lisi"] < 1.1
    assert mixed["p"]["controls before", PLATE, "lisi"] == 1 / 21
    assert mixed["n"]["controls", PLATE, "lisi"] == 144
    # the recipe takes what plates differ in out of wells that its fits have not seen
    assert mixed["value"]["controls", PLATE, "lisi"] > 1.6
    assert mixed["value"]["controls", PLATE, "kbet"] < 0.2
    few = wells[(place % 4 == 3) | (place < 40)]  # folds of twelve
    small = batch_scores(study, few)[1].set_index(["profiles", "labels", "score"])
    assert np.isnan(small["value"]["controls", PLATE, "kbet"])
    assert small["reason"]["controls", PLATE, "kbet"].startswith("in a fold: 10 neighbours of each")
    with pytest.raises(InputError, match=r"scores\.metrics: lisi is of control wells; say which, in controls"):
        batch_scores(study.model_copy(update={"controls": None}), wells)


@pytest.mark.parametrize(
    ("scores", "place", "words"),
    [
        ({"metrics": ["nearest", "kbet"]}, "metrics", "kbet is of control wells; say which, in controls"),
        ({"compounds_only": True}, "compounds_only", "it needs the control wells; say which, in controls"),
        ({"strongest": 1}, "strongest", "it needs the control wells; say which, in controls"),
        ({"across": ["plates", "batches"]}, "across", "name the column of the batches in columns"),
        ({"across": ["plates", "positions"]}, None, ""),
    ],
)
def test_check_says_what_the_scores_lack(fresh, scores, place, words):
    study = configure(fresh.root, controls=None, profiles={"fit": "all"}, scores=scores)
    found = [
        (one.place, one.level, one.what) for one in check_study(study) if one.place.startswith("study.yaml scores")
    ]
    assert found == ([(f"study.yaml scores.{place}", "error", f"{words} of study.yaml")] if place else [])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"columns": {"moa": "Metadata_MOA"}, "scores": {"across": ["batches"]}}, "name the column of the batches"),
        ({"controls": None, "scores": {"compounds_only": True}}, "say which wells are controls"),
    ],
)
def test_words_of_scores(done, changes, words):
    study = configure(done.root, profiles={"fit": "all"} if "controls" in changes else {}, **changes)
    if "controls" in changes:
        normalize_wells(study)
        consensus_profiles(study)
    with pytest.raises(InputError, match=words):
        score_profiles(study)

"""What can be set: doses, batches and positions, flaws, the fate of cells, assays. Each is absent at 0."""

import cv2
import numpy as np
import pandas as pd
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st

from cytominer_tools.columns import CELL, PLATE, SITE, WELL
from cytominer_tools.tables import read_table
from deepprofile.simulator import (
    BATCH,
    CALM,
    COMPOUND,
    CONCENTRATION,
    CONTROL,
    MOA,
    TRAITS,
    Assays,
    Camera,
    Culture,
    Flaws,
    Nuisance,
    Potency,
    draw_activities,
    draw_compounds,
    lay_out,
    litter,
    nucleus_labels,
    nuisance_shifts,
    occupancy,
    outline,
    paint,
    photograph,
    place,
    simulate,
)

STILL = Nuisance(batch=0, plate=0, position=0, edge=0)
CLEAN = Flaws(debris=0, out_of_focus=0)
NONE = dict.fromkeys(TRAITS, 1.0)
TINY = {"sites": 1, "size": (64, 64), "cells": 1, "moas": 1, "compounds_per_moa": 1, "wells": 96, "count_spread": 0}
KEY = [PLATE, WELL, SITE]


def seeds(number: int = 0) -> np.random.SeedSequence:
    return np.random.SeedSequence(number)


def truth(folder, name):
    return read_table(folder / "truth" / name)


# --- doses


@given(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3), st.floats(0.3, 4))
def test_occupancy_is_half_at_ec50_and_rises(dose, ec50, hill):
    assert occupancy(ec50, ec50, hill) == pytest.approx(0.5)
    assert 0 < occupancy(dose, ec50, hill) < occupancy(2 * dose, ec50, hill) <= 1
    assert occupancy(0.0, ec50, hill) == 0


def test_at_ec50_a_compound_moves_every_trait_half_as_far(tmp_path):
    simulate(
        tmp_path, **{**TINY, "moas": 2}, plates=1, controls=1, nuisance=STILL,
        potency=Potency((2.0, 2.0)), concentrations=[2, 1e6],
    )  # fmt: skip
    compounds, wells = truth(tmp_path, "compounds.csv").set_index(COMPOUND), truth(tmp_path, "wells.parquet")
    assert (compounds["ec50_um"] == 2).all()
    treated = wells[wells[COMPOUND] != CONTROL].set_index([CONCENTRATION, COMPOUND]).sort_index()
    for dose, share in ((2, 0.5), (1e6, 1.0)):
        at = treated.loc[dose]
        np.testing.assert_allclose(at["effect"], share * compounds["strength"], rtol=1e-6)
        np.testing.assert_allclose(np.log(at[list(TRAITS)]), share * np.log(compounds[list(TRAITS)]), atol=1e-6)
    control = wells[wells[COMPOUND] == CONTROL]
    assert (control[[*TRAITS]] == 1).all(axis=None)
    assert (control["effect"] == 0).all()


def test_every_plate_holds_every_compound_at_every_dose(tmp_path):
    index = read_table(simulate(tmp_path, **TINY, plates=2, controls=3, concentrations=[0.1, 1, 10]))
    assert len(index) == 2 * (3 + 3)
    for _, plate in index.groupby(PLATE):
        assert sorted(plate[CONCENTRATION]) == [0, 0, 0, 0.1, 1, 10]
        assert (plate[CONCENTRATION] == 0).eq(plate[COMPOUND] == CONTROL).all()


def test_ec50_moves_no_direction():
    drawn = [draw_compounds(np.random.default_rng(0), 4, 3, potency=Potency(ec50)) for ec50 in ((0.1, 1), (5, 50))]
    same = ["strength", *TRAITS]
    pd.testing.assert_frame_equal(drawn[0][same], drawn[1][same])
    assert drawn[0]["ec50_um"].between(0.1, 1).all()
    assert drawn[1]["ec50_um"].between(5, 50).all()


# --- layouts


def plate_layout(plates, layout, wells=96):
    doses = pd.DataFrame({COMPOUND: ["A", "B"], MOA: ["1", "2"], CONCENTRATION: [1.0, 1.0]})
    return lay_out(plates, doses, wells, 4, layout, seeds())


@pytest.mark.parametrize(
    ("plates", "layout", "batches"),
    [
        (1, "fixed", "1"),
        (2, "fixed", "12"),
        (4, "fixed", "1112"),
        (5, "fixed", "11112"),
        (6, "fixed", "111121"),
        (8, "fixed", "11112112"),
        (10, "fixed", "1111211112"),
        (1, "random", "1"),
        (5, "random", "12121"),
    ],
)
def test_batches(plates, layout, batches):
    found = plate_layout(plates, layout).groupby(PLATE)[BATCH].unique()
    assert [list(names) for names in found] == [[f"batch{batch}"] for batch in batches]


def test_fixed_puts_replicates_at_one_position_and_random_does_not():
    for layout, positions in (("fixed", 1), ("random", 5)):
        table = plate_layout(5, layout)
        treated = table[table[COMPOUND] != CONTROL]
        assert (treated.groupby(COMPOUND)[WELL].nunique() == positions).all()
        assert not table.duplicated([PLATE, WELL]).any()


# --- batch, plate, position, edge


@pytest.fixture(scope="module")
def full():
    """Four full plates of 96."""
    doses = pd.DataFrame({COMPOUND: ["A"], MOA: ["1"], CONCENTRATION: [1.0]})
    return lay_out(4, doses, 96, 95, "fixed", seeds())


def shifts(full, **sizes):
    nuisance = Nuisance(**{**dict.fromkeys(("batch", "plate", "position", "edge"), 0.0), **sizes})
    return pd.DataFrame(nuisance_shifts(full, 96, nuisance, seeds(1)), columns=list(TRAITS))


def test_without_size_there_is_no_effect(full):
    assert (shifts(full) == 0).all(axis=None)


@pytest.mark.parametrize(("name", "by"), [("batch", BATCH), ("plate", PLATE)])
def test_a_batch_or_plate_moves_all_its_wells_alike_by_its_size(full, name, by):
    moved = shifts(full, **{name: 0.7})
    np.testing.assert_allclose(np.linalg.norm(moved, axis=1), 0.7)
    assert (moved.groupby(full[by]).std().max(axis=None)) < 1e-12
    assert len(moved.round(9).drop_duplicates()) == full[by].nunique()


def test_staining_brightens_to_the_right_and_cells_thin_out_downwards(full):
    moved = shifts(full, position=0.5)
    for name in (name for name in TRAITS if name.startswith("level_")):
        assert np.corrcoef(moved[name], full["column"])[0, 1] == pytest.approx(1)
    assert np.corrcoef(moved["density"], full["row"])[0, 1] == pytest.approx(-1)
    quiet = [name for name, trait in TRAITS.items() if trait.quiet]
    assert (moved[quiet] == 0).all(axis=None)


def test_the_edge_effect_is_a_third_one_well_inwards(full):
    moved = shifts(full, edge=0.6)
    length = pd.Series(np.linalg.norm(moved, axis=1))
    inwards = np.minimum.reduce([full["row"], 7 - full["row"], full["column"], 11 - full["column"]])
    rings = length.groupby(inwards)
    assert rings.std().max() < 1e-12
    np.testing.assert_allclose(rings.mean()[[0, 1]], [0.6, 0.2], atol=1e-3)
    assert (moved["density"] < 0).all()
    assert (moved["level_ER"] > 0).all()


def test_effects_add_up(full):
    whole = shifts(full, batch=0.3, plate=0.2, position=0.1, edge=0.4)
    parts = [shifts(full, **{name: size}) for name, size in zip(vars(STILL), (0.3, 0.2, 0.1, 0.4), strict=True)]
    np.testing.assert_allclose(whole, sum(parts), atol=1e-12)


@pytest.mark.parametrize("size", [0.0, 2.0])
def test_wells_look_different_by_column_only_when_told_to(tmp_path, size):
    """Brightness of RNA at the true centres of 95 control wells, left half against right half of the plate."""
    index = simulate(
        tmp_path, **TINY, plates=1, controls=95, flaws=CLEAN, culture=CALM,
        nuisance=Nuisance(batch=0, plate=0, position=size, edge=0),
    )  # fmt: skip
    wells = read_table(index).merge(truth(tmp_path, "cells.parquet"), on=KEY)
    bright = np.array([brightness(tmp_path / row["RNA"], row) for _, row in wells.iterrows()])
    right = wells[WELL].str[1:].astype(int).to_numpy() > 6
    logs = np.log(bright)
    error = np.hypot(logs[right].std() / right.sum() ** 0.5, logs[~right].std() / (~right).sum() ** 0.5)
    z = (logs[right].mean() - logs[~right].mean()) / error
    assert (abs(z) < 3) if size == 0 else (z > 4)


def brightness(path, row, half=2):
    image = tifffile.imread(path).astype(float)
    y, x = round(row["y"]), round(row["x"])
    return image[max(y - half, 0) : y + half + 1, max(x - half, 0) : x + half + 1].mean()


# --- sites out of focus, debris


def sharpness(path):
    """The variance of the Laplacian (Pech-Pacheco 2000), past the photon noise."""
    return cv2.Laplacian(cv2.GaussianBlur(tifffile.imread(path).astype(np.float32), (0, 0), 1), cv2.CV_32F).var()


def test_sites_out_of_focus_are_blurred_and_flagged(tmp_path):
    wanted = {**TINY, "size": (120, 120), "cells": 5}
    for name, share in (("sharp", 0.0), ("some", 0.5)):
        simulate(tmp_path / name, **wanted, plates=1, controls=19, flaws=Flaws(debris=0, out_of_focus=share))
    index, sites = read_table(tmp_path / "some" / "index.csv"), truth(tmp_path / "some", "sites.parquet")
    assert not truth(tmp_path / "sharp", "sites.parquet")["out_of_focus"].any()
    assert 4 <= sites["out_of_focus"].sum() <= 16
    assert sites["defocus_um"].between(2, 4).eq(sites["out_of_focus"]).all()
    for channel in ("DNA", "AGP"):
        ratio = np.array([sharpness(tmp_path / "some" / p) / sharpness(tmp_path / "sharp" / p) for p in index[channel]])
        assert (ratio[sites["out_of_focus"]] < 0.3).all()
        assert (ratio[~sites["out_of_focus"]] == 1).all()


def test_debris_is_light_but_no_cell(tmp_path):
    for name, debris in (("without", 0.0), ("with", 2000.0)):
        simulate(tmp_path / name, **TINY, plates=1, controls=9, flaws=Flaws(debris=debris, out_of_focus=0))
    clean, dirty = (truth(tmp_path / name, "sites.parquet")["debris"] for name in ("without", "with"))
    assert (clean == 0).all()
    assert dirty.mean() == pytest.approx(2000 * (64 * 0.6e-3) ** 2, rel=0.5)
    pd.testing.assert_frame_equal(*(truth(tmp_path / name, "cells.parquet") for name in ("without", "with")))
    image = {
        name: np.mean([tifffile.imread(p).mean() for p in tmp_path.glob(f"{name}/images/*/*_ER.tif")])
        for name in ("without", "with")
    }
    assert image["with"] > 1.05 * image["without"]


def test_litter_only_adds():
    light = np.full((5, 80, 90), 7, np.float32)
    assert litter(np.random.default_rng(0), light, Flaws(debris=0), 0.6) == 0
    assert (light == 7).all()
    assert litter(np.random.default_rng(0), light, Flaws(debris=1e4), 0.6) > 5
    assert light.min() >= 7
    assert light.max() > 1000


# --- cells


def test_dead_cells_are_small_bright_and_flagged(tmp_path):
    index = simulate(
        tmp_path, **{**TINY, "size": (160, 160), "cells": 10}, plates=1, controls=19, nuisance=STILL, flaws=CLEAN,
        culture=Culture(dead=0.4),
    )  # fmt: skip
    cells = truth(tmp_path, "cells.parquet")
    assert cells["dead"].mean() == pytest.approx(0.4, abs=0.1)
    assert cells.groupby(KEY)["dead"].sum().tolist() == truth(tmp_path, "sites.parquet")["dead"].tolist()
    cells = cells[cells["inside"]].merge(read_table(index), on=KEY)
    dead = cells["dead"].to_numpy(bool)
    assert cells["nucleus_radius_um"][dead].median() < 0.7 * cells["nucleus_radius_um"][~dead].median()
    for channel in ("DNA", "ER", "AGP"):
        bright = np.array([brightness(tmp_path / row[channel], row, half=1) for _, row in cells.iterrows()])
        assert np.median(bright[dead]) > 1.3 * np.median(bright[~dead])


def test_nobody_is_dead_unless_told_and_all_can_be():
    for share in (0.0, 1.0):
        cells = place(np.random.default_rng(0), 40, (500, 500), 0.6, NONE, Culture(dead=share))
        assert cells.dead.mean() == share


def test_more_die_where_fewer_are_left():
    few = {**NONE, "density": 0.5}
    shares = [
        place(np.random.default_rng(0), 100, (900, 900), 0.6, effects, Culture(dead=0.1)).dead.mean()
        for effects in (NONE, few)
    ]
    assert shares[0] == pytest.approx(0.1, abs=0.08)
    assert shares[1] == pytest.approx(0.4 / 1.3, abs=0.12)  # odds of 1/9, four times


def test_death_moves_no_other_cell():
    calm, deadly = (
        place(np.random.default_rng(0), 40, (500, 500), 0.6, NONE, culture)
        for culture in (CALM, Culture(touching=0, dead=0.5))
    )
    np.testing.assert_array_equal(calm.x, deadly.x)
    alive = ~deadly.dead
    assert 5 < alive.sum() < 35
    for name in TRAITS:
        np.testing.assert_array_equal(calm.traits[name][alive], deadly.traits[name][alive])


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_touching_nuclei(share):
    cells = place(np.random.default_rng(0), 100, (900, 900), 0.6, NONE, Culture(touching=share, dead=0))
    apart = 0.6 * np.hypot(cells.x[:, None] - cells.x, cells.y[:, None] - cells.y) + 1e6 * np.eye(100)
    near = (apart.min(axis=1) < 17.1).mean()
    assert near == 0 if share == 0 else share < near <= 2 * share
    assert apart.min() > (19.9 if share == 0 else 12.5)


# --- masks


def test_masks_agree_with_the_centres(tmp_path):
    wanted = {**TINY, "size": (200, 240), "cells": 18}
    simulate(tmp_path, **wanted, plates=1, controls=3, masks=True, flaws=CLEAN, culture=Culture(touching=0.3, dead=0.1))
    cells = truth(tmp_path, "cells.parquet")
    for (plate, well, site), here in cells.groupby(KEY):
        path = tmp_path / "truth" / "masks" / plate / f"{well}_s{site}.tif"
        with tifffile.TiffFile(path) as file:
            assert file.pages[0].compression.name == "LZW"
        labels = tifffile.imread(path)
        assert (labels.shape, labels.dtype) == ((200, 240), "uint16")
        at_centre = labels[here["y"].round().astype(int), here["x"].round().astype(int)]
        assert at_centre.tolist() == (here[CELL] + 1).tolist()
        assert set(np.unique(labels)) - {0} == set(here[CELL] + 1)
        whole = here[here["inside"]]
        area = np.bincount(labels.ravel())[whole[CELL] + 1] * 0.6**2
        ratio = area / (np.pi * whole["nucleus_radius_um"] ** 2)
        assert ratio.between(0.4, 1.15).all()  # a nucleus that touches is cut where the other begins
        assert ratio.median() == pytest.approx(1, abs=0.06)


def test_dna_is_bright_inside_the_masks_and_nowhere_else():
    rng = np.random.default_rng(3)
    cells = place(rng, 18, (200, 240), 0.6, NONE)
    at = outline(rng, cells, (200, 240), 0.6)
    light = paint(rng, cells, (200, 240), 0.6, at)
    assert ((light[0] > 0) == (nucleus_labels(at, (200, 240)) > 0)).all()
    image = photograph(rng, light, Camera(), 0.6, rng)[0]
    inside = nucleus_labels(at, (200, 240)) > 0
    assert np.median(image[inside]) > 5 * np.median(image[~inside])


def test_no_masks_unless_asked(tmp_path):
    simulate(tmp_path, **TINY, plates=1, controls=1)
    assert not (tmp_path / "truth" / "masks").exists()


# --- assays


@pytest.fixture(scope="module")
def compounds():
    return draw_compounds(np.random.default_rng(0), 8, 10)


def run_assays(compounds, seed=0, **settings):
    return draw_activities(np.random.default_rng(seed), compounds, Assays(**settings))


def test_an_assay_finds_the_potent_compounds_of_its_moa(compounds):
    active, assays = run_assays(compounds, moa=8, count=0, random=0)
    assert active.shape == (80, 9)
    for _, assay in assays.iterrows():
        effect = compounds["strength"] * occupancy(assay[CONCENTRATION], compounds["ec50_um"], compounds["hill"])
        expected = (compounds[MOA] == assay[MOA]) & (effect >= assay["threshold"])
        assert active[assay["Metadata_Assay"]].tolist() == expected.astype(int).tolist()
    assert sorted(assays[MOA]) == sorted(compounds[MOA].unique())
    assert 0 < active.iloc[:, 1:].to_numpy().sum() < 80


def test_more_potency_never_loses_an_activity(compounds):
    weak, strong = (
        run_assays(compounds.assign(ec50_um=factor * compounds["ec50_um"]), count=0, random=0)[0].iloc[:, 1:].to_numpy()
        for factor in (1, 0.1)
    )
    assert (strong >= weak).all()
    assert strong.sum() > weak.sum()


def test_a_count_assay_depends_on_the_number_of_cells_alone(compounds):
    active, assays = run_assays(compounds, moa=0, count=3, random=0)
    for _, assay in assays.iterrows():
        left = compounds["density"] ** occupancy(assay[CONCENTRATION], compounds["ec50_um"], compounds["hill"])
        found = active[assay["Metadata_Assay"]] == 1
        assert left[found].max() <= assay["threshold"] < left[~found].min()
        assert left[found].max() < 1
        assert found.mean() == pytest.approx(0.2, abs=0.02)
    assert run_assays(compounds.assign(density=1.0), moa=0, random=0)[0]["count_01"].sum() == 0


def test_random_assays_flips_and_gaps_come_at_their_rates(compounds):
    many = pd.concat([compounds] * 20, ignore_index=True)
    plain = run_assays(many, moa=2, count=0, random=2)[0]
    assert plain["random_01"].mean() == pytest.approx(0.2, abs=0.05)
    flipped = run_assays(many, moa=2, count=0, random=2, flipped=0.1)[0]
    assert (plain != flipped).iloc[:, 1:].to_numpy().mean() == pytest.approx(0.1, abs=0.03)
    gaps = run_assays(many, moa=2, count=0, random=2, missing=0.3)[0].iloc[:, 1:]
    assert gaps.isna().to_numpy().mean() == pytest.approx(0.3, abs=0.03)


def test_activities_are_written_for_every_compound(tmp_path):
    index = read_table(simulate(tmp_path, **{**TINY, "moas": 3, "compounds_per_moa": 2}, plates=1, controls=1))
    active, assays = truth(tmp_path, "activities.csv"), truth(tmp_path, "assays.csv")
    assert sorted(active[COMPOUND]) == sorted(set(index[COMPOUND]) - {CONTROL})
    assert list(active.columns[1:]) == assays["Metadata_Assay"].tolist()
    assert active.iloc[:, 1:].isin([0, 1]).all(axis=None)

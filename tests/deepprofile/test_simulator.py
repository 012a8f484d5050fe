import hashlib
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import tifffile

from cytominer_tools.columns import PLATE, SITE, WELL
from cytominer_tools.errors import InputError
from cytominer_tools.tables import read_table
from deepprofile.simulator import (
    BATCH,
    CHANNELS,
    COMPOUND,
    CONTROL,
    MOA,
    TRAITS,
    Assays,
    Camera,
    Culture,
    Flaws,
    Nuisance,
    Potency,
    draw_compounds,
    field,
    most_cells,
    occupancy,
    paint,
    photograph,
    place,
    simulate,
)

SMALL = {"plates": 2, "sites": 1, "size": (96, 128), "cells": 5, "moas": 2, "compounds_per_moa": 1, "controls": 2}
STILL = Nuisance(batch=0, plate=0, position=0, edge=0)


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return simulate(tmp_path_factory.mktemp("study"), **SMALL, count_spread=0, nuisance=STILL, workers=2)


# --- the bytes


@pytest.mark.parametrize("more", [{}, {"layout": "fixed", "masks": True, "concentrations": (1, 10), "effect": 2}])
def test_same_seed_same_bytes_whatever_the_workers(tmp_path, more):
    flaws, culture = Flaws(debris=99, out_of_focus=0.5), Culture(touching=0.3, dead=0.3)
    for workers in (1, 3):
        simulate(tmp_path / str(workers), **SMALL, **more, flaws=flaws, culture=culture, seed=4, workers=workers)
    one, two = digests(tmp_path / "1"), digests(tmp_path / "3")
    assert one == two
    assert len(one) == (2 * 4 * 5 + 7 if not more else 2 * 6 * (5 + 1) + 7)


def test_another_seed_is_another_study(tmp_path, study):
    simulate(tmp_path, **SMALL, count_spread=0, nuisance=STILL, seed=1)
    assert not set(digests(tmp_path).values()) & set(digests(study.parent).values())


def test_more_sites_leave_the_first_as_it_is(tmp_path, study):
    simulate(tmp_path, **{**SMALL, "sites": 2}, count_spread=0, nuisance=STILL)
    name = read_table(study)["AGP"][0]
    assert (tmp_path / name).read_bytes() == (study.parent / name).read_bytes()


def test_more_plates_leave_the_first_as_they_are(tmp_path):
    for plates in (2, 3):
        simulate(tmp_path / str(plates), **{**SMALL, "plates": plates})
    two, three = digests(tmp_path / "2" / "images"), digests(tmp_path / "3" / "images")
    assert two.items() <= three.items()
    assert len(three) == 3 * 4 * 5


# --- what is written


def test_index_has_a_row_a_site_and_its_images_exist(study):
    index = read_table(study)
    assert len(index) == 2 * 4
    assert not index.duplicated([PLATE, WELL, SITE]).any()
    assert sorted(set(index[PLATE])) == ["SIM001", "SIM002"]
    assert index.groupby(PLATE)[BATCH].unique().map(list).tolist() == [["batch1"], ["batch2"]]
    for path in index[list(CHANNELS)].to_numpy(object).ravel():
        with tifffile.TiffFile(study.parent / path) as file:
            page = file.pages[0]
            assert (page.shape, page.dtype, page.compression.name) == ((96, 128), "uint16", "LZW")


def test_each_plate_holds_each_compound_once_and_the_controls_elsewhere(study):
    index = read_table(study)
    for _, plate in index.groupby(PLATE):
        assert plate[COMPOUND].value_counts().to_dict() == {CONTROL: 2, "CPD001": 1, "CPD002": 1}
        assert plate.loc[plate[COMPOUND] == CONTROL, MOA].isna().all()
    wells = index.pivot_table(index=PLATE, columns=COMPOUND, values=WELL, aggfunc="first")
    assert (wells.iloc[0] != wells.iloc[1]).all()


def test_truth_has_the_cells_asked_for(study):
    cells, compounds = (read_table(study.parent / "truth" / name) for name in ("cells.parquet", "compounds.csv"))
    at_dose = compounds["density"] ** occupancy(10.0, compounds["ec50_um"], compounds["hill"])
    density = at_dose.set_axis(compounds[COMPOUND]).reindex(read_table(study)[COMPOUND], fill_value=1.0)
    assert cells.groupby([PLATE, WELL, SITE]).size().sum() == (5 * density).round().sum()
    assert cells["x"].between(0, 127).all()
    assert cells["y"].between(0, 95).all()
    assert cells.loc[~cells["dead"], "nucleus_radius_um"].between(4, 16).all()


def test_dna_is_bright_at_the_true_centres(tmp_path):
    simulate(tmp_path, **{**SMALL, "size": (200, 260), "cells": 14})
    index = read_table(tmp_path / "index.csv")
    cells = read_table(tmp_path / "truth" / "cells.parquet").merge(index[[PLATE, WELL, SITE, "DNA"]])
    assert len(cells) > 80
    for path, here in cells.groupby("DNA"):
        image = cv2.blur(tifffile.imread(tmp_path / path).astype(np.float32), (3, 3))
        background = np.percentile(image, 20)
        assert (image[here["y"].round().astype(int), here["x"].round().astype(int)] > 3 * background).all()


def test_well_counts_vary_when_told_to(tmp_path):
    simulate(tmp_path, **{**SMALL, "size": (200, 200), "cells": 12, "sites": 2}, count_spread=0.3)
    counts = read_table(tmp_path / "truth" / "cells.parquet").groupby([PLATE, WELL, SITE]).size().unstack()
    assert counts["1"].nunique() > 1
    assert (counts["1"] == counts["2"]).all()


# --- what a compound does


def test_a_quiet_moa_moves_patterns_not_intensities():
    """Six sites with the effect and six without, from the same draws, so that only the effect differs."""
    compounds = draw_compounds(np.random.default_rng(1), 4, 1)
    assert compounds["quiet"].tolist() == [True, True, False, False]
    means, textures = {}, {}
    for name, row in [("none", dict.fromkeys(TRAITS, 1.0)), *((r[COMPOUND], r) for _, r in compounds.iterrows())]:
        mean, texture = [], []
        for site in range(6):
            rng = np.random.default_rng([site, 1])
            light = paint(rng, place(rng, 20, (240, 240), 0.6, row), (240, 240), 0.6)
            image = photograph(rng, light, Camera(), 0.6, np.random.default_rng(0)).astype(np.float32)
            mean.append(image.mean((1, 2)))
            logs = np.log(image)
            blurred = [[cv2.GaussianBlur(plane, (0, 0), sigma) for plane in logs] for sigma in (1, 2, 4)]
            texture.append(np.diff(blurred, axis=0).std(axis=(2, 3)))
        means[name], textures[name] = np.mean(mean, 0), np.mean(texture, 0)
    for name, quiet in zip(compounds[COMPOUND], compounds["quiet"], strict=True):
        assert np.abs(textures[name] / textures["none"] - 1).max() > 0.02
        assert (np.abs(means[name] / means["none"] - 1).max() < 0.015) == quiet


def test_quiet_compounds_leave_loud_traits_alone():
    compounds = draw_compounds(np.random.default_rng(1), 6, 3)
    loud = [name for name, trait in TRAITS.items() if not trait.quiet]
    assert (compounds.loc[compounds["quiet"], loud] == 1).all(axis=None)
    assert (compounds.loc[~compounds["quiet"], loud] != 1).all(axis=None)
    assert (compounds["density"] <= 1).all()
    assert compounds.groupby(MOA)["strength"].nunique().eq(3).all()


def test_compounds_of_a_moa_resemble_each_other_most():
    compounds = draw_compounds(np.random.default_rng(2), 6, 4)
    effects = np.log(compounds[list(TRAITS)].to_numpy()) / [trait.step for trait in TRAITS.values()]
    effects /= np.linalg.norm(effects, axis=1, keepdims=True)
    nearest = (effects @ effects.T - 2 * np.eye(len(effects))).argmax(1)
    assert (compounds[MOA].to_numpy(object)[nearest] == compounds[MOA].to_numpy(object)).mean() > 0.9


def test_without_effect_compounds_are_controls():
    compounds = draw_compounds(np.random.default_rng(0), 3, 2, effect=0)
    assert (compounds[list(TRAITS)] == 1).all(axis=None)


# --- the parts


@pytest.mark.parametrize("sigma", [0.7, 1.7, 4.0, 12.0])
def test_field_has_unit_variance_at_every_scale(sigma):
    drawn = np.stack([field(np.random.default_rng(seed), (300, 200), sigma) for seed in range(20)])
    assert drawn.shape == (20, 300, 200)
    assert abs(drawn.mean()) < 0.1
    assert 0.85 < drawn.std() < 1.1  # enlarging takes a little


def test_photon_noise_has_the_variance_of_its_mean():
    camera = Camera(offset=0, background=(1000.0,), read_noise=0, vignetting=0, glow=0)
    image = photograph(
        np.random.default_rng(0), np.zeros((1, 300, 300), np.float32), camera, 0.6, np.random.default_rng(1)
    )
    assert image.mean() == pytest.approx(1000, rel=1e-3)
    assert image.var() == pytest.approx(1000, rel=0.03)


@pytest.mark.parametrize("size", [(300, 200), (30, 800), (90, 90)])
def test_as_many_cells_as_promised_can_be_placed_apart(size):
    number = most_cells(size, 0.6)
    cells = place(np.random.default_rng(0), number, size, 0.6, dict.fromkeys(TRAITS, 1.0))
    apart = np.hypot(cells.x[:, None] - cells.x, cells.y[:, None] - cells.y) + 1e6 * np.eye(number)
    assert apart.min() > 25  # px; a nucleus is 29 wide


# --- refusals


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"plates": 0}, "plates=0: expected 1 or more"),
        ({"size": (0, -3)}, "height=0, width=-3: expected 1 or more"),
        ({"workers": 0}, "workers=0"),
        ({"pixel_size_um": 0}, "pixel_size_um=0: expected a positive length"),
        ({"pixel_size_um": float("nan")}, "pixel_size_um=nan"),
        ({"count_spread": -1}, "count_spread=-1: expected 0 or more"),
        ({"effect": -1}, "effect=-1: expected 0 or more"),
        ({"seed": -1}, "seed=-1: expected 0 or more"),
        ({"wells": 1536}, "wells=1536: a plate has 96 or 384 wells"),
        ({"moas": 20, "compounds_per_moa": 20}, r"20 MOAs x 20 compounds \+ 2 controls = 402 wells, a plate has 384"),
        ({"moas": 20, "compounds_per_moa": 5, "wells": 96}, "= 102 wells, a plate has 96; ask for fewer"),
        ({"moas": 20, "compounds_per_moa": 5, "concentrations": (1, 2, 3, 4)}, "x 5 compounds x 4 concentrations"),
        ({"concentrations": ()}, r"concentrations=\(\): expected positive numbers in uM"),
        ({"concentrations": (1, -2)}, r"concentrations=\(1, -2\)"),
        ({"concentrations": (1, 1.0)}, "one is given twice"),
        ({"layout": "diagonal"}, "layout='diagonal': expected random or fixed"),
        ({"camera": Camera(background=(1.0,))}, "expected 5 numbers, one a channel"),
        ({"cells": 50}, "cells=50: at most 5 fit in 96 x 128 px of 0.6 um; enlarge size"),
    ],
)
def test_impossible_requests_are_refused_before_anything_is_written(tmp_path, wrong, words):
    with pytest.raises(InputError, match=words):
        simulate(tmp_path, **{**SMALL, **wrong})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "wrong", "words"),
    [
        (Nuisance, {"edge": -1}, "edge=-1: expected 0 or more"),
        (Nuisance, {"batch": float("nan")}, "batch=nan"),
        (Culture, {"dead": 1.5}, "dead=1.5: expected a share of the cells between 0 and 1"),
        (Flaws, {"debris": -1}, "debris=-1: expected 0 or more"),
        (Flaws, {"out_of_focus": 2}, "out_of_focus=2: expected a share of the sites"),
        (Flaws, {"defocus_um": (3, 2)}, "the smaller first"),
        (Potency, {"ec50_um": (0, 1)}, "two positive numbers, the smaller first"),
        (Potency, {"hill": 0}, "hill=0: expected a positive number"),
        (Assays, {"count": -1}, "count=-1: expected 0 or more"),
        (Assays, {"rate": 2}, "rate=2: expected a share"),
        (Assays, {"concentrations": (0,)}, r"concentrations=\(0,\)"),
        (Camera, {"blur_um": 0}, "blur_um=0: expected a positive length"),
        (Camera, {"vignetting": 2}, "vignetting=2: expected a share of the light"),
        (Camera, {"gain": -1}, "gain=-1: expected 0 or more"),
        (Camera, {"background": (-1.0,) * 5}, "expected 0 or more for each channel"),
    ],
)
def test_impossible_settings_are_refused_where_they_are_made(settings, wrong, words):
    with pytest.raises(InputError, match=words):
        settings(**wrong)


def test_an_earlier_index_is_never_replaced(study):
    with pytest.raises(InputError, match=r"has an index\.csv already; choose another folder"):
        simulate(study.parent, **SMALL)


def test_one_compound_one_control_one_plate(tmp_path):
    index = read_table(
        simulate(tmp_path, plates=1, sites=1, size=(64, 64), cells=1, moas=1, compounds_per_moa=1, controls=1, wells=96)
    )
    assert sorted(index[COMPOUND]) == ["CPD001", CONTROL]
    assert set(index[BATCH]) == {"batch1"}
    assert pd.api.types.is_string_dtype(index[SITE])

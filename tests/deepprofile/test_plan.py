import json
import shutil
import time

import plain_network
import pytest
from study_factory import configure, derived, edit_index

import deepprofile.features
from cytominer_tools.errors import InputError
from deepprofile.export import export_crops
from deepprofile.features import profile_cells
from deepprofile.plan import Plan, StagePlan, plan_study

SECONDS = 2.0


@pytest.fixture(autouse=True)
def plain(monkeypatch):
    plain_network.use(monkeypatch)


def stages(plan):
    return {one.stage: one for one in plan.stages}


def set_up(root, **changes):
    return configure(root, **{"locate": {"labels": True}, **changes})


# --- golden
GOLDEN = Plan(
    2,
    12,
    24,
    7200,
    "cells",
    "located",
    (StagePlan("locate", 24, "sites", 0.01, None, 3.0), StagePlan("profile", 7200, "cells", 4.0, 1.5, 3.0)),
    ("the weather",),
)


def test_hours_and_money_by_hand():
    locate, profile = GOLDEN.stages
    assert (locate.hours, locate.money) == (pytest.approx(24 / 0.01 / 3600), pytest.approx(2.0))
    assert (profile.hours, profile.money) == (0.5, 1.5)
    assert StagePlan("score", 3, "wells", None, None, 3.0).money is None
    assert GOLDEN.lines() == [
        "2 plate(s), 12 wells, 24 sites, 7,200 cells (located)",
        "",
        "stage              of  a second  hours   GB  money",
        "locate       24 sites      0.01  0.667    -      2",
        "profile   7,200 cells         4    0.5  1.5    1.5",
        "together                          1.17  1.5    3.5",
        "",
        "Not known: the weather",
    ]


def test_as_json_it_says_the_same():
    said = json.loads(json.dumps(GOLDEN.as_json()))
    assert (said["cells"], said["hours"], said["gigabytes"], said["money"]) == (7200, pytest.approx(7 / 6), 1.5, 3.5)
    assert said["stages"][1] == {
        "stage": "profile", "count": 7200, "unit": "cells", "per_second": 4.0, "gigabytes": 1.5, "price": 3.0,
        "hours": 0.5, "money": 1.5,
    }  # fmt: skip


def test_without_a_price_there_is_no_money(located):
    plan = plan_study(located, seconds=SECONDS)
    assert "money" not in "\n".join(plan.lines())
    assert plan.as_json()["money"] is None


# --- what it finds is what there is
def test_located_cells_are_counted_and_nothing_is_written(located):
    study = set_up(located.root, train={"init": "random", "epochs": 3, "epoch_cells": 100})
    before = derived(study.root)
    plan = plan_study(study, price=2.0, seconds=SECONDS)
    assert derived(study.root) == before
    cells = profile_cells(study).rows
    assert (plan.plates, plan.wells, plan.sites, plan.cells, plan.cells_from) == (2, 12, 24, cells, "located")
    found = stages(plan)
    assert list(found) == ["illumination", "locate", "export", "train", "profile", "aggregate"]
    assert (found["illumination"].count, found["illumination"].unit) == (8, "sites")  # of control wells
    # three epochs of a hundred, and what validates at the price of a pass forward
    assert found["train"].count == round(3 * (100 + min(100, cells * 0.2) / 3))
    assert all(one.hours > 0 and one.money == pytest.approx(2 * one.hours) for one in found.values())


def test_training_is_timed_as_it_will_run(located, monkeypatch):
    import deepprofile.training

    asked = []

    def rate(study, crops, classes, seconds):
        asked.append((crops.shape[1:], classes))
        return 50.0

    monkeypatch.setattr(deepprofile.training, "training_rate", rate)
    study = set_up(located.root, train={"init": "random"})
    assert stages(plan_study(study, seconds=SECONDS))["train"].per_second == 50
    assert asked == [((study.crops.size, study.crops.size, len(study.channels)), 3)]  # DMSO and two compounds


def test_space_is_what_the_stages_take(located):
    study = set_up(located.root, train={"init": "random"}, profile={"batch": 256})
    found = stages(plan_study(study, seconds=SECONDS))
    export_crops(study)
    crops = sum(path.stat().st_size for path in study.crop_store.rglob("*.arrow"))
    offsets = 12 * 4000  # what an Arrow file has beside its crops
    assert found["export"].gigabytes * 1e9 == pytest.approx(crops, rel=0.1, abs=offsets)
    assert found["profile"].gigabytes * 1e9 == pytest.approx(24 * profile_cells(study).rows, rel=0.3)


def test_an_estimate_where_nothing_is_located(located):
    truth = profile_cells(located).rows
    shutil.rmtree(located.root / "locations")
    shutil.rmtree(located.root / "illumination")
    plan = plan_study(located, seconds=10 * SECONDS)
    assert plan.cells == pytest.approx(truth, rel=0.1)
    assert plan.cells_from.startswith("an estimate: ")
    assert "either way" in plan.cells_from
    assert any("the intensities are not measured yet" in one for one in plan.unknown)


def test_tiles_are_counted_without_looking(fresh):
    plan = plan_study(configure(fresh.root, crops={"size": 64}, profile={"tiles": True}), seconds=SECONDS)
    assert (plan.cells, plan.unit, plan.cells_from) == (96, "tiles", "4 tiles a site")
    assert list(stages(plan)) == ["illumination", "profile", "aggregate"]


def test_a_share_of_the_cells_from_the_store(located):
    study = set_up(located.root, export={"fraction": 0.5}, profile={"source": "crops"})
    plan = plan_study(study, seconds=SECONDS)
    everything = plan_study(set_up(located.root), seconds=SECONDS)
    assert plan.cells == round(everything.cells / 2)
    assert {"locate", "export"} < set(stages(plan))
    some = plan_study(set_up(located.root, export={"per_well": 3}, profile={"source": "crops"}), seconds=SECONDS)
    assert any("how many cells the query" in one for one in some.unknown)


def test_a_slow_network_is_seen(located, monkeypatch):
    class Slow(plain_network.Plain):
        def __call__(self, crops):
            time.sleep(0.2)
            return super().__call__(crops)

    monkeypatch.setattr(deepprofile.features, "load_extractor", lambda study: (Slow(), (plain_network.CARD,)))
    found = stages(plan_study(located, seconds=SECONDS))
    assert 10 < found["profile"].per_second <= 16 / 0.2


# --- what it cannot know
def test_weights_that_are_still_to_be_trained(located):
    study = set_up(located.root, train={"init": "random"}, profile={"weights": "trained"})
    plan = plan_study(study, seconds=SECONDS)
    assert any("the network is not trained yet" in one for one in plan.unknown)
    assert stages(plan)["profile"].hours > 0


def test_a_network_that_cannot_be_had_as_asked(located, monkeypatch):
    def load(study):
        if study.profile.precision != "float32":
            raise InputError("run `deepprofile locate`")
        return plain_network.load_extractor(study)

    monkeypatch.setattr(deepprofile.features, "load_extractor", load)
    plan = plan_study(set_up(located.root, profile={"precision": "bfloat16"}), seconds=SECONDS)
    assert any("(run `deepprofile locate`): untrained weights in float32 were measured" in one for one in plan.unknown)
    monkeypatch.setattr(deepprofile.features, "load_extractor", lambda study: load(study.at_epoch(1)))
    with pytest.raises(InputError, match="--epoch 1"):
        plan_study(set_up(located.root), seconds=SECONDS)


def test_sites_that_cannot_be_read(located):
    (located.root / "images" / "P1" / "A01_s1_ER.tif").unlink()
    edit_index(located.root, lambda table: table.head(4))
    plan = plan_study(set_up(located.root), seconds=SECONDS)
    assert any("1 of 4 sites cannot be read, the first: " in one for one in plan.unknown)
    shutil.rmtree(located.root / "images")
    with pytest.raises(
        InputError, match=r"none of 4 sites can be read, the last: .*no such image; run `deepprofile check`"
    ):
        plan_study(set_up(located.root), seconds=SECONDS)


def test_sites_without_a_cell(located, monkeypatch):
    import pandas as pd

    none = pd.DataFrame({"x": [], "y": []}, dtype=float)
    shutil.rmtree(located.root / "locations")
    monkeypatch.setattr("deepprofile.plan.find_cells", lambda study, row: (none, None))
    plan = plan_study(located, seconds=SECONDS)
    assert plan.cells == 0
    assert any("nothing is known of crops and features" in one for one in plan.unknown)
    assert stages(plan)["profile"].hours is None

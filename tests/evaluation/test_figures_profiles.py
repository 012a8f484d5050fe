import numpy as np
import pandas as pd
import pytest
from test_report_parts import some_wells

from cytominer_tools.errors import InputError
from evaluation.figures_profiles import (
    activity_figure,
    cluster_figure,
    curves_figure,
    dose_figure,
    map_figure,
    montage_figure,
    plate_figure,
    replicate_figure,
    training_figure,
)
from evaluation.report_parts import activity, dose_responses, replicate_similarity, score_curves


def plates():
    wells = [f"{row}{column:02d}" for row in "ABCDEFGH" for column in range(1, 13)]
    table = pd.DataFrame({"Metadata_Plate": np.repeat(["P2", "P10"], 96), "Metadata_Well": wells * 2})
    return table.assign(Metadata_Count=np.arange(192), Metadata_Drug=["a", *["b"] * 191])


def doses():
    c = np.tile(10.0 ** np.arange(-2, 3), 8)
    X = np.random.default_rng(0).normal(size=(60, 3))
    X[:20, 0] += 20 / (1 + 1 / c[:20])
    names = np.array(["up"] * 20 + ["flat"] * 20 + [""] * 20, dtype=object)
    wells = type(some_wells())(pd.DataFrame(index=range(60)), X, names, np.arange(60) >= 40)
    return dose_responses(wells, names, np.concatenate([c, np.full(20, np.nan)]), most_fits=2)


def figures():
    wells = some_wells()
    labels = pd.factorize(wells.treatment)[0]
    rng = np.random.default_rng(0)
    history = pd.DataFrame(
        rng.random((3, 5)), columns=["loss", "val_loss", "accuracy", "val_accuracy", "learning_rate"]
    )
    profiles = pd.DataFrame(wells.X[:24]).add_prefix("f").assign(Metadata_T=wells.treatment[:24])
    marked = wells.treatment == "t1"
    return {
        "plates": plate_figure(plates(), "Metadata_Count", treatment=("Metadata_Drug", "a")),
        "words": map_figure(wells.X[:, :2], wells.treatment, marked=marked, title="wells"),
        "numbers": map_figure(wells.X[:, :2], wells.X[:, 2]),
        "tree": cluster_figure(profiles, "Metadata_T"),
        "replicates": replicate_figure(*replicate_similarity(wells), marked="t1"),
        "activity": activity_figure(activity(wells), marked="t1"),
        "doses": dose_figure(*doses(), unit="uM"),
        "curves": curves_figure(score_curves(wells.X, labels)),
        "training": training_figure(history.assign(epoch=[1, 2, 3])),
        "cells": montage_figure({"": rng.integers(0, 255, (3, 8, 8, 3), dtype=np.uint8)}),
    }


@pytest.fixture(scope="module")
def drawn():
    return figures()


@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_every_figure_can_be_written(drawn, suffix, tmp_path):
    for name, figure in drawn.items():
        path = tmp_path / f"{name}.{suffix}"
        figure.savefig(path)
        assert path.stat().st_size > 2000


def test_plates_stand_in_their_order_with_wells_in_place(drawn):
    first, second = drawn["plates"].axes[:2]
    assert [axis.get_title(loc="left") for axis in (first, second)] == ["P2", "P10"]
    assert first.images[0].get_array().ravel().tolist() == list(range(96))
    assert second.images[0].get_array()[0, 0] == 96


def test_the_marked_treatment_is_circled(drawn):
    assert len(drawn["words"].axes[0].collections[-1].get_offsets()) == 4


def test_a_tree_orders_the_matrix(drawn):
    matrix = drawn["tree"].axes[1].images[0].get_array()
    np.testing.assert_allclose(np.diag(matrix), 1, atol=1e-6)
    assert [text.get_text() for text in drawn["tree"].axes[1].get_yticklabels()[:4]] in [
        [f"t{i}"] * 4 for i in range(6)
    ]


def test_a_dose_says_its_ec50_or_why_not(drawn):
    said = [axis.texts[0].get_text() for axis in drawn["doses"].axes if axis.texts]
    assert said[0].startswith("EC50 ")
    assert not said[1].startswith("EC50")


def test_no_label_is_cut():
    """Names of any length stay inside the figure, a plate has letters and numbers, a scale says of what."""
    names = [f"{'inhibitor of a kinase with a long name'[: 12 + 4 * n]} {n}" for n in range(9)]
    figure = map_figure(np.random.default_rng(0).random((90, 2)), names * 10)
    figure.canvas.draw()
    legend, page = figure.legends[0].get_window_extent(), figure.bbox
    assert page.x0 <= legend.x0
    assert legend.x1 <= page.x1
    axis = plate_figure(plates(), "Metadata_Count").axes[0]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["1", "6", "12"]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["A", "D", "H"]
    bar = map_figure(np.zeros((3, 2)), pd.Series([1.0, 2, 3], name="Metadata_Count")).axes[1]
    assert bar.get_ylabel() == "Count"


def test_wrong_input_is_refused():
    with pytest.raises(InputError, match="wells: 1 of 192 rows have no Metadata_Plate; give it, or leave"):
        plate_figure(plates().assign(Metadata_Plate=[None, *["P1"] * 191]), "Metadata_Count")
    with pytest.raises(InputError, match="Metadata_Drug: no well has a number there"):
        plate_figure(plates(), "Metadata_Drug")
    with pytest.raises(InputError, match="expected \\(n, 2\\) and n"):
        map_figure(np.zeros((3, 2)), ["a"])
    with pytest.raises(InputError, match="1 profiles have a direction; a tree is drawn of 2 to 1500"):
        cluster_figure(pd.DataFrame({"f": [1.0, np.nan], "n": ["a", "b"]}), "n", ["f"])
    with pytest.raises(InputError, match="no compounds to draw"):
        dose_figure([], [1.0])
    with pytest.raises(InputError, match="no cells to draw"):
        montage_figure({})

import numpy as np
import pandas as pd
import pytest
from scipy.stats import mannwhitneyu

from cytominer_tools.errors import InputError
from evaluation.plates import edge_effect, edge_wells, plate_format, plate_grid, well_places


def test_edge_effect_on_one_plate_is_the_rank_sum_test():
    rng = np.random.default_rng(0)
    values, edge = np.round(rng.normal(size=60), 1), np.arange(60) < 25  # with ties
    found = edge_effect(values, np.full(60, "P"), edge)
    peer = mannwhitneyu(values[edge], values[~edge], method="asymptotic", use_continuity=False)
    assert found.p == pytest.approx(peer.pvalue, rel=1e-9)
    assert found.higher == pytest.approx(peer.statistic / (25 * 35))
    assert (found.n_edge, found.n_inner, found.reason) == (25, 35, "")


def test_differences_between_plates_are_no_edge_effect():
    # by hand: on each plate one edge well below its two inner ones; over all wells the edge would look higher
    values = [1.0, 2.0, 3.0, 101.0, 102.0, 103.0, 0.0]
    plates = ["A", "A", "A", "B", "B", "B", "C"]
    found = edge_effect(values, plates, [True, False, False] * 2 + [False])
    assert found.higher == 0
    # ranks 1, 2, 3: the edge has 1, a distance of 1 from 2, with variance 2/3, on both plates
    assert found.p == pytest.approx(2 * 0.5 * __import__("math").erfc(2 / np.sqrt(4 / 3) / np.sqrt(2)))
    assert (found.n_edge, found.n_inner) == (2, 4)


def test_edge_effect_is_found_and_is_not_invented():
    rng = np.random.default_rng(3)
    edge, plates = np.tile(np.arange(100) < 40, 4), np.repeat(list("ABCD"), 100)
    noise = rng.normal(size=400)
    assert edge_effect(noise + edge, plates, edge).p < 1e-8
    p = [edge_effect(rng.permutation(noise), plates, edge).p for _ in range(200)]
    assert 0.01 < np.mean(np.array(p) < 0.05) < 0.1


@pytest.mark.parametrize(
    ("values", "edge", "words"),
    [
        ([1.0, 2.0], [True, True], "no plate has wells both"),
        ([1.0, 1.0], [True, False], "all values of a plate are equal"),
    ],
)
def test_no_edge_effect_says_why(values, edge, words):
    found = edge_effect(values, ["P", "P"], edge)
    assert np.isnan(found.p)
    assert words in found.reason


def test_missing_values_are_left_out():
    full = edge_effect([1.0, 2.0, 3.0], ["P"] * 3, [True, False, False])
    assert edge_effect([1.0, 2.0, 3.0, np.nan], ["P"] * 4, [True, False, False, True]) == full


def test_the_edge_is_that_of_the_format():
    wells = pd.DataFrame({"Metadata_Plate": "P", "Metadata_Well": ["A01", "B02", "H05", "D12", "C1"]})
    assert edge_wells(wells).tolist() == [True, False, True, True, True]
    larger = pd.concat([wells, pd.DataFrame({"Metadata_Plate": "P", "Metadata_Well": ["P24"]})])
    assert edge_wells(larger).tolist() == [True, False, False, False, True, True]


def test_a_grid_has_every_well_in_its_place():
    wells = pd.Series([f"{row}{column:02d}" for row in "ABCDEFGH" for column in range(1, 13)])
    row, column = well_places(wells)
    grid = plate_grid(row, column, np.arange(96.0), plate_format(row, column))
    assert (grid.ravel() == np.arange(96)).all()


def test_larger_plates_are_refused():
    with pytest.raises(InputError, match=r"row 33, column 1: plates of 96, 384 and 1536 wells are known"):
        plate_format([32], [0])

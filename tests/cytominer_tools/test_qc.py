"""Wells, sites and plates that should be looked at."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import f_oneway

from cytominer_tools import control_drift, flag_rows, missing_wells, plate_map, position_effects
from cytominer_tools.columns import well_place
from cytominer_tools.errors import InputError
from cytominer_tools.layouts import effect_test, explained, on_edge, plate_shape, shift_test


def plates(n=2, d=8, seed=0):
    """Plates of 96 wells; two columns of controls; nothing else in it."""
    rng = np.random.default_rng(seed)
    wells = [f"{row}{column:02d}" for row in "ABCDEFGH" for column in range(1, 13)]
    table = pd.DataFrame(rng.normal(size=(96 * n, d)), columns=[f"Cells_{i}" for i in range(d)])
    table.insert(0, "Metadata_Plate", np.repeat([f"p{i}" for i in range(n)], 96))
    table.insert(1, "Metadata_Well", wells * n)
    table.insert(2, "Metadata_Control", [w.endswith(("01", "12")) for w in wells] * n)
    table.insert(3, "Metadata_Count", 200)
    return table


# --- rows
def test_few_cells_and_far_wells_are_flagged():
    table = plates()
    table.loc[[3, 100], "Metadata_Count"] = [12, 49]
    table.loc[7, [f"Cells_{i}" for i in range(8)]] += 9
    table.loc[9, "Cells_0"] += 1e6  # one odd feature is no odd well
    found = flag_rows(table, minimum_cells=50)
    assert found.index[found["Metadata_QC"] != ""].tolist() == [3, 7, 100]
    assert found["Metadata_QC"][3] == "12 cells, under 50"
    z = found["Metadata_QC_Z"][7]
    assert z > 3.5
    assert found["Metadata_QC"][7] == f"{found['Metadata_QC_Distance'][7]:.3g} MADs from its Metadata_Plate (z {z:.3g})"
    assert found["Metadata_QC_Distance"].median() == pytest.approx(0.6745, abs=0.1)
    kept = pd.concat([table, found], axis=1).query("Metadata_QC == ''")
    assert len(kept) == len(table) - 3


def test_a_missing_count_is_flagged_and_pairs_are_not():
    table = plates().assign(Metadata_Count=np.nan)
    assert (flag_rows(table, minimum_cells=1)["Metadata_QC"] == "nan cells, under 1").all()
    found = flag_rows(table.head(2), by="Metadata_Plate")
    assert (found["Metadata_QC_Z"] == 0).all()


def test_counts_that_may_be_missing_are_numbers_too():
    table = plates(1)
    table["Metadata_Count"] = pd.array([None, 12, *[200] * 94], dtype="Int64")
    found = flag_rows(table, minimum_cells=50)
    assert found["Metadata_QC"][:3].tolist() == ["nan cells, under 50", "12 cells, under 50", ""]
    with pytest.raises(InputError, match=r"feature Metadata_Count: expected numbers, .*many"):
        flag_rows(table.assign(Metadata_Count="many"), minimum_cells=50)


def test_all_rows_compared_with_each_other():
    table = plates()
    table.loc[7, [f"Cells_{i}" for i in range(8)]] += 9
    table.loc[table["Metadata_Plate"] == "p1", [f"Cells_{i}" for i in range(8)]] += 2
    found = flag_rows(table, by=())
    one = flag_rows(table.assign(Metadata_Plate="p"))
    np.testing.assert_array_equal(found["Metadata_QC_Z"], one["Metadata_QC_Z"])
    assert found["Metadata_QC"][7] == one["Metadata_QC"][7].replace("its Metadata_Plate", "the others")
    assert "MADs from the others (z" in found["Metadata_QC"][7]
    assert flag_rows(table.head(0), minimum_cells=3).shape == (0, 3)


# --- drift
def test_drift_of_one_plate_of_four():
    table = plates(4)
    still = control_drift(table, samples="Metadata_Control == True", rng=np.random.default_rng(0))
    assert still.columns.tolist() == ["Metadata_Plate", "controls", "drift", "by_chance", "p"]
    assert still["controls"].tolist() == [16] * 4
    np.testing.assert_allclose(still["drift"], still["by_chance"], rtol=0.7)
    table.loc[table["Metadata_Plate"] == "p2", [f"Cells_{i}" for i in range(8)]] += 2
    found = control_drift(table, samples="Metadata_Control == True", rng=np.random.default_rng(0))
    assert found["drift"].idxmax() == 2
    assert found["p"][2] == 1 / 200


def test_drift_of_no_groups():
    with pytest.raises(InputError, match="by is empty: name the column of the plate or batch whose controls are"):
        control_drift(plates(1), samples="Metadata_Control == True", rng=np.random.default_rng(0), by=())


def test_p_of_nothing_is_uniform():
    rng = np.random.default_rng(0)
    codes = np.repeat(np.arange(3), 8)
    p = [shift_test(rng.normal(size=(24, 5)), codes, 19, rng)[2][0] for _ in range(300)]
    assert np.mean(np.array(p) <= 0.1) == pytest.approx(0.1, abs=0.05)
    p = [effect_test(rng.normal(size=(24, 5)), codes, 19, rng)[2] for _ in range(300)]
    assert np.mean(np.array(p) <= 0.1) == pytest.approx(0.1, abs=0.05)


# --- position
def test_explained_is_that_of_an_analysis_of_variance():
    rng = np.random.default_rng(0)
    rows, codes = rng.normal(size=(40, 3)), np.repeat(np.arange(4), 10)
    rows[:, 0] += codes
    parts = []
    for column in rows.T:
        f = f_oneway(*(column[codes == i] for i in range(4))).statistic
        parts.append(3 * f / (3 * f + 36))  # eta squared of its F, with 3 and 36 degrees of freedom
    assert explained(rows, codes) == pytest.approx(np.mean(parts))


def test_effects_of_edge_row_and_column():
    table = plates()
    features = [f"Cells_{i}" for i in range(8)]
    p1 = table["Metadata_Plate"] == "p1"
    outside = table["Metadata_Well"].str.match("[AH]|.(?:01|12)")
    table.loc[p1 & outside, features] += 2.0
    found = position_effects(table, rng=np.random.default_rng(0)).set_index(["Metadata_Plate", "effect"])
    assert found["wells"].tolist() == [96] * 6
    assert (found.loc["p0", "p"] > 0.02).all()
    assert found.loc[("p1", "edge"), "explained"] > 0.4
    assert found.loc[("p1", "edge"), "p"] == 1 / 200
    assert found.loc[("p1", "edge"), "by_chance"] == pytest.approx(1 / 95, rel=0.3)
    table["Cells_0"] += table["Metadata_Well"].map(lambda well: well_place(well)[1])
    one = position_effects(table, rng=np.random.default_rng(0), features=["Cells_0"], by=()).set_index("effect")
    assert one["explained"].idxmax() == "column"
    inner = position_effects(table[~outside], rng=np.random.default_rng(0), by=()).set_index("effect")
    assert inner.loc["edge", ["explained", "by_chance", "p"]].isna().all()


def test_infinite_features_have_no_say_in_effects():
    table = plates(1)
    table.loc[3, "Cells_2"] = np.inf
    found = position_effects(table, rng=np.random.default_rng(0), permutations=9)
    without = position_effects(table.drop(columns="Cells_2"), rng=np.random.default_rng(0), permutations=9)
    pd.testing.assert_frame_equal(found, without)
    with pytest.raises(InputError, match="stand twice: Metadata_Well"):
        plate_map(table.rename(columns={"Metadata_Count": "Metadata_Well"}), "Cells_0")


def test_map_of_a_plate():
    table = plates(1).iloc[[0, 13, 95]]
    found = plate_map(table, "Cells_0")
    assert found.shape == (8, 12)
    assert (found.index[0], found.columns[-1]) == ("A", 12)
    assert (found.loc["A", 1], found.loc["B", 2]) == tuple(table["Cells_0"].iloc[:2])
    assert found.notna().to_numpy().sum() == 3
    big = pd.DataFrame({"Metadata_Well": ["AF48"], "Cells_0": [1.0]})
    assert plate_map(big, "Cells_0").index[-1] == "AF"


def test_places():
    assert plate_shape(np.array([0, 15]), np.array([0, 3])) == (16, 24)
    assert on_edge(np.array([0, 1, 7, 3]), np.array([3, 3, 3, 11]), (8, 12)).tolist() == [True, False, True, True]
    assert well_place("AA1") == (26, 0)


# --- wells without a profile
def test_missing_wells_are_named():
    table = plates()
    absent = (table["Metadata_Plate"] == "p1") & table["Metadata_Well"].isin(["A02", "C07"])
    platemap = pd.DataFrame({"Metadata_well_position": table["Metadata_Well"].head(96), "Metadata_dose": range(96)})
    found = missing_wells(table[~absent], platemap)
    assert found.to_dict("list") == {
        "Metadata_Plate": ["p1", "p1"],
        "Metadata_Well": ["A02", "C07"],
        "Metadata_dose": [1, 30],
    }
    nothing = missing_wells(table, platemap)
    assert (nothing.columns.tolist(), len(nothing)) == (found.columns.tolist(), 0)
    assert len(missing_wells(table.head(0), platemap)) == 0


# --- words
@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda t: flag_rows(t, minimum_cells=5, count="n"), "profiles: no column 'n'"),
        (lambda t: flag_rows(t.assign(Cells_0=1.0), features=["Cells_0"]), "none of 1 features is complete and varies"),
        (
            lambda t: control_drift(t.head(96), samples="Metadata_Control == True", rng=np.random.default_rng(0)),
            "the controls are all of one Metadata_Plate; there is nothing to compare",
        ),
        (lambda t: control_drift(t, samples="Metadata_Well == 'Z9'", rng=np.random.default_rng(0)), "no row is picked"),
        (lambda t: position_effects(t.assign(Metadata_Well="x"), rng=np.random.default_rng(0)), "'x' is not a well"),
        (
            lambda t: position_effects(t.assign(Metadata_Well="AZ01"), rng=np.random.default_rng(0)),
            "row 52, column 1: no plate of up to 1536 wells has that well",
        ),
        (lambda t: plate_map(t, "Cells_0"), "some well is there more than once; take the rows of one plate"),
        (lambda t: missing_wells(t, t, join_on=("x", "Metadata_Well")), "platemap: no column 'x'"),
    ],
)
def test_refuses(call, words):
    with pytest.raises(InputError, match=words):
        call(plates())


def test_wells_that_are_not_tested_say_how_large_the_plate_is():
    """Controls in the middle of a plate of 96 are none of a plate of 48's edge."""
    rng = np.random.default_rng(0)
    wells = [f"{letter}{number:02}" for letter in "ABCDEFGH" for number in range(1, 13)]
    table = pd.DataFrame({"Metadata_Plate": "p", "Metadata_Well": wells, "f": rng.normal(size=96)})
    table["Metadata_T"] = ["DMSO" if w[0] in "CDEF" and w[1:] in ("03", "04") else "x" for w in wells]
    found = position_effects(table, rng=rng, samples="Metadata_T == 'DMSO'", features=["f"])
    assert found.set_index("effect")["p"].isna().to_dict() == {"edge": True, "row": False, "column": False}


def test_a_well_is_there_however_it_is_spelled():
    table = pd.DataFrame({"Metadata_Plate": ["p"], "Metadata_Well": ["A01"]})
    platemap = pd.DataFrame({"Metadata_well_position": ["a1", "A02"]})
    assert missing_wells(table, platemap)["Metadata_Well"].tolist() == ["A02"]

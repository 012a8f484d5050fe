import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layout_factory import COLUMNS, lincs

from cytominer_tools.errors import InputError
from cytominer_tools.tables import read_table
from deepprofile.splits import NEITHER, TRAIN, VALIDATION, split_cells
from deepprofile.study import Columns, Split

COMPOUND = ("Metadata_Compound",)
KEY = ["Metadata_Plate", "Metadata_Well", "Metadata_Site", "Metadata_Cell"]
NAMES = {TRAIN: "train", VALIDATION: "validation", NEITHER: "neither"}
TINY = lincs()
MANY = lincs({f"c{i:03d}": f"m{i % 60:02d}" for i in range(460)}, doses=(10.0,), sites=3, cells=1)
SPLITS = ("cell", "site", "well", "replicate", "plate", "batch", "concentration", "Metadata_Well")
PRESETS = ("one", "two", "three", "cross_dose", "TD1", "TD2", "TD3", "TD4", "TD5")


def split(table=TINY, by="well", columns=COLUMNS, label=COMPOUND, seed=1, controls="DMSO", treatments=None, **more):
    is_control = None if controls is None else (table["Metadata_Compound"] == controls).to_numpy()
    rule = Split(by=by, **more)
    return split_cells(table, rule, columns, label=label, seed=seed, controls=is_control, treatments=treatments)


def preset(by, table=None, **more):
    """A preset on the smaller layout that has what it needs."""
    table = (MANY if by in ("TD1", "TD4") else TINY) if table is None else table
    return table, split(table, by, treatments=["aaa", "ccc"] if by == "TD3" else None, **more)


def sides(found, table=TINY, by="Metadata_Plate"):
    """The side of each value of a column; several where it has several."""
    names = pd.Series(found.parts).map(NAMES)
    return {k: " ".join(sorted(set(v))) for k, v in names.groupby(table[by].to_numpy())}


def counts(found):
    return [int((found.parts == side).sum()) for side in (TRAIN, VALIDATION, NEITHER)]


# --- golden: a map of three compounds at six doses and DMSO, on a plate of batch b1 and four of b2
def test_split_two_trains_on_two_plates_of_the_main_batch_and_one_of_the_other():
    found = split(by="two")
    wanted = {"P1": "train", "P2": "validation", "P3": "neither", "P4": "train", "P5": "train"}
    assert sides(found) == wanted
    control = (TINY["Metadata_Compound"] == "DMSO").to_numpy()
    assert sides(split(by="two"), TINY) == wanted  # nothing is drawn
    assert {p: NAMES[s] for p, s in zip(TINY["Metadata_Plate"][control], found.parts[control], strict=True)} == wanted
    assert found.warnings == ()
    shares = {"well": 0, "position": 1, "plate": 0, "batch": 1, "compound": 1, "concentration": 1}
    assert found.shares == shares


def test_split_two_with_three_plates_in_the_main_batch_uses_all_of_them():
    table = TINY[TINY["Metadata_Plate"] != "P5"]
    assert sides(split(table, "two"), table) == {"P1": "train", "P2": "validation", "P3": "train", "P4": "train"}


def test_split_two_names_treatments_without_the_plates_for_it():
    lost = TINY["Metadata_Compound"].eq("ccc") & TINY["Metadata_Plate"].isin(["P3", "P4"])
    found = split(TINY[~lost], "two")
    assert found.warnings[0] == (
        "split two needs three plates of a treatment in one batch and one in another; without part: ccc 0.041152, "
        "ccc 0.12346, ccc 0.37037 and 3 more"
    )
    assert "ccc" in {k for k, v in sides(found, TINY[~lost], "Metadata_Compound").items() if v == "neither"}


def test_replicates_are_counted_in_the_batch_with_most_plates_first():
    found = split(by="replicate", train=["3", "4", "5"], validation=["1"])
    number = found.table.drop_duplicates("Metadata_Plate").set_index("Metadata_Plate")["Replicate"].to_dict()
    assert number == {"P1": "5", "P2": "1", "P3": "2", "P4": "3", "P5": "4"}
    np.testing.assert_array_equal(found.parts, split(by="two").parts)


def test_a_plate_in_two_batches_is_refused():
    treated = TINY["Metadata_Well"][TINY["Metadata_Compound"] != "DMSO"].iat[0]
    table = TINY.assign(Metadata_Batch=TINY["Metadata_Batch"].mask(TINY["Metadata_Well"] == treated, "other"))
    with pytest.raises(InputError, match=r"plate P1 is in the batches b1.*other; a plate has one: correct"):
        split(table, "two")


def test_a_drawn_replicate_is_one_plate_of_the_map():
    for seed in range(5):
        held = [p for p, side in sides(split(by="replicate", seed=seed)).items() if side == "validation"]
        assert len(held) == 1


def test_what_is_on_all_plates_of_all_maps_does_not_decide_which_replicate_validates():
    maps = {f"{m}{i}": f"b{m}" for m in "QRSTUV" for i in range(5)}
    table = lincs({"aaa": None, "mg132": None}, plates=maps, doses=(10.0,), sites=1)
    own = table["Metadata_Compound"].eq("aaa")
    table.loc[own, "Metadata_Compound"] += table["Metadata_Plate"].str[0]
    found = split(table, "replicate")
    per_map = pd.Series(found.parts[own]).eq(VALIDATION).groupby(table["Metadata_Plate"][own].str[0].to_numpy()).mean()
    assert per_map.tolist() == [0.2] * 6


def test_split_one_trains_on_two_wells_of_a_treatment_and_validates_on_a_third():
    found = split(by="one")
    treated = TINY["Metadata_Compound"].ne("DMSO").to_numpy()
    wells = found.table.merge(TINY.drop_duplicates(KEY[:2]), on=KEY[:2])
    of_dose = wells.dropna(subset="Metadata_Dose").groupby(["Metadata_Compound", "Metadata_Dose"])["Split"]
    assert {tuple(sorted(v)) for _, v in of_dose} == {("neither", "neither", "train", "train", "validation")}
    assert wells[wells["Metadata_Compound"] == "DMSO"]["Split"].value_counts().to_dict() == {
        "train": 8,
        "neither": 8,
        "validation": 4,
    }
    assert counts(found) == [44 * 12, 22 * 12, 44 * 12]
    batch = TINY["Metadata_Batch"].to_numpy()[treated & (found.parts == VALIDATION)]
    assert set(batch) == {"b1", "b2"}  # a random well may be of either


def test_split_three_draws_cells_of_every_well_for_both_sides():
    found = split(by="three", fraction=0.25)
    share = pd.Series(found.parts == VALIDATION).groupby([TINY[k] for k in KEY[:2]]).mean()
    assert share.unique().tolist() == [0.25]
    assert found.warnings == (
        "110 of 110 wells that validate have cells in training too: the validation accuracy says nothing about a new "
        "well",
    )
    assert set(found.shares.values()) == {1.0}
    np.testing.assert_array_equal(found.parts, split(by="cell", fraction=0.25).parts)


def test_cross_dose_trains_on_the_second_highest_and_validates_on_the_highest():
    found = split(by="cross_dose")
    dose = sides(found, TINY, "Metadata_Dose")
    assert {k for k, v in dose.items() if v == "train"} == {3.3333}
    assert {k for k, v in dose.items() if v == "validation"} == {10.0}
    assert found.shares == {"well": 0, "position": 0, "plate": 1, "batch": 1, "compound": 1, "concentration": 0}
    assert "100% of the validation cells are on a plate where their class trains" in found.warnings[0]
    of_dose = found.table[["Metadata_Dose", "Split"]].to_numpy().tolist()
    assert of_dose[-3:] == [["3.3333", "train"], ["10", "validation"], ["", "neither"]]


@pytest.mark.parametrize("odd", [(20.0,), (100.0, 0.01)])
def test_a_dose_of_one_compound_alone_is_not_the_highest(odd):
    more = lincs({"ddd": "proteasome"}, doses=odd, controls=0)
    more["Metadata_Well"] = "P" + more["Metadata_Well"].str[1:]
    table = pd.concat([TINY, more], ignore_index=True)
    dose = sides(split(table, "cross_dose"), table, "Metadata_Dose")
    assert {k: v for k, v in dose.items() if v != "neither"} == {10.0: "validation", 3.3333: "train"}


def test_cross_dose_takes_the_doses_that_are_listed():
    rule = {"train": ["10.0", "1.1111"], "validation": [3.3333]}
    dose = sides(split(by="cross_dose", **rule), TINY, "Metadata_Dose")
    assert {k: v for k, v in dose.items() if v != "neither"} == {10: "train", 1.1111: "train", 3.3333: "validation"}
    dose = sides(split(by="cross_dose", train=[1.1111]), TINY, "Metadata_Dose")
    assert {k: v for k, v in dose.items() if v != "neither"} == {10.0: "validation", 1.1111: "train"}


def test_td1_takes_the_50_largest_moas_ties_by_name_and_two_sites_of_each_validation_well():
    # 40 of the 60 MOAs have 8 compounds, 20 have 7: the cut falls among the latter
    found = split(MANY, "TD1")
    assert found.warnings[0] == (
        "the 50 largest MOAs end among 20 of 7 compounds each; by name, 10 of them are in and m50, m51, m52 and 7 more "
        "are out"
    )
    moa = sides(found, MANY, "Metadata_MOA")
    assert sorted(k for k, v in moa.items() if v != "neither") == [f"m{i:02d}" for i in range(50)]
    held = MANY[found.parts == VALIDATION]
    assert set(held["Metadata_Plate"]) == {"P2"}
    assert set(held.groupby(["Metadata_Plate", "Metadata_Well"])["Metadata_Site"].nunique()) == {2}
    assert set(held["Metadata_Site"]) == {"1", "2", "3"}  # drawn for each well
    assert "DMSO" in set(held["Metadata_Compound"])


def test_td2_and_td3_are_split_two_with_two_sites():
    two, found = split(by="two").parts, split(by="TD2").parts
    np.testing.assert_array_equal(found == TRAIN, two == TRAIN)
    assert 3 * (found == VALIDATION).sum() == 2 * (two == VALIDATION).sum()
    strong = split(by="TD3", treatments=["aaa", "ccc"]).parts
    listed = TINY["Metadata_Compound"].isin(["aaa", "ccc"]).to_numpy()
    np.testing.assert_array_equal(strong, np.where(listed, found, NEITHER))


def test_td4_draws_450_compounds_and_200_cells_of_each_well():
    table = lincs({f"c{i:03d}": None for i in range(460)}, plates={"P1": "b"}, doses=(1.0,), sites=1, cells=201)
    parts = split(table, "TD4").parts
    taken = set(table["Metadata_Compound"][parts != NEITHER])
    assert len(taken) == 451  # with DMSO
    assert taken != set(table["Metadata_Compound"][split(table, "TD4", seed=2).parts != NEITHER])
    assert set(pd.Series(parts != NEITHER).groupby(table["Metadata_Well"]).sum()) == {0, 200}


def test_td5_draws_93_cells_of_each_well():
    table = lincs(doses=(1.0,), sites=2, cells=50)
    parts = split(table, "TD5").parts
    wells = [table[k] for k in KEY[:2]]
    assert set(pd.Series(parts != NEITHER).groupby(wells).sum()) == {93}
    held = pd.Series(parts == VALIDATION).groupby(wells).sum()
    assert set(held) == {18, 19}  # 18.6, rounded by lot
    assert held.mean() == pytest.approx(18.6, abs=0.2)


# --- splits by units
def test_by_well_holds_out_a_fraction_of_the_wells_of_each_class():
    found = split(by="well")
    wells = found.table.merge(TINY.drop_duplicates(KEY[:2]), on=KEY[:2])
    held = wells["Split"].eq("validation").groupby(wells["Metadata_Compound"]).sum()
    assert held.to_dict() == {"DMSO": 4, "aaa": 6, "bbb": 6, "ccc": 6}
    assert found.warnings == ()
    assert found.shares["well"] == 0


@pytest.mark.parametrize(("by", "column"), [("plate", "Metadata_Plate"), ("batch", "Metadata_Batch")])
def test_plates_and_batches_are_held_out_whole(by, column):
    found = split(by=by)
    assert sorted(sides(found, TINY, column).values()) == ["train"] * (TINY[column].nunique() - 1) + ["validation"]
    assert found.shares[by] == 0
    assert list(found.table.columns) == [column, "Split", "Cells"]


def test_each_map_holds_out_plates_of_its_own():
    maps = [lincs({f"c{m}": None}, plates={f"{m}{i}": "b" for i in range(5)}, sites=1) for m in "QRSTUVW"]
    table = pd.concat(maps, ignore_index=True)
    for seed in range(3):
        found = split(table, "plate", seed=seed)
        held = [plate for plate, side in sides(found, table).items() if side == "validation"]
        assert sorted(p[0] for p in held) == list("QRSTUVW")
        assert found.warnings == ()


def test_by_site_says_that_wells_are_on_both_sides():
    found = split(by="site", fraction=0.34)
    assert "have cells in training too" in found.warnings[0]
    assert list(found.table.columns) == ["Metadata_Plate", "Metadata_Well", "Metadata_Site", "Split", "Cells"]


def test_by_compound_asks_whether_an_moa_is_known_in_another_compound():
    found = split(by="compound", label=["Metadata_MOA"], validation=["bbb"])
    compounds = sides(found, TINY, "Metadata_Compound")
    assert compounds == {"DMSO": "neither", "aaa": "train", "bbb": "validation", "ccc": "train"}
    assert found.shares["compound"] == 0
    assert found.warnings == ("no cell validates of tubulin: such classes only train",)


def test_any_column_splits_with_or_without_its_prefix():
    table = TINY.assign(Metadata_Donor=np.where(TINY["Metadata_Plate"].isin(["P1", "P2"]), "young", "old"))
    for by in ("Donor", "Metadata_Donor"):
        found = split(table, by, validation=["young"])
        assert sides(found, table, "Metadata_Donor") == {"young": "validation", "old": "train"}


def test_cells_without_a_value_are_on_neither_side():
    table = TINY.assign(Metadata_Donor=TINY["Metadata_Plate"].replace({"P1": None, "P2": " "}))
    found = split(table, "Donor", validation=["P3"])
    assert sides(found, table) == {
        "P1": "neither",
        "P2": "neither",
        "P3": "validation",
        "P4": "train",
        "P5": "train",
    }
    assert "528 cells have no Donor and are on neither side" in found.warnings


def test_lists_name_wells_on_every_plate_or_on_one():
    found = split(by="well", validation=["A01", "P2 A08", "P2 A19"])
    held = TINY[found.parts == VALIDATION].drop_duplicates(KEY[:2])
    assert sorted(held["Metadata_Plate"] + " " + held["Metadata_Well"]) == [
        "P1 A01",
        "P2 A01",
        "P2 A08",
        "P2 A19",
        "P3 A01",
        "P4 A01",
        "P5 A01",
    ]


def test_what_no_list_names_is_on_neither_side_where_both_are_given():
    found = split(by="plate", train=["P1", "P3"], validation=["P4"])
    assert sides(found) == {"P1": "train", "P2": "neither", "P3": "train", "P4": "validation", "P5": "neither"}


def test_a_listed_side_leaves_the_rest_to_the_other():
    assert sides(split(by="plate", train=["P1"]))["P5"] == "validation"
    assert sides(split(by="plate", validation=["P1"]))["P5"] == "train"


def test_treatments_that_are_not_listed_are_on_neither_side():
    found = split(treatments=["aaa", "DMSO", "gone"])
    assert {k for k, v in sides(found, TINY, "Metadata_Compound").items() if v == "neither"} == {"bbb", "ccc"}
    assert found.warnings == ("there is no crop of gone of train.treatments",)


def test_a_plate_as_label_is_a_split_like_any_other():
    found = split(label=["Metadata_Plate"])
    held = pd.Series(found.parts == VALIDATION).groupby(TINY["Metadata_Plate"]).mean()
    assert held.tolist() == [pytest.approx(4 / 22)] * 5


def test_a_class_with_a_single_unit_trains_only():
    table = TINY[
        (TINY["Metadata_Compound"] != "ccc") | TINY["Metadata_Well"].eq("A13") & TINY["Metadata_Plate"].eq("P1")
    ]
    found = split(table)
    assert sides(found, table, "Metadata_Compound")["ccc"] == "train"
    assert found.warnings == ("no cell validates of ccc: such classes only train",)


def test_names_are_text():
    table = pd.concat([TINY.assign(Metadata_Plate="1"), TINY.assign(Metadata_Plate="001")], ignore_index=True)
    table["Metadata_Site"] = table["Metadata_Site"].where(table.index % 2 == 0, "0" + table["Metadata_Site"])
    assert sides(split(table, "plate", validation=["001"]), table) == {"001": "validation", "1": "train"}
    assert len(split(table, "site").table) == 2 * 22 * 6
    number = split(TINY.assign(Metadata_Plate=TINY["Metadata_Plate"].str[1].astype(int)), "plate", validation=["2"])
    np.testing.assert_array_equal(number.parts, split(by="plate", validation=["P2"]).parts)


# --- properties
@pytest.mark.parametrize("by", SPLITS + PRESETS)
def test_the_order_of_rows_does_not_matter(by):
    table, found = preset(by)
    order = np.random.default_rng(0).permutation(len(table))
    again = preset(by, table.iloc[order].reset_index(drop=True))[1]
    np.testing.assert_array_equal(again.parts, found.parts[order])
    pd.testing.assert_frame_equal(again.table, found.table)
    assert (again.shares, again.warnings) == (found.shares, found.warnings)


@pytest.mark.parametrize("by", SPLITS + PRESETS)
def test_more_cells_in_one_well_change_no_other(by):
    table, found = preset(by)
    more = table[(table["Metadata_Well"] == "A02") & (table["Metadata_Plate"] == "P2")]
    more = more.assign(Metadata_Cell=more["Metadata_Cell"] + 1000)
    again = preset(by, pd.concat([more, table], ignore_index=True))[1].parts[len(more) :]
    others = ((table["Metadata_Well"] != "A02") | (table["Metadata_Plate"] != "P2")).to_numpy()
    np.testing.assert_array_equal(again[others], found.parts[others])


@pytest.mark.parametrize("by", ["cell", "site", "well", "one", "TD2", "TD4", "TD5"])
def test_the_seed_draws(by):
    parts = [preset(by, seed=seed)[1].parts for seed in (1, 1, 2)]
    np.testing.assert_array_equal(parts[0], parts[1])
    assert (parts[0] != parts[2]).any()


@pytest.mark.parametrize("by", SPLITS + PRESETS)
def test_the_table_says_what_the_parts_say(by):
    table, found = preset(by)
    assert set(found.table["Split"]) <= set(NAMES.values())
    assert found.table["Cells"].sum() == len(table)
    counted = found.table.groupby("Split")["Cells"].sum().reindex(NAMES.values(), fill_value=0)
    assert counted.tolist() == counts(found)
    keys = [name for name in found.table if name not in ("Split", "Cells")]
    assert not found.table.duplicated([*keys, "Split"]).any()
    assert found.parts.dtype == np.int8


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 4)), min_size=4, max_size=20),
    st.floats(0.05, 0.95),
    st.integers(0, 9),
)
def test_each_class_gives_its_fraction_of_units_but_not_all(wells, fraction, seed):
    rows = [
        ("P", f"A{i + 1:02d}", "1", cell, f"class {name}") for i, (name, n) in enumerate(wells) for cell in range(n)
    ]
    table = pd.DataFrame(rows, columns=[*KEY, "Metadata_Compound"])
    per_class = table.groupby("Metadata_Compound")["Metadata_Well"].nunique()
    if per_class.max() < 2:
        return
    found = split(table, columns=Columns(), controls=None, seed=seed, fraction=fraction)
    held = table[found.parts == VALIDATION].groupby("Metadata_Compound")["Metadata_Well"].nunique()
    for name, n in per_class.items():
        wanted = min(max(int(fraction * n + 0.5), 1), n - 1)
        assert held.get(name, 0) == wanted
    assert not set(table["Metadata_Well"][found.parts == TRAIN]) & set(
        table["Metadata_Well"][found.parts == VALIDATION]
    )
    assert NEITHER not in found.parts


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=2, max_size=8), st.floats(0.05, 0.95), st.integers(0, 9))
def test_random_cells_give_each_class_of_two_cells_both_sides(wells, fraction, seed):
    rows = [("P", f"A{i + 1:02d}", "1", cell, f"c{i % 3}") for i, n in enumerate(wells) for cell in range(n)]
    rows += [("P", "B01", "1", cell, "large") for cell in range(50)]
    table = pd.DataFrame(rows, columns=[*KEY, "Metadata_Compound"])
    found = split(table, "cell", Columns(), controls=None, seed=seed, fraction=fraction)
    for _, parts in pd.Series(found.parts).groupby(table["Metadata_Compound"]):
        assert (parts == TRAIN).any()
        assert (parts == VALIDATION).any() or len(parts) == 1
    large = (found.parts == VALIDATION)[-50:].sum()
    assert 50 * fraction - 1 <= large <= 50 * fraction + 1


def test_shares_are_fractions_of_validation_cells_by_class():
    rows = [
        ("P1", "A01", "x", TRAIN),
        ("P1", "A02", "x", VALIDATION),  # plate P1 known to x
        ("P2", "A01", "x", VALIDATION),  # position A01 known to x
        ("P2", "A03", "y", TRAIN),
        ("P2", "A04", "y", VALIDATION),  # plate P2 known to y
        ("P3", "A01", "y", VALIDATION),  # A01 is known to x alone
    ]
    table = pd.DataFrame(rows, columns=["Metadata_Plate", "Metadata_Well", "Metadata_Compound", "part"])
    table = table.assign(Metadata_Site="1", Metadata_Cell=0, Metadata_Side=table["part"].map(NAMES))
    found = split(table, "Side", Columns(), controls=None, train=["train"], validation=["validation"])
    assert found.shares == {"well": 0.0, "position": 0.25, "plate": 0.5}


# --- the words of each error
def refuse(words, table=TINY, by="well", **more):
    with pytest.raises(InputError, match=words):
        split(table, by, **more)


def test_unknown_columns_and_values():
    refuse("train.split.by: no column 'pl4te', is it 'plate'", by="pl4te")
    refuse("train.split.by: no column 'Dooonor'; there are cell, site, well", by="Dooonor")
    refuse("train.label: no column 'Compuond', is it 'Metadata_Compound'", label=["Compuond"])
    refuse(r"train.split.validation: no plate 'P9'; there are P1, P2", by="plate", validation=["P9"])
    refuse("train.split.train: no concentration '7'; there are 0.041152, 0.12346", by="cross_dose", train=[7])
    refuse("train.split: plate P1 is in train and in validation", by="plate", train=["P1"], validation=["P1"])
    refuse("train.split: well P1 A01 is in train and in validation", train=["A01"], validation=["P1 A01"])
    refuse("train.treatments: no treatment 'gone'; there are DMSO, aaa", treatments=["gone"])
    refuse("train.treatments: it lists none", treatments=[])


def test_lists_do_not_go_with_what_is_drawn():
    for by in ("cell", "one", "two", "three", "TD1", "TD5"):
        refuse(f"train.split.train and .validation: {by} draws its own sides", by=by, train=["P1"])


def test_an_empty_store_and_empty_labels():
    refuse("there are no crops to train on", table=TINY.iloc[:0])
    refuse(
        "train.label Metadata_Compound: it is empty for all 1,320 cells",
        table=TINY.assign(Metadata_Compound=np.nan),
        controls=None,
    )


def test_studies_without_what_a_split_needs():
    bare = Columns(compound="Metadata_Compound")
    for by, role in (("two", "batch"), ("TD2", "batch"), ("cross_dose", "concentration"), ("batch", "batch")):
        refuse(f"train.split.by .*needs the {role} of each cell; columns.{role} in study.yaml", by=by, columns=bare)
    refuse("TD1: it needs the moa of each cell", by="TD1", columns=bare)
    refuse("TD3: it trains on the strong phenotypes; list them in train.treatments", by="TD3")
    refuse("TD1: it trains on the 50 MOAs with most compounds, and there are 2; TD2", by="TD1")
    refuse("TD4: it draws 450 of the compounds, and there are 3; TD5", by="TD4")
    one_batch = TINY[TINY["Metadata_Batch"] == "b2"]
    refuse("two: split two needs three plates of a treatment in one batch and one in another", one_batch, "two")
    refuse("one: .* and no treatment has three", TINY[TINY["Metadata_Plate"].isin(["P1", "P2"])], "one")


def test_cross_dose_needs_a_class_at_both_doses():
    refuse("the label holds Metadata_Dose", by="cross_dose", label=["Compound", "Dose"])
    treatment = TINY.assign(Metadata_Both=TINY["Metadata_Compound"] + TINY["Metadata_Dose"].astype(str))
    refuse("no class has cells at 3.3333 and at 10", treatment, "cross_dose", label=["Both"])
    refuse("half of the compounds have 0 concentration", lincs(doses=(10.0,)), "cross_dose")
    refuse("the concentration 'high' is not a number", TINY.replace({"Metadata_Dose": {10.0: "high"}}), "cross_dose")


def test_nothing_to_hold_out():
    refuse("train.split.by compound: no class has two, of which one could validate", by="compound")
    refuse("train.split.by plate: no class has two", TINY[TINY["Metadata_Plate"] == "P1"], "plate")
    refuse("train.split.by Donor: no cell has one", TINY.assign(Metadata_Donor=""), "Donor")
    refuse("no cell is in validation", by="plate", train=["P1", "P2", "P3", "P4", "P5"])
    two = lincs({"aaa": "x", "bbb": "x", "ccc": "y", "ddd": "y"})
    refuse("MOA: no class is on both sides", two, "MOA")


# --- real metadata
@pytest.mark.data
def test_a_real_lincs_plate_crosses_doses(data):
    table = read_table(data / "lincs_plate_SQ00015054" / "SQ00015054_normalized_feature_select.csv.gz")
    table = table.filter(like="Metadata_").assign(Metadata_Site="1", Metadata_Cell=0)
    columns = Columns(compound="Metadata_broad_sample", concentration="Metadata_mmoles_per_liter", moa="Metadata_moa")
    controls = (table["Metadata_broad_sample"] == "DMSO").to_numpy()
    rule = Split(by="cross_dose")
    found = split_cells(table, rule, columns, label=["broad_sample"], seed=0, controls=controls)
    # one compound is diluted tenfold, two positive controls stand at 20: neither moves the doses
    assert counts(found) == [55, 55, 384 - 110]
    held = table[found.parts == VALIDATION]
    assert set(pd.to_numeric(held["Metadata_mmoles_per_liter"])) == {10.0}
    assert found.shares["plate"] == 1.0


@pytest.mark.data
def test_real_jump_plates_are_held_out_whole(data):
    wells = pd.read_csv(data / "jump_metadata" / "JUMP-Target-1_compound_platemap.txt", sep="\t")
    plates = pd.read_csv(data / "jump_metadata" / "experiment-metadata.tsv", sep="\t")
    plates = plates[plates["Perturbation"] == "compound"][["Assay_Plate_Barcode", "Batch"]]
    table = wells.rename(columns={"well_position": "Metadata_Well", "broad_sample": "Metadata_Compound"})
    table = table.merge(plates.set_axis(["Metadata_Plate", "Metadata_Batch"], axis="columns"), "cross")
    table = table.assign(Metadata_Site="1", Metadata_Cell=0)
    found = split(table, "plate", Columns(compound="Metadata_Compound"), controls=None)
    assert len(plates) >= 4
    assert counts(found)[1] / counts(found)[0] == pytest.approx(0.25, abs=0.05)
    assert (found.parts[table["Metadata_Compound"].isna()] == NEITHER).all()  # DMSO has no name there
    assert found.shares == {"well": 0.0, "position": 1.0, "plate": 0.0, "compound": 1.0}
    assert found.warnings == ()

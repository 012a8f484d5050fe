import itertools
import logging

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from study_factory import configure, edit_index

from cytominer_tools.columns import CELL, PLATE, SITE, WELL
from cytominer_tools.errors import InputError
from cytominer_tools.queries import select
from deepprofile.crop_selection import chosen_cells, draws, lowest, read_treatments
from deepprofile.crop_source import open_source
from deepprofile.index import load_index
from deepprofile.study import Export

COMPOUND = "Metadata_Compound"
KEY = [PLATE, WELL, SITE, CELL]


@pytest.fixture(scope="module")
def study(located_once):
    return located_once


def selected(study, **export):
    """The cells that are kept, with the metadata of their wells, in the order they were located."""
    study = study.model_copy(update={"export": Export(**export)})
    index = load_index(study)
    sources = [open_source(study, index, plate) for plate in index[PLATE].unique()]
    chosen = chosen_cells(study, index, sources)
    kept = []
    for source in sources:
        for well in source.sites:
            cells = source.located.read(well).to_pandas()
            mask = chosen.get((source.plate, well))
            kept.append(cells if mask is None else cells[mask])
    cells = pd.concat(kept, ignore_index=True)
    return cells.merge(index[[PLATE, WELL, SITE, COMPOUND]], on=[PLATE, WELL, SITE], validate="m:1")


def keys(cells):
    return set(cells[KEY].itertuples(index=False, name=None))


def by_well(cells):
    return cells.groupby([PLATE, WELL]).size()


# --- each way to choose
def test_all_are_kept_by_default(study):
    index = load_index(study)
    assert chosen_cells(study, index, []) == {}
    assert len(selected(study)) == 305


def test_so_many_of_each_well(study):
    every, ten = by_well(selected(study)), by_well(selected(study, per_well=10))
    assert (every > 10).all()
    assert (ten == 10).all()
    assert len(selected(study, per_well=1000)) == every.sum()


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5, 0.9, 1.0])
def test_a_share_of_each_well(study, fraction):
    every, some = by_well(selected(study)), by_well(selected(study, fraction=fraction))
    assert some.equals((every * fraction + 0.5).astype(int))


@pytest.mark.parametrize("n", [1, 30, 80])
def test_so_many_of_each_treatment_over_all_wells(study, n):
    every = selected(study).groupby(COMPOUND).size()
    some = selected(study, per_treatment=n)
    assert some.groupby(COMPOUND).size().equals(every.clip(upper=n))
    if n == 80:
        assert (every > 80).all()
        assert (by_well(some) > 8).all()  # from every well, not from the first few


def test_a_query_on_locations_and_on_the_index(study):
    query = "Metadata_Area > 60 and Metadata_Compound != 'DMSO'"
    every = selected(study)
    assert keys(selected(study, query=query)) == keys(every[select(every, query)])


def test_filters_come_first(study):
    large = "Metadata_Area > 60"
    few = selected(study, query=large, per_well=3)
    assert (few["Metadata_Area"] > 60).all()
    assert by_well(few).equals(by_well(selected(study, query=large)).clip(upper=3))
    both = selected(study, fraction=0.5, per_well=4, per_treatment=10)
    assert keys(both) <= keys(selected(study, fraction=0.5, per_well=4)) <= keys(selected(study, fraction=0.5))
    assert (both.groupby(COMPOUND).size() == 10).all()


def test_treatments_of_a_file(study, tmp_path, caplog):
    path = tmp_path / "few.txt"
    path.write_text("bbb\n\n ccc \nDMSO\n")
    some = selected(study, treatments=str(path))
    assert set(some[COMPOUND]) == {"bbb", "DMSO"}
    every = selected(study)
    assert len(some) == every[COMPOUND].isin(["bbb", "DMSO"]).sum()
    assert f"export: 1 treatment(s) of {path} are not in the study: ccc" in caplog.text


# --- the draw
@pytest.mark.parametrize("how", ["per_well", "per_treatment"])
def test_a_larger_number_holds_the_smaller_one(study, how):
    sets = [keys(selected(study, **{how: n})) for n in (1, 5, 9, 20)]
    assert all(small < large for small, large in itertools.pairwise(sets))


def test_a_larger_fraction_holds_the_smaller_one(study):
    sets = [keys(selected(study, fraction=f)) for f in (0.1, 0.3, 0.31, 0.8)]
    assert all(small <= large for small, large in itertools.pairwise(sets))
    assert len(sets[0]) < len(sets[3])


def test_the_seed_and_nothing_else(study):
    first = keys(selected(study, per_well=5))
    assert first == keys(selected(study, per_well=5))
    assert first != keys(selected(study.model_copy(update={"seed": 4}), per_well=5))


def test_other_plates_and_wells_do_not_matter(located):
    before = selected(located, per_well=5, fraction=0.9)
    edit_index(located.root, lambda t: t[(t[PLATE] == "P2") & t[WELL].isin(["A02", "C01"])])
    after = selected(configure(located.root, locate={"labels": True}), per_well=5, fraction=0.9)
    assert keys(after) == keys(before[(before[PLATE] == "P2") & before[WELL].isin(["A02", "C01"])])


def test_draws_are_uniform_and_differ_by_well():
    one, two = draws(0, "P1", "A01", 4000), draws(0, "P1", "A02", 4000)
    np.testing.assert_array_equal(one[:10], draws(0, "P1", "A01", 10))
    assert abs(one.mean() - 0.5) < 0.02
    assert abs(np.corrcoef(one, two)[0, 1]) < 0.05
    assert not np.array_equal(draws(1, "P1", "A01", 9), one[:9])


@given(st.lists(st.tuples(st.integers(0, 9), st.booleans()), max_size=20), st.integers(0, 25))
def test_lowest_are_the_lowest_of_those_that_are_kept(cells, n):
    chance, kept = np.array([c for c, _ in cells], float), np.array([k for _, k in cells], bool)
    few = lowest(chance, kept, n)
    assert few.sum() == min(n, kept.sum())
    assert not (few & ~kept).any()
    if few.any() and (kept & ~few).any():
        assert chance[few].max() <= chance[kept & ~few].min()


# --- treatments without a name, and of numbers
def test_cells_without_a_treatment_belong_to_none(located):
    edit_index(located.root, lambda t: t.assign(Metadata_Compound=t[COMPOUND].replace("aaa", None)))
    study = configure(located.root, locate={"labels": True})
    assert set(selected(study, per_treatment=3)[COMPOUND]) == {"bbb", "DMSO"}
    assert len(selected(study, per_treatment=3)) == 6
    assert by_well(selected(study, per_well=2)).sum() == 24  # they are cells all the same


def test_treatments_that_are_numbers(located, tmp_path):
    edit_index(located.root, lambda t: t.assign(Metadata_Compound=t[COMPOUND].map({"DMSO": None, "aaa": 12, "bbb": 7})))
    study = configure(located.root, locate={"labels": True}, controls=None)
    path = tmp_path / "few.txt"
    path.write_text("12\n")
    assert set(selected(study, treatments=str(path))[COMPOUND]) == {12}


# --- the list
@pytest.mark.parametrize("column", ["Metadata_Compound", "Compound"])
@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet", ".csv.gz"])
@pytest.mark.parametrize("named", ["Metadata_Compound", "Compound"])
def test_a_table_of_treatments(tmp_path, column, suffix, named):
    path = tmp_path / f"few{suffix}"
    table = pd.DataFrame({"note": ["x", "y", "z"], named: ["a", "b", "a"]})
    if suffix == ".parquet":
        table.to_parquet(path)
    else:
        table.to_csv(path, index=False, sep="\t" if suffix == ".tsv" else ",")
    assert read_treatments(path, column) == ["a", "b"]


def test_a_list_of_treatments(tmp_path):
    path = tmp_path / "few.txt"
    path.write_bytes("\ufeffDMSO\r\n5-fluoro, uracil \r\n\r\nβ-estradiol\nDMSO".encode())
    assert read_treatments(path, COMPOUND) == ["DMSO", "5-fluoro, uracil", "β-estradiol"]
    assert read_treatments(str(path), COMPOUND)[0] == "DMSO"


# --- bad input
def test_lists_that_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"no\.txt: no such file; it should list treatments, one a line"):
        read_treatments(tmp_path / "no.txt", COMPOUND)
    with pytest.raises(InputError, match=r"no\.csv: no such file"):
        read_treatments(tmp_path / "no.csv", COMPOUND)
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(InputError, match=r"empty\.txt: it lists no treatment"):
        read_treatments(tmp_path / "empty.txt", COMPOUND)
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(InputError, match=r"latin\.txt: cannot be read .*; save it as UTF-8 text, a treatment a line"):
        read_treatments(tmp_path / "latin.txt", COMPOUND)
    (tmp_path / "other.csv").write_text("name,dose\na,1\n")
    with pytest.raises(InputError, match=r"no column 'Metadata_Compound' or 'Compound'; it has name, dose; name the"):
        read_treatments(tmp_path / "other.csv", COMPOUND)


def test_no_treatment_of_the_list_is_in_the_study(study, tmp_path):
    path = tmp_path / "few.txt"
    path.write_text("dmso\nAAA\n")
    want = "none of the 2 treatments in .* is in Metadata_Compound; it lists dmso, AAA, the study has DMSO, aaa, bbb"
    with pytest.raises(InputError, match=want):
        selected(study, treatments=str(path))


@pytest.mark.parametrize("export", [{"treatments": "few.txt"}, {"per_treatment": 5}])
def test_a_study_without_treatments(located, export):
    study = configure(located.root, locate={"labels": True}, columns={"compound": None, "moa": None})
    with pytest.raises(
        InputError, match=rf"export\.{next(iter(export))}: name the column of the treatments in columns"
    ):
        selected(study, **export)


def test_a_query_that_names_no_column(study):
    with pytest.raises(InputError, match="no column 'Metadata_Aera', is it 'Metadata_Area'"):
        selected(study, query="Metadata_Aera > 60")


def test_nothing_is_said_where_all_are_there(study, tmp_path, caplog):
    (tmp_path / "few.txt").write_text("aaa\n")
    with caplog.at_level(logging.INFO, "deepprofile"):
        selected(study, treatments=str(tmp_path / "few.txt"))
    assert caplog.text == ""


def test_a_query_that_leaves_nothing_is_refused(study):
    with pytest.raises(InputError, match=r"no cell is left by the query.*nothing was changed \(plate, well and site"):
        selected(study, query="Metadata_Site == 1")  # sites are text

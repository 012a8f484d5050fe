import hashlib
import itertools
import json
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cytominer_tools import manifest
from cytominer_tools.errors import InputError
from cytominer_tools.manifest import Manifest, PlateTable, changes, digest, fingerprint

JSON = st.recursive(
    st.none() | st.integers() | st.text() | st.booleans(), lambda s: st.lists(s) | st.dictionaries(st.text(), s)
)


# --- digest, fingerprint, changes
@settings(max_examples=30, deadline=None)
@given(st.dictionaries(st.text(), JSON, min_size=2), st.randoms())
def test_a_digest_knows_values_and_not_the_order_of_keys(value, random):
    items = list(value.items())
    random.shuffle(items)
    assert digest(dict(items)) == digest(value)
    assert digest([value]) != digest(value)
    assert len(digest(value)) == 16


def test_a_digest_is_the_same_on_every_day():
    assert digest({"b": [1, None], "a": "ü"}) == hashlib.sha256(rb'{"a": "\u00fc", "b": [1, null]}').hexdigest()[:16]


def test_a_number_that_json_lacks_is_refused():
    with pytest.raises(ValueError, match="JSON"):
        digest({"a": float("nan")})


def test_a_fingerprint_changes_with_size_time_and_absence(tmp_path):
    root, path = tmp_path / "root", tmp_path / "root" / "a" / "b.tif"
    path.parent.mkdir(parents=True)
    path.write_text("one")
    (tmp_path / "out.tif").write_text("12")
    first = fingerprint([path, tmp_path / "out.tif", root / "no"], root)
    assert [row[:2] for row in first] == [["a/b.tif", 3], [(tmp_path / "out.tif").as_posix(), 2], ["no", -1]]
    assert first[0][2] == path.stat().st_mtime_ns
    path.write_text("four")
    assert fingerprint([path], root) != first[:1]


def test_changes_are_said_by_place():
    old = {"crops": {"size": 128, "mode": "slice"}, "channels": ["DNA"], "seed": 0}
    new = {"crops": {"size": 96, "mode": "slice"}, "channels": ["DNA", "ER"], "layer": "x" * 60}
    assert changes(old, new) == [
        "crops.size: 128 -> 96",
        "channels: ['DNA'] -> ['DNA', 'ER']",
        "seed: 0 -> none",
        f"layer: none -> {'x' * 37}...",
    ]
    assert changes(old, old) == []


# --- manifest
def test_a_manifest_is_read_as_it_was_written(tmp_path):
    one = Manifest.read(tmp_path, "locations")
    assert one.parts == {}
    assert one.expect({"size": (1, 2)}) == []
    key = one.key(["in.csv", 3])
    one.record("B02", key, "B02.parquet", 7, [("B02 site 1", "flat")])
    one.record("A01", key, "A01.parquet")
    assert Manifest.read(tmp_path, "locations") == one
    assert one.parts["B02"].skipped == (("B02 site 1", "flat"),)
    first = (tmp_path / "manifest.json").read_bytes()
    two = Manifest(tmp_path / "two", "locations")
    two.expect({"size": [1, 2]})
    for name in ("A01", "B02"):  # the other order
        two.record(name, key, f"{name}.parquet", one.parts[name].rows, one.parts[name].skipped)
    assert (tmp_path / "two" / "manifest.json").read_bytes() == first


def test_a_part_is_current_by_key_and_file(tmp_path):
    one = Manifest(tmp_path, "s")
    one.record("A01", "key", "a.npz")
    assert not one.is_current("A01", "key")
    (tmp_path / "a.npz").write_text("")
    assert one.is_current("A01", "key")
    assert not one.is_current("A01", "other")
    assert not one.is_current("A02", "key")


def test_a_key_depends_on_inputs_and_settings(tmp_path):
    one = Manifest(tmp_path, "s")
    one.expect({"a": 1})
    first = one.key([1])
    assert one.key([2]) != first
    one.record("A01", first, "a.npz")
    assert one.expect({"a": 1}) == []
    assert one.expect({"a": 2}) == ["a: 1 -> 2"]
    assert one.key([1]) != first


def test_require_names_what_is_lacking_and_the_command(tmp_path):
    one = Manifest(tmp_path, "s")
    with pytest.raises(InputError, match=r"2 of 2 part\(s\) are not made, first A01; run `deepprofile x`"):
        one.require(["A01", "A02"], {"a": 1}, "deepprofile x")
    one.expect({"a": 1})
    one.record("A01", one.key([]), "a.npz")
    one.require(["A01"], {"a": 1}, "deepprofile x")
    with pytest.raises(InputError, match=r"1 of 2 part\(s\) are not made, first A02"):
        one.require(["A01", "A02"], {"a": 1}, "deepprofile x")
    with pytest.raises(InputError, match=r"other settings \(a: 1 -> 2\); run `deepprofile x` again"):
        one.require(["A01"], {"a": 2}, "deepprofile x")
    one.expect({"a": 2})
    one.record("A02", one.key([]), "b.npz")  # A01 is of the settings before
    with pytest.raises(InputError, match="first A01"):
        one.require(["A01", "A02"], {"a": 2}, "deepprofile x")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"format_version": 1}', '{"format_version": 1, "settings": {}, "parts": {"A": {}}}']
)
def test_what_is_no_manifest(text, tmp_path):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(InputError, match=r"manifest\.json: not a manifest; delete"):
        Manifest.read(tmp_path, "s")


def test_a_manifest_of_a_later_version_is_not_called_damaged(tmp_path):
    (tmp_path / "manifest.json").write_text(json.dumps({"format_version": 2, "files": []}))
    with pytest.raises(InputError, match="format version 2, this deepprofile writes 1; update it"):
        Manifest.read(tmp_path, "s")


# --- plate tables
def cells(well, rows=3, seed=0, width=4):
    rng = np.random.default_rng([*well.encode(), seed])
    keys = {
        "Metadata_Well": pa.array([well] * rows, pa.string()),
        "Metadata_Cell": pa.array(range(rows), pa.int64()),
        "Metadata_Location_X": pa.array(rng.random(rows)),
    }
    features = pa.FixedSizeListArray.from_arrays(pa.array(rng.random(rows * width, np.float32)), width)
    return pa.table({**keys, "features": features}).replace_schema_metadata({"card": "c"})


def no_cells(well, width=4):
    """What a well without cells looks like: fewer columns, in another order, one of another type."""
    empty = pa.FixedSizeListArray.from_arrays(pa.array([], pa.float32()), width)
    table = pa.table(
        {"features": empty, "Metadata_Cell": pa.array([], pa.float64()), "Metadata_Well": pa.array([], pa.string())}
    )
    return table.replace_schema_metadata({"card": "c"})


def files(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def make(folder, wells, order=None, finish=True):
    """Write what is not current of `wells`, name -> (key, table), in `order`, and finish."""
    table = PlateTable(folder, "features")
    for well in order or wells:
        key, rows = wells[well]
        if not table.manifest.is_current(well, key):
            table.write(well, key, rows, [(f"{well} site 2", "flat")])
    if finish:
        table.finish(wells)
    return table


WELLS = {
    "A01": ("a", cells("A01")),
    "A02": ("b", no_cells("A02")),
    "B01": ("c", cells("B01", 5)),
    "B02": ("d", cells("B02", 1)),
}


def test_parts_become_one_file_with_a_row_group_a_well(tmp_path):
    table = make(tmp_path, WELLS, finish=False)
    assert sorted(files(tmp_path)) == ["A01.parquet", "A02.parquet", "B01.parquet", "B02.parquet", "manifest.json"]
    assert [table.read(w).equals(t) for w, (_, t) in WELLS.items()] == [True] * 4
    table.finish(WELLS)
    assert sorted(files(tmp_path)) == ["cells.parquet", "manifest.json"]
    with pq.ParquetFile(tmp_path / "cells.parquet") as file:
        assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [3, 5, 1]
        assert file.schema_arrow.metadata[b"card"] == b"c"
    again = PlateTable(tmp_path, "features")
    for well, (key, rows) in WELLS.items():
        assert again.manifest.is_current(well, key)
        assert again.manifest.parts[well].rows == len(rows)
        assert again.manifest.parts[well].skipped == ((f"{well} site 2", "flat"),)
        if len(rows):
            assert again.read(well).equals(rows)
            assert again.read(well, ["features", "Metadata_Cell"]).equals(rows.select(["features", "Metadata_Cell"]))
    assert again.read("A02").schema == cells("A02", 0).schema
    assert again.read("A02", ["Metadata_Well"]).column_names == ["Metadata_Well"]
    whole = pq.read_table(tmp_path / "cells.parquet")
    assert whole.equals(pa.concat_tables([WELLS[w][1] for w in ("A01", "B01", "B02")]))


def test_the_order_of_the_wells_leaves_no_trace(tmp_path):
    expected = None
    for number, order in enumerate(itertools.permutations(WELLS)):
        make(tmp_path / str(number), WELLS, order)
        expected = expected or files(tmp_path / str(number))
        assert files(tmp_path / str(number)) == expected


@pytest.mark.parametrize(
    "earlier", [["A01"], ["A02"], ["B01", "B02"], ["A02", "B02"], ["A01", "A02", "B01", "B02", "C01"]]
)
def test_what_was_merged_before_leaves_no_trace(earlier, tmp_path):
    make(tmp_path / "fresh", WELLS)
    everything = {**WELLS, "C01": ("e", cells("C01"))}
    make(tmp_path / "disturbed", {well: everything[well] for well in earlier})
    make(tmp_path / "disturbed", WELLS)
    assert files(tmp_path / "disturbed") == files(tmp_path / "fresh")


@pytest.mark.parametrize("was", [no_cells("B01"), cells("B01", 8), cells("B01", 5, seed=1)])
@pytest.mark.parametrize("well", ["A01", "A02", "B01"])
def test_a_well_that_changed_inside_the_merged_file(well, was, tmp_path):
    make(tmp_path / "fresh", WELLS)
    make(tmp_path / "changed", WELLS | {well: ("before", was)})
    before = PlateTable(tmp_path / "changed", "features").read(well)
    table = make(tmp_path / "changed", WELLS, finish=False)
    assert sorted(files(tmp_path / "changed")) == [f"{well}.parquet", "cells.parquet", "manifest.json"]
    assert table.read(well).equals(WELLS[well][1])
    assert not table.read(well).equals(before)
    assert table.read("B02").equals(WELLS["B02"][1])
    table.finish(WELLS)
    assert files(tmp_path / "changed") == files(tmp_path / "fresh")


def test_large_wells_leave_no_trace_of_their_parts(tmp_path):
    wells = {w: (w, cells(w, 2500, width=300)) for w in ("A01", "A02")}  # several Parquet pages
    make(tmp_path / "fresh", wells)
    make(tmp_path / "again", {"A02": wells["A02"]})
    make(tmp_path / "again", wells)
    assert files(tmp_path / "again") == files(tmp_path / "fresh")
    assert PlateTable(tmp_path / "again", "features").read("A02").equals(wells["A02"][1])


def test_a_plate_without_any_cell(tmp_path):
    wells = {"A01": ("a", no_cells("A01")), "A02": ("b", no_cells("A02"))}
    table = make(tmp_path, wells)
    assert len(table.read("A02")) == 0
    assert table.manifest.is_current("A02", "b")


def test_to_finish_twice_changes_nothing(tmp_path):
    table = make(tmp_path, WELLS)
    before = files(tmp_path), (tmp_path / "cells.parquet").stat().st_mtime_ns
    table.finish(WELLS)
    PlateTable(tmp_path, "features").finish(WELLS)
    assert (files(tmp_path), (tmp_path / "cells.parquet").stat().st_mtime_ns) == before


def test_a_forgotten_well_is_made_again_when_it_comes_back(tmp_path):
    make(tmp_path, WELLS)
    PlateTable(tmp_path, "features").finish(["A01", "A02"])
    assert set(PlateTable(tmp_path, "features").manifest.parts) == {"A01", "A02"}
    assert make(tmp_path, WELLS).read("B01").equals(WELLS["B01"][1])


def test_one_name_one_file(tmp_path):
    table = make(tmp_path, {"a/b": ("a", cells("x")), "a%2Fb": ("b", cells("y"))}, finish=False)
    assert table.read("a/b").equals(cells("x"))
    assert table.read("a%2Fb").equals(cells("y"))


# --- several processes
def test_a_well_that_another_process_makes_again_is_still_known(tmp_path):
    """It has no record from the moment its file is made anew until that is in place."""
    plate = PlateTable(tmp_path / "plate", "features", tmp_path / "lock")
    plate.write("A01", "a", cells("A01"))
    plate.write("B01", "b", cells("B01"))
    other = PlateTable(tmp_path / "plate", "features", tmp_path / "lock")
    other._record("A01").unlink()
    assert not plate.complete({"A01": "a", "B01": "b"})
    assert plate.manifest.is_current("A01", "a")
    other.write("A01", "a", cells("A01"))
    assert plate.complete({"A01": "a", "B01": "b"})
    assert sorted(files(plate.folder)) == ["cells.parquet", "manifest.json"]
    assert plate.read("A01").equals(cells("A01"))


# --- a kill between any two changes of the disk
class Killed(BaseException):
    pass


@contextmanager
def killed_after(changes, monkeypatch):
    """Let this many changes of the disk happen (a file gets its name, a file goes); counts them in what it yields."""
    happened = []
    rename, unlink = Path.replace, Path.unlink

    def count(act, self, *args, **kwargs):
        if self.name.startswith(".") and act is unlink:
            return act(self, *args, **kwargs)  # what sweep would do
        if len(happened) == changes:
            raise Killed
        happened.append(self.name)
        return act(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", lambda self, *a, **k: count(rename, self, *a, **k))
        patch.setattr(Path, "unlink", lambda self, *a, **k: count(unlink, self, *a, **k))
        try:
            yield happened
        except Killed:
            happened.append("killed")


BEFORE = {
    "A01": ("old", cells("A01", 4)),
    "B01": WELLS["B01"],
    "B02": ("old", no_cells("B02")),
    "C01": ("e", cells("C01")),
}


def runs(folder):
    """From nothing to BEFORE to WELLS: wells that are new, changed, emptied, filled and forgotten."""
    make(folder, BEFORE)
    make(folder, WELLS)


def test_a_kill_at_any_moment_loses_no_finished_well(tmp_path, monkeypatch):
    runs(tmp_path / "fresh")
    expected = files(tmp_path / "fresh")
    known = [*WELLS.values(), *BEFORE.values()]
    for moment in range(99):
        folder = tmp_path / str(moment)
        with killed_after(moment, monkeypatch) as happened:
            runs(folder)
        if "killed" not in happened:
            break
        left = PlateTable(folder, "features")
        for well, part in left.manifest.parts.items():
            assert (folder / part.file).exists(), (moment, well)
            tables = [
                t for key, t in known if key == part.key and (not len(t) or t["Metadata_Well"][0].as_py() == well)
            ]
            rows = left.read(well)
            assert len(rows) == part.rows, (moment, well)
            assert not len(rows) or any(rows.equals(t) for t in tables), (moment, well)
        make(folder, WELLS)
        assert files(folder) == expected, moment
    assert moment > 15


def test_a_well_that_comes_back_after_a_kill_is_not_empty(tmp_path, monkeypatch):
    for moment in range(9):
        folder = tmp_path / str(moment)
        make(folder, WELLS)
        with killed_after(moment, monkeypatch) as happened:
            make(folder, {"A01": WELLS["A01"]})
        assert make(folder, WELLS).read("B01").equals(WELLS["B01"][1]), moment
    assert "killed" not in happened


def test_an_error_in_the_manifest_leaves_the_old_one(tmp_path, monkeypatch):
    make(tmp_path, BEFORE)
    before = files(tmp_path)
    monkeypatch.setattr(Manifest, "save", lambda self: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        make(tmp_path, WELLS)
    now = files(tmp_path)
    assert {name: now[name] for name in before} == before
    monkeypatch.undo()
    monkeypatch.setattr(manifest, "write_parquet", lambda *a: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(InputError, match="disk is full"):
        make(tmp_path, WELLS)
    assert {name: files(tmp_path)[name] for name in before} == before

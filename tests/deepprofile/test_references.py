"""References as text: what they say, where they lead, and what tells that a file has changed."""

import os

import fsspec
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cytominer_tools.errors import InputError
from cytominer_tools.manifest import fingerprint
from deepprofile.references import Reference, fetch, is_url, join, parse, resolve, split_fragment, stamps, with_fragment
from deepprofile.sites import image_fingerprint, site_paths

names = st.text(st.characters(exclude_characters="|", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20)


# --- text
@given(st.lists(names.map(lambda n: f"{n}.tif"), min_size=1, max_size=4), names, st.integers(0, 99))
def test_what_is_written_is_read(files, channel, z):
    reference = Reference(tuple(files), {"c": channel, "z": str(z)})
    assert parse(str(reference)) == reference


@given(names, names)
def test_a_fragment_comes_off_as_it_went_on(name, channel):
    fragment = Reference(("",), {"c": channel}).fragment
    assert split_fragment(with_fragment(f"{name}.tif", fragment)) == (f"{name}.tif", fragment)


@pytest.mark.parametrize(
    "name", ["plate#3/a.tif", "a #1.tif", "a#.tif", "c=1.tif", "s3://b/k.tif?version=3&z=1", "C:/a.tif"]
)
def test_a_name_is_no_choice(name):
    assert parse(name) == Reference((name,), {})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a.tif#z=top", r"a\.tif#z=top: z is 'top', expected a number from 0, max or focus"),
        ("a.tif#z=-1", "z is '-1', expected a number from 0"),
        ("a.tif#t=max", "t is 'max', expected a number from 0"),
        ("a.tif#c=1&c=2", "c is named twice; keep one"),
    ],
)
def test_a_choice_that_cannot_be(text, words):
    with pytest.raises(InputError, match=words):
        parse(text)


def test_where_a_reference_leads(tmp_path):
    assert join(tmp_path, "a/b.tif") == str(tmp_path / "a" / "b.tif")
    assert join(tmp_path, str(tmp_path / "c.tif")) == str(tmp_path / "c.tif")
    assert join("s3://bucket/plate/", "a.tif") == "s3://bucket/plate/a.tif"
    assert join("s3://bucket", str(tmp_path / "c.tif")) == str(tmp_path / "c.tif")
    assert not is_url(r"C:\a.tif")
    assert resolve("s3://b", "z0.tif|memory://z1.tif#c=DNA") == "s3://b/z0.tif|memory://z1.tif#c=DNA"
    assert resolve("s3://b", "a.tif", "max") == "s3://b/a.tif#z=max"
    assert resolve("s3://b", "a.tif#z=3", "max") == "s3://b/a.tif#z=3"


# --- the state of a file
def test_a_plain_file_has_the_fingerprint_of_the_ground_floor(tmp_path):
    path = tmp_path / "a.tif"
    path.write_bytes(b"123")
    missing = tmp_path / "no.tif"
    found = stamps([str(path), str(missing)])
    assert [[p.name, *found[str(p)]] for p in (path, missing)] == fingerprint([path, missing], tmp_path)


def test_a_zarr_image_is_what_lies_below_it(tmp_path):
    image = tmp_path / "p.zarr" / "A" / "1" / "0"
    (image / "0").mkdir(parents=True)
    (image / ".zattrs").write_text("{}")
    (image / "0" / "0.0").write_bytes(b"1234")
    before = stamps([str(image)])[str(image)]
    assert before[0] == 6
    assert stamps([str(image)])[str(image)] == before
    os.utime(image / "0" / "0.0", ns=(1, 1))  # a chunk was written again
    assert stamps([str(image)])[str(image)] != before
    assert stamps([str(tmp_path / "q.zarr")]) == {str(tmp_path / "q.zarr"): (-1, 0)}


def test_a_url_has_a_state():
    files = fsspec.filesystem("memory")
    files.pipe_file("/state/a.tif", b"12")
    before = stamps(["memory://state/a.tif", "memory://state/no.tif"])
    assert before["memory://state/a.tif"][0] == 2
    assert before["memory://state/no.tif"] == (-1, 0)
    assert stamps(["memory://state/a.tif"])["memory://state/a.tif"] == before["memory://state/a.tif"]
    files.pipe_file("/state/a.tif", b"34")  # of the same size
    assert stamps(["memory://state/a.tif"])["memory://state/a.tif"] != before["memory://state/a.tif"]


def test_what_is_chosen_belongs_to_the_fingerprint(images):
    from study_factory import configure

    plain = configure(images)
    sites = pd.DataFrame([{"DNA": "images/P1/A01_s1_DNA.tif", "ER": "z0.tif|z1.tif#c=1", "Mito": "m.tif#z=0"}])
    rows = image_fingerprint(plain, sites)
    assert [row[0] for row in rows] == ["images/P1/A01_s1_DNA.tif", "z0.tif#c=1", "z1.tif#c=1", "m.tif#z=0"]
    assert [row[1] for row in rows[1:]] == [-1, -1, -1]
    section = plain.images.model_copy(update={"projection": "max"})
    projected = plain.model_copy(update={"images": section})
    assert [row[0] for row in image_fingerprint(projected, sites)][2:] == ["z1.tif#c=1&z=max", "m.tif#z=0"]
    assert site_paths(plain, sites.iloc[0])["ER"].endswith("z1.tif#c=1")


# --- errors of file systems
def test_a_url_that_cannot_be_opened():
    with pytest.raises(InputError, match=r"memory://no/a\.tif: no such image"):
        fetch("memory://no/a.tif")
    with pytest.raises(
        InputError, match=r"nosuch://a\.tif: cannot be fetched \(Protocol not known: nosuch\); check the URL"
    ):
        fetch("nosuch://a.tif")
    fsspec.register_implementation("absent", "no_such.Files", clobber=True, errtxt="Install no_such to read these")
    with pytest.raises(InputError, match=r"absent://a\.tif: Install no_such .*pip install 'deepprofile\[s3\]'"):
        fetch("absent://a.tif")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (PermissionError("Forbidden"), r"cannot be fetched \(Forbidden\); check the credentials"),
        (
            type("NoCredentialsError", (Exception,), {})("none"),
            r"give credentials, or for public data .*\"anon\": true",
        ),
        (TimeoutError(), r"cannot be fetched \(TimeoutError\); check the URL and the connection"),
    ],
)
def test_a_file_system_that_refuses(error, words, monkeypatch):
    def refuse(*_, **__):
        raise error

    monkeypatch.setattr(fsspec.get_filesystem_class("memory"), "info", refuse)
    for ask in (fetch, lambda url: stamps([url])):
        with pytest.raises(InputError, match=words):
            ask("memory://x/a.tif")

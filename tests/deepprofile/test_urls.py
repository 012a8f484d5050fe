"""Images behind URLs: in memory, and on S3 as a mock server on this machine plays it."""

import fsspec
import numpy as np
import pandas as pd
import pytest
import tifffile
from study_factory import CHANNELS, configure, edit_index, run

from cytominer_tools.errors import InputError
from deepprofile import check_study, references
from deepprofile.images import read_image, read_site

STACK = np.random.default_rng(0).integers(0, 60000, (6, 40, 60)).astype("uint16")


@pytest.fixture
def memory():
    files = fsspec.filesystem("memory")
    files.store.clear()
    yield files
    files.store.clear()


def in_memory(files, root, folder="study"):
    """Move the images of a study there."""
    for path in sorted((root / "images").rglob("*.tif")):
        files.pipe_file(f"/{folder}/{path.relative_to(root).as_posix()}", path.read_bytes())
        path.unlink()


# --- planes
@pytest.mark.parametrize("name", ["a.tif", "a.ome.tif", "a.png"])
def test_a_plane_behind_a_url(name, memory, tmp_path, monkeypatch):
    path = tmp_path / name
    if name == "a.png":
        import cv2

        cv2.imwrite(str(path), STACK[2])
    else:
        image, metadata = (STACK, {"axes": "ZYX"}) if "ome" in name else (STACK[2], None)
        tifffile.imwrite(path, image, metadata=metadata, compression="lzw")
    memory.pipe_file(f"/x/{name}", path.read_bytes())
    reference = f"memory://x/{name}" + ("#z=2" if "ome" in name else "")
    np.testing.assert_array_equal(read_image(reference), STACK[2])
    monkeypatch.setattr(references, "_WHOLE", 0)  # an open file instead of its bytes
    np.testing.assert_array_equal(read_image(reference), STACK[2])
    memory.pipe_file(f"/x/{name}", path.read_bytes()[:200])
    with pytest.raises(InputError, match=rf"memory://x/{name}: cannot be read, truncated or damaged"):
        read_image(reference)


def test_of_a_large_file_only_a_plane_is_fetched(memory, tmp_path, monkeypatch):
    big = np.random.default_rng(0).integers(0, 60000, (24, 256, 256)).astype("uint16")
    tifffile.imwrite(tmp_path / "a.ome.tif", big, metadata={"axes": "ZYX"}, compression="zlib")
    memory.pipe_file("/x/a.ome.tif", (tmp_path / "a.ome.tif").read_bytes())
    monkeypatch.setattr(references, "_WHOLE", 0)
    read, opened = [], memory.open

    def watched(*args, **settings):
        file = opened(*args, **settings)
        for name in ("read", "readinto"):
            plain = getattr(file, name)

            def counted(what=-1, plain=plain):
                got = plain(what)
                read.append(got if isinstance(got, int) else len(got))
                return got

            monkeypatch.setattr(file, name, counted)
        return file

    monkeypatch.setattr(type(memory), "open", lambda self, *a, **k: watched(*a, **k))
    np.testing.assert_array_equal(read_image("memory://x/a.ome.tif#z=20"), big[20])
    assert 0 < sum(read) < 2 * big[20].nbytes


def test_an_address_with_a_question(memory):
    with pytest.raises(InputError, match="no such image"):
        read_image("memory://x/a.tif?signature=1.x")
    with pytest.raises(InputError, match=r"memory://x/a\.czi: not an image of a known format"):
        read_image("memory://x/a.czi")


# --- studies
def features(study):
    return {p.relative_to(study.features): pd.read_parquet(p) for p in sorted(study.features.rglob("cells.parquet"))}


@pytest.mark.parametrize("how", ["root", "index"])
def test_a_study_in_memory(how, fresh, finished, memory):
    in_memory(memory, fresh.root)
    if how == "index":
        edit_index(fresh.root, lambda t: t.assign(**{c: "memory://study/" + t[c] for c in CHANNELS}))
    study = configure(fresh.root, images={"root": "memory://study"} if how == "root" else {})
    run(study)
    made, expected = features(study), features(finished)
    assert made.keys() == expected.keys()
    for name, table in made.items():
        pd.testing.assert_frame_equal(table, expected[name])
    again = run(study)
    assert all(again[stage].made == 0 for stage in ("illumination", "locate", "profile"))
    changed = "/study/images/P1/B01_s1_ER.tif"
    memory.pipe_file(changed, memory.cat_file(changed))
    assert run(study)["profile"].made == 1


def test_check_of_a_study_in_memory(fresh, memory):
    in_memory(memory, fresh.root)
    memory.rm_file("/study/images/P1/B01_s1_ER.tif")
    problems = [p for p in check_study(configure(fresh.root, images={"root": "memory://study"})) if p.level == "error"]
    assert [str(p) for p in problems] == ["memory://study/images/P1/B01_s1_ER.tif: no such image"]


# --- S3
@pytest.fixture(scope="module")
def bucket():
    """A bucket on a mock S3 server of this machine."""
    pytest.importorskip("s3fs", reason="the extra s3 is not installed")
    server = pytest.importorskip("moto.server", reason="moto[s3,server] is not installed").ThreadedMotoServer
    mock = server(ip_address="127.0.0.1", port=0)
    mock.start()
    host, port = mock.get_host_and_port()
    options = {"key": "test", "secret": "test", "endpoint_url": f"http://{host}:{port}"}
    before = fsspec.config.conf.get("s3")
    fsspec.config.conf["s3"] = options  # as the environment variable FSSPEC_S3 does
    files = fsspec.filesystem("s3", **options)
    files.mkdir("plates")
    yield files
    if before is None:
        del fsspec.config.conf["s3"]
    else:
        fsspec.config.conf["s3"] = before
    type(files).clear_instance_cache()
    mock.stop()


def test_a_site_on_s3(bucket, tmp_path):
    tifffile.imwrite(tmp_path / "a.ome.tif", STACK, metadata={"axes": "CYX"}, compression="lzw")
    bucket.put_file(str(tmp_path / "a.ome.tif"), "plates/P1/a.ome.tif")
    site = read_site({f"c{c}": f"s3://plates/P1/a.ome.tif#c={c}" for c in (4, 1)})
    np.testing.assert_array_equal(site, np.moveaxis(STACK[[4, 1]], 0, -1))
    with pytest.raises(InputError, match=r"s3://plates/P1/no\.tif: no such image"):
        read_image("s3://plates/P1/no.tif")
    with pytest.raises(InputError, match=r"s3://nobucket/P1/no\.tif: no such image"):
        read_image("s3://nobucket/P1/no.tif")


def test_the_state_of_an_object(bucket):
    bucket.pipe_file("plates/P2/a.tif", b"12")
    url = "s3://plates/P2/a.tif"
    before = references.stamps([url, "s3://plates/P2/no.tif", "s3://plates/none/no.tif"])
    assert before[url][0] == 2
    assert before["s3://plates/P2/no.tif"] == before["s3://plates/none/no.tif"] == (-1, 0)
    bucket.pipe_file("plates/P2/a.tif", b"34")
    bucket.invalidate_cache()  # another process
    assert references.stamps([url])[url] != before[url]


@pytest.mark.slow
def test_a_study_on_s3(bucket, fresh, finished):
    for path in sorted((fresh.root / "images").rglob("*.tif")):
        bucket.put_file(str(path), f"plates/{path.relative_to(fresh.root).as_posix()}")
        path.unlink()
    study = configure(fresh.root, images={"root": "s3://plates"})
    run(study)
    made, expected = features(study), features(finished)
    assert made.keys() == expected.keys()
    for name, table in made.items():
        pd.testing.assert_frame_equal(table, expected[name])

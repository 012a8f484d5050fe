"""Files of many planes: each plane is found, alone it is read, and what is unclear is asked for."""

import cv2
import numpy as np
import pandas as pd
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from study_factory import CHANNELS, SETTINGS, configure, edit_index, run

from cytominer_tools.errors import InputError
from deepprofile import images
from deepprofile.images import read_image, read_site
from deepprofile.planes import sharpness

Z, C, H, W = 3, 4, 40, 60
NAMES = ["DNA", "ER", "RNA & AGP", "Mito"]
STACK = np.random.default_rng(0).integers(0, 60000, (Z, C, H, W)).astype("uint16")


def ome(path, **how):
    tifffile.imwrite(path, STACK, metadata={"axes": "ZCYX", "Channel": {"Name": NAMES}}, **how)


def imagej(path, **how):
    tifffile.imwrite(path, STACK, imagej=True, metadata={"axes": "ZCYX"}, **how)


HYPERSTACKS = {
    "plain.ome.tif": lambda p: ome(p),
    "lzw.ome.tif": lambda p: ome(p, compression="lzw"),
    "predicted.ome.tiff": lambda p: ome(p, compression="lzw", predictor=True),
    "zlib.ome.tif": lambda p: ome(p, compression="zlib", rowsperstrip=7),
    "tiled.ome.tif": lambda p: ome(p, compression="zlib", tile=(16, 16)),
    "big-endian.ome.tif": lambda p: ome(p, byteorder=">", bigtiff=True),
    "pyramid.ome.tif": lambda p: pyramid(p),
    "imagej.tif": lambda p: imagej(p),
    "one-directory.tif": lambda p: imagej(p, truncate=True),
    "axes.tif": lambda p: tifffile.imwrite(
        p, STACK, photometric="minisblack", metadata={"axes": "ZCYX"}, compression="lzw"
    ),
}


def pyramid(path):
    with tifffile.TiffWriter(path) as file:
        metadata = {"axes": "ZCYX", "Channel": {"Name": NAMES}}
        file.write(STACK, subifds=1, metadata=metadata, tile=(16, 16), compression="lzw")
        file.write(STACK[..., ::2, ::2], subfiletype=1, tile=(16, 16), compression="lzw")


# --- every plane of every kind of file
@pytest.mark.parametrize("name", HYPERSTACKS)
def test_each_plane_is_itself(name, tmp_path):
    HYPERSTACKS[name](tmp_path / name)
    for z in range(Z):
        for c in range(C):
            read = read_image(f"{tmp_path / name}#c={c}&z={z}")
            np.testing.assert_array_equal(read, STACK[z, c])
            assert read.dtype == "uint16"
            assert read.dtype.isnative
    np.testing.assert_array_equal(read_image(f"{tmp_path / name}#c=1&z=max"), STACK[:, 1].max(axis=0))
    site = read_site({n: f"{tmp_path / name}#z=2&c={c}" for c, n in enumerate(NAMES)})
    np.testing.assert_array_equal(site, np.moveaxis(STACK[2], 0, -1))


@pytest.mark.parametrize(
    "how", [{}, {"metadata": None}, {"compression": "lzw"}, {"compression": "zlib", "metadata": None}]
)
def test_pages_without_a_word_are_what_is_asked_for(how, tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, STACK[0], photometric="minisblack", **how)
    for i in range(C):
        np.testing.assert_array_equal(read_image(f"{path}#c={i}"), STACK[0, i])
        np.testing.assert_array_equal(read_image(f"{path}#z={i}"), STACK[0, i])
        # a projection of the study finds nothing to project in a file of channels
        np.testing.assert_array_equal(read_image(f"{path}#c={i}&z=max"), STACK[0, i])
    np.testing.assert_array_equal(read_image(f"{path}#z=max"), STACK[0].max(axis=0))
    with pytest.raises(
        InputError, match=r"a\.tif: shape \(4, 40, 60\), .* what its pages are; name a channel with #c=0, or a z plane"
    ):
        read_image(path)
    with pytest.raises(InputError, match="does not say what its pages are"):
        read_image(f"{path}#c=0&z=1")


def test_pages_written_one_by_one(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for plane in STACK[0]:
            file.write(plane)
    np.testing.assert_array_equal(read_image(f"{tmp_path / 'a.tif'}#c=2"), STACK[0, 2])
    with pytest.raises(InputError, match=r"shape \(4, 40, 60\)"):
        read_image(tmp_path / "a.tif")


def test_pages_of_pillow(tmp_path):
    image = pytest.importorskip("PIL.Image")
    first, *others = [image.fromarray(plane) for plane in STACK[0]]
    first.save(tmp_path / "a.tif", save_all=True, append_images=others, compression="tiff_lzw")
    np.testing.assert_array_equal(read_image(f"{tmp_path / 'a.tif'}#z=3"), STACK[0, 3])


@pytest.mark.parametrize("planar", ["separate", "contig"])
def test_channels_as_the_samples_of_one_page(planar, tmp_path):
    path = tmp_path / "a.tif"
    pixels = STACK[0] if planar == "separate" else np.ascontiguousarray(np.moveaxis(STACK[0], 0, -1))
    tifffile.imwrite(path, pixels, photometric="minisblack", planarconfig=planar, compression="zlib")
    for c in range(C):
        np.testing.assert_array_equal(read_image(f"{path}#c={c}"), STACK[0, c])
    with pytest.raises(InputError, match="expected one grey plane; name one of 4 colours with #c=0"):
        read_image(path)


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_a_colour_is_a_channel(name, tmp_path):
    pixels = np.ascontiguousarray(np.moveaxis(STACK[0, :3], 0, -1))
    if name == "a.png":
        cv2.imwrite(str(tmp_path / name), pixels[..., ::-1])  # as OpenCV has it: blue, green, red
    else:
        tifffile.imwrite(tmp_path / name, pixels, photometric="rgb")
    for c in range(3):
        np.testing.assert_array_equal(read_image(f"{tmp_path / name}#c={c}"), STACK[0, c])


def test_images_of_one_file(tmp_path):
    path = tmp_path / "a.ome.tif"
    with tifffile.TiffWriter(path) as file:
        for number, site in enumerate(STACK):
            names = NAMES if number == 1 else ["a", "b", "c", "d"]
            file.write(site, photometric="minisblack", metadata={"axes": "CYX", "Channel": {"Name": names}})
    np.testing.assert_array_equal(read_image(f"{path}#s=1&c=DNA"), STACK[1, 0])
    np.testing.assert_array_equal(read_image(f"{path}#s=2&c=d"), STACK[2, 3])
    with pytest.raises(InputError, match=r"holds 3 images, .*name one with #s=0"):
        read_image(f"{path}#c=0")
    with pytest.raises(InputError, match=r"s=3, but it holds 3 image\(s\); name one from 0 to 2"):
        read_image(f"{path}#s=3&c=0")


def test_time_points(tmp_path):
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, STACK, metadata={"axes": "TCYX"})
    np.testing.assert_array_equal(read_image(f"{path}#t=1&c=2"), STACK[1, 2])
    with pytest.raises(InputError, match=r"holds 3 time points; name one with #t=0"):
        read_image(f"{path}#c=2&z=max")


# --- channels by name
def test_a_channel_by_its_name(tmp_path):
    path = tmp_path / "a.ome.tif"
    ome(path)
    for c, name in enumerate(["DNA", "ER", "RNA %26 AGP", "Mito"]):
        np.testing.assert_array_equal(read_image(f"{path}#c={name}&z=0"), STACK[0, c])
    with pytest.raises(InputError, match=r"no channel is called 'Mitos'; is it 'Mito'\?"):
        read_image(f"{path}#c=Mitos&z=0")
    with pytest.raises(InputError, match="no channel is called 'x'; it holds DNA, ER, RNA & AGP, Mito"):
        read_image(f"{path}#c=x&z=0")
    with pytest.raises(InputError, match=r"c=4, but it holds 4 channels \(0 to 3\)"):
        read_image(f"{path}#c=4&z=0")
    imagej(tmp_path / "a.tif")
    with pytest.raises(InputError, match="its channels have no names, so none is called 'DNA'; give a number, 0 to 3"):
        read_image(f"{tmp_path / 'a.tif'}#c=DNA&z=0")
    tifffile.imwrite(path, STACK[0], metadata={"axes": "CYX", "Channel": {"Name": ["a", "a", "b", "c"]}})
    with pytest.raises(InputError, match="2 channels are called 'a'; give the number"):
        read_image(f"{path}#c=a")


@pytest.mark.parametrize(
    ("fragment", "words"),
    [
        ("", r"holds 3 z planes; set images\.projection to max or focus, or name one with #z=0"),
        ("#z=0", r"holds 4 channels \(DNA, ER, RNA & AGP, Mito\); name one with #c=0"),
        ("#c=0", "holds 3 z planes; set images.projection"),
        ("#c=0&z=3", r"z=3, but it holds 3 z planes \(0 to 2\)"),
        ("#c=0&z=0&t=1", r"t=1, but it holds 1 time point \(0\)"),
        ("#c=0&z=0&s=1", r"s=1, but it holds 1 image"),
    ],
)
def test_what_is_unclear_is_asked_for(fragment, words, tmp_path):
    ome(tmp_path / "a.ome.tif")
    with pytest.raises(InputError, match=rf"a\.ome\.tif: {words}"):
        read_image(f"{tmp_path / 'a.ome.tif'}{fragment}")


# --- only what is needed
@pytest.mark.parametrize("name", ["plain.ome.tif", "lzw.ome.tif", "zlib.ome.tif", "imagej.tif", "axes.tif"])
def test_one_plane_costs_one_page(name, tmp_path, monkeypatch):
    HYPERSTACKS[name](tmp_path / name)
    pages, opened = [], []
    page = tifffile.TiffPage.asarray  # which that of TiffFrame calls
    monkeypatch.setattr(tifffile.TiffPage, "asarray", lambda self, **k: pages.append(self.index) or page(self, **k))
    decode, block, file = images.imagecodecs.tiff_decode, tifffile.FileHandle.read_array, tifffile.TiffFile
    monkeypatch.setattr(images.imagecodecs, "tiff_decode", lambda d, i: pages.append(i) or decode(d, i))
    monkeypatch.setattr(
        tifffile.FileHandle, "read_array",
        lambda self, dtype, count, offset: pages.append(count) or block(self, dtype, count, offset),
    )  # fmt: skip
    monkeypatch.setattr(images.tifffile, "TiffFile", lambda *a, **k: opened.append(a) or file(*a, **k))
    np.testing.assert_array_equal(read_image(f"{tmp_path / name}#c=2&z=1"), STACK[1, 2])
    assert pages in ([6], [H * W])
    pages.clear()
    read_image(f"{tmp_path / name}#c=2&z=max")
    assert pages in ([2, 6, 10], [H * W] * 3)
    opened.clear()
    read_site({n: f"{tmp_path / name}#z=2&c={c}" for c, n in enumerate(NAMES)})
    assert len(opened) == 1


# --- projections
def focus_stack(rng, depth=7, sharp=3, photons=60.0):
    """Planes of one scene, the more blurred the further from `sharp`; the same light in each, and its shot noise."""
    scene = np.zeros((96, 96))
    scene[tuple(rng.integers(8, 88, (2, 25)))] = 1
    scene = cv2.GaussianBlur(scene, (0, 0), 2.0)
    planes = [cv2.GaussianBlur(scene, (0, 0), 0.1 + 1.2 * abs(z - sharp)) for z in range(depth)]
    return np.array([rng.poisson(photons * plane / scene.max() + 10) for plane in planes]).astype("uint16")


@given(arrays("uint16", st.tuples(st.integers(1, 5), st.just(4), st.just(5))))
def test_the_maximum_is_over_every_plane_and_one_of_them(stack):
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.tif"
        tifffile.imwrite(path, stack, metadata={"axes": "ZYX"}, photometric="minisblack")
        read = read_image(f"{path}#z=max")
    assert (read >= stack).all()
    assert (read == stack).any(axis=0).all()


@pytest.mark.parametrize("sharp", range(7))
@pytest.mark.parametrize("photons", [15.0, 60.0, 2000.0])
def test_focus_is_the_sharp_plane(sharp, photons, tmp_path):
    stack = focus_stack(np.random.default_rng(sharp), sharp=sharp, photons=photons)
    tifffile.imwrite(tmp_path / "a.tif", stack, metadata={"axes": "ZYX"}, photometric="minisblack")
    np.testing.assert_array_equal(read_image(f"{tmp_path / 'a.tif'}#z=focus"), stack[sharp])


def test_a_lamp_that_fades_does_not_choose():
    stack = focus_stack(np.random.default_rng(1), sharp=5).astype("float32")
    fading = [sharpness(plane * gain) for plane, gain in zip(stack, np.linspace(1, 0.3, 7), strict=True)]
    assert np.argmax(fading) == 5
    np.testing.assert_allclose(fading, [sharpness(plane) for plane in stack], rtol=1e-4)
    assert sharpness(np.zeros((5, 5), "uint16")) == 0


def test_of_equal_planes_the_lowest(tmp_path):
    stack = focus_stack(np.random.default_rng(0), depth=3, sharp=0)
    mirrored = np.stack([stack[2], stack[0], stack[0][::-1, ::-1], stack[1]])
    tifffile.imwrite(tmp_path / "a.tif", mirrored, metadata={"axes": "ZYX"}, photometric="minisblack")
    chosen = read_image(f"{tmp_path / 'a.tif'}#z=focus")
    best = 1 if sharpness(mirrored[1]) >= sharpness(mirrored[2]) else 2  # float sums may differ in the last digit
    np.testing.assert_array_equal(chosen, mirrored[best])
    tifffile.imwrite(tmp_path / "a.tif", stack[[1, 0, 0]], metadata={"axes": "ZYX"}, photometric="minisblack")
    np.testing.assert_array_equal(read_image(f"{tmp_path / 'a.tif'}#z=focus"), stack[0])


def test_the_files_of_a_stack(tmp_path):
    stack = focus_stack(np.random.default_rng(2), depth=3, sharp=1)
    for z, plane in enumerate(stack):
        tifffile.imwrite(tmp_path / f"z{z}.tif", plane)
    joined = "|".join(str(tmp_path / f"z{z}.tif") for z in range(3))
    np.testing.assert_array_equal(read_image(f"{joined}#z=max"), stack.max(axis=0))
    np.testing.assert_array_equal(read_image(f"{joined}#z=focus"), stack[1])
    np.testing.assert_array_equal(read_image(f"{joined}#z=2"), stack[2])
    with pytest.raises(InputError, match=r"z0\.tif: one of 3 z planes; set images\.projection to max or focus"):
        read_image(joined)
    with pytest.raises(InputError, match=r"z=3, but there are 3 z planes \(0 to 2\)"):
        read_image(f"{joined}#z=3")
    tifffile.imwrite(tmp_path / "z1.tif", stack[1, :50])
    with pytest.raises(InputError, match=r"z1\.tif: 50 x 96 pixels, the first z plane 96 x 96"):
        read_image(f"{joined}#z=max")
    (tmp_path / "z1.tif").unlink()
    with pytest.raises(InputError, match=r"z1\.tif: no such image"):
        read_image(f"{joined}#z=max")


# --- damaged files
@pytest.mark.parametrize("share", [0, 0.02, 0.3, 0.6, 0.9, 0.99])
@pytest.mark.parametrize("name", ["plain.ome.tif", "lzw.ome.tif", "zlib.ome.tif", "imagej.tif", "one-directory.tif"])
def test_a_truncated_file(name, share, tmp_path):
    path = tmp_path / name
    HYPERSTACKS[name](path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    for fragment in ("#c=3&z=2", "#c=0&z=max"):
        with pytest.raises(InputError, match=rf"{name}: cannot be read, truncated or damaged"):
            read_image(f"{path}{fragment}")


@pytest.mark.parametrize("pages", [1, 2])
def test_a_stack_that_lost_its_last_pages_is_not_projected(pages, tmp_path):
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as file:
        for plane in STACK[0]:
            file.write(plane, compression="lzw", metadata=None)
    np.testing.assert_array_equal(read_image(f"{path}#z=max"), STACK[0].max(axis=0))
    with tifffile.TiffFile(path) as file:
        end = file.pages[pages].offset
    path.write_bytes(path.read_bytes()[: end - 4])
    with pytest.raises(
        InputError, match=r"a\.tif: cannot be read, truncated or damaged \(its last pages are missing\)"
    ):
        read_image(f"{path}#z=max")


@pytest.mark.parametrize("rows", [1, 8, 40])
@pytest.mark.parametrize("predictor", [False, True])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_lzw_is_decoded_as_tifffile_does(dtype, predictor, rows, tmp_path):
    for byteorder in "<>":
        path = tmp_path / "a.tif"
        plane = STACK[0, 0].astype(dtype)
        tifffile.imwrite(path, plane, compression="lzw", predictor=predictor, rowsperstrip=rows, byteorder=byteorder)
        np.testing.assert_array_equal(read_image(path), plane)
        np.testing.assert_array_equal(read_image(path), tifffile.imread(path))
    whole = path.read_bytes()
    middle = len(whole) - len(whole) // 3  # what is zero ends a strip early
    path.write_bytes(whole[:middle] + bytes(40) + whole[middle + 40 :])
    try:
        changed = read_image(path)
    except InputError:
        return
    assert changed.shape == plane.shape


# --- a whole study
def one_file_a_site(root, write):
    """Replace the three files of each site by one that `write` makes; the index then has one column."""
    rows = pd.read_csv(root / "index.csv")
    names = []
    for row in rows.to_dict("records"):
        name = row["DNA"].replace("_DNA.tif", ".ome.tif")
        write(root / name, np.stack([tifffile.imread(root / row[channel]) for channel in CHANNELS]))
        names.append(name)
    edit_index(root, lambda table: table.drop(columns=list(CHANNELS)).assign(FileName=names))
    for path in (root / "images").rglob("*_s?_*.tif"):
        path.unlink()


def features(study):
    return {p.relative_to(study.features): pd.read_parquet(p) for p in sorted(study.features.rglob("cells.parquet"))}


@pytest.mark.parametrize("projection", [None, "max"])
def test_one_file_a_site_gives_the_same_features(projection, fresh, finished):
    def write(path, planes):
        if projection:  # the dimmer plane is not seen
            planes = np.stack([planes // 2, planes])
        tifffile.imwrite(path, planes, metadata={"axes": "ZCYX"[-planes.ndim :], "Channel": {"Name": list(CHANNELS)}})

    one_file_a_site(fresh.root, write)
    study = configure(
        fresh.root,
        channels={"DNA": "FileName#c=0", "ER": "FileName#c=ER", "Mito": "FileName#c=2"},
        images={"projection": projection} if projection else {},
    )
    run(study)
    made, expected = features(study), features(finished)
    assert made.keys() == expected.keys()
    assert made
    for name, table in made.items():
        pd.testing.assert_frame_equal(table, expected[name])


def test_check_says_what_is_wrong_with_a_file_of_many(fresh):
    from deepprofile import check_study

    one_file_a_site(fresh.root, lambda path, planes: tifffile.imwrite(path, planes, metadata={"axes": "CYX"}))
    (fresh.root / "images" / "P1" / "A01_s1.ome.tif").unlink()
    channels = {"DNA": "FileName#c=0", "ER": "FileName#c=1", "Mito": "FileName#c=3"}
    said = [str(p) for p in check_study(configure(fresh.root, channels=channels)) if p.level == "error"]
    assert sum("A01_s1.ome.tif: no such image" in one for one in said) == 3
    assert sum("c=3, but it holds 3 channels (0 to 2); change the number" in one for one in said) == 23
    assert SETTINGS["channels"] == {name: name for name in CHANNELS}

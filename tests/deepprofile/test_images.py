import cv2
import numpy as np
import pytest
import tifffile

from cytominer_tools.errors import InputError
from deepprofile import images
from deepprofile.images import read_image, read_site


def picture(dtype="uint16", shape=(40, 60)):
    values = np.random.default_rng(0).integers(0, 256 if dtype == "uint8" else 65536, shape)
    return values.astype(dtype) + (0.25 if dtype == "float32" else 0)


def write(path, image, **how):
    if path.suffix.lower().startswith(".tif"):
        tifffile.imwrite(path, image, **how)
    else:
        path.write_bytes(cv2.imencode(path.suffix, image)[1].tobytes())
    return path


# --- what is written is read
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("compression", [None, "lzw", "zlib", "zstd"])
def test_tiff_of_any_compression(compression, dtype, tmp_path):
    image = picture(dtype).astype(dtype)
    read = read_image(write(tmp_path / "a.tiff", image, compression=compression, rowsperstrip=8))
    np.testing.assert_array_equal(read, image)
    assert read.dtype == dtype


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_png(dtype, tmp_path):
    image = picture(dtype).astype(dtype)
    read = read_image(write(tmp_path / "a.PNG", image))
    np.testing.assert_array_equal(read, image)
    assert read.dtype == dtype


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".JPEG"])
def test_jpeg(suffix, tmp_path):
    smooth = np.add.outer(np.arange(40), np.arange(60)).astype("uint8")
    read = read_image(write(tmp_path / f"a{suffix}", smooth))
    assert read.dtype == "uint8"
    assert np.abs(read.astype(int) - smooth).max() <= 4


@pytest.mark.parametrize("dtype", ["float64", "int16", "uint32"])
def test_other_numbers_become_float32(dtype, tmp_path):
    image = np.arange(200).reshape(10, 20).astype(dtype)
    read = read_image(write(tmp_path / "a.tif", image))
    np.testing.assert_array_equal(read, image)
    assert read.dtype == "float32"


@pytest.mark.parametrize("name", ["a.tif", "a.png"])
def test_a_grey_image_saved_as_rgb(name, tmp_path):
    grey = picture("uint8").astype("uint8")
    np.testing.assert_array_equal(read_image(write(tmp_path / name, np.stack([grey] * 3, axis=-1))), grey)
    colour = np.stack([grey, grey, grey[::-1]], axis=-1)
    with pytest.raises(InputError, match=r"shape \(40, 60, 3\), expected one grey plane"):
        read_image(write(tmp_path / name, colour))


def test_several_planes_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"shape \(5, 40, 60\), expected one grey plane, .*#c=0, or .* #z=0"):
        read_image(write(tmp_path / "a.tif", picture(shape=(5, 40, 60)), photometric="minisblack"))
    assert read_image(write(tmp_path / "b.tif", picture(shape=(1, 1, 40, 60)))).shape == (40, 60)


def test_a_name_in_any_script(tmp_path):
    folder = tmp_path / "Größe 细胞"
    folder.mkdir()
    for name in ("é.tif", "μm.png", "клетка.jpg"):
        assert read_image(write(folder / name, picture("uint8").astype("uint8"))).shape == (40, 60)


# --- what cannot be read says so
@pytest.mark.parametrize("share", [0, 0.01, 0.3, 0.6, 0.9, 0.97])
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "none.tif", "lzw.tif", "zlib.tif", "zstd.tif"])
def test_a_truncated_file(name, share, tmp_path):
    how = {"compression": None if name == "none.tif" else name[:-4], "rowsperstrip": 8} if name.endswith("tif") else {}
    path = write(tmp_path / name, picture("uint8").astype("uint8"), **how)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(InputError, match=rf"{name}: cannot be read, truncated or damaged .*copy it again"):
        read_image(path)


def test_a_tiff_that_is_cut_off_before_its_directory(tmp_path):
    path = write(tmp_path / "a.tif", picture())
    raw = bytearray(path.read_bytes())
    raw[4:8] = (len(raw) + 99).to_bytes(4, "little")  # many cameras put the directory last
    path.write_bytes(raw)
    with pytest.raises(InputError, match="truncated or damaged"):
        read_image(path)


def test_a_truncated_jpeg_where_the_decoder_does_not_mind(tmp_path, monkeypatch):
    monkeypatch.setattr(images.cv2, "imdecode", lambda *_: picture("uint8").astype("uint8"))  # OpenCV before 5
    path = write(tmp_path / "a.jpg", picture("uint8").astype("uint8"))
    assert read_image(path).shape == (40, 60)
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(InputError, match="truncated or damaged"):
        read_image(path)


def test_a_file_that_is_something_else(tmp_path):
    for name in ("a.tif", "a.png", "a.jpg"):
        (tmp_path / name).write_text("<html>404 not found</html>")
        with pytest.raises(InputError, match="cannot be read"):
            read_image(tmp_path / name)
    (tmp_path / "a.czi").write_text("")
    with pytest.raises(InputError, match=r"a\.czi: not an image of a known format \(\.tif, \.tiff, \.png"):
        read_image(tmp_path / "a.czi")


def test_a_missing_file_and_a_folder(tmp_path):
    (tmp_path / "d.tif").mkdir()
    for name in ("no.tif", "d.tif"):
        with pytest.raises(InputError, match=f"{name}: no such image"):
            read_image(tmp_path / name)


# --- sites
def site(tmp_path, *planes):
    return {f"c{i}": write(tmp_path / f"{i}.tif", plane) for i, plane in enumerate(planes)}


def test_channels_are_stacked_in_the_order_asked_for(tmp_path):
    one, two = picture(), picture()[::-1]
    paths = site(tmp_path, one, two)
    np.testing.assert_array_equal(read_site(paths), np.stack([one, two], axis=-1))
    np.testing.assert_array_equal(read_site({"b": paths["c1"], "a": paths["c0"]}, [40, 60])[..., 0], two)
    assert read_site(paths).dtype == "uint16"


def test_channels_of_two_types_become_float32(tmp_path):
    mixed = read_site(site(tmp_path, picture("uint16"), picture("float32")))
    assert mixed.dtype == "float32"
    np.testing.assert_array_equal(mixed[..., 0], picture("uint16"))


def test_a_channel_of_another_size(tmp_path):
    paths = site(tmp_path, picture(), picture(shape=(60, 40)))
    with pytest.raises(InputError, match=r"1\.tif: c1 is 60 x 40 pixels, expected 40 x 60 \(height x width\)"):
        read_site(paths)
    with pytest.raises(InputError, match=r"0\.tif: c0 is 40 x 60 pixels, expected 60 x 40"):
        read_site(paths, (60, 40))


def test_a_flat_channel(tmp_path):
    with pytest.raises(InputError, match=r"1\.tif: c1 is flat, every pixel is 7; look"):
        read_site(site(tmp_path, picture(), np.full((40, 60), 7, "uint16")))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_pixel_that_is_no_number(value, tmp_path):
    bad = picture("float32").astype("float32")
    bad[3, 4] = value
    with pytest.raises(InputError, match=r"0\.tif: c0 holds NaN or infinite pixels"):
        read_site(site(tmp_path, bad))


@pytest.mark.data
def test_a_real_site(data):
    folder = data / "cpg0000_BR00116991" / "A01-1"
    image = read_site({f"ch{c}": folder / f"r01c01f01p01-ch{c}sk1fk1fl1.tiff" for c in range(1, 6)}, (1080, 1080))
    assert image.shape == (1080, 1080, 5)
    assert image.dtype == "uint16"
    for c in range(5):
        np.testing.assert_array_equal(image[..., c], tifffile.imread(folder / f"r01c01f01p01-ch{c + 1}sk1fk1fl1.tiff"))

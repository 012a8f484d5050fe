"""Images in: the planes that references name, of TIFF (any compression, pages, OME, ImageJ), PNG, JPEG and OME-Zarr."""

import io
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import cv2
import imagecodecs
import numpy as np
import tifffile

from cytominer_tools.errors import InputError
from deepprofile.ome_zarr import ZarrImage
from deepprofile.planes import WHERE, Z_MEND, Source, Unclear, choose, grey, sharpness
from deepprofile.references import PROJECTIONS, Reference, fetch, is_url, is_zarr, parse

SUFFIXES = (".tif", ".tiff", ".png", ".jpg", ".jpeg")
_GREY = (tifffile.PHOTOMETRIC.MINISBLACK, tifffile.PHOTOMETRIC.MINISWHITE)


def read_image(reference: str | Path) -> np.ndarray:
    """One grey plane in its own counts.

    Parameters
    ----------
    reference : str or Path
        A path or a URL, and which plane of what stands there (`deepprofile.references`). Of a large file only that
        plane is read.

    Returns
    -------
    array, shape (H, W)
        uint8, uint16 or float32 (any other number type becomes float32).

    Raises
    ------
    InputError
        The file is missing, truncated, of another format, or holds several planes and none is named.
    """
    parsed = parse(str(reference))
    with ExitStack() as stack:
        return _read(parsed, lambda file: stack.enter_context(_open(file, parsed.chosen)))


def read_site(references: Mapping[str, str | Path], size: Sequence[int] | None = None) -> np.ndarray:
    """The channels of one site, stacked in the order of `references`.

    Parameters
    ----------
    references : channel name -> reference
        A path or a URL, as `read_image` takes them; a file that several channels name is opened once.
    size : (height, width) in pixels, optional
        What every image must have; by default that of the first channel.

    Returns
    -------
    array, shape (H, W, C)
        The type of the images; where the channels differ, the narrowest that holds them all.

    Raises
    ------
    InputError
        An image cannot be read, has another size, is flat (one value everywhere) or holds NaN or infinity.
    """
    parsed = {channel: parse(str(reference)) for channel, reference in references.items()}
    times = Counter((file, one.chosen.get("s")) for one in parsed.values() for file in one.files)
    planes = []
    with ExitStack() as site:
        shared: dict[tuple[str, str | None], Source] = {}
        for channel, one in parsed.items():
            with ExitStack() as alone:

                def opened(file: str, one: Reference = one, alone: ExitStack = alone) -> Source:
                    key = (file, one.chosen.get("s"))
                    if times[key] == 1:
                        return alone.enter_context(_open(file, one.chosen))
                    if key not in shared:
                        shared[key] = site.enter_context(_open(file, one.chosen))
                    return shared[key]

                plane = _read(one, opened)
            size = size or plane.shape
            if plane.shape != tuple(size):
                raise InputError(
                    f"{one}: {channel} is {size_text(plane.shape)} pixels, expected {size_text(size)} (height x width)"
                )
            low, high = plane.min(), plane.max()
            if not (np.isfinite(low) and np.isfinite(high)):
                raise InputError(f"{one}: {channel} holds NaN or infinite pixels; export it again")
            if low == high:
                raise InputError(f"{one}: {channel} is flat, every pixel is {low}; look at the image")
            planes.append(plane)
    return np.stack(planes, axis=-1)


class _Picture(Source):
    """A PNG or JPEG; colours are the axis S."""

    def __init__(self, raw: bytes, suffix: str):
        image = imagecodecs.png_decode(raw) if suffix == ".png" else _jpeg(raw)
        if image.ndim == 3:
            self.axes, self.shape = "S", (image.shape[2],)
        self.image, self.whole = image, image.shape

    def plane(self, index: tuple[int, ...]) -> np.ndarray:
        return self.image[..., index[0]] if index else self.image


class _Tiff(Source):
    """A TIFF of any number of pages, of which only those that are asked for are read."""

    def __init__(self, file: str | bytes | IO[bytes], series: int | None, *, ome: bool = False):
        # one file at a time: another one that OME metadata points to is a reference of its own, and fingerprinted
        self.raw = file if isinstance(file, str | bytes) else None
        opened = io.BytesIO(file) if isinstance(file, bytes) else file
        self.tif = tifffile.TiffFile(opened, _multifile=False)
        self.number, self.ome = series, ome
        self.series: tifffile.TiffPageSeries | None = None
        self.pages: list[tifffile.TiffPage] = []  # where each is a series of its own
        self.kept: tuple[int, np.ndarray] | None = None  # the last page of several samples

    def close(self) -> None:
        self.tif.close()

    def single(self) -> bool:
        pages = self.tif.pages
        if self.number is not None or len(pages) != 1:
            return False
        page = pages.first
        # these may say that more planes follow the only page
        return page.ndim == 2 and not (page.is_imagej or page.is_shaped or page.is_stk)

    def cut(self) -> bool:
        # the directory of each page ends with the place of the next, the last one with 0
        tiff, file = self.tif.tiff, self.tif.filehandle
        place = self.tif.pages[len(self.tif.pages) - 1].offset
        file.seek(place)
        tags = int.from_bytes(file.read(tiff.tagnosize), "little" if tiff.byteorder == "<" else "big")
        file.seek(place + tiff.tagnosize + tags * tiff.tagsize)
        return any(file.read(tiff.offsetsize))

    def look(self) -> None:
        if self.series is not None:
            return
        if not len(self.tif.pages) or self.cut():
            raise ValueError("its last pages are missing")
        if self.ome and not self.tif.is_ome and len(self.tif.pages) > 1:  # mostly the last thing in a file
            raise ValueError("its OME metadata are missing")
        said = self.tif.imagej_metadata or {}
        if int(said.get("images", 1)) > len(self.tif.pages) and all(one.kind != "imagej" for one in self.tif.series):
            raise ValueError(f"it lacks some of its {said['images']} planes")
        found = [series for series in self.tif.series if not series.keyframe.is_reduced] or self.tif.series
        if not found or not found[0].size:  # what tifffile makes of a file that is cut off before its directory
            raise ValueError("no image data")
        if (number := self.number or 0) >= len(found):
            raise Unclear(f"s={number}, but it holds {len(found)} image(s)", f"name one from 0 to {len(found) - 1}")
        self.series = series = found[number]
        if self.number is None and len(found) > 1:
            if {(one.axes, one.shape, one.kind == "ome") for one in found} != {("YX", series.shape, False)}:
                shapes = " and ".join(str(one.shape) for one in found[:3])
                raise Unclear(f"holds {len(found)} images, {shapes}", f"name one with #s=0 {WHERE}")
            self.pages = [one.keyframe for one in found]  # written one by one
            self.axes, self.shape, self.whole = "I", (len(found),), (len(found), *series.shape)
            return
        self.inner = series.keyframe.shape  # of a page, which may hold several samples
        if series.shape[-len(self.inner) :] != self.inner or not {"Y", "X"} <= set(series.keyframe.axes):
            raise Unclear(f"shape {series.shape} ({series.axes}), pages of {self.inner}", "export it as OME-TIFF")
        self.whole = series.shape
        self.outer = series.shape[: -len(self.inner)]
        kept = [i for i, axis in enumerate(series.axes) if axis not in "YX"]
        self.axes = "".join(series.axes[i] for i in kept)
        self.shape = tuple(series.shape[i] for i in kept)

    def channels(self) -> Sequence[str]:
        if not self.tif.is_ome:
            return ()
        images = tifffile.xml2dict(self.tif.ome_metadata or "").get("OME", {}).get("Image", [])
        image = (images if isinstance(images, list) else [images])[self._image()]
        found = image["Pixels"].get("Channel", [])
        return [str(one.get("Name", "")) for one in (found if isinstance(found, list) else [found])]

    def _image(self) -> int:
        return next((i for i, one in enumerate(self.tif.series) if one is self.series), 0)

    def plane(self, index: tuple[int, ...]) -> np.ndarray:
        if self.series is None:  # a single plane
            return self._decode(self.tif.pages.first)
        if self.pages:
            return self._decode(self.pages[index[0]])
        outer, within = index[: len(self.outer)], index[len(self.outer) :]
        number = int(np.ravel_multi_index(outer, self.outer)) if outer else 0
        if not within:
            return self._page(number)
        if self.kept is None or self.kept[0] != number:
            self.kept = number, self._page(number)
        samples = iter(within)
        return self.kept[1][tuple(slice(None) if axis in "YX" else next(samples) for axis in self.series.keyframe.axes)]

    def _page(self, number: int) -> np.ndarray:
        series = self.series
        assert series is not None
        if series.dataoffset is not None:  # one block of numbers, of which only the first page may have a directory
            count = math.prod(self.inner)
            dtype = np.dtype(self.tif.byteorder + series.dtype.char)
            offset = series.dataoffset + number * count * dtype.itemsize
            read = self.tif.filehandle.read_array(dtype, count, offset)
            return read.reshape(self.inner).astype(dtype.newbyteorder("="), copy=False)
        page = series.pages[number]
        if page is None:
            raise Unclear("this plane stands in another file of its OME set", "name that file in the index")
        return self._decode(page)

    def _decode(self, page: Any) -> np.ndarray:
        if page.compression == tifffile.COMPRESSION.LZW and self.raw is not None and _plain(page):
            # libtiff decodes LZW twice as fast as tifffile's codec; of many pages the map reads only what it touches
            whole = np.fromfile if len(self.tif.pages) == 1 else np.memmap
            data: Any = whole(self.raw, np.uint8) if isinstance(self.raw, str) else self.raw
            return imagecodecs.tiff_decode(data, page.index)
        return page.asarray(maxworkers=1)  # sites are read in parallel, see map_ahead


def _jpeg(raw: bytes) -> np.ndarray:
    # OpenCV before 5 fills what is cut off a JPEG with grey, and says nothing
    whole = b"\xff\xd9" in raw[-1024:]
    # not cv2.imread, which fails on non-ASCII paths on Windows
    image = cv2.imdecode(np.frombuffer(raw, np.uint8), cv2.IMREAD_UNCHANGED) if whole else None
    if image is None:
        raise ValueError("no image data")
    return image if image.ndim == 2 else image[..., ::-1]  # OpenCV's order is blue, green, red


def _plain(page: Any) -> bool:
    number, page = page.index, page.keyframe
    return (
        isinstance(number, int)  # a number in the chain of pages
        and page.shape == (page.imagelength, page.imagewidth)
        and page.dtype in (np.uint8, np.uint16)
        and page.bitspersample == 8 * page.dtype.itemsize
        and page.photometric in _GREY
        and page.fillorder == 1
    )


def _open(file: str, chosen: Mapping[str, str]) -> Source:
    series = int(chosen["s"]) if "s" in chosen else None
    if is_zarr(file):
        return ZarrImage(file)
    suffix = os.path.splitext(file.split("?")[0] if is_url(file) else file)[1].lower()
    if not is_url(file) and not os.path.isfile(file):
        raise InputError(f"{file}: no such image")
    if suffix not in SUFFIXES:
        raise InputError(f"{file}: not an image of a known format ({', '.join(SUFFIXES)}, .zarr)")
    data = fetch(file) if is_url(file) else file
    try:
        if suffix.startswith(".tif"):
            return _Tiff(data, series, ome=".ome.tif" in file.lower())
        return _Picture(Path(data).read_bytes() if isinstance(data, str) else _bytes(data), suffix)
    except Exception as error:
        raise _damaged(file, error) from error


def _bytes(data: bytes | IO[bytes]) -> bytes:
    return data if isinstance(data, bytes) else data.read()


def _read(reference: Reference, opened: Any) -> np.ndarray:
    """The plane that `reference` names, of files that `opened` opens."""
    projection = reference.chosen.get("z") if reference.chosen.get("z") in PROJECTIONS else None
    files = reference.files
    if len(files) > 1 and not projection:
        if "z" not in reference.chosen:
            raise InputError(f"{files[0]}: one of {len(files)} z planes; {Z_MEND}")
        if (number := int(reference.chosen["z"])) >= len(files):
            raise InputError(f"{reference}: z={number}, but there are {len(files)} z planes (0 to {len(files) - 1})")
        files = files[number : number + 1]
    chosen = reference.chosen if len(reference.files) == 1 else {k: v for k, v in reference.chosen.items() if k != "z"}
    best, highest = None, -1.0
    for file in files:
        source = opened(file)
        try:
            found = choose(source, chosen)
            for samples in found:
                plane = grey(source, samples)
                if best is not None and plane.shape != best.shape:
                    raise Unclear(
                        f"{size_text(plane.shape)} pixels, the first z plane {size_text(best.shape)}", "look at it"
                    )
                if projection == "max":
                    best = plane if best is None else np.maximum(best, plane)
                elif len(files) * len(found) == 1:
                    best = plane
                elif (sharp := sharpness(plane)) > highest:
                    best, highest = plane, sharp
        except InputError:
            raise
        except Unclear as error:
            raise InputError(f"{file}: {error}") from None
        except Exception as error:  # a damaged file makes decoders raise almost anything
            raise _damaged(file, error) from error
    assert best is not None
    if best.dtype in (np.uint8, np.uint16):
        return best
    if best.dtype.kind not in "biuf":
        raise InputError(f"{files[0]}: pixels are {best.dtype}, expected integers or floats; export it again")
    with np.errstate(over="ignore"):  # an infinity is found where the plane is checked
        return best.astype(np.float32)


def _damaged(file: str, error: Exception) -> InputError:
    return InputError(f"{file}: cannot be read, truncated or damaged ({_line(error)}); copy it again")


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120]


def size_text(shape: Sequence[int]) -> str:
    return f"{shape[0]} x {shape[1]}"

"""OME-Zarr (NGFF 0.4 on Zarr 2, 0.5 on Zarr 3): the planes of an image, and the sites of a plate."""

import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cytominer_tools.columns import PLATE, SITE, WELL
from cytominer_tools.errors import InputError
from deepprofile.planes import Source
from deepprofile.references import is_url, join, told

_PIP = "pip install 'deepprofile[zarr]'"
_METADATA = (".zarray", ".zattrs", ".zgroup", "zarr.json")
_PICKLE = "pickle"  # a codec that runs what it reads


class ZarrImage(Source):
    """One image of an OME-Zarr store at full resolution; only the chunks of the planes that are asked for are read."""

    def __init__(self, file: str):
        with _opening(file):
            self.attributes = _group(file)
            image = _multiscale(self.attributes, file)
            self.array = _array(file, image["datasets"][0]["path"])
        self.whole = tuple(self.array.shape)
        # version 0.3 has names alone, older ones have five axes without names
        axes = "".join((axis if isinstance(axis, str) else axis["name"])[:1] for axis in image.get("axes", "tczyx"))
        self.axes, self.shape = axes.upper()[:-2], self.whole[:-2]
        if axes.upper()[-2:] != "YX" or len(axes) != len(self.whole):
            raise InputError(f"{file}: axes {axes!r} of shape {self.whole}, expected y and x last; write it again")

    def single(self) -> bool:
        return all(n == 1 for n in self.shape) and not self.axes

    def channels(self) -> Sequence[str]:
        found = self.attributes.get("omero", {}).get("channels", [])
        return [str(one.get("label", "")) for one in found]

    def plane(self, index: tuple[int, ...]) -> np.ndarray:
        return np.asarray(self.array[index])


def scan_plates(plates: Sequence[str], root: str | Path, channels: Mapping[str, str]) -> pd.DataFrame:
    """A row per field of view of OME-Zarr plates, from their metadata.

    Parameters
    ----------
    plates : paths or URLs
        As they stand in study.yaml.
    root : Path or URL
        Where relative ones start.
    channels : name -> channel of the images
        By its name (omero.channels.label) or number, from 0.

    Returns
    -------
    DataFrame
        Metadata_Plate (the plate's name, or that of its folder where two have one name or one has none), _Well, _Site
        (the name of the field) and a column of references per channel, such as ``plate.zarr/A/1/0#c=DNA``.

    Raises
    ------
    InputError
        No such plate, or it is no OME-Zarr plate, or the package zarr is absent.
    """
    found = {plate: _plate(join(root, plate)) for plate in plates}
    names = {plate: str(about.get("name") or "") for plate, about in found.items()}
    if len(set(names.values())) < len(names) or "" in names.values():
        names = {plate: re.split(r"[/\\]", plate.rstrip("/\\"))[-1].partition(".")[0] for plate in plates}
    rows = []
    for plate, about in found.items():
        for well, fields in _fields(join(root, plate), about):
            for field in fields:
                image = f"{plate.rstrip('/')}/{well}/{field}"
                paths = [f"{image}#c={_quoted(value)}" for value in channels.values()]
                rows.append([names[plate], _well_name(well), field, *paths])
    if not rows:
        raise InputError(f"{', '.join(plates)}: no field of view; was the plate written to its end?")
    return pd.DataFrame(rows, columns=[PLATE, WELL, SITE, *channels], dtype="str")


def _plate(place: str) -> dict[str, Any]:
    with _opening(place):
        attributes = _group(place)
    if "plate" not in attributes:
        what = "an OME-Zarr image" if "multiscales" in attributes else "no OME-Zarr plate"
        raise InputError(f"{place}: {what}; expected the folder that holds the rows of a plate, with its metadata")
    return attributes["plate"]


def _fields(place: str, plate: Mapping[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """The wells of a plate and the names of their fields, in the order of the plate."""
    wells = [str(well["path"]).strip("/") for well in plate.get("wells", [])]

    def fields(well: str) -> list[str]:
        with _opening(f"{place}/{well}"):
            attributes = _group(f"{place}/{well}")
        if "well" not in attributes:
            raise InputError(f"{place}/{well}: no metadata of a well; write the plate again")
        return [str(image["path"]) for image in attributes["well"].get("images", [])]

    with ThreadPoolExecutor(16 if is_url(place) else 1) as pool:  # each waits for the network
        yield from zip(wells, pool.map(fields, wells), strict=True)


def _well_name(path: str) -> str:
    return path.replace("/", "")


def _quoted(value: str) -> str:
    return re.sub(r"[#&|%]", lambda found: f"%{ord(found.group()):02X}", value.removeprefix("#").removeprefix("c="))


def _multiscale(attributes: Mapping[str, Any], file: str) -> dict[str, Any]:
    if found := attributes.get("multiscales"):
        return found[0]
    if "plate" in attributes or "well" in attributes:
        raise InputError(f"{file}: a {'plate' if 'plate' in attributes else 'well'}, expected an image such as A/1/0")
    raise InputError(f"{file}: no OME-Zarr image, it has no multiscales; name the folder that holds them")


def _group(place: str) -> dict[str, Any]:
    """The OME attributes of a group."""
    import zarr

    group = zarr.open_group(_store(place), mode="r", use_consolidated=False)
    attributes: dict[str, Any] = dict(group.attrs.asdict())
    return attributes.get("ome", attributes)  # 0.5, 0.4


def _array(file: str, path: str) -> Any:
    import zarr

    store = _whole(_store(file))
    array = zarr.open_array(store, path=path, mode="r")
    about = array.metadata
    codecs = [
        *(getattr(about, "filters", None) or ()),
        getattr(about, "compressor", None),
        *getattr(about, "codecs", ()),
    ]
    # a pickle runs what it holds, and a study may come from a stranger
    if array.dtype.kind not in "biuf" or any(_PICKLE in str(getattr(one, "codec_id", one)).lower() for one in codecs):
        raise InputError(f"{file}: pixels are {array.dtype} or pickled, expected plain numbers; write it again")
    store.blosc = "blosc" in str(codecs).lower()
    return array


def _whole(store: Any) -> Any:
    """`store`, where a Blosc chunk that was cut off is an error: the decoder reads on behind its end."""
    from zarr.storage import WrapperStore

    class Whole(WrapperStore):
        blosc = False

        async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
            value = await self._store.get(key, prototype, byte_range)
            if self.blosc and value is not None and byte_range is None and not key.endswith(_METADATA):
                head = value.as_numpy_array()[:16].tobytes()
                if len(head) < 16 or int.from_bytes(head[12:], "little") != len(value):
                    raise ValueError(f"{key} is cut off")
            return value

    return Whole(store)


def _store(place: str) -> Any:
    from zarr.storage import FsspecStore, LocalStore

    return FsspecStore.from_url(place, read_only=True) if is_url(place) else LocalStore(place, read_only=True)


@contextmanager
def _opening(place: str) -> Iterator[None]:
    try:
        import zarr  # noqa: F401
    except ImportError as error:
        raise InputError(f"{place}: OME-Zarr needs the package zarr; {_PIP}") from error
    try:
        with told(place) if is_url(place) else nullcontext():
            try:
                yield
            except FileNotFoundError as error:
                raise InputError(f"{place}: no such OME-Zarr group") from error
    except InputError:
        raise
    except Exception as error:
        line = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise InputError(f"{place}: its metadata cannot be read ({line}); write it again") from error

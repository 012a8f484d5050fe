"""Where a plane is, as text: a path or a URL, and which plane of what stands there; and the bytes behind it.

    images/A01.tif              a file of one plane, relative to images.root
    A01.ome.tif#c=2             channel 2, counted from 0
    A01.ome.tif#c=DNA&z=max     the channel called DNA, projected over z
    a_z0.tif|a_z1.tif#z=focus   the files of one z stack, in the order of z
    s3://bucket/A01.tif         anything that fsspec opens
    plate.zarr/A/1/0#c=1        an image of an OME-Zarr plate

After `#` stand c (channel: number or name), z (plane: number, max or focus), t (time point) and s (series, of files
that hold several images), all counted from 0 and joined by `&`; `%23`, `%26`, `%7C` are `#`, `&`, `|` within a name.
"""

import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal
from urllib.parse import quote, unquote

from cytominer_tools.errors import InputError

Projection = Literal["max", "focus"]
PROJECTIONS = ("max", "focus")

_URL = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]+)://")  # two letters at least: C:\ is a drive
_FRAGMENT = re.compile(r"#([stcz]=[^#&]*(?:&[stcz]=[^#&]*)*)$")
_SAFE = " /:+*,;()[]"
_WHOLE = 32 << 20  # bytes; a smaller file is fetched in one request, of a larger one only what is needed
# what file systems call the state of a file, the surest first
_STAMPS = ("ETag", "etag", "md5Hash", "content_md5", "LastModified", "last_modified", "updated", "mtime", "created")


@dataclass(frozen=True)
class Reference:
    """The parts of a reference: files in z order, and what is chosen of them, by axis."""

    files: tuple[str, ...]
    chosen: Mapping[str, str]

    def __str__(self) -> str:
        return "|".join(self.files) + self.fragment

    @property
    def fragment(self) -> str:
        """What is chosen, with its `#`; "" where nothing is."""
        pairs = [f"{axis}={quote(value, safe=_SAFE)}" for axis, value in sorted(self.chosen.items())]
        return f"#{'&'.join(pairs)}" if pairs else ""


def parse(text: str) -> Reference:
    """The parts of `text`.

    Raises
    ------
    InputError
        z is neither a number nor a projection, t or s is not a number, or an axis is named twice.

    Examples
    --------
    >>> parse("a.tif#c=2&z=max")
    Reference(files=('a.tif',), chosen={'c': '2', 'z': 'max'})
    >>> parse("plate#3/a_z0.tif|plate#3/a_z1.tif").files
    ('plate#3/a_z0.tif', 'plate#3/a_z1.tif')
    """
    files, fragment = split_fragment(text)
    chosen: dict[str, str] = {}
    for pair in fragment.removeprefix("#").split("&") if fragment else []:
        axis, value = pair[0], unquote(pair[2:])
        if axis in chosen:
            raise InputError(f"{text}: {axis} is named twice; keep one")
        if axis != "c" and not value.isdecimal() and not (axis == "z" and value in PROJECTIONS):
            expected = "a number from 0, max or focus" if axis == "z" else "a number from 0"
            raise InputError(f"{text}: {axis} is {value!r}, expected {expected}")
        chosen[axis] = value
    return Reference(tuple(files.split("|")), chosen)


def split_fragment(text: str) -> tuple[str, str]:
    """What stands before the choice of a plane, and the choice.

    >>> split_fragment("FileName#c=1"), split_fragment("Image #1")
    (('FileName', '#c=1'), ('Image #1', ''))
    """
    found = _FRAGMENT.search(text)
    return (text[: found.start()], found.group()) if found else (text, "")


def with_fragment(text: str, fragment: str) -> str:
    """`text` with the choice of a plane added to one that it may have.

    >>> with_fragment("a.tif", "#c=1"), with_fragment("a.tif#z=2", "#c=1"), with_fragment("a.tif", "")
    ('a.tif#c=1', 'a.tif#z=2&c=1', 'a.tif')
    """
    return text + (f"&{fragment[1:]}" if fragment and split_fragment(text)[1] else fragment)


def is_url(text: str) -> bool:
    """Whether `text` is a URL; a Windows drive is not.

    >>> is_url("s3://bucket/a.tif"), is_url("C:/a.tif"), is_url("a.tif")
    (True, False, False)
    """
    return _URL.match(text) is not None


def join(root: str | Path, name: str) -> str:
    """`name`, a path or a URL, from `root`, a folder or a URL, unless it is absolute.

    >>> join("s3://bucket/plate", "a.tif"), join("s3://bucket", "memory://a.tif")
    ('s3://bucket/plate/a.tif', 'memory://a.tif')
    """
    if is_url(name):
        return name
    if isinstance(root, str) and is_url(root) and not os.path.isabs(name):
        return f"{root.rstrip('/')}/{name}"
    return str(Path(root) / name)


def resolve(root: str | Path, text: str, projection: Projection | None = None) -> str:
    """The reference `text` with its files joined to `root`, and `projection` where it names no z itself."""
    reference = parse(text)
    chosen = {**({"z": projection} if projection else {}), **reference.chosen}
    return str(Reference(tuple(join(root, file) for file in reference.files), chosen))


@contextmanager
def told(url: str) -> Iterator[None]:
    """Turn what a file system raises into an InputError that names `url`."""
    try:
        yield
    except InputError:
        raise
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise InputError(f"{url}: no such image") from error
    except ImportError as error:
        raise InputError(f"{url}: {_line(error)}; for s3:// URLs: pip install 'deepprofile[s3]'") from error
    except Exception as error:  # every file system has errors of its own
        if type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError"):
            mend = """give credentials, or for public data set the environment variable FSSPEC_S3='{"anon": true}'"""
        elif isinstance(error, PermissionError):
            mend = "check the credentials, and that there is such a file"
        else:
            mend = "check the URL and the connection"
        raise InputError(f"{url}: cannot be fetched ({_line(error)}); {mend}") from error


def file_system(url: str) -> tuple[Any, str]:
    """The fsspec file system of `url`, and its path there; options come from fsspec's own configuration.

    Raises
    ------
    InputError
        No such kind of URL, or the package for it is absent.
    """
    from fsspec.core import url_to_fs

    with told(url):
        return url_to_fs(url)


def fetch(url: str) -> bytes | IO[bytes]:
    """What stands at `url`: its bytes, or of more than 32 MiB an open file that reads what is asked for.

    Raises
    ------
    InputError
        It does not exist, or may not be read, or its file system is not installed.
    """
    system, path = file_system(url)
    with told(url):
        size = system.info(path).get("size")
        return system.cat_file(path) if size is None or size <= _WHOLE else system.open(path, "rb")


def stamps(files: Iterable[str]) -> dict[str, tuple[int, str | int]]:
    """Size (bytes) and state of each file or URL: the modification time (ns) of a file, the ETag or time of an object.

    Size -1 where there is nothing, as `cytominer_tools.manifest.fingerprint` has it. Object stores are asked for
    listings, which fsspec keeps for the process; an OME-Zarr image is the files below it.
    """
    files = list(dict.fromkeys(files))
    urls = [file for file in files if is_url(file)]
    found = {file: _stat(file) for file in files if not is_url(file)}
    if urls:
        with ThreadPoolExecutor(16) as pool:  # each waits for the network
            found |= zip(urls, pool.map(_info, urls), strict=True)
    return found


def is_zarr(file: str) -> bool:
    """Whether `file` is (in) an OME-Zarr folder, by its name.

    >>> is_zarr("plate.zarr/A/1/0"), is_zarr("s3://b/x.ome.zarr"), is_zarr("a.tif")
    (True, True, False)
    """
    return any(part.lower().endswith(".zarr") for part in re.split(r"[/\\]", file))


def _stat(file: str) -> tuple[int, str | int]:
    try:
        if not is_zarr(file):
            found = os.stat(file)
            # a folder, where a site lacks an image, changes with what is written beside the images
            return (found.st_size, found.st_mtime_ns) if stat.S_ISREG(found.st_mode) else (-1, 0)
        return _folder(sorted(_below(file, "")))
    except OSError:
        return -1, 0


def _below(folder: str, prefix: str) -> Iterator[tuple[str, int, str | int]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                yield from _below(entry.path, f"{prefix}{entry.name}/")
            else:
                found = entry.stat()
                yield f"{prefix}{entry.name}", found.st_size, found.st_mtime_ns


def _info(url: str) -> tuple[int, str | int]:
    system, path = file_system(url)
    try:
        if is_zarr(url):
            below = system.find(path, detail=True)
            if not below:
                return -1, 0
            return _folder(sorted((name, *_state(info)) for name, info in below.items()))
        if getattr(system, "dircache", None) is None or not url.startswith(("s3", "gs", "gcs", "az", "abfs")):
            return _state(system.info(path))
        listed = {entry["name"]: entry for entry in system.ls(system._parent(path), detail=True)}
        return _state(listed[path]) if path in listed else (-1, 0)
    except FileNotFoundError:
        return -1, 0
    except Exception:
        with told(url):
            raise
        raise AssertionError from None  # told has raised


def _state(info: Mapping[str, Any]) -> tuple[int, str]:
    state = next((info[name] for name in _STAMPS if info.get(name) is not None), "")
    return int(info.get("size") or 0), str(state)


def _folder(files: list[tuple[str, int, str | int]]) -> tuple[int, str]:
    from cytominer_tools.manifest import digest

    return sum(size for _, size, _ in files), digest([list(row) for row in files])


def _line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120]

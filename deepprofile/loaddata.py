"""Image paths as CellProfiler's LoadData tables give them, and paths that were written on another machine."""

import re
from collections.abc import Iterable, Mapping
from urllib.parse import unquote

import pandas as pd

from cytominer_tools.columns import METADATA
from deepprofile.references import is_url

_IMAGE_COLUMN = re.compile(rf"^(?:{METADATA})?(?:Image_)?(?:FileName|PathName|URL|MD5Digest)_(?P<name>.+)$")
_DRIVE = re.compile(r"^[A-Za-z]:[\\/]")


def image_names(table: pd.DataFrame) -> list[str]:
    """The images that a LoadData table names with FileName_ or URL_, in its order; such as OrigDNA and IllumDNA."""
    found = [m["name"] for name in map(str, table.columns) if (m := _IMAGE_COLUMN.match(name))]
    return [name for name in dict.fromkeys(found) if has_image(table, name)]


def has_image(table: pd.DataFrame, name: str) -> bool:
    """Whether `image_column` finds the image `name` in a LoadData table."""
    return f"URL_{name}" in table or f"FileName_{name}" in table


def image_column(table: pd.DataFrame, name: str) -> pd.Series:
    """Where each row's image `name` lies: its URL_, or its PathName_ and FileName_, or FileName_ alone.

    Parameters
    ----------
    table : DataFrame
        With URL_<name> or FileName_<name>; where a row's URL is empty its file name is taken.
    name : str
        Such as OrigDNA, or IllumDNA for the illumination function.

    Returns
    -------
    Series of text
        A path or a URL, unchanged but for ``file:`` URLs, which become paths; "" where there is no image.
    """
    empty = pd.Series("", index=table.index, dtype="str")
    url, file, folder = (
        table[f"{kind}_{name}"].fillna("").astype("str") if f"{kind}_{name}" in table else empty
        for kind in ("URL", "FileName", "PathName")
    )
    # a folder without a file is no image
    joined = pd.Series([join_path(a, b) if b else "" for a, b in zip(folder, file, strict=True)], index=table.index)
    return url.map(_local).where(url != "", joined).astype("str")


def drop_image_columns(table: pd.DataFrame) -> pd.DataFrame:
    """`table` without the columns that say where images are: paths are no metadata of a well."""
    return table.drop(columns=[name for name in table.columns if _IMAGE_COLUMN.match(str(name))])


def join_path(folder: str, file: str) -> str:
    r"""`file` in `folder`, which may be a URL, or end in a separator, or be Windows'.

    >>> join_path("s3://b/P1/", "a.tif"), join_path(r"C:\plates\P1", "a.tif"), join_path("", "a.tif")
    ('s3://b/P1/a.tif', 'C:/plates/P1/a.tif', 'a.tif')
    """
    folder = slashes(folder)
    return f"{folder.rstrip('/')}/{slashes(file)}" if folder.strip("/") else f"{folder}{slashes(file)}"


def slashes(path: str) -> str:
    r"""`path` with ``/`` between its parts where it is a Windows path, unchanged where it is not.

    It is one where it starts with a drive or with two backslashes, or where it has a backslash and no slash.

    >>> slashes(r"C:\plates\P1"), slashes(r"P1\a.tif"), slashes(r"P1/a\b.tif"), slashes(r"\\server\x")
    ('C:/plates/P1', 'P1/a.tif', 'P1/a\\b.tif', '//server/x')
    """
    windows = is_windows(path) or ("\\" in path and "/" not in path and not is_url(path))
    return path.replace("\\", "/") if windows else path


def is_windows(path: str) -> bool:
    """Whether `path` is absolute on Windows: with a drive, or a share."""
    return _DRIVE.match(path) is not None or path.startswith("\\\\")


def move_root(path: str, roots: Mapping[str, str]) -> str:
    r"""`path` with the longest of `roots` that it starts with replaced; separators of Windows become ``/``.

    A root ends at a separator: ``/data`` is not the start of ``/data2/a.tif``. Windows paths are compared without case.

    >>> move_root("/home/ubuntu/bucket/P1/a.tif", {"/home": "x", "/home/ubuntu/bucket/": "/data/jump/"})
    '/data/jump/P1/a.tif'
    >>> move_root(r"c:\Plates\P1\a.tif", {r"C:\plates": "plates"})
    'plates/P1/a.tif'
    """
    path = slashes(path)
    best, moved = -1, path
    for old, new in roots.items():
        start = slashes(old).rstrip("/")
        head, rest = path[: len(start)], path[len(start) :]
        same = head.casefold() == start.casefold() if is_windows(old) else head == start
        if same and rest.startswith("/") and len(start) > best:
            new = slashes(new)
            best, moved = len(start), (f"{new.rstrip('/')}{rest}" if new.strip("/") else f"{new}{rest.lstrip('/')}")
    return moved


def common_start(paths: Iterable[str]) -> str:
    """The folder that all `paths` lie in, with ``/`` at its end.

    >>> common_start(["/home/u/P1/a.tif", "/home/u/P2/a.tif"])
    '/home/u/'
    """
    parts = [path.split("/")[:-1] for path in paths]
    same = []
    for level in zip(*parts, strict=False):
        if len(set(level)) > 1:
            break
        same.append(level[0])
    return "/".join(same) + "/"


def _local(url: str) -> str:
    """A path where `url` is one of a local file, or else the URL.

    >>> _local("file:///home/u/a%20b.tif"), _local("file:/C:/a.tif"), _local("s3://b/a%20b.tif")
    ('/home/u/a b.tif', 'C:/a.tif', 's3://b/a%20b.tif')
    """
    if not url.lower().startswith("file:"):
        return url
    path = unquote(re.sub(r"^file:(?://(?:localhost)?(?=/))?", "", url, flags=re.IGNORECASE))
    return path[1:] if _DRIVE.match(path[1:]) else path

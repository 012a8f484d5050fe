"""Sites from the names of image files: the naming schemes of microscopes, and any other as a regular expression."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from cytominer_tools.columns import PLATE, SITE, WELL
from cytominer_tools.errors import InputError
from deepprofile.images import SUFFIXES
from deepprofile.problems import named
from deepprofile.references import split_fragment, with_fragment

_STEP = r"(?:(?i:TimePoint_0*(?P<time>\d+))/)?(?:(?i:ZStep_0*(?P<z>\d+))/)?"
_NOT_STEP = r"(?!(?i:TimePoint|ZStep)_\d)[^/]+/"
_IMX = r"(?:_s0*(?P<site>\d+))?_w0*(?P<channel>\d{1,2})(?:[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12})?"
_WELL = r"(?P<well>(?:[A-Pa-p]|[Aa][A-Fa-f])\d{2})"  # narrow, as it may follow any name and _
_TIF = r"\.(?i:tiff?)$"

# Each of several forms of a scheme is tried; a leading zero of a site is not part of its name.
PRESETS: dict[str, tuple[str, ...]] = {
    "phenix": (  # Harmony: r01c01f01p01-ch1sk1fk1fl1.tiff, in PLATE__DATE-Measurement 1/Images
        r"^(?:(?P<plate>[^/]+?)(?:__[^/]*-Measurement ?\d+)?/)?(?:.*/)?"
        r"r(?P<row>\d+)c(?P<col>\d+)f0*(?P<site>\d+)p0*(?P<z>\d+)-ch0*(?P<channel>\d+)"
        r"(?:(?:sk|t)0*(?P<time>\d+))?(?:fk\d+)?(?:fl\d+)?" + _TIF,
    ),
    "imagexpress": (
        # MetaXpress: PLATE/TimePoint_1/ZStep_1/NAME_A01_s1_w1GUID.tif; thumbnails do not match
        rf"^(?P<plate>{_NOT_STEP[:-1]})/(?:{_NOT_STEP})*{_STEP}(?:[^/]*_)?{_WELL}{_IMX}{_TIF}",
        rf"^{_STEP}(?:(?P<plate>[^/]+)_)?{_WELL}{_IMX}{_TIF}",
        # HCS.ai: NAME_t0_A01_s0_w0_z0.tif
        rf"^(?:(?P<plate>[^/]+)/)?(?:.*/)?(?:[^/]*_)?t0*(?P<time>\d+)_{_WELL}_s0*(?P<site>\d+)_w0*(?P<channel>\d+)"
        rf"_z0*(?P<z>\d+){_TIF}",
        rf"^(?:(?P<plate>{_NOT_STEP[:-1]})/(?:{_NOT_STEP})*)?(?:(?i:TimePoint_0*(?P<time>\d+))/)?(?:[^/]*_)?{_WELL}"
        rf"_s0*(?P<site>\d+)_w0*(?P<channel>\d+)_z0*(?P<z>\d+){_TIF}",
    ),
    "opera": (  # Columbus: 001002-3-001001001.tif is row, column, field, plane, time and channel
        r"^(?:(?P<plate>[^/]+)/)?(?:.*/)?(?P<row>\d{3})(?P<col>\d{3})-0*(?P<site>\d+)-"
        r"(?P<z>\d{3})(?P<time>\d{3})0{0,2}(?P<channel>\d{1,3})" + _TIF,
    ),
    "incarta": (  # IN Cell Analyzer and IN Carta: A - 01(fld 1 wv DAPI - DAPI z 1 time 1 - 0 ms).tif
        r"^(?:(?P<plate>[^/]+)/)?(?:.*/)?(?:[^/]*_)?(?P<row>[A-Za-z]{1,2}) - (?P<col>\d+)"
        r"\(fld 0*(?P<site>\d+) wv (?P<channel>[^()]+?)(?: wix \d+)?(?: z 0*(?P<z>\d+))?"
        r"(?: ?-? ?time 0*(?P<time>\d+) - \d+ ms)?\)" + _TIF,
    ),
    "yokogawa": (  # CellVoyager: NAME_A01_T0001F001L01A01Z01C01.tif
        rf"^(?P<plate>[^/]+)/(?:.*/)?[^/]*_{_WELL}_T0*(?P<time>\d+)F0*(?P<site>\d+)L\d+A\d+Z0*(?P<z>\d+)"
        rf"C0*(?P<channel>\d+)\.(?i:tiff?|png)$",
        rf"^(?P<plate>[^/]+)_{_WELL}_T0*(?P<time>\d+)F0*(?P<site>\d+)L\d+A\d+Z0*(?P<z>\d+)"
        rf"C0*(?P<channel>\d+)\.(?i:tiff?|png)$",
    ),
    "generic": (  # PLATE/A01_s1_DNA.tif
        r"(?:(?P<plate>[^/]+)/)?(?P<well>[A-Za-z]{1,2}\d{1,2})_s?0*(?P<site>\d+)_(?P<channel>[^/_]+)\.\w+$",
    ),
}
PLANES = "|"  # between the z planes of one image


@dataclass(frozen=True)
class ImageName:
    """What the name of one image file says."""

    plate: str | None
    well: str
    site: str
    channel: str
    z: str | None = None
    time: str | None = None


def parse_name(name: str, pattern: str | re.Pattern[str]) -> ImageName | None:
    """What `pattern` finds in `name`, a path with ``/``; None where it does not match.

    >>> parse_name("BR1/r02c03f01p01-ch5sk1fk1fl1.tiff", PRESETS["phenix"][0])
    ImageName(plate='BR1', well='B03', site='1', channel='5', z='1', time='1')
    """
    match = re.search(pattern, name)
    if match is None:
        return None
    part = match.groupdict()
    well = part.get("well")
    if well is None:
        row = part["row"]
        well = f"{_letters(int(row)) if row.isdigit() else row.upper()}{int(part['col']):02d}"
    return ImageName(
        part.get("plate"), well, part.get("site") or "1", part.get("channel") or "", part.get("z"), part.get("time")
    )


def scan_folder(folder: Path, pattern: str, channels: Mapping[str, str] | None = None) -> pd.DataFrame:
    """A row per site from the names of the image files under `folder`.

    Parameters
    ----------
    folder : Path
    pattern : str
        A regular expression, searched in the path relative to `folder` (with ``/``), with the named groups ``well``
        (or ``row``, a number or letters, and ``col``, a number) and ``channel``. Optional groups: ``site``, 1 where
        there is none; ``plate``, by default the first folder, or `folder` itself for the files in it; ``z``, the
        plane of a stack; ``time``, which must be one for all.
    channels : name -> value of the group `channel`, optional
        By default each value names itself. After a value may stand which plane of the file it is, as in ``1#z=max``
        (`deepprofile.references`); a pattern without the group ``channel`` is one of files that hold all channels,
        and then that is all there is: ``#c=0``.

    Returns
    -------
    DataFrame
        Metadata_Plate, _Well, _Site and a path column per channel (empty where there is no image). Where a site has
        several planes of a channel, their paths in the order of z with ``|`` between them.

    Raises
    ------
    InputError
        Not a pattern, no such folder, no name matches, two files are the same image, or there are several time points.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise InputError(f"images.pattern: {error} in {pattern!r}") from None
    groups = set(compiled.groupindex)
    whole = "channel" not in groups and bool(channels) and all(v.startswith("#") for v in (channels or {}).values())
    if not (whole or "channel" in groups) or not ("well" in groups or {"row", "col"} <= groups):
        raise InputError(f"images.pattern {pattern!r}: expected named groups channel and well (or row and col)")
    names = list_images(folder)
    found: dict[tuple[str, str, str], dict[str, dict[int, str]]] = {}
    values: dict[str, None] = {}
    times: dict[str, str] = {}
    for name in names:
        part = parse_name(name, compiled)
        if part is None:
            continue
        inside = name.split("/")[0] if "/" in name and "plate" not in groups else folder.resolve().name
        planes = found.setdefault((part.plate or inside, part.well, part.site), {}).setdefault(part.channel, {})
        if part.time is not None:
            times.setdefault(part.time, name)
        if len(times) > 1:
            first, other = list(times)[:2]
            raise InputError(
                f"{folder}: {times[first]} and {name} are time points {first} and {other}; write one of them in place "
                "of the group time in images.pattern, and make a study of each"
            )
        z = _number(part.z, name)
        if z in planes:
            raise InputError(
                f"{folder}: {planes[z]} and {name} are the same site and channel; narrow images.pattern to one plane "
                "and time point, or give the planes a group z"
            )
        planes[z] = name
        values[part.channel] = None
    if not found:
        raise InputError(f"{folder}: none of {len(names)} image names matches {pattern!r}; one is {names[0]}")
    channels = channels or {value: value for value in sorted(values, key=lambda v: (len(v), v))}
    # a value of the group may itself look like the choice of a plane
    split = {name: (value, "") if value in values else split_fragment(value) for name, value in channels.items()}
    if absent := [f"{name} ({value!r})" for name, (value, _) in split.items() if value not in values]:
        raise InputError(
            f"{folder}: no image of channel {', '.join(absent)}; the names hold {', '.join(sorted(values))}"
        )
    rows = []
    for key, site in sorted(found.items()):
        files = []
        for value, plane in split.values():
            planes = site.get(value, {})
            files.append(with_fragment(PLANES.join(planes[z] for z in sorted(planes)), plane) if planes else "")
        rows.append([*key, *files])
    return pd.DataFrame(rows, columns=[PLATE, WELL, SITE, *channels])


def list_images(folder: Path) -> list[str]:
    """The image files under `folder`, as sorted paths relative to it; an InputError where there are none.

    Hidden ones are none: macOS leaves a ._NAME beside a file on foreign disks, and a killed copy its temporary file.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    images = (p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
    names = sorted(p.relative_to(folder).as_posix() for p in images)
    if not names:
        raise InputError(f"{folder}: no image ({', '.join(SUFFIXES)}) in it or below")
    return names


def guess_pattern(folder: Path, preset: str | None = None) -> str:
    """The pattern of `preset`, or of all `PRESETS`, that matches most image names under `folder`.

    Raises
    ------
    InputError
        No such preset, or no name matches.
    """
    if preset is not None and preset not in PRESETS:
        raise InputError(f"no preset is called {preset!r}; there are {', '.join(PRESETS)}")
    names = list_images(folder)
    patterns = [p for name, forms in PRESETS.items() if preset in (None, name) for p in forms]
    counts = {p: sum(re.search(p, name) is not None for name in names) for p in patterns}
    best = max(counts, key=lambda p: counts[p])
    if not counts[best]:
        which = "known pattern matches" if preset is None else f"pattern of {preset} matches"
        raise InputError(
            f"{folder}: no {which} names like {named(names, 1)}; give --pattern, a regular expression such as "
            r"'(?P<plate>[^/]+)/(?P<well>[A-P]\d\d)_(?P<site>\d+)_(?P<channel>\w+)\.tif'"
        )
    return best


def _number(z: str | None, name: str) -> int:
    try:
        return int(z or 0)
    except ValueError:
        raise InputError(f"images.pattern: the group z is {z!r} in {name}, expected a number") from None


def _letters(row: int) -> str:
    """Row 1 is A, row 27 AA.

    >>> _letters(1), _letters(16), _letters(32)
    ('A', 'P', 'AF')
    """
    return chr(64 + row) if row <= 26 else "A" + chr(64 + row - 26)

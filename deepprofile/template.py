"""A first study.yaml: commented, with what an index or a folder of images lets one guess."""

import json
import os
import re
from pathlib import Path

import pandas as pd

from cytominer_tools.columns import METADATA, PLATE, WELL, require_columns
from cytominer_tools.errors import InputError
from cytominer_tools.files import atomic_path
from cytominer_tools.tables import read_table
from deepprofile.images import SUFFIXES, read_image
from deepprofile.index import guess_pattern, scan_folder
from deepprofile.study import NAME, read_study

_CONTROLS = ("dmso", "control", "negcon", "vehicle", "untreated")
_ROLES = {  # column of the study -> words in the name of an index column, tried in order
    "treatment": ("treatment", "pert_name", "perturbation", "gene"),
    "compound": ("compound", "broad_sample", "jcp2022", "drug"),
    "concentration": ("concentration", "conc", "dose"),
    "moa": ("moa", "mechanism"),
    "batch": ("batch", "week"),
}
_NUCLEI = ("dna", "hoechst", "dapi", "nuclei", "nucleus", "draq5")


def init_study(
    folder: Path,
    *,
    index: Path | None = None,
    images: Path | None = None,
    pattern: str | None = None,
    metadata: Path | None = None,
) -> Path:
    """Write a commented study.yaml into `folder` and return its path; look it over before the first run.

    Parameters
    ----------
    folder : Path
        The study's; made where it is absent.
    index : Path, optional
        A table with a row per site: Metadata_Plate, Metadata_Well, and columns of image paths.
    images : Path, optional
        Instead: a folder of images whose names hold plate, well, site and channel.
    pattern : str, optional
        How they do, as in `deepprofile.index.scan_folder`; by default the known pattern that fits most of them.
    metadata : Path, optional
        A table of what the wells were treated with, joined by Metadata_Well (and Metadata_Plate).

    Raises
    ------
    InputError
        There is a study.yaml already, neither or both of `index` and `images`, or no image column or name found.
    """
    folder = Path(folder)
    path = folder / NAME
    if path.exists():
        raise InputError(f"{path} is there already; edit it, or delete it to start anew")
    if (index is None) == (images is None):
        raise InputError("give either an index (a table with a row per site) or a folder of images")
    if index is not None:
        table = read_table(index)
        require_columns(table, [PLATE, WELL], str(index))
        columns = [str(name) for name in table.columns if _looks_like_images(table[name])]
        if not columns:
            raise InputError(f"{index}: no column of image paths ({', '.join(SUFFIXES)})")
        channels = {_channel_name(name): name for name in columns}
        root = _image_root(Path(index), table, columns)
        lines = [f"index: {_quoted(_relative(Path(index), folder))}  # a row per site"]
        lines += [f"root: {_quoted(_relative(root, folder))}  # where the image paths of the index start"]
        first = [root / str(table[name].iloc[0]) for name in columns]
    else:
        pattern = pattern or guess_pattern(Path(str(images)))
        table = scan_folder(Path(str(images)), pattern)
        columns = [name for name in table.columns if not name.startswith(METADATA)]
        channels = {(f"ch{name}" if name.isdigit() else name): name for name in columns}
        lines = [f"folder: {_quoted(_relative(Path(str(images)), folder))}"]
        lines += [f"pattern: {_quoted(pattern)}  # named groups: plate, well (or row, col), site, channel"]
        first = [Path(str(images)) / str(table[name].iloc[0]) for name in columns]
        table = table.drop(columns=columns)
    if metadata is not None:
        lines.append(f"metadata: [{_quoted(_relative(Path(metadata), folder))}]  # joined by plate and well")
        more = read_table(metadata)
        more.columns = [n if str(n).startswith(METADATA) else f"{METADATA}{n}" for n in more.columns]
        table = pd.concat([table, more], axis=1)
    text = _text(folder, lines, channels, _roles(table, columns), table, first)
    with atomic_path(path) as part:
        part.write_text(text, "utf-8")
    read_study(path)
    return path


def _text(
    folder: Path,
    lines: list[str],
    channels: dict[str, str],
    roles: dict[str, str],
    table: pd.DataFrame,
    images: list[Path],
) -> str:
    size = next((read_image(image).shape for image in images if image.is_file()), None)
    lines.append(
        f"size: [{size[0]}, {size[1]}]  # height, width in px; a site of another size is left out"
        if size
        else "# size: [1080, 1080]  # height, width in px; a site of another size is left out"
    )
    lines.append("# pixel_size_um: 0.6  # of the sample; lets the locator judge sizes in micrometres")
    names = {role: roles.get(role) for role in _ROLES}
    controls = _controls(table, names["treatment"], names["compound"])
    nuclei = next((name for name in channels if any(word in name.lower() for word in _NUCLEI)), None)
    rows = [
        f"# {folder.resolve().name}: a deepprofile study. `deepprofile check` lists what is wrong with it,",
        "# `deepprofile run` makes everything. Relative paths start at this file.",
        "",
        "images:",
        *(f"  {line}" for line in lines),
        "",
        "channels:  # name: index column (or value in the file names); the order is the network's",
        *(f"  {_quoted(name)}: {_quoted(column)}" for name, column in channels.items()),
        "",
        "columns:  # which index column says what; all but the treatment or compound may stay out",
        *(f"  {role}: {_quoted(name)}" if name else f"  # {role}: Metadata_..." for role, name in names.items()),
        "",
        "# a pandas query for the control wells; intensities are scaled and profiles spherized by them",
        f"controls: {_quoted(controls)}" if controls else "# controls: \"Metadata_Compound == 'DMSO'\"",
        "",
        "seed: 0",
        "",
        "locate:",
        "  method: nuclei",
        f"  channel: {_quoted(nuclei)}"
        if nuclei
        else f"  channel: {_quoted(next(iter(channels)))}  # the one with nuclei?",
        '  # files: "locations/{plate}/{well}-{site}-Nuclei.csv"  # instead, where the cells are known',
        "",
        "crops:",
        "  size: 128  # px; about two cell diameters",
        "  mode: slice  # or interpolate, as DeepProfiler cuts",
        "  border: zero  # or reflect, or drop: cells whose crop leaves the image",
        "  normalize: plate_control  # or minmax (each crop by itself, loses intensity), or none",
        "",
        "profile:",
        "  network: efficientnet_b0  # `deepprofile models` lists all",
        "  weights: imagenet  # downloaded once; or a file; without it the network is untrained, a baseline",
        "  batch: 64",
        "",
        "profiles:",
        "  recipe: deep  # spherize by the controls over all plates, then the median of each treatment's wells",
        "  # fit: all  # where there are no controls",
        "",
        "scores:",
        f"  select: {_quoted(f'not ({controls})')}"
        if controls
        else "  # select: a pandas query for the profiles to score",
        "  # exclude_same: [Metadata_Plate]  # compare wells of different plates only",
        "",
    ]
    return "\n".join(rows)


def _looks_like_images(column: pd.Series) -> bool:
    return (
        column.dropna().astype(str).str.lower().str.endswith(SUFFIXES).mean() > 0.5 if len(column.dropna()) else False
    )


def _channel_name(column: str) -> str:
    return re.sub(r"^(?:Metadata_)?(?:FileName_|Image_FileName_)?(?:Orig)?", "", column) or column


def _image_root(index: Path, table: pd.DataFrame, columns: list[str]) -> Path:
    first = str(table[columns[0]].dropna().iloc[0])
    here = index.resolve().parent
    for root in (here, here / "images", here.parent, here.parent / "images"):
        if (root / first).is_file():
            return root
    return here


def _roles(table: pd.DataFrame, images: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for role, words in _ROLES.items():
        for word in words:
            names = [
                str(n) for n in table.columns if word in str(n).lower() and n not in images and n not in found.values()
            ]
            if names:
                name = min(names, key=len)  # Metadata_Compound before Metadata_Compound_Supplier
                found[role] = name if name.startswith(METADATA) else f"{METADATA}{name}"
                break
    return found


def _controls(table: pd.DataFrame, *columns: str | None) -> str | None:
    for column in columns:
        name = column if column in table else (column or "").removeprefix(METADATA)
        if column and name in table:
            for value in table[name].dropna().astype(str).unique():
                if value.lower() in _CONTROLS:
                    return f"{column} == {value!r}"
    return None


def _relative(path: Path, folder: Path) -> str:
    path, folder = path.resolve(), folder.resolve()
    try:
        return Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:  # another drive
        return path.as_posix()


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)

"""A first study.yaml: commented, with what an index or a folder of images lets one guess."""

import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from cytominer_tools.columns import METADATA, PLATE, SITE, WELL, require_columns
from cytominer_tools.errors import InputError
from cytominer_tools.files import atomic_path
from cytominer_tools.tables import read_table
from deepprofile.images import SUFFIXES, read_image
from deepprofile.loaddata import drop_image_columns, image_column, image_names
from deepprofile.patterns import PLANES, guess_pattern, scan_folder
from deepprofile.platemaps import join_metadata, join_platemaps, prefixed
from deepprofile.references import is_url, resolve
from deepprofile.study import NAME, read_study
from deepprofile.work import log

_CONTROLS = ("dmso", "control", "negcon", "vehicle", "untreated")
_BARCODES, _MAPS = "barcode_platemap.csv", ("platemap", "platemaps")  # as in the Cell Painting Gallery
_ROLES = {  # column of the study -> words in the name of an index column, tried in order
    "treatment": ("treatment", "pert_name", "perturbation", "gene", "genotype"),
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
    preset: str | None = None,
    platemaps: Path | None = None,
    metadata: Path | Sequence[Path] | None = None,
) -> Path:
    """Write a commented study.yaml into `folder` and return its path; look it over before the first run.

    Parameters
    ----------
    folder : Path
        The study's; made where it is absent.
    index : Path, optional
        A table with a row per site: Metadata_Plate, Metadata_Well, and columns of image paths, or those of LoadData
        (FileName_, PathName_, URL_).
    images : Path, optional
        Instead: a folder of images whose names hold plate, well, site and channel.
    pattern : str, optional
        How they do, as in `deepprofile.patterns.scan_folder`; by default the known pattern that fits most of them.
    preset : str, optional
        Instead: the microscope, one of `deepprofile.patterns.PRESETS`.
    platemaps : Path, optional
        A folder with barcode_platemap.csv and the maps in platemap/, as in the Cell Painting Gallery.
    metadata : Path or several, optional
        Tables of what the wells were treated with, joined by Metadata_Well (and Metadata_Plate), or where they have no
        wells by the columns that the tables before them have too.

    Raises
    ------
    InputError
        There is a study.yaml already, neither or both of `index` and `images`, no image column or name is found, or a
        table cannot be joined.
    """
    folder = Path(folder)
    path = new_path(folder)
    if (index is None) == (images is None):
        raise InputError("give either an index (a table with a row per site) or a folder of images")
    if images is None and (pattern or preset):
        raise InputError("a pattern or a preset says how images are called; give the folder of images with it")
    if pattern and preset:
        raise InputError("give either a pattern or a preset")
    if index is not None:
        table = read_table(index, metadata=True)
        require_columns(table, [PLATE, WELL], str(index))
        paths = _image_paths(table)
        if not paths:
            raise InputError(f"{index}: no column of image paths ({', '.join(SUFFIXES)})")
        channels = {_channel_name(name): name for name in paths}
        root = _image_root(Path(index), paths)
        lines = [f"index: {quoted(relative(Path(index), folder))}  # a row per site"]
        lines += [f"root: {quoted(relative(root, folder))}  # where the image paths of the index start"]
        table = drop_image_columns(table.drop(columns=[name for name in paths if name in table]))
        table.columns = prefixed(table, str(index))
    else:
        root = Path(str(images))
        pattern = pattern or guess_pattern(root, preset)
        table = scan_folder(root, pattern)
        paths = {str(name): table[name] for name in table.columns if name not in (PLATE, WELL, SITE)}
        channels = _short_names(list(paths))
        lines = [f"folder: {quoted(relative(root, folder))}"]
        lines += [f"pattern: {quoted(pattern)}  # named groups: plate, well (or row, col), site, channel, z"]
        if any(column.str.contains(PLANES, regex=False).any() for column in paths.values()):
            lines += ["projection: max  # of the z planes of a site"]
        table = table.drop(columns=list(paths))
    lines += ['# roots: {"/data/of/another/machine/": "images/"}  # where image paths start elsewhere'] if index else []
    if platemaps is not None:
        maps = next((platemaps / name for name in _MAPS if (platemaps / name).is_dir()), platemaps)
        table, lost = join_platemaps(table, platemaps / _BARCODES, maps)
        for problem in lost:
            if problem.level == "error":  # else the next table finds nothing to join by, and does not know why
                log.warning("init: %s: %s", problem.place, problem.what)
        barcodes = quoted(relative(platemaps / _BARCODES, folder))
        lines.append(f"platemaps: {{barcodes: {barcodes}, folder: {quoted(relative(maps, folder))}}}")
    entries = []
    for more in [metadata] if isinstance(metadata, str | Path) else metadata or []:
        on = _common(table, Path(more))
        table, _ = join_metadata(table, Path(more), on)
        name = quoted(relative(Path(more), folder))
        entries.append(f"{{table: {name}, on: [{', '.join(map(quoted, on))}]}}" if on else name)
    if entries:
        lines.append(f"metadata: [{', '.join(entries)}]  # joined by plate and well, or the columns named")
    first = [resolve(root, str(column.iloc[0]), "max") for column in paths.values() if len(column)]
    text = _text(folder, lines, channels, roles(table), table, first)
    with atomic_path(path) as part:
        part.write_text(text, "utf-8")
    read_study(path)
    return path


def new_path(folder: Path) -> Path:
    """The study.yaml to be written into `folder`; an InputError where there is one."""
    path = folder / NAME
    if path.exists():
        raise InputError(f"{path} is there already; edit it, or delete it to start anew")
    return path


def _text(
    folder: Path,
    lines: list[str],
    channels: dict[str, str],
    roles: dict[str, str],
    table: pd.DataFrame,
    images: Iterable[str],
) -> str:
    size = _size(images)
    lines.append(
        f"size: [{size[0]}, {size[1]}]  # height, width in px; a site of another size is left out"
        if size
        else "# size: [1080, 1080]  # height, width in px; a site of another size is left out"
    )
    lines.append("# pixel_size_um: 0.6  # of the sample; lets the locator judge sizes in micrometres")
    names = {role: roles.get(role) for role in _ROLES}
    controls = controls_query(table, names["treatment"], names["compound"])
    example = f"{query_name(names['treatment'] or names['compound'] or 'Metadata_Compound')} == 'DMSO'"
    nuclei = next((name for name in channels if any(word in name.lower() for word in _NUCLEI)), None)
    rows = [
        f"# {folder.resolve().name}: a deepprofile study. `deepprofile check` lists what is wrong with it,",
        "# `deepprofile run` makes everything. Relative paths start at this file.",
        "",
        "images:",
        *(f"  {line}" for line in lines),
        "",
        "channels:  # name: index column (or value in the file names); the order is the network's",
        *(f"  {quoted(name)}: {quoted(column)}" for name, column in channels.items()),
        "",
        "columns:  # which column says what; scores need the treatment or the compound, all others may stay out",
        *(f"  {role}: {quoted(name)}" if name else f"  # {role}: Metadata_..." for role, name in names.items()),
        "",
        "# a pandas query for the control wells; intensities are scaled and profiles spherized by them",
        f"controls: {quoted(controls)}" if controls else f"# controls: {quoted(example)}",
        "",
        "seed: 0",
        "",
        "locate:",
        "  method: nuclei",
        f"  channel: {quoted(nuclei)}"
        if nuclei
        else f"  channel: {quoted(next(iter(channels)))}  # the one with nuclei?",
        '  # files: "locations/{plate}/{well}-{site}-Nuclei.csv"  # instead, where the cells are known',
        "",
        "crops:",
        "  size: 128  # px; about two cell diameters",
        "  mode: slice  # or interpolate, as DeepProfiler cuts",
        "  border: zero  # or reflect, or drop: cells whose crop leaves the image",
        "  normalize: plate_control  # or minmax (each crop by itself, loses intensity), or none",
        "",
        "# train: {}  # teaches the network to tell the treatments apart; profile.weights: trained then uses it",
        "",
        "profile:",
        "  network: efficientnet_b0  # `deepprofile models` lists all",
        "  weights: imagenet  # downloaded once; or a file; without this line the network is untrained, a baseline",
        "  batch: 64",
        "",
        "profiles:",
        "  recipe: deep  # spherize by the controls over all plates, then the median of each treatment's wells",
        "  # fit: all  # spherize by all wells, where there are no controls",
        "",
        "scores:",
        f"  select: {quoted(f'not ({controls})')}"
        if controls
        else f"  # select: {quoted(f'not ({example})')}  # leaves out the controls that spherizing learns from",
        "  # exclude_same: [Metadata_Plate]  # compare wells of different plates only",
        "",
    ]
    return "\n".join(rows)


def _size(references: Iterable[str]) -> tuple[int, ...] | None:
    for reference in references:
        if not is_url(reference):
            try:
                return read_image(reference).shape
            except InputError:  # `check` says what is wrong with it
                continue
    return None


def _image_paths(table: pd.DataFrame) -> dict[str, pd.Series]:
    """Image -> its paths: LoadData's images but for illumination functions, or columns of names of image files."""
    found = {}
    for name in image_names(table):
        if (f"PathName_{name}" in table or f"URL_{name}" in table) and not name.startswith("Illum"):
            found[name] = image_column(table, name)
    if not found:
        columns = [name for name in table.columns if _looks_like_images(table[name])]
        columns = [name for name in columns if "mask" not in str(name).lower()] or columns  # made from the images
        found = {str(name): table[name].fillna("").astype("str") for name in columns}
    return found


def _looks_like_images(column: pd.Series) -> bool:
    words = column.dropna().astype(str).str.lower()
    return len(words) > 0 and words.str.endswith(SUFFIXES).mean() > 0.5


def _channel_name(column: str) -> str:
    return re.sub(r"^(?:Metadata_)?(?:FileName_|Image_FileName_)?(?:Orig)?", "", column) or column


def _short_names(values: list[str]) -> dict[str, str]:
    """Names for the values of the channel group: 1 is ch1, "Cy3 - Red" Red where that is the only one.

    >>> _short_names(["1"]), _short_names(["390 - Blue", "473 - Red"])
    ({'ch1': '1'}, {'Blue': '390 - Blue', 'Red': '473 - Red'})
    """
    ends = [value.rpartition(" - ")[2] for value in values]
    names = ends if len(set(ends)) == len(ends) else values
    return {(f"ch{name}" if name.isdigit() else name): value for name, value in zip(names, values, strict=True)}


def _image_root(index: Path, paths: dict[str, pd.Series]) -> Path:
    first = next((path for column in paths.values() for path in column if path), "")
    here = index.resolve().parent
    for root in (here, here / "images", here.parent, here.parent / "images"):
        if (root / first).is_file():
            return root
    return here


def _common(table: pd.DataFrame, path: Path) -> list[str]:
    """The columns by which a table without wells and plates is joined."""
    more = read_table(path, metadata=True)
    bare = {str(name).removeprefix(METADATA) for name in more.columns}
    if bare & {"Plate", "Well", "plate", "well", "well_position", "Assay_Plate_Barcode"}:
        return []
    if not (on := [name for name in map(str, table.columns) if name.removeprefix(METADATA) in bare]):
        raise InputError(
            f"{path}: none of its columns ({', '.join(map(str, more.columns[:8]))}) is one of the index or of the "
            "tables before it; add a column Metadata_Well, or mend the table or plate map that should bring one"
        )
    return on


def roles(table: pd.DataFrame) -> dict[str, str]:
    """Which columns of `table` look like the treatment, the compound, .. of the `columns` section."""
    found: dict[str, str] = {}
    for role, words in _ROLES.items():
        for word in words:
            names = [n for n in map(str, table.columns) if word in n.lower() and n not in found.values()]
            if names:
                name = min(names, key=len)  # Metadata_Compound before Metadata_Compound_Supplier
                found[role] = name if name.startswith(METADATA) else f"{METADATA}{name}"
                break
    return found


def controls_query(table: pd.DataFrame, *columns: str | None) -> str | None:
    """A query for the first of `columns`, or of those with control in their name, that holds DMSO, negcon, ..."""
    for column in (*columns, *(n for n in map(str, table.columns) if "control" in n.lower())):
        name = column if column in table else (column or "").removeprefix(METADATA)
        if column and name in table:
            for value in table[name].dropna().astype(str).unique():
                if value.lower() in _CONTROLS:
                    return f"{query_name(str(column))} == {value!r}"
    return None


def query_name(column: str) -> str:
    """`column` as a query calls it.

    >>> query_name("Metadata_Compound"), query_name("Metadata_Compound Name")
    ('Metadata_Compound', '`Metadata_Compound Name`')
    """
    return column if column.isidentifier() else f"`{column}`"


def relative(path: Path, folder: Path) -> str:
    """`path` as study.yaml in `folder` calls it."""
    path, folder = path.resolve(), folder.resolve()
    try:
        return Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:  # another drive
        return path.as_posix()


def quoted(text: str) -> str:
    """`text` as YAML."""
    return json.dumps(text, ensure_ascii=False)

"""A DeepProfiler project in place: the study.yaml that says what its JSON config, index.csv and folders say."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from cytominer_tools.columns import METADATA, PLATE, SITE, WELL, metadata_columns, require_columns
from cytominer_tools.errors import InputError
from cytominer_tools.files import atomic_path
from cytominer_tools.tables import read_table, write_table
from deepprofile.loaddata import slashes
from deepprofile.platemaps import plain_well, prefixed, well_spellings
from deepprofile.problems import named
from deepprofile.study import read_study
from deepprofile.template import controls_query, new_path, query_name, quoted, relative, roles

# a key -> what older versions called it: 0.1 (2018), and those before 0.3.0 (2021)
_OLD = {
    "dataset.metadata.label_field": ("sampling.field",),
    "dataset.metadata.control_value": ("dataset.metadata.control_id",),
    "dataset.images.channels": ("image_set.channels",),
    "dataset.images.width": ("image_set.width",),
    "dataset.images.height": ("image_set.height",),
    "dataset.images.bits": ("image_set.bits", "original_images.bits"),
    "dataset.images.file_format": ("image_set.file_format", "original_images.file_format"),
    "dataset.locations.mode": ("image_set.mode",),
    "dataset.locations.box_size": ("sampling.box_size", "image_set.box_size"),
    "dataset.locations.mask_objects": ("image_set.mask_objects",),
    "train.partition.targets": ("training.targets",),
    "train.model.name": ("model.name", "model.type"),
    "train.model.crop_generator": ("model.crop_generator",),
    "train.model.initialization": ("model.initialization",),
    "train.model.params.conv_blocks": ("model.params.conv_blocks", "model.conv_blocks"),
    "profile.feature_layer": ("profiling.feature_layer",),
    "profile.checkpoint": ("profiling.checkpoint",),
    "profile.batch_size": ("profiling.batch_size", "profiling.minibatch"),
    "paths.index": ("image_set.index",),
}
# what the files say themselves, or what nothing read
_NEEDLESS = (
    *("dataset.images.file_format", "dataset.images.bits", "dataset.locations.area_coverage"),
    *("dataset.locations.view_size", "prepare.compression.scaling_factor", "paths", "train.validation.frame"),
)
_LAYERS = {"avg_pool": "features", "pool5": "features", "features": "features"}
_NETWORKS = {f"efficientnet_b{number}": f"efficientnet_b{number}" for number in range(8)} | {
    f"resnet{depth}": f"keras_resnet{depth}v2" for depth in (50, 101, 152)
}
Era = Literal["legacy_over_max", "minmax", "zscore"]


@dataclass(frozen=True)
class ProjectStudy:
    """What `init_deepprofiler` wrote, and what its reader should know."""

    path: Path  # of study.yaml
    notes: tuple[str, ...]  # what is missing, and what has no counterpart


def init_deepprofiler(
    folder: Path,
    root: Path,
    *,
    config: str | None = None,
    index: str | None = None,
    normalize: Era = "legacy_over_max",
) -> ProjectStudy:
    """Write a study.yaml into `folder` for the DeepProfiler project at `root`; its files stay where they are.

    Parameters
    ----------
    folder : Path
        The study's; made where it is absent. Where the project reads compressed images an index.csv with their paths
        is written there too.
    root : Path
        The project's: inputs/config, inputs/metadata, inputs/images, inputs/locations, outputs.
    config : str, optional
        A file of inputs/config, by default the only one; keys of DeepProfiler 0.1 to 0.5 are known.
    index : str, optional
        A file of inputs/metadata, by default index.csv, or else the only table with Metadata_Plate there.
    normalize : "legacy_over_max", "minmax" or "zscore"
        How the DeepProfiler that made or will use the network scaled crops, which no config says: the first in all of
        its releases of September 2021 to August 2024 (0.3.0 to 0.5.0), and so in most profiles that are published and
        for Cell Painting CNN v1; the second since then (0.3.1 of 2024, 0.5.1); the third in those before (0.2.0).

    Returns
    -------
    ProjectStudy
        The path of study.yaml; notes on images, locations and weights that are missing, controls that do not occur,
        and settings that a study has no counterpart for.

    Raises
    ------
    InputError
        There is a study.yaml already; the config or the index is absent, ambiguous, or lacks a key or a column.

    References
    ----------
    github.com/cytomining/DeepProfiler 0.3.1: image_dataset.py, boxes.py, cropping.py, profiling.py.
    """
    folder, root = Path(folder), Path(root)
    path = new_path(folder)
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; expected a DeepProfiler project")
    settings = _Settings(_config_path(root / "inputs" / "config", config))
    notes: list[str] = []
    place = _index_path(settings, root, index, notes)
    table = read_table(place, metadata=True)
    channels = [str(name) for name in settings.need("dataset.images.channels", list)]
    require_columns(table, [PLATE, WELL, *channels], str(place))
    if SITE not in table:
        table[SITE] = "1"
    compressed = bool(settings.get("prepare.compression.implement", False))
    kind, usual = ("compressed_images", "outputs/compressed/images") if compressed else ("images", "inputs/images")
    images = _folder(settings, root, kind, usual)
    if compressed:
        table = table.assign(**{name: _compressed(table, name, images) for name in channels})
        place = write_table(table, folder / "index.csv")
        notes.append(f"{place}: the index with the paths of the compressed images, which are 8-bit and were stretched")
    lost, total = _missing_images(table, channels, images)
    if lost:
        notes.append(f"{len(lost)} of {total} images are not in {images}: {named(lost, 10)}")
    locations = _folder(settings, root, "locations", "inputs/locations")
    notes += _missing_locations(table, locations)
    study = table.drop(columns=channels)
    study.columns = prefixed(study, str(place))
    columns, controls = _columns(settings, study, notes)
    profile = _profile(settings, root, channels, notes)
    crops, masked = settings.number("dataset.locations.box_size"), _outlines(settings, root, folder, notes)
    if settings.get("dataset.locations.mode", "single_cells") == "full_image":
        crops, masked = settings.number("dataset.locations.view_size", None) or crops, []
        profile.append("  tiles: true  # instead of cells")
        notes.append(
            f"dataset.locations.mode: full_image becomes tiles of {crops} x {crops} px that cover each site; "
            "crops.size is their side"
        )
    light = [
        settings.number(f"prepare.illumination_correction.{n}", None)
        for n in ("down_scale_factor", "median_filter_size")
    ]
    downscale, window = light[0] or 4, light[1] or 24
    height, width = (settings.number(f"dataset.images.{name}", None) for name in ("height", "width"))
    size = f"  size: [{height}, {width}]  # height, width in px" if height and width else "  # size: [1080, 1080]"
    template = "{plate}/{well}-{site}-Nuclei.csv"
    text = [
        f"# {root.resolve().name}: a DeepProfiler project, read in place, as {settings.path.name} has it.",
        "# `deepprofile check` lists what is wrong with it, `deepprofile run` makes everything.",
        "",
        "images:",
        f"  index: {quoted(relative(place, folder))}",
        f"  root: {quoted(relative(images, folder))}  # where the image paths of the index start",
        size,
        "",
        "channels:  # the order is the network's",
        *(f"  {quoted(name)}: {quoted(name)}" for name in channels),
        "",
        "columns:",
        *(f"  {role}: {quoted(name)}" for role, name in columns.items()),
        "",
        *controls,
        "",
        "# as `prepare` corrects the images that it compresses; `profile` reads images as they are",
        f"# illumination: {{method: deepprofiler, window: {window * downscale}, downscale: {downscale}}}",
        "",
        "locate:",
        f"  files: {quoted(relative(locations, folder) + '/' + template)}",
        *masked,
        "",
        "crops:",
        f"  size: {crops}",
        "  mode: interpolate  # as DeepProfiler cuts, bit for bit",
        "  border: zero",
        "  # what DeepProfiler did: legacy_over_max from September 2021 to August 2024, so for Cell Painting CNN;",
        "  # minmax since then; zscore before. All lose intensity, which plate_control keeps",
        f"  normalize: {normalize}",
        *(["  mask: true  # pixels of other regions between the outlines are 0"] if masked else []),
        "",
        *profile,
        *_made_features(root, folder),
        "",
    ]
    if not columns:
        text.remove("columns:")
    notes += settings.unused()
    with atomic_path(path) as part:
        part.write_text("\n".join(text), "utf-8")
    read_study(path)
    return ProjectStudy(path, tuple(notes))


class _Settings:
    """A config, whose keys are asked for by their newest name; what was not asked for is told in the end."""

    def __init__(self, path: Path):
        self.path = path
        self.found = _read_json(path)
        self.used: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        for name in (key, *_OLD.get(key, ())):
            value: Any = self.found
            for part in name.split("."):
                value = value.get(part) if isinstance(value, dict) else None
            if value is not None:
                self.used.add(name)
                return value
        return default

    def need(self, key: str, kind: type) -> Any:
        value = self.get(key)
        if not isinstance(value, kind) or not value:
            came = "it is absent" if value is None else f"got {value!r}"
            raise InputError(f"{self.path}: {key}: expected a {kind.__name__}, {came}")
        return value

    def number(self, key: str, *default: None) -> int | None:
        value = self.get(key)
        if value is None and default:
            return None
        if isinstance(value, bool) or not isinstance(value, int):
            raise InputError(f"{self.path}: {key}: expected a whole number, got {value!r}")
        return value

    def unused(self) -> Iterator[str]:
        """What a study has no counterpart for, by section."""
        needless = {*_NEEDLESS, *(old for new in _NEEDLESS for old in _OLD.get(new, ()))}
        rest = [
            key
            for key in _leaves(self.found)
            if not any(key == known or key.startswith(f"{known}.") for known in self.used | needless)
        ]
        sections: dict[str, list[str]] = {}
        for key in rest:
            head, _, tail = key.partition(".")
            sections.setdefault(head, []).append(tail or head)
        for head, keys in sections.items():
            yield f"{self.path.name}: {head}: no counterpart for {', '.join(keys)}"


def _leaves(found: Mapping[str, Any], start: str = "") -> Iterator[str]:
    for key, value in found.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{start}{key}.")
        else:
            yield f"{start}{key}"


def _read_json(path: Path) -> dict[str, Any]:
    def distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        if twice := [name for i, name in enumerate(names) if name in names[:i]]:
            raise InputError(f"{path}: the key {twice[0]!r} stands twice in one section; remove one")
        return dict(pairs)

    try:
        found = json.loads(path.read_text("utf-8-sig"), object_pairs_hook=distinct)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path}: not JSON, {error}; mend it") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read, {error.strerror}") from None
    if not isinstance(found, dict):
        raise InputError(f"{path}: expected an object of settings, got {type(found).__name__}")
    return found


def _config_path(folder: Path, name: str | None) -> Path:
    if name is not None:
        path = next((p for p in (folder / name, folder / f"{name}.json", Path(name)) if p.is_file()), None)
        if path is None:
            have = ", ".join(sorted(p.name for p in folder.glob("*.json"))) or "no .json file"
            raise InputError(f"{folder / name}: no such file; there is {have}")
        return path
    # there may be settings of a logger beside it
    found = sorted(p for p in folder.glob("*.json") if {"dataset", "image_set"} & _read_json(p).keys())
    if len(found) != 1:
        have = f"{len(found)} configs ({', '.join(p.name for p in found)})" if found else "no config (.json)"
        raise InputError(f"{folder}: {have}; name one with --config")
    return found[0]


def _index_path(settings: _Settings, root: Path, name: str | None, notes: list[str]) -> Path:
    folder = _folder(settings, root, "metadata", "inputs/metadata")
    if name is not None:
        path = next((p for p in (folder / name, Path(name)) if p.is_file()), None)
        if path is None:
            raise InputError(f"{folder / name}: no such file")
        return path
    if (folder / "index.csv").is_file():
        return folder / "index.csv"
    found = [p for p in sorted(folder.glob("*.csv")) if PLATE in read_table(p).columns] if folder.is_dir() else []
    if len(found) != 1:
        have = f"; tables of sites are {', '.join(p.name for p in found)}" if found else ""
        raise InputError(f"{folder / 'index.csv'}: no such file{have}; name one with --index")
    notes.append(f"there is no index.csv in {folder}; {found[0].name} is taken for it")
    return found[0]


def _folder(settings: _Settings, root: Path, key: str, usual: str) -> Path:
    """A folder of the project; `paths` of the config may move it."""
    moved = settings.get(f"paths.{key}")
    if not isinstance(moved, str):
        return root / usual
    here = root / slashes(moved).strip("/")  # they were appended to the root as text
    return here if here.is_dir() or not Path(moved).is_dir() else Path(moved)


def _compressed(table: pd.DataFrame, channel: str, images: Path) -> pd.Series:
    """Where `prepare` put each image: below its plate, as a PNG; the index of a later run may say its own folder."""

    def find(row: tuple[str, str]) -> str:
        name = re.sub(r"\.\w+$", ".png", slashes(row[1]))
        flat = f"{row[0]}/{name.rpartition('/')[2]}"
        return name if not (images / flat).is_file() and (images / name).is_file() else flat

    paths = table[channel].fillna("").astype("str")
    found = [find(row) if row[1] else "" for row in zip(table[PLATE], paths, strict=True)]
    return pd.Series(found, index=table.index)


def _missing_images(table: pd.DataFrame, channels: list[str], images: Path) -> tuple[list[str], int]:
    paths = [slashes(str(path)) for name in channels for path in table[name].dropna() if path]
    return [path for path in paths if not (images / path).is_file()], len(paths)


def _missing_locations(table: pd.DataFrame, folder: Path) -> Iterator[str]:
    lost, other = [], []
    for plate, well, site in table[[PLATE, WELL, SITE]].astype("str").itertuples(index=False):
        theirs = f"{plate}/{well}-{int(site) if site.isdecimal() else site}-Nuclei.csv"  # it read sites as numbers
        ours = f"{plate}/{plain_well(well) or well}-{site}-Nuclei.csv"
        if any((folder / plate / f"{name}-{site}-Nuclei.csv").is_file() for name in well_spellings(well)):
            continue
        if (folder / theirs).is_file():
            other.append(f"{theirs} to {ours}")
        else:
            lost.append(theirs)
    if lost:
        yield f"{len(lost)} of {len(table)} location files are not in {folder}: {named(lost, 10)}"
    if other:
        yield f"{len(other)} location files are called otherwise than the site; rename {named(other, 10)}"


def _columns(settings: _Settings, table: pd.DataFrame, notes: list[str]) -> tuple[dict[str, str], list[str]]:
    """The `columns` section, and the lines of `controls`."""
    have = metadata_columns(table)
    found = roles(table)
    label = settings.get("dataset.metadata.label_field")
    column = _prefix(label) if isinstance(label, str) else None
    targets = settings.get("train.partition.targets")
    target = _prefix(str(targets[0])) if isinstance(targets, list) and targets else None
    if column in have:
        found = {"treatment": str(column), **{role: name for role, name in found.items() if name != column}}
        found["treatment"] = str(column)
    elif label is not None:
        notes.append(f"dataset.metadata.label_field: no column {label!r} in the index")
    if target in have and target not in found.values() and "compound" not in found:
        found["compound"] = str(target)
    elif target is not None and target not in have:
        notes.append(f"train.partition.targets: no column {target.removeprefix(METADATA)!r} in the index")
    dose = found.get("concentration")
    if dose and not pd.api.types.is_numeric_dtype(table[dose]):
        notes.append(f"{dose} holds text and is not taken for a concentration")
        del found["concentration"]
    value = settings.get("dataset.metadata.control_value")
    guess = controls_query(table, found.get("treatment"), found.get("compound"))
    if column not in have or value is None:
        query = [f"controls: {quoted(guess)}  # a guess"] if guess else []
    else:
        numeric = pd.api.types.is_numeric_dtype(table[column])
        theirs = f"{query_name(str(column))} == {value if numeric else repr(str(value))}"
        # 1 and "1" were the same to nobody, so a number is looked for as it is
        occurs = (table[column].astype("str") == str(value)).any() or (numeric and (table[column] == value).any())
        if occurs:
            query = [f"controls: {quoted(theirs)}"]
        else:
            values = ", ".join(map(repr, table[column].dropna().astype("str").unique()[:5]))
            instead = f"; controls are guessed as {guess}" if guess else "; set controls in study.yaml"
            notes.append(
                f"dataset.metadata.control_value: {value!r} does not occur in {label} of the index, which holds "
                f"{values}{instead}"
            )
            query = [f"# {settings.path.name} says {theirs}, which is nowhere in the index"]
            query += [f"controls: {quoted(guess)}  # a guess"] if guess else []
    return found, query or ["# controls: \"Metadata_Treatment == 'DMSO'\""]


def _prefix(name: str) -> str:
    return name if name.startswith(METADATA) else f"{METADATA}{name}"


def project_channels(root: Path) -> set[tuple[str, ...]]:
    """The channels, in their order, of each config of the DeepProfiler project at `root`."""
    orders = set()
    for path in (root / "inputs" / "config").glob("*.json"):
        try:
            names = _Settings(path).get("dataset.images.channels")
        except InputError:
            continue  # not a config, or a damaged one, which `init` says
        if isinstance(names, list) and names:
            orders.add(tuple(map(str, names)))
    return orders


def _profile(settings: _Settings, root: Path, channels: list[str], notes: list[str]) -> list[str]:
    """The `profile` section, as far as the networks here are those of the config."""
    name = settings.get("train.model.name", "")
    blocks = settings.get("train.model.params.conv_blocks", 0)
    network = f"{name}_b{blocks}" if name == "efficientnet" else f"{name}{blocks or ''}"
    lines = ["profile:"]
    if network in _NETWORKS:
        lines.append(f"  network: {_NETWORKS[network]}")
    else:
        lines.append(
            f"  network: efficientnet_b0  # the config says {network}; `deepprofile models` lists what there is"
        )
        notes.append(
            f"train.model.name: {network} is taken for efficientnet_b0; `deepprofile models` lists what there is"
        )
    checkpoint = settings.get("profile.checkpoint", "None")
    imagenet = settings.get("train.model.initialization", "ImageNet") == "ImageNet"
    if checkpoint in ("None", "", None):
        comment = "  # as the config has it" if imagenet else "  # the config says random weights: leave it out"
        lines.append(f"  weights: imagenet{comment}" if imagenet else f"  # weights: imagenet{comment}")
    else:
        found = sorted(root.glob(f"outputs/*/checkpoint/{Path(str(checkpoint)).name}"))
        if len(found) == 1:
            lines.append(f"  weights: {quoted(found[0].resolve().as_posix())}")
            _tell_order(found[0], channels, notes)
        else:
            have = f"{len(found)} files" if found else "no file"
            notes.append(f"profile.checkpoint: {have} outputs/*/checkpoint/{checkpoint}; give profile.weights a file")
            lines.append(f"  # weights: {quoted(str(checkpoint))}  # {have} of that name; untrained without it")
    layer = str(settings.get("profile.feature_layer", "avg_pool"))
    lines.append(f"  layer: {quoted(_LAYERS.get(layer, layer))}  # {layer} in DeepProfiler")
    if (batch := settings.number("profile.batch_size", None)) is not None:
        lines.append(f"  batch: {batch}")
    if settings.get("train.model.crop_generator") == "repeat_channel_crop_generator":
        side = settings.number("profile.use_pretrained_input_size", None) or 224
        lines += ["  mode: repeat_channel  # the network sees each channel by itself", f"  input_size: {side}"]
    return lines


def _outlines(settings: _Settings, root: Path, folder: Path, notes: list[str]) -> list[str]:
    """What masks the cells, as lines of `locate`; none where the project does not mask them."""
    masks, named = settings.get("dataset.locations.mask_objects", False), settings.get("prepare.outlines")
    if not masks:
        return []
    table = _folder(settings, root, "metadata", "inputs/metadata") / "outlines.csv"
    if not named or not table.is_file():
        notes.append(
            f"dataset.locations.mask_objects: no outlines (prepare.outlines, {table}), without which DeepProfiler "
            "stops; here crops show the neighbours of a cell"
        )
        return []
    where = f"table: {quoted(relative(table, folder))}, root: {quoted(relative(root / 'inputs' / 'outlines', folder))}"
    return [f"  outlines: {{{where}}}", "  labels: true"]


def _made_features(root: Path, folder: Path) -> Iterator[str]:
    """A comment for the features that DeepProfiler has made, by the name of their files."""
    for place in sorted(root.glob("outputs/*/features")):
        for pattern, layout in (("*/*/*.npz", "{plate}/{well}/{site}.npz"), ("*/*_*.npz", "{plate}/{well}_{site}.npz")):
            if next(place.glob(pattern), None) is not None:
                files = quoted(f"{relative(place, folder)}/{layout}")
                yield f"  # files: {files}  # instead: what DeepProfiler made; without network and weights"


def _tell_order(checkpoint: Path, channels: list[str], notes: list[str]) -> None:
    from deepprofile.deepprofiler_weights import require_order, trained_channels

    known = trained_channels(checkpoint)
    if known is not None:
        try:
            require_order(str(checkpoint), known[0], channels)
        except InputError as error:
            notes.append(f"profile.checkpoint: {error}")

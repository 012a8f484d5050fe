"""A study: a folder with study.yaml, read once, frozen; everything else in the folder is derived from it."""

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path, PurePosixPath
from string import Formatter
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError, model_validator

from cytominer_tools.errors import InputError
from cytominer_tools.files import locked, locked_together, safe_name, sweep
from deepprofile.parts import Share
from deepprofile.preprocess import CropSettings, Preprocess
from deepprofile.recipes import BUILT_IN, STEPS, Recipe, find_recipe
from deepprofile.references import Projection, is_url
from deepprofile.yaml import read_yaml

NAME = "study.yaml"
LOCATION_TABLES = (".csv", ".csv.gz", ".parquet")
LOCATION_DATABASES = (".sqlite", ".sqlite3", ".db")
LOCATION_LABELS = (".tif", ".tiff", ".png")
_WIDTH = re.compile(r"^(?:0?[<>])?(?:[1-9]\d?)?s?$")  # {site:0>2} is 01
_EPOCH = re.compile(r"-epoch\d+(?=-|$)")  # in the name of a set of features
WEIGHTS = (".keras", ".weights.h5", ".h5", ".hdf5")
# folders that stages write to
STAGES = ("illumination", "locations", "crops", "models", "features", "profiles", "scores", "neighbours")


SPLITS_AS_THEY_ARE = ("one", "two", "TD1", "TD2", "TD3", "cross_dose")  # nothing is drawn by a fraction


# beside precision at R and enrichment, which are always there
Metric = Literal[
    "mean_average_precision",
    "nearest",
    "hit_s20",
    "robust_enrichment",
    "percent_replicating",
    "precision_at_5",
    "precision_at_10",
    "recall_at_5",
    "recall_at_10",
    "kbet",  # the last three: of control wells by plate, batch and position
    "lisi",
    "component_association",
]


class Section(BaseModel, frozen=True, extra="forbid"):
    """A part of study.yaml: frozen, and unknown keys are refused."""


class MetadataTable(Section):
    """An entry of `images.metadata`: a table, and the columns it is joined by; its path alone will do."""

    table: str
    on: tuple[str, ...] = ()  # plate and well by default, as far as the table has them

    @model_validator(mode="before")
    @classmethod
    def _path_alone(cls, value: Any) -> Any:
        return {"table": value} if isinstance(value, str) else value


class Platemaps(Section):
    """The `images.platemaps` section: which plate has which map, and the folder of the maps."""

    barcodes: str  # a table with Assay_Plate_Barcode and Plate_Map_Name
    folder: str  # a .txt, .tsv or .csv per map, with well_position


class Images(Section):
    """The `images` section: where the sites and their images are listed."""

    index: str | None = None  # a table with a row per site, relative to study.yaml; * stands for several
    folder: str | None = None  # or a folder of images, with
    pattern: str | None = None  # a regular expression with named groups plate, well (or row, col), site, channel
    platemaps: Platemaps | None = None  # joined to the sites before the metadata
    metadata: tuple[MetadataTable, ...] = ()  # tables joined to the sites
    zarr: str | tuple[str, ...] | None = None  # or OME-Zarr plates: folders or URLs, from root
    root: str = "."  # the folder or URL that relative image paths start from
    roots: dict[str, str] = {}  # starts of image paths -> what replaces them, where a table comes from elsewhere
    projection: Projection | None = None  # of a z stack to one plane
    size: tuple[int, int] | None = None  # height, width in px that every image must have
    pixel_size_um: float | None = Field(None, gt=0)

    @model_validator(mode="after")
    def _one_source(self) -> "Images":
        if sum(source is not None for source in (self.index, self.folder, self.zarr)) != 1:
            raise ValueError("give either index (a table with a row per site), folder with pattern, or zarr")
        if (self.folder is None) != (self.pattern is None):
            raise ValueError("folder and pattern go together")
        return self


class Illumination(Section):
    """The `illumination` section: how uneven light is taken out of the images of a plate, and their quality control."""

    method: Literal["none", "deepprofiler", "smooth", "files"] = "none"
    files: str | None = None  # functions of CellProfiler such as "illum/{plate}/{plate}_Illum{channel}.npy"
    filter: Literal["median", "gaussian"] = "median"  # of smooth
    window: float | None = Field(None, gt=0)  # of the filter, px of the full image; 96 for deepprofiler, 80 for smooth
    window_um: float | None = Field(None, gt=0)  # instead
    downscale: int = Field(4, ge=1, le=32)  # the mean image is made smaller by this before it is smoothed
    qc: bool = False  # read every site, and write its quality, also where no correction needs every site

    @model_validator(mode="after")
    def _one_method(self) -> "Illumination":
        if (self.method == "files") != (self.files is not None):
            raise ValueError("method files and the key files, a template of .npy files, go together")
        if self.window is not None and self.window_um is not None:
            raise ValueError("give either window (px) or window_um")
        return self


class Columns(Section):
    """The `columns` section: which index column holds what."""

    treatment: str | None = None
    compound: str | None = None
    concentration: str | None = None
    moa: str | None = None
    batch: str | None = None


class Outlines(Section):
    """The `locate.outlines` section: images of lines that part the cells, as DeepProfiler's projects have them."""

    table: str  # with Metadata_Plate, _Well, _Site and Outlines, an image
    root: str  # the folder where the paths of the images start


class Locate(Section):
    """The `locate` section: a locator plugin that finds the cells, or files that hold their centres."""

    method: str = "nuclei"
    channel: str | tuple[str, ...] | None = None  # what the locator sees, nuclei first; the first channel by default
    params: dict[str, Any] = {}
    files: str | None = None  # instead: tables, databases or label images such as "{plate}/{well}-{site}-Nuclei.csv"
    object: str = Field("Nuclei", min_length=1)  # whose centres, where the files have those of several; or Cells
    x: str | None = None  # its columns, where they have no usual name
    y: str | None = None
    labels: bool = False  # keep the label image of each site
    outlines: Outlines | None = None  # makes label images for centres that are in tables

    @model_validator(mode="after")
    def _known_files(self) -> "Locate":
        if (self.x is None) != (self.y is None):
            raise ValueError("x and y go together")
        if self.files is not None:
            suffixes = (*LOCATION_TABLES, *LOCATION_DATABASES, *LOCATION_LABELS)
            if not self.files.lower().endswith(suffixes):
                raise ValueError(f"files {self.files!r}: the suffix must be one of {', '.join(suffixes)}")
            if self.labels and not self.outlines and not self.files.lower().endswith(LOCATION_LABELS):
                raise ValueError(f"labels: {self.files!r} holds centres; label images are {', '.join(LOCATION_LABELS)}")
        if self.outlines is not None and (self.files is None or self.files.lower().endswith(LOCATION_LABELS)):
            raise ValueError("outlines part cells whose centres are in tables: give files, such as a .csv a site")
        return self


class Export(Section):
    """The `export` section: the crops that are kept for training, and how."""

    depth: Literal["uint8", "original"] = "uint8"  # scaled to 0..255 as `crops` says, or counts as they are
    compression: Literal["lz4", "none"] = "lz4"  # of each crop by itself
    query: str | None = None  # a pandas query on index and location columns: the cells that are kept
    treatments: str | None = None  # a file that lists the treatments that are kept
    fraction: float | None = Field(None, gt=0, le=1)  # of the cells of each well, drawn by the seed
    per_well: int | None = Field(None, ge=1)  # cells at most
    per_treatment: int | None = Field(None, ge=1)


class Augment(Section):
    """The `train.augment` section; the ranges are those of Bornholdt 2021, section 3.2, as DeepProfiler draws them."""

    crop: float = Field(0.8, gt=0, le=1)  # smallest side of the square that is cut out and resized back; 1: none
    crop_probability: float = Field(0.5, ge=0, le=1)
    flip: bool = True  # left to right, at p = 0.5
    rotate: bool = True  # by 0 to 3 quarter turns
    brightness: float = Field(0.1, ge=0, le=1)  # added to each channel, at most
    contrast: float = Field(0.2, ge=0, lt=1)  # about each channel's mean, between 1 - this and 1 + this
    jitter: float = Field(0.0, ge=0, lt=1)  # of each channel's intensity, a factor between 1 - this and 1 + this
    mixup: float = Field(0.0, ge=0)  # both parameters of its beta distribution; 0: none


class Schedule(Section):
    """The `train.schedule` section: the learning rate by epoch, counted from 0; the kind alone will do."""

    kind: Literal["constant", "step", "cosine", "plateau"] = "cosine"
    warmup: Literal["linear", "harmonic"] = "linear"  # of cosine; harmonic is DeepProfiler's
    warmup_epochs: int = Field(5, ge=0)
    steps: dict[Annotated[int, Field(ge=0)], float] = {}  # of step: the epoch from which on a rate counts
    patience: int = Field(5, ge=1)  # of plateau: epochs without a lower validation loss
    factor: float = Field(0.1, gt=0, lt=1)
    minimum: float = Field(1e-4, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _kind_alone(cls, value: Any) -> Any:
        return {"kind": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _steps_of_step(self) -> "Schedule":
        if (self.kind == "step") != bool(self.steps):
            raise ValueError("kind step and the key steps, such as {10: 0.01, 20: 0.005}, go together")
        for kind, keys in (("cosine", ("warmup", "warmup_epochs")), ("plateau", ("patience", "factor", "minimum"))):
            for key in keys:
                if kind != self.kind and key in self.model_fields_set:
                    raise ValueError(f"{key} belongs to the kind {kind}, and the kind is {self.kind}; leave it out")
        return self


class Split(Section, coerce_numbers_to_str=True):  # concentrations may be listed as numbers
    """The `train.split` section: which cells train and which validate; `by` alone will do."""

    by: str = "well"  # cell, site, well, replicate, plate, batch, compound, concentration, a column, or a preset
    fraction: float = Field(0.2, gt=0, lt=1)  # of the units of each class that validate, drawn by the seed
    train: tuple[str, ...] = ()  # instead: the values of `by` that train
    validation: tuple[str, ...] = ()  # and those that validate

    @model_validator(mode="before")
    @classmethod
    def _by_alone(cls, value: Any) -> Any:
        return {"by": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _fraction_of_what_is_drawn(self) -> "Split":
        if "fraction" in self.model_fields_set and (self.train or self.validation or self.by in SPLITS_AS_THEY_ARE):
            what = "the lists train and validation decide" if self.train or self.validation else f"{self.by} decides"
            raise ValueError(f"fraction: {what} who validates; leave it out")
        return self


class Train(Section):
    """The `train` section: a network taught to tell treatments apart; the network is that of `profile`.

    Defaults are what M. Bornholdt, *Profiling cellular states from images using deep neural networks* (master's thesis,
    TU Munich 2021), recommends in its sections 4.7 and 5.7: EfficientNet-B0 from ImageNet, SGD at 0.02 with cosine
    decay, batches of 64, 30 epochs, augmentation, label smoothing 0.1, L2 of 1e-4 (3.1).
    """

    name: str = Field("trained", min_length=1)  # the model is models/NAME; profile.weights takes the name
    crops: str = "crops"  # the crop store, or a folder that DeepProfiler exported
    label: tuple[str, ...] = ()  # the columns that together are the class; the treatment by default
    select: str | None = None  # a pandas query: the cells that are used
    treatments: str | None = None  # a file that lists the treatments that are used
    min_cells: int = Field(10, ge=1)  # a class with fewer training cells is left out
    split: Split = Split()
    balance: Literal["class", "class_plate", "none"] = "class"
    epoch_cells: int | None = Field(None, ge=1)  # drawn anew each epoch; median class x number of classes by default
    epochs: int = Field(30, ge=1)
    batch: int = Field(64, ge=1, le=65536)
    init: str = "imagenet"  # random, imagenet, or a .keras, .weights.h5, .h5 or .hdf5 file
    stem: Literal["replicate", "inflate"] = "replicate"  # how ImageNet's three channels become more
    freeze: str | None = None  # the layer up to which, from the input on, nothing is trained
    optimizer: Literal["sgd", "adamw"] = "sgd"  # sgd: Nesterov
    learning_rate: float = Field(0.02, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)  # of sgd
    weight_decay: float = Field(0.0, ge=0)  # of adamw, decoupled
    l2: float = Field(1e-4, ge=0)  # times the sum of squares of all kernels, added to the loss
    schedule: Schedule = Schedule()
    clip: float | None = Field(None, gt=0)  # norm of the gradient at most
    label_smoothing: float = Field(0.1, ge=0, lt=1)
    online_smoothing: float | None = Field(None, gt=0, lt=1)  # weight of each epoch's predictions in the next labels
    class_weights: Literal["balanced"] | dict[str, float] | None = None
    augment: Augment | Literal[False] = Augment()
    precision: Literal["float32", "mixed_bfloat16", "mixed_float16"] = "float32"
    ema: float | None = Field(None, gt=0, lt=1)  # momentum of the average of the weights that is kept in their place
    patience: int | None = Field(None, ge=1)  # epochs without a higher validation accuracy before it stops
    checkpoint_every: int = Field(1, ge=1)  # epochs
    score_every: int | None = Field(None, ge=1)  # epochs between profile scores
    track: tuple[Literal["tensorboard", "mlflow", "wandb"], ...] = ("tensorboard",)

    @model_validator(mode="after")
    def _optimizer_keys(self) -> "Train":
        if self.optimizer == "sgd" and self.weight_decay:
            raise ValueError("weight_decay belongs to adamw; with sgd use l2")
        if self.optimizer == "adamw" and "momentum" in self.model_fields_set:
            raise ValueError("momentum belongs to sgd; with adamw leave it out")
        if self.init != "imagenet" and "stem" in self.model_fields_set:
            raise ValueError(f"stem belongs to the init imagenet, and the init is {self.init}; leave it out")
        if self.class_weights == "balanced" and self.balance != "none":
            raise ValueError(f"class_weights balanced: the cells of an epoch are balanced by {self.balance} already")
        return self


class ProfileModel(Section):
    """The `profile` section: the network, its weights, and the layer that becomes the features."""

    model: str | None = Field(None, min_length=1)  # its name in features/ and profiles/; by default network_weights
    network: str = "efficientnet_b0"
    weights: str | None = None  # none: untrained, from the seed; imagenet; a file; or the train.name of a model
    options: dict[str, Any] = {}  # passed on to the network
    layer: str | tuple[str, ...] = "features"  # several: one pass, and a set of features each, named model-layer
    batch: int = Field(64, ge=1, le=4096)  # cells a batch
    runtime: Literal["keras", "onnx", "openvino"] = "keras"  # onnx and openvino: on the CPU, by extra
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    source: Literal["images", "crops"] = "images"  # crops: the crop store of `export`
    tiles: bool = False  # views of crops.size that cover the site, instead of cells
    dtype: Literal["float32", "float16"] = "float32"  # of the features as they are stored
    # repeat_channel: a network of colours sees one channel after the other
    mode: Literal["multi_channel", "repeat_channel"] = "multi_channel"
    input_size: int = Field(224, ge=32, le=2048)  # of repeat_channel: side that each channel is resized to, px
    files: str | None = None  # instead: DeepProfiler's features, such as "features/{plate}/{well}/{site}.npz"

    @model_validator(mode="after")
    def _tiles_of_images(self) -> "ProfileModel":
        if self.tiles and self.source == "crops":
            raise ValueError("tiles are cut from images, and the crop store holds cells; set source to images")
        return self

    @model_validator(mode="after")
    def _some_layers(self) -> "ProfileModel":
        if not self.layers or len(set(self.layers)) < len(self.layers):
            raise ValueError(f"layer: name one layer or several different ones, got {', '.join(self.layers) or 'none'}")
        return self

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers whose outputs become features, one or several."""
        return (self.layer,) if isinstance(self.layer, str) else self.layer

    @model_validator(mode="after")
    def _keys_of_a_mode(self) -> "ProfileModel":
        if self.files is not None and self.weights is not None:
            raise ValueError("files holds features that are made; leave weights out, or files to make them")
        if self.files is not None and self.dtype != "float32":
            raise ValueError("files holds features of float32, and they stay so; leave dtype out")
        if "input_size" in self.model_fields_set and self.mode == "multi_channel":
            raise ValueError("input_size: multi_channel takes crops as they are; leave it out, or set mode")
        return self

    @property
    def name(self) -> str:
        if self.files is not None and self.model is None:
            return "deepprofiler"
        mode = "_repeat" if self.mode == "repeat_channel" else ""
        return safe_name(self.model or f"{self.network}_{_weights_name(self.weights or 'untrained')}{mode}")


class Profiles(Section):
    """The `profiles` section: from cells to wells to treatments."""

    recipe: str | tuple[str, ...] = "deep"  # several: a folder each, all of the same wells
    operation: Literal["median", "mean", "trimmed_mean"] = "median"
    min_cells: int = Field(1, ge=1)  # a well with fewer has no profile
    fit: Literal["controls", "all"] = "controls"  # the wells that the steps of recipes learn from
    consensus: tuple[str, ...] = ()  # the columns of a treatment; treatment (or compound) and concentration by default

    @model_validator(mode="after")
    def _some_recipes(self) -> "Profiles":
        if not self.recipes or len(set(self.recipes)) < len(self.recipes):
            raise ValueError(f"recipe: name one or several different ones, got {', '.join(self.recipes) or 'none'}")
        return self

    @property
    def recipes(self) -> tuple[str, ...]:
        return (self.recipe,) if isinstance(self.recipe, str) else self.recipe


class Scores(Section):
    """The `scores` section: which profiles match, and what they are compared with."""

    select: str | None = None  # a pandas query: the profiles that are scored
    compounds_only: bool = False  # the control wells are not scored
    min_class_size: int = Field(2, ge=2)
    labels: str | None = None  # the column by which treatments match; moa by default
    replicates: str | None = None  # the column by which wells match; treatment (or compound) by default
    exclude_same: tuple[str, ...] = ()  # wells that share one of these are not compared
    # each: all scores again, of profiles that share none of these; plates, layouts, positions of wells only
    across: tuple[Literal["plates", "batches", "layouts", "positions", "compounds"], ...] = ()
    metrics: tuple[Metric, ...] = ("mean_average_precision", "nearest", "hit_s20", "robust_enrichment")
    baselines: tuple[Literal["permutation", "cell_count", "untrained"], ...] = ("permutation", "cell_count")
    permutations: int = Field(100, ge=1)
    strongest: int | None = Field(None, ge=1)  # so many treatments, farthest from the controls, in strong.csv


class Study(Section):
    """study.yaml as read by `read_study`, and the paths of what is derived from it."""

    root: Path = Field(exclude=True)
    images: Images
    channels: dict[str, str] = Field(min_length=1)  # name -> index column, or value of the pattern's channel group
    columns: Columns = Columns()
    controls: str | None = None  # a pandas query that picks the control wells
    seed: int = Field(0, ge=0, lt=2**32)
    illumination: Illumination = Illumination()
    locate: Locate = Locate()
    crops: CropSettings = CropSettings()
    export: Export = Export()
    train: Train | None = None  # without the section nothing is trained
    profile: ProfileModel = ProfileModel()
    profiles: Profiles = Profiles()
    recipes: dict[str, Recipe] = {}  # of its own, beside the built-in ones
    scores: Scores = Scores()

    @model_validator(mode="before")
    @classmethod
    def _empty_sections(cls, found: Any) -> Any:
        """A section with nothing in it (or only comments) keeps its defaults."""
        sections = {name for name, known in cls.model_fields.items() if isinstance(known.default, BaseModel)}
        if not isinstance(found, dict):
            return found
        kept = {k: v for k, v in found.items() if not (v is None and k in sections)}
        return {**kept, "train": {}} if "train" in found and found["train"] is None else kept

    @model_validator(mode="after")
    def _known_channel(self) -> "Study":
        seen = self.locate.channel or ()
        for name in (seen,) if isinstance(seen, str) else seen:
            if name not in self.channels:
                raise ValueError(f"locate.channel: {name!r} is not one of {', '.join(self.channels)}")
        return self

    @model_validator(mode="after")
    def _known_recipes(self) -> "Study":
        if twice := [name for name in self.recipes if name in BUILT_IN]:
            raise ValueError(f"recipes: {', '.join(twice)} is built in; give yours another name")
        for name in self.profiles.recipes:
            try:
                find_recipe(name, self.recipes)
            except InputError as error:
                raise ValueError(f"profiles.recipe: {error}") from None
        return self

    @model_validator(mode="after")
    def _no_masked_tiles(self) -> "Study":
        if self.profile.tiles and self.crops.mask:
            raise ValueError(
                "profile.tiles: a tile is no cell that crops.mask could leave alone; set one of them to false"
            )
        return self

    @model_validator(mode="after")
    def _known_window(self) -> "Study":
        light = self.illumination
        if light.window_um is not None and self.images.pixel_size_um is None:
            raise ValueError("illumination.window_um: give images.pixel_size_um too, or illumination.window in px")
        if light.method == "deepprofiler":
            side = self.illumination_window / light.downscale
            if side % 2 or side < 2:
                raise ValueError(
                    f"illumination.window: {self.illumination_window:g} px are {side:g} at 1/{light.downscale} of the "
                    "size, where the disk of deepprofiler needs an even number of at least 2, such as 24"
                )
        return self

    @property
    def illumination_window(self) -> float:
        """Width of the filter that smooths the mean image, px of the full image."""
        light = self.illumination
        if light.window_um is not None and self.images.pixel_size_um is not None:
            return light.window_um / self.images.pixel_size_um
        return light.window or (96.0 if light.method == "deepprofiler" else 80.0)

    @property
    def correction(self) -> dict[str, Any] | None:
        """What makes the illumination functions, as JSON values; None where images are left as they are."""
        light = self.illumination
        if light.method == "none":
            return None
        if light.method == "files":
            return {"method": light.method, "files": light.files}
        smoothing = {"window": self.illumination_window, "downscale": light.downscale}
        return {"method": light.method, **smoothing} | ({"filter": light.filter} if light.method == "smooth" else {})

    @property
    def channel_mode(self) -> dict[str, Any]:
        """How the network sees the channels of a crop, as JSON values; empty where it is all at once."""
        chosen = self.profile
        return chosen.model_dump(include={"mode", "input_size"}) if chosen.mode == "repeat_channel" else {}

    @property
    def image_base(self) -> str | Path:
        """Where relative image paths start: a folder, or a URL."""
        return self.images.root if self.images.folder is None and is_url(self.images.root) else self.image_root

    @property
    def image_root(self) -> Path:
        return self.path(self.images.root if self.images.folder is None else self.images.folder)

    @property
    def preprocess(self) -> Preprocess:
        return Preprocess(channels=tuple(self.channels), **self.crops.model_dump())

    @property
    def treatment(self) -> str | None:
        """The column that names what a well was treated with."""
        return self.columns.treatment or self.columns.compound

    @property
    def label(self) -> tuple[str, ...]:
        """The columns whose values together are the class that a network is trained to tell."""
        named = self.train.label if self.train else ()
        return named or ((self.treatment,) if self.treatment else ())

    @property
    def weights(self) -> str | Path | None:
        """None, "imagenet" or the file of the weights that are profiled with."""
        named = self.profile.weights
        if named is None or named == "imagenet":
            return named
        is_file = named.endswith(WEIGHTS)
        return self.path(named) if is_file else self.models / safe_name(named) / "model.keras"

    @property
    def models(self) -> Path:
        return self.root / "models"

    @property
    def crop_store(self) -> Path:
        return self.root / "crops"

    @property
    def consensus(self) -> tuple[str, ...]:
        """The columns whose values together name one treatment."""
        return self.profiles.consensus or tuple(
            name for name in (self.treatment, self.columns.concentration) if name is not None
        )

    @property
    def untrained(self) -> "Study | None":
        """The same study with the untrained weights of its network, where the scores ask for that baseline."""
        if "untrained" not in self.scores.baselines or self.profile.weights is None:
            return None
        name, layer = _EPOCH.sub("", self.profile.name), ""  # untrained, all epochs are one
        if isinstance(self.profile.layer, str) and name.endswith(f"-{self.profile.layer}"):  # one of several
            layer = f"-{self.profile.layer}"
        return self._profiled(weights=None, model=f"{name.removesuffix(layer)}_untrained{layer}")

    @property
    def feature_sets(self) -> tuple["Study", ...]:
        """The study of each set of features that `profile` makes: one a layer."""
        layers = self.profile.layers
        if len(layers) == 1:
            return (self._profiled(layer=layers[0]),)
        return tuple(self._profiled(layer=layer, model=f"{self.profile.name}-{layer}") for layer in layers)

    def at_epoch(self, epoch: int) -> "Study":
        """The study with the network that its training kept after `epoch`, counted from 1; the set is NAME-epoch8.

        Raises
        ------
        InputError
            profile.weights names no training, or none was kept then; it lists those that were.
        """
        weights = self.weights
        folder = self.models if weights is None or weights == "imagenet" else Path(weights).parent / "epochs"
        if folder.parent.parent != self.models:
            raise InputError(
                f"--epoch {epoch}: profile.weights is {self.profile.weights or 'none'}; set it to the train.name of a "
                "training, whose epochs are in models/NAME/epochs"
            )
        path = folder / f"{epoch:04d}.keras"
        if not path.is_file():
            kept = sorted(int(file.stem) for file in folder.glob("*.keras") if file.stem.isdecimal())
            there = f"it has {', '.join(map(str, kept))}" if kept else "it has none; run `deepprofile train`"
            raise InputError(f"--epoch {epoch}: {folder} has no network of this epoch; {there}")
        return self._profiled(weights=str(path), model=f"{self.profile.name}-epoch{epoch}")

    def with_features(self, name: str) -> "Study":
        """The study with the set of features in features/`name`, for the stages after `profile`.

        Raises
        ------
        InputError
            There is no such set; it lists those that there are.
        """
        folder = self.features.parent
        path = folder / safe_name(name) / "card.json"
        try:
            card = json.loads(path.read_text("utf-8"))
            chosen = {key: card[key] for key in ("network", "options", "layer")}
        except FileNotFoundError:
            there = sorted(file.parent.name for file in folder.glob("*/card.json"))
            said = f"there are {', '.join(there)}" if there else "there are none; run `deepprofile profile`"
            raise InputError(f"--model {name}: no such features in {folder}; {said}") from None
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}: not a model card; run `deepprofile profile` again") from error
        weights = card.get("weights")
        untrained = weights is None or str(weights).startswith("untrained")
        return self._profiled(**chosen, model=name, weights=None if untrained else weights)

    def with_model(self, name: str) -> "Study":
        """The study with what is in profiles/`name` and scores/`name`, whether or not the features are still there."""
        return self._profiled(model=name)

    @property
    def without_untrained(self) -> "Study":
        """The study without the baseline of untrained weights, which has stages of its own."""
        baselines = tuple(name for name in self.scores.baselines if name != "untrained")
        return self.model_copy(update={"scores": self.scores.model_copy(update={"baselines": baselines})})

    @property
    def recipe_sets(self) -> tuple["Study", ...]:
        """The study with each of its recipes alone."""
        return tuple(self.with_recipe(name) for name in self.profiles.recipes)

    def with_recipe(self, name: str) -> "Study":
        """The study with the recipe `name` alone, built in or its own, for the stages after `profile`.

        Raises
        ------
        InputError
            There is no such recipe; it lists those that there are.
        """
        find_recipe(name, self.recipes)
        return self.model_copy(update={"profiles": self.profiles.model_copy(update={"recipe": name})})

    @property
    def recipe(self) -> Recipe:
        """The steps of the study's only recipe; see `with_recipe`."""
        return find_recipe(self._recipe_name, self.recipes)

    @property
    def _recipe_name(self) -> str:
        if len(self.profiles.recipes) > 1:
            raise ValueError(f"{len(self.profiles.recipes)} recipes; choose one by with_recipe, or go over recipe_sets")
        return self.profiles.recipes[0]

    def _profiled(self, **changes: Any) -> "Study":
        return self.model_copy(update={"profile": self.profile.model_copy(update=changes)})

    @property
    def features(self) -> Path:
        return self.root / "features" / self.profile.name

    @property
    def profiles_folder(self) -> Path:
        return self.root / "profiles" / self.profile.name / safe_name(self._recipe_name)

    @property
    def scores_folder(self) -> Path:
        return self.root / "scores" / self.profile.name / safe_name(self._recipe_name)

    def path(self, name: str) -> Path:
        """`name`, relative to study.yaml unless it is absolute."""
        return (self.root / name).resolve()

    @contextmanager
    def writing(self, share: Share | None = None) -> Iterator[None]:
        """Hold the study for this process and clear away what a killed one left half-written.

        With `share` along with the processes that have other shares of it.
        """
        if share is None:
            with locked(self.root):
                self._sweep()
                yield
        else:
            with locked(share.lock(self.root)), locked_together(self.root, self._sweep):
                yield

    def _sweep(self) -> None:
        sweep(self.root, below=False)  # not below: there may be a million images
        for folder in STAGES:
            sweep(self.root / folder)


def read_study(path: str | Path) -> Study:
    """Read the study.yaml at `path`, a file or its folder.

    Raises
    ------
    InputError
        No such file, or one that lists every key that is unknown or wrong, with its place.
    """
    path = Path(path)
    path = (path / NAME if path.is_dir() or path.suffix not in (".yaml", ".yml") else path).resolve()
    found = read_yaml(path)
    return study_from(path, found)


def study_from(path: Path, found: dict[str, Any], *, said: str | None = None) -> Study:
    """The study of the study.yaml at `path` with the settings `found`, where they are not (only) those of the file.

    Raises
    ------
    InputError
        It lists every key that is unknown or wrong, after `said`, by default the path.
    """
    said = said or str(path)
    if "root" in found:
        raise InputError(f"{said}: unknown key root; image paths start from images.root")
    try:
        return Study.model_validate({"root": path.parent, **found})  # a key may be a number
    except ValidationError as bad:
        rows = [f"{_place(e['loc'])}: {_words(e)}" for e in bad.errors()]
        raise InputError("\n  ".join([f"{said} has {len(rows)} problem(s)", *rows])) from None


def template_fields(key: str, template: str, known: Sequence[str]) -> set[str]:
    """Which of the fields `known` the `template` of file names has, such as plate in ``"{plate}/{site:0>2}.csv"``.

    Raises
    ------
    InputError
        Another field, or more than a width in it: str.format would look attributes up, for a template of a stranger,
        and make {site:02} of site 1 the name of site 10.
    """
    try:
        parts = [(name, spec or "", how) for _, name, spec, how in Formatter().parse(template) if name is not None]
    except ValueError:
        parts = [("", "", None)]
    if any(name not in known or how or not _WIDTH.match(spec) for name, spec, how in parts):
        words = [f"{{{name}}}" for name in known]
        fields = f"{', '.join(words[:-1])} and {words[-1]}"
        raise InputError(f"{key} {template!r}: only {fields} are filled in; two digits are {{{known[-1]}:0>2}}")
    return {name for name, _, _ in parts}


def _weights_name(weights: str) -> str:
    """What weights are called in the name of a model.

    >>> [_weights_name(w) for w in ("lr0.02", "../a/cpcnn.hdf5", "models/run.1/epochs/0008.keras")]
    ['lr0.02', 'cpcnn', 'run.1_0008']
    """
    for suffix in WEIGHTS:
        weights = weights.removesuffix(suffix)
    parts = PurePosixPath(weights).parts
    return "_".join(p for p in parts[1:] if p != "epochs") if parts[:1] == ("models",) else parts[-1]


def _place(loc: tuple[int | str, ...]) -> str:
    return ".".join(map(str, loc)) or "the file"


def _words(error: Any) -> str:
    if error["type"] == "extra_forbidden":
        sections: list[type[BaseModel]] = [Study, *Section.__subclasses__(), *STEPS]
        known = {name for section in sections for name in section.model_fields}
        close = get_close_matches(str(error["loc"][-1]), sorted(known), 1)
        return f"unknown key, is it {close[0]}?" if close else "unknown key; docs/guide.md lists those that there are"
    if error["type"] == "missing":
        return "is missing"
    expected = {
        "tuple_type": "should be a list, such as [a, b]",
        "model_type": "should hold keys, such as {key: value}",
    }
    if error["type"] in expected:
        return f"{expected[error['type']]}, got {str(error['input'])[:60]!r}"
    text = error["msg"].removeprefix("Value error, ")
    return text if error["type"] == "value_error" else f"{text}, got {str(error['input'])[:60]!r}"

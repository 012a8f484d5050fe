"""What training is worth: profiles by a trained network beside untrained weights, intensities and the cell count.

    python benchmarks/quality.py [--folder FOLDER] [--seeds 0 1 2] [--only 'fixed/*' 'real/*'] [--quick]

Simulated studies whose truth is known, three seeds each (another seed is another study, another network and another
split), and one small real study; docs/quality.md says how to read the tables. About 90 minutes on two quiet cores.
Everything lies in FOLDER, by default deepprofile-quality in the folder for temporary files: images, models, a JSON file
a run, and the tables as CSV. Stopped and started again, it goes on; what is done is only printed. --quick is a tiny
study and four runs, to see that the script works: its numbers say nothing.

How hard the studies are and how networks are trained (the constants below) was chosen on the seeds 100 and 101 alone,
and frozen before the seeds 0, 1 and 2 were first looked at. Nothing was tuned on the real study.
"""

import argparse
import json
import os
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import pandas as pd
from scipy import stats

from cytominer_tools import read_table
from cytominer_tools.aggregation import consensus
from cytominer_tools.arrays import group_median
from cytominer_tools.columns import COUNT, PLATE, WELL, metadata_columns
from cytominer_tools.errors import ProfileWarning
from cytominer_tools.files import atomic_path
from cytominer_tools.manifest import digest
from cytominer_tools.normalization import spherize
from cytominer_tools.queries import select
from cytominer_tools.tables import write_table
from deepprofile import Crops, Study, read_study, simulate
from deepprofile.index import constant_metadata, load_index
from deepprofile.simulator import BATCH, COMPOUND, CONCENTRATION, CONTROL, MOA
from deepprofile.study import ProfileModel, Train
from evaluation.metrics import enrichment, odds, precision_at_r
from evaluation.similarity import Similarity, cosine, count_similarity, pearson

DATA = Path(os.environ.get("DEEPPROFILE_DATA", Path(__file__).parents[2] / "shared" / "data")) / "imagehts_submorph"
GENE = "Metadata_GeneID"
REAL_PLATES = ("PK-10B-pl1", "PK-11B-pl1")

# --- frozen: chosen on the seeds 100 and 101


@dataclass(frozen=True)
class Scale:
    """How much is simulated, and for how long a network is trained."""

    moas: int
    compounds_per_moa: int
    controls: int  # wells a plate
    sites: int
    epochs: int
    epoch_cells: int
    plates: int = 5  # split two needs five with a fixed layout: four in one batch, one in another
    cells: int = 28  # a site
    size: tuple[int, int] = (270, 270)  # px of a site
    pixel_size_um: float = 0.8
    effect: float = 1.0  # length of an MOA at strength 1

    @property
    def simulated(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if not name.startswith("epoch")}


FULL = Scale(moas=10, compounds_per_moa=4, controls=16, sites=2, epochs=15, epoch_cells=4000)
QUICK = Scale(moas=4, compounds_per_moa=3, controls=8, sites=1, epochs=3, epoch_cells=1000)
WIDTH = 16  # filters of the first block of small_cnn: 128 features
CROP = 48  # px, 38 um
# all other settings of `train` are its defaults: augmentation, label smoothing 0.1, L2 1e-4, cosine, split by well
BASE: dict[str, Any] = {"init": "random", "batch": 64, "learning_rate": 0.02}
LOW, HIGH = 0.3, 3.0  # uM; half of the compounds' EC50 lie below 0.17

STUDIES: dict[str, dict[str, Any]] = {
    "fixed": {"layout": "fixed"},
    "random": {"layout": "random"},
    "doses": {"layout": "random", "concentrations": (LOW, HIGH)},
}
MINMAX = "minmax"  # the images of fixed, each crop scaled by its own minimum and maximum
REAL = "real"

# --- the runs


@dataclass(frozen=True)
class Run:
    """One row of the tables: features of one kind, made of one study."""

    study: str
    name: str
    features: str = "trained"  # or untrained, intensity, count
    train: dict[str, Any] = field(default_factory=dict)  # what differs from BASE

    @property
    def key(self) -> str:
        return f"{self.study}/{self.name}"


def baselines(study: str) -> list[Run]:
    return [Run(study, name, name) for name in ("count", "intensity", "untrained")]


RUNS = [
    *baselines("fixed"),
    Run("fixed", "trained"),
    *baselines("random"),
    Run("random", "trained"),
    Run("fixed", "augmentation off", train={"augment": False}),
    Run("fixed", "label smoothing 0", train={"label_smoothing": 0.0}),
    Run("fixed", "label smoothing 0.2", train={"label_smoothing": 0.2}),
    Run("fixed", "L2 0", train={"l2": 0.0}),
    Run("fixed", "L2 1e-3", train={"l2": 1e-3}),
    Run("fixed", "split one", train={"split": "one"}),
    Run("fixed", "split two", train={"split": "two"}),
    Run("fixed", "split three", train={"split": "three"}),
    Run(MINMAX, "untrained", "untrained"),
    Run(MINMAX, "trained"),
    Run("fixed", "strong only", train={"treatments": "strong.txt"}),
    *baselines("doses"),
    Run("doses", "low", train={"split": {"by": "cross_dose", "train": [f"{LOW:g}"], "validation": [f"{HIGH:g}"]}}),
    Run("doses", "high", train={"split": {"by": "cross_dose", "train": [f"{HIGH:g}"], "validation": [f"{LOW:g}"]}}),
    *baselines(REAL),
    *(
        Run(REAL, f"without {plate}", train={"split": {"by": "plate", "validation": [plate]}, "epoch_cells": None})
        for plate in REAL_PLATES
    ),
]
QUICK_RUNS = [*baselines("fixed"), Run("fixed", "trained")]

# seconds on two quiet cores, for the first estimate
SECONDS = {"simulate": 25.0, "prepare": 20.0, "trained": 55.0, "profile": 12.0, "other": 8.0}


# --- from a run to its profiles


@dataclass(frozen=True)
class Profiles:
    """Profiles on three levels, and how alike two of them are."""

    wells: pd.DataFrame  # level 3
    spherized: pd.DataFrame  # level 4a
    treatments: pd.DataFrame  # level 5
    alike: Callable[[pd.DataFrame], Similarity]


def open_study(folder: Path, name: str, seed: int, scale: Scale) -> Study:
    """The study `name`, simulated where it is not there yet; its folder bears the settings it was made with."""
    settings: dict[str, Any] = {"seed": seed, "crops": {"size": CROP}}
    if name == REAL:
        home = folder / REAL
        settings |= {
            "images": {"index": str(DATA / "index.csv"), "root": str(DATA), "size": [510, 1024]},
            "channels": {"DNA": "FileName_Hoechst", "tubulin": "FileName_FITC", "actin": "FileName_Tritc"},
            "columns": {"treatment": GENE},
            "controls": f"{GENE} == 'RLUC'",
            "locate": {"channel": "DNA"},
            "profiles": {"fit": "all"},  # four control wells are too few to spherize by
        }
    else:
        made_by = {**scale.simulated, **STUDIES["fixed" if name == MINMAX else name], "seed": seed}
        stamp = digest(made_by)[:6]
        home = folder / f"{name}-{stamp}"
        images = folder / f"{'fixed' if name == MINMAX else name}-{stamp}" / "images"
        if not (images / "index.csv").exists():
            simulate(images, **made_by)
        settings |= {
            "images": {"index": str(images / "index.csv"), "root": str(images), "pixel_size_um": scale.pixel_size_um},
            "channels": {name: name for name in ("DNA", "ER", "RNA", "AGP", "Mito")},
            "columns": {"compound": COMPOUND, "concentration": CONCENTRATION, "moa": MOA, "batch": BATCH},
            "controls": f"{COMPOUND} == '{CONTROL}'",
            "locate": {"channel": "DNA"},
        }
        if name == MINMAX:
            settings["crops"]["normalize"] = "minmax"
    home.mkdir(parents=True, exist_ok=True)
    with atomic_path(home / "study.yaml") as path:
        path.write_text(json.dumps(settings, indent=1) + "\n")  # JSON is YAML
    return read_study(home)


def prepare(study: Study) -> None:
    """Levels, locations and crops: what all runs of a study share."""
    from deepprofile import export_crops, locate_cells, measure_intensities

    if study.crops.normalize == "plate_control":
        measure_intensities(study)
    locate_cells(study)
    export_crops(study)


def with_run(study: Study, run: Run, scale: Scale) -> Study:
    """`study` with the sections `train` and `profile` of a run."""
    shared: dict[str, Any] = {"network": "small_cnn", "options": {"width": WIDTH}, "batch": 128}
    if run.features != "trained":
        return study.model_copy(update={"profile": ProfileModel(**shared)})
    chosen = {"epochs": scale.epochs, "epoch_cells": scale.epoch_cells, **BASE, **run.train}
    last = {"checkpoint_every": chosen["epochs"], "track": ()}
    name = f"{run.name.replace(' ', '_')}-{digest(chosen)[:6]}"
    train = Train(**chosen, **last, name=name)
    return study.model_copy(update={"train": train, "profile": ProfileModel(**shared, weights=name)})


def network_profiles(study: Study) -> Profiles:
    from deepprofile import aggregate_wells, consensus_profiles, normalize_wells, profile_cells

    for stage in (profile_cells, aggregate_wells, normalize_wells, consensus_profiles):
        stage(study)
    names = ("wells", "normalized", "consensus")
    return Profiles(*(read_table(study.profiles_folder / f"{name}.parquet") for name in names), by_features)


def intensity_profiles(study: Study) -> Profiles:
    """The mean, sd and percentiles of each channel of each crop as a network sees it; then as any other features."""
    crops = Crops(study.crop_store)
    parts = []
    for start in range(0, len(crops), 512):
        pixels = crops.network_input(slice(start, start + 512))
        pixels = pixels.reshape(len(pixels), -1, pixels.shape[-1])
        some = [pixels.mean(1), pixels.std(1), *np.percentile(pixels, [1, 25, 50, 75, 99], axis=1)]
        parts.append(np.concatenate(some, axis=1))
    by = [PLATE, WELL]
    groups = crops.table.groupby(by, sort=True)
    index = load_index(study)
    wells = groups.size().rename(COUNT).reset_index()
    wells = wells.merge(index.groupby(by)[constant_metadata(index, by)].first().reset_index(), on=by)
    values = group_median(np.concatenate(parts), groups.ngroup().to_numpy())
    wells = pd.concat([wells, pd.DataFrame(values).add_prefix("intensity_")], axis=1)
    fitted = select(wells, str(study.controls)) if study.profiles.fit == "controls" else wells[COUNT] > 0
    spherized = spherize(wells, control=fitted).profiles
    return Profiles(wells, spherized, treatments_of(study, spherized), by_features)


def count_profiles(study: Study) -> Profiles:
    wells = intensity_profiles(study).wells
    wells = wells[[*metadata_columns(wells)]]
    return Profiles(wells, wells, treatments_of(study, wells), by_count)


def treatments_of(study: Study, wells: pd.DataFrame) -> pd.DataFrame:
    by = list(study.consensus)
    keep = [name for name in constant_metadata(wells, by) if name not in (PLATE, WELL, COUNT)]
    return consensus(wells, by, features=[COUNT, *feature_names(wells)], keep=keep)


def feature_names(table: pd.DataFrame) -> list[str]:
    return [name for name in map(str, table.columns) if not name.startswith("Metadata_")]


def by_features(table: pd.DataFrame) -> Similarity:
    return cosine(table[feature_names(table)].to_numpy())


def by_count(table: pd.DataFrame) -> Similarity:
    return count_similarity(table[COUNT])


# --- from profiles to numbers

Found = dict[str, float | str]


def codes(column: pd.Series) -> np.ndarray:
    return pd.factorize(column)[0].astype(np.int64)


def mean(values: np.ndarray) -> float:
    """Of what is defined; NaN where nothing is."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else np.nan


def simulated_scores(study: Study, profiles: Profiles, strong: set[str]) -> Found:
    truth = pd.read_csv(Path(study.images.root) / "truth" / "compounds.csv")
    quiet = set(truth.loc[truth["quiet"], COMPOUND])
    doses = sorted(set(profiles.treatments[CONCENTRATION].astype(float)) - {0.0})
    found: Found = {}
    for dose in doses:
        where = f" at {dose:g}" if len(doses) > 1 else ""
        treatments, wells = (
            table[(table[CONCENTRATION].astype(float) == dose) & (table[COMPOUND] != CONTROL)].reset_index(drop=True)
            for table in (profiles.treatments, profiles.spherized)
        )
        scores = treatment_scores(treatments, profiles.alike, quiet, strong)
        scores |= replicate_scores(wells, profiles.alike, quiet)
        found |= {name + where: value for name, value in scores.items()}
    return found | batch_scores(study, profiles)


def treatment_scores(
    table: pd.DataFrame, alike: Callable[[pd.DataFrame], Similarity], quiet: set[str], strong: set[str]
) -> Found:
    """Precision at R of the MOA, neighbours among all, averaged over subsets; enrichment of all and within subsets."""
    near = precision_at_r(alike(table), codes(table[MOA])).precision
    is_quiet, is_strong = (table[COMPOUND].isin(one).to_numpy() for one in (quiet, strong))
    found: Found = {"moa": mean(near), "moa quiet": mean(near[is_quiet]), "moa other": mean(near[~is_quiet])}
    if strong:
        found |= {"moa strong": mean(near[is_strong]), "moa weak": mean(near[~is_strong])}
    whole = np.ones(len(table), bool)
    for name, chosen in (("", whole), *(((" strong", is_strong), (" weak", ~is_strong)) if strong else ())):
        part = table[chosen]
        for percentile in (99.5, 95.0):
            one = enrichment(alike(part), codes(part[MOA]), percentile=percentile)
            above = one.above_match + one.above_other
            what = f"enrichment{name} {percentile:g}"
            infinite = one.reason.startswith("infinite")
            found |= {what: np.inf if infinite else one.odds_ratio, f"{what} reason": one.reason}
            found[f"{what} pairs"] = above
            found |= {f"{what} share": one.above_match / above if above else np.nan}
            found |= {f"{what} expected": (one.above_match + one.below_match) / max(one.n_pairs, 1)}
    return found


def replicate_scores(table: pd.DataFrame, alike: Callable[[pd.DataFrame], Similarity], quiet: set[str]) -> Found:
    """Precision at R of the compound among the wells of other plates."""
    near = precision_at_r(alike(table), codes(table[COMPOUND]), exclude=codes(table[PLATE])).precision
    return {"replicates": mean(near), "replicates quiet": mean(near[table[COMPOUND].isin(quiet).to_numpy()])}


def batch_scores(study: Study, profiles: Profiles) -> Found:
    """The batch enrichment score: enrichment of the batch among control wells (Bornholdt 2021, section 4.8.2).

    Before and after spherizing; and after spherizing by a half of the controls, scored on the other half, over ten
    ways to halve them. Pearson, as there.
    """
    control = select(profiles.wells, str(study.controls)).to_numpy()
    count = profiles.alike is by_count

    def pairs(table: pd.DataFrame) -> np.ndarray:
        alike = by_count(table) if count else pearson(table[feature_names(table)].to_numpy())
        one = enrichment(alike, codes(table[BATCH]))
        return np.array([one.above_match, one.above_other, one.below_match, one.below_other])

    def told(name: str, numbers: np.ndarray) -> Found:
        a, b, c, d = (int(n) for n in numbers)
        return {
            f"bes {name}": odds(a, b, c, d),
            f"bes {name} same": a,
            f"bes {name} pairs": a + b,
            f"bes {name} share": a / (a + b) if a + b else np.nan,
            "bes expected": (a + c) / (a + b + c + d),
        }

    found = told("before", pairs(profiles.wells[control]))
    if count:
        return found
    found |= told("after", pairs(profiles.spherized[control]))
    held = np.zeros(4, np.int64)
    rows = np.flatnonzero(control)
    for turn in range(10):
        mixed = np.random.default_rng([study.seed, turn]).permutation(rows)
        for half in (mixed[::2], mixed[1::2]):
            fitted = pd.Series(np.isin(np.arange(len(control)), half), index=profiles.wells.index)
            held += pairs(spherize(profiles.wells, control=fitted).profiles.iloc[np.setdiff1d(rows, half)])
    expected = found["bes expected"]  # of all control wells
    return found | told("held out", held) | {"bes expected": expected}


def real_scores(profiles: Profiles) -> Found:
    """Precision at R of the gene and the rank of the nearest well with it, among the wells of the other plate."""
    wells = profiles.spherized
    near = precision_at_r(profiles.alike(wells), codes(wells[GENE]), exclude=codes(wells[PLATE]))
    n, m = near.n_candidates, near.n_matches
    found: Found = {"replicates": mean(near.precision), "rank": mean(near.first_rank)}
    return found | {"chance replicates": mean(m / n), "chance rank": mean((n + 1) / (m + 1)), "wells": len(wells)}


def strong_treatments(study: Study, scale: Scale) -> set[str]:
    """The half of the compounds whose untrained profiles lie farthest from the controls; with the controls in a file.

    Spherized by the controls, a profile is as long as it is far from them.
    """
    path = study.root / "strong.txt"
    if not path.exists():
        table = network_profiles(with_run(study, Run("", "untrained", "untrained"), scale)).treatments
        table = table[table[COMPOUND] != CONTROL]
        lengths = np.linalg.norm(table[feature_names(table)].to_numpy(), axis=1)
        far = table[COMPOUND].to_numpy()[np.argsort(-lengths, kind="stable")[: len(table) // 2]]
        with atomic_path(path) as part:
            part.write_text("".join(f"{name}\n" for name in [CONTROL, *sorted(far)]))
    return set(path.read_text().split()) - {CONTROL}


def do(run: Run, folder: Path, seed: int, scale: Scale) -> Found:
    """Everything of one run: images, crops, training, profiles, scores; what is there already is left alone."""
    import keras

    from deepprofile import train_network

    study = open_study(folder, run.study, seed, scale)
    prepare(study)
    one_dose = run.study in ("fixed", "random")
    strong = strong_treatments(study, scale) if one_dose else set()
    chosen = with_run(study, run, scale)
    found: Found = {}
    if run.features == "trained":
        began, before = time.perf_counter(), os.times()
        made = train_network(chosen).made
        spent = os.times()
        if made:  # else it was killed after training, and the time is not known
            found["processor s"] = spent.user + spent.system - before.user - before.system
            found["seconds"] = time.perf_counter() - began
        history = read_table(chosen.models / str(chosen.profile.weights) / "history.csv").iloc[-1]
        found |= {name: float(history[name]) for name in ("accuracy", "val_accuracy")}
        card = json.loads((chosen.models / str(chosen.profile.weights) / "card.json").read_text())["training"]
        found |= {"classes": len(card["classes"]), "training cells": card["training_cells"]}
    if run.features == "count":
        profiles = count_profiles(study)
    elif run.features == "intensity":
        profiles = intensity_profiles(study)
    else:
        profiles = network_profiles(chosen)
    found |= real_scores(profiles) if run.study == REAL else simulated_scores(study, profiles, strong)
    keras.utils.clear_session()
    return found


# --- the tables


@dataclass(frozen=True)
class Table:
    """Rows of runs; each with the run it is compared with, on the same seed, or none."""

    name: str
    title: str
    columns: Sequence[tuple[str, str]]  # heading, measure
    rows: Sequence[tuple[str, str, str | None]]  # heading, run, reference


SCORES = [
    ("MOA P@R", "moa"),
    ("quiet MOAs", "moa quiet"),
    ("other MOAs", "moa other"),
    ("replicates P@R", "replicates"),
    ("quiet replicates", "replicates quiet"),
]
ENRICHMENT = [
    ("odds ratio, top 0.5 %", "enrichment 99.5"),
    ("share of matches in it", "enrichment 99.5 share"),
    ("odds ratio, top 5 %", "enrichment 95"),
    ("share of matches in it", "enrichment 95 share"),
    ("share of all pairs", "enrichment 95 expected"),
]
BATCHES = [
    (head.format(place), f"bes {place}{measure}")
    for place in ("before", "after", "held out")
    for head, measure in (("BES {}", ""), ("same batch", " same"), ("of top pairs", " pairs"), ("share", " share"))
] + [("share by chance", "bes expected")]
TRAINING = [
    ("training accuracy", "accuracy"),
    ("validation accuracy", "val_accuracy"),
    *SCORES[:4],
    ("odds ratio, top 5 %", "enrichment 95"),
    ("processor s", "processor s"),
]
KINDS = ("trained", "untrained", "intensity", "count")
VARIED = [name for study, name in ((r.study, r.name) for r in RUNS) if study == "fixed" and name not in KINDS]
ABLATED = [name for name in VARIED if not name.startswith(("split", "strong"))]
SPLITS = [name for name in VARIED if name.startswith("split")]


def beside(study: str, names: Iterable[str], reference: str = "trained") -> list[tuple[str, str, str | None]]:
    """Rows of one study, each compared with one of them."""
    return [(name, f"{study}/{name}", None if name == reference else f"{study}/{reference}") for name in names]


def labelled(study: str) -> list[tuple[str, str, str | None]]:
    return [(f"{study}: {name}", run, reference) for name, run, reference in beside(study, KINDS)]


BOTH = [*labelled("fixed"), *labelled("random")]
TABLES = [
    Table("features", "Kinds of features, both layouts; after spherizing", SCORES, BOTH),
    Table("enrichment", "Enrichment of the MOA among pairs of compounds", ENRICHMENT, BOTH),
    Table("batch", "Batch enrichment among control wells", BATCHES, [*BOTH, *beside("fixed", ABLATED)]),
    Table("ablations", "Settings of training, fixed layout", TRAINING, beside("fixed", ["trained", *ABLATED])),
    Table("splits", "Splits, fixed layout; trained: by well", TRAINING, beside("fixed", ["trained", *SPLITS])),
    Table(
        "minmax",
        "Crops scaled by the plate's controls, or each by its own range; fixed layout",
        SCORES,
        [
            ("plate_control, trained", "fixed/trained", None),
            ("minmax, trained", f"{MINMAX}/trained", "fixed/trained"),
            ("plate_control, untrained", "fixed/untrained", None),
            ("minmax, untrained", f"{MINMAX}/untrained", "fixed/untrained"),
        ],
    ),
    Table(
        "strong",
        "Trained on the stronger half of the compounds, or on all; fixed layout",
        [
            ("P@R strong", "moa strong"),
            ("P@R weak", "moa weak"),
            ("P@R all", "moa"),
            ("odds ratio strong, top 5 %", "enrichment strong 95"),
            ("odds ratio weak, top 5 %", "enrichment weak 95"),
            ("odds ratio all, top 5 %", "enrichment 95"),
        ],
        [
            ("trained on all", "fixed/trained", None),
            ("trained on strong", "fixed/strong only", "fixed/trained"),
            ("untrained", "fixed/untrained", "fixed/trained"),
        ],
    ),
    *(
        Table(
            f"dose-{name}",
            f"Scored at {dose:g} uM, random layout",
            [(head, f"{measure} at {dose:g}") for head, measure in SCORES]
            + [("training accuracy", "accuracy"), ("accuracy at the other dose", "val_accuracy")],
            [
                (f"trained at {LOW:g}", "doses/low", None if name == "low" else "doses/high"),
                (f"trained at {HIGH:g}", "doses/high", None if name == "high" else "doses/low"),
                *((kind, f"doses/{kind}", f"doses/{name}") for kind in KINDS[1:]),
            ],
        )
        for name, dose in (("high", HIGH), ("low", LOW))
    ),
    Table(
        "real",
        "Real siRNA screen, wells by gene across its two plates",
        [
            ("P@R", "replicates"),
            ("by chance", "chance replicates"),
            ("rank of the nearest", "rank"),
            ("by chance", "chance rank"),
            ("training accuracy", "accuracy"),
            ("accuracy on the plate held out", "val_accuracy"),
            ("processor s", "processor s"),
        ],
        [
            *((f"trained without {plate}", f"{REAL}/without {plate}", f"{REAL}/untrained") for plate in REAL_PLATES),
            *((kind, f"{REAL}/{kind}", None) for kind in KINDS[1:]),
        ],
    ),
]


def number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}" if abs(value) >= 10 else f"{value:.2f}"


def summary(values: list[float], seeds: int) -> str:
    """Mean with the least and the most, of the seeds where it is defined."""
    if not values:
        return "-"
    found = finite(values)
    said = [number(float(np.mean(found)))] if found else []
    if len(found) > 1:
        said = [f"{said[0]} ({number(min(found))} to {number(max(found))})"]
    said += [f"{n} infinite"] if (n := int(np.isinf(values).sum())) else []
    said += [f"{n} undefined"] if (n := int(np.isnan(values).sum())) else []
    return ", ".join([*said, f"{len(values)} of {seeds} seeds"] if len(values) < seeds else said)


def half_width(values: Sequence[float]) -> float:
    """Of the 95 % interval of the mean, Student's t; NaN for one value."""
    n = len(values)
    return float(stats.t.ppf(0.975, n - 1) * np.std(values, ddof=1) / np.sqrt(n)) if n > 1 else np.nan


def difference(values: list[float]) -> str:
    if not values:
        return "-"
    width = half_width(values)
    return f"{np.mean(values):+.2f}" + (f" ± {number(width)}" if np.isfinite(width) else "")


def print_tables(results: dict[tuple[int, str], Found], seeds: Sequence[int], folder: Path) -> None:
    """Each table, its paired differences below it, and both as CSV in FOLDER/tables."""

    def values(run: str, measure: str, less: str | None = None) -> list[float]:
        out = []
        for seed in seeds:
            one, other = results.get((seed, run), {}), results.get((seed, less or run), {})
            if measure in one and measure in other:
                a, b = float(one[measure]), float(other[measure])
                # a ratio that is infinite on both sides has no difference
                out.append(a if less is None else a - b if np.isfinite([a, b]).all() else np.nan)
        return out

    for table in TABLES:
        rows = [row for row in table.rows if any((seed, row[1]) in results for seed in seeds)]
        if not rows:
            continue
        heads = [head for head, _ in table.columns]
        cells = [[name, *(summary(values(run, m), len(seeds)) for _, m in table.columns)] for name, run, _ in rows]
        print(f"\n## {table.title}: mean (least to most) of {len(seeds)} seed(s)\n")
        print_table(["", *heads], cells)
        compared = [
            [f"{name} less {less}", *(difference(finite(values(run, m, less))) for _, m in table.columns)]
            for name, run, less in rows
            if less is not None
        ]
        if compared:
            print("\nDifferences on the same seed: mean ± 95 % interval (Student's t)\n")
            print_table(["", *heads], compared)
        long = []
        for name, run, less in rows:
            for head, m in table.columns:
                found, paired = finite(values(run, m)), finite(values(run, m, less)) if less else []
                entry = {"row": name, "column": head, "measure": m, "seeds": len(found)}
                if found:
                    entry |= {"mean": np.mean(found), "least": min(found), "most": max(found)}
                if paired:
                    entry |= {"reference": less, "difference": np.mean(paired), "half_width": half_width(paired)}
                long.append(entry)
        write_table(pd.DataFrame(long), folder / "tables" / f"{table.name}.csv")
    write_table(
        pd.DataFrame([{"seed": seed, "run": run, **found} for (seed, run), found in sorted(results.items())]),
        folder / "tables" / "runs.csv",
    )


def finite(values: list[float]) -> list[float]:
    return [v for v in values if np.isfinite(v)]


def print_table(heads: list[str], rows: list[list[str]]) -> None:
    print("| " + " | ".join(heads) + " |")
    print("|" + "---|" * len(heads))
    for row in rows:
        print("| " + " | ".join(row) + " |")


def print_claim(results: dict[tuple[int, str], Found], seeds: Sequence[int]) -> None:
    """Whether training beats what it must beat, on the MOAs that leave intensity and count alone."""
    print()
    for layout in ("fixed", "random"):
        for other in KINDS[1:]:
            pairs = [
                (results[seed, f"{layout}/trained"]["moa quiet"], results[seed, f"{layout}/{other}"]["moa quiet"])
                for seed in seeds
                if {(seed, f"{layout}/trained"), (seed, f"{layout}/{other}")} <= results.keys()
            ]
            if pairs:
                won = sum(float(a) > float(b) for a, b in pairs)
                print(f"{layout} layout, quiet MOAs: trained beats {other} on {won} of {len(pairs)} seeds")


# --- what is done, and what is left


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "deepprofile-quality")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", default=["*"], metavar="RUN", help="such as 'fixed/*' or 'real/*'")
    parser.add_argument("--quick", action="store_true", help="one tiny study, to see that everything works")
    arguments = parser.parse_args()
    folder: Path = arguments.folder.resolve() / ("quick" if arguments.quick else "full")
    seeds: list[int] = arguments.seeds[:1] if arguments.quick else arguments.seeds
    scale, runs = (QUICK, QUICK_RUNS) if arguments.quick else (FULL, RUNS)
    runs = [run for run in runs if any(fnmatch(run.key, pattern) for pattern in arguments.only)]
    if not runs:
        parser.error(f"--only {' '.join(arguments.only)}: no such run; there are {', '.join(r.key for r in RUNS)}")
    if not DATA.is_dir() and any(run.study == REAL for run in runs):
        print(f"{DATA}: not there, so the real study is left out; set DEEPPROFILE_DATA to the folder that holds it")
        runs = [run for run in runs if run.study != REAL]
    warnings.simplefilter("ignore", ProfileWarning)

    files = {
        (seed, run.key): folder
        / "results"
        / f"seed{seed}"
        / f"{run.key.replace('/', '_').replace(' ', '_')}-{mark(run, scale)}.json"
        for seed in seeds
        for run in runs
    }
    todo = [(seed, run) for seed in seeds for run in runs if not files[seed, run.key].exists()]
    studies = {(seed, run.study) for seed, run in todo}
    guess = len(studies) * (SECONDS["simulate"] + SECONDS["prepare"])
    guess += sum(cost(run) for _, run in todo)
    print(f"{len(todo)} runs to do, {len(files) - len(todo)} done; about {guess / 60:.0f} min on two quiet cores")
    failed = []
    began, done = time.perf_counter(), 0.0
    total = sum(cost(run) for _, run in todo)
    for seed, run in todo:
        start = time.perf_counter()
        try:
            found = do(run, folder / f"seed{seed}", seed, scale)
        except Exception:  # the others can still be had
            traceback.print_exc()
            failed.append(f"seed {seed} {run.key}")
            continue
        with atomic_path(files[seed, run.key]) as path:
            path.write_text(json.dumps(found, indent=1) + "\n")
        now = time.perf_counter()
        done += cost(run)
        left = (now - began) / done * (total - done) / 60
        print(f"seed {seed} {run.key}: {line(found)}; {now - start:.0f} s, about {left:.0f} min left", flush=True)
    results = {key: json.loads(path.read_text()) for key, path in files.items() if path.exists()}
    print_tables(results, seeds, folder)
    print_claim(results, seeds)
    print(f"\nFiles in {folder}")
    if failed:
        raise SystemExit(f"{len(failed)} runs failed: {', '.join(failed)}")


def mark(run: Run, scale: Scale) -> str:
    """Of all that a run depends on, so that no number is taken for that of other settings."""
    return digest([asdict(run), asdict(scale), STUDIES, BASE, WIDTH, CROP])[:6]


def cost(run: Run) -> float:
    """Seconds that a run should take."""
    known = {"trained": SECONDS["trained"] + SECONDS["profile"], "untrained": SECONDS["profile"]}
    return known.get(run.features, SECONDS["other"])


def line(found: Found) -> str:
    """What a run says of itself when it ends."""
    shown = [name for name in found if name.startswith(("moa", "replicates", "val_acc"))]
    return ", ".join(f"{name} {float(found[name]):.3f}" for name in shown[:6])


if __name__ == "__main__":
    main()

"""What each correction is worth: MOA accuracy on real wells, and on simulated layouts where the truth is known.

    python benchmarks/recipes.py [--data ../shared/data] [--seeds 5]

Real: BBBC021, 632 wells of 55 plates with six DMSO wells each, 516 CellProfiler features, 103 treatments in 12 MOAs.
NSC is the share of treatments whose nearest neighbour of another compound has their MOA (cosine of treatment profiles),
NSCB that of another compound and another week; one standard error is three points. One LINCS plate, by ridge alone.
Simulated: see `simulate`. Higher is better everywhere; the ratio is to the first row, what pycytominer 1.7.1 does.
"""

import argparse
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from cytominer_tools import consensus, normalize, spherize
from cytominer_tools.columns import COUNT, PLATE, WELL
from cytominer_tools.correction import correct
from cytominer_tools.errors import InputError
from cytominer_tools.queries import select
from deepprofile.recipes import BUILT_IN, Recipe
from deepprofile.steps import Roles, features_of, run_steps, treatment_profiles

sys.path = [place for place in sys.path if Path(place).resolve() != Path(__file__).resolve().parent]  # evaluation.py

from evaluation.metrics import precision_at_r  # noqa: E402
from evaluation.nearest import moa_accuracy  # noqa: E402
from evaluation.similarity import cosine  # noqa: E402

TREATMENT, COMPOUND, BATCH, MOA = "Metadata_Treatment", "Metadata_Compound", "Metadata_Week", "Metadata_moa"
CONTROLS = f"{COMPOUND} == 'DMSO'"
ROLES = Roles(CONTROLS, batch=BATCH)
RIDGES = (1e-6, 1e-3, 1e-2, 0.1, 0.3, 1, 2, 5, 10, 30)
Wells = Callable[[pd.DataFrame], pd.DataFrame]


def scale(by: str | list[str], method: str = "standardize", fit: str = CONTROLS) -> Wells:
    return lambda t: normalize(t, features_of(t), samples=fit, method=method, by=by)


def ridge(value: float) -> Wells:
    def step(table: pd.DataFrame) -> pd.DataFrame:
        return spherize(table, control=select(table, CONTROLS), features=features_of(table), ridge=value).profiles

    return step


def peer(table: pd.DataFrame) -> pd.DataFrame:
    """pycytominer's spherizing, with its epsilon, features without spread among the controls dropped first."""
    features = [name for name in features_of(table) if table.loc[select(table, CONTROLS), name].std() > 0]
    return normalize(table, features, samples=CONTROLS, method="spherize", spherize_epsilon=1e-6)


def centred(table: pd.DataFrame) -> pd.DataFrame:
    """Each plate less the mean of its controls, in the units of the whole."""
    features, control = features_of(table), select(table, CONTROLS)
    means = table[control].groupby(PLATE)[features].mean().reindex(table[PLATE]).to_numpy()
    return pd.concat([table.drop(columns=features), table[features] - means], axis=1)


def clipped(table: pd.DataFrame) -> pd.DataFrame:
    features = features_of(table)
    return table.assign(**{name: table[name].fillna(0).clip(-40, 40) for name in features})


def tvn(by: str) -> Wells:
    return lambda t: correct(t, "tvn", features=features_of(t), samples=CONTROLS, batch=by, n_components=200)


class Row(NamedTuple):
    name: str
    wells: list[Wells]
    operation: str = "mean"


def steps(recipe: Recipe) -> Wells:
    return lambda t: run_steps(t, [*recipe.of_wells, *recipe.selection], ROLES)


ROWS = [
    Row("spherize, epsilon 1e-6 (peer)", [peer]),
    Row("z on DMSO, plate", [scale(PLATE)]),
    Row("MAD on DMSO, plate, clipped at 40", [scale(PLATE, "mad_robustize"), clipped]),
    Row("MAD on all wells, plate", [scale(PLATE, "mad_robustize", "all"), clipped]),
    *(Row(f"spherize, ridge {r:g}", [ridge(r)]) for r in RIDGES),
    Row("spherize, ridge 1, median", [ridge(1)], "median"),
    *(Row(f"centred by plate, spherize, ridge {r:g}", [centred, ridge(r)]) for r in (1e-6, 0.01, 1)),
    *(Row(f"z by plate, spherize, ridge {r:g}", [scale(PLATE), ridge(r)]) for r in (1e-6, 0.1, 1, 3)),
    Row("TVN, 200 components, by batch", [tvn(BATCH)]),
    *(Row(f"recipe {name}", [], "recipe") for name in BUILT_IN),
]


def profiles(wells: pd.DataFrame, row: Row) -> pd.DataFrame:
    """One profile of each treatment, with its compound, MOA and batches."""
    keep = [COMPOUND, MOA]
    if row.operation == "recipe":
        recipe = BUILT_IN[row.name.removeprefix("recipe ")]
        return treatment_profiles(steps(recipe)(wells), recipe.of_treatments, [TREATMENT], keep, ROLES)
    for step in row.wells:
        wells = step(wells)
    return consensus(wells, [TREATMENT], row.operation, features_of(wells), keep=keep)


def accuracies(wells: pd.DataFrame, row: Row) -> tuple[float, float]:
    """NSC and NSCB."""
    table = profiles(wells, row)
    batches = wells.groupby(TREATMENT)[BATCH].agg(lambda some: "+".join(sorted(set(map(str, some)))))
    table[BATCH] = table[TREATMENT].map(batches)
    table = table[table[MOA].notna() & (table[COMPOUND] != "DMSO")].reset_index(drop=True)
    found = moa_accuracy(table, labels=MOA, compound=COMPOUND, batch=BATCH, features=features_of(table)).table
    by_rule = found.set_index("rule")["accuracy"]
    return float(by_rule["NSC"]), float(by_rule["NSCB"])


def bbbc021(data: Path) -> pd.DataFrame:
    wells = pd.read_parquet(data / "bbbc021_profiles" / "bbbc021_wells_raw.parquet")
    dose = wells["Metadata_Concentration"].astype(str)
    return wells.assign(
        **{TREATMENT: wells[COMPOUND] + " " + dose, BATCH: wells[PLATE].str.split("_").str[0], COUNT: 1}
    )


def lincs(data: Path) -> pd.Series:
    """One plate, 24 controls, 454 features: precision at R of the compound of treated wells, by ridge."""
    wells = pd.read_csv(data / "lincs_plate_SQ00015054" / "SQ00015054_normalized_feature_select.csv.gz")
    control = wells["Metadata_broad_sample"] == "DMSO"
    labels = pd.factorize(wells.loc[~control, "Metadata_broad_sample"])[0]
    scores = {}
    for value in RIDGES:
        found = spherize(wells, control=control, features=features_of(wells), ridge=value).profiles
        similarity = cosine(found.loc[~control, features_of(found)].to_numpy())
        scores[f"ridge {value:g}"] = float(np.nanmean(precision_at_r(similarity, labels).precision))
    return pd.Series(scores, name="LINCS plate, precision at R")


class Layout(NamedTuple):
    """A screen to simulate.

    Parameters
    ----------
    plates, controls, batches : int
        Control wells are a plate's.
    shared : bool
        Every plate holds every compound; or two MOAs alone, as screens by library plates do.
    features : int
    """

    plates: int
    controls: int
    batches: int
    shared: bool
    features: int


LAYOUTS = {
    "all compounds on each plate": Layout(6, 16, 2, True, 128),
    "two MOAs a plate, 6 controls": Layout(24, 6, 4, False, 128),
    "features outnumber controls": Layout(6, 8, 2, True, 640),
}


def simulate(layout: Layout, seed: int) -> pd.DataFrame:
    """Wells of 12 MOAs of 4 compounds, four replicates or more, with known causes.

    Effect + well noise + shift of the plate + shift of the batch, times a gain of each feature on each plate. The sizes
    are those of BBBC021, in its own units (features divided by the sd of all controls): eigenvalues of control wells
    within a plate fall as rank**-2.5, the variance of treatments along those axes goes as eigenvalue**0.65, plates and
    batches are shifted along the axes of the wells, 0.12 and 0.6 of their variance. Effects are weak, a fifteenth of
    theirs in standard deviations of a well.
    """
    rng = np.random.default_rng([seed, layout.features, layout.plates])
    d, moas, each = layout.features, 12, 4
    axes, _ = np.linalg.qr(rng.normal(size=(d, d)))
    spectrum = np.arange(1, d + 1.0) ** -2.5
    wells = np.sqrt(spectrum * d / spectrum.sum())[:, None] * axes
    effects = np.sqrt(spectrum**0.65 * d / (spectrum**0.65).sum())[:, None] * axes
    moa_effects = rng.normal(size=(moas, d)) @ effects
    compound_effects = moa_effects.repeat(each, axis=0) + 0.7 * rng.normal(size=(moas * each, d)) @ effects
    batches = np.sqrt(0.6) * rng.normal(size=(layout.batches, d)) @ wells
    rows, values = [], []
    for plate in range(layout.plates):
        start = 2 * each * (plate * moas // 2 // layout.plates)  # 24 plates: four in turn hold the same two MOAs
        compounds = range(moas * each) if layout.shared else range(start, start + 2 * each)
        shift = batches[plate % layout.batches] + np.sqrt(0.12) * rng.normal(size=d) @ wells
        gain = np.exp(0.1 * rng.normal(size=d))
        for number, compound in enumerate([*([-1] * layout.controls), *compounds]):
            effect = 0 if compound < 0 else 0.15 * compound_effects[compound]
            values.append((effect + rng.normal(size=d) @ wells + shift) * gain)
            name = "DMSO" if compound < 0 else f"c{compound}"
            batch = f"b{plate % layout.batches}"
            well = f"{'ABCDEFGH'[number % 8]}{number // 8 + 1:02d}"
            moa = None if compound < 0 else f"m{compound // each}"
            rows.append((f"p{plate}", well, name, moa, name, batch, int(rng.integers(50, 200))))
    metadata = pd.DataFrame(rows, columns=[PLATE, WELL, COMPOUND, MOA, TREATMENT, BATCH, COUNT])
    return pd.concat([metadata, pd.DataFrame(values, columns=[f"f_{i}" for i in range(d)])], axis=1)


def cell(score: Callable[[], float]) -> Any:
    try:
        return score()
    except InputError as error:
        print(f"  {error}")
        return np.nan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data", type=Path, default=Path(os.environ.get("DEEPPROFILE_DATA", "../shared/data")), help="of BBBC021"
    )
    parser.add_argument("--seeds", type=int, default=5, help="of each simulated layout")
    chosen = parser.parse_args()
    warnings.simplefilter("ignore")
    table = pd.DataFrame(index=[row.name for row in ROWS])
    if (chosen.data / "bbbc021_profiles").is_dir():
        wells = bbbc021(chosen.data)
        found = [accuracies(wells, row) for row in ROWS]
        table["BBBC021 NSC"], table["BBBC021 NSCB"] = zip(*found, strict=True)
        table["ratio"] = table["BBBC021 NSC"] / table["BBBC021 NSC"].iloc[0]
    if (chosen.data / "lincs_plate_SQ00015054").is_dir():
        print(lincs(chosen.data).round(3).to_string())
    for name, layout in LAYOUTS.items():
        runs = [simulate(layout, seed) for seed in range(chosen.seeds)]
        scores = np.array([[cell(lambda w=wells, r=row: accuracies(w, r)[0]) for wells in runs] for row in ROWS])
        table[name] = scores.mean(axis=1)
        table["+-"] = scores.std(axis=1, ddof=1) / np.sqrt(chosen.seeds) if chosen.seeds > 1 else np.nan
        print(table[[name, "+-"]].round(3).to_string(), flush=True)
        table = table.drop(columns="+-")
    print(table.round(3).to_string())


if __name__ == "__main__":
    main()

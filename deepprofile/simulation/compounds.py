"""What simulated compounds do: to cells at each dose, and in assays."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cytominer_tools.errors import InputError
from deepprofile.simulation.traits import QUIET, TRAITS, direction, shifted

CONTROL = "DMSO"
COMPOUND, CONCENTRATION, MOA, BATCH = (f"Metadata_{name}" for name in ("Compound", "Concentration", "MOA", "Batch"))
ASSAY = "Metadata_Assay"


@dataclass(frozen=True)
class Potency:
    """How the effect of a compound rises with its dose: ``strength * dose**hill / (dose**hill + ec50**hill)``."""

    ec50_um: tuple[float, float] = (0.03, 1.0)  # drawn between these, evenly on a logarithmic scale
    hill: float = 1.5

    def __post_init__(self) -> None:
        low, high = self.ec50_um
        if not 0 < low <= high < np.inf:
            raise InputError(f"ec50_um={self.ec50_um}: expected two positive numbers, the smaller first")
        if not 0 < self.hill < np.inf:
            raise InputError(f"hill={self.hill}: expected a positive number, such as 1.5")


@dataclass(frozen=True)
class Assays:
    """The planted assays: how many of each kind, and when a compound is active in them."""

    moa: int = 6  # active: the compounds of one MOA (in turn) whose effect at the assay's dose is `threshold` or more
    count: int = 2  # active: the compounds that leave the fewest cells, a share `rate` of all
    random: int = 2  # active: a share `rate`, whatever the compound does
    concentrations: tuple[float, ...] = (0.3, 0.1, 1.0)  # uM; an assay of a kind takes the next one
    threshold: float = 0.5  # of strength * occupancy; it does not ask whether `effect` shows it in the images
    rate: float = 0.2
    flipped: float = 0.0  # share of all labels turned round: what the assays get wrong
    missing: float = 0.0  # share of all labels left out

    def __post_init__(self) -> None:
        for name in ("moa", "count", "random", "threshold"):
            if not (value := getattr(self, name)) >= 0:
                raise InputError(f"{name}={value}: expected 0 or more")
        for name in ("rate", "flipped", "missing"):
            if not 0 <= (value := getattr(self, name)) <= 1:
                raise InputError(f"{name}={value}: expected a share between 0 and 1")
        check_concentrations(self.concentrations)


def check_concentrations(concentrations: Sequence[float]) -> None:
    """Refuse doses that are none, not positive or given twice."""
    doses = np.asarray(concentrations, float)
    if doses.ndim != 1 or not len(doses) or not (doses > 0).all() or not np.isfinite(doses).all():
        raise InputError(f"concentrations={concentrations}: expected positive numbers in uM, such as [1, 10]")
    if len(set(doses.tolist())) < len(doses):
        raise InputError(f"concentrations={concentrations}: one is given twice; leave it out")


def occupancy(dose: Any, ec50: Any, hill: Any) -> Any:
    """The share of its full effect that a compound has at `dose`: 0 without any, 1/2 at `ec50`."""
    return np.power(dose, hill) / (np.power(dose, hill) + np.power(ec50, hill))


def draw_compounds(
    rng: np.random.Generator, moas: int, compounds_per_moa: int, effect: float = 1.0, potency: Potency | None = None
) -> pd.DataFrame:
    """Draw what each compound does.

    Returns
    -------
    DataFrame
        A row a compound: compound, MOA, strength (about 1), ec50_um, hill, quiet, and for each of `TRAITS` the factor
        on its value at full effect. At another dose it is that factor to the power of the `occupancy`.
    """
    potency = potency or Potency()
    doses = rng.spawn(1)[0]  # a stream of their own, so that they move no direction
    names = list(TRAITS)
    directions: list[npt.NDArray[np.float64]] = []
    rows: list[dict[str, Any]] = []
    for moa in range(moas):
        quiet = moa < (moas + 1) // 2
        allowed = QUIET if quiet else np.ones_like(QUIET)
        strengths = rng.permutation(np.linspace(0.6, 1.4, compounds_per_moa)) if compounds_per_moa > 1 else np.ones(1)
        shared = direction(rng, allowed, directions)
        if not quiet:  # a loud MOA is loud: half of its length is on traits that move intensity or number
            loud, rest = shared * ~QUIET, shared * QUIET
            shared = loud / np.linalg.norm(loud) + rest / np.maximum(np.linalg.norm(rest), 1e-9)
            shared /= np.linalg.norm(shared)
        directions.append(shared)
        for strength in strengths:
            shift = effect * strength * (shared + 0.25 * direction(rng, allowed))
            shift[names.index("density")] = -abs(shift[names.index("density")])
            low, high = np.log(potency.ec50_um)
            rows.append(
                {
                    COMPOUND: f"CPD{len(rows) + 1:03d}",
                    MOA: f"MOA{moa + 1:02d}",
                    "strength": round(float(strength), 4),
                    "ec50_um": float(f"{np.exp(doses.uniform(low, high)):.4g}"),
                    "hill": potency.hill,
                    "quiet": quiet,
                    **dict(zip(names, shifted(shift).round(6).tolist(), strict=True)),
                }
            )
    return pd.DataFrame(rows)


def draw_activities(
    rng: np.random.Generator, compounds: pd.DataFrame, assays: Assays
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Run the planted assays on every compound.

    Returns
    -------
    activities : DataFrame
        A row a compound, a column an assay: 1 active, 0 not, missing where `Assays.missing` struck.
    assays : DataFrame
        A row an assay: name, kind (moa, count, random), MOA, concentration, and the threshold that makes active: the
        least effect (moa), the highest number of cells over that of controls (count), or nothing (random).
    """
    moas = compounds[MOA].unique()
    active: dict[str, npt.NDArray[np.bool_]] = {}
    rows: list[dict[str, Any]] = []
    for kind, number in (("moa", assays.moa), ("count", assays.count), ("random", assays.random)):
        for i in range(number):
            dose = assays.concentrations[i % len(assays.concentrations)]
            share = occupancy(dose, compounds["ec50_um"].to_numpy(float), compounds["hill"].to_numpy(float))
            about: dict[str, Any] = {ASSAY: f"{kind}_{i + 1:02d}", "kind": kind, MOA: "", CONCENTRATION: dose}
            if kind == "moa":
                about[MOA], about["threshold"] = moas[i % len(moas)], assays.threshold
                enough = compounds["strength"].to_numpy(float) * share >= assays.threshold
                found = enough & (compounds[MOA] == about[MOA]).to_numpy(bool)
            elif kind == "count":
                left = compounds["density"].to_numpy(float) ** share
                about["threshold"] = float(np.quantile(left, assays.rate, method="lower"))
                found = (left <= about["threshold"]) & (left < 1) & (assays.rate > 0)
            else:
                found = rng.random(len(compounds)) < assays.rate
            active[about[ASSAY]] = found ^ (rng.random(len(compounds)) < assays.flipped)
            rows.append(about)
    table = pd.DataFrame({name: found.astype("int8") for name, found in active.items()})
    if assays.missing:
        table = table.astype("Int8").mask(rng.random(table.shape) < assays.missing)
    columns = [ASSAY, "kind", MOA, CONCENTRATION, "threshold"]
    table.insert(0, COMPOUND, compounds[COMPOUND].to_numpy(object))
    return table, pd.DataFrame(rows, columns=columns)

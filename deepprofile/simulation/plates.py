"""Which well holds what, and what moves a well that is no compound: batch, plate, position and edge."""

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
import pandas as pd

from cytominer_tools.columns import PLATE, WELL
from cytominer_tools.errors import InputError
from deepprofile.simulation.compounds import BATCH, COMPOUND, CONCENTRATION, CONTROL, MOA
from deepprofile.simulation.traits import TRAITS, direction

PLATE_ROWS = {96: 8, 384: 16}  # wells a plate: rows
LAYOUTS = ("random", "fixed")
REPLICATES = 5  # plates of a fixed layout; the last is in another batch, as in LINCS
Shifts = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Nuisance:
    """Sizes of the technical effects, in the unit of a compound's strength: 1 moves a well as far as a compound of 1.

    `batch` and `plate` move all wells of one in a direction of its own, among all traits. `position` and `edge` are
    the same on every plate.
    """

    batch: float = 0.2
    plate: float = 0.1
    position: float = 0.1  # at the border: staining gets brighter to the right, cells get fewer downwards
    edge: float = 0.2  # in the outermost wells, a third of it one well further in: fewer, smaller, brighter cells

    def __post_init__(self) -> None:
        for entry in fields(self):
            if not 0 <= (value := getattr(self, entry.name)) < np.inf:
                raise InputError(f"{entry.name}={value}: expected 0 or more, such as {entry.default}")


def lay_out(
    plates: int, doses: pd.DataFrame, wells: int, controls: int, layout: str, seed: np.random.SeedSequence
) -> pd.DataFrame:
    """Say what each well holds: each of `doses` (compound, concentration, MOA, ..) once a plate, and the controls.

    Parameters
    ----------
    layout : "random" or "fixed"
        Positions and batches. Random: drawn anew for every plate, plates in two batches by turns. Fixed: drawn once;
        of every five plates (or of what is left of five) the last is in the second batch.

    Returns
    -------
    DataFrame
        The columns of `doses`, plate and well (numbers from 0), row and column (from 0), and what the index calls
        plate, well and batch; in the order of plates and wells.
    """
    columns = wells // PLATE_ROWS[wells]
    untreated = pd.DataFrame({COMPOUND: [CONTROL] * controls, MOA: "", CONCENTRATION: 0.0})
    contents = pd.concat([doses, untreated], ignore_index=True)
    tables = []
    for plate, drawn in enumerate(seed.spawn(plates) if layout == "random" else [seed] * plates):
        position = np.random.default_rng(drawn).permutation(wells)[: len(contents)]
        if layout == "random":
            batch = plate % 2
        else:
            last = plate == plates - 1 or plate % REPLICATES == REPLICATES - 1
            batch = int(last and plate % REPLICATES > 0)
        table = contents.assign(plate=plate, well=position, row=position // columns, column=position % columns)
        table[PLATE], table[BATCH] = f"SIM{plate + 1:03d}", f"batch{batch + 1}"
        table[WELL] = [f"{chr(65 + p // columns)}{p % columns + 1:02d}" for p in position.tolist()]
        tables.append(table.sort_values("well"))
    return pd.concat(tables, ignore_index=True)


def nuisance_shifts(layout: pd.DataFrame, wells: int, nuisance: Nuisance, seed: np.random.SeedSequence) -> Shifts:
    """How far each well of `layout` is moved, in the steps of the traits: float array, shape (n_wells, n_traits)."""
    rows = PLATE_ROWS[wells]
    last = np.array([rows - 1, wells // rows - 1])
    at = layout[["row", "column"]].to_numpy(float)
    down, across = (2 * at / last - 1).T
    inwards = np.exp(-1.1 * np.minimum(at, last - at).min(axis=1))[:, None]  # 1 in the outermost wells, then 1/3
    batches, plates = seed.spawn(2)
    return (
        nuisance.batch * _drawn(layout[BATCH], batches)
        + nuisance.plate * _drawn(layout["plate"], plates)
        + nuisance.position * (across[:, None] * _toward({"level": 1}) + down[:, None] * _toward({"density": -1}))
        + nuisance.edge * inwards * _toward({"level": 1, "density": -1, "cell_radius": -1, "nucleus_radius": -1})
    )


def _drawn(group: "pd.Series[str] | pd.Series[int]", seed: np.random.SeedSequence) -> Shifts:
    """A direction for each group, among all traits: the same for the first ones, however many there are."""
    codes, names = pd.factorize(group, sort=True)
    drawn = [direction(np.random.default_rng(child), np.ones(len(TRAITS), bool)) for child in seed.spawn(len(names))]
    return np.array(drawn)[codes]


def _toward(signs: dict[str, float]) -> Shifts:
    """The unit vector with these signs; a name stands for all traits that begin with it."""
    vector = np.array([sum(sign for name, sign in signs.items() if trait.startswith(name)) for trait in TRAITS], float)
    return vector / np.linalg.norm(vector)

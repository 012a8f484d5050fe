"""Cell Painting images with a known truth: where each cell is, and what each compound does to it.

A study has compounds in mechanisms (MOAs); a mechanism is a direction among `TRAITS`, a compound a strength along it
and an EC50. A site is drawn in steps, each open to more: `place` puts the cells, `outline` says whose each pixel is,
`paint` fills the five channels, `litter` adds debris, `photograph` is the microscope. docs/simulator.md says what is
simulated and what is not.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import tifffile

from cytominer_tools import threads
from cytominer_tools.columns import PLATE, SITE, WELL
from cytominer_tools.errors import InputError
from cytominer_tools.files import atomic_path
from cytominer_tools.tables import write_table
from deepprofile.simulation.camera import Camera, Flaws, litter, photograph
from deepprofile.simulation.cells import (
    CALM,
    Culture,
    cell_table,
    most_cells,
    nucleus_labels,
    outline,
    place,
)
from deepprofile.simulation.compounds import (
    BATCH,
    COMPOUND,
    CONCENTRATION,
    CONTROL,
    MOA,
    Assays,
    Potency,
    check_concentrations,
    draw_activities,
    draw_compounds,
    occupancy,
)
from deepprofile.simulation.light import paint
from deepprofile.simulation.plates import LAYOUTS, PLATE_ROWS, Nuisance, lay_out, nuisance_shifts
from deepprofile.simulation.textures import field
from deepprofile.simulation.traits import CHANNELS, TRAITS, Trait, shifted

__all__ = [
    "BATCH",
    "CALM",
    "CHANNELS",
    "COMPOUND",
    "CONCENTRATION",
    "CONTROL",
    "MOA",
    "TRAITS",
    "Assays",
    "Camera",
    "Culture",
    "Flaws",
    "Nuisance",
    "Potency",
    "Trait",
    "draw_activities",
    "draw_compounds",
    "field",
    "lay_out",
    "litter",
    "most_cells",
    "nucleus_labels",
    "nuisance_shifts",
    "occupancy",
    "outline",
    "paint",
    "photograph",
    "place",
    "simulate",
]

# LZW as most microscopes' software writes it; differences between neighbours compress to 0.81, the values to 0.88
TIFF: dict[str, Any] = {"compression": "lzw", "predictor": True, "metadata": None, "maxworkers": 1}


def simulate(
    folder: Path,
    *,
    plates: int = 3,
    wells: int = 384,
    sites: int = 2,
    size: tuple[int, int] = (360, 360),
    cells: int = 28,
    pixel_size_um: float = 0.6,
    moas: int = 6,
    compounds_per_moa: int = 4,
    concentrations: Sequence[float] = (10.0,),
    controls: int = 8,
    effect: float = 1.0,
    count_spread: float = 0.08,
    layout: str = "random",
    masks: bool = False,
    potency: Potency | None = None,
    assays: Assays | None = None,
    nuisance: Nuisance | None = None,
    culture: Culture | None = None,
    flaws: Flaws | None = None,
    camera: Camera | None = None,
    seed: int = 0,
    workers: int | None = None,
) -> Path:
    """Write the images, the index and the truth of a made-up Cell Painting study; the same bytes for the same seed.

    Parameters
    ----------
    folder : Path
        Receives ``images/PLATE/WELL_sSITE_CHANNEL.tif`` (uint16, LZW), ``index.csv`` (a row a site, written last) and
        the tables of ``truth/``: compounds.csv, activities.csv, assays.csv, wells.parquet, sites.parquet and
        cells.parquet; docs/simulator.md lists their columns.
    plates : int
        Every plate holds each compound once at each concentration.
    wells : int
        Wells that a plate has, 96 or 384; ``moas * compounds_per_moa * len(concentrations) + controls`` are filled.
    sites : int
        Sites a well.
    size : (height, width)
        Of an image, px.
    cells : int
        Cells a site under control; compounds may lower the number.
    pixel_size_um : float
        Edge of a pixel in um; cells keep their size in um.
    moas, compounds_per_moa : int
        Half of the MOAs (rounded up) are quiet: they leave the mean of every channel and the number of cells alone.
    concentrations : sequence of float
        Doses, uM.
    controls : int
        Wells with DMSO a plate.
    effect : float
        Length of a mechanism at strength 1, in the steps of `TRAITS` and spread over many of them; 0: none has any.
    count_spread : float
        Standard deviation of the logarithm of the number of cells, from well to well; 0: as many as asked.
    layout : "random" or "fixed"
        Random: positions are drawn for every plate, and plates are in two batches by turns. Fixed: a compound has the
        same position on every plate, and of every five plates the last is in a second batch, as in LINCS.
    masks : bool
        Write ``truth/masks/PLATE/WELL_sSITE.tif``: nuclei, uint16, 1 + `Metadata_Cell`.
    potency, assays, nuisance, culture, flaws, camera : optional
        See each for what can be set; by default as they come.
    seed : int
        Not negative. A site draws from a generator keyed by (seed, plate, well, site).
    workers : int, optional
        Threads; by default the processors at hand.

    Returns
    -------
    Path
        Of index.csv.

    Raises
    ------
    InputError
        A number is not positive, the wells do not fit on a plate or the cells in an image, or `folder` has an index.
    """
    folder, camera, culture, flaws = Path(folder), camera or Camera(), culture or Culture(), flaws or Flaws()
    _check(
        plates=plates, sites=sites, height=size[0], width=size[1], cells=cells, moas=moas,
        compounds_per_moa=compounds_per_moa, controls=controls, workers=1 if workers is None else workers,
    )  # fmt: skip
    if not pixel_size_um > 0:
        raise InputError(f"pixel_size_um={pixel_size_um}: expected a positive length in um, such as 0.6")
    if not count_spread >= 0:
        raise InputError(f"count_spread={count_spread}: expected 0 or more, such as 0.1")
    if not effect >= 0:
        raise InputError(f"effect={effect}: expected 0 or more, such as 1")
    if seed < 0:
        raise InputError(f"seed={seed}: expected 0 or more")
    check_concentrations(concentrations)
    if layout not in LAYOUTS:
        raise InputError(f"layout={layout!r}: expected {' or '.join(LAYOUTS)}")
    if len(camera.background) != len(CHANNELS):
        raise InputError(f"background={camera.background}: expected {len(CHANNELS)} numbers, one a channel")
    if wells not in PLATE_ROWS:
        raise InputError(f"wells={wells}: a plate has {' or '.join(map(str, PLATE_ROWS))} wells")
    if (filled := moas * compounds_per_moa * len(concentrations) + controls) > wells:
        doses = f" x {len(concentrations)} concentrations" if len(concentrations) > 1 else ""
        raise InputError(
            f"{moas} MOAs x {compounds_per_moa} compounds{doses} + {controls} controls = {filled} wells, "
            f"a plate has {wells}; ask for fewer"
        )
    if cells > (most := most_cells(size, pixel_size_um)):
        raise InputError(
            f"cells={cells}: at most {most} fit in {size[0]} x {size[1]} px of {pixel_size_um} um; enlarge size"
        )
    index = folder / "index.csv"
    if index.exists():
        raise InputError(f"{folder}: has an index.csv already; choose another folder or delete this one")

    compounds = draw_compounds(np.random.default_rng(_key(seed, 0)), moas, compounds_per_moa, effect, potency)
    activities, about = draw_activities(np.random.default_rng(_key(seed, 5)), compounds, assays or Assays())
    table, factors = _wells(compounds, concentrations, plates, wells, controls, layout, nuisance or Nuisance(), seed)

    def write_site(job: int, site: int) -> tuple[dict[str, Any], dict[str, Any], pd.DataFrame]:
        row, traits = table[job], dict(zip(TRAITS, factors[job].tolist(), strict=True))
        plate, well = row["plate"], row["well"]
        rng = np.random.default_rng(_key(seed, 2, plate, well, site))
        # one number of cells a well, before the sites part ways
        drawn = np.random.default_rng(_key(seed, 3, plate, well)).normal(0, count_spread)
        number = min(max(1, round(cells * traits["density"] * np.exp(drawn))), most)
        chance, specks, shapes = rng.spawn(3)
        blurred = bool(chance.random() < flaws.out_of_focus)
        defocus = float(chance.uniform(*flaws.defocus_um)) if blurred else 0.0

        found = place(rng, number, size, pixel_size_um, traits, culture)
        at = outline(shapes, found, size, pixel_size_um)
        light = paint(rng, found, size, pixel_size_um, at)
        debris = litter(specks, light, flaws, pixel_size_um)
        lamp = np.random.default_rng(_key(seed, 1, plate))
        images = photograph(rng, light, camera, pixel_size_um, lamp, defocus)

        key = {PLATE: row[PLATE], WELL: row[WELL], SITE: str(site + 1)}
        paths = {c: f"images/{row[PLATE]}/{row[WELL]}_s{site + 1}_{c}.tif" for c in CHANNELS}
        for image, path in zip(images, paths.values(), strict=True):
            with atomic_path(folder / path) as part:
                tifffile.imwrite(part, image, **TIFF)
        if masks:
            with atomic_path(folder / "truth" / "masks" / row[PLATE] / f"{row[WELL]}_s{site + 1}.tif") as part:
                tifffile.imwrite(part, nucleus_labels(at, size), **TIFF)
        about_site = {**key, "cells": number, "dead": int(found.dead.sum()), "debris": debris}
        about_site |= {"out_of_focus": blurred, "defocus_um": defocus}
        rest = {name: row[name] for name in (COMPOUND, CONCENTRATION, MOA, BATCH)}
        return {**key, **paths, **rest}, about_site, cell_table(found, key, size, pixel_size_um)

    jobs = [(well, site) for well in range(len(table)) for site in range(sites)]
    # threads: two made 15.3 sites/s where two processes made 14.2, and they need no __main__ guard
    with ThreadPoolExecutor(workers or threads.workers()) as pool:
        try:
            done = list(pool.map(write_site, *zip(*jobs, strict=True)))
        except BaseException:  # also Ctrl-C: do not draw the rest first
            pool.shutdown(cancel_futures=True)
            raise
    truth = folder / "truth"
    write_table(pd.concat([found for *_, found in done], ignore_index=True), truth / "cells.parquet")
    write_table(pd.DataFrame([about_site for _, about_site, _ in done]), truth / "sites.parquet")
    write_table(_well_table(table, factors), truth / "wells.parquet")
    write_table(compounds, truth / "compounds.csv")
    write_table(activities, truth / "activities.csv")
    write_table(about, truth / "assays.csv")
    return write_table(pd.DataFrame([row for row, *_ in done]), index)


def _wells(
    compounds: pd.DataFrame,
    concentrations: Sequence[float],
    plates: int,
    wells: int,
    controls: int,
    layout: str,
    nuisance: Nuisance,
    seed: int,
) -> tuple[list[dict[str, Any]], npt.NDArray[np.float64]]:
    """What each well holds, an entry a well, and the factors on its traits, shape (n_wells, n_traits)."""
    doses = compounds[[COMPOUND, MOA]].merge(pd.DataFrame({CONCENTRATION: np.asarray(concentrations, float)}), "cross")
    table = lay_out(plates, doses, wells, controls, layout, _key(seed, 4))
    here = table[[COMPOUND]].merge(compounds, how="left", on=COMPOUND)
    treated = (table[COMPOUND] != CONTROL).to_numpy(bool)
    share = np.where(treated, occupancy(table[CONCENTRATION], here["ec50_um"].fillna(1), here["hill"].fillna(1)), 0.0)
    table["effect"] = here["strength"].fillna(0.0) * share
    of_compound = np.where(treated[:, None], here[list(TRAITS)].fillna(1.0).to_numpy(float) ** share[:, None], 1.0)
    factors = of_compound * shifted(nuisance_shifts(table, wells, nuisance, _key(seed, 6)))
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")], factors


def _well_table(table: list[dict[str, Any]], factors: npt.NDArray[np.float64]) -> pd.DataFrame:
    columns = [PLATE, WELL, BATCH, COMPOUND, CONCENTRATION, MOA, "effect"]
    return pd.concat([pd.DataFrame(table)[columns], pd.DataFrame(factors, columns=list(TRAITS))], axis=1)


def _key(seed: int, *place: int) -> np.random.SeedSequence:
    return np.random.SeedSequence(seed, spawn_key=place)


def _check(**numbers: int) -> None:
    if bad := [f"{name}={value}" for name, value in numbers.items() if value < 1]:
        raise InputError(f"{', '.join(bad)}: expected 1 or more")

"""Cell Painting images with a known truth: where each cell is, and what each compound does to it.

A study has compounds in mechanisms (MOAs); a mechanism is a direction among `TRAITS`, a compound a strength along it.
A site is drawn in steps, each open to more: `place` puts the cells, `outline` says whose each pixel is, `paint` fills
the five channels, `photograph` is the microscope. The mean of a channel over a cell (of DNA over its nucleus) is set
after its pattern is drawn, so that a pattern never moves an intensity.
"""

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt
import pandas as pd
import tifffile

from cytominer_tools.columns import CELL, PLATE, SITE, WELL
from cytominer_tools.errors import InputError
from cytominer_tools.files import atomic_path
from cytominer_tools.tables import write_table

Floats: TypeAlias = npt.NDArray[np.float32]
Ints: TypeAlias = npt.NDArray[np.intp]

CHANNELS = ("DNA", "ER", "RNA", "AGP", "Mito")
CONTROL = "DMSO"
COMPOUND, CONCENTRATION, MOA, BATCH = (f"Metadata_{name}" for name in ("Compound", "Concentration", "MOA", "Batch"))
TIFF: dict[str, Any] = {"compression": "zlib", "compressionargs": {"level": 1}, "metadata": None, "maxworkers": 1}
PLATE_ROWS = {96: 8, 384: 16}  # wells a plate: rows
CROWDED = 0.4  # of the image under discs as wide as GAP_UM; random placing jams at 0.547 (Feder 1980)
GAP_UM = 20.0  # between two centres; the same for all traits, so that none of them moves the density


@dataclass(frozen=True)
class Trait:
    """One axis of morphology; a cell's value is ``typical * exp(step * shift + spread * normal)``."""

    typical: float
    step: float  # of the logarithm, at a shift of 1
    spread: float  # of the logarithm, from cell to cell
    quiet: bool = True  # moves neither the mean of a channel nor the number of cells


TRAITS: Mapping[str, Trait] = {
    "nucleus_radius": Trait(8.6, 0.14, 0.10),  # um, of the disc of equal area; DNA content is kept
    "nucleus_elongation": Trait(1.40, 0.28, 0.13),  # long axis / short axis
    "chromatin_grain": Trait(0.5, 1.5, 0.3),  # odds, coarse against fine
    "chromatin_contrast": Trait(0.20, 0.6, 0.15),  # standard deviation of the logarithm
    "nucleoli": Trait(2.8, 0.5, 0.0),  # a nucleus
    "nucleoli_brightness": Trait(1.5, 0.5, 0.2),  # peak over the nucleus
    "er_grain": Trait(1.0, 1.5, 0.3),
    "er_contrast": Trait(0.24, 0.5, 0.15),
    "er_reach": Trait(1.1, 0.5, 0.15),  # decay from the nucleus outwards, nucleus radii
    "golgi_spots": Trait(7.0, 0.6, 0.0),  # a cell
    "golgi_scatter": Trait(2.8, 0.6, 0.15),  # um
    "membrane": Trait(0.3, 0.6, 0.2),  # AGP at the edge over AGP in the cytoplasm
    "mito_fragments": Trait(0.5, 1.6, 0.3),  # odds, dots against filaments
    "mito_contrast": Trait(0.5, 0.5, 0.15),
    "mito_reach": Trait(1.0, 0.5, 0.15),
    "cell_radius": Trait(24.0, 0.2, 0.18, quiet=False),  # um
    "cell_elongation": Trait(1.25, 0.25, 0.15, quiet=False),
    "density": Trait(1.0, 0.4, 0.0, quiet=False),  # cells a site over `cells`; effects only lower it
    "level_DNA": Trait(9000.0, 0.3, 0.15, quiet=False),  # counts, mean over a nucleus of typical size
    "level_ER": Trait(4200.0, 0.3, 0.25, quiet=False),  # counts, mean over a cell
    "level_RNA": Trait(5500.0, 0.3, 0.25, quiet=False),
    "level_AGP": Trait(4500.0, 0.3, 0.25, quiet=False),
    "level_Mito": Trait(3500.0, 0.3, 0.25, quiet=False),
}


@dataclass(frozen=True)
class Camera:
    """The microscope; brightness in counts of the image."""

    offset: float = 100.0
    background: tuple[float, ...] = (420.0, 330.0, 500.0, 650.0, 1100.0)  # a channel, light that is not from cells
    gain: float = 1.0  # counts a photon
    read_noise: float = 8.0  # counts
    vignetting: float = 0.15  # of the light, lost in the corners
    blur_um: float = 0.55  # standard deviation of the point spread
    glow: float = 0.05  # of the light, spread over `glow_um`: what is out of focus
    glow_um: float = 18.0


class Cells(NamedTuple):
    """The cells of one site, an entry a cell: centres (px) and the angles (rad) and traits that shape them."""

    x: Floats
    y: Floats
    angle: Floats
    traits: Mapping[str, Floats]


class Outline(NamedTuple):
    """The pixels that belong to a cell, one entry a pixel, and for each where in its cell it lies."""

    pixels: Ints  # in the flattened image
    cell: Ints
    reach: Floats  # squared; 0 in the centre, 1 at the free edge of the cell
    border: Floats  # distance to the territory of a neighbour, in the unit of sqrt(reach)
    nuclear: Floats  # squared; 0 in the centre of the nucleus, 1 at its edge


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
    controls: int = 8,
    effect: float = 1.0,
    count_spread: float = 0.08,
    camera: Camera | None = None,
    seed: int = 0,
    workers: int | None = None,
) -> Path:
    """Write the images, the index and the truth of a made-up Cell Painting study; the same bytes for the same seed.

    Parameters
    ----------
    folder : Path
        Receives ``images/PLATE/WELL_sSITE_CHANNEL.tif`` (uint16, zlib), ``index.csv`` (a row a site, written last),
        ``truth/cells.parquet`` (the key, x and y in px, nucleus_radius_um, inside: no part of the nucleus is cut off)
        and ``truth/compounds.csv`` (compound, MOA, strength, quiet, and the factor that each trait is multiplied by).
    plates : int
        Every plate holds each compound once, at positions drawn anew. From two plates on there are two batches.
    wells : int
        Wells that a plate has, 96 or 384; ``moas * compounds_per_moa + controls`` of them are filled.
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
    controls : int
        Wells with DMSO a plate.
    effect : float
        Length of a mechanism at strength 1, in the steps of `TRAITS` and spread over many of them; 0: none has any.
    count_spread : float
        Standard deviation of the logarithm of the number of cells, from well to well; 0: as many as asked.
    camera : Camera, optional
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
    folder, camera = Path(folder), camera or Camera()
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
    if wells not in PLATE_ROWS:
        raise InputError(f"wells={wells}: a plate has {' or '.join(map(str, PLATE_ROWS))} wells")
    if (filled := moas * compounds_per_moa + controls) > wells:
        raise InputError(
            f"{moas} MOAs x {compounds_per_moa} compounds + {controls} controls = {filled} wells, "
            f"a plate has {wells}; ask for fewer"
        )
    if cells > (most := most_cells(size, pixel_size_um)):
        raise InputError(
            f"cells={cells}: at most {most} fit in {size[0]} x {size[1]} px of {pixel_size_um} um; enlarge size"
        )
    index = folder / "index.csv"
    if index.exists():
        raise InputError(f"{folder}: has an index.csv already; choose another folder or delete this one")

    compounds = draw_compounds(np.random.default_rng(_key(seed, 0)), moas, compounds_per_moa, effect)
    layout = pd.concat(
        [_lay_out(plate, compounds, wells, controls, seed, batches=min(plates, 2)) for plate in range(plates)]
    )
    effects = {str(row[COMPOUND]): {name: float(row[name]) for name in TRAITS} for _, row in compounds.iterrows()}

    def write_site(plate: int, well: int, site: int, row: Mapping[str, Any]) -> tuple[dict[str, Any], pd.DataFrame]:
        rng = np.random.default_rng(_key(seed, 2, plate, well, site))
        # one number of cells a well, before the sites part ways
        drawn = np.random.default_rng(_key(seed, 3, plate, well)).normal(0, count_spread)
        traits = effects.get(row[COMPOUND], dict.fromkeys(TRAITS, 1.0))  # of a control: every factor is 1
        number = min(max(1, round(cells * traits["density"] * np.exp(drawn))), most)
        drawn_cells = place(rng, number, size, pixel_size_um, traits)
        light = paint(rng, drawn_cells, size, pixel_size_um)
        images = photograph(rng, light, camera, pixel_size_um, np.random.default_rng(_key(seed, 1, plate)))
        key = {PLATE: row[PLATE], WELL: row[WELL], SITE: str(site + 1)}
        paths = {c: f"images/{row[PLATE]}/{row[WELL]}_s{site + 1}_{c}.tif" for c in CHANNELS}
        for image, path in zip(images, paths.values(), strict=True):
            with atomic_path(folder / path) as part:
                tifffile.imwrite(part, image, **TIFF)
        rest = {name: row[name] for name in (COMPOUND, CONCENTRATION, MOA, BATCH)}
        return {**key, **paths, **rest}, _truth(drawn_cells, key, size, pixel_size_um)

    jobs = [(row["plate"], row["well"], site, row) for row in layout.to_dict("records") for site in range(sites)]
    # threads: two made 15.3 sites/s where two processes made 14.2, and they need no __main__ guard
    with ThreadPoolExecutor(workers or _processors()) as pool:
        try:
            done = list(pool.map(write_site, *zip(*jobs, strict=True)))
        except BaseException:  # also Ctrl-C: do not draw the rest first
            pool.shutdown(cancel_futures=True)
            raise
    write_table(pd.concat([found for _, found in done], ignore_index=True), folder / "truth" / "cells.parquet")
    write_table(compounds, folder / "truth" / "compounds.csv")
    return write_table(pd.DataFrame([row for row, _ in done]), index)


def most_cells(size: tuple[int, int], pixel_size_um: float) -> int:
    """The number of cells that can be placed in an image of `size` (height, width) px without crowding."""
    return int(CROWDED * size[0] * size[1] * pixel_size_um**2 / (np.pi / 4 * GAP_UM**2))


def draw_compounds(rng: np.random.Generator, moas: int, compounds_per_moa: int, effect: float = 1.0) -> pd.DataFrame:
    """Draw what each compound does.

    Returns
    -------
    DataFrame
        A row a compound: compound, MOA, strength (about 1), quiet, and for each of `TRAITS` the factor on its value.
    """
    names, quiet = list(TRAITS), np.array([trait.quiet for trait in TRAITS.values()])
    steps = np.array([trait.step for trait in TRAITS.values()])
    directions: list[npt.NDArray[np.float64]] = []
    rows: list[dict[str, Any]] = []
    for moa in range(moas):
        still = moa < (moas + 1) // 2
        strengths = rng.permutation(np.linspace(0.6, 1.4, compounds_per_moa)) if compounds_per_moa > 1 else np.ones(1)
        direction = _direction(rng, quiet if still else np.ones_like(quiet), directions)
        if not still:  # a loud MOA is loud: half of its length is on traits that move intensity or number
            loud, rest = direction * ~quiet, direction * quiet
            direction = loud / np.linalg.norm(loud) + rest / max(np.linalg.norm(rest), 1e-9)
            direction /= np.linalg.norm(direction)
        directions.append(direction)
        for strength in strengths:
            own = _direction(rng, quiet if still else np.ones_like(quiet), [])
            shift = effect * strength * (direction + 0.25 * own)
            shift[names.index("density")] = -abs(shift[names.index("density")])
            rows.append(
                {
                    COMPOUND: f"CPD{len(rows) + 1:03d}",
                    MOA: f"MOA{moa + 1:02d}",
                    "strength": round(float(strength), 4),
                    "quiet": still,
                    **dict(zip(names, np.exp(steps * shift).round(6).tolist(), strict=True)),
                }
            )
    return pd.DataFrame(rows)


def place(
    rng: np.random.Generator, number: int, size: tuple[int, int], pixel_size_um: float, effects: Mapping[str, float]
) -> Cells:
    """Put cells into an image, in colonies, and draw their traits around those of their compound.

    Parameters
    ----------
    number : int
        At most `most_cells`.
    effects : mapping
        For each of `TRAITS` the factor of the compound.
    """
    height, width = size
    gap = GAP_UM / pixel_size_um
    margin = min(2.0, (min(size) - 1) / 2)
    x, y = np.empty(number), np.empty(number)
    placed = failed = 0
    while placed < number:
        if failed == 1000:
            gap, failed = 0.97 * gap, 0  # in a narrow image even few cells can block each other
        if placed and failed % 4 < 3:  # most cells settle beside another
            beside, angle = rng.integers(placed), rng.uniform(0, 2 * np.pi)
            far = gap * (1.05 + rng.exponential(0.5))
            at_x, at_y = x[beside] + far * np.cos(angle), y[beside] + far * np.sin(angle)
        else:
            at_x, at_y = rng.uniform(0, width - 1), rng.uniform(0, height - 1)
        seen = margin <= at_x <= width - 1 - margin and margin <= at_y <= height - 1 - margin
        if seen and (not placed or np.min((x[:placed] - at_x) ** 2 + (y[:placed] - at_y) ** 2) >= gap**2):
            x[placed], y[placed] = at_x, at_y
            placed, failed = placed + 1, 0
        else:
            failed += 1
    traits = {
        name: (trait.typical * effects[name] * np.exp(trait.spread * rng.standard_normal(number))).astype(np.float32)
        for name, trait in TRAITS.items()
    }
    angles = rng.uniform(0, np.pi, number).astype(np.float32)
    return Cells(x.astype(np.float32), y.astype(np.float32), angles, traits)


def outline(rng: np.random.Generator, cells: Cells, size: tuple[int, int], pixel_size_um: float) -> Outline:
    """Say which cell each pixel belongs to: the one whose (bent) ellipse it is deepest in, if any."""
    traits = cells.traits
    best = np.ones(size, np.float32)  # squared reach of the owner; 1: nobody's
    second = np.full(size, 4, np.float32)  # of the runner-up
    nuclear = np.full(size, 99, np.float32)
    owner = np.full(size, -1, np.int32)
    # the ellipses are bent by moving the pixels, a lot for cells and a little for nuclei
    bend = [field(rng, size, 7.0 / pixel_size_um) for _ in range(2)]
    for i in range(len(cells.x)):
        radius = traits["cell_radius"][i] / pixel_size_um
        stretch = np.sqrt(max(traits["cell_elongation"][i], 1.0))
        span = int(radius * stretch * 1.25) + 2
        top, left = max(int(cells.y[i]) - span, 0), max(int(cells.x[i]) - span, 0)
        patch = np.s_[top : int(cells.y[i]) + span, left : int(cells.x[i]) + span]
        rows, columns = best[patch].shape
        dx = np.arange(left, left + columns, dtype=np.float32) - cells.x[i]
        dy = (np.arange(top, top + rows, dtype=np.float32) - cells.y[i])[:, None]
        bend_x, bend_y = bend[0][patch], bend[1][patch]
        much, little = np.float32(3.0 / pixel_size_um), np.float32(0.4 / pixel_size_um)
        body = _ellipse(dx + much * bend_x, dy + much * bend_y, cells.angle[i], radius, stretch)
        long = np.sqrt(max(traits["nucleus_elongation"][i], 1.0))
        nucleus_radius = traits["nucleus_radius"][i] / pixel_size_um
        nucleus = _ellipse(dx + little * bend_x, dy + little * bend_y, cells.angle[i], nucleus_radius, long)
        depth = np.minimum(body, 0.25 * nucleus)  # a nucleus stays with its own cell
        np.minimum(second[patch], np.maximum(best[patch], depth), out=second[patch])
        won = depth < best[patch]
        np.copyto(best[patch], depth, where=won)
        np.copyto(nuclear[patch], nucleus, where=won)
        np.copyto(owner[patch], i, where=won)
    pixels = np.flatnonzero(owner >= 0)
    reach = best.ravel()[pixels]
    border = np.sqrt(second.ravel()[pixels]) - np.sqrt(reach)
    return Outline(pixels, owner.ravel()[pixels].astype(np.intp), reach, border, nuclear.ravel()[pixels])


def paint(rng: np.random.Generator, cells: Cells, size: tuple[int, int], pixel_size_um: float) -> Floats:
    """The light that the cells of one site send out: float array, shape (5, height, width), counts."""
    um = 1 / pixel_size_um
    # a stream each, so that what one part draws moves no other
    bends, chromatin, cytoplasm, spots, stacks, networks = rng.spawn(6)
    at = outline(bends, cells, size, pixel_size_um)
    traits, owner = cells.traits, at.cell

    def of(name: str, pixels: Any = slice(None)) -> Floats:
        return traits[name][owner[pixels]]

    def pattern(grain: str, contrast: str, fine: Floats, coarse: Floats, pixels: Any = slice(None)) -> Floats:
        share = traits[grain] / (1 + traits[grain])
        mix = np.sqrt(share)[owner[pixels]] * coarse + np.sqrt(1 - share)[owner[pixels]] * fine
        return np.exp(of(contrast, pixels) * mix)

    def here(image: Floats, pixels: Ints = at.pixels) -> Floats:
        return image.ravel()[pixels]

    inside = np.flatnonzero(at.nuclear < 1)
    out = np.sqrt(at.nuclear)  # 1 at the edge of the nucleus
    away = np.maximum(out - 1, 0)
    in_nucleus = (at.nuclear < 1).astype(np.float32)
    thick = np.sqrt(np.maximum(1 - at.reach, 0)) * (0.5 + 0.5 * np.minimum(at.border * 5, 1))

    light = np.zeros((len(CHANNELS), size[0] * size[1]), np.float32)

    # DNA: its content is that of a nucleus of typical size, whatever the size
    nuclei = at.pixels[inside]
    dna = pattern(
        "chromatin_grain",
        "chromatin_contrast",
        here(field(chromatin, size, 0.7 * um), nuclei),
        here(field(chromatin, size, 1.7 * um), nuclei),
        inside,
    )
    dna *= 1 - 0.45 * at.nuclear[inside]
    typical = TRAITS["nucleus_radius"].typical
    level = traits["level_DNA"] * (typical / traits["nucleus_radius"]) ** 2
    light[0, nuclei] = _levelled(dna, owner[inside], level)

    # ER: from the nuclear envelope outwards
    fine, coarse = here(field(cytoplasm, size, 0.8 * um)), here(field(cytoplasm, size, 2.4 * um))
    rim = np.exp(-(((out - 1.05) / 0.18) ** 2))
    er = thick * (0.12 + np.exp(-away / of("er_reach"))) * (1 - 0.55 * in_nucleus) + 0.25 * rim
    er *= pattern("er_grain", "er_contrast", fine, coarse)
    light[1, at.pixels] = _levelled(er, owner, traits["level_ER"])

    # RNA: ribosomes where the ER is, and nucleoli
    nucleoli = here(_nucleoli(spots, cells, size, um)) * in_nucleus
    rna = thick * (0.15 + np.exp(-away / 1.1)) * (1 - 0.45 * in_nucleus) * np.exp(0.12 * fine + 0.12 * coarse)
    rna += of("nucleoli_brightness") * nucleoli
    light[2, at.pixels] = _levelled(rna, owner, traits["level_RNA"])

    # AGP: actin under the membrane, Golgi on one side of the nucleus, plasma membrane over all
    edge = np.exp(-at.border / 0.06) + np.exp(-np.maximum(1 - np.sqrt(at.reach), 0) / 0.06)
    agp = thick * (0.35 + 0.35 * np.exp(-away / 1.5) + 0.8 * in_nucleus) * np.exp(0.2 * fine + 0.1 * coarse)
    agp += 0.6 * of("membrane") * edge + 1.5 * here(_golgi(stacks, cells, size, um)) * thick
    light[3, at.pixels] = _levelled(agp, owner, traits["level_AGP"])

    # Mito: filaments are the zero lines of a smooth field, fragments its peaks
    smooth, rough = here(field(networks, size, 1.3 * um)), here(field(networks, size, 0.8 * um))
    filaments = 1.6 * np.exp(-((smooth / 0.45) ** 2)) - 0.8
    share = of("mito_fragments") / (1 + of("mito_fragments"))
    mito = np.exp(of("mito_contrast") * ((1 - share) * filaments * 1.4 + share * rough))
    mito *= thick * (0.05 + np.exp(-away / of("mito_reach"))) * (1 - 0.7 * in_nucleus)
    light[4, at.pixels] = _levelled(mito, owner, traits["level_Mito"])
    return light.reshape(len(CHANNELS), *size)


def photograph(
    rng: np.random.Generator, light: Floats, camera: Camera, pixel_size_um: float, plate: np.random.Generator
) -> npt.NDArray[np.uint16]:
    """What `camera` records of `light` (counts, (channels, height, width)); `plate` draws what sites of a plate share.

    Photon noise is normal with the variance of a Poisson: with hundreds of photons a pixel nobody can tell, and it is
    four times faster.
    """
    height, width = light.shape[1:]
    recorded = np.empty(light.shape, np.uint16)
    for channel, plane in enumerate(light):
        middle = plate.normal(0, 0.1, 2)  # of the lamp, half images from the centre
        down = ((np.linspace(-1, 1, height) - middle[0]) ** 2 / 2).astype(np.float32)[:, None]
        across = ((np.linspace(-1, 1, width) - middle[1]) ** 2 / 2).astype(np.float32)
        small = (max(1, width // 8), max(1, height // 8))
        glow = cv2.resize(plane, small, interpolation=cv2.INTER_AREA)
        glow = cv2.GaussianBlur(glow, (0, 0), camera.glow_um / pixel_size_um / 8, borderType=cv2.BORDER_REFLECT)
        glow = cv2.resize(glow, (width, height), interpolation=cv2.INTER_LINEAR)
        signal = cv2.GaussianBlur(plane, (0, 0), camera.blur_um / pixel_size_um, borderType=cv2.BORDER_REFLECT)
        signal *= 1 - camera.glow
        signal += camera.glow * glow + camera.background[channel]
        signal *= 1 - camera.vignetting * (down + across)
        noise = rng.standard_normal(signal.shape, dtype=np.float32)
        noise *= np.sqrt(camera.gain * signal + camera.read_noise**2)
        signal += noise + camera.offset
        recorded[channel] = np.clip(np.rint(signal, out=signal), 0, 65535, out=signal)
    return recorded


def field(rng: np.random.Generator, size: tuple[int, int], sigma: float) -> Floats:
    """A random image of `size` with mean 0 and variance 1, smooth over `sigma` px."""
    step = max(1, int(sigma / 2))  # a smooth field is drawn small and enlarged
    pad = int(2 * sigma / step) + 1  # where the mirrored edge would add to the variance
    small = (size[0] // step + 2 + 2 * pad, size[1] // step + 2 + 2 * pad)
    noise: Any = rng.standard_normal(small, dtype=np.float32)
    noise = cv2.GaussianBlur(noise, (0, 0), sigma / step)[pad:-pad, pad:-pad]
    noise /= np.float32(_kernel_norm(sigma / step))
    if step > 1:
        noise = cv2.resize(noise, (noise.shape[1] * step, noise.shape[0] * step), interpolation=cv2.INTER_LINEAR)
    cut: Floats = noise[: size[0], : size[1]]
    return cut


def _kernel_norm(sigma: float) -> float:
    """What a Gaussian blur of `sigma` px leaves of the standard deviation of white noise."""
    width = 2 * int(4 * sigma + 1) + 1
    return float(np.sum(cv2.getGaussianKernel(width, sigma) ** 2))


def _levelled(values: Floats, cell: Ints, level: Floats) -> Floats:
    """`values` scaled so that their mean over the pixels of cell i is ``level[i]``."""
    sums = np.bincount(cell, values, minlength=len(level))
    counts = np.bincount(cell, minlength=len(level))
    factor = (level * counts / np.maximum(sums, 1e-9)).astype(np.float32)
    return values * factor[cell]


def _ellipse(dx: Floats, dy: Floats, angle: float, radius: float, stretch: float) -> Floats:
    """Squared distance from the centre, 1 on an ellipse with the area of a disc of `radius`."""
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    long, short = np.float32(1 / (radius * stretch)), np.float32(stretch / radius)
    along = (cos * long) * dx + (sin * long) * dy
    across = (cos * short) * dy - (sin * short) * dx
    along *= along
    across *= across
    along += across
    return along


def _nucleoli(rng: np.random.Generator, cells: Cells, size: tuple[int, int], um: float) -> Floats:
    traits = cells.traits
    owner = np.repeat(np.arange(len(cells.x)), 1 + rng.poisson(np.maximum(traits["nucleoli"] - 1, 0)))
    far, turn = 0.65 * np.sqrt(rng.uniform(0, 1, len(owner))), rng.uniform(0, 2 * np.pi, len(owner))
    radius, long = traits["nucleus_radius"][owner] * um, np.sqrt(traits["nucleus_elongation"][owner])
    along, across = far * np.cos(turn) * radius * long, far * np.sin(turn) * radius / long
    cos, sin = np.cos(cells.angle[owner]), np.sin(cells.angle[owner])
    x, y = cells.x[owner] + cos * along - sin * across, cells.y[owner] + sin * along + cos * across
    return _spots(size, x, y, rng.uniform(0.5, 1.0, len(owner)), 1.1 * um)


def _golgi(rng: np.random.Generator, cells: Cells, size: tuple[int, int], um: float) -> Floats:
    traits = cells.traits
    side = rng.uniform(0, 2 * np.pi, len(cells.x))
    owner = np.repeat(np.arange(len(cells.x)), 1 + rng.poisson(np.maximum(traits["golgi_spots"] - 1, 0)))
    far = 1.25 * traits["nucleus_radius"][owner] * um
    x, y = cells.x[owner] + far * np.cos(side[owner]), cells.y[owner] + far * np.sin(side[owner])
    scatter = traits["golgi_scatter"][owner] * um
    x, y = x + scatter * rng.standard_normal(len(owner)), y + scatter * rng.standard_normal(len(owner))
    return _spots(size, x, y, rng.uniform(0.4, 1.0, len(owner)), 0.7 * um)


def _spots(size: tuple[int, int], x: Floats, y: Floats, peak: npt.NDArray[np.float64], sigma: float) -> Floats:
    """An image of round spots with centres (x, y) px; those outside of it are left out."""
    row, column = np.rint(y).astype(int), np.rint(x).astype(int)
    seen = (row >= 0) & (row < size[0]) & (column >= 0) & (column < size[1])
    image: Any = np.zeros(size, np.float32)
    np.add.at(image, (row[seen], column[seen]), (peak[seen] * 2 * np.pi * sigma**2).astype(np.float32))
    blurred: Floats = cv2.GaussianBlur(image, (0, 0), sigma, borderType=cv2.BORDER_REFLECT)
    return blurred


def _truth(cells: Cells, key: Mapping[str, str], size: tuple[int, int], pixel_size_um: float) -> pd.DataFrame:
    radius, long = cells.traits["nucleus_radius"], np.maximum(cells.traits["nucleus_elongation"], 1)
    half_long, half_short = radius * np.sqrt(long) / pixel_size_um, radius / np.sqrt(long) / pixel_size_um
    cos, sin = np.cos(cells.angle), np.sin(cells.angle)
    wide, high = np.hypot(half_long * cos, half_short * sin), np.hypot(half_long * sin, half_short * cos)
    inside = (cells.x >= wide) & (cells.x <= size[1] - 1 - wide)
    inside &= (cells.y >= high) & (cells.y <= size[0] - 1 - high)
    return pd.DataFrame(
        {
            **{name: [value] * len(cells.x) for name, value in key.items()},
            CELL: np.arange(len(cells.x)),
            "x": cells.x,
            "y": cells.y,
            "nucleus_radius_um": radius,
            "inside": inside,
        }
    )


def _direction(
    rng: np.random.Generator, allowed: npt.NDArray[np.bool_], others: list[npt.NDArray[np.float64]]
) -> npt.NDArray[np.float64]:
    """A unit vector among the allowed traits, square to the `others` as long as there is room for that."""
    drawn = rng.standard_normal(len(allowed)) * allowed
    basis = np.array([other * allowed for other in others])
    if 0 < len(basis) < allowed.sum():
        drawn -= basis.T @ np.linalg.lstsq(basis.T, drawn, rcond=None)[0]
    unit: npt.NDArray[np.float64] = drawn / np.linalg.norm(drawn)
    return unit


def _lay_out(plate: int, compounds: pd.DataFrame, wells: int, controls: int, seed: int, batches: int) -> pd.DataFrame:
    """One plate: each compound once and the controls, at positions drawn for this plate, in the order of the wells."""
    position = np.random.default_rng(_key(seed, 4, plate)).permutation(wells)[: len(compounds) + controls]
    columns = wells // PLATE_ROWS[wells]
    treated = compounds[[COMPOUND, MOA]].assign(**{CONCENTRATION: 10.0})
    untreated = pd.DataFrame({COMPOUND: [CONTROL] * controls, MOA: "", CONCENTRATION: 0.0})
    table = pd.concat([treated, untreated], ignore_index=True)
    table["plate"], table["well"] = plate, position
    table[PLATE], table[BATCH] = f"SIM{plate + 1:03d}", f"batch{plate % batches + 1}"
    table[WELL] = [f"{chr(65 + p // columns)}{p % columns + 1:02d}" for p in position.tolist()]
    return table.sort_values("well", ignore_index=True)


def _key(seed: int, *place: int) -> np.random.SeedSequence:
    return np.random.SeedSequence(seed, spawn_key=place)


def _check(**numbers: int) -> None:
    if bad := [f"{name}={value}" for name, value in numbers.items() if value < 1]:
        raise InputError(f"{', '.join(bad)}: expected 1 or more")


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

"""Where the cells of a site are, how each differs, and which pixels are whose."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from cytominer_tools.columns import CELL
from cytominer_tools.errors import InputError
from deepprofile.simulation.textures import Floats, Ints, ellipse, field
from deepprofile.simulation.traits import TRAITS

CROWDED = 0.4  # of the image under discs as wide as GAP_UM; random placing jams at 0.547 (Feder 1980)
GAP_UM = 20.0  # between two centres; the same for all traits, so that none of them moves the density
TOUCHING_UM = (13.0, 17.0)  # between two centres whose nuclei touch; a nucleus is 17 um wide
DEAD: Mapping[str, float] = {  # factors: rounded up, shrunken, condensed, mitochondria without potential
    "nucleus_radius": 0.6, "cell_radius": 0.5, "chromatin_contrast": 0.5, "mito_contrast": 0.3, "golgi_spots": 0.2,
    "level_ER": 1.8, "level_RNA": 1.8, "level_AGP": 1.8, "level_Mito": 0.5,
}  # fmt: skip


@dataclass(frozen=True)
class Culture:
    """How cells sit together and fare."""

    colonies: float = 0.95  # share of cells that settle beside another
    touching: float = 0.05  # share of cells whose nucleus is put against that of another
    dead: float = 0.01  # share of cells, where no compound lowers their number; odds go with 1 / density**2

    def __post_init__(self) -> None:
        for name in ("colonies", "touching", "dead"):
            if not 0 <= (value := getattr(self, name)) <= 1:
                raise InputError(f"{name}={value}: expected a share of the cells between 0 and 1")


CALM = Culture(touching=0, dead=0)


class Cells(NamedTuple):
    """The cells of one site, an entry a cell: centres (px), the angles (rad) and traits that shape them, and death."""

    x: Floats
    y: Floats
    angle: Floats
    traits: Mapping[str, Floats]
    dead: npt.NDArray[np.bool_]


class Outline(NamedTuple):
    """The pixels that belong to a cell, one entry a pixel, and for each where in its cell it lies."""

    pixels: Ints  # in the flattened image
    cell: Ints
    reach: Floats  # squared; 0 in the centre, 1 at the free edge of the cell
    border: Floats  # distance to the territory of a neighbour, in the unit of sqrt(reach)
    nuclear: Floats  # squared; 0 in the centre of the nucleus, 1 at its edge


def most_cells(size: tuple[int, int], pixel_size_um: float) -> int:
    """The number of cells that can be placed in an image of `size` (height, width) px without crowding."""
    return int(CROWDED * size[0] * size[1] * pixel_size_um**2 / (np.pi / 4 * GAP_UM**2))


def place(
    rng: np.random.Generator,
    number: int,
    size: tuple[int, int],
    pixel_size_um: float,
    effects: Mapping[str, float],
    culture: Culture = CALM,
) -> Cells:
    """Put cells into an image, in colonies, and draw their traits around those of their compound.

    Parameters
    ----------
    number : int
        At most `most_cells`.
    effects : mapping
        For each of `TRAITS` the factor of the compound.
    culture : Culture
        By default nobody's nucleus touches another, and nobody is dead.
    """
    fates, meetings = rng.spawn(2)  # streams of their own, so that they move nothing else
    touching = meetings.random(number) < culture.touching
    height, width = size
    gap = GAP_UM / pixel_size_um
    margin = min(2.0, (min(size) - 1) / 2)
    x, y = np.empty(number), np.empty(number)
    placed = failed = 0
    while placed < number:
        if failed == 1000:
            gap, failed = 0.97 * gap, 0  # in a narrow image even few cells can block each other
        clear = gap
        beside_another = placed and (touching[placed] or rng.random() < culture.colonies)
        if beside_another and failed % 4 < 3:  # else where there is room
            beside, angle = rng.integers(placed), rng.uniform(0, 2 * np.pi)
            far = gap * (1.05 + rng.exponential(0.5))
            if touching[placed]:
                far = min(gap / GAP_UM, 1 / pixel_size_um) * meetings.uniform(*TOUCHING_UM)
                clear = 0.99 * far
            at_x, at_y = x[beside] + far * np.cos(angle), y[beside] + far * np.sin(angle)
        else:
            at_x, at_y = rng.uniform(0, width - 1), rng.uniform(0, height - 1)
        seen = margin <= at_x <= width - 1 - margin and margin <= at_y <= height - 1 - margin
        if seen and (not placed or np.min((x[:placed] - at_x) ** 2 + (y[:placed] - at_y) ** 2) >= clear**2):
            x[placed], y[placed] = at_x, at_y
            placed, failed = placed + 1, 0
        else:
            failed += 1
    traits = {
        name: (trait.typical * effects[name] * np.exp(trait.spread * rng.standard_normal(number))).astype(np.float32)
        for name, trait in TRAITS.items()
    }
    odds = culture.dead / max(1 - culture.dead, 1e-9) / effects["density"] ** 2
    dead = fates.random(number) < (odds / (1 + odds) if culture.dead < 1 else 1)
    for name, factor in DEAD.items():
        traits[name][dead] *= np.float32(factor)
    angles = rng.uniform(0, np.pi, number).astype(np.float32)
    return Cells(x.astype(np.float32), y.astype(np.float32), angles, traits, dead)


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
        body = ellipse(dx + much * bend_x, dy + much * bend_y, cells.angle[i], radius, stretch)
        long = np.sqrt(max(traits["nucleus_elongation"][i], 1.0))
        nucleus_radius = traits["nucleus_radius"][i] / pixel_size_um
        nucleus = ellipse(dx + little * bend_x, dy + little * bend_y, cells.angle[i], nucleus_radius, long)
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


def nucleus_labels(at: Outline, size: tuple[int, int]) -> npt.NDArray[np.uint16]:
    """An image of the nuclei: 0, and 1 + its entry in the pixels of each nucleus."""
    labels = np.zeros(size[0] * size[1], np.uint16)
    labels[at.pixels] = np.where(at.nuclear < 1, at.cell + 1, 0)
    return labels.reshape(size)


def cell_table(cells: Cells, key: Mapping[str, str], size: tuple[int, int], pixel_size_um: float) -> pd.DataFrame:
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
            "dead": cells.dead,
        }
    )

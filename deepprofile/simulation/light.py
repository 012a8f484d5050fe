"""The light that cells send out in each channel.

The mean of a channel over a cell (of DNA over its nucleus) is set after its pattern is drawn, so that a pattern never
moves an intensity.
"""

from typing import Any

import numpy as np

from deepprofile.simulation.cells import Cells, Outline, outline
from deepprofile.simulation.textures import Floats, Ints, field, spots
from deepprofile.simulation.traits import CHANNELS, TRAITS


def paint(
    rng: np.random.Generator,
    cells: Cells,
    size: tuple[int, int],
    pixel_size_um: float,
    at: Outline | None = None,
) -> Floats:
    """The light that the cells of one site send out: float array, shape (5, height, width), counts.

    `at` is their outline, by default drawn here.
    """
    um = 1 / pixel_size_um
    # a stream each, so that what one part draws moves no other
    bends, chromatin, cytoplasm, dots, stacks, networks = rng.spawn(6)
    at = at or outline(bends, cells, size, pixel_size_um)
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
    nucleoli = here(_nucleoli(dots, cells, size, um)) * in_nucleus
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


def _levelled(values: Floats, cell: Ints, level: Floats) -> Floats:
    """`values` scaled so that their mean over the pixels of cell i is ``level[i]``."""
    sums = np.bincount(cell, values, minlength=len(level))
    counts = np.bincount(cell, minlength=len(level))
    factor = (level * counts / np.maximum(sums, 1e-9)).astype(np.float32)
    return values * factor[cell]


def _nucleoli(rng: np.random.Generator, cells: Cells, size: tuple[int, int], um: float) -> Floats:
    traits = cells.traits
    owner = np.repeat(np.arange(len(cells.x)), 1 + rng.poisson(np.maximum(traits["nucleoli"] - 1, 0)))
    far, turn = 0.65 * np.sqrt(rng.uniform(0, 1, len(owner))), rng.uniform(0, 2 * np.pi, len(owner))
    radius, long = traits["nucleus_radius"][owner] * um, np.sqrt(traits["nucleus_elongation"][owner])
    along, across = far * np.cos(turn) * radius * long, far * np.sin(turn) * radius / long
    cos, sin = np.cos(cells.angle[owner]), np.sin(cells.angle[owner])
    x, y = cells.x[owner] + cos * along - sin * across, cells.y[owner] + sin * along + cos * across
    return spots(size, x, y, rng.uniform(0.5, 1.0, len(owner)), 1.1 * um)


def _golgi(rng: np.random.Generator, cells: Cells, size: tuple[int, int], um: float) -> Floats:
    traits = cells.traits
    side = rng.uniform(0, 2 * np.pi, len(cells.x))
    owner = np.repeat(np.arange(len(cells.x)), 1 + rng.poisson(np.maximum(traits["golgi_spots"] - 1, 0)))
    far = 1.25 * traits["nucleus_radius"][owner] * um
    x, y = cells.x[owner] + far * np.cos(side[owner]), cells.y[owner] + far * np.sin(side[owner])
    scatter = traits["golgi_scatter"][owner] * um
    x, y = x + scatter * rng.standard_normal(len(owner)), y + scatter * rng.standard_normal(len(owner))
    return spots(size, x, y, rng.uniform(0.4, 1.0, len(owner)), 0.7 * um)

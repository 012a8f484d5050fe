"""The axes of morphology along which simulated cells differ."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

CHANNELS = ("DNA", "ER", "RNA", "AGP", "Mito")


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

LOUD = tuple(name for name, trait in TRAITS.items() if not trait.quiet)
STEPS: npt.NDArray[np.float64] = np.array([trait.step for trait in TRAITS.values()])
QUIET: npt.NDArray[np.bool_] = np.array([trait.quiet for trait in TRAITS.values()])


def direction(
    rng: np.random.Generator, allowed: npt.NDArray[np.bool_], others: list[npt.NDArray[np.float64]] | None = None
) -> npt.NDArray[np.float64]:
    """A unit vector among the allowed traits, square to the `others` as long as there is room for that."""
    drawn = rng.standard_normal(len(allowed)) * allowed
    basis = np.array([other * allowed for other in others or []])
    if 0 < len(basis) < allowed.sum():
        drawn -= basis.T @ np.linalg.lstsq(basis.T, drawn, rcond=None)[0]
    unit: npt.NDArray[np.float64] = drawn / np.linalg.norm(drawn)
    return unit


def shifted(shift: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The factors on the traits, of a shift (..., n_traits) in their steps."""
    factors: npt.NDArray[np.float64] = np.exp(STEPS * shift)
    return factors

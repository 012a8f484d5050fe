"""The microscope, and what goes wrong before it: debris and sites out of focus."""

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from cytominer_tools.errors import InputError
from deepprofile.simulation.textures import Floats, ellipse


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

    def __post_init__(self) -> None:
        for name in ("blur_um", "glow_um"):
            if not (value := getattr(self, name)) > 0:
                raise InputError(f"{name}={value}: expected a positive length in um")
        for name in ("offset", "gain", "read_noise"):
            if not (value := getattr(self, name)) >= 0:
                raise InputError(f"{name}={value}: expected 0 or more")
        for name in ("vignetting", "glow"):
            if not 0 <= (value := getattr(self, name)) <= 1:
                raise InputError(f"{name}={value}: expected a share of the light between 0 and 1")
        if any(not value >= 0 for value in self.background):
            raise InputError(f"background={self.background}: expected 0 or more for each channel")


@dataclass(frozen=True)
class Flaws:
    """What spoils a site."""

    debris: float = 8.0  # specks a mm2; a site of 360 x 360 px of 0.6 um has 0.047 mm2
    debris_um: float = 3.0  # median radius
    debris_counts: float = 9000.0  # median brightness
    out_of_focus: float = 0.01  # share of the sites
    defocus_um: tuple[float, float] = (2.0, 4.0)  # standard deviation of their extra blur, drawn between these

    def __post_init__(self) -> None:
        for name in ("debris", "debris_um", "debris_counts"):
            if not 0 <= (value := getattr(self, name)) < np.inf:
                raise InputError(f"{name}={value}: expected 0 or more")
        if not 0 <= self.out_of_focus <= 1:
            raise InputError(f"out_of_focus={self.out_of_focus}: expected a share of the sites between 0 and 1")
        low, high = self.defocus_um
        if not 0 <= low <= high < np.inf:
            raise InputError(f"defocus_um={self.defocus_um}: expected two numbers of 0 or more, the smaller first")


def litter(rng: np.random.Generator, light: Floats, flaws: Flaws, pixel_size_um: float) -> int:
    """Add debris to `light`, in place, and return how many specks: lumps that shine in some of the channels."""
    height, width = light.shape[1:]
    number = int(rng.poisson(flaws.debris * height * width * (pixel_size_um / 1000) ** 2))
    for _ in range(number):
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        radius = flaws.debris_um * np.exp(0.5 * rng.standard_normal()) / pixel_size_um
        bright = flaws.debris_counts * np.exp(0.5 * rng.standard_normal(len(light)))
        bright *= rng.random(len(light)) < 0.6
        for _ in range(4):  # lumps
            far, turn = radius * rng.uniform(0, 1), rng.uniform(0, 2 * np.pi)
            size, stretch = max(radius * rng.uniform(0.2, 0.8), 0.5), rng.uniform(1, 1.8)
            at_x, at_y, span = x + far * np.cos(turn), y + far * np.sin(turn), int(3 * size * stretch) + 2
            top, left = max(int(at_y) - span, 0), max(int(at_x) - span, 0)
            patch = light[:, top : max(int(at_y) + span, 0), left : max(int(at_x) + span, 0)]
            dx = np.arange(left, left + patch.shape[2], dtype=np.float32) - np.float32(at_x)
            dy = (np.arange(top, top + patch.shape[1], dtype=np.float32) - np.float32(at_y))[:, None]
            shape = np.exp(-(ellipse(dx, dy, rng.uniform(0, np.pi), size, stretch) ** 2))
            patch += bright.astype(np.float32)[:, None, None] * shape
    return number


def photograph(
    rng: np.random.Generator,
    light: Floats,
    camera: Camera,
    pixel_size_um: float,
    plate: np.random.Generator,
    defocus_um: float = 0.0,
) -> npt.NDArray[np.uint16]:
    """What `camera` records of `light` (counts, (channels, height, width)); `plate` draws what sites of a plate share.

    Out of focus, the point spread is wider by `defocus_um` (standard deviation; variances add).
    Photon noise is normal with the variance of a Poisson: with hundreds of photons a pixel nobody can tell, and it is
    four times faster.
    """
    height, width = light.shape[1:]
    recorded = np.empty(light.shape, np.uint16)
    blur = float(np.hypot(camera.blur_um, defocus_um)) / pixel_size_um
    for channel, plane in enumerate(light):
        middle = plate.normal(0, 0.1, 2)  # of the lamp, half images from the centre
        down = ((np.linspace(-1, 1, height) - middle[0]) ** 2 / 2).astype(np.float32)[:, None]
        across = ((np.linspace(-1, 1, width) - middle[1]) ** 2 / 2).astype(np.float32)
        small = (max(1, width // 8), max(1, height // 8))
        glow = cv2.resize(plane, small, interpolation=cv2.INTER_AREA)
        glow = cv2.GaussianBlur(glow, (0, 0), camera.glow_um / pixel_size_um / 8, borderType=cv2.BORDER_REFLECT)
        glow = cv2.resize(glow, (width, height), interpolation=cv2.INTER_LINEAR)
        signal = cv2.GaussianBlur(plane, (0, 0), blur, borderType=cv2.BORDER_REFLECT)
        signal *= 1 - camera.glow
        signal += camera.glow * glow + camera.background[channel]
        signal *= 1 - camera.vignetting * (down + across)
        noise = rng.standard_normal(signal.shape, dtype=np.float32)
        noise *= np.sqrt(camera.gain * signal + camera.read_noise**2)
        signal += noise + camera.offset
        recorded[channel] = np.clip(np.rint(signal, out=signal), 0, 65535, out=signal)
    return recorded

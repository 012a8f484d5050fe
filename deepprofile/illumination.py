"""Illumination functions: from the mean image of a plate, or a file of CellProfiler, and how they are applied.

A function is the relative brightness of each pixel of the field; a corrected image is counts / function, float32.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
import numpy.typing as npt
from scipy import ndimage
from skimage.filters import rank
from skimage.morphology import disk
from skimage.transform import resize

from cytominer_tools.errors import InputError
from cytominer_tools.files import safe_name
from deepprofile.study import Study, template_fields

FOLDER = "illumination"
Floats = npt.NDArray[np.floating[Any]]
T = TypeVar("T")

_LEVELS = 512  # that the histogram of skimage's rank filters is walked through; it costs by the level
_PERCENTILE = 2  # of the field counts as its darkest place, as in CellProfiler
_FWHM = 2.35  # widths of a Gaussian in standard deviations: CellProfiler gives all its filters as such a width


def disk_median(image: npt.NDArray[np.uint16], radius: int) -> npt.NDArray[np.uint16]:
    """Median over a disk, the edge repeated outside: equal to ``skimage.filters.median(image, disk(radius))``.

    That sorts every neighbourhood. Here values become ranks among those that occur, a sliding histogram finds which of
    512 groups of ranks holds the median, and bisection within the group ends it: exact, and about 10 times faster.

    Parameters
    ----------
    image : uint16 array, shape (H, W)
    radius : int
        Of the disk, px, at least 1.
    """
    footprint = disk(radius)
    height, width = image.shape
    padded = np.pad(image, radius, mode="edge")
    seen = np.zeros(1 << 16, bool)
    seen[padded.ravel()] = True
    values = np.flatnonzero(seen).astype(np.uint16)
    ranks = (np.cumsum(seen) - 1).astype(np.uint16)[padded]
    group = -(-len(values) // _LEVELS)
    middle = rank.median(ranks // np.uint16(group), footprint)[radius:-radius]
    if group == 1:
        return values[middle[:, radius:-radius]]
    # lines of the padded image end to end, so that a neighbour is a fixed step away; what wraps around is cut off below
    line = padded.shape[1]
    low = np.roll(middle, -radius, axis=1).ravel().astype(np.uint16) * np.uint16(group)
    high = np.minimum(low, len(values) - group) + np.uint16(group - 1)
    flat = np.concatenate([ranks.ravel(), np.zeros(2 * radius, np.uint16)])
    steps = [y * line + x for y, x in np.argwhere(footprint)]
    below = np.empty(len(low), bool)
    few, many = np.empty(len(low), np.uint8), np.empty(len(low), np.uint32)
    while group > 1:
        half = low + (high - low) // 2
        many[:] = 0
        for start in range(0, len(steps), 255):  # as many as fit into 8 bits, which are counted four times faster
            few[:] = 0
            for step in steps[start : start + 255]:
                np.less_equal(flat[step : step + len(low)], half, out=below)
                np.add(few, below.view(np.uint8), out=few)
            many += few
        enough = many > len(steps) // 2
        high, low = np.where(enough, half, high), np.where(enough, low, half + 1)
        group = (group + 1) // 2
    return values[high].reshape(height, line)[:, :width]


def shrink(mean: Floats, downscale: int) -> Floats:
    """A mean image at 1/`downscale` of its size, as DeepProfiler makes it, float64.

    Resizing is linear, so the mean of the resized images is the resized mean: done once a plate, not once a site.
    """
    return _resize(mean, (mean.shape[0] / downscale, mean.shape[1] / downscale))


def deepprofiler_function(mean: Floats, size: tuple[int, int], radius: int) -> Floats:
    """DeepProfiler's function of one channel: a median over a disk on whole counts, over its 2nd percentile.

    Parameters
    ----------
    mean : float array, shape (h, w)
        Mean image of the plate at reduced size, counts.
    size : (H, W)
        Of the full image, where the percentile is taken.
    radius : int
        Of the disk, px of `mean`.

    Returns
    -------
    float64 array, shape (h, w)
        `expand` brings it to full size, where it is at least 1. All ones where there is no light.

    References
    ----------
    Singh et al. 2014, doi:10.1111/jmi.12178; DeepProfiler 0.3.1, dataset/illumination_correction.py.
    """
    smooth = disk_median(mean.astype(np.uint16), radius).astype(np.float64)
    darkest = np.percentile(_resize(smooth, size), _PERCENTILE)
    return smooth / darkest if darkest > 0 else np.ones_like(smooth)


def smooth_function(mean: Floats, window: float, kind: str) -> Floats:
    """CellProfiler's CorrectIlluminationCalculate (Regular, all images, rescaled) of one channel.

    Two departures: the median sees 65,535 levels up to the brightest pixel of the mean, where CellProfiler's are of the
    type of the image, too few for a dim one; and outside, the edge is repeated rather than left out, which makes the
    function less flat there, as it should be.

    Parameters
    ----------
    mean : float array, shape (h, w)
        Mean image of the plate, counts.
    window : float
        Width of the filter, px of `mean`: 2.35 radii of the disk, or standard deviations, as in CellProfiler.
    kind : "median" or "gaussian"

    Returns
    -------
    float64 array, shape (h, w), at least 1
        Ones where there is no light.
    """
    if (brightest := mean.max(initial=0)) <= 0:
        return np.ones(mean.shape)
    if kind == "median":
        scale = 65535 / brightest
        levels = np.rint(np.maximum(mean, 0) * scale).astype(np.uint16)
        smooth = disk_median(levels, max(1, int(window / _FWHM + 0.5))) / scale
    else:
        smooth = blur(mean, window / _FWHM)
    ordered = np.sort(smooth[smooth > 0])
    darkest = ordered[int(len(ordered) * _PERCENTILE / 100)]
    return np.maximum(smooth, darkest) / darkest


def blur(image: Floats, sigma: float) -> Floats:
    """Gaussian of `sigma` px over the image alone: what lies outside has no weight."""
    weight = ndimage.gaussian_filter(np.ones(image.shape), sigma, mode="constant")
    return ndimage.gaussian_filter(np.asarray(image, np.float64), sigma, mode="constant") / weight


def unevenness(mean: Floats) -> float:
    """How far a mean image is from flat: the coefficient of variation after a blur of 1/16 of its shorter side."""
    smooth = blur(mean, min(mean.shape) / 16)
    return float(smooth.std() / average) if (average := smooth.mean()) > 0 else 0.0


def read_function(path: Path, size: tuple[int, int]) -> Floats:
    """An illumination function that CellProfiler saved as .npy, for images of `size`, float32.

    Raises
    ------
    InputError
        No such file, not an array of positive numbers, or not of the shape of the images at any scale.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such illumination function; look at illumination.files")
    try:
        found = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise InputError(f"{path}: not an array of numbers in .npy format; save the function as npy again") from error
    if not isinstance(found, np.ndarray) or found.dtype.kind not in "fiu":
        raise InputError(f"{path}: not an array of numbers in .npy format; save the function as npy again")
    if found.ndim == 3 and found.shape[2] == 1:
        found = found[..., 0]
    if found.ndim != 2:
        raise InputError(f"{path}: shape {found.shape}, expected one plane (height, width); save one file a channel")
    (height, width), (h, w) = size, found.shape
    if not h or not w or abs(w * height - width * h) > max(height, width, h, w):
        raise InputError(f"{path}: {h} x {w}, which is no scale of the images, {height} x {width} (height x width)")
    if not (np.isfinite(found).all() and found.min() > 0):
        raise InputError(f"{path}: holds NaN, infinite or no positive values; it cannot be divided by")
    return found.astype(np.float32)


@dataclass(frozen=True)
class Correction:
    """The illumination functions of one plate."""

    function: npt.NDArray[np.float32]  # (h, w, C), at the size it was made at
    size: tuple[int, int]  # of the images; (0, 0) where the plate had none that can be read
    dtype: np.dtype  # of the images
    least: float  # what the function is raised to at full size

    @property
    def digest(self) -> str:
        """Of all that decides what an image becomes; 16 hexadecimal digits."""
        said = repr((self.function.shape, self.size, self.dtype.name, self.least)).encode()
        return hashlib.sha256(said + np.ascontiguousarray(self.function).tobytes()).hexdigest()[:16]

    def expand(self) -> npt.NDArray[np.float32]:
        """The functions at the size of the images, (H, W, C)."""
        if self.function.shape[:2] == self.size or not all(self.size):
            return np.maximum(self.function, np.float32(self.least))
        full = np.empty((*self.size, self.function.shape[2]), np.float32)
        for channel in range(full.shape[2]):
            plane = _resize(self.function[..., channel].astype(np.float64), self.size)
            full[..., channel] = np.maximum(plane, self.least)
        return full


def correction_path(study: Study, plate: str) -> Path:
    return study.root / FOLDER / f"{safe_name(plate)}.npz"


def function_files(study: Study, plate: str) -> list[Path]:
    """The file that `illumination.files` names for each channel of `plate`.

    Raises
    ------
    InputError
        The template holds something else than {plate} and {channel}.
    """
    template = str(study.illumination.files)
    template_fields("illumination.files", template, ("plate", "channel"))
    return [study.path(template.format(plate=plate, channel=channel)) for channel in study.channels]


def read_correction(study: Study, plate: str) -> Correction:
    """The functions of `plate` as `deepprofile illumination` left them.

    Raises
    ------
    InputError
        They are not made, or under other settings.
    """
    return _current(study, plate, _small)


def corrected(study: Study, plate: str, image: np.ndarray, channels: tuple[str, ...]) -> npt.NDArray[np.float32]:
    """`image` (H, W, C) of `channels`, in counts, divided by the functions of `plate`; float32.

    Raises
    ------
    InputError
        The functions are not made, or for images of another size.
    """
    (height, width), full = _current(study, plate, _full)
    if image.shape[:2] != (height, width):
        had = f"{height} x {width}" if height and width else "no image that can be read"
        raise InputError(
            f"{' x '.join(map(str, image.shape[:2]))} px, but the illumination of plate {plate} is of {had}; "
            "leave the site out, or mend it and run `deepprofile illumination`"
        )
    every = tuple(study.channels)
    if channels != every:
        full = full[..., [every.index(channel) for channel in channels]]
    return np.divide(image, full, dtype=np.float32)


def correction_arrays(study: Study, correction: Correction) -> dict[str, Any]:
    """What `read_correction` looks for in the npz of a plate."""
    return {
        "function": correction.function,
        "size": np.array(correction.size, np.int64),
        "dtype": np.array(correction.dtype.name),
        "least": np.array(correction.least),
        "made": np.array(_made(study)),
    }


def area_thumbnail(image: np.ndarray, downscale: int) -> np.ndarray:
    """`image` (H, W, C) at about 1/`downscale` of its size, each pixel the mean of those it covers."""
    height, width = (max(1, round(side / downscale)) for side in image.shape[:2])
    small = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    return small.reshape(height, width, image.shape[2])


def _current(study: Study, plate: str, load: Callable[[Path, int, int], tuple[T, str]]) -> T:
    path = correction_path(study, plate)
    mend = "run `deepprofile illumination`"
    try:
        stat = path.stat()
    except OSError:
        raise InputError(f"{path}: the illumination of plate {plate} is not measured; {mend}") from None
    found, made = load(path, stat.st_mtime_ns, stat.st_size)
    if made != _made(study):
        raise InputError(f"{path}: made under other illumination settings; {mend} again")
    return found


def _small(path: Path, *_: int) -> tuple[Correction, str]:
    with np.load(path, allow_pickle=False) as file:
        if "function" not in file:
            return Correction(np.ones((0, 0, 0), np.float32), (0, 0), np.dtype(np.uint8), 1.0), ""
        height, width = file["size"].tolist()
        dtype, least, made = np.dtype(str(file["dtype"])), float(file["least"]), str(file["made"])
        return Correction(file["function"], (height, width), dtype, least), made


@lru_cache(maxsize=2)  # plates: one ends while the next begins; of 2160 x 2160 px and 5 channels each holds 93 MB
def _full(path: Path, changed: int, length: int) -> tuple[tuple[tuple[int, int], npt.NDArray[np.float32]], str]:
    correction, made = _small(path)
    full = correction.expand()
    full.setflags(write=False)
    return (correction.size, full), made


def _made(study: Study) -> str:
    return repr([sorted((study.correction or {}).items()), list(study.channels.items())])


def _resize(image: Floats, size: tuple[float, float]) -> Floats:
    return resize(image, size, mode="reflect", anti_aliasing=True, preserve_range=True)

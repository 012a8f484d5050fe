"""Which plane of a file of many: its axes, what is asked for, and the projection of a z stack."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from difflib import get_close_matches

import cv2
import numpy as np

from deepprofile.references import PROJECTIONS

_PAGES = "QI"  # what tifffile calls pages that a file says nothing about
WHERE = "after the file or the column in study.yaml"
Z_MEND = f"set images.projection to max or focus, or name one with #z=0 {WHERE}"
_NOUNS = {"c": "channel", "z": "z plane", "t": "time point"}


class Unclear(Exception):
    """What came and the mend, of a file whose name the caller knows."""

    def __init__(self, what: str, mend: str):
        super().__init__(f"{what}; {mend}")


class Source(ABC):
    """An open file: its axes, and one plane at a time. This one holds a single plane."""

    axes = ""  # those before y and x, one letter each
    shape: tuple[int, ...] = ()
    whole: tuple[int, ...] = ()  # of everything, as the file has it

    def __enter__(self) -> "Source":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:  # noqa: B027, a source without a file has nothing to close
        """Let go of the file."""

    def channels(self) -> Sequence[str]:
        """The names of the channels, none where the file has none."""
        return ()

    def single(self) -> bool:
        """Whether the file holds one plane, as far as it takes no time to know."""
        return not self.axes

    def cut(self) -> bool:
        """Whether the end of the file is missing, where that hides planes."""
        return False

    def look(self) -> None:  # noqa: B027, some know them from the start
        """Find out `axes` and `shape`."""

    @abstractmethod
    def plane(self, index: tuple[int, ...]) -> np.ndarray:
        """The plane at `index`, one number for each of `axes`."""


def choose(source: Source, chosen: Mapping[str, str]) -> list[list[tuple[int, ...]]]:
    """The indices of the planes that `chosen` names: one, or those of a z stack; of each its samples, mostly one."""
    projection = chosen.get("z") in PROJECTIONS
    asked = {axis: chosen[axis] for axis in "ctz" if axis in chosen and not (axis == "z" and projection)}
    if not asked and source.single() and not (projection and source.cut()):
        return [[()]]
    source.look()
    axes, shape = _named(source, asked, projection)
    stacks: list[list[tuple[int, ...]]] = [[()]]
    for axis, count in zip(axes, shape, strict=True):
        if axis in "CTZ" and axis.lower() in asked:
            numbers: Sequence[int] = [_number(source, axis.lower(), asked.pop(axis.lower()), count)]
        elif count == 1 or axis == "S" or (axis == "Z" and projection):
            numbers = range(count)
        else:
            raise Unclear(*_which(source, axis, count))
        if axis == "S":
            stacks = [[(*index, n) for index in samples for n in numbers] for samples in stacks]
        else:
            stacks = [[(*index, n) for index in samples] for samples in stacks for n in numbers]
    for axis, value in asked.items():  # which the file does not have
        _number(source, axis, value, 1)
    return stacks


def _named(source: Source, asked: Mapping[str, str], projection: bool) -> tuple[str, tuple[int, ...]]:
    """The axes of `source`, where pages and samples are what is asked for."""
    axes, shape = source.axes, source.shape
    long = {axis for axis, count in zip(axes, shape, strict=True) if count > 1}
    if "c" in asked and "C" not in long and "S" in long:
        axes, long = axes.replace("C", "A").replace("S", "C"), (long - {"S"}) | {"C"}
    pages = [i for i, axis in enumerate(axes) if axis in _PAGES and shape[i] > 1]
    wanted = [axis for axis in "CTZ" if axis.lower() in asked and axis not in long]
    if not wanted and projection and "Z" not in long:
        wanted = ["Z"]
    if len(pages) == 1 and len(wanted) == 1:
        i = pages[0]
        axes = axes.replace(wanted[0], "A")  # an axis of length 1
        axes = axes[:i] + wanted[0] + axes[i + 1 :]
    return axes, shape


def _number(source: Source, axis: str, value: str, count: int) -> int:
    noun = _NOUNS[axis]
    if value.isdecimal():
        if int(value) < count:
            return int(value)
        last = f" (0 to {count - 1})" if count > 1 else " (0)"
        raise Unclear(f"{axis}={value}, but it holds {count} {noun}{'s' * (count > 1)}{last}", "change the number")
    names = list(source.channels())
    if value in names:
        if names.count(value) > 1:
            raise Unclear(f"{names.count(value)} channels are called {value!r}", "give the number, from 0")
        return names.index(value)
    if not any(names):
        raise Unclear(f"its channels have no names, so none is called {value!r}", f"give a number, 0 to {count - 1}")
    close = get_close_matches(value, names, 1)
    said = f"is it {close[0]!r}?" if close else f"it holds {', '.join(names)}"
    raise Unclear(f"no channel is called {value!r}", said)


def _which(source: Source, axis: str, count: int) -> tuple[str, str]:
    """What is unclear about `axis`, and how to say what is meant."""
    if axis == "C":
        names = ", ".join(filter(None, source.channels()))
        return f"holds {count} channels{f' ({names})' * bool(names)}", f"name one with #c=0 {WHERE}"
    if axis == "Z":
        return f"holds {count} z planes", Z_MEND
    if axis == "T":
        return f"holds {count} time points", f"name one with #t=0 {WHERE}"
    said = f"{_shape(source)}, expected one grey plane, and the file does not say what its pages are"
    if sum(n > 1 for n in source.shape) > 1:
        return said, "export it as OME-TIFF"
    return said, f"name a channel with #c=0, or a z plane with #z=0 (or max, focus), {WHERE}"


def grey(source: Source, samples: Sequence[tuple[int, ...]]) -> np.ndarray:
    plane, *others = [source.plane(index) for index in samples]
    if others and (len(others) > 2 or any(not np.array_equal(plane, other) for other in others)):
        said = f"{_shape(source)}, expected one grey plane"
        raise Unclear(said, f"name one of {len(samples)} colours with #c=0 {WHERE}, or split it by channel")
    return plane  # of a grey image saved as RGB any will do


def _shape(source: Source) -> str:
    return f"shape {source.whole}"


def sharpness(plane: np.ndarray) -> float:
    """How sharp a plane is: the variance of its Laplacian over its squared mean; 0 where nothing is seen.

    Parameters
    ----------
    plane : array, shape (H, W)
        Counts. Smoothed by a Gaussian of 1 px first, for otherwise a dim plane's noise is its sharpness.

    References
    ----------
    Variance of the Laplacian: Pech-Pacheco et al. 2000, doi:10.1109/ICPR.2000.903548; against others: Pertuz et al.
    2013, doi:10.1016/j.patcog.2012.11.011. Over the squared mean, so that a lamp that fades does not choose.
    """
    smooth = cv2.GaussianBlur(plane.astype(np.float32), (0, 0), 1)
    mean = float(np.abs(smooth).mean(dtype=np.float64))
    return float(cv2.Laplacian(smooth, cv2.CV_32F).var(dtype=np.float64)) / mean**2 if mean else 0.0

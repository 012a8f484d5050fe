"""From an image to what a network sees: one object, the same in training and profiling, kept in the model card."""

from collections.abc import Callable
from typing import Literal

import numpy as np
from pydantic import BaseModel, Field, field_validator

from deepprofile.crops import inside, interpolate_crops, nearest_crops, slice_crops
from deepprofile.percentiles import image_percentiles

Normalize = Literal["plate_control", "percentile", "minmax", "legacy_over_max", "zscore", "none"]


class CropSettings(BaseModel, frozen=True, extra="forbid"):
    """The `crops` section: how a cell is cut out and its intensity scaled; lengths in pixels of the full image."""

    size: int = Field(128, ge=8, le=2048, multiple_of=2)
    mode: Literal["slice", "interpolate"] = "slice"
    border: Literal["zero", "reflect", "drop"] = "zero"
    normalize: Normalize = "plate_control"
    percentiles: tuple[float, float] = (0.1, 99.9)
    mask: bool = False  # pixels outside the cell's label are 0 before anything is scaled; needs locate.labels

    @field_validator("percentiles")
    @classmethod
    def _rising(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 <= value[0] < value[1] <= 100:
            raise ValueError("expected two rising numbers between 0 and 100")
        return value


class Preprocess(CropSettings, frozen=True):
    """Everything that turns an image and cell centres into network input.

    ``normalize`` is one of

    - ``plate_control``: counts scaled so that the plate's low and high percentile, over its control wells where there
      are any, become 0 and 1, and clipped; differences of intensity between wells stay;
    - ``percentile``: the same with the percentiles of the image that the crop is from, so that only differences
      within a site stay;
    - ``minmax``: each crop and channel from its own minimum to its own maximum, ``(x - min) / (max - min + 1e-7)``,
      as DeepProfiler does since August 2024;
    - ``legacy_over_max``: ``(x - min) / max`` of each crop and channel, as DeepProfiler 0.3.0 to 0.5.0 did (September
      2021 to August 2024) and so, it seems, the Cell Painting CNN saw its crops; 0 where the maximum is not above 0,
      where DeepProfiler has NaN;
    - ``zscore``: ``(x - mean) / sd`` of each crop and channel, as DeepProfiler did before that; 0 where the crop is
      flat, where DeepProfiler has NaN. Not within [0, 1], in which networks of other studies take their input;
    - ``none``: counts over the largest that their type holds (float images stay as they are).

    The three that look at a crop alone are there for compatibility: they lose absolute intensity.
    """

    channels: tuple[str, ...] = Field(min_length=1)

    @property
    def by_pixel(self) -> bool:
        """Whether a pixel is scaled by its count and channel alone, wherever it stands in the site."""
        return self.normalize in ("plate_control", "percentile", "none")

    def own_levels(self, image: np.ndarray) -> np.ndarray | None:
        """Low and high count by channel of an image (H, W, C), float32 (2, C), where ``normalize`` is by the image."""
        return image_percentiles(image, self.percentiles) if self.normalize == "percentile" else None

    def keep(self, xy: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Which cells are cut out: those with their centre, or with ``border="drop"`` their whole box, in the image.

        xy : (n, 2) column and row, px; shape : (H, W, ...). Returns bool, shape (n,).
        """
        if self.border == "drop":
            return inside(xy, self.size, shape)
        return np.all((xy >= -0.5) & (xy < np.array([shape[1], shape[0]]) - 0.5), axis=1)

    def cut(
        self,
        image: np.ndarray,
        xy: np.ndarray,
        labels: np.ndarray | None = None,
        own: np.ndarray | None = None,
        out: np.ndarray | None = None,
    ) -> np.ndarray:
        """Crops in counts.

        Parameters
        ----------
        image : array, shape (H, W, C)
            With the channels of this object.
        xy : float array, shape (n, 2)
            Column and row of each centre, px.
        labels : int array, shape (H, W), and own : int array, shape (n,)
            For ``mask``: the label of each pixel and of each cell. Pixels of another label are 0; of interpolated
            crops those nearest to which another label stands.
        out : array, optional
            What is filled and returned.

        Returns
        -------
        array, shape (n, size, size, C)
            The image's type, or float32 where ``mode="interpolate"``.
        """
        crops = (slice_crops if self.mode == "slice" else interpolate_crops)(image, xy, self.size, self.border, out)
        if self.mask:
            assert labels is not None, "mask needs the labels"
            assert own is not None, "mask needs the label of each cell"
            if self.mode == "slice":
                near = slice_crops(labels[..., None], xy, self.size, self.border)[..., 0]
            else:
                near = nearest_crops(labels, xy, self.size, self.border)
            crops[near != own[:, None, None]] = 0
        return crops

    def scale(
        self, crops: np.ndarray, levels: np.ndarray | None, image_type: np.dtype, out: np.ndarray | None = None
    ) -> np.ndarray:
        """Network input from crops in counts.

        Parameters
        ----------
        crops : array, shape (n, size, size, C)
        levels : float array, shape (2, C) or (n, 2, C), or None
            Low and high count by channel, of all crops or of each: of the plate for ``plate_control``, of the image
            for ``percentile``.
        image_type : dtype
            Of the image that the crops come from, for ``none``.
        out : float32 array of the shape of `crops`, C-contiguous, optional
            What is filled and returned.

        Returns
        -------
        float32 array, shape (n, size, size, C)
            In [0, 1], but for ``zscore``, and for float images with ``none`` or, where they are negative,
            ``legacy_over_max``.
        """
        scaled = np.empty(crops.shape, np.float32) if out is None else out
        scaled[...] = crops
        if self.normalize == "minmax":
            scaled -= _by_channel(np.min, scaled)
            scaled /= _by_channel(np.max, scaled) + np.float32(1e-7)
        elif self.normalize == "legacy_over_max":
            high = _by_channel(np.max, scaled)
            scaled -= _by_channel(np.min, scaled)
            scaled *= high > 0
            scaled /= np.where(high > 0, high, np.float32(1))
        elif self.normalize == "zscore":
            flat = _by_channel(np.min, scaled) == _by_channel(np.max, scaled)
            scaled -= scaled.mean(axis=(1, 2), keepdims=True, dtype=np.float64).astype(np.float32)
            spread = np.sqrt(np.square(scaled, dtype=np.float64).mean(axis=(1, 2), keepdims=True))
            scaled *= ~flat
            scaled /= np.where(flat, 1, spread).astype(np.float32)
        elif self.normalize in ("plate_control", "percentile"):
            assert levels is not None, f"{self.normalize} needs levels"
            low, high = np.moveaxis(np.asarray(levels, np.float32), -2, 0)
            n, height, width, channels = scaled.shape
            lines = scaled.reshape(n, height, width * channels)  # long ones, as in _by_channel
            lines -= _along(low, width)
            with np.errstate(over="ignore"):  # where the plate is flat, infinity is clipped to 1
                lines /= _along(np.maximum(high - low, np.finfo(np.float32).tiny), width)
            np.clip(lines, 0, 1, out=lines)
        elif np.issubdtype(image_type, np.integer):
            scaled /= np.float32(np.iinfo(image_type).max)
        return scaled


def _along(levels: np.ndarray, width: int) -> np.ndarray:
    """Levels of channels, (C,) or (n, C), as lines of `width` pixels, (1 or n, 1, width * C)."""
    return np.tile(np.atleast_2d(levels), width)[:, None, :]


def _by_channel(extreme: Callable[..., np.ndarray], crops: np.ndarray) -> np.ndarray:
    """The lowest or highest value of each channel of each crop (n, H, W, C), as (n, 1, 1, C).

    Lines first: they are long, and numpy is 25 times slower where the axis that stays has the length of the channels.
    """
    n, height, width, channels = crops.shape
    columns = extreme(crops.reshape(n, height, width * channels), axis=1)
    return extreme(columns.reshape(n, width, channels), axis=1)[:, None, None, :]

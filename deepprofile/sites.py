"""A site: one row of the index, its image files, and how they are read under the settings of a study."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from cytominer_tools.manifest import fingerprint
from deepprofile.images import read_site
from deepprofile.study import Study


def site_rows(sites: pd.DataFrame) -> list[dict[str, str]]:
    """The rows of an index, or of a part of it, as mappings."""
    return [{str(name): value for name, value in row.items()} for row in sites.to_dict("records")]


def site_paths(study: Study, row: Mapping[str, str]) -> dict[str, Path]:
    """The image file of each channel of one index row."""
    return {channel: study.image_root / row[channel] for channel in study.channels}


def site_image(study: Study, row: Mapping[str, str], channels: Sequence[str] | None = None) -> np.ndarray:
    """The image of one index row: its `channels` (all of the study's by default), stacked in that order.

    Returns
    -------
    array, shape (H, W, C)
        uint8, uint16 or float32.

    Raises
    ------
    InputError
        As `deepprofile.images.read_site`: an image cannot be read, has another size, is flat or holds NaN.
    """
    paths = site_paths(study, row)
    return read_site({channel: paths[channel] for channel in channels or study.channels}, study.images.size)


def image_fingerprint(
    study: Study, sites: pd.DataFrame, channels: Sequence[str] | None = None
) -> list[list[str | int]]:
    """Fingerprint of the images of `sites`, relative to where their paths start."""
    root = study.image_root
    chosen = channels or tuple(study.channels)
    return fingerprint((root / row[channel] for row in site_rows(sites) for channel in chosen), root)

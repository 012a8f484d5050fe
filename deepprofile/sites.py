"""A site: one row of the index, its image files, and how they are read under the settings of a study."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from cytominer_tools.columns import PLATE
from deepprofile.illumination import corrected as correct
from deepprofile.images import read_site
from deepprofile.references import is_url, parse, resolve, stamps
from deepprofile.study import Study


def site_rows(sites: pd.DataFrame) -> list[dict[str, str]]:
    """The rows of an index, or of a part of it, as mappings."""
    return [{str(name): value for name, value in row.items()} for row in sites.to_dict("records")]


def site_paths(study: Study, row: Mapping[str, str]) -> dict[str, str]:
    """The image of each channel of one index row: a reference as `deepprofile.images.read_image` takes it."""
    root, projection = study.image_base, study.images.projection
    return {channel: resolve(root, row[channel], projection) for channel in study.channels}


def site_image(
    study: Study, row: Mapping[str, str], channels: Sequence[str] | None = None, *, corrected: bool = True
) -> np.ndarray:
    """The image of one index row: its `channels` (all of the study's by default), stacked in that order.

    With `corrected`, and an `illumination.method` in the study, counts are divided by the illumination functions.

    Returns
    -------
    array, shape (H, W, C)
        uint8, uint16 or float32; float32 where it is corrected.

    Raises
    ------
    InputError
        As `deepprofile.images.read_site`: an image cannot be read, has another size, is flat or holds NaN. As
        `deepprofile.illumination.corrected`: the functions are not made, or for another size.
    """
    paths = site_paths(study, row)
    chosen = tuple(channels or study.channels)
    image = read_site({channel: paths[channel] for channel in chosen}, study.images.size)
    return correct(study, row[PLATE], image, chosen) if corrected and study.correction is not None else image


def image_fingerprint(
    study: Study, sites: pd.DataFrame, channels: Sequence[str] | None = None
) -> list[list[str | int]]:
    """The files of the images of `sites` and what is read of them: relative name, size (bytes) and state of each.

    The state is the modification time (ns) of a file, the ETag or time of what a URL names, and a hash of both for all
    files of an OME-Zarr image; the size is -1 where there is nothing.
    """
    paths = [site_paths(study, row) for row in site_rows(sites)]
    parsed = [parse(one[channel]) for one in paths for channel in channels or study.channels]
    state = stamps(file for reference in parsed for file in reference.files)
    base = str(study.image_base)
    root = base.rstrip("/") + "/" if is_url(base) else str(Path(base)) + os.sep
    return [
        [file.removeprefix(root).replace(os.sep, "/") + reference.fragment, *state[file]]
        for reference in parsed
        for file in reference.files
    ]

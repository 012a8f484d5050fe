"""Cells parted by lines, as DeepProfiler masks them: an image of outlines a site, and the region of each centre."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
from skimage.measure import label

from cytominer_tools.columns import PLATE, SITE, WELL, require_columns
from cytominer_tools.errors import InputError
from cytominer_tools.tables import read_table
from deepprofile.images import read_image
from deepprofile.platemaps import plain_well
from deepprofile.study import Study

COLUMN = "Outlines"
_REACH = 5  # px around a centre that say which region it is in

Labels = npt.NDArray[np.int32]


class Outlines:
    """What `locate.outlines` names: a table of the sites, and the image of each.

    Raises
    ------
    InputError
        The table cannot be read or lacks a column.
    """

    def __init__(self, study: Study):
        assert study.locate.outlines is not None
        self.table, self.root = study.path(study.locate.outlines.table), study.path(study.locate.outlines.root)
        found = read_table(self.table, metadata=True)
        require_columns(found, [PLATE, WELL, SITE, COLUMN], str(self.table))
        rows = found[[PLATE, WELL, SITE, COLUMN]].astype("str").itertuples(index=False)
        self._names = {_key(plate, well, site): name for plate, well, site, name in rows}

    def path(self, row: Mapping[str, str]) -> Path:
        """The image of one row of the index.

        Raises
        ------
        InputError
            The table does not list it.
        """
        name = self._names.get(_key(row[PLATE], row[WELL], row[SITE]))
        if name is None:
            raise InputError(f"{self.table}: no outlines of {row[PLATE]} {row[WELL]} site {row[SITE]}")
        return self.root / name

    def inputs(self, rows: list[dict[str, str]]) -> list[Path]:
        """The images of `rows`, as far as the table lists them."""
        keys = [_key(row[PLATE], row[WELL], row[SITE]) for row in rows]
        return [self.root / self._names[key] for key in keys if key in self._names]

    def regions(self, row: Mapping[str, str]) -> Labels:
        """The regions that the lines part, int32 (H, W), numbered as DeepProfiler does."""
        return regions(read_image(self.path(row)))


def regions(outlines: np.ndarray) -> Labels:
    """Connected pixels (8 neighbours) of one value, numbered; int32 (H, W). Pixels of value 1 are 0, in no region."""
    return label(outlines, background=1).astype(np.int32)


def regions_of(labels: Labels, xy: np.ndarray) -> Labels:
    """The region that each centre lies in: the median of the 10 x 10 pixels around it; 0 off the image.

    Parameters
    ----------
    labels : int array, shape (H, W)
    xy : float array, shape (n, 2)
        Column and row, px.

    References
    ----------
    DeepProfiler 0.3.1, imaging/boxes.py.
    """
    found = np.zeros(len(xy), np.int32)
    for i, (x, y) in enumerate(xy.astype(int).tolist()):
        patch = labels[max(y - _REACH, 0) : max(y + _REACH, 0), max(x - _REACH, 0) : max(x + _REACH, 0)]
        if patch.size:
            found[i] = int(np.median(patch))
    return found


def _key(plate: str, well: str, site: str) -> tuple[str, str, str]:
    return plate, plain_well(well) or well, str(int(site)) if site.isdecimal() else site

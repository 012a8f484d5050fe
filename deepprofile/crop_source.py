"""What crops are cut from, the same for export and profiling: the sites, cells, counts and labels of a plate."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cytominer_tools.columns import PLATE, SITE, WELL
from cytominer_tools.errors import InputError
from cytominer_tools.manifest import Part, PlateTable, changes
from deepprofile.images import size_text
from deepprofile.index import sites_by_well
from deepprofile.intensities import plate_correction, read_levels
from deepprofile.locations import label_path, location_settings, plate_locations, read_labels
from deepprofile.outlines import regions_of
from deepprofile.preprocess import Preprocess
from deepprofile.sites import image_fingerprint, site_image, site_rows
from deepprofile.study import Study
from deepprofile.work import keep_earlier


@dataclass(frozen=True)
class CropSource:
    """What the crops of one plate are cut from; made by `open_source`."""

    plate: str
    sites: dict[str, pd.DataFrame]  # rows of the index by well
    located: PlateTable
    levels: np.ndarray | None  # low and high count by channel, (2, C), where `crops.normalize` takes the plate's
    correction: str | None = None  # digest of the illumination functions
    uncorrected: np.dtype | None = None  # type of the images before the correction

    def image_type(self, image: np.ndarray) -> np.dtype:
        """What `Preprocess.scale` takes for the type of `image`: that of its files, before any correction."""
        return self.uncorrected or image.dtype

    def scale(
        self, preprocess: Preprocess, site: "SiteSource", crops: np.ndarray, out: np.ndarray | None = None
    ) -> np.ndarray:
        """What the network sees of `crops` (n, H, W, C), which are cut from `site`; see `Preprocess.scale`."""
        levels = self.levels if site.levels is None else site.levels
        return preprocess.scale(crops, levels, self.image_type(site.image), out)

    def inputs(self, study: Study, well: str) -> list[Any]:
        """What the crops of `well` depend on beside the settings, as JSON values."""
        levels = None if self.levels is None else self.levels.tolist()
        inputs = [image_fingerprint(study, self.sites[well]), self.located.manifest.parts[well].key, levels]
        return inputs if self.correction is None else [*inputs, self.correction]


@dataclass(frozen=True)
class SiteSource:
    """A site as it is read: the image in counts, what it is scaled by, and with `crops.mask` its labels."""

    image: np.ndarray  # (H, W, C)
    labels: np.ndarray | None = None  # int32 (H, W)
    levels: np.ndarray | None = None  # low and high count by channel, (2, C), where `crops.normalize` takes the image's
    outlined: bool = False  # labels are numbered regions between lines, not cells

    def cut(
        self, preprocess: Preprocess, xy: np.ndarray, cells: np.ndarray, out: np.ndarray | None = None
    ) -> np.ndarray:
        """Crops of the cells at `xy` (n, 2), px, whose Metadata_Cell is `cells` (n,); see `Preprocess.cut`.

        With `locate.outlines` they are masked as DeepProfiler does it, by `masks`.
        """
        if not (preprocess.mask and self.outlined):
            return preprocess.cut(self.image, xy, self.labels, cells + 1, out)
        whole = preprocess.model_copy(update={"mask": False})
        crops = whole.cut(self.image, xy, out=out)
        crops[~self.masks(whole, xy, cells)] = 0
        return crops

    def masks(self, whole: Preprocess, xy: np.ndarray, cells: np.ndarray) -> np.ndarray:
        """Where a crop shows its own cell: labels are cut as the image is, so that of interpolated ones those count
        that have no other beside them; bool (n, size, size). `whole` is a Preprocess without a mask."""
        assert self.labels is not None, "masks need the labels"
        own = regions_of(self.labels, xy) if self.outlined else cells + 1
        return whole.cut(self.labels[..., None], xy)[..., 0] == own[:, None, None]


def open_source(study: Study, index: pd.DataFrame, plate: str, *, located: bool = True) -> CropSource:
    """The sites, locations, levels and correction of one plate of `index`.

    Without `located` it does not matter whether there are locations, as for tiles.

    Raises
    ------
    InputError
        The locations or the illumination are not made, or under other settings; with `crops.mask`, the label images
        are not kept.
    """
    if study.crops.mask and not study.locate.labels:
        raise InputError("crops.mask needs the label images: set locate.labels to true and run `deepprofile locate`")
    sites = sites_by_well(index, plate)
    locations = plate_locations(study, plate)
    if located:
        locations.manifest.require(sites, location_settings(study), "deepprofile locate")
    levels = read_levels(study, plate) if study.crops.normalize == "plate_control" else None
    correction = plate_correction(study, plate)
    if correction is None:
        return CropSource(plate, sites, locations, levels)
    return CropSource(plate, sites, locations, levels, correction.digest, correction.dtype)


def read_source(study: Study, row: Mapping[str, str], *, strict: bool = False) -> SiteSource | str:
    """The site of one row of the index, which has cells; or why it cannot be used.

    Raises
    ------
    InputError
        With `strict`, it cannot be used. With `crops.mask`, its label image is missing or of another size than the
        image; as `locate` keeps it where there are cells, that is not the site's fault.
    """
    try:
        image = site_image(study, row)
    except InputError as error:
        if strict:
            raise
        return str(error)
    levels = study.preprocess.own_levels(image)
    if not study.crops.mask:
        return SiteSource(image, levels=levels)
    labels = read_labels(study, row)
    if labels.shape != image.shape[:2]:
        shapes = [size_text(one.shape) for one in (labels, image)]
        raise InputError(
            f"{label_path(study, row)}: {shapes[0]} pixels, the image has {shapes[1]}; run `deepprofile locate` again"
        )
    return SiteSource(image, labels, levels, study.locate.outlines is not None)


def require_same_crops(
    study: Study, where: Path, preprocess: Mapping[str, Any], illumination: Any, *, exact: bool = True
) -> None:
    """Refuse crops at `where` that are not what profiling would feed the network; their channels and size, or `exact`.

    Raises
    ------
    InputError
        It says what differs, and how to mend it.
    """
    theirs, ours = list(preprocess["channels"]), list(study.channels)
    if theirs != ours:
        raise InputError(
            f"{where}: its channels are {', '.join(theirs)}, those of study.yaml {', '.join(ours)}; order them "
            "alike, or run `deepprofile export` again"
        )
    if preprocess["size"] != study.crops.size:
        raise InputError(
            f"{where}: its crops are {preprocess['size']} px wide, those of study.yaml {study.crops.size}; set "
            "crops.size to that, or export again"
        )
    if not exact:
        return
    found = {**preprocess, "illumination": illumination}
    wanted = study.preprocess.model_dump(mode="json") | {"illumination": study.correction}
    if changed := changes(found, wanted):
        raise InputError(f"{where}: exported with other crops ({changed[0]}); run `deepprofile export` again")


def site_name(row: Mapping[str, str]) -> str:
    """What a site is called in reports."""
    return f"{row[PLATE]} {row[WELL]} site {row[SITE]}"


def lost_cells(preprocess: Preprocess, what: str, kept: np.ndarray) -> list[tuple[str, str]]:
    """The line that says how many cells of the site `what` are not `kept` by `Preprocess.keep`; none if all are."""
    if not (lost := int((~kept).sum())):
        return []
    why = "their box leaves the image" if preprocess.border == "drop" else "their centre is off the image"
    return [(f"{what}: {lost} of {len(kept)} cells", why)]


def lacks_site(part: Part) -> bool:
    """Whether `part` was made without one of its sites; single cells are left out of good sites too."""
    return any(not what.endswith(" cells") for what, _ in part.skipped)


def keep_earlier_parts(study: Study, what: str, todo: Iterable[tuple[CropSource, PlateTable, str]]) -> None:
    """`deepprofile.work.keep_earlier` for the wells, as (source, table, well), that are to be made again."""
    had = [
        source.sites[well]
        for source, table, well in todo
        if well in table.manifest.parts and table.manifest.parts[well].rows
    ]

    def refusal(row: Mapping[str, str]) -> str:
        found = read_source(study, row)
        return found if isinstance(found, str) else ""

    keep_earlier(what, [row for sites in had for row in site_rows(sites)], refusal)

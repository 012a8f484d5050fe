"""All stages, from images to scores; what is current is left alone."""

from collections.abc import Callable, Iterator

from deepprofile.features import profile_cells
from deepprofile.index import load_index, write_index
from deepprofile.intensities import measure_intensities
from deepprofile.locations import locate_cells
from deepprofile.profiles import aggregate_wells, consensus_profiles, normalize_wells, score_profiles
from deepprofile.study import Study
from deepprofile.work import Done


def run_study(study: Study, *, strict: bool = False) -> Iterator[Done]:
    """Make everything that study.yaml asks for, yielding what each stage did when it ends.

    Killed at any moment and called again, it ends with the same files as an undisturbed run.

    Raises
    ------
    InputError
        The first thing that its owner can mend; with `strict`, also a site that cannot be read.
    """
    steps: tuple[Callable[[Study], Done], ...] = (aggregate_wells, normalize_wells, consensus_profiles)
    with study.writing():
        write_index(study, load_index(study, tell=True))
        if study.profile.files is not None:  # the features are made, so no image is needed
            yield profile_cells(study, strict=strict)
            for one in study.recipe_sets:
                for step in (*steps, score_profiles):
                    yield step(one)
            return
        light = study.illumination
        if study.crops.normalize == "plate_control" or light.method != "none" or light.qc:
            yield measure_intensities(study, strict=strict)
        trained = study.train
        exported = trained is not None and study.path(trained.crops) == study.crop_store.resolve()
        exported |= study.profile.source == "crops"
        if exported or trained is not None or not study.profile.tiles:
            yield locate_cells(study, strict=strict)
        if exported:
            from deepprofile.export import export_crops

            yield export_crops(study, strict=strict)
        if trained is not None:
            from deepprofile.training import train_network

            yield train_network(study)
        twins = [study.untrained, study] if study.untrained else [study]
        for twin in twins:
            yield profile_cells(twin, strict=strict)
            for one in _sets(twin):
                for step in steps:
                    yield step(one)
        for one in _sets(study):
            yield score_profiles(one)


def _sets(study: Study) -> list[Study]:
    """The study of each set of features under each recipe."""
    return [one for features in study.feature_sets for one in features.recipe_sets]

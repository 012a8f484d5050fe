import shutil

import pytest
from study_factory import configure, make_study, run

from deepprofile.intensities import measure_intensities
from deepprofile.locations import locate_cells


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """The folder of the tiny study before anything ran; not to be written to."""
    root = tmp_path_factory.mktemp("tiny")
    make_study(root)
    return root


@pytest.fixture(scope="session")
def finished(images, tmp_path_factory):
    """The tiny study after an undisturbed run; not to be written to."""
    root = tmp_path_factory.mktemp("finished") / "study"
    shutil.copytree(images, root)
    run(configure(root))
    return configure(root)


@pytest.fixture
def fresh(images, tmp_path):
    """A copy of the tiny study before anything ran."""
    root = tmp_path / "study"
    shutil.copytree(images, root)
    return configure(root)


@pytest.fixture
def done(finished, tmp_path):
    """A copy of the tiny study after an undisturbed run."""
    root = tmp_path / "study"
    shutil.copytree(finished.root, root)
    return configure(root)


@pytest.fixture(scope="session")
def located_once(images, tmp_path_factory):
    """The tiny study with its intensities, locations and label images; not to be written to."""
    root = tmp_path_factory.mktemp("located") / "study"
    shutil.copytree(images, root)
    study = configure(root, locate={"labels": True})
    measure_intensities(study)
    locate_cells(study)
    return study


@pytest.fixture
def located(located_once, tmp_path):
    """A copy of the tiny study with its intensities, locations and label images."""
    root = tmp_path / "study"
    shutil.copytree(located_once.root, root)
    return configure(root, locate={"labels": True})

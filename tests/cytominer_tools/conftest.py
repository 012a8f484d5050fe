import warnings
from functools import wraps
from pathlib import Path

import pandas as pd
import pytest

from cytominer_tools.errors import ProfileWarning


class Peer:
    """pycytominer 1.7.1, its own warnings (and those of what it imports) left out."""

    def __getattr__(self, name):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import pycytominer
            import pycytominer.cyto_utils as utils
            import pycytominer.operations as operations
            from pycytominer.cyto_utils import DeepProfiler_processing as deepprofiler
            from pycytominer.cyto_utils import cells

        for place in (pycytominer, operations, utils, deepprofiler, cells):
            if hasattr(place, name):
                return quietly(getattr(place, name))
        raise AttributeError(name)


def quietly(function):
    @wraps(function)
    def call(*args, **kwargs):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return function(*args, **kwargs)

    return call


@pytest.fixture(scope="session")
def peer():
    from importlib.metadata import version

    assert version("pycytominer") == "1.7.1"
    return Peer()


@pytest.fixture(scope="session")
def quiet():
    """Wraps a method of the peer, which warns of pandas and of itself."""
    return quietly


@pytest.fixture
def no_profile_warnings():
    """For parity where ours warns of the difference that the test is not about."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ProfileWarning)
        yield


@pytest.fixture(scope="session")
def lincs(data: Path) -> pd.DataFrame:
    """A plate of 384 wells, 26 metadata columns, 454 features, 24 DMSO."""
    return pd.read_csv(data / "lincs_plate_SQ00015054" / "SQ00015054_normalized_feature_select.csv.gz")


@pytest.fixture(scope="session")
def jump_cells(data: Path) -> pd.DataFrame:
    """125 cells of two wells, 5,792 raw CellProfiler features."""
    return pd.read_parquet(data / "parity" / "sc_BR00121431.parquet")

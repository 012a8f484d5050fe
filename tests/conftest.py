import os
from pathlib import Path

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # read when TensorFlow is imported

DATA = Path(os.environ.get("DEEPPROFILE_DATA", Path(__file__).parents[2] / "shared" / "data"))


def pytest_collection_modifyitems(items):
    if not DATA.is_dir():
        absent = pytest.mark.skip(reason=f"no real data at {DATA}; set DEEPPROFILE_DATA")
        for item in items:
            if item.get_closest_marker("data"):
                item.add_marker(absent)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.skipped and item.get_closest_marker("data") and DATA.is_dir():
        report.outcome = "failed"
        report.longrepr = f"skipped although there is data at {DATA}: {call.excinfo.value if call.excinfo else ''}"
    return report


@pytest.fixture(scope="session")
def data():
    """The folder of real images and profiles; a test that asks for it carries the mark `data`."""
    return DATA

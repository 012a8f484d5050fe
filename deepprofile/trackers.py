"""Where the course of a training is followed while it runs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deepprofile.study import Study


@contextmanager
def trackers(study: Study, folder: Path, history: list[dict[str, Any]]) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Yield a function that takes the row of each epoch to the trackers that `train.track` names."""
    yield lambda row: None

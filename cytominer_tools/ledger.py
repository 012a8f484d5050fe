"""What became of the rows and features of a table, step by step, in the metadata of its Parquet file."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from cytominer_tools.columns import METADATA
from cytominer_tools.errors import InputError

KEY = b"deepprofile.ledger"


def read_ledger(path: str | Path) -> list[dict[str, Any]]:
    """The steps that made a Parquet file, the first one first; none where it has no ledger.

    Each has `step` (the function), `rows` and `features` (how many went in and came out), `settings` (the arguments
    that are not its defaults) and `dropped`: the features that went, with the reason where one is known. Functions
    that read one Parquet file and write another go on with the ledger of the first.

    Raises
    ------
    InputError
        The file is absent or is not Parquet.
    """
    try:
        found = (pq.read_schema(path).metadata or {}).get(KEY)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: cannot be read as parquet: {str(error).splitlines()[0]}") from error
    steps: list[dict[str, Any]] = json.loads(found) if found else []
    return steps


def ledger_step(
    step: str, before: pd.DataFrame, after: pd.DataFrame, settings: Mapping[str, Any], reasons: Mapping[str, str]
) -> dict[str, Any]:
    """One step from the tables before and after it."""
    old, new = features_of(before), set(features_of(after))
    return {
        "step": step,
        "rows": [len(before), len(after)],
        "features": [len(old), len(new)],
        "settings": {name: _plain(value) for name, value in settings.items()},
        "dropped": {name: reasons.get(name, "") for name in old if name not in new},
    }


def features_of(table: pd.DataFrame) -> list[str]:
    """The columns that are no metadata."""
    return [str(name) for name in table.columns if not str(name).startswith(METADATA)]


def _plain(value: Any) -> Any:
    if isinstance(value, str | int | float | bool | None):
        return value
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return f"{type(value).__name__}{list(value.shape)}" if isinstance(value, pd.DataFrame) else str(value)

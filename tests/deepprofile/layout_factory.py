"""Tables of cells as a crop store lists them, laid out as screens are, without any image."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from deepprofile.study import Columns

COLUMNS = Columns(
    compound="Metadata_Compound", concentration="Metadata_Dose", moa="Metadata_MOA", batch="Metadata_Batch"
)
NAMES = ("Plate", "Well", "Site", "Cell", "Batch", "Compound", "Dose", "MOA")
DOSES = (10.0, 3.3333, 1.1111, 0.37037, 0.12346, 0.041152)
PLATES = {"P1": "b1", "P2": "b2", "P3": "b2", "P4": "b2", "P5": "b2"}  # of one map, one in b1 and four in b2
MOAS = {"aaa": "kinase", "bbb": "kinase", "ccc": "tubulin"}  # of each compound


def lincs(
    moas: Mapping[str, str | None] = MOAS,
    *,
    plates: Mapping[str, str] = PLATES,
    doses: Sequence[float] = DOSES,
    sites: int = 3,
    cells: int = 4,
    controls: int = 4,
) -> pd.DataFrame:
    """The cells of one map as in the LINCS pilot: the doses of a compound in wells side by side, then DMSO."""
    layout = [(name, dose, moa) for name, moa in moas.items() for dose in doses] + [("DMSO", np.nan, None)] * controls
    rows = [
        (plate, f"{chr(65 + i // 24)}{i % 24 + 1:02d}", str(site + 1), cell, batch, *what)
        for plate, batch in plates.items()
        for i, what in enumerate(layout)
        for site in range(sites)
        for cell in range(cells)
    ]
    return pd.DataFrame(rows, columns=[f"Metadata_{name}" for name in NAMES])

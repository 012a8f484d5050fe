"""Parquet files of cells, aggregated and normalised by batches: seconds and memory as the rows grow tenfold.

    python benchmarks/cell_tables.py            # 10,000 to 1,000,000 rows of 64 features
    python benchmarks/cell_tables.py --full     # to 10,000,000 rows, 2.4 GiB in memory

Each run is a process of its own. Extra memory is the peak over what the imports take; it must not grow with the rows.
What comes out is compared with the columns in memory, one at a time: medians exactly, means to 1e-6.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

FEATURES, ROWS, WELL = 64, 100_000, 1_000  # features; rows of a row group; rows of a well
RUNS = {
    "aggregate mean": ("aggregate", {"operation": "mean"}),
    "aggregate median": ("aggregate", {}),
    "aggregate median, wells in pieces": ("aggregate", {"strata": "Metadata_Part"}),
    "normalize standardize": ("normalize", {"method": "standardize"}),
    "normalize mad_robustize": ("normalize", {"method": "mad_robustize"}),
    "normalize mad_robustize, by plate": ("normalize", {"method": "mad_robustize", "by": "Metadata_Plate"}),
}


def make(path: Path, rows: int) -> None:
    """Cells in the order of their wells, 384 wells a plate; Metadata_Part has 7 values in turn."""
    names = [f"Cells_{i}" for i in range(FEATURES)]
    rng, writer = np.random.default_rng(0), None
    for start in range(0, rows, ROWS):
        n = min(ROWS, rows - start)
        well = np.arange(start, start + n) // WELL
        table = pa.table(
            {
                "Metadata_Plate": [f"p{w // 384:03d}" for w in well],
                "Metadata_Well": [f"w{w % 384:03d}" for w in well],
                "Metadata_Part": [f"t{i % 7}" for i in range(n)],
                **{name: rng.standard_normal(n, dtype=np.float32) for name in names},
            }
        )
        writer = writer or pq.ParquetWriter(path, table.schema, compression="zstd")
        writer.write_table(table)
    if writer:
        writer.close()


def peak() -> float:
    """The highest resident memory of this process so far, MiB; getrusage would count that of its parent too."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024


def child(source: str, out: str, name: str) -> None:
    from cytominer_tools import aggregate_parquet, normalize_parquet

    what, options = RUNS[name]
    before = peak()
    start = time.perf_counter()
    if what == "aggregate":
        aggregate_parquet(source, **options).to_parquet(out)
    else:
        normalize_parquet(source, out, **options)
    seconds = time.perf_counter() - start
    print(json.dumps([seconds, peak() - before]))


def difference(source: Path, out: Path, name: str) -> float:
    """The largest difference from pandas and numpy, over three features, a column in memory at a time."""
    what, options = RUNS[name]
    keys = pd.read_parquet(source, columns=["Metadata_Plate", "Metadata_Well", "Metadata_Part"])
    worst = 0.0
    for feature in ("Cells_0", "Cells_17", "Cells_63"):
        column = pd.read_parquet(source, columns=[feature])[feature]
        found = pd.read_parquet(out, columns=[feature])[feature].to_numpy()
        if what == "aggregate":
            by = options.get("strata", ["Metadata_Plate", "Metadata_Well"])
            expected = column.groupby([keys[one] for one in np.atleast_1d(by)]).agg(options.get("operation", "median"))
        else:
            groups = keys["Metadata_Plate"] if "by" in options else np.zeros(len(column))
            expected = column.groupby(groups).transform(scored[options["method"]])
        worst = max(worst, float(np.abs(found - expected.to_numpy()).max()))
    return worst


def standardized(x: pd.Series) -> pd.Series:
    wide = x.astype("float64")
    return (wide - wide.mean()) / wide.std(ddof=0)


def robust(x: pd.Series) -> pd.Series:
    away = x - x.median()
    return away.astype("float64") / (1.4826 * away.abs().median())


scored = {"standardize": standardized, "mad_robustize": robust}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(*args.child)
        return
    print(f"{'run':36}  {'rows':>10}  {'seconds':>8}  {'rows/s':>11}  {'extra MiB':>9}  {'difference':>10}")
    with tempfile.TemporaryDirectory() as folder:
        for rows in (10_000, 100_000, 1_000_000) + ((10_000_000,) if args.full else ()):
            source, out = Path(folder) / f"{rows}.parquet", Path(folder) / "out.parquet"
            make(source, rows)
            for name in RUNS:
                command = [sys.executable, __file__, "--child", str(source), str(out), name]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                seconds, mib = json.loads(done.stdout.splitlines()[-1])
                off = difference(source, out, name)
                print(
                    f"{name:36}  {rows:10,}  {seconds:8.2f}  {rows / seconds:11,.0f}  {mib:9.0f}  {off:10.2g}",
                    flush=True,
                )


if __name__ == "__main__":
    main()

"""cytominer_tools beside pycytominer 1.7.1: seconds, their ratio, and the memory each takes beyond its input.

    python benchmarks/profiles.py            # small tables, under two minutes
    python benchmarks/profiles.py --full     # those of a screen: 8,818 wells, 6,400 features, 500,000 cells
    python benchmarks/profiles.py modz       # the cases whose name holds a word

Every case runs in a process of its own, ours and the peer in turn, on the same table; the median counts. Extra memory
is the peak of resident memory over what was resident before the call. The limit is the least that any program must do,
done once by NumPy or the file's own reader in the same process: read or copy the features, multiply them (float32),
decompose the smaller of the two covariances of the controls (float64) and apply it, or decode the files.
"""

import argparse
import atexit
import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from cytominer_tools.tables import parquet_writer
from cytominer_tools.threads import each

PLATES, WELLS, CONTROLS = 20, 384, 24


def profiles(n: int, d: int, *, missing: bool = False, plates: int = PLATES) -> pd.DataFrame:
    """Correlated float32 features with a plate, a treatment (eight replicates) and controls."""
    rng = np.random.default_rng(0)
    factors = max(4, d // 8)
    x = rng.standard_normal((n, factors), dtype=np.float32) @ rng.standard_normal((factors, d), dtype=np.float32)
    x += 2 * rng.standard_normal((n, d), dtype=np.float32)
    if missing:
        x[rng.integers(n, size=d), np.arange(d)] = np.nan
    metadata = pd.DataFrame(
        {
            "Metadata_Plate": np.repeat([f"p{i:03d}" for i in range(plates)], -(-n // plates))[:n],
            "Metadata_Well": [f"w{i:06d}" for i in range(n)],
            "Metadata_Treatment": [f"t{i % max(1, n // 8):05d}" for i in range(n)],
            "Metadata_Control": np.arange(n) % 16 == 0,
        }
    )
    return pd.concat([metadata, pd.DataFrame(x, columns=[f"Cells_f_{i}" for i in range(d)])], axis=1)


def cells(n: int, d: int, wells: int = WELLS) -> pd.DataFrame:
    """Cells in the order of their wells."""
    x = np.random.default_rng(0).standard_normal((n, d), dtype=np.float32)
    keys = pd.DataFrame({"Metadata_Plate": "p", "Metadata_Well": [f"w{i:03d}" for i in np.arange(n) * wells // n]})
    return pd.concat([keys, pd.DataFrame(x, columns=[f"Cells_f_{i}" for i in range(d)])], axis=1)


def features(table: pd.DataFrame) -> list[str]:
    return [name for name in table.columns if name.startswith("Cells_")]


def plate_by_plate(table: pd.DataFrame, method: str, peer: bool) -> Any:
    import pycytominer

    import cytominer_tools

    options = {"samples": "Metadata_Control == True", "method": method}
    if not peer:
        return cytominer_tools.normalize(table, by="Metadata_Plate", **options)
    return pd.concat([pycytominer.normalize(part, **options) for _, part in table.groupby("Metadata_Plate")])


Case = tuple[Callable[[bool], pd.DataFrame], Callable[[pd.DataFrame, bool], Any], Callable[[pd.DataFrame], Any]]


def values(table: pd.DataFrame) -> np.ndarray:
    return np.nan_to_num(table[features(table)].to_numpy())


def read(table: pd.DataFrame) -> Callable[[], Any]:
    x = values(table)
    return lambda: x.sum()


def copied(table: pd.DataFrame) -> Callable[[], Any]:
    x = values(table)
    out = x.copy()
    return lambda: np.copyto(out, x)


def multiplied(table: pd.DataFrame) -> Callable[[], Any]:
    x = values(table)
    return lambda: x.T @ x  # of which NumPy takes one half


def decomposed(n_controls: int) -> Callable[[pd.DataFrame], Callable[[], Any]]:
    def least(table: pd.DataFrame) -> Callable[[], Any]:
        x = values(table)
        controls = x[: min(n_controls, len(x) // 2)]

        def work() -> Any:
            if len(controls) < controls.shape[1]:
                _, vectors = np.linalg.eigh((controls @ controls.T).astype(np.float64))
                axes = controls.T @ vectors.astype(np.float32)
                return (x @ axes) @ axes.T
            _, vectors = np.linalg.eigh((controls.T @ controls).astype(np.float64))
            return x @ vectors.astype(np.float32)

        return work

    return least


def decoded(parquet: str | None) -> Callable[[pd.DataFrame], Callable[[], Any]]:
    def least(table: pd.DataFrame) -> Callable[[], Any]:
        folder = Path(table.attrs["folder"])
        if parquet:
            return lambda: pq.read_table(folder / parquet)
        files = sorted(folder.glob("p/*.npz"))
        return lambda: each(lambda file: np.load(file, allow_pickle=True)["features"], files)

    return least


def called(name: str, **options: Any) -> Callable[[pd.DataFrame, bool], Any]:
    """A function of both packages, called with the same arguments."""

    def call(table: pd.DataFrame, peer: bool) -> Any:
        import pycytominer
        import pycytominer.operations

        import cytominer_tools

        place = (pycytominer if hasattr(pycytominer, name) else pycytominer.operations) if peer else cytominer_tools
        return getattr(place, name)(table, **options)

    return call


def spherized(n_controls: int, alone: bool = False) -> Callable[[pd.DataFrame, bool], Any]:
    """Fitted on the first rows, at most half of them, and applied to all; `alone`: without `normalize` around it."""

    def call(table: pd.DataFrame, peer: bool) -> Any:
        import pycytominer
        from pycytominer.operations import Spherize as Theirs

        import cytominer_tools

        controls = np.arange(len(table)) < min(n_controls, len(table) // 2)
        options = {"method": "spherize", "samples": "Metadata_First == True"}
        if not alone:
            table = table.assign(Metadata_First=controls)
            return (pycytominer if peer else cytominer_tools).normalize(table, **options)
        x = table[features(table)]
        fitted = (Theirs if peer else cytominer_tools.Spherize)(method="ZCA-cor", return_numpy=True).fit(x[controls])
        return fitted.transform(x)

    return call


def sites(full: bool) -> pd.DataFrame:
    """An index of sites, whose features stand in a new folder as DeepProfiler's npz files and in two Parquet files.

    columns.parquet has a column a feature, written by pandas; cells.parquet a list a cell and a row group a well, as
    `deepprofile profile` writes it.
    """
    n, cells_each, d = (60, 230, 6400) if full else (24, 100, 1280)
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder)
    rng, tables = np.random.default_rng(0), []
    index = pd.DataFrame({"Metadata_Plate": "p", "Metadata_Well": [f"w{i // 6:03d}" for i in range(n)]})
    index["Metadata_Site"] = [str(i % 6) for i in range(n)]
    (folder / "p").mkdir()
    for key in index.to_dict("records"):
        x = rng.standard_normal((cells_each, d), dtype=np.float32)
        metadata = {"Metadata_Model": "Cells_f"} | key
        path = folder / "p" / f"{key['Metadata_Well']}_{key['Metadata_Site']}.npz"
        np.savez_compressed(path, features=x, metadata=metadata, locations=np.zeros((cells_each, 2)))
        table = pd.DataFrame(x, columns=[f"Cells_f_{i}" for i in range(d)])
        tables.append(pd.concat([pd.DataFrame([key] * cells_each), table], axis=1))
    whole = pd.concat(tables, ignore_index=True)
    whole.to_parquet(folder / "columns.parquet", compression="zstd")
    keys = pa.Table.from_pandas(whole[list(index)], preserve_index=False)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(whole[features(whole)].to_numpy().ravel()), d)
    store = keys.append_column("features", lists)
    with parquet_writer(folder / "cells.parquet", store.schema) as writer:
        writer.write_table(store, row_group_size=6 * cells_each)
    index.to_csv(folder / "index.csv", index=False)
    index.attrs["folder"] = str(folder)
    return index


def aggregated_sites(operation: str, parquet: str | None) -> Callable[[pd.DataFrame, bool], Any]:
    """The wells of npz files; ours of the same cells in Parquet, where that is asked for."""

    def call(table: pd.DataFrame, peer: bool) -> Any:
        from pycytominer.cyto_utils import DeepProfiler_processing as theirs

        import cytominer_tools as ours

        folder = table.attrs["folder"]
        if parquet and not peer:
            return ours.aggregate_parquet(Path(folder) / parquet, operation=operation)
        place: Any = theirs if peer else ours
        data = place.DeepProfilerData(f"{folder}/index.csv", folder)
        return place.AggregateDeepProfiler(data, operation, "well").aggregate_deep()

    return call


def cases() -> dict[str, Case]:
    """Name to a table, small or full, and what is done with it."""
    by_well = {"strata": ["Metadata_Plate", "Metadata_Well"]}

    def plate_cells(full: bool) -> pd.DataFrame:
        return cells(500_000, 1280) if full else cells(40_000, 640)

    def wide(full: bool) -> pd.DataFrame:
        return profiles(8818, 6400) if full else profiles(2000, 1600)

    return {
        "aggregate mean": (plate_cells, called("aggregate", **by_well, operation="mean"), read),
        "aggregate median": (plate_cells, called("aggregate", **by_well), read),
        **{
            f"npz of a site, {operation}{f' (ours: {parquet})' if parquet else ''}": (
                sites,
                aggregated_sites(operation, parquet),
                decoded(parquet),
            )
            for operation in ("mean", "median")
            for parquet in (None, "cells.parquet", "columns.parquet")
        },
        "modz": (
            lambda full: profiles(*((8818, 1280) if full else (1600, 640))),
            called("consensus", replicate_columns=["Metadata_Treatment"], operation="modz"),
            read,
        ),
        "consensus median": (
            lambda full: profiles(*((8818, 1280) if full else (1600, 640))),
            called("consensus", replicate_columns=["Metadata_Treatment"]),
            read,
        ),
        "correlation_threshold": (wide, called("correlation_threshold"), multiplied),
        "correlation_threshold, missing values": (
            lambda full: profiles(*((8818, 1600) if full else (2000, 400)), missing=True),
            called("correlation_threshold"),
            multiplied,
        ),
        "variance_threshold": (wide, called("variance_threshold"), read),
        "frequency_threshold": (wide, called("frequency_threshold"), read),
        **{
            f"normalize {method}, 20 plates, {width} features": (
                lambda full, width=width: profiles(PLATES * (WELLS if full else 96), width if full else width // 4),
                lambda table, peer, method=method: plate_by_plate(table, method, peer),
                copied,
            )
            for method in ("standardize", "robustize", "mad_robustize")
            for width in (1280, 6400)
        },
        **{
            f"{'Spherize alone' if alone else 'spherize'}, {controls} controls of {n} x {d}": (
                lambda full, n=n, d=d: profiles(*((n, d) if full else (n // 8, d // 4))),
                spherized(controls, alone),
                decomposed(controls),
            )
            for controls, n, d in ((3264, 8818, 6400), (480, 7680, 1280), (4000, 8818, 1280))
            for alone in (False, True)
        },
    }


class Peak(threading.Thread):
    """The highest resident memory while it runs, in MiB over that at its start."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.start_at, self.highest, self.done = self.now(), 0.0, threading.Event()

    @staticmethod
    def now() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20

    def run(self) -> None:
        while not self.done.wait(0.005):
            self.highest = max(self.highest, self.now() - self.start_at)


def one(name: str, peer: bool, full: bool, runs: int) -> dict[str, float]:
    """What a case takes in this process, and what it must."""
    make, call, least = cases()[name]
    table = make(full)
    seconds, memory = [], []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        call(table.head(64), peer)  # imports
        for _ in range(runs):
            peak = Peak()
            peak.start()
            start = time.perf_counter()
            call(table, peer)
            seconds.append(time.perf_counter() - start)
            peak.done.set()
            peak.join()
            memory.append(peak.highest)
    found = {"seconds": statistics.median(seconds), "mib": max(memory)}
    if not peer:
        work = least(table)
        work()
        start = time.perf_counter()
        work()
        found["limit"] = time.perf_counter() - start
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("words", nargs="*")
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(one(args.one[0], args.one[1] == "peer", args.full, args.runs)))
        return
    chosen = [name for name in cases() if not args.words or any(word in name for word in args.words)]
    print(f"{'case':48}  {'ours s':>8}  {'peer s':>8}  {'ratio':>6}  {'limit s':>8}  {'ours MiB':>8}  {'peer MiB':>8}")
    for name in chosen:
        found = {}
        for who in ("ours", "peer"):
            command = [sys.executable, __file__, "--one", name, who, "--runs", str(args.runs)]
            done = subprocess.run([*command, *["--full"] * args.full], check=True, capture_output=True, text=True)
            found[who] = json.loads(done.stdout.splitlines()[-1])
        mine, theirs = found["ours"], found["peer"]
        print(
            f"{name:48}  {mine['seconds']:8.3f}  {theirs['seconds']:8.3f}  {theirs['seconds'] / mine['seconds']:6.1f}"
            f"  {mine['limit']:8.3f}  {mine['mib']:8.0f}  {theirs['mib']:8.0f}",
            flush=True,
        )


if __name__ == "__main__":
    main()

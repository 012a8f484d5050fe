"""Which format keeps the crops of single cells: python benchmarks/crop_store.py

4,800 crops of 128 x 128 x 5 uint8, cut at random from a real JUMP site (DEEPPROFILE_DATA, by default ../shared/data; a
simulated site without it), in 10 parts of 480, as a well has them. Each format writes the parts one after another, and
gives back shuffled batches of 256 from the page cache. Reading and writing are done by processes of their own, whose
peak resident memory the system reports; the fastest of the parts, and of several rounds of reading, counts. One core is
counted in processor time, which a busy machine disturbs least, two threads by the clock. "plain file" is the limit: the
same bytes without any format. A format whose library is absent is left out, with the reason.
"""

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

PARTS, PART, SHAPE = 10, 480, (128, 128, 5)
SIZE = int(np.prod(SHAPE))
BATCH = 256
ROUNDS, ROUND_S = 5, 0.2
SITE = "cpg0000_BR00116991/A01-1"


def frame(crop: np.ndarray, compressor: str, level: int) -> bytes:
    """A crop as a Blosc-1 frame; a pixel is an item, so that the bits of one channel come to stand together."""
    import imagecodecs

    return imagecodecs.blosc_encode(
        crop.reshape(-1).view(f"V{SHAPE[-1]}"), level, compressor=compressor, shuffle="bitshuffle", blocksize=SIZE,
        numthreads=1,
    )  # fmt: skip


def unframe(data: bytes, out: np.ndarray) -> None:
    import imagecodecs

    imagecodecs.blosc_decode(data, numthreads=1, out=out.reshape(-1))


class Store:
    """A format: writes a part, and fills `out` with one crop of an open part."""

    def __init__(self, compressor: str = "", level: int = 0):
        self.compressor, self.level = compressor, level

    def write(self, path: Path, crops: np.ndarray) -> None: ...

    def open(self, path: Path) -> Any: ...

    def read(self, part: Any, row: int, out: np.ndarray) -> None: ...


class Plain(Store):
    def write(self, path: Path, crops: np.ndarray) -> None:
        path.write_bytes(crops.data)

    def open(self, path: Path) -> int:
        return os.open(path, os.O_RDONLY)

    def read(self, part: int, row: int, out: np.ndarray) -> None:
        os.preadv(part, [out.data], row * SIZE)


class Arrow(Store):
    """A record batch a part; where its buffers lie in the file is looked up once, then crops are read by offset."""

    def write(self, path: Path, crops: np.ndarray) -> None:
        import pyarrow as pa

        if self.compressor:
            frames = [frame(crop, self.compressor, self.level) for crop in crops]
            ends = np.cumsum([0, *map(len, frames)], dtype=np.int64)
            buffers = [None, pa.py_buffer(ends), pa.py_buffer(b"".join(frames))]
            column = pa.Array.from_buffers(pa.large_binary(), len(crops), buffers)
        else:
            column = pa.FixedSizeBinaryArray.from_buffers(
                pa.binary(SIZE), len(crops), [None, pa.py_buffer(crops.reshape(-1))]
            )
        batch = pa.record_batch({"crop": column})
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, batch.schema) as writer:
            writer.write_batch(batch)

    def open(self, path: Path) -> tuple[int, np.ndarray]:
        import pyarrow as pa

        whole = pa.memory_map(str(path)).read_buffer()
        column = pa.ipc.open_file(whole).get_batch(0).column(0)
        *_, offsets, data = column.buffers()
        if self.compressor:
            ends = np.frombuffer(offsets, np.int64, len(column) + 1)
        else:
            ends = np.arange(len(column) + 1) * SIZE
        return os.open(path, os.O_RDONLY), ends + (data.address - whole.address)

    def read(self, part: tuple[int, np.ndarray], row: int, out: np.ndarray) -> None:
        file, ends = part
        if self.compressor:
            unframe(os.pread(file, int(ends[row + 1] - ends[row]), int(ends[row])), out)
        else:
            os.preadv(file, [out.data], int(ends[row]))


class ArrowMapped(Arrow):
    """The same file, opened the usual way: mapped into memory."""

    def open(self, path: Path) -> Any:
        import pyarrow as pa

        return pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0).column(0)

    def read(self, part: Any, row: int, out: np.ndarray) -> None:
        out.reshape(-1)[:] = np.frombuffer(part[row].as_buffer(), np.uint8)


class Parquet(Store):
    """A binary column; what can be read alone is a row group."""

    def __init__(self, group: int, compressor: str = "", level: int = 0, codec: str = "none"):
        super().__init__(compressor, level)
        self.group, self.codec = group, codec

    def write(self, path: Path, crops: np.ndarray) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        rows = [frame(crop, self.compressor, self.level) if self.compressor else crop.tobytes() for crop in crops]
        table = pa.table({"crop": pa.array(rows, pa.binary() if self.compressor else pa.binary(SIZE))})
        options = {"use_dictionary": False, "write_statistics": False, "compression": self.codec}
        pq.write_table(table, path, row_group_size=self.group, **options)

    def open(self, path: Path) -> Any:
        import pyarrow.parquet as pq

        return pq.ParquetFile(path)

    def read(self, part: Any, row: int, out: np.ndarray) -> None:
        group = part.read_row_group(row // self.group, use_threads=False)
        data = group["crop"][row % self.group].as_buffer()
        if self.compressor:
            unframe(np.frombuffer(data, np.uint8), out)
        else:
            out.reshape(-1)[:] = np.frombuffer(data, np.uint8)


class Zarr(Store):
    """An array a part, in one shard, with chunks of a few crops."""

    def __init__(self, chunk: int, compressor: str = "", level: int = 0):
        super().__init__(compressor, level)
        self.chunk = chunk

    def write(self, path: Path, crops: np.ndarray) -> None:
        import zarr
        from zarr.codecs import BloscCodec

        how: Any = {"typesize": SHAPE[-1], "cname": self.compressor, "clevel": self.level, "shuffle": "bitshuffle"}
        array = zarr.create_array(
            path, shape=crops.shape, dtype=crops.dtype, chunks=(self.chunk, *SHAPE), shards=crops.shape,
            compressors=BloscCodec(**how) if self.compressor else None,
        )  # fmt: skip
        array[...] = crops

    def open(self, path: Path) -> Any:
        import zarr

        return zarr.open_array(path, mode="r")

    def read(self, part: Any, row: int, out: np.ndarray) -> None:
        out[...] = part[row]


class Blosc2(Store):
    """A super-chunk a part, in one file, with a crop a chunk."""

    def write(self, path: Path, crops: np.ndarray) -> None:
        import blosc2

        codec = getattr(blosc2.Codec, (self.compressor or "lz4").upper())
        filters = [blosc2.Filter.BITSHUFFLE if self.compressor else blosc2.Filter.NOFILTER]
        size = {"typesize": SHAPE[-1], "blocksize": SIZE}
        how = blosc2.CParams(codec=codec, clevel=self.level, filters=filters, nthreads=1, **size)
        blosc2.SChunk(chunksize=SIZE, data=crops, cparams=how, urlpath=str(path), mode="w", contiguous=True)

    def open(self, path: Path) -> Any:
        import blosc2

        return blosc2.open(str(path), mode="r", mmap_mode="r", dparams=blosc2.DParams(nthreads=1))

    def read(self, part: Any, row: int, out: np.ndarray) -> None:
        part.decompress_chunk(row, dst=out)


class ArrayRecord(Store):
    def __init__(self, options: str, compressor: str = "", level: int = 0):
        super().__init__(compressor, level)
        self.options = options

    def write(self, path: Path, crops: np.ndarray) -> None:
        from array_record.python.array_record_module import ArrayRecordWriter

        writer = ArrayRecordWriter(str(path), f"group_size:1,{self.options}")
        for crop in crops:
            writer.write(frame(crop, self.compressor, self.level) if self.compressor else crop.tobytes())
        writer.close()

    def open(self, path: Path) -> Any:
        from array_record.python.array_record_module import ArrayRecordReader

        return ArrayRecordReader(str(path), "readahead_buffer_size:0,index_storage_option:in_memory")

    def read(self, part: Any, row: int, out: np.ndarray) -> None:
        (data,) = part.read([row])
        if self.compressor:
            unframe(data, out)
        else:
            out.reshape(-1)[:] = np.frombuffer(data, np.uint8)


# what is needed beside numpy and imagecodecs, and the format
STORES: dict[str, tuple[str, Store]] = {
    "plain file": ("numpy", Plain()),
    "Arrow IPC by offset": ("pyarrow", Arrow()),
    "Arrow IPC by offset, lz4 frames": ("pyarrow", Arrow("lz4", 5)),
    "Arrow IPC by offset, zstd frames": ("pyarrow", Arrow("zstd", 1)),
    "Arrow IPC mapped": ("pyarrow", ArrowMapped()),
    "Parquet, groups of 1": ("pyarrow", Parquet(1)),
    "Parquet, groups of 16": ("pyarrow", Parquet(16)),
    "Parquet, groups of 16, zstd": ("pyarrow", Parquet(16, codec="zstd")),
    "Parquet, groups of 1, lz4 frames": ("pyarrow", Parquet(1, "lz4", 5)),
    "Zarr v3 shards, chunks of 1": ("zarr", Zarr(1)),
    "Zarr v3 shards, chunks of 16": ("zarr", Zarr(16)),
    "Zarr v3 shards, chunks of 1, lz4": ("zarr", Zarr(1, "lz4", 5)),
    "Zarr v3 shards, chunks of 16, lz4": ("zarr", Zarr(16, "lz4", 5)),
    "blosc2": ("blosc2", Blosc2()),
    "blosc2, lz4": ("blosc2", Blosc2("lz4", 5)),
    "blosc2, zstd": ("blosc2", Blosc2("zstd", 1)),
    "ArrayRecord": ("array_record", ArrayRecord("uncompressed")),
    "ArrayRecord, zstd": ("array_record", ArrayRecord("zstd:1")),
    "ArrayRecord, lz4 frames": ("array_record", ArrayRecord("uncompressed", "lz4", 5)),
}


def real_or_simulated(folder: Path) -> tuple[np.ndarray, str]:
    """A site scaled to 8 bit between its percentiles, (H, W, C), and where it is from."""
    import tifffile

    data = Path(os.environ.get("DEEPPROFILE_DATA", Path(__file__).parents[2] / "shared" / "data"))
    names, what = sorted((data / SITE).glob("*.tif*")), "a real JUMP site"
    if not names:
        from deepprofile import simulate

        size = {"size": (1080, 1080), "cells": 110}
        simulate(folder, plates=1, sites=1, moas=1, compounds_per_moa=1, controls=1, **size)
        names, what = sorted((folder / "images").rglob("*.tif"))[:5], "a simulated site"
    site = np.stack([tifffile.imread(name) for name in names], axis=-1)
    low, high = np.percentile(site, (0.1, 99.9), axis=(0, 1))
    return np.round(np.clip((site - low) / (high - low), 0, 1) * 255).astype(np.uint8), what


def make_parts(folder: Path) -> str:
    """Crops at random places, turned and mirrored, a .npy file a part; returns where they are from."""
    site, what = real_or_simulated(folder / "simulated")
    rng = np.random.default_rng(0)
    for number in range(PARTS):
        crops = np.empty((PART, *SHAPE), np.uint8)
        for crop in crops:
            y, x = rng.integers(0, np.subtract(site.shape[:2], SHAPE[:2]) + 1)
            square = np.rot90(site[y : y + SHAPE[0], x : x + SHAPE[1]], rng.integers(4))
            crop[...] = square[:, ::-1] if rng.integers(2) else square
        np.save(folder / f"{number}.npy", crops)
    return what


def cores(n: int) -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[:n]))


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def write(store: Store, folder: Path, parts: Path) -> dict[str, Any]:
    """Write every part on one core."""
    cores(1)
    store.write(folder / "warm", np.load(parts / "0.npy")[:32])
    best = 0.0
    for number in range(PARTS):
        crops = np.load(parts / f"{number}.npy")
        start = time.perf_counter()
        store.write(folder / f"{number}", crops)
        best = max(best, PART / (time.perf_counter() - start))
    return {"write": best, "write_peak": peak_mib()}


def batches(rng: np.random.Generator) -> Iterator[np.ndarray]:
    while True:
        rows = rng.permutation(PARTS * PART)
        yield from rows[: len(rows) // BATCH * BATCH].reshape(-1, BATCH)


def rate(read: Callable[[np.ndarray], np.ndarray], seed: int, clock: Callable[[], float] = time.perf_counter) -> float:
    """Crops a second of one thread, over batches until a round is over."""
    start, n = clock(), 0
    for rows in batches(np.random.default_rng(seed)):
        read(rows)
        n += len(rows)
        if (spent := clock() - start) > ROUND_S:
            return n / spent
    raise AssertionError


def read(store: Store, folder: Path, parts: Path) -> dict[str, Any]:
    """Shuffled batches by one thread on one core, and by two threads on two."""

    def opened() -> Callable[[np.ndarray], np.ndarray]:
        files = [store.open(folder / str(number)) for number in range(PARTS)]

        def batch(rows: np.ndarray) -> np.ndarray:
            out = np.empty((len(rows), *SHAPE), np.uint8)
            for row, crop in zip(rows.tolist(), out, strict=True):
                store.read(files[row // PART], row % PART, crop)
            return out

        return batch

    two = [opened(), opened()]  # not every library lets threads share an open file
    answer = {"read2": 0.0, "read": 0.0}
    with ThreadPoolExecutor(2) as pool:
        for number in range(ROUNDS):
            answer["read2"] = max(answer["read2"], sum(pool.map(rate, two, (2 * number, 2 * number + 1))))
    cores(1)
    for number in range(ROUNDS):
        answer["read"] = max(answer["read"], rate(two[0], number, time.process_time))
    answer["read_peak"] = peak_mib()
    rows = next(batches(np.random.default_rng(99)))
    truth = [np.load(parts / f"{number}.npy", mmap_mode="r") for number in range(PARTS)]
    assert all(np.array_equal(got, truth[row // PART][row % PART]) for got, row in zip(two[0](rows), rows, strict=True))
    return answer


def child(what: str, *more: str | Path) -> Any:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", __file__, what, *map(str, more)], capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    from importlib.metadata import version

    with tempfile.TemporaryDirectory() as name:
        what = child("make", name)  # the peak of a child is never below what its parent held at the start
        print(f"{PARTS * PART:,} crops of {what}; cells a second, in brackets x plain file\n")
        print(
            "| format | written, 1 core | read, 1 thread | read, 2 threads | bytes a cell | files a part | peak MiB |"
        )
        print("|---|---|---|---|---|---|---|")
        limit: dict[str, Any] = {}
        for title, (package, _) in STORES.items():
            try:
                known = "" if package == "numpy" else f" ({package} {version(package)})"
            except ImportError as error:
                print(f"| {title} | left out: {error} | | | | | |", flush=True)
                continue
            folder = Path(name) / "store"
            folder.mkdir()
            found = child("write", title, folder, Path(name))
            found |= child("read", title, folder, Path(name))
            limit = limit or found
            files = [path for path in folder.rglob("*") if path.is_file() and "warm" not in str(path)]
            speeds = [f"{found[k]:,.0f} ({found[k] / limit[k]:.2f})" for k in ("write", "read", "read2")]
            size = sum(path.stat().st_size for path in files) / (PARTS * PART)
            peaks = f"{found['write_peak']:.0f}, {found['read_peak']:.0f}"
            print(
                f"| {title}{known} | {' | '.join(speeds)} | {size:,.0f} | {len(files) / PARTS:g} | {peaks} |",
                flush=True,
            )
            shutil.rmtree(folder)


if __name__ == "__main__":
    if sys.argv[1:]:
        act, *names = sys.argv[1:]
        if act == "make":
            print(json.dumps(make_parts(Path(names[0]))))
        else:
            do = {"write": write, "read": read}[act]
            print(json.dumps(do(STORES[names[0]][1], Path(names[1]), Path(names[2]))))
    else:
        main()

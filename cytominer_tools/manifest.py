"""What is done: a record beside the files, so that work that is current is not done again."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cytominer_tools.errors import InputError
from cytominer_tools.files import atomic_path, safe_name, waited_for
from cytominer_tools.tables import parquet_writer, write_parquet

FORMAT_VERSION = 1
_MERGED = "cells.parquet"
_RECORD = ".part.json"  # of a well, beside its file, while several processes make the plate


def digest(value: Any) -> str:
    """SHA-256 of a JSON value, whatever the order of its keys; 16 hexadecimal digits.

    >>> digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1})
    True
    """
    return hashlib.sha256(json.dumps(value, sort_keys=True, allow_nan=False).encode()).hexdigest()[:16]


def fingerprint(paths: Iterable[Path], root: Path) -> list[list[str | int]]:
    """Relative path, size (bytes) and modification time (ns) of each file; size -1 where there is none.

    A file elsewhere than under `root` keeps its absolute path.
    """
    rows: list[list[str | int]] = []
    for path in paths:
        name = path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()
        try:
            stat = path.stat()
        except OSError:
            rows.append([name, -1, 0])
        else:
            rows.append([name, stat.st_size, stat.st_mtime_ns])
    return rows


def changes(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Which settings differ, in words.

    >>> changes({"crops": {"size": 128}}, {"crops": {"size": 96}, "seed": 0})
    ['crops.size: 128 -> 96', 'seed: none -> 0']
    """
    said = []
    for name in [*old, *(n for n in new if n not in old)]:
        before, after = old.get(name), new.get(name)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            said += changes(before, after, f"{prefix}{name}.")
        elif before != after:
            said.append(f"{prefix}{name}: {_short(before)} -> {_short(after)}")
    return said


@dataclass(frozen=True)
class Part:
    """One finished piece of work: `file` (in the manifest's folder) was made under `key` and `settings`."""

    key: str
    file: str
    settings: str
    rows: int = 0
    skipped: tuple[tuple[str, str], ...] = ()  # (what, why) of the input that was left out


@dataclass
class Manifest:
    """The finished parts of one stage in one folder, in ``manifest.json``; every change is on disk at once."""

    folder: Path
    stage: str
    settings: dict[str, Any] = field(default_factory=dict)
    parts: dict[str, Part] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path, stage: str) -> "Manifest":
        """The manifest of `folder`, empty where there is none.

        Raises
        ------
        InputError
            It is of another format version, or not a manifest.
        """
        path = folder / "manifest.json"
        if not path.exists():
            return cls(folder, stage)
        try:
            found = json.loads(path.read_text("utf-8"))
            if (version := found["format_version"]) != FORMAT_VERSION:
                raise InputError(
                    f"{path}: format version {version}, this deepprofile writes {FORMAT_VERSION}; update it"
                )
            settings, rows = found["settings"], found["parts"].items()
            parts = {name: Part(**(row | {"skipped": tuple(map(tuple, row["skipped"]))})) for name, row in rows}
        except InputError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path}: not a manifest; delete {folder} to make it again") from error
        return cls(folder, stage, settings, parts)

    def expect(self, settings: dict[str, Any]) -> list[str]:
        """Take `settings` (JSON values) as those that count from now on; return what changed, in words."""
        settings = json.loads(json.dumps(settings))  # a tuple is a list in the file
        changed = changes(self.settings, settings) if self.parts else []
        self.settings = settings
        return changed

    def key(self, inputs: Any) -> str:
        """The key of a part made from `inputs` (a JSON value) under the settings that count."""
        return digest([self.settings, inputs])

    def is_current(self, name: str, key: str) -> bool:
        part = self.parts.get(name)
        return part is not None and part.key == key and (self.folder / part.file).exists()

    def record(self, name: str, key: str, file: str, rows: int = 0, skipped: Iterable[tuple[str, str]] = ()) -> None:
        """Say that part `name` is done; call it after `file` is in place."""
        self.parts[name] = Part(key, file, digest(self.settings), rows, tuple(skipped))
        self.save()

    def save(self) -> None:
        parts = {name: asdict(self.parts[name]) for name in sorted(self.parts)}
        text = {"format_version": FORMAT_VERSION, "stage": self.stage, "settings": self.settings, "parts": parts}
        with atomic_path(self.folder / "manifest.json") as path:
            path.write_text(json.dumps(text, indent=1) + "\n", "utf-8")

    def require(self, names: Iterable[str], settings: dict[str, Any], command: str) -> None:
        """Raise an InputError, with `command` as the mend, unless every one of `names` was made under `settings`."""
        settings = json.loads(json.dumps(settings))
        if self.parts and (changed := changes(self.settings, settings)):
            raise InputError(f"{self.folder} was made under other settings ({changed[0]}); run `{command}` again")
        now = digest(settings)
        names = list(names)
        if lacking := [n for n in names if n not in self.parts or self.parts[n].settings != now]:
            count = f"{len(lacking)} of {len(names)} part(s) are not made, first {lacking[0]}"
            raise InputError(f"{self.folder}: {count}; run `{command}`")


class PlateTable:
    """The cells of one plate: a Parquet file a well while it is made, one file with a row group a well when complete.

    Files are named by the manifest; a well's rows are found in the complete file by a list in its schema metadata, so
    a kill between any two writes leaves every finished well readable.

    Parameters
    ----------
    folder : Path
    stage : str
    lock : Path, optional
        Several processes make the plate at once, each its own wells, and complete it while they hold this folder. A
        record a well stands beside its file then, so that nobody rewrites what another one said.
    """

    def __init__(self, folder: Path, stage: str, lock: Path | None = None):
        self.folder = folder
        self.stage = stage
        self.lock = lock
        self.manifest = self._read()

    def write(self, well: str, key: str, table: pa.Table, skipped: Iterable[tuple[str, str]] = ()) -> None:
        """Keep the cells of `well`; every well of a plate has the same schema."""
        name = f"{safe_name(well)}.parquet"
        if self._record(well).exists():  # never an older record beside a newer file
            self._record(well).unlink(missing_ok=True)
        with atomic_path(self.folder / name) as path:
            write_parquet(table, path)
        if self.lock is None:
            self.manifest.record(well, key, name, len(table), skipped)
            for record in self.folder.glob(f"*{_RECORD}"):  # they stand in the manifest now
                record.unlink()
            return
        part = Part(key, name, digest(self.manifest.settings), len(table), tuple(skipped))
        self.manifest.parts[well] = part
        said = {"well": well, "settings": self.manifest.settings, "part": asdict(part)}
        with atomic_path(self._record(well)) as path:
            path.write_text(json.dumps(said, indent=1) + "\n", "utf-8")

    def forget(self, well: str) -> None:
        """Say that `well` is not made, whatever there is of it."""
        self._record(well).unlink(missing_ok=True)
        if self.manifest.parts.pop(well, None) is None:
            return
        if self.lock is None:
            self.manifest.save()
            return
        with waited_for(self.lock):
            whole = Manifest.read(self.folder, self.stage)
            if whole.parts.pop(well, None) is not None:
                whole.save()

    def complete(self, keys: Mapping[str, str]) -> bool:
        """Finish if every well is current by its key, whichever process made it; whether that was so."""
        if self.lock is None:
            self.finish(keys)
            return True
        with waited_for(self.lock):
            known, self.manifest = self.manifest, self._read()
            self.manifest.settings = known.settings
            if all(self.manifest.is_current(well, key) for well, key in keys.items()):
                self.finish(keys)
                return True
            # while another process makes a well again it has no record; what this process knows of it holds
            self.manifest.parts = known.parts | self.manifest.parts
        return False

    def finish(self, wells: Iterable[str]) -> None:
        """Make one file of the parts of `wells`, which are all current, and forget every other well."""
        wells = sorted(wells)
        parts = {well: self.manifest.parts[well] for well in wells}
        if gone := self.manifest.parts.keys() - parts:  # forgotten first: the file to come lacks them
            self.manifest.parts = dict(parts)
            self.manifest.save()
        if wells and (gone or any(p.file != _MERGED for p in parts.values())):
            groups = {well: i for i, well in enumerate(w for w in wells if parts[w].rows)}
            # a well without cells may lack columns, so those with cells say what there is
            schema = pa.unify_schemas([self._schema(well) for well in groups or wells], promote_options="default")
            empty = schema.with_metadata({**(schema.metadata or {}), b"row_groups": json.dumps(groups)}).empty_table()
            with atomic_path(self.folder / _MERGED) as path, parquet_writer(path, empty.schema) as writer:
                for well in groups:
                    table = pa.concat_tables([empty, self.read(well)], promote_options="default")
                    writer.write_table(table, row_group_size=len(table))
            self.manifest.parts = {
                well: Part(p.key, _MERGED, p.settings, p.rows, p.skipped) for well, p in parts.items()
            }
            self.manifest.save()
        for left in [*self.folder.glob(f"*{_RECORD}"), *self.folder.glob("*.parquet")]:
            if left.name != _MERGED and not left.name.startswith("."):  # another process may be writing that one
                left.unlink(missing_ok=True)

    def read(self, well: str, columns: list[str] | None = None) -> pa.Table:
        """The cells of one finished well, in the order they were written."""
        path = self.folder / self.manifest.parts[well].file
        with pq.ParquetFile(path) as file:
            if path.name != _MERGED:
                return file.read(columns)
            groups = json.loads(file.schema_arrow.metadata[b"row_groups"])
            if well in groups:
                return file.read_row_group(groups[well], columns)
            return file.schema_arrow.empty_table().select(columns or file.schema_arrow.names)

    def _record(self, well: str) -> Path:
        return self.folder / f"{safe_name(well)}{_RECORD}"

    def _read(self) -> Manifest:
        """The manifest with the records of single wells, which are newer."""
        manifest = Manifest.read(self.folder, self.stage)
        for record in sorted(self.folder.glob(f"*{_RECORD}")):
            with suppress(FileNotFoundError):  # another process completes the plate
                try:
                    said = json.loads(record.read_text("utf-8"))
                    part = Part(**(said["part"] | {"skipped": tuple(map(tuple, said["part"]["skipped"]))}))
                    well, settings = said["well"], said["settings"]
                except (ValueError, KeyError, TypeError) as error:
                    raise InputError(f"{record}: not a record of a well; delete it to make the well again") from error
                if (self.folder / part.file).exists():
                    manifest.parts[well], manifest.settings = part, settings
        return manifest

    def _schema(self, well: str) -> pa.Schema:
        schema = pq.read_schema(self.folder / self.manifest.parts[well].file)
        metadata = {k: v for k, v in (schema.metadata or {}).items() if k != b"row_groups"}
        return schema.with_metadata(metadata)


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 40 else text[:37] + "..."

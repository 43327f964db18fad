"""The ledger of a run: what it is (the fingerprint) and which shards are durable, one JSON line each.

The first line holds the fingerprint; every other line was written after its shard was. A line that a crash
cut short is dropped when the ledger is opened again, so its shard is redone.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from tilewright.errors import ResumeError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

__all__ = ["Ledger", "differences", "fingerprint_digest"]

NAME = "ledger.jsonl"


def fingerprint_digest(fingerprint: Mapping[str, Any]) -> str:
    """sha256 of a fingerprint in canonical JSON."""
    text = json.dumps(fingerprint, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def differences(old: Any, new: Any, path: str = "") -> Iterator[str]:
    """Yield ``key: old -> new`` for every leaf in which two plain structures differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            yield from differences(old.get(key), new.get(key), f"{path}.{key}" if path else str(key))
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for i, (a, b) in enumerate(zip(old, new, strict=True)):
            yield from differences(a, b, f"{path}[{i}]")
    elif old != new:
        yield f"{path}: {_short(old)} -> {_short(new)}"


def _short(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _is_header(record: Any) -> bool:
    return isinstance(record, dict) and {"fingerprint", "layout", "depends_on"} <= record.keys()


def _forget(header: dict[str, Any], entries: dict[str, dict[str, Any]], record: Mapping[str, Any]) -> None:
    for name in record["redo"]:
        entries.pop(name, None)
    for fact in record["forget"]:
        header.pop(fact, None)


class Ledger:
    """The ledger of one output folder. Only the process that holds it writes."""

    def __init__(self, path: Path, header: dict[str, Any], entries: dict[str, dict[str, Any]]) -> None:
        self.path = path
        self.header = header
        self.entries = entries
        """Shard name -> its line."""
        self.mirror: Callable[[], None] | None = None
        """Called after each line, to keep a copy elsewhere."""

    @classmethod
    def open(cls, folder: Path, fingerprint: Mapping[str, Any], layout: Mapping[str, Any]) -> Self:
        """Open the ledger of ``folder`` for this fingerprint, or begin one.

        ``layout`` (the shard) changes no bit of the answer, but finished shards can only be kept at the same
        one. Raises `ResumeError` with the differences where the folder belongs to another run.
        """
        path = folder / NAME
        plain = json.loads(json.dumps(fingerprint, default=str))
        header = {
            "fingerprint": fingerprint_digest(plain),
            "layout": json.loads(json.dumps(layout)),
            "depends_on": plain,
            "run": uuid.uuid4().hex,
        }
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            ledger = cls(path, header, {})
            ledger._append(header)
            return ledger
        old, entries, length = cls._parse(path)
        if old is None:
            path.unlink()
            return cls.open(folder, fingerprint, layout)
        if old["fingerprint"] != header["fingerprint"] or old["layout"] != header["layout"]:
            changed = [
                *differences(old["depends_on"], plain),
                *differences(old["layout"], header["layout"], "layout"),
            ]
            more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
            raise ResumeError(
                f"the folder holds another run: {'; '.join(changed[:3])}{more}",
                place=str(folder),
                remedy="repeat the same request to resume it, use another --out, or start over with --fresh",
            )
        os.truncate(path, length)  # a line that a crash cut short
        return cls(path, old, entries)

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read the ledger of ``folder``; raises `ResumeError` where there is none."""
        return cls.read_file(folder / NAME)

    @classmethod
    def read_file(cls, path: Path) -> Self:
        """Read the ledger ``path``; raises `ResumeError` where there is none."""
        header, entries, _ = cls._parse(path) if path.exists() else (None, {}, 0)
        if header is None:
            raise ResumeError("there is no ledger of a run", place=str(path.parent))
        return cls(path, header, entries)

    @staticmethod
    def _parse(path: Path) -> tuple[dict[str, Any] | None, dict[str, dict[str, Any]], int]:
        header: dict[str, Any] | None = None
        entries: dict[str, dict[str, Any]] = {}
        length = 0
        with path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break
                try:
                    record = json.loads(line)
                except ValueError:
                    record = None
                if header is None and not _is_header(record):
                    raise ResumeError(
                        "is no ledger of tilewright", place=str(path), remedy="use another --out folder"
                    )
                if not isinstance(record, dict):
                    break
                length += len(line)
                if header is None:
                    header = record
                elif "shard" in record:
                    entries[record["shard"]] = record
                elif "redo" in record:
                    _forget(header, entries, record)
                else:
                    header |= record
        return header, entries, length

    def _append(self, record: Mapping[str, Any]) -> None:
        with self.path.open("ab") as file:
            file.write(json.dumps(record, separators=(",", ":"), default=str).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        if self.mirror is not None:
            self.mirror()

    def note(self, **facts: Any) -> None:
        """Add facts of the whole run (statistics); they belong to the header when the ledger is read again."""
        self.header |= json.loads(json.dumps(facts, default=str))
        self._append(facts)

    def redo(self, shards: Iterable[str], forget: Iterable[str] = ()) -> None:
        """Take back the lines of ``shards``, and the facts ``forget``: they are to be made again."""
        record = {"redo": list(shards), "forget": list(forget)}
        self._append(record)
        _forget(self.header, self.entries, record)

    def finish(self, shard: str, **facts: Any) -> None:
        """Add the line of a shard that is durable."""
        record = {"shard": shard, **facts}
        self._append(record)
        self.entries[shard] = json.loads(json.dumps(record, default=str))

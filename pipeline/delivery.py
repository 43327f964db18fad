"""A run whose result goes to an object store: what is made in a work folder and uploaded, and when it is complete.

The Zarr is written to the store directly, shard by shard. All else (COGs, quicklook, Item, report) is made in a
local work folder, validated there, and uploaded; ``report.json`` goes last, so a prefix with a report is complete.

The ledger is copied to the address every `EVERY` seconds and when the run ends, so the same command resumes on
another machine as well. The copy may be older than the Zarr, and then a few shards are computed again; it never
names a shard that is not there, because it is replaced before the Zarr is laid out anew. `Lease` keeps a second
machine out.
"""

from __future__ import annotations

import json
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from tilewright.errors import ResumeError, StoreError

from . import objects
from .lease import Lease
from .ledger import NAME as LEDGER
from .ledger import Ledger, fingerprint_digest
from .report import Report

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["Delivery"]

REPORT = "report.json"
BESIDE = ("item.json", "items.json", "model.json", "ledger.jsonl")
"""What a run may hold besides the outputs that its report names."""
EVERY = 20.0
"""Seconds between two copies of the ledger to the address."""
HEAVY = (".tif", ".parquet")
"""Suffixes of what is removed from the work folder once it was delivered."""


class Delivery:
    """The way of a run's files from its work folder to ``url``."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder, self.url = folder, url.rstrip("/")
        self.lease = Lease(folder, self.url)
        """The lock at the address; the run holds it."""
        self._copied, self._told = 0, -EVERY

    def clear(self, *, keep: str = "") -> None:
        """Remove the result of tilewright at the address, if its report vouches for one; the report goes first.

        ``keep`` is the suffix of what stays there all the same.
        """
        report = self._delivered()
        if report is None:
            if not keep:
                objects.remove(f"{self.url}/{LEDGER}")
            return
        objects.remove(f"{self.url}/{REPORT}")
        for name in {*report.outputs.values(), *BESIDE}:
            if keep and name.endswith(keep):
                continue
            objects.remove_tree(f"{self.url}/{name}") if name.endswith(".zarr") else objects.remove(
                f"{self.url}/{name}"
            )

    def withdraw(self) -> None:
        """Take back the report and all that it names but the Zarr, of which some shards are to be redone."""
        self.clear(keep=".zarr")

    def fetch_ledger(self, fingerprint: Mapping[str, Any], layout: Mapping[str, Any]) -> None:
        """Take the ledger of the address for the work folder's where it knows more, or belongs to a later start.

        Raises `ResumeError` where an unfinished run of another request lies there.
        """
        data = objects.fetch(f"{self.url}/{LEDGER}")
        if data is None:
            return
        incoming = self.folder / f".{LEDGER}.partial"
        incoming.write_bytes(data)
        try:
            there = Ledger.read_file(incoming)
            plain = json.loads(json.dumps(fingerprint, default=str))
            if there.header["fingerprint"] != fingerprint_digest(plain) or there.header["layout"] != layout:
                if self._delivered() is None:
                    raise ResumeError(
                        "the address holds another run, which is not finished",
                        place=self.url,
                        remedy="repeat the same request to resume it, use another --out, or start over with --fresh",
                    )
                return  # `begin` compares with its report
            here = Ledger.read(self.folder) if (self.folder / LEDGER).exists() else None
            newer = here is None or here.header.get("run") != there.header.get("run")
            if here is None or newer or len(there.entries) > len(here.entries):
                incoming.replace(self.folder / LEDGER)
        finally:
            incoming.unlink(missing_ok=True)

    def follow(self, ledger: Ledger) -> None:
        """Copy the ledger to the address now, and from now on; before the Zarr is laid out that it will speak of."""
        self._copy()
        ledger.mirror = self._follow

    def _follow(self) -> None:
        self.lease.check()
        if monotonic() - self._told >= EVERY:
            self._copy()

    def _copy(self) -> None:
        path = self.folder / LEDGER
        size = path.stat().st_size
        objects.upload(path, f"{self.url}/{LEDGER}")
        self._copied, self._told = size, monotonic()

    def leave(self) -> None:
        """Copy the last lines of the ledger, if the store takes them: another machine goes on from there."""
        path = self.folder / LEDGER
        if self._copied and path.exists() and path.stat().st_size != self._copied:
            try:
                self._copy()
            except StoreError:
                return  # what is wrong with the store is told by the run; the lines are in the work folder

    def begin(self, fingerprint: str) -> None:
        """Learn whether the address holds this run already; raises `ResumeError` where it holds another."""
        there, here = self._delivered(), Report.read(self.folder)
        if there is not None and there.fingerprint != fingerprint:
            raise ResumeError(
                "the address holds the result of another run",
                place=self.url,
                remedy="use another --out, or start over with --fresh",
            )
        if there is not None and here is None:
            there.write(self.folder)
        if there is None and here is not None and not all(path.exists() for path in self._files(here)):
            raise ResumeError(
                "the result was delivered, and is not there any more",
                place=self.url,
                remedy="start over with --fresh",
            )

    def deliver(self, report: Report) -> None:
        """Upload everything, the report last; free the work folder of what is heavy. Repeating it is harmless."""
        if self._delivered() == report:
            return
        for path in self._files(report):
            objects.upload(path, f"{self.url}/{path.name}")
        objects.upload(self.folder / REPORT, f"{self.url}/{REPORT}")
        for path in self._files(report):
            if path.suffix in HEAVY:
                path.unlink()

    def _files(self, report: Report) -> Iterator[Path]:
        for name in report.outputs.values():
            if not name.endswith(".zarr"):
                yield self.folder / name
        for name in BESIDE:
            if name not in report.outputs.values() and (self.folder / name).exists():
                yield self.folder / name

    def _delivered(self) -> Report | None:
        data = objects.fetch(f"{self.url}/{REPORT}")
        return None if data is None else Report(**json.loads(data))

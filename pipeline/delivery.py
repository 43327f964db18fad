"""A run whose result goes to an object store: what is made in a work folder and uploaded, and when it is complete.

The Zarr is written to the store directly, shard by shard. All else (ledger, COGs, quicklook, Item, report) is
made in a local work folder, validated there, and uploaded; ``report.json`` goes last, so a prefix with a
report is complete. The folder follows from the address alone (`objects.work_folder`): the same command on the
same machine resumes. Two machines must not write to one address at a time; nothing in a bucket could stop them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from tilewright.errors import ResumeError

from . import objects
from .report import Report

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Delivery"]

REPORT = "report.json"
BESIDE = ("item.json", "items.json", "model.json", "ledger.jsonl")
"""What a run may hold besides the outputs that its report names."""
HEAVY = (".tif", ".parquet")
"""Suffixes of what is removed from the work folder once it was delivered."""


class Delivery:
    """The way of a run's files from its work folder to ``url``."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder, self.url = folder, url.rstrip("/")

    def clear(self, *, keep: str = "") -> None:
        """Remove the result of tilewright at the address, if its report vouches for one; the report goes first.

        ``keep`` is the suffix of what stays there all the same.
        """
        report = self._delivered()
        if report is None:
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

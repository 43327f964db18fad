"""A run's folder: held against other processes, cleaned of what dead ones left, emptied by ``--fresh``."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tilewright.errors import InputError, ResumeError

from . import outputs as publishing
from .cog import remove_scratch
from .report import Report

__all__ = ["held", "unpublish"]

PRODUCTS = ("report.json", "item.json", "quicklook.png", "items.json", "model.json")
"""What a run writes beside its rasters."""


@contextmanager
def held(out: Path, *, fresh: bool) -> Iterator[None]:
    """Hold the folder against a second process; with ``fresh`` remove what a former run left in it."""
    if out.exists() and not out.is_dir():
        raise InputError("is a file", place=str(out), remedy="name a folder by --out")
    made = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    lock = out / ".lock"
    handle = _acquire(lock)
    try:
        _sweep(out)
        if fresh:
            _clear(out)
        yield
    finally:
        lock.unlink(missing_ok=True)  # while it is held: nobody else can hold this very file
        os.close(handle)
        if made:
            with suppress(OSError):  # a run that was refused leaves no empty folder
                out.rmdir()


def _sweep(out: Path) -> None:
    """Remove files that a dead process was writing: they lie beside their names until they are renamed."""
    for name in PRODUCTS:
        for path in out.glob(f".{name}.*"):
            path.unlink()
    remove_scratch(out)


def _acquire(lock: Path) -> int:
    """Return an open handle that holds ``lock``, or raise `ResumeError` where another process does."""
    while True:
        handle = os.open(lock, os.O_CREAT | os.O_RDWR)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(handle)
            raise ResumeError(
                "another run is writing here",
                place=str(lock.parent),
                remedy="wait for it, or use another --out",
            ) from error
        if lock.exists() and os.fstat(handle).st_ino == lock.stat().st_ino:
            return handle
        os.close(handle)  # its holder removed it between our two calls


def unpublish(out: Path, report: Report) -> None:
    """Remove what says that a run is finished, the report first; its rasters in Zarr and its ledger stay."""
    for name in (*PRODUCTS, *report.outputs.values()):
        target = out / name
        if target.parent == out and target.is_file() and name != "items.json":
            target.unlink()


def _clear(out: Path) -> None:
    """Remove the products of a former run, and nothing else: only what a ledger or a report vouches for."""
    report = Report.read(out)
    if report is None and not (out / "ledger.jsonl").exists():
        return  # nobody vouches for anything: the folder is somebody else's
    for name in (*PRODUCTS, publishing.RECORDS, *(report.outputs.values() if report else ())):
        target = out / name
        if target.parent == out and target.is_file():
            target.unlink()
    for name in (publishing.ZARR, f"{publishing.ZARR}.partial", f"{publishing.RECORDS}.parts"):
        shutil.rmtree(out / name, ignore_errors=True)
    (out / "ledger.jsonl").unlink(missing_ok=True)

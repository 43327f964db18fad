"""SIGKILL at moments of the whole run: first lines of the ledger, shards, pyramid, COG, publication, report.

A moment is a change of the file system: the n-th file opened for writing, renamed, made or removed in the run's
folder. So every step of the end is hit, on any machine. The long form is `benchmarks/resume.py`.
"""

from __future__ import annotations

import random
import signal
from collections.abc import Iterator
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import write_tif
from victims import run, victim

from tilewright.errors import ResumeError
from tilewright.pipeline.ledger import Ledger
from tilewright.pipeline.report import Report

pytestmark = pytest.mark.integration

FIRST, LAST = 4, 4
"""Moments at the beginning and at the end, most of what happens there."""
BETWEEN = 1
"""Moments among the shards."""


@pytest.fixture(scope="module")
def processes() -> Any:
    """Processes that have imported everything and run nothing: each starts in a moment."""
    context = get_context("forkserver")
    context.set_forkserver_preload(
        [
            "torch",
            "rasterio",
            "zarr",
            "odc.geo.geobox",
            "tilewright.api",
            "tilewright.pipeline.run",
            "commands",
        ]
    )
    return context


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = np.random.default_rng(8).random((1, 700, 700), dtype="float32")
    return write_tif(tmp_path_factory.mktemp("scene") / "scene.tif", data, tiled=True)


def started(processes: Any, scene: Path, out: Path, at: int) -> tuple[BaseProcess, int]:
    """Run a victim to its end; return it and how many changes it had made."""
    counted = processes.Value("i", 0, lock=False)
    process = processes.Process(target=victim, args=(str(scene), str(out), at, counted))
    process.start()
    process.join(120)
    return process, counted.value


def moments(total: int) -> Iterator[int]:
    """Yield the numbers of the changes at which to kill, by a fixed seed."""
    chance = random.Random(11)
    yield from range(1, FIRST + 1, 2)
    yield from sorted(chance.sample(range(FIRST + 1, total - 3 * LAST), BETWEEN))
    yield from sorted(chance.sample(range(total - 3 * LAST, total - 2), LAST))


def test_killed_at_any_change_of_the_file_system(processes: Any, scene: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    process, total = started(processes, scene, whole, -1)
    assert process.exitcode == 0
    expected, cog = Report.read(whole), (whole / "o.tif").read_bytes()
    assert expected is not None
    seen = set()
    for at in moments(total):
        out = tmp_path / f"killed-{at}"
        process, _ = started(processes, scene, out, at)
        assert process.exitcode == -signal.SIGKILL, at
        finished = Report.read(out)
        seen.add((out / "result.zarr").exists())
        if finished is not None:  # only its lock was left to remove
            assert finished.digest == expected.digest
            assert (out / "o.tif").exists()
        if (out / "o.tif").exists():
            assert (out / "o.tif").read_bytes() == cog, "a reader never sees half of a COG"
        kept = finished_shards(out)
        report = run(str(scene), str(out))
        assert report.digest == expected.digest, at
        assert (out / "o.tif").read_bytes() == cog, at
        assert report.shards_reused == len(kept), "finished shards are not computed again"
        assert {k: Ledger.read(out).entries[k] for k in kept} == kept
        assert names(out) == names(whole), "nothing that the dead process left behind stays"
    assert seen == {True, False}, "before and after the moment at which the Zarr is published"


def finished_shards(out: Path) -> dict[str, Any]:
    try:
        return dict(Ledger.read(out).entries)
    except ResumeError:
        return {}  # dead before the first line was whole


def names(out: Path) -> list[str]:
    return sorted(path.name for path in out.iterdir())

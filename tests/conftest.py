"""Fixtures that several test folders use, and what every test must keep: the promise of memory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tilewright.pipeline.report import Report

_BROKEN: list[str] = []
"""Runs of this process that took more memory than their plan had promised."""


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real imagery beside the checkout; tests that need it skip where it is absent."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the folder of real imagery is absent")
    return folder


def pytest_configure() -> None:
    """Look at every report that this process writes, fixtures of modules and sessions included."""
    write = Report.write

    def watched(self: Report, folder: Path) -> Path:
        _BROKEN.extend(_over(self.title, self.peak_rss_bytes, self.projected_memory_bytes))
        return write(self, folder)

    Report.write = watched  # type: ignore[method-assign]


def _over(title: str, peak: int, projected: int) -> Iterator[str]:
    if peak > projected:
        yield f"run {title!r}: peak {peak / 2**20:,.0f} MiB, projected {projected / 2**20:,.0f} MiB"


@pytest.fixture(autouse=True)
def _memory_is_as_projected(request: pytest.FixtureRequest) -> Iterator[None]:
    """Promise 1: no run takes more memory than its plan said, whatever a test runs it for.

    Reports of other processes are looked for in the test's own folder.
    """
    folder = request.getfixturevalue("tmp_path") if "tmp_path" in request.fixturenames else None
    yield
    broken, _BROKEN[:] = list(_BROKEN), []
    if folder is not None:
        for path in folder.rglob("report.json"):
            said = json.loads(path.read_text())
            if {"peak_rss_bytes", "projected_memory_bytes"} <= said.keys():
                broken += _over(
                    f"{said['title']} ({path})", said["peak_rss_bytes"], said["projected_memory_bytes"]
                )
    assert not broken, broken

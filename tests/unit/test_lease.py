"""The lock of a folder: one owner at a time, an end, and nobody who waits for the dead or for a wrong clock."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tilewright.errors import ResumeError
from tilewright.pipeline.lease import LIFETIME, NAME, Lease


def lock_of(folder: Path, **changes: Any) -> None:
    """Leave the lock of another machine in a folder."""
    until = datetime.now(UTC) + LIFETIME / 2
    lock = {"owner": "elsewhere 1", "pid": os.getpid(), "machine": "elsewhere", "until": until.isoformat()}
    folder.mkdir(exist_ok=True)
    (folder / NAME).write_text(json.dumps({**lock, **changes}))


def lease(folder: Path, owner: str = "here 1") -> Lease:
    return Lease(None, str(folder), owner=owner)


def test_a_second_owner_is_kept_out_until_the_first_leaves(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "region"
    with lease(folder):
        with pytest.raises(ResumeError, match=r"another run is writing here, on here \(process \d+\).*until"):
            lease(folder, "here 2").__enter__()
        with lease(tmp_path / "other", "here 2"):
            pass
    assert not (folder / NAME).exists()
    with lease(folder, "here 2"):
        assert json.loads((folder / NAME).read_text())["owner"] == "here 2"


def test_the_lock_of_another_machine_holds_until_its_end(tmp_path: Path) -> None:
    lock_of(tmp_path)
    with pytest.raises(ResumeError, match="on elsewhere"):
        lease(tmp_path).__enter__()
    lock_of(tmp_path, until=(datetime.now(UTC) - timedelta(seconds=1)).isoformat())
    with lease(tmp_path):
        pass


def test_a_clock_that_was_put_back_keeps_nobody_waiting(tmp_path: Path) -> None:
    """The lock was written when the clock was a day ahead, so by today's it would hold for a day."""
    lock_of(tmp_path, until=(datetime.now(UTC) + timedelta(days=1)).isoformat())
    with lease(tmp_path):
        pass
    lock_of(tmp_path, until=(datetime.now(UTC) + LIFETIME + timedelta(minutes=1)).isoformat())
    with pytest.raises(
        ResumeError
    ):  # another machine's clock is a minute ahead of ours: that is no wrong clock
        lease(tmp_path).__enter__()


def test_a_dead_process_of_this_machine_is_not_waited_for(tmp_path: Path) -> None:
    code = (
        "import os, sys; from tilewright.pipeline.lease import Lease;"
        f"Lease(None, {str(tmp_path)!r}, owner='here dead').__enter__(); os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert json.loads((tmp_path / NAME).read_text())["owner"] == "here dead"
    with lease(tmp_path):
        assert json.loads((tmp_path / NAME).read_text())["owner"] == "here 1"


def test_of_many_that_take_over_at_once_one_gets_it(tmp_path: Path) -> None:
    lock_of(tmp_path, until=(datetime.now(UTC) - timedelta(seconds=1)).isoformat())
    code = (
        "import sys, time; from tilewright.pipeline.lease import Lease; from tilewright.errors import ResumeError\n"
        "sys.stdin.readline()\n"
        f"one = Lease(None, {str(tmp_path)!r}, owner=sys.argv[1])\n"
        "try:\n    one.__enter__()\nexcept ResumeError:\n    print('kept out', flush=True)\n"
        "else:\n    print('got it', flush=True)\n"
        "sys.stdin.readline()\n"
    )
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    many = [subprocess.Popen([sys.executable, "-c", code, f"here {i}"], **pipes) for i in range(4)]
    for one in many:
        one.stdin.write("go\n")
        one.stdin.flush()
    told = [one.stdout.readline().strip() for one in many]
    for one in many:
        one.communicate("end\n", timeout=20)
    assert sorted(told) == ["got it", "kept out", "kept out", "kept out"]

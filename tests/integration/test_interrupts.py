"""Ctrl-C and SIGTERM, sent to a real process: what it says, with what it ends, and that the same command goes on."""

from __future__ import annotations

import fcntl
import json
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from commands import command, write_tif

SLOW = """
import time

import tilewright

CALLS = []


@tilewright.kernel(inputs={"image": {"bands": 1}}, radius=0, outputs={"o": {"kind": "value"}})
def slow(x):
    if float(x.abs().sum()):
        time.sleep(0.1)
    return 2 * x
"""
STUCK = """
import hashlib
from tilewright.cli import main
from tilewright.pipeline.cog import CogWriter

def stuck(*_args, **_keys):
    print("the library has the thread", flush=True)
    # As a long call of GDAL: no step of Python until it is over, and no signal ends it.
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)

CogWriter.finish = stuck
main()
"""
SHARDS = 25


@pytest.fixture
def asked(tmp_path: Path) -> list[str]:
    """A command of 25 shards that takes three seconds or more."""
    (tmp_path / "mine.py").write_text(SLOW)
    image = write_tif(tmp_path / "image.tif", np.ones((1, 80, 80), "float32"))
    sizes = ["--tile", "16", "--shard", "16", "--batch", "1", "--threads", "1"]
    return ["apply", f"{tmp_path}/mine.py:slow", str(image), "--out", str(tmp_path / "out"), *sizes]


class Started:
    """A command in a process of its own, whose lines are read as they come."""

    def __init__(self, arguments: list[str], code: str = "from tilewright.cli import main; main()") -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.killer = threading.Timer(150, self.process.kill)
        self.killer.daemon = True
        self.killer.start()

    def wait_for(self, words: str) -> None:
        """Read until a line holds ``words``."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if words in line:
                return
        raise AssertionError(self.process.stderr.read() if self.process.stderr else "")

    def end(self) -> tuple[int, list[str]]:
        """Return the exit status and the lines of the standard error."""
        _, err = self.process.communicate()
        self.killer.cancel()
        return self.process.returncode, [line for line in err.splitlines() if line]


def lines_of(out: Path) -> int:
    return sum("shard" in json.loads(line) for line in (out / "ledger.jsonl").read_text().splitlines())


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_says_how_to_go_on(
    asked: list[str], tmp_path: Path, sent: signal.Signals, status: int
) -> None:
    out, started = tmp_path / "out", Started(asked)
    started.wait_for(" of 25 shards")
    started.process.send_signal(sent)
    ended, said = started.end()
    kept = lines_of(out)
    assert 0 < kept < SHARDS
    assert said == [
        "tilewright: stopping: what is being written is finished first; a second Ctrl-C ends at once",
        f"tilewright: interrupted: {kept} of {SHARDS} shards are kept; the same command goes on",
    ]
    assert ended == status
    assert not (out / ".lock").exists()
    assert not (out / "report.json").exists()
    if sent == signal.SIGTERM:
        return
    done = command(*asked)
    assert (done.status, done.err) == (0, "")
    assert f"({kept} kept from before)" in done.out


def test_a_second_ctrl_c_ends_at_once_even_inside_a_library_at_the_end_of_a_run(
    asked: list[str], tmp_path: Path
) -> None:
    """All shards are durable, and a COG is being written: the thread of Python hears no signal."""
    out, started = tmp_path / "out", Started([*asked, "--shard", "80"], STUCK)
    started.wait_for("the library has the thread")
    started.process.send_signal(signal.SIGINT)
    assert started.process.stderr is not None
    assert "second Ctrl-C" in started.process.stderr.readline()
    assert started.process.poll() is None
    started.process.send_signal(signal.SIGINT)
    assert started.end() == (130, [])
    with (out / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the file stayed, and nobody holds it


def test_ctrl_c_at_the_end_of_a_run(asked: list[str], tmp_path: Path) -> None:
    out, started = (
        tmp_path / "out",
        Started([*asked, "--shard", "80"], STUCK.replace("10**9", "3 * 10**6")),
    )
    started.wait_for("the library has the thread")
    started.process.send_signal(signal.SIGINT)
    status, said = started.end()
    assert status == 130
    assert said[-1] == "tilewright: interrupted: 1 of 1 shards are kept; the same command goes on"
    assert not (out / "report.json").exists()
    assert not (out / ".lock").exists()
    assert not list(out.glob("*.tif"))


def test_a_kernel_that_raises_in_mid_run_ends_with_one_line(tmp_path: Path) -> None:
    """The probe's tiles of zeros pass; the line names the kernel, its file and the line that raised."""
    code = SLOW.replace("time.sleep(0.1)", 'raise ValueError(f"no place for {x.shape}")')
    (tmp_path / "mine.py").write_text(code)
    values = np.zeros((1, 96, 96), "float32")
    values[:, 80:] = 1
    image = write_tif(tmp_path / "image.tif", values)
    out = tmp_path / "out"
    done = command(
        "apply", f"{tmp_path}/mine.py:slow", image, "--out", out, "--tile", 16, "--shard", 16, "--batch", 1
    )
    number = next(i for i, line in enumerate(code.splitlines(), 1) if "raise ValueError" in line)
    assert "kernel slow" in done.line
    assert "its forward raises ValueError: no place for" in done.line
    assert f"(mine.py, line {number})" in done.line
    assert 0 < lines_of(out) < 36

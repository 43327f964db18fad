"""docs/production.md from top to bottom: every shell command of it, in order, on a server and a worker of its own."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from prefect_server import free_port

pytest.importorskip("prefect")
pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "production.md"
FENCE = re.compile(r"^```sh ?(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Terminal:
    """A folder with the environment that the commands before have left."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
        self.environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.background: list[subprocess.Popen[bytes]] = []

    def run(self, script: str) -> str:
        left = self.folder / ".environment"
        done = subprocess.run(
            ["bash", "-ec", f"{script}\nenv -0 > {left}"],
            cwd=self.folder, env=self.environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert done.returncode == 0, f"{script}\n{done.stdout}"
        self.environment = dict(pair.split("=", 1) for pair in left.read_text().split("\0") if pair)
        return done.stdout

    def start(self, script: str) -> None:
        log = (self.folder / f"background-{len(self.background)}.log").open("wb")
        self.background.append(
            subprocess.Popen(
                ["bash", "-c", f"exec {script.strip()}"],
                cwd=self.folder,
                env=self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        )

    def close(self) -> None:
        for process in reversed(self.background):
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def wait_until_well(url: str) -> None:
    for _ in range(120):
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return
        except OSError:
            time.sleep(1)
    raise AssertionError("the server is not well")


def test_every_command_of_the_page(tmp_path: Path) -> None:
    port = free_port()
    for name in ("examples", "data"):
        shutil.copytree(ROOT / name, tmp_path / name)
    terminal, outputs = Terminal(tmp_path), []
    try:
        for kind, script in FENCE.findall(PAGE.read_text()):
            script = script.replace("4200", str(port))
            if kind == "install":
                continue  # this very environment is what it makes
            if kind == "background":
                terminal.start(script)
                if "server start" in script:
                    wait_until_well(f"http://127.0.0.1:{port}/api")
                continue
            outputs.append(terminal.run(script))
    finally:
        terminal.close()
    told = "\n".join(outputs)
    assert (
        "deployment monitor/monitor in work pool tilewright: runs at `0 6 * * *` (UTC), any number at a time"
        in told
    )
    published = sorted(p.name for p in (tmp_path / "maps" / "catalog" / "reservoir").glob("*-*"))
    assert published == ["dam-2020-05", "dam-2020-05-18", "east-arm-2020-05", "east-arm-2020-05-18"]
    assert (tmp_path / "maps" / "mosaic" / "report.json").exists()

"""A real OpenAI-compatible server (transformers' own) with a tiny model answers through the policies."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from commands import command, refused, write_tif
from tiny_llava import save_tiny_llava

from tilewright.errors import KernelError
from tilewright.kernels.ask import LevelInfo, Scene, View
from tilewright.kernels.vlm.openai_answerer import OpenAIAnswerer
from tilewright.kernels.vlm.zoom import ZoomIn

pytestmark = [pytest.mark.integration, pytest.mark.slow]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """Address and name of a tiny LLaVA behind ``transformers serve``."""
    for package in ("transformers", "accelerate", "openai", "uvicorn"):
        pytest.importorskip(package)
    folder = tmp_path_factory.mktemp("served")
    model = save_tiny_llava(folder / "tiny-llava")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    command = [str(Path(sys.executable).with_name("transformers")), "serve", str(model)]
    options = ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with (folder / "log").open("w") as log:
        server = subprocess.Popen([*command, *options], stdout=log, stderr=log, env=environment)
        try:
            wait_for(f"http://127.0.0.1:{port}/health", server, folder / "log")
            yield f"http://127.0.0.1:{port}/v1", str(model)
        finally:
            server.terminate()
            server.wait(20)


def wait_for(address: str, server: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + 200
    while time.monotonic() < until and server.poll() is None:
        try:
            with urllib.request.urlopen(address, timeout=2):
                return
        except OSError:
            time.sleep(0.5)
    pytest.fail(f"the server did not start: {log.read_text()[-2000:]}")


def test_it_answers_about_a_picture(served: tuple[str, str]) -> None:
    address, name = served
    model = OpenAIAnswerer(name, address)
    picture = np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8)
    said = model.answer([picture], "how many ships ?", 5)
    assert 0 < len(said.split()) <= 5
    assert said == model.answer([picture], "how many ships ?", 5)


def test_it_answers_through_a_policy(served: tuple[str, str]) -> None:
    address, name = served
    policy = ZoomIn(OpenAIAnswerer(name, address), min_pixels=3136, max_pixels=3136, max_tokens=4)
    pixels = np.random.default_rng(1).integers(0, 255, (3, 200, 300), np.uint8)
    asking = policy.ask("how many ships ?", Scene((LevelInfo(1, (200, 300)),), ("red", "green", "blue")))
    (request,) = next(asking)
    window = pixels[:, request.row0 : request.row1, request.col0 : request.col1]
    with pytest.raises(StopIteration) as done:
        asking.send([View(request, window, np.ones(window.shape[1:], bool))])
    answer = done.value.value
    assert answer.text
    assert answer.trace["answerer"] == f"{name} at {address[7:-3]}"


def test_its_refusal_is_one_line(served: tuple[str, str]) -> None:
    address, _ = served
    with pytest.raises(KernelError, match=r"answered HTTP 4.*no-such-model") as caught:
        OpenAIAnswerer("no-such-model", address).answer([], "how many ?", 5)
    assert "\n" not in str(caught.value)


def test_it_answers_the_command(served: tuple[str, str], tmp_path: Path) -> None:
    """The whole chain from the command line: image, policy, server, evidence; and a dialogue of two turns."""
    address, name = served
    pixels = np.random.default_rng(2).integers(0, 255, (3, 300, 400), np.uint8)
    image = write_tif(tmp_path / "image.tif", pixels, names=("red", "green", "blue"))
    (tmp_path / "questions.txt").write_text("how many ships ?\nare there two ?\n")
    model = ["--answerer", f"openai:{name}@{address}", "--answerer-set", "timeout=100"]
    small = ["--set", "min_pixels=3136", "--set", "max_pixels=3136", "--set", "max_tokens=4"]
    out = tmp_path / "out"
    done = command(
        "ask",
        image,
        "--dialogue",
        tmp_path / "questions.txt",
        "--policy",
        "zoom-in",
        *model,
        *small,
        "--out",
        out,
    )
    assert done.status in (0, None), done
    traces = json.loads((out / "trace.json").read_text())
    assert [trace["turns_before"] for trace in traces] == [0, 1]
    assert all(trace["answer"] and trace["answerer"] == f"{name} at {address[7:-3]}" for trace in traces)
    assert (out / "turn-2" / "evidence.geojson").is_file()
    done = command("ask", image, "how many ships ?", *model, "--set", "max_tokens=4", "--json")
    assert done.status in (0, None), done
    (trace,) = json.loads(done.out)
    assert (trace["policy"], bool(trace["answer"])) == ("retrieval", True)


def test_the_command_says_what_the_server_refuses(served: tuple[str, str], tmp_path: Path) -> None:
    address, _ = served
    image = write_tif(tmp_path / "image.tif", np.zeros((3, 64, 64), np.uint8), names=("red", "green", "blue"))
    answerer = f"openai:no-such-model@{address}"
    line = refused(
        "ask", image, "how many ?", "--policy", "zoom-in", "--answerer", answerer, out=tmp_path / "out"
    )
    assert "answered HTTP 4" in line
    assert "no-such-model" in line

"""Answerers against a server on loopback that answers, refuses, stalls and lies, and a tiny model in a folder."""

from __future__ import annotations

import base64
import io
import json
import pickle
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import numpy as np
import pytest
from chat_server import Reply, Server, dripping, raw, said, silent
from tiny_llava import save_tiny_llava

from tilewright.errors import KernelError
from tilewright.kernels.vlm.answerers import Talker, Turn, converse
from tilewright.kernels.vlm.local_answerer import TransformersAnswerer
from tilewright.kernels.vlm.openai_answerer import OpenAIAnswerer

SECRET = "sk-very-secret"
PICTURE = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


def test_a_question_with_pictures(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    monkeypatch.setenv("MY_KEY", f"{SECRET}\n")
    model = server.answerer(said("two ships"), key_variable="MY_KEY")
    assert model.answer([PICTURE], "How many ships?", 7) == "two ships"
    ((path, headers, body),) = server.requests
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == f"Bearer {SECRET}"
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("tiny", 7, 0)
    shown, asked = body["messages"][0]["content"]
    assert asked == {"type": "text", "text": "How many ships?"}
    kind, _, data = shown["image_url"]["url"].partition(",")
    assert kind == "data:image/png;base64"
    assert (np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))) == PICTURE).all()


def test_a_dialogue_keeps_its_turns(server: Server) -> None:
    model = server.answerer(said([{"type": "text", "text": "grass"}]))
    assert isinstance(model, Talker)
    turns = [Turn("system", "Be short."), Turn("user", "What?", (PICTURE,)), Turn("assistant", "?")]
    assert converse(model, [*turns, Turn("user", "Well?")]) == "grass"
    messages = server.requests[0][2]["messages"]
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user"]
    assert messages[3]["content"] == "Well?"
    assert "Authorization" not in server.requests[0][1]


def test_a_busy_server_is_asked_again(server: Server) -> None:
    model = server.answerer(raw(b"", 503), raw(b"{}", 429), said("yes"))
    assert model.answer([], "?") == "yes"
    assert len(server.requests) == 3


REFUSALS: dict[str, tuple[Reply, str]] = {
    "unauthorised": (
        raw(json.dumps({"error": {"message": f"bad key {SECRET}"}}).encode(), 401),
        "HTTP 401: bad key ***",
    ),
    "no model": (raw(b'{"detail": "no such\\nmodel"}', 404), "HTTP 404: no such model; check the address"),
    "no pictures": (raw(b'{"error": "text only"}', 400), "HTTP 400: text only; does the model take pictures"),
    "a page": (raw(b"<html>hello</html>", 500), "HTTP 500; look at"),
    "busy for ever": (raw(b"", 429), "HTTP 429; wait"),
    "elsewhere": (raw(b"", 302, Location="http://127.0.0.1:1/"), "HTTP 302"),
    "no JSON": (raw(b"<html>hello</html>"), "something else than a chat completion: '<html>hello</html>'"),
    "no choices": (raw(b'{"choices": []}'), "something else than a chat completion"),
    "a list": (raw(b"[1]"), "something else than a chat completion"),
    "no message": (raw(b'{"choices": [{"message": "hi"}]}'), "something else than a chat completion"),
    "filtered": (said("", "content_filter"), "refused to answer: its content filter"),
    "refused": (said(None, refusal="I will not"), "refused to answer: I will not"),
    "empty": (said(" ", "length"), "empty answer (finish_reason 'length'); allow more tokens"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_goes_wrong_is_one_line_without_the_key(
    server: Server, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", SECRET)
    reply, message = REFUSALS[name]
    model = server.answerer(reply, key_variable="MY_KEY")
    with pytest.raises(KernelError) as caught:
        model.answer([PICTURE], "?")
    text = str(caught.value)
    assert message in text
    assert text.startswith(f"answerer tiny at 127.0.0.1:{server.http.server_port}: ")
    assert "\n" not in text
    assert SECRET not in text
    assert SECRET.encode() not in pickle.dumps(model) + repr(model).encode()


@pytest.mark.parametrize("reply", [silent, dripping])
def test_a_slow_server_is_given_up(server: Server, reply: Reply) -> None:
    model = server.answerer(reply, timeout=0.4)
    start = time.monotonic()
    with pytest.raises(KernelError, match=r"did not answer within 0.4 s; raise the timeout"):
        model.answer([], "?")
    assert time.monotonic() - start < 1.4


def test_a_server_that_breaks_off(server: Server) -> None:
    def breaks(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        handler.wfile.write(b'{"choices"')

    with pytest.raises(KernelError, match=r"cannot be reached|something else than"):
        server.answerer(breaks).answer([], "?")


def test_an_endless_answer_is_refused(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tilewright.kernels.vlm.openai_answerer._MOST_BYTES", 2**20)
    with pytest.raises(KernelError, match="more than 1 MiB"):
        server.answerer(raw(b" " * 2**21)).answer([], "?")


def test_a_server_that_is_away() -> None:
    model = OpenAIAnswerer("tiny", "http://127.0.0.1:9/v1", pause=0.01)
    with pytest.raises(KernelError, match=r"cannot be reached: .*refused.*is the server running"):
        model.answer([], "?")


def test_an_absent_key_is_named_by_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MY_KEY", raising=False)
    model = OpenAIAnswerer("tiny", "http://127.0.0.1:9/v1", key_variable="MY_KEY")
    with pytest.raises(KernelError, match="the variable MY_KEY is empty"):
        model.answer([], "?")


@pytest.mark.parametrize(
    "address",
    [
        "localhost:8000",
        "file:///etc/passwd",
        "http://me:key@host/v1",
        "http://host/v1?key=x",
        "http://",
        "http://[",
    ],
)
def test_addresses_that_are_none_or_hold_a_key(address: str) -> None:
    with pytest.raises(KernelError, match="the address is not one") as caught:
        OpenAIAnswerer("tiny", address)
    assert "me:key" not in str(caught.value)


@pytest.fixture(scope="module")
def tiny_llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("transformers")
    return save_tiny_llava(tmp_path_factory.mktemp("tiny") / "tiny-llava")


def test_a_model_in_a_folder_answers(tiny_llava: Path) -> None:
    model = TransformersAnswerer(tiny_llava)
    picture = np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8)
    first = model.answer([picture], "how many ships ?", 5)
    assert (
        first
        == model.answer([picture], "how many ships ?", 5)
        == TransformersAnswerer(tiny_llava).answer([picture], "how many ships ?", 5)
    )
    assert 0 < len(first.split()) <= 5
    turns = [
        Turn("user", "how many ?", (picture,)),
        Turn("assistant", "two"),
        Turn("user", "there ?", (picture,)),
    ]
    assert converse(model, turns, 3)
    assert model.name == "tiny-llava"


def test_folders_that_are_not_loaded(tiny_llava: Path, tmp_path: Path) -> None:
    with pytest.raises(KernelError, match=r"no readable config.json"):
        TransformersAnswerer(tmp_path).answer([], "?")
    config = json.loads((tiny_llava / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(KernelError, match="no safetensors; convert its weights; pickles are not loaded"):
        TransformersAnswerer(tmp_path).answer([], "?")
    (tmp_path / "model.safetensors").write_bytes((tiny_llava / "model.safetensors").read_bytes())
    (tmp_path / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "code.Model"}}))
    with pytest.raises(KernelError, match="wants to run code of its own"):
        TransformersAnswerer(tmp_path).answer([], "?")
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "nothing"}))
    with pytest.raises(KernelError, match="does not load"):
        TransformersAnswerer(tmp_path).answer([], "?")

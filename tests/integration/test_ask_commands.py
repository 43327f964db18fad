"""`tilewright ask` with every policy: models on a server, in a folder or none, dialogues, and what goes wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from chat_server import Reply, Server, raw, said, silent
from commands import command, refused, write_tif
from tiny_llava import save_tiny_llava

from tilewright.pipeline.search import VectorIndex

SECRET = "sk-very-secret"
FAST = ("--answerer-set", "pause=0.01", "--answerer-set", "timeout=5")


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dark green ground with two smooth dark blue parts, as a picture of eight bits with pixels of 30 m."""
    rng = np.random.default_rng(0)
    pixels = rng.normal(0, 6, (3, 512, 640)) + np.array([45, 65, 70])[:, None, None]
    for rows, cols in ((slice(64, 192), slice(64, 192)), (slice(320, 448), slice(384, 512))):
        pixels[:, rows, cols] = rng.normal(0, 1, (3, 128, 128)) + np.array([35, 60, 85])[:, None, None]
    path = tmp_path_factory.mktemp("ground") / "ground.tif"
    return write_tif(path, pixels.clip(0, 255).astype("uint8"), names=("red", "green", "blue"))


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


def chat(server: Server, *replies: Reply) -> str:
    """Return what ``--answerer`` takes, after the server was told what to say."""
    server.replies = list(replies)
    return f"openai:tiny@{server.url}"


def asked(*arguments: Any) -> list[dict[str, Any]]:
    """Run a question that is answered, and return the traces of its turns."""
    done = command("ask", *arguments, "--json")
    assert done.status in (0, None), done
    traces: list[dict[str, Any]] = json.loads(done.out)
    return traces


def test_the_zoom_chain_through_a_server(server: Server, ground: Path, tmp_path: Path) -> None:
    call = '<tool_call>\n{"name": "image_zoom_in", "arguments": {"bbox": [10, 10, 100, 100]}}\n</tool_call>'
    model = chat(server, said(call), said("a lake"))
    (trace,) = asked(
        ground, "What is at the top left?", "--policy", "zoom-in", "--answerer", model, "--set", "max_pixels=50_000",
        "--out", tmp_path / "answer",
    )  # fmt: skip
    assert (trace["policy"], trace["answer"], trace["zoomed"]) == ("zoom-in", "a lake", True)
    assert trace["overview"][0] * trace["overview"][1] <= 50_000
    assert trace["answerer"] == f"tiny at {server.url[7:-3]}"
    first, second = (body["messages"] for _, _, body in server.requests)
    assert [message["role"] for message in first] == ["system", "user"]
    assert [message["role"] for message in second] == ["system", "user", "assistant", "user"]
    places = json.loads((tmp_path / "answer" / "evidence.geojson").read_text())["features"]
    assert [place["properties"]["label"] for place in places] == ["zoom"]
    assert json.loads((tmp_path / "answer" / "trace.json").read_text()) == [trace]


def test_an_answerer_alone_is_shown_what_retrieval_finds(server: Server, ground: Path) -> None:
    model = chat(server, said("['sea or lake']"), said("two lakes"))
    (trace,) = asked(ground, "How many lakes are there?", "--answerer", model, "--set", "threshold=0.01")
    assert (trace["policy"], trace["answer"], trace["keywords"]) == (
        "retrieval",
        "two lakes",
        ["sea or lake"],
    )
    assert trace["cues"] > 0
    shown = server.requests[1][2]["messages"][-1]["content"]
    assert sum(part["type"] == "image_url" for part in shown) == trace["shown"] > 1


def test_a_dialogue_tells_the_model_what_was_said(
    server: Server, ground: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", SECRET)
    (tmp_path / "questions.txt").write_text("What is there?\nHow large is it?\n")
    model = chat(server, said("a lake"), said("large"))
    done = command(
        "ask", ground, "--dialogue", tmp_path / "questions.txt", "--policy", "zoom-in", "--answerer", model,
        "--answerer-set", "key_variable=MY_KEY", "--out", tmp_path / "out",
    )  # fmt: skip
    assert done.status in (0, None), done
    assert "> How large is it?\nlarge\n" in done.out
    messages = server.requests[1][2]["messages"]
    assert [(message["role"], message["content"]) for message in messages[1:3]] == [
        ("user", "What is there?"),
        ("assistant", "a lake"),
    ]
    assert messages[3]["role"] == "user"
    assert all(headers["Authorization"] == f"Bearer {SECRET}" for _, headers, _ in server.requests)
    traces = json.loads((tmp_path / "out" / "trace.json").read_text())
    assert [trace["turns_before"] for trace in traces] == [0, 1]
    written = [path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len(written) == 5
    assert not any(SECRET.encode() in content for content in written)
    assert SECRET not in done.out + done.err


def test_a_dialogue_with_find(ground: Path, tmp_path: Path) -> None:
    (tmp_path / "questions.txt").write_text(
        "How many lakes are there?\nand the forests?\nhow large are the lakes?\n"
        "is there a lake in the second one?\n"
    )
    traces = asked(
        ground, "--dialogue", tmp_path / "questions.txt", "--out", tmp_path / "out",
        "--set", "candidates=8", "--set", "references=16",
    )  # fmt: skip
    assert [(trace["text"], trace["asked"]) for trace in traces] == [
        ("lakes", "count"),
        ("forests", "count"),
        ("lakes", "area"),
        ("lake", "where"),
    ]
    count, _, area, last = traces
    assert count["found"] == 2
    assert count["answer"].startswith("2 places stand out as 'lakes'")
    assert "no language model was asked" in count["answer"]
    assert area["area_m2"] == pytest.approx(2 * (128 * 30) ** 2, rel=0.01)
    assert f"{area['area_m2'] / 1e6:.3g} km2" in area["answer"]
    (box,) = last["within"]
    places = json.loads((tmp_path / "out" / "turn-3" / "evidence.geojson").read_text())["features"]
    assert box == places[1]["properties"]["pixels"]
    for place in json.loads((tmp_path / "out" / "turn-4" / "evidence.geojson").read_text())["features"]:
        col0, row0, col1, row1 = place["properties"]["pixels"]
        assert box[0] <= (col0 + col1) / 2 <= box[2]
        assert box[1] <= (row0 + row1) / 2 <= box[3]


def test_retrieval_takes_the_patches_of_an_index(ground: Path, tmp_path: Path) -> None:
    index = tmp_path / "index"
    assert command("index", ground, "--out", index, "--json").status in (0, None)
    (trace,) = asked(
        ground, "Where is the sea or lake?", "--index", index, "--set", "keywords=[sea or lake]",
        "--set", "threshold=0.01", "--out", tmp_path / "answer",
    )  # fmt: skip
    rows = json.loads((index / "index.json").read_text())["rows"]
    assert (trace["policy"], trace["patches"], trace["embedded_before"]) == ("retrieval", rows, True)
    assert trace["steps"] == 1  # the overview alone is read
    records = pq.read_table(next(index.glob("records-*.parquet"))).to_pylist()
    tiles = {tuple(row[name] for name in ("col0", "row0", "col1", "row1")) for row in records}
    places = json.loads((tmp_path / "answer" / "evidence.geojson").read_text())["features"]
    assert places
    assert {tuple(place["properties"]["pixels"]) for place in places} <= tiles


def test_a_model_in_a_folder_answers_a_dialogue(ground: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    folder = save_tiny_llava(tmp_path / "tiny-llava")
    (tmp_path / "questions.txt").write_text("how many ships ?\nare there two ?\n")
    traces = asked(
        ground, "--dialogue", tmp_path / "questions.txt", "--policy", "zoom-in", "--answerer", folder,
        "--set", "min_pixels=3136", "--set", "max_pixels=3136", "--set", "max_tokens=4",
    )  # fmt: skip
    assert [trace["turns_before"] for trace in traces] == [0, 1]
    assert all(trace["answer"] and trace["answerer"] == "tiny-llava" for trace in traces)
    line = refused(
        "ask", ground, "how many ?", "--policy", "zoom-in", "--answerer", folder,
        "--answerer-set", "device=cuda:9", out=tmp_path / "out",
    )  # fmt: skip
    assert "cannot be put on cuda:9" in line


def test_token_pruning_of_an_untrained_model(ground: Path) -> None:
    pytest.importorskip("transformers")
    (trace,) = asked(
        ground,
        "Where?",
        "--policy",
        "lrs-vqa",
        "--untrained",
        "--set",
        "share=0.5",
        "--set",
        "answer_tokens=2",
    )
    assert trace["policy"] == "lrs-vqa"
    assert trace["visual_tokens"] < trace["of_visual_tokens"]


FAILURES: dict[str, tuple[Reply, str]] = {
    "unauthorised": (
        raw(json.dumps({"error": {"message": f"bad key {SECRET}"}}).encode(), 401),
        "HTTP 401: bad key ***; check the key in the variable",
    ),
    "busy": (raw(b"", 429), "HTTP 429; wait, or ask less often"),
    "broken": (raw(b"<html>oops</html>", 500), "HTTP 500; look at the server's log"),
    "malformed": (raw(b'{"choices": [{'), "something else than a chat completion"),
    "no choices": (raw(b'{"choices": []}'), "something else than a chat completion"),
    "refused": (said(None, refusal="I will not"), "refused to answer: I will not; ask in other words"),
    "empty": (said("", "length"), "sent an empty answer (finish_reason 'length'); allow more tokens"),
}


@pytest.mark.parametrize("policy", ["zoom-in", "retrieval"])
@pytest.mark.parametrize("name", FAILURES)
def test_what_goes_wrong_with_a_server_is_one_line(
    server: Server, ground: Path, tmp_path: Path, name: str, policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", SECRET)
    reply, words = FAILURES[name]
    line = refused(
        "ask", ground, "What is there?", "--policy", policy, "--answerer", chat(server, reply), *FAST,
        "--answerer-set", "key_variable=MY_KEY", out=tmp_path / "out",
    )  # fmt: skip
    assert line.startswith(f"answerer tiny at {server.url[7:-3]}: ")
    assert words in line
    assert SECRET not in line


def test_a_silent_server_is_given_up(server: Server, ground: Path, tmp_path: Path) -> None:
    line = refused(
        "ask", ground, "What is there?", "--policy", "zoom-in", "--answerer", chat(server, silent),
        "--answerer-set", "timeout=0.3", out=tmp_path / "out",
    )  # fmt: skip
    assert "did not answer within 0.3 s; raise the timeout" in line


def test_a_dialogue_that_breaks_off_writes_nothing(server: Server, ground: Path, tmp_path: Path) -> None:
    (tmp_path / "questions.txt").write_text("What is there?\nHow large is it?\n")
    done = command(
        "ask", ground, "--dialogue", tmp_path / "questions.txt", "--policy", "zoom-in",
        "--answerer", chat(server, said("a lake"), raw(b"", 404)), "--out", tmp_path / "out",
    )  # fmt: skip
    assert "HTTP 404" in done.line
    assert "a lake" in done.out
    assert not (tmp_path / "out").exists()


AWAY = "openai:tiny@http://127.0.0.1:9/v1"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--policy", "fnd"], "unknown policy 'fnd'; did you mean 'find'?"),
        (["--policy", "zoom-in"], "policy zoom-in: it needs a language model; give one by --answerer"),
        (["--policy", "find", "--answerer", AWAY], "it has no use for an answerer; leave it out, or take --policy"),
        (["--policy", "zoom-in", "--answerer", AWAY, "--embedder", "eurosat"], "it has no use for an embedder"),
        (["--policy", "zoom-in", "--answerer", AWAY, "--weights", "a.pt"], "it has no use for weights"),
        (["--policy", "lrs-vqa"], "it has no weights, so its answers would be noise; give --weights"),
        (["--policy", "lrs-vqa", "--weights", "nowhere"], "nowhere"),
        (["--embedder", "remoteclip-rn50"], "it has no weights, so its answers would be noise"),
        (["--embedder", "tinycd"], "embeds neither pictures nor texts"),
        (["--set", "shar=0.1"], "unknown option 'shar'; did you mean 'share'?"),
        (["--set", "share=much"], "policy find, option share: 'much': "),
        (["--set", "share"], "--set: 'share' is no option; write key=value"),
        (["--policy", "retrieval", "--set", "cut=gird"], "did you mean 'grid'"),
        (["--policy", "zoom-in", "--answerer", AWAY, "--set", "parse=loose"], "option parse: 'loose': "),
        (["--policy", "zoom-in", "--answerer", AWAY, "--set", "renderings=ndvy"], "unknown rendering 'ndvy'"),
        (["--answerer", AWAY, *FAST], "cannot be reached: "),
        (["--answerer", "openai:tiny"], "write openai:MODEL@URL"),
        (["--answerer", "openai:tiny@localhost:11434"], "write openai:MODEL@URL"),
        (["--answerer", "openai:tiny@http://me:key@host/v1"], "the address is not one"),
        (["--answerer", "gpt"], "there is no folder 'gpt'; write none, openai:MODEL@URL"),
        (["--answerer", "FOLDER"], "has no readable config.json"),
        (["--answerer", "hf://nobody"], "names no repository of the hub"),
        (["--answerer", AWAY, "--answerer-set", "timeot=3"], "unknown option 'timeot'; did you mean 'timeout'?"),
        (["--answerer", AWAY, "--answerer-set", "timeout=0"], "the timeout is above 0"),
        (["--answerer", AWAY, "--answerer-set", "key_variable=sk-1"], "no name of an environment variable"),
        (["--answerer", AWAY, "--answerer-set", "key_variable=NOT_SET_AT_ALL"], "NOT_SET_AT_ALL is empty"),
        (["--answerer-set", "timeout=3"], "'timeout' is no option of it; name an answerer"),
        (["--index", "nowhere"], "there is no index"),
        (["--policy", "find", "--index", "INDEX"], "it has no use for an index"),
        (["--index", "INDEX", "--bands", "3,2,1"], "does not hold this image with these bands"),
        (["--index", "INDEX", "--embedder", "eurosat"], "an index brings its embedder"),
        (["--index", "INDEX", "--set", "low=3"], "takes no 'low'"),
    ],
)  # fmt: skip
def test_bad_requests_are_one_line(
    arguments: list[str], words: str, ground: Path, tmp_path: Path, made_index: Path
) -> None:
    stands = {"FOLDER": str(tmp_path), "INDEX": str(made_index)}
    given = [stands.get(argument, argument) for argument in arguments]
    assert words in refused("ask", ground, "Where is the lake?", *given, out=tmp_path / "out")


@pytest.fixture(scope="module")
def made_index(ground: Path) -> Path:
    out = ground.parent / "index"
    assert command("index", ground, "--out", out, "--json").status in (0, None)
    return out


def test_the_finest_tiles_of_a_large_part_are_left_out(made_index: Path) -> None:
    found = VectorIndex(made_index)
    (part,) = found.parts
    levels = found.parts[part]["levels"]
    boxes, vectors = found.part_vectors(part)
    assert len(boxes) == len(vectors) == found.rows == sum(level["rows"] for level in levels)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    few, _ = found.part_vectors(part, most=levels[-1]["rows"] + levels[-2]["rows"])
    assert len(few) == levels[-1]["rows"] + levels[-2]["rows"]
    assert (few[:, 2] - few[:, 0]).max() == (boxes[:, 2] - boxes[:, 0]).max()
    assert len(found.part_vectors(part, most=0)[0]) == levels[-1]["rows"]


@pytest.mark.parametrize(
    ("questions", "words"),
    [
        ("how many are there?\n", "names nothing to look for; name the thing"),
        ("Where is the lake?\nis there a forest in the ninth one?\n", "there is no ninth place: the turn before found"),
    ],
)  # fmt: skip
def test_what_a_follow_up_cannot_mean(questions: str, words: str, ground: Path, tmp_path: Path) -> None:
    (tmp_path / "questions.txt").write_text(questions)
    done = command("ask", ground, "--dialogue", tmp_path / "questions.txt", "--out", tmp_path / "out")
    assert words in done.line
    assert not (tmp_path / "out").exists()


def test_an_answer_does_not_go_into_a_file(ground: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    assert "is a file; name a folder" in command("ask", ground, "lake", "--out", tmp_path / "out").line
    assert (tmp_path / "out").read_text() == "mine"

"""`index`, `search` and `ask` as commands, with the embedder that comes with the package."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
from commands import command, refused, write_tif


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dark green ground with a smooth dark blue part, as a picture of eight bits."""
    rng = np.random.default_rng(0)
    pixels = rng.normal(0, 6, (3, 320, 384)) + np.array([45, 65, 70])[:, None, None]
    pixels[:, 128:256, 192:320] = rng.normal(0, 1, (3, 128, 128)) + np.array([35, 60, 85])[:, None, None]
    path = tmp_path_factory.mktemp("ground") / "ground.tif"
    write_tif(path, pixels.clip(0, 255).astype("uint8"), names=("red", "green", "blue"))
    return path


@pytest.fixture(scope="module")
def index(ground: Path) -> Path:
    out = ground.parent / "index"
    done = command("index", ground, "--out", out, "--date", "2024-05-01", "--json")
    assert done.status in (0, None), done
    made = json.loads(done.out)
    assert made["vectors"] == made["new"] > 30
    return out


def test_the_same_command_again_adds_nothing(index: Path, ground: Path) -> None:
    made = json.loads(command("index", ground, "--out", index, "--date", "2024-05-01", "--json").out)
    assert made["new"] == 0


def test_an_index_says_what_it_does(ground: Path, tmp_path: Path) -> None:
    done = command("index", ground, "--out", tmp_path / "index", "--levels", "1")
    assert done.status in (0, None), done
    assert "1 of 1 shards" in done.out + done.err
    assert "vectors of 1 images" in done.out


def test_a_graph_is_made_used_and_dropped(index: Path, ground: Path) -> None:
    pytest.importorskip("usearch")
    again = ("index", ground, "--out", index, "--date", "2024-05-01")
    done = command(*again, "--approximate")
    assert done.status in (0, None), done
    assert "graph for approximate searches" in done.out
    assert "finds 100.0% of the 10 nearest" in done.out
    near = json.loads(command("search", index, "forest", "--json").out)
    every = json.loads(command("search", index, "forest", "--exact", "--json").out)
    assert (near["exact"], every["exact"]) == (False, True)
    found = [[one["properties"]["pixels"] for one in answer["features"]] for answer in (near, every)]
    assert found[0] == found[1]
    assert json.loads(command(*again, "--exact", "--json").out)["graph"] is None
    assert json.loads(command("search", index, "forest", "--json").out)["exact"]


def test_search_writes_geojson_and_a_sheet(index: Path, tmp_path: Path) -> None:
    done = command(
        "search", index, "sea or lake", "--levels", "0", "-n", "4", "--to", tmp_path / "hits.geojson",
        "--sheet", tmp_path / "hits.png", "--map", tmp_path / "map.png",
    )  # fmt: skip
    assert done.status in (0, None), done
    hits = json.loads((tmp_path / "hits.geojson").read_text())["features"]
    assert len(hits) == 4
    for hit in hits:
        col0, row0, col1, row1 = hit["properties"]["pixels"]
        assert 192 <= (col0 + col1) / 2 <= 320, hit
        assert 128 <= (row0 + row1) / 2 <= 256, hit
    assert (tmp_path / "hits.png").stat().st_size > 10_000
    with rasterio.open(tmp_path / "map.png") as drawn:  # the boxes' yellow lies where the lake is, on the map
        red, green, blue, _ = drawn.read().astype(int)
    yellow = np.argwhere((red > 230) & (green > 200) & (blue < 60))
    rows, cols = (yellow - (110 - 40, 20)).T  # the map begins below the words
    scale = max(360 / 384, 1.0)
    assert len(yellow) > 100
    assert (abs(np.median(cols) / scale - 256) < 70) & (abs(np.median(rows) / scale - 192) < 70)


def test_search_by_place_and_by_filter(index: Path) -> None:
    found = json.loads(command("search", index, "forest", "--levels", "0", "--json").out)["features"]
    ring = np.array(found[0]["geometry"]["coordinates"][0])
    lon, lat = ring[:-1].mean(axis=0)
    done = command("search", index, f"--like={lon},{lat}", "--json")
    assert done.status in (0, None), done
    like = json.loads(done.out)["features"]
    assert like[0]["properties"]["score"] > 0.999
    assert json.loads(command("search", index, "forest", "--dates", "2023", "--json").out)["features"] == []


def test_ask_writes_what_it_rests_on(ground: Path, tmp_path: Path) -> None:
    done = command("ask", ground, "Where is the lake?", "--out", tmp_path / "answer")
    assert done.status in (0, None), done
    assert "no language model" in done.out
    assert {path.name for path in (tmp_path / "answer").iterdir()} == {
        "evidence.geojson", "where.png", "trace.json",
    }  # fmt: skip
    (trace,) = json.loads((tmp_path / "answer" / "trace.json").read_text())
    assert trace["text"] == "lake"
    assert trace["bytes_read"] > 0


def test_a_dialogue_is_asked_in_turn(ground: Path, tmp_path: Path) -> None:
    (tmp_path / "questions.txt").write_text("# about water\nWhere is the lake?\n\nWhere is the forest?\n")
    done = command("ask", ground, "--dialogue", tmp_path / "questions.txt", "--out", tmp_path / "answers")
    assert done.status in (0, None), done
    traces = json.loads((tmp_path / "answers" / "trace.json").read_text())
    assert [trace["text"] for trace in traces] == ["lake", "forest"]
    assert (tmp_path / "answers" / "turn-2" / "where.png").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["search", "nowhere", "forest"], "there is no index"),
        (["search", "INDEX"], "give a text, --like or --image"),
        (["search", "INDEX", "forest", "--like", "1,2"], "give a text, --like or --image"),
        (["search", "INDEX", "--like", "here"], "write longitude,latitude"),
        (["search", "INDEX", "--like", "200,0"], "not on Earth"),
        (["search", "INDEX", "--like", "0,0"], "no tile of level 0 lies over"),
        (["search", "INDEX", "forest", "--levels", "fine"], "are no levels"),
        (["search", "INDEX", " "], "the text is empty"),
        (["index", "absent.tif"], "no such file"),
        (["index", "GROUND", "--embedder", "tinycd"], "gives no vector"),
        (["index", "GROUND", "--embedder", "eurosatt"], "did you mean 'eurosat'"),
        (["ask", "GROUND"], "give a question, or --dialogue"),
        (["ask", "GROUND", "Where is the lake?", "--budget", "10"], "give more by --budget"),
        (["ask", "GROUND", "Where is the lake?", "--bands", "red"], "1 bands"),
    ],
)
def test_bad_requests_are_one_line(
    arguments: list[str], words: str, index: Path, ground: Path, tmp_path: Path
) -> None:
    stands = {"INDEX": str(index), "GROUND": str(ground)}
    given = [stands.get(argument, argument) for argument in arguments]
    out = tmp_path / "out"
    line = refused(*given, out=out) if given[0] in ("index", "ask") else command(*given).line
    assert words in line

"""Indexes: built level by level, resumed, added to, and searched exactly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import rasterio
import torch
from embedders import colours
from hypothesis import given, settings
from hypothesis import strategies as st

from tilewright.catalogs.times import Interval
from tilewright.errors import InputError, ResumeError
from tilewright.pipeline.contact import contact_sheet
from tilewright.pipeline.index import Indexed, OneDate, Part, index_parts, parts_of
from tilewright.pipeline.pyramid import open_pyramid
from tilewright.pipeline.rasters import raster_source
from tilewright.pipeline.search import Filters, VectorIndex, hits_geojson

if TYPE_CHECKING:
    from tilewright.kernels.contract import Kernel

COLOUR = colours(side=32)
WEIGHTS = {"gain": torch.ones(1)}
EMBEDDER = {"name": "colours", "weights": None, "options": {}}


def kernel() -> Kernel:
    return COLOUR(WEIGHTS)


def picture(
    path: Path, ground: int, block: tuple[int, int, int, int] | None, shape: tuple[int, int] = (200, 260)
) -> Path:
    """Ground of one colour; a block ``(row, col, side, channel)`` of another."""
    pixels = np.full((3, *shape), 20, np.uint8)
    pixels[ground] = 200
    if block is not None:
        row, col, side, channel = block
        pixels[:, row : row + side, col : col + side] = 20
        pixels[channel, row : row + side, col : col + side] = 200
    transform = rasterio.transform.from_origin(300_000 + 10_000 * ground, 6_000_000, 10, 10)
    with rasterio.open(
        path, "w", driver="GTiff", width=shape[1], height=shape[0], count=3, dtype="uint8", crs="EPSG:32632",
        transform=transform,
    ) as out:  # fmt: skip
        out.write(pixels)
    return path


def part(path: Path, **facts: Any) -> Part:
    (one,) = parts_of(path.stem, raster_source([path]), opens={"href": str(path)}, **facts)
    return one


@pytest.fixture
def pictures(tmp_path: Path) -> list[Part]:
    return [
        part(picture(tmp_path / "meadow.tif", 1, (64, 96, 64, 2)), date="2024-05-01T10:00:00Z", cloud=3.0),
        part(picture(tmp_path / "desert.tif", 0, None), date="2024-06-11T10:00:00Z", cloud=60.0),
    ]


def build(parts: list[Part], out: Path, **more: Any) -> Indexed:
    return index_parts(parts, kernel(), out, embedder=EMBEDDER, **more)


def query(text: str) -> np.ndarray:
    return COLOUR.embedder(WEIGHTS).embed_texts([text]).numpy()


def test_every_tile_of_every_level_is_in_the_index(pictures: list[Part], tmp_path: Path) -> None:
    made = build(pictures, tmp_path / "index")
    found = VectorIndex(tmp_path / "index")
    expected = 0
    for one in pictures:
        for level in open_pyramid(one.source, coarsest=32).levels:
            expected += -(-level.shape[0] // 32) * -(-level.shape[1] // 32)
    assert made.vectors == made.new == found.rows == expected
    assert made.parts == 2
    assert made.km2 == pytest.approx(2 * 2.0 * 2.6, rel=0.01)


def test_a_text_finds_its_place_and_levels_do_not_repeat_it(pictures: list[Part], tmp_path: Path) -> None:
    build(pictures, tmp_path / "index")
    found = VectorIndex(tmp_path / "index")
    hits = found.search(query("blue"), 5)
    assert hits[0].item == "meadow"
    assert hits[0].score > 0.95
    left, top, right, bottom = hits[0].box
    assert 96 <= (left + right) / 2 <= 160
    assert 64 <= (top + bottom) / 2 <= 128
    boxes = [(hit.part, hit.level, hit.box) for hit in hits]
    assert len(set(boxes)) == len(boxes)
    everything = found.search(query("blue"), found.rows, distinct=False)
    assert len(everything) == found.rows
    assert [hit.score for hit in everything] == sorted((hit.score for hit in everything), reverse=True)


def test_filters_hold_before_the_ranking(pictures: list[Part], tmp_path: Path) -> None:
    build(pictures, tmp_path / "index")
    found = VectorIndex(tmp_path / "index")

    def items(filters: Filters) -> set[str]:
        return {hit.item for hit in found.search(query("blue"), 50, filters=filters)}

    assert items(Filters(dates=Interval.parse("2024-06"))) == {"desert"}
    assert items(Filters(cloud=10)) == {"meadow"}
    assert items(Filters(items=("desert",))) == {"desert"}
    assert items(Filters(dates=Interval.parse("2020"))) == set()
    assert {hit.level for hit in found.search(query("red"), 50, filters=Filters(levels=(1,)))} == {1}
    meadow = found.search(query("blue"), 1)[0].geometry.centroid
    hits = found.search(query("red"), 50, filters=Filters(region=meadow), distinct=False)
    assert {hit.item for hit in hits} == {"meadow"}
    assert all(hit.geometry.intersects(meadow) for hit in hits)


def test_an_example_finds_its_like(pictures: list[Part], tmp_path: Path) -> None:
    build(pictures, tmp_path / "index")
    found = VectorIndex(tmp_path / "index")
    place = found.search(query("blue"), 1)[0].geometry.centroid
    vector = found.vector_at(place.x, place.y)
    assert found.search(vector, 1)[0].score == pytest.approx(1, abs=1e-5)
    with pytest.raises(InputError, match="no tile of level 0 lies over"):
        found.vector_at(-100, 10)


def test_the_same_call_again_computes_nothing_and_a_new_image_alone(
    pictures: list[Part], tmp_path: Path
) -> None:
    out = tmp_path / "index"
    first = build(pictures[:1], out)
    again = build(pictures[:1], out)
    assert (again.new, again.vectors) == (0, first.vectors)
    ledger = next((out / "parts" / pictures[0].identity / "0").glob("ledger.jsonl"))
    before = ledger.stat().st_mtime_ns
    grown = build(pictures, out)
    assert ledger.stat().st_mtime_ns == before
    assert grown.vectors == first.vectors + grown.new
    assert len(list(out.glob("vectors-*.zarr"))) == len(list(out.glob("records-*.parquet"))) == 1
    whole = build(pictures, tmp_path / "whole")
    assert whole.vectors == grown.vectors
    assert _content(out) == _content(tmp_path / "whole"), "grown or made at once: the same index"


def _content(out: Path) -> tuple[str, bytes]:
    found = VectorIndex(out)
    return found.description["digest"], np.asarray(found._vectors[:]).tobytes()


def test_killed_and_resumed_the_bits_are_the_same(
    pictures: list[Part], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(pictures, tmp_path / "whole", settings=_small())
    import tilewright.pipeline.tiles as tiles

    write, count = tiles.write_records, 0

    def dying(*args: Any) -> Any:
        nonlocal count
        count += 1
        if count == 3:
            raise KeyboardInterrupt
        return write(*args)

    monkeypatch.setattr(tiles, "write_records", dying)
    with pytest.raises(KeyboardInterrupt):
        build(pictures, tmp_path / "broken", settings=_small())
    assert not (tmp_path / "broken" / "index.json").exists()
    monkeypatch.undo()
    build(pictures, tmp_path / "broken", settings=_small())
    assert _content(tmp_path / "broken") == _content(tmp_path / "whole")


def _small() -> Any:
    from tilewright.pipeline.settings import Settings

    return Settings(shard=64)


def test_parts_may_come_in_by_other_options_of_pictures(pictures: list[Part], tmp_path: Path) -> None:
    """Towers of one embedder have one space; the same picture in two ways is refused."""
    build(pictures[:1], tmp_path / "index")
    wide = {"low": 0.0, "high": 510.0}
    asked = EMBEDDER | {"options": wide}
    index_parts(pictures[1:], COLOUR(WEIGHTS, **wide), tmp_path / "index", embedder=asked)
    found = VectorIndex(tmp_path / "index")
    assert found.embedder == EMBEDDER
    assert [entry["options"] for entry in found.parts.values()] == [{}, wide]
    assert found.search(query("red"), 1)[0].item == "desert"
    with pytest.raises(ResumeError, match=r"has this image already, embedded with \{'low': 0.0"):
        build(pictures, tmp_path / "index")


def test_another_embedder_and_a_strange_folder_are_refused(pictures: list[Part], tmp_path: Path) -> None:
    build(pictures[:1], tmp_path / "index")
    other = COLOUR({"gain": torch.full((1,), 2.0)})
    with pytest.raises(ResumeError, match="other weights or options"):
        index_parts(pictures, other, tmp_path / "index", embedder=EMBEDDER)
    strange = tmp_path / "strange"
    strange.mkdir()
    (strange / "thesis.txt").write_text("mine")
    with pytest.raises(ResumeError, match=r"thesis\.txt"):
        build(pictures, strange)
    with pytest.raises(InputError, match="there is no index"):
        VectorIndex(strange)
    with pytest.raises(InputError, match="nothing to index"):
        build([], tmp_path / "index")


def test_a_query_of_another_length_or_of_none_is_refused(pictures: list[Part], tmp_path: Path) -> None:
    build(pictures[:1], tmp_path / "index")
    found = VectorIndex(tmp_path / "index")
    with pytest.raises(InputError, match="vectors of 3"):
        found.search(np.ones(4))
    with pytest.raises(InputError, match="vectors of 3"):
        found.search(np.zeros(3))


def test_dates_of_a_cube_are_parts_of_their_own(tmp_path: Path) -> None:
    a = picture(tmp_path / "a.tif", 1, None)
    b = picture(tmp_path / "b.tif", 1, (0, 0, 128, 0))
    parts = parts_of("place", raster_source([a, b]))
    assert len(parts) == 2
    assert isinstance(parts[1].source, OneDate)
    assert parts[0].identity != parts[1].identity
    build(parts, tmp_path / "index")
    hits = VectorIndex(tmp_path / "index").search(query("red"), 1)
    assert hits[0].part == parts[1].identity


def test_geojson_and_contact_sheet(pictures: list[Part], tmp_path: Path) -> None:
    build(pictures, tmp_path / "index")
    found = VectorIndex(tmp_path / "index")
    hits = found.search(query("blue"), 7)
    plain = json.loads(json.dumps(hits_geojson(hits, query="blue")))
    assert [feature["properties"]["rank"] for feature in plain["features"]] == list(range(1, len(hits) + 1))
    by_id = {one.identity: one for one in pictures}
    limits = {id_: entry["shown"] for id_, entry in found.parts.items()}
    assert set(map(str, limits.values())) == {str([[-510.0] * 3, [637.5] * 3])}
    pyramids = {id_: open_pyramid(one.source, coarsest=32) for id_, one in by_id.items()}
    path = contact_sheet(hits, pyramids.get, tmp_path / "sheet.png", "blue", limits=limits)
    assert _colours(path) > _colours(contact_sheet(hits, lambda _: None, tmp_path / "gone.png", "blue"))


def _colours(path: Path) -> int:
    """How many pixels of a picture are not grey."""
    with rasterio.open(path) as sheet:
        bands = sheet.read((1, 2, 3)).astype(int)
    return int((np.ptp(bands, axis=0) > 50).sum())


@settings(max_examples=25, deadline=None)
@given(rows=st.integers(1, 200), count=st.integers(1, 60), seed=st.integers(0, 99))
def test_exact_search_equals_sorting_everything(rows: int, count: int, seed: int) -> None:
    """Also with equal scores: of those the first rows win, however the vectors are cut into chunks."""
    import tilewright.pipeline.search as module

    rng = np.random.default_rng(seed)
    vectors = rng.integers(-2, 3, (rows, 3)).astype(np.float32)
    one = object.__new__(VectorIndex)
    one.description = {"rows": rows, "dim": 3}
    one.__dict__["_vectors"] = vectors
    wanted = np.array([[1, 2, 3]], np.float32)
    before, module.ROWS = module.ROWS, 17
    try:
        found, scores = one._best(wanted, min(count, rows), None)
    finally:
        module.ROWS = before
    every = (vectors @ wanted.T)[:, 0]
    expected = np.argsort(-every, kind="stable")[:count]
    assert np.array_equal(found, expected)
    assert np.array_equal(scores, every[expected])

"""Codecs: what is written comes back, and nothing that a model may write breaks the reading."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tilewright.errors import InputError
from tilewright.kernels.vlm.boxes import (
    box_polygon,
    corners_of,
    join_pieces,
    obb_of,
    ordered_polygon,
    overlap,
    suppress,
)
from tilewright.kernels.vlm.codecs import CODECS, LocationTokens, Shape
from tilewright.kernels.vlm.text_mask import decode_blocks, encode_blocks, mask_of_blocks

sizes = st.tuples(st.integers(1, 100_000), st.integers(1, 100_000))
labels = st.text(st.characters(categories=("L", "Nd"), include_characters=" -"), max_size=12)
numbers = st.floats(-1e6, 1e6)


def shapes(kind: Any, count: st.SearchStrategy[int], values: Any = numbers, least: int = 0) -> Any:
    named = labels.filter(lambda label: len(label) >= least)
    return count.flatmap(lambda n: st.builds(Shape, st.just(kind), st.tuples(*[values] * n), named))


EXACT = {
    "json-box": shapes("box", st.just(4)),
    "json-obb": shapes("obb", st.just(5)),
    "json-polygon": shapes("polygon", st.integers(3, 9).map(lambda n: 2 * n)),
}


@pytest.mark.parametrize("name", EXACT)
@given(data=st.data(), size=sizes)
def test_numbers_as_they_are_come_back_exactly(name: str, data: Any, size: tuple[int, int]) -> None:
    found = data.draw(st.lists(EXACT[name], max_size=4))
    assert CODECS[name].decode(f"Sure:\n{CODECS[name].encode(found, size)} done", size) == found


@pytest.mark.parametrize(
    ("name", "step", "count"),
    [("location-tokens", 0.5, 4), ("location-polygons", 0.5, 8), ("thousandths", 0.5, 4)],
)
@given(data=st.data(), size=sizes)
def test_thousandths_come_back_as_the_same_text(
    name: str, step: float, count: int, data: Any, size: tuple[int, int]
) -> None:
    kind = "polygon" if name == "location-polygons" else "box"
    shares = st.floats(0, 1, exclude_max=True)
    drawn = data.draw(st.lists(shapes(kind, st.just(count), shares, 1), max_size=3))
    given_ = [
        Shape(kind, tuple(n * size[i % 2] for i, n in enumerate(one.numbers)), one.label) for one in drawn
    ]
    text = CODECS[name].encode(given_, size)
    back = CODECS[name].decode(text, size)
    assert CODECS[name].encode(back, size) == text
    assert [one.label for one in back] == [one.label for one in given_]
    for one, other in zip(given_, back, strict=True):
        for i, (a, b) in enumerate(zip(one.numbers, other.numbers, strict=True)):
            assert abs(a - b) <= (step + 1e-6) * size[i % 2] / 1000


@pytest.mark.parametrize("name", CODECS)
@given(text=st.text(st.sampled_from('{}[]<>"_:,.box2dlocf*;-e0123456789 \n'), max_size=60))
def test_any_text_can_be_read(name: str, text: str) -> None:
    for shape in CODECS[name].decode(text, (100, 100)):
        assert all(map(math.isfinite, shape.numbers))


def test_what_models_write() -> None:
    size = (1000, 1000)
    tokens = CODECS["location-tokens"]
    boxes = tokens.decode("</s><s>ship<loc_0><loc_1><loc_2><loc_3><loc_10><loc_11><loc_12><loc_13>", size)
    assert [(one.label, one.numbers[0]) for one in boxes] == [("ship", 0.5), ("ship", 10.5)]
    assert tokens.decode("ship<loc_0><loc_1><loc_2>", size) == []
    assert tokens.decode("ship<loc_0><loc_1><loc_2><loc_1000>", size) == []
    assert LocationTokens(bins=2000).decode("x<loc_0><loc_1><loc_2><loc_1000>", size) != []
    (one, two) = CODECS["thousandths"].decode("<ref>cars</ref><box>[[1, 2, 3, 4], [5, 6, 7, 8]]</box>", size)
    assert (one.label, two.numbers) == ("cars", (5, 6, 7, 8))
    assert CODECS["json-box"].decode('[{"bbox_2d": [1, 2, 3]}, {"bbox_2d": [1, 2, 3, 4]}]', size) == [
        Shape("box", (1, 2, 3, 4))
    ]
    assert CODECS["json-box"].decode('{"bbox_2d": [1, 2, 3, 1e999]} {"bbox_2d": "x"} {bad}', size) == []


def test_what_cannot_be_written_is_refused() -> None:
    with pytest.raises(InputError, match="is a obb, the codec writes a box"):
        CODECS["json-box"].encode([Shape("obb", (1, 2, 3, 4, 5))], (1, 1))
    with pytest.raises(InputError, match="no polygon"):
        Shape("polygon", (1, 2, 3, 4, 5))
    for kind in ("box", "polygon"):
        two = [Shape(kind, (0,) * (4 if kind == "box" else 6), label) for label in ("ship", "")]
        with pytest.raises(InputError, match="no label and would be read as the shape before it"):
            LocationTokens(kind).encode(two, (1, 1))
    with pytest.raises(InputError, match="location token"):
        CODECS["location-tokens"].encode([Shape("box", (1, 2, 3, 4), "a<loc_1>")], (1, 1))


@given(
    rows=st.integers(1, 6), cols=st.integers(1, 6), values=st.integers(0, 3), seed=st.integers(0, 2**32 - 1)
)
def test_text_masks_come_back(rows: int, cols: int, values: int, seed: int) -> None:
    blocks = np.random.default_rng(seed).integers(0, values + 1, (rows, cols))
    text = encode_blocks(blocks)
    np.testing.assert_array_equal(decode_blocks(f"It is <seg>{text}</seg>."), blocks)
    whole = mask_of_blocks(blocks, (rows * 28, cols * 28))
    np.testing.assert_array_equal(whole, blocks.repeat(28, 0).repeat(28, 1))
    assert encode_blocks(whole[::28, ::28]) == text


@pytest.mark.parametrize(
    "text", ["", "1*2;1*3;", "1*2,;", "a", "1*0;", "-1*2;", "1*2;;1*2;", "0*99999999999;", "<seg></seg>"]
)
def test_malformed_text_masks_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="Text-Mask"):
        decode_blocks(text)


obbs = st.tuples(
    st.floats(-100, 100),
    st.floats(-100, 100),
    st.floats(2, 100),
    st.floats(1, 100),
    st.floats(-90, 89.9),
)


@given(obb=obbs)
def test_corners_and_angle_say_the_same(obb: tuple[float, ...]) -> None:
    assume(obb[2] > obb[3] * 1.001)
    found = obb_of(corners_of(obb))
    np.testing.assert_allclose(found[:4], obb[:4], atol=1e-6)
    assert -90 <= found[4] < 90
    assert abs((found[4] - obb[4] + 90) % 180 - 90) < 1e-4
    assert overlap(corners_of(found), corners_of(obb)) == pytest.approx(1, abs=1e-6)


@given(obb=obbs, clockwise=st.booleans(), turn=st.integers(0, 3), back=st.booleans())
def test_the_order_of_corners_does_not_depend_on_that_given(
    obb: tuple[float, ...], clockwise: bool, turn: int, back: bool
) -> None:
    points = np.reshape(corners_of(obb), (4, 2))
    other = np.roll(points[::-1] if back else points, turn, axis=0)
    own, theirs = (ordered_polygon(p.ravel().tolist(), clockwise=clockwise) for p in (points, other))
    assert own == theirs


def test_overlaps() -> None:
    square, half = box_polygon((0, 0, 2, 2)), box_polygon((1, 0, 3, 2))
    assert overlap(square, half) == pytest.approx(1 / 3)
    assert overlap(square, box_polygon((0, 0, 1, 1)), of_smaller=True) == 1
    turned = corners_of((1, 1, 2, 2, 45))
    assert overlap(square, turned) == pytest.approx((8 * (math.sqrt(2) - 1)) / (8 - 8 * (math.sqrt(2) - 1)))
    with pytest.raises(InputError, match="crosses itself"):
        overlap(square, (0, 0, 2, 2, 2, 0, 0, 2))
    with pytest.raises(InputError, match="no area"):
        obb_of((0, 0, 1, 1, 2, 2))


def test_the_best_of_overlapping_boxes_is_kept() -> None:
    boxes = [box_polygon(box) for box in ((0, 0, 10, 10), (1, 0, 11, 10), (20, 0, 30, 10), (0, 0, 10, 9))]
    scores = [0.5, 0.9, 0.1, 0.4]
    assert suppress(boxes, scores) == [1, 2]
    assert suppress(boxes, scores, labels=["a", "b", "a", "b"]) == [1, 0, 2]
    assert suppress(boxes, scores, threshold=0.95) == [1, 0, 3, 2]
    assert suppress([], []) == []


def test_pieces_of_an_object_at_the_edge_of_tiles_are_joined() -> None:
    boxes = [(90, 40, 100, 60), (100, 41, 130, 60), (100, 80, 130, 90), (300, 0, 310, 10), (130, 45, 140, 58)]
    labels = ["ship"] * 5
    assert join_pieces(boxes, labels) == [[0, 1, 4], [2], [3]]
    assert join_pieces(boxes, ["ship", "car", "ship", "ship", "car"]) == [[0], [1, 4], [2], [3]]
    assert join_pieces([], []) == []

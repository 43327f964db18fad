"""Text-Mask, oriented boxes and polygons against the numbers of RSCoVLM's released code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tilewright.kernels.vlm.boxes import obb_of, ordered_polygon
from tilewright.kernels.vlm.codecs import JsonCodec, Shape
from tilewright.kernels.vlm.text_mask import decode_blocks, encode_blocks, encode_mask

NUMBERS: dict[str, Any] = json.loads(
    (Path(__file__).parent / "official" / "rscovlm" / "public.json").read_text()
)


def test_runs_of_text_masks() -> None:
    assert len(NUMBERS["text_mask_rle"]) == 6
    for row in NUMBERS["text_mask_rle"]:
        assert encode_blocks(np.array(row["rows"])) == row["encoded"]
        np.testing.assert_array_equal(decode_blocks(row["encoded"]), row["rows"])


@pytest.mark.parametrize("row", NUMBERS["text_mask_pipeline"], ids=lambda row: str(row["mask_hw"]))
def test_text_masks(row: dict[str, Any]) -> None:
    mask = np.zeros(row["mask_hw"], np.uint8)
    for x0, y0, x1, y1 in row["rects_x0y0x1y1"]:
        mask[y0:y1, x0:x1] = 255
    x0, y0, x1, y1 = row["rects_x0y0x1y1"][0]
    mask[y0 + 3 : y1 - 3, x0 + 3 : x1 - 3] = 0
    assert encode_mask(mask) == row["response"]
    assert list(decode_blocks(row["response"]).shape) == row["grid_hw"]
    assert not decode_blocks(encode_mask(np.ones_like(mask))).any()  # 1 is not above the threshold


def test_order_of_corners() -> None:
    for row in NUMBERS["polygon_order"]:
        for clockwise in (True, False):
            assert list(ordered_polygon(row["poly"], clockwise=clockwise)) == row[f"clockwise_{clockwise}"]


def test_oriented_boxes_in_text() -> None:
    codec = JsonCodec("obb", "oriented bbox", whole=True)
    for row in NUMBERS["obb_text"]:
        obb = obb_of(row["poly"])
        (official,) = codec.decode(row["response"], (100, 100))
        for own, theirs in zip(obb, official.numbers, strict=True):
            assert theirs in (int(own - 1e-5), int(own + 1e-5))  # theirs comes from float32
        assert codec.encode([official], (100, 100)) == row["response"]
    assert (
        codec.encode([Shape("obb", obb_of(NUMBERS["obb_text"][0]["poly"]), "q")], (100, 100))
        == (NUMBERS["obb_text"][0]["response"])
    )


def test_boxes_in_text() -> None:
    text = NUMBERS["bbox_extract"][0]["text"]
    codec = JsonCodec("box", "bbox_2d")
    shapes = codec.decode(text, (100, 100))
    assert shapes == [Shape("box", (10, 20, 30, 40), "ship")]
    assert codec.encode(shapes, (100, 100)) == text

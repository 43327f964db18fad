"""The zoom-in chain against the numbers of RSCoVLM's released code: sizes, tool calls, boxes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tilewright.errors import KernelError
from tilewright.kernels.vlm.zoom import (
    cut_out,
    full_to_resized,
    official_box,
    resized_to_full,
    smart_resize,
    tolerant_box,
)

FOLDER = Path(__file__).parent / "official" / "rscovlm"
NUMBERS: dict[str, Any] = json.loads((FOLDER / "public.json").read_text())


def test_sizes_of_pictures() -> None:
    assert len(NUMBERS["smart_resize"]) == 33
    for row in NUMBERS["smart_resize"]:
        bounds = {"min_pixels": row["min_pixels"], "max_pixels": row["max_pixels"]}
        if "error" in row:
            with pytest.raises(KernelError, match="too narrow"):
                smart_resize(*row["hw"], **bounds)
        else:
            assert list(smart_resize(*row["hw"], **bounds)) == row["resized_hw"], row


def test_sizes_at_which_a_picture_is_returned() -> None:
    rows = json.loads((FOLDER / "public_fetch_image.json").read_text())
    for row in (row for row in rows if "resized_width" not in row["options"]):
        cols, rows_ = row["native_wh"]
        assert list(smart_resize(rows_, cols, **row["options"])[::-1]) == row["returned_image_wh"]


@pytest.mark.parametrize("row", NUMBERS["zoom_chain_eval"], ids=lambda row: row["output"][:40])
def test_tool_calls_and_their_boxes(row: dict[str, Any]) -> None:
    box = official_box(row["output"])
    assert (box is None) == (row["result"] == "fallback_full_image")
    if box is None:
        return
    (cols, rows), (small_cols, small_rows) = row["image_passed_wh"], row["resized_wh"]
    found = resized_to_full(box, (rows, cols), (small_rows, small_cols))
    np.testing.assert_allclose(found, row["bbox_float"], rtol=1e-14)
    assert [round(edge) for edge in found] == row["pil_crop_box"]
    if found[3] < 5000:  # not the one that PIL fills up to 16,644 x 20,106 px
        assert list(cut_out(np.zeros((rows, 1, 3), np.uint8), found).shape[1::-1]) == row["crop_wh"]


def test_boxes_as_training_data_are_written() -> None:
    for row in NUMBERS["train_box_conversion"]:
        box = full_to_resized(row["native_box"], row["image_wh"][::-1], row["resized_wh"][::-1])
        call = {"name": "image_zoom_in", "arguments": {"bbox": list(box)}}
        assert f"<tool_call>\n{json.dumps(call)}\n</tool_call>" == row["assistant_tool_call"]


def test_boxes_of_the_picture_in_the_image() -> None:
    for row in NUMBERS["resize_bbox"]:
        found = resized_to_full(row["bbox"], row["orig"][::-1], row["res"][::-1])
        np.testing.assert_allclose(found, row["out"], rtol=1e-14)


def test_the_tolerant_reading_takes_all_that_the_official_takes_and_more() -> None:
    size = (896, 1204)
    for row in NUMBERS["zoom_chain_eval"]:
        strict = official_box(row["output"])
        if strict is not None and strict[0] >= 0 and strict[3] <= size[0]:
            assert tolerant_box(row["output"], size) == strict
    read = sum(tolerant_box(row["output"], size) is not None for row in NUMBERS["zoom_chain_eval"])
    assert read == sum(row["result"] == "crop" for row in NUMBERS["zoom_chain_eval"]) + 7


@pytest.mark.parametrize(
    ("said", "box"),
    [
        ('Look:\n<tool_call>\n{"arguments": {"bbox": [1, 2, 30, 40]}}</tool_call> done', (1, 2, 30, 40)),
        ("{'bbox_2d': ['1', '2', '30', '40']}", (1, 2, 30, 40)),
        ('{"bbox": [30, 40, 1, 2]}', (1, 2, 30, 40)),
        ('{"bbox": [-5, -5, 5000, 6000]}', (0, 0, 100, 80)),
        ('{"bbox": [1, 2, 30]}', None),
        ('{"bbox": [200, 2, 300, 40]}', None),
        ('{"bbox": [1, 2, true, 40]}', None),
        ('{"label": [1, 2, 30, 40]}', None),
        ("It is [1, 2, 3, 4] of them.", None),
        ('{"bbox": [1, 2, 1e999, 40]}', None),
    ],
)
def test_the_tolerant_reading(said: str, box: tuple[float, ...] | None) -> None:
    assert tolerant_box(said, (80, 100)) == box

"""Boxes and polygons as the text that language models write, and back.

A `Codec` turns what was found into text and text into what was found. Those that write numbers as they are come back
exactly; those that write thousandths of the image come back as the same text, and within half a thousandth. Answers of
models are read as they are: what cannot be read is left out, and what stands around it does not matter.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from tilewright.errors import InputError

__all__ = ["CODECS", "Codec", "JsonCodec", "LocationTokens", "Shape", "ThousandthBoxes"]

type Kind = Literal["box", "obb", "polygon"]
_LENGTHS: Mapping[Kind, int | None] = {"box": 4, "obb": 5, "polygon": None}


@dataclass(frozen=True, slots=True)
class Shape:
    """Something that was found in an image."""

    kind: Kind
    """``box``: x0, y0, x1, y1. ``obb``: cx, cy, width, height, degrees. ``polygon``: x0, y0, x1, y1, ..."""
    numbers: tuple[float, ...]
    """In pixels of the image, edges not centres."""
    label: str = ""
    """What it is."""

    def __post_init__(self) -> None:
        wanted = _LENGTHS[self.kind]
        right = (
            len(self.numbers) == wanted if wanted else len(self.numbers) >= 6 and len(self.numbers) % 2 == 0
        )
        if not right or not all(map(math.isfinite, self.numbers)):
            raise InputError(f"{self.numbers} is no {self.kind}", place=f"shape {self.label!r}")


class Codec(Protocol):
    """Shapes as text."""

    def encode(self, shapes: Sequence[Shape], size: tuple[float, float]) -> str:
        """Return the text of shapes in an image of ``size`` (columns, rows); raises `InputError` for other kinds."""
        ...

    def decode(self, text: str, size: tuple[float, float]) -> list[Shape]:
        """Return the shapes that stand in a text."""
        ...


@dataclass(frozen=True)
class JsonCodec:
    """A list of objects in JSON within a code fence, as Qwen2.5-VL and RSCoVLM write them, in pixels."""

    kind: Kind
    """Which shapes."""
    key: str
    """Name of the numbers."""
    whole: bool = False
    """True cuts numbers off to whole ones, as the training data of RSCoVLM are; False writes them exactly."""

    def encode(self, shapes: Sequence[Shape], size: tuple[float, float]) -> str:
        """Return the text."""
        rows = []
        for shape in shapes:
            _check(shape, self.kind)
            numbers = [int(n) if self.whole or float(n).is_integer() else n for n in shape.numbers]
            rows.append(json.dumps({self.key: numbers, "label": shape.label}, ensure_ascii=False))
        return "```json\n[\n\t" + ",\n\t".join(rows) + "\n]\n```" if rows else "```json\n[]\n```"

    def decode(self, text: str, size: tuple[float, float]) -> list[Shape]:
        """Return the shapes of all JSON objects in the text that have the numbers."""
        found = []
        for part in re.finditer(r"\{[^{}]*\}", text):
            try:
                row = json.loads(part.group())
            except json.JSONDecodeError:
                continue
            numbers = row.get(self.key)
            if isinstance(numbers, list) and all(_number(n) for n in numbers):
                found += _shape(self.kind, numbers, str(row.get("label", "")))
        return found


@dataclass(frozen=True)
class LocationTokens:
    """Florence-2's location tokens: ``label<loc_x0><loc_y0><loc_x1><loc_y1>``, each one of 1,000 bins of a side.

    See https://arxiv.org/abs/2311.06242. A bin stands for its middle. Polygons have more tokens; several shapes of a
    label follow it one after the other in an answer, boxes by fours.
    """

    kind: Literal["box", "polygon"] = "box"
    """Which shapes."""
    bins: int = 1000
    """Bins a side."""

    def encode(self, shapes: Sequence[Shape], size: tuple[float, float]) -> str:
        """Return the text; what reaches beyond the image is put into the outermost bin.

        Raises `InputError` for a shape without a label where it would be read as another one's.
        """
        for before, shape in itertools.pairwise(shapes):
            if not shape.label and (before.label or self.kind == "polygon"):
                raise InputError(
                    "has no label and would be read as the shape before it",
                    place="shape ''",
                    remedy="name it",
                )
        return "".join(self._encoded(shape, size) for shape in shapes)

    def _encoded(self, shape: Shape, size: tuple[float, float]) -> str:
        _check(shape, self.kind)
        if "<loc_" in shape.label:
            raise InputError("holds a location token", place=f"label {shape.label!r}")
        numbers = zip(shape.numbers, tuple(size) * (len(shape.numbers) // 2), strict=True)
        bins = (min(max(math.floor(n / side * self.bins), 0), self.bins - 1) for n, side in numbers)
        return shape.label + "".join(f"<loc_{n}>" for n in bins)

    def decode(self, text: str, size: tuple[float, float]) -> list[Shape]:
        """Return the shapes; a run of tokens that is none is left out."""
        found = []
        for part in re.finditer(r"((?:(?!<loc_\d+>).)*)((?:<loc_\d+>)+)", text, re.DOTALL):
            bins = [int(n) for n in re.findall(r"\d+", part.group(2))]
            each = 4 if self.kind == "box" else len(bins)
            for start in range(0, len(bins), each):
                run = bins[start : start + each]
                if any(n >= self.bins for n in run) or len(run) % 2:
                    continue
                sides = tuple(size) * (len(run) // 2)
                numbers = [(n + 0.5) / self.bins * side for n, side in zip(run, sides, strict=True)]
                found += _shape(self.kind, numbers, _plain(part.group(1)))
        return found


@dataclass(frozen=True)
class ThousandthBoxes:
    """``label<box>[[x0, y0, x1, y1]]</box>`` in thousandths of the image, as InternVL and ImageRAG write boxes."""

    def encode(self, shapes: Sequence[Shape], size: tuple[float, float]) -> str:
        """Return the text."""
        parts = []
        for shape in shapes:
            _check(shape, "box")
            if "<box>" in shape.label:
                raise InputError("holds a box", place=f"label {shape.label!r}")
            pairs = zip(shape.numbers, tuple(size) * 2, strict=True)
            numbers = [min(max(round(1000 * n / side), 0), 1000) for n, side in pairs]
            parts.append(f"{shape.label}<box>[[{', '.join(map(str, numbers))}]]</box>")
        return "".join(parts)

    def decode(self, text: str, size: tuple[float, float]) -> list[Shape]:
        """Return the boxes; several in one pair of tags have one label."""
        found = []
        for part in re.finditer(r"((?:(?!</?box>).)*)<box>(.*?)</box>", text, re.DOTALL):
            for row in re.findall(r"\[([^\[\]]*)\]", part.group(2)):
                numbers = re.findall(r"\d+(?:\.\d+)?", row)
                if len(numbers) == 4:
                    sides = tuple(size) * 2
                    values = [float(n) / 1000 * side for n, side in zip(numbers, sides, strict=True)]
                    found += _shape("box", values, _plain(part.group(1)))
        return found


CODECS: dict[str, Codec] = {
    "json-box": JsonCodec("box", "bbox_2d"),
    "json-obb": JsonCodec("obb", "oriented bbox"),
    "json-polygon": JsonCodec("polygon", "polygon"),
    "location-tokens": LocationTokens(),
    "location-polygons": LocationTokens("polygon"),
    "thousandths": ThousandthBoxes(),
}
"""Codecs by name."""


def _check(shape: Shape, kind: Kind) -> None:
    if shape.kind != kind:
        raise InputError(f"is a {shape.kind}, the codec writes a {kind}", place=f"shape {shape.label!r}")


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _shape(kind: Kind, numbers: Sequence[float], label: str) -> list[Shape]:
    """Return the shape in a list, and an empty list where the numbers are none."""
    try:
        return [Shape(kind, tuple(float(n) for n in numbers), label)]
    except (InputError, OverflowError):
        return []


def _plain(label: str) -> str:
    """Return a label without the marks that models put around their text."""
    return re.sub(r"</?(?:s|ref|poly|box)>", "", label)

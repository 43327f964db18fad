"""Zoom-in chain: the model sees an overview, asks by a tool call for one box, and answers when it has seen that.

As in RSCoVLM (https://arxiv.org/abs/2511.21272) and its kin on Qwen2.5-VL: the overview is resized to multiples of
28 px, the model gives the box in pixels of the resized overview, and what cannot be read as a box falls back to the
whole image. The released evaluation cuts the box out of the overview that the model has already seen, its training
out of the original image; here it is read from the original at the finest level that the model can take (``crop``
says otherwise). Written from the paper and from what the released code was found to do.
"""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tilewright.errors import KernelError
from tilewright.kernels.ask import Answer, Evidence

from .answerers import Answerer, Turn, converse, told
from .looks import Box, look, resample
from .renderings import Rendered, Showing

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tilewright.kernels.ask import Asking, Scene

    from .answerers import Picture

__all__ = [
    "TOOL",
    "ZoomIn",
    "cut_out",
    "full_to_resized",
    "official_box",
    "resized_to_full",
    "smart_resize",
    "tolerant_box",
]

FACTOR = 28
"""Pixels a side that become one token of Qwen2.5-VL; sides of pictures are multiples of it."""
MIN_PIXELS, MAX_PIXELS = 3_136, 12_845_056
"""The model's own bounds of a picture: 4 and 16,384 tokens."""
LONGEST_RATIO = 200
"""Longest side over shortest that the model takes."""

TOOL = "image_zoom_in"
"""Name of the one tool."""
_TAGS = ("<tool_call>\n", "</tool_call>\n")
_ASK_FOR_ZOOM = "Zoom in to the region of interest and answer the question."
_AFTER_ZOOM = "Here's the zoomed-in image. You can complete your task now."
SYSTEM = (
    "You look at an image and may look closer once, by calling a tool. The tool, as JSON:\n"
    + json.dumps(
        {
            "name": TOOL,
            "description": "Shows one region of the image at full resolution.",
            "parameters": {
                "type": "object",
                "properties": {
                    "bbox": {
                        "type": "array",
                        "items": {"type": "number"},
                        "minItems": 4,
                        "maxItems": 4,
                        "description": "x1, y1, x2, y2 of the region in pixels of the image that you see",
                    }
                },
                "required": ["bbox"],
            },
        }
    )
    + '\nTo call it, answer with nothing but <tool_call>\n{"name": "image_zoom_in", "arguments": {"bbox": '
    "[x1, y1, x2, y2]}}\n</tool_call>"
)
"""Tells the model which tool it has; in our words."""


def smart_resize(
    rows: int, cols: int, *, factor: int = FACTOR, min_pixels: int = MIN_PIXELS, max_pixels: int = MAX_PIXELS
) -> tuple[int, int]:
    """Return the rows and columns at which Qwen2.5-VL sees a picture.

    Each side is the nearest multiple of ``factor`` (a half goes to the even multiple); where the area is beyond its
    bounds, both sides are scaled alike and rounded inwards.

    Raises
    ------
    KernelError
        One side is more than 200 times the other.
    """
    if max(rows, cols) > LONGEST_RATIO * min(rows, cols):
        raise KernelError(
            f"an image of {rows} x {cols} px is too narrow for the model",
            place="zoom",
            remedy=f"ask about a part of it: one side may be {LONGEST_RATIO} times the other",
        )
    sides = [max(factor, round(side / factor) * factor) for side in (rows, cols)]
    area = sides[0] * sides[1]
    if area > max_pixels:
        shrink = math.sqrt(rows * cols / max_pixels)
        sides = [max(factor, math.floor(side / shrink / factor) * factor) for side in (rows, cols)]
    elif area < min_pixels:
        grow = math.sqrt(min_pixels / (rows * cols))
        sides = [math.ceil(side * grow / factor) * factor for side in (rows, cols)]
    return sides[0], sides[1]


def resized_to_full(box: Sequence[float], shape: tuple[int, int], resized: tuple[int, int]) -> Box:
    """Return a box in pixels of the image ``shape`` (rows, columns) that is given in those of its resized picture."""
    down, across = shape[0] / resized[0], shape[1] / resized[1]
    return box[0] * across, box[1] * down, box[2] * across, box[3] * down


def full_to_resized(
    box: Sequence[float], shape: tuple[int, int], resized: tuple[int, int]
) -> tuple[int, int, int, int]:
    """Return a box of the image in whole pixels of its resized picture, cut off: as training data are written."""
    x0, y0, x1, y1 = (
        int(value * small / large)
        for value, small, large in zip(
            box, (resized[1], resized[0]) * 2, (shape[1], shape[0]) * 2, strict=True
        )
    )
    return x0, y0, x1, y1


def official_box(text: str) -> Box | None:
    """Return the box of a tool call as the released evaluation reads it; None where it would fall back.

    The tags are stripped as sets of characters, so a text before or after the call spoils it unless it is made of
    the tags' letters; the call is then JSON with the tool's name and four numbers, of which the second corner may not
    lie before the first. Boxes may reach beyond the picture.
    """
    text = text.lstrip(_TAGS[0]).rstrip(_TAGS[1])
    try:
        call = json.loads(text)
    except json.JSONDecodeError:
        return None
    if not isinstance(call, dict) or call.get("name") != TOOL:
        return None
    arguments = call.get("arguments")
    return _ordered(_numbers(arguments.get("bbox") if isinstance(arguments, dict) else None))


def tolerant_box(text: str, resized: tuple[int, int]) -> Box | None:
    """Return the box of a tool call wherever it stands and however it is written; None where there is none.

    Beyond `official_box`: words around the call, a list of calls (the first counts), other names of the tool and of
    the box (``bbox_2d``, ``box``), numbers as strings, single quotes, corners in any order. What reaches beyond the
    picture of ``resized`` (rows, columns) is cut off; a box outside it is none.
    """
    for found in re.finditer(r"\[[^\[\]{}]*\]", text):
        key = re.search(r"[\"']?(?:bbox|bbox_2d|box|box_2d)[\"']?\s*:\s*$", text[: found.start()])
        try:
            values = _numbers(ast.literal_eval(found.group()), strings=True) if key else None
        except (ValueError, SyntaxError):
            continue
        if values is None:
            continue
        (x0, x1), (y0, y1) = sorted(values[0::2]), sorted(values[1::2])
        box = (max(x0, 0.0), max(y0, 0.0), min(x1, float(resized[1])), min(y1, float(resized[0])))
        return _ordered(box)
    return None


def _numbers(values: Any, *, strings: bool = False) -> tuple[float, float, float, float] | None:
    if not isinstance(values, list | tuple) or len(values) != 4:
        return None
    kinds = (int, float, str) if strings else (int, float)
    if not all(isinstance(value, kinds) and not isinstance(value, bool) for value in values):
        return None
    try:
        x0, y0, x1, y1 = (float(value) for value in values)
    except ValueError:
        return None
    return (x0, y0, x1, y1) if all(map(math.isfinite, (x0, y0, x1, y1))) else None


def _ordered(box: Box | None) -> Box | None:
    return box if box is not None and box[0] < box[2] and box[1] < box[3] else None


def cut_out(picture: NDArray[np.uint8], box: Sequence[float]) -> NDArray[np.uint8]:
    """Return a box of a picture ``[rows, columns, 3]``, its corners rounded; black beyond the edge."""
    col0, row0, col1, row1 = (round(edge) for edge in box)
    cut = np.zeros((row1 - row0, col1 - col0, 3), np.uint8)
    rows, cols = picture.shape[:2]
    top, left, bottom, right = max(row0, 0), max(col0, 0), min(row1, rows), min(col1, cols)
    if top < bottom and left < right:
        cut[top - row0 : bottom - row0, left - col0 : right - col0] = picture[top:bottom, left:right]
    return cut


@dataclass(frozen=True)
class ZoomIn:
    """The chain as an ask policy: an overview, one closer look where the model wants it, the answer."""

    answerer: Answerer
    """The model; it must know pictures."""
    min_pixels: int = 200_704
    """Least pixels of a picture that it is shown; what the published models were trained with."""
    max_pixels: int = 1_016_064
    """Most pixels of a picture that it is shown."""
    parse: Literal["tolerant", "official"] = "tolerant"
    """How its call is read: see `tolerant_box` and `official_box`."""
    crop: Literal["full", "overview"] = "full"
    """What the closer look is cut from: the image, or as in the released evaluation the overview."""
    max_tokens: int = 256
    """Most tokens of an answer."""
    bands: tuple[str | int, ...] | None = None
    """Three bands to be shown; None takes red, green and blue."""
    limits: tuple[float, float] | None = None
    """Values shown as black and white, for images that are not bytes; None takes percentiles of the overview."""
    renderings: tuple[str, ...] = ()
    """Renderings that are shown instead of three bands, with words for their colours; see `renderings.RENDERINGS`."""
    reflectance_scale: float | None = None
    """Reflectance of the number 1, for renderings; None: see `Renderer`."""
    suffix: str = ""
    """Put after the question, such as how long the answer may be."""
    name: str = field(default="zoom-in", init=False)
    """Name of the policy."""

    def ask(self, question: str, scene: Scene) -> Asking:
        """Begin to answer ``question``."""
        whole: Box = (0.0, 0.0, float(scene.shape[1]), float(scene.shape[0]))
        resized = self._resized(scene.shape)
        showing = Showing(scene, self.bands, self.limits, self.renderings, self.reflectance_scale)
        overview = showing.show((yield from look(scene, whole, resized)))
        asked = "\n".join(part for part in (f"{question} {self.suffix}".strip(), overview.text) if part)
        turns = [
            Turn("system", SYSTEM),
            *told(scene.history),
            Turn("user", f"{asked}\n{_ASK_FOR_ZOOM}", overview.pictures),
        ]
        said = converse(self.answerer, turns, self.max_tokens)
        trace: dict[str, Any] = {
            "policy": self.name,
            "answerer": self.answerer.name,
            "turns_before": len(scene.history),
            "overview": list(resized),
            "first_answer": said,
            "renderings": list(self.renderings),
        }
        called = "<tool_call>" in said or (
            self.parse == "tolerant" and tolerant_box(said, resized) is not None
        )
        if not called:
            return Answer(said.strip(), [Evidence(whole, 1.0, "overview")], trace | {"zoomed": False})
        seen = official_box(said) if self.parse == "official" else tolerant_box(said, resized)
        full = None if seen is None else _within(resized_to_full(seen, scene.shape, resized), scene.shape)
        trace |= {"zoomed": full is not None, "box_in_overview": seen}
        if full is None:
            closer = overview
            trace["fallback"] = "the call could not be read: the whole image was shown again"
        elif self.crop == "full":
            shape = self._resized((round(full[3] - full[1]), round(full[2] - full[0])))
            seen_again = yield from look(scene, full, shape)
            closer = showing.show(seen_again, 1 + len(overview.pictures))
        else:
            assert seen is not None
            closer = Rendered(
                tuple(self._refitted(cut_out(picture, seen)) for picture in overview.pictures), ""
            )
        after = f"{closer.text}\n{_AFTER_ZOOM}" if closer.text and closer is not overview else _AFTER_ZOOM
        turns += [Turn("assistant", said), Turn("user", after, closer.pictures)]
        text = converse(self.answerer, turns, self.max_tokens).strip()
        place = Evidence(full or whole, 1.0, "overview" if full is None else "zoom")
        return Answer(text, [place], trace | {"closer": list(closer.pictures[0].shape[:2])})

    def _refitted(self, picture: Picture) -> Picture:
        """Return a picture at the size in which the model sees it."""
        rows, cols = self._resized(picture.shape[:2])
        edges = (np.linspace(0, picture.shape[0], rows + 1), np.linspace(0, picture.shape[1], cols + 1))
        found, _ = resample(np.moveaxis(picture, -1, 0), np.ones(picture.shape[:2], bool), *edges)
        return np.ascontiguousarray(np.moveaxis(np.rint(found), 0, -1).astype(np.uint8))

    def _resized(self, shape: tuple[int, int]) -> tuple[int, int]:
        return smart_resize(*shape, min_pixels=self.min_pixels, max_pixels=self.max_pixels)


def _within(box: Box, shape: tuple[int, int]) -> Box | None:
    """Return the box in whole pixels of the image and cut off at its edges.

    None where nothing is left, or a sliver that the model does not take.
    """
    rows, cols = shape
    col0, row0, col1, row1 = (round(edge) for edge in box)
    cut = (max(col0, 0), max(row0, 0), min(max(col1, col0 + 1), cols), min(max(row1, row0 + 1), rows))
    sides = sorted((cut[2] - cut[0], cut[3] - cut[1]))
    if sides[1] > LONGEST_RATIO * sides[0]:
        return None
    return _ordered((float(cut[0]), float(cut[1]), float(cut[2]), float(cut[3])))

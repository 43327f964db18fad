"""Text-Mask: a mask as text that a language model can write, one number for each block of 28 x 28 pixels.

The form is that of GeoGround (https://arxiv.org/abs/2411.11904) as RSCoVLM writes it: rows end with ``;``, runs of
equal values are ``value*count`` with commas between, all of it in ``<seg></seg>``. `encode_mask` does what the
released code does to a mask (close, fill, resize, block maximum); `mask_of_blocks` is the inverse of the last step, so
that a mask made of whole blocks comes back exactly.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from tilewright.errors import InputError

from .zoom import FACTOR, smart_resize

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["blocks_of_mask", "decode_blocks", "encode_blocks", "encode_mask", "mask_of_blocks"]

_CLOSING = 50
"""Side in pixels of the square by which a mask is closed; even, so that the mask moves by a pixel, as published."""


def encode_blocks(blocks: NDArray[Any]) -> str:
    """Return whole numbers ``[rows, columns]`` as runs, ``1*3,0*2;`` and so on, a row after the other."""
    rows = []
    for row in np.asarray(blocks):
        starts = [0, *(np.flatnonzero(np.diff(row)) + 1)]
        lengths = np.diff([*starts, len(row)])
        rows.append(",".join(f"{row[start]}*{count}" for start, count in zip(starts, lengths, strict=True)))
    return "".join(f"{row};" for row in rows)


def decode_blocks(text: str) -> NDArray[np.int64]:
    """Return the numbers ``[rows, columns]`` of a text, with or without ``<seg></seg>`` and words around it.

    Raises
    ------
    InputError
        No rows, a run that is none, or rows of several lengths; a model may write all of them.
    """
    inside = re.search(r"<seg>(.*?)</seg>", text, re.DOTALL)
    rows = [row.strip() for row in (inside.group(1) if inside else text).split(";")]
    if rows and not rows[-1]:
        rows.pop()
    found: list[list[int]] = []
    for number, row in enumerate(rows, 1):
        if not re.fullmatch(r"\d+\*[1-9]\d*(\s*,\s*\d+\*[1-9]\d*)*", row):
            raise InputError(f"{row[:40]!r} is no row of runs", place=f"Text-Mask, row {number}")
        runs = [tuple(map(int, run.split("*"))) for run in row.split(",")]
        if sum(count for _, count in runs) > _LONGEST:
            raise InputError(f"is longer than {_LONGEST:,} blocks", place=f"Text-Mask, row {number}")
        found.append([value for value, count in runs for _ in range(count)])
    lengths = {len(row) for row in found}
    if len(lengths) != 1:
        said = ", ".join(map(str, sorted(lengths))) or "none"
        raise InputError(f"rows have one length; these have {said}", place="Text-Mask")
    return np.array(found, np.int64)


_LONGEST = 100_000
"""Blocks of a row beyond which a text is refused; a model may write any number."""


def blocks_of_mask(mask: NDArray[Any], shape: tuple[int, int] | None = None) -> NDArray[np.int64]:
    """Return the blocks ``[rows, columns]`` of a mask, 0 and 1.

    Parameters
    ----------
    mask
        ``[rows, columns]`` of bytes, 255 inside; as published a value of 1 counts as outside.
    shape
        Size at which the model sees the image, multiples of 28; None takes that of Qwen2.5-VL.
    """
    from scipy.ndimage import binary_fill_holes, maximum_filter1d, minimum_filter1d

    inside = (np.asarray(mask) > 1).astype(np.uint8)
    for smooth, beyond in ((maximum_filter1d, 0), (minimum_filter1d, 1)):
        for axis in (0, 1):
            inside = smooth(inside, _CLOSING, axis=axis, mode="constant", cval=beyond)
    filled = binary_fill_holes(inside)
    rows, cols = shape or smart_resize(*inside.shape)
    resized = filled[_nearest(inside.shape, (rows, cols))]
    blocks = resized.reshape(rows // FACTOR, FACTOR, cols // FACTOR, FACTOR).max(axis=(1, 3))
    found: NDArray[np.int64] = blocks.astype(np.int64)
    return found


def encode_mask(mask: NDArray[Any], shape: tuple[int, int] | None = None) -> str:
    """Return a mask as text; see `blocks_of_mask`."""
    return f"<seg>{encode_blocks(blocks_of_mask(mask, shape))}</seg>"


def mask_of_blocks(blocks: NDArray[Any], shape: tuple[int, int]) -> NDArray[np.int64]:
    """Return the numbers of blocks over the pixels of an image of ``shape`` (rows, columns), nearest."""
    known = np.asarray(blocks, np.int64)
    found: NDArray[np.int64] = known[_nearest(known.shape, shape)]
    return found


def _nearest(old: tuple[int, ...], new: tuple[int, ...]) -> tuple[NDArray[np.int64], ...]:
    """Return the rows and columns of the old pixels in which the middles of the new ones lie."""
    return np.ix_(
        *((2 * np.arange(after) + 1) * before // (2 * after) for before, after in zip(old, new, strict=True))
    )

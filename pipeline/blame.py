"""Whose fault it is when a kernel's forward raises: one clear error with the line of the kernel's own code."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tilewright.errors import KernelError, TilewrightError

__all__ = ["blamed", "is_out_of_memory"]

_LIBRARIES = ("site-packages", "dist-packages")


@contextmanager
def blamed(place: str) -> Iterator[None]:
    """Turn whatever a user's forward raises into a `KernelError` that names file and line; our own errors pass."""
    try:
        yield
    except (TilewrightError, MemoryError):
        raise
    except Exception as error:  # a user's forward may raise anything
        frames = traceback.extract_tb(error.__traceback__)
        own = ([f for f in frames if not any(part in f.filename for part in _LIBRARIES)] or list(frames))[-1]
        first = (str(error).strip().splitlines() or [""])[0]
        raise KernelError(
            f"its forward raises {type(error).__name__}: {first} ({Path(own.filename).name}, line {own.lineno})",
            place=place,
            remedy="tilewright.testing.check_kernel finds such faults",
        ) from error


def is_out_of_memory(error: BaseException | None) -> bool:
    """True where ``error``, or what caused it, says that memory was too small: the host's or the device's."""
    while error is not None:
        text = str(error)
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
            return True
        # torch's allocator of host memory raises a plain RuntimeError.
        if isinstance(error, RuntimeError) and ("can't allocate memory" in text or "out of memory" in text):
            return True
        error = error.__cause__
    return False

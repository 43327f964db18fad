"""Numbers of numpy in torch files, read without running any code of numpy's pickles.

Training checkpoints often hold the best score so far as a number of numpy. Its pickle names two things, the type and
the function that makes the number, which torch refuses with ``weights_only=True``. numpy's own are not allowed here:
a type that is described falsely lets them take bytes for addresses. Small ones stand in for them that read a handful
of plain types from as many bytes.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pickle import UnpicklingError
from typing import Any

import numpy as np

__all__ = ["numpy_scalars"]

_PLAIN = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")
"""Truth values, integers and floats, with their numbers of bytes."""
_LOCK = threading.Lock()


class _Type:
    """Stands in for ``numpy.dtype``: the letters of a plain type, and its order of bytes."""

    def __init__(self, letters: object, *_: object) -> None:
        if letters not in _PLAIN:
            raise UnpicklingError(f"Unsupported numpy type {letters!r}")
        self.letters, self.order = str(letters), "="

    def __setstate__(self, state: object) -> None:
        order = state[1] if isinstance(state, tuple) and len(state) > 1 else None
        if order not in ("<", ">", "|", "="):
            raise UnpicklingError("Unsupported numpy type: no order of bytes")
        self.order = str(order)


def _scalar(kind: object, content: object = b"") -> bool | int | float:
    """Stand in for numpy's function that makes a scalar; returns a plain number."""
    if not (isinstance(kind, _Type) and isinstance(content, bytes)):
        raise UnpicklingError("Unsupported numpy scalar")
    plain = np.dtype(kind.order.replace("|", "=") + kind.letters)
    if len(content) != plain.itemsize:
        raise UnpicklingError("Unsupported numpy scalar: wrong number of bytes")
    number: bool | int | float = np.frombuffer(content, plain)[0].item()
    return number


_STAND_INS: list[Any] = [
    (_Type, "numpy.dtype"),
    (_scalar, "numpy.core.multiarray.scalar"),
    (_scalar, "numpy._core.multiarray.scalar"),
]


@contextmanager
def numpy_scalars() -> Iterator[None]:
    """Let ``torch.load(weights_only=True)`` read numbers of numpy as plain ones, one file at a time."""
    from torch.serialization import safe_globals

    with _LOCK, safe_globals(_STAND_INS):
        yield

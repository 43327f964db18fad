"""A run in a process that dies at a change of the file system; a module of its own, so that processes can import it."""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tilewright.pipeline.report import Report

WISHES: dict[str, Any] = {"device": "cpu", "threads": 1, "batch": 1, "tile": 128, "shard": 256}
CHANGES = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate")


def doubled(x: Any) -> Any:
    """Twice the value."""
    return 2 * x


def run(raster: str, out: str) -> Report:
    """Map `doubled` over a raster."""
    from tilewright.api import apply
    from tilewright.kernels.user import kernel

    describe = kernel(
        name="doubled", inputs={"image": {"dates": 1, "bands": 1}}, radius=0, outputs={"o": {"kind": "value"}}
    )
    return apply(describe(doubled), [raster], out=out, **WISHES)


def victim(raster: str, out: str, at: int, counted: Any) -> None:
    """Run until the file system was changed ``at`` times below ``out``, and die there; -1 lives."""

    lock = threading.Lock()  # not of the counter: it would stay locked for ever

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in CHANGES or not str(arguments[0]).startswith(out):
            return
        if event == "open" and not (
            isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        ):
            return
        with lock:
            counted.value += 1
            if counted.value == at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    run(raster, out)

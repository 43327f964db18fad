"""Ctrl-C and SIGTERM of the command line: the first stops cleanly, the second at once."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["Stop", "Terminated", "clean_stop"]

SIGNALS = (signal.SIGINT, signal.SIGTERM)
TOLD = "stopping: what is being written is finished first; a second Ctrl-C ends at once"


class Terminated(KeyboardInterrupt):
    """SIGTERM, as what Ctrl-C raises: schedulers and service managers end a program by it."""


class Stop:
    """How a program was asked to stop."""

    status = 130
    """The exit status that shells expect: 128 and the number of the signal."""
    raised: KeyboardInterrupt | None = None
    """What was raised; None where no signal came."""

    @property
    def message(self) -> str:
        """What stays of the work, as a `Run` noted it at the exception, and what the same command then does."""
        note = next(iter(getattr(self.raised, "__notes__", ())), "finished shards are kept")
        return f"interrupted: {note}" if ";" in note else f"interrupted: {note}; the same command goes on"


@contextmanager
def clean_stop(stop: Stop) -> Iterator[None]:
    """Raise `KeyboardInterrupt` on SIGINT and `Terminated` on SIGTERM; end the process on the second of them.

    Python runs handlers of signals between the steps of its main thread, which may be minutes into a call of
    GDAL. So a thread hears of signals as well (`signal.set_wakeup_fd`), says that the first was heard, and
    obeys the second. Outside of the main thread, where no handler can be set, this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def raise_it(number: int, _frame: FrameType | None) -> None:
        stop.raised = KeyboardInterrupt() if number == signal.SIGINT else Terminated()
        stop.status = 128 + number
        raise stop.raised

    heard, heard_by_us = socket.socketpair()
    heard.setblocking(False)
    before = {number: signal.signal(number, raise_it) for number in SIGNALS}
    waking = signal.set_wakeup_fd(heard.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_obey, args=(heard_by_us,), name="tilewright-signals", daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(waking)
        for number, handler in before.items():
            signal.signal(number, handler)
        heard.close()  # the thread reads the end, and ends


def _obey(heard: socket.socket) -> None:
    """Say that the first signal was heard, and leave on the second with the status that shells expect."""
    seen = 0
    with heard:
        while data := heard.recv(1):
            if data[0] not in SIGNALS:
                continue
            seen += 1
            if seen > 1:
                os._exit(128 + data[0])
            print(f"tilewright: {TOLD}", file=sys.stderr, flush=True)  # noqa: T201

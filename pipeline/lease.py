"""Who writes at an address of an object store, or in a folder: a lock with an owner, renewed while he lives.

It is taken by a conditional put (``If-None-Match: *``, or ``O_EXCL`` on a disk), which S3, GCS and Azure have, so two
machines that start at once cannot both get it. Who died leaves his lock: the same owner takes it back at once, so
does another process of the same machine, any other machine after `LIFETIME`. Clocks are compared across machines, so
they must agree to a minute or so. A clock that was put back makes nobody wait: a lock that is said to end later than
two lifetimes from now has been written by a clock that was wrong.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self

from tilewright.errors import ResumeError, StoreError

from . import objects

__all__ = ["Lease"]

NAME = "run.lock"
LIFETIME = timedelta(minutes=10)
"""How long a lock holds without renewal."""
RENEWAL_S = 120.0
"""Seconds between two renewals."""


class Lease:
    """The lock of one run at ``url``: enter it to take it, and leave it to give it back.

    Parameters
    ----------
    folder
        The work folder, which names the owner: what was started there is the same run.
    url
        Address of the prefix, or path of the folder, that is locked.
    owner
        The owner instead; a host's name and something that no other process has.
    name
        Of the lock object.
    """

    def __init__(self, folder: Path | None, url: str, *, owner: str | None = None, name: str = NAME) -> None:
        self._folder, self._given, self._name = folder, owner, name
        self._address, self.url = f"{url}/{name}", url
        self._end = threading.Event()
        self._thread: threading.Thread | None = None
        self._lost: str | None = None

    def __enter__(self) -> Self:
        self._owner = self._given or self._identity()
        with self._alone():
            if not objects.put_new(self._address, self._lock()):
                self._take_over()
        self._thread = threading.Thread(target=self._renew, name="tilewright-lease", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        if self._thread is not None:
            self._thread.join()
        if self._lost is None:
            try:
                objects.remove(self._address)
            except StoreError:
                return  # it ends by itself; what went wrong with the store is told by the run

    def check(self) -> None:
        """Raise `ResumeError` where another machine holds the address by now."""
        if self._lost is not None:
            raise ResumeError(
                f"another machine has taken over: {self._lost}",
                place=self.url,
                remedy="let it finish, or stop it and repeat the command",
            )

    def _identity(self) -> str:
        """Return what tells this work folder from those of other machines; its file lock keeps processes apart."""
        assert self._folder is not None
        path = self._folder / ".owner"
        if not path.exists():
            path.write_text(f"{socket.gethostname()} {uuid.uuid4().hex}")
        return path.read_text()

    def _lock(self) -> bytes:
        until = datetime.now(UTC) + LIFETIME
        lock = {"owner": self._owner, "pid": os.getpid(), "machine": _machine(), "until": until.isoformat()}
        return json.dumps(lock).encode()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """In a folder, let one process at a time look at a lock and replace it; a store has no such means."""
        if objects.is_remote(self.url):
            yield
            return
        import fcntl

        guard = objects.local_path(self.url) / f".{self._name}.guard"
        guard.parent.mkdir(parents=True, exist_ok=True)
        with guard.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _take_over(self) -> None:
        """Take a lock that is our own or has ended; raises `ResumeError` for one that holds."""
        found = self._held()
        if found is not None and found["owner"] != self._owner:
            now, until = datetime.now(UTC), datetime.fromisoformat(found["until"])
            if now < until <= now + 2 * LIFETIME and not _is_dead(found):
                host = found["owner"].partition(" ")[0]
                raise ResumeError(
                    f"another run is writing here, on {host} (process {found['pid']}); its lock holds until"
                    f" {until:%Y-%m-%d %H:%M} UTC unless it is renewed",
                    place=self.url,
                    remedy=f"wait for it, use another --out, or, if it is dead, delete {self._name} there",
                )
            objects.remove(self._address)
            if not objects.put_new(self._address, self._lock()):
                self._take_over()  # somebody was faster: it holds now
            return
        objects.put(self._address, self._lock())

    def _held(self) -> dict[str, Any] | None:
        data = objects.fetch(self._address)
        return None if data is None else json.loads(data)

    def _renew(self) -> None:
        while not self._end.wait(RENEWAL_S):
            try:
                found = self._held()
                if found is not None and found["owner"] != self._owner:
                    self._lost = found["owner"].partition(" ")[0]
                    return
                objects.put(self._address, self._lock())
            except StoreError:
                continue  # a store that does not answer for now; the run's own writes tell it better


def _machine() -> str:
    """Return what tells machines apart, and containers that share a host's name."""
    try:
        return f"{socket.gethostname()} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return socket.gethostname()


def _is_dead(lock: dict[str, Any]) -> bool:
    """Return True where the lock's process was one of this machine and is gone."""
    import psutil

    return lock.get("machine") == _machine() and not psutil.pid_exists(int(lock["pid"]))

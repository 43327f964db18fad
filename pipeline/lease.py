"""Who writes at an address of an object store: a lock object with an owner, renewed while a run lives.

It is taken by a conditional put (``If-None-Match: *``), which S3, GCS and Azure have, so two machines that start at
once cannot both get it. A run that died leaves its lock: the same work folder takes it back at once, another
machine after `LIFETIME`. Clocks are compared across machines, so they must agree to a minute or so.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import uuid
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
    """The lock of one run at ``url``: enter it to take it, and leave it to give it back."""

    def __init__(self, folder: Path, url: str) -> None:
        self._folder = folder
        self._address, self.url = f"{url}/{NAME}", url
        self._end = threading.Event()
        self._thread: threading.Thread | None = None
        self._lost: str | None = None

    def __enter__(self) -> Self:
        self._owner = self._identity()
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
        path = self._folder / ".owner"
        if not path.exists():
            path.write_text(f"{socket.gethostname()} {uuid.uuid4().hex}")
        return path.read_text()

    def _lock(self) -> bytes:
        until = datetime.now(UTC) + LIFETIME
        return json.dumps({"owner": self._owner, "pid": os.getpid(), "until": until.isoformat()}).encode()

    def _take_over(self) -> None:
        """Take a lock that is our own or has ended; raises `ResumeError` for one that holds."""
        found = self._held()
        if found is not None and found["owner"] != self._owner:
            until = datetime.fromisoformat(found["until"])
            if until > datetime.now(UTC):
                host = found["owner"].partition(" ")[0]
                raise ResumeError(
                    f"another run is writing here, on {host} (process {found['pid']}); its lock holds until"
                    f" {until:%Y-%m-%d %H:%M} UTC unless it is renewed",
                    place=self.url,
                    remedy=f"wait for it, use another --out, or, if it is dead, delete {NAME} there",
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

"""Prefect without telemetry: for the import of Prefect and for runs that tilewright itself starts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["quiet"]

QUIET = {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"}
"""What keeps Prefect's server and its client from reporting home."""


@contextmanager
def quiet() -> Iterator[None]:
    """Turn Prefect's telemetry off in the environment, except where the user decided; afterwards all is as before.

    Prefect's own server, where a run starts one, inherits the environment.
    """
    ours = {name: value for name, value in QUIET.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)

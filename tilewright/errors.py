"""The errors that tilewright raises: what went wrong, where, and what to change.

They form the floor of the house: every wing imports them and they import nothing. The command line prints
one as a single line and leaves with ``exit_code``; in Python the parts are attributes.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "CatalogError",
    "ClusterError",
    "GridError",
    "InputError",
    "KernelError",
    "PlanError",
    "ReadError",
    "ResumeError",
    "StoreError",
    "TilewrightError",
    "WeightsError",
    "nearest_name",
]


class TilewrightError(Exception):
    """Base of all errors of tilewright.

    Parameters
    ----------
    cause
        What is wrong, with the values met, in one sentence without a full stop.
    place
        Where: item, asset, band, window, shard, file or recipe key.
    remedy
        What the user can change, in one sentence without a full stop.
    """

    exit_code = 1
    """Status with which the command line ends: 2 for a wrong request, 1 for a run that failed."""

    def __init__(self, cause: str, *, place: str | None = None, remedy: str | None = None) -> None:
        self.cause = cause
        self.place = place
        self.remedy = remedy
        super().__init__(cause, place, remedy)

    def __str__(self) -> str:
        text = f"{self.place}: {self.cause}" if self.place else self.cause
        return f"{text}; {self.remedy}" if self.remedy else text

    def __reduce__(self) -> tuple[object, ...]:
        # Keyword-only arguments survive pickling, so that a worker's error reaches the user whole.
        return _rebuild, (type(self), self.cause, self.place, self.remedy)


def _rebuild(
    kind: type[TilewrightError], cause: str, place: str | None, remedy: str | None
) -> TilewrightError:
    return kind(cause, place=place, remedy=remedy)


class InputError(TilewrightError):
    """The request cannot be carried out as it stands: recipe, region, file, band, key or option."""

    exit_code = 2


class CatalogError(InputError):
    """A catalog does not answer, answers nonsense, or holds nothing that was asked for."""


class GridError(InputError):
    """A grid, window, tile or shard contradicts itself or the data."""


class KernelError(InputError):
    """A kernel is unknown, describes itself wrongly, or does not fit what it is given."""


class WeightsError(KernelError):
    """Weights are absent, have another checksum, or do not fit the module."""


class PlanError(InputError):
    """The plan does not fit: memory, scratch disk or number of tasks."""


class ResumeError(InputError):
    """The output folder holds another run, or one whose fingerprint differs."""


class ReadError(TilewrightError):
    """Pixels could not be read, after the retries."""


class StoreError(TilewrightError):
    """A result could not be written, or what was written does not validate."""


class ClusterError(TilewrightError):
    """A Dask scheduler or its workers are away, differ from this machine, or gave up on a part of a run."""


def nearest_name(name: str, known: Iterable[str]) -> str:
    """Return the help for a misspelt ``name``: the nearest of ``known``, else all.

    >>> nearest_name("nri", ["red", "nir"])
    "did you mean 'nir'?"
    """
    names = sorted(known)
    close = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"known: {', '.join(names)}" if names else "none is known"

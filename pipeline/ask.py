"""The loop of `ask`: a policy says what it wants to see, the pyramid is read, until the policy answers.

The loop knows the files and the ground, the policy neither: see `tilewright.kernels.ask`. What was read is on the
account, in bytes of decoded blocks; a budget is a wall, not a hint, and a policy that hits it may still answer with
what it has seen.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from tilewright.errors import InputError, KernelError
from tilewright.kernels.ask import BudgetSpentError, Exchange

from .pyramid import Account
from .table import footprint, write_json
from .vectorise import in_degrees
from .warp import through

if TYPE_CHECKING:
    from shapely.geometry.base import BaseGeometry

    from tilewright.kernels.ask import Answer, AskKernel, Evidence, Request

    from .pyramid import Pyramid

__all__ = ["MOST_STEPS", "Outcome", "ask", "evidence_geojson", "write_evidence", "write_trace"]

MOST_STEPS = 1000
"""Steps after which a policy is taken to be caught in a circle."""


@dataclass(frozen=True)
class Outcome:
    """An answer, and what it took."""

    question: str
    """What was asked."""
    answer: Answer
    """What the policy returned."""
    account: Account
    """What was read for it."""
    seconds: float
    """From the question to the answer."""
    total_bytes: int
    """What reading all of full resolution would have cost."""
    policy: str
    """Name of the policy."""

    @property
    def exchange(self) -> Exchange:
        """What a later turn of the dialogue is told of this one."""
        return Exchange(self.question, self.answer)

    def trace(self) -> dict[str, Any]:
        """Return what was done as plain data: windows, bytes of how many, seconds, and what the policy counted."""
        account = self.account
        return {
            "question": self.question,
            "answer": self.answer.text,
            "policy": self.policy,
            "seconds": round(self.seconds, 3),
            "steps": len(account.windows),
            "pixels_seen": account.pixels,
            "bytes_read": account.bytes_read,
            "bytes_of_full_resolution": self.total_bytes,
            "share_read": account.bytes_read / self.total_bytes,
            "bytes_of_level": {str(n): account.bytes_of_level[n] for n in sorted(account.bytes_of_level)},
            "windows": [[_plain(request) for request in step] for step in account.windows],
            **dict(self.answer.trace),
        }


def _plain(request: Request) -> list[int]:
    return [request.level, request.row0, request.col0, request.row1, request.col1]


def ask(
    policy: AskKernel,
    question: str,
    pyramid: Pyramid,
    *,
    budget: int | None = None,
    history: Sequence[Outcome] = (),
) -> Outcome:
    """Ask a policy about a pyramid.

    Parameters
    ----------
    policy
        Says what it wants to see; see `tilewright.kernels.ask`.
    question
        In words.
    pyramid
        The image.
    budget
        Most bytes that may be read, as the account counts them; None: as many as the policy wants. A step that
        would go beyond is not read; instead `BudgetSpentError` is raised inside the policy, which may catch it and
        answer.
    history
        Turns of the same dialogue that are over, oldest first.

    Raises
    ------
    KernelError
        The policy asked for what is not there, or never answered.
    BudgetSpentError
        The budget was too small for an answer.
    ReadError
        A window could not be read.
    """
    if not question.strip():
        raise InputError("the question is empty", place="ask", remedy="ask something")
    begun, account = perf_counter(), Account()
    scene = replace(pyramid.scene, history=tuple(outcome.exchange for outcome in history))
    asking = policy.ask(question, scene)
    try:
        wanted = next(asking)
        for _ in range(MOST_STEPS):
            if budget is not None and account.bytes_read + (cost := pyramid.cost(wanted)) > budget:
                wanted = asking.throw(_spent(cost, account.bytes_read, budget))
                continue
            wanted = asking.send(pyramid.read(wanted, account))
    except StopIteration as stop:
        return Outcome(
            question, stop.value, account, perf_counter() - begun, pyramid.total_bytes, policy.name
        )
    asking.close()
    raise KernelError(f"no answer after {MOST_STEPS} steps", place=f"policy {policy.name}")


def _spent(cost: int, read: int, budget: int) -> BudgetSpentError:
    return BudgetSpentError(
        f"the next step would read {cost:,} bytes beyond {read:,}, the budget is {budget:,}",
        place="ask",
        remedy="give more by --budget",
    )


def evidence_geojson(outcome: Outcome, pyramid: Pyramid) -> dict[str, Any]:
    """Return the evidence as a GeoJSON FeatureCollection in longitude and latitude, the most important first.

    Every feature has ``rank`` (from 1), ``score``, ``label``, ``pixels`` (column and row at full resolution, first
    and end) and what the policy said of it.
    """
    import shapely

    features = []
    for rank, found in enumerate(outcome.answer.evidence, start=1):
        properties = {
            "rank": rank,
            "score": found.score if math.isfinite(found.score) else None,
            "label": found.label,
            "pixels": list(found.box),
            **dict(found.properties),
        }
        outline = json.loads(shapely.to_geojson(_placed(found, pyramid)))
        features.append({"type": "Feature", "geometry": outline, "properties": properties})
    return {"type": "FeatureCollection", "features": features}


def _placed(found: Evidence, pyramid: Pyramid) -> BaseGeometry:
    """Return a piece of evidence in longitude and latitude: its outline, or its box."""
    import shapely

    box = pyramid.grid.geobox
    if found.outline is None or box.crs is None:
        return footprint(pyramid.grid, found.box)
    placed = shapely.transform(found.outline, lambda x, y: through(box.affine, x, y), interleaved=False)
    (moved,) = in_degrees([placed], str(box.crs))
    return moved


def write_evidence(outcome: Outcome, pyramid: Pyramid, path: Path) -> Path:
    """Write `evidence_geojson` to ``path``, whole or not at all; raises `StoreError`."""
    return write_json(path, evidence_geojson(outcome, pyramid))


def write_trace(outcomes: Sequence[Outcome], path: Path) -> Path:
    """Write the traces of a dialogue's turns to ``path``, whole or not at all; raises `StoreError`."""
    return write_json(path, [outcome.trace() for outcome in outcomes])

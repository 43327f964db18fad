"""What `tilewright verify` and `tilewright diff` print."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tilewright.show import console

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tilewright.pipeline.compare import Difference, OutputDifference
    from tilewright.verification import Verification

__all__ = ["print_difference", "print_verification"]

LINES = 20
"""Lines of one kind that are printed; JSON has all of them."""


def _say(line: str) -> None:
    console.print(line, highlight=False, markup=False)


def _some(lines: Iterator[str] | tuple[str, ...] | list[str], indent: str = "  ") -> None:
    told = list(lines)
    for line in told[:LINES]:
        _say(f"{indent}{line}")
    if len(told) > LINES:
        _say(f"{indent}and {len(told) - LINES:,} more; --json tells all")


def print_verification(found: Verification) -> None:
    """Print what was verified, what disagrees, and what has changed."""
    seed = "" if found.seed is None else f" (seed {found.seed})"
    if found.checks:
        done = "computed again and read back" if found.recomputed else "read back"
        equal = len(found.checks) - len(found.mismatches)
        unfinished = (
            "" if found.durable == found.shards else f"; {found.durable} of {found.shards} are finished"
        )
        _say(f"{found.out}: {len(found.checks)} shards {done}{seed}: {equal} equal{unfinished}")
        _some([str(check) for check in found.mismatches])
    if found.digest is not None:
        same = "is" if found.digest[0] == found.digest[1] else "is NOT"
        _say(f"{found.out}: the digest of the pixels {same} that of the report")
    if found.changed:
        _say("changed since the run:")
        _some(found.changed)
    if found.problem:
        _say(f"{'' if found.recomputed else 'not verified: '}{found.problem}")


def print_difference(found: Difference) -> None:
    """Print where and by how much two results differ."""
    _say(f"A {found.a}\nB {found.b}")
    if found.grid:
        _say("the grids differ, nothing can be compared:")
        _some(found.grid)
        return
    for line in found.only:
        _say(line)
    if found.records is not None:
        same = "equal" if found.equal else "not equal"
        _say(f"the tables of records are {same}: {found.records[0][:16]}, {found.records[1][:16]}")
    for output in found.outputs:
        _print_output(output)
    if found.equal:
        _say("equal" + (f" within {found.tolerance:g}" if found.tolerance else ""))
    elif found.causes:
        _say("what differs between the runs, the probable cause:")
        _some(found.causes)
    elif found.same_fingerprint:
        _say("the runs have the same fingerprint: tilewright verify tells which of them is as computed")


def _print_output(o: OutputDifference) -> None:
    if not o.differing:
        _say(f"{o.name}: {o.pixels:,} px equal")
        return
    _say(f"{o.name}: {o.differing:,} of {o.pixels:,} px differ ({o.share:.3%})")
    if o.largest is not None and o.mean is not None and o.p99 is not None:
        units = f" {o.units}" if o.units else ""
        _say(
            f"  |A - B| of those with a value on both sides: max {o.largest:.6g}, mean {o.mean:.6g}, "
            f"p99 {o.p99:.6g}{units}"
        )
    if o.only_a or o.only_b:
        _say(f"  a value in A alone: {o.only_a:,} px, in B alone: {o.only_b:,} px")
    _some([f"{one} -> {other}: {count:,} px" for one, other, count in o.changed])
    if (e := o.extent) is not None:
        box = ", ".join(f"{v:.10g}" for v in e.bounds)
        lonlat = "" if e.lonlat is None else f", lon/lat {', '.join(f'{v:.5f}' for v in e.lonlat)}"
        _say(f"  within rows {e.rows[0]}..{e.rows[1]}, columns {e.columns[0]}..{e.columns[1]}: {box}{lonlat}")
    for block in o.worst:
        w, by = block.window, "" if block.largest is None else f", by at most {block.largest:.6g}"
        _say(f"  block {block.name} (from row {w.row0}, column {w.col0}): {block.pixels:,} px{by}")

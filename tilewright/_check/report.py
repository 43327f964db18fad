"""What a check found, as plain data that prints well."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from tilewright.errors import KernelError

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["Finding", "Report", "Severity"]

Severity = Literal["error", "note"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong with a kernel, or worth knowing."""

    check: str
    """Name of the check: forward, output, range, random, batch, radius, alignment, stride, valid, input."""
    severity: Severity
    """``error``: maps made with this kernel would be wrong; ``note``: they are right, but read this."""
    message: str
    """What was found, with the values."""
    measured: float | None = None
    """The number behind it: radius, stride or shift in input pixels; else the largest difference, in output units."""
    remedy: str | None = None
    """What to change."""

    def __str__(self) -> str:
        text = f"{self.severity}: {self.check}: {self.message}"
        return f"{text}; {self.remedy}" if self.remedy else text


@dataclass(frozen=True, slots=True)
class Report:
    """The result of `check_kernel`. True (`ok`) where there is no error."""

    kernel: str
    """Name of the kernel."""
    tile: int
    """Side in pixels of the tiles that were tried."""
    checks: tuple[str, ...]
    """The checks that ran, in order; one that could not run is absent."""
    findings: tuple[Finding, ...]
    """What they found; errors first."""
    radius: int | None
    """The measured receptive radius in pixels; None where it reaches the edge of the tile, or was not measured."""
    seconds: float
    """Time taken."""

    @property
    def ok(self) -> bool:
        """True where no finding is an error."""
        return not self.errors

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings that are errors."""
        return tuple(f for f in self.findings if f.severity == "error")

    def of(self, check: str) -> Iterator[Finding]:
        """Yield the findings of one check."""
        return (f for f in self.findings if f.check == check)

    def raise_for_findings(self) -> None:
        """Raise `KernelError` with the first error, and how many more there are; nothing where there is none."""
        if self.ok:
            return
        first, *others = self.errors
        more = f" (and {len(others)} more: {', '.join(sorted({f.check for f in others}))})" if others else ""
        raise KernelError(f"{first.check}: {first.message}{more}", place=self.kernel, remedy=first.remedy)

    def __bool__(self) -> bool:
        return self.ok

    def __str__(self) -> str:
        return "\n".join([self._headline(), *(f"  {f}" for f in self.findings)])

    def _headline(self) -> str:
        verdict = "ok" if self.ok else f"{len(self.errors)} error{'s' if len(self.errors) > 1 else ''}"
        radius = "not bounded within the tile" if self.radius is None else f"{self.radius} px"
        if "radius" not in self.checks:
            radius = "not measured"
        return (
            f"{self.kernel}: {verdict}; {len(self.checks)} checks at tile {self.tile} in {self.seconds:.1f} s;"
            f" radius {radius}"
        )

    def __rich__(self) -> RenderableType:
        from rich.table import Table

        table = Table(title=self._headline(), title_justify="left")
        for column in ("", "check", "finding", "remedy"):
            table.add_column(column)
        for finding in self.findings:
            mark = "[red]error[/]" if finding.severity == "error" else "[yellow]note[/]"
            table.add_row(mark, finding.check, finding.message, finding.remedy or "")
        return table

"""The command line in this process: start-up of a new one takes seconds, and most tests need none."""

from __future__ import annotations

import contextlib
import io
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import rasterio
import yaml
from rasterio.transform import from_origin

ROOT = Path(__file__).resolve().parents[1]
CATALOG = ROOT / "data" / "catalog.json"


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    status: Any
    """Its exit status; a traceback as text where it ended with one."""
    out: str
    """What it printed."""
    err: str
    """What it said on the standard error."""

    @property
    def line(self) -> str:
        """The one line of a refusal; fails where it is none."""
        assert self.status == 2, self
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        assert lines[0].startswith("tilewright: "), self.err
        assert "Traceback" not in self.out + self.err
        return lines[0].removeprefix("tilewright: ")


def command(*arguments: Any) -> Done:
    """Run ``tilewright ARGUMENTS`` in this process."""
    from tilewright.cli import main

    out, err = io.StringIO(), io.StringIO()
    status: Any = None
    argv = ["tilewright", *map(str, arguments)]
    with (
        mock.patch.object(sys, "argv", argv),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as end:
            status = end.code
        except BaseException:  # noqa: BLE001 - what would be a traceback at the prompt
            status = traceback.format_exc()
    return Done(status, out.getvalue(), err.getvalue())


def refused(*arguments: Any, out: Path | None = None) -> str:
    """Run a command that must be refused: one line, status 2, nothing written into ``out``; return the line."""
    line = command(*arguments, *(() if out is None else ("--out", out))).line
    assert out is None or not out.exists(), sorted(out.iterdir())
    return line


def unfinished(out: Path) -> bool:
    """True where nothing in ``out`` looks finished."""
    names = [path.name for path in out.iterdir()] if out.exists() else []
    finished = {"result.zarr", "report.json", "item.json", "quicklook.png"}
    return not finished.intersection(names) and not any(name.endswith(".tif") for name in names)


def write_tif(
    path: Path,
    data: np.ndarray | None = None,
    *,
    crs: str | None = "EPSG:32621",
    shift: float = 0.0,
    names: tuple[str, ...] = (),
    **profile: Any,
) -> Path:
    """Write ``[bands, rows, columns]`` (a ramp of 64 x 64 unless given) as a GeoTIFF of 30 m pixels."""
    data = np.arange(64 * 64, dtype="float32").reshape(1, 64, 64) if data is None else data
    count, height, width = data.shape
    profile |= {"driver": "GTiff", "count": count, "height": height, "width": width, "dtype": data.dtype}
    transform = from_origin(700_000 + shift, 5_000_000, 30, 30)
    with rasterio.open(path, "w", crs=crs, transform=transform, **profile) as dataset:
        dataset.write(data)
        for band, name in enumerate(names, start=1):
            dataset.set_band_description(band, name)
    return path


CORNER = [-54.852, -25.2013, -54.834, -25.1847]
"""Around the corner of the two Landsat scenes: pixels of none, of one, of the other and of both."""


def write_recipe(path: Path, **changes: Any) -> Path:
    """Write a recipe over the Landsat scenes at `CORNER`; ``...`` as a value leaves a key out."""
    recipe = {
        "name": "corner",
        "catalog": str(CATALOG),
        "collections": "landsat-c1-l1",
        "region": CORNER,
        "dates": "2020-05-18",
        "grid": {"resolution": 30, "crs": "items"},
        "kernel": {"name": "index", "options": {"name": "NGRDI"}},
        **changes,
    }
    path.write_text(yaml.safe_dump({key: value for key, value in recipe.items() if value is not ...}))
    return path


KERNELS = """
import torch

import tilewright

ONE = {"image": {"bands": 1}}
OUT = {"o": {"kind": "value"}}


@tilewright.kernel(inputs=ONE, radius=0, outputs=OUT, description="Twice the value.")
def twice(x):
    return 2 * x


@tilewright.kernel(inputs=ONE, radius=40, outputs=OUT)
def wide(x):
    return x


@tilewright.kernel(inputs=ONE, radius=0, outputs=OUT)
def broken(x):
    return x / nothing


@tilewright.kernel(inputs=ONE, radius=0, outputs=OUT)
class net(torch.nn.Module):
    def __init__(self, width: int = 1):
        super().__init__()
        self.first = torch.nn.Conv2d(1, width, 1)
        self.last = torch.nn.Conv2d(width, 1, 1)

    def forward(self, x):
        return self.last(self.first(x))
"""
"""A file of kernels as a user writes them."""

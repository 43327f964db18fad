"""What is behind one pixel of a result: Items or files, masks, tile, kernel and ledger line, as plain data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tilewright.errors import InputError, TilewrightError
from tilewright.rebuild import opened_run, plain, run_folders

if TYPE_CHECKING:
    import numpy as np

    from tilewright.pipeline.grid import Grid, Tiling
    from tilewright.pipeline.report import Report
    from tilewright.rebuild import FinishedRun

__all__ = ["explain_pixel"]


def explain_pixel(out: str | Path, x: float, y: float) -> dict[str, Any]:
    """Say where a pixel of a run's result came from.

    The source is rebuilt from what the run left in its folder (ledger, report, ``items.json``), nothing is
    searched again, and one pixel of each file that covers it is read. Of a run that is not finished, all is
    told that the ledger knows.

    Parameters
    ----------
    out
        Folder of a run; or the folder above the parts of one that needed several grids.
    x, y
        A place in the CRS of the result where that falls on its grid, else longitude and latitude in degrees.

    Returns
    -------
    dict
        ``place``, ``outputs`` (stored and physical value, label, reason), ``shard`` with its ledger line,
        ``tiles`` (index, read window, pixels given; rows and columns of the input grid), ``kernel``,
        ``statistics``, ``inputs`` (dates, files or Items, oldest first) and, where the inputs or the run are
        not as they were, ``notes``.

    Raises
    ------
    InputError
        The folder holds no run, or the place is not on its grid.
    """
    folders = run_folders(out)
    if len(folders) > 1:
        return _of_parts([Path(folder) for folder in folders], x, y)
    with opened_run(out) as run:
        return _explained(run, x, y)


def _explained(run: FinishedRun, x: float, y: float) -> dict[str, Any]:
    out, ledger, report, grid, tiling = run.folder, run.ledger, run.report, run.grid, run.tiling
    result = _Result(out, grid)
    (row, col), place = _place(result.grid, x, y, out)
    at = row // result.scale, col // result.scale
    shard = tiling.shard_at(at[0] // tiling.shard, at[1] // tiling.shard, grid.shape)
    entry = ledger.entries.get(shard.name)
    inputs, notes = _inputs(run, at)
    if report is None:
        total = math.prod(math.ceil(n / tiling.shard) for n in grid.shape)
        notes.insert(
            0, f"the run is not finished: {len(ledger.entries)} of {total} shards; the same command goes on"
        )
    return {
        "place": place,
        "outputs": result.at(row, col) if entry else "not computed yet",
        "shard": _shard(shard.name, entry),
        "tiles": _tiles(tiling, at, grid.shape),
        "kernel": _kernel(run.about, report),
        **({"statistics": found} if (found := ledger.header.get("statistics")) else {}),
        "inputs": inputs,
        **({"notes": notes} if notes else {}),
    }


def _of_parts(parts: list[Path], x: float, y: float) -> dict[str, Any]:
    refused: list[str] = []
    for part in parts:
        try:
            return {"part": part.name, **explain_pixel(part, x, y)}
        except InputError as error:
            refused.append(f"{part.name}: {error.cause}")
    raise InputError("; ".join(refused), place=str(parts[0].parent), remedy="choose a place on one of them")


def _place(grid: Grid, x: float, y: float, out: Path) -> tuple[tuple[int, int], dict[str, Any]]:
    from tilewright.pipeline.warp import transformer

    taken = f"{x:.12g},{y:.12g} in {grid.crs}"
    at = _pixel(grid, x, y)
    if at is None and abs(x) <= 360 and abs(y) <= 90:
        there = transformer("OGC:CRS84", grid.crs).transform(x, y)
        taken = f"longitude {x:.12g}, latitude {y:.12g}"
        at = _pixel(grid, *there)
    if at is None:
        west, south, east, north = grid.geobox.extent.boundingbox.bbox
        w, s, e, n = grid.geobox.geographic_extent.boundingbox.bbox
        raise InputError(
            f"{x:.12g},{y:.12g} is not on the grid",
            place=str(out),
            remedy=f"choose x {west:.10g}..{east:.10g} and y {south:.10g}..{north:.10g} in {grid.crs}, or longitude"
            f" {w:.4f}..{e:.4f} and latitude {s:.4f}..{n:.4f}",
        )
    row, col = at
    centre = grid.geobox.affine * (col + 0.5, row + 0.5)
    lon, lat = transformer(grid.crs, "OGC:CRS84").transform(*centre)
    return at, {
        "taken_as": taken,
        "row": row,
        "column": col,
        "centre": [round(float(v), 6) for v in centre],
        "crs": grid.crs,
        "lonlat": [round(float(lon), 7), round(float(lat), 7)],
    }


def _pixel(grid: Grid, x: float, y: float) -> tuple[int, int] | None:
    u, v = ~grid.geobox.affine * (x, y)
    if not (math.isfinite(u) and math.isfinite(v)):
        return None
    row, col = math.floor(v), math.floor(u)
    return (row, col) if 0 <= row < grid.shape[0] and 0 <= col < grid.shape[1] else None


class _Result:
    """The rasters of a run, from its Zarr, or from the COGs where no Zarr was kept."""

    def __init__(self, out: Path, grid: Grid) -> None:
        from tilewright.pipeline.store import ResultStore

        self.store: ResultStore | None = None
        self.cogs: list[Path] = []
        rows = grid.shape[0]
        if any((out / name).exists() for name in ("result.zarr", "result.zarr.partial")):
            self.store = ResultStore.open(out / "result.zarr")
            rows = self.store.grid.shape[0]
        else:
            self.cogs = sorted(out.glob("*.tif"))
        for path in self.cogs[:1]:
            rows = _opened(path).height
        self.scale = rows // grid.shape[0]
        self.grid = grid.zoom(self.scale)

    def at(self, row: int, col: int) -> dict[str, Any]:
        """Return stored and physical value of each output, and the reason."""
        if self.store is None:
            return {path.stem: _cog_value(path, row, col) for path in self.cogs} or {
                "records": "see the table"
            }
        from tilewright.pipeline.explain import WORDS
        from tilewright.pipeline.grid import Window
        from tilewright.pipeline.reduce import quantisation
        from tilewright.pipeline.source import Reason

        pixel = Window(row, row + 1, col, col + 1)
        found: dict[str, Any] = {}
        for name, spec in self.store.outputs.items():
            bands = spec.bands if isinstance(spec.bands, tuple) else None
            stored = self.store.read(name, pixel).ravel()
            found[name] = _value(
                stored, spec.stored_nodata, quantisation(spec), spec.classes or (), spec.units, bands
            )
        found["reason"] = WORDS[Reason(int(self.store.read("reason", pixel)[0, 0]))]
        return found


def _opened(path: Path) -> Any:
    import rasterio

    return rasterio.open(path)


def _cog_value(path: Path, row: int, col: int) -> dict[str, Any]:
    from rasterio.windows import Window

    with _opened(path) as dataset:
        stored = dataset.read(window=Window(col, row, 1, 1)).ravel()
        classes = tuple(dataset.tags(1).get("flag_meanings", "").split())
        scale = dataset.scales[0], dataset.offsets[0]
        names = dataset.descriptions if dataset.count > 1 else None
        nodata = math.nan if dataset.nodata is None else dataset.nodata
        return _value(stored, nodata, scale, classes, dataset.units[0], names)


def _value(
    stored: np.ndarray[Any, Any],
    nodata: float,
    scale: tuple[float, float],
    classes: tuple[str, ...],
    units: str | None,
    bands: tuple[str | None, ...] | None,
) -> dict[str, Any]:
    from tilewright.pipeline.explain import plain_number

    raw = [plain_number(value) for value in stored]
    known = [None if value is None or value == nodata else value for value in raw]
    values = known if scale == (1, 0) else [None if v is None else v * scale[0] + scale[1] for v in known]
    found: dict[str, Any] = {
        "value": dict(zip(bands, values, strict=True))
        if bands
        else (values[0] if len(values) == 1 else values)
    }
    if classes and values[0] is not None:
        found["class"] = classes[int(values[0])] if int(values[0]) < len(classes) else "unnamed"
    if units:
        found["units"] = units
    if scale != (1, 0):
        found["stored"] = raw[0] if len(raw) == 1 else raw
    return found


def _shard(name: str, entry: Mapping[str, Any] | None) -> dict[str, Any]:
    if entry is None:
        return {"name": name, "ledger": "not finished yet"}
    keys = ("digest", "pixels", "reasons", "tiles", "tiles_needed", "bytes_read", "seconds_read")
    return {"name": name, "ledger": {key: entry[key] for key in keys if key in entry}}


def _tiles(tiling: Tiling, at: tuple[int, int], shape: tuple[int, int]) -> list[dict[str, Any]]:
    """Return the tiles that contribute to a pixel: one when cutting, up to four when blending."""
    from tilewright.pipeline.grid import Window

    pixel = Window(at[0], at[0] + 1, at[1], at[1] + 1)
    last = [min(i // tiling.core, tiling.count(n) - 1) for i, n in zip(at, shape, strict=True)]
    near = [
        tiling.tile_at(row, col, shape)
        for row in range(max(0, last[0] - 1), last[0] + 1)
        for col in range(max(0, last[1] - 1), last[1] + 1)
    ]
    return [
        {"index": list(tile.index), "reads": _text(tile.read), "gives": _text(tile.gives)}
        for tile in near
        if tile.gives.contains(pixel)
    ]


def _text(window: Any) -> str:
    return f"rows {window.row0}..{window.row1 - 1}, columns {window.col0}..{window.col1 - 1}"


def _kernel(about: Mapping[str, Any], report: Report | None) -> dict[str, Any]:
    from tilewright import __version__

    known = {**about["kernel"], **(report.kernel if report else {})}
    keys = ("name", "options", "weights", "weights_sha256", "digest", "licence", "citation", "status")
    found = {key: known[key] for key in keys if known.get(key)}
    arithmetic = about["arithmetic"]
    how = f"{arithmetic['precision']}, batch {arithmetic['batch']}, {arithmetic['threads']} threads"
    found["ran_on"] = f"{arithmetic['device']}, {how}, tilewright {about.get('tilewright', __version__)}"
    return found


def _inputs(run: FinishedRun, at: tuple[int, int]) -> tuple[Any, list[str]]:
    """Return the inputs at a pixel, and what the reader should know about them."""
    from tilewright.pipeline.explain import explain_items, explain_source
    from tilewright.pipeline.ledger import differences

    notes: list[str] = []
    recorded = run.about["source"]
    try:
        if recorded.get("kind") == "items":
            cube, items = run.cube()
            source: Any = cube
            found = explain_items(cube, items, *at)
        else:
            source, files = run.rasters()
            found = explain_source(source, *at)
            if len(files) == len(found):
                found = [{"files": names, **date} for names, date in zip(files, found, strict=True)]
            else:
                notes.append(f"files: {', '.join(name for names in files for name in names)}")
    except TilewrightError as error:
        return f"cannot be read again: {error}", notes
    if "coregistered" in recorded:
        notes.append("values are those before --coregister moved the later dates")
    told = {key: value for key, value in recorded.items() if key != "coregistered"}
    changed = list(differences(told, plain(source.describe())))
    if changed:
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        notes.append(f"the inputs have changed since the run: {changed[0]}{more}")
    return found, notes

"""A run, made again from what it left in its folder: ledger, report and ``items.json``. Nothing is searched."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from tilewright.errors import InputError

if TYPE_CHECKING:
    import os

    from tilewright.kernels.contract import Kernel
    from tilewright.pipeline.cube_source import CubeSource
    from tilewright.pipeline.grid import Grid, Tiling
    from tilewright.pipeline.job import Job
    from tilewright.pipeline.ledger import Ledger
    from tilewright.pipeline.report import Report
    from tilewright.pipeline.source import Source

__all__ = ["FinishedRun", "opened_run", "run_folders"]


@dataclass(frozen=True)
class FinishedRun:
    """What a run, finished or not, says of itself."""

    folder: Path
    """Where its ledger is read from."""
    place: str
    """Where its rasters lie: the folder, or an address in an object store."""
    ledger: Ledger
    """Its ledger."""
    report: Report | None
    """Its report; None where it is not finished."""

    @property
    def about(self) -> Mapping[str, Any]:
        """The fingerprint: everything that the answer depends on."""
        found: Mapping[str, Any] = self.ledger.header["depends_on"]
        return found

    @property
    def said(self) -> Mapping[str, Any]:
        """What was asked for: recipe or inputs; both ledger and report hold it."""
        found: Mapping[str, Any] = self.ledger.header.get("request") or (
            self.report.extra if self.report else {}
        )
        return found

    @property
    def grid(self) -> Grid:
        """The grid of its inputs."""
        import shapely
        from affine import Affine
        from odc.geo.geobox import GeoBox

        from tilewright.pipeline.grid import Grid

        known, region = self.about["grid"], self.said.get("region")
        box = GeoBox(tuple(known["shape"]), Affine(*known["transform"]), known["crs"])
        return Grid(box, shapely.from_wkt(region) if region else None)

    @property
    def tiling(self) -> Tiling:
        """How its grid was cut."""
        from tilewright.pipeline.grid import Tiling

        stitch = self.about["stitch"]
        return Tiling(
            tile=stitch["tile"],
            halo=stitch["halo"],
            taper=stitch["taper"],
            stride=stitch["stride"],
            shard=self.ledger.header["layout"]["shard"],
        )

    def cube(self, **more: Any) -> tuple[CubeSource, dict[tuple[str | None, str], Any]]:
        """Make its cube again from the rules it recorded and the snapshot of its Items; returns it and the Items.

        ``more`` goes to `CubeSource`.
        """
        from tilewright.catalogs.endpoints import endpoint
        from tilewright.catalogs.signing import signer_for
        from tilewright.catalogs.snapshot import read_snapshot
        from tilewright.pipeline.cube_source import CubeSource

        recorded = self.about["source"]
        snapshot = read_snapshot(self.folder / "items.json")
        items = {(item.collection_id, item.id): item for item in snapshot.items}
        periods = recorded["periods"]
        rules = [
            band for period in periods for date in period for one in date["items"] for band in one["bands"]
        ]
        cube = CubeSource(
            [
                [items[one["collection"], one["id"]] for date in period for one in date["items"]]
                for period in periods
            ],
            self.grid,
            bands=list(dict.fromkeys(band["band"] for band in rules)),
            reader=recorded["reader"],
            groupby=recorded["groupby"],
            mask=recorded["mask"],
            resampling=recorded["resampling"],
            composite=recorded["composite"],
            offsets={
                b["band"]: (b["calibration"]["scale"], b["calibration"]["offset"])
                for b in rules
                if b["calibration"]["row"] == "recipe"
            },
            nodata={b["band"]: float(b["nodata"]) for b in rules if b["nodata_from"] == "recipe"},
            signer=signer_for(endpoint(snapshot.searched.url)),
            dtype=recorded["dtype"],
            name=recorded["input"],
            **more,
        )
        return cube, items

    def rasters(self, **more: Any) -> tuple[Source, list[list[str]]]:
        """Open its files again; returns the source and the files of each date. ``more`` goes to `raster_source`.

        Raises `InputError` where the run was given arrays.
        """
        from tilewright.pipeline.rasters import raster_source

        recorded, said = self.about["source"], self.said
        if "inputs" not in said:
            raise InputError("the run names no files: it was given arrays", place="inputs")
        name = recorded.get("input") or next(iter(recorded.get("inputs", {"image": None})))
        files = [list(date) for date in said["inputs"]]
        source: Source = raster_source(files, bands=said.get("bands"), name=name, **more)
        if further := said.get("layers"):
            from tilewright.pipeline.inputs import join_inputs

            spec = self.kernel(source).spec
            found = {name: source} | {key: raster_source(dates, **more) for key, dates in further.items()}
            files += [list(date) for dates in further.values() for date in dates]
            source = join_inputs(spec, found)
        return source, files

    def kernel(self, source: Source) -> Kernel:
        """Load its kernel again as it was asked for; raises `KernelError`, or `InputError` where it was an object."""
        from tilewright.api import bound_kernel

        known = self.about["kernel"]
        asked = self.said.get("kernel")
        if not isinstance(asked, Mapping) or asked.get("name") is None:
            raise InputError(
                f"the run was given its kernel {known['name']} as an object, which no folder can hold",
                place=self.place,
                remedy="give the kernel again",
            )
        (layer, *_) = source.layers.values()
        return bound_kernel(asked["name"], layer.bands, asked.get("weights"), asked.get("options"))

    def job(self, kernel: Kernel | None = None, device: str | None = None) -> Job:
        """Make its job again, statistics included, without looking whether anything has changed.

        Parameters
        ----------
        kernel
            Instead of the one that the run names.
        device
            Instead of the run's own, where this machine has none.

        Raises
        ------
        TilewrightError
            Where inputs or kernel are gone, or do not fit each other any more.
        """
        from tilewright.pipeline.job import prepare
        from tilewright.pipeline.settings import Settings

        stitch, arithmetic = self.about["stitch"], self.about["arithmetic"]
        tolerated = any("read_error" in entry["reasons"] for entry in self.ledger.entries.values())
        more: dict[str, Any] = {"on_error": "reason"} if tolerated else {}
        source = (self.cube if self.about["source"].get("kind") == "items" else self.rasters)(**more)[0]
        settings = Settings(
            stitch=stitch["mode"],
            tile=stitch["tile"],
            shard=self.ledger.header["layout"]["shard"],
            batch=arithmetic["batch"],
            threads=arithmetic["threads"],
            device=device or arithmetic["device"],
            precision=arithmetic["precision"],
            boundary=stitch["boundary"],
            allow_clipping=True,  # what was refused then is not in the ledger
            coregister="coregistered" in self.about["source"],
            untrained=True,
            **more,
        )
        job = prepare(kernel or self.kernel(source), source, settings)
        return job.with_statistics(self.ledger.header.get("statistics", {}))


def run_folders(out: str | os.PathLike[str]) -> list[str]:
    """Return the folder of a run, or those of its parts where a region needed several grids.

    Raises `InputError` where there is none.
    """
    from tilewright.pipeline.objects import fetch, run_place

    folder, remote = run_place(out)
    if remote is not None:
        return [remote] if fetch(f"{remote}/ledger.jsonl") or (folder / "ledger.jsonl").exists() else []
    if not folder.is_dir():
        raise InputError("no such folder", place=str(out), remedy="name the folder of a run")
    if (folder / "ledger.jsonl").exists():
        return [str(folder)]
    parts = sorted(str(path.parent) for path in folder.glob("part-*/ledger.jsonl"))
    if not parts:
        raise InputError("it holds no run", place=str(out), remedy="name the folder that --out named")
    return parts


@contextmanager
def opened_run(out: str | os.PathLike[str]) -> Iterator[FinishedRun]:
    """Read what a run says of itself; from an object store its small files are fetched first.

    Raises `InputError` where there is no run, or several parts of one.
    """
    from tilewright.pipeline.ledger import Ledger
    from tilewright.pipeline.objects import fetch, run_place
    from tilewright.pipeline.report import Report

    folders = run_folders(out)
    if len(folders) != 1:
        told = f"it holds {len(folders)} parts of a run" if folders else "it holds no run"
        raise InputError(told, place=str(out), remedy="name the folder of one part" if folders else None)
    folder, remote = run_place(folders[0])
    with TemporaryDirectory(prefix="tilewright-") as temporary:
        if remote is not None and not (folder / "ledger.jsonl").exists():
            folder = Path(temporary)
            for name in ("ledger.jsonl", "report.json", "items.json"):
                if (data := fetch(f"{remote}/{name}")) is not None:
                    (folder / name).write_bytes(data)
        yield FinishedRun(folder, remote or str(folder), Ledger.read(folder), Report.read(folder))


def plain(value: Any) -> Any:
    """Return what JSON makes of ``value``, so that it can be compared with what was read from a file."""
    return json.loads(json.dumps(value, default=str))

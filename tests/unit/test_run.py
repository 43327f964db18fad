"""A run into a folder: killed and resumed, repeated, refused; and a report whose numbers add up."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import rasterio
from networks import gaussian33
from running import image, job_of, make_kernel, run_job, with_holes

from tilewright.errors import InputError, KernelError, ResumeError
from tilewright.pipeline.ledger import Ledger
from tilewright.pipeline.rasters import RasterSource
from tilewright.pipeline.report import Report
from tilewright.pipeline.run import Request, Status, execute
from tilewright.pipeline.store import ResultStore

if TYPE_CHECKING:
    import torch

    from tilewright.kernels.contract import Kernel
    from tilewright.pipeline.job import Job

SHAPE = (331, 263)


def blur() -> Kernel:
    """The 33-tap filter; blended it needs the range."""
    return make_kernel(gaussian33, radius=16, outputs={"blur": {"kind": "value", "range": (-9, 9)}})


def write_raster(path: Path, array: np.ndarray) -> Path:
    """Write ``[bands, rows, cols]`` as a tiled GeoTIFF whose nodata is NaN."""
    profile = {"driver": "GTiff", "tiled": True, "blockxsize": 64, "blockysize": 64, "nodata": float("nan")}
    count, height, width = array.shape
    transform = rasterio.Affine(10, 0, 500_000, 0, -10, 5_000_000)
    with rasterio.open(
        path,
        "w",
        count=count,
        height=height,
        width=width,
        dtype="float32",
        crs="EPSG:32633",
        transform=transform,
        **profile,
    ) as file:
        file.write(array)
    return path


@pytest.fixture(scope="module")
def raster(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_raster(tmp_path_factory.mktemp("input") / "scene.tif", with_holes(image(*SHAPE))[0])


def make_job(raster: Path, kernel: Kernel | None = None, **wishes: Any) -> Job:
    """Shards of 48 px: one tile of 80 px each when cutting, four of 64 px when blending."""
    tile = 64 if wishes.get("stitch") == "blend" else 80
    return job_of(
        kernel or blur(), RasterSource([str(raster)]), **{"tile": tile, "shard": 48, "batch": 2, **wishes}
    )


def run(raster: Path, out: Path, progress: Any = None, fresh: bool = False, **wishes: Any) -> Report:
    return execute(make_job(raster, **wishes), Request(out, "blurred", fresh=fresh), progress)


@pytest.fixture(scope="module")
def undisturbed(raster: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    out = tmp_path_factory.mktemp("run") / "out"
    return out, run(raster, out)


def stored(out: Path) -> dict[str, np.ndarray]:
    """The values of a finished run's Zarr."""
    store = ResultStore.open(out / "result.zarr")
    return {name: store.read(name, store.grid.window) for name in store.names}


# --- what a run leaves, and what it says of itself ---


def test_what_a_run_writes_is_what_the_engine_computes(
    raster: Path, undisturbed: tuple[Path, Report]
) -> None:
    out, report = undisturbed
    expected, _ = run_job(make_job(raster))
    found = stored(out)
    assert found["blur"].tobytes() == expected["blur"].tobytes()
    assert found["reason"].tobytes() == expected["reason"].tobytes()
    with rasterio.open(out / "blur.tif") as file:
        assert file.read().tobytes() == expected["blur"].tobytes()
        assert np.isnan(file.nodata)
    names = {p.name for p in out.iterdir()}
    assert names == {
        "blur.tif",
        "result.zarr",
        "item.json",
        "ledger.jsonl",
        "report.json",
        "quicklook.png",
        "model.json",
    }
    assert set(report.outputs.values()) <= names


def test_the_report_adds_up(undisturbed: tuple[Path, Report]) -> None:
    out, report = undisturbed
    asked = """tiles_needed tiles_run work_factor pixels_forward tile core halo stride shard_size batch threads
    device precision shards shards_reused seconds seconds_read seconds_forward seconds_write bytes_read
    peak_rss_bytes projected_memory_bytes pixels pixels_valid seam digest inputs kernel versions"""
    written = json.loads((out / "report.json").read_text())
    assert set(asked.split()) <= set(written)
    assert Report.read(out) == report
    assert (report.tile, report.halo, report.core, report.shard_size) == (80, 16, 48, 48)
    assert report.shards == len(Ledger.read(out).entries) == 7 * 6
    assert report.shards_reused == 0
    assert report.tiles_run == report.tiles_needed == 42
    assert report.work_factor == 1.0
    assert report.pixels_forward == 21 * 2 * 80 * 80
    assert report.pixels == SHAPE[0] * SHAPE[1] == sum(report.reasons.values())
    assert report.pixels_valid == report.reasons["valid"] == np.isfinite(stored(out)["blur"]).sum()
    assert report.bytes_read >= SHAPE[0] * SHAPE[1] * 4
    assert 0 < report.seconds_forward < report.seconds
    assert 0 < report.peak_rss_bytes <= report.projected_memory_bytes
    assert report.digest in json.dumps(json.loads((out / "item.json").read_text()))
    assert report.seam is None
    assert report.kernel["name"] == "probe"
    assert "scene.tif" in json.dumps(report.inputs)


def test_the_digest_is_that_of_the_pixels_and_not_of_the_shards(
    raster: Path, undisturbed: tuple[Path, Report], tmp_path: Path
) -> None:
    other = run(raster, tmp_path / "out", shard=192)
    assert other.shard_size != undisturbed[1].shard_size
    assert other.digest == undisturbed[1].digest
    assert other.fingerprint == undisturbed[1].fingerprint
    changed = run(raster, tmp_path / "changed", boundary="fill")
    assert changed.digest != other.digest
    assert changed.fingerprint != other.fingerprint


def test_progress_is_told_shard_by_shard(raster: Path, tmp_path: Path) -> None:
    told: list[Status] = []
    run(raster, tmp_path / "out", told.append, shard=96)
    shards = [status for status in told if status.phase == "shards"]
    total = shards[-1].total
    assert [(s.done, s.total) for s in shards] == [(i + 1, total) for i in range(total)]
    end = told[len(shards) :]
    assert [s.phase for s in end] == ["pyramid", "digest", "COG of blur", "quicklook", "Item"]
    assert [(s.done, s.total) for s in end] == [(i, 5) for i in range(5)]


# --- killed, resumed, repeated (promise 6) ---

KILLED = """
import os, signal, sys
from pathlib import Path
sys.path[:0] = sys.argv[1].split(os.pathsep)
from test_run import run

def die(status):
    if status.done == {at}:
        os.kill(os.getpid(), signal.SIGKILL)

run(Path(sys.argv[2]), Path(sys.argv[3]), die, stitch={stitch!r})
"""


def kill_at(at: int, stitch: str, raster: Path, out: Path) -> None:
    """Run in another process that is killed as soon as ``at`` shards are durable."""
    here = Path(__file__).resolve().parent
    code = KILLED.format(at=at, stitch=stitch)
    ended = subprocess.run(
        [sys.executable, "-c", code, f"{here}:{here.parent}", str(raster), str(out)],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr


@pytest.mark.parametrize("stitch", ["cut", "blend"])
def test_killed_in_the_middle_and_resumed(
    raster: Path, undisturbed: tuple[Path, Report], tmp_path: Path, stitch: str
) -> None:
    out = tmp_path / "out"
    kill_at(17, stitch, raster, out)
    assert not (out / "report.json").exists()
    assert not (out / "result.zarr").exists()
    assert not list(out.glob("*.tif"))
    kept = Ledger.read(out).entries
    assert 17 <= len(kept) <= 19
    assert (out / "result.zarr.partial").exists()
    report = run(raster, out, stitch=stitch)
    whole = undisturbed[1] if stitch == "cut" else run(raster, tmp_path / "whole", stitch=stitch)
    assert report.digest == whole.digest
    assert (
        stored(out)["blur"].tobytes()
        == stored(tmp_path / "whole" if stitch == "blend" else undisturbed[0])["blur"].tobytes()
    )
    assert report.shards_reused == len(kept)
    again = Ledger.read(out).entries
    assert {n: again[n] for n in kept} == kept  # finished shards were not computed again
    assert {n: e["digest"] for n, e in again.items()} == {
        n: e["digest"]
        for n, e in Ledger.read(tmp_path / "whole" if stitch == "blend" else undisturbed[0]).entries.items()
    }
    assert report.tiles_needed == whole.tiles_needed
    if stitch == "cut":
        assert report.work_factor == 1.0
        assert report.tiles_run == whole.tiles_run
    else:  # tiles of finished neighbours whose margins died with the process are computed again, and counted
        assert report.tiles_run > report.tiles_needed


def test_the_seam_and_the_clipped_values_survive_a_resume(raster: Path, tmp_path: Path) -> None:
    """Counts are of the whole result, across resumes: a seam is not forgotten with the process that saw it."""

    def stop(status: Status) -> None:
        if status.done == 17:
            raise KeyboardInterrupt

    wishes: dict[str, Any] = {"stitch": "blend", "allow_clipping": True}
    kernel = make_kernel(
        lambda x: x - x.mean(dim=(2, 3), keepdim=True),
        radius=None,
        outputs={"blur": {"kind": "value", "range": (-1, 1)}},
    )
    whole = execute(make_job(raster, kernel, **wishes), Request(tmp_path / "whole", "t"))
    assert whole.seam is not None
    assert whole.seam["blur"]["max"] > 0
    with pytest.raises(KeyboardInterrupt):
        execute(make_job(raster, kernel, **wishes), Request(tmp_path / "out", "t"), stop)
    resumed = execute(make_job(raster, kernel, **wishes), Request(tmp_path / "out", "t"))
    assert resumed.digest == whole.digest
    assert resumed.seam == whole.seam
    assert resumed.clipped["blur"] >= whole.clipped["blur"] > 0
    assert resumed.pixels_forward >= whole.pixels_forward


def test_a_second_identical_run_computes_nothing(raster: Path, tmp_path: Path) -> None:
    calls = []

    def watch(x: torch.Tensor) -> torch.Tensor:
        calls.append(float(x.abs().sum()))
        return x

    kernel = make_kernel(watch)
    out = tmp_path / "out"
    first = execute(make_job(raster, kernel), Request(out, "t"))
    stamp = (out / "report.json").stat().st_mtime_ns
    calls.clear()
    second = execute(make_job(raster, kernel), Request(out, "t"))
    assert not any(calls)  # the plan's probe of zeros, at most
    assert second.shards_reused == second.shards == first.shards
    assert second.digest == first.digest
    assert (out / "report.json").stat().st_mtime_ns == stamp


def test_another_run_into_the_same_folder_is_refused(raster: Path, undisturbed: tuple[Path, Report]) -> None:
    out, report = undisturbed
    other = make_kernel(lambda x: x, outputs={"blur": {"kind": "value"}}, name="other")
    with pytest.raises(ResumeError, match=r'kernel\.name: "probe" -> "other"'):
        execute(make_job(raster, other), Request(out, "t"))
    with pytest.raises(ResumeError, match=r"stitch\.boundary"):
        run(raster, out, boundary="fill")
    with pytest.raises(ResumeError, match=r"layout\.shard: 48 -> 96"):
        run(raster, out, shard=96)
    with pytest.raises(ResumeError, match="threads: 1 -> 2"):
        run(raster, out, threads=2)
    assert Report.read(out) == report
    assert stored(out)["blur"].shape == (1, *SHAPE) or stored(out)["blur"].shape == SHAPE


def test_changed_input_is_another_run(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "scene.tif", image(80, 80)[0])
    run(path, tmp_path / "out")
    write_raster(path, image(80, 80, seed=9)[0])
    with pytest.raises(ResumeError):
        run(path, tmp_path / "out")


def test_fresh_starts_over_and_removes_only_its_own(raster: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(raster, out, boundary="fill")
    (out / "notes.txt").write_text("mine")
    report = run(raster, out, fresh=True)
    assert report.shards_reused == 0
    assert (out / "notes.txt").read_text() == "mine"


def test_fresh_in_a_folder_of_somebody_else_removes_nothing(raster: Path, tmp_path: Path) -> None:
    out = tmp_path / "photos"
    out.mkdir()
    (out / "items.json").write_text("[]")
    run(raster, out, fresh=True)
    assert (out / "items.json").read_text() == "[]"


def test_a_folder_in_use_and_a_file_are_refused(raster: Path, tmp_path: Path) -> None:
    import fcntl

    out = tmp_path / "out"
    out.mkdir()
    with (out / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ResumeError, match="another run is writing here"):
            run(raster, out)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        run(raster, tmp_path / "file")


def test_finished_shards_without_their_zarr_are_refused(raster: Path, tmp_path: Path) -> None:
    import shutil

    def stop(status: Status) -> None:
        if status.done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(raster, tmp_path / "out", stop)
    shutil.rmtree(tmp_path / "out" / "result.zarr.partial")
    with pytest.raises(ResumeError, match="their Zarr is gone"):
        run(raster, tmp_path / "out")
    assert run(raster, tmp_path / "out", fresh=True).shards_reused == 0


def test_a_kernel_that_fails_keeps_what_was_finished(raster: Path, tmp_path: Path) -> None:
    """Out of range in the last rows alone: the shards before stay, and the message names the output."""
    kernel = make_kernel(
        lambda x, context: x * 0 + (context.origin[:, 0] > 250).float()[:, None, None, None] * 5,
        outputs={"blur": {"kind": "score"}},
    )
    job = make_job(raster, kernel, stitch="blend")
    with pytest.raises(KernelError, match="output blur"):
        execute(job, Request(tmp_path / "out", "t"))
    assert Ledger.read(tmp_path / "out").entries
    assert not (tmp_path / "out" / "report.json").exists()


def test_statistics_are_taken_once_and_kept_over_a_resume(raster: Path, tmp_path: Path) -> None:
    fits = []

    def fit(sample: Any) -> dict[str, float]:
        if len(sample["image"]) <= 100:  # the scene's; what a batch costs is tried with a larger one of noise
            fits.append(1)
        return {"mean": float(sample["image"].mean())}

    def stop(status: Status) -> None:
        if status.done == 3:
            raise KeyboardInterrupt

    kernel = make_kernel(
        lambda x, context: x - context.statistics.get("mean", 0.0), statistics={"sample": 100}, fit=fit
    )
    with pytest.raises(KeyboardInterrupt):
        execute(make_job(raster, kernel), Request(tmp_path / "out", "t"), stop)
    report = execute(make_job(raster, kernel), Request(tmp_path / "out", "t"))
    assert fits == [1]
    assert report.statistics.keys() == {"mean"}
    whole = execute(make_job(raster, kernel), Request(tmp_path / "whole", "t"))
    assert whole.digest == report.digest

"""Reads that fail once, three times, always; sources that are cut or damaged: what is said, kept and redone."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import rasterio
from commands import command, unfinished, write_tif
from scenes import bbox_of, make_item

from tilewright.api import apply
from tilewright.errors import ReadError, ResumeError
from tilewright.kernels.user import kernel
from tilewright.pipeline.cube_source import CubeSource
from tilewright.pipeline.job import prepare
from tilewright.pipeline.ledger import Ledger
from tilewright.pipeline.rasters import RasterSource
from tilewright.pipeline.report import Report
from tilewright.pipeline.run import Request, execute
from tilewright.pipeline.settings import Settings

if TYPE_CHECKING:
    import torch

    from .conftest import RangeServer

pytestmark = pytest.mark.integration

SIDE = 768
PIXELS = 40_000
"""Bytes after which only pixels lie in the scene's file."""
WISHES: dict[str, Any] = {"device": "cpu", "threads": 1, "batch": 1, "tile": 130, "shard": 256}
BLENDED = {**WISHES, "tile": 160}


@kernel(name="edges", inputs={"image": {"dates": 1, "bands": 1}}, radius=1, outputs={"o": {"kind": "value"}})
def edges(x: torch.Tensor) -> torch.Tensor:
    """Difference to the neighbours."""
    return x - (x.roll(1, 2) + x.roll(-1, 2) + x.roll(1, 3) + x.roll(-1, 3)) / 4


@kernel(
    name="mean",
    inputs={"image": {"dates": 1, "bands": 1}},
    radius=None,
    outputs={"o": {"kind": "value", "range": (-1, 2)}},
)
def blended(x: torch.Tensor) -> torch.Tensor:
    """A kernel with a global context, which has to be blended."""
    return (x + x.mean(dim=(2, 3), keepdim=True)) / 2


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise in blocks of 128 px, deflated."""
    data = np.random.default_rng(5).random((1, SIDE, SIDE), dtype="float32")
    path = tmp_path_factory.mktemp("scene") / "scene.tif"
    return write_tif(path, data, tiled=True, blockxsize=128, blockysize=128, compress="deflate")


@pytest.fixture(scope="module")
def undisturbed(scene: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    return out, apply(edges, [scene], out=out, **WISHES)


def same_result(out: Path, whole: Path) -> bool:
    """True where digest and the bytes of the COG are those of the undisturbed run."""
    digests = [Report.read(folder).digest for folder in (out, whole)]  # type: ignore[union-attr]
    return digests[0] == digests[1] and (out / "o.tif").read_bytes() == (whole / "o.tif").read_bytes()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait shortly between tries; GDAL's own retries, which know no shorter wait, are left out."""
    from tilewright.pipeline import handles

    monkeypatch.setattr(handles, "_FIRST_WAIT_S", 0.01)
    monkeypatch.setitem(handles._GDAL, "GDAL_HTTP_MAX_RETRY", "0")


def served(server: RangeServer, scene: Path) -> str:
    (server.folder / "scene.tif").write_bytes(scene.read_bytes())
    return f"{server.url}/scene.tif"


@pytest.mark.parametrize("times", [1, 3])
def test_a_read_that_fails_once_or_three_times(
    times: int, scene: Path, undisturbed: Any, http_ranges: RangeServer, tmp_path: Path, quick: None
) -> None:
    url = served(http_ranges, scene)
    http_ranges.fail(503, nth=3, times=times, beyond=PIXELS)
    apply(edges, [url], out=tmp_path / "out", **WISHES)
    assert Counter(r.status for r in http_ranges.log)[503] == times
    assert same_result(tmp_path / "out", undisturbed[0])


@pytest.mark.parametrize("fault", [503, 0, -1, -2], ids=["503", "dropped", "cut", "slow"])
def test_a_tenth_of_all_answers_is_bad(
    fault: int, scene: Path, undisturbed: Any, http_ranges: RangeServer, tmp_path: Path, quick: None
) -> None:
    url = served(http_ranges, scene)
    http_ranges.disturb(fault)
    report = apply(edges, [url], out=tmp_path / "out", **WISHES)
    statuses = Counter(request.status for request in http_ranges.log)
    assert statuses[fault] >= 2, "the test must have disturbed something"
    assert report.failures == []
    assert same_result(tmp_path / "out", undisturbed[0])


def test_a_tenth_of_all_answers_is_a_refusal(
    scene: Path, http_ranges: RangeServer, tmp_path: Path, quick: None
) -> None:
    """Over Items, whose hrefs are signed at open and once more where that is refused."""
    url = served(http_ranges, scene)
    item = make_item("remote", {"value": url}, bbox=bbox_of(scene))
    grid = RasterSource([scene]).grid

    def result(out: Path) -> Report:
        source = CubeSource([item], grid, signer=Renewing())  # type: ignore[arg-type]
        job = prepare(edges, source, Settings(**WISHES))
        return execute(job, Request(out, "signed"))

    calm = result(tmp_path / "calm")
    http_ranges.reset()
    http_ranges.disturb(403)
    disturbed = result(tmp_path / "disturbed")
    assert Counter(request.status for request in http_ranges.log)[403] >= 2
    assert (disturbed.digest, disturbed.failures) == (calm.digest, [])


class Renewing:
    """A signer whose tokens count up."""

    count = 1

    def sign(self, href: str) -> str:
        return f"{href}?token={self.count}"

    def refresh(self, href: str) -> str:
        self.count += 1
        return self.sign(href)


def test_a_server_that_goes_away_for_good(
    scene: Path, undisturbed: Any, http_ranges: RangeServer, tmp_path: Path, quick: None
) -> None:
    """Raise by default; what was finished is kept; `--on-error reason` goes on; `--retry-failed` mends it."""
    url, out = served(http_ranges, scene), tmp_path / "out"
    http_ranges.fail(503, nth=3, times=10_000, beyond=PIXELS)
    with pytest.raises(
        ReadError, match=r"scene\.tif rows .*after 4 tries.*repeat the command later.*--on-error reason"
    ):
        apply(edges, [url], out=out, **WISHES)
    assert unfinished(out)
    kept = len(Ledger.read(out).entries)
    tolerant = apply(edges, [url], out=out, on_error="reason", **WISHES)
    assert tolerant.shards_reused == kept
    assert tolerant.reasons["read_error"] > 0
    assert sum(tolerant.reasons.values()) == SIDE**2
    assert {f["source"] for f in tolerant.failures} == {url}
    failed = {name for name, e in Ledger.read(out).entries.items() if e["failures"]}
    assert failed
    again = apply(edges, [url], out=out, on_error="reason", **WISHES)
    assert again.shards_reused == again.shards, "a finished result stays as it is unless asked"
    http_ranges.reset()
    report = apply(edges, [url], out=out, retry_failed=True, **WISHES)
    assert report.shards_reused == report.shards - len(failed)
    assert report.failures == []
    assert same_result(out, undisturbed[0])


def test_no_block_of_a_date_that_failed_is_lost_for_the_other(scene: Path, tmp_path: Path) -> None:
    """Two dates, one of them damaged: the code says so where both are needed."""
    both = kernel(
        name="both", inputs={"image": {"dates": 2, "bands": 1}}, radius=0, outputs={"o": {"kind": "value"}}
    )(lambda x: x[:, 0] - x[:, 1])
    pair, wishes = [scene, damaged(scene, tmp_path)], {**WISHES, "on_error": "reason"}
    report = apply(both, pair, out=tmp_path / "out", **wishes)
    assert 0 < report.reasons["read_error"] <= 2 * 128**2, "only the blocks of the file that are damaged"
    other = apply(both, pair, out=tmp_path / "other", **{**wishes, "tile": 128, "shard": 384})
    assert other.digest == report.digest, "whatever window they were read in"
    assert report.reasons["valid"] == SIDE**2 - report.reasons["read_error"]
    assert {f["source"] for f in report.failures} == {str(tmp_path / "damaged.tif")}


def damaged(scene: Path, folder: Path) -> Path:
    """A copy with a block in the middle whose deflate stream is broken; the header is as it was."""
    raw = bytearray(scene.read_bytes())
    middle = len(raw) // 2
    raw[middle : middle + 3000] = b"\xff" * 3000
    path = folder / "damaged.tif"
    path.write_bytes(bytes(raw))
    return path


def test_a_broken_deflate_stream(scene: Path, undisturbed: Any, tmp_path: Path) -> None:
    path, out = damaged(scene, tmp_path), tmp_path / "out"
    run = ("apply", "change-vector", scene, path, "--tile", 128, "--shard", 256, "--threads", 1, "--out", out)
    line = command(*run).line
    assert f"{path} rows" in line
    assert "check that the file is whole, or go on without it by --on-error reason" in line
    assert unfinished(out)
    done = command(*run, "--on-error", "reason")
    assert done.status == 0, done
    report = json.loads((out / "report.json").read_text())
    assert report["failures"]
    with rasterio.open(out / report["outputs"][next(iter(report["outputs"]))]) as dataset:
        assert dataset.shape == (SIDE, SIDE)
    path.write_bytes(scene.read_bytes())  # mended; but the file is another one now
    assert "holds another run" in command(*run, "--retry-failed").line


def test_retrying_what_did_not_fail_changes_nothing(scene: Path, undisturbed: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    apply(edges, [scene], out=out, **WISHES)
    stamp = (out / "report.json").stat().st_mtime_ns
    report = apply(edges, [scene], out=out, retry_failed=True, **WISHES)
    assert report.shards_reused == report.shards
    assert (out / "report.json").stat().st_mtime_ns == stamp


def test_blended_neighbours_of_a_failed_shard_are_redone(
    scene: Path, http_ranges: RangeServer, tmp_path: Path, quick: None
) -> None:
    url, out = served(http_ranges, scene), tmp_path / "out"
    whole = apply(blended, [scene], out=tmp_path / "whole", **BLENDED)
    http_ranges.fail(503, nth=7, times=10_000, beyond=PIXELS)
    first = apply(blended, [url], out=out, on_error="reason", **BLENDED)
    assert first.failures
    assert first.digest != whole.digest
    http_ranges.reset()
    report = apply(blended, [url], out=out, retry_failed=True, **BLENDED)
    assert 0 < report.shards_reused < report.shards
    assert report.digest == whole.digest


def test_only_cog_keeps_no_zarr_to_mend(
    scene: Path, http_ranges: RangeServer, tmp_path: Path, quick: None
) -> None:
    url, out = served(http_ranges, scene), tmp_path / "out"
    http_ranges.fail(503, nth=7, times=10_000, beyond=PIXELS)
    apply(edges, [url], out=out, only="cog", on_error="reason", **WISHES)
    http_ranges.reset()
    with pytest.raises(ResumeError, match="their Zarr is gone; start over with --fresh"):
        apply(edges, [url], out=out, only="cog", retry_failed=True, **WISHES)
    assert (out / "o.tif").exists(), "refused before anything is changed"


def test_statistics_that_missed_a_read_are_taken_again(
    scene: Path, http_ranges: RangeServer, tmp_path: Path, quick: None
) -> None:
    """A threshold of the whole scene depends on every pixel: all shards are redone, not those alone that failed."""

    def centred(x: torch.Tensor, context: Any) -> torch.Tensor:
        return x - context.statistics["mean"]

    numbered = kernel(
        name="centred",
        inputs={"image": {"dates": 1, "bands": 1}},
        radius=0,
        outputs={"o": {"kind": "value"}},
        statistics={"sample": 50_000},
        fit=lambda sample: {"mean": float(sample["image"].mean())},
    )(centred)
    url, out = served(http_ranges, scene), tmp_path / "out"
    wishes = {**WISHES, "tile": 128}
    whole = apply(numbered, [scene], out=tmp_path / "whole", **wishes)
    http_ranges.fail(503, nth=7, times=10_000, beyond=PIXELS)
    first = apply(numbered, [url], out=out, on_error="reason", **wishes)
    assert Ledger.read(out).header["statistics_failures"] > 0
    assert first.statistics != whole.statistics
    http_ranges.reset()
    report = apply(numbered, [url], out=out, retry_failed=True, **wishes)
    assert report.statistics == whole.statistics
    assert report.digest == whole.digest

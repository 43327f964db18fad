"""`apply` over HTTP ranges and S3, and runs whose result goes to an object store; all real servers on loopback."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import rasterio
from rasterio.transform import Affine

import tilewright
from tilewright.api import apply
from tilewright.errors import InputError, ReadError, ResumeError, StoreError
from tilewright.flows.runs import run
from tilewright.kernels.user import kernel
from tilewright.pipeline import objects
from tilewright.pipeline.grid import Window
from tilewright.pipeline.rasters import RasterSource

if TYPE_CHECKING:
    import torch

    from .conftest import S3, RangeServer

pytestmark = pytest.mark.integration

SHAPE = (1013, 877)
WISHES: dict[str, Any] = {"device": "cpu", "threads": 2, "tile": 130, "shard": 256}
LANDSAT = Path(__file__).resolve().parents[2] / "examples" / "landsat-mosaic.yaml"


@kernel(
    name="contrast",
    inputs={"image": {"dates": 1, "bands": 2}},
    radius=1,
    outputs={"contrast": {"kind": "value", "range": None}},
)
def contrast(x: torch.Tensor) -> torch.Tensor:
    """Difference of the first band from its neighbours, times the second."""
    first, second = x[:, :1], x[:, 1:]
    around = first.roll(1, 2) + first.roll(-1, 2) + first.roll(1, 3) + first.roll(-1, 3)
    return (first - around / 4) * second


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiled GeoTIFF of two bands of noise, which no codec makes small."""
    path = tmp_path_factory.mktemp("scene") / "scene.tif"
    rng = np.random.default_rng(3)
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        count=2,
        height=SHAPE[0],
        width=SHAPE[1],
        dtype="uint16",
        crs="EPSG:32633",
        transform=Affine(10, 0, 500_000, 0, -10, 5_000_000),
        tiled=True,
        blockxsize=128,
        blockysize=128,
        compress="deflate",
        nodata=0,
    ) as file:
        file.write(rng.integers(0, 4000, (2, *SHAPE)).astype(np.uint16))
    return path


@pytest.fixture
def s3_environment(s3: S3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> S3:
    """The keys and the endpoint as a user has them, and a cache folder of the test."""
    for name in (
        "AWS_ENDPOINT_URL",
        "AWS_ALLOW_HTTP",
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_REGION",
    ):
        monkeypatch.setenv(name, s3.environment[name])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return s3


def served(server: RangeServer, scene: Path) -> str:
    (server.folder / "scene.tif").write_bytes(scene.read_bytes())
    return f"{server.url}/scene.tif"


def asked_bytes(server: RangeServer) -> int:
    """Bytes of all answered GET requests."""
    total = 0
    for request in server.log:
        if request.method == "GET" and request.status in (200, 206):
            size = (server.folder / request.path.lstrip("/").partition("?")[0]).stat().st_size
            low, _, high = (request.span or "bytes=0-").removeprefix("bytes=").partition("-")
            total += min(int(high or size - 1), size - 1) - int(low) + 1
    return total


def test_apply_over_http_equals_the_local_run(scene: Path, tmp_path: Path, http_ranges: RangeServer) -> None:
    local = apply(contrast, [scene], out=tmp_path / "local", **WISHES)
    over = apply(contrast, [served(http_ranges, scene)], out=tmp_path / "http", **WISHES)
    assert over.digest == local.digest
    assert (tmp_path / "http/contrast.tif").read_bytes() == (tmp_path / "local/contrast.tif").read_bytes()


def test_a_window_over_http_reads_far_less_than_the_file(scene: Path, http_ranges: RangeServer) -> None:
    url = served(http_ranges, scene)
    block = RasterSource([url]).read(Window(300, 400, 500, 600))
    with rasterio.open(scene) as file:
        expected = file.read(window=((300, 400), (500, 600)))
    assert (block.data["image"][0] == expected).all()
    assert asked_bytes(http_ranges) < 0.15 * scene.stat().st_size


def test_a_server_that_fails_once_costs_a_retry_and_no_bit(
    scene: Path, tmp_path: Path, http_ranges: RangeServer
) -> None:
    local = apply(contrast, [scene], out=tmp_path / "local", **WISHES)
    url = served(http_ranges, scene)
    http_ranges.fail(503, nth=6, times=1, match="scene.tif")
    over = apply(contrast, [url], out=tmp_path / "http", **WISHES)
    assert 503 in [request.status for request in http_ranges.log]
    assert over.digest == local.digest


def test_a_url_without_a_file_is_named(scene: Path, tmp_path: Path, http_ranges: RangeServer) -> None:
    url = served(http_ranges, scene)
    http_ranges.fail(404, times=999, match="scene.tif")
    with pytest.raises(InputError, match=r"scene\.tif.*404"):
        apply(contrast, [url], out=tmp_path / "http", **WISHES)
    assert not (tmp_path / "http").exists()


def test_from_s3_to_s3(scene: Path, tmp_path: Path, s3_environment: S3) -> None:
    import rioxarray  # noqa: F401 - registers .rio
    import xarray as xr
    from rio_cogeo.cogeo import cog_validate

    local = apply(contrast, [scene], out=tmp_path / "local", **WISHES)
    objects.upload(scene, f"{s3_environment.url}/in/scene.tif")
    out = f"{s3_environment.url}/out/contrast"
    report = apply(contrast, [f"{s3_environment.url}/in/scene.tif"], out=out, **WISHES)
    assert report.digest == local.digest
    store = objects.zarr_store(f"{out}/result.zarr", read_only=True)
    for level in ("0", "1"):
        with xr.open_zarr(store, group=level, consolidated=False, decode_coords="all") as data:
            assert data.rio.crs.to_epsg() == 32633
            if level == "0":
                assert data["contrast"].shape == SHAPE
    assert objects.fetch(f"{out}/contrast.tif") == (tmp_path / "local/contrast.tif").read_bytes()
    vsi = out.replace("s3://", "/vsis3/")
    options = {
        "AWS_S3_ENDPOINT": s3_environment.endpoint[7:],
        "AWS_HTTPS": "NO",
        "AWS_VIRTUAL_HOSTING": "FALSE",
    }
    with rasterio.Env(**options):
        valid, errors, _ = cog_validate(f"{vsi}/contrast.tif")
    assert valid, errors
    item = json.loads(objects.fetch(f"{out}/item.json") or b"")
    assert item["properties"]["tilewright:digest"] == report.digest
    assert set(item["assets"]) >= {"contrast", "zarr", "quicklook"}
    folder = objects.work_folder(out)
    assert folder.is_relative_to(tmp_path / "cache" / "tilewright")
    assert not list(folder.glob("*.tif"))
    again = apply(contrast, [f"{s3_environment.url}/in/scene.tif"], out=out, **WISHES)
    assert again.shards_reused == report.shards


def test_a_failed_run_resumes_and_another_machine_sees_it_finished(
    scene: Path, tmp_path: Path, s3_environment: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = apply(contrast, [scene], out=tmp_path / "local", **WISHES)
    out = f"{s3_environment.url}/out/resumed"
    real, reads = RasterSource.read, []

    def read(self: RasterSource, window: Window) -> Any:
        reads.append(window)
        if len(reads) == 8:
            raise ReadError("cannot be read", place="scene")
        return real(self, window)

    monkeypatch.setattr(RasterSource, "read", read)
    with pytest.raises(ReadError):
        apply(contrast, [scene], out=out, batch=1, **WISHES)
    assert objects.fetch(f"{out}/report.json") is None
    report = apply(contrast, [scene], out=out, batch=1, **WISHES)
    assert 0 < report.shards_reused < report.shards
    assert report.digest == local.digest
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another-machine"))
    seen = apply(contrast, [scene], out=out, batch=1, **WISHES)
    assert seen.shards_reused == seen.shards
    assert len(reads) < 60
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a-third"))
    with pytest.raises(ResumeError, match="another run"):
        apply(contrast, [scene], out=out, batch=2, **WISHES)
    fresh = apply(contrast, [scene], out=out, batch=2, fresh=True, **WISHES)
    assert fresh.digest == local.digest
    assert fresh.shards_reused == 0


def test_only_cog_leaves_no_zarr_in_the_store(scene: Path, s3_environment: S3) -> None:
    out = f"{s3_environment.url}/out/cog"
    report = apply(contrast, [scene], out=out, only="cog", **WISHES)
    assert "zarr" not in report.outputs
    assert objects.fetch(f"{out}/contrast.tif") is not None
    assert objects.fetch(f"{out}/result.zarr/zarr.json") is None


def test_a_recipe_goes_to_the_store_by_the_command_line(s3_environment: S3, tmp_path: Path) -> None:
    out = f"{s3_environment.url}/out/landsat"
    area = "-54.80,-25.30,-54.75,-25.25"
    local = run(LANDSAT, region=area, out=tmp_path / "local")
    command = [sys.executable, "-m", "tilewright", "run", str(LANDSAT), f"--region={area}", "--out", out]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(objects.fetch(f"{out}/report.json") or b"")
    assert report["digest"] == local[0].digest
    item = json.loads(objects.fetch(f"{out}/item.json") or b"")
    hrefs = [link["href"] for link in item["links"] if link["rel"] == "derived_from"]
    assert len(hrefs) == 2
    assert all(href.startswith("urn:stac:landsat-c1-l1:") for href in hrefs)
    assert objects.fetch(f"{out}/items.json") is not None


def test_a_store_that_refuses_is_one_clear_error(scene: Path, s3_environment: S3, monkeypatch: Any) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(StoreError, match="check the address, the keys and the endpoint"):
        apply(contrast, [scene], out=f"{s3_environment.url}/out/refused", **WISHES)


@pytest.mark.parametrize("only", ["zarr", "cog"])
def test_verify_and_diff_of_a_result_in_an_object_store(
    scene: Path, tmp_path: Path, s3_environment: S3, monkeypatch: pytest.MonkeyPatch, only: Any
) -> None:
    """On another machine: there is no work folder, and the small files are fetched."""
    url = f"{s3_environment.url}/proof-{only}"
    local = apply(contrast, [scene], out=tmp_path / "local", only=only, **WISHES)
    assert apply(contrast, [scene], out=url, only=only, **WISHES).digest == local.digest
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other machine"))
    found = tilewright.verify(url, sample=3, kernel=contrast)
    assert (found.exit_code, found.problem, len(found.checks)) == (0, None, 3)
    assert {check.stored for check in found.checks} == {check.ledger for check in found.checks}
    difference = tilewright.diff(tmp_path / "local", url)
    assert difference.equal
    assert difference.same_fingerprint
    assert difference.outputs[0].pixels == SHAPE[0] * SHAPE[1]

"""`map_tiles` and runs of records: vectors, texts and boxes against slow twins, resumed, refused."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import geopandas
import numpy as np
import pystac
import pytest
import scipy.ndimage
from fakes import ArraySource
from hypothesis import given, settings
from hypothesis import strategies as st
from running import image, job_of, make_kernel, with_holes

from tilewright.errors import KernelError, ReadError, ResumeError, TilewrightError
from tilewright.pipeline.report import Report
from tilewright.pipeline.run import Request
from tilewright.pipeline.tiles import execute_records, map_tiles

if TYPE_CHECKING:
    import torch

    from tilewright.kernels.contract import Kernel

SHAPE = (231, 197)
WISHES: dict[str, Any] = {"device": "cpu", "threads": 2}


def means(radius: int = 0) -> Kernel:
    """The mean of each band over the valid pixels of a tile."""

    def forward(x: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        return (x * valid).sum(dim=(2, 3)) / valid.sum(dim=(2, 3)).clamp(min=1)

    return make_kernel(
        forward,
        bands=3,
        radius=radius,
        outputs={"mean": {"kind": "vector", "bands": 3, "valid_rule": "any"}},
    )


def captions() -> Kernel:
    def forward(x: torch.Tensor, context: Any) -> list[str]:
        return [
            f"tile at {int(r)},{int(c)}: {'bright' if v > 0 else 'dark'}"
            for (r, c), v in zip(context.origin, x.mean(dim=(1, 2, 3)), strict=True)
        ]

    return make_kernel(forward, bands=3, radius=0, outputs={"caption": {"kind": "text"}})


def detector(radius: int = 12) -> Kernel:
    """Boxes around connected pixels above 0.5; the label says whether they are bright."""

    def forward(x: torch.Tensor) -> list[dict[str, Any]]:
        found = []
        for plane in x[:, 0].numpy():
            marks, _ = scipy.ndimage.label(plane > 0.5)
            places = scipy.ndimage.find_objects(marks)
            boxes = [(c.start, r.start, c.stop, r.stop) for r, c in places]
            scores = [float(plane[r, c].max()) for r, c in places]
            found.append({"boxes": boxes, "scores": scores, "labels": [int(s > 0.8) for s in scores]})
        return found

    outputs = {"things": {"kind": "boxes", "classes": ["dim", "bright"]}}
    return make_kernel(forward, radius=radius, outputs=outputs)


def source(holes: bool = True) -> ArraySource:
    array = image(*SHAPE, bands=3)
    return ArraySource(with_holes(array) if holes else array)


def test_vectors_equal_a_slow_twin() -> None:
    cube = source()
    table = map_tiles(means(), cube, tile=32, shard=96, **WISHES)
    array = cube.arrays["image"][0]
    assert len(table) == 8 * 7
    for row in table.itertuples():
        r, c = 32 * row.tile_row, 32 * row.tile_col
        piece = array[:, r : r + 32, c : c + 32]
        valid = np.isfinite(piece).all(axis=0)
        # Tiles beyond the edge see mirrored pixels: only whole ones equal the plain mean.
        if piece.shape[1:] == (32, 32):
            np.testing.assert_allclose(row.mean, piece[:, valid].mean(axis=1), atol=1e-6)


def test_neither_shard_nor_batch_changes_a_bit() -> None:
    tables = [
        map_tiles(means(radius=5), source(), tile=42, shard=shard, batch=batch, **WISHES)
        for shard, batch in ((32, 1), (64, 4), (256, 7))
    ]
    for other in tables[1:]:
        assert tables[0].drop(columns=["mean"]).equals(other.drop(columns=["mean"]))
        assert np.stack(tables[0]["mean"]).tobytes() == np.stack(other["mean"]).tobytes()


def test_texts_come_with_crs_and_footprints() -> None:
    table = map_tiles(captions(), source(holes=False), tile=64, **WISHES)
    assert table.crs == "OGC:CRS84"
    assert table.caption[0].startswith("tile at 0,0: ")
    metric = table.to_crs(32633)
    first = metric.geometry[0].bounds
    assert first == pytest.approx((500_000, 4_999_360, 500_640, 5_000_000), abs=0.01)
    assert metric.geometry.area.sum() == pytest.approx(SHAPE[0] * SHAPE[1] * 100, rel=1e-4)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 120), st.integers(0, 100), st.integers(1, 11), st.integers(1, 11)),
        max_size=12,
    ),
    st.sampled_from([40, 56, 72]),
    st.sampled_from([16, 64, 128]),
)
def test_each_blob_is_found_once_whatever_the_tile(
    blobs: list[tuple[int, int, int, int]], tile: int, shard: int
) -> None:
    array = np.zeros((1, 1, 131, 109), dtype=np.float32)
    for row, col, height, width in blobs:
        plane = array[0, 0]
        around = plane[max(0, row - 1) : row + height + 1, max(0, col - 1) : col + width + 1]
        if not around.any():  # blobs do not touch, so that none is larger than the halo
            plane[row : row + height, col : col + width] = 0.9
    marks, _ = scipy.ndimage.label(array[0, 0] > 0.5)
    wanted = sorted((c.start, r.start, c.stop, r.stop) for r, c in scipy.ndimage.find_objects(marks))
    table = map_tiles(detector(), ArraySource(array), tile=tile, shard=shard, **WISHES)
    assert sorted(zip(table.xmin, table.ymin, table.xmax, table.ymax, strict=True)) == wanted
    assert set(table.label) <= {"bright"}


def test_a_tile_without_a_valid_pixel_is_skipped_and_counted(tmp_path: Path) -> None:
    array = image(128, 128, bands=3)
    array[..., :64, :64] = np.nan
    job = job_of(means(), ArraySource(array), tile=32, shard=64)
    report = execute_records(job, Request(tmp_path / "out", "means"))
    assert report.tiles_needed == report.tiles_run == 12
    assert report.work_factor == 1.0
    assert report.pixels_valid == 128 * 128 - 64 * 64
    assert report.seam is None
    table = geopandas.read_parquet(tmp_path / "out" / "records.parquet")
    assert len(table) == 12
    item = pystac.Item.from_file(str(tmp_path / "out" / "item.json"))
    assert item.assets["records"].media_type == "application/vnd.apache.parquet"
    assert item.assets["records"].roles == ["data"]
    assert Report.read(tmp_path / "out") == report
    again = execute_records(job, Request(tmp_path / "out", "means"))
    assert again.shards_reused == report.shards == 4


class Failing(ArraySource):
    """Fails at one read."""

    at = 3

    def read(self, window: Any) -> Any:
        if len(self.reads) == self.at:
            raise ReadError("cannot be read", place="scene")
        return super().read(window)


def test_a_run_that_failed_keeps_its_shards_and_ends_like_one_that_did_not(tmp_path: Path) -> None:
    array = image(160, 160, bands=3)
    whole = execute_records(
        job_of(means(), ArraySource(array), tile=32, shard=64, batch=2), Request(tmp_path / "a", "m")
    )
    with pytest.raises(ReadError):
        execute_records(
            job_of(means(), Failing(array), tile=32, shard=64, batch=2), Request(tmp_path / "b", "m")
        )
    assert not list((tmp_path / "b").glob("*.parquet"))
    assert not (tmp_path / "b" / "report.json").exists()
    report = execute_records(
        job_of(means(), ArraySource(array), tile=32, shard=64, batch=2), Request(tmp_path / "b", "m")
    )
    assert 0 < report.shards_reused < report.shards
    assert report.digest == whole.digest
    assert report.work_factor == 1.0
    other = execute_records(
        job_of(means(), ArraySource(array), tile=32, shard=32, batch=3),
        Request(tmp_path / "b", "m", fresh=True),
    )
    assert other.fingerprint != whole.fingerprint  # the batch is in it
    assert other.digest == whole.digest
    assert not (tmp_path / "b" / "records.parquet.parts").exists()


def test_lost_parts_are_said(tmp_path: Path) -> None:
    array = image(160, 160, bands=3)
    with pytest.raises(ReadError):
        execute_records(job_of(means(), Failing(array), tile=32, shard=64, batch=2), Request(tmp_path, "m"))
    for part in (tmp_path / "records.parquet.parts").iterdir():
        part.unlink()
    with pytest.raises(ResumeError, match="--fresh"):
        execute_records(
            job_of(means(), ArraySource(array), tile=32, shard=64, batch=2), Request(tmp_path, "m")
        )


@pytest.mark.parametrize(
    ("outputs", "gives", "message"),
    [
        ({"v": {"kind": "vector", "bands": 4}}, lambda x: x.mean(dim=(2, 3)), "3 numbers"),
        ({"b": {"kind": "boxes"}}, lambda x: [[1, 2]] * len(x), "gave list"),
        (
            {"b": {"kind": "boxes"}},
            lambda x: [{"boxes": [[0, 0, 1, 1]], "scores": []}] * len(x),
            "1 boxes, 0 scores",
        ),
        (
            {"b": {"kind": "boxes", "classes": ["a"]}},
            lambda x: [{"boxes": [[0, 0, 1, 1]], "scores": [1], "labels": [3]}] * len(x),
            "label 3",
        ),
    ],
)
def test_what_a_kernel_gives_wrongly_is_said(outputs: Any, gives: Any, message: str) -> None:
    kernel = make_kernel(gives, bands=3, outputs=outputs)
    with pytest.raises(TilewrightError, match=message):
        map_tiles(kernel, source(holes=False), tile=32, **WISHES)


def test_rasters_and_blending_are_refused() -> None:
    with pytest.raises(KernelError, match="use map_pixels"):
        map_tiles(make_kernel(lambda x: x), source())
    with pytest.raises(KernelError, match="not blended"):
        map_tiles(means(), source(), stitch="blend", **WISHES)

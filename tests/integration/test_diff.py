"""`tilewright diff`: where and by how much two results differ, against numpy on the same arrays."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import rasterio
from commands import command, write_tif
from rio_cogeo.cogeo import cog_validate

import tilewright
from tilewright.errors import InputError
from tilewright.pipeline.compare import diff

SHAPE = (1, 300, 210)
CLASSES = {"kind": "class", "flag_meanings": "water forest town", "flag_values": "0 1 2"}
PIECES = """
import tilewright


@tilewright.kernel(inputs={"image": {"bands": 1}}, radius=0,
                   outputs={"o": {"kind": "value"}, "high": {"kind": "class", "classes": ["low", "high"]}})
def pieces(x):
    return {"o": x, "high": (x > FACTOR).float()}
"""


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path, np.ndarray, np.ndarray]:
    """Two rasters that differ in a corner, with nodata on one side or the other, and infinity in both."""
    generator = np.random.default_rng(8)
    a = generator.random(SHAPE, dtype="float32")
    b = a.copy()
    b[:, 200:260, 20:90] += generator.random((1, 60, 70), dtype="float32") ** 4
    b[:, 210:212, 30:40] = np.nan
    a[:, 230, 50:55] = np.nan
    a[:, 0, 0] = b[:, 0, 0] = np.inf
    paths = [
        write_tif(tmp_path / f"{name}.tif", values, nodata=np.nan) for name, values in (("a", a), ("b", b))
    ]
    return paths[0], paths[1], a[0], b[0]


def test_numbers_are_those_of_numpy(pair: tuple[Path, Path, np.ndarray, np.ndarray], tmp_path: Path) -> None:
    first, second, a, b = pair
    picture = tmp_path / "d.tif"
    found = tilewright.diff(first, second, out=picture)
    (one,) = found.outputs
    both = ~np.isnan(a) & ~np.isnan(b)
    with np.errstate(invalid="ignore"):
        far = np.where(a == b, 0, np.abs(a.astype(float) - b.astype(float)))
    values = both & (far > 0)
    assert (found.equal, found.exit_code) == (False, 1)
    assert (one.only_a, one.only_b) == (20, 5)
    assert one.differing == values.sum() + 25
    assert one.pixels == a.size
    assert one.share == pytest.approx(one.differing / a.size)
    assert one.largest == pytest.approx(far[values].max())
    assert one.mean == pytest.approx(far[values].mean())
    assert one.p99 == pytest.approx(np.quantile(far[values], 0.99, method="inverted_cdf"), rel=1e-3)
    assert one.extent is not None
    assert (one.extent.rows, one.extent.columns) == ((200, 259), (20, 89))
    assert one.extent.bounds == (700_600, 4_992_200, 702_700, 4_994_000)
    assert one.extent.lonlat is not None
    assert -54.5 < one.extent.lonlat[0] < one.extent.lonlat[2] < -54.3
    with rasterio.open(picture) as dataset:
        drawn = dataset.read(1)
        np.testing.assert_allclose(drawn[both], far[both], rtol=1e-6)
        assert np.isnan(drawn[~both]).all()
    assert cog_validate(picture, quiet=True)[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tif", "b.tif", "d.tif"]


def test_the_tolerance(pair: tuple[Path, Path, np.ndarray, np.ndarray], tmp_path: Path) -> None:
    first, second, a, b = pair
    both = ~np.isnan(a) & ~np.isnan(b) & np.isfinite(a)
    (one,) = diff(first, second, tolerance=0.5).outputs
    assert one.differing == (np.abs(a[both].astype(float) - b[both]) > 0.5).sum() + 25
    near = write_tif(
        tmp_path / "near.tif", np.where(np.isinf(a), a, a + np.float32(1e-3))[None], nodata=np.nan
    )
    assert command("diff", first, near, "--tolerance", "0.01").status == 0
    assert command("diff", first, near).status == 1
    with pytest.raises(InputError, match="tolerance"):
        diff(first, near, tolerance=-1)


def test_changed_classes(tmp_path: Path) -> None:
    a = np.zeros((1, 80, 80), "uint8")
    a[:, :, 40:] = 1
    b = a.copy()
    b[:, :10, 40:] = 2
    b[:, 70:, :10] = 1
    b[:, 0, 0] = 255
    paths = [tmp_path / "a.tif", tmp_path / "b.tif"]
    for path, values in zip(paths, (a, b), strict=True):
        write_tif(path, values, nodata=255)
        with rasterio.open(path, "r+") as dataset:
            dataset.update_tags(1, **CLASSES)
    (one,) = diff(*paths).outputs
    assert one.changed == (("forest", "town", 400), ("water", "forest", 100), ("water", "nodata", 1))
    assert (one.differing, one.only_a, one.largest) == (501, 1, None)
    shown = command("diff", *paths)
    assert shown.status == 1
    assert "forest -> town: 400 px" in shown.out


def test_other_grids_are_not_comparable(tmp_path: Path) -> None:
    data = np.zeros((1, 64, 64), "float32")
    plain = write_tif(tmp_path / "plain.tif", data)
    others = {
        "CRS": write_tif(tmp_path / "crs.tif", data, crs="EPSG:32622"),
        "transform": write_tif(tmp_path / "shifted.tif", data, shift=15.0),
        "shape": write_tif(tmp_path / "smaller.tif", data[:, :60]),
    }
    for word, other in others.items():
        found = diff(plain, other)
        assert (found.exit_code, found.outputs) == (2, ())
        assert [line.partition(":")[0] for line in found.grid] == [word]
        assert command("diff", plain, other).status == 2
    assert diff(plain, plain).exit_code == 0
    assert "no rasters" in command("diff", plain, tmp_path / "nothing").line


def test_runs_say_why_and_where(tmp_path: Path) -> None:
    """Two thresholds: only the class changes, in the blocks where the image is between them."""
    values = np.zeros((1, 96, 96), "float32")
    values[:, 40:60, 40:90] = 0.4
    values[:, 90:, :5] = 0.4
    image = write_tif(tmp_path / "image.tif", values)
    outs = []
    for name, factor in (("a", "0.5"), ("b", "0.3")):
        (tmp_path / f"{name}.py").write_text(PIECES.replace("FACTOR", factor))
        outs.append(tmp_path / name)
        sizes = ("--tile", 32, "--shard", 32, "--threads", 1)
        assert command("apply", f"{tmp_path / name}.py:pieces", image, "--out", outs[-1], *sizes).status == 0
    found = tilewright.diff(*outs)
    told = {one.name: one for one in found.outputs}
    assert told.keys() == {"o", "high", "reason"}
    assert [told[name].differing for name in ("o", "high", "reason")] == [0, 1030, 0]
    assert told["high"].changed == (("low", "high", 1030),)
    assert [(b.name, b.pixels) for b in told["high"].worst][:2] == [("1.2", 520), ("1.1", 480)]
    assert [line.partition(":")[0] for line in found.causes] == ["kernel.digest"]
    shown = json.loads(command("diff", *outs, "--json").out)
    assert shown["outputs"][1]["extent"]["rows"] == [40, 95]
    assert "kernel.digest" in command("diff", *outs).out
    # The same run twice, one of them from its COGs alone, and one output fewer.
    twin = Path(shutil.copytree(outs[0], tmp_path / "twin"))
    assert diff(outs[0], twin).same_fingerprint
    shutil.rmtree(twin / "result.zarr")
    assert diff(outs[0], twin).equal
    (twin / "high.tif").unlink()
    report = json.loads((twin / "report.json").read_text())
    del report["outputs"]["high"]
    (twin / "report.json").write_text(json.dumps(report))
    assert diff(outs[0], twin).only == ("A alone has output 'high'",)
    assert diff(outs[0] / "o.tif", outs[1] / "result.zarr").outputs[0].differing == 0

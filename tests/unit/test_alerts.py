"""What changed between two results, as polygons: every pixel once, across blocks, labels and numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from running import make_kernel

import tilewright
from tilewright.errors import InputError
from tilewright.pipeline import compare
from tilewright.pipeline.alerts import Alert, find_alerts

TRANSFORM = Affine(10, 0, 500_000, 0, -10, 5_300_000)
CLASSES = {"out": {"kind": "class", "classes": ["low", "middle", "high"]}}


def classify(x: torch.Tensor) -> torch.Tensor:
    return (x > 1).float() + (x > 2).float()


def result(folder: Path, name: str, pixels: np.ndarray, *, labels: bool = True, **grid: Any) -> str:
    """Write a raster, and run a kernel of labels, or one that gives the pixels as they are, over it."""
    path = folder / f"{name}.tif"
    profile = {"driver": "GTiff", "count": 1, "dtype": "float32", "crs": "EPSG:32633", "transform": TRANSFORM}
    profile |= {"height": pixels.shape[0], "width": pixels.shape[1], "nodata": float("nan"), **grid}
    with rasterio.open(path, "w", **profile) as out:
        out.write(pixels.astype(np.float32), 1)
    kernel = make_kernel(classify, outputs=CLASSES) if labels else make_kernel(lambda x: x)
    tilewright.apply(kernel, str(path), out=folder / name, tile=32, shard=32, device="cpu", threads=1)
    return str(folder / name)


def painted(alerts: list[Alert], shape: tuple[int, int], box: Any) -> dict[tuple[str, str], np.ndarray]:
    """Burn alerts into masks by (before, after)."""
    from rasterio.features import rasterize

    masks: dict[tuple[str, str], np.ndarray] = {}
    for alert in alerts:
        burnt = rasterize([alert.geometry], shape, transform=box.affine)
        assert burnt.sum() == alert.pixels
        kind = alert.before, alert.after
        assert not (masks.get(kind, np.zeros(shape)) * burnt).any(), "areas of one kind do not overlap"
        masks[kind] = masks.get(kind, np.zeros(shape)) + burnt
    return masks


@pytest.fixture
def random_fields() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(3)
    coarse = generator.integers(0, 4, (2, 11, 13)).astype(np.float32)
    before, after = (np.kron(field, np.ones((9, 8), np.float32))[:97, :101] for field in coarse)
    before[10:20, 10:20] = np.nan
    after[50:60, 70:80] = np.nan
    return before, after


def test_labels_that_changed_are_covered_once(
    tmp_path: Path, random_fields: tuple[np.ndarray, np.ndarray]
) -> None:
    before, after = random_fields
    a, b = result(tmp_path, "a", before), result(tmp_path, "b", after)
    alerts, box, notes = find_alerts(a, b)
    assert not notes
    names = np.array(CLASSES["out"]["classes"])
    old, new = (classify(torch.from_numpy(f)).numpy().astype(int) for f in random_fields)
    both = np.isfinite(before) & np.isfinite(after)
    masks = painted(alerts, before.shape, box)
    for i, was in enumerate(names):
        for j, now in enumerate(names):
            expected = both & (old == i) & (new == j) & (i != j)
            assert (masks.get((was, now), np.zeros_like(expected)) == expected).all()
    sizes = [alert.pixels for alert in alerts]
    assert sizes == sorted(sizes, reverse=True)
    assert {alert.output for alert in alerts} == {"out"}
    fewer = find_alerts(a, b, least=50)[0]
    assert [alert.pixels for alert in fewer] == [size for size in sizes if size >= 50]


def test_an_area_over_several_blocks_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "READ_SIDE", 16)
    before, after = np.zeros((80, 80)), np.zeros((80, 80))
    after[5:70, 30:35] = 3
    alerts, box, _ = find_alerts(result(tmp_path, "a", before), result(tmp_path, "b", after))
    (alert,) = alerts
    assert (alert.before, alert.after, alert.pixels) == ("low", "high", 65 * 5)
    feature = alert.feature(box)
    assert feature["properties"]["area_m2"] == 65 * 5 * 100
    longitudes = [point[0] for point in feature["geometry"]["coordinates"][0]]
    assert 15.0 < min(longitudes) < max(longitudes) < 15.01  # UTM 33's central meridian is at 15 degrees


def test_numbers_change_by_more_than_told(tmp_path: Path) -> None:
    before, after = np.zeros((40, 40)), np.zeros((40, 40))
    after[:10, :10], after[20:30, 20:25], after[35:, 35:] = 0.5, -0.9, 0.2
    a, b = (result(tmp_path, n, f, labels=False) for n, f in (("a", before), ("b", after)))
    assert find_alerts(a, b)[0] == []
    alerts = find_alerts(a, b, above=0.3)[0]
    assert [(x.before, x.after, x.pixels) for x in alerts] == [
        ("lower", "higher", 100),
        ("higher", "lower", 50),
    ]


def test_equal_results_have_no_alerts(tmp_path: Path) -> None:
    field = np.random.default_rng(1).uniform(0, 3, (50, 50))
    a, b = result(tmp_path, "a", field), result(tmp_path, "b", field)
    assert find_alerts(a, b) == ([], find_alerts(a, b)[1], [])


def test_other_grids_are_said_and_missing_results_raised(tmp_path: Path) -> None:
    a = result(tmp_path, "a", np.zeros((40, 40)))
    moved = result(tmp_path, "b", np.zeros((40, 40)), transform=TRANSFORM * Affine.translation(1, 0))
    alerts, _, notes = find_alerts(a, moved)
    assert not alerts
    assert "the grids differ: transform" in notes[0]
    with pytest.raises(InputError, match="no rasters"):
        find_alerts(str(tmp_path / "absent"), a)


def test_too_many_are_no_alerts_but_another_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tilewright.pipeline import alerts as module

    monkeypatch.setattr(module, "MOST", 3)
    checks = np.indices((40, 40)).sum(axis=0) % 2 * 3.0
    a, b = result(tmp_path, "a", np.zeros((40, 40))), result(tmp_path, "b", checks)
    alerts, _, notes = find_alerts(a, b)
    assert len(alerts) == 3
    assert notes == ["797 areas of at most 1 px were left out"]

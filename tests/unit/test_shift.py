"""Dates that do not lie on each other: measured to parts of a pixel, said, and moved back with the same bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from fakes import ArraySource
from running import job_of, make_kernel
from scipy.ndimage import gaussian_filter, map_coordinates

import tilewright
from tilewright.errors import InputError
from tilewright.pipeline.grid import Window
from tilewright.pipeline.inspection import inspect_inputs
from tilewright.pipeline.shift import Coregistered, coregister, measure_shift, sample_windows

DIFFERENCE = """
import tilewright

@tilewright.kernel(inputs={"image": {"dates": 2}}, outputs={"out": {"kind": "value"}}, radius=0)
def difference(x):
    return x[:, 1] - x[:, 0]
"""


def ground(rows: int, cols: int, seed: int = 0) -> np.ndarray:
    """A smooth random surface with detail of a few pixels."""
    noise = np.random.default_rng(seed).normal(size=(rows, cols))
    found: np.ndarray = gaussian_filter(noise, 2) * 10
    return found


def pair(shift: tuple[float, float], rows: int = 400, cols: int = 500, margin: int = 40) -> np.ndarray:
    """Two dates ``[2, 1, rows, columns]``; (r, c) of the first is (r + rows, c + columns) of the second."""
    whole = ground(rows + 2 * margin, cols + 2 * margin)
    r, c = np.mgrid[:rows, :cols].astype(float)
    later = map_coordinates(whole, [r + margin - shift[0], c + margin - shift[1]], order=5)
    first = whole[margin : margin + rows, margin : margin + cols]
    return np.stack([first, later])[:, None].astype(np.float32)


@pytest.mark.parametrize("shift", [(0.0, 0.0), (1.0, -2.0), (0.4, 0.25), (-3.3, 5.7)])
def test_a_shift_is_measured_to_a_twentieth_of_a_pixel(shift: tuple[float, float]) -> None:
    dates = pair(shift)
    dates[1] += np.random.default_rng(1).normal(0, 0.1, dates[1].shape)
    dates[1, 0, 100:180, 100:180] += 5  # something did change
    dates[0, 0, 300:330, :90] = np.nan
    moved, told = coregister(ArraySource(dates))
    assert isinstance(moved, Coregistered)
    assert moved.shifts[0] == (0.0, 0.0)
    assert moved.shifts[1] == pytest.approx(shift, abs=0.05)
    assert "lined up with the first date" in told


@pytest.mark.parametrize("shift", [(2.0, -3.0), (0.4, 0.25), (-3.3, 5.7)])
def test_the_later_date_comes_to_lie_on_the_first(shift: tuple[float, float]) -> None:
    dates = pair(shift)
    source = Coregistered(ArraySource(dates), ((0.0, 0.0), shift))
    block = source.read(Window(0, 400, 0, 500))
    core = (slice(10, -10),) * 2
    assert np.array_equal(block.data["image"][0], dates[0])
    left = np.abs(block.data["image"][1, 0] - dates[0, 0])[core].max()
    assert left < 0.02 * np.ptp(dates[0])
    assert left < 0.1 * np.abs(dates[1] - dates[0])[0][core].max()
    assert (block.reason["image"][0] == 0).all()
    beyond = block.reason["image"][1, 0] != 0  # pixels that the second date does not reach
    assert beyond.any()
    assert not beyond[core].any()


def test_a_window_has_the_bits_of_the_whole() -> None:
    dates = pair((0.4, -1.7), 90, 83)
    dates[1, 0, 40:44, 50:52] = np.nan
    source = Coregistered(ArraySource(dates), ((0.0, 0.0), (0.4, -1.7)))
    whole = source.read(Window(0, 90, 0, 83))
    for window in (Window(0, 17, 0, 13), Window(33, 50, 41, 83), Window(89, 90, 82, 83)):
        part, at = source.read(window), window.slices(Window(0, 90, 0, 83))
        assert np.array_equal(part.reason["image"], whole.reason["image"][..., *at])
        good = part.reason["image"] == 0
        assert np.array_equal(part.data["image"][good], whole.data["image"][..., *at][good])


def test_a_pixel_is_invalid_where_one_that_it_is_made_of_is() -> None:
    dates = np.ones((2, 1, 20, 20), np.float32)
    dates[1, 0, 10, 10] = np.nan
    reason = Coregistered(ArraySource(dates), ((0.0, 0.0), (0.5, 0.0))).read(Window(0, 20, 0, 20)).reason
    assert np.flatnonzero(reason["image"][1, 0, 2:-3, 10]).tolist() == [6, 7, 8, 9]  # rows 8 to 11
    assert not reason["image"][1, 0, 2:-3, 9].any()


def test_windows_that_do_not_agree_give_no_shift() -> None:
    noise = np.random.default_rng(0).normal(size=(2, 1, 500, 500)).astype(np.float32)
    noise[1] = np.random.default_rng(1).normal(size=(1, 500, 500))
    assert (
        measure_shift([(noise[0, 0, i : i + 128], noise[1, 0, i : i + 128]) for i in (0, 150, 300)]) is None
    )
    with pytest.raises(InputError, match="no shift of date 2 could be measured"):
        coregister(ArraySource(noise))


def test_a_plan_says_that_dates_are_apart_and_a_run_lines_them_up(tmp_path: Path) -> None:
    dates, names = pair((1.5, -2.25)), []
    for i, date in enumerate(dates):
        names.append(str(tmp_path / f"{i}.tif"))
        with rasterio.open(
            names[-1], "w", driver="GTiff", width=500, height=400, count=1, dtype="float32",
            crs="EPSG:32633", transform=Affine(10, 0, 5e5, 0, -10, 5e6), nodata=np.nan,
        ) as out:  # fmt: skip
            out.write(date)
    (tmp_path / "difference.py").write_text(DIFFERENCE)
    difference = f"{tmp_path}/difference.py:difference"
    how = {"device": "cpu", "tile": 128, "only": "cog"}
    plain = tilewright.apply(difference, names, out=tmp_path / "plain", **how)
    assert any("+1.5" in note and "-2.2" in note and "--coregister" in note for note in plain.notes)
    lined = tilewright.apply(difference, names, out=tmp_path / "lined", coregister=True, **how)
    assert not any("--coregister" in note for note in lined.notes)
    assert any("lined up with the first date" in note for note in lined.notes)
    checked = tilewright.verify(tmp_path / "lined")
    assert checked.equal
    assert checked.recomputed
    sizes = []
    for run in ("plain", "lined"):
        with rasterio.open(tmp_path / run / "out.tif") as made:
            sizes.append(np.nanpercentile(np.abs(made.read(1)[10:-10, 10:-10]), 99))
    assert sizes[1] < 0.05 * sizes[0]


def test_windows_lie_in_the_grid_and_do_not_overlap() -> None:
    for shape in ((1, 1), (300, 5000), (256, 256), (700, 900), (10_000, 10_000)):
        owners = np.zeros(shape, int) if shape[0] < 9_000 else None
        found = list(sample_windows(shape))
        assert 1 <= len(found) <= 9
        for window in found:
            assert 0 <= window.row0 < window.row1 <= shape[0]
            assert 0 <= window.col0 < window.col1 <= shape[1]
            if owners is not None:
                owners[window.slices(Window(0, shape[0], 0, shape[1]))] += 1
        assert owners is None or owners.max() == 1


def test_one_date_is_not_measured() -> None:
    job = job_of(make_kernel(lambda x: x), ArraySource(np.ones((1, 1, 300, 300), np.float32)))
    assert inspect_inputs(job) is job
    with pytest.raises(InputError, match="not several dates"):
        coregister(ArraySource(np.ones((1, 1, 300, 300), np.float32)))

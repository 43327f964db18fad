"""Plain rasters as a source: windows, masks, names of bands, and one clear line for bad input."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.enums import ColorInterp
from rasterio.transform import from_origin

from tilewright.errors import InputError, ReadError
from tilewright.pipeline.grid import Window
from tilewright.pipeline.rasters import RasterSource, raster_source
from tilewright.pipeline.source import Reason


def write(
    path: Path,
    array: np.ndarray,
    *,
    nodata: float | None = None,
    names: tuple[str, ...] = (),
    origin: tuple[float, float] = (500_000, 5_000_000),
    crs: str | None = "EPSG:32633",
    **options: object,
) -> str:
    count, height, width = array.shape
    profile = {"driver": "GTiff", "width": width, "height": height, "count": count, "dtype": array.dtype}
    transform = from_origin(*origin, 10, 10) if crs else None
    with rasterio.open(path, "w", **profile, crs=crs, transform=transform, nodata=nodata, **options) as out:
        out.write(array)
        for i, name in enumerate(names, 1):
            out.set_band_description(i, name)
    return str(path)


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 60_000, (3, 151, 203)).astype("uint16")


def test_windows_equal_rasterio(tmp_path: Path, pixels: np.ndarray) -> None:
    first = write(
        tmp_path / "a.tif",
        pixels,
        nodata=7,
        names=("B02", "B03", "B04"),
        tiled=True,
        blockxsize=64,
        blockysize=64,
    )
    second = write(tmp_path / "b.tif", pixels[::-1], names=("B02", "B03", "B04"))
    source = RasterSource([first, second])
    assert source.layers["image"].bands == ("blue", "green", "red")
    assert source.layers["image"].dtype == "uint16"
    window = Window(13, 140, 60, 203)
    block = source.read(window)
    with rasterio.open(first) as data:
        expected = data.read(window=((13, 140), (60, 203)))
    np.testing.assert_array_equal(block.data["image"][0], expected)
    np.testing.assert_array_equal(block.data["image"][1], pixels[::-1][:, 13:140, 60:203])
    np.testing.assert_array_equal(block.reason["image"][0, 0], (expected == 7).any(axis=0))
    assert not block.reason["image"][1].any()
    assert block.bytes_read == 2 * expected.nbytes


def test_files_of_a_date_become_bands(tmp_path: Path, pixels: np.ndarray) -> None:
    a = write(tmp_path / "VV.tif", pixels[:1])
    b = write(tmp_path / "VH.tif", pixels[1:2].astype("float32"))
    source = raster_source([f"{a},{b}"])
    assert source.layers["image"].bands == ("band_1", "band_2")
    assert source.layers["image"].dtype == "float32"
    named = raster_source([f"{a},{b}"], bands=["VV", "vh"])
    assert named.layers["image"].bands == ("vv", "vh")
    np.testing.assert_array_equal(named.read(named.grid.window).data["image"][0], pixels[:2])
    swapped = named.select(["vh", "vv"])
    np.testing.assert_array_equal(swapped.read(named.grid.window).data["image"][0], pixels[1::-1])
    assert raster_source([f"{a},{b}"], bands=[2]).layers["image"].bands == ("band_2",)


def test_mask_alpha_and_nan(tmp_path: Path, pixels: np.ndarray) -> None:
    rgba = pixels[[0, 1, 2, 0]].astype("uint8")
    rgba[3] = 255
    rgba[3, :10] = 0
    path = write(tmp_path / "rgba.tif", rgba, photometric="RGB", alpha="YES")
    with rasterio.open(path) as data:
        assert data.colorinterp[3] == ColorInterp.alpha
    source = RasterSource([path])
    assert len(source.layers["image"].bands) == 3
    reason = source.read(source.grid.window).reason["image"][0, 0]
    np.testing.assert_array_equal(reason == Reason.NODATA, rgba[3] == 0)

    internal = write(tmp_path / "mask.tif", pixels)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(internal, "r+") as data:
        data.write_mask(pixels[0] > 30_000)
    reason = RasterSource([internal]).read(source.grid.window).reason["image"][0, 0]
    np.testing.assert_array_equal(reason == 0, pixels[0] > 30_000)

    floats = pixels.astype("float32")
    floats[1, 5, 6], floats[0, 7, 8] = np.nan, np.inf
    nan = RasterSource([write(tmp_path / "nan.tif", floats, nodata=np.nan)])
    reason = nan.read(source.grid.window).reason["image"][0, 0]
    assert sorted(zip(*np.nonzero(reason), strict=True)) == [(5, 6), (7, 8)]


def _with_nodata(tmp_path: Path, text: str) -> str:
    """A uint8 TIFF whose GDAL_NODATA tag says ``text``, as sloppy writers leave it."""
    path = tmp_path / f"nodata_{text}.tif"
    write(path, np.ones((1, 20, 30), "uint8"), nodata=255)
    raw = path.read_bytes()
    assert raw.count(b"255\0") == 1
    path.write_bytes(raw.replace(b"255\0", text.encode().ljust(4, b"\0")))
    return str(path)


@pytest.mark.parametrize("text", ["nan", "300", "1.5", "-1"])
def test_float_nodata_in_integers_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match=r"uint8 cannot hold.*whole number in 0\.\.255"):
        RasterSource([_with_nodata(tmp_path, text)])


def test_bad_files_get_one_line(tmp_path: Path, pixels: np.ndarray) -> None:
    good = write(tmp_path / "good.tif", pixels)
    (tmp_path / "text.tif").write_text("no raster at all")
    whole = Path(good).read_bytes()
    (tmp_path / "cut.tif").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "cut_early.tif").write_bytes(whole[:4])
    cases = {
        "absent.tif": "no such file",
        "text.tif": "not a readable raster",
        "cut.tif": "truncated",
        "cut_early.tif": "not a readable raster",
    }
    for name, text in cases.items():
        with pytest.raises(InputError, match=text) as caught:
            RasterSource([str(tmp_path / name)])
        assert "\n" not in str(caught.value)
        assert name in str(caught.value)
    with pytest.raises(InputError, match="no CRS"):
        RasterSource([write(tmp_path / "nocrs.tif", pixels, crs=None)])


def test_another_grid_says_by_how_much(tmp_path: Path, pixels: np.ndarray) -> None:
    good = write(tmp_path / "good.tif", pixels)
    cases = {
        "0.5 px elsewhere": {"origin": (500_005, 5_000_000)},
        "another CRS .EPSG:32634 against EPSG:32633": {"crs": "EPSG:32634"},
    }
    for i, (text, options) in enumerate(cases.items()):
        other = write(tmp_path / f"other{i}.tif", pixels, **options)  # type: ignore[arg-type]
        with pytest.raises(InputError, match=text):
            RasterSource([good, other])
    with pytest.raises(InputError, match=r"another shape .150 x 203 against 151 x 203"):
        RasterSource([good, write(tmp_path / "short.tif", pixels[:, 1:])])
    with pytest.raises(InputError, match="3, 2 bands"):
        RasterSource([good, write(tmp_path / "two.tif", pixels[:2])])
    nearly = write(tmp_path / "nearly.tif", pixels, origin=(500_000 + 1e-6, 5_000_000))
    RasterSource([good, nearly])


def test_unknown_band_offers_the_nearest(tmp_path: Path, pixels: np.ndarray) -> None:
    source = RasterSource([write(tmp_path / "a.tif", pixels, names=("red", "green", "nir"))])
    with pytest.raises(InputError, match="no band 'nri'; did you mean 'nir'"):
        source.select(["nri"])


def test_a_relative_path_holds_in_another_folder(
    tmp_path: Path, pixels: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "a.tif", pixels)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    source = RasterSource(["a.tif"]).select(len(pixels))
    packed = pickle.dumps(source)
    monkeypatch.chdir(tmp_path / "elsewhere")
    window = source.grid.window
    np.testing.assert_array_equal(
        pickle.loads(packed).read(window).data["image"],
        RasterSource([tmp_path / "a.tif"]).read(window).data["image"],
    )


def test_threads_pickles_and_damage_after_opening(tmp_path: Path, pixels: np.ndarray) -> None:
    path = Path(
        write(tmp_path / "a.tif", pixels, compress="deflate", tiled=True, blockxsize=64, blockysize=64)
    )
    source = pickle.loads(pickle.dumps(RasterSource([path])))
    windows = [Window(r, r + 30, c, c + 30) for r in range(0, 120, 30) for c in range(0, 180, 30)]
    with ThreadPoolExecutor(4) as pool:
        blocks = list(pool.map(source.read, windows))
    for window, block in zip(windows, blocks, strict=True):
        rows, cols = slice(window.row0, window.row1), slice(window.col0, window.col1)
        np.testing.assert_array_equal(block.data["image"][0], pixels[:, rows, cols])
    fresh = RasterSource([path])
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2 : len(raw) // 2 + 4000] = b"\xff" * 4000
    path.write_bytes(bytes(raw))
    with pytest.raises(ReadError, match=r"a\.tif rows 0\.\.151"):
        fresh.read(fresh.grid.window)


def test_description_is_plain_and_follows_the_file(tmp_path: Path, pixels: np.ndarray) -> None:
    import json

    path = tmp_path / "a.tif"
    first = json.dumps(RasterSource([write(path, pixels)]).describe())
    again = json.dumps(RasterSource([path]).describe())
    assert first == again
    write(path, pixels[:2])
    assert json.dumps(RasterSource([path]).describe()) != first

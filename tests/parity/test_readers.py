"""Both readers against rasterio, against each other, and against themselves in other chunks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox
from pyproj import Transformer
from rasterio.enums import Resampling
from rasterio.warp import reproject
from scenes import make_item, write_scene

from tilewright.errors import InputError
from tilewright.pipeline.grid import Grid, Window
from tilewright.pipeline.readers import BandFile, BandReader, make_reader
from tilewright.pipeline.warp import blocks_of

SIDE = 700
SOURCE = Affine(10, 0, 300_000, 0, -10, 5_100_000)
READERS = ("odc", "stackstac")


@pytest.fixture(scope="module")
def ramp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Band 1 is the x and band 2 the y coordinate of the pixel's centre, in the file's own pixels."""
    x = np.broadcast_to(np.arange(SIDE) + 0.5, (SIDE, SIDE)).astype("float32")
    return write_scene(tmp_path_factory.mktemp("ramp") / "ramp.tif", np.stack([x, x.T]), transform=SOURCE)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texture with holes, as uint16 with nodata 0."""
    rng = np.random.default_rng(5)
    values = rng.integers(1, 10_000, (SIDE, SIDE)).astype("uint16")
    values[rng.random(values.shape) < 0.02] = 0
    values[100:160, 200:300] = 0
    return write_scene(
        tmp_path_factory.mktemp("scene") / "scene.tif", values[None], transform=SOURCE, nodata=0
    )


def _at(crs: str, resolution: float, shape: tuple[int, int], offset: tuple[float, float] = (0, 0)) -> Grid:
    """A grid whose upper left corner lies 1 km inside of the source, moved by ``offset`` pixels."""
    x, y = Transformer.from_crs("EPSG:32633", crs, always_xy=True).transform(301_000, 5_099_000)
    step = Affine.translation(x, y) @ Affine.scale(resolution, -resolution) @ Affine.translation(*offset)
    return Grid(GeoBox(shape, step, crs))


GRIDS = {
    "another zone": _at("EPSG:32634", 10, (500, 520)),
    "odd origin, odd resolution": _at("EPSG:32634", 7.3, (401, 307), (0.37, 0.81)),
    "degrees": _at("EPSG:4326", 0.00008, (500, 400), (0.2, 0.6)),
    "same CRS, a third of a pixel off": _at("EPSG:32633", 10, (451, 333), (1 / 3, 0.25)),
    "coarser": _at("EPSG:32634", 37.7, (140, 130), (0.5, 0.1)),
    "web mercator": _at("EPSG:3857", 13, (350, 299)),
}


def _file(path: Path, index: int = 1) -> BandFile:
    return BandFile(str(path), index, None, False, False, "item, band")


def _read(name: str, path: Path, grid: Grid, window: Window, resampling: str, index: int = 1) -> np.ndarray:
    return BandReader(grid, make_reader(name)).read(_file(path, index), window, resampling)


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("resampling", ["nearest", "cubic"])
def test_whole_pixel_shift_is_not_resampled(scene: Path, name: str, resampling: str) -> None:
    """Where the grids agree up to whole pixels, a read is rasterio's window, beyond the edges too."""
    grid = Grid(GeoBox((120, 90), SOURCE @ Affine.translation(640, -20), "EPSG:32633"))
    got = _read(name, scene, grid, grid.window, resampling)
    with rasterio.open(scene) as data:
        expected = data.read(1, window=((-20, 100), (640, 730)), boundless=True, fill_value=0).astype(
            "float32"
        )
    expected[expected == 0] = np.nan
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("where", GRIDS)
@pytest.mark.parametrize("name", READERS)
def test_positions_within_a_hundredth_of_a_pixel(ramp: Path, name: str, where: str) -> None:
    """A ramp resampled tells where it was sampled; the exact place is pyproj's."""
    grid = GRIDS[where]
    cols, rows = np.meshgrid(np.arange(grid.shape[1]) + 0.5, np.arange(grid.shape[0]) + 0.5)
    x, y = grid.geobox.affine * (cols, rows)
    x, y = Transformer.from_crs(grid.crs, "EPSG:32633", always_xy=True).transform(x, y)
    u, v = ~SOURCE * (x, y)
    # Cubic reproduces a ramp exactly also where the kernel is widened; bilinear does where it is not.
    method = "cubic" if where == "coarser" else "bilinear"
    for index, expected in ((1, u), (2, v)):
        got = _read(name, ramp, grid, grid.window, method, index)
        inside = (u > 20) & (u < SIDE - 20) & (v > 20) & (v < SIDE - 20)
        assert inside.sum() > 10_000
        assert np.abs(got - expected)[inside].max() < 0.01


@pytest.mark.parametrize("resampling", ["nearest", "bilinear", "cubic", "average"])
@pytest.mark.parametrize("where", GRIDS)
@pytest.mark.parametrize("name", READERS)
def test_equals_the_exact_warp_of_rasterio(scene: Path, name: str, where: str, resampling: str) -> None:
    """The same pixels as one warp of the whole grid with the exact transformer, up to rounding at ties."""
    grid = GRIDS[where]
    reader = BandReader(grid, make_reader(name))
    got = reader.read(_file(scene), grid.window, resampling)
    scale = reader.placement(_file(scene)).scale
    expected = np.full(grid.shape, np.nan, "float32")
    with rasterio.open(scene) as data:
        values = data.read(1).astype("float32")
    values[values == 0] = np.nan
    reproject(
        values, expected, src_transform=SOURCE, src_crs="EPSG:32633", src_nodata=np.nan,
        dst_transform=grid.geobox.affine, dst_crs=grid.crs, dst_nodata=np.nan,
        resampling=Resampling[resampling], tolerance=0, XSCALE=repr(scale[0]), YSCALE=repr(scale[1]),
    )  # fmt: skip
    assert np.isfinite(expected).mean() > 0.8
    np.testing.assert_array_less((np.isfinite(got) != np.isfinite(expected)).mean(), 2e-4)
    both = np.isfinite(got) & np.isfinite(expected)
    difference = np.abs(got - expected)[both]
    if resampling == "nearest":
        assert (difference > 0).mean() < 2e-4, "only pixels whose centre falls on an edge may differ"
    else:
        # White noise changes by its whole range within a pixel: 1e-4 px of tolerance are about a unit.
        assert np.quantile(difference, 0.999) < 5
        assert difference.mean() < 0.5


@pytest.mark.parametrize("resampling", ["nearest", "bilinear", "cubic", "lanczos", "average", "mode"])
@pytest.mark.parametrize("where", GRIDS)
@pytest.mark.parametrize("name", READERS)
def test_no_bit_depends_on_the_window(scene: Path, name: str, where: str, resampling: str) -> None:
    grid = GRIDS[where]
    whole = _read(name, scene, grid, grid.window, resampling)
    rows, cols = grid.shape
    windows = [
        Window(0, rows, 0, 1),
        Window(rows // 3, rows // 3 + 1, cols // 2, cols // 2 + 1),
        Window(rows - 17, rows, cols - 31, cols),
        Window(5, rows - 3, 11, cols - 7),
    ]
    for window in windows:
        part = _read(name, scene, grid, window, resampling)
        np.testing.assert_array_equal(part, whole[window.slices(grid.window)])


@pytest.mark.parametrize("resampling", ["nearest", "cubic", "average"])
@pytest.mark.parametrize("name", READERS)
def test_blocks_warped_in_one_call_have_the_bits_of_single_ones(
    scene: Path, name: str, resampling: str
) -> None:
    for grid in (_at("EPSG:32634", 4.1, (1300, 300)), _at("EPSG:32634", 21.3, (1300, 300))):
        reader = BandReader(grid, make_reader(name))
        at = reader.placement(_file(scene))
        assert at.run == 4
        whole = reader.read(_file(scene), grid.window, resampling)
        made = reader.cache.made
        for block in blocks_of(grid.window, at.block):
            own = block.overlap(grid.window)
            assert own is not None
            single = _read(name, scene, grid, own, resampling)
            np.testing.assert_array_equal(single, whole[own.slices(grid.window)])
        reader.read(_file(scene), grid.window, resampling)
        assert reader.cache.made == made, "no block is warped twice"


@pytest.mark.parametrize("where", GRIDS)
def test_the_two_readers_agree(scene: Path, where: str) -> None:
    grid = GRIDS[where]
    for resampling in ("nearest", "bilinear"):
        odc, stac = (_read(name, scene, grid, grid.window, resampling) for name in READERS)
        np.testing.assert_array_equal(np.isnan(odc), np.isnan(stac))
        np.testing.assert_allclose(odc, stac, rtol=1e-5, atol=2e-3)


@pytest.mark.parametrize("name", READERS)
def test_coarser_pixels_look_at_all_pixels_under_them(tmp_path: Path, name: str) -> None:
    """Stripes one pixel wide average out; without a widened kernel they would alias."""
    stripes = np.zeros((1, 400, 400), "float32")
    stripes[..., ::2] = 100
    path = write_scene(tmp_path / "stripes.tif", stripes, transform=SOURCE)
    grid = Grid(GeoBox((25, 25), SOURCE @ Affine.translation(20.3, 20.7) @ Affine.scale(12.5), "EPSG:32633"))
    for resampling in ("average", "bilinear", "cubic"):
        values = _read(name, path, grid, grid.window, resampling)
        assert np.abs(values - 50).max() < 5, resampling


def test_a_large_shrink_uses_smaller_blocks(ramp: Path) -> None:
    """A block never needs much more than 4,096 source pixels a side, and the bits stay the same."""
    grid = _at("EPSG:32634", 500, (12, 12))
    reader = BandReader(grid, make_reader("odc"))
    assert reader.placement(_file(ramp)).block * 50 <= 4096
    whole = reader.read(_file(ramp), grid.window, "average")
    part = _read("odc", ramp, grid, Window(3, 7, 2, 9), "average")
    np.testing.assert_array_equal(part, whole[3:7, 2:9])


def test_odc_stac_driver_is_exact(ramp: Path) -> None:
    """The driver may be handed to odc.stac.load itself."""
    from odc.loader import RasterLoadParams, RasterSource

    from tilewright.pipeline.reader_odc import ExactDriver

    grid = GRIDS["another zone"]
    params = RasterLoadParams(dtype="float32", fill_value=float("nan"), resampling="bilinear")
    _, pixels = ExactDriver().open(RasterSource(str(ramp)), None).read(params, grid.geobox)
    ours = _read("odc", ramp, grid, grid.window, "bilinear")
    assert np.nanmax(np.abs(pixels - ours)) < 1e-3


def test_masks_of_the_file(tmp_path: Path) -> None:
    """An internal mask and a value that is nodata only by the Item's word are both left out of the kernel."""
    values = np.full((1, 200, 200), 100, "uint8")
    values[0, :, 100:] = 250
    path = write_scene(tmp_path / "masked.tif", values, transform=SOURCE)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as data:
        data.write_mask(values[0] == 100)
    grid = Grid(GeoBox((150, 150), SOURCE @ Affine.translation(20.4, 20.4), "EPSG:32633"))
    got = _read("odc", path, grid, grid.window, "bilinear")
    assert set(np.unique(got[np.isfinite(got)])) == {100.0}
    assert np.isnan(got[:, 81:]).all()
    with pytest.raises(InputError, match="use the reader odc"):
        _read("stackstac", path, grid, grid.window, "bilinear")
    plain = write_scene(tmp_path / "plain.tif", values, transform=SOURCE)
    told = BandFile(str(plain), 1, 250, True, False, "item, band")
    for name in READERS:
        pixels = BandReader(grid, make_reader(name)).read(told, grid.window, "bilinear")
        assert set(np.unique(pixels[np.isfinite(pixels)])) == {100.0}


def test_a_cube_that_the_user_made_with_stackstac(tmp_path: Path) -> None:
    """stackstac's own result, corners or centres, is the grid and the pixels of the file."""
    import stackstac

    from tilewright.pipeline.arrays import DataArraySource

    values = np.random.default_rng(4).integers(1, 9_999, (1, 97, 83)).astype("uint16")
    path = write_scene(tmp_path / "a.tif", values, transform=SOURCE, nodata=0)
    item = make_item("a", {"red": path}).to_dict()
    item["assets"]["red"] |= {"proj:epsg": 32633, "proj:shape": [97, 83], "proj:transform": list(SOURCE)[:6]}
    for corner in ("topleft", "center"):
        cube = stackstac.stack(
            [item], epsg=32633, resolution=10, xy_coords=corner, rescale=False, chunksize=40
        )
        source = DataArraySource(cube)
        assert source.grid.transform == tuple(SOURCE)[:6]
        assert source.layers["image"].bands == ("red",)
        window = Window(11, 90, 3, 70)
        np.testing.assert_array_equal(source.read(window).data["image"][0, 0], values[0, 11:90, 3:70])
        part = DataArraySource(cube.isel(x=slice(9, 60), y=slice(4, 80)))
        np.testing.assert_array_equal(
            part.read(Window(1, 7, 2, 9)).data["image"][0, 0], values[0, 5:11, 11:18]
        )

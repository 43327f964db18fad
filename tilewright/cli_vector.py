"""`tilewright vectorise` and `tilewright areas`: the classes of a result as polygons, and as square metres."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tilewright.cli_options import PLACE, AsJson, RegionOption, split_names
from tilewright.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tilewright.pipeline.areas import ClassArea

__all__ = ["areas", "vectorise"]

Rasters = Annotated[str, typer.Argument(help=PLACE[:-1] + ", a .zarr or a .tif.")]
Output = Annotated[str | None, typer.Option(help="Name of the class map; not needed where there is one.")]


def vectorise(
    result: Rasters,
    to: Annotated[Path, typer.Option(help="File to write: .parquet, .geojson, .gpkg or .fgb.")],
    output: Output = None,
    classes: Annotated[str | None, typer.Option("--class", help="Classes by name or number, a,b,c.")] = None,
    opening: Annotated[int, typer.Option("--open", help="Take away what is thinner than 2 n + 1 px.")] = 0,
    closing: Annotated[int, typer.Option("--close", help="Fill gaps thinner than 2 n + 1 px.")] = 0,
    least: Annotated[float, typer.Option(help="Leave out objects below so many square metres.")] = 0.0,
) -> None:
    """Write the objects of a class map as polygons, joined over tiles and shards, with their areas."""
    from tilewright.pipeline.vectorise import Cleaning, find_objects, write_objects
    from tilewright.show import console

    wanted = split_names(classes)
    found, box = find_objects(result, output, wanted, Cleaning(opening, closing, least))
    path = write_objects(found, box, to)
    pixels = sum(one.pixels for one in found)
    console.print(f"{path}: {len(found):,} objects, {pixels:,} px", highlight=False, markup=False)


def areas(
    result: Rasters,
    output: Output = None,
    region: RegionOption = None,
    regions: Annotated[
        Path | None,
        typer.Option(help="File of several regions, each with a name (GeoJSON, GeoParquet, ...)."),
    ] = None,
    name_key: Annotated[str, typer.Option(help="Property that holds the name of a region.")] = "name",
    as_json: AsJson = False,
) -> None:
    """Say what each class covers, in pixels and in square metres on the ellipsoid, in regions or in all."""
    from tilewright.catalogs.named_regions import read_named_regions
    from tilewright.catalogs.region import Region
    from tilewright.pipeline.areas import class_areas

    if region is not None and regions is not None:
        raise InputError("give --region or --regions", place="areas")
    outlines = None
    if regions is not None:
        outlines = {name: one.geometry for name, one in read_named_regions(regions, name_key).items()}
    elif region is not None:
        one = Region.parse(region)
        outlines = {one.name: one.geometry}
    found = class_areas(result, output, outlines)
    if as_json:
        print(json.dumps([asdict(row) for row in found], indent=2))  # noqa: T201
    else:
        _print_areas(found)


def _print_areas(found: Sequence[ClassArea]) -> None:
    from rich.table import Table

    from tilewright.show import console

    named = any(row.region for row in found)
    table = Table(*(["region"] if named else []), "class", "pixels", "hectares", "share of results", box=None)
    for column in table.columns[-3:]:
        column.justify = "right"
    total: dict[str, float] = {}
    for row in found:
        if row.value is not None:
            total[row.region] = total.get(row.region, 0.0) + row.area_m2
    for row in found:
        share = "" if row.value is None else f"{row.area_m2 / total[row.region]:.2%}"
        label = "no result" if row.label is None else row.label
        cells = [label, f"{row.pixels:,}", f"{row.area_m2 / 1e4:,.2f}", share]
        table.add_row(*([row.region] if named else []), *cells)
    console.print(table)

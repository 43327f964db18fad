"""`tilewright index` and `tilewright search`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

import typer

from tilewright.cli_options import (
    AsJson,
    Bands,
    Batch,
    Device,
    MemoryOption,
    RegionOption,
    SetOption,
    ShardOption,
    Threads,
    Weights,
    options_of,
    split_names,
    wishes_of,
)
from tilewright.errors import InputError, ReadError

if TYPE_CHECKING:
    from tilewright.pipeline.search import Hit, VectorIndex
    from tilewright.show import ShardProgress

__all__ = ["index", "search"]

Embedder = Annotated[str, typer.Option(help="Embedding kernel, by name.")]
Levels = Annotated[int | None, typer.Option(help="Most levels of the pyramid, from full resolution.")]


def index(
    images: Annotated[
        list[str],
        typer.Argument(help="Rasters or Zarr stores, each a part of the index, or one recipe.yaml."),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the index; the same command resumes and adds.")],
    embedder: Embedder = "eurosat",
    weights: Weights = None,
    set_: SetOption = None,
    bands: Bands = None,
    date: Annotated[str | None, typer.Option(help="When the images were taken, if they do not say.")] = None,
    region: RegionOption = None,
    levels: Levels = None,
    approximate: Annotated[
        bool | None,
        typer.Option(
            "--approximate/--exact", help="Keep a graph for fast searches, or none; by size unless said."
        ),
    ] = None,
    shard: ShardOption = None,
    batch: Batch = None,
    threads: Threads = None,
    device: Device = None,
    memory: MemoryOption = None,
    as_json: AsJson = False,
) -> None:
    """Embed the tiles of images on all levels of their pyramids, so that they can be searched."""
    from tilewright.searching import index_images
    from tilewright.show import ShardProgress, console

    with _Progress(lambda: ShardProgress(silent=as_json)) as progress:
        made = index_images(
            images,
            out=out,
            embedder=embedder,
            weights=weights,
            options=options_of(set_ or []),
            bands=split_names(bands),
            date=date,
            region=region,
            levels=levels,
            approximate=approximate,
            progress=progress,
            **wishes_of(shard=shard, batch=batch, threads=threads, device=device, memory=memory),
        )
    if as_json:
        facts = {name: getattr(made, name) for name in ("vectors", "new", "parts", "bytes", "km2", "seconds")}
        print(json.dumps({"path": str(made.path), **facts, "graph": _graph_facts(made.graph)}))  # noqa: T201
        return
    console.print(
        f"{made.path}: {made.vectors:,} vectors of {made.parts:,} images ({made.new:,} new), {made.bytes / 1e6:.1f} MB",
        highlight=False,
        markup=False,
    )
    if made.graph is not None:
        recall, took = made.graph["recall"], f", {made.graph['seconds']:.1f} s" if made.grown else ""
        share, sample = (
            f"{recall['found']:.1%} of the {recall['of']} nearest",
            f"{recall['sample']} of its vectors",
        )
        console.print(
            f"graph for approximate searches: {made.graph['bytes'] / 1e6:.1f} MB{took}; finds {share} to {sample}",
            highlight=False,
            markup=False,
        )


def _graph_facts(graph: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if graph is None else {name: graph[name] for name in ("bytes", "seconds", "added", "recall")}


class _Progress:
    """One bar after another: each level of each part is a run."""

    def __init__(self, bar: Callable[[], ShardProgress]) -> None:
        self.bar = bar
        self.name = ""
        self.tell: Any = None
        self.shown = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.shown.close()

    def __call__(self, name: str, status: Any) -> None:
        if name != self.name:
            self.shown.close()
            self.name, self.tell = name, self.shown.enter_context(self.bar())
        self.tell(status)


def search(
    where: Annotated[Path, typer.Argument(help="Folder of the index.")],
    text: Annotated[str | None, typer.Argument(help="What to look for.")] = None,
    like: Annotated[str | None, typer.Option(help="Longitude,latitude of an example in the index.")] = None,
    image: Annotated[Path | None, typer.Option(help="A raster whose whole is the example.")] = None,
    bands: Bands = None,
    set_: SetOption = None,
    level: Annotated[int, typer.Option(help="Level of the example's tile; 0 is full resolution.")] = 0,
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="Most hits.")] = 10,
    dates: Annotated[str | None, typer.Option(help="A date, or first/last.")] = None,
    region: RegionOption = None,
    cloud: Annotated[float | None, typer.Option(help="Most cloud cover of the image, in percent.")] = None,
    levels: Annotated[str | None, typer.Option(help="Levels that hits may have, a,b,c.")] = None,
    exact: Annotated[bool, typer.Option("--exact", help="Compare every vector, graph or not.")] = False,
    to: Annotated[Path | None, typer.Option(help="GeoJSON to write.")] = None,
    sheet: Annotated[Path | None, typer.Option(help="PNG of the hits to write.")] = None,
    map_: Annotated[
        Path | None,
        typer.Option("--map", help="PNG to write of where the hits lie in the image of the best."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Rank the tiles of an index by a text, by a place, or by a picture."""
    from tilewright.pipeline.search import VectorIndex, hits_geojson, write_hits
    from tilewright.searching import search_index

    found = VectorIndex(where)
    hits = search_index(
        found,
        text,
        like=None if like is None else _lonlat(like),
        image=image,
        level=level,
        count=count,
        filters=_filters(dates, region, cloud, levels),
        bands=split_names(bands),
        options=options_of(set_) if set_ else None,
        exact=exact,
    )
    title = text or (f"like {like}" if like else f"like {image}")
    facts = {"query": title, "embedder": found.embedder["name"], "exact": found.exact}
    if to is not None:
        write_hits(hits, to, **facts)
    _draw(found, hits, title, sheet, map_)
    if as_json:
        print(json.dumps(hits_geojson(hits, **facts)))  # noqa: T201
    else:
        _print_hits(hits)


def _draw(found: VectorIndex, hits: list[Hit], title: str, sheet: Path | None, map_: Path | None) -> None:
    """Write the pictures that were asked for; raises `ReadError` where a map's image is gone."""
    from tilewright.pipeline.contact import contact_sheet
    from tilewright.pipeline.looked import map_of_hits
    from tilewright.searching import open_part

    limits = {part: entry["shown"] for part, entry in found.parts.items()}
    if sheet is not None:
        contact_sheet(hits, lambda part: open_part(found, part), sheet, title, limits=limits)
    if map_ is not None and hits:
        best = hits[0].part
        pyramid = open_part(found, best)
        if pyramid is None:
            raise ReadError("its pixels are not at hand any more", place=f"--map, {hits[0].item}")
        map_of_hits(hits, best, pyramid, map_, title, limits[best])


def _lonlat(text: str) -> tuple[float, float]:
    try:
        lon, lat = (float(part) for part in text.split(","))
    except ValueError as error:
        raise InputError(
            f"{text!r} is no place", place="--like", remedy="write longitude,latitude"
        ) from error
    if not (-180 <= lon <= 180 and -90 <= lat <= 90):
        raise InputError(
            f"{text!r} is not on Earth", place="--like", remedy="write longitude,latitude in degrees"
        )
    return lon, lat


def _filters(dates: str | None, region: str | None, cloud: float | None, levels: str | None) -> Any:
    from tilewright.catalogs.region import Region
    from tilewright.catalogs.times import Interval
    from tilewright.pipeline.search import Filters

    try:
        numbers = None if levels is None else tuple(int(part) for part in levels.split(","))
    except ValueError as error:
        raise InputError(f"{levels!r} are no levels", place="--levels", remedy="write 0,1,2") from error
    return Filters(
        dates=Interval.parse(dates),
        region=None if region is None else Region.parse(region).geometry,
        cloud=cloud,
        levels=numbers,
    )


def _print_hits(hits: list[Hit]) -> None:
    from rich.table import Table

    from tilewright.show import console

    table = Table("rank", "score", "lon", "lat", "level", "date", "item", box=None)
    for rank, hit in enumerate(hits, start=1):
        centre = hit.geometry.centroid
        cells = [f"{rank}", f"{hit.score:.4f}", f"{centre.x:.5f}", f"{centre.y:.5f}", f"{hit.level}"]
        table.add_row(*cells, (hit.date or "")[:10], hit.item)
    console.print(table if hits else "nothing passes the filters")

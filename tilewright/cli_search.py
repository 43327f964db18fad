"""`tilewright index`, `tilewright search` and `tilewright ask`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
from tilewright.errors import InputError

if TYPE_CHECKING:
    from tilewright.pipeline.ask import Outcome
    from tilewright.pipeline.search import Hit

__all__ = ["ask", "index", "search"]

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
        progress=None if as_json else _Progress(ShardProgress),
        **wishes_of(shard=shard, batch=batch, threads=threads, device=device, memory=memory),
    )
    if as_json:
        facts = {name: getattr(made, name) for name in ("vectors", "new", "parts", "bytes", "km2", "seconds")}
        print(json.dumps({"path": str(made.path), **facts}))  # noqa: T201
        return
    console.print(
        f"{made.path}: {made.vectors:,} vectors of {made.parts:,} images ({made.new:,} new), {made.bytes / 1e6:.1f} MB",
        highlight=False,
        markup=False,
    )


class _Progress:
    """One bar after another: each level of each part is a run."""

    def __init__(self, bar: Any) -> None:
        self.bar = bar
        self.name = ""
        self.tell: Any = None

    def __call__(self, name: str, status: Any) -> None:
        if name != self.name:
            self.name, self.tell = name, self.bar()
        if self.tell is not None:
            self.tell(status)


def search(
    where: Annotated[Path, typer.Argument(help="Folder of the index.")],
    text: Annotated[str | None, typer.Argument(help="What to look for.")] = None,
    like: Annotated[str | None, typer.Option(help="Longitude,latitude of an example in the index.")] = None,
    image: Annotated[Path | None, typer.Option(help="A raster whose whole is the example.")] = None,
    level: Annotated[int, typer.Option(help="Level of the example's tile; 0 is full resolution.")] = 0,
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="Most hits.")] = 10,
    dates: Annotated[str | None, typer.Option(help="A date, or first/last.")] = None,
    region: RegionOption = None,
    cloud: Annotated[float | None, typer.Option(help="Most cloud cover of the image, in percent.")] = None,
    levels: Annotated[str | None, typer.Option(help="Levels that hits may have, a,b,c.")] = None,
    to: Annotated[Path | None, typer.Option(help="GeoJSON to write.")] = None,
    sheet: Annotated[Path | None, typer.Option(help="PNG of the hits to write.")] = None,
    as_json: AsJson = False,
) -> None:
    """Rank the tiles of an index by a text, by a place, or by a picture."""
    from tilewright.pipeline.contact import contact_sheet
    from tilewright.pipeline.search import VectorIndex, hits_geojson, write_hits
    from tilewright.searching import open_part, search_index

    found = VectorIndex(where)
    hits = search_index(
        found,
        text,
        like=None if like is None else _lonlat(like),
        image=image,
        level=level,
        count=count,
        filters=_filters(dates, region, cloud, levels),
    )
    title = text or (f"like {like}" if like else f"like {image}")
    facts = {"query": title, "embedder": found.embedder["name"]}
    if to is not None:
        write_hits(hits, to, **facts)
    if sheet is not None:
        contact_sheet(hits, lambda part: open_part(found, part), sheet, title)
    if as_json:
        print(json.dumps(hits_geojson(hits, **facts)))  # noqa: T201
    else:
        _print_hits(hits)


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


def ask(
    image: Annotated[str, typer.Argument(help="A raster or a Zarr hierarchy, of any size.")],
    question: Annotated[str | None, typer.Argument(help="The question.")] = None,
    embedder: Embedder = "eurosat",
    weights: Weights = None,
    set_: SetOption = None,
    bands: Bands = None,
    budget: Annotated[str | None, typer.Option(help="Most bytes that may be read, such as 200MiB.")] = None,
    dialogue: Annotated[Path | None, typer.Option(help="File with a question a line, asked in turn.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for evidence.geojson, where.png and trace.json.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Answer a question about an image, reading coarse to fine and only where it must."""
    from tilewright.pipeline.settings import parse_size
    from tilewright.searching import ask as answer
    from tilewright.searching import open_image

    questions = _questions(question, dialogue)
    pyramid = open_image(image, split_names(bands))
    most = None if budget is None else parse_size(budget)
    options = options_of(set_ or [])
    outcomes = []
    for one in questions:
        outcome = answer(pyramid, one, embedder=embedder, weights=weights, options=options, budget=most)
        outcomes.append(outcome)
        if not as_json:
            _print_answer(outcome)
    if out is not None:
        _write(outcomes, pyramid, out)
    if as_json:
        print(json.dumps([outcome.trace() for outcome in outcomes]))  # noqa: T201


def _questions(question: str | None, dialogue: Path | None) -> list[str]:
    if (question is None) == (dialogue is None):
        raise InputError("give a question, or --dialogue", place="ask")
    if dialogue is None:
        return [question or ""]
    try:
        lines = [line.strip() for line in dialogue.read_text().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot be read: {error}", place=str(dialogue)) from error
    asked = [line for line in lines if line and not line.startswith("#")]
    if not asked:
        raise InputError("holds no question", place=str(dialogue), remedy="write one a line")
    return asked


def _print_answer(outcome: Outcome) -> None:
    from tilewright.show import console

    account = outcome.account
    share = account.bytes_read / outcome.total_bytes
    lines = [
        outcome.answer.text,
        *(
            f"  {rank}. {found.label}, score {found.score:.2f}, columns {found.box[0]:.0f}..{found.box[2]:.0f}, "
            f"rows {found.box[1]:.0f}..{found.box[3]:.0f}"
            for rank, found in enumerate(outcome.answer.evidence, start=1)
        ),
        f"read {account.bytes_read:,} of {outcome.total_bytes:,} bytes ({share:.3%}) in {outcome.seconds:.1f} s",
    ]
    console.print("\n".join(lines), highlight=False, markup=False)


def _write(outcomes: list[Outcome], pyramid: Any, out: Path) -> None:
    """Write what each turn rests on; one turn goes into the folder itself, several into folders of their own."""
    from tilewright.pipeline.ask import write_evidence, write_trace
    from tilewright.pipeline.looked import picture_of

    for turn, outcome in enumerate(outcomes, start=1):
        folder = out if len(outcomes) == 1 else out / f"turn-{turn}"
        write_evidence(outcome, pyramid, folder / "evidence.geojson")
        picture_of(outcome, pyramid, folder / "where.png")
    write_trace(outcomes, out / "trace.json")

"""Options that several commands take, and how their texts are read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tilewright.errors import InputError

__all__ = [
    "PLACE",
    "AsJson",
    "Bands",
    "Batch",
    "Boundary",
    "ClusterOption",
    "Coregister",
    "Cores",
    "Device",
    "Fresh",
    "InputOption",
    "KernelArgument",
    "MemoryOption",
    "OnError",
    "Only",
    "OutOption",
    "PlaceOption",
    "Precision",
    "RegionOption",
    "RetryFailed",
    "SetOption",
    "ShardOption",
    "Stitch",
    "Threads",
    "Tile",
    "Untrained",
    "Weights",
    "layers_of",
    "options_of",
    "split_names",
    "wishes_of",
]

KernelArgument = Annotated[
    str, typer.Argument(help="Kernel: a name, package.module:name, file.py:name, model.pt2.")
]
RegionOption = Annotated[
    str | None, typer.Option(help="File (GeoJSON, GeoPackage, ...) or W,S,E,N in degrees.")
]
OutOption = Annotated[Path | None, typer.Option(help="Folder of the run.")]
PLACE = "Folder of the run, or s3://bucket/prefix (gs://, az://)."
PlaceOption = Annotated[str | None, typer.Option(help=PLACE)]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Precision = Annotated[str | None, typer.Option(help="fp32, bf16 or fp16.")]
Batch = Annotated[int | None, typer.Option(help="Tiles a forward.")]
Threads = Annotated[
    int | None, typer.Option(help="Intra-op threads of torch; the same number gives the same bits.")
]
Cores = Annotated[
    int | None, typer.Option(help="Most cores for the kernel: cores / threads batches at a time.")
]
MemoryOption = Annotated[str | None, typer.Option(help="Most memory, such as 8GiB.")]
Weights = Annotated[str | None, typer.Option(help="Weights: a path or hf://owner/name@revision.")]
Bands = Annotated[str | None, typer.Option(help="Bands by name or number, a,b,c.")]
InputOption = Annotated[
    list[str] | None,
    typer.Option("--input", help="A further input, NAME=FILE; again for each of its dates, oldest first."),
]
Boundary = Annotated[str | None, typer.Option(help="Beyond the edge of the data: reflect or fill.")]
Only = Annotated[str | None, typer.Option(help="Write just cog or zarr.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Start over in the output folder.")]
OnError = Annotated[
    str | None,
    typer.Option(help="A read that failed after all retries: raise, or reason (nodata, and go on)."),
]
Coregister = Annotated[
    bool, typer.Option("--coregister", help="Measure the shift between dates and move them onto the first.")
]
Untrained = Annotated[
    bool, typer.Option("--untrained", help="Map a network without weights, to see what it costs.")
]
RetryFailed = Annotated[
    bool, typer.Option("--retry-failed", help="Compute again only the shards of which a read had failed.")
]
ClusterOption = Annotated[
    str | None,
    typer.Option(help="Compute on Dask workers: local:N for N here, or a scheduler's tcp://HOST:PORT."),
]
Tile = Annotated[int | None, typer.Option(help="Pixels a side that the kernel sees.")]
ShardOption = Annotated[int | None, typer.Option(help="Pixels a side of a shard, the unit of writing.")]
Stitch = Annotated[str | None, typer.Option(help="cut or blend.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="Option of the kernel, key=value.")]


def wishes_of(**given: Any) -> dict[str, Any]:
    """Return the settings that were given."""
    from tilewright.pipeline.settings import parse_size

    wishes = {name: value for name, value in given.items() if value is not None}
    if "memory" in wishes:
        wishes["memory"] = parse_size(wishes["memory"])
    return wishes


def split_names(text: str | None) -> list[str] | None:
    """Return names between commas."""
    return [part.strip() for part in text.split(",")] if text else None


def options_of(pairs: list[str], place: str = "--set") -> dict[str, str]:
    """Return the options of a kernel, or of whom ``place`` says, that were given as ``key=value``."""
    options = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise InputError(f"{pair!r} is no option", place=place, remedy="write key=value")
        options[key] = value
    return options


def layers_of(pairs: list[str]) -> dict[str, list[str]]:
    """Return the further inputs that were given as ``name=file``, the dates of each in their order."""
    layers: dict[str, list[str]] = {}
    for pair in pairs:
        name, equals, file = pair.partition("=")
        if not (name and equals and file):
            raise InputError(f"{pair!r} is no input", place="--input", remedy="write name=file")
        layers.setdefault(name, []).append(file)
    return layers

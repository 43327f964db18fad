"""`tilewright eval`: a kernel against the labels of a dataset."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from tilewright.cli_options import (
    AsJson,
    Bands,
    Batch,
    Boundary,
    Cores,
    Device,
    KernelArgument,
    MemoryOption,
    Precision,
    SetOption,
    Stitch,
    Threads,
    Tile,
    Untrained,
    Weights,
    options_of,
    split_names,
    wishes_of,
)

__all__ = ["evaluate"]


def evaluate(
    kernel: KernelArgument,
    dataset: Annotated[Path, typer.Argument(help="Folder of the dataset; its layout is found out.")],
    layout: Annotated[
        str | None, typer.Option(help="Name of the layout, or a description (YAML), where it must be said.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Split; test, or the only one, unless given.")] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first so many pictures.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for metrics.json, confusion.csv and plots.")
    ] = None,
    set_: SetOption = None,
    weights: Weights = None,
    untrained: Untrained = False,
    bands: Bands = None,
    output: Annotated[
        str | None, typer.Option(help="Output to compare; the first class map unless given.")
    ] = None,
    threshold: Annotated[float | None, typer.Option(help="Compare a score, cut here.")] = None,
    worst: Annotated[int, typer.Option(help="Worst pictures to draw.")] = 6,
    stitch: Stitch = None,
    tile: Tile = None,
    device: Device = None,
    precision: Precision = None,
    batch: Batch = None,
    threads: Threads = None,
    cores: Cores = None,
    memory: MemoryOption = None,
    boundary: Boundary = None,
    as_json: AsJson = False,
) -> None:
    """Map a kernel over a labelled dataset and say how right it is: scores from sums over the whole set."""
    from tilewright.evaluation.evaluate import evaluate as run
    from tilewright.show_scores import PictureProgress, print_evaluation

    wishes = wishes_of(
        stitch=stitch,
        tile=tile,
        device=device,
        precision=precision,
        batch=batch,
        threads=threads,
        cores=cores,
        memory=memory,
        boundary=boundary,
        untrained=untrained or None,
    )
    with PictureProgress(silent=as_json) as progress:
        found = run(
            kernel,
            dataset,
            layout=layout,
            split=split,
            limit=limit,
            out=out,
            weights=weights,
            options=options_of(set_ or []),
            bands=split_names(bands),
            output=output,
            threshold=threshold,
            worst=worst,
            progress=progress,
            **wishes,
        )
    if as_json:
        print(json.dumps(found.as_dict(), indent=2))  # noqa: T201
    else:
        print_evaluation(found, out)

"""`tilewright eval`: a kernel against the labels of a dataset, an embedder against classes and captions of pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

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
from tilewright.errors import InputError

__all__ = ["evaluate"]

_OF_EMBEDDERS = ("device", "batch", "untrained")
"""Settings that mean something for pictures that are seen whole."""


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
    words: Annotated[
        Path | None,
        typer.Option(help="YAML of an embedder's words, `class: word`, where folders do not say."),
    ] = None,
    prompt: Annotated[
        list[str] | None, typer.Option(help="Sentence with {} for the class; several are averaged.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Map a kernel over a labelled dataset and say how right it is: scores from sums over the whole set."""
    from tilewright.evaluation.embedders import is_embedder
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
    if is_embedder(kernel):
        _no_embedder_takes(wishes, output=output, threshold=threshold)
        found_by = {
            "layout": layout,
            "split": split,
            "limit": limit,
            "words": words,
            "prompts": prompt or (),
            "worst": worst,
        }
        shown = {"options": options_of(set_ or []), "weights": weights, "bands": split_names(bands)}
        _of_embedder(kernel, dataset, out, as_json, found_by | shown | wishes)
        return
    if words is not None or prompt:
        raise InputError(
            "compares no texts", place=f"kernel {kernel}", remedy="--words and --prompt are for embedders"
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


def _no_embedder_takes(wishes: dict[str, Any], **others: Any) -> None:
    given = [name for name in wishes if name not in _OF_EMBEDDERS]
    given += [name for name, value in others.items() if value is not None]
    if given:
        raise InputError(
            "an embedder sees each picture whole", place=f"--{given[0]}", remedy="leave the option out"
        )


def _of_embedder(kernel: str, dataset: Path, out: Path | None, as_json: bool, given: dict[str, Any]) -> None:
    from tilewright.evaluation.embedders import evaluate_embedder
    from tilewright.show_scores import PictureProgress, print_embedder

    with PictureProgress(silent=as_json) as progress:
        found = evaluate_embedder(kernel, dataset, out=out, progress=progress, **given)
    if as_json:
        print(json.dumps(found.as_dict(), indent=2))  # noqa: T201
    else:
        print_embedder(found, out)

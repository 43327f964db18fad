"""`tilewright train-embedder`: a small dual encoder of tiles and texts, from labelled pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from tilewright.errors import InputError

__all__ = ["train_embedder"]


def train_embedder(
    data: Annotated[
        Path, typer.Argument(help="Folder or zip file of square 8-bit pictures, a folder for each class.")
    ],
    out: Annotated[
        Path, typer.Option(help="File for the weights, .safetensors; a report .json lies beside it.")
    ],
    words: Annotated[
        Path | None,
        typer.Option(
            help="YAML: class -> words for it. EuroSAT's are known; others are called as their folder."
        ),
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="How often each picture is taken.")] = None,
    batch: Annotated[int | None, typer.Option(help="Pictures a step.")] = None,
    rate: Annotated[float | None, typer.Option(help="Highest learning rate.")] = None,
    validate: Annotated[
        bool,
        typer.Option(
            help="Keep 5 % apart for choices; --no-validate trains on them too, for the last training."
        ),
    ] = True,
    seed: Annotated[int, typer.Option(help="Of weights, order and chance.")] = 0,
    threads: Annotated[int, typer.Option(help="Of torch; others give other bits.")] = 1,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
) -> None:
    """Train an embedder of tiles on labelled pictures, 20 % of which are held back to judge it."""
    from tilewright.kernels.embed.minilm import sentence_encoder
    from tilewright.kernels.embed.pictures import read_pictures
    from tilewright.kernels.embed.training import Course, train
    from tilewright.show import console

    if out.suffix != ".safetensors":
        raise InputError(f"{out.name} does not end in .safetensors", place="train-embedder")
    if not out.absolute().parent.is_dir():
        raise InputError("no such folder", place=str(out.absolute().parent), remedy="make it first")
    wishes: dict[str, Any] = {"epochs": epochs, "batch": batch, "rate": rate}
    course = Course(
        seed=seed, threads=threads, validate=validate, **{k: v for k, v in wishes.items() if v is not None}
    )
    named = None if words is None else _read_words(words)
    pictures = read_pictures(data)
    console.print(
        f"{data}: {len(pictures.names):,} pictures of {len(pictures.classes)} classes", markup=False
    )
    trained = train(
        pictures,
        sentence_encoder(),
        course,
        words=named,
        device=device,
        say=lambda line: console.print(line, highlight=False, markup=False),
    )
    report = {"source": data.name, **trained.report, **_written(trained.network, out)}
    out.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    _print(report, out)


def _read_words(path: Path) -> dict[str, tuple[str, ...]]:
    import yaml

    try:
        found: Any = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"cannot be read: {' '.join(str(error).split())}", place=str(path)) from error
    if not isinstance(found, Mapping):
        raise InputError("holds no mapping", place=str(path), remedy="give CLASS: [word, word]")
    for name, given in found.items():
        if not isinstance(given, list) or not given or not all(isinstance(word, str) for word in given):
            raise InputError(f"{name}: no list of words", place=str(path), remedy="give CLASS: [word, word]")
    return {str(name): tuple(given) for name, given in found.items()}


def _written(network: Any, out: Path) -> dict[str, Any]:
    """Write the weights; return what the report says of them."""
    import hashlib

    from safetensors.torch import save_file

    state = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    save_file(state, out)
    return {
        "parameters": sum(tensor.numel() for tensor in state.values()),
        "bytes": out.stat().st_size,
        "sha256": hashlib.sha256(out.read_bytes()).hexdigest(),
    }


def _print(report: Mapping[str, Any], out: Path) -> None:
    from rich.table import Table

    from tilewright.show import console

    accuracy, classes = report["accuracy"], report["data"]["classes"]
    table = Table("class", "held back", "right", box=None)
    for n, (name, row) in enumerate(zip(classes, report["confusion"], strict=True)):
        table.add_row(name, f"{sum(row):,}", f"{row[n] / max(sum(row), 1):.1%}")
    console.print(table)
    scales = ", ".join(f"{factor}: {share:.1%}" for factor, share in accuracy["by_scale"].items())
    lines = (
        "Accuracy on pictures that it never saw, by text prompts over the closed set of classes it was trained on:",
        f"  {accuracy['test']:.2%} of {report['data']['test']:,} held back",
        f"  averaged down by a factor, as on pyramid levels: {scales}",
        f"  by cells of 16 px in mixed tiles: {accuracy['by_cell']:.1%}",
        f"{out}: {report['bytes']:,} bytes, sha256 {report['sha256']}",
    )
    for line in lines:
        console.print(line, highlight=False, markup=False)

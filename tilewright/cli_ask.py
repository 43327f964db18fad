"""`tilewright ask`."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tilewright.cli_options import AsJson, Bands, Weights, options_of, split_names
from tilewright.errors import InputError

if TYPE_CHECKING:
    from tilewright.pipeline.ask import Outcome

__all__ = ["ask"]


def ask(
    what: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE... QUESTION",
            help="A raster or a Zarr hierarchy of any size, or one for each date, oldest first, or a recipe; then the "
            "question.",
        ),
    ],
    policy: Annotated[
        str | None,
        typer.Option(
            help="Who answers: find, change, retrieval, zoom-in, lrs-vqa. find; of several dates change; with an "
            "answerer retrieval."
        ),
    ] = None,
    answerer: Annotated[
        str, typer.Option(help="Language model: none, openai:MODEL@URL, a folder, hf://owner/name@revision.")
    ] = "none",
    answerer_set: Annotated[
        list[str] | None,
        typer.Option(help="Option of the answerer, key=value: key_variable, timeout, device, ..."),
    ] = None,
    embedder: Annotated[str | None, typer.Option(help="Embedding kernel, by name.")] = None,
    weights: Weights = None,
    index: Annotated[Path | None, typer.Option(help="Index that holds the image, for retrieval.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Option of the policy, key=value.")] = None,
    bands: Bands = None,
    budget: Annotated[str | None, typer.Option(help="Most bytes that may be read, such as 200MiB.")] = None,
    dialogue: Annotated[
        Path | None,
        typer.Option(help="File with a question a line, asked in turn; each knows those before it."),
    ] = None,
    untrained: Annotated[
        bool, typer.Option("--untrained", help="Ask a model without weights, to see what it costs.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder for evidence.geojson, where.png and trace.json.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Answer a question about an image or the change between dates, reading coarse to fine, only where it must."""
    from tilewright.asking import policy_of
    from tilewright.pipeline.ask import ask as answer
    from tilewright.pipeline.settings import parse_size
    from tilewright.searching import open_image

    images, question = _parted(what, dialogue)
    questions = _questions(question, dialogue)
    most = None if budget is None else parse_size(budget)
    if out is not None and out.exists() and not out.is_dir():
        raise InputError("is a file", place=str(out), remedy="name a folder")
    pyramid = open_image(images, split_names(bands))
    chosen = policy_of(
        pyramid,
        policy,
        answerer=answerer,
        answerer_options=options_of(answerer_set or [], "--answerer-set"),
        embedder=embedder,
        weights=weights,
        index=index,
        options=options_of(set_ or []),
        untrained=untrained,
    )
    outcomes: list[Outcome] = []
    for one in questions:
        outcomes.append(answer(chosen, one, pyramid, budget=most, history=outcomes))
        if not as_json:
            _print_answer(outcomes[-1], shown=len(questions) > 1)
    if out is not None:
        _write(outcomes, pyramid, out)
    if as_json:
        print(json.dumps([outcome.trace() for outcome in outcomes]))  # noqa: T201


def _parted(what: list[str], dialogue: Path | None) -> tuple[list[str], str | None]:
    """Return images and question. What is a file is no question, and beside a dialogue only a sentence is one."""
    last = what[-1]
    sentence = " " in last.strip() and not last.endswith((".yaml", ".tif", ".zarr"))
    named = len(what) > 1 and not os.path.exists(last)  # noqa: PTH110 - a question may be too long for a path
    if named and (dialogue is None or sentence):
        return what[:-1], last
    return what, None


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


def _print_answer(outcome: Outcome, *, shown: bool) -> None:
    """Print an answer, what it rests on and what it cost; of a dialogue the question too."""
    from tilewright.show import console

    account = outcome.account
    share = account.bytes_read / outcome.total_bytes
    lines = [
        *([f"> {outcome.question}"] if shown else []),
        outcome.answer.text,
        *(
            f"  {rank}. {found.label or 'place'}, score {found.score:.2f}, "
            f"columns {found.box[0]:.0f}..{found.box[2]:.0f}, rows {found.box[1]:.0f}..{found.box[3]:.0f}"
            for rank, found in enumerate(outcome.answer.evidence, start=1)
        ),
        f"read {account.bytes_read:,} of {outcome.total_bytes:,} bytes ({share:.3%}) in {outcome.seconds:.1f} s",
    ]
    console.print("\n".join(lines), highlight=False, markup=False)


def _write(outcomes: Sequence[Outcome], pyramid: Any, out: Path) -> None:
    """Write what each turn rests on; one turn goes into the folder itself, several into folders of their own."""
    from tilewright.pipeline.ask import write_evidence, write_trace
    from tilewright.pipeline.looked import picture_of

    for turn, outcome in enumerate(outcomes, start=1):
        folder = out if len(outcomes) == 1 else out / f"turn-{turn}"
        write_evidence(outcome, pyramid, folder / "evidence.geojson")
        picture_of(outcome, pyramid, folder / "where.png")
    write_trace(outcomes, out / "trace.json")

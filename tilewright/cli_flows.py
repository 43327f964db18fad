"""The commands that talk to a Prefect server. Everything of Prefect is imported in them: it takes two seconds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from tilewright.errors import InputError
from tilewright.show import console

__all__ = ["deploy", "run_via_prefect"]

_SET = "Parameter of the flow, key=value; the value as JSON, or as it stands."


def deploy(
    flow: Annotated[str, typer.Argument(help="region, monitor or backfill.")],
    recipe: Annotated[Path | None, typer.Option(help="Recipe, a YAML file; it travels whole.")] = None,
    regions: Annotated[Path | None, typer.Option(help="Named regions, as the worker sees the file.")] = None,
    out: Annotated[str | None, typer.Option(help="Folder or address of the results.")] = None,
    catalog: Annotated[Path | None, typer.Option(help="Folder of the catalog of results.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help=_SET)] = None,
    name: Annotated[str | None, typer.Option(help="Name of the deployment; the flow's unless given.")] = None,
    cron: Annotated[str | None, typer.Option(help="When it runs by itself, such as '0 6 * * *'.")] = None,
    timezone: Annotated[str, typer.Option(help="Of the cron.")] = "UTC",
    pool: Annotated[str, typer.Option(help="Work pool; made where there is none.")] = "tilewright",
    image: Annotated[str | None, typer.Option(help="Container image, for Docker and Kubernetes.")] = None,
    at_once: Annotated[int, typer.Option(help="Most flow runs at a time; 0 is no bound.")] = 0,
    secret: Annotated[
        list[str] | None, typer.Option(help="VARIABLE=block: a Secret block for the run's environment.")
    ] = None,
) -> None:
    """Make a deployment on the Prefect server, with what it needs. Repeating it replaces it."""
    need_prefect()
    from tilewright.flows.deploy import Wish
    from tilewright.flows.deploy import deploy as make

    given: dict[str, Any] = _pairs(set_ or [], "--set")
    given = {key: _plain(value) for key, value in given.items()}
    if recipe is not None:
        from tilewright.flows.recipe import Recipe

        given["recipe"] = _portable(Recipe.read(recipe))
    places = {"regions": regions, "out": out, "catalog": catalog}
    given |= {key: _absolute(str(value)) for key, value in places.items() if value is not None}
    make(
        Wish(
            flow,
            name=name,
            parameters=given,
            cron=cron,
            timezone=timezone,
            pool=pool,
            image=image,
            at_once=at_once or None,
            secrets=_pairs(secret or [], "--secret"),
        ),
        console.print,
    )


def run_via_prefect(recipe: Any, deployment: str, parameters: Mapping[str, Any]) -> None:
    """Hand a run to the server, say where it can be watched, and wait for its end."""
    need_prefect()
    from tilewright.flows.server import submit, wait_for

    told = {key: value for key, value in parameters.items() if value not in (None, False, {})}
    for key in ("out", "region"):
        if isinstance(told.get(key), str) and (key == "out" or Path(told[key]).exists()):
            told[key] = _absolute(told[key])
    run, page = submit(deployment, {"recipe": _portable(recipe), **told})
    console.print(f"flow run {run}: {page}", highlight=False)
    wait_for(run, console.print)


def need_prefect() -> None:
    """Raise `InputError` where Prefect is not installed."""
    from importlib.util import find_spec

    if find_spec("prefect") is None:
        raise InputError(
            "Prefect is not installed", place="tilewright[flows]", remedy="pip install 'tilewright[flows]'"
        )


def _portable(recipe: Any) -> dict[str, Any]:
    """Return a recipe as plain data, with files of its kernel as a worker in another folder finds them."""
    data: dict[str, Any] = recipe.model_dump(mode="json", exclude_none=True)
    kernel = data["kernel"]
    file, colon, name = kernel["name"].rpartition(":")
    if colon and Path(file).is_file():
        kernel["name"] = f"{_absolute(file)}:{name}"
    elif Path(kernel["name"]).is_file():
        kernel["name"] = _absolute(kernel["name"])
    if (weights := kernel.get("weights")) and Path(weights).is_file():
        kernel["weights"] = _absolute(weights)
    return data


def _absolute(place: str) -> str:
    return place if "://" in place else str(Path(place).resolve())


def _plain(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _pairs(texts: list[str], option: str) -> dict[str, str]:
    pairs = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key or not value:
            raise InputError(f"{text!r} is no pair", place=option, remedy="write NAME=value")
        pairs[key] = value
    return pairs

"""Answerers by one text: ``none``, ``openai:MODEL@URL``, a folder, or ``hf://owner/name[@revision]``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from tilewright.errors import KernelError, nearest_name

from ..load import parse_option

if TYPE_CHECKING:
    from .answerers import Answerer

__all__ = ["NOTATION", "load_answerer"]

NOTATION = "none, openai:MODEL@URL, a folder of transformers, or hf://owner/name@revision"
"""What names an answerer, in words."""
_OPENAI = re.compile(r"openai:(?P<model>[^\s@]+(?:@[^\s@]+)*?)@(?P<url>https?://.*)")
_HUB = re.compile(r"hf:(//)?[\w.-]+/[\w.-]+(@[^@/]+)?")
_NO_OPTIONS = ("model", "base_url", "folder")


def load_answerer(ref: str | Path, options: Mapping[str, Any] | None = None) -> Answerer | None:
    """Return an answerer; of what can be checked before the first question, all is.

    Parameters
    ----------
    ref
        See `NOTATION`.
    options
        Fields of `tilewright.kernels.vlm.openai_answerer.OpenAIAnswerer` (``key_variable``, ``timeout``, ``retries``,
        ``pause``, ``temperature``) or of `tilewright.kernels.vlm.local_answerer.TransformersAnswerer` (``device``,
        ``dtype``); strings are read as YAML.

    Raises
    ------
    KernelError
        The text names none, an option is unknown, the key is absent, or the folder holds no such model.
    """
    text = str(ref)
    given = dict(options or {})
    if text == "none":
        if given:
            raise _error(f"there is none, so {sorted(given)[0]!r} is no option of it", "name an answerer")
        return None
    if text.startswith("openai:"):
        from .openai_answerer import OpenAIAnswerer

        match = _OPENAI.fullmatch(text)
        if match is None:
            raise _error(
                "does not name a model and its server",
                "write openai:MODEL@URL, such as openai:qwen2.5vl@http://localhost:11434/v1",
            )
        server = OpenAIAnswerer(match["model"], match["url"], **_options(OpenAIAnswerer, given))
        server.check()
        return server
    from .local_answerer import TransformersAnswerer

    if text.startswith("hf:") and not _HUB.fullmatch(text):
        raise _error(f"{text!r} names no repository of the hub", "write hf://owner/name@revision")
    if not text.startswith("hf:") and not Path(text).expanduser().is_dir():
        raise _error(f"there is no folder {text!r}", f"write {NOTATION}")
    model = TransformersAnswerer(text, **_options(TransformersAnswerer, given))
    model.check()
    return model


def _options(kind: type[Any], given: Mapping[str, Any]) -> dict[str, Any]:
    hints = get_type_hints(kind)
    known = [field.name for field in fields(kind) if field.name not in _NO_OPTIONS]
    for name in given:
        if name not in known:
            raise _error(f"unknown option {name!r}", nearest_name(name, known))
    return {
        name: parse_option(value, hints[name], f"answerer, option {name}") for name, value in given.items()
    }


def _error(cause: str, remedy: str) -> KernelError:
    return KernelError(cause, place="answerer", remedy=remedy)

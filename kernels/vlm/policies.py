"""Policies of `ask` by name: what there is, what each one needs, and how it is made of names and options."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

from tilewright.errors import KernelError, WeightsError, nearest_name

from ..load import load_kernel, parse_option

if TYPE_CHECKING:
    from ..ask import AskKernel
    from ..embed.contract import ImageTextEmbedder
    from .answerers import Answerer
    from .patches import KnownPatches

__all__ = ["DEFAULT_EMBEDDER", "POLICIES", "Policy", "load_policy", "options_of"]

DEFAULT_EMBEDDER = "eurosat"
"""The embedder that needs no download."""
_EMBEDDER_OPTIONS = ("low", "high", "tokenizer")
_NO_OPTIONS = ("embedder", "answerer", "weights", "known", "stores")
"""Parts of a policy that are not plain values."""
_WORDS = {"embedder": "an embedder", "weights": "weights", "answerer": "an answerer", "known": "an index"}


@dataclass(frozen=True, slots=True)
class Policy:
    """One policy, as the table has it."""

    about: str
    """What it does, in a line."""
    target: str
    """``module:attribute`` of the class or function that makes it; its plain parameters are the options."""
    embedder: bool = False
    """Whether it compares texts with pictures by an embedder; weights are then the embedder's."""
    answerer: Literal["no", "may", "must"] = "no"
    """Whether it asks a language model."""
    weights: bool = False
    """Whether it is a model with weights of its own."""
    bare: bool = False
    """Whether it does without its embedder where none is asked for."""
    index: bool = False
    """Whether it can take the patches of an index instead of embedding its own."""

    @property
    def uses(self) -> dict[str, bool]:
        """Part -> whether it can be given one."""
        return {
            "embedder": self.embedder,
            "weights": self.embedder or self.weights,
            "answerer": self.answerer != "no",
            "known": self.index,
        }


_HOME = "tilewright.kernels.vlm"
POLICIES: dict[str, Policy] = {
    "find": Policy(
        "where something is, how often and how large, by an embedder alone", f"{_HOME}.find:Find", True
    ),
    "retrieval": Policy(
        "the patches that the question is about, shown to a language model (ImageRAG)",
        f"{_HOME}.retrieval:Retrieval",
        embedder=True,
        answerer="may",
        index=True,
    ),
    "change": Policy(
        "what has changed between two dates, where, how often and how large, by a kernel that maps change",
        f"{_HOME}.change_talk:ChangeTalk",
        embedder=True,
        answerer="may",
        bare=True,
    ),
    "zoom-in": Policy(
        "one closer look that a language model asks for (RSCoVLM)", f"{_HOME}.zoom:ZoomIn", answerer="must"
    ),
    "lrs-vqa": Policy(
        "a language model with token pruning, which is the policy itself (LRS-VQA)",
        f"{_HOME}.lrs_vqa:lrs_vqa",
        weights=True,
    ),
}
"""Name on the command line and in traces -> policy."""


def load_policy(
    name: str,
    *,
    embedder: str | ImageTextEmbedder | None = None,
    weights: Any = None,
    answerer: Answerer | None = None,
    known: KnownPatches | None = None,
    options: Mapping[str, Any] | None = None,
    untrained: bool = False,
) -> AskKernel:
    """Return a policy.

    Parameters
    ----------
    name
        One of `POLICIES`.
    embedder
        For policies with one: its name, or the embedder; None takes `DEFAULT_EMBEDDER`.
    weights
        Of the embedder, or of the policy where that is a model itself.
    answerer
        The language model; see `tilewright.kernels.vlm.load_answerer`.
    known
        Patches of the image whose vectors are known already.
    options
        Of the policy, and ``low``, ``high``, ``tokenizer`` of an embedder; strings are read as YAML.
    untrained
        True lets a model without weights answer, which is noise.

    Raises
    ------
    KernelError
        There is no such policy or option, or the policy lacks or has no use for one of the parts.
    WeightsError
        The weights are absent, or others.
    """
    if name not in POLICIES:
        raise KernelError(f"unknown policy {name!r}", place="ask", remedy=nearest_name(name, POLICIES))
    policy = POLICIES[name]
    _check_parts(name, policy, embedder=embedder, weights=weights, answerer=answerer, known=known)
    maker, hints = _maker(policy)
    own, of_embedder = _parted(name, policy, hints, dict(options or {}))
    parts: dict[str, Any] = {}
    if policy.bare and weights is not None and embedder is None:
        raise KernelError(
            "weights, and no embedder is named that they are of",
            place=f"policy {name}",
            remedy="name it by --embedder; those of the kernel are --set kernel_weights=PATH",
        )
    if policy.embedder and not (policy.bare and embedder is None and not of_embedder):
        parts["embedder"] = _embedder(embedder, weights, of_embedder, untrained=untrained)
    if policy.weights:
        if weights is None and not untrained:
            raise _noise(f"policy {name}")
        parts["weights"] = weights
    if policy.answerer != "no":
        parts["answerer"] = answerer
    if known is not None:
        parts["known"] = known
    made: AskKernel = maker(**parts, **own)
    return made


def options_of(name: str) -> dict[str, Any]:
    """Return the options of a policy and their annotations."""
    return _maker(POLICIES[name])[1]


def _maker(policy: Policy) -> tuple[Any, dict[str, Any]]:
    """Return what makes a policy, and the annotations of its options."""
    module, _, attribute = policy.target.partition(":")
    maker = getattr(importlib.import_module(module), attribute)
    hints = _hints(maker)
    return maker, {
        name: hints.get(name, Any) for name in inspect.signature(maker).parameters if name not in _NO_OPTIONS
    }


def _hints(maker: Any) -> dict[str, Any]:
    """Return annotations as types; names that are imported for type checkers alone count as anything."""
    unknown: dict[str, Any] = {}
    while True:
        try:
            return get_type_hints(maker, localns=unknown)
        except NameError as error:
            if error.name is None or error.name in unknown:
                raise
            unknown[error.name] = Any


def _check_parts(name: str, policy: Policy, **given: Any) -> None:
    """Refuse a part that is missing, and one that the policy would not use."""
    if policy.answerer == "must" and given["answerer"] is None:
        raise KernelError(
            "it needs a language model",
            place=f"policy {name}",
            remedy="give one by --answerer: openai:MODEL@URL, a folder, or hf://owner/name",
        )
    for part, value in given.items():
        if value is None or policy.uses[part]:
            continue
        others = [other for other, one in POLICIES.items() if one.uses[part]]
        raise KernelError(
            f"it has no use for {_WORDS[part]}",
            place=f"policy {name}",
            remedy=f"leave it out, or take --policy {' or '.join(others)}",
        )


def _parted(
    name: str, policy: Policy, hints: Mapping[str, Any], given: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the options of the policy, parsed, and those of its embedder."""
    of_embedder = {
        option: given.pop(option)
        for option in _EMBEDDER_OPTIONS
        if policy.embedder and option in given and option not in hints
    }
    for option in given:
        if option not in hints:
            raise KernelError(
                f"unknown option {option!r}", place=f"policy {name}", remedy=nearest_name(option, hints)
            )
    own = {
        option: parse_option(_listed(value, hints[option]), hints[option], f"policy {name}, option {option}")
        for option, value in given.items()
    }
    return own, of_embedder


def _listed(value: Any, annotation: Any) -> Any:
    """Return the parts between commas of a text that is to be several values and is not written as a list."""
    several = [one for one in (annotation, *get_args(annotation)) if get_origin(one) is tuple]
    if not isinstance(value, str) or not several or value.startswith("[") or value == "null":
        return value
    numbers = int in get_args(get_args(several[0])[0])
    parts = [part.strip() for part in value.split(",")]
    return [int(part) if numbers and part.isdecimal() else part for part in parts]


def _embedder(
    embedder: str | ImageTextEmbedder | None, weights: Any, options: Mapping[str, Any], *, untrained: bool
) -> ImageTextEmbedder:
    from ..embed.contract import load_embedder, profile_of

    if embedder is not None and not isinstance(embedder, str):
        if options:
            raise KernelError(
                f"the embedder is made already and takes no {next(iter(options))!r}",
                place="ask",
                remedy="leave it out",
            )
        return embedder
    name = embedder or DEFAULT_EMBEDDER
    profile_of(name)
    if weights is None and not untrained and load_kernel(name).untrained:
        raise _noise(f"embedder {name}")
    return load_embedder(name, weights, **options)


def _noise(place: str) -> WeightsError:
    return WeightsError(
        "it has no weights, so its answers would be noise",
        place=place,
        remedy="give --weights (a path or hf://owner/name@revision), or --untrained to see what it costs",
    )

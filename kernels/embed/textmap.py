"""``text-map``: how much each place looks like each of some texts: a map of classes that nobody was trained on.

An embedder gives a vector for each patch of a tile (`EmbedderNetwork.dense_vectors`), and one for each text. Their
cosine is how alike they are; a softmax over the texts says which of them fits best.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from tilewright.errors import KernelError

from ..contract import Kernel, KernelSpec, OutputSpec, TileRule
from .contract import profile_of

if TYPE_CHECKING:
    from torch import nn

    from .contract import Profile, Tower

__all__ = ["text_map"]

_PLACE = "text-map"
_TEXTS = "forest; river; lake; buildings; crops; road"


def text_map(
    weights: Any = None,
    *,
    embedder: str = "eurosat",
    texts: str = _TEXTS,
    prompt: str | None = None,
    mode: Literal["softmax", "cosine"] = "softmax",
    temperature: float | None = None,
    tower: str | None = None,
    low: float | None = None,
    high: float | None = None,
    tokenizer: str | None = None,
) -> Kernel:
    """Return the kernel that maps the likeness to texts.

    Parameters
    ----------
    weights
        Of the embedder; None takes those that are shipped with it, or leaves it untrained.
    embedder
        Name of an embedding kernel that has a map of vectors.
    texts
        What to look for, separated by semicolons.
    prompt
        Sentence with ``{}`` for the text; None takes the embedder's.
    mode
        ``softmax``: shares of the texts, which add up to 1, so that one of them always wins: name what else there may
        be. ``cosine``: likeness to each text by itself, -1 to 1.
    temperature
        Factor of the cosines in the softmax; None takes the embedder's. Smaller is smoother.
    tower, low, high, tokenizer
        As for the embedder.

    Raises
    ------
    KernelError
        No text, or one twice; an embedder that has no map, or no texts; a prompt without ``{}``.
    WeightsError
        The weights are absent or others.
    """
    profile = profile_of(embedder)
    for missing, what in ((profile.text, "texts"), (profile.dense, "a map of vectors")):
        if not missing:
            raise KernelError(f"{embedder} has not {what}", place=_PLACE, remedy="use another embedder")
    names = _names(texts)
    sentence = profile.prompt if prompt is None else prompt
    if "{}" not in sentence:
        raise KernelError(f"prompt={prompt!r}", place=_PLACE, remedy="put {} where the text goes")
    name = profile.tower_name(tower)
    inner = profile(weights, tower=name, low=low, high=high)
    asked = _Asked(
        profile,
        name,
        profile.towers[name].between(low, high, embedder),
        tuple(sentence.replace("{}", one) for one in names),
        mode,
        profile.temperature if temperature is None else temperature,
        tokenizer or profile.tokenizer,
    )
    options = {
        "embedder": embedder,
        "texts": texts,
        "prompt": prompt,
        "mode": mode,
        "temperature": temperature,
        "tower": name,
        "low": low,
        "high": high,
        "tokenizer": tokenizer,
    }
    return Kernel(
        spec=_spec(profile, asked, names),
        build=partial(_build, inner, asked),
        options=options,
        weights=inner.weights,
        weights_sha256=inner.weights_sha256,
        untrained=inner.untrained,
    )


@dataclass(frozen=True)
class _Asked:
    """What the forward needs to know."""

    profile: Profile
    name: str
    tower: Tower
    sentences: tuple[str, ...]
    mode: str
    temperature: float
    tokenizer: str | None


def _names(texts: str) -> tuple[str, ...]:
    names = tuple(one.strip() for one in texts.split(";") if one.strip())
    if not names or len(set(names)) < len(names):
        raise KernelError(
            f"texts={texts!r}", place=_PLACE, remedy="name each text once, with semicolons between"
        )
    return names


def _spec(profile: Profile, asked: _Asked, names: tuple[str, ...]) -> KernelSpec:
    softmax = asked.mode == "softmax"
    likeness = OutputSpec(
        kind="score",
        range=(0.0, 1.0) if softmax else (-1.0, 1.0),
        bands=names,
        description="Share of each text in a softmax over all" if softmax else "Cosine to each text",
    )
    best = OutputSpec(kind="class", classes=names, range=likeness.range, description="Text that fits best")
    return KernelSpec(
        name=_PLACE,
        description=f"How much each place looks like each of some texts, by {profile.name}",
        inputs={asked.name: asked.tower.input},
        outputs={"likeness": likeness, "text": best} if len(names) > 1 else {"likeness": likeness},
        radius=None,
        tile=TileRule(default=asked.tower.side),
        licence=profile.licence,
        citation=profile.citation,
        status=profile.status,
    )


def _build(inner: Kernel, asked: _Asked) -> nn.Module:
    from ..nets.textmap import TextMap

    network: Any = inner.module
    if asked.tokenizer is not None and hasattr(network, "tokenizer"):
        network.tokenizer = asked.tokenizer
    return TextMap(network, asked.name, asked.tower, asked.sentences, asked.mode, asked.temperature).eval()

"""Ask by name: policies, answerers, images and indexes put together for the library and the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tilewright.errors import InputError
from tilewright.searching import embedder_of, open_image

if TYPE_CHECKING:
    from tilewright.kernels.ask import AskKernel
    from tilewright.kernels.vlm.answerers import Answerer
    from tilewright.kernels.vlm.patches import KnownPatches
    from tilewright.pipeline.ask import Outcome
    from tilewright.pipeline.pyramid import Pyramid
    from tilewright.pipeline.search import VectorIndex

__all__ = ["ask", "policy_of"]


def ask(
    image: str | Path | Sequence[str | Path] | Pyramid,
    question: str,
    *,
    policy: str | AskKernel | None = None,
    answerer: str | Path | Answerer | None = None,
    answerer_options: Mapping[str, Any] | None = None,
    embedder: str | None = None,
    weights: Any = None,
    index: str | Path | VectorIndex | None = None,
    options: Mapping[str, Any] | None = None,
    bands: Sequence[str | int] | None = None,
    budget: int | None = None,
    untrained: bool = False,
    history: Sequence[Outcome] = (),
) -> Outcome:
    """Ask an image of any size a question; only what the policy needs is read.

    Parameters
    ----------
    image
        A raster, a Zarr hierarchy, several of them as dates (oldest first), a recipe, or a pyramid.
    question
        In words.
    policy, answerer, answerer_options, embedder, weights, index, options, untrained
        Who answers; see `policy_of`.
    bands
        Names or 1-based numbers of the bands that are shown.
    budget
        Most bytes that may be read.
    history
        What turns of the same dialogue before this one returned, oldest first. Make the policy once by `policy_of`
        for many turns: with a name, each turn loads its models again.

    Raises
    ------
    TilewrightError
        In one sentence that says what to change.
    """
    from tilewright.pipeline.ask import ask as loop
    from tilewright.pipeline.pyramid import Pyramid

    pyramid = image if isinstance(image, Pyramid) else open_image(image, bands)
    chosen = policy_of(
        pyramid,
        policy,
        answerer=answerer,
        answerer_options=answerer_options,
        embedder=embedder,
        weights=weights,
        index=index,
        options=options,
        untrained=untrained,
    )
    return loop(chosen, question, pyramid, budget=budget, history=history)


def policy_of(
    image: str | Path | Sequence[str | Path] | Pyramid,
    policy: str | AskKernel | None = None,
    *,
    answerer: str | Path | Answerer | None = None,
    answerer_options: Mapping[str, Any] | None = None,
    embedder: str | None = None,
    weights: Any = None,
    index: str | Path | VectorIndex | None = None,
    options: Mapping[str, Any] | None = None,
    untrained: bool = False,
) -> AskKernel:
    """Return who answers questions about an image.

    Parameters
    ----------
    image
        Looked for in ``index``; not read.
    policy
        A name of `tilewright.kernels.vlm.policies.POLICIES`, or a policy, which takes none of the others. None:
        ``change`` for a pyramid of several dates, ``retrieval`` where there is an answerer or an index, else ``find``.
    answerer, answerer_options
        The language model: ``none``, ``openai:MODEL@URL``, a folder, ``hf://owner/name@revision``, or an object; and
        its options. See `tilewright.kernels.vlm.load_answerer`.
    embedder
        Name of an embedding kernel; None: that of the index, or ``eurosat``.
    weights
        Of the embedder, or of a policy that is a model itself.
    index
        An index that holds the image: its tiles are the patches of ``retrieval``, nothing is embedded again.
    options
        Of the policy.
    untrained
        True lets a model without weights answer, which is noise.

    Raises
    ------
    InputError
        A policy object was given with parts; the index does not hold the image.
    KernelError, WeightsError
        See `tilewright.kernels.vlm.policies.load_policy`.
    """
    from tilewright.kernels.vlm.load_answerer import load_answerer
    from tilewright.kernels.vlm.policies import load_policy

    if policy is not None and not isinstance(policy, str):
        given = {
            "answerer": answerer,
            "embedder": embedder,
            "weights": weights,
            "index": index,
            "options": options,
        }
        for name, value in given.items():
            if value is not None and value != {}:
                raise InputError(
                    f"a policy that is made already takes no {name}",
                    place="ask",
                    remedy="give it to the policy",
                )
        return policy
    if isinstance(answerer, str | Path):
        answerer = load_answerer(answerer, answerer_options)
    elif answerer_options:
        raise InputError(
            "options of an answerer, and none is named", place="ask", remedy="name it by --answerer"
        )
    known: KnownPatches | None = None
    chosen: Any = embedder
    asked = dict(options or {})
    if index is not None:
        if embedder is not None or weights is not None:
            raise InputError(
                "an index brings its embedder", place="ask", remedy="leave --embedder and --weights out"
            )
        known, chosen = _indexed(image, index)
    return load_policy(
        policy or _usual(image, answerer, index),
        embedder=chosen,
        weights=weights,
        answerer=answerer,
        known=known,
        options=asked,
        untrained=untrained,
    )


def _usual(image: Any, answerer: Any, index: Any) -> str:
    """Return the policy of those who name none."""
    from tilewright.pipeline.pyramid import Pyramid

    if isinstance(image, Pyramid) and image.scene.dates > 1:
        return "change"
    return "find" if answerer is None and index is None else "retrieval"


def _indexed(
    image: str | Path | Sequence[str | Path] | Pyramid, index: str | Path | VectorIndex
) -> tuple[KnownPatches, Any]:
    """Return the tiles of an image that an index holds, and its embedder; of several dates those of the last."""
    from tilewright.kernels.vlm.patches import KnownPatches
    from tilewright.pipeline.index import parts_of
    from tilewright.pipeline.pyramid import Pyramid
    from tilewright.pipeline.search import VectorIndex

    found = index if isinstance(index, VectorIndex) else VectorIndex(index)
    pyramid = image if isinstance(image, Pyramid) else open_image(image)
    part = parts_of("", pyramid.levels[0].source)[-1].identity
    if part not in found.parts:
        raise InputError(
            "the index does not hold this image with these bands",
            place=str(found.path),
            remedy="add it by: tilewright index IMAGE --out INDEX",
        )
    boxes, vectors = found.part_vectors(part)
    return KnownPatches([tuple(box) for box in boxes.tolist()], vectors), embedder_of(found)

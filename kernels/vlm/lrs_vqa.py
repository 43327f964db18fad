"""LRS-VQA as kernels: a policy for whole images, a map of relevance, and an answer for each tile.

The same chain three times: `lrs_vqa` answers a question to an image of any size, `relevance` maps what the question is
about, tile by tile, and `tile_answers` answers it for every tile by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tilewright.errors import KernelError

from ..contract import InputSpec, Kernel, KernelSpec, OutputSpec, TileRule
from .checkpoint import Checkpoint, open_llava

if TYPE_CHECKING:
    from .llava import Llava
    from .pruned import PrunedAnswerer

__all__ = ["EXTRA", "QUESTION", "SUFFIX", "lrs_vqa", "relevance", "tile_answers"]

EXTRA = "vlm"
"""Extra of tilewright that brings transformers."""
QUESTION = "Is this a rural or an urban area?"
"""Asked where the user asks nothing."""
SUFFIX = "Answer the question using a single word or phrase."
"""What follows each question of the benchmark."""
SIDE = 1008
"""Default side of a tile: its first level is then the tile itself, 3 x 3 tiles of the vision tower."""

Descent = Literal["released", "full"]
Masking = Literal["released", "corrected"]
_CITATION = "Luo et al. 2025, https://arxiv.org/abs/2503.07588"
_LICENCE = "Apache-2.0 (this code); official code: Apache-2.0; weights: see their page on the hub"


def lrs_vqa(
    weights: Any = None,
    *,
    share: float = 0.25,
    descent: Descent = "released",
    fix_newline: bool = False,
    mask: Masking = "released",
    budget_tokens: int | None = None,
    budget_bytes: int | None = None,
    prune: bool = True,
    bands: tuple[str, ...] = (),
    low: float = 0.0,
    high: float = 255.0,
    answer_tokens: int = 64,
    regions: int = 16,
    suffix: str = SUFFIX,
    vision: Any = None,
    dtype: str = "float32",
    device: str = "cpu",
) -> PrunedAnswerer:
    """Return the policy: an `ask` kernel. Loads the weights.

    Parameters
    ----------
    weights
        A folder or ``hf://owner/name[@revision]`` in LLaVA format; None takes a tiny model of random weights, whose
        answers are noise.
    share, descent, fix_newline, mask, budget_tokens, budget_bytes, prune
        See `tilewright.kernels.vlm.pruned.Pruning`.
    bands, low, high
        Names of the bands that are red, green and blue, and the values that are black and white.
    answer_tokens
        Tokens of an answer at most.
    regions
        Pieces of evidence at most.
    suffix
        Follows each question.
    vision, dtype, device
        See `tilewright.kernels.vlm.checkpoint.open_llava`.

    Raises
    ------
    KernelError, WeightsError
        Options that contradict each other, or weights that are absent or others.
    """
    from .pixels import Picture
    from .pruned import PrunedAnswerer, Pruning

    pruning = Pruning(share, descent, fix_newline, mask, budget_tokens, budget_bytes, prune)
    model = _model(weights, vision=vision, dtype=dtype, device=device, suffix=suffix)
    return PrunedAnswerer(model, pruning, Picture(bands, low, high), answer_tokens, regions)


def _model(weights: Any, **options: Any) -> Llava:
    try:
        if weights is not None:
            return open_llava(weights, **options)
        from .tiny import tiny_llava

        return tiny_llava(suffix=options["suffix"])
    except ImportError as error:
        raise KernelError(
            f"it is built of a library that cannot be imported: {error}",
            place="kernel lrs-vqa",
            remedy=f"install 'tilewright[{EXTRA}]'",
        ) from error


def relevance(
    weights: Any = None,
    *,
    question: str = QUESTION,
    low: float = 0.0,
    high: float = 255.0,
    suffix: str = SUFFIX,
    vision: Any = None,
    dtype: str = "float32",
) -> Kernel:
    """Return the kernel that maps how much the region focus module looks at a place for a question.

    Parameters
    ----------
    weights
        As for `lrs_vqa`.
    question
        In words.
    low, high
        Values of the bands that are black and white.
    suffix, vision, dtype
        As for `lrs_vqa`.
    """
    output = OutputSpec(
        kind="score",
        description="s / (s + m): attention s of the question to the place, mean m of its tile; 0.5 is the mean",
    )
    return _kernel(
        "lrs-vqa-relevance",
        "LRS-VQA: what a question to an image is about, by the attention of its region focus module",
        {"relevance": output},
        weights,
        {"question": question, "low": low, "high": high, "suffix": suffix, "vision": vision, "dtype": dtype},
    )


def tile_answers(
    weights: Any = None,
    *,
    question: str = QUESTION,
    share: float = 0.25,
    descent: Descent = "released",
    fix_newline: bool = False,
    mask: Masking = "released",
    low: float = 0.0,
    high: float = 255.0,
    answer_tokens: int = 64,
    suffix: str = SUFFIX,
    vision: Any = None,
    dtype: str = "float32",
) -> Kernel:
    """Return the kernel that answers a question, or writes a caption, for each tile by itself.

    Parameters
    ----------
    weights
        As for `lrs_vqa`.
    question
        In words; such as "Describe this image." with ``suffix=""`` for a caption.
    share, descent, fix_newline, mask
        See `tilewright.kernels.vlm.pruned.Pruning`.
    low, high
        Values of the bands that are black and white.
    answer_tokens, suffix, vision, dtype
        As for `lrs_vqa`.
    """
    outputs = {
        "answer": OutputSpec(kind="text", description="the answer"),
        "trace": OutputSpec(kind="text", description="JSON: tokens kept of how many, and a hash of which"),
    }
    options = {
        "question": question, "share": share, "descent": descent, "fix_newline": fix_newline, "mask": mask,
        "low": low, "high": high, "answer_tokens": answer_tokens, "suffix": suffix, "vision": vision, "dtype": dtype,
    }  # fmt: skip
    about = (
        "LRS-VQA: an answer to a question for each tile, by a language model that sees the tokens it is about"
    )
    return _kernel("lrs-vqa-answer", about, outputs, weights, options)


def _kernel(
    name: str, about: str, outputs: Mapping[str, OutputSpec], weights: Any, options: Mapping[str, Any]
) -> Kernel:
    if not options["question"].strip():
        raise KernelError("the question is empty", place=name, remedy="set question")
    spec = KernelSpec(
        name=name,
        description=about,
        inputs={
            "image": InputSpec(
                bands=("red", "green", "blue"), units=f"{options['low']:g} to {options['high']:g}"
            )
        },
        outputs=dict(outputs),
        radius=None,
        tile=TileRule(default=SIDE),
        concurrent=False,
        autocast=False,
        licence=_LICENCE,
        citation=_CITATION,
        status="parity",
    )
    source = None if weights is None else str(weights)
    return Kernel(
        spec=spec,
        build=partial(_forward, name, None if weights is None else _absolute(weights), dict(options)),
        options=dict(options),
        weights=source,
        weights_sha256=None if weights is None else Checkpoint(source or "").sha256,
        untrained=weights is None,
    )


def _absolute(weights: Any) -> str:
    """The reference as a worker in another folder would write it."""
    text = str(weights)
    return text if text.startswith("hf:") else str(Path(text).expanduser().resolve())


def _forward(name: str, weights: str | None, options: Mapping[str, Any]) -> Any:
    from . import lrs_vqa_forward as forwards

    loading = {key: options[key] for key in ("vision", "dtype", "suffix")}
    model = _model(weights, device="cpu", **loading)
    made = {"lrs-vqa-relevance": forwards.Relevance, "lrs-vqa-answer": forwards.TileAnswers}[name]
    return made(model, {key: value for key, value in options.items() if key not in loading})

"""Operations of a forward of a LLaVA-type model, estimated from its sizes alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from .llava import Sizes

__all__ = ["flops"]


def flops(sizes: Sizes, part: Literal["vision", "focus", "language"], count: int) -> float:
    """Return the operations of one part, two for a multiplication: matrices of the layers, and attention.

    Parameters
    ----------
    sizes
        Of the model.
    part
        ``vision``: the tower over ``count`` tiles; ``focus`` and ``language``: a forward over ``count`` tokens, each
        of which looks at half of them on average. Norms, embeddings and the last projection are left out.
    count
        Tiles or tokens.
    """
    if part == "vision":
        made = sizes.vision
        length = (made["image_size"] // made["patch_size"]) ** 2 + 1
        width, inner = made["hidden_size"], made["intermediate_size"]
        layer = 2 * length * (4 * width**2 + 2 * width * inner) + 4 * length**2 * width
        return float(count * made["num_hidden_layers"] * layer)
    language = sizes.language
    width, inner, heads = (
        language[key] for key in ("hidden_size", "intermediate_size", "num_attention_heads")
    )
    keys = width * language.get("num_key_value_heads", heads) // heads
    layer = 2 * count * (2 * width**2 + 2 * width * keys + 3 * width * inner) + 2 * count**2 * width
    return float(layer * (sizes.focus if part == "focus" else language["num_hidden_layers"]))

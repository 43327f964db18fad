"""CLIP by open_clip: its networks under their official names, its tokenizer, and maps of vectors out of its last block.

Radford, A. et al. (2021): Learning Transferable Visual Models From Natural Language Supervision,
https://arxiv.org/abs/2103.00020. The ways to a map: Zhou, C. et al. (2022): Extract Free Dense Labels from CLIP,
https://arxiv.org/abs/2112.01071 (``maskclip``); Li, K. et al. (2024): SegEarth-OV, https://arxiv.org/abs/2410.01768
(``segearth``). Longer texts: Zhang, B. et al. (2024): Long-CLIP, https://arxiv.org/abs/2403.15378.

Built from numbers given here: nothing is looked up or fetched.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import open_clip
import torch
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor, nn

from tilewright.errors import KernelError

__all__ = ["DENSE", "LongTextCLIP", "OpenCLIP"]

DENSE = ("last", "segearth", "maskclip", "input")
"""Ways to a map of vectors: see `OpenCLIP.dense_tokens`."""


@lru_cache(maxsize=4)
def _tokenizer(length: int) -> SimpleTokenizer:
    """Byte pairs of CLIP, from the list inside open_clip; texts that are too long are cut."""
    return SimpleTokenizer(context_length=length)


class OpenCLIP(open_clip.CLIP):  # type: ignore[misc]
    """open_clip's CLIP, with texts in and maps out."""

    def __init__(
        self,
        embed_dim: int,
        vision_cfg: Mapping[str, Any],
        text_cfg: Mapping[str, Any],
        quick_gelu: bool = False,
        dense: str = "last",
    ) -> None:
        """Build it.

        Parameters
        ----------
        embed_dim
            Length of the vectors.
        vision_cfg, text_cfg
            As open_clip's configurations of models have them.
        quick_gelu
            True for networks that go back to OpenAI's weights: ``x * sigmoid(1.702 x)`` instead of the exact GELU. It
            leaves no trace in the names or shapes of a checkpoint, and vectors differ by 1e-3.
        dense
            One of `DENSE`.
        """
        super().__init__(embed_dim, dict(vision_cfg), dict(text_cfg), quick_gelu=quick_gelu)
        if dense not in DENSE:
            raise KernelError(f"dense={dense!r}", place="CLIP", remedy=f"use one of {', '.join(DENSE)}")
        self.dense = dense

    def image_vectors(self, pixels: Tensor, tower: str = "image") -> Tensor:
        """Return vectors ``[N, D]`` of normalised pictures ``[N, 3, side, side]``."""
        return self.encode_image(pixels)

    def text_vectors(self, texts: Sequence[str]) -> Tensor:
        """Return vectors ``[n, D]`` of texts."""
        ids = _tokenizer(self.context_length)(list(texts))
        return self.encode_text(ids.to(self.logit_scale.device))

    def dense_vectors(self, pixels: Tensor, tower: str = "image") -> Tensor:
        """Return a vector for each patch of normalised pictures, ``[N, D, h, w]``."""
        tokens = self.dense_tokens(pixels, self.dense)
        rows, cols = self.visual.grid_size
        return tokens.transpose(1, 2).unflatten(2, (rows, cols))

    def dense_tokens(self, pixels: Tensor, kind: str) -> Tensor:
        """Return the projected vectors of the patches, ``[N, patches, D]``, row by row.

        All blocks of the transformer but the last are as always. ``kind`` says what becomes of that one:

        - ``last``: it is as always;
        - ``maskclip``: every token attends to itself alone;
        - ``segearth``: attention by the likeness of queries to queries, keys to keys and values to values, summed, with
          neither the residual nor what follows it;
        - ``input``: it is left out.
        """
        visual = self.visual
        x = visual.conv1(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([visual.class_embedding.expand(len(x), 1, -1), x], dim=1)
        x = visual.ln_pre(x + visual.positional_embedding)
        blocks = list(visual.transformer.resblocks)
        for block in blocks[:-1]:
            x = block(x)
        x = _LAST[kind](blocks[-1], x)
        return visual.ln_post(x)[:, 1:] @ visual.proj


def _self_alone(block: Any, x: Tensor) -> Tensor:
    value = _qkv(block, x)[2]
    x = x + block.attn.out_proj(value)
    return x + block.mlp(block.ln_2(x))


def _likeness(block: Any, x: Tensor) -> Tensor:
    heads = block.attn.num_heads
    query, key, value = (
        part.unflatten(2, (heads, -1)).transpose(1, 2) for part in _qkv(block, x)
    )  # [N, heads, tokens, width]
    scale = query.shape[-1] ** -0.5
    weights = sum(((one @ one.transpose(2, 3)) * scale).softmax(-1) for one in (query, key, value))
    return block.attn.out_proj((weights @ value).transpose(1, 2).flatten(2))


def _qkv(block: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values ``[N, tokens, width]`` of a block for its input."""
    attention = block.attn
    made = nn.functional.linear(block.ln_1(x), attention.in_proj_weight, attention.in_proj_bias)
    query, key, value = made.chunk(3, dim=-1)
    return query, key, value


_LAST: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "last": lambda block, x: block(x),
    "maskclip": _self_alone,
    "segearth": _likeness,
    "input": lambda block, x: x,
}


class LongTextCLIP(OpenCLIP):
    """A CLIP whose text side was stretched to more tokens as Long-CLIP does it.

    It has two tables of positions: the first tokens keep those of ``positional_embedding``, the others have those of
    ``positional_embedding_res``.
    """

    KEPT = 20
    """Tokens that keep their old positions."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.positional_embedding_res = nn.Parameter(torch.zeros_like(self.positional_embedding))

    def encode_text(self, text: Tensor, normalize: bool = False) -> Tensor:
        """Return vectors ``[n, D]`` of token ids ``[n, length]``."""
        positions = torch.cat(
            [self.positional_embedding[: self.KEPT], self.positional_embedding_res[self.KEPT :]]
        )
        x = self.transformer(self.token_embedding(text) + positions, attn_mask=self.attn_mask)
        ends = text.argmax(dim=1)
        found = self.ln_final(x)[torch.arange(len(x), device=x.device), ends] @ self.text_projection
        return nn.functional.normalize(found, dim=-1) if normalize else found

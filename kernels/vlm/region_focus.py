"""The region focus module: which visual tokens a question is about, by the first layers of a language model.

It has N + 1 decoder layers, distilled from those of the language model that answers (LRS-VQA,
https://arxiv.org/abs/2503.07588). The whole sequence (system prompt, overview, a separator, the tokens of a level,
question) goes causally through the first N of them. In the last one only attention is computed, and only that of the
last token of the prompt: scaled products with the keys of all tokens, of which those of the level are cut out, a
softmax over them, the mean over the heads.

Where not all tokens of the level are known, the unknown ones are hidden. Two ways of that:

``released``
    In the first N layers nothing attends to a hidden token. In the last one the mask has become its own opposite: the
    logit of a hidden token is raised by one and the others stay. So the hidden ones (rows of zeros with a position)
    take a share of each head's attention, other for each head, and the ranking of the others changes. This is what
    the released code computes, and what its weights were judged with.
``corrected``
    A hidden token has no part in any layer: it is left out, and the others keep their positions.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor, nn

from tilewright.errors import KernelError

if TYPE_CHECKING:
    from transformers import LlamaConfig, Qwen2Config

__all__ = ["Mask", "RegionFocus"]

Mask = Literal["released", "corrected"]


class RegionFocus(nn.Module):
    """N + 1 decoder layers of Qwen2 or Llama; its names are those below ``mm_projector.token_pruner``."""

    def __init__(self, config: Qwen2Config | LlamaConfig, layers: int) -> None:
        """Build it.

        Parameters
        ----------
        config
            That of the language model.
        layers
            N + 1; at least 2.
        """
        super().__init__()
        if layers < 2:
            raise KernelError(f"{layers} layers", place="region focus", remedy="give it at least 2")
        layer, norm, rotary = _parts(config.model_type)
        config = _attending(config, layers)
        self.layers = nn.ModuleList(layer(config, n) for n in range(layers))
        self.norm = norm(config.hidden_size, eps=config.rms_norm_eps)
        """Has no influence on the scores; checkpoints have it."""
        self.rotary = rotary(config)

    @property
    def depth(self) -> int:
        """N + 1."""
        return len(self.layers)

    def forward(
        self,
        before: Tensor,
        local: Tensor,
        after: Tensor,
        places: Tensor,
        size: int,
        mask: Mask = "released",
    ) -> Tensor:
        """Return the relevance of each known token of a level.

        Parameters
        ----------
        before
            ``[b, D]``: embeddings of what stands before the level, overview and separator included.
        local
            ``[n, D]``: embeddings of its known tokens.
        after
            ``[a, D]``: those of the question, at least one.
        places
            ``[n]`` int64, ascending: place of each known token among all tokens of the level, from 0.
        size
            Tokens of the level with the unknown ones.
        mask
            How the unknown ones are hidden.

        Returns
        -------
        Tensor
            ``[n]`` float32. They sum to 1, less what ``released`` gives to hidden tokens.
        """
        hidden = size - len(places)
        start = len(before)
        positions = torch.arange(start + size + len(after), device=local.device)
        if not hidden or mask == "corrected":
            known = torch.cat((positions[:start], start + places, positions[start + size :]))
            states = self._states(torch.cat((before, local, after)), known, None)
            return self._attention(states, known, slice(start, start + len(places)), None)
        whole = local.new_zeros(size, local.shape[1])
        whole[places] = local
        seen = torch.ones(len(positions), dtype=torch.bool, device=local.device)
        seen[start : start + size] = False
        seen[start + places] = True
        causal = positions[:, None] >= positions
        states = self._states(torch.cat((before, whole, after)), positions, causal & seen)
        return self._attention(states, positions, slice(start, start + size), ~seen)[places]

    def _states(self, embeddings: Tensor, positions: Tensor, allowed: Tensor | None) -> Tensor:
        """Hidden states ``[1, S, D]`` after N layers; ``allowed`` is ``[S, S]``, None for plain causal attention."""
        states = embeddings[None]
        angles = self.rotary(states, positions[None])
        attended = None if allowed is None else allowed[None, None]
        for layer in self.layers[:-1]:
            out = layer(states, attention_mask=attended, position_embeddings=angles)
            states = out if isinstance(out, Tensor) else out[0]
        return states

    def _attention(self, states: Tensor, positions: Tensor, columns: slice, raised: Tensor | None) -> Tensor:
        """What the last token attends to among ``columns`` in the last layer, as the mean over its heads."""
        last = cast("Any", self.layers[-1])
        attention = last.self_attn
        normed = last.input_layernorm(states)
        cos, sin = self.rotary(states, positions[None])
        query = _rotated(
            _heads(attention.q_proj(normed[:, -1:]), attention.head_dim), cos[:, -1:], sin[:, -1:]
        )
        key = _rotated(
            _heads(attention.k_proj(normed[:, columns]), attention.head_dim), cos[:, columns], sin[:, columns]
        )
        key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
        logits = (query @ key.transpose(2, 3))[0, :, 0] * attention.head_dim**-0.5
        if raised is not None:
            logits = logits + raised[columns]
        shares: Tensor = logits.softmax(-1, dtype=torch.float32).mean(0)
        return shares


def _parts(kind: str) -> tuple[Any, Any, Any]:
    """Layer, norm and rotary embedding of a family of language models."""
    if kind == "qwen2":
        from transformers.models.qwen2 import modeling_qwen2 as qwen2

        return qwen2.Qwen2DecoderLayer, qwen2.Qwen2RMSNorm, qwen2.Qwen2RotaryEmbedding
    if kind == "llama":
        from transformers.models.llama import modeling_llama as llama

        return llama.LlamaDecoderLayer, llama.LlamaRMSNorm, llama.LlamaRotaryEmbedding
    raise KernelError(
        f"a language model of type {kind!r}", place="region focus", remedy="it can be qwen2 or llama"
    )


def _attending(config: Any, layers: int) -> Any:
    """A copy of the configuration whose layers attend by torch's fused function and look at all that is before."""
    made = copy.deepcopy(config)
    made.num_hidden_layers = layers
    made.layer_types = ["full_attention"] * layers
    made.use_sliding_window, made.sliding_window = False, None
    made._attn_implementation = (
        "sdpa"  # layers built by themselves would else take no mask as: attend to everything
    )
    return made


def _heads(x: Tensor, side: int) -> Tensor:
    """``[1, S, heads * side]`` to ``[1, heads, S, side]``."""
    parted: Tensor = x.unflatten(-1, (-1, side)).transpose(1, 2)
    return parted


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions on ``[1, heads, S, side]``: its first half and its second are the two axes of the planes."""
    one, two = x.chunk(2, dim=-1)
    return x * cos[:, None] + torch.cat((-two, one), dim=-1) * sin[:, None]

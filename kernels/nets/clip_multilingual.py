"""CLIP with a multilingual text side: XLM-RoBERTa, its mean token, and a small head.

The text tower that open_clip calls ``xlm-roberta-base-ViT-B-32``: Conneau, A. et al. (2020): Unsupervised Cross-lingual
Representation Learning at Scale, https://arxiv.org/abs/1911.02116. open_clip itself fetches the configuration of such a
tower from a hub; here its numbers are written out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn
from transformers import XLMRobertaConfig, XLMRobertaModel

from .tokens import token_ids

__all__ = ["MultilingualCLIP"]

_PAD = 1
_LONGEST = 77


class _Text(nn.Module):
    """XLM-RoBERTa without its pooler, the mean over tokens, two layers without bias."""

    def __init__(self, dim: int, config: Mapping[str, Any]) -> None:
        super().__init__()
        base = {
            "vocab_size": 250002,
            "max_position_embeddings": 514,
            "type_vocab_size": 1,
            "layer_norm_eps": 1e-5,
        }
        made = XLMRobertaConfig(**{**base, **config})
        self.transformer = XLMRobertaModel(made, add_pooling_layer=False)
        width = made.hidden_size
        middle = (width + dim) // 2
        self.proj = nn.Sequential(
            nn.Linear(width, middle, bias=False), nn.GELU(), nn.Linear(middle, dim, bias=False)
        )

    def forward(self, ids: Tensor) -> Tensor:
        """Return vectors ``[n, D]`` of token ids ``[n, length]``."""
        kept = (ids != _PAD).long()
        hidden = self.transformer(input_ids=ids, attention_mask=kept).last_hidden_state
        mean = (hidden * kept[..., None]).sum(1) / kept.sum(1, keepdim=True)
        return self.proj(mean)


class MultilingualCLIP(nn.Module):
    """A vision transformer and XLM-RoBERTa, with open_clip's names."""

    def __init__(
        self, embed_dim: int, vision_cfg: Mapping[str, Any], text_cfg: Mapping[str, Any] | None = None
    ) -> None:
        """Build it; ``vision_cfg`` as `VisionTransformer` has it, ``text_cfg`` as `XLMRobertaConfig`."""
        super().__init__()
        self.visual = VisionTransformer(output_dim=embed_dim, mlp_ratio=4.0, **vision_cfg)
        self.text = _Text(embed_dim, text_cfg or {})
        self.logit_scale = nn.Parameter(torch.tensor(100.0).log())
        self.tokenizer: str | None = None

    def image_vectors(self, pixels: Tensor, tower: str = "image") -> Tensor:
        """Return vectors ``[N, D]`` of normalised pictures ``[N, 3, side, side]``."""
        return self.visual(pixels)

    def text_vectors(self, texts: Sequence[str]) -> Tensor:
        """Return vectors ``[n, D]`` of texts in any of the languages."""
        ids = token_ids(texts, self.tokenizer, longest=_LONGEST, pad=_PAD, place="RS-M-CLIP")
        return self.text(ids.to(self.logit_scale.device))

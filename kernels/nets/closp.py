"""CLOSP: Sentinel-1, Sentinel-2 and texts in one space of vectors, so that radar and optical tiles rank together.

Rege Cambrin, D. et al. (2025): Text-to-Remote-Sensing-Image Retrieval beyond RGB Sources,
https://arxiv.org/abs/2507.10403; https://github.com/DarthReca/closp. Two towers of timm, a sentence encoder of
transformers, and a projection for each tower.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import timm
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from .tokens import token_ids

__all__ = ["CLOSP"]

_LONGEST = 64
_PAD = 0
_BANDS = 13
_CIRRUS = 10
"""Place of B10 among the thirteen bands."""
_MINILM = {
    "vocab_size": 30522,
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
    "max_position_embeddings": 512,
}


class CLOSP(nn.Module):
    """The network with its official names.

    The towers keep the heads of 1,000 classes that their pretrained files had no weights for: the projection stands on
    the head's output, and the head is part of the checkpoint.
    """

    def __init__(
        self,
        architecture: str = "resnet50",
        s1_classes: int = 1000,
        s2_classes: int = 1000,
        text: Mapping[str, Any] | None = None,
    ) -> None:
        """Build it.

        Parameters
        ----------
        architecture
            timm's name of both towers.
        s1_classes, s2_classes
            Outputs of the towers' heads; 0 for a tower without a head.
        text
            Numbers of `BertConfig`; None takes those of all-MiniLM-L6-v2.
        """
        super().__init__()
        self.s1_encoder: Any = timm.create_model(architecture, in_chans=2, num_classes=s1_classes)
        self.s2_encoder: Any = timm.create_model(architecture, in_chans=_BANDS, num_classes=s2_classes)
        self.text_model = BertModel(BertConfig(**(text or _MINILM)))
        width = self.text_model.config.hidden_size
        s1_width: Any = s1_classes or self.s1_encoder.num_features
        s2_width: Any = s2_classes or self.s2_encoder.num_features
        self.s2_projection = nn.Linear(s2_width, width)
        self.s1_projection = nn.Linear(s1_width, width)
        self.tokenizer: str | None = None

    def image_vectors(self, pixels: Tensor, tower: str = "s2") -> Tensor:
        """Return vectors ``[N, 384]``.

        Parameters
        ----------
        pixels
            Of ``s1`` VV and VH in decibels ``[N, 2, H, W]``; of ``s2`` reflectance of the twelve bands of L2A
            ``[N, 12, H, W]``, which get zeros where B10 would be, or of all thirteen.
        tower
            Which of the two.
        """
        if tower == "s1":
            return self.s1_projection(self.s1_encoder(pixels))
        if pixels.shape[1] == _BANDS - 1:
            pixels = torch.cat(
                [pixels[:, :_CIRRUS], torch.zeros_like(pixels[:, :1]), pixels[:, _CIRRUS:]], dim=1
            )
        return self.s2_projection(self.s2_encoder(pixels))

    def text_vectors(self, texts: Sequence[str]) -> Tensor:
        """Return vectors ``[n, 384]`` of texts, of which the first 64 tokens count."""
        ids = token_ids(texts, self.tokenizer, longest=_LONGEST, pad=_PAD, place="CLOSP")
        return self.token_vectors(ids.to(self.s2_projection.weight.device), None)

    def token_vectors(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        """Return vectors ``[n, 384]`` of token ids: the last layer's state at the first token, not a mean.

        ``mask`` is 1 where there is a token; None takes all that are not filling.
        """
        kept = (ids != _PAD).long() if mask is None else mask
        return self.text_model(input_ids=ids, attention_mask=kept).last_hidden_state[:, 0]

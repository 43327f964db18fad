"""SigLIP by transformers, under its official names.

Zhai, X. et al. (2023): Sigmoid Loss for Language Image Pre-Training, https://arxiv.org/abs/2303.15343.
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from transformers import SiglipConfig, SiglipModel

from .tokens import token_ids

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["SigLIP"]

_PAD = 1
_DROPPED = str.maketrans("", "", string.punctuation)


class SigLIP(SiglipModel):  # type: ignore[no-untyped-call]
    """transformers' SigLIP, with texts in."""

    def __init__(self, vision: Mapping[str, Any], text: Mapping[str, Any]) -> None:
        """Build it from the numbers of `SiglipVisionConfig` and `SiglipTextConfig`."""
        config = SiglipConfig(vision_config=dict(vision), text_config=dict(text))
        super().__init__(config)
        self.tokenizer: str | None = None

    def image_vectors(self, pixels: Tensor, tower: str = "image") -> Tensor:
        """Return vectors ``[N, D]`` of normalised pictures ``[N, 3, side, side]``."""
        return self.vision_model(pixel_values=pixels).pooler_output

    def text_vectors(self, texts: Sequence[str]) -> Tensor:
        """Return vectors ``[n, D]`` of texts.

        In lower case and without punctuation, filled to the full length and without a mask, as it was trained: the
        vector is that of the last place, whether or not a word stands there.
        """
        plain = [text.lower().translate(_DROPPED) for text in texts]
        config: Any = self.config.text_config
        longest = config.max_position_embeddings
        ids = token_ids(plain, self.tokenizer, longest=longest, pad=_PAD, place="Git-RSCLIP", fixed=True)
        return self.text_model(input_ids=ids.to(self.logit_scale.device)).pooler_output

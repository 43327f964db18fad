"""Likeness of each pixel to some texts, from an embedder's map of vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from ..embed.contract import Tower

__all__ = ["TextMap"]


class TextMap(nn.Module):
    """An embedder's network, the vectors of the texts, and their cosines as a map."""

    texts: Tensor

    def __init__(
        self,
        network: Any,
        name: str,
        tower: Tower,
        sentences: Sequence[str],
        mode: str,
        temperature: float,
    ) -> None:
        """Embed the texts, once.

        Parameters
        ----------
        network
            An `EmbedderNetwork` with texts and a map.
        name, tower
            The input, and how it is fitted.
        sentences
            The texts.
        mode, temperature
            ``softmax`` with its factor, or ``cosine``.
        """
        super().__init__()
        self.network = network
        self.name, self.tower = name, tower
        self.mode, self.temperature = mode, temperature
        with torch.no_grad():
            vectors = nn.functional.normalize(network.text_vectors(list(sentences)).float(), dim=1)
        self.register_buffer("texts", vectors, persistent=False)

    def forward(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the maps ``[N, texts, H, W]`` of normalised tiles ``[N, 1, C, H, W]``.

        Cosines are taken of the patches, and interpolated to the pixels between their centres.
        """
        tiles = inputs[self.name][:, 0]
        vectors = self.network.dense_vectors(self.tower.fitted(tiles), tower=self.name).float()
        cosine = torch.einsum("ndhw,td->nthw", nn.functional.normalize(vectors, dim=1), self.texts)
        cosine = nn.functional.interpolate(
            cosine, size=tiles.shape[2:], mode="bilinear", align_corners=False
        ).clamp(-1, 1)
        likeness = (cosine * self.temperature).softmax(1) if self.mode == "softmax" else cosine
        outputs = {"likeness": likeness}
        return {**outputs, "text": likeness} if len(self.texts) > 1 else outputs

"""How right an embedder of tiles is about pictures that it never saw: by prompts, by scale, by cell, by new words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from .ground import Ground

__all__ = ["Judge", "share_of"]

_BATCH = 256


def share_of(right: Tensor) -> float:
    """Return the share of True, to five digits."""
    return round(float(right.double().mean()), 5)


class Judge:
    """Asks a tower about pictures; answers are classes whose text is nearest.

    Parameters
    ----------
    tower
        Normalised pixels ``[N, 3, H, W]`` -> vectors ``[N, D]``; its ``cells`` gives them cell by cell.
    texts
        ``[classes, D]`` of length 1: the prompts of the classes.
    mean, std
        Of the bytes of red, green and blue.
    """

    def __init__(self, tower: Any, texts: Tensor, mean: Sequence[float], std: Sequence[float]) -> None:
        self.tower, self.texts = tower, texts
        self.mean, self.std = (torch.tensor(v)[:, None, None] for v in (mean, std))

    def vectors(self, pixels: Tensor) -> Tensor:
        """Return ``[N, D]`` of length 1 for bytes ``[N, 3, H, W]``."""
        return torch.cat([functional.normalize(self.tower(x), dim=1) for x in self._seen(pixels)])

    def _seen(self, pixels: Tensor) -> list[Tensor]:
        device = self.texts.device
        mean, std = self.mean.to(device), self.std.to(device)
        return [(part.to(device).float() - mean) / std for part in pixels.split(_BATCH)]

    def answers(self, pixels: Tensor) -> Tensor:
        """Return the number of the class with the nearest text for each picture, ``[N]``."""
        with torch.inference_mode():
            return (self.vectors(pixels) @ self.texts.T).argmax(1).cpu()

    def confusion(self, pixels: Tensor, labels: Tensor) -> list[list[int]]:
        """Return how often a class (row) was answered as each class (column)."""
        count = len(self.texts)
        pairs = labels.cpu() * count + self.answers(pixels)
        found: list[list[int]] = torch.bincount(pairs, minlength=count * count).view(count, count).tolist()
        return found

    def by_scale(self, ground: Ground, each: int, seed: int) -> dict[str, float]:
        """Return factor -> share of mosaics that are right, ``each`` of a class; 1 is the pictures themselves."""
        found = {}
        for factor in ground.levels:
            if factor == 1:
                pixels, labels = ground.levels[1], ground.labels.cpu()
            else:
                draw = torch.Generator().manual_seed(seed + factor)
                labels = torch.arange(len(ground.members)).repeat_interleave(each)
                pixels = torch.stack([ground.mosaic(n, factor, draw, aligned=True) for n in labels.tolist()])
            found[str(factor)] = share_of(self.answers(pixels) == labels)
        return found

    def by_cell(self, ground: Ground, count: int, seed: int) -> float:
        """Return the share of cells that are right in ``count`` squares of two by two pictures of different classes."""
        draw = torch.Generator().manual_seed(seed)
        side, cell = ground.side, ground.cell
        pixels = torch.empty(count, 3, 2 * side, 2 * side, dtype=torch.uint8)
        labels = torch.empty(count, 2 * side // cell, 2 * side // cell, dtype=torch.int64)
        for n in range(count):
            chosen = torch.randperm(len(ground.members), generator=draw)[:4].tolist()
            for quarter, label in enumerate((chosen * 4)[:4]):
                row, col = divmod(quarter, 2)
                members = ground.members[label]
                one = int(members[torch.randint(len(members), (), generator=draw)])
                rows, cols = (slice(k * side, (k + 1) * side) for k in (row, col))
                pixels[n, :, rows, cols] = ground.levels[1][one].cpu()
                rows, cols = (slice(k * side // cell, (k + 1) * side // cell) for k in (row, col))
                labels[n, rows, cols] = label
        with torch.inference_mode():
            right = [
                torch.einsum("ndhw,kd->nkhw", self.tower.cells(x), self.texts).argmax(1).cpu() == y
                for x, y in zip(self._seen(pixels), labels.split(_BATCH), strict=True)
            ]
        return share_of(torch.cat(right))

    def by_word(
        self, pixels: Tensor, labels: Tensor, words: Mapping[str, Tensor], owners: Mapping[str, int]
    ) -> dict[str, dict[str, float | int]]:
        """Return how pictures rank by words: word -> class of it, class that ranks highest, average precision.

        Parameters
        ----------
        pixels, labels
            The pictures.
        words
            Word -> vector ``[D]`` of length 1.
        owners
            Word -> number of its class.
        """
        with torch.inference_mode():
            vectors = self.vectors(pixels).cpu()
        found: dict[str, dict[str, float | int]] = {}
        for word, text in words.items():
            cosines = vectors @ text.cpu()
            means = torch.stack([cosines[labels == n].mean() for n in range(len(self.texts))])
            ranked = (labels == owners[word])[cosines.argsort(descending=True, stable=True)].double()
            precision = ranked.cumsum(0) / torch.arange(1, len(ranked) + 1)
            found[word] = {
                "class": owners[word],
                "highest": int(means.argmax()),
                "average_precision": round(float((precision * ranked).sum() / ranked.sum()), 4),
            }
        return found

"""A question to an image of any size by a language model that sees a quarter of the tokens of a pyramid.

The policy reads the overview and the coarsest level, scores the tokens of the level by the region focus module, reads
the tiles of the next level that the best of them lie over, scores those, and gives the language model the overview and
the best quarter of the last level. Released inference (LRS-VQA, https://arxiv.org/abs/2503.07588) goes one level down,
which ends at 4 to 6 tiles along the long side; ``descent="full"`` goes down to full resolution.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import torch

from tilewright.errors import KernelError

from ..ask import Answer, Asking, BudgetSpentError, Request, Scene, View
from .dynamic_pyramid import MAP_SIDE, TOKENS, DynamicPyramid, PyramidLevel
from .evidence import evidence_of
from .pixels import Picture
from .sampling import TileReader
from .selection import TILE_TOKENS, TokenMap, best_tiles, kept_tokens, tiles_below

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from .region_focus import Mask, RegionFocus

    type Reading[T] = Generator[list[Request], list[View], T]

__all__ = ["Look", "Prompt", "PrunableModel", "PrunedAnswerer", "Pruning"]

BATCH = 8
"""Tiles that go through the vision tower at a time."""
PACKED = 2
"""Levels from this one on, which released inference never sees, count only tokens that are there: their positions
follow each other, and a row has a newline only where something of it was read."""

Place = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Prompt:
    """A question as embeddings ``[n, D]``."""

    before: Tensor
    """What stands before the image."""
    separator: Tensor
    """Between the overview and the level: the token ``:``."""
    after: Tensor
    """The question, and what begins the answer."""


class PrunableModel(Protocol):
    """What the policy asks of a vision-language model."""

    @property
    def focus(self) -> RegionFocus:
        """Its region focus module."""
        ...

    @property
    def newline(self) -> Tensor:
        """``[D]``: what ends a row of tokens."""
        ...

    def tokens(self, pixels: Tensor) -> Tensor:
        """From normalised tiles ``[n, 3, TILE, TILE]`` to ``[n, TOKENS * TOKENS, D]``, row by row."""
        ...

    def prompt(self, question: str) -> Prompt:
        """Embed a question."""
        ...

    def answer(self, sequence: Tensor, most: int) -> str:
        """Continue a prompt ``[S, D]`` by at most ``most`` tokens, greedily."""
        ...

    def flops(self, part: Literal["vision", "focus", "language"], count: int) -> float:
        """Estimate the operations of a forward over ``count`` tiles (vision) or tokens."""
        ...


@dataclass(frozen=True)
class Pruning:
    """What is kept. The defaults are those of the released model."""

    share: float = 0.25
    """Of the tokens of a level that are kept."""
    descent: Literal["released", "full"] = "released"
    """One level down, or down to full resolution."""
    fix_newline: bool = False
    """True keeps newlines from choosing tiles; as released they choose the whole right column."""
    mask: Mask = "released"
    """How tokens that were not read are hidden; see `tilewright.kernels.vlm.region_focus`."""
    budget_tokens: int | None = None
    """Most tokens of a level that are looked at, the coarsest apart: the best tiles are read, the others are not."""
    budget_bytes: int | None = None
    """Most bytes of pixels that are asked for after the overview and the coarsest level."""
    prune: bool = True
    """False gives the language model all tokens of the level that released inference ends at."""

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise KernelError(
                f"share={self.share:g}", place="pruning", remedy="give a number above 0, up to 1"
            )
        if self.budget_tokens is not None and self.budget_tokens < TILE_TOKENS:
            raise KernelError(
                f"budget_tokens={self.budget_tokens}", place="pruning", remedy=f"a tile has {TILE_TOKENS}"
            )
        if self.budget_bytes is not None and self.budget_bytes < 0:
            raise KernelError(f"budget_bytes={self.budget_bytes}", place="pruning", remedy="give at least 0")


@dataclass(frozen=True, eq=False)
class Look:
    """What was seen of one level, and what was kept of it."""

    number: int
    """Which level, 0 the coarsest."""
    view: PyramidLevel
    """Its geometry."""
    stored: int
    """Level of the scene that was read for it."""
    tiles: list[tuple[int, int]]
    """Tiles that were read."""
    tokens: TokenMap
    """Tokens that are there."""
    vectors: Tensor
    """``[n, D]``: their embeddings."""
    score: NDArray[np.float32]
    """``[n]``: their relevance; empty where the module was not asked."""
    kept: NDArray[np.int64]
    """Indices of those that were kept."""

    @property
    def kept_hash(self) -> str:
        """Hash of the places of what was kept: equal where the same tokens were."""
        return hashlib.sha256(self.tokens.places[self.kept].astype("<i8").tobytes()).hexdigest()[:16]

    def plain(self) -> dict[str, Any]:
        """Return what the trace says of it."""
        return {
            "level": self.number,
            "size": list(self.view.size),
            "read_from": self.stored,
            "tiles": len(self.tiles),
            "of_tiles": self.view.tiles[0] * self.view.tiles[1],
            "tokens": len(self.tokens),
            "of_tokens": self.tokens.size,
            "kept": len(self.kept),
        }


@dataclass(eq=False)
class Descent:
    """One question on its way down a pyramid; what it did stands in `looks` afterwards."""

    model: PrunableModel
    """Vision tower and region focus."""
    pruning: Pruning
    """What is kept."""
    scene: Scene
    """What is asked."""
    picture: Picture
    """Bands and their range."""
    prompt: Prompt
    """The question."""
    looks: list[Look] = field(default_factory=list)
    """What was seen of each level."""
    spent: int = 0
    """Bytes of the views that it was sent."""
    free: int = 0
    """Those of them that no budget counts."""
    pixel: float = 0.0
    """Bytes of a pixel with all bands."""
    tiles: int = 0
    """Tiles that went through the vision tower."""
    focus: float = 0.0
    """Operations of the region focus module."""
    cut: bool = False
    """True where the loop's budget ended it before it was through."""

    def run(self, steps: int | None = None) -> Reading[Tensor]:
        """Look at one level after another; returns ``[f, D]``, what stands before the tokens of the last one.

        With ``steps`` it goes down so often, else as its options say.
        """
        pyramid = DynamicPyramid.of(*self.scene.shape)
        overview = yield from self._encoded(TileReader(self.scene, pyramid.overview), [(0, 0)], pool=False)
        front = torch.cat((self.prompt.before, overview[0], self.prompt.separator))
        number = 0 if self.pruning.prune else pyramid.below(0)
        tiles = _all_tiles(pyramid.levels[number])
        for step in range((self._steps(pyramid) if steps is None else steps) + 1):
            if step:
                number = pyramid.below(number)
                tiles = self._below(pyramid.levels[number])
            if not tiles:
                break
            try:
                look = yield from self._look(number, pyramid.levels[number], tiles)
            except BudgetSpentError:
                if not self.looks:
                    raise
                self.cut = True
                break
            self.looks.append(self._scored(look, front))
            self.free = self.free or self.spent
        return front

    def _steps(self, pyramid: DynamicPyramid) -> int:
        """How often it goes down; an image of one level is looked at twice too."""
        if not self.pruning.prune:
            return 0
        return max(1, len(pyramid.levels) - 1) if self.pruning.descent == "full" else 1

    def _look(self, number: int, view: PyramidLevel, tiles: list[Place]) -> Reading[Look]:
        """Read tiles of a level and put their tokens into its map."""
        reader = TileReader(self.scene, view)
        found = yield from self._encoded(reader, tiles, pool=True)
        shape = view.token_shape(first=not self.looks and self.pruning.prune)
        tokens = TokenMap.of_tiles(shape, tiles, all_newlines=number < PACKED)
        number_of = np.zeros(view.tiles, np.int64)
        number_of[tuple(np.array(tiles).T)] = np.arange(len(tiles))
        image = ~tokens.newline
        rows, cols = tokens.rows[image], tokens.cols[image]
        which = number_of[rows // MAP_SIDE, cols // MAP_SIDE]
        inside = rows % MAP_SIDE * MAP_SIDE + cols % MAP_SIDE
        vectors = self.model.newline.to(found).repeat(len(tokens), 1)
        vectors[torch.from_numpy(image)] = found[torch.from_numpy(which), torch.from_numpy(inside)]
        none = np.zeros(0, np.float32)
        return Look(number, view, reader.stored, tiles, tokens, vectors, none, np.arange(len(tokens)))

    def _scored(self, look: Look, front: Tensor) -> Look:
        """Score the tokens of a look and keep the best of them."""
        tokens = look.tokens
        if not self.pruning.prune or not len(tokens):
            return look
        packed = look.number >= PACKED
        places = np.arange(len(tokens)) if packed else tokens.places
        size = len(tokens) if packed else tokens.size
        given = torch.from_numpy(places).to(look.vectors.device)
        with torch.inference_mode():
            score = self.model.focus(front, look.vectors, self.prompt.after, given, size, self.pruning.mask)
        through = len(tokens) if self.pruning.mask == "corrected" else size
        self.focus += self.model.flops("focus", len(front) + through + len(self.prompt.after))
        values = score.float().cpu().numpy()
        return replace(look, score=values, kept=kept_tokens(tokens, values, self.pruning.share))

    def _below(self, view: PyramidLevel) -> list[Place]:
        """Return the tiles of the next level that the last look asks for, ascending, as far as the budget goes."""
        look, pruning = self.looks[-1], self.pruning
        if len(look.tokens):
            asked = tiles_below(look.tokens, look.kept, view.tiles, newlines=not pruning.fix_newline)
            ranked = best_tiles(look.tokens, look.kept, look.score, view.tiles, asked)
        else:  # a strip that is less than a token high: there is nothing to choose by
            ranked = _all_tiles(view)
        if pruning.budget_tokens is not None:
            ranked = ranked[: pruning.budget_tokens // TILE_TOKENS]
        if pruning.budget_bytes is not None:
            reader = TileReader(self.scene, view)
            costs = np.cumsum([reader.cost(tile) * self.pixel for tile in ranked])
            left = pruning.budget_bytes - (self.spent - self.free)
            ranked = ranked[: int(np.searchsorted(costs, left, side="right"))]
        return sorted(ranked)

    def _encoded(self, reader: TileReader, tiles: list[Place], *, pool: bool) -> Reading[Tensor]:
        """Read tiles and encode them: ``[n, 576, D]``, or ``[n, 144, D]`` where 2 x 2 tokens are averaged."""
        channels = self.picture.channels(self.scene.bands)
        found = []
        for begin in range(0, len(tiles), BATCH):
            reading = reader.read(tiles[begin : begin + BATCH])
            try:
                requests = next(reading)
                while True:
                    views = yield requests
                    self._note(views)
                    requests = reading.send(views)
            except StopIteration as end:
                read = end.value
            with torch.inference_mode():
                tokens = self.model.tokens(self.picture.normalised(read, channels))
                found.append(_pooled(tokens) if pool else tokens)
        self.tiles += len(tiles)
        return torch.cat(found)

    def _note(self, views: list[View]) -> None:
        self.spent += sum(view.pixels.nbytes for view in views)
        rows, cols = views[0].request.shape
        self.pixel = views[0].pixels.nbytes / (rows * cols)


@dataclass(frozen=True, eq=False)
class PrunedAnswerer:
    """The policy: an `ask` kernel."""

    model: PrunableModel
    """Vision tower, region focus and language model."""
    pruning: Pruning = field(default_factory=Pruning)
    """What is kept."""
    picture: Picture = field(default_factory=Picture)
    """Bands and their range."""
    most: int = 64
    """Tokens of an answer at most."""
    regions: int = 16
    """Pieces of evidence at most."""
    name: str = "lrs-vqa"
    """Its name in traces."""

    def ask(self, question: str, scene: Scene) -> Asking:
        """Begin to answer; raises `KernelError` where the scene has several dates or not the bands."""
        return self.answered(self.descent(question, scene))

    def descent(self, question: str, scene: Scene) -> Descent:
        """Return the way down by itself, which reads and scores as `ask` does and gives no answer."""
        if scene.dates != 1:
            raise KernelError(f"{scene.dates} dates", place=self.name, remedy="ask about one date")
        self.picture.channels(scene.bands)
        return Descent(self.model, self.pruning, scene, self.picture, self.model.prompt(question))

    def answered(self, descent: Descent) -> Asking:
        """Go all the way down and answer; what was seen stands in ``descent.looks`` afterwards."""
        front = yield from descent.run()
        last = descent.looks[-1]
        sequence = torch.cat((front, last.vectors[torch.from_numpy(last.kept)], descent.prompt.after))
        text = self.model.answer(sequence, self.most)
        evidence = evidence_of(last.view, last.tokens, last.kept, last.score, self.regions)
        return Answer(text, evidence, self._trace(descent, len(sequence)))

    def _trace(self, descent: Descent, length: int) -> dict[str, Any]:
        last = descent.looks[-1]
        overview = TOKENS * TOKENS + len(descent.prompt.separator)
        return {
            "image": list(descent.scene.shape),
            "looks": [look.plain() for look in descent.looks],
            "visual_tokens": overview + len(last.kept),
            "of_visual_tokens": overview + last.tokens.size,
            "kept_hash": last.kept_hash,
            "sequence": length,
            "tiles": descent.tiles,
            "cut_by_budget": descent.cut,
            "bytes_of_views": descent.spent,
            "flops": {
                "vision": self.model.flops("vision", descent.tiles),
                "focus": descent.focus,
                "prefill": self.model.flops("language", length),
            },
        }


def _all_tiles(view: PyramidLevel) -> list[Place]:
    return [(row, col) for row in range(view.tiles[0]) for col in range(view.tiles[1])]


def _pooled(tokens: Tensor) -> Tensor:
    """Average 2 x 2 tokens of tiles: ``[n, 576, D]`` to ``[n, 144, D]``."""
    squares = tokens.unflatten(1, (MAP_SIDE, 2, MAP_SIDE, 2))
    pooled: Tensor = squares.mean(dim=(2, 4)).flatten(1, 2)
    return pooled

"""`find`: where in an image is what a text names? Answered by an image-text embedder alone, coarse to fine.

No language model speaks here: the answer is the evidence, and says so. The policy scans one coarse level whole (in
strips, for an image may be larger than memory), scores every cell of it against the text, and looks at the best places
again at the resolution that the embedder was made for, beside a sample of ordinary places of the same scene. What
counts is how far a place stands out from the scene, not a cosine by itself: cosines of different texts have different
levels, and a scene's own ground is the best ruler for them.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from tilewright.errors import KernelError
from tilewright.kernels.ask import Answer, Asking, BudgetSpentError, Evidence, Request, Scene, View

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tilewright.kernels.embed.contract import ImageTextEmbedder

__all__ = ["Find", "named_thing"]

LEAST_SCAN = 4_000_000
"""Pixels that a scan may always take: a small image is scanned finer than ``share`` says."""
STRIP = 512
"""Rows of the scanned level that are asked for at a time: a row of blocks of most COGs."""
_LEADS = (
    r"(please\s+)?(can|could) you\s+(please\s+)?(find|show|tell)\s*(me)?",
    r"(please\s+)?(find|show|locate|search|look)\s*(me|for)?",
    r"where\s+(is|are|do you see|can i see|was|were)(\s+there)?",
    r"(is|are)\s+there",
    r"which\s+(part|place|area)s?\s+(of\s+the\s+image\s+)?(is|are|shows?)",
    r"what\s+looks\s+like",
)
_ARTICLES = r"^(all|any|some|a|an|the)\s+"


def named_thing(question: str) -> str:
    """Return what a question asks for: "Where is the forest?" gives "forest"; a text without such words is kept."""
    text = " ".join(question.split()).rstrip("?.! ")
    for lead in _LEADS:
        text = re.sub(rf"^{lead}\b\s*", "", text, flags=re.IGNORECASE)
    for _ in range(2):
        text = re.sub(_ARTICLES, "", text, flags=re.IGNORECASE)
    return text or question


@dataclass(frozen=True)
class Place:
    """A place that the scan proposes."""

    row: float
    """Centre at full resolution."""
    col: float
    """Centre at full resolution."""
    box: tuple[float, float, float, float]
    """``(col0, row0, col1, row1)`` of the cells around it that stand out, at full resolution."""
    scan: float
    """How far it stands out of the scan, in robust standard deviations."""


@dataclass
class Find:
    """A policy for "where is ...": ranked places, with a statement whether they stand out."""

    embedder: ImageTextEmbedder
    """Vectors of pictures and texts, and a map of vectors (`Profile.dense`)."""
    tower: str = "image"
    """Which of its towers sees the image."""
    share: float = 0.01
    """Share of the image's bytes that may be read; half of it goes into the scan."""
    factor: float = 1.0
    """Full-resolution pixels along a pixel at which the embedder sees best: 1 where the image has the resolution
    that it was trained on."""
    candidates: int = 48
    """Places that are looked at again."""
    references: int = 48
    """Ordinary places that they are compared with."""
    best: int = 5
    """Most places in the answer."""
    least: float = 4.0
    """Robust standard deviations by which a place must stand out, in the scan and again from near, to be called
    found."""
    name: str = field(default="find", init=False)
    """Name in traces."""

    def ask(self, question: str, scene: Scene) -> Asking:
        """Scan, look again, and answer; raises `KernelError` where the bands are not those of the embedder."""
        text = named_thing(question)
        query = self.embedder.embed_texts([text])[0].float().cpu().numpy()
        self._check_bands(scene)
        level = self._scan_level(scene)
        similar, cell = yield from self._scan(scene, level, query)
        places = self._propose(similar, cell, scene)
        try:
            near, ruler = yield from self._look_again(scene, places, query)
        except BudgetSpentError:
            near, ruler = np.full(len(places), np.nan), (0.0, 1.0)
        return self._answer(text, places, near, ruler, level)

    # -- the scan --------------------------------------------------------------------------------------

    def _check_bands(self, scene: Scene) -> None:
        wanted = self.embedder.towers[self.tower].input.band_count
        if len(scene.bands) * scene.dates != wanted:
            raise KernelError(
                f"the image has {len(scene.bands)} bands ({', '.join(scene.bands)}), the embedder takes {wanted}",
                place=f"{self.embedder.profile.name}, tower {self.tower}",
                remedy="choose them by --bands",
            )

    def _scan_level(self, scene: Scene) -> int:
        """The finest level whose pixels are at most half of the share; never finer than the embedder's own."""
        rows, cols = scene.shape
        most = max(self.share / 2 * rows * cols, LEAST_SCAN)
        own = scene.level_for(self.factor)
        fitting = [
            n for n, level in enumerate(scene.levels) if level.shape[0] * level.shape[1] <= most and n >= own
        ]
        return fitting[0] if fitting else scene.coarsest

    def _scan(
        self, scene: Scene, level: int, query: NDArray[np.float32]
    ) -> Generator[list[Request], list[View], tuple[NDArray[np.float32], float]]:
        """Return the similarity of every cell ``[rows, columns]``, NaN where nothing was measured, and a cell's side
        at full resolution."""
        rows, cols = scene.levels[level].shape
        maps, px = [], 1
        strip = max(STRIP // self._side, 1) * self._side
        for row in range(0, rows, strip):
            (view,) = yield [Request(level, row, 0, min(row + strip, rows), cols)]
            part, px = self._cells(view, query)
            maps.append(part)
        return np.concatenate(maps), px * scene.levels[level].factor

    @property
    def _side(self) -> int:
        return self.embedder.towers[self.tower].side

    def _cells(self, view: View, query: NDArray[np.float32]) -> tuple[NDArray[np.float32], int]:
        """Return the similarity of the cells of one strip ``[rows, columns]``, and their side in its pixels."""
        import torch

        side = self._side
        height, width = view.valid.shape
        down, across = -(-height // side), -(-width // side)
        padded = np.pad(
            np.where(view.valid, view.pixels.astype(np.float32), np.nan),
            ((0, 0), (0, down * side - height), (0, across * side - width)),
            mode="symmetric",
        )
        tiles = padded.reshape(len(padded), down, side, across, side).transpose(1, 3, 0, 2, 4)
        flat = torch.from_numpy(np.ascontiguousarray(tiles.reshape(down * across, len(padded), side, side)))
        dense = self.embedder.embed_dense(flat, self.tower)
        found = torch.einsum("ndhw,d->nhw", dense, torch.from_numpy(query).to(dense)).cpu().numpy()
        cells = found.shape[-1]
        table = (
            found.reshape(down, across, cells, cells)
            .transpose(0, 2, 1, 3)
            .reshape(down * cells, across * cells)
        )
        px = side // cells
        kept = table[: -(-height // px), : -(-width // px)].astype(np.float32)
        grown = np.pad(
            view.valid, [(0, k * px - n) for k, n in zip(kept.shape, view.valid.shape, strict=True)]
        )
        seen = grown.reshape(kept.shape[0], px, kept.shape[1], px).any(axis=(1, 3))
        kept[~seen] = np.nan
        return kept, px

    def _propose(self, similar: NDArray[np.float32], cell: float, scene: Scene) -> list[Place]:
        """Return the places that stand out most, best first, with the cells around them that do."""
        from scipy import ndimage

        seen = np.isfinite(similar)
        if not seen.any():
            return []
        middle, spread = _ruler(similar[seen])
        weight = ndimage.uniform_filter(seen.astype(np.float32), 3, mode="constant")
        total = ndimage.uniform_filter(np.where(seen, similar - middle, 0), 3, mode="constant")
        out = np.where(weight > 0, total / np.maximum(weight, 1e-6), -np.inf) / spread
        out[~seen] = -np.inf
        left = out.copy()
        places: list[Place] = []
        while len(places) < self.candidates and (peak := left.max()) > 0:
            row, col = np.unravel_index(int(left.argmax()), left.shape)
            around = _connected(out, (int(row), int(col)), peak / 2)
            rows, cols = np.nonzero(around)
            box = (cols.min() * cell, rows.min() * cell, (cols.max() + 1) * cell, (rows.max() + 1) * cell)
            inside = (
                box[0], box[1], min(box[2], scene.shape[1]), min(box[3], scene.shape[0])
            )  # fmt: skip
            places.append(Place((row + 0.5) * cell, (col + 0.5) * cell, inside, float(peak)))
            left[around] = -np.inf
            left[max(0, row - 2) : row + 3, max(0, col - 2) : col + 3] = -np.inf
        return places

    # -- the second look -------------------------------------------------------------------------------

    def _look_again(
        self, scene: Scene, places: list[Place], query: NDArray[np.float32]
    ) -> Generator[list[Request], list[View], tuple[NDArray[np.float64], tuple[float, float]]]:
        """Return the similarity of each place from near, and middle and spread of ordinary places."""
        level = scene.level_for(self.factor)
        ordinary = list(_ordinary(scene, self.references))
        near = yield from self._near(scene, level, [(p.row, p.col) for p in places], query)
        usual = yield from self._near(scene, level, ordinary, query)
        known = usual[np.isfinite(usual)]
        return near, _ruler(known) if known.size else (0.0, 1.0)

    def _near(
        self, scene: Scene, level: int, centres: list[tuple[float, float]], query: NDArray[np.float32]
    ) -> Generator[list[Request], list[View], NDArray[np.float64]]:
        """Return the mean similarity of the four tiles around each centre."""
        import torch

        side = self._side
        requests = [_around(scene, level, centre, 2 * side) for centre in centres]
        found: dict[Request, float] = {}
        wanted = list(dict.fromkeys(requests))
        for n in range(0, len(wanted), 16):
            for view in (yield wanted[n : n + 16]):
                if not view.valid.any():
                    found[view.request] = np.nan
                    continue
                pixels = np.where(view.valid, view.pixels.astype(np.float32), np.nan)
                rows, cols = (max(1, s // side) for s in view.valid.shape)
                tiles = [
                    pixels[:, r * side : (r + 1) * side, c * side : (c + 1) * side]
                    for r in range(rows)
                    for c in range(cols)
                ]
                vectors = self.embedder.embed_images(torch.from_numpy(np.stack(tiles)), self.tower)
                found[view.request] = float((vectors.cpu().numpy() @ query).mean())
        return np.array([found[request] for request in requests], dtype=np.float64)

    # -- the answer ------------------------------------------------------------------------------------

    def _answer(
        self,
        text: str,
        places: list[Place],
        near: NDArray[np.float64],
        ruler: tuple[float, float],
        level: int,
    ) -> Answer:
        looked = bool(np.isfinite(near).any())
        standing = (near - ruler[0]) / ruler[1] if looked else np.array([p.scan for p in places])
        order = sorted(range(len(places)), key=lambda n: -np.nan_to_num(standing[n], nan=-np.inf))
        found = [
            n
            for n in order
            if places[n].scan >= self.least and np.nan_to_num(standing[n], nan=-np.inf) >= self.least
        ]
        shown = (found or order)[: self.best]
        evidence = [
            Evidence(
                places[n].box,
                float(standing[n]),
                text,
                {"scan": round(places[n].scan, 3), "found": n in found},
            )
            for n in shown
        ]
        trace: dict[str, Any] = {
            "text": text,
            "scanned_level": level,
            "candidates": len(places),
            "looked_again": looked,
            "found": len(found),
            "embedder": self.embedder.profile.name,
            "weights_sha256": self.embedder.weights_sha256,
        }
        return Answer(self._words(text, len(found), evidence), evidence, trace)

    def _words(self, text: str, found: int, evidence: list[Evidence]) -> str:
        said = "no language model was asked: these are places that look like the text"
        if not evidence:
            return f"Nothing was measured here; {said}"
        if not found:
            return f"Nothing stands out as {text!r}; the most alike of it is listed; {said}"
        places = "1 place stands" if found == 1 else f"{found} places stand"
        return f"{places} out as {text!r}, by {evidence[0].score:.1f} standard deviations at best; {said}"


def _ruler(values: NDArray[Any]) -> tuple[float, float]:
    """Return middle and spread: the median, and 1.4826 times the median distance from it (never 0)."""
    middle = float(np.median(values))
    return middle, max(1.4826 * float(np.median(np.abs(values - middle))), 1e-3)


def _connected(out: NDArray[Any], at: tuple[int, int], above: float) -> NDArray[np.bool_]:
    """Return the cells that hang together with ``at`` and are above a value: a True each."""
    from scipy import ndimage

    labels, _ = ndimage.label(out > above)
    mask: NDArray[np.bool_] = labels == labels[at]
    return mask


def _ordinary(scene: Scene, count: int) -> Iterator[tuple[float, float]]:
    """Yield centres spread evenly over the scene, by the golden ratio: the same ones each time."""
    rows, cols = scene.shape
    for n in range(count):
        yield (n + 0.5) / count * rows, ((n * 0.6180339887498949 + 0.5) % 1.0) * cols


def _around(scene: Scene, level: int, centre: tuple[float, float], side: int) -> Request:
    """Return the window of ``side`` pixels of a level around a place, moved into it, smaller where the level is."""
    info = scene.levels[level]
    span = []
    for at, length in zip(centre, info.shape, strict=True):
        size = min(side, length)
        start = min(max(0, round(at / info.factor - size / 2)), length - size)
        span.append((start, start + size))
    return Request(level, span[0][0], span[1][0], span[0][1], span[1][1])

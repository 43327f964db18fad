"""`find`: where in an image is what a text names, how often, how large? By an image-text embedder alone.

No language model speaks here: the answer is the evidence, and says so. The policy scans one coarse level whole (in
strips, for an image may be larger than memory), scores every cell of it against the text, and looks at the best places
again at the resolution that the embedder was made for, beside a sample of ordinary places of the same scene. What
counts is how far a place stands out from the scene, not a cosine by itself: cosines of different texts have different
levels, and a scene's own ground is the best ruler for them. Counts and areas are those of the places that stand out,
and the answer says so. What a question means after others is decided by `tilewright.kernels.vlm.meaning`.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from tilewright.errors import KernelError
from tilewright.kernels.ask import Answer, Asking, BudgetSpentError, Evidence, Request, Scene, View

from .contrast import Contrast
from .meaning import Meaning, meaning_of, named_thing
from .measures import area_words, covered_pixels, pixel_area

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tilewright.kernels.embed.contract import ImageTextEmbedder

    from .measures import Box

__all__ = ["Find", "named_thing"]

ALIKE = 0.95
"""Cosine, seen from the mean of the scene, from which two places are of a kind."""
MOST_ALIKE = 8
"""Places of a kind that are looked at again before those of other kinds."""
MOST_GROUND = 100_000
"""Cells, spread evenly, from which the ground of a scene is known."""
MOST_PEAKS = 4096
"""Peaks of the scan that are considered."""
LEAST_SCAN = 4_000_000
"""Pixels that a scan may always take: a small image is scanned finer than ``share`` says."""
SAME_PLACE = 0.5
"""Share of the smaller of two boxes above which they are one place."""
STRIP = 512
"""Rows of the scanned level that are asked for at a time: a row of blocks of most COGs."""


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
    """A policy for "where is ...", "how many ..." and "how large is ...": places, and whether they stand out."""

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
    """Most places in the answer; a count and an area have all that stand out."""
    least: float = 3.0
    """Robust standard deviations by which a place must stand out, in the scan and again from near, to be called
    found."""
    name: str = field(default="find", init=False)
    """Name in traces."""

    def ask(self, question: str, scene: Scene) -> Asking:
        """Scan, look again, and answer; raises `KernelError` where the bands are not those of the embedder."""
        meaning = meaning_of(question, scene.history)
        query = self.embedder.embed_texts([meaning.thing])[0].float().cpu().numpy()
        self._check_bands(scene)
        level = self._scan_level(scene)
        vectors, cell = yield from self._scan(scene, level)
        places = self._propose(vectors, query, cell, scene, meaning.within)
        try:
            standing = yield from self._look_again(scene, places, query)
        except BudgetSpentError:
            standing = np.full(len(places), np.nan)
        if not (looked := bool(np.isfinite(standing).any())):
            standing = np.array([p.scan for p in places])
        trace = {
            "text": meaning.thing,
            "asked": meaning.kind,
            "within": meaning.within,
            "turns_before": len(scene.history),
            "scanned_level": level,
            "candidates": len(places),
            "looked_again": looked,
            "embedder": self.embedder.profile.name,
            "weights_sha256": self.embedder.weights_sha256,
        }
        return self._answer(meaning, places, standing, scene, trace)

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
        self, scene: Scene, level: int
    ) -> Generator[list[Request], list[View], tuple[NDArray[np.float16], float]]:
        """Return the vector of every cell ``[rows, columns, D]``, NaN where nothing was measured, and a cell's side at
        full resolution. In half precision: 40 MB for the 150,000 cells of a scan of 100,000 x 100,000 px."""
        rows, cols = scene.levels[level].shape
        maps, px = [], 1
        strip = max(STRIP // self._side, 1) * self._side
        for row in range(0, rows, strip):
            (view,) = yield [Request(level, row, 0, min(row + strip, rows), cols)]
            part, px = self._cells(view)
            maps.append(part)
        return np.concatenate(maps), px * scene.levels[level].factor

    @property
    def _side(self) -> int:
        return self.embedder.towers[self.tower].side

    def _cells(self, view: View) -> tuple[NDArray[np.float16], int]:
        """Return the vectors of the cells of one strip ``[rows, columns, D]``, and their side in its pixels."""
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
        found = dense.cpu().numpy().astype(np.float16)
        dim, cells = found.shape[1:3]
        table = (
            found.reshape(down, across, dim, cells, cells)
            .transpose(0, 3, 1, 4, 2)
            .reshape(down * cells, across * cells, dim)
        )
        px = side // cells
        kept = table[: -(-height // px), : -(-width // px)].copy()
        grown = np.pad(
            view.valid, [(0, k * px - n) for k, n in zip(kept.shape[:2], view.valid.shape, strict=True)]
        )
        seen = grown.reshape(kept.shape[0], px, kept.shape[1], px).any(axis=(1, 3))
        kept[~seen] = np.nan
        return kept, px

    def _propose(
        self,
        vectors: NDArray[np.float16],
        query: NDArray[np.float32],
        cell: float,
        scene: Scene,
        within: tuple[Box, ...] | None = None,
    ) -> list[Place]:
        """Return the places that stand out most, best first, with the cells around them that do.

        All of the scene is the ruler; with ``within`` places are looked for in these boxes alone.
        """
        seen = np.isfinite(vectors[..., 0])
        if not seen.any():
            return []
        ground = vectors[seen]
        contrast = Contrast.between(ground[:: max(1, len(ground) // MOST_GROUND)], query)
        similar = np.stack([contrast.standing(row) for row in vectors])
        out = _smoothed(similar, seen)
        if within is not None:
            out[~_cells_in(within, out.shape, cell)] = -np.inf
        taken, places = np.zeros(out.shape, bool), []
        for row, col in _various(out, vectors, contrast.mean):
            if taken[row, col]:
                continue
            around = _connected(out, (row, col), out[row, col] / 2)
            rows, cols = np.nonzero(around)
            box = (cols.min() * cell, rows.min() * cell, (cols.max() + 1) * cell, (rows.max() + 1) * cell)
            inside = (
                box[0], box[1], min(box[2], scene.shape[1]), min(box[3], scene.shape[0])
            )  # fmt: skip
            places.append(Place((row + 0.5) * cell, (col + 0.5) * cell, inside, float(out[row, col])))
            taken |= around
            if len(places) == self.candidates:
                break
        return places

    # -- the second look -------------------------------------------------------------------------------

    def _look_again(
        self, scene: Scene, places: list[Place], query: NDArray[np.float32]
    ) -> Generator[list[Request], list[View], NDArray[np.float64]]:
        """Return how far each place stands out from ordinary places, seen from near; NaN where nothing is valid."""
        level = scene.level_for(self.factor)
        ordinary = list(_ordinary(scene, self.references))
        near = yield from self._near(scene, level, [(p.row, p.col) for p in places])
        usual = yield from self._near(scene, level, ordinary)
        known = usual[np.isfinite(usual[:, 0])]
        if not len(known):
            return np.full(len(places), np.nan)
        return Contrast.between(known, query).standing(near).astype(np.float64)

    def _near(
        self, scene: Scene, level: int, centres: list[tuple[float, float]]
    ) -> Generator[list[Request], list[View], NDArray[np.float32]]:
        """Return the mean vector ``[n, D]`` of the four tiles around each centre."""
        import torch

        side = self._side
        requests = [_around(scene, level, centre, 2 * side) for centre in centres]
        found: dict[Request, Any] = {}
        wanted = list(dict.fromkeys(requests))
        for n in range(0, len(wanted), 16):
            for view in (yield wanted[n : n + 16]):
                if not view.valid.any():
                    found[view.request] = np.full(self.embedder.profile.dim, np.nan, np.float32)
                    continue
                pixels = np.where(view.valid, view.pixels.astype(np.float32), np.nan)
                rows, cols = (max(1, s // side) for s in view.valid.shape)
                tiles = [
                    pixels[:, r * side : (r + 1) * side, c * side : (c + 1) * side]
                    for r in range(rows)
                    for c in range(cols)
                ]
                vectors = self.embedder.embed_images(torch.from_numpy(np.stack(tiles)), self.tower)
                found[view.request] = vectors.cpu().numpy().mean(axis=0)
        return (
            np.stack([found[request] for request in requests]) if requests else np.empty((0, 1), np.float32)
        )

    # -- the answer ------------------------------------------------------------------------------------

    def _answer(
        self,
        meaning: Meaning,
        places: list[Place],
        standing: NDArray[np.float64],
        scene: Scene,
        trace: dict[str, Any],
    ) -> Answer:
        """Return the answer; ``standing`` says for each place how far it stands out, NaN where it was not seen."""
        known = np.nan_to_num(standing, nan=-np.inf)
        order = _distinct(places, sorted(range(len(places)), key=lambda n: -known[n]))
        found = [n for n in order if places[n].scan >= self.least and known[n] >= self.least]
        shown = found if found and meaning.kind != "where" else (found or order)[: self.best]
        evidence = [
            Evidence(
                places[n].box,
                float(standing[n]),
                meaning.thing,
                {"scan": round(places[n].scan, 3), "found": n in found},
            )
            for n in shown
        ]
        boxes = [places[n].box for n in found]
        size = pixel_area(scene, boxes) if boxes else None
        pixels = covered_pixels(boxes) if boxes else 0.0
        covered = f"{pixels:,.0f} px, of a size that the image does not say"
        if size is not None:
            covered = area_words(pixels * size)
        trace = trace | {"found": len(found), "pixels_covered": pixels}
        trace["area_m2"] = None if size is None else pixels * size
        return Answer(self._words(meaning, len(found), evidence, covered), evidence, trace)

    def _words(self, meaning: Meaning, found: int, evidence: list[Evidence], covered: str) -> str:
        said = "no language model was asked: these are places that look like the text"
        part = "" if meaning.within is None else " in that part"
        if not evidence:
            return f"Nothing was measured here{part}; {said}"
        if not found:
            return f"Nothing stands out as {meaning.thing!r}{part}; the most alike of it is listed; {said}"
        places = "1 place stands" if found == 1 else f"{found} places stand"
        if found >= self.candidates:
            places = f"At least {places}"
        out = (
            f"{places} out as {meaning.thing!r}{part}, by {evidence[0].score:.1f} standard deviations at best"
        )
        if meaning.kind == "count":
            boxes = "the box around it covers" if found == 1 else "the boxes around them cover together"
            return f"{out}; what touches counts as one place; {boxes} {covered}; {said}"
        if meaning.kind == "area":
            return f"{covered} are covered by boxes, not outlines: {out}; {said}"
        return f"{out}; {said}"


def _smoothed(standing: NDArray[np.float32], seen: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return means over three by three cells of those that were seen; -inf where none was."""
    from scipy import ndimage

    weight = ndimage.uniform_filter(seen.astype(np.float32), 3, mode="constant")
    total = ndimage.uniform_filter(np.where(seen, standing, 0), 3, mode="constant")
    out: NDArray[np.float32] = np.where(seen, total / np.maximum(weight, 1e-6), -np.inf).astype(np.float32)
    return out


def _various(
    out: NDArray[np.float32], vectors: NDArray[np.float16], mean: NDArray[np.float32]
) -> Iterator[tuple[int, int]]:
    """Yield peaks, best first, but those of a kind of which there were `MOST_ALIKE` only after all others.

    A scene has many places that are alike, and where some of them only seem to be what is looked for, all do: the
    second look shall not be spent on them alone (diversity of what is shown: Carbonell and Goldstein 1998,
    https://doi.org/10.1145/290941.291025).
    """
    from scipy import ndimage

    peaks = np.argwhere((out > 0) & (out == ndimage.maximum_filter(out, 5)))
    peaks = peaks[np.argsort(-out[tuple(peaks.T)], kind="stable")][:MOST_PEAKS]
    kinds = np.empty((0, vectors.shape[2]), np.float32)
    counts: list[int] = []
    later: list[tuple[int, int]] = []
    for row, col in peaks.tolist():
        around = vectors[max(row - 1, 0) : row + 2, max(col - 1, 0) : col + 2].astype(np.float32)
        seen = np.nanmean(around, axis=(0, 1)) - mean
        seen /= max(float(np.linalg.norm(seen)), 1e-12)
        like = kinds @ seen
        if len(like) and like.max() > ALIKE:
            kind = int(like.argmax())
        else:
            kind, kinds = len(counts), np.vstack([kinds, seen])
            counts.append(0)
        counts[kind] += 1
        if counts[kind] > MOST_ALIKE:
            later.append((row, col))
        else:
            yield row, col
    yield from later


def _connected(out: NDArray[Any], at: tuple[int, int], above: float) -> NDArray[np.bool_]:
    """Return the cells that hang together with ``at`` and are above a value: a True each."""
    from scipy import ndimage

    labels, _ = ndimage.label(out > above)
    mask: NDArray[np.bool_] = labels == labels[at]
    return mask


def _cells_in(boxes: tuple[Box, ...], shape: tuple[int, ...], cell: float) -> NDArray[np.bool_]:
    """Return True for each cell whose middle lies in a box, and for those that a box without any such touches."""
    rows, cols = ((np.arange(count) + 0.5) * cell for count in shape)
    inside = np.zeros(shape, bool)
    for col0, row0, col1, row1 in boxes:
        down, across = (rows >= row0) & (rows < row1), (cols >= col0) & (cols < col1)
        if not (down.any() and across.any()):
            down = (rows + cell / 2 > row0) & (rows - cell / 2 < row1)
            across = (cols + cell / 2 > col0) & (cols - cell / 2 < col1)
        inside |= down[:, None] & across
    return inside


def _distinct(places: list[Place], order: list[int]) -> list[int]:
    """Return the numbers of ``order`` without places that lie on a better one by more than half of the smaller box.

    The slope around a place that stands out stands out too, and is not another place.
    """
    kept: list[int] = []
    for number in order:
        if not any(_shared(places[number].box, places[other].box) > SAME_PLACE for other in kept):
            kept.append(number)
    return kept


def _shared(a: Box, b: Box) -> float:
    """Return what two boxes share, of the smaller one."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    smaller = min((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]))
    return max(width, 0.0) * max(height, 0.0) / smaller


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

"""`evaluate`: a kernel mapped over the pictures of a dataset, and compared with their labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from queue import SimpleQueue
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from tilewright.api import bound_kernel, make_settings
from tilewright.errors import InputError, KernelError, TilewrightError
from tilewright.pipeline.ahead import map_ahead
from tilewright.pipeline.job import prepare

from .answers import Answers, choose_answers, has_result, map_picture
from .dataset import open_dataset
from .layout import IGNORED
from .pixels import (
    Pictures,
    PictureSource,
    chosen_bands,
    no_warning_of_place,
    read_label,
    read_picture,
    read_pictures,
    sample_bands,
)
from .tally import ClassTally, Found, PictureTally, SemanticTally, Tally, Worst

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tilewright.kernels.contract import Kernel
    from tilewright.pipeline.job import Job
    from tilewright.pipeline.settings import Settings

    from .dataset import Dataset, Sample
    from .tally import Shown

__all__ = ["Evaluation", "Progress", "evaluate", "output_folder", "plain"]

type Progress = Callable[[int, int, str], None]
"""Called with pictures done, pictures there are, and the name of the last one."""


@dataclass(frozen=True)
class Evaluation:
    """What was found: the content of ``metrics.json``, and the worst pictures."""

    kernel: str
    """Name of the kernel."""
    weights: str | None
    """Where its weights came from."""
    weights_sha256: str | None
    """Their checksum."""
    untrained: bool
    """True where it had none and random ones stood in: the scores then mean nothing."""
    options: Mapping[str, Any]
    """Options of the kernel."""
    dataset: str
    """The folder."""
    layout: str
    """Name of its layout."""
    split: str | None
    """The split."""
    task: str
    """What was compared: ``change``, ``classes``, ``semantic-change`` or ``pictures``."""
    outputs: tuple[str, ...]
    """The outputs that were compared, the mask of change last."""
    threshold: float | None
    """Where a score was cut."""
    images: int
    """Pictures."""
    pixels: int
    """Pixels that counted; of semantic change those of both dates."""
    pixels_ignored: int
    """Pixels that the labels leave out."""
    pixels_without_result: int
    """Pixels that would count but for which the kernel gave no result; they are in no score."""
    scores: Mapping[str, float]
    """The scores of the whole set; NaN for one that does not exist."""
    classes: tuple[str, ...]
    """Names of the classes."""
    per_class: tuple[Mapping[str, float], ...]
    """Precision, recall, F1, IoU and support of each class."""
    confusion: tuple[tuple[int, ...], ...]
    """Rows are labels, columns predictions."""
    per_image: tuple[Mapping[str, Any], ...]
    """Name, pixels and errors of each picture."""
    seconds: float
    """Wall time."""
    worst: tuple[Shown, ...] = ()
    """The pictures on which most went wrong, the worst first."""

    def as_dict(self) -> dict[str, Any]:
        """Return all but the pictures as plain data for JSON: None for a score that does not exist."""
        found: dict[str, Any] = plain(asdict(replace(self, worst=())))
        del found["worst"]
        return found


def plain(value: Any) -> Any:
    """Return a value as JSON can hold it; None for a number that does not exist."""
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def evaluate(
    kernel: Kernel | str | Path,
    dataset: str | Path,
    *,
    layout: str | None = None,
    split: str | None = None,
    limit: int | None = None,
    out: str | Path | None = None,
    weights: Any = None,
    options: Mapping[str, Any] | None = None,
    bands: Sequence[str | int] | None = None,
    output: str | None = None,
    threshold: float | None = None,
    worst: int = 6,
    progress: Progress | None = None,
    settings: Settings | None = None,
    **wishes: Any,
) -> Evaluation:
    """Map a kernel over the pictures of a labelled dataset and compare.

    The pictures go the way of `tilewright.apply`: tiled, cut or blended, reduced. Scores follow from sums over the
    whole set, as docs/guides/eval.md defines them.

    Parameters
    ----------
    kernel
        A kernel, or what `load_kernel` takes.
    dataset
        Folder of the dataset; its layout is found out.
    layout
        Name of the layout, or the path of a description.
    split
        The split; None takes ``test``, or the only one.
    limit
        Only the first so many pictures.
    out
        Folder for ``metrics.json``, ``confusion.csv``, ``confusion.png`` and ``worst-tiles.png``.
    weights, options
        For a kernel by name.
    bands
        Names or 1-based numbers of the bands to take.
    output
        The output to compare; None takes the first class map.
    threshold
        Compare a score, cut here, instead.
    worst
        How many of the worst pictures are kept and drawn.
    progress
        Called after each picture.
    settings, **wishes
        `Settings`, or its fields.

    Raises
    ------
    TilewrightError
        In one sentence that says what to change: an unknown layout, a label of no class, a kernel without weights, ...
    """
    began = perf_counter()
    if limit is not None and limit < 1:
        raise InputError(f"limit is {limit}", place="--limit", remedy="give a number of at least 1")
    found = open_dataset(dataset, layout, split)
    folder, chosen = output_folder(out), make_settings(settings, **wishes)
    try:
        with no_warning_of_place():
            work = _Work.prepare(found, kernel, bands, weights, options, output, threshold, chosen)
            tally, worst_ones, rows = work.tally(), Worst(worst), []
            for one in work.map(islice(found.samples(), limit)):
                if folder is not None:
                    folder.mkdir(parents=True, exist_ok=True)
                facts = tally.add(one)
                worst_ones.offer(one, facts)
                rows.append({"name": one.name} | {k: v for k, v in facts.items() if k != "badness"})
                if progress is not None:
                    progress(len(rows), len(found.names[:limit]), one.name)
    except KeyboardInterrupt as error:
        error.add_note("an evaluation keeps nothing; the same command begins again")
        raise
    result = work.result(tally, rows, tuple(worst_ones.pictures()), perf_counter() - began)
    result = replace(result, dataset=str(Path(dataset).resolve()))
    if folder is not None:
        from .written import write_evaluation

        write_evaluation(result, folder)
    return result


def output_folder(out: str | Path | None) -> Path | None:
    """Return the folder to write to; raises `InputError` where a file lies there."""
    if out is None:
        return None
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise InputError("a file lies there", place=str(folder), remedy="name another folder by --out")
    return folder


@dataclass(frozen=True)
class _Work:
    """A kernel and a dataset that fit, and how each picture is compared."""

    data: Dataset
    kernel: Kernel
    taken: tuple[str, ...]
    """Bands of the dataset that are read."""
    called: tuple[str, ...]
    """What they are called before the kernel."""
    answers: Answers | None
    """None for pictures."""
    settings: Settings

    @classmethod
    def prepare(
        cls,
        data: Dataset,
        kernel: Kernel | str | Path,
        bands: Sequence[str | int] | None,
        weights: Any,
        options: Mapping[str, Any] | None,
        output: str | None,
        threshold: float | None,
        settings: Settings,
    ) -> _Work:
        """Find out which bands and outputs are meant; reads the headers of one picture."""
        first = next(data.samples())
        there = sample_bands(first, data.layout)
        taken, called = chosen_bands(there, bands, "--bands")
        loaded = bound_kernel(kernel, called, weights, options)
        needed = [name for name, spec in loaded.spec.inputs.items() if not spec.optional]
        if len(needed) > 1:
            raise KernelError(
                f"it takes {', '.join(needed)}; a dataset has pictures alone",
                place=f"kernel {loaded.spec.name}",
            )
        wanted = loaded.spec.inputs[needed[0] if needed else next(iter(loaded.spec.inputs))].bands
        if isinstance(wanted, tuple) and set(wanted) <= set(called):
            taken = tuple(taken[called.index(name)] for name in wanted)
            called = wanted
        answers = None
        if data.layout.task != "pictures":
            answers = choose_answers(loaded.spec, data.layout, output, threshold)
        return cls(data, loaded, taken, called, answers, settings)

    def map(self, samples: Iterator[Sample]) -> Iterator[Found]:
        """Yield what was found on each picture, in order; small pictures are computed side by side."""
        first = next(samples, None)
        if first is None:
            return
        job = self._job(self._pictures(first), self.kernel)
        batches = math.prod(job.tiling.count(n) for n in job.grid.shape) / (job.settings.batch or 1)
        workers = job.lanes if batches < 2 * job.lanes else 1
        kernels: SimpleQueue[Kernel] = SimpleQueue()
        for kernel in (self.kernel, *(self.kernel.twin() for _ in range(workers - 1))):
            kernels.put(kernel)

        def compute(sample: Sample) -> Found:
            kernel = kernels.get()
            try:
                return self._compare(sample, kernel, workers)
            finally:
                kernels.put(kernel)

        def everyone() -> Iterator[Sample]:
            yield first
            yield from samples

        if workers == 1:
            yield from map(compute, everyone())
            return
        with ThreadPoolExecutor(workers, thread_name_prefix="tilewright-eval") as pool:
            yield from map_ahead(pool, compute, everyone(), workers + 1)

    def _pictures(self, sample: Sample) -> Pictures:
        return read_pictures(sample, self.data.layout, self.taken, self.called)

    def _job(self, pictures: Pictures, kernel: Kernel) -> Job:
        return prepare(kernel, PictureSource(pictures), self.settings)

    def _compare(self, sample: Sample, kernel: Kernel, workers: int) -> Found:
        pictures = self._pictures(sample)
        job = self._job(pictures, kernel)
        labels = self._labels(sample, job)
        try:
            arrays = map_picture(job.with_lanes(1) if workers > 1 else job)
        except TilewrightError as error:
            raise type(error)(
                error.cause,
                place=f"{sample.name}, {error.place}" if error.place else sample.name,
                remedy=error.remedy,
            ) from error
        if self.answers is None:
            name, spec = next(iter(kernel.spec.outputs.items()))
            made = arrays[name]
            return Found(sample.name, (made,), labels, has_result(made, spec), pictures.data, pictures.bands)
        maps, there = self.answers.read(arrays)
        if self.answers.task == "change" and len(labels) > 1:
            labels = (np.where(labels[0] == IGNORED, IGNORED, labels[0] > 0).astype(np.uint8),)
        return Found(sample.name, maps, labels, there, pictures.data, pictures.bands)

    def _labels(self, sample: Sample, job: Job) -> tuple[NDArray[Any], ...]:
        if self.answers is None:
            return tuple(read_picture(path) for path in sample.labels)
        classes = self.data.layout.classes or self.answers.classes
        return tuple(
            read_label(path, label, len(classes), job.grid.shape)
            for path, label in zip(sample.labels, self.data.layout.labels, strict=True)
        )

    def tally(self) -> Tally:
        """Return the sums to begin with."""
        if self.answers is None:
            spec = next(iter(self.kernel.spec.outputs.values()))
            return PictureTally(*(spec.range or (0.0, 255.0)))
        kind = SemanticTally if self.answers.task == "semantic-change" else ClassTally
        return kind(len(self.answers.classes))

    def result(
        self, tally: Tally, rows: list[dict[str, Any]], worst: tuple[Shown, ...], seconds: float
    ) -> Evaluation:
        """Return what was found."""
        kernel, answers = self.kernel, self.answers
        used = (*answers.maps, *([answers.mask] if answers.mask else [])) if answers else ()
        cuts = [answer.threshold for answer in used if answer.threshold is not None]
        counted = tally if isinstance(tally, ClassTally) else None
        return Evaluation(
            kernel=kernel.spec.name,
            weights=kernel.weights,
            weights_sha256=kernel.weights_sha256,
            untrained=kernel.untrained,
            options=kernel.options,
            dataset=str(self.data.folder),
            layout=self.data.layout.name,
            split=self.data.split,
            task=answers.task if answers else "pictures",
            outputs=tuple(answer.output for answer in used) or tuple(kernel.spec.outputs)[:1],
            threshold=cuts[0] if cuts else None,
            images=len(rows),
            pixels=int(sum(row["pixels"] for row in rows)),
            pixels_ignored=tally.ignored,
            pixels_without_result=tally.missing,
            scores=tally.scores(),
            classes=answers.classes if answers else (),
            per_class=tuple(counted.rows()) if counted else (),
            confusion=tuple(tuple(row) for row in counted.counts.tolist()) if counted else (),
            per_image=tuple(rows),
            seconds=round(seconds, 3),
            worst=worst,
        )

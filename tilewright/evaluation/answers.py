"""What a kernel answers to one picture, as class maps that can be compared with a label."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tilewright.errors import InputError, KernelError, nearest_name
from tilewright.pipeline.reduce import quantisation

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tilewright.kernels.contract import KernelSpec, OutputSpec
    from tilewright.pipeline.job import Job

    from .layout import Layout

__all__ = ["Answer", "Answers", "choose_answers", "has_result", "map_picture"]

_CHANGE = ("no-change", "change")


def map_picture(job: Job) -> dict[str, NDArray[Any]]:
    """Return the outputs of a job as whole arrays ``[C, rows, columns]``: the engine's own way, in memory."""
    from tilewright.pipeline.engine import Engine
    from tilewright.pipeline.statistics import gather_statistics

    if job.kernel.spec.statistics is not None:
        job = job.with_statistics(gather_statistics(job))
    scale, (rows, columns) = job.kernel.spec.scale, job.grid.shape
    shards = list(job.tiling.shards(job.grid.shape))
    whole = {
        name: np.empty((spec.band_count, rows * scale, columns * scale), spec.stored_dtype)
        for name, spec in job.kernel.spec.outputs.items()
    }
    for result in Engine(job, shards).run(shards):
        window = result.shard.window
        at = (
            slice(window.row0 * scale, window.row1 * scale),
            slice(window.col0 * scale, window.col1 * scale),
        )
        for name, values in result.arrays.items():
            whole[name][:, *at] = values
    return whole


def has_result(values: NDArray[Any], spec: OutputSpec) -> NDArray[np.bool_]:
    """Return where all bands of stored values ``[C, rows, columns]`` are no nodata, ``[rows, columns]``."""
    nodata = spec.stored_nodata
    result: NDArray[np.bool_] = (~np.isnan(values) if np.isnan(nodata) else values != nodata).all(axis=0)
    return result


@dataclass(frozen=True)
class Answer:
    """One output of a kernel, read as classes."""

    output: str
    """Name of the output."""
    spec: OutputSpec
    """Its description."""
    classes: int
    """Number of classes that it tells apart."""
    threshold: float | None = None
    """Class 1 is where the value is at least this; None for labels, and for a score of each class."""
    order: tuple[int, ...] | None = None
    """Dataset's class of each of the kernel's, where their names are the same in another order."""
    shift: int = 0
    """Added to the classes: 1 where the kernel has no class for "unchanged"."""

    def read(self, arrays: Mapping[str, NDArray[Any]]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Return ``(class, has a result)``, each ``[rows, columns]``."""
        values = arrays[self.output]
        there = has_result(values, self.spec)
        if self.spec.kind == "class":
            found = np.where(there, values[0], 0).astype(np.int64)
        elif self.threshold is None:
            found = np.where(there, self.plain(values), -np.inf).argmax(axis=0)
        else:
            found = (there & (self.plain(values)[0] >= self.threshold)).astype(np.int64)
        if found.max(initial=0) >= self.classes:
            raise KernelError(
                f"it gives class {int(found.max())}; there are {self.classes}", place=f"output {self.output}"
            )
        if self.order is not None:
            found = np.asarray(self.order)[found]
        return found + self.shift, there

    def plain(self, values: NDArray[Any]) -> NDArray[np.float32]:
        """Return stored values in units."""
        scale, offset = quantisation(self.spec)
        return values.astype(np.float32) * np.float32(scale) + np.float32(offset)


@dataclass(frozen=True)
class Answers:
    """The outputs that are compared: one, or for semantic change a map of each date and what masks them."""

    maps: tuple[Answer, ...]
    """One map, or one a date."""
    mask: Answer | None
    """Says where anything changed; None where the maps themselves do."""
    classes: tuple[str, ...]
    """Names of the classes that are counted."""
    task: str
    """As of a layout; ``change`` for a kernel that only knows change, on a dataset of semantic change."""

    def read(
        self, arrays: Mapping[str, NDArray[Any]]
    ) -> tuple[tuple[NDArray[np.int64], ...], NDArray[np.bool_]]:
        """Return the class maps, and where all of them have a result."""
        read = [answer.read(arrays) for answer in self.maps]
        there = np.logical_and.reduce([valid for _, valid in read])
        maps = tuple(found for found, _ in read)
        if self.mask is not None:
            changed, known = self.mask.read(arrays)
            maps, there = tuple(found * changed for found in maps), there & known
        return maps, there


def choose_answers(
    spec: KernelSpec, layout: Layout, output: str | None = None, threshold: float | None = None
) -> Answers:
    """Decide which outputs of a kernel are compared with the labels of a layout, and how.

    Parameters
    ----------
    spec
        The kernel.
    layout
        The dataset; its task is not ``pictures``.
    output
        Name of the output; None takes the first class map, or with ``threshold`` the first score.
    threshold
        Score from which a pixel is of class 1; None takes what the kernel declares.

    Raises
    ------
    InputError
        There is no such output, or a threshold is given where nothing can be cut.
    KernelError
        The kernel gives records, a finer grid, no class map, or another number of classes than the dataset has.
    """
    place = f"kernel {spec.name}"
    if spec.mapping != "map_pixels" or spec.scale != 1:
        what = "records" if spec.mapping != "map_pixels" else f"pictures {spec.scale} times finer"
        raise KernelError(f"it gives {what}, the dataset has class maps", place=place)
    if layout.task == "semantic-change":
        found = _semantic(spec, layout, threshold) if output is None else None
        if found is not None:
            return found
        name = _name(spec, output, threshold)
        return Answers(
            (_answer(spec, name, _CHANGE, threshold),),
            None,
            _CHANGE,
            "change",
        )
    name = _name(spec, output, threshold)
    classes = layout.classes or _own_classes(spec, name)
    return Answers((_answer(spec, name, classes, threshold),), None, classes, layout.task)


def _name(spec: KernelSpec, output: str | None, threshold: float | None) -> str:
    """Return the name of the output to compare."""
    if output is not None:
        if output not in spec.outputs:
            raise InputError(
                f"kernel {spec.name} has no output {output!r}",
                place="--output",
                remedy=nearest_name(output, spec.outputs),
            )
        return output
    kinds = ("class", "score") if threshold is None else ("score", "value")
    for kind in kinds:
        for name, one in spec.outputs.items():
            if one.kind == kind and (threshold is None or one.band_count == 1):
                return name
    if threshold is not None:
        raise InputError(
            f"kernel {spec.name} has no score that could be cut", place="--threshold", remedy="leave it out"
        )
    raise KernelError(
        f"it gives values ({', '.join(spec.outputs)}), no classes",
        place=f"kernel {spec.name}",
        remedy="give the value from which a pixel is of class 1 by --threshold",
    )


def _own_classes(spec: KernelSpec, name: str) -> tuple[str, ...]:
    one = spec.outputs[name]
    if one.classes:
        return one.classes
    if one.kind != "class" and one.band_count > 1:
        return one.bands if isinstance(one.bands, tuple) else tuple(str(i) for i in range(one.bands))
    if one.kind == "class":
        raise KernelError(
            f"neither the dataset nor output {name!r} says how many classes there are",
            place=f"kernel {spec.name}",
            remedy="name them in dataset.yaml: classes: [a, b]",
        )
    return ("0", "1")


def _answer(spec: KernelSpec, name: str, classes: tuple[str, ...], threshold: float | None) -> Answer:
    one, place = spec.outputs[name], f"kernel {spec.name}, output {name}"
    if one.kind == "class":
        if threshold is not None:
            raise InputError(f"{place}, is a class map already", place="--threshold", remedy="choose a score")
        _same_number(len(one.classes or classes), classes, place)
        return Answer(name, one, len(classes), order=_order(one.classes, classes))
    if one.band_count > 1:
        _same_number(one.band_count, classes, place)
        bands = one.bands if isinstance(one.bands, tuple) else None
        return Answer(name, one, len(classes), order=_order(bands, classes))
    _same_number(2, classes, place)
    cut = threshold if threshold is not None else one.threshold
    if cut is None and one.kind == "score" and one.range is not None:
        cut = sum(one.range) / 2
    if cut is None:
        raise KernelError(
            "it is a value, not a class", place=place, remedy="give the value of class 1 by --threshold"
        )
    return Answer(name, one, 2, threshold=cut)


def _same_number(count: int, classes: tuple[str, ...], place: str) -> None:
    if count != len(classes):
        raise KernelError(
            f"it tells {count} classes apart, the dataset {len(classes)} ({', '.join(classes)})",
            place=place,
            remedy="choose another --output, or map the labels to the kernel's classes in dataset.yaml",
        )


def _order(own: tuple[str, ...] | None, classes: tuple[str, ...]) -> tuple[int, ...] | None:
    """Return the dataset's number of each of the kernel's classes where both name the same in another order."""
    if own is None:
        return None
    ours, theirs = ([name.strip().lower().replace("_", " ") for name in names] for names in (own, classes))
    if ours == theirs or sorted(ours) != sorted(theirs) or len(set(theirs)) < len(theirs):
        return None
    return tuple(theirs.index(name) for name in ours)


def _semantic(spec: KernelSpec, layout: Layout, threshold: float | None) -> Answers | None:
    """Return the maps of both dates and the mask of change; None for a kernel that has no two maps."""
    classes = layout.classes or ()
    counts = {len(classes): 0, len(classes) - 1: 1}
    maps = [n for n, one in spec.outputs.items() if one.kind == "class" and len(one.classes or ()) in counts]
    if len(maps) < 2:
        return None
    found = []
    for name in maps[:2]:
        one = spec.outputs[name]
        own = one.classes or ()
        shift = counts[len(own)]
        found.append(Answer(name, one, len(own), order=_order(own, classes[shift:]), shift=shift))
    masks = [n for n, one in spec.outputs.items() if n not in maps and _is_mask(one, threshold)]
    masks.sort(key=lambda name: spec.outputs[name].kind != "class")
    if not masks and any(answer.shift for answer in found):
        raise KernelError("its maps know no unchanged, and no output says where change is", place=spec.name)
    mask = _answer(spec, masks[0], _CHANGE, threshold) if masks else None
    return Answers(tuple(found), mask, classes, layout.task)


def _is_mask(one: OutputSpec, threshold: float | None) -> bool:
    if threshold is None and one.kind == "class":
        return len(one.classes or ()) == 2
    return one.kind == "score" and one.band_count == 1

"""A labelled dataset: which layout a folder has, which pictures a split holds, and their pixels."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath

from tilewright.errors import InputError, nearest_name

from .known import LAYOUTS
from .layout import DESCRIPTION, Layout, read_layout

__all__ = ["SUFFIXES", "Dataset", "Sample", "open_dataset"]

SUFFIXES = (".png", ".tif", ".tiff", ".jpg", ".jpeg", ".bmp", ".jp2")
"""Formats of pictures, as the ends of their names."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One picture of a dataset: where its files are."""

    name: str
    """Name within the split."""
    dates: tuple[tuple[Path, ...], ...]
    """Files of each date, as the layout orders them."""
    labels: tuple[Path, ...]
    """Its labels."""


@dataclass
class Dataset:
    """A folder whose layout is known, and one split of it."""

    folder: Path
    """Where it lies."""
    layout: Layout
    """How it lies there."""
    split: str | None
    """The split that is read; None where there are none."""
    _listings: dict[Path, dict[str, list[Path]]] = field(default_factory=dict, repr=False)

    @cached_property
    def names(self) -> list[str]:
        """Names of the pictures: as the list has them, or sorted.

        Raises `InputError` for a list that cannot be read, is empty, or leads out of the folder.
        """
        found = self._listed() if self.layout.listed else self._found()
        if not found:
            raise InputError("holds no pictures", place=str(self.folder), remedy=self.layout.hint or None)
        return found

    def samples(self) -> Iterator[Sample]:
        """Yield the pictures in order; raises `InputError` where a file of one is not there."""
        for name in self.names:
            dates = tuple(tuple(self._path(file.path, name) for file in date) for date in self.layout.dates)
            yield Sample(name, dates, tuple(self._path(label.path, name) for label in self.layout.labels))

    def _filled(self, template: str, name: str = "") -> Path:
        word = (self.layout.splits or {}).get(self.split or "", self.split or "")
        path = template.replace("{Split}", word.capitalize()).replace("{split}", word)
        return self.folder / path.replace("{name}", name)

    def _listed(self) -> list[str]:
        layout, path = self.layout, self._filled(self.layout.listed or "")
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"cannot be read as a list of names: {error}", place=str(path)) from error
        parts = text.replace("\n", ",").split(",") if layout.list_form == "commas" else text.splitlines()
        if layout.list_form == "columns":
            parts = [part.partition(",")[0] for part in parts]
        names = [_bare(part.strip()).removesuffix(layout.list_suffix) for part in parts if part.strip()]
        for name in names:
            pure = PurePosixPath(name)
            if pure.is_absolute() or ".." in pure.parts or "\\" in name:
                raise InputError(f"the name {name!r} leads out of the dataset's folder", place=str(path))
        return names

    def _found(self) -> list[str]:
        template = self.layout.dates[0][0].path
        if "{name}" not in template:
            return [self.split or self.folder.name]
        head, _, tail = template.partition("{name}")
        inside, _, start = head.rpartition("/")
        folder = self._filled(inside)
        if not folder.is_dir():
            raise InputError("no such folder", place=str(folder), remedy=self.layout.hint or None)
        if "/" in tail:
            pattern = re.compile(re.escape(start) + "([^/]+)" + re.escape(tail))
            there: Iterable[str] = (
                path.relative_to(folder).as_posix() for path in folder.glob(f"{start}*{tail}")
            )
        elif tail.endswith(".*"):
            pattern = re.compile(re.escape(start) + "(.+)" + re.escape(tail.removesuffix(".*")))
            there = self._listing(folder)
        else:
            pattern = re.compile(re.escape(start) + "(.+)" + re.escape(tail))
            there = (path.name for path in folder.iterdir())
        return sorted(match[1] for match in map(pattern.fullmatch, there) if match)

    def _path(self, template: str, name: str) -> Path:
        path = self._filled(template, name)
        if not template.endswith(".*"):
            if not path.is_file():
                raise InputError(f"{name} has no such file", place=str(path), remedy=self.layout.hint or None)
            return path
        stem = path.name.removesuffix(".*")
        found = self._listing(path.parent).get(stem, [])
        if len(found) != 1:
            cause = (
                f"there is no picture {stem!r}"
                if not found
                else f"{stem!r} lies there in {len(found)} formats"
            )
            raise InputError(
                cause,
                place=str(path.parent),
                remedy=self.layout.hint or "each name needs one file in each folder",
            )
        return found[0]

    def _listing(self, folder: Path) -> dict[str, list[Path]]:
        if folder not in self._listings:
            listing: dict[str, list[Path]] = {}
            for path in sorted(folder.iterdir()) if folder.is_dir() else ():
                if path.suffix.lower() in SUFFIXES and not path.name.startswith("."):
                    listing.setdefault(path.stem, []).append(path)
            self._listings[folder] = listing
        return self._listings[folder]


def _bare(name: str) -> str:
    """Return a listed name without the end that says its format."""
    end = PurePosixPath(name).suffix
    return name.removesuffix(end) if end.lower() in SUFFIXES else name


def open_dataset(folder: str | Path, layout: str | None = None, split: str | None = None) -> Dataset:
    """Find out how ``folder`` is laid out, and open one split of it.

    Parameters
    ----------
    folder
        The dataset. Where it holds a ``dataset.yaml``, that says how it lies.
    layout
        Name of a layout, or the path of a description; None finds it out.
    split
        The split; None takes the layout's own, or the only one there is.

    Raises
    ------
    InputError
        No such folder, no layout fits, or the split is not there.
    """
    home = Path(folder).expanduser()
    if not home.is_dir():
        raise InputError("no such folder", place=str(folder), remedy="give the folder of a dataset")
    forms = _candidates(home, layout)
    for form in forms:
        for root in form.roots:
            base = home / root if root else home
            if _fits(base, form):
                return Dataset(base, form, _choose(base, form, split))
    if layout is not None or (home / DESCRIPTION).exists():
        wanted = "; or ".join(dict.fromkeys(f"{_first(form)} and {form.labels[0].path}" for form in forms))
        raise InputError(
            f"does not lie as {forms[0].name} does: there is no {wanted}",
            place=str(folder),
            remedy=forms[0].hint or "give the folder above these",
        )
    raise InputError(
        "its layout is none of those known",
        place=str(folder),
        remedy=f"known: {', '.join(dict.fromkeys(form.name for form in LAYOUTS))}; or describe it in {DESCRIPTION}",
    )


def _candidates(home: Path, layout: str | None) -> list[Layout]:
    if layout is None:
        own = home / DESCRIPTION
        return [read_layout(own)] if own.is_file() else list(LAYOUTS)
    if layout.endswith((".yaml", ".yml")):
        if not Path(layout).is_file():
            raise InputError(
                "no such file", place=layout, remedy="give a description, or the name of a layout"
            )
        return [read_layout(Path(layout))]
    forms = [form for form in LAYOUTS if form.name == layout]
    if not forms:
        raise InputError(
            f"unknown layout {layout!r}",
            place="--layout",
            remedy=nearest_name(layout, {form.name for form in LAYOUTS}),
        )
    return forms


def _first(form: Layout) -> str:
    return form.listed or form.dates[0][0].path


def _fits(base: Path, form: Layout) -> bool:
    """True where something is at the place of the list, or of the first picture, and of the labels."""
    return all(_anything(base, path) for path in (_first(form), form.dates[-1][0].path, form.labels[0].path))


def _anything(base: Path, template: str) -> bool:
    pattern = template.replace("{Split}", "*").replace("{split}", "*").replace("{name}", "*")
    return next(base.glob(pattern), None) is not None


def _splits(base: Path, form: Layout) -> list[str]:
    """Return the names of the splits that are there."""
    template = _first(form)
    head = template.partition("{name}")[0].rstrip("/") if "{name}" in template else template
    pattern = re.compile(
        re.escape(head)
        .replace(re.escape("{split}"), "(?P<split>[^/]+)", 1)
        .replace(re.escape("{split}"), "(?P=split)")
    )
    there = base.glob(head.replace("{split}", "*"))
    matches = (pattern.fullmatch(path.relative_to(base).as_posix()) for path in there)
    words = sorted({match["split"] for match in matches if match})
    if form.splits is None:
        return words
    return [name for name, word in form.splits.items() if word in words]


def _choose(base: Path, form: Layout, split: str | None) -> str | None:
    if not form.has_splits:
        if split is not None:
            raise InputError(
                f"it has no splits, and so no {split!r}", place=str(base), remedy="leave --split out"
            )
        return None
    there = _splits(base, form)
    if split is None:
        if form.split in there or len(there) == 1:
            return form.split if form.split in there else there[0]
        raise InputError(
            f"there is no split {form.split!r}",
            place=str(base),
            remedy=f"choose by --split: {', '.join(there)}",
        )
    if split not in there:
        raise InputError(f"unknown split {split!r}", place=str(base), remedy=nearest_name(split, there))
    return split

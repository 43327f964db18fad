"""How a labelled dataset lies on disk: a description, read from this package or from the user's `dataset.yaml`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tilewright.errors import InputError
from tilewright.kernels.contract import explain

__all__ = ["DESCRIPTION", "IGNORED", "LabelFile", "Layout", "PictureFile", "read_layout"]

IGNORED = 255
"""Stands for "does not count" in the class maps that a reader gives."""
DESCRIPTION = "dataset.yaml"
"""Name of a description that lies in the dataset's folder."""

_HOLES = ("{split}", "{Split}", "{name}")


class _Described(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class PictureFile(_Described):
    """A file of a picture: its path, and what its bands are."""

    path: str
    """Below the dataset's folder, with ``{split}`` and ``{name}``; an ending ``.*`` is any format of pictures."""
    bands: tuple[str, ...] | None = None
    """Names of its bands; None where they are not known: three bands of 8 bits are then red, green, blue."""
    scale: float = 1.0
    """Stored values times this are in ``units``."""
    units: str | None = None
    """Physical units; None for those of the files as they are."""
    array: str | None = None
    """Of a NumPy archive (``.npz``): the array to take, ``[rows, columns]`` or ``[rows, columns, bands]``."""


class LabelFile(_Described):
    """A label: its path, and which of its values means which class."""

    path: str
    """As of a picture; ``{Split}`` is the split with a capital letter."""
    values: dict[int, int] | None = None
    """Stored value -> class number; None where they are the same."""
    ignore: tuple[int, ...] = ()
    """Stored values of pixels that do not count."""
    colours: dict[str, int] | None = None
    """``"r,g,b"`` -> class number, for labels that are coloured pictures."""
    array: str | None = None
    """As of a picture."""


class Layout(_Described):
    """Where the splits, pictures and labels of a dataset lie, and how the values of its labels map to classes."""

    name: str = "described"
    """How ``--layout`` calls it."""
    about: str = ""
    """What the dataset is, in a few words."""
    task: Literal["change", "classes", "semantic-change", "pictures"] = "classes"
    """``change``: two dates and a mask; ``classes``: a class map; ``semantic-change``: two dates and a class map of
    each, 0 for unchanged; ``pictures``: a finer picture instead of a label."""
    dates: tuple[tuple[PictureFile, ...], ...] = Field(min_length=1)
    """For each date, oldest first, the files whose bands are stacked."""
    labels: tuple[LabelFile, ...] = Field(min_length=1)
    """The label; two of them for semantic change, one a date."""
    classes: tuple[str, ...] | None = None
    """Names of the classes 0, 1, ...; None takes those of the kernel."""
    listed: str | None = None
    """Path of the file that lists the names of a split; None takes all files that the first picture's path fits."""
    list_form: Literal["lines", "columns", "commas"] = "lines"
    """A name a line; the first column of a CSV without a head; or all names in one line with commas."""
    list_suffix: str = ""
    """What the listed names have at their end, before the format, that ``{name}`` leaves out."""
    splits: dict[str, str] | None = None
    """Name of a split -> what stands for ``{split}``; None takes what is there."""
    split: str = "test"
    """The split that is taken unless another is asked for."""
    roots: tuple[str, ...] = ("",)
    """Folders below the dataset's one in which all this may lie."""
    hint: str = ""
    """What to do where a part is missing, for the error."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        self._check_task()
        self._check_labels()
        self._check_paths()
        return self

    def _check_task(self) -> None:
        wanted = 2 if self.task == "semantic-change" else 1
        if len(self.labels) != wanted:
            raise ValueError(f"task {self.task} takes {wanted} label files, not {len(self.labels)}")
        if self.task in ("change", "semantic-change") and len(self.dates) < 2:
            raise ValueError(f"task {self.task} takes two dates")
        if self.task == "semantic-change" and self.classes is None:
            raise ValueError("task semantic-change needs the names of its classes")
        if self.classes is not None and not 2 <= len(self.classes) <= IGNORED:
            raise ValueError(f"{len(self.classes)} classes: give 2 to {IGNORED}")

    def _check_labels(self) -> None:
        for label in self.labels:
            for text in label.colours or {}:
                if len(text.split(",")) != 3 or not all(part.strip().isdigit() for part in text.split(",")):
                    raise ValueError(f"{text!r} is no colour: write red,green,blue")
            numbers = {*(label.values or {}).values(), *(label.colours or {}).values()}
            wrong = sorted(n for n in numbers if not 0 <= n < len(self.classes or range(IGNORED)))
            if wrong:
                raise ValueError(
                    f"label {label.path!r} maps to class {wrong[0]}, which has no name in classes"
                )

    def _check_paths(self) -> None:
        for path in self.paths:
            if Path(path).is_absolute() or ".." in Path(path).parts:
                raise ValueError(f"path {path!r} leads out of the dataset's folder")
            if "{" in _without_holes(path) or "}" in _without_holes(path):
                raise ValueError(f"path {path!r}: only {', '.join(_HOLES)} may be left open")

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths of all its files."""
        files = [file.path for date in self.dates for file in date]
        return (*files, *(label.path for label in self.labels), *([self.listed] if self.listed else []))

    @property
    def has_splits(self) -> bool:
        """True where the set is divided."""
        return "{split}" in (self.listed or self.dates[0][0].path)


def _without_holes(path: str) -> str:
    for hole in _HOLES:
        path = path.replace(hole, "")
    return path


def read_layout(path: Path) -> Layout:
    """Read a description; raises `InputError` in one line that names the key."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"not YAML: {error}", place=str(path)) from error
    if not isinstance(data, dict):
        raise InputError("holds no keys", place=str(path), remedy="see docs/guides/eval.md")
    try:
        return Layout.model_validate(data)
    except ValidationError as error:
        raise InputError(explain(error, Layout), place=str(path), remedy="see docs/guides/eval.md") from error

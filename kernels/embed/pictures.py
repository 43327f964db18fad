"""Labelled pictures in a folder or a zip file, a folder for each class, and which of them are held back.

Which part a picture belongs to follows from its file name alone, so that it is the same on every machine, in any order,
and whatever else lies in the folder.
"""

from __future__ import annotations

import hashlib
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from tilewright.errors import InputError

__all__ = ["RULE", "Part", "Pictures", "part_of", "read_pictures"]

Part = Literal["train", "validation", "test"]

RULE = (
    "sha256 of the file name without its folders, first 8 hexadecimal digits modulo 100:"
    " below 20 test, below 25 validation, else train"
)
"""How `part_of` decides."""

_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff")


def part_of(name: str) -> Part:
    """Return the part to which the picture with this file name belongs; see `RULE`."""
    number = int(hashlib.sha256(PurePosixPath(name).name.encode()).hexdigest()[:8], 16) % 100
    return "test" if number < 20 else "validation" if number < 25 else "train"


@dataclass(frozen=True)
class Pictures:
    """Labelled pictures of one size."""

    pixels: Tensor
    """``[N, 3, side, side]`` uint8: red, green, blue."""
    labels: Tensor
    """``[N]`` int64: number of the class."""
    classes: tuple[str, ...]
    """Names of the classes, which are those of the folders, sorted."""
    names: tuple[str, ...]
    """File names without folders, sorted within a class."""

    def part(self, part: Part) -> Pictures:
        """Return one of the parts; raises `InputError` where a class has no picture in it."""
        kept = [n for n, name in enumerate(self.names) if part_of(name) == part]
        labels = self.labels[kept]
        absent = set(range(len(self.classes))) - set(labels.tolist())
        if absent:
            raise InputError(
                f"no picture of the class {self.classes[min(absent)]} falls into the part {part}",
                place="training data",
                remedy="give more pictures of it",
            )
        return Pictures(self.pixels[kept], labels, self.classes, tuple(self.names[n] for n in kept))

    def with_(self, other: Pictures) -> Pictures:
        """Return these and others of the same classes."""
        pixels, labels = torch.cat((self.pixels, other.pixels)), torch.cat((self.labels, other.labels))
        return Pictures(pixels, labels, self.classes, self.names + other.names)

    @property
    def sha256(self) -> str:
        """Checksum over classes, file names and decoded pixels."""
        hasher = hashlib.sha256()
        for label, name, pixels in zip(self.labels.tolist(), self.names, self.pixels, strict=True):
            hasher.update(f"{self.classes[label]}/{name}\0".encode())
            hasher.update(pixels.numpy().tobytes())
        return hasher.hexdigest()


def read_pictures(path: Path) -> Pictures:
    """Read all pictures of a folder or a zip file; the folder in which each lies is its class.

    Raises `InputError` where there are none, fewer than two classes, or pictures that are not 8-bit, of three bands,
    square and all of one size, a multiple of 16 px.
    """
    if not path.exists():
        raise InputError("no such file or folder", place=str(path))
    found = sorted(_files(path), key=lambda pair: PurePosixPath(pair[0]).parts[-2:])
    if not found:
        raise InputError(
            "holds no pictures in folders of classes",
            place=str(path),
            remedy=f"give CLASS/picture with {', '.join(_SUFFIXES)}",
        )
    classes = tuple(sorted({PurePosixPath(name).parts[-2] for name, _ in found}))
    if len(classes) < 2:
        raise InputError(f"holds one class only, {classes[0]}", place=str(path))
    first = _decoded(found[0][1], found[0][0], None)
    pixels = np.empty((len(found), *first.shape), np.uint8)
    for row, (name, content) in zip(pixels, found, strict=True):
        row[:] = _decoded(content, name, first.shape)
    labels = [classes.index(PurePosixPath(name).parts[-2]) for name, _ in found]
    names = tuple(PurePosixPath(name).name for name, _ in found)
    return Pictures(torch.from_numpy(pixels), torch.tensor(labels), classes, names)


def _files(path: Path) -> Iterator[tuple[str, bytes]]:
    """Names with their last folder, and contents."""
    if path.is_dir():
        for file in path.rglob("*"):
            inside = file.relative_to(path)
            if file.suffix.lower() in _SUFFIXES and len(inside.parts) >= 2:
                yield inside.as_posix(), file.read_bytes()
        return
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                member = PurePosixPath(name)
                if member.suffix.lower() in _SUFFIXES and len(member.parts) >= 2:
                    yield name, archive.read(name)
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError(f"not a readable zip file: {error}", place=str(path)) from error


def _decoded(content: bytes, name: str, expected: tuple[int, ...] | None) -> Any:
    """One picture ``[3, side, side]`` uint8."""
    from rasterio.errors import NotGeoreferencedWarning, RasterioError
    from rasterio.io import MemoryFile

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with MemoryFile(content) as memory, memory.open() as dataset:
                pixels = dataset.read(list(range(1, min(dataset.count, 3) + 1)))
    except RasterioError as error:
        raise InputError(f"not a readable picture: {error}", place=name) from error
    bands, rows, cols = pixels.shape
    if pixels.dtype != np.uint8 or bands != 3 or rows != cols or rows % 16:
        raise InputError(
            f"{bands} bands of {rows} x {cols} px, {pixels.dtype}",
            place=name,
            remedy="give square 8-bit pictures of three bands whose side is a multiple of 16",
        )
    if expected is not None and pixels.shape != expected:
        raise InputError(f"{rows} x {cols} px, the first one has {expected[1]} x {expected[2]}", place=name)
    return pixels

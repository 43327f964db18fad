"""Labelled and captioned pictures, in a folder or a zip file: what embedders are judged by.

Scenes lie as EuroSAT, AID, RESISC45, UC Merced, WHU-RS19 and most others do: a folder for each class. Captions lie as
those of RSICD, RSITMD and UCM do: a JSON file in the form of Karpathy and Fei-Fei 2015 (https://arxiv.org/abs/1412.2306),
with a split and sentences for each file name.
"""

from __future__ import annotations

import json
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from tilewright.errors import InputError, nearest_name

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["HELD_BACK", "Captions", "PictureFiles", "Scenes", "class_words", "open_captions", "open_scenes"]

SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".jp2")
SPLITS = ("train", "val", "valid", "validation", "test")
HELD_BACK = "held-back"
"""The split that `tilewright train-embedder` never trains on: it follows from the names of the files."""

_RUN_TOGETHER = {
    "baseballdiamond": "baseball diamond", "denseresidential": "dense residential area",
    "golfcourse": "golf course", "mediumresidential": "medium residential area",
    "mobilehomepark": "mobile home park", "parkinglot": "parking lot",
    "sparseresidential": "sparse residential area", "storagetanks": "storage tanks", "tenniscourt": "tennis court",
    "agricultural": "agricultural land",
}  # fmt: skip
"""Folders of UC Merced, whose names are written without gaps."""


class PictureFiles:
    """The pictures below a folder or in a zip file, by their names."""

    def __init__(self, path: Path) -> None:
        """Find them; raises `InputError` where there is nothing, or no zip file."""
        self.path = path
        self._archive: zipfile.ZipFile | None = None
        if not path.exists():
            raise InputError("no such file or folder", place=str(path))
        if path.is_dir():
            found = (file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
        else:
            try:
                self._archive = zipfile.ZipFile(path)
            except (OSError, zipfile.BadZipFile) as error:
                raise InputError(
                    f"not a readable zip file: {error}", place=str(path), remedy="name a folder or a zip file"
                ) from error
            found = (name for name in self._archive.namelist() if not name.endswith("/"))
        self.every = sorted(name for name in found if not _hidden(name))
        """Names of all files."""
        self.names = [name for name in self.every if PurePosixPath(name).suffix.lower() in SUFFIXES]
        """Names of the pictures."""

    def content(self, name: str) -> bytes:
        """Return the bytes of a file; raises `InputError`."""
        try:
            return (self.path / name).read_bytes() if self._archive is None else self._archive.read(name)
        except (OSError, KeyError, RuntimeError, zipfile.BadZipFile) as error:
            raise InputError(f"cannot be read: {error}", place=f"{self.path}, {name}") from error

    def pixels(self, name: str, bands: Sequence[int] | None, count: int) -> NDArray[Any]:
        """Return a picture ``[count, rows, columns]``.

        ``bands`` are numbers from 1; None takes the first ``count``, and one band stands for three. Raises
        `InputError` for what is no picture, or has too few bands.
        """
        from rasterio.errors import NotGeoreferencedWarning, RasterioError
        from rasterio.io import MemoryFile

        place = f"{self.path}, {name}"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", NotGeoreferencedWarning)
                with MemoryFile(self.content(name)) as memory, memory.open() as dataset:
                    wanted = list(bands or range(1, count + 1))
                    if bands is None and dataset.count == 1:
                        wanted = [1] * count
                    if max(wanted) > dataset.count:
                        raise InputError(
                            f"the picture has {dataset.count} bands, {max(wanted)} are needed",
                            place=place,
                            remedy="choose by --bands",
                        )
                    pixels: NDArray[Any] = dataset.read(wanted)
        except RasterioError as error:
            raise InputError(f"not a readable picture: {error}", place=place) from error
        return pixels


def _hidden(name: str) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in PurePosixPath(name).parts)


@dataclass(frozen=True)
class Scenes:
    """Pictures with a class each."""

    files: PictureFiles
    """Where they lie."""
    names: tuple[str, ...]
    """The pictures, sorted by class."""
    classes: tuple[str, ...]
    """The classes as their folders are named, sorted."""
    labels: NDArray[np.int64]
    """For each picture the number of its class."""
    split: str | None
    """The split; None for all there is."""


def open_scenes(path: Path, split: str | None = None, limit: int | None = None) -> Scenes:
    """Find the pictures of a folder or a zip file; the folder in which each lies is its class.

    Parameters
    ----------
    path
        The folder or zip file.
    split
        A folder above those of the classes, such as ``test``; `HELD_BACK`; None: ``test`` where there are such folders,
        else everything.
    limit
        At most so many pictures, taken evenly over all.

    Raises
    ------
    InputError
        There are no pictures in folders of classes, fewer than two classes, or no such split.
    """
    files = PictureFiles(path)
    found = [name for name in files.names if len(PurePosixPath(name).parts) >= 2]
    if not found:
        raise InputError(
            "holds no pictures in folders of classes",
            place=str(path),
            remedy=f"give CLASS/picture with {', '.join(SUFFIXES[:5])}",
        )
    found, split = _of_split(found, split, path)
    classes = tuple(sorted({PurePosixPath(name).parts[-2] for name in found}))
    if len(classes) < 2:
        raise InputError(
            f"holds one class only, {classes[0]}", place=str(path), remedy="name the folder above"
        )
    found.sort(key=lambda name: PurePosixPath(name).parts[-2:])
    if limit is not None and limit < len(found):
        found = [found[n] for n in np.linspace(0, len(found) - 1, limit).astype(int)]
    labels = np.array([classes.index(PurePosixPath(name).parts[-2]) for name in found], np.int64)
    return Scenes(files, tuple(found), classes, labels, split)


def _of_split(found: list[str], split: str | None, path: Path) -> tuple[list[str], str | None]:
    parts = {name: PurePosixPath(name).parts for name in found}
    there = sorted(
        {above[-3].lower() for above in parts.values() if len(above) >= 3 and above[-3].lower() in SPLITS}
    )
    if split == HELD_BACK:
        from tilewright.kernels.embed.pictures import part_of

        kept = [name for name in found if part_of(name) == "test"]
        if not kept:
            raise InputError("the split held-back is empty", place=str(path), remedy="leave --split out")
        return kept, split
    if split is None:
        if not there:
            return found, None
        if "test" not in there:
            raise InputError(
                f"the splits are {', '.join(there)}", place=str(path), remedy="choose one by --split"
            )
        split = "test"
    if split.lower() not in there:
        known = (*there, HELD_BACK)
        raise InputError(f"no split {split!r}; {nearest_name(split, known)}", place=str(path))
    return [
        name for name, above in parts.items() if len(above) >= 3 and above[-3].lower() == split.lower()
    ], split


def class_words(classes: Sequence[str], given: Path | None = None) -> dict[str, tuple[str, ...]]:
    """Return the words for each class: those of a YAML file, or its name, taken apart.

    ``SeaLake``, ``sea_lake`` and ``sea lake`` are one name; the classes of EuroSAT and of UC Merced have words that say
    them better ("sea or lake", "dense residential area").

    Parameters
    ----------
    classes
        Names of the folders.
    given
        A YAML file with ``class: word`` or ``class: [word, ...]``; classes that it leaves out have their own.

    Raises
    ------
    InputError
        The file cannot be read, names a class that is not there, or gives no word.
    """
    words: dict[str, tuple[str, ...]] = {name: (_plain_name(name),) for name in classes}
    return words if given is None else words | _given_words(given, classes)


def _plain_name(name: str) -> str:
    from tilewright.kernels.embed.words import GROUND

    if name in GROUND:
        return GROUND[name][0]
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])|[_\-\s]+", " ", name).strip().lower()
    return _RUN_TOGETHER.get(apart, apart)


def _given_words(path: Path, classes: Sequence[str]) -> dict[str, tuple[str, ...]]:
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"words cannot be read: {error}", place=str(path)) from error
    if not isinstance(data, Mapping):
        raise InputError(
            "holds no words", place=str(path), remedy="write a line `class: word` for each class"
        )
    found = {}
    for name, value in data.items():
        if name not in classes:
            raise InputError(f"no class {name!r}; {nearest_name(str(name), classes)}", place=str(path))
        listed = [value] if isinstance(value, str) else value
        if (
            not isinstance(listed, list)
            or not listed
            or not all(isinstance(w, str) and w.strip() for w in listed)
        ):
            raise InputError(f"{value!r} are no words for {name}", place=str(path), remedy="write text")
        found[str(name)] = tuple(listed)
    return found


@dataclass(frozen=True)
class Captions:
    """Pictures with sentences."""

    files: PictureFiles
    """Where the pictures lie."""
    names: tuple[str, ...]
    """The pictures, in the order of the file."""
    texts: tuple[str, ...]
    """All sentences."""
    image_of_text: tuple[int, ...]
    """For each sentence the number of its picture."""
    split: str
    """The split."""
    file: str
    """Name of the JSON file."""


def caption_file(path: Path) -> Path | None:
    """Return the JSON file of captions that ``path`` is or holds; None where there is none.

    Raises `InputError` where a folder holds several.
    """
    if path.is_file():
        return path if path.suffix.lower() == ".json" else None
    found = sorted(path.glob("dataset*.json")) if path.is_dir() else []
    if len(found) > 1:
        raise InputError(
            f"holds {', '.join(file.name for file in found)}", place=str(path), remedy="name one of them"
        )
    return found[0] if found else None


def open_captions(file: Path, split: str | None = None, limit: int | None = None) -> Captions:
    """Read captions and find their pictures, anywhere below the folder of the file.

    Parameters
    ----------
    file
        JSON: ``images``, each with ``filename``, ``split`` and ``sentences``, each with ``raw``.
    split
        None takes ``test``.
    limit
        Only the first so many pictures.

    Raises
    ------
    InputError
        It is no such file, has no such split, or a picture is missing or there twice.
    """
    images = list(_images(file))
    split = split or "test"
    chosen = [image for image in images if image[1] == split][:limit]
    if not chosen:
        known = sorted({image[1] for image in images})
        raise InputError(f"no split {split!r}; {nearest_name(split, known)}", place=str(file))
    files = PictureFiles(file.parent)
    by_name: dict[str, list[str]] = {}
    for name in files.names:
        by_name.setdefault(PurePosixPath(name).name, []).append(name)
    names, texts, owners = [], [], []
    for number, (filename, _, sentences) in enumerate(chosen):
        names.append(_located(filename, files, by_name, file))
        texts += sentences
        owners += [number] * len(sentences)
    return Captions(files, tuple(names), tuple(texts), tuple(owners), split, file.name)


def _images(file: Path) -> Iterator[tuple[str, str, list[str]]]:
    """Yield file name, split and sentences of each picture."""
    remedy = "it must hold images, each with filename, split and sentences"
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"captions cannot be read: {error}", place=str(file), remedy=remedy) from error
    try:
        for image in data["images"]:
            sentences = [str(one["raw"]).strip() for one in image["sentences"]]
            yield str(image["filename"]), str(image["split"]), [text for text in sentences if text]
    except (KeyError, TypeError) as error:
        raise InputError(
            f"an image lacks {error}" if isinstance(error, KeyError) else "no captions",
            place=str(file),
            remedy=remedy,
        ) from error


def _located(filename: str, files: PictureFiles, by_name: Mapping[str, list[str]], file: Path) -> str:
    name = PurePosixPath(filename).name
    found = [one for one in by_name.get(name, []) if one == filename] or by_name.get(name, [])
    if len(found) != 1:
        why = f"lies there {len(found)} times, as {found[0]} and {found[1]}" if found else "is not there"
        raise InputError(
            f"the picture {filename} {why}",
            place=str(files.path),
            remedy=f"put the pictures of {file.name} into one folder beside it",
        )
    return found[0]

"""The pixels of a sample: pictures as a source of the engine, labels as class maps. No place on Earth is asked for."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tilewright.errors import InputError, nearest_name
from tilewright.pipeline.grid import Grid
from tilewright.pipeline.source import Block, Layer, Reason

from .archives import opened_array
from .layout import IGNORED

if TYPE_CHECKING:
    import rasterio
    from numpy.typing import NDArray

    from tilewright.pipeline.grid import Window

    from .dataset import Sample
    from .layout import LabelFile, Layout, PictureFile

__all__ = [
    "PictureSource",
    "Pictures",
    "chosen_bands",
    "no_warning_of_place",
    "read_label",
    "read_picture",
    "read_pictures",
    "sample_bands",
]

_RGB = ("red", "green", "blue")


@dataclass(frozen=True)
class Pictures:
    """The pixels of one sample."""

    data: NDArray[Any]
    """``[T, C, rows, columns]``, in the units of the layout."""
    invalid: NDArray[np.bool_]
    """``[T, 1, rows, columns]``: nodata, or no finite number."""
    bands: tuple[str, ...]
    """Names of its bands."""
    units: str | None = None
    """Physical units."""


class PictureSource:
    """Pictures in memory as a `Source`: one layer, no CRS, dates without times."""

    def __init__(self, pictures: Pictures) -> None:
        from affine import Affine
        from odc.geo.geobox import GeoBox

        self._pictures = pictures
        self.grid = Grid(GeoBox(pictures.data.shape[-2:], Affine(1, 0, 0, 0, -1, 0), None))
        self.layers: Mapping[str, Layer] = {
            "image": Layer(
                pictures.bands, (None,) * len(pictures.data), str(pictures.data.dtype), pictures.units
            )
        }

    def read(self, window: Window) -> Block:
        """Return the pixels of ``window``."""
        at = window.slices(self.grid.window)
        data = self._pictures.data[..., *at]
        reason = np.where(self._pictures.invalid[..., *at], Reason.NODATA, Reason.VALID).astype(np.uint8)
        return Block(window, {"image": data}, {"image": reason}, data.nbytes)

    def describe(self) -> Mapping[str, Any]:
        """Return the shape: nothing of an evaluation is resumed."""
        return {"shape": list(self._pictures.data.shape)}


@contextmanager
def no_warning_of_place() -> Iterator[None]:
    """Keep rasterio quiet about files that lie nowhere; for the whole process, so it is for the outermost caller."""
    from rasterio.errors import NotGeoreferencedWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield


@contextmanager
def _opened(path: Path, array: str | None = None) -> Iterator[rasterio.DatasetReader]:
    import rasterio
    from rasterio.errors import RasterioError

    if array is not None:
        with opened_array(path, array) as dataset:
            yield dataset
        return
    try:
        with rasterio.open(path) as dataset:
            yield dataset
    except RasterioError as error:
        raise InputError(
            f"not a readable picture: {error}", place=str(path), remedy="fetch it again"
        ) from error


def _planes(dataset: rasterio.DatasetReader) -> list[int]:
    """Return the numbers of the bands that are no transparency."""
    from rasterio.enums import ColorInterp

    kept = [i for i in dataset.indexes if dataset.colorinterp[i - 1] != ColorInterp.alpha]
    return kept or list(dataset.indexes)


def _names(dataset: rasterio.DatasetReader, file: PictureFile, path: Path) -> tuple[str, ...]:
    """Return the names of the bands of a file: the layout's, its own, those of a colour picture, or numbers."""
    planes = _planes(dataset)
    if file.bands is not None:
        if len(planes) != len(file.bands):
            raise InputError(
                f"it has {len(planes)} bands, {len(file.bands)} are expected ({', '.join(file.bands)})",
                place=str(path),
            )
        return file.bands
    own = [dataset.descriptions[i - 1] for i in planes]
    if all(own) and len(set(own)) == len(own):
        return tuple(own)
    if len(planes) == 3 and dataset.dtypes[0] == "uint8":
        return _RGB
    return tuple(f"band_{i}" for i in range(1, len(planes) + 1))


def sample_bands(sample: Sample, layout: Layout) -> tuple[str, ...]:
    """Return the names of all bands of a sample, in order; opens the headers of its first date."""
    found: list[str] = []
    for path, file in zip(sample.dates[0], layout.dates[0], strict=True):
        with _opened(path, file.array) as dataset:
            found += _names(dataset, file, path)
    return tuple(found)


def chosen_bands(
    there: Sequence[str], wanted: Sequence[str | int] | None, place: str
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the bands to take of those that are ``there``, and what they are called.

    ``wanted`` are names or 1-based numbers, or where the bands have no names a name for each.
    """
    if wanted is None:
        return tuple(there), tuple(there)
    texts = [str(band).strip() for band in wanted]
    if all(text.isdigit() for text in texts):
        wrong = next((text for text in texts if not 1 <= int(text) <= len(there)), None)
        if wrong is not None:
            raise InputError(f"there is no band {wrong}", place=place, remedy=f"give 1 to {len(there)}")
        picked = tuple(there[int(text) - 1] for text in texts)
        return picked, picked
    missing = next((text for text in texts if text not in there), None)
    if missing is None:
        return tuple(texts), tuple(texts)
    if len(texts) == len(there) and all(name.startswith("band_") for name in there):
        return tuple(there), tuple(texts)
    raise InputError(f"there is no band {missing!r}", place=place, remedy=nearest_name(missing, there))


def read_pictures(sample: Sample, layout: Layout, wanted: Sequence[str], called: Sequence[str]) -> Pictures:
    """Return the bands ``wanted`` of all dates of a sample, under the names ``called``; files without any stay shut.

    Raises `InputError` for a file that cannot be read, lacks a band, or has another size than the first.
    """
    dates: list[NDArray[Any]] = []
    masks: list[NDArray[np.bool_]] = []
    units: set[str | None] = set()
    for paths, files in zip(sample.dates, layout.dates, strict=True):
        found: dict[str, tuple[NDArray[Any], NDArray[np.bool_]]] = {}
        for path, file in zip(paths, files, strict=True):
            if file.bands is None or set(file.bands) & set(wanted):
                read = _read_bands(path, file, wanted)
                found |= read
                units |= {file.units} if read else set()
        for name in wanted:
            if name not in found:
                raise InputError(
                    f"has no band {name!r}", place=str(paths[0]), remedy=nearest_name(name, list(found))
                )
        planes = [found[name] for name in wanted]
        _same_size([plane for plane, _ in planes], dates[0][0].shape if dates else None, paths)
        dates.append(np.stack([plane for plane, _ in planes]))
        masks.append(np.any([mask for _, mask in planes], axis=0)[None])
    return Pictures(np.stack(dates), np.stack(masks), tuple(called), units.pop() if len(units) == 1 else None)


def _read_bands(
    path: Path, file: PictureFile, wanted: Sequence[str]
) -> dict[str, tuple[NDArray[Any], NDArray[np.bool_]]]:
    found = {}
    with _opened(path, file.array) as dataset:
        for index, name in zip(_planes(dataset), _names(dataset, file, path), strict=True):
            if name in wanted:
                plane = dataset.read(index)
                nodata = dataset.nodatavals[index - 1]
                invalid = ~np.isfinite(plane)
                if nodata is not None and np.isfinite(nodata):
                    invalid |= plane == nodata
                if file.scale != 1:
                    plane = plane.astype(np.float32) * np.float32(file.scale)
                found[name] = plane, invalid
    return found


def _same_size(planes: list[NDArray[Any]], size: tuple[int, ...] | None, paths: Sequence[Path]) -> None:
    size = size or planes[0].shape
    for plane in planes:
        if plane.shape != size:
            raise InputError(
                f"it is {_size(plane.shape)}, other bands or dates are {_size(size)}",
                place=str(paths[0]),
                remedy="all dates and bands of a picture lie on one grid",
            )


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[-2]} x {shape[-1]} px"


def read_picture(path: Path) -> NDArray[Any]:
    """Return all bands of a picture but its transparency, ``[C, rows, columns]``."""
    with _opened(path) as dataset:
        picture: NDArray[Any] = dataset.read(_planes(dataset))
    return picture


def read_label(path: Path, label: LabelFile, classes: int, shape: tuple[int, int]) -> NDArray[np.uint8]:
    """Return the class of each pixel, `IGNORED` where it does not count.

    Parameters
    ----------
    path
        The file: one band of numbers, or where the layout has colours a coloured picture. Equal bands count as one.
    label
        How its values map to classes.
    classes
        Number of classes.
    shape
        Rows and columns of the picture that it belongs to.

    Raises
    ------
    InputError
        It cannot be read, has another size, or holds a value or colour that is of no class.
    """
    with _opened(path, label.array) as dataset:
        stored = dataset.read(_planes(dataset))
        if len(stored) == 1 and label.colours is not None and _has_palette(dataset):
            stored = _through_palette(stored[0], dataset.colormap(1))
    if stored.shape[-2:] != shape:
        raise InputError(
            f"the label is {_size(stored.shape)}, its picture {_size(shape)}",
            place=str(path),
            remedy="a label has the size of its picture",
        )
    if len(stored) >= 3 and label.colours is not None:
        return _by_colour(stored, label.colours, path)
    if len(stored) > 1 and not (stored == stored[:1]).all():
        raise InputError(
            f"the label has {len(stored)} bands that differ",
            place=str(path),
            remedy="a label is one band of class numbers; name colours in dataset.yaml",
        )
    return _by_value(stored[0], label, classes, path)


def _has_palette(dataset: rasterio.DatasetReader) -> bool:
    from rasterio.enums import ColorInterp

    return bool(dataset.colorinterp[0] == ColorInterp.palette)


def _through_palette(
    plane: NDArray[Any], palette: Mapping[int, tuple[int, int, int, int]]
) -> NDArray[np.uint8]:
    table = np.zeros((256, 3), np.uint8)
    for index, colour in palette.items():
        table[index] = colour[:3]
    return np.ascontiguousarray(np.moveaxis(table[plane], -1, 0))


def _by_colour(stored: NDArray[Any], colours: Mapping[str, int], path: Path) -> NDArray[np.uint8]:
    code = (stored[0].astype(np.int64) << 16) | (stored[1].astype(np.int64) << 8) | stored[2]
    known = {}
    for text, number in colours.items():
        red, green, blue = (int(part) for part in text.split(","))
        known[red << 16 | green << 8 | blue] = number
    found, places = np.unique(code, return_inverse=True)
    for value in found.tolist():
        if value not in known:
            colour = f"{value >> 16},{value >> 8 & 255},{value & 255}"
            raise InputError(
                f"the label holds the colour {colour}, which is of no class",
                place=str(path),
                remedy=f"known: {'; '.join(colours)}",
            )
    table = np.array([known[value] for value in found.tolist()], np.uint8)
    return table[places].reshape(code.shape)


def _by_value(plane: NDArray[Any], label: LabelFile, classes: int, path: Path) -> NDArray[np.uint8]:
    known = dict(label.values) if label.values is not None else {i: i for i in range(classes)}
    known |= dict.fromkeys(label.ignore, IGNORED)
    if label.values is None and classes > 2:
        known.setdefault(IGNORED, IGNORED)
    found, places = np.unique(plane, return_inverse=True)
    for value in found.tolist():
        if value not in known:
            remedy = f"known: {', '.join(map(str, sorted(known)))}; map others in dataset.yaml"
            raise InputError(
                f"the label holds {value:g}, which is of no class", place=str(path), remedy=remedy
            )
    table = np.array([known[value] for value in found.tolist()], np.uint8)
    return table[places].reshape(plane.shape)

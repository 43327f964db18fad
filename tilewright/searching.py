"""Index and search by name: embedders, images and recipes put together for the library and the command line."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tilewright.errors import InputError, TilewrightError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tilewright.kernels.embed.contract import ImageTextEmbedder
    from tilewright.pipeline.index import Indexed, Part
    from tilewright.pipeline.pyramid import Pyramid
    from tilewright.pipeline.search import Filters, Hit, VectorIndex

__all__ = [
    "embedder_of",
    "example_vector",
    "index_images",
    "open_image",
    "open_part",
    "search_index",
]

DEFAULT = "eurosat"
"""The embedder that needs no download."""


def open_image(image: str | Path | Sequence[str | Path], bands: Sequence[str | int] | None = None) -> Pyramid:
    """Return the pyramid of a raster or a Zarr hierarchy, of several that are dates of it, or of a recipe's cube.

    Dates are given oldest first. Raises `InputError`; for a recipe (``.yaml``) what its search raises, too.
    """
    from tilewright.pipeline.pyramid import open_pyramid
    from tilewright.pipeline.rasters import raster_source

    listed = [image] if isinstance(image, (str, Path)) else list(image)
    recipes = [one for one in listed if str(one).endswith((".yaml", ".yml"))]
    if not recipes:
        return open_pyramid(raster_source(listed, bands=bands))
    if len(listed) > 1:
        raise InputError(
            "a recipe has its dates itself", place="image", remedy="give it alone, or name the rasters"
        )
    from tilewright.flows.index import recipe_cube

    return open_pyramid(
        recipe_cube(recipes[0], bands=None if bands is None else [str(band) for band in bands])
    )


def index_images(
    images: str | Path | Sequence[str | Path],
    *,
    out: str | Path,
    embedder: str = DEFAULT,
    weights: Any = None,
    options: Mapping[str, Any] | None = None,
    bands: Sequence[str | int] | None = None,
    date: str | None = None,
    region: Any = None,
    levels: int | None = None,
    approximate: bool | None = None,
    progress: Callable[[str, Any], Any] | None = None,
    **wishes: Any,
) -> Indexed:
    """Embed the tiles of images on all levels of their pyramids, into an index that can be searched.

    Parameters
    ----------
    images
        Rasters or Zarr stores, each a part of its own, or one recipe (``.yaml``), of which every date of the cube is
        one and whose kernel is the embedder. Parts that the index has already cost nothing.
    out
        Folder of the index. The same call resumes what was interrupted.
    embedder, weights, options
        An embedding kernel by name, its weights, and its options (``tower``, ``low``, ``high``).
    bands
        Names or 1-based numbers of the bands that the embedder is shown, in its order.
    date
        When the images were taken, for files that do not say.
    region
        Instead of the recipe's.
    levels
        Most levels, from full resolution; None: until one tile holds the image.
    approximate
        Whether searches may use a graph instead of comparing everything; None: in an index that has one already, or
        has very many vectors (docs/guides/search.md).
    progress
        Called with the name of what is being embedded, and a `Status`.
    **wishes
        Fields of `tilewright.pipeline.settings.Settings`.

    Raises
    ------
    TilewrightError
        In one sentence that says what to change.
    """
    from tilewright.api import asked_kernel, make_settings
    from tilewright.kernels.load import load_kernel
    from tilewright.pipeline.index import index_parts

    listed = [images] if isinstance(images, (str, Path)) else list(images)
    recipes = [image for image in listed if str(image).endswith((".yaml", ".yml"))]
    if recipes:
        if len(listed) > 1:
            raise InputError(
                "a recipe is indexed by itself", place="index", remedy="call once for each: the index grows"
            )
        from tilewright.flows.index import recipe_parts

        parts, kernel, asked = recipe_parts(recipes[0], region=region, weights=weights)
    else:
        parts = [part for image in listed for part in _parts(image, bands, date)]
        kernel = load_kernel(embedder, weights, **dict(options or {}))
        asked = asked_kernel(embedder, weights, options)
    settings = make_settings(**wishes)
    return index_parts(
        parts,
        kernel,
        out,
        embedder=asked,
        levels=levels,
        approximate=approximate,
        settings=settings,
        progress=progress,
    )


def _parts(image: str | Path, bands: Sequence[str | int] | None, date: str | None) -> list[Part]:
    from tilewright.pipeline.index import parts_of
    from tilewright.pipeline.rasters import raster_source

    place = str(Path(image).resolve()) if Path(image).exists() else str(image)
    source = raster_source([image], bands=bands)
    opens = {"kind": "raster", "href": place, "bands": None if bands is None else list(bands)}
    facts: dict[str, Any] = {"opens": opens} | ({} if date is None else {"date": _instant(date)})
    return parts_of(Path(place).stem, source, **facts)


def _instant(date: str) -> str:
    """Return a date as ISO 8601 in UTC; a day stands for its beginning."""
    from tilewright.catalogs.times import Interval

    found = Interval.parse(date)
    if found is None or found.start is None:
        raise InputError(f"{date!r} has no beginning", place="date", remedy="write one date")
    return found.start.isoformat().replace("+00:00", "Z")


def embedder_of(found: VectorIndex, **pictures: Any) -> ImageTextEmbedder:
    """Return the embedder that made an index; raises `KernelError`, `WeightsError` where it cannot be had.

    ``pictures`` are ``low`` and ``high``, for those who will show it pictures.
    """
    from tilewright.kernels.embed.contract import load_embedder

    asked = found.embedder
    return load_embedder(asked["name"], asked["weights"], **asked["options"], **pictures)


def open_part(found: VectorIndex, part: str) -> Pyramid | None:
    """Return the pixels of a part of an index, or None where they are gone."""
    from tilewright.pipeline.pyramid import open_pyramid
    from tilewright.pipeline.rasters import raster_source
    from tilewright.rebuild import opened_run

    entry = found.parts[part]
    opens, coarsest = entry["opens"], entry["levels"][-1]["tile"]
    try:
        if opens["kind"] == "raster":
            return open_pyramid(raster_source([opens["href"]], bands=opens["bands"]), coarsest=coarsest)
        with opened_run(found.path / "parts" / part / "0") as run:
            return open_pyramid(run.cube()[0], coarsest=coarsest)
    except TilewrightError:
        return None


def search_index(
    where: str | Path | VectorIndex,
    text: str | None = None,
    *,
    like: tuple[float, float] | None = None,
    image: str | Path | None = None,
    level: int = 0,
    count: int = 10,
    filters: Filters | None = None,
    bands: Sequence[str | int] | None = None,
    options: Mapping[str, Any] | None = None,
    exact: bool = False,
) -> list[Hit]:
    """Search an index by a text, by a place that is in it, or by a picture; best first.

    Parameters
    ----------
    where
        An index, or its folder.
    text
        What is looked for.
    like
        Longitude and latitude of an example; ``level`` says how large its tile is.
    image
        A raster whose whole is the example.
    level
        Level of the example's tile.
    count
        Most hits.
    filters
        What hits must be.
    bands, options
        How ``image`` is seen: its bands, and ``tower``, ``low``, ``high``; None: as the newest image of the index.
    exact
        Compare every vector, also where the index has a graph.

    Raises
    ------
    InputError
        None or several of text, like and image; no index; nothing at the place.
    """
    from tilewright.pipeline.search import VectorIndex

    found = where if isinstance(where, VectorIndex) else VectorIndex(where)
    if sum(one is not None for one in (text, like, image)) != 1:
        raise InputError("give a text, --like or --image", place="search", remedy="exactly one of them")
    query: NDArray[Any]
    if text is not None:
        if not text.strip():
            raise InputError("the text is empty", place="search", remedy="say what to look for")
        query = embedder_of(found).embed_texts([text]).cpu().numpy()
    elif like is not None:
        query = found.vector_at(*like, level=level)
    else:
        assert image is not None
        query = example_vector(found, image, bands, options)
    return found.search(query, count, filters=filters, exact=exact)


def example_vector(
    found: VectorIndex,
    image: str | Path,
    bands: Sequence[str | int] | None = None,
    options: Mapping[str, Any] | None = None,
) -> NDArray[Any]:
    """Return the vector of a whole raster, ``[dim]``, read from a level of at most 1,024 px."""
    import numpy as np
    import torch

    from tilewright.kernels.ask import Request

    newest = list(found.parts.values())[-1]
    seen = dict(newest["options"] if options is None else options)
    tower = seen.get("tower")
    embedder = embedder_of(found, **{name: seen[name] for name in ("low", "high") if name in seen})
    tower = embedder.profile.tower_name(tower)
    pyramid = open_image(image, newest["opens"].get("bands") if bands is None else bands)
    level = next(
        (n for n, one in enumerate(pyramid.levels) if max(one.shape) <= 1024), len(pyramid.levels) - 1
    )
    (view,) = pyramid.read([Request(level, 0, 0, *pyramid.levels[level].shape)])
    pixels = np.where(view.valid, view.pixels.astype(np.float32), np.nan)
    vector: NDArray[Any] = embedder.embed_images(torch.from_numpy(pixels[None]), tower)[0].cpu().numpy()
    return vector

"""The recipe: what to look for, how to line it up, which kernel to run, and what to write. One YAML file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from tilewright.errors import InputError, nearest_name

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "CompositeSpec",
    "CubeSpec",
    "GridSpec",
    "KernelChoice",
    "Outputs",
    "Recipe",
    "RunSpec",
    "SearchSpec",
]


class _Part(BaseModel):
    """A part of a recipe: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _as_text(value: Any) -> Any:
    # YAML reads 2024-05-01 as a date, and 2024 as a number.
    if isinstance(value, (list, tuple)):
        return [_as_text(v) for v in value]
    return value if isinstance(value, str) or value is None else str(value)


def _as_named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


class SearchSpec(_Part):
    """Which Items are wanted, besides region and dates."""

    cloud_cover: float | None = Field(default=None, ge=0, le=100)
    """Most percent of ``eo:cloud_cover``."""
    filter: str | dict[str, Any] | None = None
    """CQL2 text or CQL2-JSON."""
    query: dict[str, dict[str, Any]] | None = None
    """The older STAC query, such as ``{platform: {eq: sentinel-2a}}``."""
    ids: tuple[str, ...] | None = None
    """Only these Items."""
    max_items: int | None = Field(default=None, gt=0)
    """Most Items to take."""


class GridSpec(_Part):
    """The pixels of the result."""

    resolution: float = Field(gt=0)
    """Pixel side in units of the CRS."""
    crs: str = "utm"
    """Any CRS, or ``utm`` for the zone (or zones: one grid each) of the region, or ``items`` for that of the Items."""
    anchor: Literal["items", "zero"] | tuple[float, float] = "items"
    """Where pixel corners lie: on those of the Items where CRS and resolution are the same (nothing is
    resampled then), on multiples of the resolution (``zero``), or at a given (x, y)."""


class CompositeSpec(_Part):
    """How the scenes of a period become one date."""

    method: Literal["median", "mean", "first_valid", "least_cloudy", "percentile"] = "median"
    """Per pixel over valid dates; SAR in linear power."""
    percentile: float = Field(default=50, ge=0, le=100)
    """Which, for ``percentile``."""


class CubeSpec(_Part):
    """How scenes become a cube."""

    reader: Literal["odc", "stackstac"] = "odc"
    """Which library reads."""
    groupby: Literal["solar_day", "time", "id"] | None = "solar_day"
    """What is mosaicked into one date."""
    resampling: Literal["nearest", "bilinear", "cubic", "average"] = "bilinear"
    """For bands in units; categorical bands are always nearest."""
    mask: Literal["default", "none"] | tuple[int | str, ...] = "default"
    """``default``: clouds, shadows and the like of the sensor's mask band; ``none``; or the classes to exclude."""
    offsets: dict[str, tuple[float, float]] | None = None
    """Band -> (scale, offset) that override what metadata and the truth table say."""
    nodata: dict[str, float] | None = None
    """Band -> nodata value that overrides what the Items say."""


class KernelChoice(_Part):
    """Which kernel, with which weights and options."""

    name: str
    """What ``tilewright kernels`` lists, ``package.module:name``, or a file."""
    weights: str | None = None
    """A path or ``hf://owner/name@revision``; None takes the kernel's own."""
    options: dict[str, Any] = Field(default_factory=dict)
    """The kernel's options."""


class Outputs(_Part):
    """What is written, and where it is announced."""

    only: Literal["cog", "zarr"] | None = None
    """Just one of the two forms."""
    catalog: str | None = None
    """Folder of a local STAC catalog to which the Item is appended; the next run can search it."""


class RunSpec(_Part):
    """How the run is carried out; None lets tilewright choose."""

    stitch: Literal["cut", "blend"] | None = None
    """Cut by the kernel's radius, or blend overlapping tiles."""
    tile: int | None = Field(default=None, gt=0)
    """Pixels a side that the kernel sees."""
    shard: int | None = Field(default=None, gt=0)
    """Pixels a side of a unit of writing."""
    batch: int | None = Field(default=None, gt=0)
    """Tiles a forward."""
    threads: int | None = Field(default=None, gt=0)
    """Intra-op threads of torch."""
    cores: int | None = Field(default=None, gt=0)
    """Most cores that the kernel may keep busy."""
    device: str = "auto"
    """``auto``, ``cpu`` or ``cuda:N``."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Arithmetic of the forward."""
    boundary: Literal["reflect", "fill"] | None = None
    """What stands beyond the edge of the data."""
    memory: str | None = None
    """Most memory, such as ``8GiB``."""
    on_error: Literal["raise", "reason"] = "raise"
    """A read that failed after all retries ends the run, or leaves nodata, a reason and an entry."""
    coregister: bool = False
    """True measures the shift of later dates against the first, and moves them onto it."""
    untrained: bool = False
    """True maps a kernel that needs weights without them, to see what it costs; its results mean nothing."""


class Recipe(_Part):
    """A job from catalog to map; ``tilewright recipe --schema`` prints this as JSON schema."""

    name: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*$")
    """Name of the recipe and of the collection of its results: letters, digits, ``.``, ``_`` and ``-``."""
    description: str = ""
    """What it makes, in a sentence."""
    catalog: str
    """``earth-search``, ``planetary-computer``, ``cdse``, ``landsatlook``, an API's URL, or a path (from the
    recipe's folder) or URL of a static catalog, an ItemCollection or a stac-geoparquet file."""
    collections: Annotated[tuple[str, ...], BeforeValidator(_as_list)]
    """Ids of the collections."""
    region: str | dict[str, Any] | tuple[float, float, float, float] | None = None
    """File, GeoJSON or (west, south, east, north) in degrees; may be given at the run instead."""
    dates: Annotated[str | None, BeforeValidator(_as_text)] = None
    """One span ``a/b``; every date in it is a date of the cube."""
    periods: Annotated[tuple[str, ...] | None, BeforeValidator(_as_text)] = None
    """Several spans, oldest first; each becomes one date of the cube by ``composite``."""
    bands: Annotated[tuple[str, ...] | None, BeforeValidator(_as_list)] = None
    """Bands of the cube; those that the kernel names unless given."""
    search: SearchSpec = SearchSpec()
    """Further conditions on Items."""
    grid: GridSpec
    """The pixels of the result."""
    cube: CubeSpec = CubeSpec()
    """How scenes become a cube."""
    composite: CompositeSpec | None = None
    """How each of ``periods`` (or ``dates`` as a whole) becomes one date; median for periods unless given."""
    kernel: Annotated[KernelChoice, BeforeValidator(_as_named)]
    """The kernel, by name or with weights and options."""
    outputs: Outputs = Outputs()
    """What is written."""
    run: RunSpec = RunSpec()
    """How it is carried out."""

    @model_validator(mode="after")
    def _one_way_of_dates(self) -> Self:
        if (self.dates is None) == (self.periods is None):
            raise ValueError("give either dates (one span) or periods (several)")
        if self.periods is not None and not self.periods:
            raise ValueError("periods is empty")
        return self

    @property
    def spans(self) -> tuple[str, ...]:
        """The spans to search, oldest first."""
        return self.periods if self.periods is not None else (self.dates or "",)

    @classmethod
    def parse(cls, data: Mapping[str, Any], place: str = "recipe") -> Self:
        """Read plain data; raises `InputError` in one line that names the key."""
        try:
            return cls.model_validate(dict(data))
        except ValidationError as error:
            raise InputError(_explain(error), place=place, remedy=_remedy(error)) from error

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Read a YAML file. Relative paths in it (catalog, region, outputs.catalog) count from its folder.

        Raises `InputError` for a file that is absent or no YAML, and for every key that is wrong.
        """
        path = Path(path)
        try:
            data = yaml.safe_load(path.read_text())
        except OSError as error:
            raise InputError(f"cannot be read: {error.strerror}", place=str(path)) from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            text = " ".join(str(error).split())
            raise InputError(f"is no YAML: {text}", place=str(path)) from error
        if not isinstance(data, dict):
            raise InputError("holds no recipe", place=str(path), remedy="see tilewright recipe --schema")
        return cls.parse(data, str(path)).resolved(path.parent)

    def resolved(self, folder: Path) -> Self:
        """Return the recipe with relative paths made absolute from ``folder``."""

        def absolute(text: str) -> str:
            beside = folder / text
            return str(beside.resolve()) if "://" not in text and beside.exists() else text

        changes: dict[str, Any] = {"catalog": absolute(self.catalog)}
        if isinstance(self.region, str):
            changes["region"] = absolute(self.region)
        if self.outputs.catalog is not None and "://" not in self.outputs.catalog:
            where = str((folder / self.outputs.catalog).resolve())
            changes["outputs"] = self.outputs.model_copy(update={"catalog": where})
        return self.model_copy(update=changes)


def _model_at(location: tuple[int | str, ...]) -> type[BaseModel]:
    model: type[BaseModel] = Recipe
    for part in location:
        field = model.model_fields.get(str(part))
        kind = field.annotation if field else None
        options = [kind, *getattr(kind, "__args__", ())]
        nested = [k for k in options if isinstance(k, type) and issubclass(k, BaseModel)]
        model = nested[0] if nested else model
    return model


def _first(error: ValidationError) -> Any:
    """Return the finding to show: an unknown key before what is missing because of it."""
    found = error.errors()
    return next((e for e in found if e["type"] == "extra_forbidden"), found[0])


def _explain(error: ValidationError) -> str:
    first = _first(error)
    path = _path(first)
    if first["type"] == "extra_forbidden":
        return f"unknown key {path!r}"
    if first["type"] == "missing":
        return f"key {path!r} is missing"
    if not path:
        return str(first["msg"]).removeprefix("Value error, ")
    # A key that takes several forms has a finding for each of them.
    found = [str(e["msg"]).removeprefix("Value error, ") for e in error.errors() if _path(e) == path]
    message = " or: ".join(dict.fromkeys(text[0].lower() + text[1:] for text in found))
    return f"{path} is {json.dumps(first['input'], default=str)}: {message}"


def _path(finding: Any) -> str:
    """Return where a finding is, without the names that pydantic gives to the members of a union."""
    parts = (str(part) for part in finding["loc"])
    return ".".join(part for part in parts if "[" not in part and part not in ("str", "int", "float", "bool"))


def _remedy(error: ValidationError) -> str | None:
    first = _first(error)
    if first["type"] != "extra_forbidden":
        return None
    return nearest_name(str(first["loc"][-1]), _model_at(first["loc"][:-1]).model_fields)

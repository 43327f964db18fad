"""What a kernel says of itself, and how it is called: the contract between models and the engine.

A `KernelSpec` can be read without loading weights; `Kernel` adds the forward. The engine, the command line,
the STAC Item's model metadata and `tilewright.testing.check_kernel` all read the same description.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from tilewright.errors import KernelError, nearest_name

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = [
    "Context",
    "InputSpec",
    "Kernel",
    "KernelSpec",
    "OutputSpec",
    "RadiusAt",
    "StatisticsSpec",
    "TileRule",
]

RASTER_KINDS = ("score", "class", "value")
RECORD_KINDS = ("vector", "boxes", "text")


class _Described(BaseModel):
    """A frozen description; an unknown key is an error that names the nearest known one."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class RadiusAt(_Described):
    """The distance at which an input's influence has fallen to ``eps``, where the exact radius is too far."""

    eps: float = Field(gt=0)
    """Largest change of an output, as a share of its range, by pixels farther away than ``px``."""
    px: int = Field(ge=0)
    """Distance in pixels."""


class TileRule(_Described):
    """Which tile sides a kernel takes: one size, or multiples up to a largest."""

    fixed: int | None = Field(default=None, gt=0)
    """The only side in pixels; None where several do."""
    multiple: int = Field(default=1, gt=0)
    """Sides are multiples of this."""
    maximum: int | None = Field(default=None, gt=0)
    """The largest side, if there is one."""
    default: int | None = Field(default=None, gt=0)
    """The side taken when the user names none."""


def _as_tile_rule(value: object) -> object:
    return {"fixed": value} if isinstance(value, int) else (value or {})


class InputSpec(_Described):
    """One named raster that a kernel takes, as ``[N, T, C, H, W]``."""

    dates: int | str = 1
    """Number of dates, oldest first, or a range such as ``"9-20"``."""
    bands: int | tuple[str, ...] = 1
    """Names of the bands in the order of the channels, or only their number."""
    units: str | None = None
    """Physical units of the values given to the kernel, before ``mean`` and ``std``."""
    mean: tuple[float, ...] | tuple[tuple[float, ...], ...] | None = None
    """Subtracted before the forward: one number a band, or one row of them a date."""
    std: tuple[float, ...] | tuple[tuple[float, ...], ...] | None = None
    """Divided by after ``mean``; same shape."""
    fill: float = 0.0
    """Stands in for an invalid pixel, in the values that the forward sees (after ``mean`` and ``std``)."""
    resolution: float | None = Field(default=None, gt=0)
    """Pixel side in metres the kernel was made for; None for any. Another grid is allowed and said."""
    resampling: Literal["nearest", "bilinear", "cubic", "average"] = "bilinear"
    """How other resolutions are brought to the tile's grid."""
    optional: bool = False
    """True where the kernel runs without this input."""

    @model_validator(mode="after")
    def _consistent(self) -> InputSpec:
        low, high = self.date_range
        if not 1 <= low <= high:
            raise ValueError(f"dates {self.dates!r}: give a number or a range such as '9-20'")
        if self.bands == 0 or self.bands == ():
            raise ValueError("an input has at least one band")
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std go together")
        return self

    @property
    def date_range(self) -> tuple[int, int]:
        """Fewest and most dates."""
        if isinstance(self.dates, int):
            return self.dates, self.dates
        low, _, high = self.dates.partition("-")
        try:
            return int(low), int(high or low)
        except ValueError:
            return 0, 0

    @property
    def band_count(self) -> int:
        """Number of channels."""
        return self.bands if isinstance(self.bands, int) else len(self.bands)


class OutputSpec(_Described):
    """One named result of a kernel."""

    kind: Literal["score", "class", "value", "vector", "boxes", "text"]
    """``score``: certainty in ``range``; ``class``: labels; ``value``: a physical quantity; ``vector``,
    ``boxes`` and ``text`` are records, one or several a tile."""
    range: tuple[float, float] | None = None
    """Least and largest possible value; needed to blend. For a score (0, 1) unless given."""
    bands: int | tuple[str, ...] = 1
    """Channels of the stored raster, or their names; for a vector its length."""
    classes: tuple[str, ...] | None = None
    """Names of the labels 0, 1, ...; with as many channels in the forward's output the engine takes the
    argmax, with one channel the values are the labels, or scores to compare with ``threshold``."""
    threshold: float | None = None
    """For ``class``: labels are 1 where the single channel is at least this. For ``score``: the value at
    which users should cut; stored with the raster, not applied."""
    nodata: float | None = None
    """Marks pixels without a result: 255 for classes, NaN for floats unless given."""
    dtype: Literal["uint8", "int16", "uint16", "float32"] | None = None
    """Stored type: uint8 for classes, float32 otherwise. A score or value stored as integers is spread over
    ``range`` with scale and offset in the metadata."""
    valid_rule: Literal["all", "any", "own"] = "all"
    """A pixel has a result where it is valid in all dates and inputs, in any, or where the kernel gives no
    NaN (``own``)."""
    units: str | None = None
    """Physical units."""
    description: str = ""
    """What the values mean, in a sentence."""

    @model_validator(mode="before")
    @classmethod
    def _score_range(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("kind") == "score" and "range" not in data:
            return {**data, "range": (0.0, 1.0)}
        return data

    @model_validator(mode="after")
    def _consistent(self) -> OutputSpec:
        if self.range is not None and not self.range[0] < self.range[1]:
            raise ValueError(f"range {self.range} is empty")
        if self.kind in ("score", "value") and self.dtype not in (None, "float32") and self.range is None:
            raise ValueError("a value stored as integers needs a range")
        limits = {"uint8": (0, 255), "uint16": (0, 65535), "int16": (-32768, 32767)}.get(self.dtype or "")
        if self.kind in ("score", "value") and limits and self.nodata not in (None, *limits):
            raise ValueError(
                f"nodata {self.nodata:g} of a value stored as {self.dtype} is not {limits[0]} or {limits[1]}"
            )
        return self

    @property
    def is_raster(self) -> bool:
        """True for score, class and value."""
        return self.kind in RASTER_KINDS

    @property
    def stored_dtype(self) -> str:
        """Numpy name of the stored type."""
        return self.dtype or ("uint8" if self.kind == "class" else "float32")

    @property
    def stored_nodata(self) -> float:
        """The stored mark of a pixel without a result."""
        if self.nodata is not None:
            return self.nodata
        return {"uint8": 255.0, "uint16": 65535.0, "int16": -32768.0}.get(self.stored_dtype, math.nan)

    @property
    def band_count(self) -> int:
        """Channels of the stored raster; one for classes."""
        if self.kind == "class":
            return 1
        return self.bands if isinstance(self.bands, int) else len(self.bands)

    @property
    def forward_channels(self) -> tuple[int, ...]:
        """Numbers of channels that the forward may return for this output."""
        if self.kind != "class":
            return (self.band_count,)
        return (1, len(self.classes)) if self.classes and self.threshold is None else (1,)


class StatisticsSpec(_Described):
    """A pass over the whole scene before the map: a bounded sample of pixels, from which the kernel's
    ``fit`` makes numbers that every tile is given."""

    sample: int = Field(default=100_000, gt=0)
    """Most pixels in the sample: those with the smallest hash of their global position, so the sample does
    not depend on how the scene is read."""
    names: tuple[str, ...] = ()
    """Names of the numbers that ``fit`` returns."""


class KernelSpec(_Described):
    """The description of a kernel: all that can be known without its weights."""

    name: str = "kernel"
    """Name in the registry and in results."""
    description: str = ""
    """What it computes, in a sentence or two."""
    inputs: dict[str, InputSpec]
    """Named rasters in the order of the forward's arguments."""
    outputs: dict[str, OutputSpec]
    """Named results in the order in which the forward returns them."""
    radius: int | None = Field(default=None, ge=0)
    """Farthest input pixel (Chebyshev) on which an output pixel depends; None for global context."""
    radius_at: RadiusAt | None = None
    """Where influence has all but ended, for kernels whose exact radius is None or above a quarter tile."""
    stride: int = Field(default=1, gt=0)
    """The network is shift-equivariant only by multiples of this."""
    scale: int = Field(default=1, gt=0)
    """Output pixels per input pixel and axis."""
    boundary: Literal["reflect", "fill"] = "reflect"
    """What stands beyond the edge of the data: mirrored pixels (edge not repeated) or invalid ones."""
    tile: Annotated[TileRule, BeforeValidator(_as_tile_rule)] = TileRule()
    """A fixed side, or a rule."""
    statistics: StatisticsSpec | None = None
    """Numbers of the whole scene that the kernel needs, if any."""
    seed: int | None = None
    """Seed of noise drawn from the global position of a pixel (`Context.noise`); None where none is drawn."""
    autocast: bool = True
    """True where bf16 or fp16 may be asked for."""
    channels_last: bool = False
    """True where the forward is a convolutional module that also works with weights in torch's channels-last
    layout (no ``view`` of a convolution's output): 1.3 to 1.9 times faster on a CPU for a U-Net of 0.5 M
    parameters, and what a GPU wants with bf16 or fp16."""
    concurrent: bool = True
    """True where several threads may be in the forward at a time, as nearly all forwards allow: on a CPU it is then
    called with one intra-op thread on each core. A module is copied for each (its weights are shared), so what it
    keeps on itself is its own; False for what keeps something elsewhere."""
    licence: str = ""
    """Licence of the code, and of the weights where it is another."""
    citation: str = ""
    """Paper or source."""
    status: Literal["parity", "trained-here", "reconstruction", "user"] = "user"
    """How far the kernel is proved: equal to the official one, trained by this project, or rebuilt from a paper."""

    @model_validator(mode="after")
    def _consistent(self) -> KernelSpec:
        if not self.inputs or not self.outputs:
            raise ValueError("a kernel has at least one input and one output")
        if len({spec.is_raster for spec in self.outputs.values()}) > 1:
            raise ValueError(
                "outputs are rasters (score, class, value) or records (vector, boxes, text), not both"
            )
        return self

    @property
    def mapping(self) -> Literal["map_pixels", "map_tiles"]:
        """The way in which the engine maps this kernel."""
        return "map_pixels" if next(iter(self.outputs.values())).is_raster else "map_tiles"

    @classmethod
    def parse(cls, data: Mapping[str, Any], place: str) -> KernelSpec:
        """Read a description from plain data; raises `KernelError` in one line that names the key."""
        try:
            return cls.model_validate(dict(data))
        except ValidationError as error:
            raise KernelError(explain(error, cls), place=place) from error


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """Return the first finding of a pydantic error as one line, with the nearest name for an unknown key."""
    found = error.errors()
    first = next((e for e in found if e["type"] == "extra_forbidden"), found[0])
    path = ".".join(str(part) for part in first["loc"])
    if first["type"] != "extra_forbidden":
        return f"{path}: {first['msg']}" if path else str(first["msg"])
    known = set(model.model_fields)
    for nested in (InputSpec, OutputSpec):
        if model is KernelSpec and path.startswith(("inputs.", "outputs.")):
            known = set((OutputSpec if path.startswith("outputs.") else nested).model_fields)
    return f"unknown key {path!r}; {nearest_name(str(first['loc'][-1]), known)}"


@dataclass(frozen=True, slots=True)
class Context:
    """Where and when a batch of tiles lies, for kernels that ask for it by naming ``context``."""

    origin: Tensor
    """``[N, 2]`` int64: global (row, column) of the first pixel of each tile's read window; may be negative."""
    times: Tensor
    """``[N, T]`` int64 nanoseconds since 1970, UTC; 0 where unknown."""
    lonlat: Tensor
    """``[N, 2]`` float64: longitude and latitude of each tile's centre in degrees; NaN where unknown."""
    resolution: float
    """Pixel side in CRS units."""
    statistics: Mapping[str, Any] = field(default_factory=dict)
    """What the statistics pass found for this scene."""
    seed: int = 0
    """The kernel's seed."""
    locate: Callable[[Any], Any] | None = None
    """From (row, column) in the raster, ``[n, 2]`` numpy float64, to (longitude, latitude); None where unknown."""

    def pixel_lonlat(self, height: int, width: int) -> Tensor:
        """Return longitude and latitude of every pixel's centre in degrees, ``[N, 2, height, width]`` float64.

        For kernels that ask where a pixel lies, not only its tile. Where the engine gives no `locate`, all pixels of
        a tile have its centre's, which is NaN where unknown.
        """
        import numpy as np
        import torch

        if self.locate is None:
            return self.lonlat[:, :, None, None].expand(-1, -1, height, width)
        inside = np.indices((height, width)).reshape(2, -1).T + 0.5
        origins = self.origin.cpu().numpy()
        found = np.stack([self.locate(inside + origin).T for origin in origins])
        return torch.from_numpy(found.reshape(-1, 2, height, width)).to(self.lonlat.device)

    def noise(self, height: int, width: int, channels: int = 1) -> Tensor:
        """Return standard normal noise ``[N, channels, height, width]`` float32.

        Each value is a hash of (seed, row, column, channel), by splitmix64 and the Box-Muller transform, so a
        pixel sees the same noise in every tile, batch and run.
        """
        from .noise import global_noise

        return global_noise(self.origin, height, width, channels, self.seed)


Outputs = dict[str, Any]
"""Name -> ``Tensor [N, C, H * scale, W * scale]`` for rasters, or a list of N records."""


@dataclass(frozen=True, eq=False)
class Kernel:
    """A description and a forward. The forward is built once, at first use, on the process that uses it.

    Call `apply` with named inputs as the engine does, or the kernel itself with the plain arguments of the
    function or module that it wraps.
    """

    spec: KernelSpec
    """The description."""
    build: Callable[[], Callable[..., Any]]
    """Returns the forward: a function, or an `torch.nn.Module` with its weights loaded."""
    fit: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None
    """The statistics: takes the sample of each input as float64 ``[n, T, C]``, returns plain numbers and lists."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """The options it was loaded with, for the fingerprint."""
    weights: str | None = None
    """Where the weights came from; None where there are none."""
    weights_sha256: str | None = None
    """Checksum of the weights file."""
    untrained: bool = False
    """True where the forward needs weights and has random ones: it is mapped only where that is asked for."""

    def __post_init__(self) -> None:
        if (self.spec.statistics is None) != (self.fit is None):
            raise KernelError(
                "a kernel with statistics needs a fit, and the other way round", place=self.spec.name
            )

    @cached_property
    def function(self) -> Callable[..., Any]:
        """The forward itself."""
        return self.build()

    @property
    def module(self) -> torch.nn.Module:
        """The forward as the torch module it is; raises `KernelError` for a plain function.

        Of a published network it is the network alone: its ``state_dict`` has the official names, it takes the
        normalised dates ``[N, C, H, W]`` one after another, and returns the official raw output.
        """
        import torch

        if not isinstance(self.function, torch.nn.Module):
            raise KernelError("this kernel is a function, not a torch module", place=self.spec.name)
        return cast("torch.nn.Module", getattr(self.function, "published", self.function))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the wrapped function or module as it is."""
        return self.function(*args, **kwargs)

    @cached_property
    def _parameters(self) -> tuple[str, ...]:
        function = self.function
        forward = function if hasattr(function, "__signature__") else getattr(function, "forward", function)
        kinds = (
            inspect.Parameter.POSITIONAL_ONLY,
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
            inspect.Parameter.KEYWORD_ONLY,
        )
        return tuple(
            p.name
            for p in inspect.signature(forward).parameters.values()
            if p.kind in kinds and p.name != "self"
        )

    def apply(self, inputs: Mapping[str, Tensor], valid: Mapping[str, Tensor], context: Context) -> Outputs:
        """Run the forward on a batch of tiles and return the outputs by name.

        Parameters
        ----------
        inputs
            Name -> float32 ``[N, T, C, H, W]``, normalised, invalid pixels filled.
        valid
            Name -> bool ``[N, T, 1, H, W]``; True where the pixel was measured.
        context
            Where and when.

        The forward is called by the arguments that it names:

        - ``f(inputs)`` with a parameter of that name: the mapping as above;
        - parameters named like the inputs: one tensor each;
        - one other parameter: the only input, ``[N, C, H, W]`` for a single date, else ``[N, T, C, H, W]``;
        - as many other parameters as the only input has dates: one ``[N, C, H, W]`` a date;
        - ``valid`` and ``context`` beside them, shaped as the inputs were given.
        """
        names = self._parameters
        plain = [n for n in names if n not in ("valid", "context")]
        squeeze = False
        first = next(iter(inputs))
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        if "inputs" in plain:
            kwargs["inputs"] = inputs
        elif set(plain) & set(self.spec.inputs):
            kwargs |= {name: inputs[name] for name in plain if name in inputs}
        elif len(self.spec.inputs) == 1 and len(plain) == 1:
            squeeze = inputs[first].shape[1] == 1 and self.spec.inputs[first].date_range == (1, 1)
            args = [inputs[first][:, 0] if squeeze else inputs[first]]
        elif len(self.spec.inputs) == 1 and len(plain) >= inputs[first].shape[1]:
            args = list(inputs[first].unbind(1))
        else:
            raise KernelError(
                f"the forward takes ({', '.join(names)}), which fits neither the inputs"
                f" {list(self.spec.inputs)} nor one tensor a date",
                place=self.spec.name,
                remedy="name the parameters like the inputs, or take one parameter named inputs",
            )
        if "valid" in names:
            by_name = "inputs" in plain or len(self.spec.inputs) > 1
            kwargs["valid"] = valid if by_name else (valid[first][:, 0] if squeeze else valid[first])
        if "context" in names:
            kwargs["context"] = context
        return self._named(self.function(*args, **kwargs))

    def _named(self, result: Any) -> Outputs:
        names = list(self.spec.outputs)
        if isinstance(result, Mapping):
            missing = [n for n in names if n not in result]
            if missing:
                raise KernelError(f"the forward returned no {', '.join(missing)}", place=self.spec.name)
            return {n: result[n] for n in names}
        if len(names) == 1:
            return {names[0]: result}
        if isinstance(result, Sequence) and len(result) == len(names):
            return dict(zip(names, result, strict=True))
        raise KernelError(
            f"the forward returned {type(result).__name__} for the outputs {', '.join(names)}",
            place=self.spec.name,
            remedy="return a dict, or a tuple in the order of the outputs",
        )

    @cached_property
    def digest(self) -> str:
        """sha256 over description, options, code, statistics and weights: what an answer depends on of a kernel.

        Two loads of the same kernel agree, in any process; see `tilewright.kernels.identity` for what counts as
        its code.
        """
        from .identity import Identity

        hasher = hashlib.sha256(self.spec.model_dump_json().encode())
        hasher.update(json.dumps(dict(self.options), sort_keys=True, default=str).encode())
        hasher.update(str(self.weights_sha256).encode())
        identity = Identity(hasher)
        identity.feed(self.function, "forward")
        identity.feed(self.fit, "fit")
        return hasher.hexdigest()

    def twin(self) -> Kernel:
        """Return a kernel that another thread may call meanwhile.

        A module is copied with all that it keeps on itself but its weights, which are shared; a function is the
        same, and so is a TorchScript module. Raises `KernelError` for a module that cannot be copied.
        """
        import torch

        other, function = copy.copy(self), self.function
        if isinstance(function, torch.nn.Module) and not isinstance(function, torch.jit.ScriptModule):
            try:
                function = copy.deepcopy(function, {id(weight): weight for weight in function.parameters()})
            except Exception as error:
                raise KernelError(
                    f"its module cannot be copied for a second thread: {error}",
                    place=self.spec.name,
                    remedy="declare concurrent: false",
                ) from error
        other.__dict__["function"] = function
        return other

    def __getstate__(self) -> dict[str, Any]:
        # The built forward stays behind: a worker builds its own, so weights travel only where `build` holds
        # them. The digest travels: the code that it was made from may not be found on the other machine.
        kept = {f.name for f in fields(self)} | {"digest"}
        return {name: value for name, value in self.__dict__.items() if name in kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

"""What a run has to say about itself, as plain data: grid, files, bands, inputs, model.

The pipeline and the flows fill these in; :mod:`tilewright.catalogs.publish` makes the STAC Item of them. They know
neither torch nor pystac's extension classes, and each writes the fields that the extension's schema asks for.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import pystac

__all__ = [
    "ClassInfo",
    "InputInfo",
    "ItemRef",
    "ModelInfo",
    "OutputAsset",
    "OutputBand",
    "OutputInfo",
    "ProjInfo",
]


@dataclass(frozen=True, slots=True)
class ProjInfo:
    """The grid of an output."""

    code: str | None
    """``EPSG:32633`` and the like; None where the CRS has no code, then ``wkt2`` is needed."""

    shape: tuple[int, int]
    """Rows, columns."""

    transform: tuple[float, float, float, float, float, float]
    """Affine ``(a, b, c, d, e, f)``, pixel corner to CRS."""

    wkt2: str | None = None
    """The CRS in WKT 2, for one without a code."""

    def fields(self) -> dict[str, Any]:
        """Return the fields of the projection extension."""
        out: dict[str, Any] = {"proj:code": self.code}
        if self.wkt2 is not None:
            out["proj:wkt2"] = self.wkt2
        out["proj:shape"] = list(self.shape)
        out["proj:transform"] = [*self.transform, 0.0, 0.0, 1.0]
        return out


@dataclass(frozen=True, slots=True)
class ClassInfo:
    """One class of a map."""

    value: int
    """Value of the pixels."""

    name: str
    """Short name; letters, digits, ``-`` and ``_``."""

    description: str = ""
    """The class in words."""

    color: str | None = None
    """Six hexadecimal digits, RRGGBB, as the quicklook paints it."""

    def fields(self) -> dict[str, Any]:
        """Return the class object of the classification extension."""
        name = re.sub(r"[^0-9A-Za-z_-]+", "_", self.name) or f"class_{self.value}"
        out: dict[str, Any] = {"value": self.value, "name": name}
        if self.description or name != self.name:
            out["description"] = self.description or self.name
        if self.color:
            out["color_hint"] = self.color.lstrip("#").upper()
        return out


@dataclass(frozen=True, slots=True)
class OutputBand:
    """One band of an output raster."""

    name: str
    """Name of the output, as the kernel declares it."""

    dtype: str
    """numpy's name of the type: ``uint8``, ``float32``."""

    nodata: float | None = None
    """Fill value of pixels without an answer; NaN is allowed."""

    units: str | None = None
    """Units, ``1`` for scores."""

    description: str | None = None
    """The quantity in words."""

    classes: tuple[ClassInfo, ...] = ()
    """Classes of a categorical band; empty for amounts."""

    statistics: Mapping[str, float] = field(default_factory=dict)
    """Any of mean, minimum, maximum, stddev, valid_percent."""

    def fields(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the band object of STAC 1.1 and that of raster 1.1."""
        values: dict[str, Any] = {"data_type": self.dtype}
        if self.nodata is not None:
            values["nodata"] = "nan" if math.isnan(self.nodata) else self.nodata
        if self.units is not None:
            values["unit"] = self.units
        if self.statistics:
            values["statistics"] = {k: float(v) for k, v in self.statistics.items() if math.isfinite(v)}
        core = {"name": self.name, **values}
        if self.description:
            core["description"] = self.description
        if self.classes:
            core["classification:classes"] = values["classification:classes"] = [
                c.fields() for c in self.classes
            ]
        return core, {"name": self.name, **values}


@dataclass(frozen=True, slots=True)
class OutputAsset:
    """One file or folder of a run."""

    key: str
    """Key of the asset: the output's name, ``zarr``, ``quicklook``, ``report``."""

    path: str
    """Path relative to the run's folder."""

    media_type: str
    """Media type, for example ``image/tiff; application=geotiff; profile=cloud-optimized``."""

    roles: tuple[str, ...] = ("data",)
    """Roles: data, metadata, overview, thumbnail."""

    title: str | None = None
    """One line for people."""

    bands: tuple[OutputBand, ...] = ()
    """Bands in file order; empty for what is no raster."""

    proj: ProjInfo | None = None
    """Grid, where it differs from the Item's (an output at another scale)."""

    resolution: float | None = None
    """Pixel size in metres."""

    sha256: str | None = None
    """Hexadecimal SHA-256 of the file, if it is known already; else it is computed."""

    elsewhere: bool = False
    """True where it is not in the folder on this machine: neither size nor checksum is taken."""


@dataclass(frozen=True, slots=True)
class ItemRef:
    """An input Item, as the result's ``derived_from`` names it."""

    item_id: str
    """Its id."""

    collection: str | None = None
    """Its collection."""

    href: str | None = None
    """Where it lies, unsigned: an URL, or a path. None gives a name without a place, ``urn:stac:...``."""

    @classmethod
    def of(cls, item: pystac.Item) -> ItemRef:
        """Take the reference from an Item."""
        return cls(item.id, item.collection_id, item.get_self_href())


@dataclass(frozen=True, slots=True)
class InputInfo:
    """One named input of a model."""

    name: str
    """Name of the input, ``image``."""

    bands: tuple[str, ...]
    """Bands in order; empty where the model takes any."""

    shape: tuple[int, ...]
    """Sizes by ``dims``, -1 for any."""

    dims: tuple[str, ...] = ("batch", "time", "channel", "height", "width")
    """Names of the axes."""

    dtype: str = "float32"
    """Type of the tensor."""

    units: str | None = None
    """Units that the model wants: reflectance, gamma0 power, dB."""

    mean: tuple[float, ...] = ()
    """Mean by band that is subtracted; empty for none."""

    std: tuple[float, ...] = ()
    """Standard deviation by band that is divided by; empty for none."""

    def fields(self) -> dict[str, Any]:
        """Return the model input object of the mlm extension."""
        structure = {"shape": list(self.shape), "dim_order": list(self.dims), "data_type": self.dtype}
        out: dict[str, Any] = {"name": self.name, "bands": list(self.bands), "input": structure}
        if self.units:
            out["description"] = f"values in {self.units}"
        if self.mean and self.std:
            out["value_scaling"] = [
                {"type": "z-score", "mean": m, "stddev": s} for m, s in zip(self.mean, self.std, strict=True)
            ]
        return out


@dataclass(frozen=True, slots=True)
class OutputInfo:
    """One named output of a model."""

    name: str
    """Name of the output."""

    task: str
    """Task by the mlm extension's list: segmentation, regression, detection, super-resolution, ..."""

    shape: tuple[int, ...]
    """Sizes by ``dims``, -1 for any."""

    dims: tuple[str, ...] = ("batch", "channel", "height", "width")
    """Names of the axes."""

    dtype: str = "float32"
    """Type of the tensor."""

    classes: tuple[ClassInfo, ...] = ()
    """Classes; empty for amounts."""

    def fields(self) -> dict[str, Any]:
        """Return the model output object of the mlm extension."""
        structure = {"shape": list(self.shape), "dim_order": list(self.dims), "data_type": self.dtype}
        out: dict[str, Any] = {"name": self.name, "tasks": [self.task], "result": structure}
        if self.classes:
            out["classification:classes"] = [c.fields() for c in self.classes]
        return out


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """The kernel of a run as plain data: catalogs know no torch."""

    name: str
    """Name of the kernel."""

    architecture: str
    """Architecture or algorithm by its name in the literature."""

    inputs: tuple[InputInfo, ...]
    """Inputs."""

    outputs: tuple[OutputInfo, ...]
    """Outputs."""

    framework: str | None = None
    """``PyTorch`` and the like."""

    framework_version: str | None = None
    """Version with three numbers."""

    licence: str | None = None
    """SPDX identifier of the weights, or of the code where there are no weights."""

    citation: str | None = None
    """Paper, in one line or as a DOI."""

    weights_href: str | None = None
    """Where the weights come from; None for a kernel that has none."""

    weights_sha256: str | None = None
    """Hexadecimal SHA-256 of the weights."""

    artifact_type: str = "safetensors"
    """Format of the weights: safetensors, torch.save, torch.export.save."""

    parameters: int | None = None
    """Number of parameters."""

    pretrained: bool | None = None
    """True where the weights were trained before the run."""

    accelerator: Literal["amd64", "cuda", "xla", "macos-arm"] | None = None
    """Device of the run."""

    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    """Options of the run: threshold, tile, stitch, precision."""

    def fields(self) -> dict[str, Any]:
        """Return the Item properties of the mlm extension."""
        name = re.sub(r"[^A-Za-z0-9_.\- ]+", "-", self.name).strip("-._ ")
        name = name if re.match(r"[A-Za-z]..", name) else f"kernel-{name}"
        optional = {
            "mlm:framework": self.framework,
            "mlm:framework_version": self.framework_version,
            "mlm:total_parameters": self.parameters,
            "mlm:pretrained": self.pretrained,
            "mlm:accelerator": self.accelerator,
            "mlm:hyperparameters": dict(self.hyperparameters) or None,
        }
        return {
            "mlm:name": name,
            "mlm:architecture": self.architecture,
            "mlm:tasks": sorted({output.task for output in self.outputs}),
            **{key: value for key, value in optional.items() if value is not None},
            "mlm:input": [i.fields() for i in self.inputs],
            "mlm:output": [o.fields() for o in self.outputs],
        }

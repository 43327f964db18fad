"""``csmask``: clouds and their shadows in Sentinel-2 and Landsat, by the four U-Nets of DLR's package ``ukis-csmask``.

Wieland, Li, Martinis 2019, https://doi.org/10.1016/j.rse.2019.05.022; Wieland, Fichtner, Martinis 2022,
https://doi.org/10.5194/isprs-archives-XLIII-B3-2022-217-2022. The networks are ONNX files inside the package
(Apache-2.0), which is found but not imported. docs/kernels/csmask.md has what they give on labelled pictures.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

from ..contract import InputSpec, Kernel, KernelSpec, OutputSpec, TileRule
from ..weights import Weights, packaged_file, resolve_weights

if TYPE_CHECKING:
    from .onnx_forward import OnnxSegmenter

__all__ = ["CLASSES", "CSMASK", "CSMASK_RGBNIR", "MODELS", "CloudMask", "OnnxModel"]

_PACKAGE = "ukis_csmask"
CLASSES = ("clear", "cloud", "shadow")
"""What the three channels mean, in their order."""

_BANDS = ("blue", "green", "red", "nir", "swir16", "swir22")


@dataclass(frozen=True, slots=True)
class OnnxModel:
    """One of the network files."""

    file: str
    """Name inside the package."""
    sha256: str
    """Its checksum in version 1.0.0."""
    mean: tuple[float, ...]
    """Mean reflectance of each band in the training data, as the package has it."""
    std: tuple[float, ...]
    """Standard deviation of each band."""


_STATISTICS = {
    "l1c": (
        (
            *(0.27552253007888794, 0.2556644380092621, 0.269801527261734),
            *(0.33431220054626465, 0.20851291716098785, 0.15826508402824402),
        ),
        (
            *(0.24488002061843872, 0.22757470607757568, 0.2537152171134949),
            *(0.23213787376880646, 0.148738831281662, 0.12604215741157532),
        ),
    ),
    "l2a": (
        (
            *(0.26681777834892273, 0.27799084782600403, 0.28811994194984436),
            *(0.36494743824005127, 0.2225709855556488, 0.17859040200710297),
        ),
        (
            *(0.33637598156929016, 0.3125455975532532, 0.311148464679718),
            *(0.27260705828666687, 0.16653667390346527, 0.14328984916210175),
        ),
    ),
}
_SHA256 = {
    (4, "l1c"): "81611f290adc315b86bb7e7c69b0f2496b3abe0390c2a5c8e9e9da9622e8a0c8",
    (4, "l2a"): "3884d75ca497ec59d8335973477bd31eb038857007bbb36fb2aba1ad375ee043",
    (6, "l1c"): "aa79e9a0f02ff8e0243d93771d1daf6a8d1166b7ac06c3771560b83367c6c573",
    (6, "l2a"): "d11c530978637ca420eedc40791c62bf78997dd39e1201777e2527e4bd94904e",
}
MODELS = {
    (bands, level): OnnxModel(f"model_{bands}b_{level}.onnx", sha256, mean[:bands], std[:bands])
    for (bands, level), sha256 in _SHA256.items()
    for mean, std in (_STATISTICS[level],)
}
"""(Number of bands, product level) -> network."""


@dataclass(frozen=True)
class CloudMask:
    """The networks for one set of bands as a kernel: call it with options, as the registry does."""

    name: str
    """Name in the registry."""
    bands: tuple[str, ...]
    """Order of the channels."""

    def __call__(
        self,
        weights: str | None = None,
        *,
        level: Literal["l1c", "l2a"] = "l1c",
        probabilities: bool = False,
    ) -> Kernel:
        """Return the kernel.

        Parameters
        ----------
        weights
            The network's file, if it lies elsewhere than in the installed package; its checksum is the same.
        level
            What the network was trained on: ``l1c`` top-of-atmosphere reflectance, ``l2a`` surface reflectance.
        probabilities
            True gives the probability of each class, too.

        Raises
        ------
        WeightsError
            A given file is absent or another. When the network is built: the package is not installed.
        """
        model = MODELS[len(self.bands), level]
        own = None if weights is None else resolve_weights(weights, model.sha256)
        outputs = {
            "mask": OutputSpec(
                kind="class", classes=CLASSES, range=(0, 1), description="The most probable class"
            )
        }
        if probabilities:
            outputs["probability"] = OutputSpec(
                kind="score", bands=CLASSES, dtype="uint8", description="Probability of each class"
            )
        spec = KernelSpec(
            name=self.name,
            description="ukis-csmask: clouds and cloud shadows in Sentinel-2 or Landsat, by a U-Net with"
            f" EfficientNet-B4 ({len(self.bands)} bands, {level.upper()})",
            inputs={"image": InputSpec(bands=self.bands, units="reflectance", resolution=30)},
            outputs=outputs,
            radius=None,  # nor a distance at which influence has ended: tiles are blended, as the package does
            stride=32,
            tile=TileRule(fixed=256),
            autocast=False,
            licence="Apache-2.0 (this code); networks: ukis-csmask, Apache-2.0",
            citation="Wieland, Li, Martinis 2019, https://doi.org/10.1016/j.rse.2019.05.022",
            status="parity",
        )
        return Kernel(
            spec=spec,
            build=partial(_build, self.name, model, own),
            options={"level": level, "probabilities": probabilities},
            weights=own.source if own else f"pkg://{_PACKAGE}/{model.file}",
            weights_sha256=model.sha256,
        )


def _build(name: str, model: OnnxModel, weights: Weights | None) -> OnnxSegmenter:
    from .onnx_forward import OnnxSegmenter

    file = weights or packaged_file(_PACKAGE, model.file, model.sha256, place=name, extra="csmask")
    return OnnxSegmenter(file, model.mean, model.std).eval()


CSMASK = CloudMask("csmask", _BANDS)
CSMASK_RGBNIR = CloudMask("csmask-rgbnir", _BANDS[:4])

"""Two dates to a score of change and maps of what is there before and after: the published networks, described."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from ..contract import InputSpec, KernelSpec, OutputSpec, RadiusAt, TileRule
from ..published import Published
from .binary import IMAGENET, NETS, Binary

__all__ = ["MAMBA_FCS", "MAMBA_SCD_BASE", "MAMBA_SCD_TINY", "SECOND", "Semantic"]

SECOND = ("unchanged", "water", "ground", "low vegetation", "tree", "building", "playground")
"""Labels of SECOND (Yang et al. 2022, https://arxiv.org/abs/2010.05687), which are only drawn where it changed."""


@dataclass(frozen=True)
class Semantic(Binary):
    """A bitemporal network that also maps classes: called as `Binary`, with further maps of labels.

    The function `Published.read` names gets the threshold as a keyword argument, because the maps of most networks
    mean something only where there is change.
    """

    classes: tuple[str, ...] = SECOND
    """Names of the labels 0, 1, ... of the maps."""
    maps: Mapping[str, str] = field(
        default_factory=lambda: {"before": "Class at the first date", "after": "Class at the second date"}
    )
    """Name -> meaning of each map, in the order in which the network gives them."""
    masked: bool = True
    """True where the maps have label 0 wherever there is no change."""
    layers: Mapping[str, InputSpec] = field(default_factory=dict)
    """Inputs beside the image."""

    def _network(self, cut: float) -> Published:
        return replace(self.published, options={**self.published.options, "threshold": cut})

    def _spec(self, cut: float, low: float, high: float) -> KernelSpec:
        plain = super()._spec(cut, low, high)
        where = f"; 0 where the score of change is below {cut:g}" if self.masked else ""
        maps = {
            name: OutputSpec(kind="class", classes=self.classes, description=meaning + where)
            for name, meaning in self.maps.items()
        }
        return plain.model_copy(
            update={"inputs": {**plain.inputs, **self.layers}, "outputs": {**plain.outputs, **maps}}
        )


_MAMBA_SCD = {
    "mamba-scd-tiny": {"width": 96, "depths": (2, 2, 4, 2), "classes": len(SECOND)},
    "mamba-scd-base": {"width": 128, "depths": (2, 2, 15, 2), "classes": len(SECOND)},
}


def _mamba(name: str, encoder: str) -> Semantic:
    return Semantic(
        name=name,
        about=f"MambaSCD: change and land cover before and after, by a {encoder} and scans through both dates",
        published=Published(
            f"{NETS}.changemamba:MambaSCD",
            f"{NETS}.forward:maps_of_logits",
            _MAMBA_SCD[name],
            variants=_MAMBA_SCD,
        ),
        norm=IMAGENET,
        tile=TileRule(multiple=32, default=512),
        stride=32,
        reach=RadiusAt(eps=0.25, px=96),
        citation="Chen, Song, Han, Xia, Yokoya 2024, https://arxiv.org/abs/2404.03425",
        licence="Apache-2.0 (this code); official code and weights: Apache-2.0",
    )


MAMBA_SCD_TINY = _mamba("mamba-scd-tiny", "VMamba-T")
MAMBA_SCD_BASE = _mamba("mamba-scd-base", "VMamba-B")

MAMBA_FCS = Semantic(
    name="mamba-fcs",
    about="Mamba-FCS: change and land cover before and after, by a VMamba-B and the spectra of both dates",
    published=Published(
        f"{NETS}.mamba_fcs:MambaFCS",
        f"{NETS}.forward:maps_of_logits",
        {"width": 128, "depths": (2, 2, 15, 2), "classes": len(SECOND)},
    ),
    norm=IMAGENET,
    tile=TileRule(multiple=32, default=512),
    stride=32,
    reach=None,
    citation="Wijenayake et al. 2025, https://arxiv.org/abs/2508.08232",
    licence="Apache-2.0 (this code); official code and weights: MIT",
)

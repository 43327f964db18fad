"""Two dates to a score of change and maps of what is there before and after: the published networks, described."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..contract import InputSpec, Kernel, KernelSpec, OutputSpec, RadiusAt, TileRule
from ..published import Published
from .binary import FULL, IMAGENET, NETS, RAW, Binary, Profiled

__all__ = [
    "HYSCDG",
    "MAMBA_FCS",
    "MAMBA_SCD_BASE",
    "MAMBA_SCD_TINY",
    "MAPFORMER",
    "MAPFORMER_SCD",
    "MCI",
    "SECOND",
    "Conditional",
    "Semantic",
]

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
            name: OutputSpec(
                kind="class",
                classes=self.classes,
                range=(0.0, self.scores[1] - self.scores[0]),  # of votes, see `votes_where_changed`
                description=meaning + where,
            )
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


@dataclass(frozen=True)
class _ProfiledSemantic(Profiled, Semantic):
    """Maps of classes by a network with statistics of its own for each data set."""


def _eight_bits(*rows: tuple[float, ...]) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(value / FULL for value in row) for row in rows)


_HYSCDG = {
    name: (_eight_bits(mean_a, mean_b), _eight_bits(std_a, std_b))
    for name, (mean_a, std_a, mean_b, std_b) in {
        "flair": (
            (113.969231, 118.263447, 109.203833),
            (52.343770, 46.023631, 45.373587),
            (110.491333, 116.718188, 105.585801),
            (48.846954, 42.711528, 41.647261),
        ),
        "second": (
            (113.40, 114.08, 116.45),
            (48.30, 46.27, 48.14),
            (111.07, 114.04, 118.18),
            (49.41, 47.01, 47.94),
        ),
        "hiucd": (
            (110.558246, 114.579483, 102.117656),
            (45.781694, 46.032597, 45.822763),
            (116.227830, 119.769624, 106.373077),
            (47.691569, 48.136453, 45.521357),
        ),
        "levir": (
            (114.816410, 113.900366, 97.243376),
            (55.364678, 52.023403, 47.598292),
            (88.108325, 86.239870, 73.647940),
            (40.186511, 38.756556, 36.824392),
        ),
        "s2looking": (
            (44.792358, 53.015604, 52.016244),
            (20.026240, 20.554073, 19.831728),
            (52.518009, 56.162529, 54.177058),
            (18.663814, 16.367386, 15.324433),
        ),
        "syntheworld": (
            (72.116843, 67.363153, 55.259185),
            (53.430304, 47.303968, 45.574611),
            (70.548502, 67.113177, 56.751367),
            (54.300922, 47.294327, 46.971403),
        ),
        "changen": (
            (113.868586, 116.883469, 100.237843),
            (49.643828, 44.377541, 46.810398),
            (117.544422, 119.909791, 101.986801),
            (42.120861, 36.575275, 40.471772),
        ),
    }.items()
}
"""Mean and standard deviation of 8-bit red, green and blue at the first and the second date of each data set."""

FLAIR = (
    "none",
    "building",
    "pervious surface",
    "impervious surface",
    "bare soil",
    "water",
    "coniferous",
    "deciduous",
    "brushwood",
    "vineyard",
    "herbaceous vegetation",
    "agricultural land",
    "plowed land",
    "swimming pool",
    "snow",
    "clear cut",
    "mixed",
    "ligneous",
    "greenhouse",
    "other",
)
"""Labels of FLAIR (Garioud et al. 2022, https://arxiv.org/abs/2211.12979), and 0 for none."""

HYSCDG = _ProfiledSemantic(
    name="hyscdg",
    about="DualUNet of HySCDG: change and land cover before and after, by two U-Nets of which one compares the other's",
    published=Published(f"{NETS}.hyscdg:DualUNet", f"{NETS}.hyscdg:maps_of_dual_unet"),
    norm=_HYSCDG["flair"],
    profiles={**_HYSCDG, "none": RAW},
    classes=FLAIR,
    masked=False,
    tile=TileRule(multiple=32, default=512),
    stride=32,
    reach=RadiusAt(eps=0.02, px=64),
    citation="Benidir, Gonthier, Mallet 2025, https://arxiv.org/abs/2503.15683",
    licence="Apache-2.0 (this code); official code and weights: no licence stated",
)


@dataclass(frozen=True)
class Conditional(Semantic):
    """A network that is also given a map of the classes at the first date, and pictures in Planet's numbers."""

    def __call__(
        self,
        weights: Any = None,
        *,
        threshold: float | None = None,
        low: float = 0.0,
        high: float = 10_000.0,
    ) -> Kernel:
        """Return the kernel.

        Parameters
        ----------
        weights, threshold
            As for `Binary`.
        low, high
            Values of the image that stand for a surface reflectance of 0 and 1.

        Raises
        ------
        KernelError
            As for `Binary`.
        """
        return super().__call__(weights, threshold=threshold, low=low, high=high)


DYNAMIC_EARTHNET = (
    "impervious surface",
    "agriculture",
    "forest and other vegetation",
    "wetlands",
    "soil",
    "water",
)
"""Labels of DynamicEarthNet (Toker et al. 2022, https://arxiv.org/abs/2203.12560), without snow and ice."""
_BANDS = {
    # name: (mean, standard deviation, then how the loader scales it, then how the pictures are normalised)
    "red": ((939.1118, 872.8431), (103.53, 57.375), (123.675, 58.395)),
    "green": ((862.5364, 727.9036), (116.28, 57.12), (116.28, 57.12)),
    "blue": ((649.9822, 654.9196), (123.675, 58.395), (103.53, 57.375)),
}
"""DynamicEarthNet's statistics of each band. The loader scales bands in the order blue, green, red with ImageNet's
numbers, which are those of red, green, blue; what follows takes the bands in that order."""
_PLANET = (
    tuple((m + s * (after - at) / by) / 1e4 for (m, s), (at, by), (after, _) in _BANDS.values()),
    tuple(s * final / by / 1e4 for (_, s), (_, by), (_, final) in _BANDS.values()),
)


def _mapformer(name: str, what: str, network: str, read: str, maps: Mapping[str, str]) -> Conditional:
    classes = len(DYNAMIC_EARTHNET)
    return Conditional(
        name=name,
        about=f"MapFormer: {what}, by a siamese MiT-b2 and a map of the classes at the first date",
        published=Published(
            f"{NETS}.mapformer:{network}",
            f"{NETS}.mapformer:{read}",
            {"classes": classes},
            {"classes": classes},
        ),
        norm=_PLANET,
        classes=DYNAMIC_EARTHNET,
        maps=maps,
        masked=False,
        layers={"map": InputSpec(resampling="nearest", fill=float(classes))},
        tile=TileRule(multiple=32, default=512),
        stride=32,
        reach=RadiusAt(eps=0.1, px=64),
        citation="Bernhard, Strauß, Schubert 2023, https://arxiv.org/abs/2303.17859",
        licence="Apache-2.0 (this code); official code: no licence stated, no weights published",
    )


MAPFORMER = _mapformer("mapformer", "change", "MapFormer", "score_of_mapformer", {})
MAPFORMER_SCD = _mapformer(
    "mapformer-scd",
    "change, and land cover after",
    "MapFormerSCD",
    "maps_of_mapformer",
    {"after": "Class at the second date"},
)

MCI = Semantic(
    name="mci",
    about="MCI of Change-Agent: changed roads and buildings, by a siamese MiT-b1 whose dates look at their differences",
    published=Published(
        f"{NETS}.mci:MCI",
        f"{NETS}.mci:maps_of_mci",
        # MCI_model.pth holds the three parts in entries of their own.
        entry={
            "encoder.": "encoder_dict",
            "encoder_trans.": "encoder_trans_dict",
            "decoder.": "decoder_dict",
        },
    ),
    norm=((0.39073, 0.38623, 0.32989), (0.15329, 0.14628, 0.13648)),
    classes=("none", "road", "building"),
    maps={"mask": "What appeared or vanished, by the largest of the three probabilities"},
    masked=False,
    further={
        "kinds": OutputSpec(
            kind="score",
            bands=("road", "building"),
            description="Certainty of a changed road, of a changed building",
        )
    },
    tile=TileRule(multiple=32, maximum=512, default=256),
    stride=32,
    reach=RadiusAt(eps=0.25, px=32),
    citation="Liu et al. 2024, https://arxiv.org/abs/2403.19646",
    licence="Apache-2.0 (this code); official code and weights: MIT, academic use by the README",
)

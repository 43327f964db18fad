"""Two dates to a score of change: the published bitemporal networks, described. The networks are in `nets`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from tilewright.errors import KernelError, nearest_name

from ..contract import InputSpec, Kernel, KernelSpec, OutputSpec, RadiusAt, TileRule
from ..published import Published, make_kernel

__all__ = [
    "BIT",
    "BTC_B",
    "BTC_T",
    "CDMASK",
    "CFNET",
    "CHANGEFORMER",
    "CHANGEVIT_S",
    "CHANGEVIT_T",
    "FSGNET",
    "LENET",
    "MAMBA_BCD_BASE",
    "MAMBA_BCD_SMALL",
    "MAMBA_BCD_TINY",
    "SNUNET",
    "TINYCD",
    "Binary",
    "Profiled",
]

NETS = "tilewright.kernels.nets"
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation of red, green and blue in ImageNet, for values of 0 to 1."""
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
"""Mean and standard deviation that bring values of 0 to 1 to -1 to 1."""
RAW = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
"""Leaves values of 0 to 1 as they are."""
FULL = 255.0


@dataclass(frozen=True)
class Binary:
    """A bitemporal network as a kernel: call it with weights and options, as the registry does."""

    name: str
    """Name in the registry."""
    about: str
    """What it is, in a sentence."""
    published: Published
    """The network."""
    norm: tuple[Sequence[Any], Sequence[Any]]
    """Mean and standard deviation for values of 0 to 1: a number a band, or a row of them a date."""
    tile: TileRule
    """Sides that the network takes."""
    stride: int
    """Shifts under which the network's output shifts along."""
    reach: RadiusAt | None
    """Distance at which the influence of a pixel has all but ended; measured, see the kernel's page. None where it
    never does: then tiles are blended."""
    citation: str
    """The paper."""
    licence: str
    """Of the official code and weights."""
    threshold: float = 0.5
    """Score from which the authors call it change."""
    scores: tuple[float, float] = (0.0, 1.0)
    """Least and largest score."""
    bands: tuple[str, ...] = ("red", "green", "blue")
    """Order of the channels."""
    status: Literal["parity", "trained-here", "reconstruction"] = "parity"
    """How far it is proved."""
    further: Mapping[str, OutputSpec] = field(default_factory=dict)
    """Outputs beside the score and the map of change."""
    more: Mapping[str, Any] = field(default_factory=dict)
    """Further keys of `KernelSpec`."""

    def __call__(
        self,
        weights: Any = None,
        *,
        threshold: float | None = None,
        low: float = 0.0,
        high: float = FULL,
    ) -> Kernel:
        """Return the kernel.

        Parameters
        ----------
        weights
            See `load_kernel`; None builds the network untrained.
        threshold
            Score from which the map ``change`` says change; None takes the authors'.
        low, high
            Values of the image that stand for 0 and 255 of the 8-bit pictures which the network was trained on: 0 and
            255 for such pictures, 0 and 0.3 for surface reflectance as it is usually shown.

        Raises
        ------
        KernelError
            A threshold that is no score (0 to 1 for most), or an empty range.
        """
        cut = self.threshold if threshold is None else threshold
        least, most = self.scores
        if not least <= cut <= most:
            raise KernelError(
                f"threshold={cut:g} is no score", place=self.name, remedy=f"use {least:g} to {most:g}"
            )
        if not low < high:
            raise KernelError(
                f"low={low:g}, high={high:g} is an empty range", place=self.name, remedy="use low < high"
            )
        options = {"threshold": cut, "low": low, "high": high}
        return make_kernel(self._network(cut), self._spec(cut, low, high), weights, options)

    def _network(self, cut: float) -> Published:
        """Return the network; of those whose further maps depend on it, with the threshold."""
        return self.published

    def _spec(self, cut: float, low: float, high: float) -> KernelSpec:
        mean, std = self.norm
        outputs = {
            "score": OutputSpec(
                kind="score", range=self.scores, threshold=cut, description="Certainty of change"
            ),
            "change": OutputSpec(
                kind="class",
                classes=("no-change", "change"),
                range=self.scores,
                threshold=cut,
                description=f"1 where the score is at least {cut:g}",
            ),
        }
        image = InputSpec(
            dates=2,
            bands=self.bands,
            units="8-bit" if (low, high) == (0.0, FULL) else None,
            mean=_scaled(mean, high - low, low),
            std=_scaled(std, high - low, 0.0),
        )
        return KernelSpec(
            name=self.name,
            description=self.about,
            inputs={"image": image},
            outputs={**outputs, **self.further},
            radius=None,
            radius_at=self.reach,
            stride=self.stride,
            tile=self.tile,
            licence=self.licence,
            citation=self.citation,
            status=self.status,
            **self.more,
        )


@dataclass(frozen=True)
class Profiled(Binary):
    """A network with statistics of its own for each data set that it was trained on."""

    profiles: Mapping[str, tuple[Sequence[Any], Sequence[Any]]] = field(default_factory=dict)
    """Name -> mean and standard deviation, as `norm`."""

    def __call__(
        self,
        weights: Any = None,
        *,
        threshold: float | None = None,
        low: float = 0.0,
        high: float = FULL,
        statistics: str | None = None,
    ) -> Kernel:
        """Return the kernel; the arguments are those of `Binary` and one more.

        Parameters
        ----------
        weights, threshold, low, high
            As for `Binary`.
        statistics
            Name of the data set that the weights were trained on; None takes the first.

        Raises
        ------
        KernelError
            As for `Binary`, or a data set without statistics.
        """
        name = next(iter(self.profiles)) if statistics is None else statistics
        if name not in self.profiles:
            raise KernelError(f"statistics={name}: {nearest_name(name, self.profiles)}", place=self.name)
        plain = replace(self, norm=self.profiles[name])
        kernel = Binary.__call__(plain, weights, threshold=threshold, low=low, high=high)
        return replace(kernel, options={**kernel.options, "statistics": name})


def _scaled(values: Sequence[Any], by: float, plus: float) -> tuple[Any, ...]:
    return tuple(
        _scaled(one, by, plus) if isinstance(one, Sequence) else round(one * by + plus, 10) for one in values
    )


TINYCD = Binary(
    name="tinycd",
    about="TinyCD: change of buildings in aerial pictures, by a network of 0.29 M parameters",
    published=Published(
        f"{NETS}.tinycd:TinyCD",
        f"{NETS}.forward:score_of_probability",
        # whu_best.pth was saved before the last mixing block lost a level of its names.
        rename={"_mixing_mask.2._mixing._convmix.": "_mixing_mask.2._convmix."},
    ),
    norm=IMAGENET,
    tile=TileRule(multiple=8, default=256),
    stride=8,
    reach=RadiusAt(eps=0.1, px=48),
    citation="Codegoni, Lombardi, Ferrari 2022, https://arxiv.org/abs/2207.13159",
    licence="Apache-2.0 (this code); official code and weights: no licence file, non-commercial by the README",
)

BIT = Binary(
    name="bit",
    about="BIT: change of buildings, by a ResNet-18 whose dates exchange a few semantic tokens",
    published=Published(f"{NETS}.bit:BIT", f"{NETS}.forward:score_of_logits"),
    norm=HALF,
    tile=TileRule(multiple=8, default=256),
    stride=8,
    reach=RadiusAt(eps=0.1, px=48),
    citation="Chen, Qi, Shi 2021, https://arxiv.org/abs/2103.00208",
    licence="Apache-2.0 (this code); official code and weights: no licence file, non-commercial by the README",
)

_BTC = {
    "btc-t": {"width": 96, "depths": (2, 2, 6, 2), "heads": (3, 6, 12, 24), "window": 7},
    "btc-b": {"width": 128, "depths": (2, 2, 18, 2), "heads": (4, 8, 16, 32), "window": 12},
}


def _btc(name: str, encoder: str) -> Binary:
    return Binary(
        name=name,
        about=f"BTC: change between two dates, by a siamese {encoder} and UPerNet",
        published=Published(f"{NETS}.btc:BTC", f"{NETS}.btc:score_of_btc", _BTC[name], variants=_BTC),
        norm=IMAGENET,
        tile=TileRule(multiple=32, default=256),
        stride=32,
        reach=RadiusAt(eps=0.1, px=32),
        citation="Rolih, Fučka, Wolf, Čehovin Zajc 2025, https://arxiv.org/abs/2507.03367",
        licence="Apache-2.0 (this code); official code and weights: MIT",
    )


BTC_T = _btc("btc-t", "Swin-T")
BTC_B = _btc("btc-b", "Swin-B")

_CFNET = {
    "levir-cd": (
        ((0.45028868, 0.44673658, 0.38134101), (0.34578751, 0.33841163, 0.28902323)),
        ((0.17450373, 0.16485656, 0.15314709), (0.1292925, 0.12592704, 0.11870409)),
    ),
    "sysu-cd": (
        ((0.39659573, 0.52846194, 0.46540028), (0.40202362, 0.48766126, 0.39895686)),
        ((0.20213536, 0.15811189, 0.15296702), (0.18235275, 0.15682769, 0.1543715)),
    ),
}
"""Rows for the first and the second date, in the order of the channels that the authors apply them to: blue first."""

CFNET = Profiled(
    name="cfnet",
    about="CFNet: change between two dates, looked for where the decoded contents point apart",
    published=Published(f"{NETS}.cfnet:CFNet", f"{NETS}.cfnet:score_of_cfnet"),
    norm=_CFNET["levir-cd"],
    profiles={**_CFNET, "clcd": _CFNET["levir-cd"]},
    bands=("blue", "green", "red"),
    scores=(-1.0, 1.0),
    tile=TileRule(multiple=16, default=256),
    stride=16,
    reach=RadiusAt(eps=0.01, px=64),
    citation="Wu, Dong, Meng 2025, https://arxiv.org/abs/2503.08505",
    licence="Apache-2.0 (this code); official code and weights: Apache-2.0",
)

_CHANGEVIT = {"changevit-t": {"width": 192, "heads": 6}, "changevit-s": {"width": 384, "heads": 6}}


def _changevit(name: str, encoder: str) -> Binary:
    return Binary(
        name=name,
        about=f"ChangeViT: change of buildings and land, by a plain {encoder}, a ResNet-18 and cross attention",
        published=Published(
            f"{NETS}.changevit:ChangeViT",
            f"{NETS}.changevit:score_of_changevit",
            _CHANGEVIT[name],
            variants=_CHANGEVIT,
        ),
        norm=HALF,
        tile=TileRule(fixed=256),
        stride=16,
        reach=RadiusAt(eps=0.01, px=48),
        citation="Zhu et al. 2024, https://arxiv.org/abs/2406.12847",
        licence="Apache-2.0 (this code); official code: CC-BY-NC-SA-4.0",
    )


CHANGEVIT_T = _changevit("changevit-t", "ViT-T")
CHANGEVIT_S = _changevit("changevit-s", "ViT-S")

_MAMBA_BCD = {
    "mamba-bcd-tiny": {"width": 96, "depths": (2, 2, 4, 2)},
    "mamba-bcd-small": {"width": 96, "depths": (2, 2, 15, 2)},
    "mamba-bcd-base": {"width": 128, "depths": (2, 2, 15, 2)},
}


def _mamba(name: str, encoder: str) -> Binary:
    return Binary(
        name=name,
        about=f"MambaBCD: change between two dates, by a {encoder} and scans that go through both dates",
        published=Published(
            f"{NETS}.changemamba:MambaBCD",
            f"{NETS}.forward:score_of_logits",
            _MAMBA_BCD[name],
            variants=_MAMBA_BCD,
        ),
        norm=IMAGENET,
        tile=TileRule(multiple=32, default=512),
        stride=32,
        reach=RadiusAt(eps=0.1, px=96),
        citation="Chen, Song, Han, Xia, Yokoya 2024, https://arxiv.org/abs/2404.03425",
        licence="Apache-2.0 (this code); official code and weights: Apache-2.0",
    )


MAMBA_BCD_TINY = _mamba("mamba-bcd-tiny", "VMamba-T")
MAMBA_BCD_SMALL = _mamba("mamba-bcd-small", "VMamba-S")
MAMBA_BCD_BASE = _mamba("mamba-bcd-base", "VMamba-B")

CDMASK = Binary(
    name="cdmask",
    about="CDMaskFormer: change between two dates as the masks of five queries",
    published=Published(f"{NETS}.cdmask:CDMask", f"{NETS}.cdmask:score_of_cdmask"),
    norm=IMAGENET,
    scores=(0.0, 5.0),
    tile=TileRule(multiple=32, default=256),
    stride=32,
    reach=RadiusAt(eps=0.05, px=32),
    citation="Ma et al. 2024, https://arxiv.org/abs/2406.15320",
    licence="Apache-2.0 (this code); official code: no licence stated, no weights published",
)

LENET = Binary(
    name="lenet",
    about="LENet: change between two dates, by Swin V2 streams whose pyramids exchange levels",
    published=Published(f"{NETS}.lenet:LENet", f"{NETS}.lenet:score_of_lenet"),
    norm=IMAGENET,
    tile=TileRule(fixed=256),
    stride=32,
    reach=RadiusAt(eps=0.2, px=32),
    citation="Dong et al. 2025, https://arxiv.org/abs/2501.10905",
    licence="Apache-2.0 (this code); official code: no licence stated, no weights published",
)

CHANGEFORMER = Binary(
    name="changeformer",
    about="ChangeFormer V6: change of buildings, by a siamese Mix Transformer and learned differences",
    published=Published(f"{NETS}.changeformer:ChangeFormer", f"{NETS}.changeformer:score_of_changeformer"),
    norm=HALF,
    tile=TileRule(multiple=32, default=256),
    stride=32,
    reach=RadiusAt(eps=0.1, px=32),
    citation="Bandara, Patel 2022, https://arxiv.org/abs/2201.01293",
    licence="Apache-2.0 (this code); official code: MIT, the README allows research only; weights: no licence",
)

SNUNET = Binary(
    name="snunet",
    about="SNUNet-CD/32: change between two dates of high resolution, by a nested U-Net with channel attention",
    published=Published(f"{NETS}.snunet:SNUNet", f"{NETS}.forward:score_of_logits"),
    norm=RAW,
    tile=TileRule(multiple=16, default=256),
    stride=16,
    reach=RadiusAt(eps=0.2, px=64),
    citation="Fang, Li, Shao, Li 2021, https://doi.org/10.1109/LGRS.2021.3056416",
    licence="Apache-2.0 (this code); official code and weights: no licence file",
)

FSGNET = Binary(
    name="fsgnet",
    about="FSG-Net, rebuilt from its paper: change by wavelet bands, attention in time and space, gated fusion",
    published=Published(f"{NETS}.fsgnet:FSGNet", f"{NETS}.forward:score_of_logit"),
    norm=IMAGENET,
    tile=TileRule(multiple=64, default=256),
    stride=64,
    reach=RadiusAt(eps=0.05, px=64),
    citation="Xie et al. 2025, https://arxiv.org/abs/2509.06482",
    licence="Apache-2.0 (this code); official code: a part without a licence, no weights",
    status="reconstruction",
)

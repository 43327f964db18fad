"""``smp:ARCHITECTURE/ENCODER``: any network of segmentation-models-pytorch with the user's own checkpoint.

https://github.com/qubvel-org/segmentation_models.pytorch (MIT). What the kernel takes and gives is described when it
is loaded: bands, classes and statistics are those of the user's training. docs/kernels/smp.md.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from tilewright.errors import KernelError

from ..contract import InputSpec, Kernel, KernelSpec, OutputSpec, RadiusAt, TileRule
from ..published import EXTRA, Published, build_network, make_kernel
from .smp_checkpoint import read_checkpoint

__all__ = ["RGB", "Segmenter", "smp"]

_NETWORK = "tilewright.kernels.segment.smp_network"
RGB = ("red", "green", "blue")


@dataclass(frozen=True)
class Segmenter:
    """What a network of segmentation-models-pytorch takes and gives, for its description."""

    architecture: str
    """Name of the decoder in small letters."""
    encoder: str
    """Name of the encoder."""
    bands: int | tuple[str, ...]
    """Names of the channels, or their number."""
    classes: tuple[str, ...]
    """Names of the classes."""
    stride: int | None
    """Stride of the deepest level, by which the network repeats; None finds it out by building the network."""
    mean: Sequence[float] | None = None
    """Subtracted from values of 0 to 1; None subtracts nothing."""
    std: Sequence[float] | None = None
    """Divided by after it."""
    low: float = 0.0
    """Value of the image that stands for 0."""
    high: float = 255.0
    """Value of the image that stands for 1."""
    task: Literal["classes", "multilabel"] = "classes"
    """Whether the classes exclude each other."""
    threshold: float = 0.5
    """Score from which a single class is there."""
    probabilities: bool = False
    """Whether the probabilities of the classes are given beside the map."""
    reach: int | None = None
    """Distance in pixels at which influence has fallen to ``eps``; None blends the tiles."""
    eps: float = 0.01
    """Goes with ``reach``."""

    def check(self, place: str) -> None:
        """Raise `KernelError` for options that contradict themselves."""
        if not self.low < self.high:
            raise KernelError(
                f"low={self.low:g}, high={self.high:g} is an empty range",
                place=place,
                remedy="use low < high",
            )
        if not 0 <= self.threshold <= 1:
            raise KernelError(f"threshold={self.threshold:g} is no score", place=place, remedy="use 0 to 1")
        if len(set(self.classes)) < len(self.classes) or not self.classes:
            raise KernelError(
                f"classes={list(self.classes)}", place=place, remedy="give each a name of its own"
            )
        for name, given in (("mean", self.mean), ("std", self.std)):
            if given is not None and len(given) != self.channels:
                raise KernelError(
                    f"{name} has {len(given)} numbers, there are {self.channels} bands", place=place
                )
        if (self.mean is None) != (self.std is None):
            raise KernelError("mean and std go together", place=place)
        if self.std is not None and min(self.std) <= 0:
            raise KernelError(f"std={list(self.std)} is not above 0", place=place)

    @property
    def channels(self) -> int:
        """Number of bands."""
        return self.bands if isinstance(self.bands, int) else len(self.bands)

    @property
    def kind(self) -> Literal["classes", "scores"]:
        """How the logits are read: by softmax, or each by itself."""
        return "classes" if self.task == "classes" and len(self.classes) > 1 else "scores"

    def published(self, arguments: dict[str, Any], prefix: str) -> Published:
        """Return the network for `make_kernel`."""
        return Published(
            f"{_NETWORK}:make_network",
            f"{_NETWORK}:outputs_of_logits",
            {
                "architecture": self.architecture,
                "encoder": self.encoder,
                "in_channels": self.channels,
                "classes": len(self.classes),
                "stride": self.stride,
                "arguments": arguments,
            },
            {"task": self.kind},
            rename={prefix: ""} if prefix else None,
        )

    def spec(self, name: str, about: str, **more: Any) -> KernelSpec:
        """Return the description."""
        size = self.high - self.low
        mean = self.mean or (0.0,) * self.channels
        std = self.std or (1.0,) * self.channels
        image = InputSpec(
            bands=self.bands,
            units="8-bit" if (self.low, self.high) == (0.0, 255.0) else None,
            mean=tuple(value * size + self.low for value in mean),
            std=tuple(value * size for value in std),
        )
        stride = self.stride or 1
        return KernelSpec(
            name=name,
            description=about,
            inputs={"image": image},
            outputs=self._outputs(),
            radius=None,
            radius_at=None if self.reach is None else RadiusAt(eps=self.eps, px=self.reach),
            stride=stride,
            tile=TileRule(multiple=stride, default=512),
            **more,
        )

    def _outputs(self) -> dict[str, OutputSpec]:
        each = OutputSpec(kind="score", bands=self.classes, dtype="uint8", description="Score of each class")
        if self.kind == "classes":
            votes = OutputSpec(
                kind="class", classes=self.classes, range=(0, 1), description="The most probable class"
            )
            return {"classes": votes, **({"probability": each} if self.probabilities else {})}
        if self.task == "multilabel":
            return {"score": each}
        (name,) = self.classes
        cut = self.threshold
        return {
            "score": OutputSpec(kind="score", threshold=cut, description=f"Certainty of {name}"),
            "classes": OutputSpec(
                kind="class",
                classes=("other", name),
                range=(0, 1),
                threshold=cut,
                description=f"1 where the score is at least {cut:g}",
            ),
        }


def smp(
    model: str,
    weights: Any = None,
    *,
    bands: int | list[str] | None = None,
    classes: int | list[str] | None = None,
    mean: list[float] | None = None,
    std: list[float] | None = None,
    low: float = 0.0,
    high: float = 255.0,
    task: Literal["classes", "multilabel"] = "classes",
    threshold: float = 0.5,
    probabilities: bool = False,
    reach: int | None = None,
    eps: float = 0.01,
    arguments: dict[str, Any] | None = None,
    prefix: str = "",
) -> Kernel:
    """Any network of segmentation-models-pytorch: ARCHITECTURE/ENCODER, such as unet/resnet34.

    Parameters
    ----------
    model
        Decoder (``unet``, ``deeplabv3plus``, ``fpn``, ...) and encoder (``resnet34``, ``tu-convnext_tiny``, ...).
    weights
        The ``state_dict`` (see `load_kernel`), or the folder or hub repository that ``save_pretrained`` made, whose
        ``config.json`` then says how the network was built. None leaves it untrained; no encoder is ever pretrained.
    bands
        Names or number of the channels, in the order of the training; red, green, blue unless given.
    classes
        Names or number of the classes.
    mean, std
        Statistics for values of 0 to 1: a number a band. None takes those of the encoder's ImageNet weights for three
        bands, and none for others.
    low, high
        Values of the image that stand for 0 and 1 before ``mean`` and ``std``: 0 and 255 for 8-bit pictures.
    task
        ``classes`` exclude each other (softmax); ``multilabel`` gives each its own score (sigmoid). A single class is
        a score, and a map of where it is at least ``threshold``.
    threshold
        See ``task``.
    probabilities
        True gives the probabilities beside the map of classes.
    reach
        Distance in pixels at which the influence of a pixel has fallen to ``eps``, for a cut without blending; see
        `tilewright.kernels.segment.reach.measure_reach`. None blends the tiles.
    eps
        Goes with ``reach``.
    arguments
        Further arguments of the network's class in segmentation-models-pytorch, such as ``{encoder_depth: 4}``.
    prefix
        What stands before the official names in the checkpoint, such as ``model.`` of a Lightning module.

    Raises
    ------
    KernelError
        An unknown architecture, encoder or argument, options that contradict themselves or the weights.
    WeightsError
        The weights are absent. When the network is built: their tensors do not fit.
    """
    place = f"smp:{model}"
    architecture, slash, encoder = model.partition("/")
    architecture = architecture.lower()
    if not slash or not architecture or not encoder:
        raise KernelError(
            "not of the form smp:ARCHITECTURE/ENCODER", place=place, remedy="such as smp:unet/resnet34"
        )
    found = read_checkpoint(weights)
    found.check(architecture, encoder)
    taken = _bands(bands, found.in_channels, place)
    names = _classes(classes, found.classes, place)
    if mean is None and std is None and taken == RGB:
        mean, std = map(list, _library().encoder_statistics(encoder))
    given = Segmenter(
        architecture,
        encoder,
        taken,
        names,
        None,
        mean,
        std,
        low,
        high,
        task,
        threshold,
        probabilities,
        reach,
        eps,
    )
    given.check(place)
    further = {**found.arguments, **(arguments or {})}
    given = replace(given, stride=_probe(given, further, place))
    options = {
        "bands": taken, "classes": names, "mean": mean, "std": std, "low": low, "high": high, "task": task,
        "threshold": threshold, "probabilities": probabilities, "arguments": further, "prefix": prefix,
    }  # fmt: skip
    spec = given.spec(
        place,
        f"{architecture} with {encoder} of segmentation-models-pytorch: {', '.join(names)}",
        licence="Apache-2.0 (this code); segmentation-models-pytorch: MIT; weights: the user's",
        citation="Iakubovskii 2019, https://github.com/qubvel-org/segmentation_models.pytorch",
        status="user",
    )
    return make_kernel(given.published(further, prefix), spec, found.weights, options)


def _library() -> Any:
    try:
        return importlib.import_module(_NETWORK)
    except ImportError as error:
        raise KernelError(
            f"it is built of a library that cannot be imported: {error}",
            place="smp",
            remedy=f"install 'tilewright[{EXTRA}]'",
        ) from error


def _probe(given: Segmenter, arguments: dict[str, Any], place: str) -> int:
    """Return the stride of the network, built for a moment without filling its parameters."""
    _library()
    network: Any = build_network(given.published(arguments, ""), place, fill=False)
    return int(network.encoder.output_stride)


def _bands(bands: int | list[str] | None, found: int | None, place: str) -> int | tuple[str, ...]:
    taken: int | tuple[str, ...]
    if bands is None:
        taken = RGB if found in (None, 3) else found or 0
    else:
        taken = bands if isinstance(bands, int) else tuple(bands)
    count = taken if isinstance(taken, int) else len(taken)
    if count < 1 or (found is not None and count != found):
        raise KernelError(
            f"bands={bands!r}" + (f", the weights take {found}" if found else ""),
            place=place,
            remedy="name the bands in the order of the training",
        )
    return taken


def _classes(classes: int | list[str] | None, found: int | None, place: str) -> tuple[str, ...]:
    if classes is None and found is None:
        raise KernelError(
            "nothing says which classes there are",
            place=place,
            remedy="name them: classes=[background, water]",
        )
    given: int | list[str] = classes if classes is not None else found or 0
    names = tuple(str(i) for i in range(given)) if isinstance(given, int) else tuple(given)
    if not names or (found is not None and len(names) != found):
        raise KernelError(
            f"classes={classes!r}" + (f", the weights have {found}" if found else ""),
            place=place,
            remedy="name the classes in the order of the training",
        )
    return names

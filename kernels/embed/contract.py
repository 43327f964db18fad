"""One contract for all models that put pictures and texts into one space of vectors.

A `Profile` describes such a model: which network, how its towers want their pictures, how long the vectors are. Called
as a kernel it is mapped over tiles and gives a vector each; `Profile.embedder` gives the same network with its text
side, for searching what the kernel has embedded. Every vector that leaves here has length 1, so that a scalar product
is a cosine, whichever model it is of.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

from tilewright.errors import KernelError, nearest_name

from ..contract import InputSpec, Kernel, KernelSpec, OutputSpec, TileRule
from ..load import kernel_entry
from ..published import Published, Rename, make_kernel

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "OUTPUT",
    "EmbedderNetwork",
    "ImageTextEmbedder",
    "Profile",
    "Tower",
    "load_embedder",
    "profile_of",
]

OUTPUT = "embedding"
"""Name of the output of every embedding kernel."""

_BATCH = 64
"""Pictures that `ImageTextEmbedder` gives the network at a time."""


class EmbedderNetwork(Protocol):
    """What a network offers, beside being an ``nn.Module`` whose ``state_dict`` has the official names.

    What is not in the checkpoint (a text encoder of another package) must not be in the ``state_dict`` either: weights
    are loaded by name and must name everything. A network without texts or without a dense map leaves that method out
    and says so in its `Profile`.
    """

    def image_vectors(self, pixels: Tensor, tower: str = "image") -> Tensor:
        """Return the official vectors ``[N, D]``, of any length, for normalised pixels ``[N, C, H, W]``."""
        ...

    def text_vectors(self, texts: Sequence[str]) -> Tensor:
        """Return the official vectors ``[n, D]``, of any length; the network tokenises by itself."""
        ...

    def dense_vectors(self, pixels: Tensor, tower: str = "image") -> Tensor:
        """Return a vector for each cell of the tower's inner grid, ``[N, D, h, w]``, of any length."""
        ...


@dataclass(frozen=True)
class Tower:
    """How one of the towers wants its pictures."""

    input: InputSpec
    """Bands, units, mean and standard deviation, with one date."""
    side: int
    """Side in pixels of what the tower sees; others are resized to it, unless `resize` is ``none``."""
    span: tuple[float, float] | None = None
    """Values of the input between which pictures lie, such as (0, 255), which can be exchanged (``low``, ``high``).
    None for physical units that are always the same."""
    clip: bool = True
    """True where values are clipped to `span`, as those of 8-bit pictures are."""
    resize: Literal["bicubic", "bilinear", "corners", "none"] = "bicubic"
    """Interpolation, with the filter widened where pixels are merged (torchvision's ``antialias``); ``corners`` is
    bilinear between the centres of the corner pixels, never widened (kornia's default). With ``none`` the tower sees
    pictures of any size as they are."""
    fit: Literal["crop", "squash"] = "crop"
    """What becomes of pictures that are not square: the shorter side is fitted and the middle cut out, or both are
    fitted. Tiles are square."""

    def between(self, low: float | None, high: float | None, place: str) -> Tower:
        """Return the tower for pictures whose values lie between ``low`` and ``high`` instead of `span`.

        Raises `KernelError` where the tower takes physical units, or the range is empty.
        """
        if low is None and high is None:
            return self
        if self.span is None:
            raise KernelError(
                f"takes {self.input.units or 'physical units'}", place=place, remedy="leave low and high out"
            )
        old, new = self.span, (self.span[0] if low is None else low, self.span[1] if high is None else high)
        if not new[0] < new[1]:
            raise KernelError(
                f"low={new[0]:g}, high={new[1]:g} is an empty range", place=place, remedy="use low < high"
            )
        if new == old:
            return self
        factor = (new[1] - new[0]) / (old[1] - old[0])
        changed: dict[str, Any] = {"units": None}
        if self.input.mean is not None and self.input.std is not None:
            means, stds = (
                cast("tuple[float, ...]", self.input.mean),
                cast("tuple[float, ...]", self.input.std),
            )
            changed["mean"] = tuple(round((m - old[0]) * factor + new[0], 10) for m in means)
            changed["std"] = tuple(round(s * factor, 10) for s in stds)
        return replace(self, input=self.input.model_copy(update=changed), span=new)

    def normalised(self, pixels: Tensor) -> Tensor:
        """Return values ``[N, C, H, W]`` in the units of the input as the engine gives them to a kernel.

        NaN, the mark of a pixel that was not measured, becomes the fill value.
        """
        import torch

        mean, std = self._statistics(pixels)
        values = (pixels - mean) / std
        return torch.where(torch.isnan(values), values.new_tensor(self.input.fill), values)

    def fitted(self, pixels: Tensor) -> Tensor:
        """Return normalised pixels ``[N, C, H, W]`` as the tower sees them, clipped to `span` where it clips."""
        if self.resize != "none":
            pixels = self._resized(pixels, self.resize)
        if self.span is None or not self.clip:
            return pixels
        mean, std = self._statistics(pixels)
        return pixels.clamp((self.span[0] - mean) / std, (self.span[1] - mean) / std)

    def _resized(self, pixels: Tensor, mode: str) -> Tensor:
        import torch

        rows, cols = pixels.shape[2:]
        short = min(rows, cols)
        size = [self.side, self.side]
        if self.fit == "crop" and rows != cols:
            size = [self.side if n == short else int(self.side * n / short) for n in (rows, cols)]
        if size != [rows, cols]:
            corners = mode == "corners"
            pixels = torch.nn.functional.interpolate(
                pixels,
                size=size,
                mode="bilinear" if corners else mode,
                align_corners=corners,
                antialias=not corners,
            )
        top, left = (round((n - self.side) / 2) for n in size)
        return pixels[:, :, top : top + self.side, left : left + self.side]

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation ``[C, 1, 1]``; 0 and 1 where the input has none."""
        bands = self.input.band_count
        mean = [0.0] * bands if self.input.mean is None else self.input.mean
        std = [1.0] * bands if self.input.std is None else self.input.std
        return like.new_tensor(mean)[:, None, None], like.new_tensor(std)[:, None, None]


@dataclass(frozen=True)
class Profile:
    """A model that embeds pictures, and mostly texts: call it for its kernel, or ask for its `embedder`."""

    name: str
    """Name in the registry."""
    description: str
    """What it is, in a sentence."""
    network: str
    """Where the class of the network is, ``package.module:Class``; see `EmbedderNetwork`."""
    towers: Mapping[str, Tower]
    """Name of the input -> tower. The first one is the kernel's unless another is asked for."""
    dim: int
    """Length of the vectors."""
    citation: str
    """The paper."""
    licence: str
    """Of code and weights."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of the network's class."""
    temperature: float = 100.0
    """Factor (the logit scale) with which cosines go into a softmax over texts."""
    prompt: str = "{}"
    """Sentence into which the name of a class is put where texts are classes."""
    text: bool = True
    """True where it embeds texts."""
    dense: bool = False
    """True where it has a map of vectors."""
    extra: str = "search"
    """Extra of tilewright that brings the libraries of the network."""
    tokenizer: str | None = None
    """Where the ``tokenizer.json`` of the text side is, if a network that needs one finds it without being told."""
    rename: Rename | None = None
    """As in `Published`."""
    entry: str | Mapping[str, str] | None = None
    """As in `Published`."""
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """As in `Published`."""
    weights: str | None = None
    """Weights that are taken when none are given, ``pkg://package/path``; None where there are none."""
    weights_sha256: str | None = None
    """Their checksum."""
    status: Literal["parity", "trained-here", "reconstruction"] = "parity"
    """How far it is proved."""

    def __call__(
        self,
        weights: Any = None,
        *,
        tower: str | None = None,
        low: float | None = None,
        high: float | None = None,
    ) -> Kernel:
        """Return the kernel that gives a vector of length 1 for each tile.

        Parameters
        ----------
        weights
            See `load_kernel`; None takes those that are shipped, or builds the network untrained.
        tower
            Which of the towers, where there are several; None takes the first.
        low, high
            Values of the image that stand for the ends of the tower's range, such as 0 and 255 of an 8-bit picture: 0
            and 0.3 for surface reflectance as it is usually shown. Values beyond them are clipped, unless the tower
            takes numbers of a unit, such as reflectance: then they say what stands for 0 and 1 of it.

        Raises
        ------
        KernelError
            An unknown tower, an empty range, or a range for a tower of physical units.
        """
        name = self.tower_name(tower)
        chosen = self.towers[name].between(low, high, self.name)
        options = {"tower": name, "low": low, "high": high}
        return make_kernel(
            self.published(name, chosen), self.spec(name, chosen), self._given(weights), options
        )

    def embedder(
        self,
        weights: Any = None,
        *,
        low: float | None = None,
        high: float | None = None,
        tokenizer: str | None = None,
    ) -> ImageTextEmbedder:
        """Return the network with all its towers and its text side, built at once.

        Parameters
        ----------
        weights, low, high
            As for the kernel.
        tokenizer
            Where the ``tokenizer.json`` is, a path or ``hf://``, for models whose text side needs one.

        Raises
        ------
        KernelError
            As for the kernel, or a tokenizer for a model that has its own.
        WeightsError
            The weights are absent or do not fit.
        """
        ranged = any(tower.span is not None for tower in self.towers.values())
        towers = {
            name: tower if ranged and tower.span is None else tower.between(low, high, self.name)
            for name, tower in self.towers.items()
        }
        first = next(iter(towers))
        kernel = make_kernel(
            self.published(first, towers[first]), self.spec(first, towers[first]), self._given(weights)
        )
        made = ImageTextEmbedder(self, towers, kernel)
        if tokenizer is not None and not hasattr(made.network, "tokenizer"):
            raise KernelError("has a tokenizer of its own", place=self.name, remedy="leave tokenizer out")
        if tokenizer is not None or self.tokenizer is not None:
            made.network.tokenizer = tokenizer or self.tokenizer
        return made

    def tower_name(self, asked: str | None) -> str:
        """Return the name of the tower that is asked for, of the first for None; raises `KernelError`."""
        if asked is None:
            return next(iter(self.towers))
        if asked not in self.towers:
            raise KernelError(f"unknown tower {asked!r}; {nearest_name(asked, self.towers)}", place=self.name)
        return asked

    def published(self, name: str, tower: Tower) -> Published:
        """Return the network as the machinery of published networks wants it."""
        return Published(
            self.network,
            "tilewright.kernels.embed.forward:vectors_of_tiles",
            self.arguments,
            {"name": name, "tower": tower},
            self.rename,
            self.entry,
            self.variants,
            self.extra,
        )

    def spec(self, name: str, tower: Tower) -> KernelSpec:
        """Return the description of the kernel of one tower."""
        return KernelSpec(
            name=self.name,
            description=self.description,
            inputs={name: tower.input},
            outputs={
                OUTPUT: OutputSpec(
                    kind="vector",
                    bands=self.dim,
                    description=f"Vector of length 1 in the space of {self.name}",
                )
            },
            radius=0,
            tile=TileRule(default=tower.side),
            licence=self.licence,
            citation=self.citation,
            status=self.status,
        )

    def _given(self, weights: Any) -> Any:
        if weights is None and self.weights is not None:
            return {"ref": self.weights, "sha256": self.weights_sha256}
        return weights


class ImageTextEmbedder:
    """A network with its towers and its text side: pixels and texts in, vectors of length 1 out, on the CPU or GPU.

    Made by `Profile.embedder` and `load_embedder`. Vectors are float32 on the device of the network.
    """

    def __init__(self, profile: Profile, towers: Mapping[str, Tower], kernel: Kernel) -> None:
        import torch

        self.profile = profile
        """What it is."""
        self.towers = dict(towers)
        """Name -> tower, with the ranges of values that were asked for."""
        self.weights = kernel.weights
        """Where the weights came from; None where it is untrained."""
        self.weights_sha256 = kernel.weights_sha256
        """Checksum of the weights."""
        self.untrained = kernel.untrained
        """True where the numbers are random: for tests and timing."""
        self.network: Any = kernel.module
        """The network, an `EmbedderNetwork`."""
        self.device = torch.device("cpu")
        """Where it computes; see `to`."""

    def to(self, device: Any) -> ImageTextEmbedder:
        """Move the network to a device, and return the embedder itself."""
        import torch

        self.device = torch.device(device)
        self.network.to(self.device)
        return self

    def embed_images(self, pixels: Tensor, tower: str = "image") -> Tensor:
        """Return the vectors ``[N, D]`` of pictures.

        Parameters
        ----------
        pixels
            ``[N, C, H, W]`` in the units of the tower's input, any size; NaN where nothing was measured.
        tower
            Which tower.

        Raises
        ------
        KernelError
            No such tower, or another number of bands.
        """
        return self._images(pixels, tower, self.network.image_vectors)

    def embed_dense(self, pixels: Tensor, tower: str = "image") -> Tensor:
        """Return the maps of vectors ``[N, D, h, w]``; arguments and errors as for `embed_images`."""
        if not self.profile.dense:
            raise KernelError(
                "has no map of vectors", place=self.profile.name, remedy="use embed_images on small tiles"
            )
        return self._images(pixels, tower, self.network.dense_vectors)

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Return the vectors ``[n, D]`` of texts; raises `KernelError` where the model has no text side."""
        import torch

        if not self.profile.text:
            raise KernelError("embeds no texts", place=self.profile.name, remedy="search by a picture")
        if isinstance(texts, str):
            raise KernelError("one text", place=self.profile.name, remedy="give a list of texts")
        with torch.inference_mode():
            return unit(self.network.text_vectors(list(texts)))

    def _images(self, pixels: Tensor, tower: str, embed: Any) -> Tensor:
        import torch

        chosen = self.towers[self.profile.tower_name(tower)]
        if pixels.ndim != 4 or pixels.shape[1] != chosen.input.band_count:
            raise KernelError(
                f"pixels of shape {tuple(pixels.shape)}, expected [N, {chosen.input.band_count}, H, W]",
                place=f"{self.profile.name}, tower {tower}",
            )
        found = []
        with torch.inference_mode():
            for part in pixels.split(_BATCH):
                seen = chosen.fitted(chosen.normalised(part.to(self.device, torch.float32)))
                found.append(unit(embed(seen, tower=tower)))
        return torch.cat(found) if found else torch.empty(0, self.profile.dim, device=self.device)


def unit(vectors: Tensor) -> Tensor:
    """Return vectors of length 1 along axis 1, float32; a vector of zeros stays one."""
    import torch

    return torch.nn.functional.normalize(vectors.float(), dim=1)


def load_embedder(name: str, weights: Any = None, **options: Any) -> ImageTextEmbedder:
    """Return the embedder that is registered as ``name``, as `load_kernel` returns its kernel.

    Parameters
    ----------
    name
        Name of an embedding kernel.
    weights
        See `load_kernel`; None takes those that are shipped, or builds the network untrained.
    options
        As `Profile.embedder` takes them.

    Raises
    ------
    KernelError
        No such kernel, one that embeds nothing, or an unknown option.
    WeightsError
        The weights are absent or others.
    """
    profile = profile_of(name)
    known = {"low": float, "high": float, "tokenizer": str}
    for option, value in options.items():
        if option not in known:
            raise KernelError(f"unknown option {option!r}; {nearest_name(option, known)}", place=name)
        try:
            options[option] = None if value is None else known[option](value)
        except (TypeError, ValueError) as error:
            raise KernelError(f"{option}={value!r} is no number", place=name) from error
    return profile.embedder(weights, **options)


def profile_of(name: str) -> Profile:
    """Return the `Profile` that is registered as ``name``; raises `KernelError` where it embeds nothing."""
    entry = kernel_entry(name)
    if entry.problem is not None:
        raise KernelError(entry.problem, place=name)
    module, _, attribute = entry.target.partition(":")
    profile = getattr(importlib.import_module(module), attribute)
    if not isinstance(profile, Profile):
        raise KernelError("embeds neither pictures nor texts", place=name, remedy="name an embedding kernel")
    return profile

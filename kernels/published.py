"""Published networks as kernels: the authors' names and numbers inside, tilewright's contract around them.

A `Published` says which network it is, how its raw output becomes the kernel's outputs, and how the names in a
checkpoint become those of the network. The network itself is a plain torch module in `tilewright.kernels.nets` whose
``state_dict`` has the official names and whose forward returns the official raw output: that is what
`Kernel.module` gives, and what is compared with the official implementation.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from tilewright.errors import KernelError, WeightsError

from .contract import Kernel, KernelSpec
from .weights import Weights, load_into, load_state_dict, resolve_weights

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["Published", "build_network", "make_kernel"]

EXTRA = "models"
"""Extra of tilewright that brings the libraries which the networks are built of."""

Rename = Mapping[str, str] | Callable[[str], str | None]


@dataclass(frozen=True)
class Published:
    """A network as it was published: one architecture, with the names of one set of checkpoints."""

    network: str
    """Where its class is, ``package.module:Class``; imported when it is built, so that a list of kernels needs no
    torch."""
    read: str
    """Where the function is that calls it, ``package.module:function``: takes the network and the named inputs
    ``[N, T, C, H, W]``, returns the named outputs ``[N, C, H, W]``."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of the class."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of the function."""
    rename: Rename | None = None
    """Names in checkpoints that differ from those of the network; see `load_into`."""
    entry: str | Mapping[str, str] | None = None
    """Entry of a training checkpoint that holds the tensors; prefix -> entry where parts of the network lie in entries
    of their own; None takes the usual ones."""
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Name -> arguments of the other sizes: a checkpoint that does not fit is compared with them."""
    extra: str = EXTRA
    """Extra of tilewright that brings the libraries of the network."""


def make_kernel(
    published: Published, spec: KernelSpec, weights: Any = None, options: Mapping[str, Any] | None = None
) -> Kernel:
    """Return the kernel of a published network.

    Parameters
    ----------
    published
        The network.
    spec
        The description.
    weights
        None leaves it untrained, with the same random numbers each time: for parity and for timing, and refused
        over rasters unless asked for. Else a path, ``hf://owner/name@revision``, ``pkg://``, a mapping of ``ref`` and
        ``sha256``, or the ``state_dict`` itself; a tuple of files whose tensors belong together.
    options
        What the kernel was asked for, for the fingerprint.

    Raises
    ------
    WeightsError
        The file is absent or another; when the network is built: its tensors do not fit.
    """
    given: tuple[Weights, ...] | dict[str, Tensor] | None = None
    source: str | None = None
    checksum: str | None = None
    if isinstance(weights, Mapping) and not {"ref", "sha256"} >= set(weights):
        given = dict(weights)
        source, checksum = "a state_dict", _checksum(given)
    elif weights is not None:
        given = tuple(resolve_weights(one) for one in (weights if isinstance(weights, tuple) else (weights,)))
        source, checksum = " + ".join(one.source for one in given), _of_all([one.sha256 for one in given])
    return Kernel(
        spec=spec,
        build=partial(_build, published, spec.name, given),
        options=dict(options or {}),
        weights=source,
        weights_sha256=checksum,
        untrained=given is None,
    )


def _of_all(checksums: list[str]) -> str:
    """The checksum of a file itself, or that of the checksums of several."""
    return checksums[0] if len(checksums) == 1 else hashlib.sha256("".join(checksums).encode()).hexdigest()


def _checksum(state: Mapping[str, Tensor]) -> str:
    hasher = hashlib.sha256()
    for name in sorted(state):
        array = state[name].detach().cpu().contiguous().numpy()
        hasher.update(f"{name} {array.dtype} {array.shape}\0".encode())
        hasher.update(array.tobytes())
    return hasher.hexdigest()


def _import(place: str, kernel: str, extra: str) -> Any:
    module, _, name = place.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except ImportError as error:
        raise KernelError(
            f"it is built of a library that cannot be imported: {error}",
            place=f"kernel {kernel}",
            remedy=f"install 'tilewright[{extra}]'",
        ) from error


def build_network(published: Published, kernel: str, *, fill: bool = True) -> nn.Module:
    """Return the untrained network; its random numbers are the same each time, and nobody else's are disturbed.

    Without ``fill`` its parameters hold anything: for networks whose weights are loaded at once.
    """
    import torch

    from .nets.forward import Unfilled

    cls = _import(published.network, kernel, published.extra)
    with torch.random.fork_rng(devices=()), nullcontext() if fill else Unfilled():
        torch.manual_seed(0)
        network: nn.Module = cls(**published.arguments)
    return network.eval().requires_grad_(False)


def _build(
    published: Published, kernel: str, given: tuple[Weights, ...] | Mapping[str, Tensor] | None
) -> nn.Module:
    from .nets.forward import PublishedForward

    network = build_network(published, kernel, fill=given is None)
    if given is not None:
        files = given if isinstance(given, tuple) else ()
        place = " + ".join(one.source for one in files) or "state_dict"
        state = given if not isinstance(given, tuple) else _read(files, published.entry)
        load_into(network, state, published.rename, place=place, closest=partial(_closest, published, kernel))
    read = _import(published.read, kernel, published.extra)
    return PublishedForward(network, partial(read, **published.options)).eval()


def _read(files: tuple[Weights, ...], entry: str | Mapping[str, str] | None) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for file in files:
        tensors = load_state_dict(file, key=entry)
        twice = sorted(set(state) & set(tensors))
        if twice:
            raise WeightsError(
                f"{len(twice)} of its tensors are in another file too: {', '.join(twice[:5])}",
                place=file.source,
                remedy="give each part of the network once",
            )
        state |= tensors
    return state


def _closest(published: Published, kernel: str, given: Mapping[str, tuple[int, ...]]) -> str | None:
    """Return the name of the variant that has most of ``given`` (name -> shape), None where it is this one."""
    scores = {
        name: _fitting(build_network(replace(published, arguments=arguments), name, fill=False), given)
        for name, arguments in {kernel: published.arguments, **published.variants}.items()
    }
    best = max(scores, key=lambda name: scores[name])
    return None if best == kernel or scores[best] == scores[kernel] else best


def _fitting(network: nn.Module, given: Mapping[str, tuple[int, ...]]) -> int:
    own: Iterable[tuple[str, Tensor]] = network.state_dict().items()
    return sum(given.get(name) == tuple(tensor.shape) for name, tensor in own)

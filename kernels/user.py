"""A user's kernel: `kernel` turns a function or a torch module and ten lines of description into a `Kernel`."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

from tilewright.errors import KernelError

from .contract import Kernel, KernelSpec

if TYPE_CHECKING:
    from torch import nn

    from .weights import Weights

__all__ = ["Held", "ModuleClass", "kernel", "with_weights"]

Fit = Callable[[Mapping[str, Any]], Mapping[str, Any]]


@dataclass(frozen=True)
class Held:
    """Builds a forward that exists already: a function, or a module with or without other weights."""

    function: Callable[..., Any]
    """The forward."""
    weights: Weights | None = None
    """Loaded into a copy of the module; None leaves it as it is."""

    def __call__(self) -> Callable[..., Any]:
        """Return the forward."""
        if self.weights is None:
            return self.function
        return _loaded(copy.deepcopy(cast("nn.Module", self.function)), self.weights)


@dataclass(frozen=True)
class ModuleClass:
    """Builds a module from its class at first use, in eval mode and without gradients."""

    cls: Callable[..., nn.Module]
    """The class."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of its constructor."""
    weights: Weights | None = None
    """Loaded after building; None leaves the module as its constructor made it."""

    def __call__(self) -> nn.Module:
        """Return a new module."""
        module = self.cls(**self.options).eval().requires_grad_(False)
        return module if self.weights is None else _loaded(module, self.weights)


def _loaded(module: nn.Module, weights: Weights) -> nn.Module:
    from .weights import load_into, load_state_dict

    load_into(module, load_state_dict(weights), place=weights.source)
    return module


def kernel(
    *, name: str | None = None, fit: Fit | None = None, options: Mapping[str, Any] | None = None, **keys: Any
) -> Callable[[Any], Kernel]:
    """Describe a function or a torch module so that tilewright can map it over rasters.

    Parameters
    ----------
    name
        Name in results; the function's or class's own unless given.
    fit
        With ``statistics``: takes name -> float64 ``[n, T, C]`` of sampled valid pixels, and returns the numbers
        that the forward finds in ``context.statistics``.
    options
        For a module class: keyword arguments of its constructor.
    keys
        The keys of `KernelSpec`: ``inputs``, ``outputs``, ``radius``, ``stride``, ``scale``, ``boundary``,
        ``tile``, ``statistics``, ``seed``, ``licence``, ``citation`` and the others.

    Returns
    -------
    callable
        Decorates a function, an ``nn.Module`` subclass (built at first use, then in eval mode) or a module
        (taken as it is), and returns a `Kernel`, which can still be called plainly.

    Raises
    ------
    KernelError
        Unknown key (with the nearest), or a description that contradicts itself.

    Examples
    --------
    >>> @kernel(inputs={"image": {"bands": 2}}, radius=0, outputs={"sum": {"kind": "value"}})
    ... def add(x):  # x is [N, C, H, W]
    ...     return x.sum(dim=1, keepdim=True)
    >>> add.spec.name
    'add'
    """

    def decorate(target: Any) -> Kernel:
        if isinstance(target, Kernel) or not callable(target):
            raise KernelError(
                f"a {type(target).__name__} cannot be made a kernel",
                place="tilewright.kernel",
                remedy="decorate a function, an nn.Module class or a module",
            )
        own = getattr(target, "__name__", type(target).__name__)
        described = {"name": name or own, "description": _summary(target), **keys}
        spec = KernelSpec.parse(described, place=f"kernel {name or own}")
        if inspect.isclass(target):
            return Kernel(
                spec,
                ModuleClass(cast("Callable[..., nn.Module]", target), options or {}),
                fit,
                options=options or {},
            )
        if options:
            raise KernelError("options are for a module class", place=spec.name)
        return Kernel(spec, Held(target), fit)

    return decorate


def _summary(target: Any) -> str:
    """First paragraph of the docstring that was written for ``target`` itself."""
    doc = target.__doc__ if inspect.isclass(target) or inspect.isroutine(target) else None
    return inspect.cleandoc(doc).split("\n\n")[0].replace("\n", " ") if doc else ""


def with_weights(made: Kernel, weights: Weights | None, options: Mapping[str, Any]) -> Kernel:
    """Return ``made`` with other weights and constructor options; raises `KernelError` where it takes none."""
    build = made.build
    sources: dict[str, Any] = {"weights": weights.source, "weights_sha256": weights.sha256} if weights else {}
    if isinstance(build, ModuleClass):
        merged = {**build.options, **options}
        return replace(made, build=replace(build, options=merged, weights=weights), options=merged, **sources)
    if options:
        raise KernelError(
            f"this kernel has no options, got {', '.join(options)}",
            place=made.spec.name,
            remedy="leave them out",
        )
    if weights is None:
        return made
    import torch

    if not (isinstance(build, Held) and isinstance(build.function, torch.nn.Module)):
        raise KernelError("this kernel has no weights", place=made.spec.name, remedy="leave them out")
    return replace(made, build=replace(build, weights=weights), **sources)

"""The mean of a forward over the eight views of a square."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tilewright.kernels.contract import Kernel

if TYPE_CHECKING:
    from tilewright.kernels.contract import Context, KernelSpec

__all__ = ["Averaged"]


class Averaged(nn.Module):
    """Calls a kernel's forward eight times, turns the results back, and averages them in a fixed order."""

    def __init__(
        self,
        spec: KernelSpec,
        inner: Callable[..., Any],
        fit: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None,
    ) -> None:
        super().__init__()
        self.inner = inner
        self.spec, self.fit = spec, fit

    @property
    def published(self) -> Any:
        """The network with the official names, where the inner forward has one; else the forward itself."""
        return getattr(self.inner, "published", self.inner)

    def forward(
        self, inputs: Mapping[str, Tensor], valid: Mapping[str, Tensor], context: Context
    ) -> dict[str, Tensor]:
        """Return the outputs by name; arguments as `Kernel.apply` has them."""
        kernel = Kernel(self.spec, lambda: self.inner, self.fit)
        total: dict[str, Tensor] = {}
        for turns in range(4):
            for mirrored in (False, True):
                seen = kernel.apply(
                    {name: _view(x, turns, mirrored) for name, x in inputs.items()},
                    {name: _view(x, turns, mirrored) for name, x in valid.items()},
                    context,
                )
                for name, x in seen.items():
                    back = _back(x.float(), turns, mirrored)
                    total[name] = total[name] + back if name in total else back
        return {name: x / 8 for name, x in total.items()}


def _view(x: Tensor, turns: int, mirrored: bool) -> Tensor:
    turned = torch.rot90(x, turns, (-2, -1))
    return (turned.flip(-1) if mirrored else turned).contiguous()


def _back(x: Tensor, turns: int, mirrored: bool) -> Tensor:
    return torch.rot90(x.flip(-1) if mirrored else x, -turns, (-2, -1))

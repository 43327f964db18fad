"""MISR-GRU: several pictures of a place to one that is three times as fine, by a recurrence over the pictures.

Arefin, M. R. et al. (2020): Multi-Image Super-Resolution for Remote Sensing using Deep Recurrent Networks, CVPR
Workshops. Written from the paper, from the names and shapes of the released checkpoint, and from what is known of the
reference picture; the released code is under a licence that is not free, and nothing of it is here.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

__all__ = ["MISRGRU", "finer_of_views"]

WIDTH = 64
SCALE = 3
SEEN = 9
"""The reference is the median of so many of the first pictures."""


def _conv(channels: int, out: int = WIDTH) -> nn.Conv2d:
    return nn.Conv2d(channels, out, 3, padding=1)


class _Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(_conv(WIDTH), nn.PReLU(), _conv(WIDTH), nn.PReLU())

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x)


class _Unit(nn.Module):
    """A convolution, two residual blocks, a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.init_layer = nn.Sequential(_conv(channels), nn.PReLU())
        self.res_layers = nn.Sequential(_Residual(), _Residual())
        self.final = nn.Sequential(_conv(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return self.final(self.res_layers(self.init_layer(x)))


class _GatedUnit(nn.Module):
    """A gated recurrent unit whose products are convolutions.

    Ballas, N. et al. (2016): Delving Deeper into Convolutional Networks for Learning Video Representations,
    https://arxiv.org/abs/1511.06432.
    """

    def __init__(self) -> None:
        super().__init__()
        self.reset_gate = _conv(2 * WIDTH)
        self.update_gate = _conv(2 * WIDTH)
        self.out_gate = _conv(2 * WIDTH)

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        both = torch.cat((x, state), 1)
        update, reset = self.update_gate(both).sigmoid(), self.reset_gate(both).sigmoid()
        fresh = self.out_gate(torch.cat((x, state * reset), 1)).tanh()
        return state * (1 - update) + fresh * update


class _Fuse(nn.Module):
    """Two recurrent layers over the pictures, and the weighted mean of the states of the last one."""

    def __init__(self) -> None:
        super().__init__()
        self.gru_units = nn.ModuleList(_GatedUnit() for _ in range(2))

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        """``[N, T, C, H, W]`` and weights that broadcast to it -> ``[N, C, H, W]``."""
        for unit in self.gru_units:
            state, states = torch.zeros_like(x[:, 0]), []
            for view in x.unbind(1):
                state = unit(view, state)
                states.append(state)
            x = torch.stack(states, 1)
        return (x * weights).sum(1) / weights.sum(1)


class _Decode(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.deconv = nn.Sequential(nn.ConvTranspose2d(WIDTH, WIDTH, SCALE, stride=SCALE), nn.PReLU())
        self.final = nn.Conv2d(WIDTH, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.final(self.deconv(x))


class MISRGRU(nn.Module):
    """Pictures ``[N, 1, H, W]`` one after another -> ``[N, 1, 3 H, 3 W]``."""

    def __init__(self) -> None:
        super().__init__()
        self.unit1 = _Unit(1)
        self.unit2 = _Unit(2 * WIDTH)
        self.fuse = _Fuse()
        self.decode = _Decode()

    def forward(self, *views: Tensor, alphas: Tensor | None = None) -> Tensor:
        """Return the finer picture.

        ``alphas`` ``[N, T]`` is 1 for a picture and 0 for one that fills up a batch; None says that all are there. As
        in the released code, the reference is the median of the first nine, **also of those that fill up**, and of an
        even number the lower one of the two in the middle.
        """
        stack = torch.stack(views, 1)
        weights = stack.new_ones(stack.shape[:2]) if alphas is None else alphas.to(stack.dtype)
        return self.merge(stack, stack[:, :SEEN].median(1).values, weights[:, :, None, None, None])

    def merge(self, views: Tensor, reference: Tensor, weights: Tensor) -> Tensor:
        """Return the finer picture of views ``[N, T, 1, H, W]``, given what they are compared with ``[N, 1, H, W]``.

        ``weights``, such as ``[N, T, 1, H, W]``, say how much each counts in the mean of the states.
        """
        count, dates = views.shape[:2]
        seen = self.unit1(views.flatten(0, 1)).unflatten(0, (count, dates))
        beside = self.unit1(reference)[:, None].expand_as(seen)
        joined = self.unit2(torch.cat((seen, beside), 2).flatten(0, 1)).unflatten(0, (count, dates))
        return self.decode(self.fuse(joined, weights))


def finer_of_views(
    network: MISRGRU,
    inputs: Mapping[str, Tensor],
    *,
    valid: Mapping[str, Tensor],
    low: float,
    high: float,
    **_: object,
) -> dict[str, Tensor]:
    """Several dates in; where one has a gap the reference stands in, and its state does not count there.

    ``low`` and ``high`` are the values of the input that stand for 0 and 1. Without gaps this is the forward.
    """
    views, there = inputs["image"], valid["image"]
    reference = _median(views[:, :SEEN], there[:, :SEEN])
    reference = torch.where(reference.isnan(), _median(views, there), reference).nan_to_num(0.0)
    filled = torch.where(there, views, reference[:, None])
    weights = (there | ~there.any(1, keepdim=True)).to(views.dtype)
    return {"image": network.merge(filled, reference, weights) * (high - low) + low}


def _median(views: Tensor, there: Tensor) -> Tensor:
    """Return the lower median of what is there ``[N, 1, H, W]``, NaN where nothing is."""
    return torch.where(there, views, torch.nan).nanmedian(1).values

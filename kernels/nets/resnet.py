"""The maps inside torchvision's ResNets, for networks that keep all of its tensors and read a part of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["resnet_maps"]


def resnet_maps(net: Any, x: Tensor, stages: int, *, pool: bool = True) -> list[Tensor]:
    """Return the maps after the first ``stages``; ``pool`` False leaves the pooling before them out."""
    x = net.relu(net.bn1(net.conv1(x)))
    if pool:
        x = net.maxpool(x)
    found = []
    for stage in (net.layer1, net.layer2, net.layer3, net.layer4)[:stages]:
        x = stage(x)
        found.append(x)
    return found

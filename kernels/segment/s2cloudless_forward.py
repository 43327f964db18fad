"""The forward of ``s2cloudless``: pixels to lightgbm and back, then a disk for the mean and one for the widening."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tilewright.errors import KernelError, WeightsError

if TYPE_CHECKING:
    from ..weights import Weights

__all__ = ["CloudTrees", "Trees", "disk"]


class Trees:
    """An opened model of lightgbm. Prediction changes nothing in it, so a copy is the same model."""

    def __init__(self, weights: Weights) -> None:
        try:
            import lightgbm
        except (ImportError, OSError) as error:  # OSError: its shared library needs one that is not there
            raise KernelError(
                f"lightgbm, which runs the trees, cannot be imported: {error}",
                place=weights.source,
                remedy="install 'tilewright[s2cloudless]'",
            ) from error
        try:
            self._booster: Any = lightgbm.Booster(model_file=str(weights.path))
        except lightgbm.basic.LightGBMError as error:
            raise WeightsError(f"no trees that lightgbm takes: {error}", place=weights.source) from error

    def __deepcopy__(self, memo: object) -> Trees:
        return self

    def run(self, x: Tensor) -> Tensor:
        """Return the probability ``[N, 1, H, W]`` of each pixel of ``[N, bands, H, W]``.

        By one thread: tilewright fills the cores with batches.
        """
        count, _, rows, columns = x.shape
        pixels = x.detach().to("cpu", torch.float32).permute(0, 2, 3, 1).flatten(0, 2).contiguous().numpy()
        found = torch.from_numpy(self._booster.predict(pixels, num_threads=1))
        return found.to(x.device, torch.float32).view(count, 1, rows, columns)


def disk(radius: int) -> Tensor:
    """Return a disk ``[2 * radius + 1, 2 * radius + 1]`` of ones, as OpenCV draws it for the package.

    OpenCV steps along an eighth of the circle and goes inward whenever it has left it. That is smaller than the set
    of pixels whose centres lie within the radius: radius 1 is a cross, radius 2 a diamond.
    """
    across = [0] * (radius + 1)
    x, y, outside = radius, 0, 0
    while x >= y:
        across[y] = max(across[y], x)
        across[x] = max(across[x], y)
        outside += 2 * y + 1
        y += 1
        if outside > 0:
            outside -= 2 * x - 1
            x -= 1
    rows = torch.arange(-radius, radius + 1).abs()
    return (rows[None] <= torch.tensor(across)[rows][:, None]).float()


class CloudTrees(nn.Module):
    """Reflectance ``[N, 10, H, W]`` to the probability of cloud and the mask."""

    def __init__(self, weights: Weights, threshold: float, average: int, dilation: int) -> None:
        super().__init__()
        self.trees = Trees(weights)
        self.threshold = threshold
        self.average = average
        self.dilation = dilation

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``(probability, mask)``, each ``[N, 1, H, W]``."""
        probability = self.trees.run(x)
        return probability, self.mask(probability)

    def mask(self, probability: Tensor) -> Tensor:
        """Return where the mean over the disk is above the threshold, widened by the other disk."""
        mean = probability
        if self.average:
            shape = disk(self.average).to(probability)
            mean = _correlate(probability, shape / shape.sum(), "replicate")
        cloud = (mean > self.threshold).to(probability)
        if self.dilation:
            cloud = (_correlate(cloud, disk(self.dilation).to(cloud), "constant") > 0.5).to(cloud)
        return cloud


def _correlate(x: Tensor, taps: Tensor, mode: str) -> Tensor:
    edge = taps.shape[-1] // 2
    padded = functional.pad(x, (edge,) * 4, mode=mode)
    return functional.conv2d(padded, taps[None, None])

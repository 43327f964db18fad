"""A network in an ONNX file as a torch module: pixels go to onnxruntime and back, with the same bits each time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tilewright.errors import KernelError, WeightsError

if TYPE_CHECKING:
    from ..weights import Weights

__all__ = ["OnnxSegmenter", "Session"]


class Session:
    """An open ONNX file. Any number of threads may run it, so a copy is the same session.

    It computes on the CPU with one thread, so that bits do not depend on the cores of a machine; tilewright fills
    the cores with batches.
    """

    def __init__(self, weights: Weights) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise KernelError(
                f"onnxruntime, which runs the network, cannot be imported: {error}",
                place=weights.source,
                remedy="install 'tilewright[csmask]'",
            ) from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        try:
            self._session: Any = onnxruntime.InferenceSession(
                weights.path.read_bytes(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its exceptions have no common class but this
            first = str(error).strip().splitlines()[0]
            raise WeightsError(
                f"not a network that onnxruntime takes: {first}", place=weights.source
            ) from error
        self._input = self._session.get_inputs()[0].name

    def __deepcopy__(self, memo: object) -> Session:
        return self

    def run(self, x: Tensor) -> Tensor:
        """Return the first output for the first input, on the device of the input."""
        given = x.detach().to("cpu", torch.float32).contiguous().numpy()
        return torch.from_numpy(self._session.run(None, {self._input: given})[0]).to(x.device)


class OnnxSegmenter(nn.Module):
    """Reflectance ``[N, bands, H, W]`` to the probabilities of classes: the votes for the map, and as they are.

    The pictures of a batch are run one by one: the result of each is then the same in every batch.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, weights: Weights, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.session = Session(weights)
        self.register_buffer("mean", torch.tensor(tuple(mean))[:, None, None])
        self.register_buffer("std", torch.tensor(tuple(std))[:, None, None])

    def logits(self, x: Tensor) -> Tensor:
        """Return the network's own output ``[N, classes, H, W]``."""
        normal = (x - self.mean) / self.std
        return torch.cat([self.session.run(one[None]) for one in normal])

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return the outputs by name."""
        found = self.logits(x).softmax(1)
        return {"mask": found, "probability": found}

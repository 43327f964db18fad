"""What a checkpoint of segmentation-models-pytorch says of its network: the ``config.json`` beside the tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tilewright.errors import KernelError, WeightsError

from ..weights import resolve_weights

__all__ = ["Checkpoint", "read_checkpoint"]

_TENSORS = ("model.safetensors", "pytorch_model.bin")
_OWN = ("encoder_weights", "activation", "encoder_name", "in_channels", "classes")


@dataclass(frozen=True)
class Checkpoint:
    """Where the tensors are, and of which network."""

    weights: Any = None
    """For `make_kernel`."""
    architecture: str | None = None
    """Name of the decoder in small letters; None where nothing says so."""
    encoder: str | None = None
    """Name of the encoder."""
    in_channels: int | None = None
    """Channels of its input."""
    classes: int | None = None
    """Channels of its output."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of the network's class."""

    def check(self, architecture: str, encoder: str) -> None:
        """Raise `KernelError` where it is of another network than the one asked for."""
        if self.architecture is not None and (self.architecture, self.encoder) != (architecture, encoder):
            raise KernelError(
                f"the weights are of smp:{self.architecture}/{self.encoder}",
                place=f"smp:{architecture}/{encoder}",
                remedy=f"load smp:{self.architecture}/{self.encoder}",
            )


def read_checkpoint(weights: Any) -> Checkpoint:
    """Look for a ``config.json`` as ``save_pretrained`` writes it; without one the caller knows the network.

    Parameters
    ----------
    weights
        A folder with ``config.json`` and ``model.safetensors``, a repository of the hub (``hf://owner/name``) that is
        laid out so, or whatever else `make_kernel` takes, which is passed on.

    Raises
    ------
    WeightsError
        A folder without the two files, or a description that is none.
    """
    if not isinstance(weights, (str, Path)):
        return Checkpoint(weights)
    text = str(weights)
    if text.startswith("hf:"):
        return _of_hub(text)
    folder = Path(text).expanduser()
    if not folder.is_dir():
        return Checkpoint(weights)
    tensors = next((folder / name for name in _TENSORS if (folder / name).is_file()), None)
    if tensors is None or not (folder / "config.json").is_file():
        raise WeightsError(
            f"the folder holds no {'config.json' if tensors else _TENSORS[0]}",
            place=text,
            remedy="give what save_pretrained wrote, or the file with the tensors",
        )
    return _described(folder / "config.json", str(tensors))


def _of_hub(text: str) -> Checkpoint:
    found = resolve_weights(text)
    repository, _, commit = found.source.rpartition("@")
    head, _, name = repository.rpartition("/")
    if name not in _TENSORS:
        return Checkpoint(found.source)
    try:
        config = resolve_weights(f"{head}/config.json@{commit}")
    except WeightsError:
        return Checkpoint(found.source)
    return _described(config.path, found.source)


def _described(path: Path, tensors: str) -> Checkpoint:
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
        return Checkpoint(
            tensors,
            str(given["_model_class"]).lower(),
            str(given["encoder_name"]),
            int(given["in_channels"]),
            int(given["classes"]),
            {name: value for name, value in given.items() if name not in _OWN and not name.startswith("_")},
        )
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise WeightsError(
            f"not a description by segmentation-models-pytorch: {type(error).__name__} {error}",
            place=str(path),
        ) from error

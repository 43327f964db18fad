"""A LLaVA-format checkpoint: a folder or a repository of the hub with its configuration, tensors and tokenizer.

Files are found and checked by `tilewright.kernels.weights`; tensors are read from safetensors or with
``weights_only=True``, and no code that lies beside them is run.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tilewright.errors import KernelError, WeightsError

from ..weights import Weights, load_into, load_state_dict, resolve_weights

if TYPE_CHECKING:
    from torch import Tensor

    from .llava import Llava

__all__ = ["Checkpoint", "open_llava"]

_CONFIG = "config.json"
_INDICES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_SINGLE = ("model.safetensors", "pytorch_model.bin")
_TOKENIZER = (
    "tokenizer_config.json", "tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "added_tokens.json",
    "special_tokens_map.json",
)  # fmt: skip
_TOWER = "model.vision_tower.vision_tower."
_BUFFERS = (".position_ids", ".rotary_emb.inv_freq")
_REST_OF_CLIP = ("text_model.", "text_projection.", "visual_projection.", "logit_scale")


@dataclass(frozen=True)
class Checkpoint:
    """Where it lies; files are looked for when they are asked for."""

    ref: str
    """A folder, or ``hf://owner/name[@revision]``."""

    def file(self, name: str) -> Weights:
        """Find one of its files; raises `WeightsError` where it is absent."""
        if not self.ref.startswith("hf:"):
            return resolve_weights(Path(self.ref).expanduser() / name)
        repository, at, revision = self.ref.rstrip("/").partition("@")
        return resolve_weights(f"{repository}/{name}{at}{revision}")

    def first(self, *names: str) -> Weights | None:
        """Return the first of several files that is there."""
        for name in names:
            try:
                return self.file(name)
            except WeightsError:
                continue
        return None

    @cached_property
    def config(self) -> dict[str, Any]:
        """Its ``config.json``; raises `WeightsError` where it is none."""
        return _read_json(self.file(_CONFIG))

    @cached_property
    def shards(self) -> tuple[Weights, ...]:
        """The files of its tensors, by name."""
        index = self.first(*_INDICES)
        if index is not None:
            names = sorted(set(_read_json(index).get("weight_map", {}).values()))
            return tuple(self.file(name) for name in names)
        single = self.first(*_SINGLE)
        if single is None:
            raise WeightsError(
                "holds no tensors",
                place=self.ref,
                remedy=f"it needs {_SINGLE[0]}, or {_INDICES[0]} and the files that it names",
            )
        return (single,)

    @cached_property
    def sha256(self) -> str:
        """Checksum over the checksums of configuration, tensors and tokenizer."""
        found = [self.file(_CONFIG), *self.shards, *filter(None, map(self.first, _TOKENIZER))]
        return hashlib.sha256("".join(one.sha256 for one in found).encode()).hexdigest()

    def tokenizer(self) -> Any:
        """Return its tokenizer; raises `WeightsError` where it cannot be made of the files."""
        from transformers import AutoTokenizer

        found = [file for file in map(self.first, _TOKENIZER) if file is not None]
        if not found:
            raise WeightsError("holds no tokenizer", place=self.ref, remedy=f"such as {_TOKENIZER[1]}")
        try:
            return AutoTokenizer.from_pretrained(
                found[0].path.parent, local_files_only=True, trust_remote_code=False
            )
        except (OSError, ValueError, ImportError, KeyError) as error:
            first = str(error).strip().splitlines()[0]
            raise WeightsError(f"its tokenizer cannot be read: {first}", place=self.ref) from error

    def tensors(self) -> dict[str, Tensor]:
        """Read all tensors."""
        state: dict[str, Tensor] = {}
        for shard in self.shards:
            state |= load_state_dict(shard)
        return state


def _read_json(file: Weights) -> dict[str, Any]:
    try:
        content = json.loads(file.path.read_text())
    except (OSError, ValueError) as error:
        raise WeightsError(f"not JSON: {error}", place=file.source) from error
    if not isinstance(content, dict):
        raise WeightsError(f"holds a {type(content).__name__}, not a mapping", place=file.source)
    return content


def _official(name: str) -> str | None:
    """The name that a tensor has in the network; None for those that are not wanted."""
    if name.endswith(_BUFFERS) or name.startswith(_REST_OF_CLIP):
        return None
    return _TOWER + name if name.startswith("vision_model.") else name


def open_llava(
    ref: str | Path,
    *,
    vision: Any = None,
    dtype: str = "float32",
    device: str = "cpu",
    suffix: str = "",
) -> Llava:
    """Load a LLaVA-type model with its region focus module, if it has one.

    Parameters
    ----------
    ref
        A folder, or ``hf://owner/name[@revision]``, with ``config.json``, tensors and tokenizer.
    vision
        Weights of the vision tower (CLIP ViT-L/14 at 336 px in transformers' names) where the checkpoint does not hold
        them.
    dtype
        ``float32``, ``bfloat16`` or ``float16``. While they are loaded the weights are in memory twice.
    device
        Where it runs.
    suffix
        Follows each question: how the answer should look.

    Raises
    ------
    WeightsError
        A file is absent, or its tensors are not those of the model that ``config.json`` describes.
    KernelError
        A language model of another family, or an unknown dtype.
    """
    import torch

    from .llava import Llava, Sizes, build_network

    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype not in known:
        raise KernelError(f"dtype={dtype}", place="llava", remedy=f"known: {', '.join(known)}")
    checkpoint = Checkpoint(str(ref))
    state = checkpoint.tensors()
    if vision is not None:
        state = {**load_state_dict(resolve_weights(vision)), **state}
    sizes = Sizes.read(checkpoint.config, state, str(ref))
    network = build_network(sizes, dtype=known[dtype])
    tied = ("lm_head.weight",) if sizes.language.get("tie_word_embeddings") else ()
    load_into(network, state, _official, place=str(ref), optional=tied)
    return Llava(network.to(device), sizes, checkpoint.tokenizer(), suffix)

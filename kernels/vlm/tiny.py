"""A LLaVA-type model of random weights, small enough for a laptop: the chain without a checkpoint.

It has all parts and the names of a released one, in miniature (0.3 M parameters), and a tokenizer of single bytes. Its
answers are noise; what it is for is the geometry, the counts and the plumbing.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from .llava import Llava, Sizes, build_network

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = ["tiny_checkpoint", "tiny_config", "tiny_llava"]

Family = Literal["qwen2", "llama"]
FOCUS = 4
"""Decoder layers of its region focus module."""


def tiny_config(family: Family = "qwen2", **changes: Any) -> dict[str, Any]:
    """Return its ``config.json``, with ``changes``."""
    return {
        "model_type": f"llava_{family}",
        "vocab_size": 320,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2 if family == "qwen2" else 4,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "mm_vision_select_layer": -2,
        "vision_config": {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "projection_dim": 16,
        },
        **changes,
    }


def _tokenizer() -> PreTrainedTokenizerFast:
    """A token a byte, and the marks of a conversation."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    marks = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = Tokenizer(models.BPE(vocab={word: n for n, word in enumerate([*marks, *letters])}, merges=[]))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    words.decoder = decoders.ByteLevel()
    words.add_special_tokens(marks)
    kind: Any = PreTrainedTokenizerFast
    return cast(
        "PreTrainedTokenizerFast", kind(tokenizer_object=words, eos_token=marks[2], pad_token=marks[0])
    )


def tiny_llava(family: Family = "qwen2", *, seed: int = 0, suffix: str = "", **changes: Any) -> Llava:
    """Return the model; equal seeds give equal weights."""
    layers = [f"model.mm_projector.token_pruner.layers.{n}." for n in range(FOCUS)]
    sizes = Sizes.read(tiny_config(family, **changes), layers, "tiny")
    return Llava(build_network(sizes, seed=seed), sizes, _tokenizer(), suffix)


def tiny_checkpoint(folder: Path, family: Family = "qwen2", *, seed: int = 0) -> Path:
    """Write the model as a LLaVA-format checkpoint into a new folder, and return the folder."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    made = tiny_llava(family, seed=seed)
    save_file({n: t.contiguous() for n, t in made.network.state_dict().items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(tiny_config(family), indent=1))
    made.tokenizer.save_pretrained(folder)
    return folder

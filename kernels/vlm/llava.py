"""A LLaVA-type model with a region focus module: CLIP-L/336, a projector, and Qwen2 or Llama (Vicuna) of transformers.

The network is the language model with the other parts hung into it where LLaVA has them, so its ``state_dict`` has the
names of LLaVA-format checkpoints (``model.layers.*``, ``model.vision_tower.vision_tower.vision_model.*``,
``model.mm_projector.mlp_projector.*``, ``model.mm_projector.token_pruner.layers.*``, ``model.image_newline``). No code
of a checkpoint is run: sizes are read from its ``config.json``, the classes are those of the installed transformers.

LLaVA: Liu et al. 2023, https://arxiv.org/abs/2304.08485; with a region focus module: https://arxiv.org/abs/2503.07588.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor, nn

from tilewright.errors import KernelError

from .dynamic_pyramid import TILE, TOKENS
from .flops import flops
from .pruned import Prompt
from .region_focus import RegionFocus

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

__all__ = ["TEMPLATES", "Llava", "Sizes", "build_network"]

CLIP_L_336 = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": TILE,
    "patch_size": TILE // TOKENS,
    "projection_dim": 768,
    "hidden_act": "quick_gelu",
}
"""The vision tower of the released models, openai/clip-vit-large-patch14-336."""

TEMPLATES = {
    "qwen2": (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n",
        "\n{question}<|im_end|>\n<|im_start|>assistant\n",
    ),
    "llama": (
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the user's questions. USER: ",
        "\n{question} ASSISTANT:",
    ),
}
"""Family -> what stands before the image, and after it: the conversations that LLaVA trains these families with."""

_LANGUAGE = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "hidden_act", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings",
    "bos_token_id", "eos_token_id", "pad_token_id", "attention_bias",
)  # fmt: skip
_ROPE = {"qwen2": 1_000_000.0, "llama": 10_000.0}


@dataclass(frozen=True)
class Sizes:
    """What a LLaVA-format ``config.json`` says, as far as it is needed."""

    family: Literal["qwen2", "llama"]
    """Of the language model."""
    language: Mapping[str, Any]
    """Keyword arguments of its configuration."""
    vision: Mapping[str, Any]
    """Those of the vision tower."""
    select: int = -2
    """Which hidden state of the vision tower is taken."""
    focus: int = 4
    """Decoder layers of the region focus module, N + 1; 0 where there is none."""

    @classmethod
    def read(cls, config: Mapping[str, Any], names: Iterable[str], place: str) -> Sizes:
        """Read a configuration; the layers of the region focus module are counted in the ``names`` of the tensors.

        Raises `KernelError` for another family of language models.
        """
        kind = " ".join(
            [str(config.get("model_type", "")), *map(str, config.get("architectures") or ())]
        ).lower()
        family = "qwen2" if "qwen" in kind else "llama" if "llama" in kind or "vicuna" in kind else None
        if family is None:
            raise KernelError(
                f"a language model of type {kind.strip()!r}", place=place, remedy="Qwen2 and Llama are known"
            )
        rope = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
        rope.setdefault("rope_type", rope.pop("type", "default"))
        rope.setdefault("rope_theta", config.get("rope_theta") or _ROPE[family])
        language = {name: config[name] for name in _LANGUAGE if config.get(name) is not None}
        pruner = "mm_projector.token_pruner.layers."
        layers = {name.partition(pruner)[2].partition(".")[0] for name in names if pruner in name}
        return cls(
            cast("Literal['qwen2', 'llama']", family),
            {**language, "rope_parameters": rope},
            {**CLIP_L_336, **(config.get("vision_config") or {})},
            int(config.get("mm_vision_select_layer", -2)),
            len(layers),
        )

    def language_config(self) -> PreTrainedConfig:
        """Return the configuration of the language model."""
        from transformers import LlamaConfig, Qwen2Config

        kind: Any = {"qwen2": Qwen2Config, "llama": LlamaConfig}[self.family]
        return cast("PreTrainedConfig", kind(**self.language))


class _Projector(nn.Module):
    """``mm_projector``: from the vision tower's width to the language model's, and the region focus module."""

    def __init__(self, width: int, config: Any, focus: int) -> None:
        super().__init__()
        self.mlp_projector = nn.Sequential(
            nn.Linear(width, config.hidden_size), nn.GELU(), nn.Linear(config.hidden_size, config.hidden_size)
        )
        if focus:
            self.token_pruner = RegionFocus(config, focus)


class _Tower(nn.Module):
    """``vision_tower``: holds the tower under the names that it has in checkpoints."""

    def __init__(self, sizes: Mapping[str, Any]) -> None:
        super().__init__()
        from transformers import CLIPVisionConfig, CLIPVisionModel

        self.vision_tower = nn.Module()
        self.vision_tower.vision_model = CLIPVisionModel(CLIPVisionConfig(**sizes))


def build_network(sizes: Sizes, *, dtype: torch.dtype = torch.float32, seed: int | None = None) -> nn.Module:
    """Return the network; with a ``seed`` filled with random numbers, else with anything, for weights to come."""
    from transformers import LlamaForCausalLM, Qwen2ForCausalLM

    from ..nets.forward import Unfilled

    config = sizes.language_config()
    kind = {"qwen2": Qwen2ForCausalLM, "llama": LlamaForCausalLM}[sizes.family]
    with torch.random.fork_rng(devices=()), _made_as(dtype), Unfilled() if seed is None else nullcontext():
        torch.manual_seed(seed or 0)
        network = cast("nn.Module", kind(config))
        inner = cast("nn.Module", network.model)
        inner.image_newline = nn.Parameter(torch.randn(config.hidden_size) * config.hidden_size**-0.5)
        inner.vision_tower = _Tower(sizes.vision)
        inner.mm_projector = _Projector(sizes.vision["hidden_size"], config, sizes.focus)
    return network.eval().requires_grad_(requires_grad=False)


@contextmanager
def _made_as(dtype: torch.dtype) -> Generator[None, None, None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


class Llava:
    """The network at work, as `tilewright.kernels.vlm.pruned` asks it."""

    def __init__(
        self, network: nn.Module, sizes: Sizes, tokenizer: PreTrainedTokenizerBase, suffix: str = ""
    ) -> None:
        """Put the parts together.

        Parameters
        ----------
        network
            From `build_network`, with its weights.
        sizes
            What it was built by.
        tokenizer
            That of the checkpoint.
        suffix
            Follows each question on a line of its own: how the answer should look.
        """
        self.network = network
        self.sizes = sizes
        self.tokenizer = tokenizer
        self.suffix = suffix

    @property
    def _inner(self) -> Any:
        return self.network.model

    @property
    def focus(self) -> RegionFocus:
        """The region focus module; raises `KernelError` where the checkpoint has none."""
        if not self.sizes.focus:
            raise KernelError(
                "these weights have no region focus module", place="llava", remedy="set prune=false"
            )
        return cast("RegionFocus", self._inner.mm_projector.token_pruner)

    @property
    def newline(self) -> Tensor:
        """``[D]``."""
        return cast("Tensor", self._inner.image_newline)

    @property
    def _device(self) -> torch.device:
        return self.newline.device

    def tokens(self, pixels: Tensor) -> Tensor:
        """From normalised tiles ``[n, 3, TILE, TILE]`` to ``[n, TOKENS * TOKENS, D]``; the class token is left out."""
        tower = self._inner.vision_tower.vision_tower.vision_model
        seen = tower(pixels.to(self._device, self.newline.dtype), output_hidden_states=True)
        return cast(
            "Tensor", self._inner.mm_projector.mlp_projector(seen.hidden_states[self.sizes.select][:, 1:])
        )

    def prompt(self, question: str) -> Prompt:
        """Embed a question in the conversation of the model's family."""
        before, after = TEMPLATES[self.sizes.family]
        asked = f"{question}\n{self.suffix}" if self.suffix else question
        separator = self._ids(":", special=False)[-1:]
        return Prompt(
            self._embedded(self._ids(before, special=True)),
            self._embedded(separator),
            self._embedded(self._ids(after.format(question=asked), special=False)),
        )

    def _ids(self, text: str, *, special: bool) -> list[int]:
        return cast("list[int]", self.tokenizer(text, add_special_tokens=special)["input_ids"])

    def _embedded(self, ids: list[int]) -> Tensor:
        with torch.inference_mode():
            found: Tensor = self._inner.embed_tokens(
                torch.tensor(ids, dtype=torch.int64, device=self._device)
            )
        return found

    def answer(self, sequence: Tensor, most: int) -> str:
        """Continue a prompt ``[S, D]`` by at most ``most`` tokens, greedily, until the model ends its turn."""
        ends = [self.tokenizer.eos_token_id, *_known(self.tokenizer, "<|im_end|>", "<|endoftext|>")]
        stops = sorted({token for token in ends if token is not None})
        network = cast("Any", self.network)
        with torch.inference_mode():
            made = network.generate(
                inputs_embeds=sequence[None],
                attention_mask=torch.ones(1, len(sequence), dtype=torch.int64, device=sequence.device),
                max_new_tokens=most,
                do_sample=False,
                num_beams=1,
                eos_token_id=stops or None,
                pad_token_id=stops[0] if stops else 0,
            )
        return cast("str", self.tokenizer.decode(made[0], skip_special_tokens=True)).strip()

    def flops(self, part: Literal["vision", "focus", "language"], count: int) -> float:
        """Estimate the operations of a forward; see `tilewright.kernels.vlm.flops`."""
        return flops(self.sizes, part, count)


def _known(tokenizer: PreTrainedTokenizerBase, *words: str) -> list[int]:
    vocabulary = tokenizer.get_vocab()
    return [vocabulary[word] for word in words if word in vocabulary]

"""An answerer on this machine: an image-text model of transformers from a folder, or from the hub by its name.

LLaVA, Qwen2.5-VL, Florence-2 and all others that transformers knows as image-text-to-text. The folder is loaded as it
lies: nothing but what ``hf://`` names is fetched, no code of the folder is run, and weights are safetensors.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tilewright.errors import KernelError

from .answerers import Turn
from .checkpoint import Checkpoint

if TYPE_CHECKING:
    from .answerers import Picture

__all__ = ["TransformersAnswerer"]

_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"
_PROCESSOR = (
    "generation_config.json", "preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json",
    "chat_template.jinja", "chat_template.json", "tokenizer_config.json", "tokenizer.json", "tokenizer.model",
    "vocab.json", "merges.txt", "added_tokens.json", "special_tokens_map.json",
)  # fmt: skip
"""Files beside configuration and weights, of which a model has some."""


@dataclass(frozen=True)
class TransformersAnswerer:
    """A model from a folder with ``config.json``, its processor's files and ``*.safetensors``."""

    folder: str | Path
    """Where it lies, or ``hf://owner/name[@revision]``."""
    device: str = "cpu"
    """Where it computes."""
    dtype: str = "auto"
    """Type of its numbers: as they were saved, or such as ``bfloat16``."""

    @property
    def name(self) -> str:
        """The folder's name."""
        return Path(self.folder).name

    def check(self) -> None:
        """Raise `KernelError` where the folder holds no such model; what ``hf://`` names is fetched for it."""
        self._check(self._place)

    def answer(self, images: Sequence[Picture], prompt: str, max_tokens: int = 256) -> str:
        """Return the answer to ``prompt`` about ``images``; errors as for `converse`."""
        return self.converse([Turn("user", prompt, tuple(images))], max_tokens)

    def converse(self, turns: Sequence[Turn], max_tokens: int = 256) -> str:
        """Return what the model says after ``turns``, always its likeliest words.

        Raises
        ------
        KernelError
            The folder does not hold such a model; the model cannot take the pictures.
        """
        import torch

        processor, model = self._loaded
        inputs = self._inputs(processor, turns)
        try:
            with torch.inference_mode():
                tokens = model.generate(**inputs.to(self.device), max_new_tokens=max_tokens, do_sample=False)
        except (RuntimeError, ValueError, IndexError) as error:
            raise self._error(
                f"fails on {len(turns)} turns: {_first_line(error)}",
                "show it fewer or smaller pictures, or take another device",
            ) from error
        if not model.config.is_encoder_decoder:
            tokens = tokens[:, inputs["input_ids"].shape[1] :]
        said: str = processor.batch_decode(tokens, skip_special_tokens=True)[0]
        return said.strip()

    def _inputs(self, processor: Any, turns: Sequence[Turn]) -> Any:
        """Return the tokens and pixels: by the model's own template of dialogues, or pictures and bare words."""
        from PIL import Image

        images = [Image.fromarray(image) for turn in turns for image in turn.images]
        try:
            if getattr(processor, "chat_template", None):
                text = processor.apply_chat_template(
                    [_message(turn) for turn in turns], add_generation_prompt=True
                )
            else:
                mark = getattr(processor, "image_token", "") if self._marks_images(processor) else ""
                text = "\n".join(mark * len(turn.images) + turn.text for turn in turns)
            return processor(images=images or None, text=text, return_tensors="pt")
        except (ValueError, TypeError, IndexError) as error:
            raise self._error(
                f"cannot take {len(images)} pictures in {len(turns)} turns: {error}",
                "some models take one picture",
            ) from error

    @staticmethod
    def _marks_images(processor: Any) -> bool:
        """Tell whether a prompt must say where pictures stand; Florence-2 puts them in front by itself."""
        return "Florence" not in type(processor).__name__

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        """Processor and model."""
        folder = self._place
        self._check(folder)
        try:
            from transformers import AutoModelForImageTextToText, AutoProcessor
        except ImportError as error:
            raise self._error(
                f"transformers cannot be imported: {error}", "install 'tilewright[vlm]'"
            ) from error
        processors: Any = AutoProcessor
        models: Any = AutoModelForImageTextToText
        quiet: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        try:
            with _no_bars():
                processor = processors.from_pretrained(folder, **quiet)
                model = models.from_pretrained(folder, use_safetensors=True, dtype=self.dtype, **quiet)
        except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
            raise self._error(
                f"does not load: {_first_line(error)}", "is it a model of images and text?"
            ) from error
        try:
            return processor, model.to(self.device).eval()
        except (RuntimeError, AssertionError) as error:
            raise self._error(
                f"cannot be put on {self.device}: {_first_line(error)}", "cpu, cuda or cuda:N"
            ) from error

    @cached_property
    def _place(self) -> Path:
        """The folder; what ``hf://`` names is fetched into the hub's cache first."""
        if not str(self.folder).startswith("hf:"):
            return Path(self.folder).expanduser()
        hub = Checkpoint(str(self.folder))
        config = hub.file("config.json").path
        index = hub.first(_INDEX)
        names = [_SINGLE]
        if index is not None:
            names = sorted(set(json.loads(index.path.read_text()).get("weight_map", {}).values()))
        for name in names:
            hub.file(name)
        for name in _PROCESSOR:
            hub.first(name)
        return config.parent

    def _check(self, folder: Path) -> None:
        """Refuse a folder that is none, that has no safetensors, or that wants code of its own to run."""
        try:
            config = json.loads((folder / "config.json").read_text())
        except (OSError, ValueError) as error:
            raise self._error(
                "has no readable config.json", "name a folder as save_pretrained writes it"
            ) from error
        if not any(folder.glob("*.safetensors")):
            raise self._error("has no safetensors", "convert its weights; pickles are not loaded")
        if isinstance(config, dict) and config.get("auto_map"):
            raise self._error(
                "wants to run code of its own",
                "take a version that transformers has built in; code is not run",
            )

    def _error(self, cause: str, remedy: str) -> KernelError:
        return KernelError(cause, place=f"answerer {self.folder}", remedy=remedy)


@contextmanager
def _no_bars() -> Iterator[None]:
    """Keep transformers from drawing bars of its own while it loads."""
    from transformers.utils import logging

    bars: Any = logging
    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            bars.enable_progress_bar()


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def _message(turn: Turn) -> dict[str, Any]:
    shown = [{"type": "image"} for _ in turn.images]
    return {"role": turn.role, "content": [*shown, {"type": "text", "text": turn.text}]}

"""An answerer on this machine: an image-text model of transformers from a folder.

LLaVA, Qwen2.5-VL, Florence-2 and all others that transformers knows as image-text-to-text. The folder is loaded as it
lies: nothing is fetched, no code of the folder is run, and weights are safetensors.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tilewright.errors import KernelError

from .answerers import Turn

if TYPE_CHECKING:
    from .answerers import Picture

__all__ = ["TransformersAnswerer"]


@dataclass(frozen=True)
class TransformersAnswerer:
    """A model from a folder with ``config.json``, its processor's files and ``*.safetensors``."""

    folder: str | Path
    """Where it lies."""
    device: str = "cpu"
    """Where it computes."""
    dtype: str = "auto"
    """Type of its numbers: as they were saved, or such as ``bfloat16``."""

    @property
    def name(self) -> str:
        """The folder's name."""
        return Path(self.folder).name

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
        with torch.inference_mode():
            tokens = model.generate(**inputs.to(self.device), max_new_tokens=max_tokens, do_sample=False)
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
        folder = Path(self.folder)
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
            processor = processors.from_pretrained(folder, **quiet)
            model = models.from_pretrained(folder, use_safetensors=True, dtype=self.dtype, **quiet)
        except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise self._error(f"does not load: {first}", "is it a model of images and text?") from error
        return processor, model.to(self.device).eval()

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


def _message(turn: Turn) -> dict[str, Any]:
    shown = [{"type": "image"} for _ in turn.images]
    return {"role": turn.role, "content": [*shown, {"type": "text", "text": turn.text}]}

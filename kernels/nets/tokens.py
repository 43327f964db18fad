"""Texts to token ids by a ``tokenizer.json``, for text encoders whose tokenizer no library carries."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from tilewright.errors import KernelError, WeightsError

from ..weights import resolve_weights

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["token_ids"]


@lru_cache(maxsize=4)
def _tokenizer(ref: str) -> Any:
    from tokenizers import Tokenizer

    path = resolve_weights(ref).path
    try:
        made = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises the base class for all that is wrong with a file
        raise WeightsError(f"not a tokenizer.json: {error}", place=ref) from error
    made.no_padding()
    made.no_truncation()
    return made


def token_ids(
    texts: Sequence[str], ref: str | None, *, longest: int, pad: int, place: str, fixed: bool = False
) -> Tensor:
    """Return the ids ``[n, length]`` of texts, with the tokenizer's marks of beginning and end.

    Parameters
    ----------
    texts
        Texts.
    ref
        Where the ``tokenizer.json`` is, as `resolve_weights` has it.
    longest
        Most tokens; longer texts are cut, and end with their last mark all the same.
    pad
        Id that fills shorter ones.
    place
        Name of the model, for the error.
    fixed
        True for rows of ``longest`` ids, False for as many as the longest text has.

    Raises
    ------
    KernelError
        No tokenizer was given.
    WeightsError
        The file is absent, or is no tokenizer.
    """
    import torch

    if ref is None:
        raise KernelError(
            "its texts need a tokenizer, which lies beside the published weights",
            place=place,
            remedy="give tokenizer=PATH or hf://owner/name/tokenizer.json@revision",
        )
    rows = [
        encoding.ids for encoding in _tokenizer(str(ref)).encode_batch([" ".join(t.split()) for t in texts])
    ]
    rows = [ids if len(ids) <= longest else [*ids[: longest - 1], ids[-1]] for ids in rows]
    length = longest if fixed else max((len(ids) for ids in rows), default=1)
    return torch.tensor([ids + [pad] * (length - len(ids)) for ids in rows], dtype=torch.long).reshape(
        -1, length
    )

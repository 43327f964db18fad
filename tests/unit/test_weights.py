"""Weights: found, checked, read without running code, and put into a module by name."""

from __future__ import annotations

import hashlib
import logging
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tilewright.errors import WeightsError
from tilewright.kernels.weights import Weights, load_into, load_state_dict, resolve_weights

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2)}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "w.safetensors"
    save_file(STATE, path)
    return path


def same(state: dict[str, torch.Tensor]) -> bool:
    return state.keys() == STATE.keys() and all(torch.equal(state[k], v) for k, v in STATE.items())


def test_local_path(file: Path) -> None:
    found = resolve_weights(file)
    assert found == Weights(file, hashlib.sha256(file.read_bytes()).hexdigest(), str(file))
    assert same(load_state_dict(found))
    assert resolve_weights({"ref": str(file), "sha256": found.sha256.upper()}) == found


def test_wrong_checksum_names_both(file: Path) -> None:
    got = hashlib.sha256(file.read_bytes()).hexdigest()
    with pytest.raises(WeightsError, match=f"expected sha256 {'0' * 64}, got {got}"):
        resolve_weights(file, "0" * 64)


def test_a_file_that_changed_is_not_read(file: Path) -> None:
    found = resolve_weights(file)
    save_file({"a.weight": torch.zeros(1)}, file)
    with pytest.raises(WeightsError, match="wrong checksum"):
        load_state_dict(found)


@pytest.mark.parametrize(
    ("ref", "message"),
    [
        ("nowhere.pth", "no such file"),
        ("hf://justaname", "not of the form"),
        ("pkg://no_such_package/w.pth", "not installed"),
        ("pkg://torch/../w.pth", "not of the form"),
    ],
)
def test_absent(ref: str, message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        resolve_weights(ref)


def test_package_resource() -> None:
    found = resolve_weights("pkg://tilewright/py.typed")
    assert found.path.name == "py.typed"
    with pytest.raises(WeightsError, match="unknown format"):
        load_state_dict(found)


@pytest.mark.parametrize("suffix", ["pth", "pt", "bin", "ckpt"])
@pytest.mark.parametrize(
    "wrap", [lambda s: s, lambda s: {"epoch": 3, "state_dict": s}, lambda s: {"model": s}]
)
def test_torch_files_and_their_wrappers(
    tmp_path: Path, suffix: str, wrap: object, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / f"w.{suffix}"
    content = wrap(STATE)  # type: ignore[operator]
    torch.save(content, path)
    with caplog.at_level(logging.INFO):
        assert same(load_state_dict(resolve_weights(path)))
    assert bool(caplog.records) == (content is not STATE)


def test_module_prefix_and_key(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save({"ema": {"net": {f"module.{k}": v for k, v in STATE.items()}}, "x": torch.ones(1)}, path)
    assert same(load_state_dict(resolve_weights(path), key="ema.net"))
    with pytest.raises(WeightsError, match="did you mean 'net'"):
        load_state_dict(resolve_weights(path), key="ema.nets")


class Harmful:
    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (Path("/tmp/tilewright-was-here"),))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_pickle_with_code_is_refused(tmp_path: Path) -> None:
    trace = Path("/tmp/tilewright-was-here")
    for number, content in enumerate([{"a": Harmful()}, Harmful()]):
        path = tmp_path / f"{number}.pth"
        torch.save(content, path)
        with pytest.raises(WeightsError, match="would run code") as caught:
            load_state_dict(resolve_weights(path))
        assert "\n" not in str(caught.value)
    path = tmp_path / "plain.pth"
    path.write_bytes(pickle.dumps({"a": Harmful()}))
    with pytest.raises(WeightsError):
        load_state_dict(resolve_weights(path))
    assert not trace.exists()


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_truncated(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"w.{suffix}"
    (torch.save if suffix == "pth" else save_file)(STATE, path)  # type: ignore[operator]
    path.write_bytes(path.read_bytes()[:-80])
    with pytest.raises(WeightsError, match="not a whole") as caught:
        load_state_dict(resolve_weights(path))
    assert "\n" not in str(caught.value)


def test_no_tensors(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save({"epoch": 3}, path)
    with pytest.raises(WeightsError, match="no tensors"):
        load_state_dict(resolve_weights(path))


def test_load_into_copies_by_name_and_renames() -> None:
    module = nn.ModuleDict({"a": nn.Linear(3, 2)})
    load_into(module, {f"net.{k}": v for k, v in STATE.items()}, rename={"net.": ""})
    assert torch.equal(module["a"].weight, STATE["a.weight"])
    load_into(module, {**STATE, "head": torch.ones(1)}, rename=lambda n: None if n == "head" else n)


def test_load_into_names_what_does_not_fit() -> None:
    module = nn.Sequential(*[nn.Linear(3, 2) for _ in range(4)], nn.BatchNorm1d(2))
    state = {k: v for k, v in module.state_dict().items() if not k.startswith(("0", "1", "2"))}
    state |= {"3.bias": torch.zeros(5), "other": torch.zeros(1)}
    state.pop("4.num_batches_tracked")
    before = module[3].weight.clone()
    with pytest.raises(WeightsError) as caught:
        load_into(module, state, place="w.pth")
    text = str(caught.value)
    assert "6 missing: 0.weight, 0.bias, 1.weight, 1.bias, 2.weight and 1 more" in text
    assert "1 unexpected: other" in text
    assert "3.bias (is [5], wants [2])" in text
    assert torch.equal(before, module[3].weight)


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A cache as huggingface_hub lays it out, and no network."""
    constants = pytest.importorskip("huggingface_hub.constants")
    commit = "1234567890abcdef1234567890abcdef12345678"
    repo = tmp_path / "models--someone--net"
    (repo / "snapshots" / commit / "sub").mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    save_file(STATE, repo / "snapshots" / commit / "model.safetensors")
    save_file(STATE, repo / "snapshots" / commit / "sub" / "other.safetensors")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return commit


def test_hub_from_the_local_cache(hub_cache: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        found = resolve_weights("hf://someone/net")
    assert found.source == f"hf://someone/net/model.safetensors@{hub_cache}"
    assert hub_cache in caplog.text
    assert same(load_state_dict(found))
    pinned = resolve_weights(f"hf://someone/net/sub/other.safetensors@{hub_cache}", found.sha256)
    assert pinned.source == f"hf://someone/net/sub/other.safetensors@{hub_cache}"
    assert resolve_weights("hf:someone/net@main").path == found.path


def test_hub_without_the_file(hub_cache: str) -> None:
    with pytest.raises(WeightsError, match="neither on the hub nor in the local cache"):
        resolve_weights("hf://someone/net/nothing.safetensors@main")

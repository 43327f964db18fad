"""Numbers of numpy in checkpoints: read as plain numbers; what only looks like one is refused in one line."""

from __future__ import annotations

import io
import pickle
import sys
import types
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tilewright.errors import WeightsError
from tilewright.kernels.load import load_kernel
from tilewright.kernels.scalars import numpy_scalars
from tilewright.kernels.weights import load_state_dict, resolve_weights

TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3)}
NUMBERS = [np.float64(0.91), np.float32(0.5), np.float16(0.25), np.int64(-3), np.uint8(7), np.bool_(True)]


def saved(path: Path, **more: Any) -> Path:
    """A checkpoint as the trainers of BIT and ChangeFormer write it."""
    torch.save(
        {
            "epoch_id": 199,
            "best_epoch_id": 180,
            "model_G_state_dict": TENSORS,
            "optimizer_G_state_dict": {"state": {}, "param_groups": [{"lr": 1e-4, "params": [0]}]},
            "exp_lr_scheduler_G_state_dict": {"base_lrs": [0.01], "last_epoch": 199, "lr_lambdas": [None]},
            **more,
        },
        path,
    )
    return path


@pytest.mark.parametrize("number", NUMBERS, ids=lambda n: type(n).__name__)
def test_a_best_score_of_numpy_is_no_code(number: np.generic, tmp_path: Path) -> None:
    path = saved(tmp_path / "best_ckpt.pt", best_val_acc=number)
    found = load_state_dict(resolve_weights(path))
    assert found.keys() == TENSORS.keys()
    assert torch.equal(found["a.weight"], TENSORS["a.weight"])
    with numpy_scalars():
        value = torch.load(path, weights_only=True)["best_val_acc"]
    assert type(value) in (bool, int, float)
    assert value == number.item()
    assert not {"numpy.dtype"} & {str(one) for one in torch.serialization.get_safe_globals()}


def test_numbers_of_older_numpy_and_of_other_machines(tmp_path: Path) -> None:
    """The module had another name before numpy 2, and bytes may stand the other way round."""
    path = saved(tmp_path / "new.pt", best_val_acc=np.float64(0.91))
    assert b"numpy._core.multiarray" in pickle_of(path)
    older = rewritten(path, tmp_path / "old.pt", b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert load_state_dict(resolve_weights(older)).keys() == TENSORS.keys()
    swapped = saved(tmp_path / "big.pt", best_val_acc=np.array([0.91], ">f8")[0])
    assert load_state_dict(resolve_weights(swapped)).keys() == TENSORS.keys()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "harmful",
    [
        np.array([1.0, 2.0]),
        np.array([None, print], dtype=object),
        np.datetime64("2020-01-01"),
        np.void(b"ab"),
    ],
    ids=["array", "objects", "date", "void"],
)
def test_other_things_of_numpy_are_refused(harmful: object, tmp_path: Path) -> None:
    path = saved(tmp_path / "w.pt", best_val_acc=harmful)
    with pytest.raises(WeightsError, match="refused: loading this file would run code") as caught:
        load_state_dict(resolve_weights(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new"), [(b"f8", b"O8"), (b"f8", b"V8"), (b"f8", b"f2")], ids=["object", "void", "short"]
)
def test_a_falsified_type_is_refused(old: bytes, new: bytes, tmp_path: Path) -> None:
    path = saved(tmp_path / "w.pt", best_val_acc=np.float64(0.91))
    assert pickle_of(path).count(old) == 1
    with pytest.raises(WeightsError, match="refused") as caught:
        load_state_dict(resolve_weights(rewritten(path, tmp_path / "false.pt", old, new)))
    assert "\n" not in str(caught.value)


def pickle_of(path: Path) -> bytes:
    with zipfile.ZipFile(path) as archive:
        return archive.read(next(n for n in archive.namelist() if n.endswith("data.pkl")))


def rewritten(path: Path, to: Path, old: bytes, new: bytes) -> Path:
    """The same checkpoint with other bytes in its pickle."""
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(to, "w") as out:
        for name in archive.namelist():
            content = archive.read(name)
            out.writestr(name, content.replace(old, new) if name.endswith("data.pkl") else content)
    return to


def test_training_checkpoints_of_bit_load(tmp_path: Path) -> None:
    module = load_kernel("bit").module
    path = tmp_path / "best_ckpt.pt"
    score = np.float64(0.91)
    torch.save({"epoch_id": 3, "best_val_acc": score, "model_G_state_dict": module.state_dict()}, path)
    found = load_kernel("bit", weights=path).module.state_dict()
    assert all(torch.equal(tensor, found[name]) for name, tensor in module.state_dict().items())


def test_a_pickled_module_is_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SNUNet's authors save the whole module: reading it would import and call their code."""
    package = types.ModuleType("snunet_models")
    network = type("SNUNet_ECAM", (nn.Linear,), {"__module__": "snunet_models"})
    package.SNUNet_ECAM = network  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "snunet_models", package)
    path = tmp_path / "snunet-32.pt"
    torch.save(network(2, 2), path)
    with pytest.raises(WeightsError) as caught:
        _ = load_kernel("snunet", weights=path).module
    assert str(caught.value) == (
        f"{path}: refused: loading this file would run code (it needs snunet_models.SNUNet_ECAM);"
        " save the state_dict alone, best as safetensors"
    )
    plain = io.BytesIO()
    pickle.dump(network(2, 2), plain)
    path.write_bytes(plain.getvalue())
    with pytest.raises(WeightsError, match=r"snunet-32\.pt: ") as caught:
        _ = load_kernel("snunet", weights=path).module
    assert "\n" not in str(caught.value)

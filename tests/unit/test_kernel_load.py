"""Loading kernels: the decorator, files, modules, the registry, options; pickling; the digest."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import cloudpickle
import pytest
import torch
from networks import gaussian33, small_unet
from safetensors.torch import save_file

from tilewright.errors import KernelError, WeightsError
from tilewright.kernels import load
from tilewright.kernels.contract import Context, Kernel, KernelSpec
from tilewright.kernels.load import kernel_entry, list_kernels, load_kernel
from tilewright.kernels.user import kernel

SPEC = {"inputs": {"image": {"bands": 3}}, "outputs": {"y": {"kind": "value", "bands": 3}}}

FILE = '''
"""A user's kernels."""
import torch
import tilewright.kernels.user as tilewright

GAIN = 2.0

def helper(x):
    return x * GAIN

@tilewright.kernel(inputs={"image": {"dates": 1, "bands": 2}}, radius=16, outputs={"blur": {"kind": "value"}})
def blur(x):
    """Blur, twice as bright."""
    return helper(x)

@tilewright.kernel(inputs={"image": {"bands": 3}}, radius=1, outputs={"y": {"kind": "value", "bands": 4}})
class Net(torch.nn.Module):
    def __init__(self, width: int = 4, dilation: int = 1):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.conv = torch.nn.Conv2d(3, width, 3, padding=dilation, dilation=dilation)
        torch.nn.init.normal_(self.conv.weight, generator=generator)
        torch.nn.init.zeros_(self.conv.bias)

    def forward(self, x):
        return self.conv(x)

def plain(x):
    return x
'''


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(FILE)
    return path


def context(count: int = 1) -> Context:
    zeros = torch.zeros(count, 2, dtype=torch.int64)
    return Context(zeros, zeros[:, :1], zeros.double(), 10.0)


# --- the decorator ------------------------------------------------------------------------------------------


def test_the_example_of_the_docs() -> None:
    @kernel(
        inputs={"image": {"dates": 1, "bands": 2}},
        radius=16,
        outputs={"blur": {"kind": "value", "range": None}},
    )
    def blur(x: torch.Tensor) -> torch.Tensor:
        return gaussian33(x)[:, :1]

    x = torch.rand(2, 2, 40, 40)
    assert isinstance(blur, Kernel)
    assert blur.spec.name == "blur"
    assert torch.equal(blur(x), gaussian33(x)[:, :1])
    valid = {"image": torch.ones(2, 1, 1, 40, 40, dtype=torch.bool)}
    assert torch.equal(blur.apply({"image": x[:, None]}, valid, context(2))["blur"], blur(x))


def test_statistics_and_fit_go_together() -> None:
    def fit(sample: Any) -> dict[str, float]:
        return {"mean": float(sample["image"].mean())}

    def centred(x: torch.Tensor, context: Context) -> torch.Tensor:
        return x - context.statistics["mean"]

    made = kernel(**SPEC, statistics={"sample": 100_000}, fit=fit)(centred)
    assert made.spec.statistics is not None
    assert made.fit is fit
    with pytest.raises(KernelError, match="needs a fit"):
        kernel(**SPEC, statistics={})(centred)


def test_unknown_key_names_the_nearest() -> None:
    with pytest.raises(KernelError, match="did you mean 'radius'"):
        kernel(**SPEC, radios=3)(lambda x: x)
    with pytest.raises(KernelError, match="cannot be made a kernel"):
        kernel(**SPEC)(3)


def test_a_class_is_built_once_and_late_in_eval_mode() -> None:
    built = []

    class Net(torch.nn.BatchNorm2d):
        """Normalise.

        More.
        """

        def __init__(self, channels: int = 3) -> None:
            built.append(channels)
            super().__init__(channels)

    made = kernel(**SPEC)(Net)
    assert (built, made.spec.description, made.spec.name) == ([], "Normalise.", "Net")
    made(torch.ones(1, 3, 2, 2))
    assert not made.module.training
    assert built == [3]
    assert kernel(**SPEC, options={"channels": 5})(Net).module.num_features == 5


# --- names ---------------------------------------------------------------------------------------------------


def test_file(file: Path) -> None:
    made = load_kernel(f"{file}:blur")
    assert made.spec.description == "Blur, twice as bright."
    assert float(made(torch.ones(1, 2, 3, 3)).mean()) == 2.0


def test_module(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(file.parent)
    assert load_kernel("mine:Net").spec.name == "Net"
    with pytest.raises(KernelError, match="did you mean 'blur'"):
        load_kernel("mine:blurr")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("{}:plain", "not a kernel; decorate it"),
        ("{}:blurr", "did you mean 'blur'"),
        ("{}", "name the kernel in the file"),
        ("{}x.py:blur", "no such file"),
        ("no_such_package.x:k", "No module named"),
        ("nothing.pt2", "no such file"),
        ("a b:c", "unknown kernel"),
    ],
)
def test_names_that_are_none(file: Path, name: str, message: str) -> None:
    with pytest.raises(KernelError, match=message):
        load_kernel(name.format(file))


def test_a_file_with_an_error_in_it(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("import no_such_thing\n")
    with pytest.raises(KernelError, match="No module named 'no_such_thing'"):
        load_kernel(f"{tmp_path}/bad.py:k")
    (tmp_path / "worse.py").write_text("def (:\n")
    with pytest.raises(KernelError, match="invalid syntax"):
        load_kernel(f"{tmp_path}/worse.py:k")


# --- the registry --------------------------------------------------------------------------------------------


def gain(
    weights: str | None = None,
    *,
    factor: float = 2.0,
    mode: Literal["on", "off"] = "on",
    bands: int | str = 3,
) -> Kernel:
    """A factory, as a package would register it."""
    options = {"factor": factor, "mode": mode, "bands": bands}
    spec = KernelSpec.parse({"name": "gain", **SPEC}, "gain")
    return Kernel(spec, lambda: lambda x: x * factor, options=options, weights=weights)


def family(member: str, weights: str | None = None, *, width: int = 1) -> Kernel:
    return replace(gain(weights), options={"member": member, "width": width})


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    made = {
        load.GROUP: {"gain": f"{__name__}:gain", "broken": "no_such_package:k"},
        load.FAMILIES: {"fam": f"{__name__}:family"},
    }
    sys.modules.setdefault(__name__, sys.modules[gain.__module__])

    def points(group: str) -> list[importlib.metadata.EntryPoint]:
        return [importlib.metadata.EntryPoint(n, v, group) for n, v in made[group].items()]

    monkeypatch.setattr(load, "entry_points", points)


@pytest.mark.usefixtures("registry")
def test_registered_with_options() -> None:
    made = load_kernel("gain", factor="3", mode="off", bands="red,nir")
    assert made.options == {"factor": 3.0, "mode": "off", "bands": "red,nir"}
    assert load_kernel("gain", bands="4").options["bands"] == 4
    assert load_kernel("gain", weights="x.pth").weights == "x.pth"
    assert load_kernel("fam:one-two", width="3").options == {"member": "one-two", "width": 3}


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"factr": 1}, "did you mean 'factor'"),
        ({"factor": "much"}, "valid number"),
        ({"mode": "maybe"}, "'on' or 'off'"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(KernelError, match=message):
        load_kernel("gain", **options)


@pytest.mark.usefixtures("registry")
def test_list_and_nearest() -> None:
    entries = {e.name: e for e in list_kernels()}
    assert entries["gain"].spec is not None
    assert entries["gain"].options == {
        "factor": "float = 2.0", "mode": "Literal['on', 'off'] = 'on'", "bands": "int | str = 3",
    } or set(entries["gain"].options or {}) == {"factor", "mode", "bands"}  # fmt: skip
    assert entries["broken"].spec is None
    assert "no_such_package" in (entries["broken"].problem or "")
    with pytest.raises(KernelError, match="did you mean 'gain'"):
        load_kernel("gian")
    with pytest.raises(KernelError, match="did you mean 'gain'"):
        kernel_entry("gains")
    with pytest.raises(KernelError, match="cannot be imported"):
        load_kernel("broken")


def test_module_class_takes_options_and_weights(file: Path, tmp_path: Path) -> None:
    name = f"{file}:Net"
    assert load_kernel(name, width="6").module.conv.out_channels == 6
    state = {"conv.weight": torch.zeros(4, 3, 3, 3), "conv.bias": torch.full((4,), 5.0)}
    save_file(state, tmp_path / "w.safetensors")
    made = load_kernel(name, weights=tmp_path / "w.safetensors")
    assert float(made(torch.rand(1, 3, 4, 4)).mean()) == 5.0
    assert made.weights_sha256 is not None
    assert float(load_kernel(name)(torch.rand(1, 3, 4, 4)).mean()) != 5.0
    with pytest.raises(WeightsError, match="of another shape"):
        load_kernel(name, weights=tmp_path / "w.safetensors", width=6).build()
    with pytest.raises(KernelError, match="no weights"):
        load_kernel(f"{file}:blur", weights=tmp_path / "w.safetensors")
    with pytest.raises(KernelError, match="has no options"):
        load_kernel(f"{file}:blur", width=3)


# --- travelling, and the digest -------------------------------------------------------------------------------


def in_another_process(code: str, *arguments: str) -> str:
    run = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    return run.stdout.strip()


def test_a_kernel_of_a_file_travels_without_it(file: Path, tmp_path: Path) -> None:
    made = load_kernel(f"{file}:blur")
    (tmp_path / "k.pickle").write_bytes(cloudpickle.dumps(made))
    file.unlink()
    code = (
        "import sys, pickle, torch; k = pickle.load(open(sys.argv[1], 'rb'));"
        "print(float(k(torch.ones(1, 2, 3, 3)).mean()), k.digest)"
    )
    assert in_another_process(code, str(tmp_path / "k.pickle")) == f"2.0 {made.digest}"


def test_what_was_built_stays_behind(file: Path) -> None:
    made = load_kernel(f"{file}:Net", width=256)
    made(torch.ones(1, 3, 4, 4))
    data = cloudpickle.dumps(made)
    assert len(data) < 8_000
    assert cloudpickle.loads(data).digest == made.digest


def test_digest_is_the_same_in_every_process(file: Path) -> None:
    code = (
        "import sys; from tilewright.kernels.load import load_kernel; print(load_kernel(sys.argv[1]).digest)"
    )
    for name in ("blur", "Net"):
        mine = load_kernel(f"{file}:{name}").digest
        assert in_another_process(code, f"{file}:{name}") == mine


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("return helper(x)", "return helper(x) + 0"),
        ("x * GAIN", "x / GAIN"),
        ("GAIN = 2.0", "GAIN = 2.5"),
        ("radius=16", "radius=15"),
    ],
)
def test_digest_follows_code_helpers_constants_and_description(file: Path, old: str, new: str) -> None:
    before = load_kernel(f"{file}:blur").digest
    file.write_text(FILE.replace(old, new))
    assert load_kernel(f"{file}:blur").digest != before


def test_digest_ignores_comments_and_place(file: Path, tmp_path: Path) -> None:
    before = load_kernel(f"{file}:blur").digest
    other = tmp_path / "elsewhere.py"
    other.write_text("# a comment\n\n\n" + FILE.replace("return helper(x)", "return helper(x)  # twice"))
    assert load_kernel(f"{other}:blur").digest == before


def test_digest_follows_weights_settings_and_options(file: Path, tmp_path: Path) -> None:
    name = f"{file}:Net"
    save_file(
        {"conv.weight": torch.zeros(4, 3, 3, 3), "conv.bias": torch.zeros(4)}, tmp_path / "w.safetensors"
    )
    digests = [
        load_kernel(name).digest,
        load_kernel(name, width=5).digest,
        load_kernel(name, dilation=2).digest,
        load_kernel(name, weights=tmp_path / "w.safetensors").digest,
    ]
    assert len(set(digests)) == 4
    assert load_kernel(name).digest == digests[0]


def test_digest_of_modules_and_closures() -> None:
    def made(seed: int, scores: bool = True) -> str:
        return kernel(**SPEC, name="k")(small_unet(3, 3, seed=seed, scores=scores)).digest

    assert made(0) == made(0)
    assert len({made(0), made(1), made(0, scores=False)}) == 3

    def closure(number: float) -> str:
        return kernel(**SPEC, name="k")(lambda x: x + number).digest

    assert closure(1.0) == closure(1.0)
    assert closure(1.0) != closure(2.0)

    training = small_unet(3, 3)
    training.train()
    assert kernel(**SPEC, name="k")(training).digest != made(0, scores=False)

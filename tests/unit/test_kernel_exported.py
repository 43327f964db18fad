"""Exported models: written, read back to the bit, and refused where they could run code."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
import torch
import yaml
from networks import SMALL_UNET_RADIUS, SMALL_UNET_STRIDE, gaussian33, small_unet
from torch.export.pt2_archive import PT2ArchiveReader, PT2ArchiveWriter

from tilewright.errors import KernelError
from tilewright.kernels.exported import export_kernel
from tilewright.kernels.load import load_kernel
from tilewright.kernels.user import kernel

UNET = kernel(
    name="unet",
    inputs={"image": {"bands": 3}},
    outputs={"y": {"kind": "score", "bands": 2}},
    radius=SMALL_UNET_RADIUS,
    stride=SMALL_UNET_STRIDE,
)(small_unet(3, 2, scores=True))


def ratio(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return a / (b + 1)


RATIO = kernel(inputs={"image": {"dates": 2, "bands": 1}}, outputs={"y": {"kind": "value"}}, radius=0)(ratio)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_kernel(UNET, tmp_path_factory.mktemp("export") / "unet.pt2", torch.randn(2, 3, 64, 64))


def test_the_same_bits_at_any_batch_and_size(archive: Path) -> None:
    made = load_kernel(archive)
    for shape in [(1, 3, 64, 64), (5, 3, 128, 96)]:
        x = torch.randn(shape)
        assert torch.equal(made(x), UNET(x))
    assert made.spec == UNET.spec
    assert made.weights == str(archive)
    assert made.function.eval() is made.function


def test_by_the_description_and_by_what_is_inside(archive: Path, tmp_path: Path) -> None:
    assert load_kernel(archive.with_suffix(".yaml")).digest == load_kernel(archive).digest
    alone = tmp_path / "alone.pt2"
    alone.write_bytes(archive.read_bytes())
    assert load_kernel(alone).spec == UNET.spec
    named = tmp_path / "model.yaml"
    named.write_text(yaml.safe_dump(UNET.spec.model_dump(mode="json") | {"file": "alone.pt2", "radius": 64}))
    assert load_kernel(named).spec.radius == 64
    assert load_kernel(alone).spec.radius == 64


def test_it_travels(archive: Path) -> None:
    data = cloudpickle.dumps(load_kernel(archive))
    assert len(data) < 4_000
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(cloudpickle.loads(data)(x), UNET(x))


def test_functions_of_several_dates(tmp_path: Path) -> None:
    a, b = torch.rand(2, 1, 8, 8), torch.rand(2, 1, 8, 8)
    made = load_kernel(export_kernel(RATIO, tmp_path / "ratio.pt2", (a, b)))
    from tilewright.kernels.contract import Context

    x = torch.stack([a, b], 1)
    zeros = torch.zeros(2, 2, dtype=torch.int64)
    out = made.apply(
        {"image": x},
        {"image": torch.ones_like(x, dtype=torch.bool)},
        Context(zeros, zeros, zeros.double(), 1.0),
    )
    assert torch.equal(out["y"], ratio(a, b))


def test_a_fixed_batch_is_cut_and_padded(tmp_path: Path) -> None:
    blur = kernel(inputs={"image": {"bands": 1}}, outputs={"y": {"kind": "value"}}, radius=16)(gaussian33)
    made = load_kernel(export_kernel(blur, tmp_path / "g.pt2", torch.rand(4, 1, 40, 40), dynamic=False))
    for count in (1, 4, 6):
        x = torch.rand(count, 1, 40, 40)
        torch.testing.assert_close(made(x), blur(x), atol=1e-6, rtol=0)


def test_messages(archive: Path, tmp_path: Path) -> None:
    (tmp_path / "x.pt2").write_bytes(b"no archive")
    (tmp_path / "x.yaml").write_text("inputs: {image: {bands: 3}}\noutputs: {y: {kind: value}}\n")
    with pytest.raises(KernelError, match="not a whole"):
        load_kernel(tmp_path / "x.pt2").build()
    (tmp_path / "x.yaml").write_text("inputz: 3\n")
    with pytest.raises(KernelError, match="did you mean 'inputs'"):
        load_kernel(tmp_path / "x.pt2")
    (tmp_path / "x.yaml").write_text("file: ../other.pt2\n")
    with pytest.raises(KernelError, match="not beside it"):
        load_kernel(tmp_path / "x.yaml")
    with pytest.raises(KernelError, match="neither options nor weights"):
        load_kernel(archive, width=3)
    sha = UNET.spec.model_dump(mode="json") | {"sha256": "0" * 64, "file": "x.pt2"}
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(sha))
    with pytest.raises(KernelError, match="wrong checksum"):
        load_kernel(tmp_path / "x.yaml")


def test_what_cannot_be_exported(tmp_path: Path) -> None:
    def branch(x: torch.Tensor) -> torch.Tensor:
        return x if float(x.sum()) > 0 else -x

    made = kernel(inputs={"image": {}}, outputs={"y": {"kind": "value"}}, radius=0)(branch)
    with pytest.raises(KernelError, match="cannot trace"):
        export_kernel(made, tmp_path / "b.pt2", torch.rand(2, 1, 8, 8))
    assert not list(tmp_path.iterdir())


# --- archives of strangers ------------------------------------------------------------------------------------

Records = dict[str, bytes]
TRACE = Path("/tmp/tilewright-pt2-was-here")


class Harmful:
    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (TRACE,))


def pickled() -> bytes:
    buffer = io.BytesIO()
    torch.save({"a": Harmful()}, buffer)
    return buffer.getvalue()


def graph(change: Callable[[Any], None]) -> Callable[[Records], None]:
    def edit(records: Records) -> None:
        program = json.loads(records["models/model.json"])
        change(program)
        records["models/model.json"] = json.dumps(program).encode()

    return edit


def node(program: Any) -> Any:
    return program["graph_module"]["graph"]["nodes"][0]


def pickled_weight(records: Records) -> None:
    config = json.loads(records["data/weights/model_weights_config.json"])
    next(iter(config["config"].values()))["use_pickle"] = True
    records["data/weights/model_weights_config.json"] = json.dumps(config).encode()
    records["data/weights/weight_0"] = pickled()


def opaque(records: Records) -> None:
    entry = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": False, "tensor_meta": None}
    records["data/constants/model_constants_config.json"] = json.dumps({"config": {"a": entry}}).encode()
    records["data/constants/opaque_obj_0"] = pickled()


CODE = f"__import__('pathlib').Path('{TRACE}').touch()"


def size_of_values(program: Any) -> None:
    text = json.dumps(program)
    at = text.index('"expr_str": "') + len('"expr_str": "')
    program.clear()
    program.update(json.loads(text[:at] + CODE + text[text.index('"', at) :]))


def rename_input(program: Any) -> None:
    text = json.dumps(program).replace('"name": "x"', json.dumps({"name": f"x=[{CODE}]"})[1:-1])
    program.clear()
    program.update(json.loads(text))


HARMFUL: dict[str, Callable[[Records], None]] = {
    "a pickled weight": pickled_weight,
    "an opaque constant": opaque,
    "weights of the old kind": lambda r: r.update({"data/weights/model.pt": pickled()}),
    "a compiled library": lambda r: r.update({"data/aotinductor/model/x.so": b"ELF"}),
    "an operator that opens files": graph(
        lambda p: node(p).update(target="torch.ops.aten.from_file.default")
    ),
    "a function of torch": graph(lambda p: node(p).update(target="torch.hub.load")),
    "a method caller": graph(lambda p: node(p).update(target="_operator.methodcaller")),
    "an extension": graph(lambda p: node(p).update(target="#ns:op")),
    "code as a size": graph(size_of_values),
    "code as a range": graph(lambda p: p["range_constraints"].update({CODE: {"min_val": 1, "max_val": 2}})),
    "code as a name": graph(rename_input),
    "a name that is quoted code": graph(
        lambda p: p["range_constraints"].update({f'Symbol("{CODE}")': {"min_val": 1, "max_val": 2}})
    ),
}


def rewritten(archive: Path, path: Path, change: Callable[[Records], None]) -> Path:
    reader = PT2ArchiveReader(io.BytesIO(archive.read_bytes()))
    records = {n: reader.read_bytes(n) for n in reader.get_file_names() if n[0] != "." and n != "byteorder"}
    change(records)
    buffer = io.BytesIO()
    with PT2ArchiveWriter(buffer) as writer:
        for name, data in records.items():
            writer.write_bytes(name, data)
    path.write_bytes(buffer.getvalue())
    return path


@pytest.mark.parametrize("what", HARMFUL)
def test_archives_that_could_run_code_are_refused(archive: Path, tmp_path: Path, what: str) -> None:
    path = rewritten(archive, tmp_path / "x.pt2", HARMFUL[what])
    with pytest.raises(KernelError, match="could run code"):
        load_kernel(path).build()
    assert not TRACE.exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda r: r.update({"data/sample_inputs/model.pt": pickled()}),
        graph(lambda p: p["guards_code"].append(CODE)),
        graph(lambda p: node(p)["metadata"].update(stack_trace=f"\n{CODE}\n")),
    ],
    ids=["samples", "guards", "traces"],
)
def test_parts_that_are_not_needed_are_left_out(
    archive: Path, tmp_path: Path, change: Callable[[Records], None]
) -> None:
    made = load_kernel(rewritten(archive, tmp_path / "x.pt2", change))
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(made(x), UNET(x))
    assert not TRACE.exists()

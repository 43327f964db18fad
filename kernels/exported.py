"""A kernel as two files that carry no code: ``model.pt2`` (`torch.export`) and ``model.yaml`` (its description)."""

from __future__ import annotations

import hashlib
import inspect
import io
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import yaml

from tilewright.errors import KernelError, WeightsError

from .contract import Kernel, KernelSpec

if TYPE_CHECKING:
    from torch import Tensor
    from torch.export import ExportedProgram

__all__ = ["export_kernel", "load_exported"]

_DESCRIPTION = "model.yaml"


def load_exported(path: Path) -> Kernel:
    """Return the kernel in ``path``, a ``.pt2`` or the ``.yaml`` beside it. The program is loaded at first use.

    The description is the ``.yaml`` of the same stem, ``model.yaml`` in the same folder, or the extra file
    ``model.yaml`` inside the archive. Its keys are those of `KernelSpec`; ``file`` may name the archive,
    ``sha256`` its checksum.

    Raises
    ------
    KernelError
        A file is missing, the description is wrong, or the archive could run code (see
        `tilewright.kernels.archive`).
    """
    path = path.expanduser()
    if not path.is_file():
        raise KernelError("no such file", place=str(path))
    keys: dict[str, Any] = {}
    if path.suffix == ".pt2":
        model = path
        beside = next(
            (p for p in (path.with_suffix(".yaml"), path.with_name(_DESCRIPTION)) if p.is_file()), None
        )
        text = beside.read_text() if beside else _description_inside(path)
        keys = _read_description(text, str(beside or path))
        keys.pop("file", None)
    else:
        keys = _read_description(path.read_text(), str(path))
        named = str(keys.pop("file", path.with_suffix(".pt2").name))
        model = path.parent / named
        if Path(named).name != named or not model.is_file():
            raise KernelError(
                f"the exported model {named!r} is not beside it",
                place=str(path),
                remedy="name it by the key file",
            )
    digest = hashlib.sha256(model.read_bytes()).hexdigest()
    expected = str(keys.pop("sha256", digest)).lower()
    if expected != digest:
        raise WeightsError(
            f"wrong checksum: expected sha256 {expected}, got {digest}",
            place=str(model),
            remedy="fetch the file again, or give the checksum of the model you mean",
        )
    spec = KernelSpec.parse({"name": model.stem, **keys}, place=str(path))
    build = partial(_build, model.resolve(), digest)
    return Kernel(spec, build, weights=str(model), weights_sha256=digest)


def _description_inside(path: Path) -> str:
    from .archive import cleaned

    _, extra = cleaned(path.read_bytes(), str(path))
    if _DESCRIPTION not in extra:
        raise KernelError(
            "there is no description",
            place=str(path),
            remedy=f"put {_DESCRIPTION} beside it, with inputs and outputs",
        )
    return extra[_DESCRIPTION]


def _read_description(text: str, place: str) -> dict[str, Any]:
    try:
        keys = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise KernelError(f"not YAML: {str(error).splitlines()[0]}", place=place) from error
    if not isinstance(keys, dict):
        raise KernelError("holds no keys", place=place, remedy="describe inputs and outputs")
    return keys


def _build(path: Path, sha256: str) -> Any:
    from .archive import load_program

    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != sha256:
        raise WeightsError("changed since the kernel was loaded", place=str(path))
    program, _ = load_program(content, str(path))
    return _program(program, sha256)


def _program(program: ExportedProgram, sha256: str) -> Any:
    """Wrap an exported program as a module that takes any batch: it cuts and pads where the program has one."""
    import torch

    specs = program.graph_signature.input_specs
    names = [s.arg.name for s in specs if s.kind.name == "USER_INPUT"]
    first = next(n for n in program.graph.find_nodes(op="placeholder") if n.name == names[0])
    side = first.meta["val"].shape[0]
    batch = side if type(side) is int else None

    class Program(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.sha256 = sha256
            self.held = {"cpu": program.module(check_guards=False)}  # a dict: its own train() and to() raise
            self.device = "cpu"
            kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
            self.__signature__ = inspect.Signature([inspect.Parameter(n, kind) for n in names])

        def train(self, mode: bool = True) -> Any:
            """Return the program: it was exported in the mode it has."""
            return self

        def to(self, device: Any) -> Any:  # type: ignore[override]
            """Return the program, which runs on ``device`` from now on; constants in its graph move as well."""
            from torch.export.passes import move_to_device_pass

            self.device = str(device)
            if self.device not in self.held:
                moved = move_to_device_pass(program, self.device)
                self.held = {self.device: moved.module(check_guards=False)}
            return self

        def forward(self, *args: Tensor, **kwargs: Tensor) -> Any:
            given = dict(zip(names, args, strict=False)) | kwargs
            return _batched(self.held[self.device], [given[name] for name in names], batch)

    return Program()


def _batched(run: Any, tensors: list[Tensor], batch: int | None) -> Any:
    import torch

    count = tensors[0].shape[0]
    if batch is None or count == batch:
        return run(*tensors)
    parts = []
    for start in range(0, count, batch):
        piece = [t[start : start + batch] for t in tensors]
        lacking = batch - piece[0].shape[0]
        if lacking:
            piece = [torch.cat([t, t[-1:].expand(lacking, *t.shape[1:])]) for t in piece]
        parts.append(run(*piece))
    return _joined(parts, count)


def _joined(parts: list[Any], count: int) -> Any:
    import torch

    if isinstance(parts[0], torch.Tensor):
        return torch.cat(parts)[:count]
    if isinstance(parts[0], Mapping):
        return {k: _joined([p[k] for p in parts], count) for k in parts[0]}
    return tuple(_joined(list(column), count) for column in zip(*parts, strict=True))


def export_kernel(
    kernel: Kernel, path: str | Path, example: Tensor | Sequence[Tensor], *, dynamic: bool = True
) -> Path:
    """Write ``kernel`` as ``path`` (``.pt2``) and its description as the ``.yaml`` beside it.

    Parameters
    ----------
    kernel
        Its forward is a torch module, or a function of tensors, that `torch.export` can trace.
    path
        The archive; replaced if it is there.
    example
        The forward's plain arguments, ``[N, C, H, W]`` or ``[N, T, C, H, W]`` each, with N of at least 2.
    dynamic
        True leaves the batch size open, and the tile size too unless ``spec.tile`` fixes it, as far as the
        network allows; False keeps the example's shapes.

    Returns
    -------
    Path
        The archive, which `load_kernel` takes.

    Raises
    ------
    KernelError
        The forward cannot be exported, or needs code that an archive may not carry.
    """
    import torch

    from .archive import load_program

    path = Path(path)
    tensors = (example,) if isinstance(example, torch.Tensor) else tuple(example)
    module = kernel.function if isinstance(kernel.function, torch.nn.Module) else _as_module(kernel)
    shapes: Any = None
    if dynamic:
        auto = torch.export.Dim.AUTO
        size = {} if kernel.spec.tile.fixed else {-2: auto, -1: auto}
        shapes = tuple({0: auto} | {t.ndim + k: v for k, v in size.items()} for t in tensors)
    try:
        program = torch.export.export(module, tensors, dynamic_shapes=shapes)
    except (RuntimeError, ValueError, TypeError, torch._dynamo.exc.TorchDynamoException) as error:
        first = str(error).strip().splitlines()[0]
        raise KernelError(f"torch.export cannot trace it: {first}", place=kernel.spec.name) from error
    description = yaml.safe_dump(
        kernel.spec.model_dump(mode="json", exclude_defaults=True) | {"name": kernel.spec.name},
        sort_keys=False,
    )
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={_DESCRIPTION: description})
    content = buffer.getvalue()
    load_program(content, str(path))
    path.write_bytes(content)
    path.with_suffix(".yaml").write_text(description)
    return path


def _as_module(kernel: Kernel) -> Any:
    import torch

    function = kernel.function

    class Function(torch.nn.Module):
        def forward(self, *args: Tensor) -> Any:
            return function(*args)

    names = list(inspect.signature(function).parameters)
    cast("Any", Function.forward).__signature__ = inspect.Signature(
        [inspect.Parameter(n, inspect.Parameter.POSITIONAL_OR_KEYWORD) for n in ["self", *names]]
    )
    return Function()

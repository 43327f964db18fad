"""Reading an exported model (``model.pt2``, `torch.export`) without running code that it carries.

``torch.export.load`` must not be given a stranger's file. As of torch 2.13 it unpickles constants and sample
inputs (it falls back to ``weights_only=False``), loads compiled libraries under ``data/aotinductor``, gives
symbolic sizes to ``sympy.sympify`` (which evaluates Python), resolves operators by attribute access, and writes
names and guards into generated Python. So `cleaned` reads the archive with torch's own reader, lets through
plain tensors, ATen and torchvision operators, arithmetic on sizes and plain names, and writes a new archive in
memory, without guards, traces and samples; only that one is loaded.
"""

from __future__ import annotations

import ast
import io
import json
import re
from typing import TYPE_CHECKING, Any

from tilewright.errors import KernelError

if TYPE_CHECKING:
    from torch.export import ExportedProgram

__all__ = ["cleaned", "load_program"]

_TARGET = re.compile(
    r"torch\.ops\.(aten|torchvision)\.\w+\.\w+"
    r"|torch\.sym_(int|float|max|min|not|sum|ite)|torch\.sym_sqrt|math\.(ceil|floor|trunc|sqrt)"
    r"|_operator\.(getitem|add|sub|mul|floordiv|truediv|mod|neg|pos|pow|eq|ne|lt|le|gt|ge|and_|or_|not_)"
)
_FORBIDDEN = re.compile(r"torch\.ops\.aten\.(from_file|_?save|_?load|_print|_import\w*)\.")
_NAME = re.compile(r"[\w.]*")
_VERSION = re.compile(r"[\w.+-]*")
_TEXT = re.compile(r"[\w.,:>\- ]*")
_FUNCTION_NAMES = (
    "Add Mul Pow Integer Rational Float Symbol Max Min Mod FloorDiv PythonMod CleanDiv CeilDiv ModularIndexing"
    " CeilToInt FloorToInt TruncToInt TruncToFloat RoundToInt ToFloat IntTrueDiv FloatTrueDiv FloatPow"
    " PowByNatural Eq Ne Equality Unequality LessThan StrictLessThan GreaterThan StrictGreaterThan And Or Not"
    " Where Identity LShift RShift"
)
_FUNCTIONS = frozenset(_FUNCTION_NAMES.split())
_ALGEBRA = (
    ast.Expression, ast.Call, ast.keyword, ast.Name, ast.Constant, ast.BinOp, ast.UnaryOp, ast.BoolOp,
    ast.Compare, ast.operator, ast.unaryop, ast.boolop, ast.cmpop, ast.Load,
)  # fmt: skip
_EXPECTED = re.compile(
    r"models/model\.json|data/(weights|constants)/[\w.-]+|data/sample_inputs/model\.pt|extra/[\w.-]+"
    r"|archive_format|archive_version|byteorder|\.data/\w+|\.format_version|\.storage_alignment"
)


def load_program(content: bytes, place: str) -> tuple[ExportedProgram, dict[str, str]]:
    """Return the exported program in ``content`` and its extra files (name -> text).

    Raises `KernelError` where the file is no whole archive or holds anything but a graph of known operators and
    its tensors.
    """
    import torch

    clean, extra = cleaned(content, place)
    try:
        return torch.export.load(clean), extra
    except (RuntimeError, ValueError, TypeError, AssertionError, KeyError, NotImplementedError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise KernelError(
            f"torch {torch.__version__} cannot load this export: {first}",
            place=place,
            remedy="export it again with the torch that is installed here",
        ) from error


def cleaned(content: bytes, place: str) -> tuple[io.BytesIO, dict[str, str]]:
    """Return a new archive with the graph and the tensors of ``content`` alone, and the extra files."""
    from torch.export.pt2_archive import PT2ArchiveReader, PT2ArchiveWriter

    try:
        reader = PT2ArchiveReader(io.BytesIO(content))
        names = reader.get_file_names()
        records = {name: reader.read_bytes(name) for name in names}
    except (RuntimeError, AssertionError, OSError) as error:
        raise KernelError(
            "not a whole torch.export archive", place=place, remedy="write it with torch.export.save"
        ) from error
    for name in names:
        if not _EXPECTED.fullmatch(name):
            raise _refused(place, f"it holds {name!r}")
    if "models/model.json" not in records:
        raise KernelError("holds no exported program named 'model'", place=place)
    _check_payload(records, "weights", place)
    _check_payload(records, "constants", place)
    records["models/model.json"] = json.dumps(_clean_graph(records["models/model.json"], place)).encode()
    records["data/sample_inputs/model.pt"] = b""
    buffer = io.BytesIO()
    with PT2ArchiveWriter(buffer) as writer:
        for name, data in records.items():
            if not name.startswith((".", "byteorder", "extra/")):
                writer.write_bytes(name, data)
    buffer.seek(0)
    extra = {
        n.removeprefix("extra/"): records[n].decode("utf-8", "replace") for n in names if n[:6] == "extra/"
    }
    return buffer, extra


def _refused(place: str, why: str) -> KernelError:
    return KernelError(
        f"refused: loading this file could run code ({why})",
        place=place,
        remedy="export plain tensors and ATen operators with torch.export, or give the kernel as a Python module",
    )


def _check_payload(records: dict[str, bytes], folder: str, place: str) -> None:
    """Every tensor lies in the archive as raw bytes, and nothing else does."""
    config = f"data/{folder}/model_{folder}_config.json"
    if config not in records:
        raise _refused(place, f"its {folder} are of the old, pickled kind")
    named = {config}
    for name, entry in json.loads(records[config])["config"].items():
        path = str(entry["path_name"])
        if entry.get("use_pickle") or not re.fullmatch(r"(weight|tensor)_\d+", path):
            raise _refused(place, f"{folder[:-1]} {name!r} is pickled")
        named.add(f"data/{folder}/{path}")
    for record in records:
        if record.startswith(f"data/{folder}/") and record not in named:
            raise _refused(place, f"it holds {record!r}")


def _clean_graph(content: bytes, place: str) -> dict[str, Any]:
    """Return the serialised program without traces and guards; raises where a string could become code."""
    program: dict[str, Any] = json.loads(content)
    program["guards_code"] = []
    for graph in _graphs(program):
        for node in graph["nodes"]:
            node["metadata"] = {}
            target = str(node["target"])
            if not _TARGET.fullmatch(target) or _FORBIDDEN.match(target):
                raise _refused(place, f"operator {target!r}")
    _check_strings(program, "", place)
    return program


def _graphs(value: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        found += _graphs(item)
    if isinstance(value, dict) and isinstance(value.get("nodes"), list):
        found.append(value)
    return found


def _check_strings(value: Any, key: str, place: str) -> None:
    if isinstance(value, dict):
        for name, item in value.items():
            if key == "range_constraints":
                _check_algebra(name, place)
            elif not _NAME.fullmatch(name):
                raise _refused(place, f"name {name[:60]!r}")
            _check_strings(item, name, place)
    elif isinstance(value, list):
        for item in value:
            _check_strings(item, key, place)
    elif isinstance(value, str):
        _check_string(value, key, place)


def _check_string(value: str, key: str, place: str) -> None:
    if key == "expr_str":
        _check_algebra(value, place)
    elif key in ("in_spec", "out_spec") or (key == "context" and value[:1] in '["{'):
        _check_strings(json.loads(value), "spec", place)
    else:
        allowed = {"torch_version": _VERSION, "as_string": _TEXT}.get(key, _NAME)
        if not allowed.fullmatch(value):
            raise _refused(place, f"{key} {value[:60]!r}")


def _check_algebra(text: str, place: str) -> None:
    """Let sums, products and the like of symbols through: sympy evaluates what it is given."""
    try:
        nodes = list(ast.walk(ast.parse(text, mode="eval")))
    except (SyntaxError, ValueError, RecursionError) as error:
        raise _refused(place, f"size {text[:60]!r}") from error
    calls = {id(n.func) for n in nodes if isinstance(n, ast.Call)}
    for node in nodes:
        fine = isinstance(node, _ALGEBRA)
        if isinstance(node, ast.Call):
            fine = isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS
        elif isinstance(node, ast.Name) and id(node) not in calls:
            fine = re.fullmatch(r"[suz]\w*\d+|int_oo|oo|true|false|True|False", node.id) is not None
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            fine = re.fullmatch(r"[suz]\w*\d+", node.value) is not None
        if not fine:
            raise _refused(place, f"size {text[:60]!r}")

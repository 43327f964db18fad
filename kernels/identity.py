"""What a callable computes, as a hash: its code, the values it closes over, its weights.

Code is taken from compiled code objects, not from source files: it exists in notebooks and on workers, and
neither comments nor a moved function change it. Another minor version of Python does. Functions and classes of
the same package are followed; those of installed libraries count by name (their versions are recorded
elsewhere, in a run's ``versions``).
"""

from __future__ import annotations

import dataclasses
import functools
import sys
import sysconfig
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import hashlib

__all__ = ["Identity"]

_SCHEMES = ("stdlib", "platstdlib", "purelib", "platlib")
_LIBRARIES = tuple({str(Path(p)) for scheme in _SCHEMES if (p := sysconfig.get_path(scheme))})
_CLASS_PARTS = (types.FunctionType, staticmethod, classmethod, property, tuple, int, float, str)
_TOO_LARGE = {"torch", "numpy", "scipy"}
_PLAIN = (int, float, complex, str, bytes, bool, type(None), type(Ellipsis))


class Identity:
    """Feeds what a callable depends on into a hash, each object once.

    Parameters
    ----------
    hasher
        Receives the bytes.
    """

    def __init__(self, hasher: hashlib._Hash) -> None:
        self._hasher = hasher
        self._seen: dict[int, object] = {}
        self._home: str | None = None

    def feed(self, value: Any, name: str = "") -> None:
        """Add ``value`` (a callable, a module, a tensor or plain data) under ``name``."""
        if self._home is None:
            self._home = _home(value)
        self._write(f"<{name}>")
        self._value(value)

    def _write(self, text: str) -> None:
        self._hasher.update(text.encode("utf-8", "surrogatepass") + b"\0")

    def _value(self, value: Any) -> None:
        if isinstance(value, _PLAIN):
            self._write(f"{type(value).__name__}:{value!r}")
        elif isinstance(value, tuple | list):
            self._items(type(value).__name__, enumerate(value))
        elif isinstance(value, set | frozenset):
            self._write("set:" + ",".join(sorted(map(repr, value))))
        elif isinstance(value, Mapping):
            self._items("map", sorted(((str(k), v) for k, v in value.items()), key=lambda kv: kv[0]))
        elif isinstance(value, types.CodeType):
            self._code(value)
        elif isinstance(value, types.ModuleType):
            self._write(f"module:{value.__name__}")
        elif _is_array(value):
            self._tensor(value)
        elif id(value) in self._seen:
            self._write("seen")
        else:
            self._seen[id(value)] = value  # kept alive, so that an id is not met twice
            self._object(value)

    def _items(self, kind: str, items: Any) -> None:
        self._write(kind)
        for key, item in items:
            self._write(str(key))
            self._value(item)

    def _object(self, value: Any) -> None:
        if isinstance(value, functools.partial):
            self._items("partial", [("f", value.func), ("a", value.args), ("k", value.keywords)])
        elif isinstance(value, types.MethodType):
            self._items("method", [("f", value.__func__), ("o", value.__self__)])
        elif isinstance(value, staticmethod | classmethod):
            self._value(value.__func__)
        elif isinstance(value, property):
            self._items("property", [("get", value.fget)])
        elif isinstance(value, types.FunctionType):
            self._function(value)
        elif isinstance(value, type):
            self._class(value)
        elif _is_module(value):
            self._network(value)
        elif dataclasses.is_dataclass(value):
            fields = dataclasses.fields(value)
            self._items(type(value).__qualname__, [(f.name, getattr(value, f.name)) for f in fields])
        else:
            self._value(type(value))
            self._items("state", sorted(_plain_state(value)))

    def _code(self, code: types.CodeType, doc: str | None = None) -> None:
        self._hasher.update(code.co_code)
        self._write(",".join((*code.co_names, "|", *code.co_varnames, "|", *code.co_freevars)))
        self._value(tuple(c for c in code.co_consts if doc is None or c is not doc))

    def _function(self, function: types.FunctionType) -> None:
        if self._foreign(function.__module__):
            self._write(f"{function.__module__}.{function.__qualname__}")
            return
        self._code(function.__code__, function.__doc__)
        self._items("defaults", [("a", function.__defaults__), ("k", function.__kwdefaults__)])
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            self._write(name)
            try:
                self._value(cell.cell_contents)
            except (
                ValueError
            ):  # an empty cell: a name that is bound later, such as a recursive function's own
                self._write("empty")
        names = sorted(set(_names(function.__code__)))
        for name in names:
            if name in function.__globals__:
                self._write(name)
                self._global(function.__globals__[name], names)

    def _global(self, value: Any, names: list[str]) -> None:
        """A global that a function names; of a module of the same package, the attributes it may mean."""
        if isinstance(value, types.ModuleType) and not self._foreign(value.__name__):
            for name in names:
                found = getattr(value, name, None)
                if isinstance(found, types.FunctionType | type | int | float | str | tuple):
                    self._write(name)
                    self._value(found)
        else:
            self._value(value)

    def _class(self, cls: type) -> None:
        if self._foreign(cls.__module__):
            self._write(f"{cls.__module__}.{cls.__qualname__}")
            return
        self._write(cls.__qualname__)
        for base in cls.__bases__:
            self._value(base)
        for name, value in sorted(vars(cls).items()):
            if isinstance(value, _CLASS_PARTS):
                if name in ("__module__", "__doc__", "__firstlineno__", "__static_attributes__"):
                    continue
                self._write(name)
                self._value(value)

    def _network(self, network: Any) -> None:
        """Classes, settings and tensors of a torch module and its children, by name."""
        import torch

        for name, module in network.named_modules():
            self._write(name)
            if isinstance(module, torch.fx.GraphModule):
                self._write(module.code)
                continue
            self._value(type(module))
            self._items("state", sorted((k, v) for k, v in _plain_state(module)))
        buffers = dict(network.named_buffers(remove_duplicate=False))
        for name, tensor in sorted(
            (dict(network.named_parameters(remove_duplicate=False)) | buffers).items()
        ):
            self._write(name)
            self._tensor(tensor)

    def _tensor(self, value: Any) -> None:
        import numpy as np
        import torch

        tensor = (
            value.detach().cpu() if isinstance(value, torch.Tensor) else torch.from_numpy(np.array(value))
        )
        self._write(f"{tensor.dtype}{list(tensor.shape)}")
        self._hasher.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())

    def _foreign(self, module: str | None) -> bool:
        """True for a module of the standard library or of an installed library other than the kernel's own."""
        root = (module or "").partition(".")[0]
        if root == self._home or root in ("tilewright", "__main__", ""):
            return False
        if root in sys.stdlib_module_names:
            return True
        file = getattr(sys.modules.get(root), "__file__", None)
        return file is not None and file.startswith(_LIBRARIES)


def _home(value: Any) -> str:
    """The top-level package whose code is followed: the one in which the kernel itself was written."""
    while isinstance(value, functools.partial):
        value = value.func
    if isinstance(value, types.MethodType):
        value = value.__self__
    root = value if isinstance(value, type | types.FunctionType) else type(value)
    name = (getattr(root, "__module__", "") or "").partition(".")[0]
    return "" if name in _TOO_LARGE or name in sys.stdlib_module_names else name


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _is_array(value: Any) -> bool:
    module = type(value).__module__.partition(".")[0]
    if isinstance(value, type):  # torch.Tensor itself, where a function asks whether something is one
        return False
    return module in ("torch", "numpy") and hasattr(value, "dtype") and hasattr(value, "shape")


def _is_module(value: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.nn.Module)


def _plain_state(value: Any) -> Iterator[tuple[str, Any]]:
    """Attributes that are settings: numbers, strings, and sequences of them; ``training`` is one."""
    for name, item in vars(value).items() if hasattr(value, "__dict__") else ():
        flat = item if isinstance(item, tuple | list) else (item,)
        if not name.startswith("_") and all(isinstance(i, _PLAIN) for i in flat):
            yield name, item

"""Finding a kernel by name: the registry, a module, a file, or an exported model.

A kernel is registered as an entry point of the group `GROUP`; its value is a `Kernel` or a factory
``(weights=None, **options) -> Kernel`` that returns without loading weights or building a network. A family,
``family:member``, is an entry point of `FAMILIES` whose factory takes the member's name first.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import inspect
import sys
import traceback
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml
from pydantic import PydanticSchemaGenerationError, TypeAdapter, ValidationError

from tilewright.errors import KernelError, TilewrightError, nearest_name

from .contract import Kernel, KernelSpec
from .user import ModuleClass, with_weights
from .weights import Weights, resolve_weights

__all__ = [
    "FAMILIES",
    "GROUP",
    "KernelEntry",
    "kernel_entry",
    "list_kernels",
    "load_for_bands",
    "load_kernel",
    "parse_option",
]

GROUP = "tilewright.kernels"
"""Entry points: kernel name -> `Kernel`, or factory ``(weights=None, **options) -> Kernel``."""

FAMILIES = "tilewright.kernel_families"
"""Entry points: family name -> factory ``(member, weights=None, **options) -> Kernel``."""

_EXPORTED = (".pt2", ".yaml", ".yml")


@dataclass(frozen=True, slots=True)
class KernelEntry:
    """One line of the registry."""

    name: str
    """What `load_kernel` takes."""
    target: str
    """Where it is defined, ``package.module:name``."""
    spec: KernelSpec | None = None
    """The description with default options; None where there is a `problem`."""
    options: Mapping[str, str] | None = None
    """Option -> its annotation and default, as written."""
    problem: str | None = None
    """Why it cannot be described here, such as a package that is not installed."""
    about: str | None = None
    """What a family's members are: a family stands in one line, and is described when a member is named."""


def list_kernels() -> list[KernelEntry]:
    """Return all registered kernels and families by name. Loads no weights, and no torch unless a module does."""
    families = [_family(point) for _, point in sorted(_points(FAMILIES).items())]
    return [*(_entry(point) for _, point in sorted(_points(GROUP).items())), *families]


def kernel_entry(name: str) -> KernelEntry:
    """Return the registry's line for ``name``; raises `KernelError` with the nearest name."""
    points = _points(GROUP)
    family, colon, member = name.partition(":")
    if colon and family in (families := _points(FAMILIES)):
        return _entry(families[family], member)
    if name not in points:
        raise KernelError(f"unknown kernel {name!r}", remedy=nearest_name(name, points))
    return _entry(points[name])


def _points(group: str) -> dict[str, EntryPoint]:
    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=group):
        other = found.setdefault(point.name, point)
        if other.value != point.value:
            raise KernelError(
                f"two packages register the kernel {point.name!r}: {other.value} and {point.value}",
                remedy="load it as package.module:name, or remove one of them",
            )
    return found


def _entry(point: EntryPoint, member: str | None = None) -> KernelEntry:
    """Describe a kernel, or with ``member`` one of a family."""
    name, given = (point.name, []) if member is None else (f"{point.name}:{member}", [member])
    try:
        target = point.load()
        made = target if isinstance(target, Kernel) else target(*given)
    except (ImportError, AttributeError, KernelError) as error:
        return KernelEntry(name, point.value, problem=str(error))
    options = {n: _shown(p) for n, p in _options_of(target, skip=len(given)).items()}
    return KernelEntry(name, point.value, made.spec, options)


def _family(point: EntryPoint) -> KernelEntry:
    name = f"{point.name}:NAME"
    try:
        factory = point.load()
    except (ImportError, AttributeError) as error:
        return KernelEntry(name, point.value, problem=str(error))
    options = {n: _shown(p) for n, p in _options_of(factory, skip=1).items()}
    about = (inspect.getdoc(factory) or "a family of kernels").partition("\n\n")[0]
    return KernelEntry(name, point.value, options=options, about=about)


def _shown(parameter: inspect.Parameter) -> str:
    return str(parameter).partition(":")[2].strip() or str(parameter)


def load_kernel(name: str | Path, /, weights: Any = None, **options: Any) -> Kernel:
    """Return the kernel called ``name``.

    Parameters
    ----------
    name
        A registered name (``ir-mad``), a family's member (``family:member``), ``package.module:attribute``,
        ``path/file.py:attribute``, ``path/model.pt2`` (``model.yaml`` beside it or inside), or
        ``path/model.yaml``.
    weights
        See `resolve_weights`; None takes the kernel's own.
    options
        The kernel's options. Strings, as ``--set key=value`` gives them, are read as YAML; all values are
        checked against the factory's annotations.

    Raises
    ------
    KernelError
        Unknown name or option (with the nearest), an option of the wrong type, a module that cannot be
        imported, or an object that is no kernel.
    WeightsError
        The weights are absent or are others.
    """
    text = str(name)
    if Path(text).suffix in _EXPORTED:
        from .exported import load_exported

        if options or weights is not None:
            raise KernelError("an exported model takes neither options nor weights", place=text)
        return load_exported(Path(text))
    points = _points(GROUP)
    if text in points:
        return _make(_import(points[text], text), text, weights, options, registered=True)
    head, colon, rest = (
        text.rpartition(":") if text.count(":") > 1 and ".py:" in text else text.partition(":")
    )
    families = _points(FAMILIES)
    if colon and head in families:
        factory = _import(families[head], text)
        return _make(factory, text, weights, options, registered=True, member=rest)
    if colon and rest:
        target = _attribute(_module(head, text), rest, text)
        return _make(target, text, weights, options, registered=False)
    known = [*points, *(f"{f}:" for f in families)]
    raise KernelError(f"unknown kernel {text!r}", remedy=_unknown_remedy(text, known))


def load_for_bands(
    name: str | Path, bands: Sequence[str], weights: Any = None, options: Mapping[str, Any] | None = None
) -> Kernel:
    """Return the kernel called ``name`` for an image of these bands; parameters and errors as for `load_kernel`.

    A registered kernel that works on any bands has an option ``bands``: unless it is set, it becomes ``bands``. Empty
    ``bands`` leave it as it is.
    """
    chosen = dict(options or {})
    if bands and "bands" not in chosen and str(name) in _points(GROUP):
        entry = kernel_entry(str(name))
        any_bands = entry.spec is not None and any(
            isinstance(one.bands, int) for one in entry.spec.inputs.values()
        )
        if any_bands and "bands" in (entry.options or {}):
            chosen["bands"] = tuple(bands)
    return load_kernel(name, weights, **chosen)


def _unknown_remedy(name: str, known: list[str]) -> str:
    if name.endswith(".py"):
        return f"name the kernel in the file, {name}:NAME"
    return f"{nearest_name(name, known)}; your own are package.module:name or file.py:name"


def _import(point: EntryPoint, place: str) -> Any:
    try:
        return point.load()
    except (ImportError, AttributeError) as error:
        raise KernelError(f"cannot be imported: {error}", place=place) from error


def _module(head: str, place: str) -> ModuleType:
    if head.endswith(".py"):
        return _module_of_file(Path(head), place)
    if not all(part.isidentifier() for part in head.split(".")):
        raise KernelError(f"unknown kernel {place!r}", remedy=_unknown_remedy(place, list(_points(GROUP))))
    try:
        return importlib.import_module(head)
    except ModuleNotFoundError as error:
        missing = head.startswith(str(error.name))
        remedy = _unknown_remedy(place, list(_points(GROUP))) if missing else "install what it needs"
        raise KernelError(f"cannot be imported: {error}", place=place, remedy=remedy) from error
    except Exception as error:
        _refuse(error, place)
        raise


def _refuse(error: BaseException, place: str, path: Path | None = None) -> None:
    """Raise `KernelError` for what a stranger's module may raise on import, which is anything."""
    if isinstance(error, TilewrightError) or not isinstance(error, Exception):
        return
    if isinstance(error, ImportError):
        raise KernelError(
            f"cannot be imported: {error}", place=place, remedy="install what it needs"
        ) from error
    if isinstance(error, SyntaxError):
        raise KernelError(f"cannot be imported: {error}", place=place, remedy="repair the file") from error
    last = traceback.extract_tb(error.__traceback__)
    own = [f for f in last if path is None or Path(f.filename) == path] or last
    where = f"{Path(own[-1].filename).name}, line {own[-1].lineno}"
    raise KernelError(
        f"its import raises {type(error).__name__}: {error} ({where})",
        place=place,
        remedy="repair the module",
    ) from error


def _module_of_file(path: Path, place: str) -> ModuleType:
    """Import a file under a name of its own; its functions travel to workers by value, not by that name."""
    import cloudpickle  # type: ignore[import-untyped]

    path = path.expanduser().resolve()
    if not path.is_file():
        raise KernelError("no such file", place=str(path))
    content = hashlib.sha256(str(path).encode() + path.read_bytes()).hexdigest()[:12]
    name = f"_tilewright_file_{path.stem}_{content}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise KernelError("not a Python file", place=place)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        _refuse(error, place, path)
        raise
    cloudpickle.register_pickle_by_value(module)
    return module


def _attribute(module: ModuleType, path: str, place: str) -> Any:
    target: Any = module
    for part in path.split("."):
        if not hasattr(target, part):
            known = [n for n, v in vars(module).items() if isinstance(v, Kernel)] or [
                n for n in vars(module) if not n.startswith("_")
            ]
            raise KernelError(f"has no {path!r}", place=place, remedy=nearest_name(path, known))
        target = getattr(target, part)
    return target


def _make(
    target: Any,
    place: str,
    weights: Any,
    options: Mapping[str, Any],
    *,
    registered: bool,
    member: str | None = None,
) -> Kernel:
    if not isinstance(target, Kernel) and not registered and not _returns_kernel(target):
        raise KernelError(
            f"a {type(target).__name__}, not a kernel",
            place=place,
            remedy="decorate it with @tilewright.kernel(...), or annotate a factory with -> Kernel",
        )
    checked = _checked(_options_of(target, skip=1 if member is not None else 0), options, target, place)
    if isinstance(target, Kernel):
        return (
            with_weights(target, resolve_weights(weights) if weights is not None else None, checked)
            if (weights is not None or checked)
            else target
        )
    arguments = [] if member is None else [member]
    if weights is not None:
        if "weights" not in inspect.signature(target).parameters:
            raise KernelError("this kernel has no weights", place=place, remedy="leave them out")
        checked["weights"] = weights.source if isinstance(weights, Weights) else weights
    made = target(*arguments, **checked)
    if not isinstance(made, Kernel):
        raise KernelError(f"the factory returned a {type(made).__name__}, not a Kernel", place=place)
    return made


def _returns_kernel(target: Any) -> bool:
    if not callable(target) or inspect.isclass(target):
        return False
    returns = inspect.signature(target).return_annotation
    return returns is Kernel or (isinstance(returns, str) and returns.rpartition(".")[2] == "Kernel")


def _options_of(target: Any, skip: int = 0) -> dict[str, inspect.Parameter]:
    """Options that a factory, or the class of a kernel, takes."""
    if isinstance(target, Kernel):
        if not isinstance(target.build, ModuleClass):
            return {}
        target = target.build.cls
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    named = [p for p in inspect.signature(target).parameters.values() if p.kind in kinds]
    return {p.name: p for p in named[skip:] if p.name != "weights"}


def _hints(target: Any) -> dict[str, Any]:
    if isinstance(target, Kernel):
        target = target.build.cls.__init__ if isinstance(target.build, ModuleClass) else target
    elif not inspect.isroutine(target) and not inspect.isclass(target):
        target = type(target).__call__
    try:
        return typing.get_type_hints(target, include_extras=True)
    except (NameError, TypeError):  # a name imported for type checkers alone: those options go unchecked
        return {}


def _checked(
    known: Mapping[str, inspect.Parameter], options: Mapping[str, Any], target: Any, place: str
) -> dict[str, Any]:
    hints = _hints(target)
    checked: dict[str, Any] = {}
    passes = not isinstance(target, Kernel) and any(
        p.kind is inspect.Parameter.VAR_KEYWORD for p in inspect.signature(target).parameters.values()
    )
    for name, value in options.items():
        if name not in known and passes:  # a factory that hands them on to another, which checks them
            checked[name] = value
            continue
        if name not in known:
            remedy = nearest_name(name, known) if known else "this kernel has no options"
            raise KernelError(f"unknown option {name!r}", place=place, remedy=remedy)
        checked[name] = parse_option(value, hints.get(name, Any), f"{place}, option {name}")
    return checked


def parse_option(value: Any, annotation: Any, place: str) -> Any:
    """Return the value of an option as its annotation wants it; raises `KernelError` where it cannot be that.

    A string counts as YAML, then as itself, where only one of them has the type.
    """
    candidates = [value]
    if isinstance(value, str):
        with contextlib.suppress(yaml.YAMLError):
            candidates = [yaml.safe_load(value), value]
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(annotation)
    except PydanticSchemaGenerationError:
        return candidates[0]
    for strict in (True, False):
        for candidate in candidates:
            try:
                return adapter.validate_python(candidate, strict=strict)
            except ValidationError as error:
                problem = error
    message = problem.errors()[0]["msg"]
    raise KernelError(f"{value!r}: {message}", place=place) from problem

"""Weights: where a file lies, whether it is the right one, and its tensors, without running any code in it.

Two formats are read: safetensors, and torch files with ``weights_only=True``
(https://docs.pytorch.org/docs/stable/notes/serialization.html#weights-only). Numbers of numpy beside the tensors, such
as the best score in a training checkpoint, are read too. A pickle that needs anything else is refused.
"""

from __future__ import annotations

import fnmatch
import hashlib
import importlib.resources
import importlib.util
import logging
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tilewright.errors import WeightsError, nearest_name

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["Weights", "load_into", "load_state_dict", "packaged_file", "resolve_weights"]

logger = logging.getLogger(__name__)

_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
_HUB_FILES = ("model.safetensors", "pytorch_model.bin", "model.pth", "model.pt")
_WRAPPERS = ("state_dict", "model_state_dict", "model_G_state_dict", "model", "net", "params_ema", "params")
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Weights:
    """A weights file on this machine."""

    path: Path
    """The file."""
    sha256: str
    """Its checksum, in lower-case hexadecimal."""
    source: str
    """Where it came from: the path, or ``hf://owner/name/file@commit``, or ``pkg://package/path``."""

    def __str__(self) -> str:
        return self.source


def resolve_weights(ref: str | Path | Weights | Mapping[str, Any], sha256: str | None = None) -> Weights:
    """Find a weights file and check it against ``sha256``.

    Parameters
    ----------
    ref
        A local path; ``hf://owner/name[/file][@revision]`` for the Hugging Face hub (extra ``hub``; without a
        revision the current commit is taken and stands in ``source``, without a file the usual names are
        tried); ``pkg://package/path`` for a file inside an installed package; or a mapping with the keys
        ``ref`` and ``sha256``.
    sha256
        Expected checksum; None accepts any and only records it.

    Raises
    ------
    WeightsError
        The file is absent, or its checksum is another.
    """
    if isinstance(ref, Weights):
        _verify(ref.path, sha256 or ref.sha256, ref.source)
        return ref
    if isinstance(ref, Mapping):
        unknown = sorted(set(ref) - {"ref", "sha256"})
        if unknown or "ref" not in ref:
            cause = f"unknown key {unknown[0]!r}" if unknown else "the key 'ref' is missing"
            raise WeightsError(cause, place="weights", remedy="give ref and, if known, sha256")
        return resolve_weights(ref["ref"], ref.get("sha256") or sha256)
    text = os.fspath(ref)
    if text.startswith("hf:"):
        path, source = _from_hub(text)
    elif text.startswith("pkg:"):
        path, source = _from_package(text), text
    else:
        path = Path(text).expanduser()
        source = str(path)
    if not path.is_file():
        raise WeightsError(
            "no such file", place=source, remedy="give a path, hf://owner/name@revision or pkg://"
        )
    return Weights(path, _verify(path, sha256, source), source)


def _verify(path: Path, expected: str | None, source: str) -> str:
    try:
        status = path.stat()
        found = _sha256(path, status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise WeightsError(f"cannot be read: {error.strerror}", place=source) from error
    if expected is not None and found != expected.lower():
        raise WeightsError(
            f"wrong checksum: expected sha256 {expected.lower()}, got {found}",
            place=source,
            remedy="fetch the file again, or give the checksum of the weights you mean",
        )
    return found


@lru_cache(maxsize=64)
def _sha256(path: Path, size: int, mtime_ns: int) -> str:
    """Checksum of a file; size and time are in the key, so that a file that changed is read again."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _from_package(ref: str) -> Path:
    package, _, inside = ref.removeprefix("pkg://").partition("/")
    remedy = f"install the package that holds {package!r}"
    parts = inside.split("/")
    if not package or not inside or ".." in parts:
        raise WeightsError("not of the form pkg://package/path", place=ref)
    try:
        found = importlib.resources.files(package).joinpath(*parts)
    except ModuleNotFoundError as error:
        raise WeightsError(f"the package {package!r} is not installed", place=ref, remedy=remedy) from error
    if not isinstance(found, Path):
        raise WeightsError("the package is not unpacked on disk", place=ref, remedy="install it unzipped")
    return found


def packaged_file(package: str, inside: str, sha256: str, *, place: str, extra: str) -> Weights:
    """Find a file inside an installed package without running the package's code, as ``pkg://`` would.

    Parameters
    ----------
    package
        Name that it is imported by.
    inside
        Path below its folder.
    sha256
        Checksum of the file.
    place
        Name of the kernel, for the error.
    extra
        Extra of tilewright that brings the package.

    Raises
    ------
    WeightsError
        The package is not installed, is another version without the file, or holds another file.
    """
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise WeightsError(
            f"the package {package}, which holds the weights, is not installed",
            place=place,
            remedy=f"install 'tilewright[{extra}]', or give the file with --weights PATH",
        )
    file = Path(next(iter(found.submodule_search_locations))) / inside
    if not file.is_file():
        raise WeightsError(
            f"the installed {package} holds no {inside}", place=place, remedy=f"install 'tilewright[{extra}]'"
        )
    return resolve_weights(Weights(file, sha256, f"pkg://{package}/{inside}"))


_HUB = re.compile(r"hf:(?://)?(?P<repo>[\w.-]+/[\w.-]+)(?:/(?P<file>[^@]+))?(?:@(?P<revision>[^@]+))?")


def _from_hub(ref: str) -> tuple[Path, str]:
    match = _HUB.fullmatch(ref)
    if match is None:
        raise WeightsError("not of the form hf://owner/name[/file]@revision", place=ref)
    try:
        import huggingface_hub as hub
        from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError
    except ImportError as error:
        raise WeightsError(
            "weights from the Hugging Face hub need huggingface_hub",
            place=ref,
            remedy="install 'tilewright[hub]'",
        ) from error
    repo, revision = match["repo"], match["revision"]
    names = (match["file"],) if match["file"] else _HUB_FILES
    last: Exception | None = None
    for name in names:
        try:
            path = Path(hub.hf_hub_download(repo, name, revision=revision))
        except EntryNotFoundError as error:  # not in the repository, or offline and not in the cache
            last = error
            continue
        except (HfHubHTTPError, HFValidationError, OSError) as error:
            first = str(error).strip().splitlines()[0]
            raise WeightsError(f"the hub refused: {first}", place=ref) from error
        commit = _commit_of(path, name)
        if revision is None:
            logger.info("%s: no revision was given; took the current commit %s", ref, commit)
        return path, f"hf://{repo}/{name}@{commit}"
    raise WeightsError(
        f"neither on the hub nor in the local cache: {', '.join(names)}",
        place=ref,
        remedy="name the file and the revision: hf://owner/name/file@revision",
    ) from last


def _commit_of(path: Path, name: str) -> str:
    """The hub's cache lays files out as ``snapshots/<commit>/<file>``."""
    return path.parents[len(Path(name).parts) - 1].name


def load_state_dict(weights: Weights, *, key: str | Mapping[str, str] | None = None) -> dict[str, Tensor]:
    """Read the tensors of a weights file on the CPU. The checksum is verified first; no code in it is run.

    Parameters
    ----------
    weights
        The file, from `resolve_weights`.
    key
        The entry that holds the tensors, where a training checkpoint holds more than them (``"state_dict"``);
        dots go deeper. None takes the usual ones by themselves, and logs which it took. A ``module.`` that
        stands before all names (left by ``DataParallel``) is taken off, and logged. A mapping of prefix -> entry
        puts together what lies in several; a file that has none of them is read as with None.

    Raises
    ------
    WeightsError
        Wrong checksum, a pickle with code in it, a truncated file, or no tensors.
    """
    _verify(weights.path, weights.sha256, weights.source)
    suffix = weights.path.suffix.lower()
    if suffix == ".safetensors":
        return _read_safetensors(weights)
    if suffix not in _SUFFIXES:
        raise WeightsError(
            f"unknown format {suffix!r}", place=weights.source, remedy=f"known: {', '.join(_SUFFIXES)}"
        )
    content = _read_torch(weights)
    if not isinstance(key, Mapping):
        return _plain(_unwrap(content, key, weights.source), weights.source)
    if not isinstance(content, Mapping) or not set(key.values()) & set(content):
        return _plain(_unwrap(content, None, weights.source), weights.source)
    return {
        prefix + name: tensor
        for prefix, entry in key.items()
        for name, tensor in _plain(_unwrap(content, entry, weights.source), weights.source).items()
    }


def _plain(tensors: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    if tensors and all(name.startswith("module.") for name in tensors):
        logger.info("%s: took off the prefix 'module.'", source)
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    return tensors


def _read_safetensors(weights: Weights) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(weights.path)
    except SafetensorError as error:
        raise WeightsError(f"not a whole safetensors file: {error}", place=weights.source) from error


def _read_torch(weights: Weights) -> Any:
    import pickle

    import torch

    from .scalars import numpy_scalars

    try:
        with numpy_scalars():
            return torch.load(weights.path, map_location="cpu", weights_only=True)
    # IndexError and AttributeError come of bytes that happen to be opcodes of a pickle, without its stack.
    except (
        pickle.UnpicklingError,
        RuntimeError,
        EOFError,
        ValueError,
        KeyError,
        IndexError,
        AttributeError,
    ) as error:
        text = str(error)
        named = re.search(r"GLOBAL ([\w.]+)", text)
        if named or "TorchScript" in text or "Unsupported" in text:
            what = f"it needs {named[1]}" if named else "it holds more than tensors"
            cause = f"refused: loading this file would run code ({what})"
        else:
            cause = f"not a whole torch file: {text.strip().splitlines()[0] if text.strip() else 'empty'}"
        raise WeightsError(
            cause, place=weights.source, remedy="save the state_dict alone, best as safetensors"
        ) from error


def _unwrap(content: Any, key: str | None, source: str) -> dict[str, Tensor]:
    import torch

    if key is not None:
        for part in key.split("."):
            if not isinstance(content, Mapping) or part not in content:
                known = [str(k) for k in content] if isinstance(content, Mapping) else []
                raise WeightsError(f"no entry {key!r}", place=source, remedy=nearest_name(part, known))
            content = content[part]
    while isinstance(content, Mapping) and not any(isinstance(v, torch.Tensor) for v in content.values()):
        found = next((w for w in _WRAPPERS if isinstance(content.get(w), Mapping)), None)
        if found is None or key is not None:
            break
        logger.info("%s: took the tensors under %r", source, found)
        content = content[found]
    if not isinstance(content, Mapping):
        raise WeightsError(f"holds a {type(content).__name__}, not named tensors", place=source)
    tensors = {str(n): v for n, v in content.items() if isinstance(v, torch.Tensor)}
    if not tensors:
        names = ", ".join(str(k) for k in list(content)[:5])
        raise WeightsError(f"holds no tensors (entries: {names or 'none'})", place=source)
    return tensors


def load_into(
    module: nn.Module,
    state: Mapping[str, Tensor],
    rename: Mapping[str, str] | Callable[[str], str | None] | None = None,
    *,
    place: str = "weights",
    optional: tuple[str, ...] = ("*num_batches_tracked",),
    closest: Callable[[Mapping[str, tuple[int, ...]]], str | None] | None = None,
) -> None:
    """Copy ``state`` into ``module``, every tensor by its name and shape, or nothing.

    Parameters
    ----------
    module
        Receives the values, in its own dtypes.
    state
        Name -> tensor.
    rename
        Old prefix -> new prefix (the longest that fits wins), or a function from the old name to the new one,
        or to None for a tensor that is not wanted.
    place
        What the message calls the weights.
    optional
        Patterns of names that may be missing; by default the batch counters, which have no influence.
    closest
        Given name -> shape of weights that do not fit, returns the name of the model that they fit best, or None.

    Raises
    ------
    WeightsError
        Names that are missing, unexpected or of another shape: the first few, and how many more.
    """
    own = module.state_dict()
    given: dict[str, Tensor] = {}
    for name, tensor in state.items():
        new = _renamed(name, rename)
        if new is not None:
            given[new] = tensor
    missing = [
        n for n in own if n not in given and not any(fnmatch.fnmatchcase(n, pattern) for pattern in optional)
    ]
    unexpected = [n for n in given if n not in own]
    misshaped = [
        f"{n} (is {list(given[n].shape)}, wants {list(own[n].shape)})"
        for n in own
        if n in given and given[n].shape != own[n].shape
    ]
    parts = [
        f"{len(names)} {word}: {_first(names)}"
        for word, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", misshaped))
        if names
    ]
    if parts:
        other = closest({n: tuple(t.shape) for n, t in given.items()}) if closest is not None else None
        raise WeightsError(
            f"do not fit {type(module).__name__}: {'; '.join(parts)}",
            place=place,
            remedy="these are weights of another model or of other options"
            if other is None
            else f"they fit the kernel {other} better",
        )
    module.load_state_dict({n: t for n, t in given.items() if n in own}, strict=False)


def _first(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _renamed(name: str, rename: Mapping[str, str] | Callable[[str], str | None] | None) -> str | None:
    if rename is None:
        return name
    if callable(rename):
        return rename(name)
    for old in sorted(rename, key=len, reverse=True):
        if name.startswith(old):
            return rename[old] + name.removeprefix(old)
    return name

"""Where results lie: a local path, or a prefix of an object store. The one place that tells them apart."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from tilewright.errors import StoreError

if TYPE_CHECKING:
    from zarr.abc.store import Store

__all__ = [
    "fetch",
    "fsync_path",
    "is_remote",
    "local_path",
    "put",
    "put_new",
    "remove",
    "remove_tree",
    "run_place",
    "upload",
    "work_folder",
    "zarr_store",
]

SCHEMES = ("s3", "s3a", "gs", "az", "abfs", "abfss")
"""URL schemes that obstore opens as object stores."""


def is_remote(url: str | os.PathLike[str]) -> bool:
    """Return True for an object-store URL, False for a local path or ``file://``; raises `StoreError` else."""
    text = os.fspath(url)
    scheme = urlsplit(text).scheme if "://" in text else ""
    if scheme in SCHEMES:
        return True
    if scheme in ("", "file"):
        return False
    raise StoreError(
        f"results cannot be written to a {scheme}:// address",
        place=text,
        remedy=f"use a local path or one of {', '.join(f'{s}://' for s in SCHEMES)}",
    )


def local_path(url: str | os.PathLike[str]) -> Path:
    """Return the local path that ``url`` names."""
    text = os.fspath(url)
    return Path(urlsplit(text).path if text.startswith("file://") else text)


RETRIES = 8
"""Further tries of a request that met a 5xx, a 429 or a broken connection; the waits double, with jitter."""
FIRST_WAIT = timedelta(seconds=0.2)
LONGEST_WAIT = timedelta(seconds=15)
PATIENCE = timedelta(minutes=3)
"""After which no further try of a request is made."""
REQUEST = timedelta(minutes=2)
"""Longest single request. obstore's default of 30 s is too short for a part on a slow line."""
PART = 8 << 20
"""Least bytes of a part of an upload."""
MOST_PARTS = 9_000
"""S3 takes 10,000 parts of an object."""
AT_ONCE = 4
"""Parts of an upload that are under way, and in memory, at a time."""


def _obstore(url: str, options: Mapping[str, Any] | None) -> Any:
    from obstore.store import LocalStore, from_url

    if not is_remote(url):
        return LocalStore(local_path(url), mkdir=True)
    # What `options` leave out comes from the environment: AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_ALLOW_HTTP, ...
    backoff = {"init_backoff": FIRST_WAIT, "max_backoff": LONGEST_WAIT, "base": 2}
    retries = {"max_retries": RETRIES, "backoff": backoff, "retry_timeout": PATIENCE}
    chosen: dict[str, Any] = {"retry_config": retries, "client_options": _client(url)}
    # Zarr prints its store, and obstore can print one of Azure only where it was told the account's name.
    if url.startswith("a") and (account := os.environ.get("AZURE_STORAGE_ACCOUNT_NAME")):
        chosen["account_name"] = account
    chosen |= dict(options or {})
    return from_url(url, **chosen)


def _client(url: str) -> dict[str, Any]:
    """Return how the client connects. Options given to obstore hide those of the environment, so all are named."""
    prefix = {"s": "AWS", "g": "GOOGLE", "a": "AZURE"}[url[0]]
    found: dict[str, Any] = {"timeout": REQUEST}
    for name in ("timeout", "connect_timeout", "proxy_url", "proxy_ca_certificate"):
        if value := os.environ.get(f"{prefix}_{name.upper()}"):
            found[name] = value
    for name in ("allow_http", "allow_invalid_certificates"):
        if value := os.environ.get(f"{prefix}_{name.upper()}"):
            found[name] = value.lower() in ("1", "true", "yes", "on")
    return found


def zarr_store(url: str, *, options: Mapping[str, Any] | None = None, read_only: bool = False) -> Store:
    """Return the Zarr store at ``url``: `LocalStore` for a path, obstore's for an object store.

    Parameters
    ----------
    url
        A path, or ``s3://bucket/prefix`` and the like.
    options
        Options of `obstore.store.from_url`; ignored for a path.
    read_only
        True forbids writing.
    """
    from zarr.storage import LocalStore, ObjectStore

    if not is_remote(url):
        return LocalStore(local_path(url), read_only=read_only)
    return ObjectStore(_obstore(url, options), read_only=read_only)


def upload(path: Path, url: str, *, options: Mapping[str, Any] | None = None) -> None:
    """Upload a finished file to ``url``; the object appears whole or not at all.

    `AT_ONCE` parts of `PART` bytes are in memory at a time; only files above 70 GiB have larger ones.
    Raises `StoreError` where the store refuses it.
    """
    import obstore
    from obstore.exceptions import BaseError

    parent, _, name = url.rpartition("/")
    try:
        with path.open("rb") as file:
            part = max(PART, -(-path.stat().st_size // MOST_PARTS))
            store = _obstore(parent, options)
            obstore.put(store, name, file, use_multipart=True, chunk_size=part, max_concurrency=AT_ONCE)
    except BaseError as error:
        raise _refused(f"the upload of {path.name} failed", url, error) from error


def put(url: str, data: bytes, *, options: Mapping[str, Any] | None = None) -> None:
    """Write a small object, in place of what is there; raises `StoreError` where the store refuses it."""
    _put(url, data, options, "overwrite")


def put_new(url: str, data: bytes, *, options: Mapping[str, Any] | None = None) -> bool:
    """Write a small object unless one is there; False where one is. Of two that try at once, one is told True."""
    from obstore.exceptions import AlreadyExistsError

    try:
        _put(url, data, options, "create")
    except StoreError as error:
        if isinstance(error.__cause__, AlreadyExistsError):
            return False
        raise
    return True


def _put(
    url: str, data: bytes, options: Mapping[str, Any] | None, mode: Literal["create", "overwrite"]
) -> None:
    import obstore
    from obstore.exceptions import BaseError

    parent, _, name = url.rpartition("/")
    try:
        obstore.put(_obstore(parent, options), name, data, mode=mode, use_multipart=False)
    except BaseError as error:
        raise _refused(f"{name} could not be written", url, error) from error


def run_place(out: str | os.PathLike[str]) -> tuple[Path, str | None]:
    """Return the folder in which a run works, and the object-store address of its result, if it goes to one."""
    text = os.fspath(out)
    if not is_remote(text):
        return local_path(text), None
    url = text.rstrip("/")
    return work_folder(url), url


def work_folder(url: str) -> Path:
    """Return where a run that goes to ``url`` keeps its ledger and makes its files.

    ``tilewright/runs/NAME-HASH`` in the user's cache folder (``XDG_CACHE_HOME``, else ``~/.cache``): it follows
    from the address alone, so the same command resumes.
    """
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", url.rpartition("/")[2]).strip("-.") or "run"
    return Path(cache) / "tilewright" / "runs" / f"{name}-{hashlib.sha256(url.encode()).hexdigest()[:16]}"


def fetch(url: str, *, options: Mapping[str, Any] | None = None) -> bytes | None:
    """Return an object, or None where there is none; raises `StoreError` where the store does not answer."""
    import obstore
    from obstore.exceptions import BaseError

    parent, _, name = url.rpartition("/")
    try:
        return bytes(obstore.get(_obstore(parent, options), name).bytes())
    except FileNotFoundError:
        return None
    except BaseError as error:
        raise _refused(f"{name} could not be read", url, error) from error


def remove(url: str, *, options: Mapping[str, Any] | None = None) -> None:
    """Delete an object, if it is there."""
    import obstore
    from obstore.exceptions import BaseError

    parent, _, name = url.rpartition("/")
    try:
        obstore.delete(_obstore(parent, options), name)
    except FileNotFoundError:
        return
    except BaseError as error:
        raise _refused(f"{name} could not be deleted", url, error) from error


def remove_tree(url: str, *, options: Mapping[str, Any] | None = None) -> None:
    """Delete every object below ``url``, a thousand at a time."""
    import obstore
    from obstore.exceptions import BaseError

    store = _obstore(url, options)
    try:
        for found in obstore.list(store, chunk_size=1000):
            obstore.delete(store, [entry["path"] for entry in found])
    except BaseError as error:
        raise _refused("the result there could not be deleted", url, error) from error


def _refused(cause: str, url: str, error: Exception) -> StoreError:
    first = str(error).splitlines()[0]
    return StoreError(f"{cause}: {first}", place=url, remedy="check the address, the keys and the endpoint")


def fsync_path(path: Path) -> None:
    """Ask the system to put a file or a folder's list of names on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

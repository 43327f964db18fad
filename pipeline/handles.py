"""Open rasters: one handle per thread and file, GDAL's settings for cloud reading, and one clear error.

GDAL datasets may not be shared among threads, and a handle must be closed by the thread that opened it
(https://gdal.org/en/stable/user/multithreading.html). So every thread keeps its own few handles.
"""

from __future__ import annotations

import os
import random
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tilewright.errors import ReadError, TilewrightError

if TYPE_CHECKING:
    import rasterio

    from tilewright.catalogs.signing import Signer

__all__ = ["ATTEMPTS", "Handles", "gdal_env", "is_local", "plain_href", "read_retrying"]

ATTEMPTS = 4
"""Most tries of one read, the first included."""
_FIRST_WAIT_S = 0.5
_PER_THREAD = 16
"""Handles that a thread keeps open."""

_GDAL = {
    # No listing of the folder and no search for sidecar files on the other side of a network.
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "GDAL_HTTP_MERGE_CONSECUTIVE_RANGES": "YES",
    "GDAL_HTTP_CONNECTTIMEOUT": "20",
    "GDAL_HTTP_LOW_SPEED_TIME": "60",
    "GDAL_HTTP_LOW_SPEED_LIMIT": "1",
    # The first line of defence; `read_retrying` is the second, because GDAL ignores these where it reads
    # several ranges at once (OSGeo/gdal issue 12933).
    "GDAL_HTTP_MAX_RETRY": "2",
    "GDAL_HTTP_RETRY_DELAY": "0.5",
    # Warped and decoded by our own threads.
    "GDAL_NUM_THREADS": "1",
}
_LOCAL = {"GDAL_NUM_THREADS": "1"}


def is_local(href: str) -> bool:
    """True where ``href`` is a path of this machine, not a URL or one of GDAL's network paths."""
    if href.startswith("/vsi"):
        return not re.match(r"/vsi(curl|s3|gs|az|adls|oss|swift|webhdfs)", href)
    return not re.match(r"^[A-Za-z][A-Za-z0-9+.\-]+://", href) or href.startswith("file://")


def plain_href(href: str) -> str:
    """Return ``href`` without a query, which may hold a signature; for messages and records."""
    return href if is_local(href) else href.split("?", 1)[0]


def gdal_path(href: str) -> str:
    """Return an object-store URL as GDAL's own path: rasterio would want boto3 for ``s3://``, GDAL needs nothing."""
    found = re.match(r"^(s3|s3a|gs|az)://(.+)$", href)
    return f"/vsi{found[1].removesuffix('a')}/{found[2]}" if found else href


def _endpoint() -> dict[str, str]:
    """Return GDAL's options for the S3 endpoint that ``AWS_ENDPOINT_URL`` names, unless they are set."""
    scheme, _, host = os.environ.get("AWS_ENDPOINT_URL", "").partition("://")
    if not host or "AWS_S3_ENDPOINT" in os.environ:
        return {}
    secure = "YES" if scheme == "https" else "NO"
    return {"AWS_S3_ENDPOINT": host.rstrip("/"), "AWS_HTTPS": secure, "AWS_VIRTUAL_HOSTING": "FALSE"}


def gdal_env(href: str) -> rasterio.Env:
    """Return GDAL's settings for reading ``href``; what the caller's own environment says is kept beneath."""
    import rasterio

    return rasterio.Env(**(_LOCAL if is_local(href) else _GDAL | _endpoint()))


class Handles:
    """The open datasets of the calling thread, the least recently used closed first.

    An instance holds nothing that must travel: it pickles empty, so a worker opens its own.
    """

    def __init__(self, per_thread: int = _PER_THREAD) -> None:
        self._per_thread = per_thread
        self._local = threading.local()

    def __getstate__(self) -> dict[str, Any]:
        return {"per_thread": self._per_thread}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def _open_ones(self) -> OrderedDict[tuple[str, int | None], Any]:
        if not hasattr(self._local, "datasets"):
            self._local.datasets = OrderedDict()
        datasets: OrderedDict[tuple[str, int | None], Any] = self._local.datasets
        return datasets

    def get(
        self, href: str, *, level: int | None = None, opened_as: Callable[[], str] | None = None
    ) -> rasterio.DatasetReader:
        """Return this thread's dataset of ``href``, opened at overview ``level`` (None: full resolution).

        ``opened_as`` gives what is really opened, such as the signed href; it is asked only on opening.
        """
        import rasterio

        datasets = self._open_ones()
        key = (href, level)
        if key in datasets:
            datasets.move_to_end(key)
            return datasets[key]
        options = {} if level is None else {"overview_level": level}
        dataset = rasterio.open(gdal_path(opened_as() if opened_as else href), sharing=False, **options)
        datasets[key] = dataset
        while len(datasets) > self._per_thread:
            datasets.popitem(last=False)[1].close()
        return dataset

    def drop(self, href: str) -> None:
        """Close this thread's datasets of ``href``, so that the next `get` opens it anew."""
        datasets = self._open_ones()
        for key in [k for k in datasets if k[0] == href]:
            datasets.pop(key).close()

    def close(self) -> None:
        """Close all datasets of this thread."""
        datasets = self._open_ones()
        while datasets:
            datasets.popitem()[1].close()


def forget_network(path: str) -> None:
    """Make GDAL forget what it cached about ``path``: a failed open is cached like a good one."""
    import rasterio.cache

    rasterio.cache.invalidate(gdal_path(path))


def refused(error: BaseException) -> bool:
    """True where a server said 403 (or 401): the signature is missing, wrong or too old."""
    return bool(re.search(r"\b40[13]\b|Forbidden|AccessDenied|Access Denied", _messages(error)))


def transient(error: BaseException) -> bool:
    """True where another try may do better: the server's 5xx and 429, timeouts and broken connections."""
    pattern = (
        r"\b(429|50[0234])\b|[Tt]imed? ?out|[Cc]onnection|[Cc]ould not (connect|resolve)|[Rr]ecv failure"
        r"|transfer closed|SSL|CURL error|not recognized as|Range downloading|Read failed|Read error"
        r"|TIFFFillTile|TIFFReadEncoded|IReadBlock|TIFFFillStrip"
    )
    return bool(re.search(pattern, _messages(error)))


def _messages(error: BaseException | None) -> str:
    parts: list[str] = []
    while error is not None and len(parts) < 8:
        parts.append(str(error))
        error = error.__cause__ or error.__context__
    return " | ".join(parts)


def read_retrying[T](
    read: Callable[[Callable[[], str]], T],
    href: str,
    handles: Handles,
    *,
    place: str,
    signer: Signer | None = None,
    attempts: int = ATTEMPTS,
) -> T:
    """Call ``read(opened_as)`` until it succeeds, at most ``attempts`` times; raises `ReadError`.

    ``opened_as()`` gives the href to open, signed where there is a signer. A refusal (403) renews the
    signature once. Local files are tried once. Between tries: 0.5 s doubled each time, with jitter, and GDAL
    is made to forget the file, since it caches a failed open.
    """
    from rasterio.errors import RasterioError

    local = is_local(href)
    state: dict[str, str] = {}

    def opened_as() -> str:
        if "href" not in state:
            state["href"] = signer.sign(href) if signer and not local else href
        return state["href"]

    renewed = False
    attempt = 1
    while True:
        try:
            with gdal_env(href):
                return read(opened_as)
        except RasterioError as error:
            handles.drop(href)
            if local:
                raise _failure(error, place, attempt, local=local) from error
            forget_network(opened_as())
            if refused(error) and signer is not None and not renewed:
                renewed = True
                state["href"] = signer.refresh(opened_as())
                continue
            if refused(error) or not transient(error) or attempt >= attempts:
                raise _failure(error, place, attempt, local=local) from error
            time.sleep(_FIRST_WAIT_S * 2 ** (attempt - 1) * random.uniform(0.5, 1.5))  # noqa: S311 - jitter
            attempt += 1
        except TilewrightError:
            handles.drop(href)
            raise


def _failure(error: BaseException, place: str, attempts: int, *, local: bool) -> ReadError:
    text = re.sub(r"(https?://[^\s'\"?]+)\?[^\s'\"]*", r"\1", _messages(error).split(" | ")[-1].strip())
    after = f" after {attempts} tries" if attempts > 1 else ""
    if refused(error):
        remedy = "the server refuses it: check credentials or the catalog's signing"
    elif re.search(r"No such file|404|does not exist", text):
        remedy = "check that the file is there"
    elif re.search(r"\b(429|50[0234])\b|[Tt]imed? ?out|[Cc]onnect|resolve|CURL", text):
        remedy = "repeat the command when the server answers, or go on without it by --on-error reason"
    elif not local:
        # Of a read of several ranges GDAL tells the broken block alone, and not what the server answered.
        remedy = (
            "the server failed or cut its answer, or the file is not whole: repeat the command later, or go on"
            " without it by --on-error reason"
        )
    else:
        remedy = "check that the file is whole, or go on without it by --on-error reason"
    failure = ReadError(f"cannot be read{after}: {text.rstrip('.')}", place=place, remedy=remedy)
    if local:
        failure.exit_code = 2  # no other try will help: the file itself is wrong
    return failure

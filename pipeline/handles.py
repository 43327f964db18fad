"""Open rasters: handles that are lent to one thread at a time, GDAL's settings for cloud reading, one clear error.

A GDAL dataset may be used by any thread, but by one at a time
(https://gdal.org/en/stable/user/multithreading.html). Decoded blocks are cached with the dataset, so a handle goes
from thread to thread: with one a thread, two threads that sweep a raster in turn decoded 1.9 times its blocks
instead of 1.3 times.
"""

from __future__ import annotations

import os
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

from tilewright.catalogs.stores import check_access, store_of
from tilewright.errors import ReadError, TilewrightError

if TYPE_CHECKING:
    import rasterio

    from tilewright.catalogs.signing import Signer

__all__ = ["ATTEMPTS", "Handles", "gdal_env", "is_local", "plain_href", "read_retrying"]

ATTEMPTS = 4
"""Most tries of one read, the first included."""
_FIRST_WAIT_S = 0.5
_IDLE = 64
"""Handles that are kept open while nobody uses them. One over a tiled TIFF holds up to a block of its own."""

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
type _Key = tuple[str, int | None]
"""What a dataset is of: href, and number of the overview."""
_REFUSALS = {
    "CPLE_AWSAccessDeniedError",
    "CPLE_AWSInvalidCredentialsError",
    "CPLE_AWSSignatureDoesNotMatchError",
}
"""Names of the classes by which rasterio tells that S3 refused the keys."""


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


@contextmanager
def gdal_env(href: str) -> Iterator[None]:
    """Set GDAL up for reading ``href``; what the caller's own environment says is kept beneath.

    A bucket of `tilewright.catalogs.stores` gets its own endpoint, region and keys, whatever others have.
    """
    import rasterio
    from rasterio.env import setenv
    from rasterio.session import DummySession

    store = store_of(href)
    if store is None:
        with rasterio.Env(**(_LOCAL if is_local(href) else _GDAL | _endpoint())):
            yield
        return
    # Without a session given rasterio would first look for the process's own keys, by boto3 where that is there.
    with rasterio.Env(session=DummySession(), **_GDAL):
        setenv(**store.settings())
        yield


def _in_env[T](href: str, call: Callable[[], T]) -> T:
    """Return ``call()``, made with GDAL set up for ``href``.

    What rasterio sets in the main thread holds for the whole process, in others for the thread alone. So the keys
    of one bucket are never set in the main thread: threads that read other buckets would take them for theirs.
    """

    def inside() -> T:
        with gdal_env(href):
            return call()

    if store_of(href) is None or threading.current_thread() is not threading.main_thread():
        return inside()
    with ThreadPoolExecutor(1, "tilewright-bucket") as apart:
        return apart.submit(copy_context().run, inside).result()


class Handles:
    """Open datasets, lent to one thread at a time; of those that nobody uses the longest unused are closed.

    An instance holds nothing that must travel: it pickles empty, so a worker opens its own.
    """

    def __init__(self, idle: int = _IDLE) -> None:
        self._limit = idle
        self._idle: list[tuple[_Key, Any]] = []  # the last used at the end
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"idle": self._limit}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    @contextmanager
    def lend(
        self, href: str, *, opened_as: Callable[[], str] | None = None, overview: int | None = None
    ) -> Iterator[rasterio.DatasetReader]:
        """Give a dataset of ``href`` to the caller alone, for the time of a ``with``; closed if that raises.

        ``opened_as`` gives what is really opened, such as the signed href; it is asked only on opening. With
        ``overview`` the dataset is that overview of it, from 0.
        """
        dataset = self._take((href, overview)) or self._open(href, opened_as, overview)
        try:
            yield dataset
        except BaseException:
            dataset.close()
            raise
        self._put_back((href, overview), dataset)

    def _open(
        self, href: str, opened_as: Callable[[], str] | None, overview: int | None
    ) -> rasterio.DatasetReader:
        import rasterio

        chosen = {} if overview is None else {"overview_level": overview}
        return rasterio.open(gdal_path(opened_as() if opened_as else href), sharing=False, **chosen)

    def _take(self, key: _Key) -> rasterio.DatasetReader | None:
        with self._lock:
            for place in range(len(self._idle) - 1, -1, -1):
                if self._idle[place][0] == key:
                    dataset: rasterio.DatasetReader = self._idle.pop(place)[1]
                    return dataset
        return None

    def _put_back(self, key: _Key, dataset: rasterio.DatasetReader) -> None:
        with self._lock:
            self._idle.append((key, dataset))
            old = [self._idle.pop(0)[1] for _ in range(len(self._idle) - self._limit)]
        for one in old:
            one.close()

    def drop(self, href: str) -> None:
        """Close the idle datasets of ``href``, so that it is opened anew."""
        with self._lock:
            old = [dataset for key, dataset in self._idle if key[0] == href]
            self._idle = [entry for entry in self._idle if entry[0][0] != href]
        for one in old:
            one.close()

    def close(self) -> None:
        """Close all idle datasets."""
        with self._lock:
            old, self._idle = self._idle, []
        for _, dataset in old:
            dataset.close()


def forget_network(path: str) -> None:
    """Make GDAL forget what it cached about ``path``: a failed open is cached like a good one."""
    import rasterio.cache

    rasterio.cache.invalidate(gdal_path(path))


def refused(error: BaseException) -> bool:
    """True where a server said 403 (or 401): the signature is missing, wrong or too old."""
    pattern = (
        r"\b40[13]\b|Forbidden|Access ?Denied|InvalidAccessKeyId|SignatureDoesNotMatch|ExpiredToken"
        r"|[Aa]ccess [Kk]ey I[Dd] you provided|provided token (has|is)"
    )
    kinds = {type(one).__name__ for one in _chain(error)}  # of some refusals GDAL tells the kind, and no code
    return bool(re.search(pattern, _messages(error)) or kinds & _REFUSALS)


def transient(error: BaseException) -> bool:
    """True where another try may do better: the server's 5xx and 429, timeouts and broken connections."""
    pattern = (
        r"\b(429|50[0234])\b|[Tt]imed? ?out|[Cc]onnection|[Cc]ould not (connect|resolve)|[Rr]ecv failure"
        r"|transfer closed|SSL|CURL error|not recognized as|Range downloading|Read failed|Read error"
        r"|TIFFFillTile|TIFFReadEncoded|IReadBlock|TIFFFillStrip"
    )
    return bool(re.search(pattern, _messages(error)))


def _messages(error: BaseException) -> str:
    return " | ".join(str(one) for one in _chain(error))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and what it came from, the last eight at most."""
    for _ in range(8):
        if error is None:
            return
        yield error
        error = error.__cause__ or error.__context__


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
    is made to forget the file, since it caches a failed open. Raises `InputError` before the first try where the
    environment lacks the keys of a bucket.
    """
    from rasterio.errors import RasterioError

    check_access(href, place)
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
            return _in_env(href, lambda: read(opened_as))
        except RasterioError as error:
            handles.drop(href)
            if local:
                raise _failure(error, href, place, attempt) from error
            _in_env(href, lambda: forget_network(opened_as()))
            if refused(error) and signer is not None and not renewed:
                renewed = True
                state["href"] = signer.refresh(opened_as())
                continue
            if refused(error) or not transient(error) or attempt >= attempts:
                raise _failure(error, href, place, attempt) from error
            time.sleep(_FIRST_WAIT_S * 2 ** (attempt - 1) * random.uniform(0.5, 1.5))  # noqa: S311 - jitter
            attempt += 1
        except TilewrightError:
            handles.drop(href)
            raise


def _failure(error: BaseException, href: str, place: str, attempts: int) -> ReadError:
    local, store = is_local(href), store_of(href)
    text = re.sub(r"(https?://[^\s'\"?]+)\?[^\s'\"]*", r"\1", _messages(error).split(" | ")[-1].strip())
    after = f" after {attempts} tries" if attempts > 1 else ""
    if store is not None:
        text = store.hide(text)
    if refused(error) and store is not None:
        remedy = f"the server refuses the keys: {store.remedy}"
    elif refused(error):
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

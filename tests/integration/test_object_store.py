"""The Zarr and the COG in an S3-compatible store, and COGs over HTTP ranges; all real servers on loopback."""

from __future__ import annotations

import urllib.error
import urllib.request
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .conftest import S3, RangeServer

pytestmark = pytest.mark.integration


def test_s3_fixture_keeps_an_object(s3: S3) -> None:
    import obstore
    from obstore.store import from_url

    store = from_url(f"{s3.url}/fixture", **s3.options)
    obstore.put(store, "a/b.bin", b"0123456789")
    assert bytes(obstore.get_range(store, "a/b.bin", start=2, length=3)) == b"234"


def _get(url: str, span: str | None = None) -> tuple[int, bytes]:
    request = urllib.request.Request(url, headers={"Range": span} if span else {})
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, b""


def test_range_server_answers_ranges_and_fails_as_told(http_ranges: RangeServer) -> None:
    (http_ranges.folder / "a.bin").write_bytes(bytes(range(100)))
    url = f"{http_ranges.url}/a.bin"
    assert _get(url) == (200, bytes(range(100)))
    assert _get(url, "bytes=10-19") == (206, bytes(range(10, 20)))
    assert _get(url, "bytes=-5") == (206, bytes(range(95, 100)))
    assert _get(url, "bytes=200-") == (416, b"")
    assert _get(f"{http_ranges.url}/../conftest.py")[0] == 404
    http_ranges.fail(503, nth=1, times=2, match=r"\.bin")
    assert [_get(url)[0] for _ in range(4)] == [200, 503, 503, 200]
    assert [r.status for r in http_ranges.log][-4:] == [200, 503, 503, 200]
    http_ranges.fail(0)
    with pytest.raises((urllib.error.URLError, ConnectionError)):
        _get(url)

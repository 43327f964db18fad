"""Signing: tokens that expire, many threads, a 403, and nothing signed that stays."""

from __future__ import annotations

import json
import pickle
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st

from tilewright.catalogs.endpoints import endpoint
from tilewright.catalogs.signing import NoSigner, PlanetaryComputerSigner, Signer, signer_for, unsigned
from tilewright.errors import CatalogError

BLOB = "https://sentinel2l2a01.blob.core.windows.net/sentinel2-l2/33/T/WM/B02.tif"


class TokenServer(ThreadingHTTPServer):
    """Gives out tokens at /token/ACCOUNT/CONTAINER and lets only the newest of a container open a blob."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.lifetime = 3600.0
        self.asked: list[str] = []
        self.keys: list[str | None] = []
        self.refuse = 0
        self.url = f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: TokenServer

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        if parts.path.startswith("/token/"):
            self._token(parts.path)
        else:
            # Path style: /account/container/blob
            valid = f"v{len(self.server.asked)}"
            given = parse_qs(parts.query).get("sig", [""])[0]
            self._answer(200 if given == valid else 403, b"pixels")

    def _token(self, path: str) -> None:
        if self.server.refuse:
            self.server.refuse -= 1
            self._answer(503, b"busy")
            return
        if "/foreign/" in path:
            self._answer(404, b"{}")
            return
        time.sleep(0.02)
        self.server.asked.append(path)
        self.server.keys.append(self.headers.get("Ocp-Apim-Subscription-Key"))
        until = datetime.now(UTC) + timedelta(seconds=self.server.lifetime)
        token = (
            f"st=2024-01-01T00%3A00Z&se=2024-01-02T00%3A00Z&sp=rl&sv=2021&sr=c&sig=v{len(self.server.asked)}"
        )
        self._answer(
            200,
            json.dumps({"msft:expiry": until.isoformat().replace("+00:00", "Z"), "token": token}).encode(),
        )

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        return


@contextmanager
def serving() -> Iterator[TokenServer]:
    with TokenServer() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def server() -> Iterator[TokenServer]:
    with serving() as running:
        yield running


def signer(server: TokenServer, **options: object) -> PlanetaryComputerSigner:
    return PlanetaryComputerSigner(token_url=f"{server.url}/token", **options)  # type: ignore[arg-type]


def test_one_token_a_container_for_many_threads(server: TokenServer) -> None:
    one = signer(server, subscription_key="secret")
    with ThreadPoolExecutor(16) as pool:
        signed = set(pool.map(lambda _: one.sign(BLOB), range(64)))
    assert len(signed) == 1
    assert server.asked == ["/token/sentinel2l2a01/sentinel2-l2"]
    assert server.keys == ["secret"]
    assert signed.pop().startswith(f"{BLOB}?st=")
    one.sign("https://sentinel2l2a01.blob.core.windows.net/other/x.tif")
    assert len(server.asked) == 2


def test_tokens_are_renewed_before_they_end(server: TokenServer) -> None:
    server.lifetime = 1.0
    one = signer(server)
    first = one.sign(BLOB)
    assert one.sign(BLOB) == first
    time.sleep(0.95)  # a tenth of the lifetime is the margin
    assert one.sign(BLOB) != first
    assert len(server.asked) == 2


def test_refresh_after_403_opens_the_blob_and_asks_once(server: TokenServer) -> None:
    host = server.url.removeprefix("http://")
    one = signer(server, path_style_hosts=(host,))
    href = f"{server.url}/account/container/x.tif"
    refused = one.sign(href)
    server.asked.append("revoked on the server's side")
    assert requests.get(refused, timeout=5).status_code == 403
    with ThreadPoolExecutor(8) as pool:
        again = set(pool.map(lambda _: one.refresh(refused), range(8)))
    assert len(again) == 1
    assert len(server.asked) == 3
    assert requests.get(again.pop(), timeout=5).status_code == 200


def test_a_signed_href_is_signed_anew(server: TokenServer) -> None:
    one = signer(server)
    assert one.sign(f"{BLOB}?se=2020-01-01&sp=r&sig=old") == one.sign(BLOB)


def test_foreign_and_public_blobs_stay_as_they_are(server: TokenServer) -> None:
    one = signer(server)
    for href in (
        "https://foreign.blob.core.windows.net/c/x.tif",
        "https://ai4edatasetspublicassets.blob.core.windows.net/assets/x.png",
        "https://example.com/x.tif",
        "s3://bucket/x.tif",
        "/data/x.tif",
    ):
        assert one.sign(href) == href
        assert one.refresh(href) == href


def test_a_busy_service_is_asked_again_and_a_broken_one_named(server: TokenServer) -> None:
    server.refuse = 2
    assert "sig=" in signer(server).sign(BLOB)
    broken = PlanetaryComputerSigner(token_url=f"{server.url}/nothing/here/token/x")
    with pytest.raises(CatalogError, match="no access token") as caught:
        broken.sign(BLOB)
    assert caught.value.__cause__ is not None
    assert "sentinel2l2a01/sentinel2-l2" in str(caught.value)


def test_signers_travel_without_tokens_or_keys(server: TokenServer) -> None:
    one = signer(server, subscription_key="secret")
    one.sign(BLOB)
    packed = pickle.dumps(one)
    assert b"secret" not in packed
    assert b"sig" not in packed.replace(b"signing", b"").replace(b"Signer", b"")
    assert "sig=" in pickle.loads(packed).sign(BLOB)
    assert "secret" not in repr(one)


def test_which_signer() -> None:
    assert isinstance(signer_for(endpoint("earth-search")), NoSigner)
    planetary = signer_for(endpoint("planetary-computer"))
    assert planetary is signer_for(BLOB)
    assert isinstance(planetary, Signer)
    assert isinstance(signer_for("https://example.com/x.tif"), NoSigner)


@pytest.mark.parametrize(
    ("signed", "bare"),
    [
        (f"{BLOB}?st=a&se=b&sp=rl&sv=c&sr=c&skoid=d&sig=e%3D", BLOB),
        ("https://h/x?id=1&X-Amz-Signature=a&X-Amz-Date=b&x-amz-expires=c&v=2", "https://h/x?id=1&v=2"),
        ("https://h/x?X-Goog-Algorithm=a&X-Goog-Signature=b", "https://h/x"),
        ("https://h/x?AWSAccessKeyId=a&Signature=b&Expires=3", "https://h/x"),
        ("https://h/x?st=here&se=there", "https://h/x?st=here&se=there"),
        ("https://h/x?a=%20b&c", "https://h/x?a=%20b&c"),
        ("/local/what?.tif", "/local/what?.tif"),
    ],
)
def test_unsigned(signed: str, bare: str) -> None:
    assert unsigned(signed) == bare
    assert unsigned(bare) == bare


@given(st.dictionaries(st.sampled_from("abcdefgh"), st.text("xyz12", max_size=5), max_size=4))
def test_other_parameters_survive(parameters: dict[str, str]) -> None:
    href = "https://h/x.tif?" + "&".join([*(f"{k}={v}" for k, v in parameters.items()), "sv=1", "sig=abc"])
    assert parse_qs(urlsplit(unsigned(href)).query, keep_blank_values=True) == {
        k: [v] for k, v in parameters.items()
    }

"""Signing of hrefs at open: short-lived tokens, renewed on time and after a refusal, never stored."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from tilewright.errors import CatalogError

if TYPE_CHECKING:
    from tilewright.catalogs.endpoints import Endpoint

__all__ = ["NoSigner", "PlanetaryComputerSigner", "Signer", "signer_for", "unsigned"]

_PC_TOKEN_URL = "https://planetarycomputer.microsoft.com/api/sas/v1/token"  # noqa: S105 - an address
_PC_PUBLIC_ACCOUNTS = {"ai4edatasetspublicassets"}
"""Accounts that answer without a token and have none (thumbnails and collection assets)."""
_BLOB_SUFFIX = ".blob.core.windows.net"
_MARGIN_S = 300.0
"""Seconds before its end at which a token is renewed, so that a read begun now can finish with it."""

# Which parameters make up a signature, by the one that proves there is a signature at all: short SAS names
# such as `st` and `se` mean other things elsewhere.
_SIGNATURES: Mapping[str, frozenset[str]] = {
    # Azure: https://learn.microsoft.com/rest/api/storageservices/create-user-delegation-sas
    "sig": frozenset(
        [
            "sig",
            "sv",
            "ss",
            "srt",
            "sp",
            "st",
            "se",
            "sip",
            "spr",
            "si",
            "sr",
            "sdd",
            "skoid",
            "sktid",
            "skt",
            "ske",
            "sks",
            "skv",
            "saoid",
            "suoid",
            "scid",
            "ses",
            "rscc",
            "rscd",
            "rsce",
            "rscl",
            "rsct",
        ]
    ),
    # Amazon S3 before version 4, Google Cloud Storage V2, CloudFront
    "signature": frozenset(
        [
            "signature",
            "expires",
            "awsaccesskeyid",
            "googleaccessid",
            "key-pair-id",
            "policy",
            "x-amz-security-token",
        ]
    ),
}
_SIGNATURE_PREFIXES = ("x-amz-", "x-goog-")


@runtime_checkable
class Signer(Protocol):
    """Makes an href openable for a while. Implementations are safe to share among threads and to pickle."""

    def sign(self, href: str) -> str:
        """Return ``href`` with a valid token, or unchanged where none is needed."""
        ...

    def refresh(self, href: str) -> str:
        """Return a newly signed href after the server refused ``href`` (403).

        Call it once a read with the very href that was refused, then fail: when another thread has
        renewed the token in the meantime, no new one is asked for.
        """
        ...


@dataclass(frozen=True, slots=True)
class NoSigner:
    """For catalogs whose assets are public, or opened with the credentials of the environment."""

    def sign(self, href: str) -> str:
        """Return ``href`` as it is."""
        return href

    def refresh(self, href: str) -> str:
        """Return ``href`` as it is: nothing can be renewed."""
        return href


@dataclass(frozen=True, slots=True)
class _Token:
    query: str
    """The token as a query string; empty when the container is not one of the service's."""
    renew_at: float
    """Seconds since the epoch from which it is not given out any more."""


@dataclass
class PlanetaryComputerSigner:
    """Signs Azure blobs with tokens of Planetary Computer's SAS service, one token a container.

    https://planetarycomputer.microsoft.com/docs/concepts/sas/
    A container unknown to the service (404) is left unsigned: the href may be public or somebody else's.
    """

    token_url: str = field(default_factory=lambda: os.environ.get("PC_SDK_SAS_URL", _PC_TOKEN_URL))
    """Address below which ``/account/container`` answers with a token and its expiry."""
    subscription_key: str | None = field(
        default_factory=lambda: os.environ.get("PC_SDK_SUBSCRIPTION_KEY"), repr=False
    )
    """Raises the service's rate limit; sent as a header and never stored."""
    path_style_hosts: tuple[str, ...] = ()
    """``host:port`` of stores that name the account as first part of the path, such as Azurite."""
    _tokens: dict[tuple[str, str], _Token] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    _locks: dict[tuple[str, str], threading.Lock] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    _guard: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False, compare=False)

    def sign(self, href: str) -> str:
        """Return ``href`` with a token that is valid for some minutes; other hosts' hrefs as they are."""
        return self._signed(href, refused=None)

    def refresh(self, href: str) -> str:
        """Return ``href`` with another token than the one that it carries."""
        return self._signed(href, refused=href)

    def container(self, href: str) -> tuple[str, str] | None:
        """Return (account, container) of a blob, or None where the href is no blob that needs a token."""
        parts = urlsplit(href)
        path = parts.path.lstrip("/").split("/")
        if parts.scheme not in ("http", "https"):
            return None
        if parts.netloc in self.path_style_hosts:
            return (path[0], path[1]) if len(path) > 2 else None
        host = (parts.hostname or "").lower()
        account = host.removesuffix(_BLOB_SUFFIX)
        if account == host or account in _PC_PUBLIC_ACCOUNTS or len(path) < 2:
            return None
        return account, path[0]

    def _signed(self, href: str, refused: str | None) -> str:
        where = self.container(href)
        if where is None:
            return href
        bare = unsigned(href)
        token = self._token(where, refused)
        if not token.query:
            return bare
        return f"{bare}{'&' if urlsplit(bare).query else '?'}{token.query}"

    def _token(self, where: tuple[str, str], refused: str | None) -> _Token:
        with self._guard:
            lock = self._locks.setdefault(where, threading.Lock())
        with lock:  # one request a container, however many threads wait for it
            token = self._tokens.get(where)
            stale = token is None or time.time() >= token.renew_at
            if stale or (refused is not None and token is not None and token.query in refused):
                token = self._tokens[where] = self._fetch(where)
            assert token is not None
            return token

    def _fetch(self, where: tuple[str, str]) -> _Token:
        import requests

        from tilewright.catalogs.faults import http_session

        url = f"{self.token_url}/{where[0]}/{where[1]}"
        headers = {"Ocp-Apim-Subscription-Key": self.subscription_key} if self.subscription_key else {}
        try:
            with http_session() as session:
                answer = session.get(url, headers=headers, timeout=(10, 30))
                now = time.time()
                if answer.status_code == 404:
                    return _Token("", float("inf"))
                answer.raise_for_status()
                body = answer.json()
                expiry = datetime.fromisoformat(body["msft:expiry"]).timestamp()
                margin = min(_MARGIN_S, (expiry - now) / 10)
                return _Token(str(body["token"]), expiry - margin)
        except (requests.RequestException, KeyError, ValueError, TypeError) as error:
            raise CatalogError(
                f"no access token: {error}",
                place=url,
                remedy="try again later, or set PC_SDK_SUBSCRIPTION_KEY when the rate limit is the cause",
            ) from error

    def __getstate__(self) -> dict[str, Any]:
        # Locks cannot travel and tokens should not: a worker asks for its own, the key from its environment.
        return {"token_url": self.token_url, "path_style_hosts": self.path_style_hosts}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]


_planetary_computer: PlanetaryComputerSigner | None = None
_making = threading.Lock()


def signer_for(where: Endpoint | str) -> Signer:
    """Return the signer of an endpoint or of an href; within a process Planetary Computer has only one."""
    name = where if isinstance(where, str) else where.signing
    is_blob = isinstance(where, str) and (urlsplit(where).hostname or "").endswith(_BLOB_SUFFIX)
    if name != "planetary-computer" and not is_blob:
        return NoSigner()
    global _planetary_computer
    with _making:
        if _planetary_computer is None:
            _planetary_computer = PlanetaryComputerSigner()
        return _planetary_computer


def unsigned(href: str) -> str:
    """Return ``href`` without the query parameters of a signature (Azure SAS, AWS, Google, CloudFront).

    Other parameters keep their order; an href without a signature is returned as it is, to the byte.
    """
    if "?" not in href:
        return href
    parts = urlsplit(href)
    pairs = parse_qsl(parts.query, keep_blank_values=True)
    names = {name.lower() for name, _ in pairs}
    drop = {name for name in names if name.startswith(_SIGNATURE_PREFIXES)}
    for proof, members in _SIGNATURES.items():
        if proof in names:
            drop |= members
    if not drop & names:
        return href
    kept = [(name, value) for name, value in pairs if name.lower() not in drop]
    return urlunsplit(parts._replace(query=urlencode(kept)))

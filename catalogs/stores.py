"""Buckets that are not read with the process's own S3 settings: where they lie, and whose keys open them.

``AWS_ACCESS_KEY_ID`` and ``AWS_ENDPOINT_URL`` speak of one store, mostly the one to which results go. Scenes may
lie in another: here each such bucket has its endpoint, its region and its own variables for keys, so that both
are read in one process. Keys are looked up at every open and kept nowhere: not in Items, recipes, ledgers,
pickles or messages.

Sources: https://documentation.dataspace.copernicus.eu/APIs/S3.html (endpoint, region and path-style addresses of
``eodata``); https://www.usgs.gov/landsat-missions/landsat-commercial-cloud-data-access (``usgs-landsat`` in
us-west-2, requester pays); https://gdal.org/en/stable/user/virtual_file_systems.html#vsis3-aws-s3-files (options).
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from tilewright.errors import InputError

__all__ = ["STORES", "S3Store", "check_access", "needs_login", "store_of"]

_USUAL = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
_AMAZON = "amazonaws.com"
_LOGIN_HOSTS = ("landsatlook.usgs.gov",)
"""Hosts that answer a request for a file with a page to log in."""


@dataclass(frozen=True, slots=True)
class S3Store:
    """A bucket with an endpoint and keys of its own."""

    bucket: str
    """Its name."""
    title: str
    """Whose it is, for messages."""
    endpoint: str
    """Address of its S3 interface; the variable ``<variables>_S3_ENDPOINT`` replaces it."""
    region: str
    """Region that requests are signed for."""
    variables: str
    """First part of the names of its variables: ``<variables>_S3_ACCESS_KEY``, ``..._S3_SECRET_KEY`` and, for
    temporary keys, ``..._S3_SESSION_TOKEN``."""
    path_style: bool
    """True: the bucket is the first part of the path; False: of the host's name."""
    requester_pays: bool
    """True where whoever reads pays for it, and must say so in each request."""
    keys_from: str
    """How one gets keys, for messages."""

    @property
    def own(self) -> tuple[str, str, str]:
        """Names of its own variables for access key, secret key and session token."""
        first = f"{self.variables}_S3"
        return f"{first}_ACCESS_KEY", f"{first}_SECRET_KEY", f"{first}_SESSION_TOKEN"

    @property
    def remedy(self) -> str:
        """Which variables are to be set, and how one gets what they shall hold."""
        ways = [self.own[:2], *([_USUAL[:2]] if self._takes_usual() else [])]
        return f"set {', or '.join(' and '.join(names) for names in reversed(ways))}; {self.keys_from}"

    def settings(self) -> dict[str, str]:
        """Return GDAL's options for the bucket. Each one is given, so that none of another store shines through.

        Raises
        ------
        InputError
            The environment has no keys for it, or half of a pair.
        """
        key, secret, token = self._keys()
        scheme, host = self._address()
        moved = (scheme, host) != _split(self.endpoint)
        return {
            "AWS_S3_ENDPOINT": host,
            "AWS_HTTPS": "YES" if scheme == "https" else "NO",
            # Whatever stands in for the endpoint can hardly answer to another host's name for each bucket.
            "AWS_VIRTUAL_HOSTING": "FALSE" if self.path_style or moved else "TRUE",
            "AWS_REGION": self.region,
            "AWS_DEFAULT_REGION": self.region,
            "AWS_REQUEST_PAYER": "requester" if self.requester_pays else "",
            "AWS_NO_SIGN_REQUEST": "NO",
            "AWS_ACCESS_KEY_ID": key,
            "AWS_SECRET_ACCESS_KEY": secret,
            "AWS_SESSION_TOKEN": token,
        }

    def hide(self, text: str) -> str:
        """Return ``text`` without the keys: a server may repeat them in its refusal."""
        for name in (*self.own, *_USUAL):
            value = os.environ.get(name, "").strip()
            text = text.replace(value, f"[{name}]") if value else text
        return text

    def _address(self) -> tuple[str, str]:
        return _split(os.environ.get(f"{self.variables}_S3_ENDPOINT", "").strip() or self.endpoint)

    def _takes_usual(self) -> bool:
        """True where the AWS_* keys are those of the store in which the bucket lies."""
        mine, theirs = self._address()[1], _usual_host()
        return mine == theirs or (mine.endswith(_AMAZON) and theirs.endswith(_AMAZON))

    def _keys(self) -> tuple[str, str, str]:
        usual = self._takes_usual()
        for names in (self.own, *([_USUAL] if usual else [])):
            key, secret, token = (os.environ.get(name, "").strip() for name in names)
            if key and secret:
                return key, secret, token
            if key or secret:
                absent, given = (names[1], names[0]) if key else (names[0], names[1])
                raise InputError(
                    f"{absent} is not set and {given} is",
                    place=f"s3://{self.bucket}",
                    remedy=self.remedy,
                )
        if usual and _amazon_is_told():
            return "", "", ""  # GDAL finds them as Amazon's own tools do
        other = "" if usual or not os.environ.get(_USUAL[0]) else f" ({_USUAL[0]} is that of {_usual_host()})"
        raise InputError(
            f"{self.title} wants S3 keys, and the environment has none for it{other}",
            place=f"s3://{self.bucket}",
            remedy=self.remedy,
        )


STORES: dict[str, S3Store] = {
    each.bucket: each
    for each in (
        S3Store(
            bucket="eodata",
            title="the Copernicus Data Space",
            endpoint="https://eodata.dataspace.copernicus.eu",
            region="default",
            variables="CDSE",
            path_style=True,
            requester_pays=False,
            keys_from="they are made at https://eodata-s3keysmanager.dataspace.copernicus.eu",
        ),
        S3Store(
            bucket="usgs-landsat",
            title="the USGS Landsat archive on Amazon S3",
            endpoint="https://s3.us-west-2.amazonaws.com",
            region="us-west-2",
            variables="LANDSATLOOK",
            path_style=False,
            requester_pays=True,
            keys_from="any account of Amazon's will do, and pays for what is read",
        ),
    )
}
"""Buckets by name."""


def store_of(href: str) -> S3Store | None:
    """Return the store of an ``s3://`` or ``/vsis3/`` address, or None where the usual settings hold."""
    found = re.match(r"(?:s3a?://|/vsis3/)([^/?]+)", href)
    return STORES.get(found[1]) if found else None


def needs_login(href: str) -> bool:
    """True where the host gives the file only to a browser that is logged in."""
    return (urlsplit(href).hostname or "") in _LOGIN_HOSTS


def check_access(href: str, place: str) -> None:
    """Make sure, without a request, that ``href`` can be opened with what the environment says.

    Parameters
    ----------
    href
        As it is handed to a reader.
    place
        Item, band and file, for the message.

    Raises
    ------
    InputError
        Keys are missing, or the host wants a login that nobody can give here.
    """
    if needs_login(href):
        raise InputError(
            f"{urlsplit(href).hostname} gives files only to a browser that is logged in, and no alternate.s3 is given",
            place=place,
            remedy="search landsatlook again, whose Items now have it, or give the file's s3:// address",
        )
    store = store_of(href)
    if store is not None:
        try:
            store.settings()
        except InputError as error:
            raise InputError(error.cause, place=place, remedy=error.remedy) from None


def _split(url: str) -> tuple[str, str]:
    """Return scheme and host with port of an endpoint; without a scheme it is https."""
    scheme, _, host = url.rpartition("://")
    return scheme or "https", host.rstrip("/")


def _usual_host() -> str:
    """Return the host for which the AWS_* keys are: the endpoint that is named beside them, or Amazon's."""
    for name in ("AWS_S3_ENDPOINT", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        if value := os.environ.get(name, "").strip():
            return _split(value)[1]
    return _AMAZON


def _amazon_is_told() -> bool:
    """True where GDAL may find Amazon's keys without variables: by a profile, a file, or the machine's role."""
    names = (
        "AWS_PROFILE",
        "AWS_DEFAULT_PROFILE",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    )
    if any(os.environ.get(name) for name in names):
        return True
    file = Path(os.environ.get("CPL_AWS_CREDENTIALS_FILE") or "~/.aws/credentials").expanduser()
    return file.is_file() or _on_ec2()


def _on_ec2() -> bool:
    """True on a machine of Amazon's, which may have a role that gives it keys."""
    with suppress(OSError):
        return Path("/sys/devices/virtual/dmi/id/sys_vendor").read_text().strip() == "Amazon EC2"
    return False

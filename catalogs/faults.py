"""What a search survives: refusals for a while, broken gateways, and answers too large to be sent."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import requests
    from urllib3 import Retry

__all__ = ["PASSING", "TOO_LARGE", "http_session", "retry_policy"]

PASSING = (429, 500, 503)
"""Status codes after which the same request is worth repeating."""
TOO_LARGE = (413, 502, 504)
"""Status codes with which STAC APIs answer a page that they cannot send (502: Lambda's limit of 6 MB)."""


def retry_policy(statuses: tuple[int, ...] = (*PASSING, 502, 504)) -> Retry:
    """Return five attempts with growing pauses for any method.

    POST is included, which urllib3 leaves out by default: a STAC search changes nothing on the server, so
    asking twice is harmless. ``Retry-After`` is honoured. The last refusal is returned, not raised, so that
    its status and text reach the message.
    """
    from urllib3 import Retry

    return Retry(
        total=5,
        backoff_factor=0.3,
        backoff_max=30,
        status_forcelist=statuses,
        allowed_methods=None,
        raise_on_status=False,
        respect_retry_after_header=True,
    )


def http_session() -> requests.Session:
    """Return a session that repeats what fails in passing."""
    import requests
    from requests.adapters import HTTPAdapter

    session = requests.Session()
    for scheme in ("http://", "https://"):
        session.mount(scheme, HTTPAdapter(max_retries=retry_policy()))
    return session

"""An answerer behind an address: any server that speaks OpenAI's chat completions.

vLLM, Ollama, llama.cpp, transformers' own server and hosted ones do. The key is read from an environment variable at
each call; only the variable's name is kept, so that no trace, ledger or message can hold the key. Whatever goes wrong
is one line: who was asked, what happened, what to do.
"""

from __future__ import annotations

import base64
import http.client
import io
import json
import os
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tilewright.errors import KernelError

from .answerers import Turn

if TYPE_CHECKING:
    from .answerers import Picture

__all__ = ["OpenAIAnswerer"]

_MOST_BYTES = 16 * 2**20
"""Of an answer that is read."""
_VARIABLE = re.compile(r"[A-Za-z_]\w*")
_BUSY = (408, 429, 500, 502, 503, 504)
"""Statuses after which it is worth asking again."""


@dataclass(frozen=True)
class OpenAIAnswerer:
    """A model on a server. Raises `KernelError` where the address is none."""

    model: str
    """Name of the model as the server knows it."""
    base_url: str
    """Address in front of ``/chat/completions``, such as ``http://localhost:11434/v1``."""
    key_variable: str | None = None
    """Environment variable that holds the key; None sends none."""
    timeout: float = 120.0
    """Seconds for one answer, from the request to its last byte."""
    retries: int = 2
    """How often a server is asked again that is busy, or breaks off."""
    pause: float = 1.0
    """Seconds before it is asked again; doubled each time."""
    temperature: float = 0.0
    """0 takes the likeliest words, as far as the server does."""

    def __post_init__(self) -> None:
        try:
            parts = urllib.parse.urlsplit(self.base_url)
            host, user = parts.hostname, parts.username
        except ValueError:
            host = user = None
        if host is None or parts.scheme not in ("http", "https") or user is not None or parts.query:
            raise KernelError(
                "the address is not one of http:// or https:// with a host and without user, key or query",
                place="answerer",
                remedy="such as http://localhost:8000/v1; name the variable of the key instead of the key",
            )
        if self.key_variable is not None and not _VARIABLE.fullmatch(self.key_variable):
            raise KernelError(
                "what stands for the key is no name of an environment variable",
                place="answerer",
                remedy="put the key into a variable, and give its name",
            )
        if not (self.timeout > 0 and self.retries >= 0 and self.pause >= 0):
            raise KernelError(
                f"timeout {self.timeout:g}, retries {self.retries}, pause {self.pause:g}",
                place="answerer",
                remedy="the timeout is above 0, the others are not below it",
            )

    @property
    def name(self) -> str:
        """Model and host."""
        return f"{self.model} at {urllib.parse.urlsplit(self.base_url).netloc}"

    def check(self) -> None:
        """Raise `KernelError` where the key is absent; no server is asked."""
        self._key()

    def answer(self, images: Sequence[Picture], prompt: str, max_tokens: int = 256) -> str:
        """Return the answer to ``prompt`` about ``images``; errors as for `converse`."""
        return self.converse([Turn("user", prompt, tuple(images))], max_tokens)

    def converse(self, turns: Sequence[Turn], max_tokens: int = 256) -> str:
        """Return what the model says after ``turns``.

        Raises
        ------
        KernelError
            The key is absent; the server is away, too slow or refuses; the answer is refused, empty or malformed.
        """
        body = json.dumps(
            {
                "model": self.model,
                "messages": [_message(turn) for turn in turns],
                "max_tokens": max_tokens,
                "temperature": self.temperature,
            }
        ).encode()
        return self._said(self._asked(body))

    def _asked(self, body: bytes) -> bytes:
        """Return what the server sent; asks again where that may help."""
        key = self._key()
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        address = f"{self.base_url.rstrip('/')}/chat/completions"
        for attempt in range(self.retries + 1):
            last = attempt == self.retries
            try:
                return self._sent(urllib.request.Request(address, body, headers))  # noqa: S310 (the scheme was checked)
            except urllib.error.HTTPError as error:
                if last or error.code not in _BUSY:
                    raise self._refused(error, key) from None
            except TimeoutError as error:
                raise self._error(
                    f"did not answer within {self.timeout:g} s",
                    "raise the timeout, or ask a smaller model or fewer tokens",
                ) from error
            except (OSError, http.client.HTTPException) as error:
                reason = getattr(error, "reason", error)
                if isinstance(reason, TimeoutError):
                    raise self._error(
                        f"did not answer within {self.timeout:g} s", "raise the timeout"
                    ) from error
                if last:
                    raise self._error(
                        f"cannot be reached: {reason or type(error).__name__}", "is the server running there?"
                    ) from error
            time.sleep(self.pause * 2**attempt)
        raise AssertionError("the last attempt returns or raises")

    def _sent(self, request: urllib.request.Request) -> bytes:
        """Send a request and return the answer; the whole of it has `timeout` seconds."""
        until = time.monotonic() + self.timeout
        local = urllib.parse.urlsplit(self.base_url).hostname in ("localhost", "127.0.0.1", "::1")
        handlers: list[urllib.request.BaseHandler] = [_Stay()]
        if local:
            handlers.append(urllib.request.ProxyHandler({}))
        parts: list[bytes] = []
        with urllib.request.build_opener(*handlers).open(request, timeout=self.timeout) as response:
            while part := response.read1(65536):
                parts.append(part)
                if time.monotonic() > until:
                    raise TimeoutError
                if sum(map(len, parts)) > _MOST_BYTES:
                    raise self._error(f"sent more than {_MOST_BYTES // 2**20} MiB", "is that a chat server?")
        return b"".join(parts)

    def _key(self) -> str:
        if self.key_variable is None:
            return ""
        key = os.environ.get(self.key_variable, "").strip()
        if not key:
            raise self._error(f"the variable {self.key_variable} is empty", "put the key into it")
        return key

    def _refused(self, error: urllib.error.HTTPError, key: str) -> KernelError:
        """Return the error of a status, in the server's words where it has some, and never with the key."""
        try:
            content = json.loads(error.read(65536))
            told = content.get("error", content) if isinstance(content, dict) else {}
            words = told.get("message", told.get("detail", "")) if isinstance(told, dict) else told
        except (ValueError, OSError, http.client.HTTPException):
            words = ""
        words = " ".join(str(words).split())[:200]
        if key:
            words = words.replace(key, "***")
        remedies = {
            400: "does the model take pictures, and as many tokens?",
            401: "check the key in the variable that the answerer names",
            403: "check what the key may do",
            404: "check the address and the model's name",
            413: "show it smaller pictures",
            429: "wait, or ask less often",
        }
        if self.key_variable is None:
            remedies[401] = remedies[403] = "name the variable that holds a key, as key_variable"
        said = f"answered HTTP {error.code}" + (f": {words}" if words else "")
        return self._error(said, remedies.get(error.code, "look at the server's log"))

    def _said(self, content: bytes) -> str:
        """Return the text of an answer."""
        try:
            choice = json.loads(content)["choices"][0]
            message = choice["message"]
            text, refusal = message.get("content"), message.get("refusal")
            finish = choice.get("finish_reason")
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            shown = content[:60].decode(errors="replace")
            raise self._error(
                f"sent something else than a chat completion: {' '.join(shown.split())!r}",
                "check the address",
            ) from error
        if finish == "content_filter" or refusal:
            raise self._error(f"refused to answer: {refusal or 'its content filter'}", "ask in other words")
        if isinstance(text, list):
            text = "".join(str(part.get("text", "")) for part in text if isinstance(part, Mapping))
        if not isinstance(text, str) or not text.strip():
            raise self._error(f"sent an empty answer (finish_reason {finish!r})", "allow more tokens")
        return text

    def _error(self, cause: str, remedy: str) -> KernelError:
        return KernelError(cause, place=f"answerer {self.name}", remedy=remedy)


class _Stay(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: the key belongs to the address that was named."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def _message(turn: Turn) -> dict[str, Any]:
    if not turn.images:
        return {"role": turn.role, "content": turn.text}
    shown = [{"type": "image_url", "image_url": {"url": _png(image)}} for image in turn.images]
    return {"role": turn.role, "content": [*shown, {"type": "text", "text": turn.text}]}


def _png(picture: Picture) -> str:
    """Return a picture as a PNG in a ``data:`` address."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()

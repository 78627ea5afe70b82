"""What every reader of items needs: how a bad one is told, addresses on the web, and what they serve."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, NoReturn

URL_TIMEOUT_SECONDS = 30
URL_TOTAL_SECONDS = 300
URL_LIMIT_BYTES = 100 * 2**20


class InputError(ValueError):
    """An item that cannot be read as what it should be; the message says which and why."""


class Unreadable:
    """Stands for an item that could not be had; reading it says why."""

    def __init__(self, reason: str) -> None:
        self.reason = reason

    def __call__(self) -> NoReturn:
        """Raise an :class:`InputError`."""
        raise InputError(self.reason)


@dataclass(frozen=True)
class Skipped:
    """A pair that was left out: its position in the data, and why."""

    index: int
    reason: str


def shorten(value: Any, limit: int = 80) -> str:
    """Return ``repr(value)``, cut to ``limit`` characters, for error messages."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def is_url(value: Any) -> bool:
    """Whether ``value`` is a string that is one http(s) address."""
    return isinstance(value, str) and value.startswith(("http://", "https://")) and not any(map(str.isspace, value))


def download(url: str) -> bytes:
    """Return what ``url`` serves.

    Raises:
        InputError: If it cannot be reached, sends nothing for 30 s, takes over 300 s, or is larger than 100 MiB.
    """
    from http.client import HTTPException
    from urllib.request import Request, urlopen

    try:
        request = Request(_quoted(url), headers={"User-Agent": "freezealign"})
        with urlopen(request, timeout=URL_TIMEOUT_SECONDS) as response:
            if not is_url(response.geturl()):
                raise ValueError(f"it redirects to {response.geturl()}")
            content = _read_in_time(response)
    except (HTTPException, OSError, ValueError) as error:
        raise InputError(f"cannot fetch {url}: {error}.") from None
    if len(content) > URL_LIMIT_BYTES:
        raise InputError(f"{url} is larger than {URL_LIMIT_BYTES // 2**20} MiB.")
    return content


def _quoted(url: str) -> str:
    """Return an address in ASCII: the host in IDNA, the rest percent-encoded."""
    from urllib.parse import quote, urlsplit, urlunsplit

    parts = urlsplit(url)
    host = parts.netloc if parts.netloc.isascii() else parts.netloc.encode("idna").decode()
    return urlunsplit(
        parts._replace(netloc=host, **{k: quote(getattr(parts, k), "%/:=&?~#+!$,;'@()*[]|") for k in ("path", "query")})
    )


def _read_in_time(response: Any) -> bytes:
    """Return what a server sends, at most a byte over the limit; raise a ``TimeoutError`` if it takes too long."""
    deadline, content = time.monotonic() + URL_TOTAL_SECONDS, bytearray()
    while len(content) <= URL_LIMIT_BYTES and (part := response.read1(2**16)):
        content += part
        if time.monotonic() > deadline:
            raise TimeoutError(f"it took more than {URL_TOTAL_SECONDS} s")
    if response.length and len(content) <= URL_LIMIT_BYTES:
        raise OSError("it ended too early")
    return bytes(content)

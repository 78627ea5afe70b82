"""What every reader of items needs: how a bad one is told, addresses on the web, and what they serve."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, NoReturn
from urllib.error import HTTPError
from urllib.parse import quote, urlsplit, urlunsplit
from urllib.request import HTTPRedirectHandler, OpenerDirector, Request, build_opener

URL_TIMEOUT_SECONDS = 30
URL_TOTAL_SECONDS = 300
URL_LIMIT_BYTES = 100 * 2**20
URL_FAILURES = 100
"""Downloads in a row that no server answered, or only with one of ``URL_BUSY``, after which a run ends."""
URL_BUSY = (429, 500, 502, 503, 504)


class InputError(ValueError):
    """An item that cannot be read as what it should be; the message says which and why."""


class DownloadError(RuntimeError):
    """So many downloads failed one after another that it is no single item's fault."""


@dataclass(frozen=True)
class Unreadable:
    """Stands for an item that could not be had; reading it says why."""

    reason: str

    def __call__(self) -> NoReturn:
        """Raise an :class:`InputError`."""
        raise InputError(self.reason)


@dataclass(frozen=True)
class Skipped:
    """What was left out, and why.

    Args:
        index: The pair's position in the data.
        reason: What is wrong.
        item: What of the pair was left out, such as ``text 2``, counted from 0; empty if the whole pair was.
    """

    index: int
    reason: str
    item: str = ""


def skipped_pairs(skipped: Iterable[Skipped]) -> list[Skipped]:
    """Return those that are whole pairs: with the pairs that were read they are all that were found."""
    return [entry for entry in skipped if not entry.item]


def shorten(value: Any, limit: int = 80) -> str:
    """Return ``repr(value)``, cut to ``limit`` characters, for error messages."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def is_url(value: Any) -> bool:
    """Whether ``value`` is a string that is one http(s) address."""
    return isinstance(value, str) and value.startswith(("http://", "https://")) and not any(map(str.isspace, value))


_failed: list[str] = []
"""Why the last downloads failed; empty after one that a server answered."""


def download(url: str) -> bytes:
    """Return what ``url`` serves.

    Raises:
        InputError: If it cannot be reached, sends nothing for 30 s, takes over 300 s, redirects off the web, or is
            larger than 100 MiB.
        DownloadError: If it is the 100th in a row that no server answered.
    """
    answer: SimpleQueue[bytes | Exception] = SimpleQueue()
    # in a thread, because looking up a name and reading headers have no limit of their own
    Thread(target=_fetch, args=(url, answer), daemon=True).start()
    try:
        content = answer.get(timeout=URL_TOTAL_SECONDS)
    except Empty:
        content = TimeoutError(f"it took more than {URL_TOTAL_SECONDS} s")
    if isinstance(content, bytes):
        _failed.clear()
        return content
    reason = f"cannot fetch {url}: {content}."
    if isinstance(content, HTTPError) and content.code not in URL_BUSY:
        _failed.clear()
    elif not isinstance(content, ValueError):
        _failed.append(reason)
    if len(_failed) >= URL_FAILURES:
        _failed.clear()
        raise DownloadError(
            f"{URL_FAILURES} downloads failed in a row, so that it is the network rather than each of them; the last: "
            f"{reason} Check the connection and run it again; what is in a folder is kept, and it goes on there."
        )
    raise InputError(reason)


class _WebOnly(HTTPRedirectHandler):
    """Refuses to go where a redirect leads off the web, before anything is opened there."""

    def redirect_request(self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, newurl: str) -> Request | None:
        if not is_url(newurl):
            raise ValueError(f"it redirects to {newurl}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


@cache
def _opener() -> OpenerDirector:
    return build_opener(_WebOnly)


def _fetch(url: str, answer: SimpleQueue[bytes | Exception]) -> None:
    """Put what ``url`` serves into ``answer``, or why it cannot be had."""
    deadline, content = time.monotonic() + URL_TOTAL_SECONDS, bytearray()
    try:
        request = Request(_quoted(url), headers={"User-Agent": "freezealign"})
        with _opener().open(request, timeout=URL_TIMEOUT_SECONDS) as response:
            while part := response.read1(2**16):
                content += part
                if len(content) > URL_LIMIT_BYTES:
                    raise ValueError(f"it is larger than {URL_LIMIT_BYTES // 2**20} MiB")
                if time.monotonic() > deadline:
                    raise TimeoutError(f"it took more than {URL_TOTAL_SECONDS} s")
            if response.length:
                raise OSError("it ended too early")
        answer.put(bytes(content))
    except Exception as error:  # the other thread waits for it, whatever it is
        answer.put(error)


def _quoted(url: str) -> str:
    """Return an address in ASCII: the host in IDNA, the rest percent-encoded."""
    parts = urlsplit(url)
    host = parts.netloc if parts.netloc.isascii() else parts.netloc.encode("idna").decode()
    path, query = (quote(part, "%/:=&?~#+!$,;'@()*[]|") for part in (parts.path, parts.query))
    return urlunsplit(parts._replace(netloc=host, path=path, query=query))

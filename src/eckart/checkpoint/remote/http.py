"""Files over HTTP: each answer must be the range that was asked for, of the file that was asked for first."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from eckart.checkpoint.remote.transport import (
    CONNECTIONS,
    FIRST_ATTEMPTS,
    AccessError,
    RemoteStat,
    Transient,
    changed,
    repeated,
)
from eckart.checkpoint.remote.urls import shown_url, without_secrets
from eckart.errors import SourceError
from eckart.version import __version__

if TYPE_CHECKING:
    from requests import Response

_TIMEOUT_S = (10, 60)  # to connect, and between two pieces of an answer
_REDIRECTS = 10
_PIECE_BYTES = 2**20
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")
_BUSY = {408, 425, 429, 500, 502, 503, 504}
_DENIED = {401, 403, 407}
_GONE = {404, 410}


class HttpTransport:
    """Reads files over HTTP and HTTPS with the proxies, certificates and .netrc that `requests` finds.

    Args:
        auth: adds credentials to a request; they do not follow a redirection to another host.
        version: of all files, where their URLs name one version; otherwise each answer's ETag or date is compared.
    """

    def __init__(self, *, auth: Any = None, headers: Mapping[str, str] | None = None, version: str = "") -> None:
        import requests
        from requests.adapters import HTTPAdapter

        self._auth, self._version = auth, version
        self._session = requests.Session()
        self._session.max_redirects = _REDIRECTS
        self._session.headers.update({"Accept-Encoding": "identity", "User-Agent": f"eckart/{__version__}"})
        self._session.headers.update(headers or {})
        for scheme in ("https://", "http://"):
            self._session.mount(scheme, HTTPAdapter(pool_maxsize=CONNECTIONS))
        self._targets: dict[str, str] = {}  # where a URL redirected to, so that not every range asks again

    def __reduce__(self) -> tuple[Any, ...]:
        """Without credentials: the other process finds its own."""
        return type(self), ()

    def stat(self, locator: str) -> RemoteStat:
        """Size and version, from the answer to a request for the first byte."""

        def ask() -> RemoteStat:
            with self._answer(locator, 0, 1) as answer:
                if answer.status_code == 416 and answer.headers.get("Content-Range") == "bytes */0":
                    return RemoteStat(0, self._version_of(answer))
                found = _RANGE.fullmatch(answer.headers.get("Content-Range", ""))
                size = found[3] if found and answer.status_code == 206 else answer.headers.get("Content-Length", "")
                if not size.isdecimal() or answer.status_code not in (200, 206):
                    msg = f"{shown_url(locator)}: the server does not state the size of the file"
                    raise SourceError(msg)
                is_range = answer.status_code == 206 or int(size) <= 1
                return RemoteStat(int(size), self._version_of(answer), is_range)

        return repeated(ask, shown_url(locator), attempts=FIRST_ATTEMPTS)

    def read_into(self, locator: str, buffer: memoryview, offset: int, stat: RemoteStat) -> None:
        """Fill `buffer`; an answer that breaks off is continued where it did."""
        done, shown = 0, shown_url(locator)

        def attempt() -> None:
            nonlocal done
            with self._answer(locator, offset + done, offset + len(buffer)) as answer:
                self._check_range(answer, offset + done, stat, shown)
                while done < len(buffer):
                    piece = answer.raw.read(min(_PIECE_BYTES, len(buffer) - done))
                    if not piece:
                        reason = "the answer was truncated"
                        raise Transient(reason)
                    buffer[done : done + len(piece)] = piece
                    done += len(piece)

        if len(buffer):
            repeated(attempt, shown)

    def pieces(self, locator: str, stat: RemoteStat) -> Iterator[bytes]:
        """The whole file, in one answer: where it breaks off, there is no way to continue."""
        shown, done = shown_url(locator), 0
        try:
            with self._answer(locator, 0, stat.size) as answer:
                self._check_range(answer, 0, stat, shown)
                while done < stat.size:
                    piece = answer.raw.read(min(_PIECE_BYTES, stat.size - done))
                    if not piece:
                        break
                    done += len(piece)
                    yield piece
        except Transient as failure:
            msg = f"{shown}: cannot be read ({failure}); run again"
            raise SourceError(msg) from None
        if done < stat.size:
            msg = f"{shown}: the answer was truncated after {done:,} of {stat.size:,} bytes; run again"
            raise SourceError(msg)

    def _check_range(self, answer: "Response", start: int, stat: RemoteStat, shown: str) -> None:
        """Refuse an answer that is not this range of the file of `stat`."""
        if answer.status_code == 416 or self._version_of(answer) != stat.version:
            raise changed(shown)
        if answer.status_code == 200:
            if answer.headers.get("Content-Length") not in (None, str(stat.size)):
                raise changed(shown)
            if start:
                msg = f"{shown}: the server does not send parts of a file; `cache=DIR` downloads it once and keeps it"
                raise SourceError(msg)
            return
        found = _RANGE.fullmatch(answer.headers.get("Content-Range", ""))
        if answer.status_code != 206 or not found or int(found[1]) != start:
            msg = f"{shown}: the server answered with another part of the file than was asked for"
            raise SourceError(msg)
        if int(found[3]) != stat.size:
            raise changed(shown)

    def _version_of(self, answer: "Response") -> str:
        headers = answer.headers
        return self._version or headers.get("ETag", "").removeprefix("W/") or headers.get("Last-Modified", "")

    @contextmanager
    def _answer(self, locator: str, start: int, stop: int) -> Iterator["Response"]:
        """The answer to a request for a range, its errors turned into ours.

        Raises:
            FileNotFoundError: there is no such file.
            Transient: the server is busy, or the connection failed.
            SourceError: any other reason.
        """
        import requests
        import urllib3

        shown, target = shown_url(locator), self._targets.get(locator, locator)
        auth = self._auth if urlsplit(target).netloc == urlsplit(locator).netloc else None
        try:
            with self._session.get(
                target, headers={"Range": f"bytes={start}-{stop - 1}"}, stream=True, timeout=_TIMEOUT_S, auth=auth
            ) as answer:
                if target != locator and answer.status_code in _DENIED | _GONE:
                    del self._targets[locator]  # an address that was valid for a while only
                    reason = "the address to which it redirected has expired"
                    raise Transient(reason)
                _check_status(answer, shown)
                if answer.history:
                    self._targets[locator] = answer.url
                yield answer
        except (requests.exceptions.InvalidSchema, requests.exceptions.InvalidURL) as error:
            reason = without_secrets(str(error).splitlines()[0])
            msg = f"{shown}: redirects to an address that is neither http:// nor https:// ({reason})"
            raise SourceError(msg) from None
        except (requests.exceptions.TooManyRedirects, requests.exceptions.SSLError) as error:
            msg = f"{shown}: cannot be read ({_reason(error)})"
            raise SourceError(msg) from None
        except (requests.exceptions.RequestException, urllib3.exceptions.HTTPError) as error:
            raise Transient(_reason(error)) from None


def _check_status(answer: "Response", shown: str) -> None:
    status = answer.status_code
    if status in _GONE:
        raise FileNotFoundError(shown)
    if status in _DENIED:
        msg = f"{shown}: the server refused access ({status}): log in, or check the credentials in ~/.netrc or the URL"
        raise AccessError(msg)
    if status in _BUSY:
        reason = f"the server answered {status}"
        raise Transient(reason, _seconds(answer.headers.get("Retry-After", "")))
    if status not in (200, 206, 416):
        msg = f"{shown}: cannot be read (the server answered {status})"
        raise SourceError(msg)
    if answer.headers.get("Content-Encoding", "identity") != "identity":
        msg = f"{shown}: the server compresses the file, so that parts of it cannot be read"
        raise SourceError(msg)


def _seconds(retry_after: str) -> float | None:
    """The wait that a Retry-After header asks for, in seconds or as a date."""
    if retry_after.isdecimal():
        return float(retry_after)
    with suppress(ValueError, TypeError):
        return (parsedate_to_datetime(retry_after) - datetime.now(UTC)).total_seconds()
    return None


def _reason(error: Exception) -> str:
    """The innermost reason of an error, in one line without URLs' secrets."""
    while (inner := error.__cause__ or error.__context__ or getattr(error, "reason", None)) and isinstance(
        inner, Exception
    ):
        error = inner
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    return without_secrets(re.sub(r"<[^>]*>:? ?", "", text))[:200]

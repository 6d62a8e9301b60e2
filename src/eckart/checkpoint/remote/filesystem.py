"""Files of any file system that fsspec knows, such as S3 and Google Cloud Storage."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from eckart.checkpoint.remote.transport import (
    FIRST_ATTEMPTS,
    AccessError,
    RemoteStat,
    Transient,
    changed,
    repeated,
)
from eckart.checkpoint.remote.urls import shown_url, without_secrets
from eckart.errors import MissingExtraError, SourceError

# What file systems state of a file that another content of it does not have, the surest first.
_VERSION_KEYS = (
    *("ETag", "etag", "VersionId", "generation", "md5Hash", "crc32c", "checksum", "content_md5", "sha", "commit"),
    *("mtime", "LastModified", "last_modified", "modified", "updated", "created"),
)
_MOST_FOLDERS = 64
_ACCESS = ("credential", "access denied", "forbidden", "unauthorized", "accessdenied", "invalidaccesskey", "signature")


class FilesystemTransport:
    """Reads the files of a file system of fsspec, which finds its credentials as its own documentation says.

    Raises:
        MissingExtraError: the library for this kind of URL is not installed.
        SourceError: fsspec knows no such kind of URL.
    """

    def __init__(self, url: str, shown: str) -> None:
        self._url, self._shown = url, shown
        self._filesystem, self.path = _open(url, shown)

    def __reduce__(self) -> tuple[Any, ...]:
        """As a URL: the other process finds its own credentials."""
        if self._url != shown_url(self._url):
            msg = f"{self._shown}: its password is not sent to other machines; let each find credentials"
            raise SourceError(msg)
        return type(self), (self._url, self._shown)

    def stat(self, locator: str) -> RemoteStat:
        """Size and version of a file as it is now."""
        return _stat_of(self._info(locator), self._shown)

    def is_folder(self) -> bool:
        """Whether the URL is that of a folder.

        Raises:
            FileNotFoundError: it is that of nothing.
            SourceError: it cannot be read; with the reason.
        """
        return self._info(self.path)["type"] == "directory"

    def files(self, folder: str) -> dict[str, str]:
        """Paths of the files in a folder and in the folders in it, by their names relative to it."""
        top = self._list(folder)
        folders = [each["name"] for each in top if each["type"] == "directory"][:_MOST_FOLDERS]
        entries = [*top, *(entry for inner in folders for entry in self._list(inner))]
        prefix = f"{folder.rstrip('/')}/"
        return {
            entry["name"].removeprefix(prefix): entry["name"]
            for entry in entries
            if entry["type"] == "file" and entry["name"].startswith(prefix)
        }

    def read_into(self, locator: str, buffer: memoryview, offset: int, stat: RemoteStat) -> None:
        """Fill `buffer`, and check afterwards that the file is still the same: not every file system does."""

        def attempt() -> None:
            with self._refusing():
                data = self._filesystem.cat_file(locator, start=offset, end=offset + len(buffer))
            if self.stat(locator) != stat:
                raise changed(self._shown)
            if len(data) != len(buffer):
                reason = f"{len(data):,} bytes arrived in place of {len(buffer):,}"
                raise Transient(reason)
            buffer[:] = data

        try:
            repeated(attempt, self._shown)
        except FileNotFoundError:
            raise changed(self._shown) from None

    def pieces(self, locator: str, stat: RemoteStat) -> Iterator[bytes]:
        """The whole file; never needed, because every file system sends parts."""
        buffer = bytearray(stat.size)
        self.read_into(locator, memoryview(buffer), 0, stat)
        yield bytes(buffer)

    def _info(self, path: str) -> dict[str, Any]:
        def ask() -> dict[str, Any]:
            with self._refusing():
                self._filesystem.invalidate_cache(path)
                return self._filesystem.info(path)

        return repeated(ask, self._shown, attempts=FIRST_ATTEMPTS)

    def _list(self, folder: str) -> list[dict[str, Any]]:
        def ask() -> list[dict[str, Any]]:
            with self._refusing():
                self._filesystem.invalidate_cache(folder)
                return self._filesystem.ls(folder, detail=True)

        return repeated(ask, self._shown, attempts=FIRST_ATTEMPTS)

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        """Turn the errors of a file system, each of which has its own, into ours."""
        try:
            yield
        except FileNotFoundError:
            raise
        except Exception as error:
            reason = _reason(error)
            denied = isinstance(error, PermissionError) or any(
                word in f"{type(error).__name__} {reason}".lower() for word in _ACCESS
            )
            if denied:
                msg = f"{self._shown}: access was refused ({reason}): log in as the file system's own tools do"
                raise AccessError(msg) from None
            if isinstance(error, OSError) or _is_of_connection(error):
                raise Transient(reason) from None
            msg = f"{self._shown}: cannot be read ({reason})"
            raise SourceError(msg) from None


def _open(url: str, shown: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it."""
    scheme = url.partition("://")[0]
    try:
        from fsspec.core import url_to_fs

        return url_to_fs(url)
    except ImportError as error:
        from fsspec.registry import known_implementations

        known = known_implementations.get(scheme, {}).get("class", "").partition(".")[0]
        if scheme in ("s3", "s3a"):
            extra, purpose = "remote", f"reading {scheme}://"
            raise MissingExtraError.for_extra(extra, purpose) from None
        remedy = f"pip install {known}" if known not in ("", "fsspec") else str(error).splitlines()[0]
        msg = f"reading {scheme}:// needs another library: {remedy}"
        raise MissingExtraError(msg) from None
    except ValueError as error:
        msg = f"{shown}: fsspec knows no such kind of URL ({without_secrets(str(error))})"
        raise SourceError(msg) from None
    except Exception as error:  # some connect at once, and each has its own errors
        msg = f"{shown}: cannot be read ({_reason(error)})"
        raise SourceError(msg) from None


def _reason(error: Exception) -> str:
    """The first line of an error, without secrets of URLs in it."""
    return without_secrets((str(error).strip() or type(error).__name__).splitlines()[0])[:200]


def _stat_of(info: dict[str, Any], shown: str) -> RemoteStat:
    size = info.get("size")
    if not isinstance(size, int):
        msg = f"{shown}: the file system does not state the size of {info.get('name')}"
        raise SourceError(msg)
    return RemoteStat(size, next((f"{key} {info[key]}" for key in _VERSION_KEYS if info.get(key)), ""))


def _is_of_connection(error: Exception) -> bool:
    """Whether an error is one of the network, of a library that does not derive them from OSError."""
    return any(word in type(error).__name__ for word in ("Connection", "Timeout", "Endpoint", "Client", "Server"))

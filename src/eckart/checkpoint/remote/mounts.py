"""Remote sources as folders of this machine: configs are downloaded, and empty files stand for remote weights.

What works on paths therefore works on remote sources. Only what reads weights asks `remote_file` what a path stands
for; a reader that does not ask finds an empty file, and refuses it.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit
from urllib.request import url2pathname

from eckart.checkpoint.remote.file import RemoteAddress, RemoteFile
from eckart.checkpoint.remote.hub import HubRepository, HubTransport
from eckart.checkpoint.remote.listing import Found, files_over_http
from eckart.checkpoint.remote.names import is_config, is_known, is_weights, path_inside
from eckart.checkpoint.remote.table import MOUNTS
from eckart.checkpoint.remote.transport import CONNECTIONS, Transport
from eckart.checkpoint.remote.urls import parent_and_name, shown_url
from eckart.errors import SourceError

_LOCAL = ("file", "local")
_MOST_FILES = 10_000


def concealed(url: str) -> str:
    """The URL as it may be shown, by which this process finds the complete one."""
    shown = begin = shown_url(url)
    number = 1
    while MOUNTS.urls.setdefault(shown, url) != url:  # the query alone may tell two files apart
        number += 1
        shown = f"{begin}#{number}"
    return shown


@contextmanager
def remote_cache(folder: str | Path | None) -> Iterator[None]:
    """Keep what is read of remote sources in a folder, and read it from there the next time.

    Each block has a checksum and belongs to one version of its file. The folder may be removed at any time.

    Raises:
        SourceError: the folder cannot be created.
    """
    before = MOUNTS.cache
    set_cache(folder)
    try:
        yield
    finally:
        set_cache(before)


def set_cache(folder: str | Path | None) -> None:
    """Keep what is read of sources that are opened from now on; raises as `remote_cache`."""
    path = Path(folder).expanduser() if folder is not None else None
    if path is not None:
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            msg = f"{path}: `cache` cannot be created ({error.strerror})"
            raise SourceError(msg) from None
    MOUNTS.cache = path


def mount(url: str) -> Path:
    """The path that stands for a URL: a folder, or a file in one; configs are downloaded.

    Raises:
        SourceError: nothing readable is there; the message has the reason.
        MissingExtraError: the library for this kind of URL is not installed.
    """
    shown = url if url in MOUNTS.urls else concealed(url)
    url = MOUNTS.urls[shown]
    parts = urlsplit(url)
    if parts.scheme in _LOCAL:
        return Path(url2pathname(parts.path))
    try:
        if parts.scheme in ("http", "https"):
            return _mount_http(url, shown)
        return _mount_filesystem(url, shown)
    except FileNotFoundError:
        msg = f"{shown}: no such file or folder"
        raise SourceError(msg) from None


def mount_repository(found: HubRepository, shown: str) -> Path:
    """The folder that stands for a repository of the hub, named as in the hub's cache."""
    if shown not in MOUNTS.folders:
        name = f"models--{found.name.replace('/', '--')}/snapshots/{found.commit}"
        _fill(shown, re.sub(r"[^\w./-]", "_", name), HubTransport(found.commit), found.files)
    return MOUNTS.folders[shown]


def mount_files(addresses: Iterable[RemoteAddress]) -> None:
    """Let the paths of another process stand for its remote files here too."""
    pool = ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="eckart-remote")
    for address in addresses:
        if address.path not in MOUNTS.files:
            MOUNTS.files[address.path] = RemoteFile.at(address, pool=pool, recent=MOUNTS.recent)


def _mount_filesystem(url: str, shown: str) -> Path:
    from eckart.checkpoint.remote.filesystem import FilesystemTransport

    transport = FilesystemTransport(url, shown)
    path, name = transport.path.rstrip("/"), ""
    if not transport.is_folder():
        path, _, name = path.rpartition("/")
        shown, _ = parent_and_name(shown)
    if shown not in MOUNTS.folders:
        files = {each: (locator, None) for each, locator in transport.files(path).items()}
        _fill(shown, _last_part(path), transport, files)
    return MOUNTS.folders[shown] / name


def _mount_http(url: str, shown: str) -> Path:
    from eckart.checkpoint.remote.http import HttpTransport

    name = PurePosixPath(urlsplit(url).path).name
    name = name if is_weights(name) or name.endswith(".json") else ""
    if shown not in MOUNTS.folders:
        transport = HttpTransport()
        _fill(shown, _last_part(urlsplit(url).path), transport, files_over_http(transport, url, name))
    return MOUNTS.folders[shown] / name


def _fill(shown: str, name: str, transport: Transport, found: Mapping[str, Found]) -> None:
    """Make a folder whose files stand for remote ones, and download configs."""
    if len(found) > _MOST_FILES:
        msg = f"{shown}: a folder of {len(found):,} files is not a model's"
        raise SourceError(msg)
    folder = MOUNTS.new_folder(name)
    pool = ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="eckart-remote")
    configs = []
    for each, (locator, stat) in found.items():
        path = path_inside(folder, each)
        if path is None or not is_known(path.name):
            continue
        cache = MOUNTS.cache if is_weights(path.name) else None
        title = shown if shown.endswith(each) else f"{shown.rstrip('/')}/{each}"
        file = RemoteFile(transport, locator, title, path, pool=pool, recent=MOUNTS.recent, stat=stat, cache=cache)
        path.parent.mkdir(parents=True, exist_ok=True)
        MOUNTS.files[path] = file
        if is_weights(path.name):
            path.touch()
            if stat is not None:
                file.require_ranges()
        elif is_config(path.name):
            configs.append(file)
    for file in configs:
        file.download()
    MOUNTS.folders[shown] = folder


def _last_part(path: str) -> str:
    """A name for the folder of a mount."""
    return re.sub(r"[^\w.-]", "_", path.rstrip("/").rpartition("/")[2]).lstrip(".") or "source"

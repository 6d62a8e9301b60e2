"""`--cache` keeps what was read, checks it, and is not mistaken for another version of a file."""

import os
import shutil

import pytest

from eckart.checkpoint import open_checkpoint
from eckart.checkpoint.remote.blocks import BLOCK_BYTES, BlockStore
from eckart.checkpoint.remote.mounts import remote_cache
from eckart.errors import SourceError

from .server import serving


def equal_to(source, local) -> bool:
    remote = open_checkpoint(source)
    return bool(local.tensors) and all(remote.read(name).equal(local.read(name)) for name in local.tensors)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache, and a way to open sources as another process would."""
    from eckart.checkpoint.remote import table

    def forget() -> None:
        for name in ("folders", "files", "urls"):
            monkeypatch.setattr(table.MOUNTS, name, {})

    with remote_cache(tmp_path / "cache"):
        yield tmp_path / "cache", forget


def weights_sent(server) -> int:
    return server.sent.get("/tuned/model.safetensors", 0)


def test_what_was_read_once_is_not_read_again(server, originals, cache) -> None:
    local = open_checkpoint(originals / "tuned")
    assert equal_to(f"{server.url}/tuned", local)
    size = (originals / "tuned" / "model.safetensors").stat().st_size
    assert size < weights_sent(server) <= 1.02 * size
    cache[1]()
    server.sent.clear()
    assert equal_to(f"{server.url}/tuned", local)
    assert weights_sent(server) <= 4  # size and version


def test_a_part_that_was_read_is_all_that_is_stored(server, cache) -> None:
    remote = open_checkpoint(f"{server.url}/tuned")
    remote.read(next(name for name in remote.tensors if "proj" in name))
    (data,) = cache[0].glob("*/data")
    assert data.stat().st_blocks * 512 <= 2**20 + 4 * BLOCK_BYTES


def test_a_damaged_block_is_read_again(server, originals, cache) -> None:
    local = open_checkpoint(originals / "tuned")
    assert equal_to(f"{server.url}/tuned", local)
    (data,) = cache[0].glob("*/data")
    with data.open("r+b") as file:
        file.seek(2 * BLOCK_BYTES)
        file.write(b"damage")
    cache[1]()
    server.sent.clear()
    assert equal_to(f"{server.url}/tuned", local)
    assert BLOCK_BYTES <= weights_sent(server) < 2 * BLOCK_BYTES


def test_another_version_of_a_file_is_not_taken_from_the_cache(originals, tmp_path, cache) -> None:
    shutil.copytree(originals / "tuned", tmp_path / "served" / "tuned")
    with serving(tmp_path / "served") as server:
        assert equal_to(f"{server.url}/tuned", open_checkpoint(originals / "tuned"))
        cache[1]()
        file = tmp_path / "served" / "tuned" / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-4] + b"\1\2\3\4")
        assert equal_to(f"{server.url}/tuned", open_checkpoint(tmp_path / "served" / "tuned"))


def test_a_server_without_ranges_is_read_once(server, originals, cache) -> None:
    server.ranges = False
    for _ in range(2):
        assert equal_to(f"{server.url}/tuned", open_checkpoint(originals / "tuned"))
        cache[1]()
    assert sum(given.get("Range", "").endswith("-0") is False for _, path, given in server.requests
               if path == "/tuned/model.safetensors") == 1  # fmt: skip


def test_a_file_of_an_unknown_version_is_not_kept_for_another_process(server, cache) -> None:
    server.states_version = False
    remote = open_checkpoint(f"{server.url}/tuned")
    remote.read(next(iter(remote.tensors)))
    assert not list(cache[0].glob("*/data"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_that_cannot_be_written_is_refused(tmp_path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(SourceError, match="`cache` cannot be created"), remote_cache(tmp_path / "cache"):
        pass


def test_a_folder_that_is_a_file_is_refused(tmp_path) -> None:
    (tmp_path / "cache").write_text("")
    with pytest.raises(SourceError, match="`cache` cannot be created"), remote_cache(tmp_path / "cache"):
        pass


@pytest.mark.parametrize("size", [1, BLOCK_BYTES - 1, BLOCK_BYTES, 3 * BLOCK_BYTES + 5])
def test_any_range_of_any_file_is_filled(size, tmp_path) -> None:
    content = os.urandom(size)

    def fetch(buffer: memoryview, offset: int) -> None:
        buffer[:] = content[offset : offset + len(buffer)]

    store = BlockStore(tmp_path / "store", size)
    for begin, end in [(0, size), (0, 1), (size - 1, size), (size // 3, size // 2), (size, size)]:
        buffer = bytearray(end - begin)
        store.read_into(memoryview(buffer), begin, fetch)
        assert buffer == content[begin:end]
    assert store.is_complete()

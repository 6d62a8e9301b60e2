"""What was read last stays in memory, within a limit, and is fetched once by all threads."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from eckart.checkpoint.remote import recent

FILE = Path("model.safetensors")


def test_two_threads_that_need_a_part_fetch_it_once() -> None:
    parts, fetched, together = recent.Recent(), [], Barrier(4)

    def read() -> bytes:
        together.wait()
        return bytes(parts.get((FILE, 0, 4), lambda: memoryview(fetched.append(1) or b"data")))

    with ThreadPoolExecutor(4) as pool:
        assert [each.result() for each in [pool.submit(read) for _ in range(4)]] == [b"data"] * 4
    assert fetched == [1]


def test_the_oldest_parts_make_room(monkeypatch) -> None:
    monkeypatch.setattr(recent, "MOST_BYTES", 10)
    parts, fetched = recent.Recent(), []
    for begin in (0, 4, 0, 8, 0, 4):
        parts.get((FILE, begin, begin + 4), lambda begin=begin: memoryview(fetched.append(begin) or b"data"))
    assert fetched == [0, 4, 8, 4]


def test_a_failure_is_not_kept() -> None:
    parts = recent.Recent()

    def fail() -> memoryview:
        raise OSError

    with pytest.raises(OSError):  # noqa: PT011  # as raised above
        parts.get((FILE, 0, 4), fail)
    assert parts.get((FILE, 0, 4), lambda: memoryview(b"data")) == b"data"

"""Reading ahead: in order, one block at a time, and an error where it belongs."""

import threading
from collections.abc import Iterator

import pytest
import torch

from eckart.checkpoint.ahead import on_device, read_ahead

PATIENCE = 20  # seconds


def test_the_next_block_is_read_while_one_is_in_use() -> None:
    begun = [threading.Event() for _ in range(5)]

    def blocks() -> Iterator[torch.Tensor]:
        for number in range(4):
            begun[number].set()
            yield torch.full((3,), float(number))
        begun[4].set()

    seen = []
    for number, block in enumerate(read_ahead(blocks(), lambda block: block + 10)):
        assert begun[number + 1].wait(PATIENCE)
        assert not any(event.is_set() for event in begun[number + 2 :])
        seen.append(block.tolist())
    assert seen == [[number + 10.0] * 3 for number in range(4)]


def test_an_error_of_the_reader_is_raised_after_the_blocks_before_it() -> None:
    def blocks() -> Iterator[torch.Tensor]:
        yield torch.zeros(1)
        msg = "truncated"
        raise ValueError(msg)

    iterator = read_ahead(blocks(), lambda block: block)
    assert next(iterator).tolist() == [0.0]
    with pytest.raises(ValueError, match="truncated"):
        next(iterator)


def test_leaving_early_ends_the_thread() -> None:
    iterator = read_ahead(iter([torch.zeros(1)] * 9), lambda block: block)
    next(iterator)
    iterator.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("eckart-ahead")]


@pytest.mark.parametrize("device", ["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
def test_blocks_arrive_on_the_device(device: str) -> None:
    blocks = [torch.arange(6.0).reshape(2, 3) + number for number in range(3)]
    found = list(on_device(iter(blocks), torch.device(device)))
    assert [block.device.type for block in found] == [device] * 3
    assert torch.equal(torch.cat(found).cpu(), torch.cat(blocks))

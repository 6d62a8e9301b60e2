"""Reading the next block of a matrix while this one is computed with."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor


def on_device(blocks: Iterator[Tensor], device: torch.device) -> Iterator[Tensor]:
    """Blocks on a device; for a GPU the next one is read into pinned memory, from which a copy waits for nothing."""
    if device.type != "cuda":
        yield from (block.to(device) for block in blocks)
        return
    for block in read_ahead(blocks, torch.Tensor.pin_memory):
        yield block.to(device, non_blocking=True)


def read_ahead(blocks: Iterator[Tensor], prepare: Callable[[Tensor], Tensor]) -> Iterator[Tensor]:
    """Blocks, each read and prepared on another thread while the one before is in use; two are in memory."""

    def read() -> Tensor | None:
        block = next(blocks, None)
        return None if block is None else prepare(block)

    with ThreadPoolExecutor(1, thread_name_prefix="eckart-ahead") as reader:
        coming = reader.submit(read)
        while (block := coming.result()) is not None:
            coming = reader.submit(read)
            yield block

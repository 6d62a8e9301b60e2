"""The smallest rank of an adapter that keeps enough of its gain, found by measuring every rank from 1 up."""

from collections.abc import Callable
from dataclasses import dataclass

from eckart.adapter import Adapter
from eckart.errors import EckartError
from eckart.operations import AdapterResult, resize

Loss = Callable[[str, Adapter], float]
"""The loss of the base with an adapter, in nats per token, named by what is measured."""


@dataclass(frozen=True)
class Tried:
    """An adapter resized to a rank, its loss, and the share of the whole adapter's gain that it keeps."""

    resized: AdapterResult
    rank: int
    loss: float
    kept: float


def smallest_rank(adapter: Adapter, *, keep: float, base_loss: float, adapter_loss: float, loss: Loss) -> list[Tried]:
    """Resize to rank 1, 2, … and measure each, until the share `keep` of the gain is kept.

    Every rank below is measured too, since a loss need not fall with the rank: the last one is the smallest.

    Args:
        adapter: of one rank throughout.
        keep: share of `base_loss` − `adapter_loss` to keep.
        base_loss: of the base alone.
        adapter_loss: with it as it is.
        loss: measures an adapter.

    Returns:
        All that was tried, in the order of the ranks; the full rank at the latest keeps enough.

    Raises:
        EckartError: the adapter is no better than none.
    """
    if not adapter_loss < base_loss:
        msg = f"the adapter gained nothing on held-out text ({base_loss:.4f} nats per token before, {adapter_loss:.4f} "
        raise EckartError(msg + "after), so there is no gain to keep")
    full = max(layer.rank for layer in adapter.values())
    tried: list[Tried] = []
    for rank in range(1, full + 1):
        resized = resize(adapter, rank=rank)
        found = adapter_loss if rank == full else loss(f"rank {rank}", resized.adapter)
        tried.append(Tried(resized, rank, found, (base_loss - found) / (base_loss - adapter_loss)))
        if tried[-1].kept >= keep:
            break
    return tried

"""The smallest rank of an adapter that keeps enough of its gain, measured at every rank from 1 up."""

from collections.abc import Callable
from dataclasses import dataclass

from eckart.adapter import Adapter
from eckart.errors import EckartError
from eckart.operations import AdapterResult, resize

Loss = Callable[[str, Adapter], float]
"""Measures the base with an adapter, with a label for its progress; returns the loss in nats per token."""


@dataclass(frozen=True)
class Tried:
    """An adapter resized to a rank, its loss, and the share of the original adapter's gain that it keeps."""

    resized: AdapterResult
    rank: int
    loss: float
    kept: float


def smallest_rank(adapter: Adapter, *, keep: float, base_loss: float, adapter_loss: float, loss: Loss) -> list[Tried]:
    """Resize to rank 1, 2, … and measure each, until the share `keep` of the gain is kept.

    A loss does not always fall with the rank, so every rank is measured: the last one is the smallest that suffices.

    Args:
        adapter: an adapter with the same rank in all layers.
        keep: share of `base_loss` − `adapter_loss` to keep.
        base_loss: loss of the base alone.
        adapter_loss: loss with the original adapter.
        loss: measures an adapter.

    Returns:
        All that was tried, by ascending rank; the full rank keeps everything.

    Raises:
        EckartError: the adapter does not lower the loss.
    """
    if not adapter_loss < base_loss:
        msg = f"the adapter does not lower the loss on held-out text ({base_loss:.4f} nats per token without, "
        raise EckartError(msg + f"{adapter_loss:.4f} with it), so there is no gain to keep")
    full = max(layer.rank for layer in adapter.values())
    tried: list[Tried] = []
    for rank in range(1, full + 1):
        resized = resize(adapter, rank=rank)
        rank_loss = adapter_loss if rank == full else loss(f"rank {rank}", resized.adapter)
        tried.append(Tried(resized, rank, rank_loss, (base_loss - rank_loss) / (base_loss - adapter_loss)))
        if tried[-1].kept >= keep:
            break
    return tried

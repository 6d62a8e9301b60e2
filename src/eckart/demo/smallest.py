"""The smallest rank of an adapter that keeps enough of its gain, measured at every rank from 1 up."""

from collections.abc import Callable

from eckart.adapter import Adapter
from eckart.errors import EckartError
from eckart.operations import AdapterResult, resize

Loss = Callable[[str, Adapter], float]
"""Measures the base with an adapter, with a label for its progress; returns the loss in nats per token."""


def smallest_rank(
    adapter: Adapter, *, keep: float, base_loss: float, adapter_loss: float, loss: Loss
) -> list[tuple[AdapterResult, float]]:
    """Resize to rank 1, 2, … and measure each, until the share `keep` of the gain is kept.

    A loss does not always fall with the rank, so every rank is measured: the last one is the smallest that suffices.

    Args:
        adapter: an adapter with the same rank in all layers.
        keep: share of `base_loss` − `adapter_loss` to keep.
        base_loss: loss of the base alone.
        adapter_loss: loss with the original adapter.
        loss: measures an adapter.

    Returns:
        The adapter at rank 1, 2, … and its loss; the full rank keeps everything.

    Raises:
        EckartError: the adapter does not lower the loss.
    """
    if not adapter_loss < base_loss:
        msg = f"the adapter does not lower the loss on held-out text ({base_loss:.4f} nats per token without, "
        raise EckartError(msg + f"{adapter_loss:.4f} with it), so there is no gain to keep")
    full = max(layer.rank for layer in adapter.values())
    tried: list[tuple[AdapterResult, float]] = []
    for rank in range(1, full + 1):
        resized = resize(adapter, rank=rank)
        rank_loss = adapter_loss if rank == full else loss(f"rank {rank}", resized.adapter)
        tried.append((resized, rank_loss))
        if gain_kept(rank_loss, base_loss=base_loss, adapter_loss=adapter_loss) >= keep:
            break
    return tried


def gain_kept(loss: float, *, base_loss: float, adapter_loss: float) -> float:
    """The share of an adapter's gain that a loss keeps: 1 at `adapter_loss`, 0 at `base_loss`."""
    return (base_loss - loss) / (base_loss - adapter_loss)

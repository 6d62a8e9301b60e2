"""A merged weight quantised to NF4 again as its rows come, with the error that this costs.

For each block of values x with codes c the sums Σc², Σcx, Σx² are kept: ‖s·c − x‖² then follows for any scale s, also
for the scales of double quantisation, which are known only when all rows are there.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from eckart.checkpoint.nf4_scheme import Nf4Scheme
from eckart.linalg import nf4


class Requantised:
    """One weight in a given scheme.

    Args:
        scheme: how it is stored.
    """

    def __init__(self, scheme: Nf4Scheme) -> None:
        self.scheme = scheme
        self._codes: list[Tensor] = []
        self._absmax: list[Tensor] = []
        self._sums: list[Tensor] = []
        self._rest = torch.empty(0)
        self._update = 0.0

    def add(self, stored: Tensor, merged: Tensor) -> None:
        """Take the next rows: as they were, and as they shall be, in float32."""
        self._update += float(torch.linalg.vector_norm(merged - stored.to(merged.dtype), dtype=torch.float64)) ** 2
        values = torch.cat([self._rest, merged.float().reshape(-1)])
        whole = len(values) // self.scheme.block_size * self.scheme.block_size
        self._rest = values[whole:].clone()
        if whole:
            self._quantise(values[:whole])

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """The stored tensors of the whole weight."""
        return self.scheme.tensors(self._blocks())

    def facts(self) -> dict[str, float]:
        """Squared norms of the error, of the merged weight, and of the update, once all rows are there."""
        scales = self._blocks().scales().to(torch.float64)
        codes, mixed, values = torch.cat(self._sums, dim=1).to(torch.float64)
        error = float((scales.square() * codes - 2 * scales * mixed + values).sum())
        return {"error": max(error, 0.0), "merged": float(values.sum()), "update": self._update}

    def _quantise(self, values: Tensor) -> None:
        blocks = nf4.quantize(values, block_size=self.scheme.block_size)
        self._codes.append(blocks.codes)
        self._absmax.append(blocks.absmax)
        size = self.scheme.block_size
        padded = torch.nn.functional.pad(values, (0, -len(values) % size)).view(-1, size)
        unit = nf4.Nf4Blocks(blocks.codes, torch.ones_like(blocks.absmax), (len(values),), torch.float32, size)
        codes = torch.nn.functional.pad(unit.dequantize(), (0, -len(values) % size)).view(-1, size)
        self._sums.append(torch.stack([(codes * codes).sum(1), (codes * padded).sum(1), (padded * padded).sum(1)]))

    def _blocks(self) -> nf4.Nf4Blocks:
        if len(self._rest):
            self._quantise(self._rest)
            self._rest = self._rest[:0]
        scheme = self.scheme
        blocks = nf4.Nf4Blocks(
            torch.cat(self._codes), torch.cat(self._absmax), scheme.shape, scheme.dtype, scheme.block_size
        )
        return nf4.nested(blocks) if scheme.double else blocks

"""Quantizes a weight to NF4 while its rows arrive, and measures the error.

For each block of values x with codes c the sums Σc², Σcx, Σx² are accumulated: ‖s·c − x‖² then follows for any scale s,
also for the scales of double quantization, which are computed only after the last row.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from eckart.checkpoint.encodings.nf4_scheme import Nf4Scheme
from eckart.linalg import nf4
from eckart.linalg.block_sizes import NORM_CHUNK


class Requantized:
    """One weight in a given scheme.

    Args:
        scheme: how it is stored.
        transposed: whether the rows are those of its transpose, which are then collected until the last has arrived.
    """

    def __init__(self, scheme: Nf4Scheme, *, transposed: bool = False) -> None:
        self.scheme = scheme
        self.transposed = transposed
        self._waiting: list[Tensor] = []
        count = math.prod(scheme.shape)
        blocks = -(-count // scheme.block_size)
        self._codes = torch.empty(-(-count // 2), 1, dtype=torch.uint8)
        self._absmax = torch.empty(blocks)
        self._sums = torch.empty(3, blocks, dtype=torch.float64)
        self._filled = 0
        self._rest = torch.empty(0)
        self._update = 0.0

    def add(self, stored: Tensor, merged: Tensor) -> None:
        """Add the next rows: as stored in the base and as merged; the same tensor if nothing changes them."""
        if merged is not stored:
            change = torch.linalg.vector_norm(merged - stored.to(merged.dtype), dtype=torch.float64)
            self._update = math.hypot(self._update, float(change))
        if self.transposed:
            self._waiting.append(merged)
        else:
            self._take(merged)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """The stored tensors of the weight, once all rows are added."""
        return self.scheme.tensors(self._blocks())

    def facts(self) -> dict[str, float]:
        """Norms of the error, of the merged weight and of the update, once all rows are added."""
        scales = self._blocks().scales().to(torch.float64)
        codes, mixed, values = self._sums
        error = float((scales.square() * codes - 2 * scales * mixed + values).sum())
        return {"error": math.sqrt(max(error, 0.0)), "merged": math.sqrt(values.sum()), "update": self._update}

    def _take(self, rows: Tensor) -> None:
        values = torch.cat([self._rest, rows.float().reshape(-1)])
        whole = len(values) // self.scheme.block_size * self.scheme.block_size
        self._rest = values[whole:].clone()
        if whole:
            self._quantize(values[:whole])

    def _quantize(self, values: Tensor) -> None:
        size, first = self.scheme.block_size, self._filled // self.scheme.block_size
        blocks = nf4.quantize(values, block_size=size)
        self._codes[self._filled // 2 :][: len(blocks.codes)] = blocks.codes
        self._absmax[first:][: len(blocks.absmax)] = blocks.absmax
        self._filled += len(values)
        unit = nf4.Nf4Blocks(blocks.codes, torch.ones_like(blocks.absmax), (len(values),), torch.float32, size)
        padded, codes = (
            torch.nn.functional.pad(part, (0, -len(values) % size)).view(-1, size).split(NORM_CHUNK // size)
            for part in (values, unit.dequantize())
        )
        for part in map(_products, codes, padded):
            self._sums[:, first : first + part.shape[1]] = part
            first += part.shape[1]

    def _blocks(self) -> nf4.Nf4Blocks:
        if self._waiting:
            self._take(torch.cat(self._waiting).T)
            self._waiting.clear()
        if len(self._rest):
            self._quantize(self._rest)
            self._rest = self._rest[:0]
        scheme = self.scheme
        blocks = nf4.Nf4Blocks(self._codes, self._absmax, scheme.shape, scheme.dtype.torch, scheme.block_size)
        return nf4.nested(blocks) if scheme.double else blocks


def _products(codes: Tensor, values: Tensor) -> Tensor:
    """Σc², Σcx and Σx² of each block, in float64, shape `(3, blocks)`."""
    codes, values = codes.to(torch.float64), values.to(torch.float64)
    return torch.stack([(codes * codes).sum(1), (codes * values).sum(1), (values * values).sum(1)])

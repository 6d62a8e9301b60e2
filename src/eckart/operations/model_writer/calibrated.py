"""Codes of a weight chosen by the second moments of its inputs, if they are better than the nearest ones."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from eckart.linalg.alternation import alternate
from eckart.linalg.calibrated_codes import calibrated_codes
from eckart.linalg.left_out import best_damping
from eckart.linalg.output_metric import Metric, emphasized, moment_factor

if TYPE_CHECKING:
    from eckart.linalg.scaled_levels import ScaledLevels
    from eckart.operations.moments import Moments

EMPHASIS = 0.1  # of what an adapter reads, relative to the mean moment of the directions that it reads


class QuantizedWeight(Protocol):
    """A weight as codes and scales."""

    def scaled_levels(self) -> "ScaledLevels":
        """The values that it can take with these scales."""
        ...

    def with_codes(self, codes: Tensor) -> "QuantizedWeight":
        """The same scales with other codes."""
        ...

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """The values."""
        ...


@dataclass(frozen=True)
class Calibration:
    """How the codes of a model's weights are chosen.

    Attributes:
        moments: second moments of the layers' inputs.
        naming: how a module's name in the files becomes that in the moments.
        rank: of a correction that will follow, and with which the codes are alternated; 0 for none.
    """

    moments: "Moments"
    naming: Callable[[str], str]
    rank: int = 0

    def covers(self, module: str) -> bool:
        """Whether there are moments of a module's inputs."""
        return self.naming(module) in self.moments

    def facts(self) -> dict[str, Any]:
        """What the codes depend on, for a fingerprint."""
        return {"model": self.moments.model, "tokens": dict(self.moments.tokens), "rank": self.rank}

    def quantize(
        self,
        module: str,
        weight: Tensor,
        nearest: Callable[..., QuantizedWeight],
        *,
        directions: Tensor | None,
        generator: torch.Generator,
    ) -> tuple[QuantizedWeight, Mapping[str, Any]]:
        """A weight with the codes that suit its inputs.

        Args:
            module: its name in the files.
            weight: shape `(out_features, in_features)`.
            nearest: quantizes a weight to the nearest codes, with scales for the second moment of each input if given.
            directions: inputs that an adapter reads, shape `(rank, in_features)`; rounding spares them.
            generator: source of randomness, on the CPU.

        Returns:
            the weight, and the output errors of the nearest codes with the usual scales and of these, with the damping
            they were chosen with; none if the nearest codes are better on kinds of text that were left out.
        """
        name, columns = self.naming(module), weight.shape[1]
        kinds = self.moments.per_token(name, columns)
        if directions is not None:
            kinds = [emphasized(each, directions, EMPHASIS) for each in kinds]
        total = torch.stack(kinds).sum(0)
        of_outputs, rounded = Metric(moment_factor(total)), nearest(weight)
        suited = nearest(weight, total.diagonal())
        grid = suited.scaled_levels()
        damping = best_damping(weight, kinds, grid)

        def stored_and_values(goal: Tensor) -> tuple[QuantizedWeight, Tensor]:
            codes = grid.codes(goal) if damping is None else calibrated_codes(goal, total, grid, damping=damping)
            stored = suited.with_codes(codes)
            return stored, stored.dequantize().to(torch.float64)

        rank = min(self.rank, *weight.shape)
        if rank:
            stored, _, _ = alternate(weight, of_outputs, stored_and_values, rank=rank, generator=generator)
        else:
            stored, _ = stored_and_values(weight)
        errors = {
            key: of_outputs.norm(weight.to(torch.float64) - each.dequantize().to(torch.float64))
            for key, each in (("nearest_output", rounded), ("output", stored))
        }
        return stored, errors | {"outputs": of_outputs.norm(weight), "damping": damping}


class CollectedWeight:
    """One weight whose codes are chosen when all of its rows have arrived.

    Args:
        tensors: the stored tensors of a quantized weight.
        quantize: from a weight `(out_features, in_features)`, how it is quantized, and facts about that.
        transposed: whether the rows are those of its transpose.
    """

    def __init__(
        self,
        tensors: Callable[[Any], Any],
        quantize: Callable[[Tensor], tuple[QuantizedWeight, Mapping[str, Any]]],
        *,
        transposed: bool,
    ) -> None:
        self._tensors, self._quantize, self._transposed = tensors, quantize, transposed
        self._rows: list[Tensor] = []
        self._update = 0.0
        self._facts: dict[str, Any] = {}

    def add(self, stored: Tensor, merged: Tensor) -> None:
        """Add the next rows: as stored in the base and as merged; the same tensor if nothing changes them."""
        if merged is not stored:
            change = torch.linalg.vector_norm(merged - stored.to(merged.dtype), dtype=torch.float64)
            self._update = float(torch.tensor([self._update, float(change)]).norm())
        self._rows.append(merged.float())

    def tensors(self) -> Any:
        """The stored tensors of the weight, once all rows are added."""
        rows = torch.cat(self._rows)
        self._rows.clear()
        weight = rows.T.contiguous() if self._transposed else rows
        stored, facts = self._quantize(weight)
        error = torch.linalg.vector_norm(stored.dequantize(torch.float32) - weight, dtype=torch.float64)
        norms = {"error": float(error), "merged": float(torch.linalg.vector_norm(weight, dtype=torch.float64))}
        self._facts = {**norms, "update": self._update, **facts}
        return self._tensors(stored)

    def facts(self) -> dict[str, Any]:
        """Norms of the error, of the merged weight and of the update, once `tensors` was called."""
        return self._facts

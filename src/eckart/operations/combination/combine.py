"""Several adapters as one: their weighted sum, exact from stacked factors, or the result of another method."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from eckart.adapter.adapter import Adapter
from eckart.checkpoint.fused_experts import with_fused_experts
from eckart.checkpoint.open import ModelSource
from eckart.errors import OptionError
from eckart.formats.common_names import to_common_names
from eckart.formats.peft_experts import expert_of
from eckart.formats.sources import open_adapter, open_model
from eckart.operations.adapter_writer import AdapterWriter
from eckart.operations.combination.checks import check_plan
from eckart.operations.combination.mixture import Method, Mixture
from eckart.operations.combination.plan import CombinePlan
from eckart.operations.fitting import deepened, repeated_layers, without_zero_biases
from eckart.operations.layer_scales import scaled_where_found
from eckart.operations.output_dtype import float_dtype
from eckart.operations.rank_choice import Budget, RankChoice
from eckart.operations.weights import checked_weights
from eckart.result import Skipped

if TYPE_CHECKING:
    import torch

    from eckart.engine import Execution
    from eckart.operations.adapter_result import AdapterResult
    from eckart.result import Finish


def combine(
    adapters: Sequence[Adapter | str | Path],
    *,
    weights: Sequence[float] | None = None,
    method: Method = "sum",
    density: float | None = None,
    rank: int | RankChoice | None = None,
    energy: float | None = None,
    error: float | None = None,
    budget: str | int | Budget | None = None,
    base: "ModelSource | None" = None,
    scale: Mapping[str, float] | None = None,
    output: str | Path | None = None,
    dtype: "str | torch.dtype | None" = None,
    execution: "Execution | None" = None,
    force: bool = False,
    finish: "Finish[AdapterResult] | None" = None,
) -> "AdapterResult":
    """One adapter whose update is Σ wᵢ·Δᵢ, or combines the wᵢ·Δᵢ otherwise, over the union of the adapters' modules.

    A sum is exact: factors are stacked, so ranks add up, and are truncated only to a chosen rank. An adapter of weight
    0 is skipped, and a single adapter of weight 1 is returned bit for bit. Updates that must be formed as matrices
    (pruned ones, and those of DoRA layers, Δ = W′ − W) are formed one at a time and factored again. Biases of layers,
    and tensors saved in full as base + Σ wᵢ·(savedᵢ − base), are summed with every method.

    At most one of `rank`, `energy`, `error` and `budget` chooses the ranks. Without one a sum has the sum of the ranks
    (its own rank where that is more than a matrix can have), and so has a combination in common subspaces, where no
    update is formed as a matrix. One formed as a matrix, or by `shared`, has the highest rank among the adapters.

    Args:
        adapters: `Adapter`s, or paths or hub names of adapters. Where formats differ the result has the base's module
            names, or those of the PEFT adapters.
        weights: of each adapter, signed; all 1 by default.
        method: `sum`; one that prunes the updates before they are summed: `ties`, `dare` or `magnitude`; or one in the
            common subspaces of the updates: `tsv`, `iso`, `knots` or `shared`, see `combined_core`.
        density: share of the entries that pruning leaves; 0.5 by default.
        rank: at most this rank for every layer.
        energy: the smallest rank of each layer that preserves this share of ‖Δ‖_F².
        error: the smallest rank of each layer whose relative Frobenius error is below this.
        budget: size of the adapter, as bytes (`"20MB"`) or parameters (`"5M"`, or an int), shared so that the most
            energy is preserved. Everything that is written counts.
        base: the model; needed for DoRA layers and for weighted tensors saved in full.
        scale: factors of layers by pattern, in every adapter that has them; 0 removes them. See `with_scales`.
        output: where to write it, in the format of the adapters; finished layers are stored next to it until it is
            complete.
        dtype: of the factors, as a name or a torch dtype; by default the widest among the inputs.
        execution: workers, memory, progress, resume, seed.
        force: replace an existing output.
        finish: called with the output before it gets its final name and the result, to add files.

    Returns:
        `AdapterResult`: each layer's rank, the error against the exact combination measured on the factors as written,
        and the least possible. With `shared` the error is that of all adapters' updates together in the subspaces of
        the written factors, √(Σ‖Δ−PΔQ‖² / Σ‖Δ‖²). Layers whose updates cancel are skipped and named.

    Raises:
        MismatchError: modules that do not fit together, each with the reason; or no layer is left.
        OptionError: an argument is invalid, the budget is too small, or factors are too large for the dtype.
        OutputError: the output exists or cannot be written.
        SourceError: an input changed during the run.
        NotFiniteError: a tensor contains NaN or Inf.
    """
    plan = plan_combine(
        adapters, weights=weights, method=method, density=density, rank=rank, energy=energy, error=error,
        budget=budget, base=base, scale=scale, dtype=dtype,
    )  # fmt: skip
    writer = AdapterWriter.checked(plan, output, execution, force=force, finish=finish)
    from eckart.operations.combination.work import combination_work  # imports torch

    return writer.write(combination_work(plan, writer.execution))


def plan_combine(
    adapters: Sequence[Adapter | str | Path],
    *,
    weights: Sequence[float] | None = None,
    method: Method = "sum",
    density: float | None = None,
    rank: int | RankChoice | None = None,
    energy: float | None = None,
    error: float | None = None,
    budget: str | int | Budget | None = None,
    base: "ModelSource | None" = None,
    scale: Mapping[str, float] | None = None,
    dtype: "str | torch.dtype | None" = None,
) -> CombinePlan:
    """Check a combination from headers alone; arguments as for `combine`.

    Raises:
        MismatchError: the adapters do not belong together; all faults at once.
        OptionError: an argument is invalid, or the budget is too small.
    """
    mixture, data_type = Mixture(method, density), float_dtype(dtype)
    choice = RankChoice.given(rank=rank, energy=energy, error=error, budget=budget)
    factors = checked_weights(weights, len(adapters))
    loaded = scaled_where_found([open_adapter(adapter) for adapter in adapters], scale or {})
    used = [(adapter, weight) for adapter, weight in zip(loaded, factors, strict=True) if weight]
    if not used:
        msg = "nothing to combine: " + ("every weight is zero" if adapters else "no adapter was given")
        raise OptionError(msg)
    repeated_layers(loaded)  # refuses adapters that do not repeat the same ones
    opened = deepened(open_model(base), loaded) if base is not None else None
    if opened is not None and any(expert_of(name) for adapter in loaded for name in adapter):
        opened = with_fused_experts(opened)
    chosen, chosen_weights = zip(*used, strict=True)
    zero = [Skipped(f"adapter {i}", "zero weight") for i, weight in enumerate(factors, 1) if not weight]
    common = to_common_names(chosen, base)
    if opened is not None:
        common = [without_zero_biases(adapter, opened) for adapter in common]
    files = tuple(file for adapter in loaded for file in adapter.files)
    plan = CombinePlan(tuple(common), chosen_weights, mixture, choice, opened, data_type, tuple(zero), files)
    check_plan(plan)
    return plan

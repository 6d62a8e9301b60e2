"""Several adapters as one: their weighted sum, exact from stacked factors, or what a method of pruning makes of it."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from eckart.adapter.adapter import Adapter
from eckart.checkpoint import open_checkpoint
from eckart.engine import Execution
from eckart.errors import OptionError
from eckart.formats import load_adapter
from eckart.formats.common_names import to_common_names
from eckart.operations.adapter_result import AdapterResult
from eckart.operations.adapter_writer import AdapterWriter
from eckart.operations.combination.mixture import Mixture
from eckart.operations.combination.plan import CombinePlan
from eckart.operations.combination.work import Combining
from eckart.operations.rank_choice import RankChoice
from eckart.operations.weights import checked_weights
from eckart.result import Skipped

DEFAULT_EXECUTION, SUM = Execution(), Mixture()
Base = str | Path | Mapping[str, Tensor] | nn.Module


def plan_combine(
    adapters: Sequence[Adapter | str | Path],
    *,
    weights: Sequence[float] | None = None,
    mixture: Mixture = SUM,
    rank: int | RankChoice | None = None,
    base: Base | None = None,
    dtype: torch.dtype | None = None,
) -> CombinePlan:
    """Check a combination from headers alone; see `combine`.

    Raises:
        MismatchError: the adapters do not belong together; all faults at once.
        OptionError: weights that do not fit, or a budget that cannot be kept.
    """
    factors = checked_weights(weights, len(adapters))
    loaded = [adapter if isinstance(adapter, Adapter) else load_adapter(adapter) for adapter in adapters]
    taken = [(adapter, weight) for adapter, weight in zip(loaded, factors, strict=True) if weight]
    if not taken:
        msg = "nothing to combine: " + ("every weight is zero" if adapters else "no adapter was given")
        raise OptionError(msg)
    choice = RankChoice(rank=rank) if isinstance(rank, int) else rank
    opened = open_checkpoint(base) if base is not None else None
    chosen, weights = zip(*taken, strict=True)
    plan = CombinePlan(tuple(to_common_names(chosen, base)), weights, mixture, choice, opened, dtype)
    plan.check()
    return plan


def combine(
    adapters: Sequence[Adapter | str | Path],
    *,
    weights: Sequence[float] | None = None,
    mixture: Mixture = SUM,
    rank: int | RankChoice | None = None,
    base: Base | None = None,
    output: str | Path | None = None,
    dtype: torch.dtype | None = None,
    execution: Execution = DEFAULT_EXECUTION,
    force: bool = False,
) -> AdapterResult:
    """One adapter whose update is Σ wᵢ·Δᵢ, or what `mixture` makes of the updates, over the union of their modules.

    A sum is exact: factors are stacked, so ranks add up, and are cut only to a chosen rank. An adapter of weight 0
    drops out, and one adapter of weight 1 comes back bit for bit. Updates that have to be formed whole (pruned ones,
    and those of DoRA layers, Δ = W′ − W) are formed one matrix at a time and factored again. Biases of layers, and
    tensors saved whole as base + Σ wᵢ·(savedᵢ − base), are summed whatever the method.

    Args:
        adapters: values, or places of their files. Where formats differ the result has the base's module names, or
            those of the PEFT adapters.
        weights: factor of each, signed; all 1 by default.
        mixture: sum, ties, dare or magnitude, and the density of what is pruned.
        rank: at most this rank for every layer, or a `RankChoice`; without one a sum keeps the sum of the ranks (its
            own rank where that is more than a matrix can have), and what was formed whole gets the highest rank that
            one of the adapters has there.
        base: the model, which DoRA layers and weighted tensors saved whole are differences from.
        output: where to write it, in the format of the adapters; finished layers are kept beside it.
        dtype: of the factors; by default the widest of those that are put together.
        execution: workers, memory, progress, resume, seed.
        force: replace an existing output.

    Returns:
        `AdapterResult`: of each layer the rank, the error against the exact combination measured on the factors as
        written, and the least possible. Layers whose updates cancel are left out and named.

    Raises:
        MismatchError: modules that do not fit together, each with its reason; or no layer is left.
        OptionError: weights, or a budget, that cannot be met; factors too large for the dtype.
        OutputError: the output exists or cannot be written.
        NotFiniteError: a tensor holds NaN or Inf.
    """
    began = time.monotonic()
    plan = plan_combine(adapters, weights=weights, mixture=mixture, rank=rank, base=base, dtype=dtype)
    writer = AdapterWriter("combine", plan.frame(), Path(output) if output is not None else None, execution, force)
    folder = plan.base.folder if plan.base else None
    writer.check([folder, *(file for each in plan.adapters for file in each.files)], plan.written_bytes())
    work = Combining(plan, execution)
    ranks, guarantee = work.ranks()
    facts = {
        "adapters": [adapter.fingerprint() for adapter in plan.adapters],
        "weights": plan.weights,
        "mixture": asdict(mixture),
        "choice": asdict(plan.choice) if plan.choice else None,
        "base": plan.base.fingerprint() if plan.base else None,
        "dtype": str(dtype),
        "seed": execution.seed,
    }
    tasks = work.tasks(lambda name: work.record(name, ranks.get(name)))
    zero = [Skipped(f"adapter {i}", "its weight is zero") for i, weight in enumerate(weights or (), 1) if not weight]
    return writer.make(tasks, plan.shapes, facts, skipped=zero, guarantee=guarantee, began=began)

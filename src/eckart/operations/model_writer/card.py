"""The model card of a merged, unmerged or quantized model."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eckart.operations.card import code, percent, shown_name, write_card
from eckart.operations.model_writer.plan import ModelPlan
from eckart.operations.model_writer.rounding_cost import errors_of

_TITLES = {"merge": "with adapters merged in", "unmerge": "with adapters removed", "quantize": "with quantized weights"}
_RELATIONS = {"merge": "finetune", "unmerge": "finetune", "quantize": "quantized"}


def write_model_card(folder: Path, plan: ModelPlan, measured: Sequence[Mapping[str, Any]]) -> None:
    """Write README.md, which keeps the license of the base.

    Args:
        folder: the folder, not yet under its final name.
        plan: what was written.
        measured: the facts of each tensor.
    """
    base = plan.base.source
    facts = [("Base", code(shown_name(base)))]
    for adapter, weight in zip(plan.adapters, plan.weights, strict=True):
        if adapter.files:
            facts.append(("Adapter", f"{code(shown_name(str(adapter.files[0].parent)))}, weight {weight:g}"))
    if plan.changed:
        facts.append(("Tensors changed", f"{len(plan.changed):,} of {plan.count:,}"))
    if plan.quantized:
        facts.append((f"Layers in {plan.encoding}", f"{len(plan.quantized):,}"))
    of_weights, of_update = errors_of(measured)
    if of_weights is not None:
        facts.append(("Relative error of the quantized weights", percent(of_weights)))
    if of_update is not None:
        facts.append(("Error of rounding, as a share of the update", percent(of_update)))
    write_card(
        folder,
        f"{code(shown_name(base))} {_TITLES[plan.command]}",
        facts,
        base=base,
        metadata={
            "base_model_relation": _RELATIONS[plan.command],
            "library_name": "transformers",
            "tags": ["eckart", f"eckart-{plan.command}"],
        },
        source=plan.base.folder,
    )

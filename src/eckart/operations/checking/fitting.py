"""An adapter changed until a runtime takes all of it: the steps of the rules that apply, in memory."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from eckart.adapter.adapter import Adapter
from eckart.adapter.outline import AdapterOutline, LayerOutline, TensorOutline
from eckart.errors import MismatchError, OptionError
from eckart.formats.sources import Source, open_adapter
from eckart.operations.checking.check import as_stored, findings
from eckart.operations.checking.parts import token_rows
from eckart.operations.checking.remedies import steps_of
from eckart.operations.checking.result import Finding
from eckart.operations.checking.runtimes import RUNTIMES, RuntimeName
from eckart.operations.conversion import Conversion, plan_conversion
from eckart.operations.extraction.plan import ExtractPlan

if TYPE_CHECKING:
    from eckart.engine import Execution
    from eckart.operations.adapter_result import AdapterResult


def fit(
    adapter: Adapter | str | Path,
    runtime: RuntimeName,
    *,
    base: Source | None = None,
    family: str | None = None,
    rank: int | None = None,
    error: float | None = None,
    execution: "Execution | None" = None,
) -> "tuple[list[AdapterResult], Conversion]":
    """The adapter as a runtime takes it: plain low-rank updates, an allowed rank, scales folded, its format.

    Args:
        adapter: the adapter, or its SOURCE.
        runtime: the runtime.
        base: the model, where updates are computed from it or the format has the names of another implementation.
        family: without `base`, the model's type, for the names of another implementation.
        rank: of updates that are computed from the base.
        error: instead, their largest relative error.
        execution: how the work is run.

    Returns:
        the results of the steps that change updates, with their errors; and the conversion to write.

    Raises:
        MismatchError: nothing makes the adapter fit; the reasons are listed.
        OptionError: `base` is needed.
    """
    source = opened = open_adapter(adapter)
    found, results = _findings(opened, runtime), []
    steps = steps_of([finding for finding in found if finding.rule.effect != "needs"])
    if steps is None:
        raise _refusal(runtime, [finding for finding in found if finding.rule.step is None])
    if "lora" in steps:
        if base is None:
            msg = f"{_texts(found)[0]}: give the model as `base`, from which plain updates are computed"
            raise OptionError(msg)
        from eckart.operations.plain_lora.to_lora import to_lora

        results.append(to_lora(opened, base, rank=rank, error=error, execution=execution))
        opened = results[-1].adapter
    found = _findings(opened, runtime)
    if any(finding.rule.step == "rank" and finding.rule.effect != "needs" for finding in found):
        from eckart.operations.resizing.resize import resize

        results.append(resize(opened, rank=RUNTIMES[runtime].rank(opened.outline()), execution=execution))
        opened = results[-1].adapter
    formats = RUNTIMES[runtime].formats
    writes = any(finding.rule.step == "format" for finding in found)
    conversion = plan_conversion(
        replace(opened, keep_scales=False),
        formats[0] if writes or opened.format not in formats else opened.format,  # type: ignore[arg-type]
        base=base,  # type: ignore[arg-type]
        family=family,
    )
    for part in conversion.adapters.values():
        left = [finding for finding in _findings(replace(part, files=()), runtime) if finding.rule.effect != "needs"]
        if left:
            raise _refusal(runtime, left)
    return results, replace(conversion, inputs=[*source.files, *conversion.inputs])


def fits_as_planned(plan: ExtractPlan, runtime: RuntimeName) -> bool:
    """Whether an extraction will write what a runtime takes; if not, `fit` changes its result.

    Raises:
        MismatchError: nothing will make it fit; the reasons are listed.
    """
    found = [it for it in findings(_outline(plan), None, RUNTIMES[runtime]) if it.rule.effect != "needs"]
    # No step makes plain updates of the rows of tokens that the base has not.
    hopeless = [it for it in found if it.rule.step is None or it.rule.finds is token_rows]
    if hopeless:
        raise _refusal(runtime, hopeless)
    return not found and plan.planned_ranks() is not None


def _outline(plan: ExtractPlan) -> AdapterOutline:
    """The adapter that an extraction will write, at rank 1 where spectra decide the ranks."""
    ranks, layers = plan.planned_ranks() or {}, {}
    for view in plan.parts.matrices:
        rank, (outputs, inputs) = ranks.get(view.name, 1), view.shape
        if view.kind == "embedding":
            outputs, inputs = inputs, outputs
        A, B = (
            ((rank, *view.tensor_shape[1:]), (outputs, rank, 1, 1))
            if view.kind == "conv"
            else ((rank, inputs), (outputs, rank))
        )
        has_bias = f"{view.module}.bias" in plan.parts.biases
        layers[view.name] = LayerOutline(
            TensorOutline(A, plan.dtype),
            TensorOutline(B, plan.dtype),
            float(rank),
            kind=view.kind if view.kind != "parameter" else "expert",
            bias=TensorOutline((outputs,), plan.dtype) if has_bias else None,
        )
    saved = {name: plan.stored.tensors[stored] for stored in plan.parts.saved for name in plan.names_of(stored)}
    saved |= plan.new_rows()
    return AdapterOutline(layers, {name: TensorOutline(info.shape, info.dtype) for name, info in saved.items()})


def _findings(adapter: Adapter, runtime: RuntimeName) -> list[Finding]:
    outline, config = as_stored(adapter)
    return findings(outline, config, RUNTIMES[runtime])


def _texts(found: Sequence[Finding]) -> list[str]:
    return [finding.text for finding in found]


def _refusal(runtime: RuntimeName, found: Sequence[Finding]) -> MismatchError:
    title = RUNTIMES[runtime].title
    msg = f"no conversion makes this adapter fit {title}"
    return MismatchError.listing(msg, [f"{title} {text}" for text in _texts(found)])

"""The end of a command that computes an adapter: writing it as a runtime loads it, and showing the result."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eckart.cli.options import Runtime

if TYPE_CHECKING:
    from eckart.adapter.adapter import Adapter
    from eckart.cli.quality import Judgement
    from eckart.engine import Execution
    from eckart.operations import AdapterResult, ConvertResult
    from eckart.training import Distillation


def write_for(
    adapter: "Adapter",
    runtime: Runtime,
    output: Path,
    *,
    base: str | None,
    inputs: Iterable[Path],
    execution: "Execution",
    force: bool,
) -> "tuple[ConvertResult, dict[str, Any]]":
    """Write an adapter in memory with every step that a runtime needs; its result, and the fields for JSON."""
    from eckart.operations.checking.fitting import fit

    steps, plan = fit(adapter, runtime, base=base, execution=execution)
    result = replace(plan, inputs=[*inputs, *plan.inputs]).write(output, force=force)
    return result, {"for": result.to_json(), "steps": [step.to_json() for step in steps]}


def note_needs(output: Path, runtime: Runtime | None) -> None:
    """Say which options a runtime needs to load an adapter that was written for it."""
    if runtime is None:
        return
    from eckart.cli.output import note
    from eckart.operations.checking.check import check
    from eckart.operations.checking.runtimes import RUNTIMES

    for name, verdict in check(output, [runtime]).verdicts.items():
        for text in verdict.texts("needs"):
            note(f"{RUNTIMES[name].title} {text}")


def show_adapter(
    result: "AdapterResult",
    facts: Mapping[str, Any],
    *,
    judged: "Judgement | None" = None,
    refine: "Distillation | None",
    fitted: "ConvertResult | None",
    as_json: bool,
    per_layer: bool = False,
) -> None:
    """Print an adapter that was computed, and what was written of it where a runtime loads another format.

    Args:
        result: the adapter.
        facts: what is printed as JSON.
        judged: the gain that it recovers, and the ranks that were measured to choose one.
        refine: its distillation, if there was one.
        fitted: what was written instead of the adapter itself.
        as_json: whether to print JSON.
        per_layer: whether to list every layer.
    """
    from eckart import report
    from eckart.cli.output import show, show_json

    if as_json:
        return show_json(facts)
    gain, curve = None, None
    if judged is not None:
        gain, curve, refine = judged.report, judged.curve, judged.distillation(refine)
    show(report.adapter_table(result, gain, refine.result if refine else None, curve=curve, per_layer=per_layer))
    if fitted is not None:
        show(report.conversion_table(fitted))
    return None

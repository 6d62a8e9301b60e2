"""Writing a computed adapter as a runtime loads it, and saying which options the runtime needs."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eckart.cli.options import Runtime

if TYPE_CHECKING:
    from eckart.adapter.adapter import Adapter
    from eckart.engine import Execution
    from eckart.operations.conversion import ConvertResult


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

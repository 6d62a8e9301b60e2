"""Merging into a quantized base with codes that keep what the adapters learned, judged on held-out text."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from eckart.calibration.inputs import check_output_and_texts
from eckart.checkpoint import open_checkpoint
from eckart.engine import Execution
from eckart.errors import OptionError
from eckart.operations.merging.calibrated import calibrated_merge
from eckart.operations.merging.merge import MergeResult, merge
from eckart.operations.merging.plan import Adapters, plan_merge

if TYPE_CHECKING:
    from eckart.calibration.held_out import HeldOutLosses
    from eckart.training.records import Source


def merge_with_text(
    base: str | Path,
    adapters: Adapters,
    output: str | Path,
    texts: "Sequence[Source]",
    *,
    original: str | Path | None = None,
    moments: Path | None = None,
    weights: Sequence[float] | None = None,
    execution: Execution = Execution(),
    force: bool = False,
) -> MergeResult:
    """Merge adapters into a quantized base so that the outputs of its layers on texts change least.

    Calibrated codes are kept only if the loss on held-out text is lower than with the nearest ones.

    Args:
        base: SOURCE of the quantized base, with its tokenizer.
        adapters: one or several, in memory or their SOURCEs.
        output: folder to write.
        texts: one source for each kind of text, in any form that training data may have.
        original: the model that the base was quantized from, whose weights are then updated; the moments are its.
        moments: file for the second moments, which is used again if it exists.
        weights: factor of each adapter, by default 1.
        execution: device, workers, memory, progress, resume.
        force: replace an existing output.

    Raises:
        EckartError: what `merge`, `read_texts` and `collect_moments` raise.
    """
    output = Path(output)
    check_output_and_texts(output, texts, moments, force=force)
    plan = plan_merge(base, adapters, weights=weights)
    if not plan.quantized:
        msg = f"{plan.base.source}: the merge writes no codes, which `calibrate` would choose"
        raise OptionError(msg)
    nearest = calibrated_merge(plan, original=original)
    nearest.check_output(output, force=force)
    # Imported here: a refusal needs no torch.
    from eckart.calibration.held_out import WorseCodes, measure_losses
    from eckart.calibration.session import calibrated
    from eckart.operations.model_writer.planned import planned

    with calibrated(original or base, texts, output=output, file=moments, execution=execution) as inputs:
        models = {
            "base": open_checkpoint(base),
            "adapter next to it": planned(plan_merge(base, adapters, weights=weights, dtype="float32")),
            "nearest codes": planned(nearest),
        }
        measured: list[HeldOutLosses] = []

        def check(folder: Path) -> None:
            candidates, device = models | {"written": open_checkpoint(folder)}, execution.torch_device()
            losses = measure_losses(candidates, inputs.text.held_out, device=device, progress=execution.progress)
            measured.append(losses)
            losses.check_codes()

        notes = []
        try:
            result = merge(base, adapters, output, weights=weights, moments=inputs.moments, original=original,
                           execution=execution, force=force, check=check)  # fmt: skip
        except WorseCodes as worse:
            notes.append(str(worse))
            result = merge(base, adapters, output, weights=weights, original=original, execution=execution, force=force)
            by_model = measured[0].by_model
            measured[0] = replace(measured[0], by_model={**by_model, "written": by_model["nearest codes"]})
    return replace(result, held_out=measured[0].to_json(), notes=tuple(notes))

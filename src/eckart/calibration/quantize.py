"""Quantization with text: codes and a correction from what layers see, judged on held-out text of the same kinds."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eckart.calibration.held_out import measure_losses
from eckart.calibration.session import calibrated
from eckart.checkpoint import open_checkpoint
from eckart.engine import Execution
from eckart.operations.merging.plan import plan_merge
from eckart.operations.model_writer.planned import planned
from eckart.operations.quantization.plan import plan_quantize
from eckart.operations.quantization.quantize import QuantizeResult, quantize, write_correction

if TYPE_CHECKING:
    from eckart.training.records import Source


def quantize_with_text(
    model: str | Path,
    output: str | Path,
    texts: "Sequence[Source]",
    *,
    correct: int = 0,
    moments: Path | None = None,
    execution: Execution = Execution(),
    force: bool = False,
    **options: Any,
) -> QuantizeResult:
    """Quantize a model so that its outputs on texts change least, and write a correction of what is left.

    Codes that are calibrated are kept only if the loss on held-out text is lower than with the nearest ones.

    Args:
        model: SOURCE of the model, with its tokenizer.
        output: folder to write.
        texts: one source for each kind of text, in any form that training data may have.
        correct: rank of the correction in `output`/correction; 0 for none.
        moments: file for the second moments, which is used again if it exists.
        execution: device, workers, memory, progress, resume.
        force: replace an existing output.
        options: further arguments of `quantize`.

    Raises:
        EckartError: what `quantize`, `read_texts` and `collect_moments` raise.
    """
    output = Path(output)
    plan = plan_quantize(model, **options)
    plan.check_output(output, force=force)
    with calibrated(model, texts, output=output, file=moments, execution=execution) as inputs:
        result = quantize(model, output, moments=inputs.moments, correct=correct, execution=execution, force=force,
                          **options)  # fmt: skip
        measured = {"original": open_checkpoint(model), "nearest codes": planned(plan)}
        losses = _losses(measured, output, inputs.text.held_out, execution)
        notes = [note] if (note := inputs.moments.note(max(layer.shape[1] for layer in result.layers))) else []
        if losses.mean("written") > losses.mean("nearest codes"):
            notes.append(
                f"The nearest codes were kept: calibrated ones had a loss of {losses.mean('written'):.4f} instead of "
                f"{losses.mean('nearest codes'):.4f} on held-out text."
            )
            result = quantize(model, output, execution=execution, force=True, **options)
            if correct:
                correction = write_correction(output, model, moments=inputs.moments, rank=correct, execution=execution)
                result = replace(result, correction=correction)
            losses = _losses(measured, output, inputs.text.held_out, execution)
    return replace(result, held_out=losses.to_json(), notes=tuple(notes))


def _losses(models: Any, output: Path, texts: Any, execution: Execution) -> Any:
    """The losses of the models, of what was written, and of that with its correction."""
    written = {"written": open_checkpoint(output)}
    if (output / "correction").is_dir():
        written["with correction"] = planned(plan_merge(output, output / "correction", dtype="float32"))
    return measure_losses(models | written, texts, device=execution.torch_device(), progress=execution.progress)

"""Quantization with text: codes and a correction from what layers see, judged on held-out text of the same kinds."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eckart.calibration.inputs import check_output_and_texts
from eckart.checkpoint import open_checkpoint
from eckart.engine import Execution
from eckart.operations.merging.plan import plan_merge
from eckart.operations.quantization.plan import plan_quantize
from eckart.operations.quantization.quantize import (
    CORRECTION,
    QuantizeResult,
    add_correction,
    published,
    quantize,
)

if TYPE_CHECKING:
    from eckart.calibration.held_out import HeldOutLosses
    from eckart.operations.adapter_result import AdapterResult
    from eckart.training.records import Source


def quantize_with_text(
    model: str | Path,
    output: str | Path,
    texts: "Sequence[Source]",
    *,
    correct: int = 0,
    distill: bool = False,
    steps: int | None = None,
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
        distill: train the correction towards the model's predictions on the texts.
        steps: of that training; by default one pass over the texts.
        moments: file for the second moments, which is used again if it exists.
        execution: device, workers, memory, progress, resume.
        force: replace an existing output.
        options: further arguments of `quantize`.

    Raises:
        EckartError: what `quantize`, `read_texts` and `collect_moments` raise.
    """
    output = Path(output)
    check_output_and_texts(output, texts, moments, force=force)
    plan = plan_quantize(model, **options)
    plan.check_output(output, force=force)
    # Imported here: a refusal needs no torch.
    from eckart.calibration.distillation import DistilledCorrection
    from eckart.calibration.held_out import WorseCodes
    from eckart.calibration.session import calibrated
    from eckart.operations.model_writer.planned import planned

    with calibrated(model, texts, output=output, file=moments, execution=execution) as inputs:
        models = {"original": open_checkpoint(model), "nearest codes": planned(plan)}
        refine = None
        if distill:
            refine = DistilledCorrection(models["original"], inputs.text, steps=steps, execution=execution)
        measure = partial(_losses, models, inputs.text.held_out, execution)
        losses: list[HeldOutLosses] = []
        corrections: list[AdapterResult] = []
        notes: list[str] = []
        if note := inputs.moments.note(max(view.shape[1] for tensor in plan.quantized for view in tensor.views)):
            notes.append(note)

        def check_calibrated(folder: Path) -> None:
            losses.append(measure(folder))
            losses[0].check_codes()

        def correct_nearest(folder: Path) -> None:
            if correct:
                rest = {key: value for key, value in options.items() if key in ("target", "exclude")}
                rest |= {"moments": inputs.moments, "rank": correct, "refine": refine, "execution": execution}
                corrections.append(add_correction(folder, model, output, **rest))
            losses.append(measure(folder))

        try:
            result = quantize(model, output, moments=inputs.moments, correct=correct, refine=refine,
                              execution=execution, force=force, check=check_calibrated, **options)  # fmt: skip
        except WorseCodes as worse:
            notes.append(str(worse))
            result = quantize(model, output, execution=execution, force=force, check=correct_nearest, **options)
            result = replace(result, correction=published(corrections, output))
    distilled = refine.result if refine else None
    return replace(result, held_out=losses[-1].to_json(), distilled=distilled, notes=tuple(notes))


def _losses(models: Any, texts: Any, execution: Execution, folder: Path) -> "HeldOutLosses":
    """The losses of the models, of what was written into a folder, and of that with its correction."""
    from eckart.calibration.held_out import measure_losses
    from eckart.operations.model_writer.planned import planned

    written = {"written": open_checkpoint(folder)}
    if (folder / CORRECTION).is_dir():
        written["with correction"] = planned(plan_merge(folder, folder / CORRECTION, dtype="float32"))
    return measure_losses(models | written, texts, device=execution.torch_device(), progress=execution.progress)

"""`eckart correct`: an adapter that repairs a quantized model."""

from functools import partial
from typing import Annotated

import typer

from eckart.cli.calibrate import CALIBRATION, Calibrate, Distill, MomentsFile, Steps, check_steps
from eckart.cli.options import (
    DTYPES,
    RESULT,
    AdapterOutput,
    Cache,
    Debug,
    Device,
    Exclude,
    FloatDtype,
    Force,
    Json,
    NoResume,
    Seed,
    Target,
    Workers,
    in_group,
)
from eckart.cli.push import Push

LayerRank = Annotated[
    int,
    in_group(
        *("Rank", "--rank", "-r"),
        metavar="N",
        min=1,
        help="Size of the adapter: that of one with this rank for every layer. The layers share it by their errors.",
    ),
]
With = Annotated[
    list[str] | None,
    in_group(
        *(CALIBRATION, "--with"),
        metavar="ADAPTER",
        help="An adapter of ORIGINAL that the correction carries too. Repeatable.",
    ),
]
Dtype = Annotated[FloatDtype, in_group(RESULT, "--dtype", metavar=DTYPES, help="Data type of the saved factors.")]


def correct(
    quantized: Annotated[str, typer.Argument(metavar="QUANTIZED", help="The model to correct.")],
    original: Annotated[str, typer.Argument(metavar="ORIGINAL", help="The model that it was quantized from.")],
    *,
    rank: LayerRank = 8,
    calibrate: Calibrate = None,
    moments: MomentsFile = None,
    adapters: With = None,
    distill: Distill = False,
    steps: Steps = None,
    target: Target = None,
    exclude: Exclude = None,
    device: Device = "auto",
    workers: Workers = None,
    seed: Seed = 0,
    no_resume: NoResume = False,
    output: AdapterOutput,
    push: Push = None,
    dtype: Dtype = "float32",
    force: Force = False,
    as_json: Json = False,
    cache: Cache = None,
    debug: Debug = False,
) -> None:
    """Write a PEFT adapter that brings the predictions of QUANTIZED back to those of ORIGINAL.

    QUANTIZED may be in any encoding that eckart reads. The factors are the best of their rank for what each layer's
    error does to the predictions on TEXT; the least that any adapter of these ranks could leave is shown next to
    theirs. --distill trains them further, for the model as a whole.

    \b
    $ eckart quantize base -o base-nf4 --double
    …
    $ eckart correct base-nf4 base -o correction --rank 8 --calibrate text/training.txt
    …
    """  # noqa: D301
    from eckart.checkpoint import check_output
    from eckart.checkpoint.source import local_paths
    from eckart.cli.output import show, show_json
    from eckart.cli.progress import StderrProgress
    from eckart.cli.push import check_push, push_output
    from eckart.engine import Execution
    from eckart.errors import OptionError
    from eckart.formats.sources import open_model
    from eckart.training.records import find_files

    if not calibrate:
        msg = "a correction needs text to see which errors matter: pass `calibrate`"
        raise OptionError(msg)
    check_push(push)
    check_steps(steps, distill=distill)
    check_output(output, force=force, inputs=local_paths(quantized, original, moments, *calibrate, *(adapters or ())))
    for model in (quantized, original):
        open_model(model)
    for text in calibrate:
        find_files(text)
    from eckart import operations, report  # here: a refusal needs no torch
    from eckart.calibration import DistilledCorrection, calibrated
    from eckart.operations.correction.plan import corrected_goal

    execution = Execution(device=device, workers=workers, seed=seed, resume=not no_resume, progress=StderrProgress())
    with calibrated(original, calibrate, output=output, file=moments, execution=execution) as inputs:
        refine = None
        if distill:
            goal = corrected_goal(original, adapters or ())
            refine = DistilledCorrection(goal, inputs.text, steps=steps, execution=execution)
        result = operations.correct(
            quantized,
            original,
            moments=inputs.moments,
            rank=rank,
            adapters=adapters or (),
            target=target or "all-linear",
            exclude=exclude or (),
            output=output,
            dtype=dtype,
            execution=execution,
            force=force,
            refine=partial(refine, quantized) if refine else None,
        )
    distilled = refine.result if refine else None
    if as_json:
        show_json(result.to_json() | {"distill": distilled.to_json() if distilled else None})
    else:
        show(report.adapter_table(result, distilled=distilled))
    return push_output(output, push, made_by="correct")

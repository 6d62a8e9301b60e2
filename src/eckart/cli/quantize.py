"""`eckart quantize`: a model in 4 bits."""

from typing import Annotated, Any, Literal

import typer

from eckart.cli.calibrate import CALIBRATION, Calibrate, Distill, MomentsFile, Steps, check_steps
from eckart.cli.options import (
    DTYPES,
    RESULT,
    Cache,
    Collect,
    Debug,
    DryRun,
    Exclude,
    FloatDtype,
    Force,
    Json,
    ModelOutput,
    NoResume,
    Ray,
    Share,
    Target,
    Workers,
    in_group,
)
from eckart.cli.push import Push

BlockSize = Annotated[
    int, typer.Option("--block-size", metavar="N", help="Number of values that share a scale: 32, 64 … 4096.")
]
Double = Annotated[
    bool, typer.Option("--double", help="Quantize the scales too: 0.52 bytes per parameter instead of 0.56.")
]
To = Annotated[
    Literal["nf4", "int4", "int8", "fp8", "fp8-block", "mxfp4", "nvfp4"],
    typer.Option(
        "--to",
        metavar="nf4|int4|int8|fp8|fp8-block|mxfp4|nvfp4",
        help="NF4 for bitsandbytes; fp8-block as DeepSeek stores it; the others for compressed-tensors and vLLM.",
    ),
]
Correct = Annotated[
    int | None,
    in_group(
        *(CALIBRATION, "--correct"),
        metavar="RANK",
        min=1,
        help="Also write an adapter that repairs the predictions, as large as one of this rank, to OUT/correction.",
    ),
]
DenseDtype = Annotated[
    FloatDtype | None,
    in_group(
        *(RESULT, "--dtype"),
        metavar=DTYPES,
        help="Data type of unquantized tensors and of the quantizer's input. [default: the model's]",
    ),
]


def quantize(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The model to quantize.")],
    *,
    to: To = "nf4",
    double: Double = False,
    block_size: BlockSize = 64,
    target: Target = None,
    exclude: Exclude = None,
    calibrate: Calibrate = None,
    correct: Correct = None,
    distill: Distill = False,
    steps: Steps = None,
    moments: MomentsFile = None,
    workers: Workers = None,
    no_resume: NoResume = False,
    shard: Share = None,
    collect: Collect = False,
    ray: Ray = None,
    output: ModelOutput,
    push: Push = None,
    dtype: DenseDtype = None,
    dry_run: DryRun = False,
    force: Force = False,
    as_json: Json = False,
    cache: Cache = None,
    debug: Debug = False,
) -> None:
    """Write MODEL with its linear layers in four or eight bits, which transformers and vLLM load.

    The codes of NF4 equal those of bitsandbytes bit for bit. The output layer, embeddings and norms stay as they are.

    With --calibrate, each layer gets the codes that change its outputs on TEXT least, if they are better than the
    nearest ones on kinds of text that were left out and on held-out text. --correct adds an adapter for PEFT, which
    --distill also trains for a few steps towards MODEL's predictions.

    \b
    $ eckart quantize base -o base-nf4 --double
    Model in base-nf4
     module      n  shape         relative error
     ───────────────────────────────────────────
     q_proj     30  576×576    9.41% (9.3–10.1%)
    …
    Median over the layers of each module kind (lowest–highest).
    Relative error over all layers: 9.36%.
    106 M of 135 M parameters in NF4, 0.518 bytes each; 112 MB in all, 3.8 s
    """  # noqa: D301
    from eckart import report
    from eckart.cli.output import present
    from eckart.cli.progress import StderrProgress
    from eckart.cli.push import check_push, push_output
    from eckart.engine import Execution
    from eckart.errors import OptionError
    from eckart.operations.quantization.plan import ALL_LINEAR, plan_quantize
    from eckart.operations.quantization.quantize import quantize as quantized

    options: dict[str, Any] = {
        "to": to,
        "target": target or ALL_LINEAR,
        "exclude": exclude or (),
        "block_size": block_size,
        "double": double,
        "dtype": dtype,
    }
    check_steps(steps, distill=distill)
    if distill and not correct:
        msg = "`distill` trains a correction; give its rank with `correct`"
        raise OptionError(msg)
    if dry_run:
        return present(plan_quantize(model, **options).preview(), report.preview_table, as_json=as_json)
    check_push(push)
    execution = Execution(
        device="cpu",
        workers=workers,
        resume=not no_resume,
        shard=shard,
        collect=collect,
        ray=ray,
        progress=StderrProgress(),
    )
    if calibrate:
        from eckart.calibration import quantize_with_text

        calibration: dict[str, Any] = {
            "texts": calibrate,
            "correct": correct or 0,
            "distill": distill,
            "steps": steps,
            "moments": moments,
        }
        result = quantize_with_text(model, output, execution=execution, force=force, **calibration, **options)
    else:
        result = quantized(model, output, correct=correct or 0, execution=execution, force=force, **options)
    present(result, report.quantize_table, as_json=as_json)
    return push_output(output, push, made_by="quantize")

"""`eckart merge`: adapters merged into a model."""

from typing import Annotated, Any

import typer

from eckart.cli.calibrate import CALIBRATION, Calibrate, MomentsFile
from eckart.cli.options import (
    DTYPES,
    RESULT,
    Cache,
    Collect,
    Debug,
    DryRun,
    FloatDtype,
    Force,
    Json,
    LayerScales,
    ModelOutput,
    NoResume,
    Ray,
    Share,
    Weights,
    Workers,
    in_group,
)
from eckart.cli.push import Push

MergedDtype = Annotated[
    FloatDtype | None,
    in_group(
        *(RESULT, "--dtype"),
        metavar=DTYPES,
        help="Data type of all written weights; dequantizes 4-bit weights. [default: the base's]",
    ),
]

Original = Annotated[
    str | None,
    in_group(
        *(CALIBRATION, "--original"),
        metavar="BASE16",
        help="The model that a quantized BASE was made from: its weights are updated, then quantized.",
    ),
]


def merge(
    base: Annotated[str, typer.Argument(metavar="BASE", help="The model to merge into.")],
    adapters: Annotated[list[str], typer.Argument(metavar="ADAPTER...", help="The adapters to merge.")],
    *,
    weights: Weights = None,
    calibrate: Calibrate = None,
    original: Original = None,
    moments: MomentsFile = None,
    scale: LayerScales = None,
    workers: Workers = None,
    no_resume: NoResume = False,
    shard: Share = None,
    collect: Collect = False,
    ray: Ray = None,
    output: ModelOutput,
    push: Push = None,
    dtype: MergedDtype = None,
    dry_run: DryRun = False,
    force: Force = False,
    as_json: Json = False,
    cache: Cache = None,
    debug: Debug = False,
) -> None:
    """Write BASE with adapters merged in, as a model folder that transformers loads.

    Tensors are streamed, so memory stays small for any model. An interrupted run resumes where it stopped.

    Into a quantized BASE, --calibrate chooses the codes so that the outputs of its layers on TEXT keep the update, and
    measures how much of the adapter's gain on held-out text does. --original starts from 16-bit weights.

    \b
    $ eckart merge base adapter -o merged-adapter
    Model in merged-adapter
    210 of 272 tensors changed, 269 MB, 1.8 s
    Rounding to the stored data type has an error of 24.5% of the update, as any
    merge into it has; --dtype float32 avoids it.

    \b
    $ eckart quantize base -o base-nf4 --double
    …
    $ eckart merge base-nf4 adapter -o merged-nf4
    Model in merged-nf4
    210 of 272 tensors changed, 112 MB, 4.3 s
    Quantized again to NF4, with an error of 0.70% of the merged weights and 1.11
    times the update: most of what was merged is lost. --calibrate TEXT chooses
    codes that keep it; --dtype bfloat16 writes plain weights without this error.
    """  # noqa: D301
    from eckart import report
    from eckart.cli.output import present
    from eckart.cli.progress import StderrProgress
    from eckart.cli.push import check_push, push_output
    from eckart.engine import Execution
    from eckart.errors import OptionError
    from eckart.operations.layer_scales import parse_scales
    from eckart.operations.merging.merge import merge as merged
    from eckart.operations.merging.plan import plan_merge
    from eckart.operations.weights import parse_weights

    options: dict[str, Any] = {"weights": parse_weights(weights), "scale": parse_scales(scale), "dtype": dtype}
    if dry_run:
        return present(plan_merge(base, adapters, **options).preview(), report.preview_table, as_json=as_json)
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
        from eckart.calibration import merge_with_text

        if dtype is not None:
            msg = "`dtype` writes weights without codes, which `calibrate` would choose; use one of them"
            raise OptionError(msg)
        result = merge_with_text(base, adapters, output, calibrate, original=original, moments=moments,
                                 weights=options["weights"], execution=execution, force=force)  # fmt: skip
    else:
        result = merged(base, adapters, output, original=original, execution=execution, force=force, **options)
    present(result, report.merge_table, as_json=as_json)
    return push_output(output, push, made_by="merge")

"""`eckart quantize`: a model in 4 bits."""

from pathlib import Path
from typing import Annotated

import typer

from eckart.cli.options import DryRun, Exclude, Force, Json, NoResume, Target, Workers

BlockSize = Annotated[int, typer.Option("--block-size", metavar="N", help="Values that share a scale: 32, 64 … 4096.")]
Double = Annotated[bool, typer.Option("--double", help="Quantize the scales too: 0.52 bytes a parameter, not 0.56.")]
DenseDtype = Annotated[
    str | None,
    typer.Option(
        "--dtype",
        metavar="float32|bfloat16|float16",
        help="Of what stays dense, and that weights are quantized from. [default: the model's]",
        show_default=False,
    ),
]


def quantize(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The model to quantize.")],
    *,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="OUT", help="Model folder to write.")],
    double: Double = False,
    block_size: BlockSize = 64,
    target: Target = None,
    exclude: Exclude = None,
    dtype: DenseDtype = None,
    workers: Workers = None,
    no_resume: NoResume = False,
    dry_run: DryRun = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Write MODEL with its linear layers in NF4, which transformers and bitsandbytes load.

    Bit for bit what bitsandbytes makes. The output layer, embeddings and norms stay as they are.

    \b
    $ eckart quantize base -o base-nf4 --double
    Model in base-nf4
     module       n  shape         relative error
     ────────────────────────────────────────────
     q_proj      30  576×576    9.41% (9.3–10.1%)
    …
     down_proj   30  576×1536   9.38% (9.28–9.5%)
    All layers together: relative error 9.36%.
    106 M of 135 M parameters in NF4, 0.518 bytes each; 112 MB in all, 1.1 s
    """  # noqa: D301
    from eckart.cli.output import show, show_json
    from eckart.cli.progress import Bar
    from eckart.engine import Execution
    from eckart.operations import FactorOptions
    from eckart.operations.quantization.plan import ALL_LINEAR, plan_quantize
    from eckart.operations.quantization.quantize import quantize as quantized

    scope = {"target": target or ALL_LINEAR, "exclude": exclude or ()}
    plain = FactorOptions.named(dtype).dtype if dtype else None
    if dry_run:
        from eckart.report import preview_table

        preview = plan_quantize(model, block_size=block_size, double=double, dtype=plain, **scope).preview()
        return show_json(preview.to_json()) if as_json else show(preview_table(preview))
    from eckart.report.tables.quantization import quantize_table

    execution = Execution(device="cpu", workers=workers, resume=not no_resume, progress=Bar())
    result = quantized(
        model, output, block_size=block_size, double=double, dtype=plain, execution=execution, force=force, **scope
    )
    return show_json(result.to_json()) if as_json else show(quantize_table(result))

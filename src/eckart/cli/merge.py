"""`eckart merge`: adapters baked into a model."""

from pathlib import Path
from typing import Annotated

import typer

from eckart.cli.options import DryRun, Force, Json, NoResume, Weights, Workers

BakedDtype = Annotated[
    str | None,
    typer.Option(
        "--dtype",
        metavar="float32|bfloat16|float16",
        help="Of all written weights; makes plain ones of 4-bit weights. [default: the base's]",
        show_default=False,
    ),
]


def merge(
    base: Annotated[str, typer.Argument(metavar="BASE", help="The model to merge into.")],
    adapters: Annotated[list[str], typer.Argument(metavar="ADAPTER", help="Adapters to bake in.")],
    *,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="OUT", help="Model folder to write.")],
    weights: Weights = None,
    dtype: BakedDtype = None,
    workers: Workers = None,
    no_resume: NoResume = False,
    dry_run: DryRun = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Write BASE with adapters baked in, as a model folder that transformers loads.

    Tensors are streamed: memory stays small for any model. A killed run goes on where it was.

    \b
    $ eckart merge base adapter -o merged-adapter
    Model in merged-adapter
    210 of 272 tensors changed, 269 MB, 0.87 s
    Rounding to the stored dtype makes an error of 56.9% of the update, as any merge
    into it does; --dtype float32 makes none.

    \b
    $ eckart quantize base -o base-nf4 --double
    …
    $ eckart merge base-nf4 adapter -o merged-nf4
    Model in merged-nf4
    210 of 272 tensors changed, 112 MB, 2.8 s
    Quantized again to NF4, with an error of 1.79% of the merged weights and
    1.09 times the update: most of what was merged is lost. --dtype bfloat16
    writes plain weights without this error.
    """  # noqa: D301
    from eckart.cli.output import show, show_json
    from eckart.cli.progress import Bar
    from eckart.engine import Execution
    from eckart.operations import FactorOptions
    from eckart.operations.merging.merge import merge as merged
    from eckart.operations.merging.plan import plan_merge
    from eckart.operations.weights import parse_weights

    options = {"weights": parse_weights(weights), "dtype": FactorOptions.named(dtype).dtype if dtype else None}
    if dry_run:
        from eckart.report import preview_table

        preview = plan_merge(base, adapters, **options).preview()
        return show_json(preview.to_json()) if as_json else show(preview_table(preview))
    from eckart.report import merge_table

    execution = Execution(device="cpu", workers=workers, resume=not no_resume, progress=Bar())
    result = merged(base, adapters, output, execution=execution, force=force, **options)
    return show_json(result.to_json()) if as_json else show(merge_table(result))

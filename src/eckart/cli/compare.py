"""`eckart compare`: how similar two adapters or checkpoints are, and whether an adapter is merged into a model."""

from typing import Annotated

import typer

from eckart.cli.options import (
    Cache,
    Debug,
    Device,
    DryRun,
    Exclude,
    Force,
    Json,
    Open,
    Output,
    Ray,
    Seed,
    Target,
    Workers,
)


def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="An adapter or a checkpoint.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The one to compare it with.")],
    *,
    base: Annotated[
        str | None,
        typer.Option("--base", metavar="BASE", help="The model both were made from: counts intruder dimensions."),
    ] = None,
    directions: Annotated[
        int, typer.Option("--directions", metavar="N", min=1, help="Number of leading directions to compare.")
    ] = 16,
    target: Target = None,
    exclude: Exclude = None,
    device: Device = "auto",
    workers: Workers = None,
    seed: Seed = 0,
    ray: Ray = None,
    output: Output = None,
    dry_run: DryRun = False,
    force: Force = False,
    as_json: Json = False,
    open_page: Open = False,
    cache: Cache = None,
    debug: Debug = False,
) -> None:
    """Compare two adapters or checkpoints: norms, cosine, shared directions.

    With --base, also count the intruder dimensions of both. A checkpoint and an adapter are checked instead: is the
    adapter merged into it, and with which weight? With -o, write comparison.json, figures and report.html.

    \b
    $ eckart compare adapter extracted --target attention
    A: adapter
    B: extracted
    updates compared
                                  outputs      by  inputs      by
     module   n  shape    cosine        φ  chance       φ  chance  ‖B‖/‖A‖
     ─────────────────────────────────────────────────────────────────────
     q_proj  30  576×576  0.0474    0.166  0.0139  0.0264  0.0139    0.175
     k_proj  30  192×576  0.0614    0.237  0.0417  0.0292  0.0139    0.194
    …
    90 skipped: 90 not targeted (such as model.layers.0.mlp.down_proj)
    $ eckart compare merged adapter-small --base base
    Verdict: merged is base + adapter-small, within the rounding of a merge.
    …
    """  # noqa: D301
    from eckart import report
    from eckart.checkpoint import InputFiles, atomic_directory, check_output
    from eckart.cli.drawing import Drawing, write_result
    from eckart.cli.output import present
    from eckart.cli.progress import StderrProgress
    from eckart.engine import Execution
    from eckart.operations.comparison.compare import plan_comparison
    from eckart.operations.comparison.result import Comparison

    execution = Execution(device=device, workers=workers, seed=seed, ray=ray, progress=StderrProgress())
    plan = plan_comparison(
        a, b, base=base, directions=directions, target=target or (), exclude=exclude or (), execution=execution
    )
    if dry_run:
        return present(plan.preview(), report.preview_table, as_json=as_json)
    if output:
        check_output(output, force=force, inputs=plan.inputs)
    drawing = Drawing(output, save="save_comparison_figures", page="comparison_page", open_page=open_page)
    inputs = InputFiles(plan.inputs)
    result = plan.compare()
    if output:
        with atomic_directory(output, force=force) as partial:
            write_result(partial, "comparison.json", result.to_json())
            drawing.draw(partial, result)
            inputs.check_unchanged()
    present(
        result, report.comparison_table if isinstance(result, Comparison) else report.merge_check_table, as_json=as_json
    )
    return drawing.finish("Comparison")

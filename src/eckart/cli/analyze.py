"""`eckart analyze`: how much rank a checkpoint, a fine-tune or an adapter really has."""

from functools import partial
from typing import Annotated

import typer

from eckart.cli.options import (
    Cache,
    Collect,
    Debug,
    Device,
    DryRun,
    Exclude,
    Force,
    Json,
    NoResume,
    Open,
    Output,
    PerLayer,
    Ray,
    Seed,
    Share,
    Target,
    Workers,
)


def analyze(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="Folder, file, hub name, URL or pkg:NAME.")],
    *,
    base: Annotated[
        str | None, typer.Option("--base", metavar="BASE", help="Analyze SOURCE − BASE, the update of a fine-tune.")
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Compute every singular value, also of very large matrices.")
    ] = False,
    target: Target = None,
    exclude: Exclude = None,
    device: Device = "auto",
    workers: Workers = None,
    seed: Seed = 0,
    no_resume: NoResume = False,
    shard: Share = None,
    collect: Collect = False,
    ray: Ray = None,
    output: Output = None,
    force: Force = False,
    dry_run: DryRun = False,
    per_layer: PerLayer = False,
    as_json: Json = False,
    open_page: Open = False,
    cache: Cache = None,
    debug: Debug = False,
) -> None:
    """Show how much rank a checkpoint, a fine-tune (with --base) or an adapter has.

    With -o, write analysis.json, analysis.csv, figures and report.html. An interrupted run resumes where it stopped.

    \b
    $ eckart analyze tuned --base base
    tuned − base
                                  stable   rank for 90%       rank for       above
     module         n  shape        rank      of energy    error < 10%       noise
     ─────────────────────────────────────────────────────────────────────────────
     embed_tokens   1  49152×576    1.61             95            495          12
     q_proj        30  576×576      11.9  222 (185–242)  406 (381–417)   30 (6–36)
     k_proj        30  192×576        10   110 (93–118)  175 (167–178)   14 (3–19)
    …
    61 skipped: 61 norm (such as model.layers.0.input_layernorm.weight)
    """  # noqa: D301
    from eckart import report
    from eckart.cli.drawing import Drawing
    from eckart.cli.output import present
    from eckart.cli.progress import StderrProgress
    from eckart.engine import Execution
    from eckart.operations import analyze as analyze_source
    from eckart.operations.analysis.plan import plan_analysis

    progress = StderrProgress()
    execution = Execution(
        device=device,
        workers=workers,
        seed=seed,
        resume=not no_resume,
        shard=shard,
        collect=collect,
        ray=ray,
        progress=progress,
    )
    if dry_run:
        chosen = {"full": full, "target": target or (), "exclude": exclude or ()}
        plan = plan_analysis(source, base, **chosen, execution=execution)
        return present(plan.preview(), report.preview_table, as_json=as_json)
    drawing = Drawing(output, save="save_figures", page="analysis_page", open_page=open_page)
    analysis = analyze_source(
        source,
        base,
        full=full,
        target=target or (),
        exclude=exclude or (),
        output=output,
        force=force,
        finish=drawing.draw,
        execution=execution,
    )
    present(analysis, partial(report.analysis_table, per_layer=per_layer), as_json=as_json)
    return drawing.finish("Analysis")

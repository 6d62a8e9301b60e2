"""`eckart analyze`: how much rank a checkpoint, a fine-tune or an adapter really has."""

from typing import Annotated

import typer

from eckart.cli.options import Device, Exclude, Force, Json, NoResume, Output, Seed, Target, Workers


def analyze(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="Folder, .safetensors, .gguf, hub name or pkg:NAME.")],
    *,
    base: Annotated[
        str | None, typer.Option("--base", metavar="BASE", help="Analyse SOURCE − BASE, a fine-tune's update.")
    ] = None,
    output: Output = None,
    full: Annotated[bool, typer.Option("--full", help="Every singular value, also of very large matrices.")] = False,
    target: Target = None,
    exclude: Exclude = None,
    device: Device = "auto",
    workers: Workers = None,
    seed: Seed = 0,
    no_resume: NoResume = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Show how much rank each matrix of SOURCE has; with -o, write analysis.json, analysis.csv and figures."""
    from eckart.analysis import analyze as analyze_source
    from eckart.cli.output import show, show_json
    from eckart.cli.progress import Bar
    from eckart.engine import Run
    from eckart.report import analysis_table, save_figures

    run = Run(device=device, workers=workers, seed=seed, resume=not no_resume, progress=Bar())
    analysis = analyze_source(
        source, base, full=full, target=target or (), exclude=exclude or (), output=output, force=force, run=run
    )
    if output:
        save_figures(analysis, output)
    if as_json:
        show_json(analysis.to_json())
    else:
        show(analysis_table(analysis))

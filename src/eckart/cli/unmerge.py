"""`eckart unmerge`: adapters taken out of a model again."""

from pathlib import Path
from typing import Annotated

import typer

from eckart.cli.merge import BakedDtype
from eckart.cli.options import DryRun, Force, Json, NoResume, Weights, Workers


def unmerge(
    merged: Annotated[str, typer.Argument(metavar="MERGED", help="The model that the adapters were merged into.")],
    adapters: Annotated[list[str], typer.Argument(metavar="ADAPTER", help="Adapters to take out.")],
    *,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="OUT", help="Model folder to write.")],
    base: Annotated[
        str | None,
        typer.Option("--base", metavar="BASE", help="What they were merged into: to compare with, and to undo DoRA."),
    ] = None,
    weights: Weights = None,
    dtype: BakedDtype = None,
    workers: Workers = None,
    no_resume: NoResume = False,
    dry_run: DryRun = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Write MERGED with adapters taken out, within one rounding of what it was, and tell how exactly.

    \b
    $ eckart unmerge merged adapter-small -o restored-base --base base
    Model in restored-base
    210 of 272 tensors changed, 269 MB, 1.4 s
    Merging again gives 99.99% of the changed entries back bit for bit.
    99.61% equal the base bit for bit; the largest difference from it is 1 × a unit
    in the last place.
    """  # noqa: D301
    from eckart.cli.output import show, show_json
    from eckart.cli.progress import Bar
    from eckart.engine import Execution
    from eckart.operations import FactorOptions
    from eckart.operations.merging.unmerge import plan_unmerge
    from eckart.operations.merging.unmerge import unmerge as unmerged
    from eckart.operations.weights import parse_weights

    factors, plain = parse_weights(weights), FactorOptions.named(dtype).dtype if dtype else None
    if dry_run:
        from eckart.report import preview_table

        preview = plan_unmerge(merged, adapters, base=base, weights=factors, dtype=plain).preview()
        return show_json(preview.to_json()) if as_json else show(preview_table(preview))
    from eckart.report import unmerge_table

    execution = Execution(device="cpu", workers=workers, resume=not no_resume, progress=Bar())
    result = unmerged(
        merged, adapters, output, base=base, weights=factors, dtype=plain, execution=execution, force=force
    )
    return show_json(result.to_json()) if as_json else show(unmerge_table(result))

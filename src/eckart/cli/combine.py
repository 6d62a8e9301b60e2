"""`eckart combine`: several adapters as one."""

from pathlib import Path
from typing import Annotated, Any

import typer

from eckart.cli.options import (
    BudgetText,
    DryRun,
    Energy,
    Error,
    Force,
    Json,
    NoResume,
    Rank,
    Seed,
    Weights,
    Workers,
)
from eckart.cli.resize import KeptDtype

Method = Annotated[str, typer.Option("--method", metavar="sum|ties|dare|magnitude", help="How updates become one.")]
Density = Annotated[
    float | None,
    typer.Option("--density", metavar="SHARE", help="Entries that ties, dare and magnitude keep; 0.5 by default."),
]
Base = Annotated[
    str | None,
    typer.Option("--base", metavar="SOURCE", help="The model, for DoRA layers and weighted modules saved whole."),
]


def combine(
    adapters: Annotated[list[str], typer.Argument(metavar="ADAPTER...", help="The adapters to combine.")],
    *,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="OUT", help="Adapter to write.")],
    weights: Weights = None,
    method: Method = "sum",
    density: Density = None,
    rank: Rank = None,
    energy: Energy = None,
    error: Error = None,
    budget: BudgetText = None,
    base: Base = None,
    dtype: KeptDtype = None,
    workers: Workers = None,
    seed: Seed = 0,
    no_resume: NoResume = False,
    dry_run: DryRun = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Write one adapter whose update is the weighted sum of several, exact or cut to a chosen rank.

    Without a rank the ranks add up. ties, dare and magnitude prune each update before they are summed.

    \b
    $ eckart combine adapter extracted -o both --weights 0.7,0.3 --rank 8
    Adapter in both
     module       n  shape     rank      relative error      least possible
     ──────────────────────────────────────────────────────────────────────
     q_proj      30  576×576      4  41.5% (32.4–46.9%)  41.5% (32.4–46.9%)
     k_proj      30  192×576      4  38.5% (27.5–43.4%)  38.5% (27.5–43.4%)
    …
    All layers together: relative error 35.44%; no adapter of these ranks has
    less than 35.44%.
    """  # noqa: D301
    from eckart.cli.output import show, show_json
    from eckart.cli.progress import Bar
    from eckart.engine import Execution
    from eckart.operations import FactorOptions, RankChoice
    from eckart.operations.combination.combine import combine as combined
    from eckart.operations.combination.combine import plan_combine
    from eckart.operations.combination.mixture import Mixture
    from eckart.operations.weights import parse_weights
    from eckart.report import adapter_table, preview_table

    given = (rank, energy, error, budget) != (None, None, None, None)
    options: dict[str, Any] = {
        "weights": parse_weights(weights),
        "mixture": Mixture(method, density),  # type: ignore[arg-type]  # which refuses another name
        "rank": RankChoice.given(rank=rank, energy=energy, error=error, budget=budget) if given else None,
        "base": base,
        "dtype": FactorOptions.named(dtype).dtype if dtype else None,
    }
    if dry_run:
        preview = plan_combine(adapters, **options).preview()
        return show_json(preview.to_json()) if as_json else show(preview_table(preview))
    execution = Execution(device="cpu", workers=workers, seed=seed, resume=not no_resume, progress=Bar())
    result = combined(adapters, output=output, execution=execution, force=force, **options)
    return show_json(result.to_json()) if as_json else show(adapter_table(result))

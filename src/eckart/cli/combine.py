"""`eckart combine`: several adapters as one."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from eckart.cli.kept_gain import AUTO, EvalTexts, kept_gains
from eckart.cli.options import (
    AdapterOutput,
    BudgetText,
    Cache,
    Collect,
    Debug,
    DryRun,
    Energy,
    Error,
    FactorDtype,
    Force,
    Json,
    KeepScales,
    LayerScales,
    NoResume,
    Rank,
    Ray,
    Seed,
    Share,
    Workers,
)
from eckart.cli.push import Push

if TYPE_CHECKING:
    from eckart.operations import AdapterResult

WeightsOrAuto = Annotated[
    str | None,
    typer.Option(
        "--weights",
        metavar="A,B,…|auto",
        help="Weight of each adapter, in order; auto finds those that keep most of the gains on --eval. [default: 1]",
    ),
]

Method = Literal["sum", "ties", "dare", "magnitude", "tsv", "iso", "knots", "shared"]
MethodOption = Annotated[
    Method,
    typer.Option(
        "--method", metavar="sum|ties|dare|magnitude|tsv|iso|knots|shared", help="How the updates are combined."
    ),
]
Density = Annotated[
    float | None,
    typer.Option(
        "--density", metavar="SHARE", help="Share of entries that ties, dare, magnitude and knots keep. [default: 0.5]"
    ),
]
Base = Annotated[
    str | None,
    typer.Option(
        "--base",
        metavar="SOURCE",
        help="The model, for DoRA layers, weighted unfactored modules, and --eval if the adapters name none.",
    ),
]


def combine(
    adapters: Annotated[list[str], typer.Argument(metavar="ADAPTER...", help="The adapters to combine.")],
    *,
    weights: WeightsOrAuto = None,
    scale: LayerScales = None,
    method: MethodOption = "sum",
    density: Density = None,
    base: Base = None,
    rank: Rank = None,
    energy: Energy = None,
    error: Error = None,
    budget: BudgetText = None,
    evaluation: EvalTexts = None,
    workers: Workers = None,
    seed: Seed = 0,
    no_resume: NoResume = False,
    shard: Share = None,
    collect: Collect = False,
    ray: Ray = None,
    output: AdapterOutput,
    push: Push = None,
    dtype: FactorDtype = None,
    keep_scales: KeepScales = False,
    dry_run: DryRun = False,
    force: Force = False,
    as_json: Json = False,
    cache: Cache = None,
    debug: Debug = False,
) -> None:
    """Write one adapter whose update is the weighted sum of several, exact or truncated to a chosen rank.

    Without a rank the ranks add up. ties, dare and magnitude prune each update before they are summed. tsv, iso, knots
    and shared combine in the updates' common subspaces; shared takes the --rank of one pair of subspaces for all.

    With one --eval for each adapter, measure how much of its gain on that text the combination keeps. With --weights
    auto, the first half of each text chooses the weights, and the second is measured.

    \b
    $ eckart combine adapter extracted -o both --weights 0.7,0.3 --rank 8
    Adapter in both
     module      n  shape     rank      relative error      least possible
     ─────────────────────────────────────────────────────────────────────
     q_proj     30  576×576      8  6.42% (5.45–8.13%)  6.42% (5.45–8.13%)
     k_proj     30  192×576      8  6.74% (4.78–8.11%)  6.74% (4.78–8.11%)
    …
    Relative error over all layers: 6.06%; the least possible at these ranks:
    6.06%. 210 layers, 2.44 M parameters, 9.83 MB, 1.9 s
    """  # noqa: D301
    from dataclasses import replace

    from eckart import report
    from eckart.checkpoint import check_output
    from eckart.checkpoint.source import local_paths
    from eckart.cli.output import present, show, show_json
    from eckart.cli.progress import StderrProgress
    from eckart.cli.push import check_push, push_output
    from eckart.engine import Execution, NoProgress
    from eckart.formats.sources import open_adapter
    from eckart.operations import combine as combined
    from eckart.operations import plan_combine
    from eckart.operations.card import add_facts
    from eckart.operations.layer_scales import parse_scales
    from eckart.operations.weights import parse_weights

    options: dict[str, Any] = {
        "weights": None if weights == AUTO else parse_weights(weights),
        "method": method,
        "density": density,
        "rank": rank,
        "energy": energy,
        "error": error,
        "budget": budget,
        "base": base,
        "scale": parse_scales(scale),
        "dtype": dtype,
    }
    if dry_run:
        return present(plan_combine(adapters, **options).preview(), report.preview_table, as_json=as_json)
    check_push(push)
    execution = Execution(
        device="cpu",
        workers=workers,
        seed=seed,
        resume=not no_resume,
        shard=shard,
        collect=collect,
        ray=ray,
        progress=StderrProgress(),
    )
    sources = [replace(open_adapter(adapter), keep_scales=keep_scales) for adapter in adapters]
    judged = kept_gains(adapters, sources, evaluation, base=base, weights=weights, shard=shard)
    if judged is not None:
        plan_combine(sources, **options)
        check_output(output, force=force, inputs=local_paths(*(evaluation or ()), judged.base))
        if weights == AUTO:
            quiet = replace(execution, progress=NoProgress())
            options["weights"] = judged.search(
                lambda tried: combined(sources, execution=quiet, **{**options, "weights": tried}).adapter
            )

    def finish(folder: Path, result: "AdapterResult") -> None:
        if judged is not None:
            judged.measure(result.adapter)
            if folder.is_dir():
                add_facts(folder, judged.card_facts())

    result = combined(sources, output=output, execution=execution, force=force, finish=finish, **options)
    if as_json:
        show_json(result.to_json() | (judged.facts() if judged else {"eval": None}))
    else:
        show(report.adapter_table(result))
        if judged is not None:
            show(report.kept_gain_table(adapters, judged.kept, judged.found))
    return push_output(output, push, made_by="combine")

"""`eckart resize`: the best adapter of another rank."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from eckart.cli.options import (
    AdapterOutput,
    BudgetText,
    Cache,
    Collect,
    Debug,
    DryRun,
    Energy,
    Error,
    Exclude,
    FactorDtype,
    Force,
    ForRuntime,
    Json,
    KeepScales,
    LayerScales,
    NoResume,
    Open,
    PerLayer,
    RankOrNoise,
    Ray,
    Seed,
    Share,
    Target,
    Workers,
    in_group,
)
from eckart.cli.push import Push
from eckart.cli.quality import (
    QUALITY,
    DistillText,
    EvalMetric,
    EvalText,
    KeepGain,
    Ladder,
    MaxRank,
    ShareRanks,
    Steps,
)

Base = Annotated[
    str | None,
    in_group(
        QUALITY,
        "--base",
        metavar="BASE",
        help="Model for --eval, --distill and --for. [default: the one the adapter names]",
    ),
]


def resize(
    adapters: Annotated[list[str], typer.Argument(metavar="ADAPTER...", help="The adapter to resize, or several.")],
    *,
    rank: RankOrNoise = None,
    energy: Energy = None,
    error: Error = None,
    budget: BudgetText = None,
    gain: KeepGain = None,
    ladder: Ladder = None,
    share: ShareRanks = False,
    max_rank: MaxRank = None,
    target: Target = None,
    exclude: Exclude = None,
    scale: LayerScales = None,
    evaluation: EvalText = None,
    metric: EvalMetric = "loss",
    distill: DistillText = None,
    steps: Steps = None,
    base: Base = None,
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
    runtime: ForRuntime = None,
    dry_run: DryRun = False,
    force: Force = False,
    per_layer: PerLayer = False,
    as_json: Json = False,
    open_page: Open = False,
    cache: Cache = None,
    debug: Debug = False,
) -> None:
    """Write the best adapter of the chosen rank, energy, error or budget, with the error of every layer.

    Several adapters are written into the folder OUT under their own names, with one line each.

    A --rank above the adapter's pads it: the update stays the same, and training can continue at the higher rank.

    With --for, write the result in the format that a runtime loads, with what else it needs (see eckart check).

    With --eval, measure how much of ADAPTER's gain the result keeps; with --gain, write the smallest rank that keeps
    enough, found with few measurements.

    With --distill, also train the factors on TEXT towards ADAPTER's predictions; they are kept if the last 15 % of TEXT
    shows that this helped.

    \b
    $ eckart resize adapter -o small-4mb --budget 4MB
    Adapter in small-4mb
     module      n  shape        rank      relative error      least possible
     ────────────────────────────────────────────────────────────────────────
     q_proj     30  576×576   2 (1–4)  44.2% (30.4–55.5%)  44.2% (30.4–55.5%)
     k_proj     30  192×576   1 (1–2)      59% (37–83.2%)      59% (37–83.2%)
    …
    At most 0.0062% more energy is possible within this budget.
    210 layers, 973 k parameters, 3.97 MB, 1.8 s

    \b
    $ head -c 16000 text/training.txt > text.txt
    $ eckart resize adapter -o small-distilled --rank 2 --distill text.txt --steps 6
    …
    Distilled for 6 steps. On 765 held-out tokens: KL to the teacher 0.0046 →
    0.0179, loss 2.5215 → 2.5356 nats per token, gain recovered 95.1% → 91.1%. Not
    kept: the KL on held-out text did not fall.
    210 layers, 611 k parameters, 2.5 MB, 48 s
    """  # noqa: D301
    from eckart import report
    from eckart.checkpoint import check_output
    from eckart.checkpoint.source import local_paths
    from eckart.cli.drawing import Drawing
    from eckart.cli.output import present
    from eckart.cli.progress import StderrProgress
    from eckart.cli.push import check_push, push_output
    from eckart.cli.quality import distillation, judgement, rank_options
    from eckart.cli.runtimes import note_needs, show_adapter, write_for
    from eckart.cli.several import refuse_for_several
    from eckart.engine import Execution
    from eckart.errors import OptionError
    from eckart.formats.sources import open_adapter
    from eckart.operations import plan_resize
    from eckart.operations import resize as resized
    from eckart.operations.layer_scales import parse_scales, with_scales

    options: dict[str, Any] = {
        **rank_options(rank, energy, error, budget, gain=gain, candidates={"energy": 1.0}),
        "target": target or (),
        "exclude": exclude or (),
        "scale": parse_scales(scale),
        "dtype": dtype,
    }
    if len(adapters) > 1:
        refuse_for_several(dry_run=dry_run, distill=distill, eval=evaluation, gain=gain, push=push, runtime=runtime)
        execution = Execution(
            device="cpu", workers=workers, seed=seed, resume=not no_resume, ray=ray, progress=StderrProgress()
        )
        options |= {"execution": execution, "force": force}
        return _resize_each(adapters, output, options, keep_scales=keep_scales, as_json=as_json)
    (adapter,) = adapters
    if dry_run:
        return present(plan_resize(adapter, **options).preview(), report.preview_table, as_json=as_json)
    if open_page and (gain is None or runtime is not None):
        msg = "`open` shows the page of a rank chosen by `gain`" + (", without `for`" if runtime is not None else "")
        raise OptionError(msg)
    if base is not None and (evaluation, distill, runtime) == (None, None, None):
        msg = "`base` is used by `eval`, `distill` and `for`; give one of them"
        raise OptionError(msg)
    check_push(push)
    source = replace(open_adapter(adapter), keep_scales=keep_scales)
    model = base or source.base_model
    check_output(output, force=force, inputs=[distill, *local_paths(model, evaluation)])
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
    fitted, original = None, with_scales(source, options["scale"])
    written = output if runtime is None else None
    figure, page = ("save_gain_figure", "extraction_page") if gain is not None else (None, None)
    drawing = Drawing(written, save=figure, page=page, figures="figure", open_page=open_page)
    with (
        distillation(model, original, distill, steps=steps, seed=seed) as refine,
        judgement(
            model, original, adapter, evaluation, metric=metric, gain=gain, ladder=ladder, share=share,
            max_rank=max_rank, refine=refine, device="cpu", is_ordered=False,
        ) as judged,
    ):  # fmt: skip
        finish = partial(judged.write, drawing=drawing, refine=refine)
        result = resized(
            source, output=written, execution=execution, force=force, refine=judged.by_gain or refine, finish=finish,
            **options,
        )  # fmt: skip
        facts = judged.content(result, refine)
    if runtime is not None:
        fitted, written_facts = write_for(
            result.adapter, runtime, output, base=base, inputs=source.files, execution=execution, force=force
        )
        facts |= written_facts
    note_needs(output, runtime)
    show_adapter(result, facts, judged=judged, refine=refine, fitted=fitted, as_json=as_json, per_layer=per_layer)
    if gain is not None:
        drawing.finish(None)
    return push_output(output, push, made_by="resize")


def _resize_each(
    adapters: list[str], output: Path, options: dict[str, Any], *, keep_scales: bool, as_json: bool
) -> None:
    """Resize several adapters into a folder, with one line each."""
    from eckart.cli.several import outputs_of, write_each
    from eckart.formats.sources import open_adapter
    from eckart.operations import resize as resized

    outputs = outputs_of(adapters, output)

    def one(adapter: str) -> tuple[dict[str, Any], str]:
        source = replace(open_adapter(adapter), keep_scales=keep_scales)
        result = resized(source, output=outputs[adapter], **options)
        size = f"{result.nbytes / 1e6:.2f} MB, relative error {result.error:.2%}"
        return result.to_json(), f"{outputs[adapter]}: {len(result.layers)} layers, {size}"

    return write_each(adapters, one, as_json=as_json)

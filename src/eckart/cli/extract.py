"""`eckart extract`: a fine-tune as a small adapter, with the error of every layer and the gain it recovers."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from eckart.cli.options import (
    DTYPES,
    LAYERS,
    RESULT,
    AdapterOutput,
    BudgetText,
    Cache,
    Collect,
    Debug,
    Device,
    DryRun,
    Energy,
    Error,
    Exclude,
    FloatDtype,
    Force,
    ForRuntime,
    Json,
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
    DistillText,
    EvalMetric,
    EvalText,
    KeepGain,
    Ladder,
    MaxRank,
    ShareRanks,
    Steps,
)

if TYPE_CHECKING:
    from eckart.operations import AdapterResult

Saved = Annotated[
    list[str] | None,
    in_group(
        *(LAYERS, "--modules-to-save"),
        metavar="PATTERN",
        help="Save changed tensors unfactored: modules by name, `norm` for all norms, `bias` for biases. Repeatable.",
    ),
]
To = Annotated[
    Literal["peft", "kohya", "comfyui", "diffusers"] | None,
    in_group(
        *(RESULT, "--to"),
        metavar="peft|kohya|comfyui|diffusers",
        help="Format of the LoRA file to write, for image and video models.",
    ),
]
Family = Annotated[
    str | None,
    in_group(RESULT, "--family", metavar="NAME", help="With --to: the family, such as flux1, where several fit."),
]
Dtype = Annotated[FloatDtype, in_group(RESULT, "--dtype", metavar=DTYPES, help="Data type of the saved factors.")]
Unbalanced = Annotated[
    bool, in_group(RESULT, "--unbalanced", help="Keep the rows of lora_A orthonormal; lora_B carries the scale.")
]


def extract(
    base: Annotated[str, typer.Argument(metavar="BASE", help="The model that was fine-tuned.")],
    tuned: Annotated[str, typer.Argument(metavar="TUNED", help="The fine-tuned model.")],
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
    modules_to_save: Saved = None,
    evaluation: EvalText = None,
    metric: EvalMetric = "loss",
    distill: DistillText = None,
    steps: Steps = None,
    device: Device = "auto",
    workers: Workers = None,
    seed: Seed = 0,
    no_resume: NoResume = False,
    shard: Share = None,
    collect: Collect = False,
    ray: Ray = None,
    output: AdapterOutput,
    push: Push = None,
    dry_run: DryRun = False,
    dtype: Dtype = "float32",
    unbalanced: Unbalanced = False,
    to: To = None,
    family: Family = None,
    runtime: ForRuntime = None,
    force: Force = False,
    per_layer: PerLayer = False,
    as_json: Json = False,
    open_page: Open = False,
    cache: Cache = None,
    debug: Debug = False,
) -> None:
    """Write TUNED − BASE as a PEFT adapter with the best factors of the chosen rank (16 by default).

    The adapter's folder also gets extract.json and report.html. An interrupted run resumes where it stopped.

    With --to, write a LoRA file of an image or video model, given as single files, components or pipelines.

    With --for, write what a runtime loads (see eckart check); if that is another format, without a page.

    With --eval, measure how much of the fine-tune's lower loss the adapter recovers; with --gain, write the smallest
    rank that recovers enough, found with few measurements. With --distill, also train the
    factors on TEXT towards TUNED's predictions; they are kept if the last 15 % of TEXT shows that this helped.

    \b
    $ eckart extract base tuned -o extracted --rank 8 --eval text/heldout.txt
    Adapter in extracted
     module      n  shape     rank      relative error      least possible
     ─────────────────────────────────────────────────────────────────────
     q_proj     30  576×576      8  84.6% (71.7–88.5%)  84.6% (71.7–88.5%)
     k_proj     30  192×576      8  80.1% (68.9–82.8%)  80.1% (68.9–82.8%)
    …
    62 skipped: 60 norm (such as model.layers.0.input_layernorm.weight;
    --modules-to-save norm saves them), 1 not targeted
    (model.embed_tokens.weight), 1 unchanged (model.norm.weight)

    \b
    $ head -c 16000 text/training.txt > text.txt
    $ eckart extract base tuned -o distilled --rank 2 --distill text.txt --steps 6
    …
    210 layers, 611 k parameters, 2.5 MB, 73 s
    62 skipped: 60 norm (such as model.layers.0.input_layernorm.weight;
    --modules-to-save norm saves them), 1 not targeted
    (model.embed_tokens.weight), 1 unchanged (model.norm.weight)
    """  # noqa: D301
    from eckart import operations, report
    from eckart.checkpoint import check_output
    from eckart.checkpoint.source import local_paths
    from eckart.cli.drawing import Drawing, write_result
    from eckart.cli.output import present
    from eckart.cli.progress import StderrProgress
    from eckart.cli.push import check_push, push_output
    from eckart.cli.quality import distillation, gain_facts, judgement, rank_options
    from eckart.cli.runtimes import note_needs, show_adapter, write_for
    from eckart.engine import Execution
    from eckart.errors import OptionError
    from eckart.operations.card import add_facts
    from eckart.operations.rank_choice import MOST_RANK

    if to is not None and (runtime is not None or open_page):
        msg = f"`to` writes one file: leave out `{'for' if runtime is not None else 'open'}`"
        raise OptionError(msg)
    if distill is not None and unbalanced:
        msg = "`unbalanced` keeps lora_A orthonormal, but `distill` trains it; choose one of them"
        raise OptionError(msg)
    options: dict[str, Any] = {
        **rank_options(rank, energy, error, budget, gain=gain, candidates={"rank": max_rank or MOST_RANK}),
        "target": target or "all-linear",
        "exclude": exclude or (),
        "modules_to_save": modules_to_save or (),
        "dtype": dtype,
        "balanced": not unbalanced,
        "to": to,
        "family": family,
    }
    if dry_run:
        return present(operations.plan_extract(base, tuned, **options).preview(), report.preview_table, as_json=as_json)
    check_push(push)
    check_output(output, force=force, inputs=[distill, *local_paths(base, tuned, evaluation)])
    fits = True
    if runtime is not None:
        from eckart.operations.checking.fitting import fits_as_planned

        fits = fits_as_planned(operations.plan_extract(base, tuned, **options), runtime)
    written = output if fits else None  # what does not fit as it is, write_for changes first
    figure = "save_gain_figure" if gain is not None else None
    page_folder = None if to else written
    drawing = Drawing(page_folder, save=figure, page="extraction_page", figures="figure", open_page=open_page)
    execution = Execution(
        device=device,
        workers=workers,
        seed=seed,
        resume=not no_resume,
        shard=shard,
        collect=collect,
        ray=ray,
        progress=StderrProgress(),
    )
    fitted = None
    with (
        distillation(base, tuned, distill, steps=steps, seed=seed, device=device) as refine,
        judgement(
            base, tuned, tuned, evaluation, metric=metric, gain=gain, ladder=ladder, share=share, max_rank=max_rank,
            refine=refine, device=device, is_ordered=True,
        ) as judged,
    ):  # fmt: skip

        def finish(folder: Path, extraction: "AdapterResult") -> None:
            if not folder.is_dir():
                return
            facts = judged.content(extraction, refine)
            write_result(folder, "extract.json", facts)
            add_facts(folder, gain_facts(judged.report))
            drawing.draw(folder, facts)

        extraction = operations.extract(
            base,
            tuned,
            output=written,
            execution=execution,
            force=force,
            refine=judged.by_gain or refine,
            finish=finish,
            **options,
        )
    facts = judged.content(extraction, refine)
    if runtime is not None and not fits:
        fitted, facts_of_runtime = write_for(
            extraction.adapter,
            runtime,
            output,
            base=base,
            inputs=local_paths(base, tuned),
            execution=execution,
            force=force,
        )
        facts |= facts_of_runtime
    note_needs(output, runtime)
    show_adapter(extraction, facts, judged=judged, refine=refine, fitted=fitted, as_json=as_json, per_layer=per_layer)
    drawing.finish(None)
    return push_output(output, push, made_by="extract")

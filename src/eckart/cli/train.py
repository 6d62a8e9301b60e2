"""`eckart train`: an adapter of a language model, trained on data, with its loss on held-out data before and after."""

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Literal

import typer

from eckart.cli.options import (
    EXECUTION,
    RESULT,
    AdapterOutput,
    Cache,
    Debug,
    Device,
    Exclude,
    Force,
    Json,
    NoResume,
    Open,
    Seed,
    Target,
    in_group,
)
from eckart.cli.push import Push
from eckart.cli.training_options import (
    ADAPTER,
    DATA,
    OPTIMIZATION,
    BatchSize,
    Data,
    Dropout,
    DtypeOption,
    Epochs,
    EvalData,
    LearningRate,
    MaxLength,
    MethodOption,
    Model,
    Quantize,
    Steps,
)
from eckart.nn.config import Bias, Init

Schedule = Literal["linear", "cosine", "constant"]
Keep = Literal["best", "last"]
LossOn = Literal["answers", "all"]

RankOption = Annotated[int, in_group(ADAPTER, "--rank", "-r", metavar="N", help="Rank of the adapter.")]
RankPattern = Annotated[
    Path | None,
    in_group(
        *(ADAPTER, "--rank-pattern"),
        metavar="FILE",
        help="Other ranks for some modules: a JSON object of names or patterns, or an analysis.json, whose spectra "
        "distribute the parameters of --rank.",
    ),
]
Alpha = Annotated[
    float, in_group(ADAPTER, "--alpha", "--lora-alpha", metavar="X", help="The update is scaled by alpha / rank.")
]
RsLora = Annotated[bool, in_group(ADAPTER, "--rslora", help="Scale the update by alpha / √rank instead.")]
BiasOption = Annotated[Bias, in_group(ADAPTER, "--bias", metavar="none|lora-only|all", help="Biases to train.")]
InitOption = Annotated[
    Init,
    in_group(ADAPTER, "--init", metavar="zero|pissa|olora|eva|loftq|lora-ga", help="Initialization of the factors."),
]
Packing = Annotated[
    bool,
    in_group(
        *(DATA, "--packing"), help="Pack several records into one sequence without letting them attend to each other."
    ),
]
LossOnOption = Annotated[
    LossOn,
    in_group(
        *(DATA, "--loss-on"), metavar="answers|all", help="Compute the loss on answers only, or on prompts as well."
    ),
]
Accumulate = Annotated[
    int,
    in_group(
        *(OPTIMIZATION, "--accumulate", "--gradient-accumulation-steps"),
        metavar="N",
        help="Batches per optimizer step (gradient accumulation).",
    ),
]
LoraPlus = Annotated[
    float,
    in_group(
        *(OPTIMIZATION, "--lora-plus"),
        metavar="X",
        help="Learning-rate multiplier for lora_B (LoRA+ recommends 16).",
    ),
]
ScheduleOption = Annotated[
    Schedule,
    in_group(
        *(OPTIMIZATION, "--schedule", "--lr-scheduler-type"),
        metavar="linear|cosine|constant",
        help="Learning-rate schedule after warm-up.",
    ),
]
Warmup = Annotated[
    float,
    in_group(*(OPTIMIZATION, "--warmup", "--warmup-ratio"), metavar="SHARE", help="Share of steps used for warm-up."),
]
WeightDecay = Annotated[float, in_group(OPTIMIZATION, "--weight-decay", metavar="X", help="Weight decay (AdamW).")]
Checkpointing = Annotated[
    bool,
    in_group(
        *(OPTIMIZATION, "--gradient-checkpointing"),
        help="Recompute activations in the backward pass: less memory, a third more time.",
    ),
]
SaveEvery = Annotated[
    int | None,
    in_group(EXECUTION, "--save-every", metavar="N", help="Steps between checkpoints. [default: 10% of all steps]"),
]
EvalEvery = Annotated[
    int | None,
    in_group(
        *(DATA, "--eval-every"),
        metavar="N",
        help="Steps between measurements of the held-out loss. [default: 10% of all steps]",
    ),
]
KeepOption = Annotated[
    Keep,
    in_group(
        *(RESULT, "--keep"),
        metavar="best|last",
        help="Which adapter to keep: the one with the lowest measured held-out loss, or the last.",
    ),
]
NoDynamics = Annotated[bool, in_group(RESULT, "--no-dynamics", help="Do not record how the updates grow.")]
ReportToOption = Annotated[
    list[str] | None,
    in_group(
        *(RESULT, "--report-to"),
        metavar="LIBRARY",
        help="Where to log metrics while training: tensorboard (the default), wandb, mlflow or none. Repeatable.",
    ),
]
Resume = Annotated[bool, typer.Option("--resume", hidden=True, help="The default, accepted for old scripts.")]


def train(
    model: Model,
    data: Data,
    *,
    method: MethodOption = "lora",
    rank: RankOption = 16,
    rank_pattern: RankPattern = None,
    alpha: Alpha = 32.0,
    rslora: RsLora = False,
    dropout: Dropout = 0.05,
    bias: BiasOption = "none",
    init: InitOption = "zero",
    quantize: Quantize = None,
    target: Target = None,
    exclude: Exclude = None,
    max_length: MaxLength = None,
    packing: Packing = False,
    loss_on: LossOnOption = "answers",
    eval_data: EvalData = None,
    eval_every: EvalEvery = None,
    steps: Steps = None,
    epochs: Epochs = None,
    batch_size: BatchSize = 4,
    accumulate: Accumulate = 1,
    learning_rate: LearningRate = 2e-4,
    lora_plus: LoraPlus = 1.0,
    schedule: ScheduleOption = "linear",
    warmup: Warmup = 0.03,
    weight_decay: WeightDecay = 0.0,
    dtype: DtypeOption = "auto",
    gradient_checkpointing: Checkpointing = False,
    device: Device = "auto",
    seed: Seed = 0,
    save_every: SaveEvery = None,
    no_resume: NoResume = False,
    resume: Resume = True,
    output: AdapterOutput,
    push: Push = None,
    force: Force = False,
    as_json: Json = False,
    open_page: Open = False,
    keep: KeepOption = "best",
    no_dynamics: NoDynamics = False,
    report_to: ReportToOption = None,
    cache: Cache = None,
    debug: Debug = False,
) -> None:
    """Train an adapter, and report the loss on held-out data before and after.

    OUT is a PEFT folder that appears only when it is complete; it also contains train.json, dynamics.json, figures,
    report.html and TensorBoard's files. An interrupted training resumes when the same command is given again, with the
    same result bit for bit. On several GPUs:

    \b
    torchrun --nproc-per-node 4 -m eckart train …

    \b
    $ eckart train base text/training.txt -o trained --rank 8 \\
          --target attention --steps 12 --batch-size 2 --max-length 128 \\
          --learning-rate 1e-3 --eval-data text/heldout.txt
    Adapter in trained
                                               update  effective
     module   n  shape    rank             ‖ΔW‖ / ‖W‖       rank
     ───────────────────────────────────────────────────────────
     q_proj  30  576×576     8  0.342% (0.223–0.459%)       6.91
     k_proj  30  192×576     8  0.335% (0.165–0.495%)       7.14
    …
    Loss on 4,513 held-out tokens: 3.2758 before, 3.0967 after (-0.1791) nats per
    token.
    922 k of 135 M parameters trained (0.68%), 12 steps in 15 s, peak memory
    1.67 GB
    """  # noqa: D301
    from eckart import report, training
    from eckart.checkpoint import check_output
    from eckart.checkpoint.source import local_paths
    from eckart.cli.drawing import Drawing
    from eckart.cli.output import present
    from eckart.cli.progress import StderrProgress
    from eckart.cli.push import check_push, push_output
    from eckart.engine import NoProgress
    from eckart.nn import LoRAConfig

    config = LoRAConfig(
        rank=rank,
        alpha=alpha,
        dropout=dropout,
        target=target or LoRAConfig().target,
        exclude=exclude or (),
        bias=bias,
        method=method,
        init=init,
        rslora=rslora,
    )
    config = training.with_ranks(config, rank_pattern) if rank_pattern else config
    settings = training.TrainSettings(
        steps=steps,
        epochs=epochs,
        batch_size=batch_size,
        accumulate=accumulate,
        learning_rate=learning_rate,
        lora_plus_ratio=lora_plus,
        schedule=schedule,
        warmup=warmup,
        weight_decay=weight_decay,
        seed=seed,
        dtype=dtype,
        device=device,
        gradient_checkpointing=gradient_checkpointing,
        quantize=quantize,
        save_every=save_every,
        eval_every=eval_every,
        keep=keep,
    )
    if training.is_writer():
        check_push(push)
        check_output(output, kind="folder", force=force, inputs=local_paths(model, data, eval_data, rank_pattern))
    training.check_report_to(report_to)
    training.check_inputs(model, data, eval_data, target=config.target)
    is_writer = training.is_writer()
    drawing = Drawing(
        output if is_writer else None,
        save="save_training_figures",
        page="training_page",
        open_page=open_page and is_writer,
    )
    with StderrProgress() if is_writer else nullcontext(NoProgress()) as progress:
        result = training.train(
            model,
            data,
            config=config,
            settings=settings,
            options=training.DataOptions(max_length, answers_only=loss_on == "answers", packing=packing, seed=seed),
            held_out=eval_data,
            output=output,
            resume=not no_resume,
            force=force,
            dynamics=not no_dynamics,
            report_to=report_to,
            finish=drawing.draw,
            progress=progress,
        )
    training.destroy_process_group()
    if is_writer:
        present(result, report.training_table, as_json=as_json)
        drawing.finish(None)
        push_output(output, push, made_by="train")

"""`eckart plan`: what does a fine-tune need, does it fit, and which settings are best?"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from eckart.cli.options import RESULT, Cache, Debug, Force, Json, Target, in_group
from eckart.cli.training_options import ADAPTER, DATA, OPTIMIZATION
from eckart.planning.setting import Attention, BaseDtype, Method, Optimizer, Sharding

DOES_NOT_FIT = 3

MethodOption = Annotated[
    Method | None,
    in_group(ADAPTER, "--method", metavar="full|lora|dora|qlora", help="Only this method. [default: compare all]"),
]
Memory = Annotated[
    str | None,
    typer.Option(
        "--memory",
        metavar="24GB",
        help="GPU memory to fit into, 8x80GB for several GPUs. Exit status 3 if the requested setting does not fit.",
    ),
]
Gpus = Annotated[int | None, typer.Option("--gpus", metavar="N", help="GPUs that train together. [default: 1]")]
ShardingOption = Annotated[
    Sharding | None,
    typer.Option(
        "--sharding",
        metavar="ddp|fsdp|zero1|zero2|zero3",
        help="What is sharded over several GPUs: nothing (ddp), optimizer states (zero1), also gradients "
        "(zero2), also parameters (fsdp, zero3). [default: fsdp]",
    ),
]
RankOption = Annotated[
    int | None,
    in_group(ADAPTER, "--rank", "-r", metavar="N", help="Rank of the adapter. [default: by the size of the data]"),
]
BatchSize = Annotated[int, in_group(OPTIMIZATION, "--batch-size", metavar="N", help="Sequences per step, on each GPU.")]
MaxLength = Annotated[
    int | None,
    in_group(
        *(DATA, "--max-length", "--max-seq-length"),
        metavar="N",
        help="Tokens per sequence. [default: 1024, or the model's limit if that is lower]",
    ),
]
Dtype = Annotated[
    BaseDtype,
    in_group(
        *(OPTIMIZATION, "--dtype"),
        metavar="float32|float16|bfloat16",
        help="Data type of the base model and of the activations.",
    ),
]
OptimizerOption = Annotated[
    Optimizer,
    in_group(
        *(OPTIMIZATION, "--optimizer"),
        metavar="adamw|adamw8bit",
        help="Optimizer; adamw8bit keeps its states in 8 bits.",
    ),
]
Checkpointing = Annotated[
    bool,
    in_group(
        *(OPTIMIZATION, "--gradient-checkpointing"),
        help="Recompute activations in the backward pass: less memory, a third more time.",
    ),
]
AttentionOption = Annotated[
    Attention | None,
    in_group(
        *(OPTIMIZATION, "--attention"),
        metavar="sdpa|eager",
        help="Attention implementation; eager stores the full attention matrix. [default: sdpa]",
    ),
]
DataSize = Annotated[
    str | None,
    in_group(
        *(DATA, "--data-size"),
        metavar="N",
        help="Size of the training data: 5000 or 20k examples, or '3M tokens'.",
    ),
]
Analysis = Annotated[
    Path | None,
    in_group(
        *(DATA, "--analysis"),
        metavar="FILE",
        help="Base the advice on the ranks in the analysis.json of an earlier fine-tune.",
    ),
]
Measure = Annotated[bool, typer.Option("--measure", help="Also run a real step on this machine's CPU, and compare.")]
Figure = Annotated[
    Path | None,
    in_group(RESULT, "--figure", "-o", metavar="FILE", help="Draw the table as bars: .png, .svg or .pdf."),
]


def plan(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A preset such as llama-3-8b, a SOURCE (only its config is read), or a size such as 8B.",
        ),
    ],
    *,
    memory: Memory = None,
    gpus: Gpus = None,
    sharding: ShardingOption = None,
    measure: Measure = False,
    method: MethodOption = None,
    rank: RankOption = None,
    target: Target = None,
    max_length: MaxLength = None,
    data_size: DataSize = None,
    analysis: Analysis = None,
    batch_size: BatchSize = 1,
    dtype: Dtype = "bfloat16",
    optimizer: OptimizerOption = "adamw",
    gradient_checkpointing: Checkpointing = False,
    attention: AttentionOption = None,
    figure: Figure = None,
    force: Force = False,
    as_json: Json = False,
    cache: Cache = None,
    debug: Debug = False,
) -> None:
    """Predict the memory that fine-tuning a model needs, before renting a GPU.

    The model's own code runs a training step on tensors without data: no weights are downloaded, no GPU is needed, and
    every byte is counted.

    \b
    $ eckart plan llama-3-8b --memory 24GB
    llama-3-8b: 8.03 B parameters
    1 × 1,024 tokens per step, bfloat16, adamw, sdpa
             peak           adap-  gradi-  opti-  activa-         fits
     method    GB  weights   ters    ents  mizer    tions  other  24GB
     ─────────────────────────────────────────────────────────────────
     full    64.3     16.1      –    16.1   32.1        –   0.01    no
     lora    24.1     16.1   0.17       –   0.34     7.42   0.13    no
     dora    27.0     16.1   0.18       –   0.35     10.2   0.13    no
     qlora   13.8     5.70   0.17       –   0.34     7.39   0.16   yes
    Advice for 24GB: peak 22.1 GB
    …
    """  # noqa: D301
    from eckart import planning, report
    from eckart.checkpoint import check_output
    from eckart.checkpoint.source import local_paths
    from eckart.cli.drawing import Drawing
    from eckart.cli.output import show, show_json
    from eckart.cli.progress import StderrProgress

    _check(model, memory=memory, data_size=data_size, rank=rank, gpus=gpus, sharding=sharding)
    if figure is not None:
        check_output(figure, kind="file", force=force, inputs=local_paths(model, analysis))
    drawing = Drawing(figure, save="save_plan_figure", figures=str(figure))
    checked = None
    with StderrProgress() as progress, _warnings_as_notes():
        progress.start("Reading the config", 0, "steps")
        plan = planning.plan(
            model,
            method=method,
            memory=memory,
            data_size=data_size,
            analysis=analysis,
            progress=progress,
            rank=rank,
            target=target,
            batch_size=batch_size,
            max_length=max_length,
            dtype=dtype,
            optimizer=optimizer,
            gradient_checkpointing=gradient_checkpointing,
            attention=attention,
            gpus=gpus,
            sharding=sharding,
        )
        if measure:
            progress.start("Running a real step", 0, "steps")
            checked = planning.check_prediction(model, plan.chosen.setting)
    if figure is not None:
        drawing.draw(figure, plan, force=force)
        drawing.finish("Figure")
    if as_json:
        show_json(plan.to_json() | ({"measured": checked.to_json()} if checked else {}))
    else:
        show(report.plan_table(plan, checked))
    if plan.fits is False:
        raise typer.Exit(DOES_NOT_FIT)


def _check(
    model: str,
    *,
    memory: str | None,
    data_size: str | None,
    rank: int | None,
    gpus: int | None,
    sharding: Sharding | None,
) -> None:
    """Refuse what is wrong by itself before a simulation's imports, which take seconds."""
    from eckart.nn import LoRAConfig
    from eckart.planning import guide
    from eckart.planning import memory as memories
    from eckart.planning.setting import PlanSetting
    from eckart.planning.subject import check_name

    check_name(model)
    amount = None if memory is None else memories.Memory.parse(memory)
    PlanSetting(gpus=memories.number_of_gpus(gpus, amount), sharding=sharding)
    if data_size is not None:
        guide.parse_data_size(data_size)
    if rank is not None:
        LoRAConfig(rank=rank)


@contextmanager
def _warnings_as_notes() -> Iterator[None]:
    """Warnings, which are for programs, as a line for people."""
    from eckart.cli.output import note

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        yield
    for message in dict.fromkeys(str(each.message) for each in caught):
        note(f"Warning: {message}")

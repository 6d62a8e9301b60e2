"""`eckart sweep`: which rank, on which modules?"""

from pathlib import Path
from typing import Annotated

from eckart.cli.options import RESULT, Cache, Debug, Device, Force, Json, NoResume, Open, Seed, in_group
from eckart.cli.training_options import (
    ADAPTER,
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

GRID = "Grid"

Ranks = Annotated[str, in_group(GRID, "--ranks", metavar="4,8,16", help="Ranks to try.")]
Targets = Annotated[
    str,
    in_group(
        *(GRID, "--targets"),
        metavar="A,B",
        help="Targets to try: presets, names or regexes; + joins several into one target, as in q_proj+v_proj.",
    ),
]
Seeds = Annotated[
    int,
    in_group(GRID, "--seeds", metavar="N", help="Trainings per setting; use 3 or more to estimate noise."),
]
AlphaPerRank = Annotated[float, in_group(ADAPTER, "--alpha-per-rank", metavar="X", help="Alpha is X times the rank.")]


def sweep(
    model: Model,
    data: Data,
    *,
    ranks: Ranks = "4,8,16",
    targets: Targets = "attention,all-linear",
    seeds: Seeds = 1,
    alpha_per_rank: AlphaPerRank = 2.0,
    method: MethodOption = "lora",
    dropout: Dropout = 0.05,
    quantize: Quantize = None,
    max_length: MaxLength = None,
    eval_data: EvalData = None,
    steps: Steps = None,
    epochs: Epochs = None,
    batch_size: BatchSize = 4,
    learning_rate: LearningRate = 2e-4,
    dtype: DtypeOption = "auto",
    device: Device = "auto",
    seed: Seed = 0,
    no_resume: NoResume = False,
    output: Annotated[Path, in_group(RESULT, "--output", "-o", metavar="OUT", help="Folder of the sweep.")],
    force: Force = False,
    as_json: Json = False,
    open_page: Open = False,
    cache: Cache = None,
    debug: Debug = False,
) -> None:
    """Train every rank on every target, and report the sweet spot with its confidence.

    Each training has its own process and keeps its adapter in OUT/cells. An interrupted sweep resumes when the same
    command is given again; one with more ranks, targets or seeds trains only what is missing.

    \b
    $ eckart sweep base text/training.txt -o sweep --ranks 2,8 \\
          --targets attention,all-linear --seeds 3 --steps 12 --batch-size 2 \\
          --max-length 128 --learning-rate 2e-3 --eval-data text/heldout.txt
    …
     target      rank  parameters    held-out loss  time   memory
     ────────────────────────────────────────────────────────────────────────
     attention      2       230 k  3.1743 ± 0.0064  34 s  1.65 GB
     attention      8       922 k  3.0810 ± 0.0030  42 s   1.7 GB
     all-linear     2       611 k  3.1248 ± 0.0044  44 s  1.73 GB
     all-linear     8      2.44 M  3.0481 ± 0.0023  48 s  1.76 GB  sweet spot
    …
    Sweet spot: rank 8 on all-linear, 2.44 M parameters.
    …
    """  # noqa: D301
    from eckart import report, training
    from eckart.cli.drawing import Drawing
    from eckart.cli.output import present
    from eckart.cli.progress import StderrProgress
    from eckart.nn import LoRAConfig
    from eckart.training.sweep_grid import patterns

    grid = training.SweepGrid.parse(ranks, targets, seeds=seeds, first_seed=seed, alpha_per_rank=alpha_per_rank)
    names = [name for target in grid.targets for name in patterns(target)]
    training.check_inputs(model, data, eval_data, target=names)
    drawing = Drawing(output, save="save_sweep_figure", page="sweep_page", figures="sweep.png", open_page=open_page)
    with StderrProgress() as progress:
        result = training.sweep(
            model,
            data,
            output,
            ranks=grid.ranks,
            targets=grid.targets,
            seeds=grid.seeds,
            config=LoRAConfig(alpha=16 * alpha_per_rank, method=method, dropout=dropout),
            settings=training.TrainSettings(
                steps=steps,
                epochs=epochs,
                batch_size=batch_size,
                learning_rate=learning_rate,
                dtype=dtype,
                device=device,
                quantize=quantize,
            ),
            options=training.DataOptions(max_length),
            held_out=eval_data,
            resume=not no_resume,
            force=force,
            finish=drawing.draw,
            progress=progress,
        )
    present(result, report.sweep_table, as_json=as_json)
    drawing.finish("Sweep")

"""`eckart train`: an adapter of a language model, trained on data, with what that was worth and what it learnt."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eckart.cli.options import Exclude, Force, Json, Seed, Target
from eckart.errors import MissingExtraError, OptionError

if TYPE_CHECKING:
    from eckart.training import TrainResult

INTERRUPTED = 130


def train(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A SOURCE: folder, GGUF file, hub name or pkg:NAME.")],
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help="A text or a folder of them; JSONL, JSON or Parquet with text, or prompt and completion, or messages; "
            "or a dataset of the hub.",
        ),
    ],
    *,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="OUT", help="Adapter folder to write.")],
    method: Annotated[str, typer.Option(metavar="lora|dora", help="DoRA trains the length of each row too.")] = "lora",
    rank: Annotated[int, typer.Option(metavar="N", help="Of the factors.")] = 16,
    alpha: Annotated[float, typer.Option(metavar="X", help="The update is scaled by alpha / rank.")] = 32.0,
    rslora: Annotated[bool, typer.Option("--rslora", help="Scale by alpha / √rank.")] = False,
    dropout: Annotated[float, typer.Option(metavar="SHARE", help="Of the factors' inputs.")] = 0.05,
    bias: Annotated[str, typer.Option(metavar="none|lora-only|all", help="Biases that train too.")] = "none",
    init: Annotated[
        str, typer.Option(metavar="zero|pissa|olora|eva|loftq|lora-ga", help="How the factors start.")
    ] = "zero",
    target: Target = None,
    exclude: Exclude = None,
    quantize: Annotated[str | None, typer.Option(metavar="nf4", help="Keep the base in four bits: QLoRA.")] = None,
    steps: Annotated[int | None, typer.Option(metavar="N", help="Optimizer steps.")] = None,
    epochs: Annotated[float | None, typer.Option(metavar="X", help="Passes over the data. [default: 1]")] = None,
    batch_size: Annotated[int, typer.Option(metavar="N", help="Sequences that a process takes at once.")] = 4,
    accumulate: Annotated[int, typer.Option(metavar="N", help="Such batches a step.")] = 1,
    max_length: Annotated[
        int | None, typer.Option(metavar="N", help="Tokens of a sequence. [default: 1024, or what the model sees]")
    ] = None,
    packing: Annotated[bool, typer.Option("--packing", help="Put several records into one sequence, parted.")] = False,
    loss_on: Annotated[
        str, typer.Option(metavar="answers|all", help="Learn completions and the assistant's words, or prompts too.")
    ] = "answers",
    eval_data: Annotated[
        str | None, typer.Option(metavar="DATA", help="Data to hold out. [default: a tenth of DATA]")
    ] = None,
    learning_rate: Annotated[float, typer.Option(metavar="X", help="The highest, of AdamW.")] = 2e-4,
    lora_plus: Annotated[float, typer.Option(metavar="X", help="Times that for lora_B: LoRA+ advises 16.")] = 1.0,
    schedule: Annotated[str, typer.Option(metavar="linear|cosine|constant", help="How it falls.")] = "linear",
    warmup: Annotated[float, typer.Option(metavar="SHARE", help="Of the steps, in which it rises.")] = 0.03,
    weight_decay: Annotated[float, typer.Option(metavar="X", help="Of AdamW.")] = 0.0,
    dtype: Annotated[
        str, typer.Option(metavar="auto|float32|bfloat16", help="Of the base; factors are float32.")
    ] = "auto",
    device: Annotated[str, typer.Option(metavar="auto|cpu|cuda", help="Where to compute.")] = "auto",
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Less memory, a third more time.")
    ] = False,
    save_every: Annotated[
        int | None, typer.Option(metavar="N", help="Steps between checkpoints. [default: a tenth of all]")
    ] = None,
    no_dynamics: Annotated[bool, typer.Option("--no-dynamics", help="Do not record how updates grow.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in OUT.partial.")] = False,
    seed: Seed = 0,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Train an adapter, and tell the loss on held-out data before and after.

    OUT is a PEFT folder that appears whole; train.json, dynamics.json, figures,
    report.html and TensorBoard's files lie in it too. A training that was stopped or killed
    goes on with --resume, to the same bits. On several GPUs:
    torchrun --nproc-per-node 4 -m eckart train …

    \b
    $ eckart train base text/training.txt -o trained --rank 8 \\
          --target attention --steps 12 --batch-size 2 --max-length 128 \\
          --learning-rate 1e-3 --eval-data text/heldout.txt
    Adapter in trained
                                                   update  effective
     module       n  shape    rank             ‖ΔW‖ / ‖W‖       rank
     ───────────────────────────────────────────────────────────────
     q_proj      30  576×576     8  0.257% (0.176–0.347%)       6.97
     k_proj      30  192×576     8  0.255% (0.129–0.412%)       7.12
    …
    Loss on 1,442 held-out tokens: 3.4439 before, 3.2721 after (-0.1718) nats per
    token.
    922 k of 135 M parameters trained (0.68%), 8 steps in 7.1 s, peak memory 1.64 GB
    """  # noqa: D301
    from eckart import training
    from eckart.cli.output import note, show, show_json
    from eckart.cli.progress import Stages
    from eckart.nn import LoRAConfig
    from eckart.report import training_table

    if loss_on not in ("answers", "all"):
        msg = f"--loss-on is answers or all, got {loss_on!r}"
        raise OptionError(msg)
    try:
        with Stages(quiet=not training.is_writer()) as watcher:
            result = training.train(
                model,
                data,
                config=LoRAConfig(
                    rank=rank,
                    alpha=alpha,
                    dropout=dropout,
                    target=target or LoRAConfig().target,
                    exclude=exclude or (),
                    bias=bias,  # type: ignore[arg-type]  # checked there, as are the others
                    method=method,  # type: ignore[arg-type]
                    init=init,  # type: ignore[arg-type]
                    rslora=rslora,
                ),
                settings=training.TrainSettings(
                    steps=steps,
                    epochs=epochs,
                    batch_size=batch_size,
                    accumulate=accumulate,
                    learning_rate=learning_rate,
                    lora_plus_ratio=lora_plus,
                    schedule=schedule,  # type: ignore[arg-type]
                    warmup=warmup,
                    weight_decay=weight_decay,
                    seed=seed,
                    dtype=dtype,  # type: ignore[arg-type]
                    device=device,
                    gradient_checkpointing=gradient_checkpointing,
                    quantize=quantize,  # type: ignore[arg-type]
                    save_every=save_every,
                ),
                options=training.DataOptions(max_length, answers_only=loss_on == "answers", packing=packing, seed=seed),
                held_out=eval_data,
                output=output,
                resume=resume,
                force=force,
                dynamics=not no_dynamics,
                finish=_draw,
                watcher=watcher,
            )
    except KeyboardInterrupt as stopped:
        if training.is_writer():
            note(f"eckart: {str(stopped) or 'interrupted; where there is a checkpoint, --resume goes on from it'}")
        raise typer.Exit(INTERRUPTED) from None
    training.part()
    if not training.is_writer():
        return None
    return show_json(result.to_json()) if as_json else show(training_table(result))


def _draw(folder: Path, result: "TrainResult") -> None:
    """Figures and the page beside the adapter, where the libraries are there that draw them."""
    from eckart.cli.output import note
    from eckart.cli.page import page_beside
    from eckart.report.figures.training import save_dynamics

    page_beside(folder, title=None if result.output is None else result.output.name)
    if result.dynamics is None:
        return
    try:
        save_dynamics(result.dynamics, folder)
    except MissingExtraError as error:
        note(f"No figures: {error}")

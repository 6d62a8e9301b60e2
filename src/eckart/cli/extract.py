"""`eckart extract`: a fine-tune as a small adapter, with the error of every layer and the gain it keeps."""

from pathlib import Path
from typing import Annotated

import typer

from eckart.cli.distill import DistillText, Steps
from eckart.cli.options import (
    BudgetText,
    Device,
    Dtype,
    Energy,
    Error,
    Exclude,
    Force,
    Json,
    NoResume,
    Rank,
    Seed,
    Target,
    Workers,
)

Saved = Annotated[
    list[str] | None,
    typer.Option(
        "--modules-to-save",
        metavar="PATTERN",
        help="Keep changed tensors whole: modules by name, `norm` for all norms, `bias` for biases. Repeatable.",
    ),
]
Text = Annotated[
    Path | None, typer.Option("--eval", metavar="TEXT", help="Text file on which to measure the gain recovered.")
]
Unbalanced = Annotated[bool, typer.Option("--unbalanced", help="Leave lora_A orthonormal; lora_B carries the scale.")]


def extract(
    base: Annotated[str, typer.Argument(metavar="BASE", help="The model that was fine-tuned.")],
    tuned: Annotated[str, typer.Argument(metavar="TUNED", help="What came of it.")],
    *,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="OUT", help="Adapter folder to write.")],
    rank: Rank = None,
    energy: Energy = None,
    error: Error = None,
    budget: BudgetText = None,
    evaluation: Text = None,
    distill: DistillText = None,
    steps: Steps = None,
    target: Target = None,
    exclude: Exclude = None,
    modules_to_save: Saved = None,
    dtype: Dtype = "float32",
    unbalanced: Unbalanced = False,
    device: Device = "auto",
    workers: Workers = None,
    seed: Seed = 0,
    no_resume: NoResume = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Write TUNED − BASE as a PEFT adapter of the best factors of the chosen rank (16 by default).

    A killed run goes on where it was. With --eval, tell how much of the fine-tune's lower loss the adapter keeps.
    Beside the adapter lie extract.json and report.html.

    With --distill, train the factors on TEXT towards TUNED's predictions; its last 15 % decides if that is kept.

    \b
    $ eckart extract base tuned -o extracted --rank 8 --eval text/heldout.txt
    Adapter in extracted
     module       n  shape     rank      relative error      least possible
     ──────────────────────────────────────────────────────────────────────
     o_proj      30  576×576      8    72.7% (63.2–81%)    72.7% (63.2–81%)
     gate_proj   30  1536×576     8  88.7% (82.2–91.2%)  88.7% (82.2–91.2%)
    …
    Loss on 1,462 tokens: base 2.4988, fine-tune 2.1638, base with adapter
    2.2482 nats per token.
    Gain recovered: 74.8%

    \b
    $ head -c 16000 text/training.txt > text.txt
    $ eckart extract base tuned -o distilled --rank 2 --distill text.txt --steps 6
    …
    Distilled for 40 steps. On 2,040 held-out tokens: KL to the teacher 0.2323 →
    0.1151, loss 2.3460 → 2.2167 nats per token, gain recovered 39.1% → 53.4%. The
    errors by weights are those of the trained factors, which follow predictions
    instead.
    """  # noqa: D301
    from eckart import operations
    from eckart.cli.distill import distillation
    from eckart.cli.evaluate import gain_of, read_text
    from eckart.cli.output import show, show_json
    from eckart.cli.page import result_beside
    from eckart.cli.progress import Bar
    from eckart.engine import Execution
    from eckart.errors import OptionError
    from eckart.report import adapter_table

    if distill is not None and unbalanced:
        msg = "--unbalanced leaves lora_A orthonormal, --distill trains it: choose one of them"
        raise OptionError(msg)
    text = read_text(evaluation) if evaluation else None
    with distillation(base, tuned, distill, steps=steps, seed=seed, device=device) as refine:
        extraction = operations.extract(
            base,
            tuned,
            rank=operations.RankChoice.given(rank=rank, energy=energy, error=error, budget=budget),
            output=output,
            scope=operations.Scope(target or operations.Scope().target, exclude or (), modules_to_save or ()),
            options=operations.FactorOptions.named(dtype, balanced=not unbalanced),
            execution=Execution(device=device, workers=workers, seed=seed, resume=not no_resume, progress=Bar()),
            force=force,
            refine=refine,
        )
    distilled = refine.result if refine else None
    gain = gain_of(base, tuned, extraction.adapter, text) if text is not None else None
    told = {"eval": gain.to_json() if gain else None, "distill": distilled.to_json() if distilled else None}
    result_beside(output, "extract.json", extraction.to_json() | told)
    if as_json:
        show_json(extraction.to_json() | told)
    else:
        show(adapter_table(extraction, gain, distilled))

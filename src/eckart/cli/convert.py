"""`eckart convert`: an adapter in the format that another tool reads."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from eckart.cli.options import (
    RESULT,
    Cache,
    Debug,
    DryRun,
    Force,
    ForRuntime,
    Json,
    KeepScales,
    Runtime,
    Workers,
    in_group,
)
from eckart.cli.push import Push

if TYPE_CHECKING:
    from eckart.adapter.outline import AdapterFormat

Format = Literal["peft", "kohya", "comfyui", "diffusers", "mlx", "gguf", "lora"]
To = Annotated[
    Format | None,
    typer.Option(
        "--to",
        metavar="peft|kohya|comfyui|diffusers|mlx|gguf|lora",
        help="The format to write; lora is peft with plain low-rank updates only.",
    ),
]
RANKS = "Ranks of --to lora"
Rank = Annotated[
    int | None,
    in_group(RANKS, "--rank", "-r", metavar="N", help="Rank of each update that is computed. [default: 16]"),
]
Error = Annotated[
    float | None,
    in_group(RANKS, "--error", metavar="SHARE", help="The smallest ranks with a relative error below this."),
]
Base = Annotated[
    str | None,
    typer.Option("--base", metavar="BASE", help="The model: resolves module names and checks every shape."),
]


def convert(
    adapters: Annotated[
        list[str], typer.Argument(metavar="ADAPTER...", help="A folder, a .safetensors or .gguf file, or a hub name.")
    ],
    *,
    to: To = None,
    runtime: ForRuntime = None,
    base: Base = None,
    family: Annotated[
        str | None,
        typer.Option(
            "--family", metavar="NAME", help="Without --base: the family or type of the model, such as flux1 or llama."
        ),
    ] = None,
    rank: Rank = None,
    error: Error = None,
    workers: Workers = None,
    output: Annotated[
        Path,
        in_group(
            RESULT,
            "--output",
            "-o",
            metavar="OUT",
            help="A folder; for kohya and comfyui a .safetensors file, for gguf a .gguf file.",
        ),
    ],
    push: Push = None,
    keep_scales: KeepScales = False,
    dry_run: DryRun = False,
    force: Force = False,
    as_json: Json = False,
    cache: Cache = None,
    debug: Debug = False,
) -> None:
    """Write ADAPTER in another format, with every update unchanged, or as a runtime loads it.

    What the format cannot express is refused by name before anything is written. Factors are copied bit for bit,
    except where parts or layers with different scales have to share one (FLUX's qkv; PEFT, MLX and GGUF adapters):
    these are rounded once.

    --to lora turns DoRA, saved matrices and trained tokens into plain updates of BASE, with the error of each; without
    --base, it turns LoHa, LoKr and full differences in a LoRA file into plain LoRA in the same format. --for
    takes every step that a runtime needs, which eckart check lists: plain updates, an allowed rank, its format.

    \b
    $ eckart convert adapter -o adapter.safetensors --to kohya
    Adapter in adapter.safetensors, from peft to kohya
     module             n  shape     rank
     ────────────────────────────────────
     self_attn_q_proj  30  576×576      8
     self_attn_k_proj  30  192×576      8
    …
    210 names changed, such as
      model.layers.0.self_attn.q_proj →
      lora_te_layers_0_self_attn_q_proj
    210 layers, 9.84 MB
    """  # noqa: D301
    from eckart import report
    from eckart.cli.output import present, show, show_json
    from eckart.cli.progress import StderrProgress
    from eckart.cli.push import check_push, push_output
    from eckart.cli.runtimes import note_needs
    from eckart.cli.several import outputs_of, refuse_for_several, write_each
    from eckart.engine import Execution
    from eckart.formats.sources import open_adapter
    from eckart.operations.checking.fitting import fit
    from eckart.operations.conversion import Conversion, plan_conversion
    from eckart.operations.plain_lora.plan import plan_products, plan_to_lora
    from eckart.operations.plain_lora.to_lora import to_lora

    _check_choices(to, runtime, has_rank=(rank, error) != (None, None))
    if len(adapters) > 1:
        refuse_for_several(dry_run=dry_run, push=push, runtime=runtime, to_lora=to == "lora")
        outputs = outputs_of(adapters, output)

        def one(adapter: str) -> tuple[dict[str, Any], str]:
            source = replace(open_adapter(adapter), keep_scales=keep_scales)
            plan = plan_conversion(source, cast("AdapterFormat", to), base=base, family=family)
            result = plan.write(outputs[adapter], force=force)
            return result.to_json(), f"{outputs[adapter]}: {len(result.layers)} layers, from {result.origin} to {to}"

        return write_each(adapters, one, as_json=as_json)
    (adapter,) = adapters
    source = replace(open_adapter(adapter), keep_scales=keep_scales)
    execution = Execution(device="cpu", workers=workers, progress=StderrProgress())
    steps = []
    if to == "lora":
        planned = plan_products if base is None else partial(plan_to_lora, base=base)
        plan = planned(source, rank=rank, error=error)
    elif runtime is not None:
        steps, plan = fit(source, runtime, base=base, family=family, rank=rank, error=error, execution=execution)
    else:
        plan = plan_conversion(source, to or "peft", base=base, family=family)
    if dry_run:
        return present(plan.preview(), report.preview_table, as_json=as_json)
    check_push(push)
    if not isinstance(plan, Conversion):
        made = to_lora(source, base, rank=rank, error=error, output=output, execution=execution, force=force)
        present(made, report.adapter_table, as_json=as_json)
        return push_output(output, push, made_by="convert")
    result = plan.write(output, force=force)
    if len(result.adapters) == 1:
        note_needs(output, runtime)
    if as_json:
        show_json(result.to_json() | ({"steps": [step.to_json() for step in steps]} if runtime else {}))
    else:
        for step in steps:
            show(report.adapter_table(step))
        show(report.conversion_table(result))
    return push_output(output, push, made_by="convert")


def _check_choices(to: Format | None, runtime: Runtime | None, *, has_rank: bool) -> None:
    """Refuse options that do not go together."""
    from eckart.errors import OptionError

    if (to is None) == (runtime is None):
        msg = "choose one of `to`, a format, and `for`, a runtime"
        raise OptionError(msg)
    if runtime is None and to != "lora" and has_rank:
        msg = "`rank` and `error` apply to updates that `to=lora` computes; eckart resize changes the rank of others"
        raise OptionError(msg)

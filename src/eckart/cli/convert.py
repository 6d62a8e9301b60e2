"""`eckart convert`: an adapter in the format that another tool reads."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from eckart.cli.options import RESULT, Debug, DryRun, Force, Json, KeepScales, in_group

Format = Literal["peft", "kohya", "diffusers", "mlx"]
To = Annotated[Format, typer.Option("--to", metavar="peft|kohya|diffusers|mlx", help="The format to write.")]
Base = Annotated[
    str | None,
    typer.Option("--base", metavar="BASE", help="The model: resolves module names and checks every shape."),
]


def convert(
    adapter: Annotated[str, typer.Argument(metavar="ADAPTER", help="A folder, a .safetensors file or a hub name.")],
    *,
    to: To,
    base: Base = None,
    family: Annotated[
        str | None,
        typer.Option("--family", metavar="NAME", help="Without --base: the model's type, such as llama."),
    ] = None,
    output: Annotated[
        Path,
        in_group(RESULT, "--output", "-o", metavar="OUT", help="A folder; for kohya a .safetensors file."),
    ],
    keep_scales: KeepScales = False,
    dry_run: DryRun = False,
    force: Force = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write ADAPTER in another format, with every update unchanged.

    What the format cannot express is refused by name before anything is written. Factors are copied bit for bit; only
    where parts with several scales become one layer (FLUX's qkv), or layers of several scales a PEFT or MLX adapter,
    are they rounded, once.

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
    from eckart.cli.output import present
    from eckart.formats.sources import open_adapter
    from eckart.operations.conversion import plan_conversion

    plan = plan_conversion(replace(open_adapter(adapter), keep_scales=keep_scales), to, base=base, family=family)
    if dry_run:
        return present(plan.preview(), report.preview_table, as_json=as_json)
    return present(plan.write(output, force=force), report.conversion_table, as_json=as_json)

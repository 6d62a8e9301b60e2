"""`eckart convert`: an adapter in the format that another tool reads."""

from pathlib import Path
from typing import Annotated

import typer

from eckart.cli.options import DryRun, Force, Json

To = Annotated[str, typer.Option("--to", metavar="peft|kohya|diffusers", help="The format to write.")]
Base = Annotated[
    str | None,
    typer.Option("--base", metavar="BASE", help="The model: tells the names behind kohya's, and checks every shape."),
]


def convert(
    adapter: Annotated[str, typer.Argument(metavar="ADAPTER", help="A folder, a .safetensors file or a hub name.")],
    *,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="OUT", help="What to write: a folder; for kohya a .safetensors file."),
    ],
    to: To,
    base: Base = None,
    dry_run: DryRun = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Write ADAPTER in another format, with every scale as it was.

    What the format cannot hold is refused by name before anything is written. Factors stay as they are, bit for
    bit; only where parts of several scales become one layer (FLUX's qkv) are they rounded, once, in float32.

    \b
    $ eckart convert adapter -o adapter.safetensors --to kohya
    Adapter in adapter.safetensors, from peft to kohya
     module       n  shape     rank
     ──────────────────────────────
     q_proj      30  576×576      8
     k_proj      30  192×576      8
    …
    210 names changed, such as
      base_model.model.model.layers.0.mlp.down_proj →
      lora_te_model_layers_0_mlp_down_proj
    210 layers, 9.82 MB
    """  # noqa: D301
    from eckart.cli.output import show, show_json
    from eckart.operations.conversion import plan_conversion
    from eckart.report import conversion_table, preview_table

    plan = plan_conversion(adapter, to, base=base)  # type: ignore[arg-type]  # checked there
    if dry_run:
        preview = plan.preview()
        return show_json(preview.to_json()) if as_json else show(preview_table(preview))
    result = plan.write(output, force=force)
    return show_json(result.to_json()) if as_json else show(conversion_table(result))

"""`eckart check`: what an adapter is, which runtimes load it, and what makes it fit."""

from typing import Annotated

import typer

from eckart.cli.options import Cache, Debug, Json, Runtime

NOT_AS_IT_IS = 3
For = Annotated[
    Runtime | None,
    typer.Option(
        "--for", metavar="RUNTIME", help="Only this runtime; exit status 3 if it does not load all of ADAPTER."
    ),
]
Base = Annotated[
    str | None, typer.Option("--base", metavar="BASE", help="The model: names and shapes are compared with it.")
]


def check(
    adapter: Annotated[str, typer.Argument(metavar="ADAPTER", help="A folder, a .safetensors file or a hub name.")],
    *,
    base: Base = None,
    runtime: For = None,
    as_json: Json = False,
    cache: Cache = None,
    debug: Debug = False,
) -> None:
    """Show what ADAPTER is, which runtimes load it, what they would ignore, and what makes it fit.

    Reads headers only. RUNTIME is one of peft, vllm, sglang, llama.cpp, mlx, diffusers, comfyui; the rules are from the
    sources of the versions shown. Exit status 3: the runtime named by --for does not load ADAPTER as it is, or ignores
    a part of it, or ADAPTER does not fit BASE.

    \b
    $ eckart check adapter
    adapter
    peft, 210 layers, 2.44 M parameters, 9.77 MB, float32
    kinds: linear
    ranks: 8
    scales: 2
    …
     runtime    version                  verdict
     ─────────────────────────────────────────────────
     peft       0.21.2                   loads
     vllm       0.33.0                   loads
     sglang     0.5.23                   loads
     llama.cpp  llama-cpp-python 0.3.36  does not load
    …
    """  # noqa: D301
    from eckart import report
    from eckart.cli.output import present
    from eckart.operations.checking.check import check as checked

    result = checked(adapter, [runtime] if runtime else (), base=base)
    present(result, report.check_table, as_json=as_json)
    if not result.fits:
        raise typer.Exit(NOT_AS_IT_IS)

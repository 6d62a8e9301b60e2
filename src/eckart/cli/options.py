"""Options that several commands share, each declared once."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from eckart.cli.command import GENERAL, set_debug
from eckart.engine import Shard
from eckart.errors import OptionError

LAYERS, RANK, EXECUTION, RESULT = "Layers", "Rank (choose one)", "Execution", "Output"

FloatDtype = Literal["float32", "bfloat16", "float16", "float64"]
DTYPES = "float32|bfloat16|float16|float64"
Runtime = Literal["peft", "vllm", "sglang", "llama.cpp", "mlx", "diffusers", "comfyui"]


def _device(value: str) -> str:
    """The device, if its name is well formed; whether the machine has it is checked by the library."""
    if not re.fullmatch(r"auto|cpu|cuda|cuda:\d+(,cuda:\d+)*", value):
        msg = f"{value!r}: expected auto, cpu, cuda or cuda:N"
        raise typer.BadParameter(msg)
    return value


def _share(text: str) -> Shard:
    try:
        return Shard.parse(text)
    except OptionError:
        msg = f"{text!r}: expected I/N with I from 1 to N, such as 1/4"
        raise typer.BadParameter(msg) from None


def in_group(group: str, *names: str, help: str, **settings: Any) -> Any:  # noqa: A002  # typer's own name for it
    """An option that the help lists under the heading `group`."""
    return typer.Option(*names, help=help, rich_help_panel=group, **settings)


Target = Annotated[
    list[str] | None,
    in_group(
        *(LAYERS, "--target", "--target-modules"),
        metavar="PATTERN",
        help="Only these modules: a name, a dotted suffix, a regex, or one of "
        "attention, attention-min, mlp, all-linear. Repeatable.",
    ),
]
Exclude = Annotated[
    list[str] | None,
    in_group(LAYERS, "--exclude", metavar="PATTERN", help="Not these modules; overrides --target. Repeatable."),
]

Rank = Annotated[int | None, in_group(RANK, "--rank", "-r", metavar="N", help="The same rank for every matrix.")]


def _rank(text: str) -> int | str:
    if text == "noise":
        return text
    try:
        return int(text)
    except ValueError:
        msg = f"{text!r}: expected a number, or noise"
        raise typer.BadParameter(msg) from None


RankOrNoise = Annotated[
    Any,
    in_group(
        *(RANK, "--rank", "-r"),
        metavar="N|noise",
        parser=_rank,
        help="The same rank for every matrix; noise: the directions of each that stand above the rounding of its data "
        "type.",
    ),
]
Energy = Annotated[
    float | None,
    in_group(RANK, "--energy", metavar="SHARE", help="The smallest ranks that keep this share of ‖ΔW‖², such as 0.9."),
]
Error = Annotated[
    float | None,
    in_group(RANK, "--error", metavar="SHARE", help="The smallest ranks with a relative error below this."),
]
BudgetText = Annotated[
    str | None,
    in_group(RANK, "--budget", metavar="20MB|5M", help="Total bytes or parameters, distributed over all matrices."),
]

Device = Annotated[
    str,
    in_group(
        *(EXECUTION, "--device"),
        metavar="auto|cpu|cuda[:N]",
        callback=_device,
        help="Device to compute on: cuda uses all GPUs, cuda:0,cuda:2 these two.",
    ),
]
Workers = Annotated[
    int | None,
    in_group(
        *(EXECUTION, "--workers"),
        metavar="N",
        min=1,
        help="Number of matrices processed at once. [default: one per core]",
    ),
]
Seed = Annotated[int, in_group(EXECUTION, "--seed", metavar="N", help="Random seed.")]
NoResume = Annotated[
    bool, in_group(EXECUTION, "--no-resume", help="Start from scratch instead of resuming an interrupted run.")
]
Share = Annotated[
    Shard | None,
    in_group(
        *(EXECUTION, "--shard"),
        metavar="I/N",
        parser=_share,
        help="Process only this share of the matrices, next to other processes with the same OUT on any machine; the "
        "same command without it finishes.",
    ),
]
Collect = Annotated[
    bool,
    in_group(EXECUTION, "--collect", help="Only finish from the work of all shares; refuse if any of it is missing."),
]


def _cache(value: Path | None) -> None:
    """Keep what the command reads of remote sources."""
    if value is not None:
        from eckart.checkpoint.remote.mounts import set_cache

        set_cache(value)


Cache = Annotated[
    Path | None,
    in_group(
        *(EXECUTION, "--cache"),
        metavar="DIR",
        callback=_cache,
        expose_value=False,
        help="Keep what is read of remote sources in this folder, and read it from there the next time.",
    ),
]
Ray = Annotated[
    str | None,
    in_group(
        *(EXECUTION, "--ray"),
        metavar="ADDRESS|auto",
        help="Process the matrices on the nodes of this Ray cluster, which see the same files: HOST:PORT, or auto.",
    ),
]
Debug = Annotated[
    bool,
    in_group(GENERAL, "--debug", callback=set_debug, expose_value=False, help="Show the traceback of an error."),
]

Output = Annotated[
    Path | None, in_group(RESULT, "--output", "-o", metavar="DIR", help="Folder for the results, figures and page.")
]
AdapterOutput = Annotated[
    Path, in_group(RESULT, "--output", "-o", metavar="OUT", help="Adapter folder or file to write.")
]
ModelOutput = Annotated[Path, in_group(RESULT, "--output", "-o", metavar="OUT", help="Model folder to write.")]
FactorDtype = Annotated[
    FloatDtype | None,
    in_group(RESULT, "--dtype", metavar=DTYPES, help="Data type of the saved factors. [default: each layer's own]"),
]
LayerScales = Annotated[
    list[str] | None,
    typer.Option(
        "--scale",
        metavar="PATTERN=W",
        help="Multiply the updates of matching layers by W; 0 removes them.",
    ),
]
Weights = Annotated[
    str | None, typer.Option("--weights", metavar="A,B,…", help="Weight of each adapter, in order. [default: 1]")
]
DryRun = Annotated[
    bool,
    in_group(*(RESULT, "--dry-run", "-n"), help="Show what would be matched, read and written; reads headers only."),
]
ForRuntime = Annotated[
    Runtime | None,
    in_group(
        *(RESULT, "--for"),
        metavar="RUNTIME",
        help="Write what this runtime loads: peft, vllm, sglang, llama.cpp, mlx, diffusers or comfyui.",
    ),
]
KeepScales = Annotated[
    bool,
    in_group(
        RESULT,
        "--keep-scales",
        help="Write each layer's alpha and rsLoRA into PEFT's config, which some readers ignore, not into lora_B.",
    ),
]
Force = Annotated[bool, in_group(RESULT, "--force", "-f", help="Overwrite an existing output.")]
Json = Annotated[bool, in_group(RESULT, "--json", help="Print the result as one JSON object, and nothing else.")]
PerLayer = Annotated[
    bool, in_group(RESULT, "--per-layer", help="List every layer in the table, not one line per kind of module.")
]
Open = Annotated[bool, in_group(RESULT, "--open", help="Open the page in the browser when done.")]

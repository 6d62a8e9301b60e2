"""Options that several commands share, spelt and explained once."""

from pathlib import Path
from typing import Annotated

import typer

Target = Annotated[
    list[str] | None,
    typer.Option(
        "--target",
        metavar="PATTERN",
        help="Only these modules: a name, a dotted suffix, a regex, "
        "or attention, attention-min, mlp, all-linear. Repeatable.",
    ),
]
Exclude = Annotated[
    list[str] | None,
    typer.Option("--exclude", metavar="PATTERN", help="Not these modules; wins over --target. Repeatable."),
]
Output = Annotated[Path | None, typer.Option("--output", "-o", metavar="OUT", help="Where results are written.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite what is already there.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON, and nothing else, on stdout.")]
Device = Annotated[str, typer.Option("--device", metavar="auto|cpu|cuda[:N]", help="Where to compute.")]
Dtype = Annotated[str, typer.Option("--dtype", metavar="float32|bfloat16|float16", help="Of the written factors.")]
Seed = Annotated[int, typer.Option("--seed", metavar="N", help="Of every random choice.")]
NoResume = Annotated[
    bool, typer.Option("--no-resume", help="Start over instead of going on where a killed run stopped.")
]
Workers = Annotated[
    int | None,
    typer.Option("--workers", metavar="N", min=1, help="Matrices worked on at once; by default one a core."),
]
Rank = Annotated[int | None, typer.Option("--rank", metavar="N", help="The same rank for every matrix.")]
Energy = Annotated[
    float | None, typer.Option("--energy", metavar="SHARE", help="Smallest ranks that keep this share of ‖ΔW‖².")
]
Error = Annotated[
    float | None, typer.Option("--error", metavar="SHARE", help="Smallest ranks with a relative error below this.")
]
BudgetText = Annotated[
    str | None, typer.Option("--budget", metavar="20MB|5M", help="Bytes or parameters, shared between matrices.")
]
Weights = Annotated[
    str | None, typer.Option("--weights", metavar="A,B,…", help="Factor of each adapter, in their order. [default: 1]")
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Tell what would match, be read and be written, from headers alone.")
]

"""Start-up time: `import eckart` and `--help`, compared with the peers."""

import sys

from bench.options import Options, script
from bench.results import Comparison, Limit, Row, Side
from bench.timing import alternate, median_seconds, run_process

IMPORT_SECONDS, HELP_SECONDS = 0.1, 0.5
REPEATS = 10


def run(options: Options) -> list[Row]:
    """The options are not used."""
    commands = {
        "python": (sys.executable, "-c", "pass"),
        "import": (sys.executable, "-c", "import eckart"),
        "help": (script("eckart"), "--help"),
        "mergekit": (script("mergekit-extract-lora"), "--help"),
    }
    sides = {name: lambda command=command: run_process(*command) for name, command in commands.items()}
    for side in sides.values():
        side()
    runs = alternate(sides, repeats=REPEATS)
    seconds = {name: median_seconds(of_one) for name, of_one in runs.items()}
    importing = max(seconds["import"] - seconds["python"], 0.0)
    return [
        Limit("import eckart", importing, IMPORT_SECONDS, "s", "median of 10, minus the start of an empty interpreter"),
        Limit("eckart --help", seconds["help"], HELP_SECONDS, "s", "median of 10, whole process"),
        Comparison(
            task="--help, whole process",
            peer="mergekit-extract-lora --help",
            ours=Side.of(runs["help"]),
            theirs=Side.of(runs["mergekit"]),
            target="≥ 1×",
            met=seconds["mergekit"] >= seconds["help"],
        ),
    ]

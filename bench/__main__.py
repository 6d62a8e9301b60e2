"""Run sections of the benchmark, print their tables, and save them in results.json and RESULTS.md."""

import argparse
import importlib
from pathlib import Path

import torch

from bench import THREADS
from bench.options import Options
from bench.results import markdown, save

HERE = Path(__file__).parent
DEFAULT = (
    *("startup", "check", "minimal_rank", "partial_svd", "adapter_svd", "extract", "analyze", "resize", "merge", "nf4"),
    "dequantize",
)
ON_REQUEST = (
    "training_step",
    "training_curve",
    "distill",
    "gain",
    "ranks",
    "dynamics",
    "memory",
    "merge_memory",
    "page",
    "planning",
    "load",
    "quantized",
    "quantized_mix",
    "quantized_merge",
    "layer_group",
    "images",
    "cluster",
    "sd_scripts",
    "remote",
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    choices = f"{', '.join(DEFAULT)} (all of these by default), or {', '.join(ON_REQUEST)}"
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=choices)
    parser.add_argument("--work", type=Path, default=HERE / "work", help="folder for matrices and outputs")
    parser.add_argument("--pair", type=Path, help="folder with base/ and tuned/ (default: WORK/pair, made if missing)")
    parser.add_argument("--repeats", type=int, default=3, help="paired runs of each slow comparison")
    parser.add_argument("--output", type=Path, default=HERE, help="folder of results.json and RESULTS.md")
    parser.add_argument("--sd-scripts", type=Path, help="a checkout of sd-scripts, to record its results again")
    arguments = parser.parse_args()
    unknown = set(arguments.sections) - {*DEFAULT, *ON_REQUEST}
    if unknown:
        parser.error(f"unknown section {', '.join(sorted(unknown))}; choose from {choices}")
    torch.set_num_threads(THREADS)
    pair = arguments.pair or arguments.work / "pair"
    options = Options(pair, arguments.work, arguments.repeats, arguments.sd_scripts)
    options.work.mkdir(parents=True, exist_ok=True)
    arguments.output.mkdir(parents=True, exist_ok=True)
    for section in arguments.sections or DEFAULT:
        rows = importlib.import_module(f"bench.{section}").run(options)
        save(arguments.output, section, rows)
        print(markdown(rows), flush=True)


if __name__ == "__main__":
    main()

"""A rank-32 adapter merged into SmolLM2-135M, whole process: PEFT and `eckart merge`."""

import shutil
import sys
from pathlib import Path

import torch

from bench.files import adapter_updates, readers
from bench.options import Options, script
from bench.pair import get_pair
from bench.results import Comparison, Side
from bench.timing import Run, alternate, run_process

RANK = 32
RATIO = 2.0
PEER = Path(__file__).with_name("peer_peft_merge.py")


def run(options: Options) -> list[Comparison]:
    base, tuned = get_pair(options.pair)
    adapter = options.work / "merge-adapter"
    if not adapter.exists():
        run_process(script("eckart"), "extract", base, tuned, "-o", adapter, "--rank", str(RANK))
    folders = {"peft": options.work / "merge-peft", "eckart": options.work / "merge-eckart"}

    def peft() -> Run:
        return run_process(sys.executable, PEER, base, adapter, folders["peft"])

    def eckart() -> Run:
        return run_process(script("eckart"), "merge", base, adapter, "-o", folders["eckart"], "--force", "--no-resume")

    eckart()  # fills the page cache with compiled modules and the checkpoint
    runs = alternate({"peft": peft, "eckart": eckart}, repeats=options.repeats)
    errors = {name: misrounded(folder, base, adapter) for name, folder in folders.items()}
    ours, theirs = (Side.of(runs[name], error=errors[name]) for name in ("eckart", "peft"))
    for folder in folders.values():
        shutil.rmtree(folder)
    return [
        Comparison(
            task=f"merge a rank-{RANK} adapter into SmolLM2-135M, whole process",
            peer="PEFT merge_and_unload + save_pretrained",
            ours=ours,
            theirs=theirs,
            target=f"≥ {RATIO:g}×",
            met=theirs.seconds >= RATIO * ours.seconds,
            measure="share of entries that are not the exact sum rounded once",
        )
    ]


def misrounded(folder: Path, base: Path, adapter: Path) -> float:
    """Share of merged entries that differ from base + update, summed in float64 and rounded once."""
    merged, weights = readers(folder), readers(base)
    wrong = total = 0
    for module, update in adapter_updates(adapter).items():
        result, weight = merged[f"{module}.weight"](), weights[f"{module}.weight"]()
        wrong += int(torch.count_nonzero(result != (weight.double() + update()).to(weight.dtype)))
        total += result.numel()
    return wrong / total

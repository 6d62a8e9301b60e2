"""Training steps of adapters on SmolLM2-135M, compared with PEFT: time, and memory in addition to the weights.

eckart is measured twice: its layers with the loss of transformers, as PEFT's are used, and its complete step, which
computes the loss from the hidden states without storing logits.
"""

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

from bench.options import Options
from bench.results import Comparison, Row, Side
from bench.timing import Run, alternate, run_process
from eckart.demo.base import make_base

WORKER = Path(__file__).with_name("step_worker.py")
RANK, BATCH, LENGTH = 16, 4, 256
SETTINGS = {  # smallest acceptable ratio of time, and of memory
    "LoRA, float32": (("float32", "lora", 0.0), 1 / 0.75, 1 / 0.8),
    "LoRA, bfloat16": (("bfloat16", "lora", 0.0), 1 / 0.85, 1 / 0.8),
    "LoRA with dropout 0.05, float32": (("float32", "lora", 0.05), 1 / 0.75, None),
    "DoRA, float32": (("float32", "dora", 0.0), 1 / 0.6, None),
}
SIDES = {"layers": "layers only, transformers' loss", "step": "complete step"}


def run(options: Options) -> list[Row]:
    rows: list[Row] = []
    base = make_base(options.work)  # loads fast; reading the GGUF file takes longer than the steps
    for name, ((dtype, method, dropout), least, least_memory) in SETTINGS.items():
        sides = {side: partial(run_side, base, side, dtype, method, dropout) for side in ("peft", *SIDES)}
        runs = alternate(sides, repeats=options.repeats)
        peer = Side.of(runs["peft"])
        for side, label in SIDES.items():
            ours = Side.of(runs[side])
            task = f"training step of SmolLM2-135M, {name}, rank {RANK}, {BATCH}×{LENGTH} tokens: {label}"
            met = peer.seconds >= least * ours.seconds
            memory = _bytes(peer) / _bytes(ours)
            target = f"≤ {1 / least:.2f}× the time"
            if least_memory:
                met, target = met and memory >= least_memory, f"{target}, ≤ {1 / least_memory:.1f}× the memory"
            note = f"time {ours.seconds / peer.seconds:.2f}×, memory in addition to the weights {1 / memory:.2f}×"
            rows.append(Comparison(task, "PEFT", ours, peer, target, met, note=note))
    return rows


def run_side(
    base: Path, side: str, dtype: str, method: str, dropout: float, *, steps: int = 6, batch: int = BATCH
) -> Run:
    """Steps in a separate process: median time of a step, and memory in addition to the weights."""
    process: Any = run_process(sys.executable, WORKER, base, side, dtype, method, str(dropout), str(steps), str(batch))
    record = json.loads(process.value.splitlines()[-1])
    return Run(record["seconds"], record["cpu_seconds"], record["peak_bytes"], record["losses"])


def _bytes(side: Side) -> int:
    assert side.peak_rss_bytes is not None
    return side.peak_rss_bytes

"""Fifty training steps of SmolLM2-135M and PEFT's from the same start: how far the losses differ."""

import statistics

from bench.options import Options
from bench.results import Limit
from bench.training_step import SIDES, run_side
from eckart.demo.base import make_base

STEPS, LIMIT = 50, 1e-3


def run(options: Options) -> list[Limit]:
    base = make_base(options.work)
    curves = {
        side: run_side(base, side, "float32", "lora", 0.0, steps=STEPS, batch=1).value for side in ("peft", *SIDES)
    }
    rows = []
    for side, label in SIDES.items():
        distance = max(abs(a - b) for a, b in zip(curves["peft"], curves[side], strict=True))
        note = f"the loss falls from {curves['peft'][0]:.3f} to {statistics.mean(curves['peft'][-5:]):.3f}"
        rows.append(
            Limit(f"distance of the loss from PEFT's over {STEPS} steps: {label}", distance, LIMIT, "nats", note)
        )
    return rows

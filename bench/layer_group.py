"""Peak memory of calibrated codes and corrections for layers of Llama-3-8B's shapes, each group alone.

Takes many minutes, so it runs only when named. The worker is this file with the name of a group.
"""

import sys
import tempfile
import time
from pathlib import Path

from bench.options import Options
from bench.results import Limit
from bench.timing import run_process

PEAK_GB = 6.0
KINDS, TOKENS, RANK = 3, 512, 8
GROUPS = {
    "attention inputs": {"q_proj": (4096, 4096), "k_proj": (1024, 4096), "v_proj": (1024, 4096)},
    "MLP inputs": {"gate_proj": (14336, 4096), "up_proj": (14336, 4096)},
}


def run(_: Options) -> list[Limit]:
    """Peak memory of each group, in a process of its own."""
    limits = []
    for group in GROUPS:
        process = run_process(sys.executable, "-m", "bench.layer_group", group)
        task = f"peak memory of calibrated NF4 codes and a correction, {group} of Llama-3-8B"
        limits.append(Limit(task, process.peak_rss_bytes / 1e9, PEAK_GB, "GB", str(process.value).strip()))
    return limits


def work(group: str) -> None:
    """Quantize and correct the layers of a group one after the other, as the writer of models and `correct` do."""
    import torch
    from safetensors.torch import save_file

    from eckart.linalg import nf4
    from eckart.linalg.output_metric import Metric, damped_factor, moment_factor
    from eckart.operations.correction.work import GRADIENT_DAMPING
    from eckart.operations.model_writer.calibrated import Calibration
    from eckart.operations.moments import Moments, gradient_name, metadata, tensor_name

    generator, shapes = torch.Generator().manual_seed(0), GROUPS[group]
    first, columns = next(iter(shapes)), next(iter(shapes.values()))[1]
    tokens = {f"kind {number}": TOKENS for number in range(KINDS)}
    with tempfile.TemporaryDirectory() as folder:
        file, sums = Path(folder) / "moments.safetensors", {}
        for kind in tokens:
            inputs = torch.randn(TOKENS, columns, generator=generator)
            sums[tensor_name(kind, first)] = inputs.T @ inputs
        for name, (rows, _) in shapes.items():
            gradients = torch.randn(TOKENS, rows, generator=generator)
            sums[gradient_name(name)] = gradients.T @ gradients
        save_file(sums, file, metadata(tokens=tokens, model="", inputs=dict.fromkeys(shapes, first)))
        sums.clear()
        moments = Moments(file)
        calibration = Calibration(moments, lambda module: module)
        began = time.perf_counter()
        for name, shape in shapes.items():
            weight = torch.randn(shape, generator=generator) * 0.02
            nearest = lambda weight, importance=None: nf4.quantize(weight, importance=importance)  # noqa: E731
            stored, _ = calibration.quantize(name, weight, nearest, directions=None, generator=generator)
            error = weight - stored.dequantize(torch.float32)
            del weight, stored
            outputs = damped_factor(moments.of_gradients(name, shape[0]), GRADIENT_DAMPING)
            metric = Metric(moment_factor(moments.total(name, columns)), outputs)
            metric.best_correction(error, rank=RANK, generator=generator)
        print(f"{len(shapes)} layers, {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    work(sys.argv[1])

"""Peak memory of calibrated codes for layers of Llama-3-8B's shapes, each group of layers with the same inputs alone.

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
KINDS, TOKENS = 3, 512
GROUPS = {
    "attention inputs": {"q_proj": (4096, 4096), "k_proj": (1024, 4096), "v_proj": (1024, 4096)},
    "MLP inputs": {"gate_proj": (14336, 4096), "up_proj": (14336, 4096)},
}


def run(_: Options) -> list[Limit]:
    """Peak memory of each group, in a process of its own."""
    limits = []
    for group in GROUPS:
        process = run_process(sys.executable, "-m", "bench.layer_group", group)
        task = f"peak memory of calibrated NF4 codes, {group} of Llama-3-8B"
        limits.append(Limit(task, process.peak_rss_bytes / 1e9, PEAK_GB, "GB", str(process.value).strip()))
    return limits


def work(group: str) -> None:
    """Quantize the layers of a group one after the other, as the writer of models does."""
    import torch
    from safetensors.torch import save_file

    from eckart.linalg import nf4
    from eckart.operations.model_writer.calibrated import Calibration
    from eckart.operations.moments import Moments, metadata, tensor_name

    generator, shapes = torch.Generator().manual_seed(0), GROUPS[group]
    first, columns = next(iter(shapes)), next(iter(shapes.values()))[1]
    tokens = {f"kind {number}": TOKENS for number in range(KINDS)}
    with tempfile.TemporaryDirectory() as folder:
        file, sums = Path(folder) / "moments.safetensors", {}
        for kind in tokens:
            inputs = torch.randn(TOKENS, columns, generator=generator)
            sums[tensor_name(kind, first)] = inputs.T @ inputs
        save_file(sums, file, metadata(tokens=tokens, model="", inputs=dict.fromkeys(shapes, first)))
        sums.clear()
        calibration = Calibration(Moments(file), lambda module: module)
        began = time.perf_counter()
        for name, shape in shapes.items():
            weight = torch.randn(shape, generator=generator) * 0.02
            calibration.quantize(name, weight, nf4.quantize, directions=None, generator=generator)
        print(f"{len(shapes)} layers, {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    work(sys.argv[1])

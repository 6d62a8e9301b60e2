"""Extraction from checkpoints far larger than memory: peak memory stays constant, time grows with the bytes.

Takes minutes and 16 GB of disk, so it runs only when named.
"""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

from bench.options import Options, script
from bench.results import Limit
from bench.timing import run_process

RANK = 32
PLANTED_RANK = 8
GIGABYTES = (2, 4, 8)  # of each of the two checkpoints
PEAK_GB = 1.5
SLOWDOWN = 1.2
LLAMA_8B = {
    "self_attn.q_proj": (4096, 4096),
    "self_attn.k_proj": (1024, 4096),
    "self_attn.v_proj": (1024, 4096),
    "self_attn.o_proj": (4096, 4096),
    "mlp.gate_proj": (14336, 4096),
    "mlp.up_proj": (14336, 4096),
    "mlp.down_proj": (4096, 14336),
}
LAYER_BYTES = 2 * sum(rows * columns for rows, columns in LLAMA_8B.values())
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
}


def run(options: Options) -> list[Limit]:
    """Peak memory at every size, and the time per byte at the largest size relative to the smallest."""
    rows, seconds_per_gb = [], []
    for gigabytes in GIGABYTES:
        folder = options.work / f"synthetic-{gigabytes}gb"
        try:
            layers = round(gigabytes * 1e9 / LAYER_BYTES)
            write_pair(folder, layers)
            os.sync()
            sides = folder / "base", folder / "tuned"
            process = run_process(script("eckart"), "extract", *sides, "-o", folder / "adapter", "--rank", str(RANK))
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        read_gb = 2 * layers * LAYER_BYTES / 1e9
        seconds_per_gb.append(process.seconds / read_gb)
        task = f"peak memory of extract rank {RANK} from {read_gb:.1f} GB"
        rows.append(Limit(task, process.peak_rss_bytes / 1e9, PEAK_GB, "GB", f"{process.seconds:.0f} s, whole process"))
    slowdown = seconds_per_gb[-1] / seconds_per_gb[0]
    per_gb = ", ".join(f"{seconds:.2f}" for seconds in seconds_per_gb)
    return [*rows, Limit("time per byte, largest relative to smallest", slowdown, SLOWDOWN, "×", f"{per_gb} s/GB")]


def write_pair(folder: Path, layers: int, names: Sequence[str] = ("base", "tuned")) -> None:
    """Two sharded bfloat16 checkpoints of Llama-3-8B's shapes, whose difference has rank 8 before rounding."""
    shutil.rmtree(folder, ignore_errors=True)
    parts = {name: folder / name for name in names}
    index: dict[str, str] = {}
    for part in parts.values():
        part.mkdir(parents=True)
        (part / "config.json").write_text(json.dumps(CONFIG | {"num_hidden_layers": layers}))
    for layer in range(layers):
        file = f"model-{layer + 1:05}-of-{layers:05}.safetensors"
        sides = dict(zip(("base", "tuned"), _layer(layer, torch.Generator().manual_seed(layer)), strict=True))
        for name, part in parts.items():
            save_file(sides[name], part / file)
        index |= dict.fromkeys(sides["base"], file)
    total = {"total_size": layers * LAYER_BYTES}
    for part in parts.values():
        (part / "model.safetensors.index.json").write_text(json.dumps({"metadata": total, "weight_map": index}))


def _layer(layer: int, generator: torch.Generator) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    base, tuned = {}, {}
    for name, (rows, columns) in LLAMA_8B.items():
        weight = torch.randn(rows, columns, generator=generator).mul_(0.02).to(torch.bfloat16)
        B = torch.randn(rows, PLANTED_RANK, generator=generator)
        A = torch.randn(PLANTED_RANK, columns, generator=generator)
        key = f"model.layers.{layer}.{name}.weight"
        base[key] = weight
        # An update of a hundredth of the weights' norm: most of it survives rounding.
        tuned[key] = torch.addmm(weight.float(), B, A, alpha=2e-4 / PLANTED_RANK**0.5).to(torch.bfloat16)
    return base, tuned

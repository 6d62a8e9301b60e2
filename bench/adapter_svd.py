"""A rank-64 adapter of a 4096×4096 weight: decomposed, combined from halves, resized to rank 16; next to dense SVDs."""

import warnings
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
TRUNCATION = "squared error divided by the optimum's, minus 1"


def run(options: Options) -> list[Comparison]:
    """A dense SVD takes seconds and the same time for any input: each runs once."""
    B, A = factors()
    exact = spectra({"product": lambda: B.double() @ A.double()}, options.work / "adapter-svd.pt")["product"]
    halves = [(B[:, part], A[part]) for part in (slice(0, RANK // 2), slice(RANK // 2, RANK))]
    layer, pair, model = eckart_layer(B, A), [eckart_layer(*half) for half in halves], peft_model(halves)
    decomposed = _runs(lambda: layer.low_rank().svd()[1], QUICK_REPEATS)
    combiners = {"from factors": eckart_truncated, "eckart.combine, its error measured": eckart_combined}
    combined = {name: _runs(lambda call=call: call(pair), QUICK_REPEATS) for name, call in combiners.items()}
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
    for name, least in zip(combiners, (DENSE_RATIO, 1.0), strict=True):
        ours = Side.of(combined[name], error=excess(combined[name][-1].value.delta(), B, A, exact))
        task = f"combine two adapters of rank {RANK // 2} at rank {NEW_RANK}, {SIZE}×{SIZE}, {name}"
        met = theirs.seconds >= least * ours.seconds
        rows.append(Comparison(task, peer, ours, theirs, f"≥ {least:g}×", met, TRUNCATION))
    return [*rows, *resized(layer, exact)]


def resized(layer: Any, exact: Tensor) -> list[Comparison]:
    """PEFT has resized adapters since 0.19; it takes a dense SVD of the product."""
    from peft import convert_to_lora

    B, A = layer.lora_B, layer.lora_A
    model = peft_model([(B, A)])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Converting a PEFT adapter to LoRA that is already a LoRA adapter")
        runs = _runs(lambda: convert_to_lora(model, rank=NEW_RANK, adapter_name="0")[1], 1)
    small = {name.rpartition("lora_")[2][0]: factor for name, factor in runs[-1].value.items()}
    theirs = Side.of(runs, error=excess(small["B"] @ small["A"], B, A, exact))
    calls = {"from factors": lambda: layer.with_update(layer.low_rank().truncate(NEW_RANK)),
             "eckart.resize, its error measured": lambda: eckart_resized(layer)}  # fmt: skip
    rows = []
    for (name, call), least in zip(calls.items(), (DENSE_RATIO, 1.0), strict=True):
        runs = _runs(call, QUICK_REPEATS)
        ours = Side.of(runs, error=excess(runs[-1].value.delta(), B, A, exact))
        task = f"resize an adapter from rank {RANK} to {NEW_RANK}, {SIZE}×{SIZE}, {name}"
        met = theirs.seconds >= least * ours.seconds
        rows.append(Comparison(task, "PEFT convert_to_lora", ours, theirs, f"≥ {least:g}×", met, TRUNCATION))
    return rows


def factors() -> tuple[Tensor, Tensor]:
    """lora_B and lora_A in float32; the singular values of the product decay by a factor of about 100."""
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


def eckart_resized(layer: Any) -> Any:
    from eckart.adapter import Adapter
    from eckart.operations import resize

    return resize(Adapter({"0": layer}), rank=NEW_RANK).adapter["0"]


def peft_model(halves: Sequence[tuple[Tensor, Tensor]]) -> Any:
    """A model with one linear layer and an adapter per pair of factors."""
    from peft import LoraConfig, get_peft_model

    model = nn.Sequential(nn.Linear(SIZE, SIZE, bias=False))
    config = LoraConfig(r=len(halves[0][1]), lora_alpha=len(halves[0][1]), target_modules=["0"])
    adapted = get_peft_model(model, config, adapter_name="0")
    for number in range(1, len(halves)):
        adapted.add_adapter(str(number), config)
    layer: Any = adapted.base_model.model[0]
    for number, (B, A) in enumerate(halves):
        layer.lora_A[str(number)].weight.data.copy_(A)
        layer.lora_B[str(number)].weight.data.copy_(B)
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

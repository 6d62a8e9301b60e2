"""Initial values of factors: PiSSA and OLoRA, and `initialize`, which sets these and others.

An initial product that is not zero is subtracted from the update, which is s·(B·A − B₀·A₀): the model's outputs do not
change, and the base keeps every bit. The papers subtract B₀·A₀ from the base instead, and round it.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from eckart.errors import MismatchError, OptionError
from eckart.linalg import factorize
from eckart.nn.adapted import AdaptedModule
from eckart.nn.config import Init
from eckart.nn.factors import LoRAFactors
from eckart.nn.from_data import activation_directions, gradient_directions
from eckart.nn.injection import adapted_modules
from eckart.nn.linear import LoRALinear
from eckart.nn.loftq import quantize_around

Batches = Sequence[Mapping[str, Tensor]]

_GAMMA = 16  # of LoRA-GA's stable scale


def pissa(weight: Tensor, rank: int, scaling: float, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """Factors from the weight's leading singular triplets: scaling · B·A is its best approximation of that rank.

    Args:
        weight: shape `(out_features, in_features)`.
        rank: rank of the factors.
        scaling: scale of the product.
        generator: source of the random start of the block Krylov iteration.

    Returns:
        A `(rank, in_features)` and B `(out_features, rank)`, each with the square roots of the singular values.

    Meng, Wang & Zhang (2024), "PiSSA: Principal singular values and singular vectors adaptation".
    """
    best = factorize(weight, rank=rank, generator=generator)
    return best.lora_A * scaling**-0.5, best.lora_B * scaling**-0.5


def olora(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Factors from the QR decomposition W = Q·R: B is the first columns of Q, A the first rows of R.

    Only the leading columns are decomposed: Q's first columns depend on no others, and R's first rows are Qᵀ·W.

    Args:
        weight: shape `(out_features, in_features)`.
        rank: rank of the factors.

    Returns:
        A `(rank, in_features)` and B `(out_features, rank)`.

    Büyükakyüz (2024), "OLoRA: Orthonormal low-rank adaptation of large language models".
    """
    Q = torch.linalg.qr(weight[:, :rank].double()).Q
    return Q.T @ weight.double(), Q


def initialize(
    model: nn.Module, init: Init, *, name: str = "default", batches: Batches | None = None, seed: int = 0
) -> None:
    """Set the initial factors of a new adapter; the model's outputs do not change.

    - `zero`: as `inject` creates them.
    - `pissa`, `olora`: see these functions.
    - `loftq`: the base is quantized to NF4 and the factors compensate for the error; see `quantize_around`.
    - `eva`: A is the leading right singular vectors of each layer's inputs, B zero (Paischer et al. 2024).
    - `lora-ga`: A and B are leading singular vectors of each weight's gradient, A the first `rank` right ones, B the
      next `rank` left ones, times out_features^¼ / √16 (Wang, Yu & Li 2024).

    Args:
        model: a model with the adapter.
        init: the initialization.
        name: name of the adapter.
        batches: inputs of the model, for `eva` and `lora-ga`, which use them three or four times. For `lora-ga` they
            need `labels`, so that the model returns a `loss`.
        seed: seed of random test matrices.

    Raises:
        OptionError: batches are missing.
        MismatchError: layers do not support this initialization, or there is no such adapter.
    """
    if init == "zero":
        return
    modules = {path: module for path, module in adapted_modules(model).items() if name in module.adapters}
    factors = {path: module.factors(name) for path, module in modules.items()}
    _check(init, modules, factors, batches, name)
    generator = torch.Generator().manual_seed(seed)
    ranks = {path: each.rank for path, each in factors.items()}
    if init == "eva":
        for path, vectors in activation_directions(model, modules, ranks, batches or (), generator).items():
            factors[path].start_at(vectors, torch.zeros_like(factors[path].lora_B))
    elif init == "lora-ga":
        doubled = {path: 2 * rank for path, rank in ranks.items()}
        for path, (left, right) in gradient_directions(model, modules, doubled, batches or (), generator).items():
            size = len(left) ** 0.25 / _GAMMA**0.5
            factors[path].start_at(right[: ranks[path]] * size, left[:, ranks[path] :] * size)
    elif init == "loftq":
        for path, module in modules.items():
            quantize_around(module, factors[path])
    else:
        for path, module in modules.items():
            _start_from_weight(init, module.rows(), factors[path], generator)


def _start_from_weight(init: Init, weight: Tensor, factors: LoRAFactors, generator: torch.Generator) -> None:
    if init == "pissa":
        A, B = pissa(weight, factors.rank, factors.scaling, generator)
    else:
        A, B = olora(weight, factors.rank)
    factors.start_at(A.view_as(factors.lora_A), B.view_as(factors.lora_B))


def _check(
    init: Init,
    modules: Mapping[str, AdaptedModule],
    factors: Mapping[str, LoRAFactors],
    batches: Batches | None,
    name: str,
) -> None:
    if not modules:
        msg = f"the model has no adapter {name!r}"
        raise MismatchError(msg)
    if init in ("eva", "lora-ga") and not batches:
        msg = f"`init={init}` uses data: pass `batches` of the model's inputs"
        raise OptionError(msg)
    linear_only = init in ("eva", "lora-ga", "loftq")
    faults = [
        f"{path}: init {init} is for linear layers, this is a {each.kind}: exclude it, or use init zero"
        for path, each in factors.items()
        if linear_only and each.kind not in LoRALinear.kinds
    ]
    faults += [
        f"{path}: twice the rank is {2 * each.rank}, more than the singular vectors of its {tuple(rows.shape)} weight"
        for path, each in factors.items()
        if init == "lora-ga" and 2 * each.rank > min((rows := modules[path].rows()).shape)
    ]
    if faults:
        msg = f"these layers do not support init {init}"
        raise MismatchError.listing(msg, faults)

"""Quantizing the linear layers of a live model to four bits, in place and one by one."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from eckart.checkpoint import MatrixView, layout, select
from eckart.checkpoint.encodings.decode import decoded
from eckart.checkpoint.memory import MemoryCheckpoint
from eckart.errors import MismatchError, NotFiniteError, OptionError
from eckart.linalg import nf4
from eckart.nn.adapted import AdaptedModule
from eckart.nn.frozen import frozen_weight, is_conv1d
from eckart.nn.linear4bit import blocks_of, is_linear4bit
from eckart.nn.quantized import Nf4Linear
from eckart.nn.targets import fault_of, paths_of
from eckart.operations.quantization.fit import why_not_quantizable
from eckart.operations.quantization.plan import ALL_LINEAR


def quantize_model(
    model: nn.Module,
    *,
    target: str | Sequence[str] = ALL_LINEAR,
    exclude: str | Sequence[str] = (),
    block_size: int = 64,
    double: bool = True,
) -> list[str]:
    """Replace linear layers by layers in NF4, which compute with the dequantized weight and never train.

    Layers that share their weight (a tied output layer), that do more than a linear layer, or that transformers keeps
    in float32 are not replaced. A Linear4bit of bitsandbytes is replaced with the same codes.

    Args:
        model: any module, on any device.
        target: layers to quantize, by PEFT's rules; the output layer only by its name.
        exclude: layers not to quantize; takes precedence over `target`.
        block_size: number of values that share a scale.
        double: quantize the scales too: 0.52 bytes per parameter instead of 0.56.

    Returns:
        Paths of the replaced layers.

    Raises:
        MismatchError: a pattern matches nothing, or nothing that it matches can be quantized.
        OptionError: bitsandbytes has no such block size.
        NotFiniteError: weights contain NaN or Inf; nothing was changed.

    Dettmers et al. (2023), "QLoRA: Efficient finetuning of quantized LLMs".
    """
    if block_size not in nf4.BLOCK_SIZES:
        msg = f"`block_size` is {block_size}, but bitsandbytes supports {', '.join(map(str, nf4.BLOCK_SIZES))}"
        raise OptionError(msg)
    layers = quantizable(model, *((value,) if isinstance(value, str) else tuple(value) for value in (target, exclude)))
    _check_finite(model, layers)
    for path, all_paths in layers.items():
        packed = _in_4_bits(model.get_submodule(path), block_size=block_size, double=double)
        for each in all_paths:
            parent, _, leaf = each.rpartition(".")
            setattr(model.get_submodule(parent), leaf, packed)
    return list(layers)


def _in_4_bits(module: nn.Module, *, block_size: int, double: bool) -> Nf4Linear:
    """The same layer with its weight in NF4."""
    if is_linear4bit(module):
        blocks = blocks_of(module)
    else:
        weight = frozen_weight(module, module.weight.dtype)  # type: ignore[arg-type]
        blocks = nf4.quantize(weight, block_size=block_size, double=double)
    return Nf4Linear(blocks, module.bias).train(module.training)  # type: ignore[arg-type]


def quantizable(
    model: nn.Module, target: tuple[str, ...] = ALL_LINEAR, exclude: tuple[str, ...] = ()
) -> dict[str, tuple[str, ...]]:
    """The layers that `quantize_model` replaces, each with all its paths."""
    if any(isinstance(module, AdaptedModule) for module in model.modules()):
        msg = "the model has adapters: quantize it first, then inject"
        raise MismatchError(msg)
    for module in model.modules():
        if is_linear4bit(module):
            blocks_of(module)  # which refuses what a state dict would change
    checkpoint = decoded(MemoryCheckpoint(model))
    views = select(layout(checkpoint), target, exclude)
    everywhere = paths_of(dict(model.named_modules(remove_duplicate=False)))
    chosen, faults = {}, []
    for view in views:
        fault = why_not_quantizable(view, checkpoint.tensors[view.tensor].dtype, checkpoint.config, to="nf4")
        if fault is None:
            module = model.get_submodule(view.module)
            if isinstance(module, Nf4Linear):
                continue
            fault = _fault(model, view, module, everywhere)
            chosen |= {} if fault else {view.module: everywhere[module]}
        if fault:
            faults.append(f"{view.module}: {fault}")
    if faults and not chosen:
        msg = "none of the targeted layers can be quantized to NF4"
        raise MismatchError.listing(msg, faults)
    return chosen


def _fault(
    model: nn.Module, view: MatrixView, module: nn.Module, everywhere: Mapping[nn.Module, Sequence[str]]
) -> str | None:
    """Why a module with the weight of a linear layer cannot be replaced, or None."""
    plain = type(module).forward is nn.Linear.forward or is_conv1d(module) or is_linear4bit(module)
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    weight = cast("Tensor", module.weight)
    shared = set(view.tied_modules) - set(everywhere[module])
    rules = (
        (not plain or "forward" in vars(module), f"{type(module).__name__} is more than a linear layer"),
        (any(hooks), "it has hooks"),
        (weight.is_meta, "it has no values yet"),
        (bool(shared), f"it shares its weight with {', '.join(sorted(shared))}"),
    )
    return next((fault for applies, fault in rules if applies), None) or fault_of(model, view.module, module)


def _check_finite(model: nn.Module, paths: Iterable[str]) -> None:
    bad = []
    for path in paths:
        weight = cast("Tensor", model.get_submodule(path).weight)
        # If there is a NaN, the minimum is NaN.
        if weight.is_floating_point() and not all(math.isfinite(value) for value in torch.aminmax(weight.detach())):
            bad.append(path)
    if bad:
        msg = "weights with NaN or Inf cannot be quantized; nothing was changed"
        raise NotFiniteError.listing(msg, bad)

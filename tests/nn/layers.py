"""A layer of every kind in a model of its own, and what the NumPy reference makes of it."""

import numpy as np
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from eckart import reference
from eckart.nn import adapted_modules

KINDS = ("linear", "Conv1D", "embedding", "conv1d", "conv2d")
METHODS = {"lora": {}, "rslora": {"rslora": True}, "dora": {"method": "dora"}}
IMAGES = {"conv1d": (2, 3, 9), "conv2d": (2, 3, 7, 6)}
INPUTS, OUTPUTS, VOCABULARY = 6, 5, 11
STRIDES = {"stride": 2, "padding": 1}


class Alone(nn.Module):
    """A model that is one layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randomise(tensor, seed: int, *, scale: float = 1.0) -> None:
    """Fill a tensor in place, of any dtype, from one stream of numbers."""
    with torch.no_grad():
        tensor.copy_(torch.randn(tensor.shape, generator=seeded(seed), dtype=torch.float64) * scale)


def build(kind: str, *, bias: bool = True, dtype: torch.dtype = torch.float64) -> Alone:
    """The kind alone in a model, with random weights; a Conv1D has a bias always, an embedding never."""
    layer = {
        "linear": lambda: nn.Linear(INPUTS, OUTPUTS, bias=bias),
        "Conv1D": lambda: Conv1D(OUTPUTS, INPUTS),
        "embedding": lambda: nn.Embedding(VOCABULARY, OUTPUTS),
        "conv1d": lambda: nn.Conv1d(3, OUTPUTS, 3, bias=bias, **STRIDES),
        "conv2d": lambda: nn.Conv2d(3, OUTPUTS, (3, 2), bias=bias, **STRIDES),
    }[kind]()
    for seed, weight in enumerate(layer.parameters()):
        randomise(weight, seed)
    return Alone(layer) if dtype == torch.float32 else Alone(layer).to(dtype)


def example(kind: str, dtype: torch.dtype = torch.float64):
    """An input of the kind, with repeated tokens for an embedding."""
    if kind == "embedding":
        return torch.tensor([[4, 0, 4, 7], [10, 1, 2, 4]])
    shape = IMAGES.get(kind, (2, 4, INPUTS))
    return torch.randn(shape, generator=seeded(7), dtype=torch.float64).to(dtype).requires_grad_()


def train_a_little(model: nn.Module, name: str = "default", seed: int = 20) -> None:
    """Factors and magnitudes as training might leave them: no part is what it was at the start."""
    for offset, module in enumerate(adapted_modules(model).values()):
        factors = module.adapters[name]
        rank = factors.lora_A.shape[0]
        randomise(factors.lora_A, seed + 10 * offset, scale=factors.lora_A[0].numel() ** -0.5)
        randomise(factors.lora_B, seed + 10 * offset + 1, scale=rank**-0.5)
        if factors.magnitude is not None:
            stretch = torch.rand(factors.magnitude.shape, generator=seeded(seed), dtype=torch.float64) + 0.5
            with torch.no_grad():
                factors.magnitude.mul_(stretch)


def numpy(tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def in_rows(layer: nn.Module, tensor) -> np.ndarray:
    """An output, or its gradient, as the reference has it: a sample a row."""
    if isinstance(layer, nn.Conv1d | nn.Conv2d):
        tensor = tensor.movedim(1, -1)
    return numpy(tensor).reshape(-1, tensor.shape[-1])


def reference_of(module, name: str = "default") -> reference.LoRA | reference.DoRA:
    """The reference layer with the numbers of an adapted module."""
    layer, factors = module.base_layer, module.adapters[name]
    weight = numpy(layer.weight)
    lora = reference.LoRA(
        weight=weight.T if isinstance(layer, Conv1D | nn.Embedding) else weight.reshape(len(weight), -1),
        lora_A=numpy(factors.lora_A.flatten(1)),
        lora_B=numpy(factors.lora_B.flatten(1)),
        alpha=factors.alpha,
        rslora=factors.rslora,
        lora_bias=None if factors.lora_bias is None else numpy(factors.lora_bias),
        dropout=factors.dropout,
    )
    bias = getattr(layer, "bias", None)
    bias = None if bias is None else numpy(bias)
    if factors.magnitude is None:
        lora.bias = bias
        return lora
    return reference.DoRA(lora, numpy(factors.magnitude).reshape(-1), bias)


def gather_of(layer: nn.Module, x) -> reference.Gather | None:
    """The windows of a convolution; other kinds read their rows as they are."""
    if not isinstance(layer, nn.Conv1d | nn.Conv2d):
        return None
    return reference.patches(tuple(x.shape), layer.kernel_size, **STRIDES)

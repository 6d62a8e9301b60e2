"""bfloat16 on processors with instructions for it and without: the same numbers, nearer to the exact ones without."""

import pytest
import torch
from torch import nn

from eckart.nn import LoRAConfig, adapted_modules, inject, processor, quantize_model
from eckart.nn.head_loss import head_loss

from .layers import seeded

ROUNDING = 2.0**-8  # of bfloat16, relative
CONFIG = LoRAConfig(rank=4, alpha=8, dropout=0.0)


@pytest.fixture(params=[1.0, 4.0], ids=["emulates", "multiplies"])
def roundings(request, monkeypatch) -> float:
    """How many roundings the largest numbers may be off."""
    monkeypatch.setattr(processor, "multiplies_bfloat16", lambda: request.param > 1)
    return request.param


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=seeded(seed)).bfloat16()


@pytest.mark.parametrize("autocast", [False, True], ids=["plain", "autocast"])
def test_a_layer_and_its_gradients(roundings, autocast):
    model = nn.Sequential(nn.Linear(64, 48)).bfloat16()
    inject(model, CONFIG)
    factors = adapted_modules(model)["0"].factors("default")
    with torch.no_grad():
        factors.lora_A.copy_(random(4, 64, seed=1))
        factors.lora_B.copy_(random(48, 4, seed=2))
    x, g = random(32, 64, seed=3).requires_grad_(), random(32, 48, seed=4)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = model(x)
    y.backward(g)
    W, b, A, B = (t.detach().double() for t in (model[0].weight, model[0].bias, factors.lora_A, factors.lora_B))
    exact, gradient = x.detach().double(), g.double()
    wanted = {
        "y": (y, exact @ W.T + b + 2 * exact @ A.T @ B.T),
        "x": (x.grad, gradient @ W + 2 * gradient @ B @ A),
        "A": (factors.lora_A.grad, 2 * (gradient @ B).T @ exact),
        "B": (factors.lora_B.grad, 2 * gradient.T @ (exact @ A.T)),
    }
    for name, (found, right) in wanted.items():
        allowed = (2 if name == "B" else 1) * roundings * ROUNDING * right.abs().max()  # B's from a rounded x·Aᵀ
        assert (found.double() - right).abs().max() <= allowed, name
    assert y.dtype == x.grad.dtype == torch.bfloat16


def test_a_layer_in_four_bits(roundings):
    model = nn.Sequential(nn.Linear(64, 48)).bfloat16()
    quantize_model(model)
    weight = model[0].blocks.dequantize().double()
    x, g = random(32, 64, seed=3).requires_grad_(), random(32, 48, seed=4)
    y = model(x)
    y.backward(g)
    for found, right in ((y, x.detach().double() @ weight.T + model[0].bias.double()), (x.grad, g.double() @ weight)):
        assert (found.double() - right).abs().max() <= roundings * ROUNDING * right.abs().max()


def test_the_loss_behind_a_head(roundings):
    hidden, weight = random(2, 9, 16, seed=1).requires_grad_(), random(97, 16, seed=2)
    labels = torch.randint(97, (2, 9), generator=seeded(3))
    logits = nn.functional.linear(hidden.double(), weight.double())[:, :-1].flatten(0, 1)
    right = nn.functional.cross_entropy(logits, labels[:, 1:].flatten())
    (gradient,) = torch.autograd.grad(right, hidden)
    loss = head_loss(hidden, weight, labels)
    loss.backward()
    assert loss.item() == pytest.approx(right.item(), rel=1e-6 if roundings == 1 else 2e-2)
    assert (hidden.grad - gradient).double().abs().max() <= 2 * roundings * ROUNDING * gradient.abs().max()

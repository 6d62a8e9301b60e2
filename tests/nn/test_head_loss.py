"""The loss behind a frozen output layer: that of all logits, with the same gradient."""

import pytest
import torch
from torch import nn

from eckart.nn import head_loss as module
from eckart.nn.head_loss import head_loss

from .layers import seeded

VOCABULARY, WIDTH = 97, 16
DTYPES = {torch.float64: 1e-6, torch.float32: 1e-6, torch.bfloat16: 2e-2, torch.float16: 4e-3}


def example(dtype=torch.float64, *, ignored=0):
    hidden = torch.randn(3, 11, WIDTH, generator=seeded(0), dtype=torch.float64).to(dtype).requires_grad_()
    weight = torch.randn(VOCABULARY, WIDTH, generator=seeded(1), dtype=torch.float64).to(dtype)
    labels = torch.randint(0, VOCABULARY, (3, 11), generator=seeded(2))
    labels.view(-1)[:ignored] = -100
    return hidden, weight, labels


def dense_loss(hidden, weight, labels, bias=None):
    logits = nn.functional.linear(hidden, weight, bias)[:, :-1].flatten(0, 1)
    return nn.functional.cross_entropy(logits.double(), labels[:, 1:].flatten(), ignore_index=-100)


@pytest.mark.parametrize("ignored", [0, 5, 14, 32])
@pytest.mark.parametrize("piece", [1, 3 * VOCABULARY, 2**23])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_loss_and_gradient_are_those_of_all_logits(dtype, piece, ignored, monkeypatch):
    monkeypatch.setattr(module, "_PIECE_ENTRIES", piece)
    hidden, weight, labels = example(dtype, ignored=ignored)
    expected = dense_loss(hidden.double(), weight.double(), labels)
    (gradient,) = torch.autograd.grad(expected, hidden)
    loss = head_loss(hidden, weight, labels)
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=DTYPES[dtype])
    assert (hidden.grad - gradient).abs().max() <= DTYPES[dtype] * gradient.abs().max()


def test_a_bias_counts():
    hidden, weight, labels = example()
    bias = torch.randn(VOCABULARY, generator=seeded(3), dtype=torch.float64)
    assert head_loss(hidden, weight, labels, bias=bias).item() == pytest.approx(
        dense_loss(hidden, weight, labels, bias).item(), rel=1e-6
    )


def test_a_count_divides_instead_of_the_tokens():
    hidden, weight, labels = example()
    whole, tokens = head_loss(hidden, weight, labels), labels[:, 1:].numel()
    assert head_loss(hidden, weight, labels, count=2 * tokens).item() == pytest.approx(whole.item() / 2)


@pytest.mark.parametrize("size", [1e4, 1e-4])
def test_extreme_logits_keep_a_finite_loss(size):
    hidden, weight, labels = example(torch.float32)
    scaled = (hidden.detach() * size).requires_grad_()
    loss = head_loss(scaled, weight, labels)
    loss.backward()
    assert loss.item() == pytest.approx(dense_loss(scaled.double(), weight.double(), labels).item(), rel=1e-5)
    assert torch.isfinite(scaled.grad).all()


def test_no_token_that_counts_gives_zero():
    hidden, weight, labels = example(ignored=33)
    loss = head_loss(hidden, weight, labels)
    loss.backward()
    assert loss.item() == 0
    assert not hidden.grad.any()

"""Adapters with random factors of every kind, and what they add as dense float64 matrices."""

import torch
from torch import Tensor

from eckart.adapter import Adapter, AdapterLayer

SHAPES = {"linear": (40, 30), "conv1d": (30, 40), "embedding": (50, 24), "conv": (20, 27), "expert": (24, 18)}


def drawn(kind="linear", rank=6, seed=0, *, shape=None, alpha=16.0, dtype=torch.float32, scale=1.0, **fields):
    """A layer of random factors; of an embedding `shape` is (vocabulary, dimension), else (out, in)."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = shape or SHAPES[kind]
    left = (torch.randn(rows, rank, generator=generator, dtype=torch.float64) * scale).to(dtype)
    right = torch.randn(rank, columns, generator=generator, dtype=torch.float64).to(dtype)
    A, B = (left.T.contiguous(), right.T.contiguous()) if kind == "embedding" else (right, left)
    if kind == "conv":
        A, B = A.reshape(rank, -1, 3, 3), B[:, :, None, None]
    if fields.pop("dora", False):
        fields["magnitude"] = torch.rand(columns if kind == "embedding" else rows, generator=generator) + 0.5
    return AdapterLayer(A, B, alpha, kind=kind, **fields)


def dense(layer: AdapterLayer) -> Tensor:
    """scaling · B · A by definition, in float64, as `low_rank` lays it."""
    scaling = layer.alpha / (layer.rank**0.5 if layer.rslora else layer.rank)
    product = scaling * (layer.lora_B.double().flatten(1) @ layer.lora_A.double().flatten(1))
    return product.T if layer.kind == "embedding" else product


def adapter_of(**layers: AdapterLayer) -> Adapter:
    return Adapter(layers)


def same(first: AdapterLayer, second: AdapterLayer) -> bool:
    """Whether two layers are one, bit for bit."""
    ours, theirs = first.tensors(), second.tensors()
    return (
        (first.alpha, first.rslora, first.kind) == (second.alpha, second.rslora, second.kind)
        and ours.keys() == theirs.keys()
        and all(ours[key].dtype == theirs[key].dtype and torch.equal(ours[key], theirs[key]) for key in ours)
    )

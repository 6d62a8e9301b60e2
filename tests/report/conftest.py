"""Analyses to draw: a model of three layers, its fine-tune, and an adapter of it."""

import pytest
import torch

from eckart.adapter import Adapter, AdapterLayer
from eckart.operations import Analysis, analyze

SHAPES = {"self_attn.q_proj": (48, 32), "self_attn.v_proj": (16, 32), "mlp.down_proj": (32, 64)}
LAYERS = 8


def weights(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    names = [(f"model.layers.{layer}.{kind}", shape) for layer in range(LAYERS) for kind, shape in SHAPES.items()]
    return {f"{name}.weight": torch.randn(shape, generator=generator) for name, shape in names}


@pytest.fixture(scope="session")
def of_weights() -> Analysis:
    return analyze(
        weights(0) | {"model.embed_tokens.weight": torch.randn(100, 32), "model.norm.weight": torch.ones(32)}
    )


@pytest.fixture(scope="session")
def of_update() -> Analysis:
    """In bfloat16, with one matrix unchanged; layer by layer the update gains rank."""
    base = {name: weight.to(torch.bfloat16) for name, weight in weights(1).items()}
    tuned = dict(base)
    for name, change in weights(2).items():
        U, S, Vh = torch.linalg.svd(change, full_matrices=False)
        kept = 2 + int(name.split(".")[2])
        tuned[name] = (base[name].float() + 0.3 * U[:, :kept] * S[:kept] @ Vh[:kept]).to(torch.bfloat16)
    still = "model.layers.7.mlp.down_proj.weight"
    return analyze(tuned | {still: base[still].clone()}, base)


@pytest.fixture(scope="session")
def of_adapter() -> Analysis:
    generator = torch.Generator().manual_seed(3)
    layers = {
        f"model.layers.{layer}.self_attn.q_proj": AdapterLayer(
            lora_A=torch.randn(4, 32, generator=generator), lora_B=torch.randn(48, 4, generator=generator), alpha=8
        )
        for layer in range(LAYERS)
    }
    return analyze(Adapter(layers))

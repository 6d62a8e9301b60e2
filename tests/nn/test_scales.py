"""Adapted layers and what is recorded of them, on weights of any size: right to rounding, never NaN or zero."""

import pytest
import torch
from torch import nn

from eckart.nn import LoRAConfig, adapter_of, inject, merge_weights
from eckart.training.dynamics import DynamicsRecorder

SCALES = [1e-30, 1e-20, 1.0, 1e20, 1e30]
METHODS = {
    "lora": {},
    "pissa": {"init": "pissa"},
    "olora": {"init": "olora"},
    "loftq": {"init": "loftq"},
    "dora": {"method": "dora"},
}


def adapted(scale, dtype, options):
    """A layer of that scale with an update of a tenth of its size, and its weight."""
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(24, 32, bias=False, dtype=dtype)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(32, 24, generator=generator) * scale)
    model = nn.Sequential(layer)
    weight = layer.weight.detach().double()
    inject(model, LoRAConfig(rank=4, alpha=4, target=["0"], **options))
    factors = model[0].factors("default")
    with torch.no_grad():
        size = factors.lora_B.norm() / 10 if factors.lora_B.any() else factors.lora_A.norm() * scale / 10
        step = torch.randn(factors.lora_B.shape, generator=generator).double()
        factors.lora_B.add_((step * float(size) / step.norm()).to(factors.lora_B))
    return model, weight


@pytest.mark.parametrize("options", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("scale", SCALES)
def test_outputs_gradients_merges_and_records_are_those_of_the_dense_weight(scale, dtype, options):
    model, weight = adapted(scale, dtype, options)
    x = torch.randn(8, 24, generator=torch.Generator().manual_seed(1)).to(dtype)
    layer, rounding = adapter_of(model, "default")["0"], 4 * torch.finfo(dtype).eps
    changed = weight + layer.low_rank().dense().double()
    if layer.magnitude is not None:
        changed *= (layer.magnitude.double() / changed.norm(dim=1))[:, None]
    expected = x.double() @ changed.T

    y = model(x)
    assert float((y.detach().double() - expected).norm() / expected.norm()) < rounding
    (y.double() / scale).square().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    assert model[0].factors("default").lora_B.grad.any()

    recorder = DynamicsRecorder(model, directions=4)
    recorder.record(model, 0)
    recorded, update = recorder.dynamics.layers[0], layer.low_rank().dense().double()
    assert recorded.base_norm == pytest.approx(float(weight.norm()), rel=1e-5)
    assert recorded.norm[0] == pytest.approx(float(update.norm()), rel=1e-5)
    singular = torch.linalg.svdvals(update / update.norm()) * update.norm()
    assert recorded.singular_values[0] == pytest.approx(singular[: len(recorded.singular_values[0])].tolist(), rel=1e-4)
    assert recorded.outputs.share[0] == pytest.approx(_share(weight, update), rel=1e-3)

    merge_weights(model)
    assert float((model(x).detach().double() - expected).norm() / expected.norm()) < rounding


def _share(weight, update):
    """The share of an update's energy in the leading four output directions of the weight."""
    leading = torch.linalg.svd(weight / weight.norm())[0][:, :4]
    return float(((leading.T @ (update / update.norm())).norm()) ** 2)

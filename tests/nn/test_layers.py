"""Every kind of layer against the NumPy reference: outputs, and gradients of all that trains and of the input."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

import eckart
from eckart import reference
from eckart.nn.dropout import draw
from eckart.nn.targets import WRAPPERS

from .layers import (
    INPUTS,
    KINDS,
    METHODS,
    Alone,
    build,
    example,
    gather_of,
    in_rows,
    numpy,
    randomise,
    reference_of,
    seeded,
    train_a_little,
)

P = 0.375  # a multiple of 1/65536, which the CPU's dropout keeps exactly
# What rounding may cost, relative to the norm of the whole tensor.
TOLERANCE = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.float16: 1.5e-3}


def adapted(kind, method="lora", *, bias=True, dropout=0.0, dtype=torch.float64, trains="none"):
    """One layer in a model, with an adapter in the midst of its training."""
    model = build(kind, bias=bias, dtype=dtype)
    config = eckart.LoRAConfig(rank=3, alpha=6, dropout=dropout, target="layer", bias=trains, **METHODS[method])
    eckart.inject(model, config)
    train_a_little(model)
    return model


def error(found, expected):
    """Relative to the norm of what is expected."""
    return float(np.linalg.norm(numpy(found).reshape(expected.shape) - expected) / np.linalg.norm(expected))


def error_of_output(model, x):
    """Of one layer beside its reference, where nothing is dropped."""
    layer = model.layer.base_layer
    return error(torch.from_numpy(in_rows(layer, model(x))), reference_of(model.layer).forward(rows_of(layer, x)))


def rows_of(layer, x):
    if isinstance(layer, nn.Embedding):
        return reference.one_hot(x.numpy(), layer.num_embeddings)
    windows = gather_of(layer, x)
    return numpy(x).reshape(-1, x.shape[-1]) if windows is None else windows.take(numpy(x))


def keep_of(layer, x, mask):
    """A mask of inputs as the reference has it; tokens are not dropped."""
    if mask is None or isinstance(layer, nn.Embedding):
        return None
    windows = gather_of(layer, x)
    return mask.reshape(-1, mask.shape[-1]).numpy() if windows is None else windows.take(mask.numpy())


@pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("dropout", [0.0, P])
@pytest.mark.parametrize("trains", ["no bias", "none", "all"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_outputs_and_gradients_are_those_of_the_reference(kind, method, trains, dropout, dtype):
    bias = trains != "no bias"
    model = adapted(kind, method, bias=bias, dropout=dropout, dtype=dtype, trains=trains if bias else "none")
    module, x = model.layer, example(kind, dtype)
    layer, factors = module.base_layer, module.adapters["default"]
    torch.manual_seed(0)
    mask = draw(x, dropout).mask if dropout else None
    torch.manual_seed(0)
    y = model(x)
    assert y.dtype == dtype
    grad = torch.randn(y.shape, generator=seeded(3), dtype=torch.float64).to(dtype)
    y.backward(grad)

    expected, rows, keep = reference_of(module), rows_of(layer, x), keep_of(layer, x, mask)
    limit = TOLERANCE[dtype]
    assert error(torch.from_numpy(in_rows(layer, y)), expected.forward(rows, keep=keep)) < limit
    wanted = expected.backward(rows, in_rows(layer, grad), keep=keep)
    assert error(factors.lora_A.grad, wanted.lora_A) < limit
    assert error(factors.lora_B.grad, wanted.lora_B) < limit
    if method == "dora":
        assert error(factors.magnitude.grad, wanted.magnitude) < limit
    if kind != "embedding":
        windows = gather_of(layer, x)
        assert error(x.grad, wanted.x if windows is None else windows.put(wanted.x)) < limit
        if trains == "all":
            assert error(layer.bias.grad, wanted.bias) < limit
    assert layer.weight.grad is None


def as_function(model, kind):
    """The model as a function of all that has a gradient, and where to take it: parameters first, then the input."""
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    x = example(kind)

    def outputs(*values):
        parameters = dict(zip(names, values, strict=False))
        return torch.func.functional_call(model, parameters, values[len(names) :] or (x,))

    parameters = [p for p in model.parameters() if p.requires_grad]
    return outputs, parameters if kind == "embedding" else [*parameters, x]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("trains", ["none", "all"])
def test_gradients_are_those_of_finite_differences(kind, trains):
    outputs, inputs = as_function(adapted(kind, trains=trains), kind)
    assert len(inputs) == (2 if kind == "embedding" else 3 + (trains == "all"))
    assert torch.autograd.gradcheck(outputs, inputs)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_a_new_adapter_changes_nothing(kind, method, dtype):
    model, x = build(kind, dtype=dtype), example(kind, dtype)
    before, limit = model(x), _rounding_limit(model, x)
    eckart.inject(model, eckart.LoRAConfig(rank=3, dropout=0.5, target="layer", **METHODS[method]))
    assert bool(((model(x) - before).abs() <= limit).all())


def _rounding_limit(model, x):
    """How far two float sums of the same products can be apart in any order: 2·(n + 1)·u·Σ|x·w|, with u = eps / 2."""
    absolute = copy.deepcopy(model)
    for parameter in absolute.parameters():
        parameter.data.abs_()
    weights = [parameter for parameter in absolute.parameters() if parameter.ndim > 1]
    terms = max(weight.numel() // len(weight) for weight in weights) + 1  # with the bias
    return (terms + 1) * torch.finfo(weights[0].dtype).eps * absolute(x.abs())


@pytest.mark.parametrize("kind", KINDS)
def test_second_derivatives_are_right_or_refused(kind):
    outputs, inputs = as_function(adapted(kind, trains="all"), kind)
    try:
        torch.autograd.grad(outputs(*inputs).pow(3).sum(), inputs, create_graph=True)[1].sum().backward()
    except RuntimeError as refusal:
        assert "once_differentiable" in str(refusal)  # noqa: PT017
    else:
        assert torch.autograd.gradgradcheck(outputs, inputs)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 3, padding="same", dilation=2),
        nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(0, 1)),
        nn.Conv3d(2, 5, 2, dtype=torch.float64),
        nn.Conv1d(4, 6, 1),
    ],
    ids=str,
)
@pytest.mark.parametrize("method", METHODS)
def test_convolutions_of_any_geometry_compute_as_their_merged_weight(layer, method):
    model = Alone(layer).double()
    for seed, weight in enumerate(layer.parameters()):
        randomise(weight, seed)
    shape = (2, layer.in_channels, *(6 for _ in layer.kernel_size))
    x = torch.randn(shape, generator=seeded(1), dtype=torch.float64)
    eckart.inject(model, eckart.LoRAConfig(rank=2, alpha=4, target="layer", **METHODS[method]))
    train_a_little(model)
    found = model(x)
    expected = reference_of(model.layer)
    eckart.eject(model)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(expected.merge()).reshape(layer.weight.shape))
    torch.testing.assert_close(found, model(x), rtol=1e-12, atol=1e-12)


class Standardised(nn.Conv2d):
    """A convolution of another function: its weight is standardised at every pass."""

    def forward(self, x):
        mean, deviation = self.weight.mean((1, 2, 3), keepdim=True), self.weight.std((1, 2, 3), keepdim=True)
        return nn.functional.conv2d(x, (self.weight - mean) / deviation, self.bias, self.stride, self.padding)


class Doubled(nn.Linear):
    """A linear layer of another function."""

    def forward(self, x):
        return 2 * nn.functional.linear(x, self.weight, self.bias)


@pytest.mark.parametrize("layer", [Standardised(3, 5, 3, padding=1), Doubled(INPUTS, 5)], ids=["conv", "linear"])
def test_a_layer_that_computes_otherwise_keeps_its_own_function(layer):
    model = Alone(layer).double()
    x = example("conv2d") if isinstance(layer, nn.Conv2d) else example("linear")
    before = model(x)
    eckart.inject(model, eckart.LoRAConfig(rank=2, target="layer"))
    torch.testing.assert_close(model(x), before, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 2])
def test_hooks_on_the_base_layer_run_and_may_change_its_output(kind, count):
    model, x = build(kind), example(kind)
    seen = []
    model.layer.register_forward_hook(lambda module, inputs, output: seen.append(1) or 2 * output)
    before = model(x)
    for name in ("first", "second")[:count]:
        eckart.inject(model, eckart.LoRAConfig(rank=2, target="layer"), name=name)
    eckart.set_adapters(model, dict.fromkeys(("first", "second")[:count], 1.0))
    torch.testing.assert_close(model(x), before, rtol=1e-12, atol=1e-12)
    assert len(seen) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_dora_measures_the_weights_that_are_there_now(kind):
    model, x = adapted(kind, "dora"), example(kind)
    model(x)
    with torch.no_grad():
        model.layer.base_layer.weight.mul_(3).add_(0.1)
    assert error_of_output(model, x) < 1e-14


@pytest.mark.parametrize("kind", ["linear", "Conv1D"])
@pytest.mark.parametrize("shape", [(INPUTS,), (0, INPUTS), (1, 1, 1, INPUTS), (3, 0, INPUTS)], ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_inputs_of_any_number_of_axes_even_empty_ones_pass(kind, shape, method):
    model = adapted(kind, method, dropout=P).train()
    x = torch.ones(shape, dtype=torch.float64, requires_grad=True)
    y = model(x)
    assert y.shape == (*shape[:-1], 5)
    y.sum().backward()
    assert x.grad.shape == shape
    assert model.layer.adapters["default"].lora_A.grad.isfinite().all()


def test_inputs_that_are_not_contiguous_are_read_as_they_lie():
    model = adapted("linear", dropout=P)
    x = torch.randn(INPUTS, 4, 3, generator=seeded(0), dtype=torch.float64)
    torch.manual_seed(1)
    strided = model(x.permute(2, 1, 0))
    torch.manual_seed(1)
    torch.testing.assert_close(strided, model(x.permute(2, 1, 0).contiguous()), rtol=0, atol=0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_in_evaluation_nothing_is_dropped(kind, method):
    model, x = adapted(kind, method, dropout=P).eval(), example(kind)
    torch.testing.assert_close(model(x), model(x), rtol=0, atol=0)
    assert error_of_output(model, x) < 1e-14


@pytest.mark.parametrize("probability", [1e-6, 0.05, 0.5, 0.9, 1 - 1e-6])
def test_dropout_keeps_the_share_it_says_and_entries_are_independent(probability):
    torch.manual_seed(0)
    count = 2**20
    drawn = draw(torch.empty(count), probability)
    kept = drawn.mask.double().mean().item()
    spread = math.sqrt(drawn.keep * (1 - drawn.keep) / count)
    assert abs(kept - drawn.keep) < 5 * spread
    assert abs(drawn.keep - (1 - probability)) <= 1 / 65536
    if 0.05 <= probability <= 0.95:
        for lag in (1, 2, 3, 4, 8):
            centred = drawn.mask.double() - drawn.keep
            correlation = (centred[lag:] * centred[:-lag]).mean().item() / (drawn.keep * (1 - drawn.keep))
            assert abs(correlation) < 5 / math.sqrt(count)


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3,), (7, 5), (2, 3, 5)], ids=str)
def test_dropout_masks_any_shape_and_repeats_with_the_seed(shape):
    masks = []
    for _ in range(2):
        torch.manual_seed(3)
        masks.append(draw(torch.empty(shape), 0.5).mask)
    assert masks[0].shape == shape
    assert torch.equal(*masks)


def test_factors_are_float32_with_narrow_weights_and_float64_with_wide_ones():
    for dtype, wanted in ((torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64,) * 2):
        model = adapted("linear", "dora", dtype=dtype)
        factors = model.layer.adapters["default"]
        assert {p.dtype for p in factors.parameters()} == {wanted}


def test_scaling_is_alpha_over_rank_or_over_its_root():
    for method, wanted in (("lora", 2.0), ("rslora", 6 / math.sqrt(3)), ("dora", 2.0)):
        factors = adapted("linear", method).layer.adapters["default"]
        assert (factors.rank, factors.alpha) == (3, 6)
        assert factors.scaling == pytest.approx(wanted, rel=1e-15)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_factors_that_start_elsewhere_take_their_start_off_the_update(kind, method):
    model, x = build(kind), example(kind)
    before = model(x)
    eckart.inject(model, eckart.LoRAConfig(rank=3, alpha=6, target="layer", **METHODS[method]))
    factors = model.layer.adapters["default"]
    A, B = (torch.randn(t.shape, generator=seeded(5), dtype=torch.float64) for t in (factors.lora_A, factors.lora_B))
    factors.start_at(A, B)
    torch.testing.assert_close(model(x), before, rtol=1e-12, atol=1e-12)
    train_a_little(model)
    update = model.layer.layer("default")
    product = factors.lora_B.flatten(1) @ factors.lora_A.flatten(1) - B.flatten(1) @ A.flatten(1)
    found = update.low_rank().dense()
    torch.testing.assert_close(found.T if kind == "embedding" else found, factors.scaling * product)
    y = model(x)
    y.pow(2).sum().backward()
    grads = [p.grad.clone() for p in factors.parameters()]

    again = build(kind)
    eckart.inject_adapter(again, eckart.adapter_of(model))
    torch.testing.assert_close(again(x), y, rtol=1e-12, atol=1e-12)
    again(x).pow(2).sum().backward()
    doubled = again.layer.adapters["default"]
    for grad, twice, axis in zip(grads, (doubled.lora_A.grad, doubled.lora_B.grad), (0, 1), strict=False):
        torch.testing.assert_close(grad, twice.narrow(axis, 0, 3), rtol=1e-11, atol=1e-11)


def test_every_kind_that_is_adapted_is_among_those_tested_here():
    kinds = {kind for wrapper in WRAPPERS for kind in wrapper.kinds}
    assert {adapted(kind).layer.layer("default").kind for kind in KINDS} == kinds

"""Adapters under autocast and activation checkpointing, in narrow dtypes, and with fixed seeds."""

import contextlib

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

import eckart
from eckart.nn import adapted_modules

from .layers import KINDS, METHODS, Alone, build, example, randomise, seeded, train_a_little
from .models import TOKENS, gpt2, llama, loss_of, trainable


def adapted(kind, method, *, dtype=torch.float32, dropout=0.0):
    model = build(kind, dtype=dtype)
    eckart.inject(model, eckart.LoRAConfig(rank=3, alpha=6, target="layer", dropout=dropout, **METHODS[method]))
    train_a_little(model)
    return model


def trained_grads(model):
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.requires_grad}


def relative(found, expected):
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backward_inside", [True, False])
def test_under_autocast_a_layer_gives_what_its_base_gives_and_gradients_stay_float32(kind, method, backward_inside):
    model, plain, wide = adapted(kind, method), build(kind, dtype=torch.float32), adapted(kind, method)
    x = example(kind, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y, base = model(x), plain(x)
        assert y.dtype == base.dtype
        if backward_inside:
            y.float().pow(2).sum().backward()
    if not backward_inside:
        y.float().pow(2).sum().backward()
    wide(x.detach()).pow(2).sum().backward()
    assert relative(y, wide(x)) < 1e-2
    for name, grad in trained_grads(model).items():
        assert grad.dtype == torch.float32
        assert relative(grad, trained_grads(wide)[name]) < 2e-2, name
    if kind != "embedding":
        assert x.grad.dtype == torch.float32


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("architecture", [llama, gpt2])
def test_whole_models_train_under_autocast(architecture, dtype, method):
    model, wide = architecture().to(dtype), architecture().to(dtype).double()
    for each in (model, wide):
        config = eckart.LoRAConfig(rank=2, alpha=4, target=("all-linear", ".*(wte|embed_tokens)"), **METHODS[method])
        eckart.inject(each, config)
        train_a_little(each)
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_of(model)
    loss.backward()
    expected = loss_of(wide)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=2e-2)
    everything = [torch.cat([g.flatten().double() for g in trained_grads(each).values()]) for each in (model, wide)]
    assert relative(*everything) < 0.15
    assert {grad.dtype for grad in trained_grads(model).values()} == {torch.float32}


# Reentrant checkpointing needs an input with a gradient, which tokens are not.
CHECKPOINTED = [(kind, False) for kind in KINDS] + [(kind, True) for kind in KINDS if kind != "embedding"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("kind", "use_reentrant"), CHECKPOINTED)
def test_checkpointing_changes_neither_outputs_nor_gradients(kind, method, use_reentrant):
    model, x = adapted(kind, method, dtype=torch.float64, dropout=0.5), example(kind)
    results = []
    for through in (lambda x: checkpoint(model, x, use_reentrant=use_reentrant), model):
        model.zero_grad()
        if x.is_floating_point():
            x.grad = None
        torch.manual_seed(0)
        y = through(x)
        y.pow(2).sum().backward()
        results.append([y.detach(), *trained_grads(model).values(), *([x.grad] if x.is_floating_point() else [])])
    for found, expected in zip(*results, strict=True):
        assert torch.equal(found, expected)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("method", ["lora", "dora"])
def test_a_checkpointed_model_has_the_gradients_of_a_plain_one(method, autocast, use_reentrant):
    results = []
    for checkpointed in (True, False):
        model = llama(dtype=torch.float32)
        eckart.inject(model, eckart.LoRAConfig(rank=2, alpha=4, dropout=0.25, method=method))
        train_a_little(model)
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
            model.enable_input_require_grads()
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16) if autocast else contextlib.nullcontext():
            loss = loss_of(model.train())
        loss.backward()
        results.append((loss.detach(), trained_grads(model)))
    (loss, grads), (expected, wanted) = results
    assert torch.equal(loss, expected)
    assert grads.keys() == wanted.keys()
    assert all(torch.equal(grads[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["linear", "Conv1D"])
def test_autograd_holds_the_input_and_thin_products_of_a_linear_layer_and_no_copy_of_either(kind, method):
    model = adapted(kind, method, dropout=0.5)
    x, held = example(kind, torch.float32), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: held.append(t) or t, lambda t: t):
        model(x)
    shapes = [tuple(t.shape) for t in held if t.data_ptr() != x.data_ptr() and t.numel() > 3 * x.shape[-1]]
    assert shapes == ([(8, 3), (8, 5)] if method == "dora" else [(8, 3)])  # of DoRA the output too, for its magnitude


def test_no_gradient_is_made_where_none_is_asked():
    model, x = adapted("linear", "dora", dropout=0.5), example("linear", torch.float32)
    with torch.no_grad():
        assert not model(x).requires_grad
    with torch.inference_mode():
        assert not model(x.detach()).requires_grad
    eckart.set_adapters(model, {})
    assert not model(x.detach()).requires_grad


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_weights_made_under_inference_mode_are_adapted_all_the_same(method):
    with torch.inference_mode():
        model = build("linear", dtype=torch.float32)
    x = example("linear", torch.float32).detach()
    expected = adapted("linear", method)(x)
    with torch.inference_mode():
        eckart.inject(model, eckart.LoRAConfig(rank=3, alpha=6, target="layer", method=method))
        train_a_little(model)
        torch.testing.assert_close(model(x), expected, rtol=1e-6, atol=1e-6)


def test_frozen_adapters_pass_the_gradient_of_the_input_on():
    model, x = adapted("linear", "lora", dtype=torch.float64), example("linear")
    model(x).sum().backward()
    frozen, again = build("linear"), example("linear")
    eckart.inject_adapter(frozen, eckart.adapter_of(model), trainable=False)
    frozen(again).sum().backward()
    assert not trainable(frozen)
    torch.testing.assert_close(again.grad, x.grad, rtol=0, atol=0)


def test_gradients_accumulate_over_batches():
    model = adapted("linear", "dora", dtype=torch.float64)
    batches = [torch.randn(3, 6, generator=seeded(seed), dtype=torch.float64) for seed in range(3)]
    for batch in batches:
        model(batch).pow(2).sum().backward()
    accumulated = trained_grads(model)
    model.zero_grad()
    model(torch.cat(batches)).pow(2).sum().backward()
    for name, grad in trained_grads(model).items():
        torch.testing.assert_close(accumulated[name], grad, rtol=1e-12, atol=1e-12)


def test_generation_with_an_adapter_is_that_of_the_merged_model():
    model = llama()
    eckart.inject(model, eckart.LoRAConfig(rank=2, alpha=4))
    train_a_little(model)
    model.eval()
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    expected = model.generate(TOKENS, **options)
    eckart.merge_weights(model)
    assert torch.equal(model.generate(TOKENS, **options), expected)


@pytest.mark.parametrize("threads", [1, 2])
def test_the_same_seed_trains_to_the_same_bits(threads):
    before, losses = torch.get_num_threads(), []
    torch.set_num_threads(threads)
    try:
        for _ in range(2):
            torch.manual_seed(1)
            model = llama(dtype=torch.float32)
            eckart.inject(model, eckart.LoRAConfig(rank=2, dropout=0.1), seed=3)
            optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
            torch.manual_seed(2)
            for _ in range(3):
                optimizer.zero_grad()
                loss = loss_of(model)
                loss.backward()
                optimizer.step()
            losses.append(loss.detach())
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*losses)


def test_factors_in_half_precision_still_compute_where_a_user_asks_for_them():
    model = Alone(torch.nn.Linear(6, 5)).to(torch.bfloat16)
    for seed, weight in enumerate(model.parameters()):
        randomise(weight, seed)
    eckart.inject(model, eckart.LoRAConfig(rank=2, alpha=4, target="layer", method="dora"))
    train_a_little(model)
    x = example("linear", torch.bfloat16)
    expected = model(x)
    for module in adapted_modules(model).values():
        module.adapters.to(torch.bfloat16)
    found = model(x)
    assert found.dtype == torch.bfloat16
    assert relative(found, expected) < 2e-2
    found.sum().backward()
    assert all(parameter.grad.dtype == torch.bfloat16 for parameter in model.layer.adapters.parameters())


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_a_model_without_data_is_adapted_and_computes_shapes(method):
    config = eckart.LoRAConfig(rank=2, dropout=0.1, target=("all-linear", "embed_tokens"), method=method, bias="all")
    with torch.device("meta"):
        model = llama()
    injection = eckart.inject(model, config)
    assert injection.trainable_params == eckart.inject(llama(), config).trainable_params
    assert all(parameter.is_meta for parameter in model.parameters())
    tokens = TOKENS.to("meta")
    model(input_ids=tokens, labels=tokens).loss.backward()
    assert all(p.grad.shape == p.shape for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_can_be_simulated_with_fake_tensors(kind, method):
    with FakeTensorMode():
        model = build(kind, dtype=torch.float32)
        eckart.inject(model, eckart.LoRAConfig(rank=3, target="layer", dropout=0.1, **METHODS[method]))
        model(example(kind, torch.float32)).sum().backward()
        assert all(p.grad.shape == p.shape for p in model.parameters() if p.requires_grad)

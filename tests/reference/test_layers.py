"""The layers from scratch, against finite differences, against the merged weight, and against torch's own layers."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from eckart.reference import DoRA, LoRA, one_hot, patches

RANK, ALPHA, P = 3, 6.0, 0.4
CONV = {"stride": 2, "padding": 1, "dilation": 2}
TOKENS = np.array([[4, 0, 4], [6, 1, 2]])
IMAGES = {"conv1d": (2, 3, 9), "conv2d": (2, 2, 7, 6)}
KERNELS = {"conv1d": (3,), "conv2d": (3, 2)}
KINDS = ("linear", "transposed", "embedding", "conv1d", "conv2d")
METHODS = ("lora", "rslora", "lora_bias", "dora")


def rows(kind, rng):
    """What a layer of that kind multiplies: rows, and a keep mask of them."""
    if kind == "embedding":
        x = one_hot(TOKENS, 7)
        return x, rng.random(x.shape) >= P
    if kind in IMAGES:
        windows = patches(IMAGES[kind], KERNELS[kind], **CONV)
        return windows.take(rng.normal(size=IMAGES[kind])), windows.take(rng.random(IMAGES[kind]) >= P)
    x = rng.normal(size=(6, 5))
    return x, rng.random(x.shape) >= P


def layer(method, inputs, rng, *, bias):
    """A layer with every part drawn at random, as if it had been trained."""
    out = 4
    lora = LoRA.start(rng.normal(size=(out, inputs)), rank=RANK, alpha=ALPHA, rng=rng)
    lora = replace(
        lora,
        lora_B=rng.normal(size=(out, RANK)),
        rslora=method == "rslora",
        bias=rng.normal(size=out) if bias else None,
        lora_bias=rng.normal(size=out) if method == "lora_bias" else None,
        dropout=P,
    )
    if method != "dora":
        return lora
    dora = DoRA.start(lora)
    return replace(dora, magnitude=dora.magnitude * rng.uniform(0.5, 2, out))


def with_part(model, part, value):
    """The layer with one part changed; of DoRA the norm stays as it was, as its gradient has it."""
    if not isinstance(model, DoRA):
        return replace(model, **{part: value})
    if part in ("magnitude", "bias"):
        return replace(model, **{part: value})
    changed = replace(model.direction, **{part: value})
    norms = [np.linalg.norm(inner.merge(), axis=1) for inner in (changed, model.direction)]
    return replace(model, direction=changed, magnitude=model.magnitude * norms[0] / norms[1])


def difference(loss, value):
    """Central differences of a number with respect to every entry of an array."""
    found = np.zeros_like(value)
    for place in np.ndindex(value.shape):
        step = np.zeros_like(value)
        step[place] = 1e-6
        found[place] = (loss(value + step) - loss(value - step)) / 2e-6
    return found


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("dropout", [False, True], ids=["evaluation", "dropout"])
def test_gradients_are_those_of_finite_differences(kind, method, bias, dropout):
    rng = np.random.default_rng(0)
    x, keep = rows(kind, rng)
    keep = keep if dropout else None
    model = layer(method, x.shape[1], rng, bias=bias)
    weights = rng.normal(size=(len(x), 4))

    def loss(model, x):
        return float((weights * np.sin(model.forward(x, keep=keep))).sum())

    grads = model.backward(x, weights * np.cos(model.forward(x, keep=keep)), keep=keep)
    inner = model.direction if isinstance(model, DoRA) else model
    parts = {"lora_A": inner.lora_A, "lora_B": inner.lora_B}
    parts |= {"bias": model.bias} if bias else {}
    parts |= {"lora_bias": inner.lora_bias} if method == "lora_bias" else {}
    parts |= {"magnitude": model.magnitude} if isinstance(model, DoRA) else {}
    for part, value in parts.items():
        expected = difference(lambda changed, part=part: loss(with_part(model, part, changed), x), value)
        np.testing.assert_allclose(getattr(grads, part), expected, rtol=1e-6, atol=1e-7, err_msg=part)
    np.testing.assert_allclose(grads.x, difference(lambda x: loss(model, x), x), rtol=1e-6, atol=1e-7)
    absent = {"bias", "lora_bias", "magnitude"} - set(parts)
    assert all(getattr(grads, part) is None for part in absent)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
def test_the_merged_weight_does_what_the_layer_does_and_can_be_taken_apart(kind, method, bias):
    rng = np.random.default_rng(1)
    x, _ = rows(kind, rng)
    model = layer(method, x.shape[1], rng, bias=bias)
    merged = model.merge()
    shift = model.merge_bias() if isinstance(model, LoRA) else (0 if model.bias is None else model.bias)
    np.testing.assert_allclose(x @ merged.T + shift, model.forward(x), rtol=0, atol=1e-13)
    base = model.weight if isinstance(model, LoRA) else model.direction.weight
    np.testing.assert_allclose(model.unmerge(merged), base, rtol=0, atol=1e-13)


def test_a_layer_starts_as_its_base_exactly():
    rng = np.random.default_rng(2)
    weight, x = rng.normal(size=(8, 16)), rng.normal(size=(5, 16))
    model = LoRA.start(weight, rank=4, alpha=8, rng=rng)
    assert np.array_equal(model.forward(x), x @ weight.T)
    assert np.array_equal(model.merge(), weight)
    assert np.abs(model.lora_A).max() <= 0.25
    assert np.array_equal(DoRA.start(model).gain(), np.ones(8))


def test_dropout_at_the_start_changes_nothing_since_the_update_is_zero():
    rng = np.random.default_rng(3)
    x, keep = rows("linear", rng)
    model = replace(LoRA.start(rng.normal(size=(4, 5)), rank=2, alpha=4, rng=rng), dropout=P)
    assert np.array_equal(model.forward(x, keep=keep), model.forward(x))


def test_an_update_of_low_rank_is_learned_from_samples():
    rng = np.random.default_rng(4)
    planted = rng.normal(size=(6, 2)) @ rng.normal(size=(2, 8)) / 4
    model = LoRA.start(rng.normal(size=(6, 8)), rank=2, alpha=2, rng=rng)
    x = rng.normal(size=(64, 8))
    wanted = x @ (model.weight + planted).T
    for _ in range(2000):
        grads = model.backward(x, (model.forward(x) - wanted) / len(x))
        model.lora_A -= 0.1 * grads.lora_A
        model.lora_B -= 0.1 * grads.lora_B
    assert np.linalg.norm(model.delta() - planted) < 1e-6 * np.linalg.norm(planted)


def test_scaling_is_alpha_over_rank_or_over_its_root():
    rng = np.random.default_rng(5)
    model = LoRA.start(rng.normal(size=(4, 9)), rank=4, alpha=6, rng=rng)
    assert model.scaling == 1.5
    assert replace(model, rslora=True).scaling == 3.0


@pytest.mark.parametrize("kind", IMAGES)
@pytest.mark.parametrize("options", [{}, CONV, {"padding": 2}, {"stride": 3, "dilation": 2}], ids=str)
def test_a_convolution_is_a_matrix_times_patches(kind, options):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(IMAGES[kind], generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, IMAGES[kind][1], *KERNELS[kind], generator=generator, dtype=torch.float64)
    conv = torch.nn.functional.conv1d if kind == "conv1d" else torch.nn.functional.conv2d
    expected = conv(images, weight, **options)
    windows = patches(IMAGES[kind], KERNELS[kind], **options)
    found = windows.take(images.detach().numpy()) @ weight.numpy().reshape(5, -1).T
    out = expected.detach().movedim(1, -1).reshape(-1, 5).numpy()
    np.testing.assert_allclose(found, out, rtol=0, atol=1e-13)
    grad = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    expected.backward(grad)
    back = windows.put(grad.movedim(1, -1).reshape(-1, 5).numpy() @ weight.numpy().reshape(5, -1))
    np.testing.assert_allclose(back, images.grad.numpy(), rtol=0, atol=1e-13)


def test_an_embedding_is_a_matrix_times_one_hot_rows():
    table = np.random.default_rng(6).normal(size=(7, 3))
    assert np.array_equal(one_hot(TOKENS, 7) @ table, table[TOKENS.ravel()])


def test_dora_keeps_the_length_of_each_row_whatever_the_factors_do():
    rng = np.random.default_rng(7)
    model = layer("dora", 5, rng, bias=True)
    np.testing.assert_allclose(np.linalg.norm(model.merge(), axis=1), model.magnitude, rtol=1e-14)
    longer = replace(model, direction=replace(model.direction, alpha=100 * ALPHA))
    np.testing.assert_allclose(np.linalg.norm(longer.merge(), axis=1), model.magnitude, rtol=1e-14)


def test_dora_has_no_place_for_a_bias_of_the_factors():
    with pytest.raises(ValueError, match="does not support lora_bias"):
        DoRA.start(layer("lora_bias", 5, np.random.default_rng(8), bias=False))

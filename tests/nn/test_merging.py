"""Adapters merged into live weights: computed as unmerged, and taken out bit for bit."""

import copy
import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import nn

import eckart
from eckart.errors import EckartError, MismatchError, NotFiniteError

from .layers import KINDS, METHODS, Alone, build, example, numpy, randomise, reference_of, seeded, train_a_little
from .models import Twice, bits, gpt2, llama, loss_of, same_bits, steps, trainable

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))


def patterns(weight):
    """The bits of a weight, as whole numbers: −0 and NaN count too."""
    whole = {8: torch.int64, 4: torch.int32, 2: torch.int16}[weight.dtype.itemsize]
    return weight.detach().clone().view(whole)


def adapted(kind, method, dtype=torch.float64):
    model = build(kind, dtype=dtype)
    eckart.inject(model, eckart.LoRAConfig(rank=3, alpha=6, target="layer", **METHODS[method]))
    train_a_little(model)
    return model


@dtypes
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_merged_weight_is_that_of_the_reference_rounded_once(kind, method, dtype):
    model = adapted(kind, method, dtype)
    expected = reference_of(model.layer).merge()
    assert eckart.merge_weights(model) == ["layer"]
    weight = numpy(model.layer.weight)
    found = weight.T if kind in ("Conv1D", "embedding") else weight.reshape(expected.shape)
    eps = torch.finfo(dtype).eps
    least = torch.finfo(dtype).smallest_normal * eps  # the step between subnormal numbers
    assert np.all(np.abs(found - expected) <= (0.5 * eps + 1e-14) * np.abs(expected) + least + 1e-14)


@dtypes
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_unmerged_a_weight_has_its_bits_again_however_often(kind, method, dtype):
    model, x = adapted(kind, method, dtype), example(kind, dtype)
    base = model.layer.base_layer
    before, output = patterns(base.weight), model(x)
    for round_ in range(4):
        eckart.merge_weights(model)
        assert not torch.equal(patterns(base.weight), before)
        torch.testing.assert_close(model(x), base(x), rtol=0, atol=0)
        assert eckart.unmerge_weights(model) == ["layer"]
        assert torch.equal(patterns(base.weight), before)
        torch.testing.assert_close(model(x), output, rtol=0, atol=0)
        train_a_little(model, seed=100 + round_)
        output = model(x)


@dtypes
@pytest.mark.parametrize("method", ["lora", "dora"])
def test_a_model_trained_between_merges_gets_its_bits_back(method, dtype):
    model = gpt2().to(dtype)
    original = bits(model)
    targets = ("all-linear", "wpe", "wte")
    eckart.inject(model, eckart.LoRAConfig(rank=2, target=targets, method=method, bias="all"))
    base = {name: tensor for name, tensor in bits(model).items() if name.endswith("base_layer.weight")}
    for _ in range(3):
        steps(model, loss_of)
        eckart.merge_weights(model)
        eckart.unmerge_weights(model)
        assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in base.items())
    eckart.eject(model)
    assert same_bits(bits(model), original)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_merged_a_model_computes_as_before_and_as_peft_merges(kind, method):
    model, x = adapted(kind, method), example(kind)
    expected = model(x)
    theirs = get_peft_model(
        build(kind),
        LoraConfig(
            r=3, lora_alpha=6, target_modules=["layer"], use_dora=method == "dora", use_rslora=method == "rslora",
            fan_in_fan_out=kind == "Conv1D",
        ),
    )  # fmt: skip
    factors = dict(model.layer.adapters["default"].named_parameters())
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            part = next((part for part in ("_A", "_B", "magnitude") if part in name), None)
            if part:
                ours = next(value for own, value in factors.items() if part in own)
                parameter.copy_(ours.reshape(parameter.shape))
    eckart.merge_weights(model)
    torch.testing.assert_close(model(x), expected, rtol=1e-12, atol=1e-12)
    merged = theirs.merge_and_unload()
    torch.testing.assert_close(model.layer.weight, merged.layer.weight, rtol=1e-12, atol=1e-12, check_stride=False)


SCALES = st.sampled_from([1e-8, 1e-4, 1.0, 1e3, 1e6])


@settings(max_examples=100, deadline=None)
@given(
    dtype=st.sampled_from(DTYPES),
    method=st.sampled_from(["lora", "dora"]),
    scales=st.tuples(SCALES, SCALES),
    special=st.lists(st.sampled_from([0.0, -0.0, 1e-30, -1e-45, 65504.0, 1e-7]), max_size=4),
    seed=st.integers(0, 1000),
)
def test_bits_return_whatever_weight_and_update_are(dtype, method, scales, special, seed):
    model = Alone(nn.Linear(9, 7)).to(dtype)
    randomise(model.layer.weight, seed, scale=min(scales[0], torch.finfo(dtype).max / 100))
    with torch.no_grad():
        for place, value in enumerate(special):
            model.layer.weight[place, place] = value
    before = patterns(model.layer.weight)
    eckart.inject(model, eckart.LoRAConfig(rank=2, alpha=2, target="layer", method=method))
    train_a_little(model, seed=seed)
    with torch.no_grad():
        model.layer.adapters["default"].lora_B.mul_(scales[1])
    try:
        eckart.merge_weights(model)
    except NotFiniteError:
        assert dtype == torch.float16
    else:
        assert model.layer.merged
        assert torch.isfinite(model.layer.weight).all()
        eckart.unmerge_weights(model)
    assert not model.layer.merged
    assert torch.equal(patterns(model.layer.weight), before)


def test_an_update_that_swallows_its_weight_still_gives_it_back():
    model = adapted("linear", "lora", torch.bfloat16)
    before = patterns(model.layer.weight)
    with torch.no_grad():
        model.layer.adapters["default"].lora_B.mul_(1e9)
    eckart.merge_weights(model)
    eckart.unmerge_weights(model)
    assert torch.equal(patterns(model.layer.weight), before)


@pytest.mark.parametrize("methods", [("lora", "lora"), ("lora", "dora"), ("dora", "dora")], ids="-".join)
@pytest.mark.parametrize("weights", [{"a": 1.0, "b": 1.0}, {"a": 0.5, "b": -2.0}, {"b": 1.0}, {"a": 0.25}], ids=str)
def test_weighed_adapters_merge_as_they_compute(methods, weights):
    torch.manual_seed(0)
    model = Alone(nn.Linear(7, 5)).double()
    x = torch.randn(4, 7, generator=seeded(0), dtype=torch.float64)
    before = patterns(model.layer.weight)
    for name, method in zip(("a", "b"), methods, strict=True):
        eckart.inject(model, eckart.LoRAConfig(rank=2, alpha=3, target="layer", method=method), name=name)
        train_a_little(model, name, seed=ord(name))
    eckart.set_adapters(model, weights)
    expected = model(x)
    eckart.merge_weights(model)
    torch.testing.assert_close(model(x), expected, rtol=1e-12, atol=1e-12)
    eckart.unmerge_weights(model)
    assert torch.equal(patterns(model.layer.weight), before)
    torch.testing.assert_close(model(x), expected, rtol=0, atol=0)


@pytest.mark.parametrize("bias", [True, False])
def test_a_bias_of_the_factors_is_merged_and_taken_out(bias):
    model = build("linear", bias=bias)
    rank = 3
    layer = eckart.AdapterLayer(
        torch.randn(rank, 6, generator=seeded(0)),
        torch.randn(5, rank, generator=seeded(1)),
        alpha=6.0,
        bias=torch.randn(5, generator=seeded(2)),
    )
    plain = model.layer.bias
    eckart.inject_adapter(model, eckart.Adapter({"layer": layer}))
    x = example("linear")
    expected = model(x)
    eckart.merge_weights(model)
    torch.testing.assert_close(model(x), expected, rtol=1e-12, atol=1e-12)
    eckart.unmerge_weights(model)
    assert model.layer.bias is plain
    torch.testing.assert_close(model(x), expected, rtol=0, atol=0)
    eckart.eject(model)
    assert model.layer.bias is plain


def test_tied_weights_are_parted_while_merged_and_tied_again_after():
    model = llama(tied=True)
    original, weight = bits(model), model.lm_head.weight
    eckart.inject(model, eckart.LoRAConfig(rank=2, target="embed_tokens"))
    train_a_little(model)
    expected = loss_of(model)
    eckart.merge_weights(model)
    torch.testing.assert_close(loss_of(model), expected, rtol=1e-12, atol=0)
    assert model.lm_head.weight is weight
    eckart.unmerge_weights(model)
    assert model.get_input_embeddings().weight is model.lm_head.weight is weight
    eckart.eject(model)
    assert same_bits(bits(model), original)


def test_a_shared_module_is_merged_once():
    model = Twice().double()
    before = patterns(model.shared.weight)
    eckart.inject(model, eckart.LoRAConfig(rank=2, target="shared"))
    train_a_little(model)
    x = torch.randn(3, 6, generator=seeded(0), dtype=torch.float64)
    expected = model(x)
    assert eckart.merge_weights(model) == ["shared"]
    torch.testing.assert_close(model(x), expected, rtol=1e-12, atol=1e-12)
    eckart.unmerge_weights(model)
    assert torch.equal(patterns(model.shared.weight), before)


def test_a_weight_that_overflows_is_refused_and_nothing_is_merged():
    model = nn.ModuleDict({"first": nn.Linear(4, 4), "second": nn.Linear(4, 4)}).half()
    original = bits(model)
    eckart.inject(model, eckart.LoRAConfig(rank=1, alpha=1, target=("first", "second")))
    train_a_little(model)
    with torch.no_grad():
        model["second"].adapters["default"].lora_B.fill_(1e5)
        model["second"].adapters["default"].lora_A.fill_(1.0)
    with pytest.raises(NotFiniteError, match=r"second: .* not finite in torch.float16"):
        eckart.merge_weights(model)
    assert not any(model[name].merged for name in model)
    eckart.eject(model)
    assert same_bits(bits(model), original)


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_factors_changed_under_a_merge_never_give_a_wrong_base_back(method):
    model = adapted("linear", method, torch.bfloat16)
    before = patterns(model.layer.weight)
    factors = model.layer.adapters["default"]
    eckart.merge_weights(model)
    merged = patterns(model.layer.weight)
    kept = factors.lora_B.detach().clone()
    with torch.no_grad():
        factors.lora_B.add_(1)
    with pytest.raises(MismatchError, match="changed since they were merged"):
        eckart.unmerge_weights(model)
    assert model.layer.merged
    assert torch.equal(patterns(model.layer.weight), merged)
    with torch.no_grad():
        factors.lora_B.copy_(kept)
    eckart.unmerge_weights(model)
    assert torch.equal(patterns(model.layer.weight), before)


def merged_model():
    model = adapted("linear", "dora")
    eckart.merge_weights(model)
    return model


@pytest.mark.parametrize(
    "action",
    [
        eckart.eject,
        lambda model: eckart.set_adapters(model, {}),
        lambda model: eckart.set_adapters(model, {"default": 0.5}),
        lambda model: eckart.inject(model, eckart.LoRAConfig(rank=2, target="layer"), name="second"),
        lambda model: eckart.inject_adapter(model, eckart.adapter_of(model), name="second"),
        lambda model: eckart.nn.adapters_off(model).__enter__(),
    ],
    ids=["eject", "off", "weigh", "inject", "inject_adapter", "adapters_off"],
)
def test_what_would_change_a_merged_adapter_is_refused(action):
    model, x = merged_model(), example("linear")
    expected, trains = model(x), trainable(model)
    with pytest.raises(EckartError, match="unmerge_weights first"):
        action(model)
    assert torch.equal(model(x), expected)
    assert trainable(model) == trains
    eckart.unmerge_weights(model)
    torch.testing.assert_close(model(x), expected, rtol=1e-12, atol=1e-12)


def test_merging_twice_merges_once_and_unmerging_nothing_does_nothing():
    model = adapted("linear", "lora")
    assert eckart.unmerge_weights(model) == []
    eckart.merge_weights(model)
    weight = patterns(model.layer.weight)
    assert eckart.merge_weights(model) == []
    assert torch.equal(patterns(model.layer.weight), weight)
    eckart.unmerge_weights(model)
    eckart.set_adapters(model, {})
    assert eckart.merge_weights(model) == []


def test_an_adapter_is_saved_the_same_while_it_is_merged():
    model = adapted("linear", "dora")
    before = eckart.adapter_of(model).fingerprint()
    eckart.merge_weights(model)
    assert eckart.adapter_of(model).fingerprint() == before


@pytest.mark.parametrize("copied", ["deepcopy", "torch.save"])
def test_a_copy_of_a_merged_model_unmerges_by_itself(copied):
    model, x = merged_model(), example("linear")
    if copied == "deepcopy":
        again = copy.deepcopy(model)
    else:
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        again = torch.load(file, weights_only=False)
    eckart.unmerge_weights(again)
    assert model.layer.merged
    eckart.unmerge_weights(model)
    assert torch.equal(patterns(again.layer.weight), patterns(model.layer.weight))
    assert torch.equal(again(x), model(x))


@pytest.mark.parametrize("rows", [3000])
def test_weights_larger_than_a_slab_come_back(rows):
    model = Alone(nn.Linear(700, rows)).to(torch.bfloat16)
    before = patterns(model.layer.weight)
    eckart.inject(model, eckart.LoRAConfig(rank=2, alpha=2, target="layer", method="dora"))
    train_a_little(model)
    expected = reference_of(model.layer).merge()
    eckart.merge_weights(model)
    torch.testing.assert_close(model.layer.weight.double(), torch.from_numpy(expected), rtol=2**-8, atol=1e-6)
    eckart.unmerge_weights(model)
    assert torch.equal(patterns(model.layer.weight), before)

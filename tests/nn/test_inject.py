"""Adapters put into whole models and taken out: what trains, what is refused, what comes back."""

import copy
import io

import pytest
import torch
from torch import nn

import eckart
from eckart.errors import EckartError, MismatchError, OptionError
from eckart.nn import adapted_modules, adapters_off

from .layers import Alone, randomise, seeded, train_a_little
from .models import Block, Twice, bits, gpt2, llama, loss_of, same_bits, steps, trainable

# --- what trains ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rank", "expected"), [(4, 8_192), (8, 16_384), (16, 32_768), (32, 65_536)])
def test_the_block_of_the_lessons_trains_its_adapters_alone(rank, expected):
    block = Block()
    injection = eckart.inject(block, eckart.LoRAConfig(rank=rank, target="attention"))
    assert injection.modules == ("q_proj", "k_proj", "v_proj", "o_proj")
    assert injection.trainable_params == expected
    assert injection.total_params == 788_736 + expected
    assert sum(p.numel() for p in block.parameters() if p.requires_grad) == expected
    assert all(".adapters." in name for name in trainable(block))
    x = torch.randn(2, 32, 256, generator=seeded(0))
    before = bits(block)
    steps(block, lambda model: model(x).pow(2).mean())
    changed = {name for name, tensor in block.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == trainable(block)


BIASES = {
    "none": set(),
    "lora-only": {f"transformer.h.{i}.attn.c_attn.base_layer.bias" for i in range(2)},
    "all": {
        name.replace("attn.c_attn.bias", "attn.c_attn.base_layer.bias")
        for name, _ in gpt2().named_parameters()
        if name.endswith(".bias")
    },
}


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("method", ["lora", "dora"])
def test_biases_train_as_asked_and_nothing_else_does(bias, method):
    model = gpt2()
    eckart.inject(model, eckart.LoRAConfig(rank=2, target="c_attn", bias=bias, method=method))
    assert {name for name in trainable(model) if ".adapters." not in name} == BIASES[bias]
    before = bits(model)
    steps(model, loss_of)
    after = model.state_dict()
    assert {name for name in before if not torch.equal(before[name], after[name])} == trainable(model)


def test_ranks_by_pattern_and_exclusions_are_those_of_the_config():
    model = llama()
    config = eckart.LoRAConfig(
        rank=4, target=("attention", "mlp"), exclude=r".*\.0\.mlp\..*", rank_pattern={"q_proj": 2, "mlp.up_proj": 7}
    )
    injection = eckart.inject(model, config)
    ranks = {path: module.adapters["default"].rank for path, module in adapted_modules(model).items()}
    assert tuple(ranks) == injection.modules
    assert ranks["model.layers.0.self_attn.q_proj"] == 2
    assert ranks["model.layers.1.mlp.up_proj"] == 7
    assert ranks["model.layers.1.mlp.down_proj"] == 4
    assert not any(".0.mlp." in path for path in ranks)


PRESETS = {"attention-min": 4, "attention": 8, "mlp": 6, "all-linear": 14, "layers.1.mlp.up_proj": 1}


@pytest.mark.parametrize(("target", "count"), PRESETS.items())
def test_presets_take_what_they_say(target, count):
    injection = eckart.inject(llama(), eckart.LoRAConfig(rank=2, target=target))
    assert len(injection.modules) == count
    assert "lm_head" not in injection.modules


def test_the_same_seed_draws_the_same_factors_and_leaves_torchs_own_stream_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    models = [llama() for _ in range(3)]
    torch.manual_seed(5)
    for model, seed in zip(models, (1, 1, 2), strict=True):
        eckart.inject(model, eckart.LoRAConfig(rank=2), seed=seed)
    assert torch.equal(torch.rand(3), expected)
    first, second, third = (bits(model) for model in models)
    assert same_bits(first, second)
    assert not same_bits(first, third)


# --- what is refused --------------------------------------------------------------------------------------------------


class Odd(nn.Module):
    """Modules that an adapter cannot be on, and one that it can."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.grouped = nn.Conv2d(8, 8, 3, groups=2)
        self.circular = nn.Conv1d(8, 8, 3, padding_mode="circular")
        self.clipped = nn.Embedding(9, 8, max_norm=1.0)
        self.attention = nn.MultiheadAttention(8, 2)
        self.transposed = nn.ConvTranspose1d(8, 8, 3)
        self.q_proj = nn.Linear(8, 8)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"target": "q_prj"}, ["'q_prj' matches nothing", "q_proj"]),
        ({"target": ("q_proj", "norm")}, ["matches only LayerNorm"]),
        ({"target": "transposed"}, ["matches only ConvTranspose1d"]),
        ({"target": "grouped"}, ["grouped", "in groups"]),
        ({"target": "circular"}, ["circular", "pads with"]),
        ({"target": "clipped"}, ["clipped", "max_norm"]),
        ({"target": "out_proj"}, ["nn.MultiheadAttention"]),
        ({"target": "q_proj", "rank": 9}, ["rank 9 is above the dimensions", "8×8", "at most 8"]),
        ({"target": "q_proj", "rank_pattern": {"q_proj": 20}}, ["rank 20"]),
        ({"target": "q_proj", "exclude": "q_proj"}, ["excluded"]),
        ({"target": "q_proj", "exclude": "k_proj"}, ["exclude 'k_proj' matches nothing"]),
        ({"target": "q_proj", "rank_pattern": {"k_proj": 2}}, ["rank_pattern 'k_proj' matches nothing"]),
        ({"target": "[", "rank": 2}, ["'['", "neither a name nor a regex"]),
        ({"target": ("q_prj", "grouped"), "rank": 9}, ["q_prj", "grouped"]),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_what_cannot_be_adapted_is_refused_whole_with_every_fault(options, words):
    model = Odd()
    before, trains = bits(model), trainable(model)
    with pytest.raises(MismatchError) as refusal:
        eckart.inject(model, eckart.LoRAConfig(**({"rank": 2} | options)))
    assert all(word in str(refusal.value) for word in words), str(refusal.value)
    assert same_bits(bits(model), before)
    assert trainable(model) == trains
    assert not adapted_modules(model)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rank": 0}, ["`rank` must be a whole number of at least 1, got 0"]),
        ({"rank": 2.5}, ["rank", "2.5"]),
        ({"rank": True}, ["rank", "True"]),
        ({"alpha": 0}, ["`alpha` must be a positive number, got 0"]),
        ({"alpha": float("nan")}, ["alpha"]),
        ({"dropout": 1.0}, ["`dropout` must be from 0 to below 1, got 1.0"]),
        ({"dropout": -0.1}, ["dropout"]),
        ({"bias": "lora_only"}, ["none, lora-only, all"]),
        ({"method": "adora"}, ["lora, dora"]),
        ({"init": "svd"}, ["pissa"]),
        ({"target": ()}, ["at least one"]),
        ({"rank_pattern": {"q_proj": 0}}, ["`rank` of q_proj"]),
        ({"rank": 0, "alpha": -1, "dropout": 2}, ["rank", "alpha", "dropout"]),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_a_config_that_means_nothing_is_refused_with_every_fault(options, words):
    with pytest.raises(OptionError) as refusal:
        eckart.LoRAConfig(**options)
    assert all(word in str(refusal.value) for word in words), str(refusal.value)


def test_the_same_name_twice_is_refused_and_changes_nothing():
    model = llama()
    eckart.inject(model, eckart.LoRAConfig(rank=2))
    before, trains = bits(model), trainable(model)
    with pytest.raises(MismatchError, match="'default' already"):
        eckart.inject(model, eckart.LoRAConfig(rank=2, target="q_proj"))
    assert same_bits(bits(model), before)
    assert trainable(model) == trains


@pytest.mark.parametrize("name", ["", "a.b", "two words", "keys", "train", "forward", "pop"])
def test_a_name_that_no_module_can_carry_is_refused_before_anything_is_done(name):
    model = Block(16, 2)
    with pytest.raises(OptionError, match="name"):
        eckart.inject(model, eckart.LoRAConfig(rank=2), name=name)
    assert not adapted_modules(model)
    assert len(trainable(model)) == len(list(model.parameters()))


def test_a_second_adapter_that_wants_the_same_biases_is_refused_and_changes_nothing():
    model = gpt2()
    eckart.inject(model, eckart.LoRAConfig(rank=2, bias="all"), name="first")
    before, trains = bits(model), trainable(model)
    with pytest.raises(MismatchError, match="'first'"):
        eckart.inject(model, eckart.LoRAConfig(rank=2, bias="lora-only"), name="second")
    assert same_bits(bits(model), before)
    assert trainable(model) == trains


def test_an_absurd_scale_is_made_but_warned_of():
    with pytest.warns(UserWarning, match="alpha 1000 at rank 2 multiplies the update by 500"):
        eckart.inject(Block(16, 2), eckart.LoRAConfig(rank=2, alpha=1000))


@pytest.mark.parametrize("evaluating", [False, True])
def test_a_layer_of_torch_that_reads_weights_past_its_modules_never_loses_its_adapter(evaluating):
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True).double()
    model = nn.Sequential(layer).train(not evaluating)
    x = torch.randn(2, 5, 16, generator=seeded(0), dtype=torch.float64)
    try:
        eckart.inject(model, eckart.LoRAConfig(rank=2, target=("linear1", "linear2")))
    except MismatchError as refusal:
        assert "TransformerEncoderLayer" in str(refusal)  # noqa: PT017
        return
    train_a_little(model)
    with torch.no_grad():
        found = model(x)
    eckart.nn.set_adapters(model, {})
    with torch.no_grad():
        assert float((found - model(x)).norm()) > 1e-3


# --- modules and weights in two places --------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["shared", "again"])
def test_a_module_under_two_names_is_adapted_under_both_and_comes_back_to_both(target):
    model, x = Twice().double(), torch.randn(3, 6, generator=seeded(0), dtype=torch.float64)
    original, before = model.shared, model(x)
    eckart.inject(model, eckart.LoRAConfig(rank=2, target=target))
    assert model.shared is model.inner["again"]
    train_a_little(model)
    delta = model.shared.layer("default").delta()
    expected = Twice().double()
    expected.load_state_dict({name: original.state_dict()[name.split(".")[-1]] for name in expected.state_dict()})
    with torch.no_grad():
        expected.shared.weight.add_(delta)
    torch.testing.assert_close(model(x), expected(x))
    eckart.eject(model)
    assert model.shared is original
    assert model.inner["again"] is original
    assert torch.equal(model(x), before)


def test_an_adapter_on_a_tied_embedding_leaves_the_output_layer_as_it_was():
    model = llama(tied=True)
    weight = model.lm_head.weight
    eckart.inject(model, eckart.LoRAConfig(rank=2, target="embed_tokens"))
    train_a_little(model)
    assert model.lm_head.weight is weight
    assert model.get_input_embeddings().weight is weight
    hidden = torch.randn(1, 3, 16, generator=seeded(0), dtype=torch.float64)
    torch.testing.assert_close(model.lm_head(hidden), hidden @ weight.T)
    eckart.eject(model)
    assert model.get_input_embeddings().weight is model.lm_head.weight is weight


# --- what comes back --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["lora", "dora"])
@pytest.mark.parametrize("bias", ["none", "lora-only", "all"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_ejected_a_model_is_what_it_was_bit_for_bit(method, bias, dtype):
    model = gpt2().to(dtype)
    model.transformer.wpe.weight.requires_grad_(False)
    model.transformer.h[1].eval()
    before, trains = bits(model), trainable(model)
    kinds = [type(module) for module in model.modules()]
    config = eckart.LoRAConfig(rank=2, target=("all-linear", "wte"), bias=bias, method=method, dropout=0.1)
    eckart.inject(model, config)
    steps(model, loss_of)
    eckart.inject(model, eckart.LoRAConfig(rank=3, target="c_fc"), name="second")
    steps(model, loss_of)
    eckart.eject(model)
    assert same_bits(bits(model), before)
    assert trainable(model) == trains
    assert [type(module) for module in model.modules()] == kinds
    eckart.inject(model, config)
    eckart.eject(model)
    assert same_bits(bits(model), before)
    eckart.eject(model)


def test_the_mode_of_training_follows_the_model_in_and_out():
    model = Block(16, 2).eval()
    eckart.inject(model, eckart.LoRAConfig(rank=2, dropout=0.5))
    assert not any(module.training for module in model.modules())
    model.train()
    assert all(module.training for module in model.modules())
    eckart.eject(model.eval())
    assert not any(module.training for module in model.modules())


def test_off_the_base_computes_alone_and_the_adapter_returns_whatever_happens():
    model, plain = llama(), llama()
    eckart.inject(model, eckart.LoRAConfig(rank=2))
    train_a_little(model)
    tuned = loss_of(model)
    with adapters_off(model):
        assert torch.equal(loss_of(model), loss_of(plain))
        with adapters_off(model):
            pass
        assert torch.equal(loss_of(model), loss_of(plain))
    assert torch.equal(loss_of(model), tuned)
    with pytest.raises(KeyError), adapters_off(model):
        raise KeyError
    assert torch.equal(loss_of(model), tuned)
    assert all(".adapters." in name for name in trainable(model))


# --- several adapters -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("methods", [("lora", "lora"), ("lora", "dora"), ("dora", "dora")], ids="-".join)
def test_weighed_adapters_add_their_changes_to_the_base(methods):
    torch.manual_seed(0)
    model = Alone(nn.Linear(7, 5)).double()
    x = torch.randn(4, 7, generator=seeded(0), dtype=torch.float64)
    base, alone = model(x), {}
    for seed, (name, method) in enumerate(zip(("a", "b"), methods, strict=True)):
        eckart.inject(model, eckart.LoRAConfig(rank=2 + seed, alpha=3, target="layer", method=method), name=name)
        train_a_little(model, name, seed=50 * seed)
        alone[name] = model(x)
    for weights in ({"a": 1.0}, {"b": 1.0}, {"a": 1.0, "b": 1.0}, {"a": 0.5, "b": -2.0}, {"b": 0.25}, {"a": 0.0}, {}):
        eckart.set_adapters(model, weights)
        expected = base + sum(weight * (alone[name] - base) for name, weight in weights.items())
        torch.testing.assert_close(model(x), expected, rtol=1e-12, atol=1e-12)
        on = {name for name, weight in weights.items() if weight}
        assert {name.split(".adapters.")[1].split(".")[0] for name in trainable(model)} == on


def test_gradients_of_weighed_adapters_carry_their_weight():
    x = torch.randn(4, 7, generator=seeded(0), dtype=torch.float64)
    grads = {}
    for weight in (1.0, 0.5):
        torch.manual_seed(0)
        model = Alone(nn.Linear(7, 5)).double()
        eckart.inject(model, eckart.LoRAConfig(rank=2, target="layer"))
        train_a_little(model)
        eckart.set_adapters(model, {"default": weight})
        model(x).sum().backward()
        grads[weight] = model.layer.adapters["default"].lora_A.grad
    torch.testing.assert_close(grads[0.5], 0.5 * grads[1.0])


def test_adapters_on_unlike_modules_live_side_by_side():
    model = llama()
    eckart.inject(model, eckart.LoRAConfig(rank=2, target="attention"), name="attention")
    eckart.inject(model, eckart.LoRAConfig(rank=2, target="up_proj"), name="mlp")
    assert len(eckart.adapter_of(model, "attention")) == 8
    assert len(eckart.adapter_of(model, "mlp")) == 2
    assert all(".adapters.mlp." in name for name in trainable(model))
    eckart.set_adapters(model, {"attention": 1.0, "mlp": 1.0})
    loss_of(model).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("name", "weight", "fault"),
    [("defualt", 1.0, "'defualt'"), ("default", float("nan"), "finite"), ("default", float("inf"), "finite")],
)
def test_switching_what_is_not_there_or_to_no_number_is_refused(name, weight, fault):
    model = llama()
    eckart.inject(model, eckart.LoRAConfig(rank=2))
    trains = trainable(model)
    with pytest.raises(EckartError, match=fault):
        eckart.set_adapters(model, {name: weight})
    assert trainable(model) == trains


def test_biases_train_again_when_their_adapter_is_switched_on_again():
    model = gpt2()
    eckart.inject(model, eckart.LoRAConfig(rank=2, target="c_attn", bias="all"), name="first")
    trains = {name.replace(".base_layer.", ".") for name in trainable(model)}
    eckart.inject(model, eckart.LoRAConfig(rank=2, target="c_fc"), name="second")
    assert all(".adapters.second." in name for name in trainable(model))
    eckart.set_adapters(model, {"first": 1.0})
    assert {name.replace(".base_layer.", ".") for name in trainable(model)} == trains


# --- copies and files of the live model -------------------------------------------------------------------------------


def test_a_deep_copy_trains_by_itself_and_ejects_by_itself():
    model = gpt2()
    original = bits(model)
    eckart.inject(model, eckart.LoRAConfig(rank=2, target="c_attn", bias="all", method="dora"))
    train_a_little(model)
    loss_of(model)
    before = bits(model)
    copied = copy.deepcopy(model)
    assert torch.equal(loss_of(copied), loss_of(model))
    steps(copied, loss_of)
    assert same_bits(bits(model), before)
    assert not same_bits(bits(copied), before)
    eckart.eject(copied)
    assert same_bits(bits(copied), original)
    assert same_bits(bits(model), before)


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_a_state_dict_goes_round(method):
    config = eckart.LoRAConfig(rank=2, target=("attention", "embed_tokens"), method=method)
    model, again = llama(), llama()
    eckart.inject(model, config)
    train_a_little(model)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    eckart.inject(again, config, seed=9)
    loss_of(again)
    again.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(loss_of(again), loss_of(model))


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_a_whole_model_goes_round(method):
    model = llama()
    original = bits(model)
    eckart.inject(model, eckart.LoRAConfig(rank=2, method=method))
    train_a_little(model)
    expected = loss_of(model)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    assert torch.equal(loss_of(again), expected)
    assert trainable(again) == trainable(model)
    eckart.eject(again)
    assert same_bits(bits(again), original)


def test_another_base_is_loaded_under_the_adapter_and_counts():
    model, other = llama(), llama()
    eckart.inject(model, eckart.LoRAConfig(rank=2, method="dora", target="q_proj"))
    train_a_little(model)
    loss_of(model)
    for seed, parameter in enumerate(other.parameters()):
        randomise(parameter, seed, scale=0.3)
    eckart.inject_adapter(other, eckart.adapter_of(model))
    model.load_state_dict(other.state_dict())
    torch.testing.assert_close(loss_of(model), loss_of(other), rtol=1e-13, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_a_model_may_change_its_dtype_with_its_adapters(dtype):
    model = llama(dtype=torch.float32)
    eckart.inject(model, eckart.LoRAConfig(rank=2, method="dora"))
    train_a_little(model)
    loss = loss_of(model).item()
    assert loss_of(model.to(dtype)).item() == pytest.approx(loss, rel=0.05 if dtype == torch.bfloat16 else 1e-5)

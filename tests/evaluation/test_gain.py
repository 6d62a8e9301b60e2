"""Gain recovered, and an adapter that is on the model only as long as it is measured."""

import dataclasses

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel

from eckart.adapter import Adapter, AdapterLayer
from eckart.engine.progress import NoProgress
from eckart.errors import MismatchError
from eckart.evaluation import GainReport, load_model, load_tokenizer, measure_gain, measure_gains, text_loss
from eckart.formats import load_adapter
from eckart.nn import LoRAConfig, adapted_modules, adapter_applied, inject

from .tiny_models import train_a_little

MATRIX = "model.layers.1.mlp.down_proj"


def layer_of(update, kind="linear", **options):
    """The layer whose update is `update`, which lies as the module's own weight does."""
    A, B = {
        "linear": (torch.eye(update.shape[1]), update),
        "conv1d": (torch.eye(update.shape[0], dtype=update.dtype), update.T),
        "embedding": (update.T, torch.eye(update.shape[1])),
    }[kind]
    return AdapterLayer(A, B, alpha=len(A), kind=kind, **options)


def adapter_of(updates, modules_to_save=None):
    layers = {n: layer_of(u, "embedding" if "embed" in n else "linear") for n, u in updates.items()}
    return Adapter(layers, modules_to_save or {})


class Stages(NoProgress):
    """The stages that were reported."""

    def __init__(self):
        self.names = []

    def start(self, stage, total, unit):
        assert (total, unit) == (3, "windows")
        self.names.append(stage)


@pytest.fixture
def tuned(tiny_llama, tmp_path, text):
    """The tiny model after a few steps on the text, so that it is better there."""
    model, tokenizer = load_model(tiny_llama), load_tokenizer(tiny_llama)
    train_a_little(model, tokenizer, text)
    model.save_pretrained(tmp_path / "tuned")
    tokenizer.save_pretrained(tmp_path / "tuned")
    return tmp_path / "tuned"


@pytest.fixture
def exact(tiny_llama, tuned):
    """The whole difference of the two models: matrices as updates, norms replaced."""
    before, after = load_model(tiny_llama).state_dict(), load_model(tuned).state_dict()
    return adapter_of(
        {n.removesuffix(".weight"): after[n] - before[n] for n in before if before[n].ndim == 2},
        {n: after[n] for n in before if before[n].ndim == 1},
    )


def test_the_exact_difference_recovers_all_of_the_gain(tiny_llama, tuned, exact, text):
    report = measure_gain(tiny_llama, tuned, exact, text)
    assert report.base_loss - report.tuned_loss > 0.1
    assert report.gain_recovered == pytest.approx(1.0, abs=1e-5)
    assert report.note is None


def test_an_adapter_of_zeros_recovers_nothing(tiny_llama, tuned, exact, text):
    zeros = adapter_of({name: torch.zeros_like(layer.delta()) for name, layer in exact.items()})
    assert measure_gain(tiny_llama, tuned, zeros, text).gain_recovered == 0.0


def test_several_adapters_share_the_losses_of_base_and_tuned(tiny_llama, tuned, exact, text):
    half = adapter_of({name: layer.delta() / 2 for name, layer in exact.items()})
    stages = Stages()
    reports = measure_gains(tiny_llama, tuned, {"all": exact, "half": half}, text, progress=stages)
    assert stages.names == ["Loss of tuned", "Loss of base", "Loss of all", "Loss of half"]
    assert reports["all"].base_loss == reports["half"].base_loss
    assert reports["half"] == measure_gain(tiny_llama, tuned, half, text)


def test_without_a_gain_there_is_nothing_to_recover_and_the_report_says_so():
    report = GainReport(base_loss=2.0, tuned_loss=2.0, adapter_loss=1.9, tokens=10)
    assert report.gain_recovered is None
    assert report.note is not None
    assert "no better than its base" in report.note
    assert report.to_json()["gain_recovered"] is None


def test_the_model_is_bit_for_bit_the_same_after_the_adapter(tiny_llama, exact, text):
    model, tokenizer = load_model(tiny_llama), load_tokenizer(tiny_llama)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    plain = text_loss(model, text, tokenizer)
    with adapter_applied(model, exact):
        assert text_loss(model, text, tokenizer) != plain
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert text_loss(model, text, tokenizer) == plain


def test_the_model_is_the_same_after_a_failure_inside(tiny_llama):
    model = load_model(tiny_llama)
    original = model.get_submodule(MATRIX).weight
    with adapter_applied(model, adapter_of({MATRIX: torch.ones(16, 24)})), pytest.raises(IndexError):
        model(input_ids=torch.tensor([[99]]))
    assert model.get_submodule(MATRIX).weight is original


def test_an_adapter_on_the_embedding_of_a_tied_model_leaves_the_output_layer_alone(tied_llama, tmp_path):
    model = load_model(tied_llama)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    update = torch.randn(32, 16, generator=torch.Generator().manual_seed(1))
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        with adapter_applied(model, adapter_of({"model.embed_tokens": update})):
            measured = model(input_ids=ids).logits
        output = model.lm_head.weight.detach().clone()
        model.lm_head.weight = torch.nn.Parameter(output)
        model.model.embed_tokens.weight += update
        assert torch.equal(measured, model(input_ids=ids).logits)


def test_a_bias_of_the_adapter_is_scaled_and_added_even_where_the_module_has_none():
    module = torch.nn.Sequential(torch.nn.Linear(4, 3, bias=False), torch.nn.Linear(3, 3))
    bias = torch.tensor([1.0, 2.0, 3.0])
    layers = {
        name: AdapterLayer(torch.zeros(2, columns), torch.zeros(3, 2), alpha=8.0, bias=bias)
        for name, columns in (("0", 4), ("1", 3))
    }
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        hidden = module[0](x) + 4 * bias
        with adapter_applied(module, Adapter(layers)):
            torch.testing.assert_close(module(x), module[1](hidden))
        assert module[0].bias is None


def test_names_from_files_that_leave_out_the_models_prefix_are_found():
    model = GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=16, n_positions=8)).eval().double()
    ids = torch.arange(6)[None]
    update = torch.randn(8, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        plain = model(input_ids=ids).logits
        with adapter_applied(model, Adapter({"h.0.attn.c_attn": layer_of(update, "conv1d")})):
            measured = model(input_ids=ids).logits
        assert not torch.allclose(measured, plain)
        model.transformer.h[0].attn.c_attn.weight += update
        torch.testing.assert_close(measured, model(input_ids=ids).logits, rtol=1e-13, atol=1e-13)


def test_all_misfits_are_reported_at_once(tiny_llama):
    model = load_model(tiny_llama)
    wrong = Adapter(
        {
            "model.layers.1.mlp.down_prj": layer_of(torch.zeros(16, 24)),
            "elsewhere": layer_of(torch.zeros(2, 2)),
            "model.layers.0.mlp.down_proj": layer_of(torch.zeros(24, 16)),
            "model.layers": layer_of(torch.zeros(2, 2)),
            MATRIX: AdapterLayer(torch.ones(2, 24, 1, 1), torch.ones(16, 2, 1, 1), alpha=2, kind="conv"),
        },
        {"model.norm.weight": torch.zeros(3), "model.norm.bias": torch.zeros(16)},
    )
    with pytest.raises(MismatchError) as refusal, adapter_applied(model, wrong):
        pass
    for fault in (
        "down_prj: the model has no such module; the nearest is model.layers.1.mlp.down_proj",
        "elsewhere: the model has no such module",
        "down_proj: its update is for a linear layer of shape (24, 16), the model has a linear of (16, 24)",
        "model.layers: an adapter cannot be on a ModuleList",
        "down_proj: its update is for a conv layer of shape (16, 24), the model has a linear of (16, 24)",
        "model.norm.weight: its shape is (3,), the model's (16,)",
        "model.norm.bias: a LlamaRMSNorm has no such tensor",
    ):
        assert fault in str(refusal.value)


def random_layers(shapes, rank=3):
    generator = torch.Generator().manual_seed(5)
    return {
        name: AdapterLayer(torch.randn(rank, i, generator=generator), torch.randn(o, rank, generator=generator), 1.0)
        for name, (o, i) in shapes.items()
    }


def test_losses_with_a_plain_adapter_are_those_of_the_weights_with_its_update_added(tiny_llama, text):
    model, tokenizer = load_model(tiny_llama), load_tokenizer(tiny_llama)
    weights = {name.removesuffix(".weight"): w for name, w in model.named_parameters() if "proj" in name}
    layers = random_layers({name: weight.shape for name, weight in weights.items()})
    with adapter_applied(model, Adapter(layers)):
        measured = text_loss(model, text, tokenizer).nats_per_token
    plain = text_loss(model, text, tokenizer).nats_per_token
    with torch.no_grad():
        for name, layer in layers.items():
            weights[name] += layer.delta()
    added = text_loss(model, text, tokenizer).nats_per_token
    assert abs(plain - added) > 0.1
    assert measured == pytest.approx(added, rel=1e-6)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:`lora_bias=True` was passed but:peft.utils.warning.PeftWarning")
@pytest.mark.filterwarnings("ignore:Adapter .default.. 4 LoRA tensor:peft.utils.warning.PeftWarning")
@pytest.mark.parametrize(
    "options",
    [{"use_dora": True}, {"use_rslora": True}, {"lora_bias": True}, {"trainable_token_indices": [5, 7, 20]}],
    ids=str,
)
def test_losses_with_an_adapter_are_those_that_peft_computes(options, tiny_llama, tmp_path, text):
    model, tokenizer = load_model(tiny_llama), load_tokenizer(tiny_llama)
    torch.manual_seed(0)
    config = LoraConfig(
        r=3, lora_alpha=6, target_modules=["q_proj", "down_proj"], modules_to_save=["norm"], task_type="CAUSAL_LM"
    )
    theirs = get_peft_model(load_model(tiny_llama), dataclasses.replace(config, **options)).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter).abs() * 0.3)
    theirs.save_pretrained(tmp_path / "adapter")
    adapter = load_adapter(tmp_path / "adapter")
    assert "model.norm.weight" in adapter.modules_to_save
    plain = text_loss(model, text, tokenizer).nats_per_token
    with adapter_applied(model, adapter):
        measured = text_loss(model, text, tokenizer).nats_per_token
    expected = text_loss(theirs, text, tokenizer).nats_per_token
    assert abs(expected - plain) > 1e-2
    assert measured == pytest.approx(expected, rel=1e-5)
    assert text_loss(model, text, tokenizer).nats_per_token == plain


def test_a_convolution_computes_with_its_update_and_is_itself_again():
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 3)).double()
    generator = torch.Generator().manual_seed(0)
    A, B = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((2, 3, 3, 3), (5, 2, 1, 1)))
    layer, x = AdapterLayer(A, B, alpha=4, kind="conv"), torch.randn(1, 3, 8, 8, generator=generator).double()
    conv = model[0]
    with torch.no_grad():
        before = model(x)
        with adapter_applied(model, Adapter({"0": layer})):
            measured = model(x)
        assert model[0] is conv
        assert torch.equal(model(x), before)
        conv.weight += layer.delta()
        torch.testing.assert_close(measured, model(x))


def test_a_model_trains_what_it_trained_before_the_adapter(tiny_llama):
    model = load_model(tiny_llama)
    model.lm_head.weight.requires_grad_(False)
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    with adapter_applied(model, Adapter(random_layers({MATRIX: (16, 24)}), {"model.norm.weight": torch.ones(16)})):
        assert not any(parameter.requires_grad for parameter in model.parameters())
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == before


def test_a_saved_tensor_of_a_tied_model_replaces_that_of_the_named_module_only(tied_llama):
    model = load_model(tied_llama)
    weight = model.lm_head.weight
    with adapter_applied(model, Adapter({}, {"lm_head.weight": torch.zeros_like(weight)})):
        assert not model.lm_head.weight.any()
        assert model.model.embed_tokens.weight is weight
    assert model.lm_head.weight is weight


def test_updates_of_single_experts_are_refused_once_with_what_to_do(tiny_llama):
    layers = random_layers({f"model.layers.0.mlp.experts.gate_up_proj[{i}]": (8, 16) for i in range(4)})
    adapter = Adapter({name: dataclasses.replace(layer, kind="expert") for name, layer in layers.items()})
    model = load_model(tiny_llama)
    with pytest.raises(MismatchError, match="4 layers update") as refusal, adapter_applied(model, adapter):
        pass
    assert len(str(refusal.value).splitlines()) == 2
    assert "eckart.merge" in str(refusal.value)


def test_a_model_that_has_adapters_is_refused_and_keeps_them(tiny_llama):
    model = load_model(tiny_llama)
    inject(model, LoRAConfig(rank=2, target="q_proj"))
    with pytest.raises(MismatchError, match="has adapters already"), adapter_applied(model, Adapter({})):
        pass
    assert len(adapted_modules(model)) == 2

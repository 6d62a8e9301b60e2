"""Gain recovered, and an adapter that is on the model only as long as it is measured."""

from collections import UserDict
from dataclasses import dataclass

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from eckart.errors import MismatchError
from eckart.evaluation import (
    GainReport,
    adapter_applied,
    load_model,
    load_tokenizer,
    measure_gain,
    measure_gains,
    text_loss,
)

MATRIX = "model.layers.1.mlp.down_proj"


@dataclass
class Update:
    value: torch.Tensor

    def delta(self) -> torch.Tensor:
        return self.value


class Updates(UserDict):
    """As much of an adapter as a measurement asks for."""

    def __init__(self, updates, modules_to_save=None):
        super().__init__({name: Update(value) for name, value in updates.items()})
        self.modules_to_save = modules_to_save or {}


@pytest.fixture
def tuned(tiny_llama, tmp_path, text):
    """The tiny model after a few steps on the text, so that it is better there."""
    model, tokenizer = load_model(tiny_llama), load_tokenizer(tiny_llama)
    ids = torch.tensor(tokenizer(text)["input_ids"])[None, :64]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(5):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(tmp_path / "tuned")
    tokenizer.save_pretrained(tmp_path / "tuned")
    return tmp_path / "tuned"


@pytest.fixture
def exact(tiny_llama, tuned):
    """The whole difference of the two models: matrices as updates, norms replaced."""
    before, after = load_model(tiny_llama).state_dict(), load_model(tuned).state_dict()
    return Updates(
        {n.removesuffix(".weight"): after[n] - before[n] for n in before if before[n].ndim == 2},
        {n: after[n] for n in before if before[n].ndim == 1},
    )


def test_the_exact_difference_recovers_all_of_the_gain(tiny_llama, tuned, exact, text):
    report = measure_gain(tiny_llama, tuned, exact, text)
    assert report.base_loss - report.tuned_loss > 0.1
    assert report.gain_recovered == pytest.approx(1.0, abs=1e-5)
    assert report.note is None


def test_an_adapter_of_zeros_recovers_nothing(tiny_llama, tuned, exact, text):
    zeros = Updates({name: torch.zeros_like(layer.value) for name, layer in exact.items()})
    assert measure_gain(tiny_llama, tuned, zeros, text).gain_recovered == 0.0


def test_several_adapters_share_the_losses_of_base_and_tuned(tiny_llama, tuned, exact, text):
    half = Updates({name: layer.value / 2 for name, layer in exact.items()})
    measured = []
    reports = measure_gains(
        tiny_llama,
        tuned,
        {"all": exact, "half": half},
        text,
        progress=lambda label, *_: measured.append(label),
    )
    assert list(dict.fromkeys(measured)) == ["base", "all", "half", "tuned"]
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
    with adapter_applied(model, Updates({MATRIX: torch.ones(16, 24)})), pytest.raises(IndexError):
        model(input_ids=torch.tensor([[99]]))
    assert model.get_submodule(MATRIX).weight is original


def test_an_adapter_on_the_embedding_of_a_tied_model_leaves_the_output_layer_alone(tied_llama, tmp_path):
    model = load_model(tied_llama)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    update = torch.randn(32, 16, generator=torch.Generator().manual_seed(1))
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        with adapter_applied(model, Updates({"model.embed_tokens": update})):
            measured = model(input_ids=ids).logits
        output = model.lm_head.weight.detach().clone()
        model.lm_head.weight = torch.nn.Parameter(output)
        model.model.embed_tokens.weight += update
        assert torch.equal(measured, model(input_ids=ids).logits)


def test_stacked_experts_are_changed_one_at_a_time():
    class Experts(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.gate_up_proj = torch.nn.Parameter(torch.zeros(3, 4, 2))

        def forward(self):
            return self.gate_up_proj.detach().clone()

    model = torch.nn.ModuleDict({"experts": Experts()})
    update = torch.arange(8.0).view(4, 2)
    names = ("experts.gate_up_proj[0]", "experts.gate_up_proj[2]")
    with adapter_applied(model, Updates(dict.fromkeys(names, update))):
        changed = model["experts"]()
    assert torch.equal(changed, torch.stack([update, torch.zeros(4, 2), update]))
    assert not model["experts"]().any()


def test_names_from_files_that_leave_out_the_models_prefix_are_found():
    model = GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=16, n_positions=8)).eval()
    ids = torch.arange(6)[None]
    update = torch.full((8, 24), 0.1)
    with torch.no_grad():
        with adapter_applied(model, Updates({"h.0.attn.c_attn": update})):
            measured = model(input_ids=ids).logits
        model.transformer.h[0].attn.c_attn.weight += update
        assert torch.equal(measured, model(input_ids=ids).logits)


def test_every_name_that_does_not_fit_is_told(tiny_llama):
    model = load_model(tiny_llama)
    wrong = Updates(
        {"model.layers.1.mlp.down_prj": torch.zeros(16, 24), "elsewhere": torch.zeros(2, 2)},
        {"model.norm.weight": torch.zeros(3)},
    )
    with pytest.raises(MismatchError) as refusal, adapter_applied(model, wrong):
        pass
    message = str(refusal.value)
    assert "the nearest is model.layers.1.mlp.down_proj" in message
    assert "elsewhere: the model has no such module" in message
    assert "model.norm.weight: its shape is (3,), the model's (16,)" in message


def test_an_update_in_another_orientation_is_refused(tiny_llama):
    model = load_model(tiny_llama)
    transposed = Updates({MATRIX: torch.zeros(24, 16)})
    with pytest.raises(MismatchError, match=r"\(24, 16\)"), adapter_applied(model, transposed):
        model(input_ids=torch.arange(3, 9)[None])

"""Adapters as plain LoRA: the logits of the real PEFT at full rank, the least error at any other, and what stays."""

import copy

import pytest
import torch

from eckart.errors import MismatchError, OptionError
from eckart.formats import load_adapter
from eckart.operations import plan_to_lora, to_lora

# PEFT and transformers warn about their own internals; what is tested here is their numbers.
pytestmark = pytest.mark.filterwarnings("ignore")

LLAMA = ["q_proj", "v_proj", "down_proj"]
# Model and the options of PEFT's LoraConfig.
CASES = {
    "dora": ("llama", {"use_dora": True, "target_modules": LLAMA}),
    "dora with rsLoRA": ("llama", {"use_dora": True, "use_rslora": True, "target_modules": LLAMA}),
    "dora on Conv1D": ("gpt2", {"use_dora": True, "target_modules": ["c_attn", "c_fc"]}),
    "dora on an embedding": ("llama", {"use_dora": True, "target_modules": ["q_proj", "embed_tokens"]}),
    "a saved head": ("llama", {"target_modules": LLAMA, "modules_to_save": ["lm_head"]}),
    "a saved head tied to the embedding": ("qwen2", {"target_modules": LLAMA, "modules_to_save": ["lm_head"]}),
    "a saved projection": ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["o_proj"]}),
    "tokens": ("llama", {"target_modules": LLAMA, "trainable_token_indices": {"embed_tokens": [3, 5, 9]}}),
    "tokens of a tied model": ("qwen2", {"target_modules": LLAMA, "trainable_token_indices": {"embed_tokens": [3, 5]}}),
    "an embedding next to its update": ("llama", {"target_modules": ["q_proj", "embed_tokens"]}),
}


@pytest.fixture
def made(tiny_model, tmp_path):
    """Options -> the folder of an adapter with random values, and what PEFT computes with it."""
    from peft import LoraConfig, get_peft_model

    def make(name, options, **saving):
        model = get_peft_model(copy.deepcopy(tiny_model(name)), LoraConfig(task_type="CAUSAL_LM", r=4, **options))
        generator = torch.Generator().manual_seed(7)
        with torch.no_grad():
            for parameter_name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    size = 0.2 if ".lora_" in parameter_name and "magnitude" not in parameter_name else 0.02
                    parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=size)
        model.save_pretrained(tmp_path / "adapter", **saving)
        return tmp_path / "adapter", model.eval()

    return make


def logits(model):
    tokens = torch.arange(24).reshape(2, 12) % 90
    with torch.no_grad():
        return model(input_ids=tokens).logits


def by_peft(model, folder):
    from peft import PeftModel

    return logits(PeftModel.from_pretrained(copy.deepcopy(model), folder).eval())


@pytest.mark.parametrize("kind", CASES)
def test_at_full_rank_peft_computes_the_same_logits(kind, made, tiny_model, tiny_folder, tmp_path):
    name, options = CASES[kind]
    folder, model = made(name, options, save_embedding_layers="embedding next" in kind)
    result = to_lora(folder, tiny_folder(name), rank=96, output=tmp_path / "out")
    assert all(layer.magnitude is None for layer in result.adapter.values())
    assert not result.adapter.modules_to_save
    expected, plain = logits(model), logits(tiny_model(name))
    scale = float(expected.abs().max())
    assert float((by_peft(tiny_model(name), tmp_path / "out") - expected).abs().max()) < 2e-5 * scale
    assert float((expected - plain).abs().max()) > 1e-3 * scale


@pytest.mark.parametrize("rank", [2, 8])
def test_the_error_is_measured_on_the_saved_factors_and_the_least_of_its_rank(
    rank, made, tiny_model, tiny_folder, tmp_path
):
    folder, model = made("llama", CASES["dora"][1])
    result = to_lora(folder, tiny_folder("llama"), rank=rank, output=tmp_path / "out")
    merged, plain = model.double().merge_and_unload(), tiny_model("llama")
    saved = load_adapter(tmp_path / "out")
    assert len(result.layers) == 6
    for layer in result.layers:
        weights = [each.get_submodule(layer.name).weight.detach().double() for each in (merged, plain)]
        change = weights[0] - weights[1]
        tail = torch.linalg.svdvals(change)[rank:]
        least = float(tail.norm() / change.norm())
        error = float((change - saved[layer.name].low_rank().dense()).norm() / change.norm())
        assert layer.rank == rank
        assert layer.error == pytest.approx(error, rel=1e-4)
        assert layer.error_lower_bound <= error * (1 + 1e-7)
        assert error == pytest.approx(least, rel=1e-3)


def test_the_smallest_rank_of_an_error_is_chosen(made, tiny_folder):
    folder, _ = made("llama", CASES["dora"][1])
    chosen = to_lora(folder, tiny_folder("llama"), error=0.2).layers[0]
    (below, *_) = to_lora(folder, tiny_folder("llama"), rank=chosen.rank - 1).layers
    assert below.name == chosen.name
    assert chosen.error < 0.2 <= below.error


def test_new_rows_of_an_embedding_are_an_update_of_as_many_ranks(made, tiny_folder):
    folder, _ = made("llama", CASES["tokens"][1])
    result = to_lora(folder, tiny_folder("llama"))
    layer = next(one for one in result.layers if one.name == "model.embed_tokens")
    assert layer.rank == 3
    assert layer.error < 1e-6


def test_plain_layers_stay_as_they_are(made, tiny_folder):
    folder, _ = made("llama", CASES["a saved head"][1])
    before, after = load_adapter(folder), to_lora(folder, tiny_folder("llama")).adapter
    assert len(before) == 6
    assert list(after) == [*before, "lm_head"]
    for name, layer in before.items():
        assert torch.equal(after[name].lora_A, layer.lora_A)
        assert torch.equal(after[name].lora_B, layer.lora_B)


def test_what_no_update_expresses_stays_saved_and_is_reported(made, tiny_folder, tmp_path):
    folder, _ = made("llama", {"target_modules": LLAMA, "modules_to_save": ["input_layernorm", "lm_head"]})
    result = to_lora(folder, tiny_folder("llama"), output=tmp_path / "out")
    norms = [f"model.layers.{index}.input_layernorm.weight" for index in range(2)]
    assert list(result.adapter.modules_to_save) == norms
    assert [(item.name, "a vector" in item.reason) for item in result.skipped] == [(name, True) for name in norms]
    assert "lm_head" in result.adapter
    assert list(load_adapter(tmp_path / "out").modules_to_save) == norms


def test_a_dry_run_reads_headers_and_shows_every_layer(made, tiny_folder):
    folder, _ = made("llama", CASES["tokens"][1])
    preview = plan_to_lora(folder, tiny_folder("llama")).preview()
    assert {match.name: match.rank for match in preview.matches}["model.embed_tokens"] == 3
    assert len(preview.matches) == 7


def test_another_model_and_two_choices_of_rank_are_refused(made, tiny_folder):
    folder, _ = made("llama", CASES["dora"][1])
    with pytest.raises(MismatchError, match="does not fit"):
        to_lora(folder, tiny_folder("gpt2"))
    with pytest.raises(OptionError, match="exactly one way"):
        to_lora(folder, tiny_folder("llama"), rank=2, error=0.1)

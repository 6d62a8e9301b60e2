"""Counts are exact: what `inject` makes of a config on the meta device, and what the shapes say by hand."""

import pytest
import torch
from transformers import AutoConfig

from eckart.errors import MismatchError
from eckart.nn import LoRAConfig, inject
from eckart.planning.architecture import Outline, build_model, read_architecture
from eckart.planning.preset_models import presets
from eckart.planning.setting import PlanSetting

TARGETS = ("attention-min", "attention", "mlp", "all-linear")


def meta_model(config):
    with torch.device("meta"):
        return build_model(read_architecture(config), PlanSetting(attention="eager"))


def injected(model, lora: LoRAConfig, name: str = "default") -> int:
    with torch.device("meta"):
        return inject(model, lora, name=name).trainable_params


@pytest.mark.parametrize("preset", presets().values(), ids=lambda preset: preset.name)
def test_every_preset_and_target_counts_what_inject_makes(preset):
    outline, model = Outline(preset.config), meta_model(preset.config)
    for position, target in enumerate(TARGETS):
        lora = LoRAConfig(rank=2 + position, target=target)
        if target == "mlp" and "num_experts_per_tok" in preset.config:
            with pytest.raises(MismatchError, match="mlp"):  # fused experts are no layers
                outline.adapter(lora)
            continue
        assert outline.adapter(lora).trainable_params == injected(model, lora, name=f"adapter{position}")


@pytest.mark.parametrize("name", ["bert-base", "gpt2", "opt-125m", "llama-3.2-1b", "qwen3-0.6b", "gemma-2-2b"])
def test_magnitudes_of_dora_count(name):
    lora = LoRAConfig(rank=3, method="dora")
    config = presets()[name].config
    assert Outline(config).adapter(lora).trainable_params == injected(meta_model(config), lora)


@pytest.mark.parametrize("bias", ["lora-only", "all"])
def test_trained_biases_and_ranks_by_pattern_count(bias):
    lora = LoRAConfig(rank=4, target="attention", bias=bias, rank_pattern={"v_proj": 9})
    config = presets()["qwen2.5-0.5b"].config
    assert Outline(config).adapter(lora).trainable_params == injected(meta_model(config), lora)


# Lesson 5, from shapes by hand: rank · (out + in) over q and v of every layer.
BY_HAND = {
    "bert-base": 12 * 2 * 2 * 768,
    "bert-large": 24 * 2 * 2 * 1024,
    "gpt2": 12 * (768 + 3 * 768),  # q, k and v are one matrix
    "gpt2-medium": 24 * (1024 + 3 * 1024),
    "llama-7b": 32 * 2 * 2 * 4096,
    "llama-13b": 40 * 2 * 2 * 5120,
    "llama-2-70b": 80 * ((8192 + 8192) + (8192 + 1024)),  # v has 8 heads of 64
}


@pytest.mark.parametrize("name", BY_HAND)
def test_query_and_value_of_the_lessons_models_at_every_rank(name):
    outline = Outline(presets()[name].config)
    for rank in (4, 8, 16, 32, 64, 128, 256):
        counted = outline.adapter(LoRAConfig(rank=rank, target="attention-min"))
        assert counted.trainable_params == rank * BY_HAND[name]


def test_rank_16_on_query_and_value_of_llama_7b_is_8_million_and_spares_996_of_1000_attention_weights():
    outline = Outline(presets()["llama-7b"].config)
    trained = outline.adapter(LoRAConfig(rank=16, target="attention-min")).trainable_params
    attention = outline.adapter(LoRAConfig(rank=16, target="attention")).weight_params
    assert trained == 8_388_608
    assert attention == 32 * 4 * 4096**2
    assert trained / attention == pytest.approx(0.0039, abs=5e-5)


def test_grouped_queries_make_value_narrow():
    modules = Outline(presets()["llama-3-8b"].config).adapter(LoRAConfig(target="attention-min")).modules
    assert modules["model.layers.31.self_attn.q_proj"] == (4096, 4096)
    assert modules["model.layers.31.self_attn.v_proj"] == (1024, 4096)


def test_savings_are_a_share_of_the_adapted_weights():
    config = AutoConfig.for_model("llama", hidden_size=4096, num_hidden_layers=1, num_attention_heads=32)
    counted = Outline(config).adapter(LoRAConfig(rank=16, target="q_proj"))
    assert (counted.trainable_params, counted.weight_params) == (131_072, 16_777_216)
    assert counted.saved == pytest.approx(0.992, abs=5e-4)

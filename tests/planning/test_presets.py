"""Presets are facts: their totals are the published ones, and every name finds its model."""

import pytest

from eckart.planning.architecture import Outline
from eckart.planning.preset_models import find_preset, nearest_presets, presets

# Totals as the models' publishers state them, of the class that the config names.
PUBLISHED = {
    "bert-base": 109_514_298,
    "bert-large": 335_174_458,
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "llama-7b": 6_738_415_616,
    "llama-13b": 13_015_864_320,
    "llama-2-70b": 68_976_648_192,
    "llama-3-8b": 8_030_261_248,
    "llama-3-70b": 70_553_706_496,
    "mistral-7b": 7_241_732_096,
    "mixtral-8x7b": 46_702_792_704,
    "qwen2.5-7b": 7_615_616_512,
    "qwen3-8b": 8_190_735_360,
    "smollm2-135m": 134_515_008,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_total_of_a_preset_is_the_published_one(name):
    assert presets()[name].params == PUBLISHED[name]


@pytest.mark.parametrize("preset", presets().values(), ids=lambda preset: preset.name)
def test_the_model_built_from_a_preset_has_its_total(preset):
    assert Outline(preset.config).total_params == preset.params


@pytest.mark.parametrize("typed", ["llama-3-8b", "Llama-3-8B", "meta-llama/Meta-Llama-3-8B"])
def test_a_preset_is_found_by_its_name_and_its_hub_name(typed):
    found = find_preset(typed)
    assert found is not None
    assert found.name == "llama-3-8b"


@pytest.mark.parametrize(
    ("typed", "meant"), [("lama3-8b", "llama-3-8b"), ("mistral", "mistral-7b"), ("org/gpt-2", "gpt2")]
)
def test_the_nearest_presets_of_a_mistyped_name_hold_the_one_that_was_meant(typed, meant):
    assert find_preset(typed) is None
    assert meant in nearest_presets(typed)

"""The closed form gives the lesson's figures, and says what it leaves out."""

import pytest

from eckart.errors import OptionError
from eckart.planning import PlanSetting, presets
from eckart.planning.architecture import Outline
from eckart.planning.estimates import BYTES, NF4_BYTES, Proportions, estimate, estimate_setting
from eckart.planning.simulation import simulate


@pytest.mark.parametrize("params", [110_000_000, 340_000_000, 1_500_000_000, 175_000_000_000])
def test_full_fine_tuning_with_adam_in_float32_takes_16_bytes_a_parameter(params):
    full = estimate(params, "float32").full
    assert (full.weights, full.gradients, full.optimizer) == (4 * params, 4 * params, 8 * params)
    assert full.total == 16 * params


def test_the_weights_of_70_billion_in_bfloat16_take_140_gb():
    assert estimate(70 * 10**9, "bfloat16").full.weights == 140 * 10**9


@pytest.mark.parametrize("precision", BYTES)
def test_lora_keeps_the_base_in_its_precision_and_16_bytes_for_each_number_that_trains(precision):
    lora = estimate(8 * 10**9, precision, adapter_params=40_000_000).lora
    assert lora.total == 8 * 10**9 * BYTES[precision] + 16 * 40_000_000
    assert (lora.gradients, lora.optimizer) == (4 * 40_000_000, 8 * 40_000_000)


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_integers_have_no_gradient_so_full_fine_tuning_is_that_of_bfloat16(precision):
    assert estimate(10**9, precision).full == estimate(10**9, "bfloat16").full


def test_ratios_are_of_the_totals_and_rise_from_full_to_qlora():
    found = estimate(8 * 10**9, "float16")
    assert found.ratio("full") == 1
    assert found.ratio("lora") == found.full.total / found.lora.total
    assert 1 < found.ratio("lora") < found.ratio("qlora")


def test_nf4_with_scales_in_eight_bits_takes_0_516_bytes():
    assert pytest.approx(0.516, abs=5e-4) == NF4_BYTES


@pytest.mark.parametrize("arguments", [(0,), (-5,), (10**9, "bfloat16"), (10**9, "int3")])
def test_what_cannot_be_is_refused(arguments):
    with pytest.raises(OptionError):
        estimate(*arguments, rank=0 if arguments == (10**9, "bfloat16") else 16)


@pytest.mark.parametrize("name", ["llama-2-7b", "llama-3-8b", "llama-2-13b", "llama-3-70b"])
def test_a_usual_model_of_the_same_size_has_the_proportions_of_llama(name):
    outline = Outline(presets()[name].config)
    guessed, real = Proportions.usual(outline.total_params), Proportions.from_outline(outline)
    assert guessed.hidden == pytest.approx(real.hidden, rel=0.15)
    assert guessed.layers == pytest.approx(real.layers, rel=0.25)
    assert guessed.linear_params == pytest.approx(real.linear_params, rel=0.15)


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
@pytest.mark.slow
def test_the_closed_form_of_a_step_is_within_a_quarter_of_its_simulation(method, checkpointing):
    outline = Outline(presets()["smollm2-360m"].config)
    setting = PlanSetting(method=method, length=512, batch_size=2, gradient_checkpointing=checkpointing)
    simulated = simulate(outline.config, setting)
    parts = estimate_setting(Proportions.from_outline(outline), setting, trained_params=simulated.trainable_params)
    assert sum(parts.values()) == pytest.approx(simulated.peak_bytes, rel=0.25)

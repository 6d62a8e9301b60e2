"""A plan: its numbers are the simulation's, and its advice fits and says where it comes from."""

import json
import re
from dataclasses import replace

import pytest
import torch
from transformers import Gemma2Config, LlamaConfig, T5Config

from eckart.adapter import Adapter, AdapterLayer
from eckart.engine import NoProgress
from eckart.errors import MismatchError, OptionError
from eckart.nn import LoRAConfig
from eckart.operations import analyze
from eckart.planning import PlanSetting, plan, simulate, simulation
from eckart.planning import forecaster as forecasts
from eckart.planning.architecture import Outline
from eckart.planning.guide import parse_data_size
from eckart.planning.largest import largest
from eckart.planning.measured_ranks import measured_ranks
from eckart.planning.memory import RESERVED_BYTES, Memory, smallest_card
from eckart.planning.shallow import at_depth, extrapolate, shallow_depths
from eckart.planning.simulation import SimulationError
from eckart.training import with_ranks

from .small import MODELS

SIZES = {
    "vocab_size": 512,
    "hidden_size": 256,
    "intermediate_size": 688,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
MODEL, DEEP = LlamaConfig(**SIZES, num_hidden_layers=2), LlamaConfig(**SIZES, num_hidden_layers=6)
MB = 10**6


def room(megabytes: float) -> str:
    """A memory of which so much is left for tensors."""
    return f"{megabytes + RESERVED_BYTES / MB}MB"


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [("24GB", 24 * 10**9), ("80 GB", 80 * 10**9), ("24GiB", 24 * 2**30), ("1.5tb", 1_500 * 10**9), ("900M", 900 * MB)],
)
def test_memory_is_parsed_and_half_a_gb_of_it_kept_free(text, nbytes):
    parsed = Memory.parse(text)
    assert parsed.nbytes == nbytes
    assert parsed.usable_bytes == nbytes - 500 * MB


@pytest.mark.parametrize("text", ["", "lots", "24", "-24GB", "24 Gb/s", "0GB", "24MB"])
def test_memory_that_is_nonsense_or_too_little_for_anything_is_refused(text):
    with pytest.raises(OptionError, match="`memory`"):
        Memory.parse(text)


def test_the_smallest_card_is_one_that_is_sold():
    assert smallest_card(23_500 * MB) == 24
    assert smallest_card(23_501 * MB) == 32
    assert smallest_card(10**12) is None


@pytest.mark.parametrize(
    ("text", "examples"),
    [("5000", 5000), ("20k", 20_000), ("2k examples", 2000), ("3M tokens", 12_000), ("9 tokens", 1)],
)
def test_data_sizes_are_examples_or_tokens(text, examples):
    assert parse_data_size(text) == examples


@pytest.mark.parametrize("text", ["", "many", "-4", "0"])
def test_a_data_size_that_is_nonsense_is_refused(text):
    with pytest.raises(OptionError, match="`data_size`"):
        parse_data_size(text)


@pytest.mark.parametrize("limit", [9, 10, 30, 31, 999, 5050, 10**6])
@pytest.mark.parametrize("power", [1, 2])
def test_the_largest_that_fits_is_found_for_straight_and_for_curved_growth(limit, power):
    def peak(n: int) -> int:
        return 5 + 4 * n**power

    found = largest(peak, limit, fits=1, most=200, guess=2)
    assert found == max(n for n in range(1, 201) if peak(n) <= limit)


@pytest.mark.parametrize("method", ["full", "lora", "dora", "qlora"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
def test_two_depths_of_equal_layers_predict_the_full_model(method, checkpointing):
    setting = PlanSetting(method=method, length=128, gradient_checkpointing=checkpointing)
    depths = shallow_depths(Outline(DEEP))
    assert depths == (2, 3)
    first, second = (simulate(at_depth(DEEP, depth), setting) for depth in depths)
    told, whole = extrapolate(first, second, depths, 6), simulate(DEEP, setting)
    assert told is not None
    assert told.peak_bytes == pytest.approx(whole.peak_bytes, rel=0.002)
    assert (told.trainable_params, told.total_params) == (whole.trainable_params, whole.total_params)


def test_layers_that_differ_are_predicted_from_a_period_of_them_or_not_at_all():
    kinds = ["sliding_attention", "full_attention"]
    small = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "head_dim": 8}
    even = Gemma2Config(**small, num_key_value_heads=2, num_hidden_layers=12, layer_types=kinds * 6)
    odd = Gemma2Config(
        **small, num_key_value_heads=2, num_hidden_layers=12, layer_types=[*kinds * 5, kinds[0], kinds[0]]
    )
    assert shallow_depths(Outline(even)) == (2, 4)
    assert shallow_depths(Outline(odd)) is None
    assert shallow_depths(Outline(T5Config(d_model=32, d_ff=64, num_layers=12, num_heads=4, vocab_size=64))) is None


def test_a_named_method_is_planned_as_simulated():
    made = plan(MODEL, method="qlora", rank=8, batch_size=2, max_length=128)
    lora = LoRAConfig(rank=8, alpha=16, dropout=0.05)
    simulated = simulate(MODEL, PlanSetting(method="qlora", lora=lora, batch_size=2, length=128))
    assert made.peak_bytes == simulated.peak_bytes == sum(made.parts.values())
    assert made.parts == simulated.parts
    assert made.trainable_params == simulated.trainable_params
    assert made.source_of_numbers == "simulation"
    assert made.fits is None
    assert json.loads(json.dumps(made.to_json()))["format"] == "eckart-plan/1"


def test_without_a_method_all_are_compared_and_the_numbers_are_of_what_is_advised():
    made = plan(MODEL, memory="24GB", max_length=128)
    assert [each.setting.method for each in made.forecasts] == ["full", "lora", "dora", "qlora"]
    assert made.chosen == made.advice.forecast
    assert made.fits
    assert made.advice.setting.method == "lora"
    assert not made.advice.setting.gradient_checkpointing


def test_less_memory_takes_first_checkpointing_then_four_bits():
    peaks = [
        simulate(
            MODEL, PlanSetting(method=method, length=256, gradient_checkpointing=on, lora=LoRAConfig(16, 32.0, 0.05))
        )
        for method in ("lora", "qlora")
        for on in (False, True)
    ]
    lora, recomputed, qlora, least = (each.peak_bytes / MB for each in peaks)
    assert least < recomputed < lora
    found = plan(MODEL, memory=room(recomputed + 0.01), max_length=256).advice.setting
    assert (found.method, found.gradient_checkpointing) == ("lora", True)
    found = plan(MODEL, memory=room(max(least, min(qlora, recomputed - 0.5)) + 0.01), max_length=256).advice.setting
    assert found.method == "qlora"


def test_the_advised_batch_leaves_a_twentieth_free_and_one_more_does_not():
    made = plan(MODEL, memory=room(100), max_length=256)
    advised = made.advice.setting
    assert 1 < advised.batch_size <= min(made.advice.largest_batch, 16)
    assert simulate(MODEL, advised).peak_bytes <= 95 * MB
    assert simulate(MODEL, replace(advised, batch_size=advised.batch_size + 1)).peak_bytes > 95 * MB
    assert simulate(MODEL, replace(advised, batch_size=made.advice.largest_batch)).peak_bytes <= 100 * MB
    more = replace(advised, batch_size=made.advice.largest_batch + 1)
    assert simulate(MODEL, more).peak_bytes > 100 * MB


def test_where_nothing_fits_the_plan_says_so_by_its_leanest_setting():
    made = plan(MODEL, memory=room(1), max_length=128)
    assert made.fits is False
    assert made.advice is None
    assert made.peak_bytes > MB


def test_shorter_sequences_are_advised_where_long_ones_do_not_fit():
    long = plan(MODEL, method="lora", memory="24GB", max_length=512).forecasts[0]
    least = simulate(MODEL, replace(long.setting, gradient_checkpointing=True, length=128)).peak_bytes / MB
    made = plan(MODEL, method="lora", memory=room(least + 0.1), rank=16, target=["all-linear"], max_length=512)
    assert made.fits is False
    assert made.advice.setting.length == 128
    assert any(reason.why == "512 tokens do not fit" for reason in made.advice.reasons)


@pytest.mark.parametrize(("size", "rank", "dropout"), [("500", 8, 0.1), ("9000", 16, 0.05), ("200k", 32, 0.0)])
def test_data_decide_rank_and_dropout_by_rule(size, rank, dropout):
    advice = plan(MODEL, method="lora", data_size=size, max_length=64).advice
    lora = advice.setting.adapter
    assert (lora.rank, lora.alpha, lora.dropout) == (rank, 2 * rank, dropout)
    assert {reason.source for reason in advice.reasons if reason.what in ("rank", "dropout")} == {"rule"}


def test_every_piece_of_advice_has_a_source_and_the_next_step_a_price():
    advice = plan(MODEL, memory="24GB", max_length=128, rank=4).advice
    sources = {reason.what: reason.source for reason in advice.reasons}
    assert sources["rank"] == "given"
    assert sources["batch"] == sources["method"] == "simulation"
    doubled = next(step for step in advice.to_json()["next_steps"] if step["what"] == "rank 8")
    assert doubled["peak_bytes"] == advice.next_steps["rank 8"].peak_bytes
    assert doubled["more_bytes"] == doubled["peak_bytes"] - advice.forecast.peak_bytes > 0


@pytest.fixture
def update() -> Adapter:
    """An earlier fine-tune whose query in layer 1 alone has much rank."""
    generator = torch.Generator().manual_seed(0)
    layers = {}
    for layer in range(2):
        for part, out in (("q_proj", 256), ("v_proj", 64)):
            rank = 12 if (layer, part) == (1, "q_proj") else 1
            A, B = torch.randn(rank, 256, generator=generator), torch.randn(out, rank, generator=generator)
            layers[f"model.layers.{layer}.self_attn.{part}"] = AdapterLayer(A, B, float(rank))
    return Adapter(layers)


def test_measured_spectra_give_each_module_its_rank(update, tmp_path):
    analyze(update, output=tmp_path / "update")
    made = plan(MODEL, method="lora", rank=2, target=["attention-min"], max_length=64, analysis=tmp_path / "update")
    ranks = made.advice.measured.ranks
    assert ranks["model.layers.1.self_attn.q_proj"] == max(ranks.values()) > 2
    adapter = Outline(MODEL).adapter(LoRAConfig(2, target="attention-min"))
    allocation, kept, kept_evenly = measured_ranks(tmp_path / "update", adapter, rank=2)
    assert made.advice.measured == allocation
    assert allocation.params <= adapter.trainable_params
    assert kept > kept_evenly
    assert made.advice.forecast.trainable_params == made.advice.measured.params
    assert made.advice.reasons[-1].source == "spectrum"


def test_the_printed_command_trains_with_the_planned_ranks(update, tmp_path):
    analyze(update, output=tmp_path / "update")
    made = plan(MODEL, method="lora", rank=2, target=["attention-min"], max_length=64, analysis=tmp_path / "update")
    assert " --rank 2 " in made.advice.command("base")
    assert f" --rank-pattern {tmp_path / 'update'} " in made.advice.command("base")
    config = with_ranks(LoRAConfig(2, target="attention-min"), tmp_path / "update")
    assert config.rank_pattern == {name: rank for name, rank in made.advice.measured.ranks.items() if rank}


def test_spectra_of_weights_or_of_another_model_are_refused(update, tmp_path):
    analyze(update, output=tmp_path / "update")
    with pytest.raises(MismatchError, match="k_proj"):
        plan(MODEL, rank=2, target=["attention"], max_length=64, analysis=tmp_path / "update")
    analyze({"model.layers.0.self_attn.q_proj.weight": torch.eye(256)}, output=tmp_path / "weights")
    with pytest.raises(MismatchError, match="`base`"):
        plan(MODEL, max_length=64, analysis=tmp_path / "weights")


def test_code_that_cannot_run_without_data_is_estimated_and_the_plan_says_so(monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        msg = "a model of type llama cannot be run on tensors without data (it looks at values)"
        raise SimulationError(msg)

    monkeypatch.setattr(forecasts, "simulate", refuse)
    made = plan(MODEL, memory="24GB", max_length=128)
    assert {each.source for each in (*made.forecasts, made.chosen)} == {"estimate"}
    assert any("looks at values" in note and "closed form" in note for note in made.notes)
    assert {reason.source for reason in made.advice.reasons if reason.what == "batch"} == {"estimate"}


def test_a_bare_number_of_parameters_is_estimated():
    made = plan("8B", memory="24GB")
    assert made.source_of_numbers == "estimate"
    assert made.parts["weights"] == pytest.approx(5.7e9 if made.chosen.setting.method == "qlora" else 16e9, rel=0.1)
    assert any("closed-form" in note for note in made.notes)


def test_few_layers_that_do_not_predict_the_full_model_are_no_longer_used(monkeypatch):
    def wrong(*given: object) -> object:
        told = extrapolate(*given)
        return replace(told, peak_bytes=2 * told.peak_bytes)

    monkeypatch.setattr(forecasts, "extrapolate", wrong)
    made = plan(DEEP, method="lora", max_length=64)
    assert all(each.layers is None for each in made.forecasts)
    assert made.forecasts[0].peak_bytes == simulate(DEEP, made.forecasts[0].setting).peak_bytes
    assert any("Few layers" in note for note in made.notes)


def test_sequences_longer_than_the_model_sees_are_warned_of():
    with pytest.warns(UserWarning, match="exceeds the model's context of 512 tokens"):
        plan(MODEL, method="lora", max_length=1024)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"max_length": 1}, "length"),
        ({"dtype": "int4"}, "dtype"),
        ({"optimizer": "sgd"}, "optimizer"),
        ({"attention": "flash"}, "attention"),
        ({"method": "prefix"}, "method"),
        ({"rank": 0}, "rank"),
        ({"memory": "many"}, "`memory`"),
    ],
)
def test_impossible_settings_are_refused(options, said):
    with pytest.raises(OptionError, match=said):
        plan(MODEL, **options)


def test_an_option_that_there_is_not_is_no_silent_default():
    with pytest.raises(TypeError, match=r"got batchsize; its options are .*batch_size"):
        plan("gpt2", batchsize=4)


@pytest.mark.parametrize(
    ("options", "given"),
    [({}, set()), ({"rank": 8}, {"rank"}), ({"target": ["attention"]}, {"target"}), ({"method": "lora"}, {"method"})],
)
def test_only_what_the_user_named_is_called_requested(options, given):
    advice = plan(MODEL, max_length=64, **options).advice
    assert {reason.what for reason in advice.reasons if reason.source == "given"} == given
    assert {reason.what for reason in advice.reasons if reason.why == "as requested"} == given


def leanest_peaks(ranks: tuple[int, ...]) -> list[int]:
    """Peaks of QLoRA with checkpointing, in bytes, by rank."""
    usual = PlanSetting(method="qlora", length=64, gradient_checkpointing=True)
    return [simulate(MODEL, replace(usual, lora=LoRAConfig(rank, 2.0 * rank, 0.05))).peak_bytes for rank in ranks]


def test_a_lower_rank_is_advised_because_the_higher_one_does_not_fit():
    low, high = leanest_peaks((8, 16))
    made = plan(MODEL, method="qlora", memory=room((low + high) / 2 / MB), max_length=64)
    why = {reason.what: (reason.value, reason.why) for reason in made.advice.reasons}
    assert why["rank"] == ("8", "16 does not fit")
    assert why["target"] == ("all-linear", "all linear layers learn most")
    twice = made.advice.next_steps["rank 16"]
    assert twice.peak_bytes > made.memory.usable_bytes


def test_fewer_modules_are_advised_only_where_no_more_fit_at_any_rank():
    (low,) = leanest_peaks((8,))
    made = plan(MODEL, method="qlora", memory=room(low / MB - 0.01), max_length=64)
    why = {reason.what: (reason.value, reason.why) for reason in made.advice.reasons}
    assert why["target"][1] == "more modules do not fit"
    if why["rank"][0] == "8":
        assert why["rank"][1] == "16 does not fit"
        more_rank = [step for what, step in made.advice.next_steps.items() if "rank" in what]
        assert all(step.peak_bytes > made.memory.usable_bytes for step in more_rank)
    else:
        assert why["rank"] == ("16", "16 serves most tasks; 4 to 8 for a quick try, 32 to 64 for a complex one")


def test_checkpointing_is_advised_where_less_than_a_twentieth_would_stay_free_without_it():
    plain = plan(MODEL, method="lora", max_length=256).peak_bytes / MB
    tight = plan(MODEL, method="lora", memory=room(plain / 0.99), max_length=256)
    assert tight.fits
    assert tight.advice.setting.gradient_checkpointing
    assert any("stay free" in reason.why for reason in tight.advice.reasons if reason.what == "checkpointing")
    loose = plan(MODEL, method="lora", memory=room(plain / 0.94), max_length=256)
    assert not loose.advice.setting.gradient_checkpointing


@pytest.mark.parametrize(
    ("options", "fits"),
    [({"method": "lora"}, False), ({"method": "lora", "gradient_checkpointing": True}, True), ({}, True)],
    ids=["a method, as it is", "a method with checkpointing", "any method"],
)
def test_a_plan_fits_if_the_requested_setting_does(options, fits):
    lora = LoRAConfig(16, 32.0, 0.05)
    setting = PlanSetting(method="lora", length=256, lora=lora)
    plain, recomputed = (
        simulate(MODEL, replace(setting, gradient_checkpointing=on)).peak_bytes / MB for on in (False, True)
    )
    assert recomputed < plain
    made = plan(MODEL, memory=room((plain + recomputed) / 2), max_length=256, **options)
    assert made.fits is fits
    assert made.advice.setting.gradient_checkpointing
    assert made.to_json()["fits"] is fits


def test_shorter_sequences_than_requested_are_advised_but_are_no_fit():
    (short,) = leanest_peaks((16,))
    made = plan(MODEL, memory=room(short / MB + 0.1), max_length=512)
    assert made.advice.setting.length < 512
    assert made.fits is False


def test_a_bug_of_ours_is_not_taken_for_a_model_that_cannot_run(monkeypatch):
    monkeypatch.setattr(simulation, "account", lambda *_, **__: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        plan(MODEL, method="lora", max_length=64)


def test_every_simulation_is_reported_before_it_runs():
    class Stages(NoProgress):
        def __init__(self):
            self.names = []

        def start(self, stage, total, unit):
            self.names.append(stage)

    stages = Stages()
    plan(DEEP, method="lora", max_length=64, progress=stages)
    assert stages.names[:2] == [f"Simulating lora, 1 × 64 tokens, {depth} layers" for depth in (2, 3)]
    assert "Simulating lora, 1 × 64 tokens, 6 layers" in stages.names


def test_where_one_gpu_is_too_small_the_plan_says_how_many_hold_it():
    model = MODELS["llama"] | {"num_hidden_layers": 6, "hidden_size": 512, "intermediate_size": 2048}
    options = {"method": "full", "dtype": "float32", "max_length": 16}
    needed = plan(model, **options).peak_bytes
    room = 500_000_000 + int(0.6 * needed)
    planned = plan(model, memory=f"{room}B", **options)
    assert planned.several is not None
    assert planned.several.setting.gpus == planned.to_json()["several_gpus"]["gpus"] == 4
    assert planned.several.peak_bytes <= room - 500_000_000
    assert plan(model, memory=f"4x{room}B", **options).fits
    assert plan(model, memory=f"{room}B", gpus=4, sharding="fsdp", **options).fits
    assert not plan(model, memory=f"{room}B", gpus=4, sharding="ddp", **options).fits


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"gpus": 0}, "`gpus` must be an integer of at least 1, got 0"),
        ({"gpus": 2, "sharding": "fsdp2"}, "`sharding` must be one of ddp, fsdp"),
        ({"sharding": "ddp"}, "needs several GPUs"),
        ({"gpus": 2, "memory": "4x24GB"}, "is that of 4 GPUs"),
        ({"memory": "8x"}, "`memory` must be an amount"),
        ({"memory": "0x24GB"}, "`memory` must be an amount"),
    ],
)
def test_impossible_numbers_of_gpus_are_refused(options, said):
    with pytest.raises(OptionError, match=re.escape(said)):
        plan(MODELS["llama"], method="lora", max_length=16, **options)


def test_a_bare_number_of_parameters_is_divided_among_gpus():
    one, eight = plan("70B", method="full"), plan("70B", method="full", gpus=8)
    for part in ("weights", "gradients", "optimizer"):
        assert eight.parts[part] == pytest.approx(one.parts[part] / 8, rel=1e-6)
    assert eight.parts["activations"] == one.parts["activations"]

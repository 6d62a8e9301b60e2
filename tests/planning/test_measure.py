"""A real step takes the memory that the simulation predicts."""

import pytest

from eckart.errors import EckartError
from eckart.nn import LoRAConfig
from eckart.planning.measure import measure
from eckart.planning.setting import PlanSetting
from eckart.planning.simulation import simulate

from .small import MODELS

WIDE = MODELS["opt"] | {"hidden_size": 256, "word_embed_proj_dim": 256, "ffn_dim": 1024, "vocab_size": 2000}


def test_the_process_takes_the_predicted_memory():
    plan = PlanSetting(lora=LoRAConfig(rank=4), dtype="float32", batch_size=8, length=256)
    peak_bytes, _ = measure(WIDE, plan, heap="tight")
    predicted = simulate(WIDE, plan, device="cpu").peak_bytes
    assert predicted > 100_000_000
    assert peak_bytes == pytest.approx(predicted, rel=0.1)


def test_two_processes_take_the_predicted_memory_of_a_sharded_model():
    wide = MODELS["llama"] | {"num_hidden_layers": 4, "hidden_size": 512, "intermediate_size": 2048}
    plan = PlanSetting(method="full", dtype="float32", batch_size=2, length=64, gpus=2, sharding="fsdp")
    peak_bytes, _ = measure(wide, plan)
    predicted = simulate(wide, plan, device="cpu").peak_bytes
    assert predicted > 100_000_000
    assert peak_bytes == pytest.approx(predicted, rel=0.1)


def test_a_step_that_fails_says_why():
    beyond = PlanSetting(lora=LoRAConfig(rank=4), dtype="float32", length=64)
    with pytest.raises(EckartError, match=r"status 1: .*Error"):
        measure(MODELS["gpt2"] | {"n_positions": 32}, beyond)

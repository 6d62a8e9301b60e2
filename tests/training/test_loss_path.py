"""The path from hidden states to the loss: the plan and the training of one model take the same."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from eckart.nn import LoRAConfig, inject, quantize_model
from eckart.planning.architecture import build_model, read_architecture
from eckart.planning.dataless import dataless, dataless_step
from eckart.planning.setting import PlanSetting
from eckart.training import DataOptions, TrainSettings, load_data
from eckart.training.loss_path import FUSED_TILE
from eckart.training.trainer_setup import make_trainer

LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 300,
}
GRANITE = LLAMA | {"model_type": "granite", "architectures": ["GraniteForCausalLM"]}
MIXTRAL = LLAMA | {"model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "num_local_experts": 4}
GPT2 = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_embd": 64, "n_layer": 2, "n_head": 4}
OPT = {"model_type": "opt", "architectures": ["OPTForCausalLM"], "word_embed_proj_dim": 64, "ffn_dim": 128}
MODELS = {
    "llama": LLAMA,
    "qwen2": LLAMA | {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]},
    "gpt2": GPT2 | {"vocab_size": 300},
    "opt": {key: LLAMA[key] for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")} | OPT,
    "gemma2 (capped logits)": LLAMA | {"model_type": "gemma2", "architectures": ["Gemma2ForCausalLM"], "head_dim": 16},
    "granite (logits divided by 8)": GRANITE | {"logits_scaling": 8.0},
    "granite (logits divided by 1)": GRANITE | {"logits_scaling": 1.0},
    "cohere (scaled logits)": LLAMA | {"model_type": "cohere", "architectures": ["CohereForCausalLM"]},
    "mixtral (experts)": MIXTRAL | {"router_aux_loss_coef": 0.001},
    "mixtral (experts without a loss of their own)": MIXTRAL | {"router_aux_loss_coef": 0.0},
}
CASES = [(name, "attention", "lora") for name in MODELS]
CASES += [("llama", "lm_head", "lora"), ("llama", "all-linear", "qlora")]


@pytest.mark.parametrize(("name", "target", "method"), CASES)
def test_plan_and_train_take_the_same_path_to_the_loss(name, target, method, *, tokenizer, text, tmp_path):
    architecture = read_architecture(MODELS[name])
    config = LoRAConfig(rank=2, target=target)
    setting = PlanSetting(method=method, lora=config, dtype="float32", length=16)
    with dataless():
        planned = dataless_step(build_model(architecture, setting), setting).loss_path
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(read_architecture(MODELS[name])).float()
    if method == "qlora":
        quantize_model(model)
    inject(model, config)
    data = load_data(text, tokenizer, options=DataOptions(max_length=16))
    settings = TrainSettings(steps=1, device="cpu")
    trainer = make_trainer(model, tokenizer, data, settings, tmp_path, save=False)
    assert trainer.loss_path == planned


def test_the_planned_tile_is_that_of_the_installed_trl():
    from trl.trainer import utils

    assert utils._CHUNKED_LOGPROB_CHUNK_SIZE == FUSED_TILE

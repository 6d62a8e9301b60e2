"""Merged weights are PEFT's, whatever the module, the slab, or the moment that a run was killed at."""

import copy
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from eckart.adapter import Adapter, AdapterLayer
from eckart.checkpoint import open_checkpoint
from eckart.engine import Execution, NoProgress
from eckart.errors import MismatchError, NotFiniteError, OptionError, OutputError
from eckart.formats import load_adapter
from eckart.operations import convert, extract, resize
from eckart.operations.merging.merge import merge
from eckart.operations.merging.plan import plan_merge
from eckart.operations.weight_update import Update

from .test_peft import Pixels, outputs, tokens

# PEFT and transformers warn about their own internals; what is tested here is their numbers.
pytestmark = pytest.mark.filterwarnings("ignore")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def layer(out, into, *, rank=3, alpha=4.5, seed=0, **options):
    source = generator(seed)
    A, B = torch.randn(rank, into, generator=source), torch.randn(out, rank, generator=source)
    return AdapterLayer(A, B, alpha, **options)


def tensors_in(folder):
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def llama(**options):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=61, num_key_value_heads=2, **{"tie_word_embeddings": False, **sizes, **options})
    return LlamaForCausalLM(config).eval()


def gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    size = {"n_layer": 2, "n_embd": 32, "n_head": 2, "vocab_size": 50, "n_positions": 16}
    return GPT2LMHeadModel(GPT2Config(**size, bos_token_id=0, eos_token_id=0)).eval()


def adapted(model, folder, **options):
    """PEFT's own adapter with random factors: saved, and merged by PEFT."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    config = LoraConfig(init_lora_weights=False, **options)
    wrapped = get_peft_model(copy.deepcopy(model), config).to(next(model.parameters()).dtype)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    wrapped.save_pretrained(folder)
    return wrapped.eval()


def experts(kind="gpt_oss"):
    import transformers

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"vocab_size": 61, "num_key_value_heads": 2, "num_local_experts": 3, "head_dim": 8}
    config = {"gpt_oss": "GptOssConfig", "mixtral": "MixtralConfig"}[kind]
    return transformers.AutoModelForCausalLM.from_config(getattr(transformers, config)(**sizes)).eval()


class Attention(torch.nn.Module):
    """PyTorch's own attention, in which PEFT adapts in_proj_weight and out_proj."""

    def __init__(self):
        super().__init__()
        self.attn, self.out = torch.nn.MultiheadAttention(12, 2), torch.nn.Linear(12, 3)


PARAMETERS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
ATTENTION = ["q_proj", "down_proj"]


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (llama, {"r": 4, "lora_alpha": 7, "target_modules": ATTENTION}),
        (llama, {"r": 4, "use_rslora": True, "target_modules": ATTENTION}),
        (llama, {"r": 3, "use_dora": True, "target_modules": ATTENTION}),
        (llama, {"r": 3, "target_modules": ATTENTION, "modules_to_save": ["norm", "lm_head"]}),
        (llama, {"r": 3, "target_modules": ["embed_tokens", "v_proj", "lm_head"]}),
        (lambda: llama(attention_bias=True), {"r": 3, "target_modules": ["o_proj"], "lora_bias": True}),
        (lambda: llama(attention_bias=True), {"r": 3, "target_modules": ["q_proj"], "bias": "all"}),
        (gpt2, {"r": 4, "target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
        (gpt2, {"r": 4, "target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True, "use_dora": True}),
        (gpt2, {"r": 2, "target_modules": ["c_attn"], "fan_in_fan_out": True, "lora_bias": True}),
        (experts, {"r": 2, "target_modules": ["q_proj"], "target_parameters": PARAMETERS}),
        (lambda: experts("mixtral"), {"r": 2, "target_modules": ["q_proj"], "target_parameters": PARAMETERS}),
        (Attention, {"r": 3, "target_modules": ["attn", "out"]}),
        (Pixels, {"r": 3, "target_modules": ["conv1", "conv2", "head"]}),
        (Pixels, {"r": 3, "target_modules": ["conv1", "head"], "use_dora": True}),
        (Pixels, {"r": 3, "target_modules": ["conv1"], "lora_bias": True, "modules_to_save": ["head"]}),
    ],
    ids=[
        *("plain", "rslora", "dora", "saved", "embedding", "bias", "trained bias"),
        *(
            "conv1d",
            "conv1d dora",
            "conv1d bias",
            "transposed experts",
            "experts",
            "attention",
            "conv",
            "conv dora",
            "conv bias",
        ),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])
def test_merged_weights_are_those_of_peft(make, options, dtype, tmp_path):
    torch.manual_seed(0)
    base = make().to(dtype)
    model = adapted(base, tmp_path / "adapter", **options)
    result = merge(base, tmp_path / "adapter", tmp_path / "out")
    expected = model.merge_and_unload().state_dict()
    found, plain = tensors_in(tmp_path / "out"), base.state_dict()
    assert result.changed == sum(not torch.equal(plain[name], found[name]) for name in found)
    for name, tensor in found.items():
        size = 1 + float(expected[name].abs().max())
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=4 * torch.finfo(dtype).eps * size)


def save(model, folder):
    model.save_pretrained(folder)
    return folder


def test_transformers_computes_the_same_with_the_merged_folder_as_peft_with_the_adapter(tmp_path):
    from transformers import AutoModelForCausalLM

    base = llama()
    save(base, tmp_path / "base")
    model = adapted(base, tmp_path / "adapter", r=4, target_modules=ATTENTION, modules_to_save=["norm"])
    merge(tmp_path / "base", [tmp_path / "adapter"], tmp_path / "out")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    torch.testing.assert_close(outputs(loaded, tokens(61)), outputs(model, tokens(61)), rtol=0, atol=1e-5)
    assert (tmp_path / "out/generation_config.json").exists()


@pytest.mark.parametrize(
    ("targets", "untied"), [(["embed_tokens"], True), (["lm_head"], True), (["embed_tokens", "lm_head"], True)]
)
@pytest.mark.parametrize("make", [lambda: llama(tie_word_embeddings=True), gpt2], ids=["llama", "gpt2"])
def test_an_adapter_on_one_of_two_tied_layers_changes_only_that_one(make, targets, untied, tmp_path):
    from transformers import AutoModelForCausalLM

    base = make()
    save(base, tmp_path / "base")
    names = ["wte" if name == "embed_tokens" and "GPT2" in type(base).__name__ else name for name in targets]
    model = adapted(base, tmp_path / "adapter", r=4, target_modules=names)
    result = merge(tmp_path / "base", [tmp_path / "adapter"], tmp_path / "out")
    assert result.untied == untied
    assert json.loads((tmp_path / "out/config.json").read_text())["tie_word_embeddings"] is False
    loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    inputs = tokens(50)
    torch.testing.assert_close(outputs(loaded.eval(), inputs), outputs(model, inputs), rtol=0, atol=1e-4)


@pytest.mark.parametrize("weight", [1, 0.5])
def test_an_embedding_that_dora_renormalizes_is_the_one_that_peft_saved_with_it(weight, tmp_path):
    base = llama()
    model = adapted(base, tmp_path / "adapter", r=3, target_modules=["embed_tokens"], use_dora=True)
    adapter = load_adapter(tmp_path / "adapter")
    own = torch.randn(61, 32, generator=generator())
    adapter = replace(adapter, modules_to_save={"model.embed_tokens.weight": own})
    merge(base, adapter, tmp_path / "out", weights=[weight])
    plain = base.model.embed_tokens.weight.detach().clone()
    module = model.base_model.model.model.embed_tokens
    module.base_layer.weight.data = own
    with torch.no_grad():  # PEFT's forward pass knows the norms of an embedding
        expected = plain + weight * (module(torch.arange(61)) - plain)
    found = tensors_in(tmp_path / "out")["model.embed_tokens.weight"]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_the_same_update_on_both_of_two_tied_layers_keeps_them_tied(tmp_path):
    base = save(llama(tie_word_embeddings=True), tmp_path / "base")
    head = layer(61, 32)
    embedding = AdapterLayer(head.lora_B.T, head.lora_A.T, head.alpha, kind="embedding")
    both = Adapter({"model.embed_tokens": embedding, "lm_head": head})
    result = merge(base, both, tmp_path / "out")
    assert not result.untied
    found, plain = tensors_in(tmp_path / "out"), tensors_in(base)
    assert "lm_head.weight" not in found
    expected = plain["model.embed_tokens.weight"].double() + head.low_rank().dense()
    torch.testing.assert_close(found["model.embed_tokens.weight"].double(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_a_weighted_sum_is_rounded_once(dtype, tmp_path):
    weight = torch.randn(40, 24, generator=generator(), dtype=torch.float64).to(dtype)
    adapters = [Adapter({"a.q_proj": layer(40, 24, seed=seed, rank=2 + seed)}) for seed in range(3)]
    weights = [0.5, -1.25, 0]
    merge({"a.q_proj.weight": weight}, adapters, tmp_path / "out", weights=weights)
    deltas = [w * adapter["a.q_proj"].low_rank().dense() for w, adapter in zip(weights, adapters, strict=True)]
    exact = weight.double() + sum(deltas)
    found = tensors_in(tmp_path / "out")["a.q_proj.weight"]
    assert found.dtype == dtype
    slack = torch.finfo(dtype).eps / 2 * exact.abs() + 16 * torch.finfo(torch.float32).eps * (dtype != torch.float64)
    assert ((found.double() - exact).abs() <= slack + 1e-14).all()


def test_saved_tensors_and_renormalized_layers_mix_by_their_weights(tmp_path):
    base = {"a.q_proj.weight": torch.randn(6, 5, generator=generator()), "norm.weight": torch.ones(5)}
    dora = layer(6, 5, magnitude=torch.rand(6, generator=generator(3)) + 0.5)
    first = Adapter({"a.q_proj": dora}, {"norm.weight": torch.full((5,), 3.0)})
    second = Adapter({"a.q_proj": layer(6, 5, seed=1)}, {"norm.weight": torch.full((5,), -1.0)})
    merge(base, [first, second], tmp_path / "out", weights=[0.5, 0.25])
    found, weight = tensors_in(tmp_path / "out"), base["a.q_proj.weight"].double()
    assert torch.equal(found["norm.weight"], torch.full((5,), 1 + 0.5 * 2 - 0.25 * 2))
    moved = weight + dora.low_rank().dense()
    renormalized = dora.magnitude[:, None] * moved / moved.norm(dim=1, keepdim=True)
    exact = weight + 0.5 * (renormalized - weight) + 0.25 * second["a.q_proj"].low_rank().dense()
    torch.testing.assert_close(found["a.q_proj.weight"].double(), exact, rtol=0, atol=1e-5)


@pytest.mark.parametrize("transposed", [False, True])
def test_experts_are_changed_one_by_one(transposed, tmp_path):
    shape = (3, 16, 40) if transposed else (3, 40, 16)
    name = "model.layers.0.mlp.experts.gate_up_proj"
    base = {name: torch.randn(shape, generator=generator())}
    config = {"model_type": "gpt_oss", "hidden_size": 16}
    (tmp_path / "base").mkdir()
    save_file(base, tmp_path / "base/model.safetensors")
    (tmp_path / "base/config.json").write_text(json.dumps(config))
    adapter = Adapter({f"{name}[{e}]": layer(40, 16, seed=e, kind="expert") for e in (0, 2)})
    merge(tmp_path / "base", adapter, tmp_path / "out")
    found = tensors_in(tmp_path / "out")[name]
    assert torch.equal(found[1], base[name][1])
    for expert in (0, 2):
        delta = adapter[f"{name}[{expert}]"].low_rank().dense()
        expected = base[name][expert].double() + (delta.T if transposed else delta)
        torch.testing.assert_close(found[expert].double(), expected, rtol=0, atol=1e-5)


def every_kind(folder):
    """GPT-2 with DoRA on transposed layers, and an embedding; of eighths and sixty-fourths, whose sums are exact.

    Sums of anything else depend, in their last bit, on how many rows a processor's library takes at once.
    """
    model = gpt2()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(64).round_().div_(64)
    base = save(model.to(torch.bfloat16), folder / "base")
    options = {"r": 4, "lora_alpha": 8, "target_modules": ["c_attn", "c_fc"]}
    adapted(gpt2(), folder / "adapter", **options, fan_in_fan_out=True, use_dora=True)
    adapters = [load_adapter(folder / "adapter"), Adapter({"transformer.wte": layer(32, 50, kind="embedding")})]
    return base, [Adapter({name: in_eighths(each) for name, each in adapter.items()}) for adapter in adapters]


def in_eighths(layer):
    return replace(layer, lora_A=(8 * layer.lora_A).round() / 8, lora_B=(8 * layer.lora_B).round() / 8)


@pytest.mark.parametrize(
    ("limit", "size"),
    [("eckart.linalg.slabs.SLAB_BYTES", 2048), ("eckart.operations.model_writer.writer.NORM_CHUNK", 512)],
)
def test_slabs_of_any_size_give_the_same_file(tmp_path, monkeypatch, limit, size):
    base, adapters = every_kind(tmp_path)
    merge(base, adapters, tmp_path / "whole")
    monkeypatch.setattr(limit, size)
    monkeypatch.setattr("eckart.operations.model_writer.writer.LEAST_ROWS", 1)
    rows = []
    whole = Update.apply
    monkeypatch.setattr(Update, "apply", lambda self, slab, start: rows.append(len(slab)) or whole(self, slab, start))
    merge(base, adapters, tmp_path / "slabs")
    assert max(rows) <= 16
    found, expected = tensors_in(tmp_path / "slabs"), tensors_in(tmp_path / "whole")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_the_input_in_memory_is_not_changed(tmp_path):
    base = llama()
    before = copy.deepcopy(base.state_dict())
    adapted(base, tmp_path / "adapter", r=2, target_modules=ATTENTION, use_dora=True, modules_to_save=["norm"])
    merge(base, tmp_path / "adapter", tmp_path / "out")
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.state_dict().items())


def test_the_shards_of_the_base_are_kept(tmp_path):
    from transformers import AutoModelForCausalLM

    base = llama()
    base.save_pretrained(tmp_path / "base", max_shard_size="20KB")
    model = adapted(base, tmp_path / "adapter", r=2, target_modules=ATTENTION)
    merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "out")
    names = {path.name for path in (tmp_path / "base").iterdir()}
    assert len(names) > 4
    assert {path.name for path in (tmp_path / "out").iterdir()} == names | {".eckart.json", "README.md"}
    index = "model.safetensors.index.json"
    old, new = (json.loads((tmp_path / who / index).read_text())["weight_map"] for who in ("base", "out"))
    assert old == new
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    torch.testing.assert_close(outputs(loaded, tokens(61)), outputs(model, tokens(61)), rtol=0, atol=1e-5)


def test_a_gguf_base_becomes_a_folder_that_transformers_loads(smollm2, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    module = "model.layers.3.mlp.up_proj"
    adapter = Adapter({module: layer(1536, 576, rank=4)})
    result = merge(smollm2, adapter, tmp_path / "out", dtype=torch.bfloat16)
    assert [item.name for item in result.skipped] == ["tokenizer"]
    loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert loaded.dtype == torch.bfloat16
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    base = open_checkpoint(smollm2)
    exact = base.read(f"{module}.weight") + adapter[module].delta()
    assert torch.equal(loaded.get_parameter(f"{module}.weight"), exact.bfloat16())
    other = "model.layers.2.self_attn.q_proj.weight"
    assert torch.equal(loaded.get_parameter(other), base.read(other).bfloat16())
    del loaded
    # What the result says of the tokenizer is true.
    AutoTokenizer.from_pretrained(str(smollm2.parent), gguf_file=smollm2.name).save_pretrained(tmp_path / "out")
    assert AutoTokenizer.from_pretrained(tmp_path / "out").decode([504]) != ""


@pytest.mark.parametrize(
    ("stored", "named"),
    [
        ("model.layers.0.q_proj", "layers.0.q_proj"),
        ("layers.0.q_proj", "model.layers.0.q_proj"),
        ("h.0.attn.c_attn", "transformer.h.0.attn.c_attn"),
    ],
)
def test_a_prefix_that_one_of_the_two_leaves_out_is_bridged(stored, named, tmp_path):
    result = merge({f"{stored}.weight": torch.zeros(4, 3)}, Adapter({named: layer(4, 3)}), tmp_path / "out")
    assert result.changed == 1


BASE = {
    "model.layers.0.q_proj.weight": torch.ones(8, 6),
    "model.layers.0.norm.weight": torch.ones(6),
    "model.layers.0.q_proj.bias": torch.ones(8),
    "model.layers.0.o_proj.weight": torch.ones(6, 8),
    "encoder.k.weight": torch.ones(8, 6),
    "decoder.k.weight": torch.ones(8, 6),
    "steps": torch.arange(3),
}
Q = "model.layers.0.q_proj"


@pytest.mark.parametrize(
    ("adapters", "weights", "said"),
    [
        ([Adapter({"model.layers.0.q_prj": layer(8, 6)})], None, "nearest is model.layers.0.q_proj"),
        ([Adapter({Q: layer(8, 5)})], None, r"shape \(8, 5\), the base's matrix \(8, 6\)"),
        ([Adapter({"model.layers.0.norm": layer(6, 6)})], None, "norm: cannot be merged: norm"),
        ([Adapter({"k": layer(8, 6)})], None, "no such module"),
        ([Adapter({Q: layer(8, 6), "layers.0.q_proj": layer(8, 6)})], None, "twice"),
        ([Adapter({"model.layers.0.o_proj": layer(6, 8, bias=torch.ones(6))})], None, "has no model.*o_proj.bias"),
        ([Adapter({Q: layer(8, 6, bias=torch.ones(5))})], None, r"bias has the shape \(5,\)"),
        ([Adapter({Q: layer(8, 6, magnitude=torch.ones(6))})], None, "magnitude has 6 numbers"),
        ([Adapter({}, {"norm.weight": torch.ones(6)})], None, "no such tensor"),
        ([Adapter({}, {"layers.0.norm.weight": torch.ones(5)})], None, r"its saved tensor has the shape \(5,\)"),
        ([Adapter({}, {"steps": torch.ones(3)})], None, "int64 in the base"),
        ([Adapter({Q: layer(8, 6)}), Adapter({"x": layer(8, 6)})], None, "adapter 2: x"),
        ([Adapter({Q: layer(8, 6)})], [1, 2], "2 weights for 1"),
        ([Adapter({Q: layer(8, 6)})], [float("nan")], "weight 1 is nan"),
        ([], None, "at least one"),
    ],
)
def test_what_has_no_place_is_refused_before_work(adapters, weights, said, tmp_path):
    with pytest.raises((MismatchError, OptionError), match=said):
        merge(BASE, adapters, tmp_path / "out", weights=weights)
    assert not list(tmp_path.iterdir())


def test_all_faults_come_in_one_message():
    adapter = Adapter({"a": layer(8, 6), "b": layer(8, 6), Q: layer(7, 6)}, {"c": torch.ones(1)})
    with pytest.raises(MismatchError) as refused:
        plan_merge(BASE, adapter)
    assert [line.split(":")[0].strip(" -") for line in str(refused.value).splitlines()[1:]] == ["a", "b", Q, "c"]


@pytest.mark.parametrize(
    ("base", "adapter", "said"),
    [
        (torch.full((8, 6), float("nan")), layer(8, 6), r"q_proj contains 48 values that are NaN"),
        (torch.ones(8, 6), layer(8, 6, alpha=float("inf")), "not finite"),
        (torch.ones(8, 6), AdapterLayer(torch.full((1, 6), float("inf")), torch.ones(8, 1), 1), r"lora_A contains 6"),
        (torch.ones(8, 6).half(), layer(8, 6, alpha=1e6), "more than float16 holds"),
        (torch.zeros(8, 6), AdapterLayer(torch.zeros(1, 6), torch.ones(8, 1), 1, magnitude=torch.ones(8)), "zero"),
    ],
)
def test_values_that_are_not_finite_stop_the_merge_and_are_named(base, adapter, said, tmp_path):
    with pytest.raises(NotFiniteError, match=said):
        merge({f"{Q}.weight": base}, Adapter({Q: adapter}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_narrower_dtype_that_cannot_hold_the_base_is_refused(tmp_path):
    with pytest.raises(NotFiniteError, match="float16"):
        merge(BASE | {"big.bias": torch.full((3,), 1e6)}, Adapter({Q: layer(8, 6)}), tmp_path / "out", dtype=torch.half)


ODD = {
    "F8_E8M0": torch.arange(8, dtype=torch.uint8).view(torch.float8_e8m0fnu),
    "F4": torch.arange(8, dtype=torch.uint8).view(2, 4).view(torch.float4_e2m1fn_x2),
    "C64": torch.randn(3, 2, dtype=torch.complex64),
    "F8_E4M3FNUZ": torch.randn(3, 2).to(torch.float8_e4m3fnuz),
}


@pytest.mark.parametrize("code", ODD)
def test_a_tensor_that_is_not_changed_is_copied_bit_for_bit_in_every_stored_dtype(code, tmp_path):
    (tmp_path / "base").mkdir()
    save_file(BASE | {"odd": ODD[code]}, tmp_path / "base" / "model.safetensors", {"format": "pt"})
    merge(tmp_path / "base", Adapter({Q: layer(8, 6)}), tmp_path / "out")
    odd = load_file(tmp_path / "out" / "model.safetensors")["odd"]
    assert (odd.dtype, odd.shape) == (ODD[code].dtype, ODD[code].shape)
    assert torch.equal(odd.view(torch.uint8), ODD[code].view(torch.uint8))
    back = extract(tmp_path / "base", tmp_path / "out", rank=2)
    assert list(back.adapter) == [Q]
    assert "odd" in [item.name for item in back.skipped]


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz])
def test_weights_in_eight_bit_floats_are_merged_widened_and_refused_beyond_their_range(dtype, tmp_path):
    weight = torch.randn(8, 6, generator=generator()).to(dtype)
    base, change = {f"{Q}.weight": weight, "v.weight": weight}, layer(8, 6)
    merge(base, Adapter({Q: change}), tmp_path / "wide", dtype="bfloat16")
    wide = load_file(tmp_path / "wide" / "model.safetensors")
    exact = weight.double() + change.scaling * change.lora_B.double() @ change.lora_A.double()
    torch.testing.assert_close(wide[f"{Q}.weight"].double(), exact, rtol=2**-8, atol=2**-8)
    assert torch.equal(wide["v.weight"].float(), weight.float())
    merge(base, Adapter({Q: change}), tmp_path / "same")
    assert load_file(tmp_path / "same" / "model.safetensors")[f"{Q}.weight"].dtype == dtype
    with pytest.raises(NotFiniteError, match=f"more than {str(dtype)[6:]} holds"):
        merge(base, Adapter({Q: replace(change, alpha=1e7)}), tmp_path / "beyond")
    not_a_number = base | {f"{Q}.weight": torch.full((8, 6), float("nan")).to(dtype)}
    with pytest.raises(NotFiniteError, match="48 values that are NaN"):
        merge(not_a_number, Adapter({Q: change}), tmp_path / "nan")


def test_a_weight_of_zero_changes_nothing_and_is_reported(tmp_path):
    result = merge(BASE, Adapter({Q: layer(8, 6)}), tmp_path / "out", weights=[0])
    assert result.changed == 0
    assert ("adapter 1", "its weight is zero") in [(item.name, item.reason) for item in result.skipped]
    found = tensors_in(tmp_path / "out")
    assert all(torch.equal(found[name], tensor) for name, tensor in BASE.items())


class Notes(NoProgress):
    def __init__(self):
        self.notes, self.done = [], []

    def note(self, message):
        self.notes.append(message)

    def update(self, amount, detail=""):
        self.done.append(detail)


KILLED = """
import sys, time
from pathlib import Path
import eckart.operations.model_writer.writer as writer
from eckart.operations.merging.merge import merge
from eckart.engine import Execution, threads

threads.TINY_BYTES = 0  # a second worker writes the other tensors meanwhile
whole = writer.ModelWriter._write_tensor
def slow(self, tensor, *others):
    if tensor.name == "model.layers.1.self_attn.q_proj.weight":
        print("here", flush=True)
        time.sleep(600)
    return whole(self, tensor, *others)
writer.ModelWriter._write_tensor = slow
merge(sys.argv[1], sys.argv[2], sys.argv[3], execution=Execution(workers=2))
"""


def test_an_interrupted_merge_resumes_where_it_stopped(tmp_path):
    base = llama()
    save(base, tmp_path / "base")
    adapted(base, tmp_path / "adapter", r=2, target_modules=ATTENTION)
    places = [tmp_path / "base", tmp_path / "adapter", tmp_path / "out"]
    process = subprocess.Popen([sys.executable, "-c", KILLED, *map(str, places)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "here\n"
        deadline = time.monotonic() + 60
        kept = tmp_path / "out.partial"
        while len(list(kept.glob("*.safetensors"))) < 20 and time.monotonic() < deadline:
            time.sleep(0.02)
        with pytest.raises(OutputError, match="another process is writing"):
            merge(*places)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
    assert not (tmp_path / "out").exists()
    notes = Notes()
    merge(*places, execution=Execution(progress=notes))
    assert notes.notes == ["resuming: 20 of 21 matrices are already done"]
    assert notes.done == ["model.layers.1.self_attn.q_proj.weight"]
    merge(*places[:2], tmp_path / "fresh")
    found, expected = tensors_in(tmp_path / "out"), tensors_in(tmp_path / "fresh")
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert not kept.exists()


def interrupted(tmp_path, monkeypatch):
    """A merge that failed at its last tensor."""
    base = BASE | {"model.layers.0.o_proj.weight": torch.full((6, 8), float("nan"))}
    save_file(base, tmp_path / "base.safetensors")
    adapter = Adapter({Q: layer(8, 6), "model.layers.0.o_proj": layer(6, 8)})
    with pytest.raises(NotFiniteError):
        merge(tmp_path / "base.safetensors", adapter, tmp_path / "out", execution=Execution(workers=1))
    return tmp_path / "base.safetensors", adapter


def test_what_an_interrupted_run_left_is_not_used_after_a_change(tmp_path, monkeypatch):
    base, adapter = interrupted(tmp_path, monkeypatch)
    save_file(BASE, base)
    for weights, run in ((None, Execution(progress=Notes())), ([2.0], Execution(progress=Notes(), resume=False))):
        merge(base, adapter, tmp_path / "out", weights=weights, execution=run, force=True)
        assert len(run.progress.done) == len(BASE)
        exact = BASE[f"{Q}.weight"] + (weights or [1])[0] * adapter[Q].delta()
        torch.testing.assert_close(tensors_in(tmp_path / "out")[f"{Q}.weight"], exact)


def zeroed(content):
    """A safetensors file with the same header and other values."""
    start = 8 + int.from_bytes(content[:8], "little")
    return content[:start] + bytes(len(content) - start)


@pytest.mark.parametrize("damage", [lambda content: content[:-3], zeroed])
def test_files_of_an_interrupted_run_that_were_cut_or_replaced_are_written_again(damage, tmp_path, monkeypatch):
    base, adapter = interrupted(tmp_path, monkeypatch)
    file = tmp_path / "out.partial/model/model.safetensors"
    count = len(list(tmp_path.glob("out.partial/*.safetensors")))
    assert count > 3
    file.write_bytes(damage(file.read_bytes()))
    notes = Notes()
    with pytest.raises(NotFiniteError):
        merge(base, adapter, tmp_path / "out", execution=Execution(workers=1, progress=notes))
    assert len(notes.done) == count
    assert not [note for note in notes.notes if "resuming" in note]


def test_an_output_that_exists_is_replaced_only_by_force_and_inputs_never(tmp_path):
    base = save(llama(), tmp_path / "base")
    adapter = Adapter({"model.layers.0.self_attn.q_proj": layer(32, 32)})
    merge(base, adapter, tmp_path / "out")
    with pytest.raises(OutputError, match="exists"):
        merge(base, adapter, tmp_path / "out")
    merge(base, adapter, tmp_path / "out", force=True, weights=[0])
    assert {name: t.sum() for name, t in tensors_in(base).items()} == {
        name: t.sum() for name, t in tensors_in(tmp_path / "out").items()
    }
    with pytest.raises(OutputError, match="inputs are never changed"):
        merge(base, adapter, base, force=True)
    assert {path.name for path in tmp_path.iterdir()} == {"base", "out"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_rounding_to_the_stored_dtype_is_reported_relative_to_the_update(dtype, tmp_path):
    weight = torch.randn(40, 30, generator=generator()).to(dtype)
    added = layer(40, 30, alpha=0.01)
    result = merge({"a.weight": weight, "b.weight": weight.float()}, Adapter({"a": added}), tmp_path / "merged")
    stored = tensors_in(tmp_path / "merged")["a.weight"].double()
    exact = weight.double() + added.low_rank().dense()
    expected = float((stored - exact).norm() / (exact - weight.double()).norm())
    assert expected > 0.01
    assert result.update_error == pytest.approx(expected, rel=1e-3)
    assert result.requantization_error is None


def test_a_merge_that_rounds_nothing_costs_nothing(tmp_path):
    result = merge({"a.weight": torch.ones(4, 3)}, Adapter({"a": layer(4, 3)}), tmp_path / "merged")
    assert result.update_error is None


def test_an_adapter_in_kohyas_form_is_merged_under_the_names_of_the_base(tmp_path):
    base = {f"model.layers.{i}.q_proj.weight": torch.randn(40, 30, generator=generator(i)) for i in range(2)}
    adapter = Adapter({"model.layers.1.q_proj": layer(40, 30)})
    convert(adapter, "kohya", output=tmp_path / "kohya.safetensors")
    merge(base, adapter, tmp_path / "one")
    merge(base, tmp_path / "kohya.safetensors", tmp_path / "other")
    one, other = tensors_in(tmp_path / "one"), tensors_in(tmp_path / "other")
    assert all(torch.equal(one[name], other[name]) for name in base)


def test_config_fields_that_nobody_knows_are_named(tmp_path):
    adapter = Adapter({"a": layer(4, 3)}, config={"lora_of_tomorrow": True})
    result = merge({"a.weight": torch.ones(4, 3)}, adapter, tmp_path / "merged")
    assert any("lora_of_tomorrow" in item.name for item in result.skipped)
    resized = resize(adapter, rank=1)
    assert resized.adapter.config["lora_of_tomorrow"]
    assert any("lora_of_tomorrow" in item.name for item in resized.skipped)

"""llama.cpp's adapters: log probabilities of llama.cpp itself, round trips through PEFT, refusals by name."""

import re

import gguf
import numpy as np
import pytest
import torch

import eckart
from eckart.adapter import Adapter, AdapterLayer
from eckart.checkpoint import open_checkpoint
from eckart.errors import EckartError, FileFormatError, MismatchError, OptionError, OutputError, SourceError
from eckart.formats import load_adapter
from eckart.formats.gguf_architectures import architecture_of, targets
from eckart.operations.combination.combine import combine
from eckart.operations.conversion import convert
from eckart.operations.resizing.resize import resize

from .pipelines import assert_same_updates

pytestmark = pytest.mark.filterwarnings("ignore")

TOKENS = [5, 41, 33, 60, 12]
TEXT = torch.tensor([[1, 4093, 198, 2683, 359, 253]])
SIZES = {
    "vocab_size": 64, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "tie_word_embeddings": False, "pad_token_id": 0,
    "initializer_range": 0.2,
}  # fmt: skip
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "down_proj"]
UNLIKE = {"r": 4, "lora_alpha": 8, "rank_pattern": {"down_proj": 6, "v_proj": 2}, "alpha_pattern": {"q_proj": 20}}
STACKED = {"target_modules": ["q_proj"], "target_parameters": ["experts.gate_up_proj", "experts.down_proj"]}
BY_HEAD = ["query_key_value", "dense", "dense_h_to_4h"]
# Model type, changes of its config, and the LoRA's: every way in which llama.cpp stores a module.
CASES = {
    "llama": ("llama", {}, {"target_modules": LINEAR}),
    "llama, unlike ranks": ("llama", {}, {"target_modules": LINEAR, **UNLIKE}),
    "llama, rsLoRA": ("llama", {}, {"target_modules": LINEAR, "use_rslora": True, **UNLIKE}),
    "qwen2, vocabulary": ("qwen2", {}, {"target_modules": ["embed_tokens", "lm_head", "k_proj"], **UNLIKE}),
    "phi3, fused": ("phi3", {"num_key_value_heads": 4}, {"target_modules": ["qkv_proj", "gate_up_proj"], **UNLIKE}),
    "mixtral, experts": ("mixtral", EXPERTS, STACKED | {"r": 3, "rank_pattern": {"experts.down_proj": 2}}),
    "gpt2, Conv1D": ("gpt2", {"n_embd": 64, "n_layer": 2, "n_head": 4}, {"target_modules": ["c_attn", "c_proj"]}),
    "gpt_neox, by head": ("gpt_neox", {}, {"target_modules": BY_HEAD}),
    "bloom, by head": ("bloom", {"n_layer": 2, "n_head": 4}, {"target_modules": BY_HEAD, "use_rslora": True}),
    "falcon, by group": (
        "falcon", {"num_kv_heads": 2, "new_decoder_architecture": True, "bias": False}, {"target_modules": BY_HEAD}
    ),
}  # fmt: skip
IN_LLAMA_CPP = [case for case in CASES if case.startswith(("llama", "qwen2", "phi3", "mixtral"))]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A case's folder with `base` and `adapter`, and the log probabilities of PEFT's model."""
    cache = {}

    def make(case):
        if case not in cache:
            kind, changes, lora = CASES[case]
            folder = tmp_path_factory.mktemp(kind)
            cache[case] = folder, save(folder, kind, SIZES | changes, lora)
        return cache[case]

    return make


def save(folder, kind, settings, lora):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **settings)).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name and name.endswith("weight"):
            torch.nn.init.normal_(parameter, 1, 0.1)
    model.save_pretrained(folder / "base")
    adapted = get_peft_model(model, LoraConfig(fan_in_fan_out=kind == "gpt2", **({"r": 4, "lora_alpha": 8} | lora)))
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, 0, 0.2)
    adapted.save_pretrained(folder / "adapter")
    with torch.no_grad():
        return adapted(torch.tensor([TOKENS])).logits[0].double().log_softmax(-1).numpy()


def write_base(folder, file):
    """A model as llama.cpp's converter writes it: q and k of Llama and Mixtral interleaved, experts stacked."""
    checkpoint = open_checkpoint(folder)
    config = checkpoint.config
    name = {"mixtral": "llama"}.get(config["model_type"], config["model_type"])
    writer = gguf.GGUFWriter(file, name)
    writer.add_context_length(128)
    writer.add_block_count(2)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(96)
    writer.add_head_count(4)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(16)
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_vocab_size(64)
    if name == "phi3":
        writer.add_sliding_window(0)
        writer.add_rope_scaling_orig_ctx_len(128)
    if config["model_type"] == "mixtral":
        writer.add_expert_count(4)
        writer.add_expert_used_count(2)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([f"<{number}>" for number in range(64)])
    writer.add_token_types([1] * 64)
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    arch = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == name)
    names, stacks = gguf.get_tensor_name_map(arch, 2), {}
    for hf in checkpoint.tensors:
        weight = checkpoint.read(hf)
        if match := re.fullmatch(r"model\.layers\.(\d)\.\w+\.experts\.(\d)\.(w\d)\.weight", hf):
            part = {"w1": "gate", "w2": "down", "w3": "up"}[match[3]]
            stacks.setdefault(f"blk.{match[1]}.ffn_{part}_exps.weight", {})[int(match[2])] = weight
            continue
        if name == "llama" and (match := re.search(r"\.([qk])_proj\.", hf)):
            heads = 4 if match[1] == "q" else 2
            weight = weight.reshape(heads, 2, -1, weight.shape[-1]).transpose(1, 2).reshape(weight.shape)
        writer.add_tensor(names.get_name(hf, (".weight", ".bias")), weight.float().numpy())
    for tensor, experts in stacks.items():
        writer.add_tensor(tensor, torch.stack([experts[index] for index in sorted(experts)]).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def log_probabilities(model, adapter=None, *, tokens=TOKENS, vocabulary=64):
    """Those that llama.cpp computes after each token."""
    llama = pytest.importorskip("xllamacpp", reason="xllamacpp, llama.cpp as a wheel, is not installed")
    params = llama.CommonParams()
    params.model.path = str(model)
    params.n_ctx, params.n_parallel, params.warmup, params.verbosity = 64, 1, False, -1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.cache_type_k = params.cache_type_v = llama.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = llama.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    if adapter is not None:
        lora = llama.CommonAdapterLoraInfo()
        lora.path, lora.scale = str(adapter), 1.0
        params.lora_adapters = [lora]
    server = llama.Server(params)
    rows = []
    request = {"max_tokens": 1, "logprobs": vocabulary, "temperature": 0, "cache_prompt": False}
    for count in range(1, len(tokens) + 1):
        (choice,) = server.handle_completions(request | {"prompt": tokens[:count]})["choices"]
        top = {each["id"]: each["logprob"] for each in choice["logprobs"]["content"][0]["top_logprobs"]}
        rows.append([top[token] for token in range(vocabulary)])
    return np.array(rows)


@pytest.mark.parametrize("case", IN_LLAMA_CPP)
def test_llama_cpp_computes_with_the_file_what_peft_computes(case, made, tmp_path):
    folder, expected = made(case)
    write_base(folder / "base", tmp_path / "base.gguf")
    convert(folder / "adapter", "gguf", base=folder / "base", output=tmp_path / "adapter.gguf")
    found = log_probabilities(tmp_path / "base.gguf", tmp_path / "adapter.gguf")
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
    without = log_probabilities(tmp_path / "base.gguf")
    assert np.abs(without - expected).max() > 0.1


@pytest.fixture(scope="module")
def in_float32(smollm2, tmp_path_factory):
    """The GGUF file of SmolLM2-135M-Instruct, dequantized."""
    reader, file = gguf.GGUFReader(smollm2), tmp_path_factory.mktemp("smollm2") / "base.gguf"
    writer = gguf.GGUFWriter(file, "llama")
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            writer.add_key_value(field.name, field.contents(), field.types[0], field.types[-1])
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, gguf.dequantize(tensor.data, tensor.tensor_type))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.mark.slow
@pytest.mark.parametrize("scales", [{"r": 8, "lora_alpha": 16}, UNLIKE, {**UNLIKE, "use_rslora": True}])
def test_a_real_model_computes_in_llama_cpp_what_it_computes_in_peft(scales, smollm2, in_float32, tmp_path):
    from peft import LoraConfig, get_peft_model

    from eckart.evaluation import load_model

    torch.manual_seed(0)
    lora = LoraConfig(target_modules=[*LINEAR, "gate_proj", "up_proj"], init_lora_weights=False, **scales)
    adapted = get_peft_model(load_model(smollm2), lora)
    adapted.save_pretrained(tmp_path / "adapter")
    with torch.no_grad():
        expected, without = adapted(TEXT).logits[0].double().log_softmax(-1), adapted.unload()(TEXT).logits[0]
    convert(tmp_path / "adapter", "gguf", base=smollm2, output=tmp_path / "adapter.gguf")
    tokens, vocabulary = TEXT[0].tolist(), expected.shape[-1]
    found = log_probabilities(in_float32, tmp_path / "adapter.gguf", tokens=tokens, vocabulary=vocabulary)
    assert np.linalg.norm(found - expected.numpy()) <= 1e-4 * expected.norm()
    assert (without.double().log_softmax(-1) - expected).norm() > 0.1 * expected.norm()


@pytest.mark.parametrize("case", [case for case in CASES if "experts" not in case])
def test_the_way_to_llama_cpp_and_back_changes_no_update(case, made, tmp_path):
    folder, _ = made(case)
    file = convert(folder / "adapter", "gguf", base=folder / "base", output=tmp_path / "a.gguf").output
    back = convert(file, "peft", base=folder / "base", output=tmp_path / "back")
    assert_same_updates(load_adapter(back.output), load_adapter(folder / "adapter"), relative=1e-6)


def test_experts_in_a_file_are_merged_like_those_of_peft(made, tmp_path):
    folder, _ = made("mixtral, experts")
    file = convert(folder / "adapter", "gguf", base=folder / "base", output=tmp_path / "a.gguf").output
    sources = {"one": folder / "adapter", "two": file}
    one, two = (
        open_checkpoint(eckart.merge(folder / "base", source, output=tmp_path / name).output)
        for name, source in sources.items()
    )
    experts = [name for name in one.tensors if ".experts." in name]
    assert len(experts) == 2 * 4 * 3
    for name in experts:
        torch.testing.assert_close(two.read(name), one.read(name), rtol=0, atol=1e-6)


def test_a_merge_into_a_gguf_model_equals_the_one_into_the_model_it_was_made_from(made, tmp_path):
    folder, _ = made("llama, unlike ranks")
    write_base(folder / "base", tmp_path / "base.gguf")
    convert(folder / "adapter", "gguf", base=folder / "base", output=tmp_path / "a.gguf")
    merged = [
        open_checkpoint(eckart.merge(base, adapter, output=tmp_path / name).output)
        for name, base, adapter in (
            ("one", folder / "base", folder / "adapter"),
            ("two", folder / "base", tmp_path / "a.gguf"),
            ("three", tmp_path / "base.gguf", tmp_path / "a.gguf"),
        )
    ]
    for name in merged[0].tensors:
        for other in merged[1:]:
            torch.testing.assert_close(other.read(name), merged[0].read(name), rtol=0, atol=1e-6)


def test_gguf_adapters_are_resized_and_combined_without_a_model(made, tmp_path):
    folder, _ = made("llama, unlike ranks")
    file = convert(folder / "adapter", "gguf", base=folder / "base", output=tmp_path / "a.gguf").output
    small = resize(file, output=tmp_path / "small.gguf", rank=2)
    assert {layer.rank for layer in load_adapter(tmp_path / "small.gguf").values()} == {2}
    assert small.error == pytest.approx(resize(folder / "adapter", rank=2).error, rel=1e-6)
    combine([file, file], output=tmp_path / "both.gguf", weights=[0.5, 0.5])
    assert_same_updates(load_adapter(tmp_path / "both.gguf"), load_adapter(file), relative=1e-5)
    comparison = eckart.compare(file, folder / "adapter", base=folder / "base")
    assert comparison.cosine == pytest.approx(1, abs=1e-9)


def test_norms_are_in_the_file_and_llama_cpp_is_said_to_ignore_them(made, tmp_path):
    folder, _ = made("llama")
    source = load_adapter(folder / "adapter")
    norm = torch.randn(64)
    whole = Adapter(dict(source.items()), {"model.layers.1.input_layernorm.weight": norm}, format="peft")
    result = convert(whole, "gguf", base=folder / "base", output=tmp_path / "a.gguf")
    assert [item.name for item in result.skipped] == ["blk.1.attn_norm.weight"]
    assert "llama.cpp ignores the norms" in result.skipped[0].reason
    back = convert(tmp_path / "a.gguf", "peft", base=folder / "base").adapter
    assert torch.equal(back.modules_to_save["model.layers.1.input_layernorm.weight"], norm)


def layer(**parts):
    return AdapterLayer(torch.randn(2, 64), torch.randn(64, 2), 4.0, **parts)


@pytest.mark.parametrize(
    ("layers", "saved", "message"),
    [
        ({"model.layers.0.self_attn.q_proj": {"magnitude": torch.ones(64)}}, {}, "DoRA"),
        ({"model.layers.0.self_attn.q_proj": {"bias": torch.ones(64)}}, {}, "lora_bias"),
        ({"model.layers.0.self_attn.x_proj": {}}, {}, "llama models have no such tensor"),
        (
            {"model.layers.0.self_attn.q_proj": {}},
            {"lm_head.weight": torch.ones(64, 64)},
            "llama.cpp loads only updates",
        ),
    ],
)
def test_what_llama_cpp_cannot_load_is_refused_by_name(layers, saved, message, made):
    folder, _ = made("llama")
    adapter = Adapter({name: layer(**parts) for name, parts in layers.items()}, saved)
    with pytest.raises(MismatchError, match=message) as error:
        convert(adapter, "gguf", base=folder / "base")
    assert next(iter(saved or layers)) in str(error.value)


@pytest.mark.parametrize(
    ("config", "name", "message"),
    [
        ({"model_type": "lama"}, "model.layers.0.self_attn.q_proj", "of lama is not known.*nearest are.*llama"),
        ({"model_type": "llama"}, "model.layers.0.self_attn.q_proj", "num_attention_heads.*`base`"),
        (
            {"model_type": "llama", "tie_word_embeddings": True},
            "lm_head",
            "are one, for which llama.cpp has no adapters",
        ),
        ({"model_type": "llama"}, "lm_head", "whether embedding and output layer are one"),
        (
            {"model_type": "deepseek_v3"},
            "model.layers.0.self_attn.q_a_proj",
            "llama.cpp ignores an adapter of attn_q_a",
        ),
        ({}, "model.layers.0.self_attn.q_proj", "give the model as `base`"),
    ],
)
def test_a_model_that_does_not_decide_is_refused(config, name, message):
    from eckart.formats.gguf_names import from_modules
    from eckart.formats.model_names import Model

    model = Model("a model", {}, None, is_pipeline=False, config=config)
    renaming = from_modules(Adapter({name: layer()}), model)
    assert re.search(message, "\n".join(renaming.faults)), renaming.faults


def test_rows_that_do_not_divide_into_heads_are_refused():
    config = {"model_type": "llama", "num_attention_heads": 5}
    with pytest.raises(ValueError, match="64 outputs do not divide into 10 parts"):
        targets("model.layers.0.self_attn.q_proj", 64, architecture_of(config), config)


def written(file, *, tensors=None, **metadata):
    """An adapter file; a metadata value of None is left out."""
    fields = {"general.type": "adapter", "adapter.type": "lora", "adapter.lora.alpha": 4.0} | metadata
    writer = gguf.GGUFWriter(file, "llama")
    for name, value in fields.items():
        if value is not None:
            {str: writer.add_string, float: writer.add_float32, list: writer.add_array}[type(value)](name, value)
    pair = {"lora_a": np.ones((2, 6)), "lora_b": np.ones((8, 2))}
    for name, value in (
        {f"blk.0.attn_v.weight.{part}": factor for part, factor in pair.items()} if tensors is None else tensors
    ).items():
        writer.add_tensor(name, value.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.mark.parametrize(("alpha", "scale"), [(4.0, 2.0), (0.0, 1.0), (None, 1.0), (-1.0, -0.5)])
def test_the_scale_is_alpha_over_rank_or_one_without_alpha(alpha, scale, tmp_path):
    (one,) = load_adapter(written(tmp_path / "a.gguf", **{"adapter.lora.alpha": alpha})).values()
    assert one.scaling == scale


@pytest.mark.parametrize(
    ("tensors", "metadata", "message"),
    [
        (None, {"adapter.type": "control"}, "adapter.type is 'control'"),
        (None, {"adapter.lora.alpha": float("nan")}, "alpha is nan"),
        (None, {"adapter.lora.alpha": "16"}, "alpha is '16'"),
        (None, {"adapter.alora.invocation_tokens": [1, 2]}, "aLoRA"),
        ({"blk.0.attn_v.weight.lora_a": np.ones((2, 6))}, {}, "blk.0.attn_v: lora_b missing"),
        ({"blk.0.attn_v.weight": np.ones((2, 6))}, {}, "neither a factor of a LoRA nor the weight of a norm"),
        (
            {"blk.0.attn_v.weight.lora_a": np.ones((2, 6)), "blk.0.attn_v.weight.lora_b": np.ones((8, 3))},
            {},
            "not a product of one rank",
        ),
        (
            {"blk.0.x.weight.lora_a": np.ones((5000, 1, 1)), "blk.0.x.weight.lora_b": np.ones((5000, 1, 1))},
            {},
            "up to 4096 experts",
        ),
        ({}, {}, "no LoRA tensors"),
    ],
)
def test_a_damaged_adapter_is_refused(tensors, metadata, message, tmp_path):
    with pytest.raises(FileFormatError, match=re.escape(message)):
        load_adapter(written(tmp_path / "a.gguf", tensors=tensors, **metadata))


def test_a_truncated_adapter_is_refused_at_every_length(tmp_path):
    data = written(tmp_path / "a.gguf").read_bytes()
    for length in range(4, len(data) - 64, 97):
        (tmp_path / "b.gguf").write_bytes(data[:length])
        with pytest.raises(EckartError):
            load_adapter(tmp_path / "b.gguf")


def test_an_adapter_of_another_architecture_is_refused(made, tmp_path):
    folder, _ = made("qwen2, vocabulary")
    with pytest.raises(MismatchError, match=r"for llama.cpp's llama models, .* is one of type qwen2"):
        convert(written(tmp_path / "a.gguf"), "peft", base=folder / "base")


def test_messages_say_what_is_needed(made, tmp_path):
    folder, _ = made("llama")
    with pytest.raises(OutputError, match=r"name it a.gguf"):
        convert(folder / "adapter", "gguf", base=folder / "base", output=tmp_path / "a")
    with pytest.raises(MismatchError, match=r"give it as `base`"):
        convert(written(tmp_path / "b.gguf"), "peft")
    with pytest.raises(OptionError, match="is an adapter, not a model"):
        eckart.analyze(folder / "base", base=tmp_path / "b.gguf")
    write_base(folder / "base", tmp_path / "model.gguf")
    with pytest.raises(SourceError, match="nor a GGUF file"):
        load_adapter(tmp_path / "model.gguf")


def test_writing_twice_with_force_replaces_the_file(made, tmp_path):
    folder, _ = made("llama")
    for _ in range(2):
        convert(folder / "adapter", "gguf", base=folder / "base", output=tmp_path / "a.gguf", force=True)
    with pytest.raises(OutputError, match="already exists"):
        convert(folder / "adapter", "gguf", base=folder / "base", output=tmp_path / "a.gguf")

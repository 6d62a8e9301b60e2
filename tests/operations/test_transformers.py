"""Adapters of transformers' architectures, on folders that transformers wrote: merged weights are those of PEFT."""

import json

import pytest
import torch

from eckart.checkpoint import open_checkpoint
from eckart.checkpoint.module_tree import _RULES, names_in_transformers, tree_name
from eckart.checkpoint.replicated import replicated_config
from eckart.errors import MismatchError
from eckart.formats import load_adapter
from eckart.nn import adapter_applied
from eckart.operations import combine, extract, plan_extract, resize, to_lora, unmerge
from eckart.operations.checking.fitting import fits_as_planned
from eckart.operations.merging.merge import merge

from .peft_modules import with_random_adapter
from .peft_table import MODELS

# PEFT and transformers warn about their own internals; what is tested here is their numbers.
pytestmark = pytest.mark.filterwarnings("ignore")

SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 96, "max_position_embeddings": 64, "head_dim": 8, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
LLAMA4 = SIZES | {
    "num_local_experts": 4, "num_experts_per_tok": 1, "intermediate_size_mlp": 48, "interleave_moe_layer_step": 1,
}  # fmt: skip
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 96, "n_positions": 64}
VOCABULARY, NEW = ["embed_tokens", "lm_head"], [96, 97, 98, 99]
EXPERTS = ["experts.gate_up_proj", "experts.down_proj"]
# Name: model type, its config, the adapter's config.
CASES = {
    "Llama 4": ("llama4_text", LLAMA4, {"target_modules": ["q_proj"], "target_parameters": EXPERTS}),
    "Llama 4, square": (
        *("llama4_text", LLAMA4 | {"intermediate_size": 32}),
        {"target_modules": [], "target_parameters": EXPERTS[1:]},
    ),
    "gpt-oss, square": (
        *("gpt_oss", SIZES | {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 32}),
        {"target_modules": [], "target_parameters": EXPERTS[1:]},
    ),
    "Granite experts": (
        *("granitemoe", SIZES | {"num_local_experts": 4, "num_experts_per_tok": 2}),
        {"target_modules": ["q_proj"], "target_parameters": EXPERTS},
    ),
    "all-linear": (
        *("qwen3_moe", SIZES | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}),
        {"target_modules": "all-linear"},
    ),
    "router": (
        *("qwen3_moe", SIZES | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}),
        {"target_modules": ["q_proj"], "target_parameters": ["mlp.gate.weight"]},
    ),
    "tokens": ("llama", SIZES, {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [1, 95]}}),
    "tokens of a tied embedding": (
        *("llama", SIZES | {"tie_word_embeddings": True}),
        {"target_modules": ["q_proj"], "trainable_token_indices": [7, 2, 5]},
    ),
    "square Conv1D": ("gpt2", GPT2, {"target_modules": ["attn.c_proj"]}),
}
ENCODER_DECODER = {
    "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "vocab_size": 96, "max_position_embeddings": 64,
}  # fmt: skip
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": 4, "vocab_size": 96}
BERT = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 96,
    "max_position_embeddings": 64,
}  # fmt: skip
SEQ2SEQ, MASKED = "AutoModelForSeq2SeqLM", "AutoModelForMaskedLM"
# Name: class, model type, its config, the adapter's config; all of them tie weights that the adapter changes apart.
TIED = {
    "BART, saved head": (
        SEQ2SEQ, "bart", ENCODER_DECODER, {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    ),
    "BART, head": (SEQ2SEQ, "bart", ENCODER_DECODER, {"target_modules": ["q_proj", "lm_head"]}),
    "BART, embeddings": (SEQ2SEQ, "bart", ENCODER_DECODER, {"target_modules": ["decoder.embed_tokens"]}),
    "M2M-100, head": (SEQ2SEQ, "m2m_100", ENCODER_DECODER, {"target_modules": ["lm_head"]}),
    "T5, head": (SEQ2SEQ, "t5", T5, {"target_modules": ["q", "lm_head"]}),
    "mT5, embeddings": (SEQ2SEQ, "mt5", T5, {"target_modules": ["encoder.embed_tokens"]}),
    "BERT, head": (MASKED, "bert", BERT, {"target_modules": ["query", "decoder"]}),
    "RoBERTa, saved head": (MASKED, "roberta", BERT, {"target_modules": ["query"], "modules_to_save": ["lm_head"]}),
    "Llama, head": (
        *("AutoModelForCausalLM", "llama", SIZES | {"tie_word_embeddings": True}), {"target_modules": ["lm_head"]},
    ),
}  # fmt: skip


CAUSAL = "AutoModelForCausalLM"
CLASSIFIER = "AutoModelForSequenceClassification"
# Name: class, model type, its config, the adapter's config; all of them have more than plain updates.
SAVING = {
    "embedding and head": (
        *("AutoModelForCausalLM", "llama", SIZES), {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
    ),
    "classifier": (CLASSIFIER, "roberta", BERT, {"target_modules": ["query"], "task_type": "SEQ_CLS"}),
    "tokens": (CAUSAL, *CASES["tokens"]),
    "router and experts": (CAUSAL, "qwen3_moe", CASES["router"][1], {"target_modules": "all-linear"}),
    "score": (CLASSIFIER, "llama", SIZES, {"target_modules": ["q_proj"], "task_type": "SEQ_CLS"}),
}  # fmt: skip

MIXTURE = SIZES | {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2}
# Model types and configs of mixtures: fused in the files, fused under other names, or one module for each expert.
MIXTURES = {
    "gpt_oss": MIXTURE,
    "llama4_text": LLAMA4,
    "granitemoe": MIXTURE,
    "qwen3_moe": MIXTURE | {"moe_intermediate_size": 24},
    "mixtral": MIXTURE,
}
IMAGE_TEXT = "AutoModelForImageTextToText"
VISION = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16,
    "patch_size": 8,
}  # fmt: skip
QWEN_TEXT = SIZES | {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}}


def text_and_image(text, vision, sizes=VISION, **more):
    parts = {"text_config": SIZES | {"model_type": text}, "vision_config": sizes | {"model_type": vision}}
    return parts | {"image_token_index": 5, "tie_word_embeddings": False} | more


# Name: class, model type and config, of models whose files name modules otherwise than the models themselves.
RENAMED = {
    "Gemma 3": (IMAGE_TEXT, "gemma3", text_and_image("gemma3_text", "siglip_vision_model", mm_tokens_per_image=4)),
    "Mistral 3": (IMAGE_TEXT, "mistral3", text_and_image("mistral", "pixtral", VISION | {"num_channels": 3})),
    "LLaVA": (IMAGE_TEXT, "llava", text_and_image("llama", "clip_vision_model")),
    "PaliGemma": (IMAGE_TEXT, "paligemma", text_and_image("gemma", "siglip_vision_model", projection_dim=32)),
    "Qwen2-VL": (
        *(IMAGE_TEXT, "qwen2_vl"),
        {
            "text_config": QWEN_TEXT,
            "vision_config": {"depth": 1, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2},
        },
    ),
    "Qwen2.5-VL": (
        *(IMAGE_TEXT, "qwen2_5_vl"),
        {
            "text_config": QWEN_TEXT,
            "vision_config": {
                "depth": 1, "hidden_size": 16, "out_hidden_size": 32, "num_heads": 2, "intermediate_size": 24,
                "fullatt_block_indexes": [0],
            },
        },
    ),
    "Qwen3-VL": (
        *(IMAGE_TEXT, "qwen3_vl"),
        {
            "text_config": QWEN_TEXT,
            "vision_config": {
                "depth": 1, "hidden_size": 16, "out_hidden_size": 32, "num_heads": 2, "intermediate_size": 24,
                "deepstack_visual_indexes": [0], "num_position_embeddings": 16,
            },
        },
    ),
    "Qwen3.5": (
        *(IMAGE_TEXT, "qwen3_5"),
        {
            "text_config": QWEN_TEXT | {
                "linear_num_value_heads": 2, "linear_num_key_heads": 2, "linear_key_head_dim": 8,
                "linear_value_head_dim": 8, "layer_types": ["linear_attention", "full_attention"],
            },
            "vision_config": {
                "depth": 1, "hidden_size": 16, "out_hidden_size": 32, "num_heads": 2, "intermediate_size": 24,
                "num_position_embeddings": 16,
            },
        },
    ),
    "GPT-NeoX": (
        *(CAUSAL, "gpt_neox"),
        {
            "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4,
            "vocab_size": 96, "max_position_embeddings": 64,
        },
    ),
    "ViT": ("AutoModelForImageClassification", "vit", VISION),
}  # fmt: skip
# Parts of the names of projections that the tests adapt.
PROJECTIONS = ("q_proj", "v_proj", "query_key_value", "lm_head")
# Name: whether the base ties its output layer, and the adapter's config; the vocabulary grows before training.
GROWN = {
    "beside": (False, {"target_modules": ["q_proj"]}),
    "tied": (True, {"target_modules": ["q_proj"]}),
    "saved": (False, {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}),
    "adapted": (False, {"target_modules": ["embed_tokens", "lm_head"]}),
    "some rows": (False, {"target_modules": ["q_proj"], "trainable_token_indices": [5, 97]}),
    "rows of both": (False, {"target_modules": ["q_proj"], "trainable_token_indices": dict.fromkeys(VOCABULARY, NEW)}),
    "tied rows": (True, {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": NEW}}),
}
# Name: tokens of a fine-tune, whether the common ones changed, how it is extracted, tokens then, the config's field.
TOKENS = {
    "more, without": (100, False, {"exclude": VOCABULARY}, 96, None),
    "more, as rows": (100, False, {}, 100, "trainable_token_indices"),
    "more, all changed": (100, True, {"target": ".*"}, 100, "modules_to_save"),
    "more, saved": (100, True, {"modules_to_save": VOCABULARY}, 100, "modules_to_save"),
    "fewer": (92, False, {}, 96, None),
    "fewer, all changed": (92, True, {"target": ".*"}, 96, None),
    "fewer, saved": (92, True, {"modules_to_save": VOCABULARY}, 92, "modules_to_save"),
}
# Name: class of the base, class of the adapted model, model type, its config, the adapter's config.
HEADS = {
    "Llama": (CAUSAL, CLASSIFIER, "llama", SIZES, {"target_modules": ["q_proj"], "task_type": "SEQ_CLS"}),
    "GPT-2": (CAUSAL, CLASSIFIER, "gpt2", GPT2, {"target_modules": ["c_attn"], "task_type": "SEQ_CLS"}),
    "DistilBERT": (
        *(MASKED, CLASSIFIER, "distilbert", {"dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4}),
        {"target_modules": ["q_lin"], "task_type": "SEQ_CLS"},
    ),
    "BERT": (
        *(MASKED, "AutoModelForTokenClassification", "bert", BERT),
        {"target_modules": ["query"], "task_type": "TOKEN_CLS"},
    ),
}  # fmt: skip


def auto_class(kind, auto="AutoModelForCausalLM"):
    import transformers

    return getattr(transformers, auto)


def base_model(folder, kind, config, auto="AutoModelForCausalLM"):
    """A random model, saved and loaded again as users have it."""
    from transformers import AutoConfig

    torch.manual_seed(0)
    model = auto_class(kind, auto).from_config(AutoConfig.for_model(kind, **config))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.05)
    model.save_pretrained(folder)
    return type(model).from_pretrained(folder).eval()


def adapted(model, folder, **options):
    """The model with a random adapter of PEFT's, saved to a folder."""
    from peft import LoraConfig

    config = LoraConfig(init_lora_weights=False, **{"r": 4, "lora_alpha": 10, **options})
    return with_random_adapter(model, config, folder)


def assert_same_weights(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        scale = float(tensor.abs().max()) if tensor.numel() else 0
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=2e-5 * scale, msg=lambda text: f"{name}: {text}")  # noqa: B023


@pytest.mark.parametrize("case", CASES)
def test_a_merged_folder_loads_with_the_weights_that_peft_merges(case, tmp_path):
    kind, config, options = CASES[case]
    model = adapted(base_model(tmp_path / "base", kind, config), tmp_path / "adapter", **options)
    merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    expected = model.merge_and_unload()
    assert_same_weights(type(expected).from_pretrained(tmp_path / "merged").state_dict(), expected.state_dict())


def rename_type(folder, **changes):
    """Another model type in a config, as a class outside transformers has."""
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    ("case", "others", "said"),
    [
        ("square Conv1D", (), "fan_in_fan_out is true"),
        ("square Conv1D", ("transformer.h.0.attn.c_attn.weight",), None),
        ("square Conv1D", ("transformer.h.0.mlp.c_fc.weight", "transformer.h.0.mlp.c_fc.bias"), None),
        ("gpt-oss, square", (), "the experts are square"),
    ],
)
def test_the_orientation_of_a_square_matrix_comes_from_its_like_or_the_merge_is_refused(case, others, said, tmp_path):
    """`others` are the tensors of the base next to those that the adapter updates; the model type is unknown."""
    from safetensors.torch import load_file, save_file

    kind, config, options = CASES[case]
    model = adapted(base_model(tmp_path / "base", kind, config), tmp_path / "adapter", **options)
    file = tmp_path / "base/model.safetensors"
    square = "attn.c_proj.weight" if case == "square Conv1D" else "experts.down_proj"
    kept = {name: tensor for name, tensor in load_file(file).items() if name in others or name.endswith(square)}
    save_file(kept, file, {"format": "pt"})
    rename_type(tmp_path / "base", model_type="another", hidden_size=None, architectures=None)
    if said:
        with pytest.raises(MismatchError, match=said):
            merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
        return
    merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    expected = model.merge_and_unload().state_dict()
    found = load_file(tmp_path / "merged/model.safetensors")
    assert_same_weights(found, {name: expected[name] for name in kept})


def logits(model, more_tokens=()):
    ids = torch.tensor([*range(3, 19), *more_tokens]).view(2, -1)
    more = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return model(input_ids=ids, **more).logits


@pytest.mark.parametrize("stored", ["once", "twice"])
@pytest.mark.parametrize("case", TIED)
def test_weights_that_an_adapter_unties_are_all_written_and_the_config_says_so(case, stored, tmp_path):
    from safetensors.torch import load_file, save_file

    auto, kind, config, options = TIED[case]
    base = base_model(tmp_path / "base", kind, config, auto)
    before, names = logits(base), set(base.state_dict())
    if stored == "twice":  # as a save of transformers 4 may be
        file = tmp_path / "base/model.safetensors"
        save_file({name: tensor.clone() for name, tensor in base.state_dict().items()}, file, {"format": "pt"})
    model = adapted(base, tmp_path / "adapter", **options)
    merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    expected = logits(model)
    assert not torch.allclose(expected, before, atol=1e-3)
    merged, info = auto_class(kind, auto).from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert not info["missing_keys"]
    torch.testing.assert_close(logits(merged.eval()), expected, rtol=0, atol=2e-5 * float(expected.abs().max()))
    written = json.loads((tmp_path / "merged/config.json").read_text())
    assert "t5" in kind or written["tie_word_embeddings"] is False
    assert set(load_file(tmp_path / "merged/model.safetensors")) >= names


@pytest.mark.parametrize("case", SAVING)
def test_what_is_not_a_plain_update_survives_resize_and_combine_for_peft(case, tmp_path):
    from peft import PeftModel

    auto, kind, config, options = SAVING[case]
    model = adapted(base_model(tmp_path / "base", kind, config, auto), tmp_path / "adapter", **options)
    expected = logits(model)
    resize(tmp_path / "adapter", rank=8, output=tmp_path / "resized")  # PEFT doubles the rank of gate_up_proj
    both = [tmp_path / "adapter", tmp_path / "resized"]
    combine(both, weights=[0.25, 0.75], output=tmp_path / "combined")
    source = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    for folder in ("resized", "combined"):
        again = PeftModel.from_pretrained(
            auto_class(kind, auto).from_pretrained(tmp_path / "base"), tmp_path / folder
        ).eval()
        torch.testing.assert_close(logits(again), expected, rtol=0, atol=2e-5 * float(expected.abs().max()))
        written = json.loads((tmp_path / folder / "adapter_config.json").read_text())
        assert set(written.get("modules_to_save") or ()) <= set(source["modules_to_save"] or ())
    if case == "embedding and head":
        combine(both, output=tmp_path / "sum")  # without the base: PEFT's copies of its weights are not added up
        for adapters, output in ((tmp_path / "sum", "one"), (both, "two")):
            merge(tmp_path / "base", adapters, tmp_path / output)
        found, expected = (auto_class(kind).from_pretrained(tmp_path / name).state_dict() for name in ("one", "two"))
        assert_same_weights(found, expected)


def grown_adapter(tmp_path, case, **saving):
    """A base, and an adapter of it with four more tokens and a tokenizer; the adapted model."""
    tied, options = GROWN[case]
    model = base_model(tmp_path / "base", "llama", SIZES | {"tie_word_embeddings": tied})
    (tmp_path / "base/tokenizer.json").write_text("{}")
    model.resize_token_embeddings(100, mean_resizing=False)
    model = adapted(model, tmp_path / "adapter", **options)
    model.save_pretrained(tmp_path / "adapter", **saving)
    (tmp_path / "adapter/tokenizer.json").write_text('{"added_tokens": []}')
    return model


@pytest.mark.parametrize(
    ("case", "saving"),
    [*((case, "auto") for case in GROWN), ("rows of both", False), ("tied rows", False)],
)
def test_a_larger_vocabulary_is_merged_and_rewritten_with_its_size_and_tokenizer(case, saving, tmp_path):
    from peft import PeftModel

    model = grown_adapter(tmp_path, case, save_embedding_layers=saving)
    merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    computed, expected = logits(model, NEW), model.merge_and_unload()
    merged = type(expected).from_pretrained(tmp_path / "merged").eval()
    assert_same_weights(merged.state_dict(), expected.state_dict())
    torch.testing.assert_close(logits(merged, NEW), computed, rtol=0, atol=2e-5 * float(computed.abs().max()))
    assert merged.config.vocab_size == 100
    assert (tmp_path / "merged/tokenizer.json").read_text() == '{"added_tokens": []}'
    stays = [item.reason for item in to_lora(tmp_path / "adapter", tmp_path / "base", rank=8).skipped]
    assert ("stays a saved tensor: the base has no such tokens" in stays) == (saving is False)
    resize(tmp_path / "adapter", rank=4, output=tmp_path / "resized")
    combine([tmp_path / "adapter", tmp_path / "resized"], weights=[0.25, 0.75], output=tmp_path / "combined")
    for folder in ("resized", "combined"):
        grown = type(expected).from_pretrained(tmp_path / "base")
        grown.resize_token_embeddings(100, mean_resizing=False)
        again = PeftModel.from_pretrained(grown, tmp_path / folder).eval()
        torch.testing.assert_close(logits(again, NEW), computed, rtol=0, atol=2e-5 * float(computed.abs().max()))


@pytest.mark.parametrize(
    ("change", "weight", "said"),
    [
        (lambda tensors: tensors.pop("base_model.model.lm_head.weight"), 1, r"resize_token_embeddings\(100\)"),
        (lambda tensors: None, 0.5, "its weight must be 1"),
    ],
)
def test_a_larger_vocabulary_without_all_its_tensors_is_refused(change, weight, said, tmp_path):
    from safetensors.torch import load_file, save_file

    grown_adapter(tmp_path, "beside")
    file = tmp_path / "adapter/adapter_model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
    with pytest.raises(MismatchError, match=said):
        merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged", weights=[weight])


@pytest.mark.parametrize("case", HEADS)
def test_a_head_that_only_the_adapter_has_is_written_for_its_class(case, tmp_path):
    auto, adapted_class, kind, config, options = HEADS[case]
    base_model(tmp_path / "base", kind, config, auto)
    model = auto_class(kind, adapted_class).from_pretrained(tmp_path / "base", num_labels=3).eval()
    expected = adapted(model, tmp_path / "adapter", **options).merge_and_unload()
    merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    merged = auto_class(kind, adapted_class).from_pretrained(tmp_path / "merged")
    assert_same_weights(merged.state_dict(), expected.state_dict())
    assert merged.config.architectures == [type(expected).__name__]


# GPT-NeoX's one renaming is not in transformers' tables.
IN_RULES = [name for name, (_, kind, _) in (RENAMED | MODELS).items() if kind in _RULES and kind != "gpt_neox"]


@pytest.mark.parametrize("case", IN_RULES)
def test_the_rules_name_tensors_as_the_tables_of_transformers_do(case, tmp_path):
    auto, kind, config = (RENAMED | MODELS)[case]
    base_model(tmp_path / "base", kind, config, auto)
    checkpoint = open_checkpoint(tmp_path / "base")
    by_tables, _ = names_in_transformers(checkpoint)
    assert by_tables
    assert {name: tree_name(name, checkpoint.config) for name in by_tables} == by_tables


def test_a_matrix_that_transformers_divides_is_skipped_by_name(tmp_path):
    base = base_model(tmp_path / "base", "nomic_bert", BERT, MASKED)
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    base.save_pretrained(tmp_path / "tuned")
    result = extract(tmp_path / "base", tmp_path / "tuned", rank=4, output=tmp_path / "adapter")
    reason = "transformers divides it into self_attn.q_proj, self_attn.k_proj, self_attn.v_proj"
    fused = "nomic_bert.encoder.layers.0.attn.Wqkv.weight"
    assert [item.name for item in result.skipped if item.reason.startswith(reason)] == [fused]
    assert {layer.name.rpartition(".")[2] for layer in result.layers} >= {"o_proj", "up_proj"}


@pytest.mark.parametrize("case", RENAMED)
def test_files_that_name_modules_otherwise_are_merged_and_extracted_as_peft_names_them(case, tmp_path):
    from peft import PeftModel

    auto, kind, config = RENAMED[case]
    base = base_model(tmp_path / "base", kind, config, auto)
    modules = [name for name, _ in base.named_modules() if name.endswith(PROJECTIONS)]
    assert len({name.rpartition(".")[2] for name in modules}) >= 2
    live = adapted(base, tmp_path / "adapter", target_modules=modules)
    merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    if kind != "vit":
        computed = logits(live)
        merged = type(base).from_pretrained(tmp_path / "merged").eval()
        torch.testing.assert_close(logits(merged), computed, rtol=0, atol=2e-5 * float(computed.abs().max()))
    expected = live.merge_and_unload()
    assert_same_weights(type(expected).from_pretrained(tmp_path / "merged").state_dict(), expected.state_dict())
    extract(tmp_path / "base", tmp_path / "merged", rank=4, target=".*", output=tmp_path / "extracted")
    again = PeftModel.from_pretrained(type(expected).from_pretrained(tmp_path / "base"), tmp_path / "extracted")
    found, expected = again.merge_and_unload().state_dict(), expected.state_dict()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-5, msg=lambda text: f"{name}: {text}")  # noqa: B023


def test_an_adapter_of_the_text_model_alone_is_merged_into_the_multimodal_checkpoint(tmp_path):
    auto, kind, config = RENAMED["LLaVA"]
    whole = base_model(tmp_path / "base", kind, config, auto)
    text = base_model(tmp_path / "text", "llama", SIZES)
    text.load_state_dict(
        {
            name.replace("model.language_model.", "model."): t
            for name, t in whole.state_dict().items()
            if "vision" not in name
        },
        strict=False,
    )
    expected = adapted(text, tmp_path / "adapter", target_modules=["q_proj", "lm_head"]).merge_and_unload()
    merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    merged = type(whole).from_pretrained(tmp_path / "merged").state_dict()
    found = {name.replace("model.language_model.", "model."): tensor for name, tensor in merged.items()}
    assert_same_weights({name: found[name] for name in expected.state_dict()}, expected.state_dict())


@pytest.mark.parametrize("kind", MIXTURES)
def test_experts_are_extracted_as_peft_names_them_however_the_files_store_them(kind, tmp_path):
    from peft import PeftModel

    tuned = base_model(tmp_path / "base", kind, MIXTURES[kind])
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
                for expert in parameter[:-1]:  # the last one stays as it is
                    expert.add_(0.1 * torch.randn(len(expert), 2) @ torch.randn(2, expert.shape[1]))
    tuned.save_pretrained(tmp_path / "tuned")
    extract(tmp_path / "base", tmp_path / "tuned", rank=2, output=tmp_path / "extracted")
    again = PeftModel.from_pretrained(type(tuned).from_pretrained(tmp_path / "base"), tmp_path / "extracted")
    found, expected = again.merge_and_unload().state_dict(), tuned.state_dict()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-5, msg=lambda text: f"{name}: {text}")  # noqa: B023


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("case", TOKENS)
def test_a_fine_tune_with_another_vocabulary_is_extracted_for_peft_and_merge(case, tied, tmp_path):
    from peft import PeftModel

    size, changes_all, options, extracted_size, field = TOKENS[case]
    tuned = base_model(tmp_path / "base", "llama", SIZES | {"tie_word_embeddings": tied})
    tuned.resize_token_embeddings(size, mean_resizing=False)
    changed = ["q_proj", *(VOCABULARY if changes_all else ())]
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if name.split(".")[-2] in changed:
                parameter.add_(0.1 * torch.randn(len(parameter), 2) @ torch.randn(2, parameter.shape[1]))
    tuned.save_pretrained(tmp_path / "tuned")
    (tmp_path / "tuned/tokenizer.json").write_text('{"added_tokens": []}')
    extract(tmp_path / "base", tmp_path / "tuned", rank=2, output=tmp_path / "extracted", **options)
    merge(tmp_path / "base", tmp_path / "extracted", tmp_path / "merged")
    merged = type(tuned).from_pretrained(tmp_path / "merged").eval()
    grown = type(tuned).from_pretrained(tmp_path / "base")
    grown.resize_token_embeddings(extracted_size, mean_resizing=False)
    again = PeftModel.from_pretrained(grown, tmp_path / "extracted").eval()
    assert merged.config.vocab_size == extracted_size
    new, common = (NEW if extracted_size > 96 else ()), min(size, extracted_size)
    expected = logits(tuned.eval(), new)[..., :common]
    measured = type(tuned).from_pretrained(tmp_path / "base").eval()
    with adapter_applied(measured, load_adapter(tmp_path / "extracted")):
        results = [logits(found, new)[..., :common] for found in (merged, again, measured)]
    for found in results:
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    config = json.loads((tmp_path / "extracted/adapter_config.json").read_text())
    assert {"modules_to_save", "trainable_token_indices"} & config.keys() == ({field} if field else set())
    assert (tmp_path / "extracted/tokenizer.json").exists() == bool(field)
    if field == "trainable_token_indices":
        with pytest.raises(MismatchError, match="vLLM reads no trainable_token_indices"):
            fits_as_planned(plan_extract(tmp_path / "base", tmp_path / "tuned", rank=2), "vllm")


@pytest.mark.parametrize(
    "case",
    [
        ("bert", MASKED, BERT, ("word_embeddings", "query")),
        ("roberta", MASKED, BERT | {"pad_token_id": 1}, ("word_embeddings", "query")),
        ("gpt2", CAUSAL, GPT2, ("wte", "c_attn")),
    ],
    ids=lambda case: case[0],
)
def test_an_embedding_saved_in_full_is_the_output_layer_too_where_they_share_it(case, tmp_path):
    from peft import PeftModel

    kind, auto, config, changed = case
    tuned = base_model(tmp_path / "base", kind, config, auto)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if name.split(".")[-2] in changed and parameter.ndim == 2:
                parameter.add_(0.1 * torch.randn(len(parameter), 2) @ torch.randn(2, parameter.shape[1]))
    tuned.save_pretrained(tmp_path / "tuned")
    extract(tmp_path / "base", tmp_path / "tuned", rank=2, modules_to_save=changed[0], output=tmp_path / "extracted")
    again = PeftModel.from_pretrained(type(tuned).from_pretrained(tmp_path / "base"), tmp_path / "extracted").eval()
    merge(tmp_path / "base", tmp_path / "extracted", tmp_path / "merged")
    merged = type(tuned).from_pretrained(tmp_path / "merged").eval()
    for found in (again, merged):
        torch.testing.assert_close(logits(found), logits(tuned.eval()), rtol=0, atol=1e-4)


def test_repeated_layers_are_written_each_with_its_own_update(tmp_path):
    """The truth is the model with the adapter: PEFT's merge adds the updates of all copies to the weight they share."""
    base = base_model(tmp_path / "base", "llama", SIZES)
    ranges = [[0, 2], [1, 2]]
    model = adapted(base, tmp_path / "adapter", target_modules=["q_proj", "down_proj"], layer_replication=ranges)
    merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    merged = type(base).from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(logits(merged), logits(model), rtol=0, atol=2e-5 * float(logits(model).abs().max()))
    with pytest.raises(MismatchError, match="repeats layers"):
        unmerge(tmp_path / "merged", tmp_path / "adapter", tmp_path / "restored")
    base_model(tmp_path / "shallow", "llama", SIZES | {"num_hidden_layers": 1})
    with pytest.raises(MismatchError, match="no single stack of that many layers"):
        merge(tmp_path / "shallow", tmp_path / "adapter", tmp_path / "other")


def test_the_config_of_repeated_layers_names_the_type_of_each():
    config = {"num_hidden_layers": 2, "layer_types": ["full", "sliding"], "hidden_size": 2, "architectures": ["A", "B"]}
    expected = config | {"num_hidden_layers": 3, "layer_types": ["sliding", "full", "sliding"]}
    assert replicated_config(config, [1, 0, 1], 2) == expected

"""Adapters in other formats: equal updates by diffusers' and PEFT's own code, exact round trips, refusals by name."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from eckart.adapter import Adapter
from eckart.errors import MismatchError, OptionError, OutputError
from eckart.formats import load_adapter
from eckart.operations.conversion import convert, plan_conversion

from .pipelines import adapter, assert_same_updates, clip, flux, kohya_file, layer, narrow, unet

# diffusers and PEFT warn of what they think of the environment.
pytestmark = pytest.mark.filterwarnings("ignore")

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
SOME_SD15 = [
    *("unet.conv_in", "unet.down_blocks.1.resnets.0.conv_shortcut", "unet.mid_block.attentions.0.proj_in"),
    *(
        f"unet.down_blocks.0.attentions.0.transformer_blocks.0.{name}"
        for name in ("attn1.to_q", "attn2.to_out.0", "ff.net.2")
    ),
]
SOME_XL = [
    *("unet.conv_in", "unet.conv_out", "unet.time_embedding.linear_1", "unet.add_embedding.linear_2"),
    *("unet.down_blocks.0.downsamplers.0.conv", "unet.up_blocks.1.upsamplers.0.conv", "unet.mid_block.resnets.1.conv1"),
    *("unet.down_blocks.1.resnets.0.time_emb_proj", "unet.up_blocks.2.resnets.2.conv_shortcut"),
    *("unet.down_blocks.2.attentions.1.transformer_blocks.9.attn2.to_k", "unet.up_blocks.0.attentions.2.proj_in"),
    *("unet.mid_block.attentions.0.transformer_blocks.4.ff.net.0.proj", "unet.up_blocks.0.resnets.1.conv2"),
]
SOME_FLUX = [
    *(f"transformer.transformer_blocks.3.attn.{name}" for name in ATTENTION),
    *(
        f"transformer.single_transformer_blocks.37.{name}"
        for name in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
    ),
    *("transformer.single_transformer_blocks.37.proj_out", "transformer.transformer_blocks.3.norm1.linear"),
    *("transformer.transformer_blocks.3.ff_context.net.2", "transformer.x_embedder", "transformer.norm_out.linear"),
    "transformer.time_text_embed.guidance_embedder.linear_2",
]


def of(shapes, names):
    return {name: shapes[name] for name in names}


PIPELINES = {
    "sd15": lambda: narrow(of(unet("sd15"), SOME_SD15)) | clip("text_encoder", 64),
    "sdxl": lambda: narrow(of(unet("sdxl"), SOME_XL)) | clip("text_encoder", 64) | clip("text_encoder_2", 80),
    "flux": lambda: narrow(of(flux(), SOME_FLUX)) | clip("text_encoder", 64),
}


@pytest.mark.parametrize(
    ("family", "model"), [("sd", lambda: unet("sd15")), ("sdxl", lambda: unet("sdxl")), ("flux1", flux)]
)
def test_every_layer_of_the_real_models_has_one_kohya_name_that_leads_back_to_it(family, model):
    there = adapter(narrow(model()), rank=1, scale=1.0)
    flat = convert(there, "kohya", family=family).adapter
    assert all(name.startswith("lora_unet_") and "." not in name for name in flat)
    assert set(convert(flat, "diffusers", family=family).adapter) == set(there)


@pytest.mark.parametrize("kind", PIPELINES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_to_kohya_and_back_nothing_changes(kind, dtype, tmp_path):
    there = adapter(PIPELINES[kind](), dtype=dtype, scale=None if kind != "flux" else 0.7)
    convert(there, "kohya", output=tmp_path / "a.safetensors")
    convert(tmp_path / "a.safetensors", "diffusers", output=tmp_path / "back")
    back = load_adapter(tmp_path / "back")
    assert_same_updates(back, there)
    assert {name: one.rank for name, one in back.items()} == {name: one.rank for name, one in there.items()}
    assert {one.lora_A.dtype for one in back.values()} == {one.lora_B.dtype for one in back.values()} == {dtype}


def by_diffusers(path, kind):
    """The layers that diffusers' own loaders make of a kohya file, by module name; they fold alpha, or return it."""
    from diffusers.loaders.lora_conversion_utils import (
        _convert_kohya_flux_lora_to_diffusers,
        _convert_non_diffusers_lora_to_diffusers,
        _maybe_map_sgm_blocks_to_diffusers,
    )

    state = {name: tensor.double() for name, tensor in load_file(path).items()}
    if kind == "flux":
        return _convert_kohya_flux_lora_to_diffusers(state), {}
    state = _maybe_map_sgm_blocks_to_diffusers(state, SimpleNamespace(layers_per_block=2))
    return _convert_non_diffusers_lora_to_diffusers(state)


@pytest.mark.parametrize("kind", PIPELINES)
def test_the_updates_are_those_of_diffusers_own_converter(kind, tmp_path):
    shapes = PIPELINES[kind]()
    if kind == "flux":
        # Theirs leaves these without a component and, of the last layer, without its alpha.
        shapes = {name: shape for name, shape in shapes.items() if "blocks." in name or "text" in name}
        shapes.pop("transformer.time_text_embed.guidance_embedder.linear_2", None)
    path = tmp_path / "kohya.safetensors"
    convert(adapter(shapes), "kohya", output=path)
    state, alphas = by_diffusers(path, kind)
    converted = convert(path, "diffusers").adapter
    for key, down in state.items():
        end = next((end for end in (".lora_A.weight", "down.weight") if key.endswith(end)), None)
        if end is None:
            continue
        up = state[key.replace("lora_A", "lora_B").replace("down.weight", "up.weight")]
        name = module_of(key)
        alpha = next((value for name_of, value in alphas.items() if module_of(name_of) == name), float(len(down)))
        expected = alpha / len(down) * up.flatten(1) @ down.flatten(1)
        found = converted[name].low_rank().dense()
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-14 * float(expected.abs().max()))
        shapes.pop(name)
    assert not shapes


def module_of(key):
    """A module's name from a key of diffusers' converters, spelt out here apart from our reader."""
    import re

    name = re.sub(r"(\.lora_linear_layer|\.lora|_lora)?(\.down\.weight|\.lora_A\.weight)?(\.alpha)?$", "", key)
    name = name.replace(".processor.", ".")
    if name.endswith(".to_out"):
        name += ".0"
    if "self_attn" in name:
        name = re.sub(r"self_attn\.to_(q|k|v|out)(\.0)?$", r"self_attn.\1_proj", name)
    return name


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("sd15", ["lora_te_text_model_encoder_layers_0_mlp_fc1", "lora_unet_down_blocks_1_resnets_0_conv_shortcut"]),
        (
            "sdxl",
            ["lora_te2_text_model_encoder_layers_0_mlp_fc1", "lora_unet_output_blocks_5_2_conv", "lora_unet_out_2"],
        ),
        ("flux", ["lora_te1_text_model_encoder_layers_0_mlp_fc1", "lora_unet_double_blocks_3_txt_attn_qkv"]),
    ],
)
def test_names_are_those_that_sd_scripts_reads(kind, expected):
    assert set(expected) <= set(convert(adapter(PIPELINES[kind]()), "kohya").adapter)


def test_fused_layers_are_block_diagonal_and_keep_scales_that_differ():
    there = adapter(PIPELINES["flux"]())
    fused = convert(there, "kohya").adapter
    one = fused["lora_unet_single_blocks_37_linear1"]
    parts = [
        there[f"transformer.single_transformer_blocks.37.{name}"]
        for name in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
    ]
    assert one.rank == sum(part.rank for part in parts)
    dense = torch.cat([part.low_rank().dense() for part in parts])
    # Their scales differ, so the blocks carry the ratio: rounded once in float32.
    torch.testing.assert_close(one.low_rank().dense(), dense, rtol=0, atol=1e-7 * float(dense.abs().max()))


def test_parts_that_are_missing_stay_as_they_are():
    names = [f"transformer.transformer_blocks.0.attn.{name}" for name in ("to_q", "to_v")]
    there = adapter(narrow(of(flux(), names)), scale=0.5)
    with pytest.raises(MismatchError, match=r"may be of Stable Diffusion 3 .*`family`"):
        convert(there, "kohya")
    fused = convert(there, "kohya", family="flux1").adapter
    assert list(fused) == ["lora_unet_double_blocks_0_img_attn_qkv"]
    assert not fused["lora_unet_double_blocks_0_img_attn_qkv"].lora_B[3072:6144].any()
    back = convert(fused, "diffusers")
    assert_same_updates(back.adapter, there)
    assert [item.name for item in back.skipped] == ["transformer.transformer_blocks.0.attn.to_k"]


def test_a_layer_that_was_trained_fused_keeps_its_rank_in_every_part():
    whole = layer((9216, 96), rank=5, alpha=3)
    parts = convert(Adapter({"lora_unet_double_blocks_0_img_attn_qkv": whole}, format="kohya"), "diffusers").adapter
    assert {part.rank for part in parts.values()} == {5}
    dense = torch.cat([part.low_rank().dense() for part in parts.values()])
    torch.testing.assert_close(dense, whole.low_rank().dense(), rtol=1e-15, atol=0)


def test_an_update_that_is_zero_so_far_keeps_the_ranks_of_its_other_parts():
    whole = layer((96, 8), rank=6, alpha=3)
    whole.lora_B.zero_()
    whole.lora_B[:32, 0] = 1
    parts = convert(Adapter({"lora_unet_double_blocks_0_img_attn_qkv": whole}, format="kohya"), "diffusers").adapter
    assert {name.rpartition(".")[2]: part.rank for name, part in parts.items()} == {"to_q": 2}


def test_a_part_whose_bias_alone_changes_is_kept():
    whole = replace(layer((96, 8), rank=6, alpha=3), bias=torch.arange(96.0))
    whole.lora_B[32:] = 0
    parts = convert(Adapter({"lora_unet_double_blocks_0_img_attn_qkv": whole}, format="kohya"), "diffusers").adapter
    changes = torch.cat([part.bias * part.scaling for part in parts.values()])
    torch.testing.assert_close(changes, whole.bias * whole.scaling)


def test_an_update_for_an_embedding_is_refused(tmp_path):
    save_file({"embed_tokens.weight": torch.zeros(8, 6)}, tmp_path / "base.safetensors")
    there = Adapter({"lora_te_embed_tokens": layer((8, 6))}, format="kohya")
    refused(there, "peft", ["this is an embedding"], base=tmp_path / "base.safetensors")


def test_dora_is_cut_and_joined_by_outputs():
    names = [f"transformer.transformer_blocks.0.attn.{name}" for name in ("to_q", "to_k", "to_v")]
    plain = adapter(narrow(of(flux(), names)), scale=1.0)
    there = Adapter({n: replace(one, magnitude=torch.rand(3072)) for n, one in plain.items()}, format="diffusers")
    back = convert(convert(there, "kohya", family="flux1").adapter, "diffusers").adapter
    for name, one in back.items():
        assert torch.equal(one.magnitude, there[name].magnitude)
    some_only = {name: replace(one, magnitude=None) if "to_k" in name else one for name, one in there.items()}
    with pytest.raises(MismatchError, match="DoRA on some of its parts"):
        convert(Adapter(some_only, format="diffusers"), "kohya", family="flux1")


@pytest.mark.parametrize("scale", [1e-6, 1e6, 3.7, -0.5])
@pytest.mark.parametrize("to", ["kohya", "diffusers", "peft"])
def test_extreme_scales_survive_in_every_format(scale, to, tmp_path):
    name = "unet.mid_block.attentions.0.proj_in"
    there = Adapter({name: layer((8, 8), rank=3, alpha=scale * 3, dtype=torch.float16)}, format="diffusers")
    out = tmp_path / "a.safetensors" if to == "kohya" else tmp_path / "a"
    convert(there, to, output=out, family="sd")
    (back,) = load_adapter(out).values()
    assert back.scaling == pytest.approx(scale, rel=1e-15)
    assert torch.equal(back.lora_A, there[name].lora_A)


def test_rslora_becomes_an_alpha():
    one = replace(layer((8, 8), rank=3, alpha=2.0), rslora=True)
    (there,) = convert(Adapter({"model.layers.0.mlp.up_proj": one}), "kohya").adapter.values()
    assert not there.rslora
    assert there.scaling == pytest.approx(2 / 3**0.5, rel=1e-15)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    size = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    folder = tmp_path_factory.mktemp("llama")
    LlamaForCausalLM(LlamaConfig(**size, vocab_size=50)).save_pretrained(folder / "base")
    return folder / "base"


def test_a_language_model_to_kohya_and_back_through_its_base_is_what_peft_loads(llama, tmp_path):
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import LlamaForCausalLM

    config = LoraConfig(
        r=4, lora_alpha=6, rank_pattern={"up_proj": 2}, use_rslora=True, init_lora_weights=False,
        target_modules=["q_proj", "up_proj", "lm_head"],
    )  # fmt: skip
    model = get_peft_model(LlamaForCausalLM.from_pretrained(llama), config).eval()
    model.save_pretrained(tmp_path / "peft", save_embedding_layers=False)
    convert(tmp_path / "peft", "kohya", output=tmp_path / "k.safetensors")
    assert "lora_te_layers_0_self_attn_q_proj.alpha" in load_file(tmp_path / "k.safetensors")
    result = convert(tmp_path / "k.safetensors", "peft", base=llama, output=tmp_path / "back")
    assert ("lora_te_lm_head", "lm_head") in result.renamed
    again = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(llama), tmp_path / "back").eval()
    tokens = torch.arange(12)[None]
    with torch.no_grad():
        torch.testing.assert_close(again(tokens).logits, model(tokens).logits, rtol=1e-5, atol=1e-6)
    assert json.loads((tmp_path / "back/adapter_config.json").read_text())["base_model_name_or_path"] == str(llama)


def test_gpt2_in_kohya_form_is_read_with_its_base_as_the_conv1d_that_it_is(tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=32, n_head=2, vocab_size=50)).save_pretrained(tmp_path / "base")
    path = kohya_file(tmp_path / "a.safetensors", {"lora_te_transformer_h_0_attn_c_attn": layer((96, 32))})
    found = convert(path, "peft", base=tmp_path / "base").adapter
    assert found["transformer.h.0.attn.c_attn"].kind == "conv1d"
    with pytest.raises(MismatchError, match="would add its update transposed"):
        convert(found, "kohya")


def test_a_pipeline_becomes_one_peft_folder_for_each_component(tmp_path):
    there = replace(adapter(PIPELINES["sdxl"]()), keep_scales=True)
    convert(there, "peft", output=tmp_path / "peft")
    parts = ["text_encoder", "text_encoder_2", "unet"]
    assert sorted(path.name for path in (tmp_path / "peft").iterdir()) == [".eckart.json", "README.md", *parts]
    assert_same_updates(load_adapter(tmp_path / "peft"), there)
    convert(there, "peft", output=tmp_path / "peft", force=True)
    convert(tmp_path / "peft", "diffusers", output=tmp_path / "back.safetensors")
    assert_same_updates(load_adapter(tmp_path / "back.safetensors"), there)
    # A single component is known by its blocks.
    alone = convert(tmp_path / "peft/unet", "diffusers").adapter
    assert set(alone) == {name for name in there if name.startswith("unet.")}


def test_tensors_saved_whole_stay_with_their_component(tmp_path):
    norm = torch.randn(8)
    for part, module in (
        ("unet", "mid_block.attentions.0.proj_in"),
        ("text_encoder", "text_model.encoder.layers.0.mlp.fc1"),
    ):
        saved = {"conv_norm_out.weight": norm} if part == "unet" else {}
        (tmp_path / "a").mkdir(exist_ok=True)
        Adapter({module: layer((8, 6))}, saved).save(tmp_path / "a" / part)
    convert(tmp_path / "a", "peft", output=tmp_path / "b")
    assert torch.equal(load_adapter(tmp_path / "b/unet").modules_to_save["conv_norm_out.weight"], norm)
    assert not load_adapter(tmp_path / "b/text_encoder").modules_to_save
    refused(tmp_path / "a", "diffusers", ["unet.conv_norm_out.weight: a tensor saved in full"])
    biased = tmp_path / "a/unet/adapter_config.json"
    biased.write_text(biased.read_text().replace('"bias": "none"', '"bias": "all"'))
    refused(tmp_path / "a", "peft", ["unet: its biases are trained"])


def test_an_adapter_of_one_component_fits_its_base_in_every_format(tmp_path):
    save_file({"mid_block.attentions.0.proj_in.weight": torch.zeros(8, 6)}, tmp_path / "base.safetensors")
    there = Adapter({"mid_block.attentions.0.proj_in": layer((8, 6))})
    for to in ("peft", "kohya", "diffusers"):
        convert(there, to, base=tmp_path / "base.safetensors")


def test_a_pipeline_as_the_base_provides_its_names_without_diffusers(tmp_path, monkeypatch):
    shapes = {
        "unet.down_blocks.0.attentions.0.proj_in": (8, 8, 1, 1),
        "text_encoder_2.encoder.block.0.layer.0.SelfAttention.q": (6, 4),
    }
    for name, shape in shapes.items():
        part, _, own = name.partition(".")
        (tmp_path / "base" / part).mkdir(parents=True)
        save_file({f"{own}.weight": torch.zeros(shape)}, tmp_path / "base" / part / "model.safetensors")
    monkeypatch.setitem(__import__("sys").modules, "diffusers.loaders", None)
    layers = {
        "lora_unet_down_blocks_0_attentions_0_proj_in": layer((8, 8)),  # trained on a linear one
        "lora_te3_encoder_block_0_layer_0_SelfAttention_q": layer((6, 4)),
    }
    path = kohya_file(tmp_path / "a.safetensors", layers)
    found = convert(path, "diffusers", base=tmp_path / "base").adapter
    assert set(found) == set(shapes)
    assert found["unet.down_blocks.0.attentions.0.proj_in"].lora_A.shape == (2, 8, 1, 1)


def test_an_adapter_is_read_under_the_own_names_of_a_base_that_is_one_component(tmp_path):
    from eckart.formats import rename_for_base

    save_file({"mid_block.attentions.0.proj_in.weight": torch.zeros(8, 6)}, tmp_path / "unet.safetensors")
    there = Adapter({"unet.mid_block.attentions.0.proj_in": layer((8, 6))}, format="diffusers")
    there.save(tmp_path / "diffusers.safetensors")
    convert(there, "kohya", output=tmp_path / "kohya.safetensors", family="sd")
    for form in ("diffusers", "kohya"):
        found = rename_for_base(tmp_path / "unet.safetensors", load_adapter(tmp_path / f"{form}.safetensors"))
        assert found.format == "peft"
        assert_same_updates(found, {"mid_block.attentions.0.proj_in": there["unet.mid_block.attentions.0.proj_in"]})
    more = replace(there, layers={**there.layers, "text_encoder.text_model.encoder.layers.0.mlp.fc1": layer((8, 6))})
    more.save(tmp_path / "more.safetensors")
    with pytest.raises(MismatchError, match=r"text_encoder.*no such module"):
        rename_for_base(tmp_path / "unet.safetensors", load_adapter(tmp_path / "more.safetensors"))


def test_no_conversion_needs_diffusers(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "diffusers", None)
    there = Adapter({"lora_unet_mid_block_attentions_0_proj_in": layer((8, 8))}, format="kohya")
    assert list(convert(there, "diffusers").adapter) == ["unet.mid_block.attentions.0.proj_in"]


def refused(layers, to, said, **options):
    with pytest.raises(MismatchError) as caught:
        convert(layers, to, **options)
    for text in said:
        assert text in str(caught.value)


def test_what_kohya_cannot_express_is_listed_in_one_message(tmp_path):
    one = layer((8, 8))
    layers = {
        "model.embed_tokens": replace(one, kind="embedding"),
        "model.layers.0.mlp.up_proj": replace(one, bias=torch.ones(8)),
        "model.layers.0.mlp.experts.down_proj[1]": replace(one, kind="expert"),
    }
    there = Adapter(layers, modules_to_save={"model.norm.weight": torch.ones(8)})
    said = [
        "embed_tokens: an embedding, and readers support",
        "up_proj: it has a trained",
        "[1]: an expert, and readers",
        "norm.weight: a tensor saved in full",
    ]
    refused(there, "kohya", said, output=tmp_path / "a.safetensors")
    refused(there, "diffusers", ["not a module of a pipeline"])
    assert not list(tmp_path.iterdir())


def test_names_that_would_be_one_are_refused():
    layers = {"model.a.b_c": layer((8, 8)), "model.a_b.c": layer((8, 8))}
    refused(Adapter(layers), "kohya", ["model.a.b_c and model.a_b.c would both be named lora_te_a_b_c"])


def test_a_name_that_may_mean_two_modules_is_refused(tmp_path):
    save_file({"a.b_c.weight": torch.zeros(8, 8), "a_b.c.weight": torch.zeros(8, 8)}, tmp_path / "base.safetensors")
    there = Adapter({"lora_te_a_b_c": layer((8, 8))}, format="kohya")
    refused(there, "peft", ["lora_te_a_b_c: may be a.b_c or a_b.c"], base=tmp_path / "base.safetensors")


def test_a_wrong_base_and_an_unknown_model_are_refused_with_every_name(llama):
    layers = {
        "lora_te_layers_0_self_attn_q_proj": layer((32, 31)),
        "lora_te_layers_7_self_attn_q_proj": layer((32, 32)),
    }
    there = Adapter(layers, format="kohya")
    refused(there, "peft", ["the update is (32, 31)", "layers_7_self_attn_q_proj: "], base=llama)
    refused(there, "peft", ["layers_0", "layers_7", "give its model as `base`"])
    refused(convert(Adapter({"x.y": layer((8, 8))}), "kohya").adapter, "diffusers", ["lora_te_x_y"])


def test_modules_of_no_known_family_have_no_kohya_name():
    there = Adapter({"transformer.towers.0.attn1.to_q": layer((8, 8))}, format="diffusers")
    refused(there, "kohya", ["transformer.towers.0.attn1.to_q: no such module in any of Stable Diffusion 1 and 2, "])


def test_wrong_formats_and_outputs_are_refused(tmp_path):
    there = adapter(PIPELINES["sd15"]())
    with pytest.raises(OptionError, match="peft, kohya, comfyui, diffusers"):
        convert(there, "onnx")
    with pytest.raises(OutputError, match=r"name it a\.safetensors"):
        convert(there, "kohya", output=tmp_path / "a")
    with pytest.raises(MismatchError, match="cannot mix DoRA"):
        convert(
            Adapter(
                {
                    n: replace(one, magnitude=torch.ones(len(one.lora_B))) if "conv_in" in n else one
                    for n, one in there.items()
                },
                format="diffusers",
            ),
            "peft",
        )


def test_a_preview_reads_headers_and_writes_nothing(tmp_path):
    there = adapter(PIPELINES["sd15"]())
    convert(there, "diffusers", output=tmp_path / "a")
    preview = plan_conversion(tmp_path / "a", "kohya").preview()
    assert preview.read_bytes == preview.written_bytes == there.nbytes
    assert {match.ranks for match in preview.matches} == {(one.rank,) for one in there.values()}
    assert [path.name for path in tmp_path.iterdir()] == ["a"]

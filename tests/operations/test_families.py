"""Image and video models: LoRA files of every family in every format, against diffusers' converters and models."""

import inspect
import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from eckart.adapter import Adapter
from eckart.engine import Execution
from eckart.errors import EckartError, MismatchError, NotFiniteError
from eckart.formats import load_adapter
from eckart.formats.components import canonical
from eckart.formats.families.table import FAMILIES
from eckart.operations.conversion import convert
from eckart.operations.extraction.extract import extract
from eckart.operations.merging.merge import merge
from eckart.operations.resizing.resize import resize

from .families import MODELS, component_folder, original_file, shapes, wide_shapes
from .family_table import in_page, row
from .pipelines import Shapes, adapter, assert_same_updates, layer, shapes_in

# diffusers and PEFT warn of what they think of the environment.
pytestmark = pytest.mark.filterwarnings("ignore")
FORMATS = ("kohya", "comfyui", "diffusers")
ONE = Execution(workers=1)


def test_every_family_has_a_tiny_model_of_diffusers_own_class():
    assert set(MODELS) == set(FAMILIES)


def saved(there: Adapter, to: str, folder, family: str):
    """The adapter as a file of a format."""
    path = folder / f"{to}.safetensors"
    convert(there, to, family=family, output=path)
    return path


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("to", ["kohya", "comfyui", "peft"])
def test_every_layer_of_a_model_is_named_in_every_format_and_found_again(family, to, tmp_path):
    there = replace(adapter(shapes(family), scale=0.5), keep_scales=True)
    out = tmp_path / ("peft" if to == "peft" else "a.safetensors")
    convert(there, to, family=family, output=out)
    back = convert(out, "diffusers", family=family).adapter
    assert_same_updates(back, there, relative=1e-12)
    assert {name: one.rank for name, one in back.items()} == {name: one.rank for name, one in there.items()}


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("source", FORMATS)
@pytest.mark.parametrize("to", FORMATS)
def test_without_the_family_the_names_are_the_same_or_the_refusal_says_that_several_fit(family, source, to, tmp_path):
    path = saved(adapter(shapes(family), scale=1.0), source, tmp_path, family)
    expected = set(convert(path, to, family=family).adapter)
    try:
        found: set[str] | str = set(convert(path, to).adapter)
    except MismatchError as error:
        found = str(error)
    assert found == expected or (f"({family})" in found and "`family`" in found)


def of_blocks(found: Shapes, *beginnings: str) -> Shapes:
    """The modules of blocks, which diffusers' converters expect, without those that they do not know."""
    return {name: shape for name, shape in found.items() if name.partition(".")[2].startswith(beginnings)}


# A converter of diffusers, the format that it reads, and the blocks that it knows.
CONVERTERS = {
    "flux1 kohya": ("_convert_kohya_flux_lora_to_diffusers", ("transformer_blocks", "single_transformer_blocks")),
    "flux2 kohya": ("_convert_kohya_flux2_lora_to_diffusers", ("transformer_blocks", "single_transformer_blocks")),
    "flux2 comfyui": ("_convert_non_diffusers_flux2_lora_to_diffusers", ("transformer_blocks", "single_", "x_emb")),
    "qwen-image kohya": ("_convert_non_diffusers_qwen_lora_to_diffusers", ("",)),
    "qwen-image comfyui": ("_convert_non_diffusers_qwen_lora_to_diffusers", ("",)),
    "z-image kohya": ("_convert_non_diffusers_z_image_lora_to_diffusers", ("layers", "context_refiner")),
    "wan kohya": ("_convert_musubi_wan_lora_to_diffusers", ("blocks",)),
    "wan comfyui": ("_convert_non_diffusers_wan_lora_to_diffusers", ("blocks", "condition_embedder.time_embedder")),
    "hunyuan-video comfyui": ("_convert_hunyuan_video_lora_to_diffusers", ("transformer_", "single_", "x_embedder")),
    "ltx-video comfyui": ("_convert_non_diffusers_ltxv_lora_to_diffusers", ("transformer_blocks",)),
    "lumina2 comfyui": ("_convert_non_diffusers_lumina2_lora_to_diffusers", ("layers", "noise_ref", "context_ref")),
    "hidream comfyui": ("_convert_non_diffusers_hidream_lora_to_diffusers", ("",)),
}


@pytest.mark.parametrize("case", CONVERTERS)
def test_names_and_updates_are_those_of_diffusers_own_converter(case, tmp_path):
    from diffusers.loaders import lora_conversion_utils

    family, to = case.split()
    converter, beginnings = CONVERTERS[case]
    there = adapter(of_blocks(wide_shapes(family), *beginnings), scale=1.0)
    path = saved(there, to, tmp_path, family)
    state = {name: tensor.double() for name, tensor in load_file(path).items()}
    theirs = getattr(lora_conversion_utils, converter)(state)
    modules = {name.removesuffix(".lora_A.weight") for name in theirs if name.endswith(".lora_A.weight")}
    ours = convert(path, "diffusers", family=family).adapter
    assert set(ours) == modules
    for name in modules:
        expected = theirs[f"{name}.lora_B.weight"].flatten(1) @ theirs[f"{name}.lora_A.weight"].flatten(1)
        found = ours[name].low_rank().dense()
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-13 * float(expected.abs().max()), msg=name)


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("prefix", ["model.diffusion_model.", "diffusion_model.", ""])
def test_files_of_every_format_merge_into_the_original_single_file(family, prefix, tmp_path):
    there = adapter(shapes(family), scale=0.5)
    originals = convert(there, "comfyui", family=family).adapter
    weights = original_file(tmp_path / "base.safetensors", originals, prefix)
    for form in FORMATS:
        path = saved(there, form, tmp_path, family)
        out = tmp_path / f"merged-{form}.safetensors"
        merge(tmp_path / "base.safetensors", [path], out, execution=ONE)
        merged = load_file(out)
        assert set(merged) == {*weights, "first_stage_model.encoder.conv_in.weight"}
        for name, one in originals.items():
            key = f"{prefix}{name.removeprefix('diffusion_model.')}.weight"
            expected = weights[key].double().flatten(1) + one.low_rank().dense()
            torch.testing.assert_close(merged[key].double().flatten(1), expected, rtol=0, atol=2e-6, msg=name)


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("whole", [False, True], ids=["component", "pipeline"])
def test_files_of_every_format_merge_into_the_component_and_the_pipeline(family, whole, tmp_path):
    there = adapter(shapes(family), scale=0.5)
    weights = component_folder(tmp_path / "base", family)
    part = next(iter(there)).partition(".")[0]
    for form in FORMATS:
        path = saved(there, form, tmp_path, family)
        base = tmp_path / "base" if whole else tmp_path / "base" / part
        out = tmp_path / f"merged-{form}"
        merge(base, [path], out, execution=ONE)
        assert (out / "scheduler/scheduler_config.json").exists() == whole
        merged = load_file((out / part if whole else out) / "diffusion_pytorch_model.safetensors")
        assert set(merged) == set(weights)
        for name, one in there.items():
            key = f"{name.partition('.')[2]}.weight"
            expected = weights[key].double().flatten(1) + one.low_rank().dense()
            torch.testing.assert_close(merged[key].double().flatten(1), expected, rtol=0, atol=2e-6, msg=name)


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("form", FORMATS)
def test_a_resized_file_keeps_its_keys_their_order_and_dtype(family, form, tmp_path):
    path = saved(adapter(shapes(family), rank=3, scale=0.5, dtype=torch.bfloat16), form, tmp_path, family)
    resize(path, rank=2, output=tmp_path / "small.safetensors", execution=ONE)
    assert keys_of(tmp_path / "small.safetensors") == keys_of(path)


def keys_of(path) -> list[tuple[str, str]]:
    """Keys and data types in the order of the file's offsets."""
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    header.pop("__metadata__", None)
    return [(name, entry["dtype"]) for name, entry in sorted(header.items(), key=lambda it: it[1]["data_offsets"])]


# Spellings of one layer of a known model: its name, the ends of its keys, and its name in diffusers' format.
Q = "transformer_blocks.0.attn.to_q"
SPELLINGS = {
    "kohya": ("lora_unet_transformer_blocks_0_attn_to_q", "lora_down.weight", "lora_up.weight", "alpha"),
    "LyCORIS": ("lycoris_transformer_blocks_0_attn_to_q", "lora_down.weight", "lora_up.weight", "alpha"),
    "OneTrainer": ("lora_transformer_transformer_blocks_0_attn_to_q", "lora_down.weight", "lora_up.weight", "alpha"),
    "ai-toolkit": (f"diffusion_model.{Q}", "lora_A.weight", "lora_B.weight"),
    "diffusers": (f"transformer.{Q}", "lora_A.weight", "lora_B.weight"),
    "Lightning": (Q, "lora_down.weight", "lora_up.weight", "alpha"),
    "named": (Q, "lora_A.default.weight", "lora_B.default.weight"),
    "transformer, kohya's ends": (f"transformer.{Q}", "lora_down.weight", "lora_up.weight", "alpha"),
    "PEFT without a config": (f"base_model.model.{Q}", "lora_A.weight", "lora_B.weight"),
    "old diffusers": (f"transformer.{Q}", "lora.down.weight", "lora.up.weight"),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float8_e4m3fn])
def test_every_spelling_is_read_and_written_back(spelling, dtype, tmp_path):
    module, down, up, *alpha = SPELLINGS[spelling]
    A, B = (torch.randn(shape).to(dtype) for shape in ((4, 8), (8, 4)))
    tensors = {f"{module}.{down}": A, f"{module}.{up}": B}
    tensors |= {f"{module}.{end}": torch.tensor(2.0) for end in alpha}
    save_file(tensors, tmp_path / "a.safetensors")
    converted = convert(tmp_path / "a.safetensors", "diffusers", family="qwen-image").adapter
    scale = 0.5 if alpha else 1.0
    expected = scale * B.double() @ A.double()
    torch.testing.assert_close(converted[f"transformer.{Q}"].low_rank().dense(), expected, rtol=1e-14, atol=1e-14)
    resize(tmp_path / "a.safetensors", rank=2, output=tmp_path / "b.safetensors", execution=ONE)
    assert set(load_file(tmp_path / "b.safetensors")) == set(tensors)


@pytest.mark.parametrize("prefix", ["", "diffusion_model."])
def test_xlabs_processors_become_the_layers_that_they_change(prefix, tmp_path):
    parts = {"double_blocks.0.processor.qkv_lora1": 3, "double_blocks.0.processor.proj_lora2": 1,
             "single_blocks.1.processor.qkv_lora": 3, "single_blocks.1.processor.proj_lora": 1}  # fmt: skip
    tensors = {}
    for name, rows in parts.items():
        columns = 20 if name == "single_blocks.1.processor.proj_lora" else 4
        tensors |= {
            f"{prefix}{name}.down.weight": torch.randn(2, columns),
            f"{prefix}{name}.up.weight": torch.randn(4 * rows, 2),
        }
    save_file(tensors, tmp_path / "a.safetensors")
    found = convert(tmp_path / "a.safetensors", "diffusers", family="flux1").adapter
    double, single = "transformer.transformer_blocks.0", "transformer.single_transformer_blocks.1"
    qkv = [f"{part}.attn.to_{letter}" for part in (double, single) for letter in "qkv"]
    assert set(found) == {*qkv, f"{double}.attn.to_add_out", f"{single}.proj_out"}
    up = tensors[f"{prefix}single_blocks.1.processor.qkv_lora.up.weight"].double()
    down = tensors[f"{prefix}single_blocks.1.processor.qkv_lora.down.weight"].double()
    torch.testing.assert_close(found[f"{single}.attn.to_k"].low_rank().dense(), (up @ down)[4:8])
    fused = convert(tmp_path / "a.safetensors", "kohya", family="flux1").adapter
    one = fused["lora_unet_single_blocks_1_linear1"].low_rank().dense()
    torch.testing.assert_close(one[:12], up @ down)
    assert not one[12:].any()


TEXT = "text_model.encoder.layers.0.self_attn.k_proj"
T5 = "encoder.block.0.layer.0.SelfAttention.q"
# A module of an encoder under the names of kohya, ComfyUI and single files.
ENCODERS = [
    ("sd text_encoder", TEXT, "lora_te_", "text_encoders.clip_l", "cond_stage_model.transformer."),
    ("sdxl text_encoder", TEXT, "lora_te1_", "text_encoders.clip_l", "conditioner.embedders.0.transformer."),
    ("sdxl text_encoder_2", TEXT, "lora_te2_", "text_encoders.clip_g", None),
    ("sd3 text_encoder_3", T5, "lora_te3_", "text_encoders.t5xxl", "text_encoders.t5xxl.transformer."),
    ("flux1 text_encoder_2", T5, "lora_te3_", "text_encoders.t5xxl", "t5xxl.transformer."),
    ("wan text_encoder", T5, "lora_te_", "text_encoders.umt5xxl", "text_encoders.umt5xxl.transformer."),
    ("ltx-video text_encoder", T5, "lora_te_", "text_encoders.t5xxl", "text_encoders.t5xxl.transformer."),
    ("hidream text_encoder_2", TEXT, "lora_te2_", "text_encoders.clip_g", "text_encoders.clip_g.transformer."),
]


@pytest.mark.parametrize("case", ENCODERS, ids=lambda case: case[0])
def test_text_encoders_are_named_in_every_format_and_merged(case, tmp_path):
    (family, part), inner, kohya, comfyui, stored = case[0].split(), *case[1:]
    there = Adapter({f"{part}.{inner}": layer((8, 8))}, format="diffusers")
    assert list(convert(there, "kohya", family=family).adapter) == [kohya + inner.replace(".", "_")]
    assert list(convert(there, "comfyui", family=family).adapter) == [f"{comfyui}.transformer.{inner}"]
    path = saved(there, "kohya", tmp_path, family)
    rows = slice(8, 16) if stored is None else slice(None)  # OpenCLIP has query, key and value one below another
    key = (
        f"{stored}{inner}.weight"
        if stored
        else ("conditioner.embedders.1.model.transformer.resblocks.0.attn.in_proj_weight")
    )
    weight = torch.randn(8 if stored else 24, 8)
    # The UNet's presence tells the families of single files apart.
    save_file({key: weight}, tmp_path / "base.safetensors")
    merge(tmp_path / "base.safetensors", [path], tmp_path / "m.safetensors", execution=ONE)
    change = load_file(tmp_path / "m.safetensors")[key].double() - weight.double()
    torch.testing.assert_close(change[rows], there[f"{part}.{inner}"].low_rank().dense(), rtol=0, atol=1e-6)
    assert int(change.any(dim=1).sum()) == 8


Q_PROJ = "layers.0.self_attn.q_proj"
# The class of each language model that encodes text, its prefix in kohya's files, and ComfyUI's name of it.
LANGUAGE_MODELS = {
    "flux2 text_encoder": ("Mistral3ForConditionalGeneration", "lora_te_", "mistral3_24b"),
    "qwen-image text_encoder": ("Qwen2_5_VLForConditionalGeneration", "lora_te_", "qwen25_7b"),
    "z-image text_encoder": ("Qwen3Model", "lora_te_", "qwen3_4b"),
    "lumina2 text_encoder": ("Gemma2Model", "lora_te_", "gemma2_2b"),
    "hunyuan-video text_encoder": ("LlamaModel", "lora_te_", "llama"),
    "hidream text_encoder_4": ("LlamaForCausalLM", "lora_te4_", "llama"),
}


@pytest.mark.parametrize("case", LANGUAGE_MODELS)
def test_language_models_that_encode_text_are_named_in_every_format_and_merged(case, tmp_path):
    import transformers

    (family, part), (name, kohya, comfyui) = case.split(), LANGUAGE_MODELS[case]
    with torch.device("meta"):
        model = getattr(transformers, name)
        modules = dict(model(small(model.config_class())).named_modules())
    (module,) = (each for each in modules if each.endswith(Q_PROJ) and "vision" not in each and "visual" not in each)
    there = Adapter({f"{part}.{module}": layer((8, 8))}, format="diffusers")
    expected = f"text_encoders.{comfyui}.transformer.model.{Q_PROJ}"
    assert list(convert(there, "comfyui", family=family).adapter) == [expected]
    assert list(convert(there, "kohya", family=family).adapter) == [kohya + module.replace(".", "_")]
    weight = torch.randn(8, 8)
    save_file({f"{expected}.weight": weight}, tmp_path / "base.safetensors")
    for form in FORMATS:
        path = saved(there, form, tmp_path, family)
        assert list(convert(path, "diffusers", family=family).adapter) == list(there)
        out = tmp_path / f"merged-{form}.safetensors"
        merge(tmp_path / "base.safetensors", [path], out, execution=ONE)
        (change,) = (merged.double() - weight.double() for merged in load_file(out).values())
        (one,) = there.values()
        torch.testing.assert_close(change, one.low_rank().dense(), rtol=0, atol=1e-6)


def small(config):
    """A config with one layer, in its parts too."""
    for each in (config, getattr(config, "text_config", None), getattr(config, "vision_config", None)):
        for field in ("num_hidden_layers", "depth"):
            if hasattr(each, field):
                setattr(each, field, 1)
    return config


@pytest.mark.parametrize("family", MODELS)
def test_diffusers_fuses_our_files_to_the_weights_that_we_merge(family, tmp_path):
    there = adapter({n: shape for n, shape in shapes(family).items() if len(shape) < 5}, scale=0.5)
    there.save(tmp_path / "a.safetensors")
    torch.manual_seed(0)
    model = MODELS[family]().float()
    model.save_pretrained(tmp_path / "base")
    merge(tmp_path / "base", [tmp_path / "a.safetensors"], tmp_path / "merged", execution=ONE)
    prefix = next(iter(there)).partition(".")[0]
    model.load_lora_adapter(
        load_file(tmp_path / "a.safetensors"), prefix=prefix, metadata=metadata_of(tmp_path / "a.safetensors")
    )
    model.fuse_lora()
    fused = {name.replace(".base_layer", ""): tensor for name, tensor in model.state_dict().items()}
    merged = load_file(tmp_path / "merged/diffusion_pytorch_model.safetensors")
    changed = [f"{name.partition('.')[2]}.weight" for name in there]
    for name in changed:
        torch.testing.assert_close(merged[name], fused[name], rtol=0, atol=1e-6, msg=name)


# diffusers' pipeline of each family, and its CLIP encoders with their classes in transformers.
PIPELINES = {
    "sd": ("StableDiffusionPipeline", {"text_encoder": "CLIPTextModel"}),
    "sdxl": (
        "StableDiffusionXLPipeline",
        {"text_encoder": "CLIPTextModel", "text_encoder_2": "CLIPTextModelWithProjection"},
    ),
    "sd3": (
        "StableDiffusion3Pipeline",
        {"text_encoder": "CLIPTextModelWithProjection", "text_encoder_2": "CLIPTextModelWithProjection"},
    ),
    "flux1": ("FluxPipeline", {"text_encoder": "CLIPTextModel"}),
    "flux2": ("Flux2Pipeline", {}),
    "qwen-image": ("QwenImagePipeline", {}),
    "z-image": ("ZImagePipeline", {}),
    "wan": ("WanPipeline", {}),
    "hunyuan-video": ("HunyuanVideoPipeline", {}),
    "ltx-video": ("LTXPipeline", {}),
    "lumina2": ("Lumina2Pipeline", {}),
    "hidream": ("HiDreamImagePipeline", {}),
}
# Where diffusers' loader takes files of these names as they are; the tables of its converters are tested above.
LOADED = {"sd": "kohya", "sdxl": "kohya", "flux2": "comfyui", "qwen-image": "comfyui", "wan": "comfyui"}


def text_encoder(name: str):
    """A tiny CLIP encoder."""
    import transformers

    config = transformers.CLIPTextConfig(
        hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=10,
        projection_dim=8,
    )  # fmt: skip
    return getattr(transformers, name)(config)


def tiny_pipeline(family: str):
    """A pipeline whose models are tiny and random, and all of whose other parts are absent."""
    import diffusers

    torch.manual_seed(0)
    name, encoders = PIPELINES[family]
    loaded = getattr(diffusers, name)
    part = next(iter(shapes(family))).partition(".")[0]
    models = {part: MODELS[family](), **{each: text_encoder(kind) for each, kind in encoders.items()}}
    parameters = inspect.signature(loaded.__init__).parameters.values()
    absent = {it.name: None for it in parameters if it.default is it.empty and it.name != "self"}
    return loaded(**(absent | models)), models


def all_layers(family: str, models) -> Shapes:
    """Linear layers of the denoiser, and those of the encoders that LoRA files change."""
    found = {name: shape for name, shape in shapes(family).items() if len(shape) < 5}
    for part in models:
        if part.startswith("text_encoder"):
            inner = shapes_in(models[part], part)
            named = {canonical(name): shape for name, shape in inner.items()}
            found |= {name: shape for name, shape in named.items() if ".layers." in name}
    return found


@pytest.mark.parametrize("family", PIPELINES)
def test_a_pipeline_of_diffusers_loads_and_fuses_our_files_to_the_weights_that_we_merge(family, tmp_path):
    pipeline, models = tiny_pipeline(family)
    for part, model in models.items():
        model.save_pretrained(tmp_path / "base" / part)
    (tmp_path / "base/model_index.json").write_text("{}")
    before = {f"{part}.{n}": t.clone() for part, model in models.items() for n, t in model.state_dict().items()}
    there = adapter(all_layers(family, models), scale=0.5)
    if family in LOADED:
        # Of the blocks that diffusers' converters know, without the alphas that some refuse, and with one rank: with
        # several in kohya's files, diffusers confuses the alphas.
        there = adapter(all_layers(family, models), rank=2, alpha=2.0)
        there = Adapter({n: one for n, one in there.items() if ".attn" in n or ".self_attn" in n}, format="diffusers")
    path = saved(there, LOADED.get(family, "diffusers"), tmp_path, family)
    merge(tmp_path / "base", [path], tmp_path / "merged", execution=ONE)
    pipeline.load_lora_weights(tmp_path, weight_name=path.name)
    pipeline.fuse_lora(components=[*models])
    changed = 0
    for part, model in models.items():
        (file,) = (tmp_path / "merged" / part).glob("*.safetensors")
        merged = load_file(file)
        fused = {name.replace(".base_layer", ""): tensor for name, tensor in model.state_dict().items()}
        for name, tensor in merged.items():
            torch.testing.assert_close(tensor, fused[name], rtol=0, atol=1e-6, msg=f"{part}.{name}")
            changed += not torch.equal(tensor, before[f"{part}.{name}"])
    assert changed == len(there)


def metadata_of(path) -> dict[str, object]:
    """The metadata of a file, as diffusers' pipelines hand it to the model."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["lora_adapter_metadata"])


@pytest.mark.parametrize("family", MODELS)
def test_an_extraction_between_pipelines_is_a_file_of_diffusers_that_restores_the_update(family, tmp_path):
    there = adapter(shapes(family), scale=0.5)
    there.save(tmp_path / "a.safetensors")
    component_folder(tmp_path / "base", family)
    merge(tmp_path / "base", [tmp_path / "a.safetensors"], tmp_path / "tuned", execution=ONE)
    extract(tmp_path / "base", tmp_path / "tuned", rank=3, target=".*", output=tmp_path / "found", execution=ONE)
    found = load_adapter(tmp_path / "found")
    assert found.format == "diffusers"
    for name, one in found.items():
        torch.testing.assert_close(one.low_rank().dense(), there[name].low_rank().dense(), rtol=0, atol=2e-5, msg=name)
    assert set(found) == set(there)


@pytest.mark.parametrize("family", MODELS)
def test_the_row_in_the_documentation_is_what_the_operations_do(family):
    assert row(family) in in_page().splitlines()


def test_a_file_that_mixes_families_is_refused_with_the_keys_of_each():
    names = ["diffusion_model.double_blocks.0.img_attn.proj", "diffusion_model.blocks.0.self_attn.q",
             "diffusion_model.blocks.0.self_attn.k", "diffusion_model.towers.0.x"]  # fmt: skip
    there = Adapter({name: layer((8, 8)) for name in names}, format="comfyui")
    with pytest.raises(MismatchError) as caught:
        convert(there, "diffusers")
    for said in (
        "Wan: 2 layers, such as diffusion_model.blocks.0",
        "FLUX.1: 1 layers",
        "towers.0.x: no such module in",
    ):
        assert said in str(caught.value)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("diffusion_model.double_blocks.0.img_attn.pro", "diffusion_model.double_blocks.N.img_attn.proj"),
        ("lora_unet_double_blocks_7_img_attn_prj", "lora_unet_double_blocks_N_img_attn_proj"),
    ],
)
def test_keys_of_no_family_are_named_with_the_three_nearest_and_the_families_considered(name, near, tmp_path):
    save_file(
        {f"{name}.lora_down.weight": torch.randn(4, 8), f"{name}.lora_up.weight": torch.randn(8, 4)},
        tmp_path / "a.safetensors",
    )
    with pytest.raises(MismatchError) as caught:
        convert(tmp_path / "a.safetensors", "diffusers")
    fault, nearest = (each for each in str(caught.value).splitlines() if name in each)
    assert all(family.title in fault for family in FAMILIES.values())
    names = nearest.partition(f"the nearest names to {name} are ")[2].split(", ")
    assert near in names
    assert len(names) == 3


def test_an_unknown_family_keeps_its_names_in_every_operation_without_renaming(tmp_path):
    name = "diffusion_model.towers.0.mix"
    A, B = torch.randn(4, 8), torch.randn(8, 4)
    save_file({f"{name}.lora_A.weight": A, f"{name}.lora_B.weight": B}, tmp_path / "a.safetensors")
    resize(tmp_path / "a.safetensors", rank=2, output=tmp_path / "b.safetensors")
    assert list(load_adapter(tmp_path / "b.safetensors")) == [name]
    weight = torch.randn(8, 8)
    save_file({"model.diffusion_model.towers.0.mix.weight": weight}, tmp_path / "base.safetensors")
    merge(tmp_path / "base.safetensors", [tmp_path / "a.safetensors"], tmp_path / "m.safetensors", execution=ONE)
    found = load_file(tmp_path / "m.safetensors")["model.diffusion_model.towers.0.mix.weight"]
    torch.testing.assert_close(found, weight + B @ A)
    with pytest.raises(MismatchError, match="no such module in any of"):
        convert(tmp_path / "a.safetensors", "diffusers")


def test_the_single_file_keeps_its_texts_and_dtypes(tmp_path):
    weights = {"model.diffusion_model.blocks.0.self_attn.q.weight": torch.randn(8, 8).half(), "vae.x": torch.ones(2)}
    save_file(weights, tmp_path / "base.safetensors", {"modelspec.title": "T"})
    there = Adapter({"diffusion_model.blocks.0.self_attn.q": layer((8, 8))}, format="comfyui")
    there.save(tmp_path / "a.safetensors")
    merge(tmp_path / "base.safetensors", [tmp_path / "a.safetensors"], tmp_path / "m.safetensors", execution=ONE)
    content = (tmp_path / "m.safetensors").read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert header["__metadata__"]["modelspec.title"] == "T"
    assert [header[name]["dtype"] for name in weights] == ["F16", "F32"]


def test_layers_with_nan_are_named_and_can_be_left_out(tmp_path):
    names = ["lora_unet_blocks_0_self_attn_q", "lora_te1_text_model_encoder_layers_0_mlp_fc1"]
    tensors = {f"{name}.lora_{part}.weight": torch.randn(4, 8) if part == "down" else torch.randn(8, 4)
               for name in names for part in ("down", "up")}  # fmt: skip
    tensors[f"{names[1]}.lora_up.weight"][0, 0] = torch.nan
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(NotFiniteError, match=rf"{names[1]}.*1 values .*`exclude={names[1]}`"):
        resize(tmp_path / "a.safetensors", rank=2, execution=ONE)
    result = resize(
        tmp_path / "a.safetensors", rank=2, exclude=names[1], output=tmp_path / "b.safetensors", execution=ONE
    )
    assert list(result.adapter) == names[:1]
    assert [item.name for item in result.skipped] == names[1:]


def test_refusals_of_formats_name_what_they_cannot_say():
    second = Adapter({"transformer_2.blocks.0.attn1.to_q": layer((8, 8))}, format="diffusers")
    for to in ("kohya", "comfyui"):
        with pytest.raises(MismatchError, match="no name for a module of transformer_2 of Wan"):
            convert(second, to, family="wan")
    by_input = replace(layer((8, 8)), magnitude=torch.ones(1, 8))
    there = Adapter({"diffusion_model.blocks.0.self_attn.q": by_input}, format="comfyui")
    for to in ("peft", "diffusers"):
        with pytest.raises(EckartError, match="a norm for each input"):
            convert(
                replace(there, format="comfyui", layers={"diffusion_model.blocks.0.self_attn.q": by_input}),
                to,
                family="wan",
            )


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize(
    ("to", "layout"), [("kohya", "single"), ("comfyui", "component"), ("diffusers", "single"), ("kohya", "component")]
)
def test_an_extraction_is_written_under_the_names_of_a_format_with_the_error_of_the_file(family, to, layout, tmp_path):
    there = adapter(shapes(family), scale=0.5)
    if layout == "single":
        base = tmp_path / "base.safetensors"
        original_file(base, convert(there, "comfyui", family=family).adapter, "model.diffusion_model.")
        tuned = tmp_path / "tuned.safetensors"
    else:
        component_folder(tmp_path / "pipeline", family)
        base, tuned = tmp_path / "pipeline" / next(iter(there)).partition(".")[0], tmp_path / "tuned"
    path = saved(there, "diffusers", tmp_path, family)
    merge(base, [path], tuned, execution=ONE)
    out = tmp_path / "found.safetensors"
    result = extract(
        base, tuned, rank=9, target=".*", to=to, family=family, dtype="bfloat16", output=out, execution=ONE
    )
    found = load_adapter(out)
    assert found.format == to
    assert set(found) == set(convert(there, to, family=family).adapter)
    assert {tensor.dtype for tensor in load_file(out).values()} <= {torch.bfloat16, torch.float32}
    found = convert(found, "diffusers", family=family).adapter
    square = 0.0
    for name, one in found.items():
        difference = one.low_rank().dense() - there[name].low_rank().dense()
        square += float(difference.square().sum())
    total = sum(float(one.low_rank().dense().square().sum()) for one in there.values())
    assert (square / total) ** 0.5 == pytest.approx(result.error, rel=1e-2)
    assert 1e-4 < result.error < 1e-2  # of bfloat16


def test_an_extraction_from_a_single_file_has_its_text_encoders_and_names_what_it_leaves_out(tmp_path):
    block, clip = "transformer.resblocks.0", "conditioner.embedders.1.model."
    names = {
        "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn1.to_q.weight": (8, 8),
        "model.diffusion_model.input_blocks.0.0.weight": (8, 4, 3, 3),
        "conditioner.embedders.0.transformer.text_model.encoder.layers.0.mlp.fc1.weight": (12, 8),
        "conditioner.embedders.0.transformer.text_model.embeddings.token_embedding.weight": (12, 8),
        f"{clip}{block}.attn.in_proj_weight": (24, 8),
        f"{clip}text_projection": (8, 6),
        "first_stage_model.encoder.mid.attn_1.q.weight": (8, 8),
    }
    base = {name: torch.randn(shape) for name, shape in names.items()}
    change = {name: torch.randn(shape) for name, shape in names.items()}
    save_file(base, tmp_path / "base.safetensors")
    save_file({name: base[name] + change[name] for name in names}, tmp_path / "tuned.safetensors")
    out = tmp_path / "found.safetensors"
    result = extract(
        tmp_path / "base.safetensors", tmp_path / "tuned.safetensors", rank=8, target=".*", to="kohya", output=out,
        execution=ONE,
    )  # fmt: skip
    updates = {name: one.low_rank().dense().float() for name, one in load_adapter(out).items()}
    attention = change[f"{clip}{block}.attn.in_proj_weight"]
    expected = {
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q": change[next(iter(names))],
        "lora_unet_input_blocks_0_0": change["model.diffusion_model.input_blocks.0.0.weight"].flatten(1),
        "lora_te1_text_model_encoder_layers_0_mlp_fc1": change[
            "conditioner.embedders.0.transformer.text_model.encoder.layers.0.mlp.fc1.weight"
        ],
        "lora_te2_text_projection": change[f"{clip}text_projection"].T,
        **{
            f"lora_te2_text_model_encoder_layers_0_self_attn_{part}_proj": rows
            for part, rows in zip("qkv", attention.split(8), strict=True)
        },
    }
    assert set(updates) == set(expected)
    for name, dense in expected.items():
        torch.testing.assert_close(updates[name], dense, rtol=0, atol=1e-4)
    reasons = {item.name: item.reason for item in result.skipped}
    assert "no such module in Stable Diffusion XL" in reasons["first_stage_model.encoder.mid.attn_1.q.weight"]
    (embedding,) = (reason for name, reason in reasons.items() if "token_embedding" in name)
    assert "an embedding" in embedding
    merge(tmp_path / "base.safetensors", [out], tmp_path / "merged.safetensors", execution=ONE)
    merged = load_file(tmp_path / "merged.safetensors")
    for name in (f"{clip}text_projection", f"{clip}{block}.attn.in_proj_weight"):
        torch.testing.assert_close(merged[name], base[name] + change[name], rtol=0, atol=1e-4)

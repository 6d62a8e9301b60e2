"""diffusers' files: what its own loaders make of ours, what we make of its own, old names, and refusals."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from eckart.adapter import Adapter
from eckart.errors import FileFormatError, MismatchError, OutputError
from eckart.formats import load_adapter
from eckart.operations.conversion import convert

from .pipelines import adapter, assert_same_updates, layer, shapes_in

pytestmark = pytest.mark.filterwarnings("ignore")

WEIGHTS = "pytorch_lora_weights.safetensors"
Q = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
ENDS = ("to_q", "to_out.0", "ff.net.2", "proj_in", "conv1", "time_emb_proj", "q_proj", "out_proj", "fc1")


def small_unet():
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), cross_attention_dim=8, attention_head_dim=2, norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip


def small_clip():
    from transformers import CLIPTextConfig, CLIPTextModel

    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    return CLIPTextModel(CLIPTextConfig(**size, vocab_size=40, projection_dim=8))


def small_adapter(**changes) -> Adapter:
    """Ranks and scales that differ, for a UNet and a text encoder; its names as files have them, with text_model."""
    unet = shapes_in(small_unet(), "unet")
    text = {name.replace(".encoder", ".text_model.encoder") if ".text_model." not in name else name: shape
            for name, shape in shapes_in(small_clip(), "text_encoder").items()}  # fmt: skip
    return adapter({name: shape for name, shape in (unet | text).items() if name.endswith(ENDS)}, **changes)


def assert_peft_has(model, part, there):
    """The layers that PEFT runs in a model are those of the adapter, with its scales."""
    from peft.tuners.lora import LoraLayer

    injected = {name: child for name, child in model.named_modules() if isinstance(child, LoraLayer)}
    expected = {name.removeprefix(f"{part}."): one for name, one in there.items() if name.startswith(f"{part}.")}
    assert len(injected) == len(expected) > 4
    for name, one in expected.items():
        found = injected[name] if name in injected else injected[name.removeprefix("text_model.")]
        (active,) = found.active_adapters
        assert found.scaling[active] == pytest.approx(one.scaling, rel=1e-12), name
        torch.testing.assert_close(found.get_delta_weight(active), one.delta(), rtol=1e-5, atol=1e-6)


def loaded_by_pipeline(path):
    """The UNet and the text encoder after diffusers' Stable Diffusion pipeline has loaded a LoRA file."""
    from diffusers import StableDiffusionPipeline as Pipeline

    unet, text = small_unet(), small_clip()
    state, alphas, metadata = Pipeline.lora_state_dict(path, unet_config=unet.config, return_lora_metadata=True)
    options = {"network_alphas": alphas, "metadata": metadata}
    Pipeline.load_lora_into_unet(state, unet=unet, **options)
    Pipeline.load_lora_into_text_encoder(state, text_encoder=text, prefix="text_encoder", **options)
    return unet, text


def test_diffusers_pipeline_loads_our_folder_with_every_scale(tmp_path):
    there = small_adapter()
    there.save(tmp_path / "a")
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [".eckart.json", WEIGHTS]
    unet, text = loaded_by_pipeline(tmp_path / "a")
    assert_peft_has(unet, "unet", there)
    assert_peft_has(text, "text_encoder", there)


def test_diffusers_pipeline_loads_our_kohya_file(tmp_path):
    # Its loader gives the text encoder's alphas to other layers than it gives the UNet's: one alpha for all.
    there = small_adapter(alpha=3.0, rank=2)
    convert(there, "kohya", output=tmp_path / "a.safetensors")
    unet, text = loaded_by_pipeline(tmp_path / "a.safetensors")
    assert_peft_has(unet, "unet", there)
    assert_peft_has(text, "text_encoder", there)


def test_dora_is_loaded_by_diffusers(tmp_path):
    plain = small_adapter()
    layers = {name: replace(one, magnitude=torch.rand(len(one.lora_B)) + 1) for name, one in plain.items()}
    there = Adapter({name: one for name, one in layers.items() if name.startswith("unet.")}, format="diffusers")
    there.save(tmp_path / "a")
    model = small_unet()
    model.load_lora_adapter(tmp_path / "a", prefix="unet", adapter_name="a", use_safetensors=True)
    state = {name: tensor for name, tensor in model.state_dict().items() if "magnitude" in name}
    assert len(state) == len(there)
    for name, one in there.items():
        own = name.removeprefix("unet.")
        assert torch.equal(state[f"{own}.lora_magnitude_vector.a.weight"].flatten(), one.magnitude)
    assert_same_updates(load_adapter(tmp_path / "a"), there)
    assert all(torch.equal(one.magnitude, there[name].magnitude) for name, one in load_adapter(tmp_path / "a").items())


@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"alpha_pattern": {"attn1.to_q": 9}, "lora_bias": True}])
def test_what_a_model_of_diffusers_saves_is_read_with_its_scales(options, tmp_path):
    from peft import LoraConfig

    model = small_unet()
    config = LoraConfig(r=3, lora_alpha=4, target_modules=["to_q", "conv1"], init_lora_weights=False, **options)
    model.add_adapter(config, adapter_name="a")
    model.save_lora_adapter(tmp_path / "theirs", adapter_name="a")
    found = load_adapter(tmp_path / "theirs")
    assert all(name.startswith("unet.") for name in found)
    assert_peft_has(model, "unet", found)
    found.save(tmp_path / "ours")
    assert_same_updates(load_adapter(tmp_path / "ours"), found)


def write(path, tensors, **metadata):
    text = {"lora_adapter_metadata": json.dumps(metadata)} if metadata else None
    save_file(tensors, path / WEIGHTS, text)
    return path


def factors(module=Q, down="lora_A.weight", up="lora_B.weight", **more):
    own = {down: torch.randn(3, 6), up: torch.randn(8, 3), **more}
    return {module + ("" if end.startswith("_") else ".") + end: tensor for end, tensor in own.items()}


SELF = "text_encoder.text_model.encoder.layers.0.self_attn"


@pytest.mark.parametrize(
    ("module", "down", "expected"),
    [
        (Q, "lora.down.weight", Q),
        (Q.replace(".to_q", ".processor.to_q"), "_lora.down.weight", Q),
        (Q.replace(".to_q", ".processor.to_out"), "_lora.down.weight", Q.replace("to_q", "to_out.0")),
        (f"{SELF}.to_out", "_lora.down.weight", f"{SELF}.out_proj"),
        (f"{SELF}.q_proj".replace("text_model.", ""), "lora_A.weight", f"{SELF}.q_proj"),
        (f"{SELF}.q_proj", "lora_linear_layer.down.weight", f"{SELF}.q_proj"),
        (Q.removeprefix("unet."), "lora_A.weight", Q),
    ],
)
def test_names_of_old_versions_are_read_as_those_of_today(module, down, expected, tmp_path):
    up = down.replace("down", "up").replace("lora_A", "lora_B")
    (name, one), *others = load_adapter(write(tmp_path, factors(module, down, up))).items()
    assert (name, others) == (expected, [])
    assert one.scaling == 1


def test_an_anchored_pattern_holds_for_the_name_in_the_file(tmp_path):
    metadata = {"text_encoder.r": 3, "text_encoder.alpha_pattern": {r"^encoder\.layers\.0\.self_attn\.q_proj": 6}}
    (one,) = load_adapter(write(tmp_path, factors(f"{SELF}.q_proj".replace("text_model.", "")), **metadata)).values()
    assert one.scaling == 2


def test_alphas_next_to_the_factors_are_read(tmp_path):
    (one,) = load_adapter(write(tmp_path, factors(alpha=torch.tensor(6.0)))).values()
    assert one.scaling == 2


def test_other_texts_of_the_header_are_kept(tmp_path):
    save_file(factors(), tmp_path / WEIGHTS, {"author": "A"})
    load_adapter(tmp_path).save(tmp_path / "b.safetensors")
    with safe_open(tmp_path / "b.safetensors", "pt") as file:
        assert file.metadata()["author"] == "A"


@pytest.mark.parametrize(
    ("tensors", "metadata", "said"),
    [
        ({f"{Q}.lora_A.weight": torch.ones(2, 2)}, {}, "to_q: lora_B missing"),
        (factors(alpha=torch.tensor(6.0)), {"unet.r": 3, "unet.lora_alpha": 3}, "alpha is 3 by .* and 6 by"),
        (factors(), {"unet.r": 5}, "rank is 5"),
        (factors(), {"lora_alpha": 5}, "lora_alpha begins with none of the components"),
        (factors(), {"unet.r": "five"}, "unet.r: "),
        (factors(), {"unet.r": 3, "unet.alpha_pattern": {"(": 1}}, "regex"),
        (factors() | {f"{Q}.lokr_w1": torch.ones(2)}, {}, "tensors of LoKr and of LoRA for one module"),
        (factors() | factors("vae.conv"), {}, "vae.conv.* none of the components"),
        (factors() | factors(down="lora.down.weight", up="lora.up.weight"), {}, "the same part of"),
        (factors(lora_magnitude_vector=torch.ones(3)), {}, "magnitude has 3 values for 8 outputs"),
    ],
)
def test_what_does_not_make_an_adapter_is_refused_by_name(tensors, metadata, said, tmp_path):
    with pytest.raises(FileFormatError, match=said):
        load_adapter(write(tmp_path, tensors, **metadata))


def test_a_model_of_no_pipeline_is_not_written(tmp_path):
    with pytest.raises(MismatchError, match="component"):
        Adapter({"model.layers.0.q_proj": layer((8, 6))}, format="diffusers").save(tmp_path / "a")
    there = small_adapter()
    there.save(tmp_path / "b")
    with pytest.raises(OutputError, match="exists"):
        there.save(tmp_path / "b")
    before = load_file(tmp_path / "b" / WEIGHTS)
    assert set(before) == {f"{name}.lora_{part}.weight" for name in there for part in "AB"}

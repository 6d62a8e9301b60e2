"""A tiny random model of diffusers' own class for each family, and the converters of diffusers that are its oracle."""

import functools
import json
from collections.abc import Callable

import torch
from safetensors.torch import save_file
from torch import nn

from eckart.adapter import Adapter
from eckart.formats.families.table import FAMILIES

from .pipelines import Shapes, narrow, shapes_in

_UNET = {"sample_size": 8, "cross_attention_dim": 8, "attention_head_dim": 2, "norm_num_groups": 4}
_HEADS = {"attention_head_dim": 4, "num_attention_heads": 2}
_BLOCKS = {"num_layers": 2, "num_single_layers": 2}


def _sd():
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(**_UNET, block_out_channels=(4, 8, 8, 8))


def _sdxl():
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        **_UNET,
        block_out_channels=(4, 8, 8),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 1, 2),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=16,
    )


def _transformer(name: str, **options) -> nn.Module:
    import diffusers

    return getattr(diffusers, name)(**options)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "sd": _sd,
    "sdxl": _sdxl,
    "sd3": lambda: _transformer(
        "SD3Transformer2DModel", sample_size=8, patch_size=1, in_channels=4, num_layers=2, **_HEADS,
        joint_attention_dim=8, caption_projection_dim=8, pooled_projection_dim=8, dual_attention_layers=(0,),
    ),
    "flux1": lambda: _transformer(
        "FluxTransformer2DModel", in_channels=4, **_BLOCKS, **_HEADS, joint_attention_dim=8, pooled_projection_dim=8,
        guidance_embeds=True,
    ),
    "flux2": lambda: _transformer(
        "Flux2Transformer2DModel", in_channels=4, **_BLOCKS, **_HEADS, joint_attention_dim=8,
        timestep_guidance_channels=8,
    ),
    "qwen-image": lambda: _transformer(
        "QwenImageTransformer2DModel", in_channels=4, num_layers=2, **_HEADS, joint_attention_dim=8
    ),
    "z-image": lambda: _transformer(
        "ZImageTransformer2DModel", in_channels=4, dim=8, n_layers=2, n_refiner_layers=1, n_heads=2, n_kv_heads=2,
        cap_feat_dim=8, axes_dims=[2, 1, 1],
    ),
    "wan": lambda: _transformer(
        "WanTransformer3DModel", **_HEADS, in_channels=4, out_channels=4, text_dim=8, freq_dim=8, ffn_dim=16,
        num_layers=2, image_dim=8, added_kv_proj_dim=8,
    ),
    "hunyuan-video": lambda: _transformer(
        "HunyuanVideoTransformer3DModel", in_channels=4, out_channels=4, **_BLOCKS, **_HEADS, num_refiner_layers=1,
        text_embed_dim=8, pooled_projection_dim=8,
    ),
    "ltx-video": lambda: _transformer(
        "LTXVideoTransformer3DModel", in_channels=4, out_channels=4, num_layers=2, **_HEADS, cross_attention_dim=8,
        caption_channels=8,
    ),
    "lumina2": lambda: _transformer(
        "Lumina2Transformer2DModel", in_channels=4, hidden_size=12, num_layers=2, num_refiner_layers=1,
        num_attention_heads=3, num_kv_heads=1, cap_feat_dim=8, axes_dim_rope=(2, 2, 0),
    ),
    "hidream": lambda: _transformer(
        "HiDreamImageTransformer2DModel", patch_size=1, in_channels=4, out_channels=4, num_layers=1,
        num_single_layers=1, **_HEADS,
        caption_channels=[8, 8], llama_layers=[0], text_emb_dim=8, num_routed_experts=2, num_activated_experts=1,
    ),
}  # fmt: skip


@functools.cache
def shapes(family: str) -> Shapes:
    """Every linear layer and convolution of a family's tiny model, by its name in a pipeline."""
    torch.manual_seed(0)
    model = MODELS[family]()
    part = "unet" if family.startswith("sd") and family != "sd3" else "transformer"
    found = shapes_in(model, part)
    found |= {
        f"{part}.{name}": tuple(child.weight.shape)
        for name, child in model.named_modules()
        if isinstance(child, nn.Conv3d)
    }
    return found


@functools.cache
def wide_shapes(family: str) -> Shapes:
    """The same, with the published number of outputs where diffusers' converters have it in their code."""
    from diffusers import FluxTransformer2DModel, HunyuanVideoTransformer3DModel, Lumina2Transformer2DModel

    models: dict[str, Callable[[], nn.Module]] = {
        "flux1": lambda: FluxTransformer2DModel(num_layers=1, num_single_layers=1),
        "hunyuan-video": lambda: HunyuanVideoTransformer3DModel(num_layers=1, num_single_layers=1),
        "lumina2": lambda: Lumina2Transformer2DModel(num_layers=1, num_refiner_layers=1),
    }
    if family not in models:
        return shapes(family)
    with torch.device("meta"):
        return narrow(shapes_in(models[family](), "transformer"))


def original_file(path, originals: Adapter, prefix: str) -> dict[str, torch.Tensor]:
    """A single-file checkpoint with a matrix for each layer of an adapter in ComfyUI's names, and a VAE."""
    weights = {
        f"{prefix}{name.removeprefix('diffusion_model.')}.weight": torch.randn(
            len(one.lora_B), *one.lora_A.shape[1:], generator=torch.Generator().manual_seed(7)
        )
        for name, one in originals.items()
    }
    save_file(weights | {"first_stage_model.encoder.conv_in.weight": torch.ones(4, 3)}, path, {"modelspec.title": "T"})
    return weights


def component_folder(folder, family: str) -> dict[str, torch.Tensor]:
    """The folder of a tiny model as diffusers saves it, without what no layer is."""
    part = next(iter(shapes(family))).partition(".")[0]
    generator = torch.Generator().manual_seed(3)
    weights = {
        f"{name.partition('.')[2]}.weight": torch.randn(shape, generator=generator)
        for name, shape in shapes(family).items()
    }
    (folder / part).mkdir(parents=True)
    save_file(weights, folder / part / "diffusion_pytorch_model.safetensors")
    (folder / part / "config.json").write_text(json.dumps({"_class_name": FAMILIES[family].classes[0]}))
    (folder / "model_index.json").write_text("{}")
    (folder / "scheduler").mkdir()
    (folder / "scheduler/scheduler_config.json").write_text("{}")
    return weights

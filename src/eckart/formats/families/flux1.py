"""FLUX.1 and Chroma, which replaces its modulation by a guidance layer."""

from fractions import Fraction

from eckart.formats.families.encoders import clip, t5
from eckart.formats.families.family import Family, denoiser, module, modules, same, swapped

_DOUBLE, _BLOCK = "double_blocks.{}", "transformer_blocks.{}"
_SINGLE, _SINGLE_BLOCK = "single_blocks.{}", "single_transformer_blocks.{}"
_QKV = [f"{_BLOCK}.attn.to_{part}" for part in "qkv"]
_ADDED_QKV = [f"{_BLOCK}.attn.add_{part}_proj" for part in "qkv"]
_SINGLE_QKV = [f"{_SINGLE_BLOCK}.attn.to_{part}" for part in "qkv"]
_MODULES = (
    module(f"{_DOUBLE}.img_attn.qkv", *_QKV, ratio=3),
    module(f"{_DOUBLE}.txt_attn.qkv", *_ADDED_QKV, ratio=3),
    module(f"{_DOUBLE}.img_attn.proj", f"{_BLOCK}.attn.to_out.0", also=[f"{_DOUBLE}.proj_lora1"]),
    module(f"{_DOUBLE}.txt_attn.proj", f"{_BLOCK}.attn.to_add_out", also=[f"{_DOUBLE}.proj_lora2"]),
    module(f"{_DOUBLE}.img_mlp.0", f"{_BLOCK}.ff.net.0.proj", ratio=4),
    module(f"{_DOUBLE}.txt_mlp.0", f"{_BLOCK}.ff_context.net.0.proj", ratio=4),
    module(f"{_DOUBLE}.img_mlp.2", f"{_BLOCK}.ff.net.2", ratio=Fraction(1, 4)),
    module(f"{_DOUBLE}.txt_mlp.2", f"{_BLOCK}.ff_context.net.2", ratio=Fraction(1, 4)),
    module(f"{_SINGLE}.linear1", *_SINGLE_QKV, f"{_SINGLE_BLOCK}.proj_mlp", shares=(1, 1, 1, 4), ratio=7),
    module(f"{_SINGLE}.linear2", f"{_SINGLE_BLOCK}.proj_out", ratio=Fraction(1, 5), also=[f"{_SINGLE}.proj"]),
    # XLabs trained processors of the attention, whose keys end in qkv_lora1.down.weight.
    module(f"{_DOUBLE}.qkv_lora1", *_QKV, ratio=3, written=False),
    module(f"{_DOUBLE}.qkv_lora2", *_ADDED_QKV, ratio=3, written=False),
    module(f"{_SINGLE}.qkv", *_SINGLE_QKV, ratio=3, written=False),
    *modules(
        {
            f"{_DOUBLE}.img_mod.lin": f"{_BLOCK}.norm1.linear",
            f"{_DOUBLE}.txt_mod.lin": f"{_BLOCK}.norm1_context.linear",
            f"{_SINGLE}.modulation.lin": f"{_SINGLE_BLOCK}.norm.linear",
            "img_in": "x_embedder",
            "txt_in": "context_embedder",
            "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
            "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
            "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
            "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
            "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
            "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
            "final_layer.linear": "proj_out",
            "distilled_guidance_layer.layers.{}.in_layer": "distilled_guidance_layer.layers.{}.linear_1",
            "distilled_guidance_layer.layers.{}.out_layer": "distilled_guidance_layer.layers.{}.linear_2",
        }
    ),
    *same("distilled_guidance_layer.in_proj", "distilled_guidance_layer.out_proj"),
    swapped("final_layer.adaLN_modulation.1", "norm_out.linear"),
)
FAMILY = Family(
    "flux1",
    "FLUX.1",
    (
        denoiser("transformer", _MODULES),
        clip("text_encoder", "clip_l", "lora_te1_", "lora_te_"),
        t5("text_encoder_2", "t5xxl", "lora_te3_", "lora_te2_"),
    ),
    ("FluxTransformer2DModel", "ChromaTransformer2DModel"),
    {"transformer_blocks": (19,), "single_transformer_blocks": (38,)},
)

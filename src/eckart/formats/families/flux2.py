"""FLUX.2, whose single blocks stay fused in diffusers and whose MLPs are gated."""

from fractions import Fraction

from eckart.formats.families.encoders import language_model
from eckart.formats.families.family import Family, denoiser, module, modules, swapped

_DOUBLE, _BLOCK = "double_blocks.{}", "transformer_blocks.{}"
_SINGLE, _SINGLE_BLOCK = "single_blocks.{}", "single_transformer_blocks.{}"
_MODULES = (
    module(f"{_DOUBLE}.img_attn.qkv", *(f"{_BLOCK}.attn.to_{part}" for part in "qkv"), ratio=3),
    module(f"{_DOUBLE}.txt_attn.qkv", *(f"{_BLOCK}.attn.add_{part}_proj" for part in "qkv"), ratio=3),
    module(f"{_DOUBLE}.img_mlp.0", f"{_BLOCK}.ff.linear_in", ratio=6),
    module(f"{_DOUBLE}.txt_mlp.0", f"{_BLOCK}.ff_context.linear_in", ratio=6),
    module(f"{_DOUBLE}.img_mlp.2", f"{_BLOCK}.ff.linear_out", ratio=Fraction(1, 3)),
    module(f"{_DOUBLE}.txt_mlp.2", f"{_BLOCK}.ff_context.linear_out", ratio=Fraction(1, 3)),
    module(f"{_SINGLE}.linear1", f"{_SINGLE_BLOCK}.attn.to_qkv_mlp_proj", ratio=9),
    module(f"{_SINGLE}.linear2", f"{_SINGLE_BLOCK}.attn.to_out", ratio=Fraction(1, 4)),
    *modules(
        {
            f"{_DOUBLE}.img_attn.proj": f"{_BLOCK}.attn.to_out.0",
            f"{_DOUBLE}.txt_attn.proj": f"{_BLOCK}.attn.to_add_out",
            "img_in": "x_embedder",
            "txt_in": "context_embedder",
            "time_in.in_layer": "time_guidance_embed.timestep_embedder.linear_1",
            "time_in.out_layer": "time_guidance_embed.timestep_embedder.linear_2",
            "guidance_in.in_layer": "time_guidance_embed.guidance_embedder.linear_1",
            "guidance_in.out_layer": "time_guidance_embed.guidance_embedder.linear_2",
            "single_stream_modulation.lin": "single_stream_modulation.linear",
            "double_stream_modulation_img.lin": "double_stream_modulation_img.linear",
            "double_stream_modulation_txt.lin": "double_stream_modulation_txt.linear",
            "final_layer.linear": "proj_out",
        }
    ),
    swapped("final_layer.adaLN_modulation.1", "norm_out.linear"),
)
FAMILY = Family(
    "flux2",
    "FLUX.2",
    (
        denoiser("transformer", _MODULES),
        language_model("text_encoder", "mistral3_24b", "lora_te_", inner="model.language_model."),
    ),
    ("Flux2Transformer2DModel",),
    {"transformer_blocks": (5, 8), "single_transformer_blocks": (20, 24, 48)},
)

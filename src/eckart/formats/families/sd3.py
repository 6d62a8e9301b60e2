"""Stable Diffusion 3 and 3.5."""

from eckart.formats.families.encoders import clip, t5
from eckart.formats.families.family import Family, denoiser, module, modules, same, swapped

_X, _CONTEXT, _BLOCK = "joint_blocks.{}.x_block", "joint_blocks.{}.context_block", "transformer_blocks.{}"
_MODULES = (
    module(f"{_X}.attn.qkv", *(f"{_BLOCK}.attn.to_{part}" for part in "qkv"), ratio=3),
    module(f"{_X}.attn2.qkv", *(f"{_BLOCK}.attn2.to_{part}" for part in "qkv"), ratio=3),
    module(f"{_CONTEXT}.attn.qkv", *(f"{_BLOCK}.attn.add_{part}_proj" for part in "qkv"), ratio=3),
    *modules(
        {
            f"{_X}.attn.proj": f"{_BLOCK}.attn.to_out.0",
            f"{_X}.attn2.proj": f"{_BLOCK}.attn2.to_out.0",
            f"{_X}.mlp.fc1": f"{_BLOCK}.ff.net.0.proj",
            f"{_X}.mlp.fc2": f"{_BLOCK}.ff.net.2",
            f"{_X}.adaLN_modulation.1": f"{_BLOCK}.norm1.linear",
            f"{_CONTEXT}.attn.proj": f"{_BLOCK}.attn.to_add_out",
            f"{_CONTEXT}.mlp.fc1": f"{_BLOCK}.ff_context.net.0.proj",
            f"{_CONTEXT}.mlp.fc2": f"{_BLOCK}.ff_context.net.2",
            "x_embedder.proj": "pos_embed.proj",
            "t_embedder.mlp.0": "time_text_embed.timestep_embedder.linear_1",
            "t_embedder.mlp.2": "time_text_embed.timestep_embedder.linear_2",
            "y_embedder.mlp.0": "time_text_embed.text_embedder.linear_1",
            "y_embedder.mlp.2": "time_text_embed.text_embedder.linear_2",
            "final_layer.linear": "proj_out",
        }
    ),
    # The context of the last block has no output, and a modulation of shift and scale alone.
    module(f"{_CONTEXT}.adaLN_modulation.1", f"{_BLOCK}.norm1_context.linear", ratio=6),
    swapped(f"{_CONTEXT}.adaLN_modulation.1", f"{_BLOCK}.norm1_context.linear", ratio=2),
    *same("context_embedder"),
    swapped("final_layer.adaLN_modulation.1", "norm_out.linear"),
)
FAMILY = Family(
    "sd3",
    "Stable Diffusion 3",
    (
        denoiser("transformer", _MODULES),
        clip("text_encoder", "clip_l", "lora_te1_"),
        clip("text_encoder_2", "clip_g", "lora_te2_"),
        t5("text_encoder_3", "t5xxl", "lora_te3_"),
    ),
    ("SD3Transformer2DModel",),
    {"transformer_blocks": (24, 38)},
)

"""Qwen-Image and Qwen-Image-Edit: one set of names."""

from eckart.formats.families.encoders import language_model
from eckart.formats.families.family import Family, denoiser, same

_BLOCK = "transformer_blocks.{}"
_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
_MODULES = same(
    *(f"{_BLOCK}.attn.{name}" for name in _ATTENTION),
    *(f"{_BLOCK}.{side}_{name}" for side in ("img", "txt") for name in ("mlp.net.0.proj", "mlp.net.2", "mod.1")),
    *("img_in", "txt_in", "txt_norm", "proj_out", "norm_out.linear"),
    *(f"time_text_embed.timestep_embedder.linear_{index}" for index in (1, 2)),
)
FAMILY = Family(
    "qwen-image",
    "Qwen-Image",
    (
        denoiser("transformer", _MODULES),
        language_model("text_encoder", "qwen25_7b", "lora_te_", inner="model.language_model."),
    ),
    ("QwenImageTransformer2DModel",),
    {"transformer_blocks": (60,)},
)

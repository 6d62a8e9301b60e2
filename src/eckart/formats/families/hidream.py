"""HiDream-I1: one set of names, and experts that are modules of their own."""

from eckart.formats.families.encoders import clip, language_model, t5
from eckart.formats.families.family import Family, Module, denoiser, same

_ATTENTION = ("to_q", "to_k", "to_v", "to_out", "to_q_t", "to_k_t", "to_v_t", "to_out_t")
_EXPERTS = ("shared_experts", "experts.{}")


def _block(name: str) -> tuple[Module, ...]:
    block = f"{name}.{{}}.block"
    return same(
        *(f"{block}.attn1.{projection}" for projection in _ATTENTION),
        *(f"{block}.ff_i.{expert}.w{index}" for expert in _EXPERTS for index in (1, 2, 3)),
        *(f"{block}.{feed_forward}.w{index}" for feed_forward in ("ff_i", "ff_t") for index in (1, 2, 3)),
        *(f"{block}.ff_i.gate", f"{block}.adaLN_modulation.1"),
    )


_MODULES = (
    *_block("double_stream_blocks"),
    *_block("single_stream_blocks"),
    *same(
        *(f"t_embedder.timestep_embedder.linear_{index}" for index in (1, 2)),
        *(f"p_embedder.pooled_embedder.linear_{index}" for index in (1, 2)),
        *("caption_projection.{}.linear", "x_embedder.proj", "final_layer.linear", "final_layer.adaLN_modulation.1"),
    ),
)
FAMILY = Family(
    "hidream",
    "HiDream-I1",
    (
        denoiser("transformer", _MODULES),
        clip("text_encoder", "clip_l", "lora_te1_"),
        clip("text_encoder_2", "clip_g", "lora_te2_"),
        t5("text_encoder_3", "t5xxl", "lora_te3_"),
        language_model("text_encoder_4", "llama", "lora_te4_", inner="model."),
    ),
    ("HiDreamImageTransformer2DModel",),
    {"double_stream_blocks": (16,), "single_stream_blocks": (32,)},
)

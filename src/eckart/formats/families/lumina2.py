"""Lumina Image 2.0, whose attention has a third as many key and value heads as query heads."""

from fractions import Fraction

from eckart.formats.families.encoders import language_model
from eckart.formats.families.family import Family, Module, denoiser, module, modules, same


def _block(name: str) -> tuple[Module, ...]:
    block = f"{name}.{{}}"
    return (
        module(
            f"{block}.attention.qkv",
            *(f"{block}.attn.to_{part}" for part in "qkv"),
            shares=(3, 1, 1),
            ratio=Fraction(5, 3),
        ),
        *modules(
            {
                f"{block}.attention.out": f"{block}.attn.to_out.0",
                f"{block}.adaLN_modulation.1": f"{block}.norm1.linear",
                **{f"{block}.feed_forward.w{i}": f"{block}.feed_forward.linear_{i}" for i in (1, 2, 3)},
                **{f"{block}.attention.{part}_norm": f"{block}.attn.norm_{part}" for part in "qk"},
            }
        ),
    )


_MODULES = (
    *(row for name in ("layers", "noise_refiner", "context_refiner") for row in _block(name)),
    *modules(
        {
            "cap_embedder.0": "time_caption_embed.caption_embedder.0",
            "cap_embedder.1": "time_caption_embed.caption_embedder.1",
            "t_embedder.mlp.0": "time_caption_embed.timestep_embedder.linear_1",
            "t_embedder.mlp.2": "time_caption_embed.timestep_embedder.linear_2",
            "final_layer.adaLN_modulation.1": "norm_out.linear_1",
            "final_layer.linear": "norm_out.linear_2",
        }
    ),
    *same("x_embedder"),
)
FAMILY = Family(
    "lumina2",
    "Lumina Image 2.0",
    (denoiser("transformer", _MODULES), language_model("text_encoder", "gemma2_2b", "lora_te_")),
    ("Lumina2Transformer2DModel",),
    {"layers": (26,)},
)

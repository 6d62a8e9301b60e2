"""Z-Image."""

from eckart.formats.families.encoders import language_model
from eckart.formats.families.family import Family, Module, denoiser, module, modules, same


def _block(name: str) -> tuple[Module, ...]:
    attention = f"{name}.{{}}.attention"
    norms = ("attention_norm1", "attention_norm2", "ffn_norm1", "ffn_norm2")
    return (
        module(f"{attention}.qkv", *(f"{attention}.to_{part}" for part in "qkv"), ratio=3),
        module(f"{attention}.out", f"{attention}.to_out.0"),
        *modules({f"{attention}.{part}_norm": f"{attention}.norm_{part}" for part in "qk"}),
        *same(*(f"{name}.{{}}.feed_forward.w{index}" for index in (1, 2, 3)), f"{name}.{{}}.adaLN_modulation.0"),
        *same(*(f"{name}.{{}}.{norm}" for norm in norms)),
    )


_MODULES = (
    *(row for name in ("layers", "noise_refiner", "context_refiner") for row in _block(name)),
    *same("cap_embedder.0", "cap_embedder.1", "t_embedder.mlp.0", "t_embedder.mlp.2"),
    *modules(
        {
            "x_embedder": "all_x_embedder.2-1",
            "final_layer.linear": "all_final_layer.2-1.linear",
            "final_layer.adaLN_modulation.1": "all_final_layer.2-1.adaLN_modulation.1",
        }
    ),
)
FAMILY = Family(
    "z-image",
    "Z-Image",
    # musubi-tuner trains the model with query, key and value apart; others flatten the original names.
    (
        denoiser("transformer", _MODULES, kohya=("diffusers", "original")),
        language_model("text_encoder", "qwen3_4b", "lora_te_"),
    ),
    ("ZImageTransformer2DModel",),
    {"layers": (30,)},
)

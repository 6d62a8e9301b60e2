"""HunyuanVideo: FLUX.1's architecture, under other original names, with a refiner of the text."""

from fractions import Fraction

from eckart.formats.families.encoders import clip, language_model
from eckart.formats.families.family import Family, Module, denoiser, module, modules, swapped

_DOUBLE, _BLOCK = "double_blocks.{}", "transformer_blocks.{}"
_SINGLE, _SINGLE_BLOCK = "single_blocks.{}", "single_transformer_blocks.{}"
_REFINER = "txt_in.individual_token_refiner.blocks.{}"
_NEW_REFINER = "context_embedder.token_refiner.refiner_blocks.{}"
_SINGLE_PARTS = [*(f"{_SINGLE_BLOCK}.attn.to_{part}" for part in "qkv"), f"{_SINGLE_BLOCK}.proj_mlp"]


def _side(old: str, new: str, attention: str) -> tuple[Module, ...]:
    """The modules of the image or the text in a double block, under the official names and ComfyUI's."""
    side, parts = f"{_DOUBLE}.{old}", [f"{_BLOCK}.attn.{attention.format(part)}" for part in "qkv"]
    out = "to_out.0" if old == "img" else "to_add_out"
    norm = "norm1" if old == "img" else "norm1_context"
    return (
        module(f"{side}_attn_qkv", *parts, ratio=3, also=[f"{side}_attn.qkv"]),
        module(f"{side}_attn_proj", f"{_BLOCK}.attn.{out}", also=[f"{side}_attn.proj"]),
        module(f"{side}_mlp.fc1", f"{_BLOCK}.{new}.net.0.proj", ratio=4, also=[f"{side}_mlp.0"]),
        module(f"{side}_mlp.fc2", f"{_BLOCK}.{new}.net.2", ratio=Fraction(1, 4), also=[f"{side}_mlp.2"]),
        module(f"{side}_mod.linear", f"{_BLOCK}.{norm}.linear", also=[f"{side}_mod.lin"]),
    )


def _embedder(old: str, new: str) -> tuple[Module, ...]:
    """An embedder of two layers, under the official names and ComfyUI's."""
    first, second = (f"time_text_embed.{new}.linear_{index}" for index in (1, 2))
    return (
        module(f"{old}.mlp.0", first, also=[f"{old}.in_layer"]),
        module(f"{old}.mlp.2", second, also=[f"{old}.out_layer"]),
    )


_MODULES = (
    *_side("img", "ff", "to_{}"),
    *_side("txt", "ff_context", "add_{}_proj"),
    module(f"{_SINGLE}.linear1", *_SINGLE_PARTS, shares=(1, 1, 1, 4), ratio=7),
    module(f"{_SINGLE}.linear2", f"{_SINGLE_BLOCK}.proj_out", ratio=Fraction(1, 5)),
    module(f"{_SINGLE}.modulation.linear", f"{_SINGLE_BLOCK}.norm.linear", also=[f"{_SINGLE}.modulation.lin"]),
    module(
        f"{_REFINER}.self_attn_qkv",
        *(f"{_NEW_REFINER}.attn.to_{part}" for part in "qkv"),
        ratio=3,
        also=[f"{_REFINER}.self_attn.qkv"],
    ),
    module(f"{_REFINER}.self_attn_proj", f"{_NEW_REFINER}.attn.to_out.0", also=[f"{_REFINER}.self_attn.proj"]),
    module(f"{_REFINER}.mlp.fc1", f"{_NEW_REFINER}.ff.net.0.proj", also=[f"{_REFINER}.mlp.0"]),
    module(f"{_REFINER}.mlp.fc2", f"{_NEW_REFINER}.ff.net.2", also=[f"{_REFINER}.mlp.2"]),
    *_embedder("time_in", "timestep_embedder"),
    *_embedder("guidance_in", "guidance_embedder"),
    *modules(
        {
            f"{_REFINER}.adaLN_modulation.1": f"{_NEW_REFINER}.norm_out.linear",
            "txt_in.input_embedder": "context_embedder.proj_in",
            "txt_in.t_embedder.mlp.0": "context_embedder.time_text_embed.timestep_embedder.linear_1",
            "txt_in.t_embedder.mlp.2": "context_embedder.time_text_embed.timestep_embedder.linear_2",
            "txt_in.c_embedder.linear_1": "context_embedder.time_text_embed.text_embedder.linear_1",
            "txt_in.c_embedder.linear_2": "context_embedder.time_text_embed.text_embedder.linear_2",
            "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
            "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
            "img_in.proj": "x_embedder.proj",
            "final_layer.linear": "proj_out",
        }
    ),
    swapped("final_layer.adaLN_modulation.1", "norm_out.linear"),
)
FAMILY = Family(
    "hunyuan-video",
    "HunyuanVideo",
    (
        denoiser("transformer", _MODULES),
        language_model("text_encoder", "llama", "lora_te_"),
        clip("text_encoder_2", "clip_l", "lora_te2_"),
    ),
    ("HunyuanVideoTransformer3DModel",),
    {"transformer_blocks": (20,), "single_transformer_blocks": (40,)},
)

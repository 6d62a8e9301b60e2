"""Wan 2.1 and 2.2, which has a second transformer for the last steps."""

from eckart.formats.families.encoders import t5
from eckart.formats.families.family import Family, Module, denoiser, modules, same

_PROJECTIONS = {"q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out.0"}
_IMAGE = {"k_img": "add_k_proj", "v_img": "add_v_proj", "norm_k_img": "norm_added_k"}
_NORMS = {"norm_q": "norm_q", "norm_k": "norm_k"}


def _block(name: str) -> tuple[Module, ...]:
    block = f"{name}.{{}}"
    names = {f"{block}.self_attn.{old}": f"{block}.attn1.{new}" for old, new in (_PROJECTIONS | _NORMS).items()}
    cross = _PROJECTIONS | _NORMS | _IMAGE
    names |= {f"{block}.cross_attn.{old}": f"{block}.attn2.{new}" for old, new in cross.items()}
    names |= {f"{block}.ffn.0": f"{block}.ffn.net.0.proj", f"{block}.ffn.2": f"{block}.ffn.net.2"}
    return modules(names | {f"{block}.norm3": f"{block}.norm2"})


_MODULES = (
    *_block("blocks"),
    *_block("vace_blocks"),
    *modules(
        {
            "vace_blocks.{}.before_proj": "vace_blocks.{}.proj_in",
            "vace_blocks.{}.after_proj": "vace_blocks.{}.proj_out",
            "time_embedding.0": "condition_embedder.time_embedder.linear_1",
            "time_embedding.2": "condition_embedder.time_embedder.linear_2",
            "text_embedding.0": "condition_embedder.text_embedder.linear_1",
            "text_embedding.2": "condition_embedder.text_embedder.linear_2",
            "time_projection.1": "condition_embedder.time_proj",
            "img_emb.proj.0": "condition_embedder.image_embedder.norm1",
            "img_emb.proj.1": "condition_embedder.image_embedder.ff.net.0.proj",
            "img_emb.proj.3": "condition_embedder.image_embedder.ff.net.2",
            "img_emb.proj.4": "condition_embedder.image_embedder.norm2",
            "head.head": "proj_out",
        }
    ),
    *same("patch_embedding", "vace_patch_embedding"),
)
FAMILY = Family(
    "wan",
    "Wan",
    (
        denoiser("transformer", _MODULES),
        denoiser("transformer_2", _MODULES, prefix=""),
        t5("text_encoder", "umt5xxl", "lora_te_"),
    ),
    ("WanTransformer3DModel", "WanVACETransformer3DModel"),
    {"blocks": (30, 40)},
)

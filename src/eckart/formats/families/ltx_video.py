"""LTX-Video."""

from eckart.formats.families.encoders import t5
from eckart.formats.families.family import Family, denoiser, modules, same

_BLOCK = "transformer_blocks.{}"
_MODULES = (
    *same(
        *(f"{_BLOCK}.attn{i}.{name}" for i in (1, 2) for name in ("to_q", "to_k", "to_v", "to_out.0")),
        *(f"{_BLOCK}.ff.net.0.proj", f"{_BLOCK}.ff.net.2"),
        *("caption_projection.linear_1", "caption_projection.linear_2", "proj_out"),
    ),
    *modules(
        {
            **{f"{_BLOCK}.attn{i}.{part}_norm": f"{_BLOCK}.attn{i}.norm_{part}" for i in (1, 2) for part in "qk"},
            **{
                f"adaln_single.{name}": f"time_embed.{name}"
                for name in ("linear", "emb.timestep_embedder.linear_1", "emb.timestep_embedder.linear_2")
            },
            "patchify_proj": "proj_in",
        }
    ),
)
FAMILY = Family(
    "ltx-video",
    "LTX-Video",
    (denoiser("transformer", _MODULES), t5("text_encoder", "t5xxl", "lora_te_")),
    ("LTXVideoTransformer3DModel",),
    {"transformer_blocks": (28, 48)},
)

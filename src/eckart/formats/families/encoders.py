"""Text encoders: CLIP under the names of transformers and of OpenCLIP, T5, and encoders whose names never change."""

from eckart.formats.families.family import Component, Layout, Module, Part, module, modules, same

_LAYER, _BLOCK = "text_model.encoder.layers.{}", "transformer.resblocks.{}"
_CLIP = (
    module(f"{_BLOCK}.attn.in_proj_weight", *(f"{_LAYER}.self_attn.{part}_proj" for part in "qkv"), ratio=3),
    *modules(
        {
            f"{_BLOCK}.attn.out_proj": f"{_LAYER}.self_attn.out_proj",
            f"{_BLOCK}.mlp.c_fc": f"{_LAYER}.mlp.fc1",
            f"{_BLOCK}.mlp.c_proj": f"{_LAYER}.mlp.fc2",
            f"{_BLOCK}.ln_1": f"{_LAYER}.layer_norm1",
            f"{_BLOCK}.ln_2": f"{_LAYER}.layer_norm2",
            "token_embedding": "text_model.embeddings.token_embedding",
            "ln_final": "text_model.final_layer_norm",
        }
    ),
    Module(("text_projection",), (Part("text_projection"),), transposed=True),
)
_T5_BLOCK = "encoder.block.{}.layer"
_T5 = same(
    *(f"{_T5_BLOCK}.0.SelfAttention.{part}" for part in "qkvo"),
    *(f"{_T5_BLOCK}.1.DenseReluDense.{part}" for part in ("wi_0", "wi_1", "wi", "wo")),
    *("shared", "encoder.final_layer_norm", f"{_T5_BLOCK}.{{}}.layer_norm"),
    f"{_T5_BLOCK}.0.SelfAttention.relative_attention_bias",
)


def clip(name: str, comfyui: str, *kohya: str, **checkpoint: Layout) -> Component:
    """A CLIP encoder.

    Args:
        name: its folder in a pipeline.
        comfyui: ComfyUI's name of it, such as `clip_l`.
        kohya: prefixes of flat names.
        checkpoint: layouts of a single file's names, by their prefixes with `__` for each dot.
    """
    prefixes: dict[str, tuple[Layout, ...]] = {
        prefix.replace("__", "."): (layout,) for prefix, layout in checkpoint.items()
    }
    return Component(
        name,
        _CLIP,
        _of_comfyui(comfyui) | _as_in_diffusers(name) | prefixes,
        dict.fromkeys(kohya, ("diffusers",)),
        optional="text_model.",
    )


def t5(name: str, comfyui: str, *kohya: str) -> Component:
    """A T5 encoder; arguments as of `clip`."""
    return Component(name, _T5, _of_comfyui(comfyui) | _as_in_diffusers(name), dict.fromkeys(kohya, ("diffusers",)))


def encoder(name: str) -> Component:
    """An encoder that is a language model: files name its modules as transformers does."""
    return Component(name, (), _as_in_diffusers(name))


def _as_in_diffusers(name: str) -> dict[str, tuple[Layout, ...]]:
    return {f"{name}.": ("diffusers",)}


def _of_comfyui(name: str) -> dict[str, tuple[Layout, ...]]:
    return {f"text_encoders.{name}.transformer.": ("diffusers",), f"{name}.transformer.": ("diffusers",)}

"""Text encoders: CLIP under the names of transformers and of OpenCLIP, T5, and language models."""

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
_LAYERS = "layers.{}"
_LANGUAGE_MODEL = (
    *(f"{_LAYERS}.self_attn.{part}" for part in ("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm")),
    *(f"{_LAYERS}.mlp.{part}_proj" for part in ("gate", "up", "down")),
    *(f"{_LAYERS}.{part}_layernorm" for part in ("input", "post_attention", "pre_feedforward", "post_feedforward")),
    *("embed_tokens", "norm"),
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


def language_model(name: str, comfyui: str, *kohya: str, inner: str = "") -> Component:
    """An encoder that is a language model.

    ComfyUI has its modules as a causal model has them, `model.layers`; diffusers' pipelines load classes that put
    them elsewhere.

    Args:
        name: its folder in a pipeline.
        comfyui: ComfyUI's name of it, such as `qwen25_7b`.
        kohya: prefixes of flat names.
        inner: what the names of its layers begin with in the class that diffusers loads.
    """
    table = tuple(module(f"model.{each}", f"{inner}{each}") for each in _LANGUAGE_MODEL)
    own: dict[str, tuple[Layout, ...]] = {f"{name}.": ("diffusers", "original")}
    dotted = dict.fromkeys(_of_comfyui(comfyui), ("original",)) | own
    return Component(name, table, dotted, dict.fromkeys(kohya, ("diffusers", "original")))


def _as_in_diffusers(name: str) -> dict[str, tuple[Layout, ...]]:
    return {f"{name}.": ("diffusers",)}


def _of_comfyui(name: str) -> dict[str, tuple[Layout, ...]]:
    return {f"text_encoders.{name}.transformer.": ("diffusers",), f"{name}.transformer.": ("diffusers",)}

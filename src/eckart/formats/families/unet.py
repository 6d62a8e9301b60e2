"""The UNet of Stable Diffusion: the numbered blocks of its original code, and the named ones of diffusers."""

from collections.abc import Collection, Iterator

from eckart.formats.families.family import Module, modules

_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_AROUND = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
_LAYERS = 2  # residual layers of a block on the way down; on the way up there is one more


def unet(*, blocks: int, down: Collection[int], up: Collection[int], deep: bool) -> tuple[Module, ...]:
    """The table of a UNet.

    Args:
        blocks: number of blocks on the way down.
        down: the blocks on the way down that have attention.
        up: those on the way up.
        deep: whether an attention may have more than one transformer block.
    """
    names = dict(_AROUND)
    for block in range(blocks):
        for layer in range(_LAYERS):
            old = f"input_blocks.{block * (_LAYERS + 1) + layer + 1}"
            names |= dict(_resnet(f"{old}.0", f"down_blocks.{block}.resnets.{layer}"))
            if block in down:
                names |= dict(_attention(f"{old}.1", f"down_blocks.{block}.attentions.{layer}", deep=deep))
        if block < blocks - 1:
            names[f"input_blocks.{(block + 1) * (_LAYERS + 1)}.0.op"] = f"down_blocks.{block}.downsamplers.0.conv"
    for index, new in enumerate(("resnets.0", "attentions.0", "resnets.1")):
        kind = _attention(f"middle_block.{index}", f"mid_block.{new}", deep=deep) if index == 1 else None
        names |= dict(kind or _resnet(f"middle_block.{index}", f"mid_block.{new}"))
    for block in range(blocks):
        for layer in range(_LAYERS + 1):
            old = f"output_blocks.{block * (_LAYERS + 1) + layer}"
            names |= dict(_resnet(f"{old}.0", f"up_blocks.{block}.resnets.{layer}"))
            if block in up:
                names |= dict(_attention(f"{old}.1", f"up_blocks.{block}.attentions.{layer}", deep=deep))
        if block < blocks - 1:
            last = f"output_blocks.{block * (_LAYERS + 1) + _LAYERS}.{2 if block in up else 1}"
            names[f"{last}.conv"] = f"up_blocks.{block}.upsamplers.0.conv"
    return modules(names)


def _resnet(old: str, new: str) -> Iterator[tuple[str, str]]:
    for original, diffusers in _RESNET.items():
        yield f"{old}.{original}", f"{new}.{diffusers}"


def _attention(old: str, new: str, *, deep: bool) -> Iterator[tuple[str, str]]:
    inner = [f"attn{index}.{name}" for index in (1, 2) for name in ("to_q", "to_k", "to_v", "to_out.0")]
    inner += ["ff.net.0.proj", "ff.net.2", "norm1", "norm2", "norm3"]
    block = "transformer_blocks.{}" if deep else "transformer_blocks.0"
    for name in ("norm", "proj_in", "proj_out", *(f"{block}.{name}" for name in inner)):
        yield f"{old}.{name}", f"{new}.{name}"

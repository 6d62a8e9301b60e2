"""The modules of real diffusion pipelines, and small random adapters of them under diffusers' and kohya's names."""

import functools
from collections.abc import Iterable

import torch
from safetensors.torch import save_file
from torch import nn

from eckart.adapter import Adapter, AdapterLayer

# Values of the published configs; what they leave out is diffusers' default.
SD15 = {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}
SDXL = {
    "sample_size": 128,
    "cross_attention_dim": 2048,
    "attention_head_dim": [5, 10, 20],
    "block_out_channels": [320, 640, 1280],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "transformer_layers_per_block": [1, 2, 10],
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
FLUX = {"num_layers": 19, "num_single_layers": 38, "attention_head_dim": 128, "num_attention_heads": 24}
Shapes = dict[str, tuple[int, ...]]


def shapes_in(model: nn.Module, part: str) -> Shapes:
    """Every linear layer and convolution by its name in the pipeline, with the shape of its weight."""
    kinds = (nn.Linear, nn.Conv2d)
    found = {f"{part}.{name}": child.weight for name, child in model.named_modules() if isinstance(child, kinds)}
    return {name: tuple(weight.shape) for name, weight in found.items()}


@functools.cache
def unet(kind: str) -> Shapes:
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        return shapes_in(UNet2DConditionModel(**{"sd15": SD15, "sdxl": SDXL}[kind]), "unet")


@functools.cache
def flux() -> Shapes:
    from diffusers import FluxTransformer2DModel

    with torch.device("meta"):
        return shapes_in(FluxTransformer2DModel(**FLUX, guidance_embeds=True), "transformer")


def clip(part: str, width: int = 768) -> Shapes:
    """Two layers of a CLIP text encoder."""
    sizes = {f"self_attn.{p}_proj": (width, width) for p in ("q", "k", "v", "out")}
    sizes |= {"mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width)}
    return {f"{part}.text_model.encoder.layers.{i}.{name}": size for i in range(2) for name, size in sizes.items()}


def layer(shape: tuple[int, ...], *, rank: int = 2, alpha: float = 1.0, dtype=torch.float32, seed: int = 0):
    """A random layer for a weight of that shape."""
    generator = torch.Generator().manual_seed(seed)
    ones = [1] * (len(shape) - 2)
    A = torch.randn(rank, *shape[1:], generator=generator).to(dtype)
    B = torch.randn(shape[0], rank, *ones, generator=generator).to(dtype)
    return AdapterLayer(A, B, alpha, kind="conv" if ones else "linear")


def adapter(shapes: Shapes, *, scale: float | None = None, **changes) -> Adapter:
    """Random layers in diffusers' naming, with ranks that differ, and scales too unless one is given."""
    layers = {}
    for number, (name, shape) in enumerate(shapes.items()):
        rank = 1 + number % 3
        alpha = 0.5 + number % 4 if scale is None else scale * rank
        layers[name] = layer(shape, **({"rank": rank, "alpha": alpha, "seed": number} | changes))
    return Adapter(layers, format="diffusers")


def narrow(shapes: Shapes) -> Shapes:
    """The same with fewer inputs, for tests that form products; the outputs are what formats cut up."""
    return {name: (out, max(1, inputs // 32), *kernel) for name, (out, inputs, *kernel) in shapes.items()}


def some(shapes: Shapes, wanted: Iterable[str]) -> Shapes:
    """Modules whose names end in one of these."""
    return {name: shape for name, shape in shapes.items() if name.endswith(tuple(wanted))}


def kohya_file(path, layers: dict[str, AdapterLayer], **metadata: str):
    """What sd-scripts would save for these layers, written without any of our code."""
    tensors = {}
    for name, one in layers.items():
        tensors[f"{name}.lora_down.weight"] = one.lora_A.clone()
        tensors[f"{name}.lora_up.weight"] = one.lora_B.clone()
        tensors[f"{name}.alpha"] = torch.tensor(one.alpha)
    save_file(tensors, path, metadata)
    return path


def assert_same_updates(ours, theirs, *, relative: float = 1e-14) -> None:
    """Equal in float64, module by module: to the last bits of a product that is summed in another order."""
    assert set(ours) == set(theirs)
    for name, one in ours.items():
        expected = theirs[name].low_rank().dense()
        largest = float(expected.abs().max())
        torch.testing.assert_close(one.low_rank().dense(), expected, rtol=0, atol=relative * largest, msg=name)

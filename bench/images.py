"""A LoRA file for every layer of SDXL's UNet, resized and merged into a single file of 6.9 GB: whole processes."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from bench.options import Options, script
from bench.results import Limit
from bench.timing import median_seconds, run_process
from eckart.checkpoint import TensorSpec, write_tensors
from eckart.checkpoint.dtypes import FLOAT16
from eckart.formats.families.naming import to_format
from eckart.formats.families.table import FAMILIES

RANK, NEW_RANK = 32, 16
RESIZE_SECONDS, PEAK_GB, COPIES = 6.0, 0.6, 2.0
PREFIX = "model.diffusion_model."
UNET = {
    "sample_size": 128, "cross_attention_dim": 2048, "attention_head_dim": [5, 10, 20], "use_linear_projection": True,
    "block_out_channels": [320, 640, 1280], "transformer_layers_per_block": [1, 2, 10],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"], "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
}  # fmt: skip
OTHERS = {"conditioner.embedders.1.model.x.weight": (17_400, 40_000), "first_stage_model.x.weight": (24_000, 8_000)}


def run(options: Options) -> list[Limit]:
    """A resize of all 794 layers, and their merge next to a copy of the file."""
    lora, base = options.work / "sdxl-lora.safetensors", options.work / "sdxl.safetensors"
    shapes = unet_shapes()
    nbytes = write_file(lora, lora_tensors(shapes))
    small, merged, copy = (options.work / f"sdxl-{name}.safetensors" for name in ("small", "merged", "copy"))
    resize = (script("eckart"), "resize", lora, "-o", small, "--rank", str(NEW_RANK), "--force", "--no-resume")
    runs = [run_process(*resize) for _ in range(options.repeats)]
    peak = max(run.peak_rss_bytes or 0 for run in runs) / 1e9
    note = f"{nbytes / 1e6:.0f} MB in float16; whole process, median of {options.repeats}"
    what = f"resize --rank {NEW_RANK} of all {len(shapes)} layers of SDXL's UNet, rank {RANK}"
    rows = [
        Limit(what, median_seconds(runs), RESIZE_SECONDS, "s", note),
        Limit("peak memory of the same", peak, PEAK_GB, "GB"),
    ]
    size = write_file(base, base_tensors(shapes))
    copies, merges = [], []
    for _ in range(options.repeats):
        copies.append(run_process("/bin/sh", "-c", f"cp '{base}' '{copy}' && sync '{copy}'"))
        merges.append(run_process(script("eckart"), "merge", base, lora, "-o", merged, "--force", "--no-resume"))
    ratio = median_seconds(merges) / median_seconds(copies)
    peak = max(run.peak_rss_bytes or 0 for run in merges) / 1e9
    rows += [
        Limit(f"merge of the same into a file of {size / 1e9:.1f} GB, as a multiple of copying it", ratio, COPIES, "×"),
        Limit("peak memory of that merge", peak, PEAK_GB, "GB"),
    ]
    for path in (lora, base, small, merged, copy):
        path.unlink(missing_ok=True)
    return rows


def unet_shapes() -> dict[str, tuple[int, ...]]:
    """The layers of SDXL's UNet by their original names, with the shapes of their weights."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    family = FAMILIES["sdxl"]
    with torch.device("meta"):
        model = UNet2DConditionModel(**UNET)
    layers = {
        name: tuple(child.weight.shape)
        for name, child in model.named_modules()
        if isinstance(child, (nn.Linear, nn.Conv2d))
    }
    return {family.sites(f"unet.{name}")[0].names("original")[0]: shape for name, shape in layers.items()}


def lora_tensors(shapes: dict[str, tuple[int, ...]]) -> Iterator[tuple[str, Tensor]]:
    """Random factors of every layer under kohya's names."""
    family, generator = FAMILIES["sdxl"], torch.Generator().manual_seed(0)
    named = to_format(family, "kohya")
    for name, (outputs, *rest) in shapes.items():
        (flat,) = named(family.sites(f"{PREFIX}{name}")[0]).names
        down = torch.randn(RANK, *rest, generator=generator) * 0.02
        up = torch.randn(outputs, RANK, *(1 for _ in rest[1:]), generator=generator) * 0.02
        yield f"{flat}.lora_down.weight", down.half()
        yield f"{flat}.lora_up.weight", up.half()
        yield f"{flat}.alpha", torch.tensor(RANK / 2).half()


def base_tensors(shapes: dict[str, tuple[int, ...]]) -> Iterator[tuple[str, Tensor]]:
    """Weights of the UNet, and as many bytes as the text encoders and the VAE have."""
    every = {f"{PREFIX}{name}.weight": shape for name, shape in shapes.items()} | OTHERS
    largest = max(torch.Size(shape).numel() for shape in every.values())
    values = (torch.randn(largest, generator=torch.Generator().manual_seed(1)) * 0.02).half()
    for name, shape in every.items():
        yield name, values[: torch.Size(shape).numel()].reshape(shape)


def write_file(path: Path, tensors: Iterator[tuple[str, Tensor]]) -> int:
    """Write tensors of float16; returns their bytes."""
    drawn = dict(tensors)  # those of the base are views of one tensor
    specs = [TensorSpec(name, tuple(tensor.shape), FLOAT16) for name, tensor in drawn.items()]
    write_tensors(path, specs, drawn.items(), {"format": "pt"})
    return sum(tensor.nbytes for tensor in drawn.values())

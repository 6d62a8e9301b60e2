"""Small honest inputs of every kind that eckart reads, for the mutations to start from."""

import json
import struct
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

Q, UP = "model.layers.0.self_attn.q_proj", "model.layers.0.mlp.up_proj"
CONFIG = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 8, "tie_word_embeddings": False}
PEFT = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "rank_pattern": {f"^{UP}": 3}, "alpha_pattern": {}}
PEFT |= {"target_modules": ["q_proj", "up_proj"]}
_LAYER = {"name": Q, "shape": [8, 6], "rank": 2, "error": 0.5, "error_lower_bound": 0.25}
_GROWTH = {name: [None, 1.0] for name in ("A_norm", "B_norm", "norm", "relative_norm", "effective_rank", "stable_rank")}
_SIDE = {"phi": [[0.5]], "chance": [[0.1]], "angles": [0.1]}
_TRAINED = {"rank": 2, "target": "attention", "seed": 0, "loss": 1.5, "params": 10, "seconds": 1.0, "peak_bytes": 10}
RESULTS = {
    "analysis.json": {
        "format": "eckart-analysis/1", "kind": "weights", "source": "base", "base": None, "left_out": [],
        "matrices": [
            {"name": Q, "shape": [8, 6], "dtype": "float32", "fro_norm": 5**0.5,
             "singular_values": [2.0, 1.0, 0, 0, 0, 0], "noise": None, "complete": True},
        ],
        "total": {"seconds": 1.0, "peak_rss_bytes": 10},
    },
    "train.json": {
        "format": "eckart-train/1", "trainable_params": 10, "total_params": 100, "steps": 2, "heldout_loss_before": 2.0,
        "heldout_loss_after": 1.5, "heldout_tokens": 50, "seconds": 1.0, "peak_bytes": 10,
        "losses": {"step": [1, 2], "loss": [2.0, 1.5]}, "run": {"model": "base", "config": {"rank": 2}},
    },
    "dynamics.json": {
        "format": "eckart-dynamics/1", "title": "base", "directions": 0, "steps": [0, 1],
        "log": {"step": [1], "loss": [2.0], "learning_rate": [0.1], "gradient_norm": [1.0], "heldout_loss": [None]},
        "layers": [
            {"name": Q, "shape": [8, 6], "rank": 2, "base_norm": 1.0, "base_energy": None, **_GROWTH,
             "singular_values": [[], [1.0]], "outputs": None, "inputs": None, "magnitude_change": None},
        ],
        "seconds": {"recording": 0.1, "subspaces": 0.0},
    },
    "sweep.json": {
        "format": "eckart-sweep/1", "about": {"model": "base"}, "base_loss": 2.0, "heldout_tokens": 50,
        "cells": [_TRAINED | {"error": None}], "sweet_spot": None, "seconds": 1.0,
        "settings": [
            {"rank": 2, "target": "attention", "params": 10, "loss": 1.5, "standard_error": None, "lowest": 1.5,
             "highest": 1.5, "seeds": 1},
        ],
    },
    "extract.json": {
        "format": "eckart-extract/2", "layers": [_LAYER], "error": 0.5, "error_lower_bound": 0.25, "params": 28,
        "bytes": 112,
    },
    "resize.json": {
        "format": "eckart-resize/2", "layers": [_LAYER], "error": 0.5, "error_lower_bound": 0.25, "params": 28,
        "bytes": 112, "eval": {"base_loss": 3.0, "tuned_loss": 2.0, "adapter_loss": 2.0, "gain_recovered": 1.0},
        "gain": {
            "keep": 0.9, "rank": 2, "reached": True, "candidates": 2, "base": "base", "source": "adapter",
            "curve": [{"rank": 2, "params": 28, "loss": 2.0, "gain_recovered": 1.0, "interval": None}],
        },
    },
    "comparison.json": {
        "format": "eckart-compare/2", "kind": "adapters", "a": "a", "b": "b", "base": None, "unpaired": [],
        "skipped": [], "total": {"norm_a": 1.0, "norm_b": 1.0, "norm_difference": 0.5, "cosine": 0.9,
                                 "seconds": 1.0},
        "matrices": [
            {"name": Q, "shape": [8, 6], "norm_a": 1.0, "norm_b": 1.0, "cosine": 0.9, "outputs": _SIDE, "inputs": None,
             "intruders": None},
        ],
    },
}  # fmt: skip


def weights() -> dict[str, torch.Tensor]:
    """A model of two matrices and a vector."""
    generator = torch.Generator().manual_seed(0)
    shapes = {f"{Q}.weight": (8, 8), f"{UP}.weight": (6, 8), "model.norm.weight": (8,)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def model(folder: Path) -> None:
    """One safetensors file with a config."""
    folder.mkdir()
    save_file(weights(), folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(CONFIG))


def shards(folder: Path) -> None:
    """The model in two shards with an index."""
    folder.mkdir()
    tensors = weights()
    files = {name: f"model-0000{1 + (name.startswith(UP))}-of-00002.safetensors" for name in tensors}
    for file in set(files.values()):
        save_file({name: tensors[name] for name in tensors if files[name] == file}, folder / file, {"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    (folder / "config.json").write_text(json.dumps(CONFIG))


def gguf(folder: Path) -> None:
    """The model as a GGUF file of version 3."""
    folder.mkdir()
    (folder / "model.gguf").write_bytes(_gguf(_LLAMA, _GGUF_SHAPES))


def split_gguf(folder: Path) -> None:
    """The model as llama.cpp splits it into two files."""
    folder.mkdir()
    for number, name in enumerate(_GGUF_SHAPES):
        metadata = {"split.no": number, "split.count": 2, "split.tensors.count": 2} | (_LLAMA if number == 0 else {})
        file = folder / f"model-0000{number + 1}-of-00002.gguf"
        file.write_bytes(_gguf(metadata, {name: _GGUF_SHAPES[name]}))


def gguf_adapter(folder: Path) -> None:
    """An adapter in llama.cpp's format."""
    folder.mkdir()
    metadata = {"general.architecture": "llama", "general.type": "adapter", "adapter.type": "lora"}
    shapes = {}
    for name, (rows, columns) in _GGUF_SHAPES.items():
        shapes |= {f"{name}.lora_a": (2, columns), f"{name}.lora_b": (rows, 2)}
    (folder / "adapter.gguf").write_bytes(_gguf(metadata | {"adapter.lora.alpha": 3.0}, shapes))


_LLAMA = {"general.architecture": "llama", "llama.block_count": 1, "llama.embedding_length": 8}
_LLAMA |= {"llama.attention.head_count": 2, "llama.attention.head_count_kv": 2}
_GGUF_SHAPES = {"blk.0.attn_q.weight": (8, 8), "blk.0.ffn_up.weight": (6, 8)}


def _gguf(metadata: dict[str, str | int | float], shapes: dict[str, tuple[int, int]]) -> bytes:
    """A GGUF file with random float32 tensors, written byte by byte."""
    text = lambda value: struct.pack("<Q", len(value)) + value.encode()  # noqa: E731
    stored = {
        str: lambda value: struct.pack("<I", 8) + text(value),
        int: lambda value: struct.pack("<II", 4, value),
        float: lambda value: struct.pack("<If", 6, value),
    }
    fields = b"".join(text(key) + stored[type(value)](value) for key, value in metadata.items())
    infos, data = b"", b""
    generator = np.random.default_rng(0)
    for name, shape in shapes.items():
        infos += text(name) + struct.pack("<IQQIQ", 2, shape[1], shape[0], 0, len(data))
        values = generator.standard_normal(shape).astype("<f4").tobytes()
        data += values + bytes(-len(values) % 32)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(shapes), len(metadata)) + fields + infos
    return head + bytes(-len(head) % 32) + data


def peft(folder: Path) -> None:
    """An adapter of two layers in PEFT's format."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(1)
    tensors = {}
    for module, rows, columns, rank in ((Q, 8, 8, 2), (UP, 6, 8, 3)):
        tensors[f"base_model.model.{module}.lora_A.weight"] = torch.randn(rank, columns, generator=generator)
        tensors[f"base_model.model.{module}.lora_B.weight"] = torch.randn(rows, rank, generator=generator)
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(PEFT))


def kohya(folder: Path) -> None:
    """An adapter in kohya's format."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(2)
    module = "lora_unet_down_blocks_0_attentions_0_proj_in"
    tensors = {
        f"{module}.lora_down.weight": torch.randn(2, 8, generator=generator),
        f"{module}.lora_up.weight": torch.randn(6, 2, generator=generator),
        f"{module}.alpha": torch.tensor(3.0),
    }
    save_file(tensors, folder / "adapter.safetensors")


def mlx(folder: Path) -> None:
    """An adapter in mlx-lm's format."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(3)
    tensors = {}
    for module, rows, columns in ((Q, 8, 8), (UP, 6, 8)):
        tensors[f"{module}.lora_a"] = torch.randn(columns, 2, generator=generator)
        tensors[f"{module}.lora_b"] = torch.randn(2, rows, generator=generator)
    save_file(tensors, folder / "adapters.safetensors")
    parameters = {"rank": 2, "scale": 1.5, "dropout": 0.0}
    config = {"fine_tune_type": "lora", "num_layers": -1, "lora_parameters": parameters, "model": "org/base"}
    (folder / "adapter_config.json").write_text(json.dumps(config))


def nf4(folder: Path) -> None:
    """The model with its matrices in NF4, their scales quantized too."""
    import eckart

    model(folder.with_name("dense"))
    tensors = {name: tensor.repeat(8, 8) if tensor.ndim == 2 else tensor for name, tensor in weights().items()}
    save_file(tensors, folder.with_name("dense") / "model.safetensors", {"format": "pt"})
    eckart.quantize(folder.with_name("dense"), folder, double=True)


def fp8(folder: Path) -> None:
    """The model in FP8, with a scale for each row of one matrix and each block of the other."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(4)
    codes = {f"{module}.weight": torch.randn(8, 8, generator=generator).to(torch.float8_e4m3fn) for module in (Q, UP)}
    scales = {
        f"{Q}.weight_scale": 0.1 + torch.rand(8, 1, generator=generator),
        f"{UP}.weight_scale_inv": 0.1 + torch.rand(2, 2, generator=generator),
    }
    save_file(codes | scales | {"model.norm.weight": torch.ones(8)}, folder / "model.safetensors", {"format": "pt"})
    stated = {"quant_method": "fp8", "weight_block_size": [4, 4]}
    (folder / "config.json").write_text(json.dumps(CONFIG | {"quantization_config": stated}))


def mxfp4(folder: Path) -> None:
    """Experts as gpt-oss stores them."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(5)
    experts = "model.layers.0.mlp.experts.down_proj"
    tensors = {
        f"{experts}_blocks": torch.randint(0, 256, (2, 8, 1, 16), dtype=torch.uint8, generator=generator),
        f"{experts}_scales": torch.randint(118, 128, (2, 8, 1), dtype=torch.uint8, generator=generator),
        "model.norm.weight": torch.ones(8),
    }
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = {"model_type": "gpt_oss", "hidden_size": 8, "quantization_config": {"quant_method": "mxfp4"}}
    (folder / "config.json").write_text(json.dumps(config))


def results(folder: Path) -> None:
    """One result file of every kind."""
    folder.mkdir()
    for file, content in RESULTS.items():
        (folder / file).write_text(json.dumps(content))


def data(folder: Path) -> None:
    """Training records in two files."""
    folder.mkdir()
    records = [{"text": "the rank of a weight"}, {"text": "a low rank \U0001f600 \xe9"}]
    (folder / "a.jsonl").write_text("\n".join(map(json.dumps, records)))
    (folder / "b.json").write_text(json.dumps(records))

"""Seeded damage to files: bytes, JSON values and safetensors headers, and what an honest reader makes of the result."""

import json
import math
import random
import re
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from eckart.adapter import Adapter
from eckart.checkpoint import open_checkpoint
from eckart.checkpoint.layouts import layout
from eckart.errors import EckartError, FileFormatError
from eckart.formats import load_adapter
from eckart.report.page import read_results
from eckart.report.page.page import page_html
from eckart.training.examples import content_fault, form_of
from eckart.training.records import read_records

from . import inputs

EVIL = (
    None, True, -1, 0, 1, 3, 2**31, 2**63, 10**30, 1e300, 1e-300, float("nan"), float("inf"), -0.5, "", "x", "../x",
    "\ud800", "a" * 300, "F32", "(a+)+$", [], [0], [[1]], {}, {"a": 1}, [None], "__metadata__", "0", "LORA",
)  # fmt: skip


def mutated_json(content: Any, source: random.Random) -> Any:
    """A JSON value with one part replaced, removed, repeated or nested."""
    content = json.loads(json.dumps(content))
    places = list(_places(content))
    if not places or source.random() < 0.02:
        return source.choice(EVIL)
    parent, key = source.choice(places)
    action = source.randrange(6)
    if action <= 2:
        parent[key] = source.choice(EVIL)
    elif action == 3:
        del parent[key]
    elif action == 4:
        other, name = source.choice(places)
        parent[key] = json.loads(json.dumps(other.get(name) if isinstance(other, dict) else (other or [0])[0]))
    elif isinstance(parent, dict):
        parent[str(source.choice(EVIL))] = parent.pop(key)
    else:
        parent.append(parent[key])
    return content


def _places(value: Any) -> Any:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield value, key
        yield from _places(inner)


def mutated_bytes(data: bytes, source: random.Random) -> bytes:
    """Bytes with a few of them changed, cut, removed, repeated or inserted."""
    data = bytearray(data)
    for _ in range(source.randint(1, 3)):
        at = source.randrange(max(1, len(data)) if source.random() < 0.5 else max(1, min(len(data), 400)))
        size = source.choice((1, 4, 8, 64))
        match source.randrange(6):
            case 0:
                data[at : at + 1] = bytes([source.randrange(256)])
            case 1:
                del data[at:]
            case 2:
                del data[at : at + size]
            case 3:
                data[at:at] = data[at : at + size]
            case 4:
                data[at:at] = source.randbytes(size)
            case 5:
                data[at : at + 8] = source.choice((0, 1, 2**31, 2**32 - 1, 2**62, 2**64 - 1)).to_bytes(8, "little")
    return bytes(data)


def damage(folder: Path, source: random.Random) -> None:
    """Damage one file of a folder."""
    file = source.choice(sorted(folder.iterdir()))
    data = file.read_bytes()
    if file.suffix == ".safetensors" and source.random() < 0.6:
        size = int.from_bytes(data[:8], "little")
        text = json.dumps(mutated_json(json.loads(data[8 : 8 + size]), source)).encode()
        file.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])
    elif file.suffix == ".json" and source.random() < 0.8:
        file.write_text(json.dumps(mutated_json(json.loads(data), source)))
    else:
        file.write_bytes(mutated_bytes(data, source))


def use_model(folder: Path) -> None:
    """Every tensor is what the safetensors library reads."""
    checkpoint = open_checkpoint(folder)
    layout(checkpoint)
    expected = {
        name: tensor
        for file in {i.file for i in checkpoint.tensors.values()}
        for name, tensor in load_file(file).items()
    }
    assert expected.keys() == checkpoint.tensors.keys()
    for name, tensor in expected.items():
        found = checkpoint.read(name)
        assert (found.shape, found.dtype) == (tensor.shape, tensor.dtype)
        assert torch.equal(found.reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8))


def use_gguf(folder: Path) -> None:
    """Every float32 tensor has the values of the gguf package, in any order of rows."""
    from gguf import GGUFReader

    checkpoint = open_checkpoint(folder)
    found = sorted(
        _sorted_values(checkpoint.read(name))
        for name, i in checkpoint.tensors.items()
        if str(i.dtype) == "float32" and not i.quantization
    )
    files = sorted(folder.glob("*.gguf"))
    stored = [tensor for file in files for tensor in GGUFReader(file).tensors]
    assert found == sorted(_sorted_values(tensor.data) for tensor in stored if tensor.tensor_type.name == "F32")


def use_gguf_adapter(folder: Path) -> None:
    """Every update is alpha / rank · b · a as the gguf package reads them, and alpha / rank is 1 where alpha is 0."""
    from gguf import GGUFReader

    file = folder / "adapter.gguf"
    adapter, reader = load_adapter(file), GGUFReader(file)
    stored = {t.name: torch.from_numpy(t.data.copy()) for t in reader.tensors if t.tensor_type.name == "F32"}
    field = reader.fields.get("adapter.lora.alpha")
    alpha = float(field.parts[field.data[0]][0]) if field else 0.0
    for name in adapter:
        A, B = (stored.get(f"{name}.weight.lora_{part}") for part in "ab")
        if A is not None and B is not None:  # of another type
            _check_update(adapter, name, alpha / len(A) or 1.0, A, B)


def _sorted_values(values: Any) -> bytes:
    return np.sort(np.asarray(values).view(np.uint32), axis=None).tobytes()


def use_peft(folder: Path) -> None:
    """Every update is alpha / rank · B · A by the config and PEFT's rule for patterns."""
    adapter = load_adapter(folder)
    config, tensors = (
        json.loads((folder / "adapter_config.json").read_text()),
        load_file(folder / "adapter_model.safetensors"),
    )
    for name in adapter:
        A, B = (tensors.get(f"base_model.model.{name}.lora_{part}.weight") for part in "AB")
        assert A is not None
        rank, alpha = (
            _matched(config.get(f"{field}_pattern") or {}, name, config.get(common, 8))
            for field, common in (("rank", "r"), ("alpha", "lora_alpha"))
        )
        scale = float(alpha) / float(rank) ** (0.5 if config.get("use_rslora") in (True, 1, "true") else 1)
        _check_update(adapter, name, scale, A, B)


def _matched(pattern: dict[str, Any], name: str, default: Any) -> Any:
    return next((value for key, value in pattern.items() if re.match(rf"(.*\.)?({key})$", name)), default)


def _check_update(adapter: Adapter, name: str, scale: float, A: torch.Tensor, B: torch.Tensor) -> None:
    layer = adapter[name]
    expected = scale * (B.double().flatten(1) @ A.double().flatten(1))
    found = layer.scaling * (layer.lora_B.double().flatten(1) @ layer.lora_A.double().flatten(1))
    assert torch.isfinite(found).all()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6 * max(1.0, abs(scale)))


def use_kohya(folder: Path) -> None:
    """Every update is alpha / rank · up · down."""
    adapter, tensors = load_adapter(folder / "adapter.safetensors"), load_file(folder / "adapter.safetensors")
    for name in adapter:
        down, up = tensors[f"{name}.lora_down.weight"], tensors[f"{name}.lora_up.weight"]
        alpha = tensors.get(f"{name}.alpha", torch.tensor(float(len(down))))
        _check_update(adapter, name, float(alpha.double()) / len(down), down, up)


def use_mlx(folder: Path) -> None:
    """Every update is scale · (a·b)ᵀ."""
    adapter, tensors = load_adapter(folder), load_file(folder / "adapters.safetensors")
    scale = json.loads((folder / "adapter_config.json").read_text())["lora_parameters"]["scale"]
    for name in adapter:
        _check_update(adapter, name, float(scale), tensors[f"{name}.lora_a"].T, tensors[f"{name}.lora_b"].T)


def use_nf4(folder: Path) -> None:
    """Every weight is its code times its scale, both from the file's maps."""
    checkpoint, tensors = open_checkpoint(folder), load_file(folder / "model.safetensors")
    for name, info in checkpoint.tensors.items():
        found = checkpoint.read(name)
        if info.quantization != "nf4":
            assert torch.equal(found.reshape(-1).view(torch.uint8), tensors[name].reshape(-1).view(torch.uint8))
            continue
        state = json.loads(bytes(tensors[f"{name}.quant_state.bitsandbytes__nf4"].tolist()))
        part = {key: tensors[f"{name}.{key}"].double() for key in ("quant_map", "absmax") if f"{name}.{key}" in tensors}
        scales = part["absmax"]
        if "nested_offset" in state:
            steps, outer = (tensors[f"{name}.nested_{key}"].double() for key in ("quant_map", "absmax"))
            scales = (
                steps[tensors[f"{name}.absmax"].long()] * outer.repeat_interleave(256)[: len(scales)]
                + state["nested_offset"]
            )
        codes = tensors[name].reshape(-1).view(torch.uint8).long()
        values = part["quant_map"][torch.stack([codes >> 4, codes & 15], 1).flatten()]
        expected = values * scales.repeat_interleave(state["blocksize"])[: len(values)]
        expected = expected[: found.numel()].reshape(found.shape)
        size = float(scales[torch.isfinite(scales)].abs().max()) if torch.isfinite(scales).any() else 1.0
        torch.testing.assert_close(found.double(), expected, rtol=1e-2, atol=1e-5 * max(size, 1.0), equal_nan=True)


def use_fp8(folder: Path) -> None:
    """Every weight is its code times its scale, of a row or a block; no code whose scale is there is taken for it."""
    checkpoint, tensors = open_checkpoint(folder), load_file(folder / "model.safetensors")
    for name, info in checkpoint.tensors.items():
        found = checkpoint.read(name)
        if info.quantization is None:
            assert torch.equal(found.reshape(-1).view(torch.uint8), tensors[name].reshape(-1).view(torch.uint8))
            continue
        codes = tensors[name].double()
        scale = next(tensors[f"{name}{end}"] for end in ("_scale", "_scale_inv") if f"{name}{end}" in tensors).double()
        scale = scale.reshape(scale.shape if scale.ndim == 2 else (scale.numel(), 1))
        for dimension, size in enumerate(codes.shape):
            scale = scale.repeat_interleave(math.ceil(size / scale.shape[dimension]), dimension)
            scale = scale.narrow(dimension, 0, size)
        torch.testing.assert_close(found.double(), codes * scale, rtol=1e-2, atol=1e-30, equal_nan=True)
    matrices = {view.tensor for view in layout(checkpoint).matrices}
    for name in matrices:
        is_code = checkpoint.tensors[name].quantization is None and tensors[name].dtype.itemsize == 1
        assert not (is_code and {f"{name}_scale", f"{name}_scale_inv"} & tensors.keys())


def use_mxfp4(folder: Path) -> None:
    """Every weight is its code times its power of two."""
    checkpoint, tensors = open_checkpoint(folder), load_file(folder / "model.safetensors")
    numbers = torch.tensor([0.0, 0.5, 1, 1.5, 2, 3, 4, 6], dtype=torch.float64)
    numbers = torch.cat([numbers, -numbers])
    for name, info in checkpoint.tensors.items():
        found = checkpoint.read(name)
        if info.quantization is None:
            assert torch.equal(found.reshape(-1).view(torch.uint8), tensors[name].reshape(-1).view(torch.uint8))
            continue
        blocks, scales = (tensors[f"{name}_{part}"].view(torch.uint8).long() for part in ("blocks", "scales"))
        values = numbers[torch.stack([blocks & 15, blocks >> 4], -1).flatten(-2)]
        values = torch.where((scales == 255)[..., None], torch.nan, values * 2.0 ** (scales[..., None] - 127))
        expected = values.flatten(2).transpose(1, 2)
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=0, equal_nan=True)
    assert not {view.tensor for view in layout(checkpoint).matrices} & {n for n in tensors if n.endswith("_blocks")}


def use_results(folder: Path) -> None:
    """The page is built, and its data are JSON without NaN."""
    assert "<html" in page_html(read_results([folder]))


def use_data(folder: Path) -> None:
    """Every record is what Python reads, and text that a tokenizer takes."""
    for file in sorted(folder.iterdir()):
        faults: list[str] = []
        for _, record in read_records(file, faults):
            form, _ = form_of(record)
            if form and not content_fault(record, form):
                json.dumps(record, ensure_ascii=False).encode()
        if faults:
            raise FileFormatError.listing(str(file), faults)


KINDS = {
    "safetensors": (inputs.model, use_model),
    "shards": (inputs.shards, use_model),
    "gguf": (inputs.gguf, use_gguf),
    "split gguf": (inputs.split_gguf, use_gguf),
    "gguf adapter": (inputs.gguf_adapter, use_gguf_adapter),
    "peft": (inputs.peft, use_peft),
    "kohya": (inputs.kohya, use_kohya),
    "mlx": (inputs.mlx, use_mlx),
    "nf4": (inputs.nf4, use_nf4),
    "fp8": (inputs.fp8, use_fp8),
    "mxfp4": (inputs.mxfp4, use_mxfp4),
    "results": (inputs.results, use_results),
    "data": (inputs.data, use_data),
}


def outcome(kind: str, folder: Path) -> str:
    """`refused`, or `accepted` and right, or a fault with its traceback."""
    try:
        KINDS[kind][1](folder)
    except EckartError:
        return "refused"
    except Exception:
        return f"fault: {traceback.format_exc()[-1500:]}"
    return "accepted"

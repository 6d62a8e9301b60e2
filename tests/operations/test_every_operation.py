"""Two hundred generated adapters through every operation, each judged by dense float64 matrices in NumPy."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from eckart.adapter import Adapter, AdapterLayer
from eckart.checkpoint import open_checkpoint
from eckart.errors import MismatchError
from eckart.formats import load_adapter
from eckart.operations.combination.combine import combine
from eckart.operations.conversion import convert
from eckart.operations.merging.merge import merge
from eckart.operations.merging.unmerge import unmerge
from eckart.operations.resizing.resize import resize

CASES = 200
SHAPES = {
    "tall": (24, 10),
    "wide": (9, 30),
    "square": (16, 16),
    "c_attn": (36, 12),
    "words": (31, 8),
    "pixels": (10, 27),
}
KINDS = {"c_attn": "conv1d", "words": "embedding", "pixels": "conv"}
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
ALPHAS = [0.5, 1.0, 7.0, 16.0, 64.0]


@dataclass(frozen=True)
class Case:
    """One generated adapter, and the dense update of each module in float64, in its weight's own orientation."""

    adapter: Adapter
    updates: dict[str, np.ndarray]
    dora: bool


class Model(nn.Module):
    """One module of every kind that an adapter knows."""

    def __init__(self) -> None:
        super().__init__()
        self.tall, self.wide, self.square = nn.Linear(10, 24), nn.Linear(30, 9), nn.Linear(16, 16, bias=False)
        self.c_attn = Conv1D(36, 12)
        self.words = nn.Embedding(31, 8)
        self.pixels = nn.Conv2d(3, 10, 3)


@pytest.fixture(scope="module")
def base() -> nn.Module:
    torch.manual_seed(7)
    return Model()


def generated(seed: int, base: nn.Module) -> Case:
    draw = np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(seed)
    rslora, dora, dtype = bool(draw.integers(2)), draw.random() < 0.25, DTYPES[draw.integers(3)]
    names = draw.choice([*SHAPES], size=draw.integers(1, len(SHAPES) + 1), replace=False)
    size = 10.0 ** draw.integers(-2, 2)
    layers, updates = {}, {}
    for name in sorted(map(str, names)):
        rows, columns = SHAPES[name]
        rank = int(draw.integers(1, 8))
        left, right = torch.randn(rows, rank, generator=generator), torch.randn(rank, columns, generator=generator)
        left = (size * left).to(dtype)
        right = right.to(dtype)
        alpha = float(draw.choice(ALPHAS))
        kind = KINDS.get(name, "linear")
        A, B = (left.T, right.T) if kind == "embedding" else (right, left)
        if kind == "conv":
            A, B = A.reshape(rank, 3, 3, 3), B.reshape(rows, rank, 1, 1)
        outputs = columns if kind == "embedding" else rows
        magnitude = torch.rand(outputs, generator=generator) + 0.5 if dora else None
        layers[name] = AdapterLayer(A.contiguous(), B.contiguous(), alpha, rslora, kind, magnitude=magnitude)
        scale = alpha / (rank**0.5 if rslora else rank)
        update = scale * left.double().numpy() @ right.double().numpy()
        updates[name] = oriented(name, update)
        if magnitude is not None:
            updates[name] = dora_change(name, weight_of(base, name), updates[name], magnitude.double().numpy())
    return Case(Adapter(layers), updates, dora)


def oriented(name: str, update: np.ndarray) -> np.ndarray:
    """An (out, in) update as the module stores its weight."""
    return update.T if name == "c_attn" else update.reshape(10, 3, 3, 3) if name == "pixels" else update


def dora_change(name: str, weight: np.ndarray, update: np.ndarray, magnitude: np.ndarray) -> np.ndarray:
    """m ⊙ (W + ΔW) / ‖W + ΔW‖ less W, one norm an output; an embedding's outputs are its columns."""
    outputs = 1 if name in ("c_attn", "words") else 0
    others = tuple(axis for axis in range(weight.ndim) if axis != outputs)
    shape = tuple(-1 if axis == outputs else 1 for axis in range(weight.ndim))
    sum_ = weight + update
    norm = np.sqrt(np.square(sum_).sum(axis=others, keepdims=True))
    return magnitude.reshape(shape) * sum_ / norm - weight


def weight_of(base: nn.Module, name: str) -> np.ndarray:
    return base.get_submodule(name).weight.detach().double().numpy()


def size_of(updates: dict[str, np.ndarray]) -> float:
    return max(float(np.linalg.norm(update)) for update in updates.values())


def dense(adapter: Adapter) -> dict[str, np.ndarray]:
    return {name: oriented(name, layer.low_rank().dense().numpy()) for name, layer in adapter.items()}


@pytest.mark.parametrize("seed", range(CASES))
def test_merging_adds_the_dense_update_and_unmerging_takes_it_out(seed, base, tmp_path):
    case = generated(seed, base)
    merge(base, [case.adapter], tmp_path / "merged")
    merged = open_checkpoint(tmp_path / "merged")
    for name, parameter in base.state_dict().items():
        expected = parameter.double().numpy() + case.updates.get(name.removesuffix(".weight"), 0.0)
        found = merged.read(name).double().numpy()
        assert np.abs(found - expected).max() <= 3e-7 * (np.abs(expected).max() + size_of(case.updates))
    if case.dora:
        with pytest.raises(MismatchError, match="DoRA"):
            unmerge(tmp_path / "merged", [case.adapter], tmp_path / "restored")
        return
    unmerge(tmp_path / "merged", [case.adapter], tmp_path / "restored")
    restored = open_checkpoint(tmp_path / "restored")
    for name, parameter in base.state_dict().items():
        limit = 6e-7 * (size_of(case.updates) + float(parameter.abs().max()))
        assert float((restored.read(name) - parameter).abs().max()) <= limit


@pytest.mark.parametrize("seed", range(CASES))
def test_resizing_leaves_the_tail_of_the_spectrum(seed, base, tmp_path):
    case = generated(seed, base)
    rank = 1 + seed % 9
    found = resize(case.adapter, rank=rank, dtype=torch.float32, output=tmp_path / "resized")
    written = load_adapter(tmp_path / "resized")
    records = {record.name: record for record in found.layers}
    for name, layer in case.adapter.items():
        before, after = layer.low_rank().dense().numpy(), written[name].low_rank().dense().numpy()
        values = np.linalg.svd(before, compute_uv=False)
        tail = np.linalg.norm(values[rank:])
        missed = np.linalg.norm(before - after)
        assert written[name].rank == rank
        assert abs(missed - tail) <= 1e-6 * np.linalg.norm(values)
        assert records[name].error == pytest.approx(missed / np.linalg.norm(values), rel=1e-3, abs=1e-7)


@pytest.mark.parametrize("seed", range(CASES))
def test_sums_are_weighted_in_any_order_and_one_adapter_alone_is_itself(seed, base):
    one, other = generated(seed, base), generated(seed + CASES, base)
    alone = combine([one.adapter]).adapter
    for name, layer in one.adapter.items():
        assert torch.equal(alone[name].lora_A, layer.lora_A)
        assert torch.equal(alone[name].lora_B, layer.lora_B)
        assert alone[name].scaling == layer.scaling
    if one.dora or other.dora:
        with pytest.raises(MismatchError, match="DoRA"):
            combine([one.adapter, other.adapter], weights=[0.5, -2.0])
        return
    expected = {
        name: 0.5 * one.updates.get(name, 0.0) - 2.0 * other.updates.get(name, 0.0)
        for name in one.updates.keys() | other.updates.keys()
    }
    for adapters, weights in (([one, other], [0.5, -2.0]), ([other, one], [-2.0, 0.5])):
        found = combine([case.adapter for case in adapters], weights=weights, dtype=torch.float32).adapter
        assert found.keys() == expected.keys()
        for name, update in dense(found).items():
            assert np.abs(update - expected[name]).max() <= 1e-5 * np.linalg.norm(expected[name])


@pytest.mark.parametrize("seed", range(CASES))
def test_files_of_every_format_keep_every_scale(seed, base, tmp_path):
    case = generated(seed, base)
    written = tmp_path / "peft"
    names = [name for name in case.adapter if name not in KINDS or KINDS[name] == "conv"]
    linear = replace(case.adapter, layers={name: case.adapter[name] for name in names}, keep_scales=True)
    if not linear.layers:
        with pytest.raises(MismatchError, match=r"embedding|Conv1D"):
            convert(case.adapter, "kohya", base=base, output=tmp_path / "kohya.safetensors")
        return
    linear.save(written)
    convert(written, "kohya", base=base, output=tmp_path / "kohya.safetensors")
    kohya = replace(load_adapter(tmp_path / "kohya.safetensors"), keep_scales=True)
    convert(kohya, "peft", base=base, output=tmp_path / "back")
    back = load_adapter(tmp_path / "back")
    assert back.keys() == linear.keys()
    for name, layer in linear.items():
        assert torch.equal(back[name].lora_A, layer.lora_A)
        assert torch.equal(back[name].lora_B, layer.lora_B)
        assert back[name].scaling == pytest.approx(layer.scaling, rel=1e-7)
        if layer.magnitude is not None:
            assert torch.equal(back[name].magnitude, layer.magnitude)

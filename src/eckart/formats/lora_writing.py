"""Writing LoRA files of image and video models: the keys of the file that was read, and a format's for all others."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from eckart.adapter.adapter import Adapter, AdapterLayer, on_meta
from eckart.adapter.outline import LayerKind, LayerOutline
from eckart.checkpoint import TensorSpec, write_tensors
from eckart.checkpoint.dtypes import DType
from eckart.checkpoint.manifest import TEXTS
from eckart.errors import MismatchError
from eckart.formats.lora_file import ADDED, ALPHAS, KEYS, SAVED
from eckart.formats.lora_keys import ends_of, parse_key

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Spelling:
    """How a format names the parts of an update.

    Attributes:
        ends: end of the key of each part.
        alphas: whether every layer has an alpha; otherwise one whose scale is 1 has none. Without an end for alpha, the
            header states the scales.
    """

    ends: Mapping[str, str]
    alphas: bool


def write_file(adapter: Adapter, file: Path, spelling: Spelling, texts: Mapping[str, str]) -> None:
    """Write an adapter as one file in an existing folder, one layer after another.

    Args:
        adapter: the adapter.
        file: the file.
        spelling: how parts are named that the adapter's own file had not.
        texts: of the header.
    """
    own = {key: index for index, key in enumerate(adapter.config.get(KEYS, {}))}
    specs = [TensorSpec.of(name, tensor) for name, tensor in named_tensors(on_meta(adapter.outline()), spelling)]
    specs.sort(key=lambda spec: own.get(spec.name, len(own)))
    write_tensors(file, specs, named_tensors(adapter, spelling), {"format": "pt", **TEXTS, **texts})


def named_tensors(adapter: Adapter, spelling: Spelling) -> "Iterator[tuple[str, Tensor]]":
    """Every tensor under its key, one layer after another."""
    own: dict[str, tuple[str, str]] = adapter.config.get(KEYS, {})
    keys = {place: key for key, place in own.items()}
    parsed = [found for key in own if (found := parse_key(key))]
    ends = {**spelling.ends, **ends_of(parsed)}
    folds = bool(own) and "alpha" in spelling.ends and "alpha" not in ends_of(parsed)

    def key(module: str, part: str) -> str:
        return keys.get((module, part)) or f"{module}{ends[part]}"

    for module, layer in adapter.items():
        stored = _folded(layer) if folds and layer.scaling != 1 else layer
        for part, tensor in _tensors(stored, ends, module, keys).items():
            yield key(module, part), tensor
        is_needed = "alpha" in spelling.ends and (stored.scaling != 1 or (spelling.alphas and not own))
        if (module, "alpha") in keys or is_needed:
            yield key(module, "alpha"), alpha_of(stored, adapter.config.get(ALPHAS))
    for tensors, names in ((adapter.added, ADDED), (adapter.modules_to_save, SAVED)):
        for name, tensor in tensors.items():
            module, _, leaf = name.rpartition(".")
            parts = [part for part, other in names.items() if other == leaf]
            part = next((part for part in parts if (module, part) in keys), parts[0])
            yield keys.get((module, part)) or f"{module}.{part}", tensor
    yield from adapter.carried.items()


def _tensors(
    layer: AdapterLayer, ends: Mapping[str, str], module: str, keys: Mapping[tuple[str, str], str]
) -> "dict[str, Tensor]":
    """The tensors of a layer by the parts that the file has."""
    import torch

    tensors = {"lora_A": layer.lora_A, "lora_B": layer.lora_B}
    if layer.magnitude is not None:
        if "dora_scale" in ends:
            ones = [1] * (layer.lora_A.ndim - 2)
            is_by_output = layer.magnitude.ndim == 1
            shape = (-1, 1, *ones) if is_by_output else (1, -1, *ones)
            tensors["dora_scale"] = layer.magnitude.reshape(shape)
        else:
            shape = (1, -1, *[1] * (layer.lora_A.ndim - 2)) if layer.kind == "conv" else (-1,)
            tensors["magnitude"] = layer.magnitude.reshape(shape)
    if layer.bias is not None:
        if (module, "bias") in keys or "diff_b" not in ends:
            tensors["bias"] = layer.bias
        else:
            wide = torch.promote_types(layer.bias.dtype, torch.float32)
            tensors["diff_b"] = (layer.bias.to(torch.float64) * layer.scaling).to(wide)
    return tensors


def _folded(layer: AdapterLayer) -> AdapterLayer:
    """The layer with its scale in lora_B, for files that state no alpha."""
    import torch

    B = (layer.lora_B.to(torch.float64) * layer.scaling).to(layer.lora_B.dtype)
    bias = None if layer.bias is None else (layer.bias.to(torch.float64) * layer.scaling).to(layer.bias.dtype)
    return replace(layer, lora_B=B, bias=bias, alpha=float(layer.rank), rslora=False)


def alpha_of(layer: AdapterLayer | LayerOutline, dtype: str | None = None) -> "Tensor":
    """The alpha that gives the layer's scale in every reader, all of which divide by the rank.

    Args:
        layer: the layer.
        dtype: that of the file's alphas, of which 32 bits are enough; None for as many bits as are exact.
    """
    import torch

    exact = torch.tensor(layer.scaling * layer.rank, dtype=torch.float64)
    own = DType.of(dtype).torch if dtype else torch.float32
    if float(exact.to(own)) == float(exact):
        return exact.to(own)
    return exact.to(torch.promote_types(own, torch.float32)) if dtype else exact


def refusals_of(adapter: Adapter, reasons: Mapping[LayerKind, str], *, readers: str) -> list[str]:
    """The parts of an adapter that a file cannot store, each with the reason."""
    own = set(adapter.config.get(KEYS, {}).values())
    faults = [f"{name}: {reasons[layer.kind]}" for name, layer in adapter.outline().items() if layer.kind in reasons]
    saved = f"a tensor saved in full (modules_to_save), and {readers} support only updates"
    without = [name for name in adapter.modules_to_save if (name.rpartition(".")[0], "set_weight") not in own]
    return faults + [f"{name}: {saved}" for name in without]


def require_storable(adapter: Adapter, faults: Sequence[str], path: Path, form: str) -> None:
    """Refuse an adapter that a format cannot store.

    Raises:
        MismatchError: every fault is listed.
    """
    if faults or not (len(adapter) or adapter.added or adapter.modules_to_save):
        msg = f"{path}: {form} cannot store this adapter"
        raise MismatchError.listing(msg, faults or ["it has no layers"])

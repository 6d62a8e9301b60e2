"""kohya's adapters: one .safetensors file with flattened module names, as sd-scripts and ComfyUI read it.

A module is `<prefix>_<its name with _ for every dot>`, which only the model's names can undo (`formats.renaming`).
ΔW = alpha / rank · up · down. Sources: sd-scripts' `networks/lora.py`, ComfyUI's `comfy/lora.py` and `weight_adapter`.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from eckart.adapter.adapter import Adapter, AdapterLayer, on_meta, with_tensors
from eckart.adapter.deferred import Deferred
from eckart.adapter.outline import AdapterOutline, LayerKind, LayerOutline, TensorOutline
from eckart.checkpoint import TensorSpec, atomic_file, open_checkpoint, write_tensors
from eckart.checkpoint.dtypes import FLOAT32, promote
from eckart.checkpoint.manifest import TEXTS
from eckart.checkpoint.output import Kind
from eckart.errors import FileFormatError, MismatchError, OutputError
from eckart.formats.stored import factor_fault, header_texts, outline, read_alpha, read_finite, refused_kinds

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_PARTS = {
    ".lora_down.weight": "down",
    ".lora_up.weight": "up",
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".lora_mid.weight": "mid",
    ".alpha": "alpha",
    ".dora_scale": "dora_scale",
    ".diff_b": "diff_b",
}
_DOTTED = {"diffusion_model.": "lora_unet_", "text_encoders.clip_l.transformer.": "lora_te1_"}  # ComfyUI's own names
_UNREAD = {
    ".diff": "a full difference of a weight, not a low-rank update",
    ".w_norm": "a full difference of a norm, not a low-rank update",
    ".b_norm": "a full difference of a norm, not a low-rank update",
    ".hada_": "LoHa, a product of two updates; only LoRA is supported",
    ".lokr_": "LoKr, a Kronecker product; only LoRA is supported",
    ".oft_": "OFT, a rotation; only LoRA is supported",
}
_HASHES = ("sshs_model_hash", "sshs_legacy_hash")  # hashes of the tensors in the file that was read


def read(path: Path) -> Adapter:
    """The adapter in a kohya file, under its flattened module names.

    Raises:
        FileFormatError: the tensors are not a LoRA; every fault is listed.
    """
    stored = open_checkpoint(path)
    names, faults = _parts(list(stored.tensors))
    outlines = {}
    for module, parts in names.items():
        try:
            alpha = read_alpha(stored, parts["alpha"]) if "alpha" in parts else None
            outlines[module] = _outline({part: outline(stored, name) for part, name in parts.items()}, alpha)
        except ValueError as fault:
            faults.append(f"{module}: {fault}")
    if faults or not outlines:
        msg = f"{path}: these tensors cannot be read as a LoRA in kohya's format"
        raise FileFormatError.listing(msg, faults or ["no LoRA tensors"])

    def read_layer(module: str) -> AdapterLayer:
        tensors = {part: read_finite(stored, name) for part, name in names[module].items() if part != "alpha"}
        return _layer(outlines[module], tensors)

    metadata = header_texts(path)
    return Adapter(Deferred(outlines, read_layer), config={"metadata": metadata}, format="kohya", files=(path,))


def write(adapter: Adapter, path: Path, *, force: bool = False) -> None:
    """Write an adapter with flattened names as one file, completely or not at all, one layer after another.

    A layer's bias is written as `.diff_b`, which only ComfyUI reads.

    Raises:
        OutputError: `path` does not end in .safetensors, exists and `force` is not given, or cannot be written.
        MismatchError: the format cannot express the adapter; every fault is listed.
    """
    output_kind(path)
    layers = adapter.outline()
    faults = refusals(adapter)
    faults += [
        f"{name}: its name has dots; convert the adapter to kohya, which flattens names"
        for name in layers
        if "." in name
    ]
    if faults or not layers:
        msg = f"{path}: kohya's format cannot store this adapter"
        raise MismatchError.listing(msg, faults or ["it has no layers"])
    specs = [TensorSpec.of(name, tensor) for name, tensor in _named(on_meta(layers))]
    with atomic_file(path, force=force, inputs=adapter.files) as file:
        write_tensors(file, specs, _named(adapter), _metadata(layers))


def output_kind(path: Path) -> Kind:
    """An adapter is a file; OutputError for a name that its readers would not find."""
    if path.suffix != ".safetensors":
        msg = f"{path}: an adapter in kohya's format is one file; name it {path.name}.safetensors"
        raise OutputError(msg)
    return "file"


def refusals(adapter: Adapter) -> list[str]:
    """The parts of an adapter that the format cannot store, each with the reason."""
    reasons: dict[LayerKind, str] = {
        "embedding": "an embedding, and readers support only updates of linear layers and convolutions",
        "expert": "an expert, and readers do not support updates of single experts",
        "conv1d": "readers assume that a Conv1D's weight is (out, in) and would add its update transposed",
    }
    return refused_kinds(adapter.outline(), reasons)


def _parts(keys: list[str]) -> tuple[dict[str, dict[str, str]], list[str]]:
    """The tensor of each part of each module, and faults for tensors that are not part of a LoRA."""
    names: dict[str, dict[str, str]] = {}
    faults = []
    for key in keys:
        end = next((end for end in _PARTS if key.endswith(end)), None)
        module = _flattened(key.removesuffix(end)) if end else None
        if end is None or module is None:
            reason = next((why for mark, why in _UNREAD.items() if mark in key), "not part of a LoRA in kohya's format")
            faults.append(f"{key}: {reason}")
        elif names.setdefault(module, {}).setdefault(_PARTS[end], key) != key:
            faults.append(f"{key}: the same part of {module} as {names[module][_PARTS[end]]}")
    return names, faults


def _flattened(module: str) -> str | None:
    """A module's name in kohya's form, also from ComfyUI's dotted one; None if it is neither."""
    for dotted, prefix in _DOTTED.items():
        if module.startswith(dotted):
            return prefix + module.removeprefix(dotted).replace(".", "_")
    return None if "." in module else module


def _outline(tensors: Mapping[str, TensorOutline], alpha: float | None) -> LayerOutline:
    """One module's update, from the shapes of its tensors; ValueError says what does not fit."""
    missing = [part for part in ("down", "up") if part not in tensors]
    if missing:
        reason = "a change of a bias alone, not a low-rank update: " if set(tensors) == {"diff_b"} else ""
        msg = f"{reason}lora_{' and lora_'.join(missing)} missing"
        raise ValueError(msg)
    A = _outline_with_mid(tensors["down"], tensors["mid"]) if "mid" in tensors else tensors["down"]
    B = tensors["up"]
    if fault := factor_fault(A, B):
        raise ValueError(fault)
    rank, outputs = A.shape[0], B.shape[0]
    scale, change = tensors.get("dora_scale"), tensors.get("diff_b")
    if scale is not None and (scale.ndim < 2 or scale.shape[0] != outputs or scale.numel() != outputs):
        # DoRA normalizes outputs; the norms of inputs, which LyCORIS trains by default, are another method.
        msg = (
            f"dora_scale is {scale.shape}; only norms of outputs, ({outputs}, 1), are supported: LyCORIS trains norms "
            "of inputs unless wd_on_out is set, and no layer of PEFT or diffusers has them"
        )
        raise ValueError(msg)
    layer = LayerOutline(
        A,
        B,
        float(rank) if alpha is None else alpha,
        kind="conv" if A.ndim > 2 else "linear",
        bias=None if change is None else _widened(change),
        magnitude=None if scale is None else scale.flatten(),
    )
    if change is not None and (change.shape != (outputs,) or layer.scaling == 0):
        msg = f"diff_b is {change.shape} with the scale {layer.scaling:g}, expected ({outputs},) and a nonzero scale"
        raise ValueError(msg)
    return layer


def _outline_with_mid(down: TensorOutline, mid: TensorOutline) -> TensorOutline:
    """The outline of `_with_mid`."""
    rank = down.shape[0] if down.shape else 0
    if down.ndim < 2 or mid.ndim != down.ndim or mid.shape[1] != rank or any(size != 1 for size in down.shape[2:]):
        msg = f"lora_mid is {mid.shape}, which does not fit lora_down {down.shape}"
        raise ValueError(msg)
    return _widened(TensorOutline((mid.shape[0], down.shape[1], *mid.shape[2:]), down.dtype))


def _widened(tensor: TensorOutline) -> TensorOutline:
    return TensorOutline(tensor.shape, promote(tensor.dtype, FLOAT32))


def _layer(outline: LayerOutline, tensors: "Mapping[str, Tensor]") -> AdapterLayer:
    """The layer of an outline, from the tensors of its file."""
    import torch

    down, parts = tensors["down"], {"lora_B": tensors["up"]}
    parts["lora_A"] = _with_mid(down, tensors["mid"]) if "mid" in tensors else down
    if "dora_scale" in tensors:
        parts["magnitude"] = tensors["dora_scale"].flatten()
    if "diff_b" in tensors:
        change = tensors["diff_b"]
        parts["bias"] = (change.to(torch.float64) / outline.scaling).to(_wide(change))
    return with_tensors(outline, parts)


def _with_mid(down: "Tensor", mid: "Tensor") -> "Tensor":
    """A Tucker core and its input factor as one lora_A, multiplied in float64 and returned in float32 or wider."""
    import torch

    product = torch.einsum("pqk,qi->pik", mid.flatten(2).to(torch.float64), down.flatten(1).to(torch.float64))
    return product.reshape(mid.shape[0], down.shape[1], *mid.shape[2:]).to(_wide(down))


def _wide(tensor: "Tensor") -> "torch.dtype":
    import torch

    return torch.promote_types(tensor.dtype, torch.float32)


def _named(adapter: Adapter) -> Iterator[tuple[str, "Tensor"]]:
    """Every tensor under its name in the file, one layer after another."""
    import torch

    for module, layer in adapter.items():
        yield f"{module}.lora_down.weight", layer.lora_A
        yield f"{module}.lora_up.weight", layer.lora_B
        yield f"{module}.alpha", _alpha(layer)
        if layer.magnitude is not None:
            yield f"{module}.dora_scale", layer.magnitude.reshape(-1, *(1 for _ in layer.lora_A.shape[1:]))
        if layer.bias is not None:
            yield f"{module}.diff_b", (layer.bias.to(torch.float64) * layer.scaling).to(_wide(layer.bias))


def _alpha(layer: AdapterLayer | LayerOutline) -> "Tensor":
    """The alpha that gives the layer's scale in every reader, all of which divide by the rank."""
    import torch

    exact = torch.tensor(layer.scaling * layer.rank, dtype=torch.float64)
    narrow = exact.to(torch.float32)
    return narrow if float(narrow) == float(exact) else exact


def _metadata(adapter: AdapterOutline) -> dict[str, str]:
    """The texts of the file that the adapter was read from, with its present ranks and alphas."""
    ranks = {layer.rank for layer in adapter.values()}
    (alpha, _), *others = Counter(float(_alpha(layer)) for layer in adapter.values()).most_common()
    texts = {key: text for key, text in adapter.config.get("metadata", {}).items() if key not in _HASHES}
    return {
        "format": "pt",
        **TEXTS,
        "ss_network_module": "networks.lora",
        **texts,
        "ss_network_dim": str(ranks.pop()) if len(ranks) == 1 else "Dynamic",
        "ss_network_alpha": "Dynamic" if others else str(alpha),
    }

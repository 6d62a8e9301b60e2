"""The update of one module from its tensors in a file: LoRA, with or without a core, LoHa, LoKr, or a whole matrix.

All but plain LoRA become an exact product: LoHa of rank r₁·r₂, LoKr of the product of its factors' ranks, a matrix of
its own with the identity. ΔW = alpha / rank · the product, where rank is that of the file's factors.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from eckart.adapter.adapter import AdapterLayer, with_tensors
from eckart.adapter.outline import LayerOutline, TensorOutline
from eckart.checkpoint.dtypes import BFLOAT16, FLOAT32, DType, promote
from eckart.formats.stored import factor_fault

if TYPE_CHECKING:
    from torch import Tensor

_KINDS = {"lora_": "LoRA", "mid": "LoRA", "hada_": "LoHa", "lokr_": "LoKr", "diff": "a full difference"}
UPDATES = ("lora_A", "lora_B", "mid", "diff")  # parts of a module's update, apart from those of LoHa and LoKr


def is_update(part: str) -> bool:
    """Whether a part belongs to the update of a matrix."""
    return part in UPDATES or part.startswith(("hada_", "lokr_"))


def narrowest(dtype: DType) -> DType:
    """The dtype to compute with: bfloat16 for codes of 8 bits, all of which it has."""
    return BFLOAT16 if dtype.is_floating_point and dtype.itemsize == 1 else dtype


def outline_of(parts: Mapping[str, TensorOutline], alpha: float | None) -> LayerOutline:
    """One module's update, from the shapes of its tensors.

    Raises:
        ValueError: they do not form one.
    """
    parts = {part: replace(tensor, dtype=narrowest(tensor.dtype)) for part, tensor in parts.items()}
    kinds = {title for part in parts for start, title in _KINDS.items() if part.startswith(start) and part != "diff_b"}
    if len(kinds) > 1:
        msg = f"tensors of {' and of '.join(sorted(kinds))} for one module"
        raise ValueError(msg)
    if any(part.startswith(("hada_", "lokr_")) for part in parts) or not {"mid", "diff"}.isdisjoint(parts):
        meta = {part: tensor.on_meta() for part, tensor in parts.items()}
        return _computed(meta, alpha).outline()
    missing = [part for part in ("lora_A", "lora_B") if part not in parts]
    if missing:
        msg = f"{' and '.join(missing)} missing"
        raise ValueError(msg)
    A, B = parts["lora_A"], parts["lora_B"]
    if fault := factor_fault(A, B):
        raise ValueError(fault)
    layer = LayerOutline(A, B, float(A.shape[0]) if alpha is None else alpha, kind="conv" if A.ndim > 2 else "linear")
    return _with_vectors(layer, parts)


def layer_of(outline: LayerOutline, tensors: "Mapping[str, Tensor]", alpha: float | None) -> AdapterLayer:
    """The layer of an outline, from the tensors of its file."""
    import torch

    tensors = {part: tensor.to(narrowest(DType.of(tensor.dtype)).torch) for part, tensor in tensors.items()}
    if not {"lora_A", "lora_B"} <= tensors.keys() or "mid" in tensors:
        return replace(_computed(tensors, alpha), rslora=outline.rslora)
    parts = {part: tensors[part] for part in ("lora_A", "lora_B")}
    if outline.bias is not None:
        change = tensors["diff_b" if "diff_b" in tensors else "bias"].flatten()
        if "diff_b" in tensors:
            change = (change.to(torch.float64) / outline.scaling).to(outline.bias.dtype.torch)
        parts["bias"] = change
    if outline.magnitude is not None:
        magnitude = tensors["dora_scale" if "dora_scale" in tensors else "magnitude"]
        parts["magnitude"] = magnitude.reshape(outline.magnitude.shape)
    return with_tensors(outline, parts)


def _computed(tensors: "Mapping[str, Tensor]", alpha: float | None) -> AdapterLayer:
    """A layer whose factors are computed from the file's, rounded once to float32 or wider."""
    import torch

    try:
        B, A, rank = _factors(tensors)
    except (RuntimeError, KeyError, IndexError) as error:
        shapes = ", ".join(f"{part} {tuple(tensor.shape)}" for part, tensor in tensors.items())
        msg = f"its tensors do not form an update: {shapes}"
        raise ValueError(msg) from error
    width = max((tensor.dtype for tensor in tensors.values()), key=lambda dtype: dtype.itemsize)
    dtype = torch.promote_types(width, torch.float32)
    B = B.reshape(*B.shape, *(1 for _ in A.shape[2:]))
    scale = 1.0 if rank is None or alpha is None else alpha / rank
    layer = AdapterLayer(
        A.to(dtype).contiguous(),
        B.to(dtype).contiguous(),
        scale * len(A),
        kind="conv" if A.ndim > 2 else "linear",
    )
    outline = _with_vectors(layer.outline(), {part: TensorOutline.of(tensor) for part, tensor in tensors.items()})
    if outline.bias is None and outline.magnitude is None:
        return layer
    return layer_of(outline, {"lora_A": layer.lora_A, "lora_B": layer.lora_B, **_vectors(tensors)}, None)


def _vectors(tensors: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
    return {part: tensors[part] for part in ("bias", "diff_b", "magnitude", "dora_scale") if part in tensors}


def _factors(tensors: "Mapping[str, Tensor]") -> "tuple[Tensor, Tensor, int | None]":
    """Factors `(out, rank)` and `(rank, in, ...)` of an update, and the rank that alpha is divided by, if any."""
    from eckart.adapter.hadamard import hadamard_factors
    from eckart.adapter.kronecker import kronecker_factors, whole_factors

    if "hada_w1_a" in tensors:
        pairs = [
            _with_core(
                *(tensors.get(f"hada_{name}{index}{end}") for name, end in (("w", "_a"), ("w", "_b"), ("t", "")))
            )
            for index in (1, 2)
        ]
        return *hadamard_factors(*pairs), tensors["hada_w1_b"].shape[0]
    if any(part.startswith("lokr_") for part in tensors):
        pairs = []
        for index in (1, 2):
            whole = tensors.get(f"lokr_w{index}")
            names = (f"lokr_w{index}_a", f"lokr_w{index}_b", f"lokr_t{index}")
            pairs.append(whole_factors(whole) if whole is not None else _with_core(*map(tensors.get, names)))
        ranks = [tensors[name].shape[0] for name in ("lokr_w2_b", "lokr_w1_b") if name in tensors]
        return *kronecker_factors(*pairs), next(iter(ranks), None)
    if "diff" in tensors:
        return *whole_factors(tensors["diff"]), None
    down, up = tensors["lora_A"], tensors["lora_B"]
    B, A = _with_core(up.flatten(1).T, down.flatten(1), tensors["mid"])
    return B, A, down.shape[0]


def _with_core(B: "Tensor | None", A: "Tensor | None", core: "Tensor | None") -> "tuple[Tensor, Tensor]":
    """The factors of a product; of one with a core of its kernel, B is `(rank, out)`, and the core goes into A."""
    import torch

    if B is None or A is None:
        msg = "a factor is missing"
        raise KeyError(msg)
    if core is None:
        if B.shape[1] != A.shape[0]:
            msg = "the ranks differ"
            raise IndexError(msg)
        return B, A
    return B.T, torch.einsum("pq...,qi->pi...", core.to(torch.float64), A.to(torch.float64))


def _with_vectors(layer: LayerOutline, parts: Mapping[str, TensorOutline]) -> LayerOutline:
    """The layer with the change of its bias and its magnitude; ValueError if they do not fit."""
    outputs, inputs = layer.lora_B.shape[0], layer.lora_A.shape[1]
    changes: dict[str, Any] = {}
    bias = parts.get("diff_b") or parts.get("bias")
    if bias is not None:
        if bias.numel() != outputs or (layer.scaling == 0 and "diff_b" in parts):
            msg = f"diff_b is {bias.shape} with the scale {layer.scaling:g}, expected ({outputs},) and a nonzero scale"
            raise ValueError(msg if "diff_b" in parts else f"bias has {bias.numel()} values for {outputs} outputs")
        dtype = promote(bias.dtype, FLOAT32) if "diff_b" in parts else bias.dtype
        changes["bias"] = TensorOutline((outputs,), dtype)
    magnitude, scale = parts.get("magnitude"), parts.get("dora_scale")
    if scale is not None:
        ones = len(scale.shape) - 1
        by_output, by_input = (outputs, *[1] * ones), (1, inputs, *[1] * (ones - 1))
        if ones < 1 or scale.shape not in (by_output, by_input):
            msg = f"dora_scale is {scale.shape}, expected norms of outputs, ({outputs}, 1), or of inputs, (1, {inputs})"
            raise ValueError(msg)
        shape = (outputs,) if scale.shape == by_output else (1, inputs)
        changes["magnitude"] = TensorOutline(shape, scale.dtype)
    elif magnitude is not None:
        if magnitude.numel() != outputs:
            msg = f"magnitude has {magnitude.numel()} values for {outputs} outputs"
            raise ValueError(msg)
        changes["magnitude"] = TensorOutline((outputs,), magnitude.dtype)
    return replace(layer, **changes)

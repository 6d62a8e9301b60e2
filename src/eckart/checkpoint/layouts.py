"""Which tensors of a checkpoint are matrices, from headers alone, and why the others are skipped."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import prod
from typing import Literal

from eckart.checkpoint.checkpoint import Checkpoint, TensorInfo
from eckart.checkpoint.dtypes import COPIED
from eckart.checkpoint.encodings.undecoded import undecoded
from eckart.checkpoint.naming import is_embedding
from eckart.checkpoint.orientation import (
    CONV1D_MODULES,
    Orientations,
    is_expert,
    outputs_by_bias,
)
from eckart.result import Skipped

Kind = Literal["linear", "conv1d", "embedding", "conv", "expert", "parameter"]

_NAMED_KINDS: dict[str | None, Kind] = {"linear": "linear", "conv1d": "conv1d", "embedding": "embedding"}
_BUFFERS = {"inv_freq", "rope_freqs", "masked_bias", "position_ids", "original_inv_freq"}


@dataclass(frozen=True)
class MatrixView:
    """A 2-D matrix inside a tensor.

    Attributes:
        name: the name shown to users: the module path, followed by `[3]` for the slice of one expert.
        module: the module path: the tensor's name without `.weight`.
        tensor: the tensor's name in the checkpoint.
        kind: `conv1d` is GPT-2's Conv1D; `parameter` is a bare 2-D parameter, which PEFT targets by
            `target_parameters` rather than as a module.
        stored_shape: (rows, columns) as stored in the file; a convolution is flattened to (out, in·k·k).
        first_row: first row of the matrix in the tensor flattened to two dimensions; 0 except for experts.
        transposed: whether the file stores (in, out).
        tensor_shape: the shape of the tensor.
        tied_modules: further modules that share the storage.
        swaps_factors: whether a PEFT adapter's `lora_B` belongs to the columns and `lora_A` to the rows; None if the
            matrix is square and neither other shapes nor the model type decide.
    """

    name: str
    module: str
    tensor: str
    kind: Kind
    stored_shape: tuple[int, int]
    first_row: int
    transposed: bool
    tensor_shape: tuple[int, ...]
    tied_modules: tuple[str, ...] = ()
    swaps_factors: bool | None = False

    @property
    def shape(self) -> tuple[int, int]:
        """(out_features, in_features); of an embedding, (vocabulary, dimension) as stored."""
        rows, columns = self.stored_shape
        return (columns, rows) if self.transposed else (rows, columns)


@dataclass(frozen=True)
class Layout:
    """Every tensor of a checkpoint, in exactly one of two lists."""

    matrices: list[MatrixView]
    skipped: list[Skipped]


def layout(checkpoint: Checkpoint) -> Layout:
    """The matrices in each tensor, or the reason why it is skipped."""
    sharing: dict[str, list[str]] = {}
    for absent, stored in checkpoint.tied.items():
        sharing.setdefault(stored, []).append(module_of(absent))
    result = Layout([], [])
    orientations = Orientations(checkpoint)
    quantized = undecoded(checkpoint)
    for name, info in checkpoint.tensors.items():
        reason = quantized.get(name) or _reason_to_leave(info, checkpoint)
        if reason:
            result.skipped.append(Skipped(name, reason))
            continue
        kind = _kind(info, checkpoint, has_conv1d=orientations.has_conv1d)
        result.matrices.extend(_views(info, kind, orientations.of(info, kind), tuple(sharing.get(name, ()))))
    return result


def expert_views(checkpoint: Checkpoint, names: Iterable[str]) -> list[MatrixView]:
    """The matrices of those tensors that are 3-D and stack one for each expert, whatever their names."""
    orientations = Orientations(checkpoint)
    infos = (checkpoint.tensors[name] for name in names)
    stacks = [info for info in infos if len(info.shape) == 3 and info.dtype.is_floating_point]
    return [view for info in stacks for view in _views(info, "expert", orientations.of(info, "expert"), ())]


def module_of(tensor: str) -> str:
    """The module path of a tensor: its name without a trailing `.weight`."""
    return tensor.removesuffix(".weight")


def is_buffer(info: TensorInfo) -> bool:
    """Whether a tensor is computed rather than trained, so that a file may lack it."""
    leaf = info.name.rpartition(".")[2]
    # GPT-2 once saved its causal mask as a 4-D "bias".
    return leaf in _BUFFERS or (leaf == "bias" and len(info.shape) == 4)


def conv1d_tensors(checkpoint: Checkpoint) -> set[str]:
    """Tensors whose module is GPT-2's Conv1D, recognized by name, so that it also works on quantized weights."""
    if not Orientations(checkpoint).has_conv1d:
        return set()
    return {
        name
        for name, info in checkpoint.tensors.items()
        if len(info.shape) == 2 and _kind(info, checkpoint, has_conv1d=True) == "conv1d"
    }


def _views(info: TensorInfo, kind: Kind, oriented: tuple[bool, bool | None], tied: tuple[str, ...]) -> list[MatrixView]:
    module, shape = module_of(info.name), info.shape
    transposed, swaps = oriented
    rows, columns = shape[1:] if kind == "expert" else (shape[0], prod(shape[1:]))
    view = MatrixView(module, module, info.name, kind, (rows, columns), 0, transposed, shape, tied, swaps)
    if kind != "expert":
        return [view]
    return [replace(view, name=f"{module}[{e}]", first_row=e * rows) for e in range(shape[0])]


def _reason_to_leave(info: TensorInfo, checkpoint: Checkpoint) -> str | None:
    """Why a tensor is not a matrix; None if it is one."""
    module, _, leaf = info.name.rpartition(".")
    known, dimensions = checkpoint.kinds.get(module), len(info.shape)
    is_norm = "norm" in module.lower() or "ln_" in module
    is_depthwise = known == "grouped conv" or (known is None and _is_depthwise(info))
    unknown = dimensions > 2 and not _is_conv(info, known) and not is_expert(info)
    rules = (
        (is_buffer(info), "buffer"),
        (info.dtype in COPIED, f"{info.dtype}: codes, scales or complex numbers, which are only copied"),
        (not info.dtype.is_floating_point, f"{info.dtype}, not floating point"),
        (0 in info.shape, "no elements"),
        (leaf.endswith("bias"), "bias"),
        (dimensions == 0, "scalar"),
        (dimensions == 1, "norm" if is_norm else "vector"),
        (is_depthwise, "depthwise convolution: each group has one input channel"),
        (unknown, f"{dimensions}-D tensor of unknown use"),
    )
    return next((reason for applies, reason in rules if applies), None)


def _kind(info: TensorInfo, checkpoint: Checkpoint, *, has_conv1d: bool) -> Kind:
    """The kind of a tensor that contains matrices; the type of a live module takes precedence over names."""
    module, _, leaf = info.name.rpartition(".")
    known = checkpoint.kinds.get(module)
    if len(info.shape) > 2:
        return "conv" if _is_conv(info, known) else "expert"
    if leaf != "weight":
        return "parameter"
    if known in _NAMED_KINDS:
        return _NAMED_KINDS[known]
    if is_embedding(module) and f"{module}.bias" not in checkpoint.tensors:
        return "embedding"
    if outputs_by_bias(info, checkpoint) == "columns":
        return "conv1d"
    return "conv1d" if has_conv1d and module.rpartition(".")[2] in CONV1D_MODULES else "linear"


def _is_conv(info: TensorInfo, known: str | None) -> bool:
    module, _, leaf = info.name.rpartition(".")
    if leaf != "weight" or is_expert(info):
        return False
    return known == "conv" or len(info.shape) > 3 or "conv" in module.rpartition(".")[2].lower()


def _is_depthwise(info: TensorInfo) -> bool:
    return len(info.shape) > 2 and info.shape[1] == 1 and info.shape[0] > 1 and _is_conv(info, None)


def counterpart(base: Checkpoint, view: MatrixView) -> MatrixView:
    """The view of the same matrix in `base`, through its ties.

    Raises:
        KeyError: `base` has no such tensor.
        ValueError: its shape differs.
    """
    tensor = base.tied.get(view.tensor, view.tensor)
    shape = base.tensors[tensor].shape
    if shape != view.tensor_shape:
        msg = f"{view.tensor} is {view.tensor_shape} in one checkpoint and {shape} in the other"
        raise ValueError(msg)
    return replace(view, tensor=tensor)


def as_view(name: str, shape: tuple[int, ...]) -> MatrixView:
    """Any tensor as one matrix of its entries."""
    rows = shape[0] if shape else 1
    return MatrixView(name, name, name, "parameter", (rows, prod(shape[1:])), 0, False, shape)

"""A frozen linear layer in four bits: codes and scales in memory, dense only during a product."""

import functools
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from eckart.checkpoint.dtypes import DType
from eckart.checkpoint.encodings.nf4 import Nf4Checkpoint
from eckart.checkpoint.encodings.nf4_scheme import STATE, Nf4Scheme
from eckart.checkpoint.memory import MemoryCheckpoint
from eckart.errors import FileFormatError
from eckart.linalg.nf4 import Nf4Blocks
from eckart.nn.adapted import compute_dtype
from eckart.nn.frozen import PackedLinear, as_given, product, working_dtype

_PARTS = ("codes", "absmax", "nested_absmax", "nested_offset", "nested_map")


class Nf4Linear(PackedLinear):
    """x·Wᵀ + bias with W in NF4, which never trains and is dequantized in every pass, forward and backward.

    Its state dict is that of a bitsandbytes layer, so that a live model is read like a checkpoint.

    Args:
        blocks: the weight, of shape `(out_features, in_features)`.
        bias: shape `(out_features,)`.
    """

    codes: Tensor
    absmax: Tensor
    nested_map: Tensor | None

    def __init__(self, blocks: Nf4Blocks, bias: nn.Parameter | None = None) -> None:
        super().__init__()
        self.out_features, self.in_features = blocks.shape
        self.bias = bias
        self._take(blocks)

    @property
    def blocks(self) -> Nf4Blocks:
        """The weight as it is stored."""
        parts = {part: getattr(self, part) for part in _PARTS[: None if self.is_double else 2]}
        shape = (self.out_features, self.in_features)
        return Nf4Blocks(shape=shape, dtype=self.stored_dtype, block_size=self.block_size, **parts)  # type: ignore[arg-type]

    def as_parameters(self) -> None:
        """Turn codes and scales into frozen parameters, which FSDP shards, unlike buffers."""
        for part in ("codes", "absmax"):
            self.register_parameter(part, nn.Parameter(self._buffers.pop(part), requires_grad=False))  # type: ignore[arg-type]

    @property
    def weight(self) -> Tensor:
        """The codes, for code that reads a layer's device from its weight."""
        return self.codes

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The weight in its original dtype, then cast, shape `(out_features, in_features)`."""
        return _dequantized(self.blocks).to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        """x·Wᵀ + bias, shape `(…, out_features)`, in the dtype of x or autocast's."""
        dtype = compute_dtype(x)
        rows = x.to(dtype).reshape(-1, self.in_features)
        bias = None if self.bias is None else self.bias.to(dtype)
        y = cast("Tensor", _FrozenLinear.apply(rows, bias, self))
        return y.view(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        sizes = f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
        return f"{sizes}, block_size={self.block_size}, double={self.is_double}"

    def _take(self, blocks: Nf4Blocks) -> None:
        self._constants: dict[str, Tensor] = {}
        self.stored_dtype, self.block_size, self.is_double = blocks.dtype, blocks.block_size, blocks.double
        present = _PARTS if self.is_double else _PARTS[:2]
        for part in _PARTS:
            self.register_buffer(part, getattr(blocks, part) if part in present else None, persistent=False)
        if self.nested_map is not None:
            self.nested_map = self.nested_map.clone()  # safetensors does not save tensors that layers share

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Nf4Linear":
        """Move or cast; the scales stay in float32, even if the model is cast to another dtype."""
        before = {part: buffer for part, buffer in self._buffers.items() if buffer is not None}
        super()._apply(fn, recurse)
        for part, buffer in before.items():
            if self._buffers[part].dtype != buffer.dtype:  # type: ignore[union-attr]
                self._buffers[part] = buffer.to(self.codes.device)
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        scheme = Nf4Scheme(
            f"{prefix}weight", self.blocks.shape, DType.of(self.stored_dtype), self.block_size, self.is_double
        )
        for name, tensor in scheme.tensors(self.blocks):
            end = name.removeprefix(scheme.name)
            # Not buffers, but cached: a layer with two paths has one tensor at both, and no two layers share one.
            constant = end in (".quant_map", STATE)
            destination[name] = self._constants.setdefault(end, tensor.clone()) if constant else tensor

    def _load_from_state_dict(  # noqa: PLR0917
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        name = f"{prefix}weight"
        parts = {key: value for key, value in state_dict.items() if key == name or key.startswith(f"{name}.")}
        rest = {key: value for key, value in state_dict.items() if key not in parts}
        super()._load_from_state_dict(rest, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)
        if not parts:
            missing_keys.append(name)
            return
        try:
            blocks = Nf4Checkpoint(MemoryCheckpoint(parts)).blocks(name)
        except (FileFormatError, KeyError) as error:
            error_msgs.append(f"{name}: not a weight in NF4 ({error})")
            return
        if blocks.shape != (self.out_features, self.in_features):
            error_msgs.append(f"{name}: shape {blocks.shape}, expected {(self.out_features, self.in_features)}")
            return
        device = self.codes.device
        self._take(blocks)
        for part, buffer in self._buffers.items():
            self._buffers[part] = None if buffer is None else buffer.to(device, copy=True)


class _FrozenLinear(torch.autograd.Function):
    """y = x·Wᵀ + bias for rows x; saves only the layer for the backward pass."""

    @staticmethod
    @as_given
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, layer: Nf4Linear) -> Tensor:
        ctx.layer = layer
        work = working_dtype(x)
        return product(x.to(work), layer.dense(work), None if bias is None else bias.to(work)).to(x.dtype)

    @staticmethod
    @once_differentiable
    @as_given
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (g,) = gradients
        needs_x, needs_bias, _ = ctx.needs_input_grad
        work = working_dtype(g)
        dx = product(g.to(work), ctx.layer.dense(work).T).to(g.dtype) if needs_x else None
        return dx, g.sum(dim=0) if needs_bias else None, None


def _dequantized(blocks: Nf4Blocks) -> Tensor:
    """The dense weight, by bitsandbytes' kernel if it is installed and the codes are on a GPU; the values are equal."""
    kernel = _kernel() if blocks.codes.is_cuda else None
    return by_bitsandbytes(blocks, kernel) if kernel else blocks.dequantize()


def by_bitsandbytes(blocks: Nf4Blocks, kernel: Callable[..., Tensor]) -> Tensor:
    """The dense weight by an operator of bitsandbytes."""
    return kernel(blocks.codes, blocks.scales(), blocks.block_size, "nf4", blocks.shape, blocks.dtype)


@functools.cache
def _kernel() -> Callable[..., Tensor] | None:
    try:
        import bitsandbytes  # noqa: F401

        return torch.ops.bitsandbytes.dequantize_4bit.default
    except (ImportError, AttributeError, OSError, RuntimeError):
        return None

"""Tensors without data, and stand-ins for the parts of a training step that need values or a GPU."""

import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, cast
from unittest.mock import patch

import torch
from torch import Tensor, nn

from eckart.errors import OptionError
from eckart.linalg import nf4
from eckart.linalg.nf4 import NESTED_BLOCK, Nf4Blocks
from eckart.nn import processor
from eckart.nn.frozen import frozen_weight
from eckart.nn.quantize import quantizable
from eckart.nn.quantized import Nf4Linear
from eckart.planning.setting import PlanSetting
from eckart.planning.step import TrainingStep

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from transformers import PreTrainedModel

_BLOCK = 64  # of `quantize_model`
_CHUNK = 2**19  # values that the CPU dequantizes at a time
_STATE_BLOCK = 256  # values that share a scale in bitsandbytes' 8-bit optimizers
_MIN_8BIT = 4096  # values from which bitsandbytes stores states in 8 bits
_TILES = "trl.kernels.chunked_logprob"  # imported only where a step needs that loss


class DatalessNf4Linear(Nf4Linear):
    """A layer in NF4 that allocates what dequantizing does, and computes nothing."""

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The weight; allocated meanwhile: the scales, and a chunk of values and of indices into a table."""
        blocks = self.blocks
        chunk = min(2 * len(self.codes), _CHUNK)
        working = torch.empty(blocks.absmax.shape), torch.empty(chunk), torch.empty(chunk // 2, dtype=torch.int32)
        result = torch.empty(blocks.shape, dtype=self.stored_dtype)
        del working
        return result.to(dtype)


def quantize_dataless(model: nn.Module) -> list[str]:
    """Do what `eckart.quantize_model` does, on a model without data.

    Returns:
        Paths of the quantized layers.
    """
    paths = quantizable(model)
    for path, all_paths in paths.items():
        module = model.get_submodule(path)
        weight = frozen_weight(module, cast("Tensor", module.weight).dtype)
        packed = DatalessNf4Linear(_blocks_like(weight), cast("nn.Parameter | None", module.bias))
        for each in all_paths:
            parent, _, leaf = each.rpartition(".")
            setattr(model.get_submodule(parent), leaf, packed.train(module.training))
    return list(paths)


def _blocks_like(weight: Tensor) -> Nf4Blocks:
    """The tensors of a weight in NF4 with double quantization, without values."""
    count = weight.numel()
    scales = -(-count // _BLOCK)
    return Nf4Blocks(
        torch.empty(-(-count // 2), 1, dtype=torch.uint8),
        torch.empty(scales, dtype=torch.uint8),
        tuple(weight.shape),
        weight.dtype,
        _BLOCK,
        torch.empty(-(-scales // NESTED_BLOCK)),
        torch.empty(()),
        torch.empty(nf4.DYNAMIC_MAP.shape),
    )


class DatalessAdamW8bit(torch.optim.Optimizer):
    """The states of bitsandbytes' AdamW8bit, and what a step allocates meanwhile on a CPU; nothing is computed.

    Both moments take one byte per value and a float32 scale per 256 values; those of small parameters stay float32.

    Dettmers et al. (2022), "8-bit optimizers via block-wise quantization".
    """

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        super().__init__(parameters, {})
        self._maps: list[Tensor] = []

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Create missing states, and allocate what an update does."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                if not self.state[parameter]:
                    self.state[parameter] = self._states(parameter)
                if parameter.numel() >= _MIN_8BIT:
                    self.work(parameter)

    @staticmethod
    def work(parameter: Tensor) -> None:
        """Allocate what the CPU's update does: both moments, gradient, root and quotient, in float32 and at once."""
        copies = 5 if parameter.dtype == torch.float32 else 6  # one more for the parameter itself
        buffers = [torch.empty(parameter.shape) for _ in range(copies)]
        del buffers

    def _states(self, parameter: Tensor) -> dict[str, Tensor]:
        if parameter.numel() < _MIN_8BIT:
            return {name: torch.zeros(parameter.shape) for name in ("state1", "state2")}
        if not self._maps:  # shared by all parameters
            self._maps = [torch.empty(256), torch.empty(256)]
        states = {f"qmap{i}": values for i, values in enumerate(self._maps, 1)}
        for i in (1, 2):
            states[f"state{i}"] = torch.zeros(parameter.shape, dtype=torch.uint8)
            states[f"absmax{i}"] = torch.zeros(-(-parameter.numel() // _STATE_BLOCK))
        return states


class _GroupedProduct(torch.autograd.Function):
    """Rows times the weights of their experts; torch's own operator supports dataless tensors in bfloat16 only."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
        needs_rows, needs_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(rows if needs_weight else None, weight if needs_rows else None, ends)
        ctx.layouts = [(tensor.shape, tensor.stride()) for tensor in (rows, weight)]
        return rows.new_empty(len(rows), weight.shape[-1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        layouts = zip(ctx.layouts, ctx.needs_input_grad, strict=False)
        empty = (gradients[0].new_empty_strided(*layout) if needed else None for layout, needed in layouts)
        return *empty, None


def dataless_step(model: "PreTrainedModel", setting: PlanSetting, mesh: "DeviceMesh | None" = None) -> TrainingStep:
    """A training step of a model without data."""
    return TrainingStep(model, setting, quantize=quantize_dataless, adamw8bit=DatalessAdamW8bit, mesh=mesh)


@contextmanager
def pretended_devices(count: int) -> Iterator["DeviceMesh | None"]:
    """Inside the block, a mesh of so many processes of which this one is the first, and whose messages go nowhere.

    Raises:
        OptionError: this process already belongs to a group.
    """
    if count == 1:
        yield None
        return
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.testing._internal.distributed.fake_pg import FakeStore

    if dist.is_initialized():
        msg = "several GPUs cannot be planned in a process that trains together with others"
        raise OptionError(msg)
    dist.init_process_group("fake", rank=0, world_size=count, store=FakeStore())
    try:
        with warnings.catch_warnings():  # FSDP warns of views that a model may change; a simulation computes nothing
            warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
            yield init_device_mesh("cpu", (count,))
    finally:
        dist.destroy_process_group()


@contextmanager
def dataless() -> Iterator[None]:
    """Inside the block, new tensors have a shape, a dtype and a size, but no data and no memory.

    Two functions of transformers need values and are replaced. One searches positions for records packed into one
    sequence, of which there are none here; the other multiplies tokens with the weights of their experts.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode
    from transformers import masking_utils
    from transformers.integrations import moe

    def product(input: Tensor, weight: Tensor, offs: Tensor) -> Tensor:  # noqa: A002
        return cast("Tensor", _GroupedProduct.apply(input.to(weight.dtype), weight, offs))

    find, grouped = masking_utils.find_packed_sequence_indices, moe._grouped_mm
    masking_utils.find_packed_sequence_indices = lambda position_ids: None
    moe._grouped_mm = product
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            yield
    finally:
        masking_utils.find_packed_sequence_indices, moe._grouped_mm = find, grouped


@contextmanager
def as_on_cuda() -> Iterator[None]:
    """Inside the block, operators allocate what they do on a GPU: bfloat16 products, fused dropout, in-place updates.

    Flash attention applies dropout inside its kernel, whereas the CPU falls back to a product that stores all scores.
    TRL's Triton kernels overwrite a tile of the logits, whereas the CPU creates several tiles. AdamW in 8 bits works in
    place.
    """
    attention = nn.functional.scaled_dot_product_attention

    def without_dropout(query: Tensor, key: Tensor, value: Tensor, *rest: Any, **options: Any) -> Tensor:
        return attention(query, key, value, *rest, **{**options, "dropout_p": 0.0})

    with ExitStack() as stack:
        stack.enter_context(patch.object(nn.functional, "scaled_dot_product_attention", without_dropout))
        stack.enter_context(patch.object(DatalessAdamW8bit, "work", lambda *_: None))
        stack.enter_context(patch.object(processor, "multiplies_bfloat16", lambda: True))
        if _TILES in sys.modules:
            for fold in ("_forward_tile", "_backward_tile"):
                stack.enter_context(patch.object(sys.modules[_TILES], fold, lambda *_, **__: None))
        yield

"""A planned model as a checkpoint: what its output would contain, computed when it is read."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from eckart.checkpoint.derived import DerivedCheckpoint, Rows
from eckart.checkpoint.layouts import MatrixView
from eckart.operations.model_writer.plan import ModelPlan, OutputTensor
from eckart.operations.model_writer.writer import in_cache, stored_rows_of, update_for


def planned(plan: ModelPlan) -> DerivedCheckpoint:
    """The model that a plan would write; quantized tensors with their nearest codes, dequantized."""
    computed: dict[str, Rows] = {}
    tensors = {}
    for tensor in plan.tensors:
        tensors[tensor.name] = replace(tensor.info, name=tensor.name, dtype=tensor.dtype, quantization=None)
        computed[tensor.name] = lambda start, stop, tensor=tensor: _values(plan, tensor)[start:stop]
    tied = {name: stored for name, stored in plan.base.tied.items() if name not in tensors}
    return DerivedCheckpoint(plan.base, tensors, computed=computed, config=plan.config or None, tied=tied)


def _values(plan: ModelPlan, tensor: OutputTensor) -> Tensor:
    """The values of a tensor that a plan writes."""
    rows = torch.cat([block for view in tensor.views for block in target_rows(plan, tensor, view)])
    shape = tensor.views[0].tensor_shape
    if tensor.scheme is None:
        return rows.to(tensor.dtype.torch).view(shape)
    transposed = tensor.views[0].kind == "conv1d"
    values = tensor.scheme.quantize(rows.T if transposed else rows).dequantize(tensor.dtype.torch)
    return (values.T if transposed else values).reshape(shape)


def target_rows(plan: ModelPlan, tensor: OutputTensor, view: MatrixView) -> Iterator[Tensor]:
    """Rows of one matrix of a tensor with its changes, not rounded, in float32 or better."""
    update = update_for(plan, tensor, view) if view.name in tensor.terms else None
    row = 0
    for stored in stored_rows_of(tensor, view):
        for block in in_cache(stored):
            dtype = update.dtype if update else block.dtype
            yield update.apply(block.to(dtype), row) if update else block
            row += len(block)

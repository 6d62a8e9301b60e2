"""A merge into a quantized base with calibrated codes, and from the base's unquantized original if there is one."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from eckart.errors import MismatchError, OptionError
from eckart.formats.sources import Source, open_model
from eckart.operations.quantization.plan import calibration_of

if TYPE_CHECKING:
    from eckart.checkpoint import Checkpoint
    from eckart.operations.model_writer.plan import ModelPlan, OutputTensor
    from eckart.operations.moments import Moments


def calibrated_merge(plan: ModelPlan, *, moments: Moments | None = None, original: Source | None = None) -> ModelPlan:
    """The plan with another way to quantize what it changes.

    Args:
        plan: a merge.
        moments: second moments that choose the codes; None for the nearest ones.
        original: the model that the base was quantized from: its weights are updated instead of the base's codes.

    Raises:
        OptionError: the merge quantizes nothing.
        MismatchError: the original is another model, or there are moments of none of the changed layers.
    """
    if moments is None and original is None:
        return plan
    if not plan.quantized:
        msg = f"{plan.base.source}: the merge writes no codes that `calibrate` or `original` could improve"
        raise OptionError(msg)
    if original is not None:
        plan = _from_original(plan, open_model(original, role="the original of the base"))
    if moments is None:
        return plan
    views = [tensor.views[0] for tensor in plan.quantized]
    return replace(plan, calibration=calibration_of(plan.base, moments, views))


def _from_original(plan: ModelPlan, original: Checkpoint) -> ModelPlan:
    faults = [fault for tensor in plan.quantized if (fault := _fault(tensor, original))]
    if faults:
        msg = f"{original.source} is not the model that {plan.base.source} was quantized from"
        raise MismatchError.listing(msg, faults)
    tensors = [replace(tensor, original=original) if tensor.scheme else tensor for tensor in plan.tensors]
    return replace(plan, tensors=tensors, compared=(*plan.compared, *original.files))


def _fault(tensor: OutputTensor, original: Checkpoint) -> str | None:
    info = original.tensors.get(tensor.source)
    if info is None:
        return f"{tensor.source}: missing"
    expected = tensor.views[0].tensor_shape
    return None if info.shape == expected else f"{tensor.source}: {info.shape}, in the base {expected}"

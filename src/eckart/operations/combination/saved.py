"""Tensors of a combination that are not factored: saved in full, or added to the model's."""

from math import fsum

import torch
from torch import Tensor

from eckart.adapter.deferred import Deferred
from eckart.adapter.outline import TensorOutline
from eckart.checkpoint.dtypes import promote
from eckart.linalg.finite import require_finite
from eckart.operations.combination.plan import CombinePlan
from eckart.operations.combination.stacking import promoted


def saved_tensors(plan: CombinePlan) -> Deferred[Tensor, TensorOutline]:
    """Tensors saved in full: base + Σ w·(saved − base), read when they are looked up."""

    def read(name: str) -> Tensor:
        terms = plan.savers[name]
        tensors = [plan.adapters[i].modules_to_save[name] for i in terms]
        weights = [plan.weights[i] for i in terms]
        if weights == [1.0] or plan.is_copy_of_base(name):
            return tensors[0]
        total = sum(tensor.double() * weight for tensor, weight in zip(tensors, weights, strict=True))
        if fsum(weights) != 1 and plan.base is not None:
            _, tensor, _ = plan.placed[terms[0], name]
            stored = plan.base.tied.get(tensor, tensor)
            total += (1 - fsum(weights)) * plan.base.read(stored).double()
        saved = torch.as_tensor(total).to(promoted(tensors))
        require_finite(saved, f"{name}, combined with these weights,")
        return saved

    outlines = {}
    for name, terms in plan.savers.items():
        tensors = [plan.outlines[i].modules_to_save[name] for i in terms]
        outlines[name] = TensorOutline(tensors[0].shape, promote(*(tensor.dtype for tensor in tensors)))
    return Deferred(outlines, read)


def added_tensors(plan: CombinePlan) -> Deferred[Tensor, TensorOutline]:
    """Differences that are added to tensors of the model: Σ w·Δ, read when they are looked up."""

    def read(name: str) -> Tensor:
        tensors = [plan.adapters[i].added[name] for i in plan.adders[name]]
        weights = [plan.weights[i] for i in plan.adders[name]]
        if weights == [1.0]:
            return tensors[0]
        total = sum(tensor.double() * weight for tensor, weight in zip(tensors, weights, strict=True))
        return torch.as_tensor(total).to(promoted(tensors))

    outlines = {}
    for name, terms in plan.adders.items():
        tensors = [plan.outlines[i].added[name] for i in terms]
        outlines[name] = TensorOutline(tensors[0].shape, promote(*(tensor.dtype for tensor in tensors)))
    return Deferred(outlines, read)

"""Fused experts in PEFT's files: one pair of factors for all experts of a parameter, separated and stacked again.

PEFT wraps the module of a parameter such as `experts.gate_up_proj`, and wraps the wrapper for a second parameter, so
files name modules: `experts.base_layer.lora_A` is of the parameter registered first, `experts.lora_A` of the last.
Expert e has rows e·r to (e+1)·r of lora_A, and every E-th column of lora_B. Source: PEFT's `ParamWrapper`.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from eckart.adapter.adapter import AdapterLayer, with_tensors
from eckart.adapter.outline import AdapterOutline, LayerOutline, TensorOutline
from eckart.checkpoint.dtypes import promote
from eckart.errors import MismatchError
from eckart.formats.peft_config import BY_EXPERT, PeftConfig
from eckart.formats.table import CONFIG

if TYPE_CHECKING:
    from torch import Tensor

MAX_EXPERTS = 4096
_DOWN = re.compile(r"down|w2|output")  # in the name of the parameter that projects back to the hidden size
_UP_FIRST = {"gate_up_proj", "up_proj"}  # with `down_proj`: transformers' models register these before it


@dataclass(frozen=True)
class Stack:
    """The experts of one parameter in a file.

    Attributes:
        parameter: such as `model.layers.0.mlp.experts.gate_up_proj`.
        count: number of experts.
        outline: outline of each of them.
        by_expert: whether the columns of lora_B are grouped by expert, which is not PEFT's order.
    """

    parameter: str
    count: int
    outline: LayerOutline
    by_expert: bool = False

    def names(self) -> list[str]:
        """A layer's name for each expert; of a parameter that is one matrix, the parameter's."""
        return [self.parameter] if self.count == 1 else [f"{self.parameter}[{expert}]" for expert in range(self.count)]

    def expert(self, index: int, factors: "Mapping[str, Tensor]") -> AdapterLayer:
        """One expert's update, from the stacked lora_A and lora_B."""
        rank, A, B = self.outline.rank, factors["lora_A"], factors["lora_B"]
        if self.by_expert:
            lora_B = B.view(len(B), self.count, rank)[:, index]
        else:
            lora_B = B.view(len(B), rank, self.count)[:, :, index]
        lora_A = A[index * rank : (index + 1) * rank]
        return with_tensors(self.outline, {"lora_A": lora_A, "lora_B": lora_B.contiguous()})

    def stacked(self, experts: Sequence[tuple[int, AdapterLayer]]) -> "tuple[Tensor, Tensor]":
        """The factors of all experts as PEFT stacks them; lower ranks and missing experts are filled with zeros.

        Returns:
            lora_A `(rank·experts, in)` and lora_B `(out, rank·experts)`.
        """
        import torch

        like, device = self.outline, experts[0][1].lora_A.device
        A = torch.zeros(self.count, *like.lora_A.shape, dtype=like.lora_A.dtype.torch, device=device)
        B = torch.zeros(*like.lora_B.shape, self.count, dtype=like.lora_B.dtype.torch, device=device)
        for index, layer in experts:
            lora_B = layer.lora_B
            if layer.scaling != like.scaling:
                lora_B = lora_B.double() * (layer.scaling / like.scaling)
            A[index, : layer.rank] = layer.lora_A
            B[:, : layer.rank, index] = lora_B
        return A.flatten(0, 1), B.flatten(1)


def expert_of(name: str) -> tuple[str, int] | None:
    """Parameter and index of an expert's layer; None for the name of a module."""
    match = re.fullmatch(r"(.+)\[(\d+)\]", name)
    return (match[1], int(match[2])) if match else None


def parameters_of(
    modules: Mapping[str, Mapping[str, TensorOutline]], config: PeftConfig
) -> tuple[dict[str, str], list[str]]:
    """Which modules in a file are wrappers of a parameter.

    Args:
        modules: module in the file -> its tensors by part.
        config: config of the same adapter.

    Returns:
        Module in the file -> parameter, and the faults.
    """
    wrapped: dict[str, list[str]] = {}
    for module in sorted(modules, key=len, reverse=True):
        wrapped.setdefault(re.sub(r"(\.base_layer)+$", "", module), []).append(module)
    parameters, faults = {}, []
    for module, levels in wrapped.items():
        try:
            leaves = config.target_parameters_of(module)
            if leaves and not config.targets(module):
                named = zip(levels, _in_order(leaves, [modules[level] for level in levels]), strict=True)
                parameters |= {level: f"{module}.{leaf}" for level, leaf in named}
        except ValueError as fault:
            faults.append(f"{module}: {fault}")
    return parameters, faults


def stack_of(parameter: str, tensors: Mapping[str, TensorOutline], config: PeftConfig) -> Stack:
    """The experts of a parameter, from the shapes of its tensors; ValueError says what does not fit."""
    if set(tensors) != {"lora_A", "lora_B"}:
        msg = f"an adapter of a parameter has lora_A and lora_B, got {', '.join(tensors)}"
        raise ValueError(msg)
    A, B = tensors["lora_A"], tensors["lora_B"]
    rank = config.rank_of(parameter)
    if A.ndim != 2 or B.ndim != 2 or len(A) != B.shape[1] or len(A) % rank or 0 in (*A.shape, *B.shape):
        msg = f"rank is {rank} by {CONFIG}, lora_A is {A.shape} and lora_B {B.shape}"
        raise ValueError(msg)
    count = len(A) // rank
    if count > MAX_EXPERTS:
        msg = f"only parameters of up to {MAX_EXPERTS} experts are supported, this one has {count}"
        raise ValueError(msg)
    alpha = config.alpha_of(parameter)
    lora_A, lora_B = TensorOutline((rank, A.shape[1]), A.dtype), TensorOutline((len(B), rank), B.dtype)
    outline = LayerOutline(lora_A, lora_B, alpha, config.use_rslora, kind="expert")
    return Stack(parameter, count, outline, by_expert=BY_EXPERT in config.expert_layouts)


def stacks_of(outline: AdapterOutline) -> tuple[AdapterOutline, dict[str, Stack]]:
    """The outline with the experts of each parameter as one layer, as its config needs them; and their stacks.

    Raises:
        MismatchError: experts that PEFT's files cannot express.
    """
    groups: dict[str, dict[int, LayerOutline]] = {}
    plain: dict[str, LayerOutline] = {}
    for name, layer in outline.items():
        if layer.kind == "expert":
            parameter, index = expert_of(name) or (name, 0)
            groups.setdefault(parameter, {})[index] = layer
        else:
            plain[name] = layer
    faults: list[str] = []
    counts: dict[str, int] = {}
    for parameter, experts in groups.items():
        module = parameter.rpartition(".")[0]
        # An unchanged expert may be missing: the last one perhaps in one parameter, hardly in both.
        counts[module] = max(counts.get(module, 0), max(experts) + 1)
    stacks = {}
    for parameter, experts in groups.items():
        faults += [f"{parameter}: {fault}" for fault in _stack_faults(experts.values())]
        stacks[parameter] = Stack(parameter, counts[parameter.rpartition(".")[0]], _common(experts.values()))
    if faults:
        msg = "PEFT cannot store these experts"
        raise MismatchError.listing(msg, faults)
    return replace(outline, layers=plain | {name: stack.outline for name, stack in stacks.items()}), stacks


def wrapper_names(parameters: Iterable[str]) -> dict[str, str]:
    """The module under which PEFT's files store each parameter.

    Raises:
        MismatchError: the order of a module's parameters in the model does not follow from their names.
    """
    modules: dict[str, list[str]] = {}
    for parameter in parameters:
        modules.setdefault(parameter.rpartition(".")[0], []).append(parameter)
    names = {}
    for module, names_in_module in modules.items():
        if len(names_in_module) == 1:
            names[names_in_module[0]] = module
            continue
        ordered = sorted(names_in_module, key=_projects_down)
        if len(names_in_module) > 2 or [_projects_down(parameter) for parameter in ordered] != [False, True]:
            listed = ", ".join(names_in_module)
            msg = f"PEFT nests the parameters of {module} in the model's order, which {listed} do not show"
            raise MismatchError(msg)
        names |= {ordered[0]: f"{module}.base_layer", ordered[1]: module}
    return names


def _in_order(leaves: list[str], levels: list[Mapping[str, TensorOutline]]) -> list[str]:
    """The parameter of each wrapper, the innermost first; ValueError if it is ambiguous."""
    if len(leaves) != len(levels) or len(leaves) > 2:
        msg = f"the file has {len(levels)} parameters, the config targets {', '.join(leaves)}: which is which?"
        raise ValueError(msg)
    if len(leaves) == 1:
        return leaves
    if not all(part in level and level[part].ndim == 2 for level in levels for part in ("lora_A", "lora_B")):
        msg = "not every parameter has the matrices lora_A and lora_B"
        raise ValueError(msg)
    inner, outer = ((level["lora_A"].shape[1], len(level["lora_B"])) for level in levels)
    up, down = sorted(leaves, key=_projects_down)
    if _widens(inner, outer) and up in _UP_FIRST and down == "down_proj":
        return [up, down]
    if _widens(inner, outer) == _widens(outer, inner) or _projects_down(up) or not _projects_down(down):
        msg = f"shapes and names do not distinguish {up} from {down}: (in, out) is {inner} inside and {outer} outside"
        raise ValueError(msg)
    return [up, down] if _widens(inner, outer) else [down, up]


def _projects_down(parameter: str) -> bool:
    return bool(_DOWN.search(parameter.rpartition(".")[2]))


def _widens(up: tuple[int, int], down: tuple[int, int]) -> bool:
    """Whether (in, out) of two parameters are those of the up and down projection of a gated MLP, or both transposed.

    PEFT reads experts that a model stores as (in, out) as (out, in) unless the model marks them (Llama 4 does not).
    """
    (first, wide), (narrow, last) = up, down
    return (first == last and wide in (narrow, 2 * narrow)) or (wide == narrow and first in (last, 2 * last))


def _stack_faults(experts: Iterable[LayerOutline]) -> list[str]:
    layers = list(experts)
    shapes = {layer.update_shape for layer in layers}
    zero = [layer.scaling == 0 for layer in layers]
    rules = (
        (len(shapes) > 1, "experts of different shapes"),
        (any(layer.bias is not None or layer.magnitude is not None for layer in layers), "no bias or DoRA for experts"),
        (any(zero) and not all(zero), "some scales are zero, others are not"),
    )
    return [fault for applies, fault in rules if applies]


def _common(experts: Iterable[LayerOutline]) -> LayerOutline:
    """The expert of the highest rank, in a data type that represents the values of all."""
    layers = list(experts)
    highest = max(layers, key=lambda layer: layer.rank)
    dtype = promote(*(tensor.dtype for layer in layers for tensor in (layer.lora_A, layer.lora_B)))
    lora_A, lora_B = (TensorOutline(factor.shape, dtype) for factor in (highest.lora_A, highest.lora_B))
    return replace(highest, lora_A=lora_A, lora_B=lora_B)

"""Fused experts in PEFT's files: one pair of factors for all experts of a parameter, told apart and stacked again.

PEFT wraps the module of a parameter such as `experts.gate_up_proj`, and wraps the wrapper for a second parameter, so
files name modules: `experts.base_layer.lora_A` is of the parameter registered first, `experts.lora_A` of the last.
Expert e has rows e·r to (e+1)·r of lora_A, and every E-th column of lora_B. Source: PEFT's `ParamWrapper`.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce

import torch
from torch import Tensor

from eckart.adapter.adapter import Adapter, AdapterLayer
from eckart.errors import MismatchError
from eckart.formats.peft_config import CONFIG, PeftConfig, is_module_target
from eckart.formats.peft_patterns import first_match

_MAX_EXPERTS = 4096
_DOWN = re.compile(r"down|w2|output")  # what the parameter that leads back to the hidden size is called


@dataclass(frozen=True)
class Stack:
    """The experts of one parameter in a file.

    Attributes:
        parameter: such as `model.layers.0.mlp.experts.gate_up_proj`.
        count: experts.
        outline: each of them, in meta tensors.
    """

    parameter: str
    count: int
    outline: AdapterLayer

    def names(self) -> list[str]:
        """A layer's name for each expert."""
        return [f"{self.parameter}[{expert}]" for expert in range(self.count)]

    def expert(self, index: int, factors: Mapping[str, Tensor]) -> AdapterLayer:
        """One expert's update, of the stacked lora_A and lora_B."""
        rank, A, B = self.outline.rank, factors["lora_A"], factors["lora_B"]
        lora_B = B.view(len(B), rank, self.count)[:, :, index]
        return replace(self.outline, lora_A=A[index * rank : (index + 1) * rank], lora_B=lora_B.contiguous())

    def stacked(self, experts: Sequence[tuple[int, AdapterLayer]]) -> tuple[Tensor, Tensor]:
        """The factors of all experts as PEFT stacks them; lower ranks and experts left out are zeros.

        Returns:
            lora_A `(rank·experts, in)` and lora_B `(out, rank·experts)`.
        """
        like, device = self.outline, experts[0][1].lora_A.device
        A = torch.zeros(self.count, *like.lora_A.shape, dtype=like.lora_A.dtype, device=device)
        B = torch.zeros(*like.lora_B.shape, self.count, dtype=like.lora_B.dtype, device=device)
        for index, layer in experts:
            lora_B = layer.lora_B
            if layer.scaling != like.scaling:
                lora_B = lora_B.double() * (layer.scaling / like.scaling)
            A[index, : layer.rank] = layer.lora_A
            B[:, : layer.rank, index] = lora_B
        return A.flatten(0, 1), B.flatten(1)


def expert_of(name: str) -> tuple[str, int] | None:
    """Parameter and index of an expert's layer, None for the name of a module."""
    match = re.fullmatch(r"(.+)\[(\d+)\]", name)
    return (match[1], int(match[2])) if match else None


def parameters_of(modules: Mapping[str, Mapping[str, Tensor]], config: PeftConfig) -> tuple[dict[str, str], list[str]]:
    """Which modules in a file are wrappers of a parameter.

    Args:
        modules: module in the file -> its tensors by part; shapes do.
        config: of the same adapter.

    Returns:
        Module in the file -> parameter, and what cannot be told.
    """
    wrapped: dict[str, list[str]] = {}
    for module in sorted(modules, key=len, reverse=True):
        wrapped.setdefault(re.sub(r"(\.base_layer)+$", "", module), []).append(module)
    found, faults = {}, []
    for own, levels in wrapped.items():
        try:
            leaves = _targets(own, config)
            if leaves and not is_module_target(own, config):
                named = zip(levels, _in_order(leaves, [modules[level] for level in levels]), strict=True)
                found |= {level: f"{own}.{leaf}" for level, leaf in named}
        except ValueError as fault:
            faults.append(f"{own}: {fault}")
    return found, faults


def stack_of(parameter: str, tensors: Mapping[str, Tensor], config: PeftConfig) -> Stack:
    """The experts of a parameter, seen from the shapes of its tensors; ValueError says what does not fit."""
    if set(tensors) != {"lora_A", "lora_B"}:
        msg = f"a parameter's adapter is lora_A and lora_B, got {', '.join(tensors)}"
        raise ValueError(msg)
    A, B = tensors["lora_A"], tensors["lora_B"]
    rank = first_match(config.rank_pattern, parameter, config.r)
    if A.ndim != 2 or B.ndim != 2 or len(A) != B.shape[1] or len(A) % rank or 0 in (*A.shape, *B.shape):
        msg = f"rank is {rank} by {CONFIG}, lora_A is {tuple(A.shape)} and lora_B {tuple(B.shape)}"
        raise ValueError(msg)
    count = len(A) // rank
    if not 1 < count <= _MAX_EXPERTS:
        msg = f"only parameters of 2 to {_MAX_EXPERTS} experts are read, this is of {count}"
        raise ValueError(msg)
    alpha = float(first_match(config.alpha_pattern, parameter, config.lora_alpha))
    outline = AdapterLayer(
        A.new_empty((rank, A.shape[1])), B.new_empty((len(B), rank)), alpha, config.use_rslora, kind="expert"
    )
    return Stack(parameter, count, outline)


def stacks_of(outline: Adapter) -> tuple[Adapter, dict[str, Stack]]:
    """An adapter whose experts are one layer a parameter, for its config; and how each is stacked.

    Raises:
        MismatchError: experts that PEFT's files cannot express.
    """
    groups: dict[str, dict[int, AdapterLayer]] = {}
    plain: dict[str, AdapterLayer] = {}
    for name, layer in outline.items():
        place = expert_of(name) if layer.kind == "expert" else None
        if place:
            groups.setdefault(place[0], {})[place[1]] = layer
        else:
            plain[name] = layer
    faults = [f"{name}: an expert without a number" for name, layer in plain.items() if layer.kind == "expert"]
    counts: dict[str, int] = {}
    for parameter, experts in groups.items():
        module = parameter.rpartition(".")[0]
        # An expert that nothing changed may be left out; the last one may be so in one parameter, hardly in both.
        counts[module] = max(counts.get(module, 0), max(experts) + 1)
    stacks = {}
    for parameter, experts in groups.items():
        faults += [f"{parameter}: {fault}" for fault in _stack_faults(experts.values())]
        stacks[parameter] = Stack(parameter, counts[parameter.rpartition(".")[0]], _common(experts.values()))
    if faults:
        msg = "PEFT cannot hold these experts"
        raise MismatchError.listing(msg, faults)
    return replace(outline, layers=plain | {name: stack.outline for name, stack in stacks.items()}), stacks


def wrapper_names(parameters: Iterable[str]) -> dict[str, str]:
    """The module under which PEFT's files hold each parameter.

    Raises:
        MismatchError: a module's parameters whose order in the model their names do not tell.
    """
    modules: dict[str, list[str]] = {}
    for parameter in parameters:
        modules.setdefault(parameter.rpartition(".")[0], []).append(parameter)
    names = {}
    for module, own in modules.items():
        if len(own) == 1:
            names[own[0]] = module
            continue
        ordered = sorted(own, key=_leads_back)
        if len(own) > 2 or [_leads_back(parameter) for parameter in ordered] != [False, True]:
            msg = f"PEFT nests the parameters of {module} in the model's order, which {', '.join(own)} do not tell"
            raise MismatchError(msg)
        names |= {ordered[0]: f"{module}.base_layer", ordered[1]: module}
    return names


def _targets(module: str, config: PeftConfig) -> list[str]:
    """Names of the module's parameters that the config targets, if it has them."""
    found = (target.rpartition(".") for target in config.target_parameters or ())
    return sorted({leaf for owner, _, leaf in found if not owner or f".{module}".endswith(f".{owner}")})


def _in_order(leaves: list[str], levels: list[Mapping[str, Tensor]]) -> list[str]:
    """The parameter of each wrapper, the innermost first; ValueError if it cannot be told."""
    if len(leaves) != len(levels) or len(leaves) > 2:
        msg = f"its files hold {len(levels)} parameters, the config targets {', '.join(leaves)}: which is which?"
        raise ValueError(msg)
    if len(leaves) == 1:
        return leaves
    if not all(part in level and level[part].ndim == 2 for level in levels for part in ("lora_A", "lora_B")):
        msg = "matrices lora_A and lora_B are not there for each parameter"
        raise ValueError(msg)
    inner, outer = ((level["lora_A"].shape[1], len(level["lora_B"])) for level in levels)
    up, down = sorted(leaves, key=_leads_back)
    if _widens(inner, outer) == _widens(outer, inner) or _leads_back(up) or not _leads_back(down):
        msg = f"shapes and names do not tell {up} from {down}: (in, out) is {inner} inside and {outer} outside"
        raise ValueError(msg)
    return [up, down] if _widens(inner, outer) else [down, up]


def _leads_back(parameter: str) -> bool:
    return bool(_DOWN.search(parameter.rpartition(".")[2]))


def _widens(up: tuple[int, int], down: tuple[int, int]) -> bool:
    """Whether (in, out) of two parameters are those of the way into a gated unit and back, or both transposed.

    PEFT takes experts that a model stores as (in, out) for (out, in) unless the model marks them (Llama 4 does not).
    """
    (first, wide), (narrow, last) = up, down
    return (first == last and wide in (narrow, 2 * narrow)) or (wide == narrow and first in (last, 2 * last))


def _stack_faults(experts: Iterable[AdapterLayer]) -> list[str]:
    layers = list(experts)
    shapes = {(tuple(layer.lora_A.shape[1:]), len(layer.lora_B)) for layer in layers}
    zero = [layer.scaling == 0 for layer in layers]
    rules = (
        (len(shapes) > 1, "experts of different shapes"),
        (any(layer.bias is not None or layer.magnitude is not None for layer in layers), "no bias or DoRA for experts"),
        (any(zero) and not all(zero), "a scale of zero beside others"),
    )
    return [fault for applies, fault in rules if applies]


def _common(experts: Iterable[AdapterLayer]) -> AdapterLayer:
    """The expert of the highest rank, in a dtype that holds them all."""
    layers = list(experts)
    highest = max(layers, key=lambda layer: layer.rank)
    dtypes = [tensor.dtype for layer in layers for tensor in (layer.lora_A, layer.lora_B)]
    dtype = reduce(torch.promote_types, dtypes)
    return replace(highest, lora_A=highest.lora_A.to(dtype), lora_B=highest.lora_B.to(dtype))

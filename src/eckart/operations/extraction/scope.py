"""Which tensors of a fine-tune go into an adapter, and how: as factors, whole, or not at all."""

from collections.abc import Sequence
from dataclasses import dataclass

from eckart.checkpoint import (
    Checkpoint,
    MatrixView,
    compare_layouts,
    layout,
    select,
)
from eckart.checkpoint.naming import matches
from eckart.errors import MismatchError
from eckart.result import Skipped

_WITHOUT_LORA = {
    "expert": "expert tensors are analysed, not extracted",
    "parameter": "a bare parameter: PEFT adapts modules",
}
NORM, BIAS = "norm", "bias"


@dataclass(frozen=True)
class Scope:
    """What a user wants in the adapter.

    Attributes:
        target: patterns of the matrices to factor, by PEFT's rules; presets allowed.
        exclude: patterns of matrices to leave alone; wins.
        modules_to_save: patterns of modules whose changed tensors are kept whole; `norm` is every normalisation,
            and `bias` keeps the changed biases of factored modules beside their factors.
    """

    target: Sequence[str] = ("all-linear",)
    exclude: Sequence[str] = ()
    modules_to_save: Sequence[str] = ()


@dataclass(frozen=True)
class Plan:
    """Every tensor of a fine-tune in exactly one place.

    Attributes:
        matrices: to factor.
        whole: tensors to keep whole if they changed.
        biases: biases of factored modules to keep as differences if they changed.
        rest: everything else, each with the reason that would leave it out if it changed.
    """

    matrices: list[MatrixView]
    whole: list[str]
    biases: list[str]
    rest: list[Skipped]


def plan(base: Checkpoint, tuned: Checkpoint, scope: Scope) -> Plan:
    """Place every tensor, from headers alone.

    Raises:
        MismatchError: the checkpoints do not belong together, or a pattern matches nothing; all faults at once.
    """
    faults = compare_layouts(base, tuned, scope.exclude)
    if faults:
        msg = f"{tuned.source} is not a fine-tune of {base.source}"
        raise MismatchError.listing(msg, faults)
    found = layout(tuned)
    known = [name.removesuffix(".weight") for name in base.tensors]
    chosen = {
        view.name: view
        for view in select(found, scope.target, scope.exclude, known=known)
        if view.kind not in _WITHOUT_LORA and not _wanted_whole(view.module, "", scope)
    }
    if not chosen:
        msg = f"nothing that {', '.join(scope.target)} takes can be factored into a PEFT adapter; see eckart analyze"
        raise MismatchError(msg)
    factored = {view.module for view in chosen.values()}
    result = Plan(list(chosen.values()), [], [], [])
    for view in found.matrices:
        if view.name not in chosen:
            reason = _WITHOUT_LORA.get(view.kind, "not targeted: --target takes it")
            _place(view.tensor, view.module, reason, scope, result)
    for item in found.skipped:
        module, _, leaf = item.name.rpartition(".")
        if leaf == "bias" and module in factored:
            kept = BIAS in scope.modules_to_save
            if kept:
                result.biases.append(item.name)
            else:
                result.rest.append(Skipped(item.name, "bias: --modules-to-save bias keeps it"))
        else:
            _place(item.name, module, item.reason, scope, result)
    _check_saved(scope, result)
    return result


def _place(tensor: str, module: str, reason: str, scope: Scope, result: Plan) -> None:
    if _wanted_whole(module, reason, scope):
        result.whole.append(tensor)
    else:
        hint = f"{reason}: --modules-to-save {NORM} keeps it" if _is_norm(module, reason) else reason
        result.rest.append(Skipped(tensor, hint))


def _wanted_whole(module: str, reason: str, scope: Scope) -> bool:
    if any(matches(pattern, module) for pattern in scope.exclude):
        return False
    named = any(pattern not in (NORM, BIAS) and matches(pattern, module) for pattern in scope.modules_to_save)
    return named or (NORM in scope.modules_to_save and _is_norm(module, reason))


def _is_norm(module: str, reason: str) -> bool:
    """Whether a left-out tensor belongs to a normalisation; its bias is told by the module's name."""
    return reason == "norm" or (reason == "bias" and ("norm" in module.lower() or "ln_" in module))


def _check_saved(scope: Scope, result: Plan) -> None:
    saved = [name.rpartition(".")[0] for name in result.whole]
    faults = [
        f"--modules-to-save {pattern} matches nothing"
        for pattern in scope.modules_to_save
        if (pattern == BIAS and not result.biases)
        or (pattern == NORM and not saved)
        or (pattern not in (NORM, BIAS) and not any(matches(pattern, module) for module in saved))
    ]
    if faults:
        msg = "modules to save that are not there"
        raise MismatchError.listing(msg, faults)

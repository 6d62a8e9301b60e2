"""Which tensors of a fine-tune go into an adapter: as factors, in full, or not at all."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from eckart.checkpoint import Checkpoint, MatrixView, compare_layouts, layout, select
from eckart.checkpoint.module_tree import TreeNaming, tree_naming
from eckart.checkpoint.naming import matches
from eckart.errors import MismatchError
from eckart.formats.model_names import Model
from eckart.operations.extraction.parameters import as_parameter, routers
from eckart.operations.extraction.vocabulary import resized_tokens, with_vocabulary_of
from eckart.result import Skipped

if TYPE_CHECKING:
    from eckart.operations.extraction.image_names import Written

NORM, BIAS, NOT_TARGETED = "norm", "bias", "not targeted"


@dataclass(frozen=True)
class Scope:
    """The patterns that select tensors.

    Attributes:
        target: patterns of matrices to factor, by PEFT's rules; presets allowed.
        exclude: patterns of matrices to skip; takes precedence over `target`.
        modules_to_save: patterns of modules whose changed tensors are saved in full; `norm` is every normalization
            layer, and `bias` saves the changed biases of factored modules with their factors.
    """

    target: Sequence[str]
    exclude: Sequence[str]
    modules_to_save: Sequence[str]

    def is_saved(self, module: str, reason: str) -> bool:
        """Whether the changed tensors of a module that is not factored are saved in full."""
        if self.is_excluded(module):
            return False
        named = any(pattern not in (NORM, BIAS) and matches(pattern, module) for pattern in self.modules_to_save)
        return named or (NORM in self.modules_to_save and _is_norm(module, reason))

    def is_excluded(self, module: str) -> bool:
        """Whether a module is skipped."""
        return any(matches(pattern, module) for pattern in self.exclude)


@dataclass(frozen=True)
class Parts:
    """Every tensor of a fine-tune in exactly one list.

    Attributes:
        naming: how names in the files become those of the module tree.
        matrices: to factor.
        saved: tensors to save in full if they changed.
        new_tokens: embeddings and output layers of which only the rows of these tokens are saved.
        biases: biases of factored modules, saved as differences if they changed.
        skipped: all others, each with the reason.
    """

    naming: TreeNaming
    matrices: list[MatrixView]
    saved: list[str] = field(default_factory=list)
    new_tokens: dict[str, range] = field(default_factory=dict)
    biases: list[str] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)


def split_tensors(base: Checkpoint, tuned: Checkpoint, scope: Scope, written: "Written | None" = None) -> Parts:
    """Assign every tensor to a list, from headers alone.

    Raises:
        MismatchError: the checkpoints do not belong together, or a pattern matches nothing; all faults at once.
    """
    _check_kind(base, tuned)
    resized, tuned = resized_tokens(base, tuned), with_vocabulary_of(base, tuned)
    faults = compare_layouts(
        base, tuned, scope.exclude, saved=[p for p in scope.modules_to_save if p not in (NORM, BIAS)]
    )
    if faults:
        msg = f"{tuned.source} is not a fine-tune of {base.source}"
        raise MismatchError.listing(msg, faults)
    found = layout(tuned)
    if written is not None:
        found = written.layout(found, Model.of(tuned))
    base_modules = [name.removesuffix(".weight") for name in base.tensors]
    larger = {name: tokens for name, tokens in resized.items() if tokens.start == base.tensors[name].shape[0]}
    naming = tree_naming(tuned)
    of_router = routers(found.matrices, naming)
    selected = select(found, scope.target, scope.exclude, known=base_modules, with_experts=True)
    chosen = {
        view.name: view
        for view in selected
        if not _without_lora(view, naming) and not scope.is_saved(view.module, "") and view.tensor not in larger
    }
    if not chosen:
        msg = f"none of the tensors that {', '.join(scope.target)} matches can be factored into a PEFT adapter"
        raise MismatchError(msg)
    matrices = [
        as_parameter(view, naming) if view.kind == "expert" or view.module in of_router else _renamed(view, naming)
        for view in chosen.values()
    ]
    parts = Parts(naming, matrices)
    # PEFT cannot both update an embedding and replace rows of it: with new tokens, a selected one is saved in full.
    parts.saved.extend(view.tensor for view in selected if view.tensor in larger)
    for view in found.matrices:
        if view.name not in chosen and view.tensor not in parts.saved:
            reason = _without_lora(view, naming) or NOT_TARGETED
            _assign(view.tensor, view.module, reason, scope, parts)
            if view.tensor in larger and view.tensor not in parts.saved and not scope.is_excluded(view.module):
                parts.new_tokens[view.tensor] = larger[view.tensor]
    factored = {view.module for view in chosen.values()} - of_router
    for item in found.skipped:
        module, _, leaf = item.name.rpartition(".")
        if leaf != "bias" or module not in factored:
            _assign(item.name, module, item.reason, scope, parts)
        elif BIAS in scope.modules_to_save:
            parts.biases.append(item.name)
        else:
            parts.skipped.append(Skipped(item.name, BIAS))
    _check_saved(scope, parts, tuned.tied)
    return parts


def _without_lora(view: MatrixView, naming: TreeNaming) -> str | None:
    """Why PEFT has no LoRA for a matrix; None if it has."""
    if parts := naming.split.get(view.tensor):
        return f"transformers divides it into {', '.join(parts)}, so PEFT finds no module of this name"
    if view.kind == "parameter":
        return "bare parameter, not a module"
    rows, columns = view.stored_shape
    if view.kind == "expert" and view.swaps_factors is None and rows == columns:
        return "square experts: nothing shows whether they are stored (out, in) or (in, out)"
    return None


def _renamed(view: MatrixView, naming: TreeNaming) -> MatrixView:
    """A matrix under the name of its module in transformers, where PEFT looks for it."""
    return replace(view, name=naming(view.name), tied_modules=tuple(map(naming, view.tied_modules)))


def _check_kind(base: Checkpoint, tuned: Checkpoint) -> None:
    for checkpoint, expected in ((base, "model"), (tuned, "fine-tuned model")):
        if any(".lora_" in name for name in checkpoint.tensors):
            msg = f"{checkpoint.source} is an adapter, not a {expected}; use merge, analyze or resize for adapters"
            raise MismatchError(msg)


def _assign(tensor: str, module: str, reason: str, scope: Scope, parts: Parts) -> None:
    if scope.is_saved(module, reason):
        parts.saved.append(tensor)
    else:
        parts.skipped.append(Skipped(tensor, NORM if _is_norm(module, reason) else reason))


def _is_norm(module: str, reason: str) -> bool:
    """Whether a tensor belongs to a normalization layer; for its bias, the module's name shows it."""
    return reason == NORM or (reason == BIAS and ("norm" in module.lower() or "ln_" in module))


def _check_saved(scope: Scope, parts: Parts, tied: Mapping[str, str]) -> None:
    names = [*parts.saved, *(name for name, stored in tied.items() if stored in parts.saved)]
    saved = [name.rpartition(".")[0] for name in names]
    faults = [
        f"{pattern!r} matches nothing"
        for pattern in scope.modules_to_save
        if (pattern == BIAS and not parts.biases)
        or (pattern == NORM and not saved)
        or (pattern not in (NORM, BIAS) and not any(matches(pattern, module) for module in saved))
    ]
    if faults:
        msg = "`modules_to_save` has patterns that match nothing"
        raise MismatchError.listing(msg, faults)

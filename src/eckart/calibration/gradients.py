"""Second moments of the gradients of the loss at the outputs of a model's linear layers, block by block from the last.

The loss is that of tokens drawn from the model's own predictions: the gradients' second moment is then the Fisher
information, which says how much the predictions change if an output does. Kunstner, Balles & Hennig (2019).
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from eckart.engine import Execution, Journal, Record
from eckart.evaluation.streamed import StreamedModel
from eckart.linalg.finite import require_finite
from eckart.linalg.symmetric import self_product
from eckart.operations.moments import gradient_name

TOKENS = 4096  # of all kinds of text together
_GRADIENTS = "gradients"


def sampled_rows(ids: Tensor) -> Tensor:
    """Indices of the sequences whose gradients are collected, spread evenly over all; ids `(sequences, length)`."""
    count = min(len(ids), max(1, TOKENS // ids.shape[1]))
    return torch.linspace(0, len(ids) - 1, count).round().long()


def states_name(index: int) -> str:
    """The record of the inputs of a block, or of the outputs of the last one."""
    return f"inputs of block {index}"


def gradients_name(index: int) -> str:
    """The record of the moments of a block's gradients."""
    return f"gradients of block {index}"


def collect_gradients(
    model: StreamedModel, names: Mapping[int, str], ids: Tensor, journal: Journal, execution: Execution
) -> None:
    """Store the moments of every block; an interrupted run resumes.

    Args:
        model: the model.
        names: name of each linear module, by its identity.
        ids: token ids, shape `(sequences, length)`.
        journal: contains the inputs of all blocks for these sequences, by `states_name`.
        execution: progress, seed.
    """
    stored, count, progress = journal.load(_GRADIENTS), len(model.blocks), execution.progress
    left = stored.facts["blocks"] if stored else count
    if not all(journal.contains(gradients_name(index)) for index in range(left, count)):
        stored, left = None, count
    if not left:
        return
    progress.start("Collecting gradients", left, "steps")
    try:
        if stored is None:
            gradients = _at_the_head(model, ids, _inputs(journal, count), execution.generator(_GRADIENTS))
        else:
            gradients = stored.tensors["gradients"]
        for index in reversed(range(left)):
            sums = _Sums(names)
            gradients = model.run_backward(index, ids, _inputs(journal, index), gradients, visit=sums.visit)
            journal.save(gradients_name(index), Record({}, sums.tensors()))
            journal.save(_GRADIENTS, Record({"blocks": index}, {"gradients": gradients.cpu()}))
            progress.update(1, f"block {index + 1} of {count}")
    finally:
        progress.finish()


def _inputs(journal: Journal, index: int) -> Tensor:
    record = journal.load(states_name(index))
    assert record is not None
    return record.tensors["states"]


def _at_the_head(model: StreamedModel, ids: Tensor, states: Tensor, generator: torch.Generator) -> Tensor:
    """Gradients of the loss of sampled tokens, summed over the tokens, at the outputs of the last block."""
    rows = []
    for sequence, row in zip(ids.to(model.device), states.to(model.device), strict=True):
        leaf = row[None].clone().requires_grad_()
        with torch.enable_grad(), model.replaying(leaf) as head:
            logits = head(input_ids=sequence[None], use_cache=False).logits[0].float()
            drawn = torch.multinomial(logits.detach().softmax(-1).cpu(), 1, generator=generator)[:, 0]
            loss = nn.functional.cross_entropy(logits, drawn.to(logits.device), reduction="sum")
            rows += torch.autograd.grad(loss, leaf)
    return torch.cat(rows)


class _Sums:
    """Σ g gᵀ of every linear module of a block."""

    def __init__(self, names: Mapping[int, str]) -> None:
        self._names = names
        self._sums: dict[str, Tensor] = {}

    @contextmanager
    def visit(self, _index: int, block: nn.Module) -> Iterator[None]:
        """A context in which the gradients of the block's modules are added."""
        hooks = [module.register_forward_hook(self._watch) for module in block.modules() if id(module) in self._names]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _watch(self, module: nn.Module, _arguments: object, output: Tensor) -> None:
        name, side = self._names[id(module)], output.shape[-1]
        if name not in self._sums:
            self._sums[name] = torch.zeros(side, side, dtype=torch.float64, device=output.device)
        if output.requires_grad:
            output.register_hook(lambda gradient: self._add(name, gradient))

    def _add(self, name: str, gradient: Tensor) -> None:
        self._sums[name] += self_product(gradient.reshape(-1, gradient.shape[-1]))

    def tensors(self) -> dict[str, Tensor]:
        """The sums in float32, by the names of their tensors."""
        found = {gradient_name(name): total.to(torch.float32).cpu() for name, total in self._sums.items()}
        for name, moment in found.items():
            require_finite(moment, f"the second moment {name}")
        return found

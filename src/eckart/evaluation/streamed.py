"""A language model that computes block by block: the weights of one decoder block are in memory at a time.

transformers' own code runs, for all sequences at once; a block reads its weights from the checkpoint when it is called,
processes one sequence after the other, and drops them.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from eckart.checkpoint.checkpoint import Checkpoint
from eckart.errors import NotFiniteError, SourceError
from eckart.evaluation.loss import LossResult, summed_loss
from eckart.evaluation.outlined import OutlinedModel, drop

Visit = Callable[[int, nn.Module], AbstractContextManager[None]]
_NO_VISIT: Visit = lambda *_: nullcontext()  # noqa: E731


class _LeaveError(Exception):
    """Leaves the model's forward pass after the last block to compute."""


class StreamedModel:
    """A causal language model whose blocks read their weights when they are called.

    Attributes:
        model: transformers' model; outside its blocks the weights are loaded, in float32.
        blocks: the decoder blocks, by their path in the model.
        row: index of the sequence that a block is processing.
        stored: the checkpoint's name of each tensor of the model, by its path there.
        states: input of the block that computes, then its output, shape `(sequences, length, hidden_size)`.

    Raises:
        SourceError: transformers has no language model for the config, or the checkpoint lacks some of its weights.
        MissingExtraError: transformers is not installed.
    """

    def __init__(self, checkpoint: Checkpoint, *, device: torch.device | str = "cpu") -> None:
        self.device, self.row = torch.device(device), 0
        self._weights = OutlinedModel(checkpoint, device=device)
        self.model, self.stored = self._weights.model, self._weights.stored
        path, self.blocks = _blocks(self.model, checkpoint.source)
        self._weights.load(self.model, skip=f"{path}.")
        self._visit, self._begin, self.states = _NO_VISIT, 0, torch.empty(0)
        self._end = len(self.blocks)
        self._replayed: Tensor | None = None
        self._gradients: Tensor | None = None
        for index, block in enumerate(self.blocks.values()):
            block.forward = self._streamed(index, block.forward)

    @torch.no_grad()
    def run(self, ids: Tensor, *, visit: Visit = _NO_VISIT, begin: int = 0, states: Tensor | None = None) -> Tensor:
        """The hidden states after the last block.

        Args:
            ids: token ids, shape `(sequences, length)`.
            visit: from the index of a block and the block, a context that is active while it computes.
            begin: index of the first block to compute.
            states: if `begin` is not 0, its input.

        Returns:
            shape `(sequences, length, hidden_size)`.
        """
        self._visit, self._begin, self._end = visit, begin, len(self.blocks)
        if states is not None:
            self.states = states.to(self.device)
        return self._run_blocks(ids)

    @torch.no_grad()
    def run_backward(
        self, index: int, ids: Tensor, states: Tensor, gradients: Tensor, *, visit: Visit = _NO_VISIT
    ) -> Tensor:
        """The gradients at the inputs of a block, which computes its outputs again.

        Args:
            index: of the block.
            ids: token ids, shape `(sequences, length)`.
            states: inputs of the block, shape `(sequences, length, hidden_size)`.
            gradients: at its outputs, of the same shape.
            visit: see `run`; within it, hooks on the outputs of modules receive gradients.
        """
        self._visit, self._begin, self._end = visit, index, index + 1
        self.states, self._gradients = states.to(self.device), gradients.to(self.device)
        try:
            return self._run_blocks(ids)
        finally:
            self._gradients = None

    def _run_blocks(self, ids: Tensor) -> Tensor:
        try:
            self._body()(input_ids=ids.to(self.device), use_cache=False)
        except _LeaveError:
            return self.states
        msg = f"{type(self.model).__name__} does not call its last block"
        raise SourceError(msg)

    @torch.no_grad()
    def loss(self, ids: Tensor) -> LossResult:
        """The mean loss over all predicted tokens.

        Args:
            ids: token ids, shape `(sequences, length)`.

        Raises:
            NotFiniteError: the model returns NaN or Inf.
        """
        states, total = self.run(ids), 0.0
        for row, sequence in enumerate(ids.to(self.device)):
            with self.replaying(states[row : row + 1]):
                total += summed_loss(self.model, sequence)
        tokens = ids[:, 1:].numel()
        if not total < float("inf"):
            msg = f"the model returned NaN or Inf: its loss is {total} after {tokens} tokens"
            raise NotFiniteError(msg)
        return LossResult(total / tokens, tokens)

    @contextmanager
    def replaying(self, states: Tensor) -> Iterator[nn.Module]:
        """The model, whose blocks compute nothing: the last one returns these states, as `run` returned them."""
        self._replayed = states
        try:
            yield self.model
        finally:
            self._replayed = None

    def _body(self) -> nn.Module:
        """The model without its head."""
        return cast("nn.Module", getattr(self.model, self.model.base_model_prefix, self.model))

    def _streamed(self, index: int, forward: Callable[..., Any]) -> Callable[..., Any]:
        """A block's forward that loads its weights, and computes one sequence at a time."""

        def run_block(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            if self._replayed is not None:
                is_last = index == len(self.blocks) - 1
                return self._like_output(self._replayed if is_last else hidden_states)
            if index < self._begin:
                return self._like_output(hidden_states)
            resumed = index == self._begin and (self._begin or self._gradients is not None)
            self.states = hidden = self.states if resumed else hidden_states
            rows = []
            with self._loaded(index) as block, self._visit(index, block):
                for self.row in range(len(hidden)):
                    taken = [_row(each, self.row, len(hidden)) for each in (hidden, *args)]
                    named = {name: _named_row(name, each, self.row, len(hidden)) for name, each in kwargs.items()}
                    rows.append(self._row_result(partial(forward, **named), taken))
                self.states = torch.cat(rows)
            if index + 1 == self._end:
                raise _LeaveError
            return self._like_output(self.states)

        return run_block

    def _row_result(self, block: Callable[..., Any], arguments: list[Any]) -> Tensor:
        """The output of a block for one sequence, or the gradient at its input while gradients are computed."""
        if self._gradients is None:
            output = block(*arguments)
            self._is_tuple = isinstance(output, tuple)
            return output[0] if isinstance(output, tuple) else output
        with torch.enable_grad():
            leaf = arguments[0].detach().requires_grad_()
            output = block(leaf, *arguments[1:])
            output = output[0] if isinstance(output, tuple) else output
            (gradient,) = torch.autograd.grad(output, leaf, self._gradients[self.row : self.row + 1])
        return gradient

    _is_tuple = False

    def _like_output(self, states: Tensor) -> Any:
        return (states,) if self._is_tuple else states

    @contextmanager
    def _loaded(self, index: int) -> Iterator[nn.Module]:
        """A block with its weights, which it loses afterwards."""
        path, block = list(self.blocks.items())[index]
        self._weights.load(block, f"{path}.")
        try:
            yield block
        finally:
            drop(block)


def _blocks(model: nn.Module, source: str) -> tuple[str, dict[str, nn.Module]]:
    """The list of modules with the most parameters, and each of them by its path."""
    lists = {
        name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList) and len(module)
    }
    if not lists:
        msg = f"{source}: {type(model).__name__} has no list of decoder blocks"
        raise SourceError(msg)
    sizes = {name: sum(each.numel() for each in module.parameters()) for name, module in lists.items()}
    path = max(sizes, key=lambda name: (sizes[name], -len(name)))
    return path, {f"{path}.{name}": block for name, block in lists[path].named_children()}


def _named_row(name: str, value: Any, row: int, rows: int) -> Any:
    """The part of a named argument that belongs to one sequence."""
    if name == "position_bias":  # of MPT's heads, the same for all sequences
        return value
    if name == "alibi" and isinstance(value, Tensor):  # Bloom's heads of one sequence are entries of the batch
        each = len(value) // rows
        return value[row * each : (row + 1) * each]
    return _row(value, row, rows)


def _row(value: Any, row: int, rows: int) -> Any:
    """The part of an argument that belongs to one sequence."""
    if isinstance(value, tuple):
        return tuple(_row(each, row, rows) for each in value)
    is_batched = isinstance(value, Tensor) and value.ndim > 1 and len(value) == rows
    return value[row : row + 1] if is_batched else value

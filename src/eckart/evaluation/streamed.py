"""A language model that computes block by block: the weights of one decoder block are in memory at a time.

transformers' own code runs, for all sequences at once; a block reads its weights from the checkpoint when it is called,
processes one sequence after the other, and drops them.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from eckart.checkpoint.checkpoint import Checkpoint
from eckart.checkpoint.fused_experts import with_fused_experts
from eckart.checkpoint.module_tree import tree_naming
from eckart.errors import NotFiniteError, SourceError
from eckart.evaluation.loss import LossResult, summed_loss
from eckart.evaluation.model import outline_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Visit = Callable[[int, nn.Module], AbstractContextManager[None]]
_NO_VISIT: Visit = lambda *_: nullcontext()  # noqa: E731


class _LastBlockError(Exception):
    """Leaves the model's forward pass after its last block."""


class StreamedModel:
    """A causal language model whose blocks read their weights when they are called.

    Attributes:
        model: transformers' model; outside its blocks the weights are loaded, in float32.
        blocks: the decoder blocks, by their path in the model.
        row: index of the sequence that a block is processing.
        stored: the checkpoint's name of each tensor of the model, by its path there.
        states: output of the newest block, shape `(sequences, length, hidden_size)`.

    Raises:
        SourceError: transformers has no language model for the config, or the checkpoint lacks some of its weights.
        MissingExtraError: transformers is not installed.
    """

    def __init__(self, checkpoint: Checkpoint, *, device: torch.device | str = "cpu") -> None:
        self.device, self.row = torch.device(device), 0
        self._checkpoint = with_fused_experts(checkpoint)
        self.model: PreTrainedModel = outline_model(checkpoint.source).eval()
        path, self.blocks = _blocks(self.model, checkpoint.source)
        self.stored = self._stored_names()
        self._fill_buffers()
        self._load(self.model, "", skip=f"{path}.")
        self._visit, self._begin, self.states = _NO_VISIT, 0, torch.empty(0)
        self._replayed: Tensor | None = None
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
        self._visit, self._begin = visit, begin
        if states is not None:
            self.states = states.to(self.device)
        try:
            self._body()(input_ids=ids.to(self.device), use_cache=False)
        except _LastBlockError:
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
        try:
            for row, sequence in enumerate(ids.to(self.device)):
                self._replayed = states[row : row + 1]
                total += summed_loss(self.model, sequence)
        finally:
            self._replayed = None
        tokens = ids[:, 1:].numel()
        if not total < float("inf"):
            msg = f"the model returned NaN or Inf: its loss is {total} after {tokens} tokens"
            raise NotFiniteError(msg)
        return LossResult(total / tokens, tokens)

    def _body(self) -> nn.Module:
        """The model without its head."""
        return cast("nn.Module", getattr(self.model, self.model.base_model_prefix, self.model))

    def _streamed(self, index: int, forward: Callable[..., Any]) -> Callable[..., Any]:
        """A block's forward that loads its weights, and computes one sequence at a time."""

        def run_block(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            is_last = index == len(self.blocks) - 1
            if self._replayed is not None:
                return self._like_output(self._replayed if is_last else hidden_states)
            if index < self._begin:
                return self._like_output(hidden_states)
            hidden = self.states if index == self._begin and self._begin else hidden_states
            rows = []
            with self._loaded(index) as block, self._visit(index, block):
                for self.row in range(len(hidden)):
                    taken = [_row(each, self.row, len(hidden)) for each in (hidden, *args)]
                    named = {name: _named_row(name, each, self.row, len(hidden)) for name, each in kwargs.items()}
                    output = forward(*taken, **named)
                    self._is_tuple = isinstance(output, tuple)
                    rows.append(output[0] if isinstance(output, tuple) else output)
                self.states = torch.cat(rows)
            if is_last:
                raise _LastBlockError
            return self._like_output(self.states)

        return run_block

    _is_tuple = False

    def _like_output(self, states: Tensor) -> Any:
        return (states,) if self._is_tuple else states

    @contextmanager
    def _loaded(self, index: int) -> Iterator[nn.Module]:
        """A block with its weights, which it loses afterwards."""
        path, block = list(self.blocks.items())[index]
        self._load(block, f"{path}.")
        try:
            yield block
        finally:
            for module in block.modules():
                for leaf, parameter in module._parameters.items():
                    if parameter is not None:
                        _assign(module, leaf, parameter.to("meta"))

    def _stored_names(self) -> dict[str, str]:
        naming, prefix = tree_naming(self._checkpoint), self.model.base_model_prefix
        tensors = {name for name, _ in _tensors(self.model)}
        names: dict[str, str] = {}
        tied = self._checkpoint.tied
        for stored in (*self._checkpoint.tensors, *tied):
            tree = naming(stored)
            path = tree if tree in tensors else f"{prefix}.{tree}"
            if path in tensors:
                names[path] = tied.get(stored, stored)
        return names

    def _load(self, module: nn.Module, prefix: str, *, skip: str = "\n") -> None:
        """Read the parameters of a module, and its buffers that are stored."""
        missing = []
        for name, is_parameter in _tensors(module):
            path = prefix + name
            if path.startswith(skip):
                continue
            if path in self.stored:
                owner, _, leaf = name.rpartition(".")
                value = self._checkpoint.read(self.stored[path])
                _assign(module.get_submodule(owner), leaf, _floating(value).to(self.device))
            elif is_parameter:
                missing.append(path)
        if missing:
            msg = f"{self._checkpoint.source}: weights of transformers' {type(self.model).__name__} are missing"
            raise SourceError.listing(msg, missing)

    def _fill_buffers(self) -> None:
        """Compute the buffers that files do not contain, such as the frequencies of rotary embeddings."""
        for module in self.model.modules():
            own = {leaf: buffer for leaf, buffer in module._buffers.items() if buffer is not None}
            module._buffers.update((leaf, torch.empty_like(each, device=self.device)) for leaf, each in own.items())
            if own:
                self.model._init_weights(module)


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


def _tensors(module: nn.Module) -> Iterator[tuple[str, bool]]:
    """Name of every parameter and buffer, tied ones each time, and whether it is a parameter."""
    yield from ((name, True) for name, _ in module.named_parameters(remove_duplicate=False))
    yield from ((name, False) for name, _ in module.named_buffers(remove_duplicate=False))


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


def _floating(value: Tensor) -> Tensor:
    return value.to(torch.float32) if value.is_floating_point() else value


def _assign(module: nn.Module, leaf: str, value: Tensor) -> None:
    if leaf in module._parameters:
        module._parameters[leaf] = nn.Parameter(value, requires_grad=False)
    else:
        module._buffers[leaf] = value

"""Second moments of a model's linear layers, collected block by block; an interrupted run resumes."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from eckart.calibration.gradients import collect_gradients, gradients_name, sampled_rows, states_name
from eckart.checkpoint import TensorSpec, atomic_file, check_output, write_tensors
from eckart.checkpoint.layouts import module_of
from eckart.checkpoint.module_tree import tree_naming
from eckart.engine import Execution, Journal, Record, open_journal
from eckart.engine.fingerprint import fingerprint
from eckart.errors import OptionError, OutputError, SourceError
from eckart.evaluation.streamed import StreamedModel
from eckart.linalg.finite import require_finite
from eckart.linalg.symmetric import self_product
from eckart.operations.moments import Moments, metadata, tensor_name

if TYPE_CHECKING:
    from eckart.checkpoint import Checkpoint

_STATES = "states"


def collect_moments(
    checkpoint: "Checkpoint",
    kinds: Mapping[str, Tensor],
    output: str | Path,
    *,
    execution: Execution = Execution(),
    force: bool = False,
) -> Moments:
    """Run a model on texts and write the second moments of each linear layer in its decoder blocks.

    These are Σ x xᵀ over the inputs x, of which layers with the same input share one, and, on a part of the texts,
    Σ g gᵀ over the gradients g of the loss at the outputs, if the model itself draws the tokens. Sums over
    sequences are in float64.
    One block's weights and moments are in memory at a time; each finished block is stored next to the output.

    Args:
        checkpoint: the model.
        kinds: token ids of each kind of text, shape `(sequences, length)`, all of one length.
        output: safetensors file to write.
        execution: device, progress, resume.
        force: replace an existing output.

    Returns:
        the written moments.

    Raises:
        OptionError: sequences of different lengths, or none.
        SourceError: transformers cannot build the model, or the checkpoint lacks some of its weights.
        NotFiniteError: an input or a gradient is NaN or Inf.
        OutputError: the output exists or cannot be written.
    """
    output, device = Path(output), execution.torch_device()
    lengths = {ids.shape[1:] for ids in kinds.values()}
    if len(lengths) != 1 or not all(len(ids) for ids in kinds.values()):
        msg = f"`kinds` needs sequences of one length, got shapes {[tuple(ids.shape) for ids in kinds.values()]}"
        raise OptionError(msg)
    check_output(output, kind="file", force=force, inputs=checkpoint.files)
    key = moments_key(checkpoint, kinds)
    with open_journal(output, key, execution) as journal:
        assert journal is not None
        model = StreamedModel(checkpoint, device=device)
        names, ids = _names(model, checkpoint), torch.cat(list(kinds.values()))
        chosen = sampled_rows(ids)
        _Collection(model, names, kinds, journal, chosen).run(execution)
        collect_gradients(model, names, ids[chosen], journal, execution)
        blocks = range(len(model.blocks))
        del model
        specs, inputs = [], dict[str, str]()
        for record in _records(journal, blocks, kinds):
            specs += [TensorSpec.of(name, tensor) for name, tensor in record.tensors.items()]
            inputs |= record.facts.get("inputs", {})
        # Read again block by block: together they would be the largest thing in memory.
        tensors = (each for record in _records(journal, blocks, kinds) for each in record.tensors.items())
        header = metadata(tokens={kind: ids.numel() for kind, ids in kinds.items()}, model=key, inputs=inputs)
        with atomic_file(output, force=force, inputs=checkpoint.files) as partial:
            write_tensors(partial, specs, tensors, header)
    return Moments(output)


def moments_key(checkpoint: "Checkpoint", kinds: Mapping[str, Tensor]) -> str:
    """A digest of the model and the text that second moments are from."""
    facts = {kind: hashlib.sha256(ids.contiguous().numpy().tobytes()).hexdigest() for kind, ids in kinds.items()}
    return fingerprint([checkpoint.fingerprint(), facts])


def _names(model: StreamedModel, checkpoint: "Checkpoint") -> dict[int, str]:
    """The name of each linear module whose weight the checkpoint contains, by the module's identity."""
    naming = tree_naming(checkpoint)
    return {
        id(module): naming(module_of(model.stored[f"{path}.weight"]))
        for path, module in model.model.named_modules()
        if _is_linear(module) and f"{path}.weight" in model.stored
    }


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def _records(journal: Journal, blocks: Iterable[int], kinds: Iterable[str]) -> Iterator[Record]:
    """What is stored of each block: of each kind of text, and of the gradients."""
    for index in blocks:
        for name in (*(_record_name(index, kind) for kind in kinds), gradients_name(index)):
            record = journal.load(name)
            if record is None:
                msg = f"{journal.folder}: the record {name} is missing or damaged; run the same command again"
                raise OutputError(msg)
            yield record


def _record_name(index: int, kind: str) -> str:
    return f"moments of block {index}, {kind}"


class _Collection:
    """The sums of one kind of text in one block, stored when either changes."""

    def __init__(
        self,
        model: StreamedModel,
        names: Mapping[int, str],
        kinds: Mapping[str, Tensor],
        journal: Journal,
        chosen: Tensor,
    ) -> None:
        self.model, self.names, self.kinds, self.journal, self.chosen = model, names, kinds, journal, chosen
        self.kind_of_row = [kind for kind, ids in kinds.items() for _ in ids]
        self.sums: dict[str, Tensor] = {}
        self.inputs: dict[str, str] = {}
        self.recent: list[tuple[str, Tensor]] = []  # inputs of the current sequence, by the module that owns them
        self.position: tuple[int, int] = (0, -1)

    def run(self, execution: Execution) -> None:
        """Compute all blocks that are not stored."""
        stored = self.journal.load(_STATES)
        begin = stored.facts["blocks"] if stored else 0
        if not all(self.journal.load(name) for index in range(begin) for name in self._results_of(index)):
            begin = 0
        progress, count = execution.progress, len(self.model.blocks)
        if begin:
            progress.note(f"resuming: {begin} of {count} blocks are already done")
        if begin == count:
            return
        progress.start("Calibrating", count - begin, "steps")

        @contextmanager
        def visit(index: int, block: nn.Module) -> Iterator[None]:
            if index == 0:
                self._keep_states(0)
            with self._observed(index, block):
                yield
            self._keep_states(index + 1)
            states = Record({"blocks": index + 1}, {"states": self.model.states.cpu()})
            self.journal.save(_STATES, states)
            progress.update(1, f"block {index + 1} of {count}")

        try:
            ids = torch.cat(list(self.kinds.values()))
            states = stored.tensors["states"] if stored and begin else None
            self.model.run(ids, visit=visit, begin=begin, states=states)
        finally:
            progress.finish()

    def _results_of(self, index: int) -> list[str]:
        """The records that a block leaves; the first also its inputs."""
        states = [states_name(index + 1), *([states_name(0)] if index == 0 else [])]
        return [*(_record_name(index, kind) for kind in self.kinds), *states]

    def _keep_states(self, index: int) -> None:
        """Store the inputs of a block for the sequences whose gradients will be collected."""
        self.journal.save(states_name(index), Record({}, {"states": self.model.states[self.chosen].cpu()}))

    @contextmanager
    def _observed(self, index: int, block: nn.Module) -> Iterator[None]:
        self.position = (index, -1)
        hooks = [
            module.register_forward_pre_hook(self._add)
            for module in block.modules()
            if id(module) in self.names and _is_linear(module)
        ]
        try:
            yield
            self._store()
        finally:
            for hook in hooks:
                hook.remove()
            self.sums.clear()
            self.inputs.clear()
            self.recent.clear()

    def _add(self, module: nn.Module, arguments: tuple[Any, ...]) -> None:
        """Add the inputs of one sequence, unless another module of the block has the same ones."""
        index, row = self.position
        if row != self.model.row:
            if row >= 0 and self.kind_of_row[row] != self.kind_of_row[self.model.row]:
                self._store()
            self.recent.clear()
            self.position = (index, self.model.row)
        name, given = self.names[id(module)], arguments[0]
        owner = next((owner for owner, earlier in self.recent if earlier is given), name)
        if self.inputs.setdefault(name, owner) != owner:
            msg = f"{name} has the inputs of {self.inputs[name]} for some sequences and not for others"
            raise SourceError(msg)
        if owner != name:
            return
        self.recent.append((name, given))
        product = self_product(given.reshape(-1, given.shape[-1]))  # of one sequence; the sum over all is in float64
        self.sums[name] = product.to(torch.float64) if name not in self.sums else self.sums[name].add_(product)

    def _store(self) -> None:
        """Store the sums of the current kind, and begin with the next."""
        index, row = self.position
        kind = self.kind_of_row[row]
        tensors = {tensor_name(kind, name): total.to(torch.float32).cpu() for name, total in self.sums.items()}
        for name, moment in tensors.items():
            require_finite(moment, f"the second moment {name}")
        self.journal.save(_record_name(index, kind), Record({"inputs": dict(self.inputs)}, tensors))
        self.sums.clear()

"""A fine-tune as an adapter: the best low-rank factors of tuned − base, matrix by matrix, with measured errors."""

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn

from eckart.adapter.adapter import Adapter, AdapterLayer
from eckart.checkpoint import Checkpoint, MatrixView, check_output, open_checkpoint
from eckart.engine import Execution, Record, open_journal
from eckart.formats import load_adapter
from eckart.operations.adapter_result import AdapterResult, LayerRecord, Refine
from eckart.operations.extraction.pair import Pair, Rest
from eckart.operations.extraction.scope import Scope, plan
from eckart.operations.factors import FactorOptions, layer_of
from eckart.operations.rank_choice import DEFAULT_RANK, RankChoice
from eckart.result import Skipped

EVERYTHING, FULL_PRECISION, DEFAULT_EXECUTION = Scope(), FactorOptions(), Execution()
Source = str | Path | Mapping[str, Tensor] | nn.Module
_TASK_TYPES = {
    "ForCausalLM": "CAUSAL_LM",
    "LMHeadModel": "CAUSAL_LM",
    "ForConditionalGeneration": "SEQ_2_SEQ_LM",
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
}


def extract(
    base: Source,
    tuned: Source,
    *,
    rank: int | RankChoice = DEFAULT_RANK,
    output: str | Path | None = None,
    scope: Scope = EVERYTHING,
    options: FactorOptions = FULL_PRECISION,
    execution: Execution = DEFAULT_EXECUTION,
    force: bool = False,
    refine: Refine | None = None,
) -> AdapterResult:
    """The adapter that turns `base` into the best low-rank approximation of `tuned`.

    Args:
        base: SOURCE text, state dict or module.
        tuned: the fine-tune, with the same tensors.
        rank: a rank for every matrix, or a `RankChoice` by energy, error or budget.
        output: folder to write, in PEFT's format; finished matrices are kept beside it until it is whole.
        scope: which modules are factored, kept whole, or left alone.
        options: dtype and split of the factors.
        execution: device, workers, memory, progress, resume.
        force: replace an existing output.
        refine: what the adapter goes through before it is written, such as `eckart.training.Distillation`; errors are
            then measured again.

    Returns:
        `AdapterResult`: the adapter, each layer's measured error and the least error possible, and what was left out.

    Raises:
        MismatchError: the checkpoints do not belong together or do not differ, or a pattern matches nothing.
        OutputError: the output exists or cannot be written.
        NotFiniteError: a tensor holds NaN or Inf.
    """
    began = time.monotonic()
    choice = rank if isinstance(rank, RankChoice) else RankChoice(rank=rank)
    execution.check()
    pair = Pair(open_checkpoint(base), open_checkpoint(tuned), execution)
    target = Path(output) if output is not None else None
    if target is not None:
        check_output(target, force=force, inputs=[pair.base.folder, pair.tuned.folder])
    placed = plan(pair.base, pair.tuned, scope)
    pair.check_budget(placed.matrices, choice, options)
    pair.check_difference(placed.matrices)
    with open_journal(target, pair.fingerprint(placed.matrices, choice, options), execution) as journal:
        records, guarantee = pair.factor(placed.matrices, choice, options, journal)
        rest = pair.read_rest(placed)
        adapter, layers, dropped = _assemble(placed.matrices, records, rest, pair.base)
        if refine is not None and (refined := refine(adapter)) is not adapter:
            adapter, layers = refined, pair.measured_again(placed.matrices, layers, refined)
        nbytes = adapter.nbytes
        if target is not None:
            adapter.save(target, force=force)
            nbytes = sum(file.stat().st_size for file in target.iterdir())
            adapter = load_adapter(target)
    seconds = time.monotonic() - began
    return AdapterResult("extract", adapter, layers, [*dropped, *rest.skipped], target, nbytes, seconds, guarantee)


def _assemble(
    views: list[MatrixView], records: Mapping[str, Record], rest: Rest, base: Checkpoint
) -> tuple[Adapter, list[LayerRecord], list[Skipped]]:
    """The adapter of all factors, what each layer kept, and the matrices that gave none."""
    layers: dict[str, AdapterLayer] = {}
    found, dropped = [], []
    for view in views:
        record = records[view.name]
        if "rank" not in record.facts:
            unchanged = record.facts["fro_norm"] == 0
            dropped.append(Skipped(view.tensor, "unchanged" if unchanged else "the budget left it no rank"))
            continue
        left, right = record.tensors["left"], record.tensors["right"]
        layers[view.module] = layer_of(view, left, right, bias=rest.biases.get(view.module))
        for module in view.tied_modules:
            layers[module] = layer_of(replace(view, kind="linear"), left, right)
        found.append(LayerRecord(view.name, view.shape, **record.facts))
    return Adapter(layers, rest.whole, base.source, _task_type(base)), found, dropped


def _task_type(base: Checkpoint) -> str | None:
    """PEFT's task type of the model class that the config names."""
    names = [str(name) for name in base.config.get("architectures") or ()]
    return next((task for name in names for end, task in _TASK_TYPES.items() if name.endswith(end)), None)

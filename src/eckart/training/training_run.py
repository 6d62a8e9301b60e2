"""Training an adapter of a language model on data: from what a user names to a PEFT folder, whole or not at all."""

import json
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from eckart.checkpoint.output import publish, refusing_full_disk
from eckart.engine.machine import peak_rss_bytes
from eckart.errors import NotFiniteError
from eckart.nn import LoRAConfig, adapter_of, save_adapter
from eckart.training import rundir
from eckart.training.data import DataOptions, TrainingData
from eckart.training.fitting import ADAPTER, adapted, check_vocabulary, fitting_data
from eckart.training.health import DivergenceError, telling_memory
from eckart.training.making import LOGS_FOLDER, make_trainer, quiet_logging, require_trl
from eckart.training.records import Source
from eckart.training.result import RESULT_FILE, TrainResult
from eckart.training.settings import TrainSettings
from eckart.training.subject import Subject, left_as_it_was
from eckart.training.watching import Interruption, SilentWatcher, Told, TrainingInterrupted, Watcher

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from eckart.training.callback import BetweenSteps
    from eckart.training.trainer import AdapterTrainer

Finish = Callable[[Path, TrainResult], None]


def train(
    model: "str | Path | nn.Module",
    data: Source | TrainingData,
    *,
    config: LoRAConfig | None = None,
    settings: TrainSettings | None = None,
    options: DataOptions | None = None,
    held_out: Source | None = None,
    output: str | Path | None = None,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    resume: bool = False,
    force: bool = False,
    dynamics: bool = True,
    finish: Finish | None = None,
    watcher: Watcher | None = None,
) -> TrainResult:
    """Train an adapter.

    Args:
        model: a SOURCE, or a live causal language model of transformers, which then carries the adapter `default` when
            this ends; if it carries one already and no `config` is given, that one trains on.
        data: what `load_data` takes, or gives.
        config: of the adapter.
        settings: how to train.
        options: how data become sequences; without `max_length`, 1024 tokens or what the model can see.
        held_out: data of its own to tell the loss before and after by; else a share of `data`.
        output: the PEFT folder to write, which appears whole; while training works, checkpoints lie in
            `output`.partial. Without it nothing is written.
        tokenizer: of a live model, where its own is not found by its name.
        resume: go on from the last checkpoint in `output`.partial, if there is one: to the same bits as if the
            training had never stopped.
        force: replace an output, or a stopped training, that is there.
        dynamics: record how every update grows.
        finish: given the folder before it gets its name, to write beside the adapter what belongs there.
        watcher: told of the progress.

    Returns:
        The adapter and what was measured; under torchrun in every process, while the first one writes.

    Raises:
        OutputError: the output must not or cannot be written.
        SourceError, FileFormatError, MismatchError, OptionError: model, data, adapter or settings cannot be used.
        DivergenceError: the loss or gradient is not finite; the message says what is kept.
        EckartError: memory is too small; the message says which settings to lower.
        TrainingInterrupted: SIGINT or SIGTERM came; the message says what is kept.
    """
    settings, told = settings or TrainSettings(), Told(watcher or SilentWatcher())
    output = None if output is None else Path(output)
    with ExitStack() as stack:
        folder = stack.enter_context(_working_folder(output, resume=resume, force=force))
        stack.enter_context(refusing_full_disk(folder, "what was written before is kept"))
        subject = Subject.of(model, tokenizer)
        data = fitting_data(data, subject, options, settings, held_out)
        for note in data.notes:
            told.note(note)
        stack.enter_context(quiet_logging())
        stack.enter_context(telling_memory(subject.source, settings.smaller(data.options.length)))
        live = subject.model(settings, config)
        stack.enter_context(left_as_it_was(live))
        stack.enter_context(adapted(live, data, config, settings, told))
        check_vocabulary(live, data)
        run = _run(subject, data, config, settings)
        checkpoint = rundir.last_checkpoint(folder) if resume and output is not None else None
        before = rundir.read_run(folder, run)["before"] if checkpoint else None
        interruption = Interruption()
        between = _between_steps(told.watcher, interruption, live, checkpoint, f"{subject.source}", dynamics=dynamics)
        trainer = make_trainer(
            live, subject.tokenizer, data, settings, folder, callbacks=[between], save=output is not None
        )
        between.trainer = trainer
        if before is None:
            before = _heldout_loss(trainer, told, "before")
            if output is not None and rundir.is_writer():
                rundir.write_run(folder, run | {"before": before})
        between.heldout_loss = before[0]
        seconds = _steps(trainer, interruption, folder if output is not None else None, checkpoint)
        after, tokens = _heldout_loss(trainer, told, "after")
        if trainer.recorder is not None:
            trainer.recorder.log(trainer.state.global_step, heldout_loss=after)
        result = TrainResult(
            adapter=adapter_of(live, ADAPTER),
            output=output,
            trainable_params=sum(p.numel() for p in live.parameters() if p.requires_grad),
            total_params=sum(p.numel() for p in live.parameters()),
            steps=trainer.state.global_step,
            heldout_loss_before=before[0],
            heldout_loss_after=after,
            heldout_tokens=tokens,
            losses={int(entry["step"]): entry["loss"] for entry in trainer.state.log_history if "loss" in entry},
            seconds=seconds,
            peak_bytes=_peak_bytes(trainer),
            run=run,
            dynamics=None if trainer.recorder is None else trainer.recorder.dynamics,
            notes=tuple(told.notes),
        )
        if output is not None and rundir.is_writer():
            _write(live, result, folder, finish)
        trainer.accelerator.wait_for_everyone()  # a process that ends earlier would tear the others down
    return result


@contextmanager
def _working_folder(output: Path | None, *, resume: bool, force: bool) -> Iterator[Path]:
    if output is not None:
        folder = rundir.prepare(output, resume=resume, force=force)
        try:
            yield folder
        except BaseException:
            rundir.clear_if_idle(folder)
            raise
        return
    folder = Path(tempfile.mkdtemp(prefix="eckart-train-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run(subject: Subject, data: TrainingData, config: LoRAConfig | None, settings: TrainSettings) -> dict[str, Any]:
    """What a training is started with, as one that goes on must be too."""
    run = {
        "model": subject.source,
        "config": asdict(config or LoRAConfig()),
        "settings": asdict(replace(settings, save_every=None)),
        "options": asdict(data.options),
        "data": data.fingerprint,
        "processes": rundir.processes(),
    }
    return json.loads(json.dumps(run))


def _between_steps(
    watcher: Watcher,
    interruption: Interruption,
    model: nn.Module,
    checkpoint: Path | None,
    title: str,
    *,
    dynamics: bool,
) -> "BetweenSteps":
    """What is called between the steps, with a recorder that goes on from the record in a checkpoint."""
    require_trl()
    from eckart.training.callback import BetweenSteps
    from eckart.training.dynamics import DynamicsRecorder, recording_steps
    from eckart.training.trajectory import FILE, read_dynamics

    def recorder(steps: int) -> DynamicsRecorder:
        earlier = None
        if checkpoint is not None and (checkpoint / FILE).exists():
            earlier = read_dynamics(checkpoint)
            earlier.forget_after(rundir.step_of(checkpoint))
        return DynamicsRecorder(model, recording_steps(steps), name=ADAPTER, title=title, earlier=earlier)

    return BetweenSteps(watcher, interruption, recorder if dynamics else None)


def _heldout_loss(trainer: "AdapterTrainer", told: Told, when: str) -> tuple[float, int]:
    told.watcher.at(f"held-out loss {when}", 0, 1)
    loss, tokens = trainer.heldout_loss()
    if not math.isfinite(loss):
        msg = f"the loss on held-out data is {loss} {when} training: the model computes what is no number there"
        raise NotFiniteError(msg)
    told.watcher.at(f"held-out loss {when}", 1, 1, loss)
    return loss, tokens


def _steps(
    trainer: "AdapterTrainer", interruption: Interruption, folder: Path | None, checkpoint: Path | None
) -> float:
    """Run the steps; the seconds they took.

    Raises:
        DivergenceError, TrainingInterrupted: with what is kept.
    """
    if trainer.args.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    try:
        with interruption.listening():
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    except DivergenceError as error:
        raise error.keeping(_keep_last(trainer, folder) if folder is not None else None) from None
    state = trainer.state
    if interruption.asked and state.global_step < state.max_steps:
        kept = (
            "nothing is kept"
            if folder is None
            else f"a checkpoint is kept in {folder}: the same command with --resume goes on"
        )
        msg = f"training stopped after step {state.global_step} of {state.max_steps}; {kept}"
        raise TrainingInterrupted(msg)
    return time.perf_counter() - start


def _keep_last(trainer: "AdapterTrainer", folder: Path) -> Path:
    """The adapter as it was before the step that was refused."""
    kept = folder / rundir.LAST_GOOD
    if rundir.is_writer():
        save_adapter(trainer.live, kept, name=ADAPTER, force=True)
    return kept


def _peak_bytes(trainer: "AdapterTrainer") -> int:
    return torch.cuda.max_memory_allocated() if trainer.args.device.type == "cuda" else peak_rss_bytes()


def _write(model: nn.Module, result: TrainResult, folder: Path, finish: Finish | None) -> None:
    """Put together the output in the working folder, give it its name, and take the rest away."""
    whole = folder / "finished"
    save_adapter(model, whole, name=ADAPTER, force=True)
    (whole / RESULT_FILE).write_text(json.dumps(result.to_json(), indent=1, allow_nan=False) + "\n", encoding="utf-8")
    if result.dynamics is not None:
        result.dynamics.save(whole)
    if (folder / LOGS_FOLDER).is_dir():
        shutil.copytree(folder / LOGS_FOLDER, whole / LOGS_FOLDER)
    if finish is not None:
        finish(whole, result)
    assert result.output is not None
    publish(whole, result.output)
    shutil.rmtree(folder)

"""Training an adapter of a language model: from model, data and settings to a PEFT folder."""

import json
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from eckart.checkpoint.inputs import InputFiles, files_digest
from eckart.checkpoint.output import atomic_directory, refusing_full_disk
from eckart.checkpoint.source import local_paths
from eckart.engine.machine import peak_rss_bytes
from eckart.engine.progress import NoProgress, Progress
from eckart.errors import NotFiniteError
from eckart.formats import load_adapter
from eckart.nn import LoRAConfig, adapter_of, count_params, save_adapter
from eckart.operations.card import facts_of, metadata_of, title_of, write_card
from eckart.result import Finish
from eckart.training import rundir
from eckart.training.data import DataOptions, TrainingData
from eckart.training.fitting import ADAPTER, adapted, check_vocabulary, fitting_data
from eckart.training.health import DivergenceError, explaining_memory
from eckart.training.interruption import TrainingInterrupted, stop_requested
from eckart.training.model_to_train import ModelToTrain, restored
from eckart.training.records import Source
from eckart.training.reporting import check_report_to, reporting
from eckart.training.result import RESULT_FILE, TrainResult
from eckart.training.settings import TrainSettings
from eckart.training.sharded_base import NOTE, taking_over_fsdp
from eckart.training.trainer_setup import keeping_verbosity, make_trainer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from eckart.training.dynamics import DynamicsRecorder
    from eckart.training.trainer import AdapterTrainer


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
    resume: bool = True,
    force: bool = False,
    dynamics: bool = True,
    report_to: Sequence[str] | None = None,
    finish: Finish[TrainResult] | None = None,
    progress: Progress = NoProgress(),
) -> TrainResult:
    """Train an adapter.

    Args:
        model: a SOURCE, or a live causal language model of transformers, which then has the adapter `default`
            afterwards; if it has one already and no `config` is given, that one continues to train.
        data: what `load_data` takes or returns.
        config: the adapter; by default rank 16 on all linear layers.
        settings: how to train.
        options: how data become sequences; without `max_length`, 1024 tokens or what the model can attend to.
        held_out: separate data for the loss before and after training; by default a share of `data` is held out.
        output: PEFT folder to write. It appears when it is complete; until then checkpoints are in `output`.partial.
            Without it nothing is written.
        tokenizer: tokenizer of a live model, if the model was not loaded from a source that has one.
        resume: resume an interrupted training of the same settings from the last checkpoint in `output`.partial, with
            the same bits as if it had never stopped; False starts over.
        force: replace an existing output.
        dynamics: record how every update grows.
        report_to: transformers' integrations that the metrics are logged to, if there is an output: `tensorboard`,
            `wandb`, `mlflow` or `none`; by default `tensorboard`, where it is installed.
        finish: called with the folder before it gets its final name and the result, to add files.
        progress: receives the progress.

    Returns:
        The adapter and what was measured; under torchrun in every process, while only the first one writes.

    Raises:
        OutputError: the output exists or cannot be written.
        SourceError, FileFormatError, MismatchError, OptionError: model, data, adapter or settings cannot be used.
        SourceError: the files of the model changed during the training.
        DivergenceError: the loss or gradient is not finite; the message says what was saved.
        MissingExtraError: a library of `report_to` is not installed.
        EckartError: not enough memory; the message says which settings to lower.
        TrainingInterrupted: SIGINT or SIGTERM came; the message says what was saved.
    """
    settings, output = settings or TrainSettings(), None if output is None else Path(output)
    check_report_to(report_to)
    with ExitStack() as stack:
        inputs = local_paths(*(each for each in (model, data, held_out) if isinstance(each, str | Path)))
        folder = stack.enter_context(_working_folder(output, resume=resume, force=force, inputs=inputs))
        stack.enter_context(refusing_full_disk(folder, "what was written before is kept"))
        source = ModelToTrain.resolve(model, tokenizer)
        given = data
        data = fitting_data(
            data, source, options, settings, held_out=held_out, folder=folder if rundir.is_writer() else None
        )
        source.check(settings, config)
        is_sharded = stack.enter_context(taking_over_fsdp(is_live=source.live is not None))
        run, files = _run(source, data, config, settings), InputFiles(source.files, stamped=False)
        checkpoint = rundir.last_checkpoint(folder) if resume and output is not None else None
        before = rundir.read_run(folder, run)["before"] if checkpoint else None
        stack.enter_context(keeping_verbosity())
        stack.enter_context(explaining_memory(source.source, settings.lower_memory(data.options.length)))
        waits = is_sharded and not rundir.is_writer() and source.can_be_received(settings, config)
        live = source.load(settings, empty=waits)
        stack.enter_context(restored(live))
        if is_sharded:
            dynamics = False
        notes = [
            *data.notes,
            *([NOTE] if is_sharded else []),
            *stack.enter_context(adapted(live, data, config, settings)),
        ]
        for note in notes:
            progress.note(note)
        check_vocabulary(live, data)
        trainer = make_trainer(
            live,
            source.tokenizer,
            data,
            settings,
            folder,
            save=output is not None,
            facts=run,
            is_sharded=is_sharded,
        )
        if output is not None and rundir.is_writer():
            stack.enter_context(reporting(trainer, folder, report_to, name=output.resolve().name))
        if before is None:
            before = _heldout_loss(trainer, progress, "before")
            if output is not None and rundir.is_writer():
                rundir.write_run(folder, run | {"before": before})
        recorder = _recorder(live, checkpoint, source.source) if dynamics else None
        seconds = _train_steps(
            trainer,
            progress,
            checkpoint,
            recorder,
            settings,
            heldout_loss=before[0],
            folder=folder if output else None,
        )
        after = _heldout_loss(trainer, progress, "after")
        trainer.log_heldout_loss(after[0])
        result = _result(trainer, output, run=run, losses=(before[0], *after), seconds=seconds, notes=notes)
        result = replace(result, data=data.facts(given, held_out))
        for note in result.notes[len(notes) :]:
            progress.note(note)
        if output is not None and rundir.is_writer():
            files.check_unchanged()
            _write(live, result, folder, finish, force=force)
        trainer.accelerator.wait_for_everyone()  # a process that ends earlier would end the others
    return result


@contextmanager
def _working_folder(output: Path | None, *, resume: bool, force: bool, inputs: Sequence[Path]) -> Iterator[Path]:
    if output is not None:
        with rundir.working_folder(output, resume=resume, force=force, inputs=inputs) as folder:
            yield folder
        return
    folder = Path(tempfile.mkdtemp(prefix="eckart-train-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run(
    source: ModelToTrain, data: TrainingData, config: LoRAConfig | None, settings: TrainSettings
) -> dict[str, Any]:
    """The facts that a resumed training must share with the interrupted one."""
    run = {
        "model": source.source,
        "model_files": files_digest(source.files, stamped=False),  # a copy on another machine is the same model
        "config": asdict(config or LoRAConfig()),
        "settings": asdict(replace(settings, save_every=None)),
        "options": asdict(data.options),
        "data": data.fingerprint,
        "processes": rundir.processes(),
    }
    return json.loads(json.dumps(run))


def _recorder(model: nn.Module, checkpoint: Path | None, title: str) -> "Callable[[int], DynamicsRecorder]":
    """A function that makes the recorder for a number of steps; it continues the record in a checkpoint."""
    from eckart.training.dynamics import DynamicsRecorder, recording_steps
    from eckart.training.trajectory import FILE, read_dynamics

    def make_recorder(steps: int) -> DynamicsRecorder:
        earlier = None
        if checkpoint is not None and (checkpoint / FILE).exists():
            earlier = read_dynamics(checkpoint)
            earlier.forget_after(rundir.step_of(checkpoint))
        return DynamicsRecorder(model, recording_steps(steps), name=ADAPTER, title=title, earlier=earlier)

    return make_recorder


def _heldout_loss(trainer: "AdapterTrainer", progress: Progress, when: str) -> tuple[float, int]:
    loss, tokens = trainer.heldout_loss(progress, f"Held-out loss {when} training")
    if not math.isfinite(loss):
        msg = f"the model returned NaN or Inf {when} training: its loss on held-out data is {loss}"
        raise NotFiniteError(msg)
    return loss, tokens


def _train_steps(
    trainer: "AdapterTrainer",
    progress: Progress,
    checkpoint: Path | None,
    make_recorder: "Callable[[int], DynamicsRecorder] | None",
    settings: TrainSettings,
    *,
    heldout_loss: float,
    folder: Path | None,
) -> float:
    """Run the steps; returns the seconds they took.

    Raises:
        DivergenceError, TrainingInterrupted: the message says what was saved.
    """
    from eckart.training.step_monitor import StepMonitor

    if checkpoint is not None and trainer.load_finished(checkpoint):
        if make_recorder is not None and rundir.is_writer():
            trainer.recorder = make_recorder(trainer.state.max_steps)
        return 0.0
    if trainer.args.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    try:
        with stop_requested() as stop:
            trainer.add_callback(
                StepMonitor(
                    trainer,
                    progress,
                    stop,
                    heldout_loss=heldout_loss,
                    make_recorder=make_recorder,
                    eval_every=settings.eval_every,
                    keep_best=settings.keep == "best",
                )
            )
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    except DivergenceError as error:
        raise error.keeping(_save_last_good(trainer, folder) if folder is not None else None) from None
    finally:
        progress.finish()
    state = trainer.state
    if stop.is_set() and state.global_step < state.max_steps:
        saved = "nothing was saved" if folder is None else f"a checkpoint is in {folder}; run the same again to resume"
        msg = f"training stopped after step {state.global_step} of {state.max_steps}; {saved}"
        raise TrainingInterrupted(msg)
    return time.perf_counter() - start


def _result(
    trainer: "AdapterTrainer",
    output: Path | None,
    *,
    run: dict[str, Any],
    losses: tuple[float, float, int],
    seconds: float,
    notes: Sequence[str],
) -> TrainResult:
    """What was trained and measured; `losses` are those on held-out data before and after, and their tokens."""
    before, after, tokens = losses
    state, recorder, live = trainer.state, trainer.recorder, trainer.live
    if recorder is not None:
        recorder.log(state.global_step, heldout_loss=after)
    measured = {int(entry["step"]): entry["eval_loss"] for entry in state.log_history if "eval_loss" in entry}
    kept_step, kept_loss = trainer.restore_best(after)
    if kept_step != state.global_step:
        notes = [
            *notes,
            f"the adapter of step {kept_step} is kept: its held-out loss, {kept_loss:.4f}, is below that of the last, "
            f"{after:.4f}; `keep=last` keeps the last",
        ]
    return TrainResult(
        adapter=adapter_of(live, ADAPTER),
        output=output,
        trainable_params=sum(p.numel() for p in live.parameters() if p.requires_grad),
        total_params=count_params(live),
        steps=state.global_step,
        heldout_loss_before=before,
        heldout_loss_after=kept_loss,
        heldout_tokens=tokens,
        heldout_losses={0: before, **measured, state.global_step: after},
        kept_step=kept_step,
        losses={int(entry["step"]): entry["loss"] for entry in state.log_history if "loss" in entry},
        seconds=seconds,
        peak_bytes=_peak_bytes(trainer),
        run=run,
        dynamics=None if recorder is None else recorder.dynamics.rounded(),
        notes=tuple(notes),
    )


def _save_last_good(trainer: "AdapterTrainer", folder: Path) -> Path:
    """Save the adapter as it was before the step that was refused."""
    path = folder / rundir.LAST_GOOD
    if rundir.is_writer():
        save_adapter(trainer.live, path, name=ADAPTER, force=True)
    return path


def _peak_bytes(trainer: "AdapterTrainer") -> int:
    return torch.cuda.max_memory_allocated() if trainer.args.device.type == "cuda" else peak_rss_bytes()


def _write(
    model: nn.Module, result: TrainResult, folder: Path, finish: Finish[TrainResult] | None, *, force: bool
) -> None:
    """Write the complete output."""
    assert result.output is not None
    with atomic_directory(result.output, force=force) as finished:
        save_adapter(model, finished, name=ADAPTER, force=True)
        content = json.dumps(result.to_json(), indent=1, allow_nan=False) + "\n"
        (finished / RESULT_FILE).write_text(content, encoding="utf-8")
        if result.dynamics is not None:
            result.dynamics.save(finished)
        if (folder / rundir.LOGS_FOLDER).is_dir():
            shutil.copytree(folder / rundir.LOGS_FOLDER, finished / rundir.LOGS_FOLDER)
        _write_card(finished, result)
        if finish is not None:
            finish(finished, result)


def _write_card(folder: Path, result: TrainResult) -> None:
    """The card of a trained adapter."""
    outline = load_adapter(folder).outline()
    method = (
        "QLoRA"
        if result.run["settings"].get("quantize")
        else "DoRA"
        if result.run["config"]["method"] == "dora"
        else "LoRA"
    )
    loss = f"{result.heldout_loss_before:.4f} before, {result.heldout_loss_after:.4f} after, in nats per token"
    facts = [
        *facts_of(outline),
        (
            "Trained",
            f"{method}, {result.steps:,} steps, {result.trainable_params:,} of {result.total_params:,} parameters",
        ),
        (f"Loss on {result.heldout_tokens:,} held-out tokens", loss),
    ]
    write_card(folder, title_of(outline), facts, base=outline.base_model, metadata=metadata_of(outline, "train"))

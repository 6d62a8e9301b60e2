"""TRL's trainer, configured from our settings: which of its many options are set, and why."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eckart.errors import MissingExtraError, OptionError
from eckart.evaluation.model import EXTRA
from eckart.training import rundir
from eckart.training.data import TrainingData
from eckart.training.settings import TrainSettings
from eckart.training.sharded_base import require_same, shard_base

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from trl.trainer.sft_config import SFTConfig

    from eckart.training.trainer import AdapterTrainer

KEPT_CHECKPOINTS = 2


def make_trainer(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    data: TrainingData,
    settings: TrainSettings,
    folder: Path,
    *,
    save: bool,
    facts: "dict[str, object] | None" = None,
    is_sharded: bool = False,
) -> "AdapterTrainer":
    """A trainer of the adapter in a model; moves the model to its device.

    Args:
        model: with its adapter, which alone requires gradients.
        tokenizer: may be modified.
        data: the data to train on.
        settings: how to train.
        folder: folder for checkpoints.
        save: whether to write any.
        facts: what all processes that train together must share.
        is_sharded: whether these processes share the base.

    Raises:
        MissingExtraError: TRL is not installed.
        OptionError: the model cannot be trained with these settings.
    """
    require_trl()
    from transformers import PrinterCallback
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    from eckart.training.trainer import AdapterTrainer

    packed = "seq_lengths" in data.train.column_names
    padding = next((t for t in (tokenizer.pad_token_id, tokenizer.eos_token_id) if isinstance(t, int)), 0)
    with _without_warnings():
        arguments = _arguments(model, data, settings, folder, save=save)
        require_same(facts or {})
        if is_sharded:
            shard_base(model, arguments.device)
        trainer = AdapterTrainer(
            is_sharded=is_sharded,
            held_out=data.held_out,
            lora_plus_ratio=settings.lora_plus_ratio,
            model=model,
            args=arguments,
            train_dataset=data.train,
            processing_class=tokenizer,
            data_collator=None if packed else DataCollatorForLanguageModeling(pad_token_id=padding),
        )
    if trainer.accelerator.num_processes != rundir.processes():
        msg = f"{rundir.processes()} processes were started, but {trainer.accelerator.num_processes} are connected"
        raise OptionError(msg)
    trainer.remove_callback(PrinterCallback)  # it prints the numbers of every step to stdout
    return trainer


def _arguments(
    model: "PreTrainedModel", data: TrainingData, settings: TrainSettings, folder: Path, *, save: bool
) -> "SFTConfig":
    from trl.trainer.sft_config import SFTConfig

    length: dict[str, Any] = (
        {"max_steps": settings.steps} if settings.steps else {"num_train_epochs": settings.epochs or 1}
    )
    arguments = SFTConfig(
        output_dir=str(folder),
        **length,
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.accumulate,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="constant_with_warmup" if settings.schedule == "constant" else settings.schedule,
        warmup_steps=settings.warmup,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_gradient_norm,
        seed=settings.seed,
        data_seed=settings.seed,
        use_cpu=settings.torch_device.type == "cpu",
        bf16=False,  # the weights are in the requested dtype already: autocast has nothing to cast
        ddp_find_unused_parameters=_may_skip_layers(model),
        activation_checkpointing=settings.gradient_checkpointing,
        packing="seq_lengths" in data.train.column_names,
        max_length=data.options.length,
        dataset_kwargs={"skip_prepare_dataset": True},  # the examples are prepared already
        logging_steps=1,
        save_strategy="steps" if save else "no",
        save_steps=settings.save_every or 0.1,
        save_total_limit=KEPT_CHECKPOINTS,
        report_to="none",
        disable_tqdm=True,
        log_level="error",
    )
    arguments.dataloader_pin_memory = arguments.device.type == "cuda"
    arguments._n_gpu = min(1, arguments.n_gpu)  # one process trains on one GPU; torchrun starts one for each
    return arguments


def _may_skip_layers(model: "PreTrainedModel") -> bool:
    """Whether a batch can leave adapters without a gradient, because it uses only some of the experts."""
    return any("expert" in key for key in model.config.get_text_config().to_dict())


def require_trl() -> None:
    """Import TRL, or raise an error that names the extra that installs it."""
    with _without_warnings():
        try:
            import trl.trainer.sft_trainer  # noqa: F401
        except ImportError as error:
            raise MissingExtraError.for_extra(EXTRA, "training an adapter") from error


@contextmanager
def keeping_verbosity() -> Iterator[None]:
    """Restore transformers' logging level after the block: a trainer sets it for the whole process."""
    from transformers.utils import logging as transformers_logging

    level = transformers_logging.get_verbosity()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Suppress the warnings that libraries log when they are imported and started."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        yield
    finally:
        logging.disable(before)

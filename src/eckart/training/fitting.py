"""Data and adapter checked against the model and prepared for it, before the first step."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from eckart.errors import EckartError, MismatchError, OptionError
from eckart.nn import LoRAConfig, adapted_modules, eject, inject
from eckart.nn.initializers import initialize
from eckart.training import rundir
from eckart.training.data import DataOptions, TrainingData, load_data
from eckart.training.model_to_train import ModelToTrain
from eckart.training.records import Source
from eckart.training.settings import TrainSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ADAPTER = "default"
INIT_BATCHES = 8


def fitting_data(
    data: Source | TrainingData,
    model: ModelToTrain,
    options: DataOptions | None,
    settings: TrainSettings,
    *,
    held_out: Source | None,
    folder: Path | None,
) -> TrainingData:
    """The sequences, stored in `folder`: no longer than the model can attend to, and enough of them for a step."""
    if not isinstance(data, TrainingData):
        options = options or DataOptions()
        if options.max_length is None:
            options = replace(options, max_length=min(options.length, model.window or options.length))
        _check_window(options, model)
        data = load_data(data, model.tokenizer, options=options, held_out=held_out, folder=folder)
    _check_window(data.options, model)
    needed = settings.batch_size * rundir.processes()
    if len(data.train) < needed:
        msg = (
            f"the data have {len(data.train)} sequences, but one batch takes {needed}: give more data, "
            f"or lower `batch_size` (now {settings.batch_size}) or `max_length` (now {data.options.length})"
        )
        raise EckartError(msg)
    return data


def _check_window(options: DataOptions, model: ModelToTrain) -> None:
    if model.window is not None and options.length > model.window:
        msg = f"`max_length` is {options.length}, but the model can attend to {model.window} tokens only"
        raise OptionError(msg)


def check_vocabulary(model: "PreTrainedModel", data: TrainingData) -> None:
    """Refuse tokens for which the model has no embedding."""
    rows = model.get_input_embeddings().weight.shape[0]  # type: ignore[union-attr, index]
    if data.largest_token >= rows:
        msg = f"the data contain token {data.largest_token}, but the model has {rows}: this is not its tokenizer"
        raise MismatchError(msg)


@contextmanager
def adapted(
    model: "PreTrainedModel", data: TrainingData, config: LoRAConfig | None, settings: TrainSettings
) -> Iterator[list[str]]:
    """Insert the adapter, or continue with the present one if there is no config; a failure removes what was inserted.

    Yields:
        Warnings about the adapter.
    """
    if config is None and any(ADAPTER in module.adapters for module in adapted_modules(model).values()):
        yield []
        return
    config = config or LoRAConfig()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        inject(model, config, name=ADAPTER, seed=settings.seed)
    try:
        if config.init != "zero":
            # Every process computes the same factors up to rounding; DDP then copies those of the first one.
            batches = _first_batches(data, settings)
            initialize(model.to(settings.torch_device), config.init, name=ADAPTER, batches=batches, seed=settings.seed)  # type: ignore[arg-type]
        yield [str(warning.message) for warning in caught]
    except BaseException:
        eject(model)
        raise


def _first_batches(data: TrainingData, settings: TrainSettings) -> list[dict[str, torch.Tensor]]:
    """Batches for initializations that use data, with one sequence each so that nothing is padded."""
    rows = data.train.select(range(min(len(data.train), INIT_BATCHES * settings.batch_size)))
    return [
        {name: torch.tensor([row[name]], device=settings.torch_device) for name in ("input_ids", "labels")}
        for row in (rows[index] for index in range(len(rows)))
    ]

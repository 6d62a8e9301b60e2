"""Model, data and adapter made to fit each other, before any step."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from eckart.errors import EckartError, MismatchError, OptionError
from eckart.nn import LoRAConfig, adapted_modules, eject, inject
from eckart.nn.initializers import initialize
from eckart.training import rundir
from eckart.training.data import DataOptions, TrainingData, load_data
from eckart.training.records import Source
from eckart.training.settings import TrainSettings
from eckart.training.subject import Subject
from eckart.training.watching import Told

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ADAPTER = "default"
INIT_BATCHES = 8


def fitting_data(
    data: Source | TrainingData,
    subject: Subject,
    options: DataOptions | None,
    settings: TrainSettings,
    held_out: Source | None,
) -> TrainingData:
    """The sequences, no longer than the model can see, and enough for a step."""
    if not isinstance(data, TrainingData):
        options = options or DataOptions()
        if options.max_length is None:
            options = replace(options, max_length=min(options.length, subject.window or options.length))
        _check_window(options, subject)
        data = load_data(data, subject.tokenizer, options=options, held_out=held_out)
    _check_window(data.options, subject)
    needed = settings.batch_size * rundir.processes()
    if len(data.train) < needed:
        msg = (
            f"the data give {len(data.train)} sequences, and one batch takes {needed}: "
            f"give more data, or a smaller --batch-size (now {settings.batch_size}) or --max-length "
            f"(now {data.options.length})"
        )
        raise EckartError(msg)
    return data


def _check_window(options: DataOptions, subject: Subject) -> None:
    if subject.window is not None and options.length > subject.window:
        msg = f"max_length {options.length}: the model sees {subject.window} tokens at once"
        raise OptionError(msg)


def check_vocabulary(model: "PreTrainedModel", data: TrainingData) -> None:
    """Refuse tokens that the model has no embedding for."""
    rows = model.get_input_embeddings().weight.shape[0]  # type: ignore[union-attr, index]
    if data.largest_token >= rows:
        msg = f"the tokenizer gives token {data.largest_token}, and the model knows {rows}: they do not belong together"
        raise MismatchError(msg)


@contextmanager
def adapted(
    model: "PreTrainedModel", data: TrainingData, config: LoRAConfig | None, settings: TrainSettings, told: Told
) -> Iterator[None]:
    """Put the adapter in, or let the one that is there train on; after a failure, what was put in is out again."""
    if config is None and any(ADAPTER in module.adapters for module in adapted_modules(model).values()):
        yield
        return
    config = config or LoRAConfig()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        inject(model, config, name=ADAPTER, seed=settings.seed)
    for warning in caught:
        told.note(str(warning.message))
    try:
        if config.init != "zero":
            # Every process finds the same start but for rounding, and DDP gives all of them the first one's.
            batches = _first_batches(data, settings)
            initialize(model.to(settings.torch_device), config.init, name=ADAPTER, batches=batches, seed=settings.seed)  # type: ignore[arg-type]
        yield
    except BaseException:
        eject(model)
        raise


def _first_batches(data: TrainingData, settings: TrainSettings) -> list[dict[str, torch.Tensor]]:
    """Batches that a start of the factors may look at, one sequence each: nothing is padded."""
    rows = data.train.select(range(min(len(data.train), INIT_BATCHES * settings.batch_size)))
    return [
        {name: torch.tensor([row[name]], device=settings.torch_device) for name in ("input_ids", "labels")}
        for row in (rows[place] for place in range(len(rows)))
    ]

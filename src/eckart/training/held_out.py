"""Held-out data for measuring models, in every form that training takes."""

from pathlib import Path
from typing import TYPE_CHECKING

from eckart.checkpoint import InputFiles
from eckart.checkpoint.json_files import read_json_object
from eckart.errors import EckartError
from eckart.evaluation.held_out import HeldOut
from eckart.evaluation.loss import MAX_LENGTH
from eckart.evaluation.model import load_tokenizer
from eckart.training.data import (
    Count,
    DataOptions,
    files_of,
    read_sequences,
    temporary_data_folder,
    without_progress_bars,
)
from eckart.training.model_to_train import ModelToTrain
from eckart.training.overlap import overlap, overlapping
from eckart.training.records import Source, require_datasets
from eckart.training.result import RESULT_FILE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MOST_TOKENS = 2**20  # that are read; a gain needs far fewer
MOST_TRAINING_BYTES = 2**28  # of training data that are read again to compare


def held_out_for(model: str | Path, source: Source, *, max_length: int = MAX_LENGTH) -> HeldOut:
    """Held-out data in the tokens of a model, in windows or records that it can attend to.

    Args:
        model: SOURCE of the model, with its tokenizer.
        source: as of `load_held_out`.
        max_length: tokens per sequence, lowered to the model's own limit if its config states one.

    Raises:
        EckartError: see `load_held_out` and `load_tokenizer`.
    """
    files_of(source)  # a missing file is refused before the model is opened
    return load_held_out(source, load_tokenizer(model), max_length=_length(model, max_length))


def overlap_note(held_out: HeldOut, adapter: str, model: str | Path, *, max_length: int = MAX_LENGTH) -> str | None:
    """That held-out data are in the data that an adapter was trained on; None if they are not, or that is unknown.

    Args:
        held_out: as `held_out_for` returns it for the same model and `max_length`.
        adapter: SOURCE of the adapter. The data are known if it is a folder that `train` wrote, and the files that its
            `train.json` names are still there.
        model: SOURCE of the model.
        max_length: tokens per sequence.
    """
    source = _trained_on(Path(adapter).expanduser())
    if source is None:
        return None
    datasets, tokenizer = require_datasets("reading training data"), load_tokenizer(model)
    options = DataOptions(_length(model, max_length))
    try:
        with temporary_data_folder() as folder:
            with without_progress_bars(datasets):
                train, _ = read_sequences(source, tokenizer, options, Count(), folder / "train")
            count = overlap(held_out, train, tokenizer)
    except EckartError:  # the files are no longer what was trained on
        return None
    return overlapping(count, len(held_out.sequences), f"{source}, the training data of {adapter}") if count else None


def _trained_on(folder: Path) -> str | None:
    """The files that an adapter was trained on, if they are on this machine and not too large to read again."""
    try:
        data = read_json_object(folder / RESULT_FILE).get("data")
        source = data.get("source") if isinstance(data, dict) else None
        files = files_of(source) if isinstance(source, str) else ()
        return source if files and sum(file.stat().st_size for file in files) <= MOST_TRAINING_BYTES else None
    except (EckartError, OSError):
        return None


def _length(model: str | Path, max_length: int) -> int:
    return min(max_length, ModelToTrain.resolve(model).window or max_length)


def load_held_out(source: Source, tokenizer: "PreTrainedTokenizerBase", *, max_length: int = MAX_LENGTH) -> HeldOut:
    """Read held-out data; where records have prompts, only completions and the assistant's messages count.

    Args:
        source: a text file or a folder of them; JSONL, JSON or Parquet whose records have `text`, or `prompt` and
            `completion`, or `messages`; a dataset on the hub (`org/name[@revision]`, its split `train`); or records.
        tokenizer: the model's tokenizer, with its chat template if there are messages.
        max_length: tokens per sequence; texts are split into such windows, longer records are truncated.

    Returns:
        All sequences in memory, of at most about a million tokens.

    Raises:
        SourceError: there is no such data, or it changed while it was read.
        FileFormatError: records are malformed; the first dozen are listed with line and reason.
        EckartError: there is nothing to predict.
        OptionError: there are messages, but the tokenizer has no chat template.
    """
    datasets = require_datasets("reading held-out data")
    inputs, count = InputFiles(files_of(source)), Count()
    options = DataOptions(max_length)
    with temporary_data_folder() as folder:
        with without_progress_bars(datasets):
            data, form = read_sequences(source, tokenizer, options, count, folder / "held_out")
        inputs.check_unchanged()
        sequences, labels, tokens = [], [], 0
        for row in map(dict, data):
            sequences.append(row["input_ids"])
            labels.append(row["labels"])
            tokens += len(row["input_ids"])
            if tokens >= MOST_TOKENS:
                break
    name = str(source) if isinstance(source, (str, Path)) else "the data"
    if not any(len(each) > 1 for each in labels):
        msg = f"{name}: there is nothing to predict: a loss needs at least two tokens, one to predict from the other"
        raise EckartError(msg)
    notes = []
    if len(sequences) < len(data):
        notes.append(f"only the first {tokens:,} tokens of {name} are used")
    if count.cut:
        notes.append(f"{count.cut} records of {name} are longer than {max_length} tokens and were truncated")
    if count.dropped:
        notes.append(f"{count.dropped} records of {name} were skipped: nothing to predict in {max_length} tokens")
    return HeldOut(sequences, labels, form == "texts", tuple(notes))

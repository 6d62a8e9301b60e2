"""Held-out data for measuring models, in every form that training takes."""

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from eckart.checkpoint import InputFiles
from eckart.errors import EckartError
from eckart.evaluation.held_out import HeldOut
from eckart.evaluation.loss import MAX_LENGTH
from eckart.evaluation.model import load_tokenizer
from eckart.training.data import FOLDER_PREFIX, Count, DataOptions, files_of, read_sequences, without_progress_bars
from eckart.training.model_to_train import ModelToTrain
from eckart.training.records import Source, require_datasets

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MOST_TOKENS = 2**20  # that are read; a gain needs far fewer


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
    window = ModelToTrain.resolve(model).window or max_length
    return load_held_out(source, load_tokenizer(model), max_length=min(max_length, window))


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
    folder = Path(tempfile.mkdtemp(prefix=FOLDER_PREFIX))
    try:
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
    finally:
        shutil.rmtree(folder, ignore_errors=True)
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

"""DATA as training and held-out sequences: read and checked once, and stored on disk rather than in memory."""

import hashlib
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np

from eckart.checkpoint import InputFiles
from eckart.errors import EckartError, FileFormatError, OptionError
from eckart.evaluation.held_out import HeldOut
from eckart.training.examples import IGNORED, Encoder, content_fault, form_of
from eckart.training.overlap import overlap, overlapping
from eckart.training.records import MAX_FAULTS, Source, find_files, has_records, read_records, require_datasets
from eckart.training.texts import held_out_bytes, windows

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

DEFAULT_LENGTH = 1024
HELD_OUT_SHARE = 0.1
HELD_OUT_TOKENS = 32_768  # more would hardly make the loss more precise
MOST_COMPARED = 1024  # held-out sequences that are looked for in the training data
FOLDER_PREFIX = "eckart-data-"
BYTES_PER_TOKEN = 4  # of text, approximately


def data_folder(parent: Path | None = None) -> Path:
    """A new name for a folder of sequences, to be made where an interruption deletes it even just then."""
    return (parent or Path(tempfile.gettempdir())) / f"{FOLDER_PREFIX}{uuid4().hex}"


@contextmanager
def temporary_data_folder() -> Iterator[Path]:
    """A folder of sequences that exists within the block."""
    folder = data_folder()
    try:
        folder.mkdir(mode=0o700)
        yield folder
    finally:
        try:
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            shutil.rmtree(folder, ignore_errors=True)  # if the run was interrupted while it was deleted


@dataclass(frozen=True)
class DataOptions:
    """How DATA becomes sequences.

    Attributes:
        max_length: tokens per sequence, 1024 by default; texts are split into such windows, longer records are
            truncated.
        held_out: share of the data that is held out for the loss before and after training; of texts the end.
        answers_only: compute the loss on completions and the assistant's messages only, not on prompts.
        packing: pack several records into one sequence without letting them attend to each other.
        seed: seed of the choice of held-out records.
    """

    max_length: int | None = None
    held_out: float = HELD_OUT_SHARE
    answers_only: bool = True
    packing: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse invalid options, with all faults."""
        faults = [] if self.length >= 2 else [f"`max_length` must be at least 2, got {self.length}"]
        if not 0 < self.held_out < 1:
            faults.append(f"`held_out` must be a share between 0 and 1, got {self.held_out}")
        if faults:
            msg = "invalid data options"
            raise OptionError.listing(msg, faults)

    @property
    def length(self) -> int:
        """Tokens per sequence."""
        return DEFAULT_LENGTH if self.max_length is None else self.max_length


@dataclass
class Count:
    """Statistics of DATA, collected while it is read."""

    cut: int = 0
    dropped: int = 0
    largest_token: int = 0
    digest: Any = field(default_factory=hashlib.sha256)

    def add(self, ids: list[int]) -> None:
        """Count the tokens of one sequence."""
        self.largest_token = max(self.largest_token, *ids)
        self.digest.update(np.asarray(ids, dtype=np.int32).tobytes())


@dataclass(frozen=True)
class TrainingData:
    """Training and held-out sequences, in files that are deleted together with this object.

    Attributes:
        train: columns `input_ids` and `labels` (−100 for tokens that the loss ignores), and `seq_lengths` if packed.
        held_out: the same columns, never packed.
        form: `texts`, `text`, `prompt and completion` or `messages`.
        records: number of records, or windows of text, to train on.
        cut: number of records longer than `options.max_length`, which were truncated.
        dropped: number of records without a token to learn.
        largest_token: the highest token id.
        fingerprint: digest of all tokens and labels.
        options: how data became sequences.
        overlap: number of held-out sequences, of the first 1,024, that are in the training data, word for word.
    """

    train: "Dataset"
    held_out: "Dataset"
    form: str
    records: int
    cut: int
    dropped: int
    largest_token: int
    fingerprint: str
    options: DataOptions
    overlap: int = 0

    def facts(self, source: Source, held_out: Source | None) -> dict[str, Any]:
        """What `train.json` says about these data.

        Args:
            source: where they come from; records in memory have no name.
            held_out: the separate source of the held-out sequences, if there is one.
        """
        names = [str(each) if isinstance(each, str | Path) else None for each in (source, held_out)]
        return {
            "source": names[0],
            "form": self.form,
            "records": self.records,
            "sequences": len(self.train),
            "truncated": self.cut,
            "skipped": self.dropped,
            "heldout_source": names[1],
            "heldout_sequences": len(self.held_out),
            "heldout_overlap": self.overlap,
        }

    @property
    def notes(self) -> list[str]:
        """What the user should know about the data."""
        length = self.options.length
        return [
            note
            for count, note in (
                (self.cut, f"{self.cut} records are longer than {length} tokens and were truncated"),
                (
                    self.dropped,
                    f"{self.dropped} records were skipped: nothing to learn within {length} tokens",
                ),
                (self.overlap, overlapping(self.overlap, len(self.held_out), "the training data")),
            )
            if count
        ]


def load_data(
    source: Source,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    options: DataOptions | None = None,
    held_out: Source | None = None,
    folder: Path | None = None,
) -> TrainingData:
    """Read DATA as sequences, or refuse it with all its faults.

    Args:
        source: a text file or a folder of them; JSONL, JSON or Parquet whose records have `text`, or `prompt` and
            `completion`, or `messages`; a dataset on the hub (`org/name[@revision]`, its split `train`); or records.
        tokenizer: the model's tokenizer, with its chat template if there are messages.
        options: how data become sequences.
        held_out: separate held-out data; by default a share of `source`.
        folder: where the sequences are stored, in a subfolder; by default where the system keeps temporary files.

    Returns:
        Sequences for a trainer. One record, or one piece of text, is in memory at a time.

    Raises:
        SourceError: there is no such data, or it changed while it was read.
        FileFormatError: records are malformed; the first dozen are listed with line and reason.
        EckartError: there is too little to train on, or nothing to hold out.
        OptionError: there are messages, but the tokenizer has no chat template.
    """
    datasets = require_datasets("training")
    options = options or DataOptions()
    inputs = InputFiles(path for given in (source, held_out) for path in files_of(given))
    folder, count = data_folder(folder), Count()
    try:
        folder.mkdir(mode=0o700)
        with without_progress_bars(datasets):
            if held_out is None:
                train, held, form = _split_source(source, tokenizer, options, count, folder)
            else:
                train, form = read_sequences(source, tokenizer, options, count, folder / "train")
                held, _ = read_sequences(held_out, tokenizer, options, count, folder / "held_out")
            inputs.check_unchanged()
            records = len(train)
            _check_enough(train, held, source, options)
            compared = held.select(range(min(len(held), MOST_COMPARED)))
            shared = overlap(
                HeldOut(list(compared["input_ids"]), list(compared["labels"]), form == "texts"), train, tokenizer
            )
            if options.packing and form != "texts":
                from trl.data_utils import pack_dataset

                train = pack_dataset(train, options.length, "bfd")
        digest = count.digest.hexdigest()
        data = TrainingData(
            train, held, form, records, count.cut, count.dropped, count.largest_token, digest, options, shared
        )
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    weakref.finalize(data, shutil.rmtree, folder, ignore_errors=True)
    return data


def _split_source(
    source: Source, tokenizer: "PreTrainedTokenizerBase", options: DataOptions, count: Count, folder: Path
) -> "tuple[Dataset, Dataset, str]":
    """The training and the held-out sequences of the same data, and its form."""
    paths = _text_files(source)
    if not paths:
        records, form = _records(source, tokenizer, options, count, folder / "records")
        return *_split(records, options), form
    held = held_out_bytes(paths, options.held_out, HELD_OUT_TOKENS * BYTES_PER_TOKEN)
    train, held_out = (
        _dataset(_windows(paths, tokenizer, options, count, held=held, split=split), folder / split)
        for split in ("train", "held_out")
    )
    return train, held_out, "texts"


def read_sequences(
    source: Source, tokenizer: "PreTrainedTokenizerBase", options: DataOptions, count: Count, folder: Path
) -> "tuple[Dataset, str]":
    """All of a source as sequences, and its form."""
    paths = _text_files(source)
    if not paths:
        return _records(source, tokenizer, options, count, folder)
    return _dataset(
        _windows(paths, tokenizer, options, count, held=dict.fromkeys(paths, 0), split="train"), folder
    ), "texts"


def files_of(source: Source | None) -> tuple[Path, ...]:
    """The files of a source on this machine; none of records or a dataset on the hub."""
    return (find_files(source) if isinstance(source, (str, Path)) else None) or ()


def _text_files(source: Source) -> tuple[Path, ...]:
    files = files_of(source)
    return files if files and not has_records(files[0]) else ()


def _windows(
    paths: tuple[Path, ...],
    tokenizer: "PreTrainedTokenizerBase",
    options: DataOptions,
    count: Count,
    *,
    held: dict[Path, int],
    split: str,
) -> Iterator[dict[str, list[int]]]:
    for ids in windows(paths, tokenizer, length=options.length, held_out=held, split=split):
        count.add(ids)
        yield {"input_ids": ids, "labels": ids}


def _records(
    source: Source, tokenizer: "PreTrainedTokenizerBase", options: DataOptions, count: Count, folder: Path
) -> "tuple[Dataset, str]":
    """Every record as a sequence, and the form they share."""
    faults: list[str] = []
    encoder = Encoder(tokenizer, answers_only=options.answers_only)
    form: str | None = None

    def examples() -> Iterator[dict[str, list[int]]]:
        nonlocal form
        for position, record in read_records(source, faults):
            own_form, fault = form_of(record)
            form = form or own_form
            if own_form and own_form != form:
                fault = f"has {own_form}, those before it {form}"
            if own_form and not fault:
                fault = content_fault(record, own_form) or ""
            if not fault and own_form:
                try:
                    yield from _truncated(*encoder.encode(record, own_form), options.length, count)
                except OptionError:  # about the tokenizer, not about this record
                    raise
                except ValueError as error:
                    fault = str(error)
            if fault:
                faults.append(f"{position}: {fault}")
                if len(faults) >= MAX_FAULTS:
                    return

    dataset = _dataset(examples(), folder)
    if faults:
        msg = f"{_name(source)} cannot be used for training"
        raise FileFormatError.listing(msg, faults)
    return dataset, form or "nothing"


def _truncated(ids: list[int], labels: list[int], length: int, count: Count) -> Iterator[dict[str, list[int]]]:
    """The first `length` tokens of an example, if one of them counts in the loss; the first one never does."""
    cut = len(ids) > length
    ids, labels = ids[:length], labels[:length]
    if all(label == IGNORED for label in labels[1:]):
        count.dropped += 1
        return
    count.cut += cut
    count.add(ids)
    count.add(labels)
    yield {"input_ids": ids, "labels": labels}


def _split(dataset: "Dataset", options: DataOptions) -> "tuple[Dataset, Dataset]":
    """The training records in their order, and the held-out ones, drawn at random: at least one."""
    order = np.random.default_rng(options.seed).permutation(len(dataset))
    most, tokens, held = max(1, round(options.held_out * len(dataset))), 0, []
    for index in order.tolist()[:most]:
        held.append(index)
        tokens += len(dataset[index]["input_ids"])
        if tokens >= HELD_OUT_TOKENS:
            break
    rest = np.setdiff1d(np.arange(len(dataset)), held)
    return dataset.select(rest), dataset.select(sorted(held))


def _dataset(examples: Iterable[Mapping[str, list[int]]], folder: Path) -> "Dataset":
    """The examples in an Arrow file, from which they are read on demand."""
    from datasets import Dataset, Features, List, Value
    from datasets.arrow_writer import ArrowWriter

    folder.mkdir(parents=True)
    path = folder / "data.arrow"
    integers = List(Value("int32"))
    with ArrowWriter(features=Features({"input_ids": integers, "labels": integers}), path=str(path)) as writer:
        for example in examples:
            writer.write(dict(example))
        writer.finalize()
    return Dataset.from_file(str(path))


def _check_enough(train: "Dataset", held: "Dataset", source: Source, options: DataOptions) -> None:
    faults = []
    if not len(train):
        faults.append("nothing is left to train on")
    if not any(len(labels) > 1 for labels in held["labels"]):
        faults.append("nothing is left to hold out; pass separate data as `held_out`")
    if faults:
        msg = f"{_name(source)} is too short for training with sequences of {options.length} tokens"
        raise EckartError.listing(msg, faults)


def _name(source: Source) -> str:
    return str(source) if isinstance(source, (str, Path)) else "the data"


@contextmanager
def without_progress_bars(datasets: Any) -> Iterator[None]:
    """Suppress the progress bars of `datasets` inside the block."""
    enabled = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if enabled:
            datasets.enable_progress_bars()

"""DATA as training and held-out sequences: read once, checked whole, kept on disk rather than in memory."""

import hashlib
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from eckart.errors import EckartError, FileFormatError, OptionError
from eckart.training.examples import IGNORED, Encoder, content_fault, form_of
from eckart.training.records import MAX_FAULTS, Source, find_files, read_records, require_datasets
from eckart.training.texts import held_out_bytes, windows

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

DEFAULT_LENGTH = 1024
HELD_OUT_SHARE = 0.1
HELD_OUT_TOKENS = 32_768  # more would not make the loss surer, only slower
BYTES_PER_TOKEN = 4  # of text, about


@dataclass(frozen=True)
class DataOptions:
    """How DATA becomes sequences.

    Attributes:
        max_length: tokens of a sequence, 1024 if not given; texts are cut into such windows, longer records lose their
            end.
        held_out: share of the data that is not trained on, to tell the loss before and after by; of texts the end.
        answers_only: leave prompts, and what is not the assistant's in messages, out of the loss.
        packing: put several records into one sequence, parted so that none sees another.
        seed: of the draw of the records that are held out.
    """

    max_length: int | None = None
    held_out: float = HELD_OUT_SHARE
    answers_only: bool = True
    packing: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what no data can meet."""
        faults = [] if self.length >= 2 else [f"max_length must be at least 2, got {self.length}"]
        if not 0 < self.held_out < 1:
            faults.append(f"held_out is a share between 0 and 1, got {self.held_out}")
        if faults:
            msg = "these options cannot be met:"
            raise OptionError.listing(msg, faults)

    @property
    def length(self) -> int:
        """Tokens of a sequence."""
        return DEFAULT_LENGTH if self.max_length is None else self.max_length


@dataclass
class _Count:
    """What was met while DATA was read."""

    cut: int = 0
    dropped: int = 0
    largest_token: int = 0
    digest: Any = field(default_factory=hashlib.sha256)

    def add(self, ids: list[int]) -> None:
        self.largest_token = max(self.largest_token, *ids)
        self.digest.update(np.asarray(ids, dtype=np.int32).tobytes())


@dataclass(frozen=True)
class TrainingData:
    """Sequences to train on and sequences held out, in files that go when this object does.

    Attributes:
        train: columns `input_ids` and `labels` (−100 where nothing is to be learnt), and `seq_lengths` if packed.
        held_out: the same columns, never packed.
        form: `texts`, `text`, `prompt and completion` or `messages`.
        records: records, or windows of text, of the training part.
        cut: records that were longer than `options.max_length` and lost their end.
        dropped: records of which nothing was left to learn.
        largest_token: the highest token id.
        fingerprint: digest of every token and label.
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

    @property
    def notes(self) -> list[str]:
        """What a user should know of how the data were taken."""
        length = self.options.length
        return [
            note
            for count, note in (
                (self.cut, f"{self.cut} records are longer than {length} tokens and lose their end"),
                (self.dropped, f"{self.dropped} records are left out: within {length} tokens nothing is to be learnt"),
            )
            if count
        ]


def load_data(
    source: Source,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    options: DataOptions | None = None,
    held_out: Source | None = None,
) -> TrainingData:
    """Read DATA whole, refuse it with all its faults, or give its sequences.

    Args:
        source: a text file or a folder of them; JSONL, JSON or Parquet whose records hold `text`, or `prompt` and
            `completion`, or `messages`; a dataset on the hub (`org/name[@revision]`, its split `train`); or records.
        tokenizer: of the model, with its chat template if there are messages.
        options: how sequences are made.
        held_out: data of its own to hold out; else a share of `source`.

    Returns:
        Sequences for a trainer; memory holds one record, or one piece of text, at a time.

    Raises:
        SourceError: there is no such data.
        FileFormatError: records are malformed; the first dozen are told with their line and reason.
        EckartError: there is too little to train on, or nothing to hold out.
        OptionError: messages, and a tokenizer without a chat template.
    """
    datasets = require_datasets("training")
    options = options or DataOptions()
    folder = Path(tempfile.mkdtemp(prefix="eckart-data-"))
    count = _Count()
    try:
        with _quiet(datasets):
            if held_out is None:
                train, held, form = _halves(source, tokenizer, options, count, folder)
            else:
                train, form = _whole(source, tokenizer, options, count, folder / "train")
                held, _ = _whole(held_out, tokenizer, options, count, folder / "held_out")
            records = len(train)
            _check_enough(train, held, source, options)
            if options.packing and form != "texts":
                from trl.data_utils import pack_dataset

                train = pack_dataset(train, options.length, "bfd")
        data = TrainingData(
            train, held, form, records, count.cut, count.dropped, count.largest_token, count.digest.hexdigest(), options
        )
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    weakref.finalize(data, shutil.rmtree, folder, ignore_errors=True)
    return data


def _halves(
    source: Source, tokenizer: "PreTrainedTokenizerBase", options: DataOptions, count: _Count, folder: Path
) -> "tuple[Dataset, Dataset, str]":
    """A training and a held-out part of the same data, and its form."""
    paths = _text_files(source)
    if not paths:
        whole, form = _records(source, tokenizer, options, count, folder / "whole")
        return *_split(whole, options), form
    held = held_out_bytes(paths, options.held_out, HELD_OUT_TOKENS * BYTES_PER_TOKEN)
    train, held_out = (
        _dataset(_windows(paths, tokenizer, options, count, held=held, part=part), folder / part)
        for part in ("train", "held_out")
    )
    return train, held_out, "texts"


def _whole(
    source: Source, tokenizer: "PreTrainedTokenizerBase", options: DataOptions, count: _Count, folder: Path
) -> "tuple[Dataset, str]":
    """All of a source as sequences, and its form."""
    paths = _text_files(source)
    if not paths:
        return _records(source, tokenizer, options, count, folder)
    return _dataset(
        _windows(paths, tokenizer, options, count, held=dict.fromkeys(paths, 0), part="train"), folder
    ), "texts"


def _text_files(source: Source) -> tuple[Path, ...]:
    files = find_files(source) if isinstance(source, (str, Path)) else None
    return files.paths if files is not None and files.holds_text else ()


def _windows(
    paths: tuple[Path, ...],
    tokenizer: "PreTrainedTokenizerBase",
    options: DataOptions,
    count: _Count,
    *,
    held: dict[Path, int],
    part: str,
) -> Iterator[dict[str, list[int]]]:
    for ids in windows(paths, tokenizer, length=options.length, held_out=held, part=part):
        count.add(ids)
        yield {"input_ids": ids, "labels": ids}


def _records(
    source: Source, tokenizer: "PreTrainedTokenizerBase", options: DataOptions, count: _Count, folder: Path
) -> "tuple[Dataset, str]":
    """Every record as a sequence, and the form they share."""
    faults: list[str] = []
    encoder = Encoder(tokenizer, answers_only=options.answers_only)
    form: str | None = None

    def examples() -> Iterator[dict[str, list[int]]]:
        nonlocal form
        for place, record in read_records(source, faults):
            found, fault = form_of(record)
            form = form or found
            if found and found != form:
                fault = f"holds {found}, those before it {form}"
            if found and not fault:
                fault = content_fault(record, found) or ""
            if not fault and found:
                try:
                    yield from _fitted(*encoder.encode(record, found), options.length, count)
                except ValueError as error:
                    fault = str(error)
            if fault:
                faults.append(f"{place}: {fault}")
                if len(faults) >= MAX_FAULTS:
                    return

    dataset = _dataset(examples(), folder)
    if faults:
        msg = f"{_name(source)} cannot be trained on:"
        raise FileFormatError.listing(msg, faults)
    return dataset, form or "nothing"


def _fitted(ids: list[int], labels: list[int], length: int, count: _Count) -> Iterator[dict[str, list[int]]]:
    """The example within `length` tokens, if something of it can be learnt: a first token is never predicted."""
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
    """Records drawn to be held out, at least one, and the others in their order."""
    order = np.random.default_rng(options.seed).permutation(len(dataset))
    wanted, tokens, held = max(1, round(options.held_out * len(dataset))), 0, []
    for place in order.tolist()[:wanted]:
        held.append(place)
        tokens += len(dataset[place]["input_ids"])
        if tokens >= HELD_OUT_TOKENS:
            break
    rest = np.setdiff1d(np.arange(len(dataset)), held)
    return dataset.select(rest), dataset.select(sorted(held))


def _dataset(examples: Iterable[Mapping[str, list[int]]], folder: Path) -> "Dataset":
    """The examples in an Arrow file, read from there as they are asked for."""
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
        faults.append("nothing is left to hold out; name other data for it (--eval-data)")
    if faults:
        msg = f"{_name(source)} is too little to train on with sequences of {options.length} tokens:"
        raise EckartError.listing(msg, faults)


def _name(source: Source) -> str:
    return str(source) if isinstance(source, (str, Path)) else "the data"


@contextmanager
def _quiet(datasets: Any) -> Iterator[None]:
    """Without the progress bars of `datasets`: a library does not draw, its caller does."""
    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()

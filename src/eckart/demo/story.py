"""The whole story on one real model: train an adapter, see what it learnt, cut it to the rank it needs, merge it."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eckart.adapter import Adapter
from eckart.demo.base import make_base
from eckart.demo.checked import Agreement, agreement, log_probabilities
from eckart.demo.learning import ADAPTER, DemoSettings, Learned, learn, write_texts
from eckart.demo.package import MODEL, require_demo
from eckart.demo.smallest import Tried, smallest_rank
from eckart.errors import OutputError
from eckart.evaluation import load_model, load_tokenizer, text_loss
from eckart.formats import load_adapter
from eckart.nn import adapter_applied
from eckart.operations import MergeResult, merge, resize

FORMAT = "eckart-demo/2"


@dataclass(frozen=True)
class Moment:
    """Where the story is: a stage, how far it has come, and what is worth knowing now."""

    stage: str
    done: int
    total: int
    detail: str = ""


StoryCallback = Callable[[Moment], None]


@dataclass(frozen=True)
class Story:
    """All that the demo made and measured; losses in nats per held-out token.

    Attributes:
        base: folder of the model.
        learned: the trained adapter.
        base_loss: without it.
        adapter_loss: with it.
        tokens: the losses are measured on.
        tried: the adapter at rank 1, 2, …; the last one keeps enough of the gain, and is written.
        merged: the model with that one baked in.
        merged_loss: of it.
        agreement: of its answers with those of the base with the adapter.
        change: the same of the base's own answers, to hold the other against.
        seconds: wall time of the whole.
    """

    base: Path
    learned: Learned
    base_loss: float
    adapter_loss: float
    tokens: int
    tried: list[Tried]
    merged: MergeResult
    merged_loss: float
    agreement: Agreement
    change: Agreement
    seconds: float

    @property
    def small(self) -> Tried:
        """The adapter of the smallest rank that keeps enough."""
        return self.tried[-1]

    def to_json(self) -> dict[str, Any]:
        """The `eckart-demo/2` object."""
        return {
            "format": FORMAT,
            "base": str(self.base),
            "adapter": str(self.learned.folder),
            "trainable_params": self.learned.numbers["trainable_params"],
            "steps": self.learned.numbers["steps"],
            "tokens": self.tokens,
            "base_loss": self.base_loss,
            "adapter_loss": self.adapter_loss,
            "ranks": [
                {"rank": tried.rank, "error": tried.resized.error, "loss": tried.loss, "gain_kept": tried.kept}
                for tried in self.tried
            ],
            "small_adapter": str(self.small.resized.output),
            "merged": str(self.merged.output),
            "merged_loss": self.merged_loss,
            "same_token": self.agreement.same_token,
            "divergence": self.agreement.divergence,
            "page": str(self.learned.page),
            "figures": [str(path) for path in self.learned.figures],
            "seconds": self.seconds,
        }


def tell_story(
    folder: str | Path,
    settings: DemoSettings,
    *,
    model: str | Path = MODEL,
    force: bool = False,
    progress: StoryCallback = lambda moment: None,
) -> Story:
    """Train an adapter, find the smallest rank that keeps its gain, merge that, and check what the merge answers.

    Args:
        folder: gets base/, text/, adapter/, adapter-small/ and merged/; what a stopped run with the same settings
            finished there is kept.
        settings: see `quick_settings`.
        model: SOURCE of the base, with its tokenizer.
        force: replace what comes from other settings.
        progress: told where the story is.

    Returns:
        The story, with every path and number.

    Raises:
        OutputError: `folder` holds something from other settings, or from elsewhere.
        MissingExtraError, SourceError: the libraries or the model are not there.
    """
    began = time.monotonic()
    folder = Path(folder)
    small, merged_folder = folder / "adapter-small", folder / "merged"
    if model == MODEL:
        require_demo()
    _check(folder, [small, merged_folder], force=force)
    progress(Moment("Reading the model", 0, 1))
    base = make_base(folder, model=model, force=force)
    texts = write_texts(folder, settings)
    learned = learn(folder, base, texts, settings, force=force, watcher=_Watching(progress))
    measure = _Measure(base, texts[1].read_text(), settings.sequence_tokens, progress)
    adapter = load_adapter(learned.folder)
    base_loss, adapter_loss = measure.loss("base"), measure.loss("adapter", adapter)
    tried = smallest_rank(
        adapter, keep=settings.keep, base_loss=base_loss, adapter_loss=adapter_loss, loss=measure.loss
    )
    # From here on all is made again from the adapter: seconds of work, and never older than it is.
    written = resize(adapter, rank=tried[-1].rank, output=small, force=True)
    tried[-1] = replace(tried[-1], resized=written)
    progress(Moment("Merging", 0, 1))
    merged = merge(str(base), [written.adapter], merged_folder, force=True)
    plain, with_adapter = measure.answers(), measure.answers(written.adapter)
    measure.read(merged_folder)
    return Story(
        base=base,
        learned=learned,
        base_loss=base_loss,
        adapter_loss=adapter_loss,
        tokens=measure.tokens,
        tried=tried,
        merged=merged,
        merged_loss=measure.loss("merged"),
        agreement=agreement(with_adapter, measure.answers()),
        change=agreement(with_adapter, plain),
        seconds=time.monotonic() - began,
    )


def _check(folder: Path, derived: list[Path], *, force: bool) -> None:
    """Refuse a folder whose results are not those of this story's own adapter."""
    found = [f"{path.name} exists" for path in derived if path.exists()]
    if found and not (folder / ADAPTER).exists() and not force:
        msg = f"{folder} holds results without the adapter they came from; choose another folder, or replace: --force"
        raise OutputError.listing(msg, found)


class _Measure:
    """One model in memory, measured on one text with this adapter or that."""

    def __init__(self, model: Path, text: str, length: int, progress: StoryCallback) -> None:
        self.tokens = 0
        self._tokenizer, self._text, self._length = load_tokenizer(model), text, length
        self._progress = progress
        self._model = load_model(model)

    def read(self, model: Path) -> None:
        """Go on with another model."""
        del self._model
        self._model = load_model(model)

    def loss(self, label: str, adapter: Adapter | None = None) -> float:
        """Nats per token."""

        def tell(done: int, windows: int) -> None:
            self._progress(Moment(f"Measuring: {label}", done, windows))

        with adapter_applied(self._model, adapter or Adapter({})):
            found = text_loss(self._model, self._text, self._tokenizer, max_length=self._length, progress=tell)
        self.tokens = found.tokens
        return found.nats_per_token

    def answers(self, adapter: Adapter | None = None) -> Tensor:
        """What the model expects after each of the first tokens of the text."""
        with adapter_applied(self._model, adapter or Adapter({})):
            return log_probabilities(self._model, self._ids)

    @cached_property
    def _ids(self) -> Tensor:
        return torch.tensor(self._tokenizer(self._text, verbose=False)["input_ids"])[: 2 * self._length]


class _Watching:
    """A training's progress as moments of the story."""

    def __init__(self, progress: StoryCallback) -> None:
        self._progress = progress

    def at(self, stage: str, done: int, total: int, loss: float | None = None) -> None:
        """How far a stage of the training is."""
        detail = "" if loss is None else f"loss {loss:.3f}"
        self._progress(Moment(stage[:1].upper() + stage[1:], done, total, detail))

    def note(self, message: str) -> None:
        """What a training notes of its data is no part of the story."""

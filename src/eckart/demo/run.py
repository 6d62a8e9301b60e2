"""The demo on one real model: train an adapter, see what it learned, reduce it to the rank it needs, merge it."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eckart.adapter import Adapter
from eckart.checkpoint import check_output
from eckart.checkpoint.source import local_paths
from eckart.demo.base import make_base
from eckart.demo.learning import ADAPTER, DemoSettings, Learned, learn, write_texts
from eckart.demo.package import MODEL, require_demo
from eckart.demo.pair import TUNED, make_pair
from eckart.demo.predictions import PredictionMatch, compare_predictions, log_probabilities
from eckart.engine.progress import NoProgress, Progress
from eckart.errors import EckartError, OutputError
from eckart.evaluation import load_model, load_tokenizer, text_loss
from eckart.evaluation.search import smallest_sufficient
from eckart.formats import load_adapter
from eckart.nn import adapter_applied
from eckart.operations import AdapterResult, MergeResult, merge, resize
from eckart.operations.truncation import Truncations
from eckart.result import Result
from eckart.training import FinetuneSettings

FORMAT = "eckart-demo/2"


@dataclass(frozen=True, repr=False)
class DemoResult(Result):
    """Everything that the demo wrote and measured; losses in nats per held-out token.

    Attributes:
        base: folder of the model.
        learned: the trained adapter.
        base_loss: loss without the adapter.
        adapter_loss: loss with it.
        tokens: number of tokens that the losses are measured on.
        tried: the adapter at the ranks that were measured, in their order, and its loss.
        rank: the smallest that keeps enough of the gain; this adapter is written.
        merged: the model with that one merged in.
        merged_loss: loss of the merged model.
        match: how similar its predictions are to those of the base with the adapter.
        base_match: the same for the base alone, for comparison.
        seconds: wall time of the demo.
        tuned: folder of the full fine-tune, if one was asked for.
    """

    base: Path
    learned: Learned
    base_loss: float
    adapter_loss: float
    tokens: int
    tried: dict[int, tuple[AdapterResult, float]]
    rank: int
    merged: MergeResult
    merged_loss: float
    match: PredictionMatch
    base_match: PredictionMatch
    seconds: float
    tuned: Path | None = None

    @property
    def small(self) -> AdapterResult:
        """The adapter of the smallest rank that keeps enough of the gain."""
        return self.tried[self.rank][0]

    def gain_kept(self, loss: float) -> float:
        """The share of the trained adapter's gain that a loss keeps."""
        return gain_kept(loss, base_loss=self.base_loss, adapter_loss=self.adapter_loss)

    def rows(self) -> list[dict[str, Any]]:
        """The ranks that were tried."""
        return [
            {"rank": rank, "error": resized.error, "loss": loss, "gain_kept": self.gain_kept(loss)}
            for rank, (resized, loss) in self.tried.items()
        ]

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
            "ranks": self.rows(),
            "small_adapter": str(self.small.output),
            "merged": str(self.merged.output),
            "tuned": None if self.tuned is None else str(self.tuned),
            "merged_loss": self.merged_loss,
            "same_token": self.match.same_token,
            "divergence": self.match.divergence,
            "page": str(self.learned.page),
            "figures": [str(path) for path in self.learned.figures],
            "seconds": self.seconds,
        }


def run_demo(
    folder: str | Path,
    settings: DemoSettings,
    *,
    model: str | Path = MODEL,
    fine_tune: FinetuneSettings | None = None,
    force: bool = False,
    progress: Progress = NoProgress(),
) -> DemoResult:
    """Train an adapter, find the smallest rank that keeps its gain, merge that one, and test the merged model.

    Args:
        folder: folder for base/, text/, adapter/, adapter-small/ and merged/; what an interrupted demo with the same
            settings finished there is kept.
        settings: see `quick_settings`.
        model: SOURCE of the base, with its tokenizer.
        fine_tune: also write tuned/, the base fully fine-tuned with these settings on the same text.
        force: replace results of other settings.
        progress: receives the progress.

    Returns:
        All paths and numbers.

    Raises:
        OutputError: `folder` contains results of other settings, or files in its results that eckart did not write.
        MissingExtraError, SourceError: the libraries or the model are not installed.
    """
    start = time.monotonic()
    folder = Path(folder)
    small, merged_folder = folder / "adapter-small", folder / "merged"
    if model == MODEL:
        require_demo()
    check_output(folder, kind="folder", reuse=True, inputs=local_paths(model))
    _check(folder, [small, merged_folder], force=force)
    progress.start("Reading the model", 1, "steps")
    base = make_base(folder, model=model, force=force)
    progress.finish()
    texts = write_texts(folder, settings, force=force)
    learned = learn(folder, base, texts, settings, force=force, progress=progress)
    measure = _Measure(base, texts[1].read_text(), settings.sequence_tokens, progress)
    adapter = load_adapter(learned.folder)
    base_loss, adapter_loss = measure.loss("base"), measure.loss("adapter", adapter)
    rank, tried = smallest_rank(
        adapter, keep=settings.keep, base_loss=base_loss, adapter_loss=adapter_loss, loss=measure.loss
    )
    # All that follows takes seconds and is written again in any case, so that it is never older than the adapter.
    written = resize(adapter, rank=rank, output=small, force=True)
    tried[rank] = written, tried[rank][1]
    progress.start("Merging", 1, "steps")
    merged = merge(str(base), [written.adapter], merged_folder, force=True)
    progress.finish()
    plain, with_adapter = measure.predictions(), measure.predictions(written.adapter)
    measure.load(merged_folder)
    merged_loss, match = measure.loss("merged"), compare_predictions(with_adapter, measure.predictions())
    if fine_tune is not None:
        make_pair(folder, fine_tune, model=model, force=force, progress=progress)
    return DemoResult(
        base=base,
        learned=learned,
        base_loss=base_loss,
        adapter_loss=adapter_loss,
        tokens=measure.tokens,
        tried=tried,
        rank=rank,
        merged=merged,
        merged_loss=merged_loss,
        match=match,
        base_match=compare_predictions(with_adapter, plain),
        seconds=time.monotonic() - start,
        tuned=None if fine_tune is None else folder / TUNED,
    )


def smallest_rank(
    adapter: Adapter, *, keep: float, base_loss: float, adapter_loss: float, loss: Callable[[str, Adapter], float]
) -> tuple[int, dict[int, tuple[AdapterResult, float]]]:
    """The smallest rank that keeps the share `keep` of an adapter's gain, and all that were measured to find it.

    Args:
        adapter: the adapter.
        keep: share of `base_loss` − `adapter_loss` to keep.
        base_loss: loss of the base alone.
        adapter_loss: loss with the adapter.
        loss: measures an adapter, with a label for its progress.

    Raises:
        EckartError: the adapter does not lower the loss.
    """
    if not adapter_loss < base_loss:
        msg = f"the adapter does not lower the loss on held-out text ({base_loss:.4f} nats per token without, "
        raise EckartError(msg + f"{adapter_loss:.4f} with it), so there is no gain to keep")
    truncations = Truncations.of(adapter)
    full, tried = truncations.highest_rank, {}

    def gain(index: int) -> float:
        rank = index + 1
        resized = resize(adapter, rank=rank)
        tried[rank] = resized, adapter_loss if rank == full else loss(f"rank {rank}", resized.adapter)
        return gain_kept(tried[rank][1], base_loss=base_loss, adapter_loss=adapter_loss)

    lost = [truncations.lost(truncations.uniform(rank)) for rank in range(1, full + 1)]
    smallest, _ = smallest_sufficient(lost, gain, keep=keep)
    rank = full if smallest is None else smallest + 1
    return rank, {each: tried[each] for each in sorted(tried) if each in (rank, *range(full))}


def gain_kept(loss: float, *, base_loss: float, adapter_loss: float) -> float:
    """The share of an adapter's gain that a loss keeps: 1 at `adapter_loss`, 0 at `base_loss`."""
    return (base_loss - loss) / (base_loss - adapter_loss)


def _check(folder: Path, results: list[Path], *, force: bool) -> None:
    """Refuse a folder with results of an adapter that is not there, or with files that eckart did not write in them."""
    for path in filter(os.path.lexists, results):
        check_output(path, kind="folder", force=True)
    faults = [f"{path.name} exists" for path in results if path.exists()]
    if faults and not (folder / ADAPTER).exists() and not force:
        msg = f"{folder} contains results without their adapter; choose another folder, or replace them with `force`"
        raise OutputError.listing(msg, faults)


class _Measure:
    """One model in memory, measured on one text with different adapters."""

    def __init__(self, model: Path, text: str, length: int, progress: Progress) -> None:
        self.tokens = 0
        self._tokenizer, self._text, self._length = load_tokenizer(model), text, length
        self._progress = progress
        self._model = load_model(model)

    def load(self, model: Path) -> None:
        """Replace the model by another."""
        del self._model
        self._model = load_model(model)

    def loss(self, label: str, adapter: Adapter | None = None) -> float:
        """Nats per token."""
        with adapter_applied(self._model, adapter or Adapter({})):
            result = text_loss(
                self._model,
                self._text,
                self._tokenizer,
                max_length=self._length,
                progress=self._progress,
                stage=f"Measuring: {label}",
            )
        self.tokens = result.tokens
        return result.nats_per_token

    def predictions(self, adapter: Adapter | None = None) -> Tensor:
        """Log-probabilities of the next token after each of the first tokens of the text."""
        with adapter_applied(self._model, adapter or Adapter({})):
            return log_probabilities(self._model, self._ids)

    @cached_property
    def _ids(self) -> Tensor:
        return torch.tensor(self._tokenizer(self._text, verbose=False)["input_ids"])[: 2 * self._length]

"""The whole story on one real model: fine-tune it, look at the update, extract adapters, and see what they keep."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eckart.adapter import Adapter, AdapterResult, extract
from eckart.analysis import Analysis, analyze
from eckart.demo.corpus import language_reference
from eckart.demo.package import MODEL, require_demo
from eckart.demo.pair import Pair, finished_parts, make_pair
from eckart.engine import Run
from eckart.errors import OutputError
from eckart.evaluation import GainReport, measure_gains
from eckart.report import save_figures
from eckart.training import FinetuneSettings, fast_dtype

FORMAT = "eckart-demo/1"


@dataclass(frozen=True)
class StorySettings:
    """What the demo does: the training, the ranks to extract, and how much held-out text is measured."""

    training: FinetuneSettings
    ranks: tuple[int, ...] = (1, 4, 16)
    held_out_chars: int = 20_000


@dataclass(frozen=True)
class Moment:
    """Where the story is: a stage, how far it has come, and what is worth knowing now."""

    stage: str
    done: int
    total: int
    detail: str = ""


StoryCallback = Callable[[Moment], None]


@dataclass(frozen=True)
class Chapter:
    """One adapter: how it was extracted and what it recovers."""

    extraction: AdapterResult
    gain: GainReport
    rank: int


@dataclass(frozen=True)
class Story:
    """All that the demo made and measured.

    Attributes:
        pair: folders of the base and the fine-tune.
        analysis: spectra of their difference, written to `analysis_folder`.
        figures: the pictures of the analysis.
        chapters: an adapter each, in the order of the ranks.
        seconds: wall time of the whole.
    """

    pair: Pair
    analysis: Analysis
    analysis_folder: Path
    figures: list[Path]
    chapters: list[Chapter]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """The `eckart-demo/1` object."""
        gain = self.chapters[0].gain
        return {
            "format": FORMAT,
            "base": str(self.pair.base),
            "tuned": str(self.pair.tuned),
            "base_loss": gain.base_loss,
            "tuned_loss": gain.tuned_loss,
            "tokens": gain.tokens,
            "adapters": [
                {
                    "rank": chapter.rank,
                    "path": str(chapter.extraction.output),
                    "bytes": chapter.extraction.nbytes,
                    "error": chapter.extraction.error,
                    "loss": chapter.gain.adapter_loss,
                    "gain_recovered": chapter.gain.gain_recovered,
                }
                for chapter in self.chapters
            ],
            "figures": [str(path) for path in self.figures],
            "seconds": self.seconds,
        }


def quick_settings() -> StorySettings:
    """Thirty steps of 4×256 tokens: minutes on two cores, and enough to learn."""
    return StorySettings(FinetuneSettings(steps=30, learning_rate=1e-4, compute_dtype=fast_dtype()))


def tell_story(
    folder: str | Path,
    settings: StorySettings,
    *,
    model: str | Path = MODEL,
    force: bool = False,
    progress: StoryCallback = lambda moment: None,
) -> Story:
    """Fine-tune a model, analyse the update, extract adapters of several ranks and measure what each keeps.

    Args:
        folder: gets base/, tuned/, analysis/ and adapter-r1/ …; what a stopped run with the same settings finished
            there is kept.
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
    if model == MODEL:
        require_demo()
    _check(folder, settings, model, force=force)
    progress(Moment("Reading the model", 0, 1))
    pair = make_pair(
        folder,
        settings.training,
        model=model,
        force=force,
        progress=lambda step, steps, loss: progress(Moment("Fine-tuning", step, steps, f"loss {loss:.2f}")),
    )
    run = Run(progress=_Counted(progress))
    # From here on all is made again from the pair: seconds of work, and never older than the pair.
    analysis = analyze(str(pair.tuned), str(pair.base), output=folder / "analysis", force=True, run=run)
    progress(Moment("Drawing", 0, 1))
    figures = save_figures(analysis, folder / "analysis")
    extractions = {
        rank: extract(str(pair.base), str(pair.tuned), rank=rank, output=_adapter(folder, rank), force=True, run=run)
        for rank in settings.ranks
    }
    gains = _measure(pair, {rank: found.adapter for rank, found in extractions.items()}, settings, progress)
    chapters = [Chapter(extractions[rank], gains[rank], rank) for rank in settings.ranks]
    return Story(pair, analysis, folder / "analysis", figures, chapters, time.monotonic() - began)


def _check(folder: Path, settings: StorySettings, model: str | Path, *, force: bool) -> None:
    """Refuse a folder whose results are not those of this story's own pair."""
    whole = all(finished_parts(folder, settings.training, model, force=force))
    derived = [folder / "analysis", *(_adapter(folder, rank) for rank in settings.ranks)]
    found = [f"{path.name} exists" for path in derived if path.exists()]
    if found and not whole and not force:
        msg = f"{folder} holds results without the models they came from; choose another folder, or replace: --force"
        raise OutputError.of(msg, found)


def _adapter(folder: Path, rank: int) -> Path:
    return folder / f"adapter-r{rank}"


def _measure(
    pair: Pair, adapters: dict[int, Adapter], settings: StorySettings, progress: StoryCallback
) -> dict[int, GainReport]:
    """The gain that each adapter recovers on topics that the training has not seen."""
    named = {f"rank {rank}": adapter for rank, adapter in adapters.items()}
    measured = ["base", *named, "tuned"]

    def tell(label: str, done: int, windows: int) -> None:
        before = measured.index(label) * windows
        progress(Moment("Measuring on held-out text", before + done, len(measured) * windows, label))

    text = _excerpt(settings.held_out_chars)
    gains = measure_gains(str(pair.base), str(pair.tuned), named, text, progress=tell)
    return {rank: gains[f"rank {rank}"] for rank in adapters}


def _excerpt(chars: int) -> str:
    """The same share of every held-out topic, from its beginning, `chars` in all."""
    topics = language_reference().held_out.values()
    share = min(1.0, chars / sum(map(len, topics)))
    return "\n\n".join(text[: round(len(text) * share)] for text in topics)


class _Counted:
    """The engine's progress as moments of the story."""

    def __init__(self, progress: StoryCallback) -> None:
        self._progress = progress
        self._stage, self._done, self._total = "", 0, 0

    def start(self, stage: str, matrices: int, nbytes: int) -> None:
        """A stage of the engine begins."""
        self._stage, self._done, self._total = stage, 0, matrices

    def advance(self, name: str, nbytes: int) -> None:
        """One more matrix is done."""
        self._done += 1
        self._progress(Moment(self._stage, self._done, self._total))

    def note(self, message: str) -> None:
        """What the engine says goes beside the stage."""
        self._progress(Moment(self._stage, self._done, self._total, message))

    def finish(self) -> None:
        """The next stage tells for itself."""

"""The adapter that the demo trains: its settings, its text and its results."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from eckart.checkpoint import atomic_directory
from eckart.checkpoint.output import remove_leftovers
from eckart.demo.base import Record, is_finished, write_record
from eckart.demo.corpus import Corpus, language_reference
from eckart.engine.progress import Progress
from eckart.errors import SourceError
from eckart.nn import LoRAConfig
from eckart.report import save_training_figures
from eckart.report.page import FILE as PAGE
from eckart.report.page import training_page
from eckart.training import DataOptions, Dynamics, TrainResult, TrainSettings, fast_dtype, read_dynamics, train
from eckart.training.result import RESULT_FILE
from eckart.training.rundir import remove_work

ADAPTER = "adapter"


@dataclass(frozen=True)
class DemoSettings:
    """Settings of the demo: adapter, training, amount of held-out text, and the share of the gain to keep."""

    adapter: LoRAConfig = field(default_factory=lambda: LoRAConfig(rank=8, alpha=16))
    training: TrainSettings = field(default_factory=TrainSettings)
    sequence_tokens: int = 256
    held_out_chars: int = 20_000
    keep: float = 0.95


def quick_settings() -> DemoSettings:
    """Thirty steps of 4×256 tokens: minutes on two cores, and enough to learn something."""
    return DemoSettings(training=TrainSettings(steps=30, learning_rate=2e-3, dtype=fast_dtype(), eval_every=10))


@dataclass(frozen=True)
class Learned:
    """A trained adapter: its folder, the numbers in its `train.json`, and its dynamics."""

    folder: Path
    numbers: Mapping[str, Any]
    dynamics: Dynamics

    @property
    def figures(self) -> list[Path]:
        """The figures in the adapter's folder."""
        return sorted(self.folder.glob("*.png"))

    @property
    def page(self) -> Path:
        """The interactive page of the training."""
        return self.folder / PAGE


def write_texts(folder: Path, settings: DemoSettings, *, force: bool) -> tuple[Path, Path]:
    """Write `folder`/text, unless it exists: the training and the held-out text, which a user can read and train on.

    Raises:
        OutputError: it has other content, and must not be replaced.
    """
    corpus, part = language_reference(), folder / "text"
    texts = {
        "training.txt": "\n\n".join(corpus.training.values()),
        "heldout.txt": excerpt(corpus, settings.held_out_chars),
    }
    if not all((part / name).is_file() and (part / name).read_text() == text for name, text in texts.items()):
        with atomic_directory(part, force=force) as new:
            for name, text in texts.items():
                (new / name).write_text(text)
    remove_leftovers(part)
    return part / "training.txt", part / "heldout.txt"


def excerpt(corpus: Corpus, chars: int) -> str:
    """The beginning of every held-out topic, the same share of each, `chars` characters together."""
    topics = corpus.held_out.values()
    share = min(1.0, chars / sum(map(len, topics)))
    return "\n\n".join(text[: round(len(text) * share)] for text in topics)


def learn(
    folder: Path, base: Path, texts: tuple[Path, Path], settings: DemoSettings, *, force: bool, progress: Progress
) -> Learned:
    """Train `folder`/adapter, unless it exists with the same settings; an interrupted training resumes.

    Raises:
        OutputError: the adapter has other settings or another origin.
        DivergenceError, TrainingInterrupted: see `eckart.train`.
    """
    record, output = learning_record(base, settings), folder / ADAPTER

    def finish(finished: Path, result: TrainResult) -> None:
        save_training_figures(result, finished)
        (finished / PAGE).write_text(training_page(result, title=ADAPTER), encoding="utf-8")
        write_record(finished, record)

    if all(is_finished(folder, {ADAPTER: record}, force=force)):
        remove_work(output)
    else:
        train(
            str(base),
            texts[0],
            config=settings.adapter,
            settings=settings.training,
            options=DataOptions(settings.sequence_tokens),
            held_out=texts[1],
            output=output,
            resume=not force,
            force=force,
            finish=finish,
            progress=progress,
        )
    try:
        numbers = json.loads((output / RESULT_FILE).read_text())
    except (OSError, ValueError) as error:
        msg = f"{output / RESULT_FILE} cannot be read ({error}); use `force` to train again"
        raise SourceError(msg) from None
    return Learned(output, numbers, read_dynamics(output))


def learning_record(base: Path, settings: DemoSettings) -> Record:
    """What the adapter depends on."""
    facts = {"base": base.name, "adapter": asdict(settings.adapter), "training": asdict(settings.training)}
    facts |= {"sequence_tokens": settings.sequence_tokens, "held_out_chars": settings.held_out_chars}
    return json.loads(json.dumps(facts))

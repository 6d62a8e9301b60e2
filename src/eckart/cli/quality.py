"""Options that judge or improve an adapter by text: its gain on held-out text, and its distillation."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from eckart.checkpoint.source import shown_source
from eckart.cli.options import RANK, in_group
from eckart.cli.progress import StderrProgress
from eckart.errors import MissingExtraError, OptionError, SourceError

if TYPE_CHECKING:
    from eckart.adapter import Adapter
    from eckart.cli.drawing import Drawing
    from eckart.evaluation import GainReport, HeldOut
    from eckart.operations import AdapterResult
    from eckart.training import Distillation, GainCurve, RankByGain

QUALITY = "Quality on text"

EvalText = Annotated[
    str | None,
    in_group(
        *(QUALITY, "--eval"),
        metavar="TEXT",
        help="Held-out data on which to measure the gain recovered, in any form that train takes: text, JSONL, JSON, "
        "Parquet or a dataset on the hub.",
    ),
]
EvalMetric = Annotated[
    Literal["loss", "kl"],
    in_group(
        *(QUALITY, "--metric"),
        metavar="loss|kl",
        help="Measure the loss on the text, or the divergence from the original's predictions.",
    ),
]
KeepGain = Annotated[
    float | None,
    in_group(
        *(RANK, "--gain"),
        metavar="SHARE",
        help="The smallest rank that keeps this share of the gain on --eval TEXT, such as 0.95.",
    ),
]


def _ladder(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(rank) for rank in text.split(","))
    except ValueError:
        msg = f"{text!r}: expected ranks separated by commas, such as 1,2,4,8"
        raise typer.BadParameter(msg) from None


Ladder = Annotated[
    Any,
    in_group(
        *(RANK, "--ladder"),
        metavar="N,N,…",
        parser=_ladder,
        help="With --gain, measure exactly these ranks. [default: search among all]",
    ),
]
ShareRanks = Annotated[
    bool,
    in_group(
        RANK, "--share", help="With --gain, distribute the size of each rank over the layers to keep the most energy."
    ),
]
MaxRank = Annotated[
    int | None,
    in_group(
        *(RANK, "--max-rank"),
        metavar="N",
        min=1,
        help="With --gain, the highest rank. If it does not keep enough, its factors are distilled.",
    ),
]
DistillText = Annotated[
    Path | None,
    in_group(
        *(QUALITY, "--distill"),
        metavar="TEXT",
        help="Text file on which to train the factors, so that the model predicts as the original does.",
    ),
]
Steps = Annotated[
    int | None, in_group(QUALITY, "--steps", metavar="N", min=1, help="Training steps of --distill. [default: 40]")
]


def read_text(path: Path, option: str = "eval") -> str:
    """The text that an option names, read before any work.

    Raises:
        SourceError: the file is missing, empty, or not UTF-8 text.
        MissingExtraError: transformers, which its use takes, is not installed.
    """
    require_transformers(path, option)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        msg = f"`{option}={path}` cannot be read ({error.strerror}); expected a text file"
        raise SourceError(msg) from None
    except UnicodeDecodeError:
        msg = f"`{option}={path}` is not UTF-8 text"
        raise SourceError(msg) from None
    if not text.strip():
        msg = f"`{option}={path}` is empty"
        raise SourceError(msg)
    return text


def require_transformers(text: str | Path, option: str = "eval") -> None:
    """Refuse an option that names a text if transformers is not installed."""
    if find_spec("transformers") is None:
        raise MissingExtraError.for_extra(extra="train", purpose=f"`{option}={text}`")


@contextmanager
def distillation(
    base: str | None,
    teacher: "str | Adapter",
    text: Path | None,
    *,
    steps: int | None,
    seed: int = 0,
    device: str = "cpu",
) -> "Iterator[Distillation | None]":
    """The distillation that was asked for, its text read and checked, with its steps shown while the block runs.

    Raises:
        OptionError: steps without a text.
        EckartError: the text is missing or too short, or the base has no tokenizer.
    """
    if text is None:
        if steps is not None:
            msg = "`steps` is the length of the distillation; name its text with `distill`"
            raise OptionError(msg)
        yield None
        return
    if base is None:
        msg = "`distill` needs the model that the adapter belongs to, and the adapter names none; give `base=BASE`"
        raise OptionError(msg)
    content = read_text(text, "distill")
    from eckart.engine import Execution
    from eckart.training import Distillation, fast_dtype
    from eckart.training.distiller import SHORT

    settings = replace(SHORT, steps=steps or SHORT.steps, seed=seed, compute_dtype=fast_dtype())
    with StderrProgress() as progress:
        yield Distillation(
            base, teacher, content, settings, device=Execution(device=device).torch_device(), progress=progress
        )


def distilled_fact(refine: "Distillation | None") -> dict[str, Any]:
    """The field `distill` of a command's JSON."""
    result = refine.result if refine else None
    return {"distill": result.to_json() if result else None}


@dataclass
class Judgement:
    """How an adapter is judged by its gain on held-out data, and how its rank is chosen by it.

    Attributes:
        base, tuned: the models that adapters are measured with; `tuned` may be an adapter.
        source: the SOURCE of `tuned`.
        held_out: the data; None if nothing is measured.
        by_gain: chooses the rank; None if another rule does.
        report: the gain, once it was measured.
    """

    base: str | None
    tuned: "str | Adapter"
    source: str
    held_out: "HeldOut | None"
    metric: Literal["loss", "kl"]
    device: Any
    by_gain: "RankByGain | None" = None
    report: "GainReport | None" = None

    @property
    def curve(self) -> "GainCurve | None":
        """The measured ranks, if one was chosen by its gain."""
        return self.by_gain.result if self.by_gain else None

    def distillation(self, refine: "Distillation | None") -> "Distillation | None":
        """The distillation that was run: the one given, or the one that the rank needed."""
        return self.by_gain.distillation if self.by_gain else refine

    def content(self, result: "AdapterResult", refine: "Distillation | None") -> dict[str, Any]:
        """The JSON object of a command: its result with what was measured of it."""
        return result.to_json() | self.facts(result.adapter) | distilled_fact(self.distillation(refine))

    def write(self, place: Path, result: "AdapterResult", *, drawing: "Drawing", refine: "Distillation | None") -> None:
        """Add what was measured to an output: to its card, and of a rank chosen by its gain the curve and the page."""
        from eckart.cli.drawing import write_result
        from eckart.operations.card import add_facts

        content = self.content(result, refine)
        if not place.is_dir():
            return
        if self.report is not None:
            add_facts(place, gain_facts(self.report))
        if self.by_gain is not None:
            write_result(place, f"{result.made_by}.json", content)
            drawing.draw(place, content)

    def facts(self, adapter: "Adapter") -> dict[str, Any]:
        """The fields `eval` and `gain` of a command's JSON; the gain is measured once."""
        if self.by_gain is not None and self.by_gain.result is not None:
            self.report = self.by_gain.result.report
        elif self.held_out is not None and self.report is None:
            from eckart.evaluation import measure_gain

            with StderrProgress() as progress:
                self.report = measure_gain(
                    self.base or "", self.tuned, adapter, self.held_out, metric=self.metric, device=self.device,
                    progress=progress,
                )  # fmt: skip
        curve = self.curve
        models = {"base": shown_source(self.base or ""), "source": shown_source(self.source)}
        return {
            "eval": self.report.to_json() if self.report else None,
            "gain": curve.to_json() | models if curve else None,
        }


@contextmanager
def judgement(
    base: str | None,
    tuned: "str | Adapter",
    source: str,
    text: str | None,
    *,
    metric: Literal["loss", "kl"],
    gain: float | None,
    ladder: tuple[int, ...] | None,
    share: bool,
    max_rank: int | None,
    refine: "Distillation | None",
    device: str,
    is_ordered: bool,
) -> "Iterator[Judgement]":
    """Read the held-out data before any work, and choose the rank by it if that was asked for.

    Raises:
        OptionError: an option lacks the one that it belongs to, or there is no base.
        EckartError: the data cannot be read; see `held_out_for`.
    """
    check_gain_options(text, gain=gain, ladder=ladder, share=share, max_rank=max_rank, metric=metric)
    if text is None:
        yield Judgement(base, tuned, source, None, metric, "cpu")
        return
    if base is None:
        msg = "`eval` needs the model that the adapter belongs to, and the adapter names none; give `base=BASE`"
        raise OptionError(msg)
    require_transformers(text)
    from eckart.engine import Execution
    from eckart.training import GainChoice, RankByGain, held_out_for, overlap_note
    from eckart.training.overlap import overlapping

    held_out, place = held_out_for(base, text), Execution(device=device).torch_device()
    with StderrProgress() as progress:
        notes = [*held_out.notes, overlap_note(held_out, source, base)]
        if refine is not None and (count := held_out.overlap([refine.ids])):
            notes.append(overlapping(count, len(held_out.sequences), "the text of `distill`"))
        for fact in filter(None, notes):
            progress.note(fact[0].upper() + fact[1:])
        judged = Judgement(base, tuned, source, held_out, metric, place)
        if gain is not None:
            choice = GainChoice(
                gain, metric=metric, shared=share, ladder=ladder or (), max_rank=max_rank,
                remedy=max_rank is not None or refine is not None,
            )  # fmt: skip
            judged.by_gain = RankByGain(
                base, tuned, held_out, choice, distillation=refine, is_ordered=is_ordered, device=place,
                progress=progress,
            )  # fmt: skip
        yield judged


def rank_options(
    rank: Any,
    energy: float | None,
    error: float | None,
    budget: str | None,
    *,
    gain: float | None,
    candidates: Mapping[str, Any],
) -> dict[str, Any]:
    """The rank choice of an operation; with `gain` that of the candidates which it chooses from.

    Raises:
        OptionError: there is another choice next to `gain`.
    """
    given = {"rank": rank, "energy": energy, "error": error, "budget": budget}
    if gain is None:
        return given
    if others := [name for name, value in given.items() if value is not None]:
        msg = f"choose ranks in exactly one way; got `gain` and {', '.join(f'`{name}`' for name in others)}"
        raise OptionError(msg)
    return dict(candidates)


def check_gain_options(
    text: str | None,
    *,
    gain: float | None,
    ladder: tuple[int, ...] | None,
    share: bool,
    max_rank: int | None,
    metric: str,
) -> None:
    """Refuse options without the one that they belong to."""
    if gain is not None and text is None:
        msg = "`gain` is measured on held-out text; name it with `eval`"
        raise OptionError(msg)
    lonely = [name for name, value in (("ladder", ladder), ("share", share), ("max_rank", max_rank)) if value]
    if gain is None and lonely:
        msg = f"{' and '.join(f'`{name}`' for name in lonely)} can only be used with `gain`"
        raise OptionError(msg)
    if metric != "loss" and text is None:
        msg = "`metric` is of the gain on held-out text; name it with `eval`"
        raise OptionError(msg)


def gain_facts(gain: "GainReport | None") -> list[tuple[str, str]]:
    """The gain for a model card; nothing if it was not measured."""
    if gain is None:
        return []
    losses = f"base {gain.base_loss:.4f}, fine-tune {gain.tuned_loss:.4f}, base with adapter {gain.adapter_loss:.4f}"
    facts = [(f"Loss on {gain.tokens:,} tokens, in nats per token", losses)]
    if gain.gain_recovered is not None:
        facts.append(("Gain recovered", f"{100 * gain.gain_recovered:.3g} %"))
    return facts

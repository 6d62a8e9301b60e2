"""Options that judge or improve an adapter by text: its gain on held-out text, and its distillation."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from eckart.cli.options import in_group
from eckart.cli.progress import StderrProgress
from eckart.errors import MissingExtraError, OptionError, SourceError

if TYPE_CHECKING:
    from eckart.adapter import Adapter
    from eckart.evaluation import GainReport
    from eckart.training import Distillation

QUALITY = "Quality on text"

EvalText = Annotated[
    Path | None, in_group(QUALITY, "--eval", metavar="TEXT", help="Text file on which to measure the gain recovered.")
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
    if find_spec("transformers") is None:
        raise MissingExtraError.for_extra(extra="train", purpose=f"`{option}={path}`")
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


def gain_of(base: str, tuned: str, adapter: "Adapter", text: str) -> "GainReport":
    """Losses of base, base with adapter, and fine-tune on a text."""
    from eckart.evaluation import measure_gain

    return measure_gain(base, tuned, adapter, text, progress=StderrProgress())


def gain_facts(gain: "GainReport | None") -> list[tuple[str, str]]:
    """The gain for a model card; nothing if it was not measured."""
    if gain is None:
        return []
    losses = f"base {gain.base_loss:.4f}, fine-tune {gain.tuned_loss:.4f}, base with adapter {gain.adapter_loss:.4f}"
    facts = [(f"Loss on {gain.tokens:,} tokens, in nats per token", losses)]
    if gain.gain_recovered is not None:
        facts.append(("Gain recovered", f"{100 * gain.gain_recovered:.3g} %"))
    return facts

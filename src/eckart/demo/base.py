"""The demo's base model as an ordinary checkpoint: SmolLM2-135M-Instruct in bfloat16, with its tokenizer.

A Python package carries it, so no hub is asked. Each part that the demo trains or writes says what it was made from.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch

from eckart.checkpoint import atomic_directory
from eckart.demo.package import MODEL, require_demo
from eckart.errors import OutputError
from eckart.evaluation import load_model, load_tokenizer
from eckart.evaluation.model import quiet_transformers

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

RECORD_FILE = "eckart-demo.json"

Record = Mapping[str, object]


def make_base(folder: Path, *, model: str | Path = MODEL, force: bool = False) -> Path:
    """Write `folder`/base; one that is there from the same model is kept as it is.

    Raises:
        OutputError: it comes from another model, or from elsewhere.
        MissingExtraError, SourceError: the libraries or the model are not there.
    """
    base, record = folder / "base", base_record(model)
    if not all(finished(folder, {"base": record}, force=force)):
        if model == MODEL:
            require_demo()
        write_model(base, load_model(model), load_tokenizer(model), record, force=force)
    return base


def base_record(model: str | Path) -> Record:
    """What the base is made from."""
    return {"model": str(model)}


def finished(folder: Path, records: Mapping[str, Record], *, force: bool) -> list[bool]:
    """Whether each part of `folder` is there, whole and made from what its record says.

    Raises:
        OutputError: a part comes from something else, and may not be replaced.
    """
    same = {name: record_of(folder / name) == dict(record) for name, record in records.items()}
    faults = [f"{name} exists" for name, done in same.items() if not done and (folder / name).exists()]
    if faults and not force:
        msg = f"{folder} holds parts that do not come from these settings; choose another folder, or replace: --force"
        raise OutputError.listing(msg, faults)
    return list(same.values())


def record_of(part: Path) -> object:
    """What a part was made from, None where it does not say."""
    try:
        return json.loads((part / RECORD_FILE).read_text())
    except (OSError, ValueError):
        return None


def write_record(part: Path, record: Record) -> None:
    """Say in a part what it is made from."""
    (part / RECORD_FILE).write_text(json.dumps(record, indent=2) + "\n")


def write_model(
    part: Path,
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    record: Record,
    *,
    force: bool,
) -> None:
    """Write a model in bfloat16, with its tokenizer, whole or not at all; the model is left converted."""
    part.parent.mkdir(parents=True, exist_ok=True)
    with atomic_directory(part, force=force) as folder, quiet_transformers():
        cast("nn.Module", model).to(torch.bfloat16)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        write_record(folder, record)

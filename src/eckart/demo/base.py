"""The demo's base model as an ordinary checkpoint: SmolLM2-135M-Instruct in bfloat16, with its tokenizer.

It comes from a Python package, so no hub is needed. Each folder that the demo writes records what it depends on.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch

from eckart.checkpoint import atomic_directory
from eckart.checkpoint.output import remove_leftovers
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
    """Write `folder`/base, unless it exists and comes from the same model.

    Raises:
        OutputError: it comes from another model, or has another origin.
        MissingExtraError, SourceError: the libraries or the model are not installed.
    """
    base, record = folder / "base", base_record(model)
    if not all(is_finished(folder, {"base": record}, force=force)):
        if model == MODEL:
            require_demo()
        write_model(base, load_model(model), load_tokenizer(model), record, force=force)
    return base


def base_record(model: str | Path) -> Record:
    """What the base depends on."""
    return {"model": str(model)}


def is_finished(folder: Path, records: Mapping[str, Record], *, force: bool) -> list[bool]:
    """Whether each of these parts of `folder` exists and has the same record; what a kill left of these is removed.

    Raises:
        OutputError: a part has another record or origin, and must not be replaced, or another process is writing it.
    """
    same = {name: read_record(folder / name) == dict(record) for name, record in records.items()}
    faults = [f"{name} exists" for name, done in same.items() if not done and (folder / name).exists()]
    if faults and not force:
        msg = f"{folder} contains results of other settings; choose another folder, or replace them with `force`"
        raise OutputError.listing(msg, faults)
    for name in filter(same.get, same):
        remove_leftovers(folder / name)
    return list(same.values())


def read_record(part: Path) -> object:
    """The record in a part; None if it has none."""
    try:
        return json.loads((part / RECORD_FILE).read_text())
    except (OSError, ValueError):
        return None


def write_record(part: Path, record: Record) -> None:
    """Write the record of a part into it."""
    (part / RECORD_FILE).write_text(json.dumps(record, indent=2) + "\n")


def write_model(
    part: Path,
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    record: Record,
    *,
    force: bool,
) -> None:
    """Write a model in bfloat16 with its tokenizer, completely or not at all; the model itself is converted too."""
    part.parent.mkdir(parents=True, exist_ok=True)
    with atomic_directory(part, force=force) as folder, quiet_transformers():
        cast("nn.Module", model).to(torch.bfloat16)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        write_record(folder, record)

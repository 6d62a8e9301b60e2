"""A language model without its weights: its modules and shapes, for whatever can be checked before they are read."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from eckart.evaluation.model import _place, _refusals, quiet_transformers, require_transformers

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def outline_model(source: str | Path) -> "PreTrainedModel":
    """The causal language model of a SOURCE on the meta device, from its config alone.

    Raises:
        MissingExtraError: transformers is not installed.
        SourceError: there is no such source, or transformers knows no language model of its config.
    """
    transformers = require_transformers("building a language model")
    folder, gguf = _place(source)
    options = {} if gguf is None else {"gguf_file": gguf}
    with quiet_transformers(), _refusals(f"{source} does not load as a causal language model"), torch.device("meta"):
        config = transformers.AutoConfig.from_pretrained(folder, **options)
        return transformers.AutoModelForCausalLM.from_config(config)

"""A language model without its weights: modules and shapes, for checks before any weight is read."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from eckart.evaluation.model import folder_and_gguf_file, quiet_transformers, require_transformers, source_errors

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def outline_model(source: str | Path) -> "PreTrainedModel":
    """The causal language model of a SOURCE on the meta device, from its config alone.

    Raises:
        MissingExtraError: transformers is not installed.
        SourceError: there is no such source, or transformers has no language model for its config.
    """
    transformers = require_transformers("building a language model")
    folder, gguf = folder_and_gguf_file(source)
    options = {} if gguf is None else {"gguf_file": gguf}
    with (
        quiet_transformers(),
        source_errors(f"{source} does not load as a causal language model"),
        torch.device("meta"),
    ):
        config = transformers.AutoConfig.from_pretrained(folder, **options)
        return transformers.AutoModelForCausalLM.from_config(config)

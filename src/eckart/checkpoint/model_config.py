"""A model's config.json: read with the fields that eckart uses checked, so that what uses them need not."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eckart.checkpoint.json_files import field_faults, read_json_object
from eckart.checkpoint.links import refuse_links
from eckart.errors import FileFormatError

FILE = "config.json"
MOST_LAYERS = 10_000
_LAYERS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers")
_LENGTHS = ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx")
_FIELDS = {
    "architectures": (
        lambda value: isinstance(value, list) and all(isinstance(name, str) for name in value),
        "a list of class names",
    ),
    "model_type": (lambda value: isinstance(value, str), "a text"),
    "tie_word_embeddings": (lambda value: isinstance(value, bool), "true or false"),
    "hidden_size": (lambda value: type(value) is int, "a number"),
    "max_position_embeddings": (lambda value: type(value) is int, "a number of tokens"),
    **dict.fromkeys(
        _LAYERS, (lambda value: type(value) is int and value <= MOST_LAYERS, f"a number up to {MOST_LAYERS:,}")
    ),
}


def read_config(folder: Path | None) -> dict[str, Any]:
    """config.json of a folder, or {} when there is none.

    Raises:
        FileFormatError: it is damaged, a link out of the folder, or a field that eckart uses has another type.
    """
    if folder is None or not (folder / FILE).is_file():
        return {}
    refuse_links([folder / FILE], folder)
    return read_config_file(folder / FILE)


def read_config_file(file: Path) -> dict[str, Any]:
    """The config in a file (errors as `read_config`)."""
    config = read_json_object(file)
    faults = field_faults(config, _FIELDS)
    for name, part in config.items():
        if isinstance(part, dict):
            faults += [f"{name}.{fault}" for fault in field_faults(part, _FIELDS)]
    if faults:
        msg = f"{file}: fields of the wrong type"
        raise FileFormatError.listing(msg, faults)
    return config


def context_length(config: Mapping[str, Any]) -> int | None:
    """The most tokens of a sequence, by the config of a model or of its language model; None if neither states it."""
    stated = (part.get(name) for part in (config, config.get("text_config") or {}) for name in _LENGTHS)
    return next((length for length in stated if type(length) is int and length > 0), None)

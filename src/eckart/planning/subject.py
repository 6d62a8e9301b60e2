"""The model of a plan: a preset, a config from any source, or a number of parameters."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eckart.checkpoint.remote.urls import is_url
from eckart.checkpoint.source import SOURCE_MAY_BE, local_path
from eckart.errors import MissingExtraError, SourceError
from eckart.planning.preset_models import find_preset, nearest_presets

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_COUNT = re.compile(r"(?P<number>\d+(\.\d+)?)\s*(?P<unit>[kmbt])", re.IGNORECASE)
_SCALES = {"k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}
_HUB = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


def subject_of(
    model: "str | Path | Mapping[str, Any] | PretrainedConfig",
) -> "tuple[str, str | None, PretrainedConfig | int]":
    """Find the model that the user named: a file or folder, a preset, a number such as `8B`, or a name on the hub.

    Returns:
        the name to show; what `eckart train` takes for it, None for a config or a number; and its config, or the number
        of parameters where only that is given.

    Raises:
        SourceError: it is none of these, or its config does not name an architecture.
        MissingExtraError: transformers is not installed.
    """
    from eckart.planning.architecture import read_architecture

    if not isinstance(model, str | Path):
        config = read_architecture(model)
        return config.model_type or "model", None, config
    check_name(model)
    text = str(model).strip()
    exists = _exists(text)
    preset = None if exists else find_preset(text)
    if preset is not None:
        return preset.name, preset.hub, read_architecture(preset.config)
    count = None if exists else _COUNT.fullmatch(text)
    if count is not None:
        params = round(float(count["number"]) * _SCALES[count["unit"].lower()])
        if params < 1:
            msg = f"{text}: the number of parameters must be at least 1, such as 8B or 135M"
            raise SourceError(msg)
        return f"a model of {text}", None, params
    try:
        return text, text, read_architecture(text)
    except MissingExtraError:
        raise
    except SourceError as error:
        if exists:
            raise
        raise _unknown(text, why=str(error).splitlines()[0][:160]) from error


def check_name(model: str | Path) -> None:
    """Refuse what is neither a file or folder, a preset, a number of parameters nor a possible name on the hub.

    Raises:
        SourceError: it is none of these, or an adapter.
    """
    text = str(model).strip()
    if not text:
        raise _unknown(repr(text), why="no model is named")
    if not _exists(text):
        if find_preset(text) is None and not _COUNT.fullmatch(text) and not _HUB.fullmatch(text):
            raise _unknown(text, why="no preset, file or folder of that name")
    elif ((local_path(text) if is_url(text) else Path(text).expanduser()) / "adapter_config.json").is_file():
        msg = f"{text} is an adapter; give its base model instead"
        raise SourceError(msg)


def _exists(text: str) -> bool:
    return text.startswith("pkg:") or is_url(text) or Path(text).expanduser().exists()


def _unknown(text: str, *, why: str) -> SourceError:
    near = nearest_presets(text)
    hint = f" (similar: {', '.join(near)})" if near else ""
    msg = f"{text}: {why}{hint}; expected a preset such as llama-3-8b, a number of parameters such as 8B, or a SOURCE: "
    return SourceError(msg + SOURCE_MAY_BE)

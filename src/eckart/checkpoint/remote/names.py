"""Which files of a remote folder are weights, which are read at once, and which names are safe to use here."""

import re
from pathlib import Path, PurePosixPath

_WEIGHTS = (".safetensors", ".gguf", ".bin", ".pt", ".pth", ".ckpt")
_CONFIGS = (
    *("config.json", "adapter_config.json", "model_index.json", "README.md"),
    *("quantize_config.json", "quantization_config.json", "quant_config.json", "hf_quant_config.json"),
)
_COMPANIONS = re.compile(r".*\.(json|txt|model|jinja|tiktoken|py|md)|(LICENSE|NOTICE).*", re.DOTALL)
_NOT_IN_A_NAME = re.compile(r'[\\:\0<>|*?"]')
INDEX = ".safetensors.index.json"


def is_weights(name: str) -> bool:
    """Whether a file is read by ranges, or refused because it is pickled."""
    return PurePosixPath(name).suffix in _WEIGHTS


def is_config(name: str) -> bool:
    """Whether a file is read whenever its folder is opened."""
    return name in _CONFIGS or name.endswith(INDEX)


def is_known(name: str) -> bool:
    """Whether a file is one of a model."""
    return is_weights(name) or _COMPANIONS.fullmatch(name) is not None


def path_inside(folder: Path, name: str) -> Path | None:
    """The path of a file in a folder; None if its name leads elsewhere."""
    parts = PurePosixPath(name).parts
    is_plain = parts and not any(part in ("..", "/") or _NOT_IN_A_NAME.search(part) for part in parts)
    return folder.joinpath(*parts) if is_plain else None

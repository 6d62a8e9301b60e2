"""The adapter formats: one line for each, with the modules that read and write it and that know its names."""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Protocol, cast

from eckart.adapter.adapter import Adapter
from eckart.adapter.outline import AdapterFormat
from eckart.checkpoint.output import Kind

# The module of each format, and the one of its names if they are not those of the model's modules.
FORMATS: Mapping[AdapterFormat, tuple[str, str | None]] = {
    "peft": ("peft", None),
    "kohya": ("kohya", "kohya_names"),
    "comfyui": ("comfyui", None),
    "diffusers": ("diffusers", None),
    "mlx": ("mlx", "mlx_names"),
    "gguf": ("gguf_adapter", "gguf_names"),
}
CONFIG = "adapter_config.json"  # in folders of PEFT and of mlx-lm
PEFT_WEIGHTS, MLX_WEIGHTS = "adapter_model.safetensors", "adapters.safetensors"


class Format(Protocol):
    """What the module of a format provides."""

    def read(self, path: Path) -> Adapter:
        """The adapter in a file or folder; FileFormatError lists every fault."""
        ...

    def write(self, adapter: Adapter, path: Path, *, force: bool = False) -> None:
        """Write an adapter completely or not at all; MismatchError says what the format cannot express."""
        ...

    def output_kind(self, path: Path) -> Kind:
        """Whether `path` is written as a file or as a folder; OutputError suggests another name."""
        ...

    def refusals(self, adapter: Adapter) -> list[str]:
        """The parts of an adapter under module names that the format cannot store, each with the reason."""
        ...


def format_of(name: AdapterFormat) -> Format:
    """The module of a format, imported when it is used."""
    return cast("Format", import_module(f"eckart.formats.{FORMATS[name][0]}"))

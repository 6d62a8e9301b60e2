"""Checkpoint and adapter folders, read with safetensors alone, so that neither side judges itself."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

PREFIX = "base_model.model."


def readers(folder: Path) -> dict[str, Callable[[], Tensor]]:
    """Every tensor of a folder by name, each as a function that reads it."""

    def reader(file: Path, name: str) -> Callable[[], Tensor]:
        def read() -> Tensor:
            with safe_open(file, "pt") as opened:
                return opened.get_tensor(name)

        return read

    tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            tensors |= {name: reader(file, name) for name in opened.keys()}  # noqa: SIM118
    return tensors


def fingerprint(*folders: Path) -> str:
    """Changes when a weight file of the folders changes."""
    files = [file.stat() for folder in folders for file in sorted(folder.glob("*.safetensors"))]
    return hashlib.sha256(repr([(file.st_size, file.st_mtime_ns) for file in files]).encode()).hexdigest()[:16]


def adapter_updates(folder: Path) -> dict[str, Callable[[], Tensor]]:
    """The float64 update `scaling · B A` of every module in a PEFT adapter.

    Raises:
        ValueError: the adapter scales some modules differently; none of the compared tools should do that here.
    """
    config = json.loads((folder / "adapter_config.json").read_text())
    if config.get("alpha_pattern") or config.get("rank_pattern") or config.get("use_rslora") or config.get("use_dora"):
        msg = f"{folder}: expected one rank and one alpha for all modules, got {config}"
        raise ValueError(msg)
    scaling = config["lora_alpha"] / config["r"]
    tensors = readers(folder)

    def update(module: str) -> Callable[[], Tensor]:
        A, B = (tensors[f"{PREFIX}{module}.lora_{side}.weight"] for side in "AB")
        return lambda: scaling * (B().double() @ A().double())

    ending = ".lora_A.weight"
    modules = [name.removeprefix(PREFIX).removesuffix(ending) for name in tensors if name.endswith(ending)]
    return {module: update(module) for module in modules}

"""kohya's adapters: one .safetensors file with flattened module names, as sd-scripts, musubi-tuner and ComfyUI read it.

A module is `<prefix>_<its name with _ for every dot>`, which tables of families or the model's names undo.
ΔW = alpha / rank · up · down. Sources: sd-scripts' `networks/lora.py`, ComfyUI's `comfy/lora.py` and `weight_adapter`.
"""

from pathlib import Path

from eckart.adapter.adapter import Adapter
from eckart.adapter.outline import LayerKind
from eckart.checkpoint import atomic_file
from eckart.checkpoint.output import Kind
from eckart.formats.lora_file import read_file
from eckart.formats.lora_texts import texts_of
from eckart.formats.lora_writing import Spelling, refusals_of, require_storable, write_file
from eckart.formats.stored import file_kind

_SPELLING = Spelling(
    {
        "lora_A": ".lora_down.weight",
        "lora_B": ".lora_up.weight",
        "alpha": ".alpha",
        "dora_scale": ".dora_scale",
        "diff_b": ".diff_b",
    },
    alphas=True,
)
REASONS: dict[LayerKind, str] = {
    "embedding": "an embedding, and readers support only updates of linear layers and convolutions",
    "expert": "an expert, and readers do not support updates of single experts",
    "conv1d": "readers assume that a Conv1D's weight is (out, in) and would add its update transposed",
}


def read(path: Path) -> Adapter:
    """The adapter in a kohya file, under its flattened module names.

    Raises:
        FileFormatError: the tensors are no adapter; every fault is listed.
    """
    return read_file(path, "kohya")


def write(adapter: Adapter, path: Path, *, force: bool = False) -> None:
    """Write an adapter with flattened names as one file, completely or not at all, one layer after another.

    A layer's bias is written as `.diff_b`, which only ComfyUI reads.

    Raises:
        OutputError: `path` does not end in .safetensors, exists and `force` is not given, or cannot be written.
        MismatchError: the format cannot express the adapter; every fault is listed.
    """
    output_kind(path)
    dotted = "its name has dots; convert the adapter to kohya, which flattens names"
    faults = refusals(adapter) + [f"{name}: {dotted}" for name in adapter if "." in name]
    require_storable(adapter, faults, path, "kohya's format")
    with atomic_file(path, force=force, inputs=adapter.files) as file:
        write_file(adapter, file, _SPELLING, texts_of(adapter.outline(), kohya=True))


def output_kind(path: Path) -> Kind:
    """An adapter is a file; OutputError for a name that its readers would not find."""
    return file_kind(path, ".safetensors", "an adapter in kohya's format")


def refusals(adapter: Adapter) -> list[str]:
    """The parts of an adapter that the format cannot store, each with the reason."""
    return refusals_of(adapter, REASONS, readers="readers")

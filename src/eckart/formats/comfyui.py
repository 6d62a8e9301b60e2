"""ComfyUI's adapters: one .safetensors file whose keys begin with a module's own name, as in `diffusion_model.X`.

ai-toolkit, diffusion-pipe and many model authors write such files, also without the prefix. Source: ComfyUI's
`comfy/lora.py`.
"""

from pathlib import Path

from eckart.adapter.adapter import Adapter
from eckart.checkpoint import atomic_file
from eckart.checkpoint.output import Kind
from eckart.formats.kohya import REASONS
from eckart.formats.lora_file import read_file
from eckart.formats.lora_texts import texts_of
from eckart.formats.lora_writing import Spelling, refusals_of, require_storable, write_file
from eckart.formats.stored import file_kind

_SPELLING = Spelling(
    {
        "lora_A": ".lora_A.weight",
        "lora_B": ".lora_B.weight",
        "alpha": ".alpha",
        "dora_scale": ".dora_scale",
        "diff_b": ".diff_b",
    },
    alphas=False,
)


def read(path: Path) -> Adapter:
    """The adapter in a file, under the names of its keys.

    Raises:
        FileFormatError: the tensors are no adapter; every fault is listed.
    """
    return read_file(path, "comfyui")


def write(adapter: Adapter, path: Path, *, force: bool = False) -> None:
    """Write an adapter as one file, completely or not at all, one layer after another.

    Raises:
        OutputError: `path` does not end in .safetensors, exists and `force` is not given, or cannot be written.
        MismatchError: the format cannot express the adapter; every fault is listed.
    """
    output_kind(path)
    require_storable(adapter, refusals(adapter), path, "ComfyUI's format")
    with atomic_file(path, force=force, inputs=adapter.files) as file:
        write_file(adapter, file, _SPELLING, texts_of(adapter.outline(), kohya=False))


def output_kind(path: Path) -> Kind:
    """An adapter is a file; OutputError for a name that its readers would not find."""
    return file_kind(path, ".safetensors", "an adapter in ComfyUI's format")


def refusals(adapter: Adapter) -> list[str]:
    """The parts of an adapter that the format cannot store, each with the reason."""
    return refusals_of(adapter, REASONS, readers="readers")

"""Files of adapters: the format of a file and its reader, and saving one together with other files."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from eckart.adapter.adapter import Adapter
from eckart.adapter.outline import AdapterFormat
from eckart.checkpoint import atomic_directory, atomic_file, locate, open_checkpoint
from eckart.checkpoint.gguf_header import read_gguf_header
from eckart.checkpoint.output import Kind
from eckart.checkpoint.pipeline import COMPONENTS
from eckart.checkpoint.remote.table import named_by_urls
from eckart.checkpoint.source import local_path, shown_source
from eckart.errors import SourceError
from eckart.formats.components import component, component_of, joined
from eckart.formats.lora_keys import is_adapter_key, parse_key
from eckart.formats.table import CONFIG, MLX_WEIGHTS, PEFT_WEIGHTS, format_of
from eckart.result import Skipped


def load_adapter(source: str | Path) -> Adapter:
    """An adapter from its files or from the hub; headers are checked here, a layer is read when it is looked up.

    A folder with `adapter_config.json` is in PEFT's format, or in mlx-lm's by the name of its weights. A folder of PEFT
    folders, named like the components of a pipeline, is one adapter under diffusers' names. A GGUF file says that it is
    an adapter; in other files, tensor names decide between diffusers, kohya and ComfyUI.

    Args:
        source: folder, .safetensors or .gguf file, or hub name.

    Raises:
        SourceError: `source` is not an adapter.
        FileFormatError: config and tensors are damaged or disagree; every fault is listed.
    """
    with named_by_urls():
        return _load(source)


def _load(source: str | Path) -> Adapter:
    path = local_path(source)
    path = nested_adapter(path) or path
    if (path / CONFIG).is_file():
        is_mlx = (path / MLX_WEIGHTS).is_file() and not (path / PEFT_WEIGHTS).is_file()
        return format_of("mlx" if is_mlx else "peft").read(path)
    folders = {part: path / part for part in COMPONENTS if (path / part / CONFIG).is_file()}
    if folders:
        return joined({part: format_of("peft").read(folder) for part, folder in folders.items()})
    files = locate(source)
    file = files.weights[0]
    if (files.folder / CONFIG).is_file() and file.name.startswith(Path(PEFT_WEIGHTS).stem):
        return format_of("peft").read(files.folder)
    if file.name.endswith(MLX_WEIGHTS):  # mlx-lm numbers earlier states of a training run: 0000100_adapters.safetensors
        return format_of("mlx").read(file)
    if name := None if len(files.weights) > 1 else _format_of_file(file):
        return format_of(name).read(file)
    msg = (
        f"{shown_source(source)}: neither a PEFT adapter (a folder with {CONFIG} and {PEFT_WEIGHTS}), nor one of "
        f"mlx-lm (with {MLX_WEIGHTS}), nor a file with LoRA tensors under the names of diffusers, kohya's sd-scripts "
        "or ComfyUI, nor a GGUF file of llama.cpp's that is an adapter"
    )
    raise SourceError(msg)


def nested_adapter(folder: Path) -> Path | None:
    """The subfolder with a PEFT adapter, where PEFT saves one with a name, of a folder without files of its own.

    Raises:
        SourceError: several subfolders have one.
    """
    own = (CONFIG, "*.safetensors", "*.gguf")
    if not folder.is_dir() or any(any(folder.glob(pattern)) for pattern in own):
        return None
    nested = sorted(file.parent for file in folder.glob(f"*/{CONFIG}") if file.parent.name not in COMPONENTS)
    if len(nested) > 1:
        msg = f"{folder}: contains several adapters; give one of them"
        raise SourceError.listing(msg, [str(each) for each in nested])
    return nested[0] if nested else None


def is_adapter_file(path: Path) -> bool:
    """Whether a file is an adapter in llama.cpp's format rather than a model, by its header.

    Raises:
        FileFormatError: it is not a GGUF file.
    """
    return path.suffix == ".gguf" and read_gguf_header(path).metadata.get("general.type") == "adapter"


def _format_of_file(file: Path) -> AdapterFormat | None:
    """The format of an adapter that is one file; None if it is none."""
    if file.suffix == ".gguf":
        return "gguf" if is_adapter_file(file) else None
    keys = list(open_checkpoint(file).tensors)
    if not any(map(is_adapter_key, keys)):
        return None
    modules = {found.module for key in keys if (found := parse_key(key))}
    if all("." not in module for module in modules):
        return "kohya"
    dotted = [module for module in modules if "." in module]
    of_pipeline = len(dotted) == len(modules) and any(component(name) or component_of([name]) for name in dotted)
    return "diffusers" if of_pipeline else "comfyui"


def output_kind(adapter: Adapter, path: Path) -> Kind:
    """Whether an adapter is written to `path` as a file or as a folder, before any work.

    Raises:
        OutputError: the message suggests a name.
    """
    return format_of(adapter.format).output_kind(path)


@contextmanager
def saved_adapter(adapter: Adapter, path: Path, *, force: bool) -> Iterator[Path]:
    """The file or folder of an adapter before it is renamed to `path`, which happens when the block succeeds.

    Raises:
        OutputError: `path` exists and `force` is not given, or cannot be written.
        MismatchError: the format cannot express the adapter.
    """
    writing = atomic_file if output_kind(adapter, path) == "file" else atomic_directory
    with writing(path, force=force) as partial:
        adapter.save(partial, force=True)
        yield partial


def unknown_fields(adapter: Adapter) -> list[Skipped]:
    """Unknown fields of an adapter's config, which the user should know about."""
    if adapter.format != "peft":
        return []
    from eckart.formats import peft_config

    reason = "unknown to PEFT 0.21 and eckart: its effect on the tensors is ignored"
    return [Skipped(f"{CONFIG}: {field}", reason) for field in peft_config.unknown_fields(adapter.config)]

"""PEFT's adapter folders: `adapter_config.json` and `adapter_model.safetensors`.

Names carry `base_model.model.` before the module. Source: PEFT's `utils/save_and_load.py`.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from eckart.adapter.adapter import Adapter, AdapterLayer, on_meta, with_tensors
from eckart.adapter.deferred import Deferred
from eckart.adapter.outline import LayerKind, LayerOutline, TensorOutline
from eckart.checkpoint import Checkpoint, TensorSpec, atomic_directory, open_checkpoint, write_tensors
from eckart.checkpoint.links import refuse_links
from eckart.checkpoint.output import Kind
from eckart.checkpoint.pickled import pickled_fault
from eckart.errors import FileFormatError, MismatchError, SourceError
from eckart.formats.peft_biases import with_biases
from eckart.formats.peft_config import PeftConfig, config_of, read_config
from eckart.formats.peft_experts import Stack, expert_of, parameters_of, stack_of, stacks_of, wrapper_names
from eckart.formats.peft_keys import PREFIX, module_names
from eckart.formats.peft_scales import common_alpha, folded, with_alpha
from eckart.formats.peft_tokens import embedding_of, is_token_rows, tokens_of, with_rows
from eckart.formats.stored import beyond_updates, folder_kind, outline, read_finite
from eckart.formats.table import CONFIG, PEFT_WEIGHTS

if TYPE_CHECKING:
    from torch import Tensor

_NAMES = {
    "lora_A": "lora_A.weight",
    "lora_B": "lora_B.weight",
    "bias": "lora_B.bias",
    "magnitude": "lora_magnitude_vector",
}
_EMBEDDING_NAMES = _NAMES | {"lora_A": "lora_embedding_A", "lora_B": "lora_embedding_B"}
_FIELDS = {"embedding_A": "lora_A", "embedding_B": "lora_B"}
_PARTS = {
    ".lora_A.weight": "lora_A",
    ".lora_B.weight": "lora_B",
    ".lora_embedding_A": "embedding_A",
    ".lora_embedding_B": "embedding_B",
    ".lora_B.bias": "bias",
    ".lora_magnitude_vector": "magnitude",
    ".lora_magnitude_vector.weight": "magnitude",
}


def read(path: Path) -> Adapter:
    """The adapter in a PEFT folder.

    Raises:
        SourceError: `path` does not contain a PEFT adapter.
        FileFormatError: config and tensors are damaged or disagree; every fault is listed.
    """
    weights = _weights_in(path)
    refuse_links([path / CONFIG, weights], path)
    config = read_config(path / CONFIG)
    stored = open_checkpoint(weights)
    try:
        modules, saved = _sorted_names(module_names(stored.tensors))
    except ValueError as fault:
        msg = f"{weights}: {fault}"
        raise FileFormatError(msg) from None
    shapes = {
        module: {part: outline(stored, name) for part, name in names.items()} for module, names in modules.items()
    }
    parameters, faults = parameters_of(shapes, config)
    outlines: dict[str, LayerOutline] = {}
    experts: dict[str, tuple[str, Stack, int]] = {}
    for module, tensors in shapes.items():
        try:
            if module in parameters:
                stack = stack_of(parameters[module], tensors, config)
                outlines |= dict.fromkeys(stack.names(), stack.outline)
                experts |= {name: (module, stack, index) for index, name in enumerate(stack.names())}
            else:
                outlines[module] = _outline(module, tensors, config)
        except ValueError as fault:
            faults.append(f"{module}: {fault}")
    modules_to_save = _saved_tensors(saved, stored, config, faults)
    if faults or not outlines:
        msg = f"{path}: config and tensors do not form an adapter"
        raise FileFormatError.listing(msg, faults or ["no LoRA tensors"])

    def read_module(module: str) -> "dict[str, Tensor]":
        return {_FIELDS.get(part, part): read_finite(stored, name) for part, name in modules[module].items()}

    # The experts of a parameter are interleaved in one tensor, and are looked up one after another.
    read_stack = lru_cache(maxsize=2)(read_module)

    def read_layer(name: str) -> AdapterLayer:
        if name in experts:
            module, stack, index = experts[name]
            return stack.expert(index, read_stack(module))
        tensors = read_module(name)
        if "magnitude" in tensors:
            tensors["magnitude"] = tensors["magnitude"].flatten()
        return with_tensors(outlines[name], tensors)

    return Adapter(
        Deferred(outlines, read_layer),
        modules_to_save,
        config.base_model_name_or_path,
        config.task_type,
        dict(config.model_extra or {}),
        files=(path / CONFIG, *stored.files),
    )


def _saved_tensors(
    saved: Mapping[str, str], stored: Checkpoint, config: PeftConfig, faults: list[str]
) -> "Deferred[Tensor, TensorOutline]":
    """The tensors that a file saves in full, by name in the model; adds to `faults` what does not fit.

    With a new vocabulary, PEFT writes an embedding in full and its trained rows once more: here they are one tensor.
    """
    outlines = {name: outline(stored, stored_name) for name, stored_name in saved.items()}
    rows = {embedding_of(name): name for name in saved if is_token_rows(name)}
    tokens: dict[str, list[int]] = {}
    for name, of_rows in rows.items():
        part, complete = outlines[of_rows], outlines.get(name)
        try:
            tokens[name] = tokens_of(of_rows, config.model_extra or {}, part)
        except ValueError as fault:
            faults.append(str(fault))
            continue
        if complete is not None:
            del outlines[of_rows]
            if part.shape[1:] != complete.shape[1:] or max(tokens[name]) >= len(complete):
                faults.append(f"{of_rows}: its shape is {part.shape}, that of the complete tensor {complete.shape}")

    def read(name: str) -> "Tensor":
        tensor = read_finite(stored, saved[name])
        return with_rows(tensor, read_finite(stored, saved[rows[name]]), tokens[name]) if name in rows else tensor

    return Deferred(outlines, read)


def _weights_in(folder: Path) -> Path:
    """The file of an adapter's weights, or the index of several.

    Raises:
        SourceError: there is none, or only a pickled one.
    """
    for name in (PEFT_WEIGHTS, f"{PEFT_WEIGHTS}.index.json"):
        if (folder / CONFIG).is_file() and (folder / name).is_file():
            return folder / name
    if (pickled := folder / "adapter_model.bin").is_file():
        raise SourceError(pickled_fault(pickled))
    msg = f"{folder}: not a PEFT adapter, which is a folder with {CONFIG} and {PEFT_WEIGHTS}"
    raise SourceError(msg)


def write(adapter: Adapter, path: Path, *, force: bool = False) -> None:
    """Write an adapter as a PEFT folder, completely or not at all, one layer after another.

    Unless the adapter says `keep_scales`, all layers get one `lora_alpha`, and their own scales are in lora_B.

    Raises:
        OutputError: `path` exists and `force` is not given, or cannot be written.
        MismatchError: layers that one PEFT config cannot describe.
    """
    adapter = with_biases(adapter)
    outline = adapter.outline()
    if faults := beyond_updates(outline):
        msg = f"{path}: PEFT's format cannot store this adapter"
        raise MismatchError.listing(msg, faults)
    stacked, stacks = stacks_of(outline)
    if not adapter.keep_scales:
        alpha = common_alpha(stacked.layers)
        stacked = replace(stacked, layers=with_alpha(stacked.layers, alpha))
        stacks = {name: replace(stack, outline=stacked[name]) for name, stack in stacks.items()}
        adapter = folded(adapter, alpha)
    config = config_of(stacked)
    specs = [TensorSpec.of(name, tensor) for name, tensor in _named(on_meta(outline), stacks)]
    with atomic_directory(path, force=force, inputs=adapter.files) as folder:
        (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        write_tensors(folder / PEFT_WEIGHTS, specs, _named(adapter, stacks), {"format": "pt"})


def output_kind(path: Path) -> Kind:
    """An adapter is a folder; OutputError for the name of a file."""
    return folder_kind(path, "a PEFT adapter")


def refusals(adapter: Adapter) -> list[str]:
    """Why one PEFT config cannot describe an adapter."""
    faults = beyond_updates(adapter.outline())
    try:
        config_of(stacks_of(with_biases(adapter).outline())[0])
    except MismatchError as fault:
        return [*faults, str(fault)]
    return faults


def _sorted_names(names: Mapping[str, str]) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """Tensors of a file: those of each module by part, and those saved in full by their names in the model.

    Args:
        names: name in the model -> name in the file.
    """
    modules: dict[str, dict[str, str]] = {}
    saved = {}
    for module, name in names.items():
        end = next((end for end in _PARTS if module.endswith(end)), None)
        if end is None:
            saved[module.replace(".base_layer.", ".")] = name
        else:
            modules.setdefault(module.removesuffix(end), {})[_PARTS[end]] = name
    return modules, saved


def _named(adapter: Adapter, stacks: Mapping[str, Stack]) -> Iterator[tuple[str, "Tensor"]]:
    """Every tensor under its name in the file, one layer, or one parameter's experts, after another."""
    for name, tensor in adapter.modules_to_save.items():
        yield f"{PREFIX}{_stored_name(name, adapter)}", tensor
    experts: dict[str, list[tuple[int, str]]] = {parameter: [] for parameter in stacks}
    for module in adapter:
        parameter, index = expert_of(module) or (module, 0)
        if parameter in stacks:
            experts[parameter].append((index, module))
            continue
        layer = adapter[module]
        names = _EMBEDDING_NAMES if layer.kind == "embedding" else _NAMES
        for part, tensor in layer.tensors().items():
            conv_magnitude = part == "magnitude" and layer.kind == "conv"
            shaped = tensor.view(1, -1, *(1 for _ in layer.lora_A.shape[2:])) if conv_magnitude else tensor
            yield f"{PREFIX}{module}.{names[part]}", shaped
    for parameter, module in wrapper_names(stacks).items():
        A, B = stacks[parameter].stacked([(index, adapter[name]) for index, name in experts[parameter]])
        yield f"{PREFIX}{module}.lora_A.weight", A
        yield f"{PREFIX}{module}.lora_B.weight", B


def _stored_name(name: str, adapter: Adapter) -> str:
    """A saved tensor's name in the file: that of an adapted module is in its base layer."""
    module, _, leaf = name.rpartition(".")
    return f"{module}.base_layer.{leaf}" if module in adapter else name


def _outline(module: str, tensors: Mapping[str, TensorOutline], config: PeftConfig) -> LayerOutline:
    """One module's update, from the shapes of its tensors; ValueError says what does not fit."""
    embedding = "embedding_A" in tensors or "embedding_B" in tensors
    names = ("embedding_A", "embedding_B") if embedding else ("lora_A", "lora_B")
    missing = [name for name in names if name not in tensors]
    if missing:
        msg = f"{' and '.join(missing)} missing"
        raise ValueError(msg)
    if embedding and ("lora_A" in tensors or "lora_B" in tensors):
        msg = "factors of an embedding and of a matrix in one module"
        raise ValueError(msg)
    A, B = (tensors[name] for name in names)
    rank = config.rank_of(module)
    if A.ndim == B.ndim > 2 and A.shape[0] == rank and 0 < B.shape[1] < rank and rank % B.shape[1] == 0:
        msg = (
            f"its convolution has {rank // B.shape[1]} groups, and PEFT's update mixes the channels of all of them, "
            "which no weight of such a convolution can express"
        )
        raise ValueError(msg)
    if A.ndim < 2 or A.ndim != B.ndim or A.shape[0] != rank or B.shape[1] != rank:
        msg = f"rank is {rank} by {CONFIG}, lora_A is {A.shape} and lora_B {B.shape}"
        raise ValueError(msg)
    if A.ndim > 2 and any(size != 1 for size in B.shape[2:]):
        msg = f"lora_B of a convolution must end in ones, got {B.shape}"
        raise ValueError(msg)
    flat: LayerKind = "conv1d" if config.fan_in_fan_out else "linear"
    kind: LayerKind = "embedding" if embedding else "conv" if A.ndim > 2 else flat
    magnitude = tensors.get("magnitude")
    for field, part in (("use_dora", "magnitude"), ("lora_bias", "bias")):
        declared, exists = getattr(config, field), part in tensors
        if declared != exists:
            msg = f"{field} is {declared} by {CONFIG}, but the file has {'a' if exists else 'no'} {part}"
            raise ValueError(msg)
    return LayerOutline(
        A,
        B,
        config.alpha_of(module),
        rslora=config.use_rslora,
        kind=kind,
        bias=tensors.get("bias"),
        magnitude=None if magnitude is None else magnitude.flatten(),
    )

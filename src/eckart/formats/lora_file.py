"""LoRA files of image and video models: one .safetensors file, whose keys are a module's name and a part's.

A file is written as it was read: the same keys in the same order, with alpha where it had alpha. `Adapter.config` has
what that needs: `keys`, of each key its module and part, `metadata`, the texts of the header, and the dtype of alphas.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eckart.adapter.adapter import Adapter, AdapterLayer
from eckart.adapter.deferred import Deferred
from eckart.adapter.outline import AdapterFormat, LayerOutline, TensorOutline
from eckart.checkpoint import Checkpoint, open_checkpoint
from eckart.checkpoint.dtypes import promote
from eckart.errors import FileFormatError
from eckart.formats.lora_keys import CARRIED, fault_of, parse_key
from eckart.formats.lora_layers import is_update, layer_of, outline_of
from eckart.formats.stored import header_texts, outline, read_alpha, read_finite

if TYPE_CHECKING:
    from torch import Tensor

KEYS, TEXT, ALPHAS = "keys", "metadata", "alpha_dtype"  # entries of an adapter's config
ADDED = {"diff": "weight", "w_norm": "weight", "diff_b": "bias", "b_norm": "bias"}
SAVED = {"set_weight": "weight"}
_PRODUCTS = ("hada_", "lokr_", "mid", "diff")
AlphaOf = Callable[[str, Mapping[str, str], LayerOutline], tuple[float | None, bool]]
"""The alpha of a module and whether it is divided by √rank, from its name, keys and outline; ValueError."""


@dataclass(frozen=True)
class LoraFile:
    """The parts of a file by module.

    Attributes:
        stored: the file.
        keys: module and part of each key, in the order of the file.
        faults: keys that are not read, each with the reason.
    """

    stored: Checkpoint
    keys: Mapping[str, tuple[str, str]]
    faults: Sequence[str]

    @cached_property
    def modules(self) -> dict[str, dict[str, str]]:
        """The key of each part of each module."""
        modules: dict[str, dict[str, str]] = {}
        for key, (module, part) in self.keys.items():
            modules.setdefault(module, {})[part] = key
        return modules

    def of_parts(self, names: Mapping[str, str]) -> dict[str, str]:
        """Keys of tensors that are no update of a matrix, by the name of the tensor that they change."""
        return {
            f"{module}.{names[part]}": key
            for module, parts in self.modules.items()
            for part, key in parts.items()
            if part in names and not self._is_of_layer(module, part)
        }

    def _is_of_layer(self, module: str, part: str) -> bool:
        """Whether a tensor is a part of an update of a matrix, rather than a change of a vector."""
        parts = self.modules[module]
        if part == "diff":
            return len(self.stored.tensors[parts[part]].shape) > 1
        return part == "diff_b" and any(
            is_update(other) and (other != "diff" or self._is_of_layer(module, "diff")) for other in parts
        )

    @cached_property
    def layers(self) -> dict[str, dict[str, str]]:
        """The modules with an update of a matrix, and the keys of its parts."""
        only = {"w_norm", "b_norm", "set_weight"}
        found = {}
        for module, parts in self.modules.items():
            of_layer = {
                part: key
                for part, key in parts.items()
                if part not in only and (part not in ADDED or self._is_of_layer(module, part))
            }
            if set(of_layer) - {"alpha"} or set(parts) == {"alpha"}:
                found[module] = of_layer
        return found


def parts_of(path: Path, named: Callable[[str], str]) -> LoraFile:
    """The parts of a file by module.

    Args:
        path: the file.
        named: the name of a module by the one in the file; ValueError if it is none.
    """
    stored = open_checkpoint(path)
    keys: dict[str, tuple[str, str]] = {}
    seen: dict[tuple[str, str], str] = {}
    faults = []
    for key in stored.tensors:
        found = parse_key(key)
        if found is None:
            if not key.startswith(CARRIED):
                faults.append(fault_of(key))
            continue
        try:
            place = named(found.module), found.part
        except ValueError as fault:
            faults.append(f"{key}: {fault}")
            continue
        if place in seen:
            faults.append(f"{key}: the same part of {place[0]} as {seen[place]}")
        seen[place] = key
        keys[key] = place
    return LoraFile(stored, keys, faults)


def alpha_in_file(stored: Checkpoint) -> AlphaOf:
    """The alpha next to a module's factors; without it, alpha is the rank."""

    def alpha(_: str, parts: Mapping[str, str], __: LayerOutline) -> tuple[float | None, bool]:
        return read_alpha(stored, parts["alpha"]) if "alpha" in parts else None, False

    return alpha


def as_adapter(file: LoraFile, form: AdapterFormat, *, alpha_of: AlphaOf, texts: Mapping[str, str]) -> Adapter:
    """The adapter in a file; its layers are read when they are looked up.

    Raises:
        FileFormatError: the tensors are no adapter; every fault is listed.
    """
    stored, faults, outlines = file.stored, list(file.faults), {}
    alphas: dict[str, float | None] = {}
    for module, parts in file.layers.items():
        shapes = {part: outline(stored, key) for part, key in parts.items() if part != "alpha"}
        try:
            alpha, rslora = alpha_of(module, parts, outline_of(shapes, None))
            alphas[module] = alpha
            outlines[module] = replace(outline_of(shapes, alpha), rslora=rslora)
        except ValueError as fault:
            faults.append(f"{module}: {fault}")
    added, saved = file.of_parts(ADDED), file.of_parts(SAVED)
    (path,) = {info.file for info in stored.tensors.values()}
    if faults or not (outlines or added or saved):
        msg = f"{path}: these tensors cannot be read as an adapter in {form}'s format"
        raise FileFormatError.listing(msg, faults or ["no LoRA tensors"])

    def read(module: str) -> AdapterLayer:
        parts = file.layers[module]
        tensors = {part: read_finite(stored, key) for part, key in parts.items() if part != "alpha"}
        return layer_of(outlines[module], tensors, alphas[module])

    def tensors(keys: Mapping[str, str]) -> "Deferred[Tensor, TensorOutline]":
        shapes = {name: outline(stored, key) for name, key in keys.items()}
        return Deferred(shapes, lambda name: read_finite(stored, keys[name]))

    carried = {key: key for key in stored.tensors if key.startswith(CARRIED)}
    dtypes = [stored.tensors[parts["alpha"]].dtype for parts in file.layers.values() if "alpha" in parts]
    return Adapter(
        Deferred(outlines, read),
        tensors(saved),
        config={TEXT: dict(texts), KEYS: dict(file.keys), ALPHAS: promote(*dtypes).name if dtypes else "float32"},
        format=form,
        files=(path,),
        added=tensors(added),
        carried=tensors(carried),
    )


def read_file(path: Path, form: AdapterFormat) -> Adapter:
    """The adapter in a file under the names of its keys.

    Raises:
        FileFormatError: the tensors are no adapter; every fault is listed.
    """
    file = parts_of(path, lambda module: module)
    return as_adapter(file, form, alpha_of=alpha_in_file(file.stored), texts=header_texts(path))


def products_in(adapter: Adapter) -> list[str]:
    """The layers that a file has as something else than plain LoRA: LoHa, LoKr, a core, or a full difference."""
    parts = adapter.config.get(KEYS, {}).values()
    return [
        *dict.fromkeys(
            module for module, part in parts if module in adapter and part != "diff_b" and part.startswith(_PRODUCTS)
        )
    ]


def without_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of an adapter whose names changed: its texts, without the keys of its file."""
    return {name: value for name, value in config.items() if name == TEXT}

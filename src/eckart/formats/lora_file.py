"""LoRA files of image and video models: one .safetensors file, whose keys are a module's name and a part's.

A file is written as it was read: the same keys in the same order, with alpha where it had alpha. `Adapter.config` has
what that needs: `keys`, of each key its module and part, `metadata`, the texts of the header, and the dtype of alphas.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eckart.adapter.adapter import Adapter, AdapterLayer, on_meta
from eckart.adapter.deferred import Deferred
from eckart.adapter.outline import AdapterFormat, AdapterOutline, LayerKind, LayerOutline, TensorOutline
from eckart.checkpoint import Checkpoint, TensorSpec, open_checkpoint, write_tensors
from eckart.checkpoint.dtypes import DType, promote
from eckart.checkpoint.manifest import TEXTS
from eckart.errors import FileFormatError, MismatchError
from eckart.formats.lora_keys import CARRIED, ends_of, fault_of, parse_key
from eckart.formats.lora_layers import is_update, layer_of, outline_of
from eckart.formats.stored import header_texts, outline, read_alpha, read_finite

if TYPE_CHECKING:
    from torch import Tensor

KEYS, TEXT, ALPHAS = "keys", "metadata", "alpha_dtype"  # entries of an adapter's config
_HASHES = ("sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256")  # of the tensors of the file that was read
_ADDED = {"diff": "weight", "w_norm": "weight", "diff_b": "bias", "b_norm": "bias"}
_SAVED = {"set_weight": "weight"}
AlphaOf = Callable[[str, Mapping[str, str], LayerOutline], tuple[float | None, bool]]
"""The alpha of a module and whether it is divided by √rank, from its name, keys and outline; ValueError."""


@dataclass(frozen=True)
class Spelling:
    """How a format names the parts of an update.

    Attributes:
        ends: end of the key of each part.
        alphas: whether every layer has an alpha; otherwise one whose scale is 1 has none. Without an end for alpha, the
            header states the scales.
    """

    ends: Mapping[str, str]
    alphas: bool


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
                if part not in only and (part not in _ADDED or self._is_of_layer(module, part))
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
    added, saved = file.of_parts(_ADDED), file.of_parts(_SAVED)
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


def write_file(adapter: Adapter, file: Path, spelling: Spelling, texts: Mapping[str, str]) -> None:
    """Write an adapter as one file in an existing folder, one layer after another.

    Args:
        adapter: the adapter.
        file: the file.
        spelling: how parts are named that the adapter's own file had not.
        texts: of the header.
    """
    own = {key: index for index, key in enumerate(adapter.config.get(KEYS, {}))}
    specs = [TensorSpec.of(name, tensor) for name, tensor in named_tensors(on_meta(adapter.outline()), spelling)]
    specs.sort(key=lambda spec: own.get(spec.name, len(own)))
    write_tensors(file, specs, named_tensors(adapter, spelling), {"format": "pt", **TEXTS, **texts})


def named_tensors(adapter: Adapter, spelling: Spelling) -> "Iterator[tuple[str, Tensor]]":
    """Every tensor under its key, one layer after another."""
    own: dict[str, tuple[str, str]] = adapter.config.get(KEYS, {})
    keys = {place: key for key, place in own.items()}
    parsed = [found for key in own if (found := parse_key(key))]
    ends = {**spelling.ends, **ends_of(parsed)}
    folds = bool(own) and "alpha" in spelling.ends and "alpha" not in ends_of(parsed)

    def key(module: str, part: str) -> str:
        return keys.get((module, part)) or f"{module}{ends[part]}"

    for module, layer in adapter.items():
        stored = _folded(layer) if folds and layer.scaling != 1 else layer
        for part, tensor in _tensors(stored, ends, module, keys).items():
            yield key(module, part), tensor
        is_needed = "alpha" in spelling.ends and (stored.scaling != 1 or (spelling.alphas and not own))
        if (module, "alpha") in keys or is_needed:
            yield key(module, "alpha"), _alpha(stored, adapter.config.get(ALPHAS))
    for tensors, names in ((adapter.added, _ADDED), (adapter.modules_to_save, _SAVED)):
        for name, tensor in tensors.items():
            module, _, leaf = name.rpartition(".")
            parts = [part for part, other in names.items() if other == leaf]
            part = next((part for part in parts if (module, part) in keys), parts[0])
            yield keys.get((module, part)) or f"{module}.{part}", tensor
    yield from adapter.carried.items()


def _tensors(
    layer: AdapterLayer, ends: Mapping[str, str], module: str, keys: Mapping[tuple[str, str], str]
) -> "dict[str, Tensor]":
    """The tensors of a layer by the parts that the file has."""
    import torch

    tensors = {"lora_A": layer.lora_A, "lora_B": layer.lora_B}
    if layer.magnitude is not None:
        if "dora_scale" in ends:
            ones = [1] * (layer.lora_A.ndim - 2)
            is_by_output = layer.magnitude.ndim == 1
            shape = (-1, 1, *ones) if is_by_output else (1, -1, *ones)
            tensors["dora_scale"] = layer.magnitude.reshape(shape)
        else:
            shape = (1, -1, *[1] * (layer.lora_A.ndim - 2)) if layer.kind == "conv" else (-1,)
            tensors["magnitude"] = layer.magnitude.reshape(shape)
    if layer.bias is not None:
        if (module, "bias") in keys or "diff_b" not in ends:
            tensors["bias"] = layer.bias
        else:
            wide = torch.promote_types(layer.bias.dtype, torch.float32)
            tensors["diff_b"] = (layer.bias.to(torch.float64) * layer.scaling).to(wide)
    return tensors


def _folded(layer: AdapterLayer) -> AdapterLayer:
    """The layer with its scale in lora_B, for files that state no alpha."""
    import torch

    B = (layer.lora_B.to(torch.float64) * layer.scaling).to(layer.lora_B.dtype)
    bias = None if layer.bias is None else (layer.bias.to(torch.float64) * layer.scaling).to(layer.bias.dtype)
    return replace(layer, lora_B=B, bias=bias, alpha=float(layer.rank), rslora=False)


def _alpha(layer: AdapterLayer | LayerOutline, dtype: str | None = None) -> "Tensor":
    """The alpha that gives the layer's scale in every reader, all of which divide by the rank.

    Args:
        layer: the layer.
        dtype: that of the file's alphas, of which 32 bits are enough; None for as many bits as are exact.
    """
    import torch

    exact = torch.tensor(layer.scaling * layer.rank, dtype=torch.float64)
    own = DType.of(dtype).torch if dtype else torch.float32
    if float(exact.to(own)) == float(exact):
        return exact.to(own)
    return exact.to(torch.promote_types(own, torch.float32)) if dtype else exact


def texts_of(adapter: AdapterOutline, *, kohya: bool) -> dict[str, str]:
    """The texts of the file that the adapter was read from, with its present ranks and alphas.

    Args:
        adapter: the adapter.
        kohya: whether the file must have the texts of kohya's trainers; otherwise only those that it had are changed.
    """
    texts = {key: text for key, text in adapter.config.get(TEXT, {}).items() if key not in _HASHES}
    ranks = {layer.rank for layer in adapter.values()}
    alphas = Counter(float(_alpha(layer)) for layer in adapter.values()).most_common()
    now = {
        "ss_network_dim": str(ranks.pop()) if len(ranks) == 1 else "Dynamic",
        "ss_network_alpha": str(alphas[0][0]) if len(alphas) == 1 else "Dynamic",
    }
    if kohya:
        return {"ss_network_module": "networks.lora", **texts, **now}
    return texts | {name: text for name, text in now.items() if name in texts}


def merged_config(adapters: Sequence[Adapter]) -> dict[str, Any]:
    """The config of several adapters as one: all keys, the texts that they share, and the titles of all."""
    if len(adapters) < 2 or not any(KEYS in adapter.config for adapter in adapters):
        return {}
    texts = [adapter.config.get(TEXT, {}) for adapter in adapters]
    common = {name: text for name, text in texts[0].items() if all(other.get(name) == text for other in texts)}
    titles = [_title(adapter) for adapter in adapters]
    keys = {key: place for adapter in reversed(adapters) for key, place in adapter.config.get(KEYS, {}).items()}
    return {TEXT: common | {"modelspec.merged_from": ", ".join(titles)}, KEYS: keys}


def _title(adapter: Adapter) -> str:
    """What a file calls its adapter, or its own name."""
    texts = adapter.config.get(TEXT, {})
    name = adapter.files[0].stem if adapter.files else "adapter"
    return texts.get("modelspec.title") or texts.get("ss_output_name") or name


def refusals_of(adapter: Adapter, reasons: Mapping[LayerKind, str], *, readers: str) -> list[str]:
    """The parts of an adapter that a file cannot store, each with the reason."""
    own = set(adapter.config.get(KEYS, {}).values())
    faults = [f"{name}: {reasons[layer.kind]}" for name, layer in adapter.outline().items() if layer.kind in reasons]
    saved = f"a tensor saved in full (modules_to_save), and {readers} support only updates"
    without = [name for name in adapter.modules_to_save if (name.rpartition(".")[0], "set_weight") not in own]
    return faults + [f"{name}: {saved}" for name in without]


def require_storable(adapter: Adapter, faults: Sequence[str], path: Path, form: str) -> None:
    """Refuse an adapter that a format cannot store.

    Raises:
        MismatchError: every fault is listed.
    """
    if faults or not (len(adapter) or adapter.added or adapter.modules_to_save):
        msg = f"{path}: {form} cannot store this adapter"
        raise MismatchError.listing(msg, faults or ["it has no layers"])


def without_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of an adapter whose names changed: its texts, without the keys of its file."""
    return {name: value for name, value in config.items() if name == TEXT}

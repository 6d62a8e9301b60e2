"""Merging into a base that stores weights as codes and scales: they stay as they are, or all are dequantized."""

from collections.abc import Iterable, Mapping
from typing import Any

from eckart.checkpoint.checkpoint import Checkpoint
from eckart.checkpoint.derived import DerivedCheckpoint
from eckart.checkpoint.dtypes import DType
from eckart.checkpoint.encodings.undecoded import undecoded
from eckart.checkpoint.layouts import as_view, module_of
from eckart.errors import OptionError
from eckart.operations.model_writer.plan import OutputTensor

# In a config: of transformers, of MLX, and of compressed-tensors before version 0.5.
_CONFIGS = ("quantization_config", "quantization", "compression_config")
# Files that state the encoding: of ModelOpt, AutoGPTQ, AutoAWQ, quanto and compressed-tensors.
CONFIG_FILES = ("hf_quant_config.json", "quantize_config.json", "quant_config.json", "quanto_qmap.json")


def kept_codes(base: Checkpoint, changed: Iterable[str], dtype: DType | None) -> set[str]:
    """The quantized weights, and parts of weights, that are written as they are stored.

    A config describes either the codes or their absence: if one quantized weight is changed, all are dequantized.

    Args:
        base: the base.
        changed: names of the tensors that are changed.
        dtype: the dtype to write; None to keep that of each tensor.

    Raises:
        OptionError: a quantized weight is changed, and no `dtype` is given or another cannot be dequantized.
    """
    encoded = base.encoded if isinstance(base, DerivedCheckpoint) else {}
    codes = undecoded(base)
    weights = [name for name in dict.fromkeys(base.tied.get(name, name) for name in changed) if name in encoded]
    if not weights:
        return {*encoded, *codes}
    if dtype is None:
        kinds = " and ".join(sorted({str(base.tensors[name].quantization) for name in weights}))
        others = f" and {len(weights) - 1} more" if len(weights) > 1 else ""
        msg = (
            f"{base.source} is quantized (stored as {kinds}: {weights[0]}{others} that would be changed), and rounding "
            "to codes would lose most of the update; `dtype=bfloat16` writes dense weights"
        )
        raise OptionError(msg)
    if codes:
        name, reason = next(iter(codes.items()))
        msg = f"{base.source}: {len(codes)} tensors cannot be dequantized, as the changed ones are ({name}: {reason})"
        raise OptionError(msg)
    return set()


def stored_form(base: Checkpoint, stored: str, name: str) -> list[OutputTensor]:
    """Copies of a tensor as it is stored, of codes and scales if it is quantized, under its own or another name."""
    if not isinstance(base, DerivedCheckpoint) or stored not in base.encoded:
        return [_copy(base, stored, name)]
    weight = base.encoded[stored]
    old, new = module_of(weight.info.name), module_of(name)
    return [_copy(base.stored, part, new + part.removeprefix(old)) for part in weight.parts]


def markers(base: Checkpoint, kept: set[str]) -> list[OutputTensor]:
    """Copies of tensors that belong to no weight, and say that the others are quantized."""
    if not isinstance(base, DerivedCheckpoint) or kept.isdisjoint(base.encoded):
        return []
    known = {*base.tensors, *(part for weight in base.encoded.values() for part in weight.parts)}
    return [_copy(base.stored, name, name) for name in base.stored.tensors if name not in known]


def without_quantization(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config, and those of the models in it, of dense weights."""
    parts = {key: value for key, value in config.items() if key not in _CONFIGS}
    return {key: without_quantization(value) if isinstance(value, dict) else value for key, value in parts.items()}


def _copy(checkpoint: Checkpoint, stored: str, name: str) -> OutputTensor:
    source = checkpoint.tied.get(stored, stored)
    info = checkpoint.tensors[source]
    return OutputTensor(name, checkpoint, source, info.dtype, (as_view(source, info.shape),))

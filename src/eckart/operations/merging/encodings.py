"""Merging into a base that stores weights as codes and scales: they stay, are quantized again, or are dequantized."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from eckart.checkpoint.checkpoint import Checkpoint
from eckart.checkpoint.derived import DerivedCheckpoint
from eckart.checkpoint.dtypes import DType
from eckart.checkpoint.encodings.encoded import Scheme
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

    A config describes either the codes or their absence: all weights that are changed are quantized again in the same
    way, or all quantized weights are dequantized.

    Args:
        base: the base.
        changed: names of the tensors that are changed.
        dtype: the dtype to write; None to keep that of each tensor.

    Raises:
        OptionError: a quantized weight is changed that eckart does not quantize again, and no `dtype` is given; or one
            is given, and another weight cannot be dequantized.
    """
    encoded = base.encoded if isinstance(base, DerivedCheckpoint) else {}
    codes = undecoded(base)
    weights = [name for name in dict.fromkeys(base.tied.get(name, name) for name in changed) if name in encoded]
    if not weights:
        return {*encoded, *codes}
    if dtype is None:
        fixed = [name for name in weights if scheme_of(base, name, name) is None]
        if not fixed:
            return {*encoded, *codes} - {*weights}
        kinds = " and ".join(sorted({str(base.tensors[name].quantization) for name in fixed}))
        others = f" and {len(fixed) - 1} more that would be changed" if len(fixed) > 1 else ", which would be changed"
        msg = (
            f"{base.source} is quantized: {fixed[0]}{others}, in {kinds}, which eckart reads and does not write; "
            "`dtype=bfloat16` writes dense weights, which `eckart quantize` stores in an encoding that it writes"
        )
        raise OptionError(msg)
    if codes:
        name, reason = next(iter(codes.items()))
        msg = f"{base.source}: {len(codes)} tensors cannot be dequantized, as the changed ones are ({name}: {reason})"
        raise OptionError(msg)
    return set()


def scheme_of(base: Checkpoint, stored: str, name: str) -> Scheme | None:
    """How a weight of the base is quantized again under its own or another name; None if it cannot be."""
    weight = base.encoded.get(stored) if isinstance(base, DerivedCheckpoint) else None
    return replace(weight.scheme, name=name) if weight and weight.scheme else None


def unchanged_parts(base: Checkpoint, stored: str, scheme: Scheme) -> list[OutputTensor]:
    """Copies of what is stored with a weight that is quantized again, and does not depend on its values."""
    written = {spec.name for spec in scheme.specs()}
    return [copy for copy in stored_form(base, stored, scheme.name) if copy.name not in written]


def stored_form(base: Checkpoint, stored: str, name: str) -> list[OutputTensor]:
    """Copies of a tensor as it is stored, of codes and scales if it is quantized, under its own or another name."""
    if not isinstance(base, DerivedCheckpoint) or stored not in base.encoded:
        return [_copy(base, stored, name)]
    weight = base.encoded[stored]
    old, new = module_of(weight.info.name), module_of(name)
    return [_copy(base.stored, part, new + part.removeprefix(old)) for part in weight.parts]


def markers(base: Checkpoint) -> list[OutputTensor]:
    """Copies of tensors that belong to no weight, and say that the others are quantized."""
    if not isinstance(base, DerivedCheckpoint) or not base.encoded:
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

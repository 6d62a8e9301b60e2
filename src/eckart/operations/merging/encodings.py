"""Merging into a base that stores weights as codes and scales: they stay as they are, or all are dequantized."""

from collections.abc import Iterable

from eckart.checkpoint.checkpoint import Checkpoint
from eckart.checkpoint.derived import DerivedCheckpoint
from eckart.checkpoint.dtypes import DType
from eckart.checkpoint.encodings.undecoded import undecoded
from eckart.checkpoint.layouts import as_view, module_of
from eckart.errors import OptionError
from eckart.operations.model_writer.plan import OutputTensor


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
    parts = base.parts if isinstance(base, DerivedCheckpoint) else {}
    codes = undecoded(base)
    encoded = [name for name in dict.fromkeys(base.tied.get(name, name) for name in changed) if name in parts]
    if not encoded:
        return {*parts, *codes}
    if dtype is None:
        kinds = " and ".join(sorted({str(base.tensors[name].quantization) for name in encoded}))
        msg = (
            f"{base.source} is quantized ({encoded[0]} and {len(encoded) - 1} more changed weights are stored in "
            f"{kinds}), and rounding to codes would lose most of the update; `dtype=bfloat16` writes dense weights"
        )
        raise OptionError(msg)
    if codes:
        name, reason = next(iter(codes.items()))
        msg = f"{base.source}: {len(codes)} tensors cannot be dequantized, as the changed ones are ({name}: {reason})"
        raise OptionError(msg)
    return set()


def stored_form(base: Checkpoint, stored: str, name: str) -> list[OutputTensor]:
    """Copies of a tensor as it is stored, of codes and scales if it is quantized, under its own or a tied name."""
    if not isinstance(base, DerivedCheckpoint) or stored not in base.parts:
        return [_copy(base, stored, name)]
    old, new = module_of(stored), module_of(name)
    return [_copy(base.base, part, new + part.removeprefix(old)) for part in base.parts[stored]]


def markers(base: Checkpoint, kept: set[str]) -> list[OutputTensor]:
    """Copies of tensors that belong to no weight, and say that the others are quantized."""
    if not isinstance(base, DerivedCheckpoint) or kept.isdisjoint(base.parts):
        return []
    known = {*base.tensors, *(part for parts in base.parts.values() for part in parts)}
    return [_copy(base.base, name, name) for name in base.base.tensors if name not in known]


def _copy(checkpoint: Checkpoint, stored: str, name: str) -> OutputTensor:
    info = checkpoint.tensors[stored]
    return OutputTensor(name, checkpoint, stored, info.dtype, (as_view(stored, info.shape),))

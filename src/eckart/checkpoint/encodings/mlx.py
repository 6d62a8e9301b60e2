"""MLX: codes packed into uint32 along the inputs, with scales and, of integers, offsets for groups of them.

`weight` is `(..., in·bits/32)`, `scales` and `biases` `(..., groups)`: the weight is code · scale + bias. In the modes
mxfp4, mxfp8 and nvfp4 codes are floating-point numbers, scales are bytes (E8M0 or E4M3), and there are no biases. The
config states bits and groups, which shapes alone do not determine. Source: `mlx.core.quantize`.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from eckart.checkpoint.dtypes import UINT8, UINT32
from eckart.checkpoint.encodings import e2m1
from eckart.checkpoint.encodings.blocks import in_blocks
from eckart.checkpoint.encodings.encoded import Encoded, StoredModule, Unreadable
from eckart.checkpoint.encodings.integers import dequantized, unpacked
from eckart.checkpoint.encodings.lookup import float8_values
from eckart.checkpoint.encodings.scales import powers_of_two, times

if TYPE_CHECKING:
    from torch import Tensor

_PARTS = ("weight", "scales", "biases")
_BITS, _GROUPS = (1, 2, 3, 4, 5, 6, 8), (32, 64, 128)
_MODES = {"mxfp4": (4, 32), "mxfp8": (8, 32), "nvfp4": (4, 16)}  # bits and group of codes without biases


def mlx(module: StoredModule) -> Iterator[Encoded | Unreadable]:
    """The weight of a module that MLX quantized."""
    leaves = module.leaves
    if not leaves.keys() >= {"weight", "scales"} or leaves["weight"].dtype != UINT32:
        return
    weight, scales, biases = leaves["weight"], leaves["scales"], leaves.get("biases")
    *outer, words = weight.shape or (0,)
    groups = scales.shape[-1] if scales.shape else 0
    is_affine = biases is not None and biases.shape == scales.shape and scales.dtype.is_floating_point
    fits = scales.shape == (*outer, groups) and groups and words and 32 * words % groups == 0
    product = 32 * words // groups if fits else 0  # bits · group
    schemes = [(None, b, g) for b in _BITS for g in _GROUPS if b * g == product] if is_affine else []
    if biases is None and scales.dtype == UINT8:
        schemes = [(mode, *scheme) for mode, scheme in _MODES.items() if scheme[0] * scheme[1] == product]
    stated = _stated(module)
    if len(schemes) > 1 and stated:
        schemes = [each for each in schemes if each[1:] == (stated.get("bits"), stated.get("group_size"))]
    if len(schemes) != 1:
        why = (
            f"the config states {dict(stated)}"
            if stated
            else "the config has no `quantization` with bits and group_size"
        )
        yield module.unreadable(_PARTS, f"MLX: {module.shapes(*_PARTS)}, and {why}; dequantize it with mlx_lm.convert")
        return
    mode, bits, group = schemes[0]
    rows = partial(_affine, module, bits, groups * group) if mode is None else partial(_floating, module, mode)
    encoding, shape = f"mlx {mode or f'{bits}-bit'}", (*outer, groups * group)
    yield module.weight(shape, in_blocks(rows, shape), encoding=encoding, parts=_PARTS)


def _stated(module: StoredModule) -> Mapping[str, Any]:
    """Bits and group size that the config states for a module, or for all; {} if it states none."""
    config = module.stored.config
    stated = next(
        (value for key in ("quantization", "quantization_config") if isinstance(value := config.get(key), dict)), {}
    )
    own = stated.get(module.name)
    own = own if isinstance(own, dict) else {}
    return {key: own.get(key, stated[key]) for key in ("bits", "group_size") if key in stated}


def _affine(module: StoredModule, bits: int, inputs: int, start: int, stop: int) -> "Tensor":
    """Entries `start` to `stop` of integer codes, computed in float32."""
    import torch

    words, scales, biases = (module.rows(leaf, start, stop) for leaf in _PARTS)
    codes = unpacked(words.flatten(0, -2), bits, inputs)
    values = dequantized(module, "scales", codes, scales.flatten(0, -2), None)
    groups = scales.shape[-1]
    values = values.unflatten(1, (groups, inputs // groups)).add_(biases.flatten(0, -2).to(torch.float32)[..., None])
    return values.reshape(*words.shape[:-1], inputs)


def _floating(module: StoredModule, mode: str, start: int, stop: int) -> "Tensor":
    """Entries `start` to `stop` of floating-point codes, exact in float32."""
    import torch

    words, stored = module.rows("weight", start, stop), module.rows("scales", start, stop)
    if mode == "nvfp4":
        scales = stored.view(torch.float8_e4m3fn).to(torch.float32)
    else:
        scales = powers_of_two(module, "scales", stored)
    data = words.view(torch.uint8)
    values = float8_values(data.view(torch.float8_e4m3fn)) if mode == "mxfp8" else e2m1.values(data)
    return times(module, "scales", values.unflatten(-1, (scales.shape[-1], -1)), scales[..., None]).flatten(-2)

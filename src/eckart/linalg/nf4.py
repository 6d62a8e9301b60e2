"""NF4: weights as 4-bit codes for quantiles of a normal distribution, with one scale per block of values.

Bit for bit what bitsandbytes computes on a CPU, chunk by chunk to bound memory. Dettmers et al. (2023), "QLoRA".
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from eckart.errors import OptionError
from eckart.linalg.finite import require_finite
from eckart.linalg.nf4_constants import BLOCK_SIZES, NESTED_BLOCK, QUANTILES
from eckart.linalg.scale_search import FACTORS, least_error
from eckart.linalg.scaled_levels import ScaledLevels
from eckart.linalg.uninitialized import uninitialized

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
CODEBOOK = torch.tensor(QUANTILES)
_ZERO = QUANTILES.index(0.0)
_BOUNDS = (CODEBOOK[:-1] + CODEBOOK[1:]) / 2  # a value equal to a bound takes the lower code
_CELLS = 16  # from 0 to 1: so narrow that no cell contains two bounds
_CHUNK = 2**19  # values at a time: complete blocks and bytes of codes, and few enough to stay in cache
_TINY = 1e-38  # the divisor of a block of zeros
_GRID = 65535  # bitsandbytes' CPU kernel looks scales up on a grid of this many steps


def _dynamic_map() -> Tensor:
    """The signed 8-bit map of the scales: seven decades, each with twice as many steps as the one below."""
    values = [0.0, 1.0]
    for i in range(7):
        edges = torch.linspace(0.1, 1, 2**i + 1)
        steps = (10.0 ** (i - 6) * ((edges[:-1] + edges[1:]) / 2)).tolist()
        values += [*steps, *(-step for step in steps)]
    return torch.tensor(sorted(values))


DYNAMIC_MAP = _dynamic_map()
# The bound in each cell of a uniform grid from -1 to 1, infinite where there is none, and the code of what is below it.
_BOUND_CELLS = (_BOUNDS * _CELLS + _CELLS).long()
_CELL_BOUNDS = torch.full((2 * _CELLS + 1,), math.inf).index_copy(0, _BOUND_CELLS, _BOUNDS)
_CELL_CODES = torch.bucketize(torch.arange(2 * _CELLS + 1), _BOUND_CELLS).to(torch.uint8)
# Both values of each byte as one 8-byte integer, so that one lookup copies both.
_PAIRS = torch.cartesian_prod(CODEBOOK, CODEBOOK).view(torch.int64).view(-1)


@dataclass(frozen=True, eq=False)
class Nf4Blocks:
    """A quantized tensor, as bitsandbytes stores it.

    Attributes:
        codes: uint8, shape `(⌈n/2⌉, 1)`: two codes per byte in row-major order, the first in the high nibble.
        absmax: scale of each block, float32; with double quantization uint8 codes, which `scales` decodes.
        shape: shape of the weight.
        dtype: data type of the weight before quantization, and of the result of `dequantize`.
        block_size: values that share a scale.
        nested_absmax: float32, one scale per 256 values of `absmax`; None without double quantization.
        nested_offset: float32 scalar, the mean of all scales, subtracted before they were quantized.
        nested_map: float32, shape `(256,)`: the values of the codes in `absmax`.
    """

    codes: Tensor
    absmax: Tensor
    shape: tuple[int, ...]
    dtype: torch.dtype
    block_size: int
    nested_absmax: Tensor | None = None
    nested_offset: Tensor | None = None
    nested_map: Tensor = DYNAMIC_MAP

    @property
    def double(self) -> bool:
        """Whether the scales are quantized too."""
        return self.nested_absmax is not None

    def scales(self) -> Tensor:
        """Scale of each block, float32, shape `(blocks,)`."""
        if self.nested_absmax is None or self.nested_offset is None:
            return self.absmax
        values = self.nested_map.to(self.absmax.device).index_select(0, self.absmax.int())
        return _scale(values, self.nested_absmax, NESTED_BLOCK).add_(self.nested_offset)

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """The dequantized weight: code times scale in float32, then cast.

        Args:
            dtype: data type of the result; None is that of the weight before quantization.

        Returns:
            shape `self.shape`.
        """
        codes, scales, pairs = self.codes.view(-1), self.scales(), _PAIRS.to(self.codes.device)
        result = uninitialized(2 * len(codes), dtype or self.dtype, codes.device)
        buffer = torch.empty(min(len(result), _CHUNK), device=codes.device)
        indices = torch.empty(len(buffer) // 2, dtype=torch.int32, device=codes.device)
        for start, stop in _chunks(len(result)):
            part = result[start:stop]
            values = part if part.dtype == torch.float32 else buffer[: len(part)]
            index = indices[: len(part) // 2].copy_(codes[start // 2 : stop // 2])
            torch.index_select(pairs, 0, index, out=values.view(torch.int64))
            _scale(values, scales[start // self.block_size : -(-stop // self.block_size)], self.block_size)
            if values is not part:
                part.copy_(values)
        return result[: math.prod(self.shape)].view(self.shape)

    def scaled_levels(self) -> ScaledLevels:
        """The values that a matrix can take with these scales."""
        count = math.prod(self.shape)
        return ScaledLevels(CODEBOOK, self.scales().repeat_interleave(self.block_size)[:count].view(self.shape))

    def with_codes(self, codes: Tensor) -> "Nf4Blocks":
        """The same scales with other codes.

        Args:
            codes: uint8, shape `self.shape`: one code per value.
        """
        padded = torch.nn.functional.pad(codes.reshape(-1), (0, codes.numel() % 2), value=_ZERO)
        pairs = padded.view(-1, 2)
        return replace(self, codes=(pairs[:, :1] << 4) | pairs[:, 1:])


def quantize(
    weight: Tensor | np.ndarray, *, block_size: int = 64, double: bool = False, importance: Tensor | None = None
) -> Nf4Blocks:
    """Quantize a weight to NF4.

    Args:
        weight: any shape, in row-major order; float32, bfloat16 or float16.
        block_size: values that share a scale: 32, 64, 128, 256, 512, 1024, 2048 or 4096.
        double: quantize the scales too, to 8 bits in blocks of 256.
        importance: second moment of each input of a matrix, shape `(n,)`. Scales are then those with the least error,
            weighted by it; without, the largest values of the blocks, as in bitsandbytes.

    Returns:
        `Nf4Blocks`: at the default block size about 0.52 bytes per value with `double`, 0.56 without.

    Raises:
        OptionError: the dtype or block size is not supported, or there are no values.
        NotFiniteError: a value is NaN or Inf.
    """
    tensor = torch.from_numpy(weight) if isinstance(weight, np.ndarray) else weight.detach()
    if tensor.dtype not in DTYPES or tensor.numel() == 0:
        shape = tuple(tensor.shape)
        msg = f"`weight` must be float32, bfloat16 or float16 and not empty, got {tensor.dtype} of shape {shape}"
        raise OptionError(msg)
    if block_size not in BLOCK_SIZES:
        msg = f"`block_size` must be one of {', '.join(map(str, BLOCK_SIZES))}, got {block_size}"
        raise OptionError(msg)
    flat = tensor.reshape(-1)
    codes = torch.empty(-(-len(flat) // 2), dtype=torch.uint8, device=flat.device)
    absmax = torch.empty(-(-len(flat) // block_size), device=flat.device)
    encoder = _Encoder(min(2 * len(codes), _CHUNK), flat.device)
    for start, stop in _chunks(len(flat)):
        scales = absmax[start // block_size : -(-stop // block_size)]
        encoder.scale(flat[start:stop], scales, block_size)
        if not math.isfinite(scales.max()):
            require_finite(tensor, "`weight`")
        encoder.write(codes[start // 2 : -(-stop // 2)])
    plain = Nf4Blocks(codes[:, None], absmax, tuple(tensor.shape), tensor.dtype, block_size)
    if importance is None:
        return nested(plain) if double else plain
    suited = replace(plain, absmax=_suited(tensor, plain, importance))
    suited = nested(suited) if double else suited
    return suited.with_codes(suited.scaled_levels().codes(tensor.float()))


def _suited(tensor: Tensor, plain: Nf4Blocks, importance: Tensor) -> Tensor:
    """The scale of each block with the least error, weighted by the importance of the inputs."""
    values = _in_blocks(tensor.reshape(-1).float(), plain.block_size)
    weights = _in_blocks(importance.to(values).expand(tensor.shape).reshape(-1), plain.block_size)
    rows, found = max(1, _CHUNK // 8 // plain.block_size), []

    for part, weight, absmax in zip(values.split(rows), weights.split(rows), plain.absmax.split(rows), strict=True):

        def error_of(scales: Tensor, part: Tensor = part, weight: Tensor = weight) -> Tensor:
            levels = ScaledLevels(CODEBOOK, scales[:, None])
            return (levels.decode(levels.codes(part)) - part).square_().mul_(weight).sum(1)

        found.append(least_error([absmax * factor for factor in FACTORS], error_of))
    return torch.cat(found)


def _chunks(count: int) -> Iterator[tuple[int, int]]:
    return ((start, min(start + _CHUNK, count)) for start in range(0, count, _CHUNK))


def _scale(values: Tensor, scales: Tensor, size: int) -> Tensor:
    """Multiply each block of `size` values by its scale, in place; the last block may be shorter."""
    full = len(values) // size
    values[: full * size].view(-1, size).mul_(scales[:full, None])
    values[full * size :].mul_(scales[full:])
    return values


class _Encoder:
    """Encodes chunks in buffers allocated once: allocating them for every chunk takes as long as the encoding."""

    def __init__(self, count: int, device: torch.device) -> None:
        self.scaled, self.other = torch.empty(2, count, device=device)
        self.cells = torch.empty(count, dtype=torch.int32, device=device)
        self.codes, self.above = torch.empty(2, count, dtype=torch.uint8, device=device)
        self.cell_bounds, self.cell_codes = _CELL_BOUNDS.to(device), _CELL_CODES.to(device)

    def scale(self, values: Tensor, absmax: Tensor, size: int) -> None:
        """Scale a chunk to -1 … 1, padded to an even number of values; the scales are written to `absmax`."""
        count, full = len(values), len(values) // size * size
        scaled = self.scaled[:count].copy_(values)
        blocks, rest, scales = scaled[:full].view(-1, size), scaled[full:], absmax[: full // size]
        torch.amax(torch.abs(blocks, out=self.other[:full].view(-1, size)), dim=1, out=scales)
        blocks *= (1.0 / scales.clamp(min=_TINY))[:, None]
        if len(rest):
            # As in bitsandbytes, an incomplete last block is divided by its scale, which is not zero for zeros.
            absmax[-1] = rest.abs().max().clamp(min=_TINY)
            rest /= absmax[-1]
            self.scaled[count : count + count % 2] = 0

    def write(self, packed: Tensor) -> None:
        """Write the codes of the chunk: each cell has two possible codes, and the bound in it decides between them."""
        count = 2 * len(packed)
        scaled, other, cells = self.scaled[:count], self.other[:count], self.cells[:count]
        codes, above = self.codes[:count], self.above[:count]
        cells.copy_(torch.mul(scaled, _CELLS, out=other).add_(_CELLS))
        torch.gt(scaled, torch.index_select(self.cell_bounds, 0, cells, out=other), out=above.view(torch.bool))
        pairs = torch.index_select(self.cell_codes, 0, cells, out=codes).add_(above).view(torch.int16)
        packed.copy_(pairs << 4 | pairs >> 8)


def _in_blocks(values: Tensor, size: int) -> Tensor:
    """Values as rows of `size`, the last one padded with zeros."""
    left = -len(values) % size
    return (torch.nn.functional.pad(values, (0, left)) if left else values).view(-1, size)


def nested(blocks: Nf4Blocks) -> Nf4Blocks:
    """The same blocks with 8-bit scales: double quantization.

    Raises:
        OptionError: the scales are too large.
    """
    offset = blocks.absmax.mean()
    if not torch.isfinite(offset):
        msg = f"the scales, up to {float(blocks.absmax.max()):.3g}, are too large to quantize: their mean overflows"
        raise OptionError(msg)
    centred = blocks.absmax - offset
    groups = _in_blocks(centred, NESTED_BLOCK)
    absmax = groups.abs().amax(dim=1)
    # Equal scales become zeros here; bitsandbytes gives them code 0, which a second-level scale of zero cancels.
    scaled = (groups * (1.0 / absmax[:, None])).nan_to_num(nan=-1.0).clamp(-1, 1)
    on_grid = ((scaled + 1) * 0.5 * _GRID + 0.5).floor() / _GRID * 2 - 1
    bounds = (DYNAMIC_MAP[:-1] + DYNAMIC_MAP[1:]).to(absmax.device) / 2
    codes = torch.bucketize(on_grid.view(-1)[: len(centred)], bounds).to(torch.uint8)
    nested = {"nested_absmax": absmax, "nested_offset": offset}
    return Nf4Blocks(blocks.codes, codes, blocks.shape, blocks.dtype, blocks.block_size, **nested)

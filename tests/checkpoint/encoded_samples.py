"""One small weight in every encoding and naming that is read: its stored tensors, the config, and what they stand for.

The truth is by the library that writes the encoding where it is installed, otherwise by the formula of its format.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

MODULE = "model.layers.0.mlp.up_proj"
EXPERTS = "model.layers.0.mlp.experts"
OUTPUTS, INPUTS = 64, 256
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
E2M1 = torch.tensor([0.0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], dtype=torch.float64)


@dataclass(frozen=True)
class Sample:
    """A stored weight.

    Attributes:
        tensors: as they are stored.
        truth: float64, what they stand for.
        name: of the weight.
        config: the model's config, as far as it is about the encoding.
    """

    tensors: dict[str, Tensor]
    truth: Tensor
    name: str = f"{MODULE}.weight"
    config: Mapping[str, Any] = field(default_factory=dict)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def weight(*shape: int) -> Tensor:
    """A weight whose first quarter of rows and columns is larger: a lost scale changes more than the norm."""
    values = torch.randn(*(shape or (OUTPUTS, INPUTS)), generator=generator()) * 0.02
    rows, columns = values.shape[-2] // 4, values.shape[-1] // 4
    values[..., :rows, :columns] *= 30
    return values


def expanded(scale: Tensor, blocks: tuple[int, ...], shape: tuple[int, ...]) -> Tensor:
    for dimension, block in enumerate(blocks):
        scale = scale.repeat_interleave(block, dimension).narrow(dimension, 0, shape[dimension])
    return scale


# FP8 and INT8 times a scale


def codes_of(values: Tensor, blocks: tuple[int, ...], dtype: torch.dtype = E4M3) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, scales, and the float32 products; `blocks` are the sizes along each dimension."""
    scale = values.abs()
    for dimension, block in enumerate(blocks):
        parts = scale.split(block, dimension)
        scale = torch.cat([part.amax(dimension, keepdim=True) for part in parts], dimension)
    scale = scale / (127 if dtype == torch.int8 else torch.finfo(dtype).max)
    full = expanded(scale, blocks, tuple(values.shape))
    scaled = values / full
    codes = scaled.round().to(dtype) if dtype == torch.int8 else scaled.to(dtype)
    return codes, scale, (codes.float() * full).double()


def scaled(
    leaf: str, blocks: tuple[int, ...], dtype: torch.dtype = E4M3, values: Tensor | None = None, **config: Any
) -> Sample:
    codes, scale, truth = codes_of(weight() if values is None else values, blocks, dtype)
    return Sample({f"{MODULE}.weight": codes, f"{MODULE}.{leaf}": scale}, truth, config={"quantization_config": config})


def fused(leaf: str, blocks: tuple[int, ...]) -> Sample:
    codes, scale, truth = codes_of(weight(3, OUTPUTS, INPUTS), blocks)
    name = f"{EXPERTS}.gate_up_proj"
    return Sample({name: codes, f"{name}{leaf}": scale}, truth, name)


def scalar(sample: Sample) -> Sample:
    return Sample({name: value.reshape(()) if value.numel() == 1 else value for name, value in sample.tensors.items()},
                  sample.truth)  # fmt: skip


def power_of_two_blocks() -> Sample:
    codes, scale, _ = codes_of(weight(192, 256), (128, 128))
    scale = scale.log2().ceil().exp2()
    truth = codes.double() * expanded(scale, (128, 128), (192, 256)).double()
    return Sample({f"{MODULE}.weight": codes, f"{MODULE}.scale": scale.to(torch.float8_e8m0fnu)}, truth)


def comfyui() -> Sample:
    sample = scaled("scale_weight", (OUTPUTS, INPUTS))
    extra = {"scaled_fp8": torch.zeros(2).to(E4M3), f"{MODULE}.scale_input": torch.ones(())}
    return Sample(sample.tensors | extra, sample.truth)


def comfyui_marked() -> Sample:
    sample = scalar(scaled("weight_scale", (OUTPUTS, INPUTS)))
    marker = torch.tensor([*b'{"format": "float8_e4m3fn", "full_precision_matrix_mult": true}'], dtype=torch.uint8)
    return Sample(sample.tensors | {f"{MODULE}.comfy_quant": marker}, sample.truth)


def in_tiles(scales: Tensor) -> Tensor:
    """Scales in the order of cuBLAS: entry (r, c) of a tile of 128×4 is at (r mod 32)·16 + (r div 32)·4 + c."""
    rows, columns = -(-scales.shape[0] // 128), -(-scales.shape[1] // 4)
    stored = torch.zeros(rows, columns, 512, dtype=torch.uint8)
    for row, column in np.ndindex(*scales.shape):
        place = row % 32 * 16 + row % 128 // 32 * 4 + column % 4
        stored[row // 128, column // 4, place] = scales[row, column]
    return stored.view(128 * rows, 4 * columns)


def comfyui_nvfp4(*, outputs: int = 160, inputs: int = 96) -> Sample:
    packed, values = packed_e2m1(outputs, inputs)
    scale = (torch.rand(outputs, inputs // 16, generator=generator(3)) * 400 + 1).to(E4M3)
    second = torch.tensor(0.00123)
    factors = (scale.float() * second).double()
    truth = (values.unflatten(1, (-1, 16)) * factors[..., None]).flatten(1).float().double()
    tensors = {"weight": packed << 4 | packed >> 4, "weight_scale": in_tiles(scale.view(torch.uint8)).view(E4M3),
               "weight_scale_2": second,
               "comfy_quant": torch.tensor([*b'{"format": "nvfp4"}'], dtype=torch.uint8)}  # fmt: skip
    return Sample({f"{MODULE}.{leaf}": value for leaf, value in tensors.items()}, truth)


def comfyui_mxfp8() -> Sample:
    codes, _, _ = codes_of(weight(), (1, INPUTS))
    stored, factors = exponents(OUTPUTS, INPUTS // 32)
    truth = (codes.double().unflatten(1, (-1, 32)) * factors[..., None]).flatten(1)
    tensors = {"weight": codes, "weight_scale": in_tiles(stored).view(torch.float8_e8m0fnu),
               "comfy_quant": torch.tensor([*b'{"format": "mxfp8"}'], dtype=torch.uint8)}  # fmt: skip
    return Sample({f"{MODULE}.{leaf}": value for leaf, value in tensors.items()}, truth)


def zero_points() -> Sample:
    """Asymmetric INT8 by compressed-tensors."""
    return compressed("int-quantized", num_bits=8, symmetric=False, strategy="channel")


def quanto() -> Sample:
    codes, scale, truth = codes_of(weight(), (1, INPUTS), torch.int8)
    parts = {f"{MODULE}.weight._data": codes, f"{MODULE}.weight._scale": scale}
    return Sample(parts | {f"{MODULE}.{leaf}": torch.ones(()) for leaf in ("input_scale", "output_scale")}, truth)


def quanto_packed(
    bits: int, *, outputs: int = OUTPUTS, inputs: int = INPUTS, integer: bool = False, bias: bool = False, **config: Any
) -> Sample:
    """As quanto's `WeightQBitsTensor` stores it: parts of the groups one above the other, the first in the lowest bits.

    A bias, or the width of the model, tells the shape of what is in groups.
    """
    group = next((size for size in (128, 96, 64, 32) if inputs > 128 and inputs % size == 0), inputs)
    shape = (outputs * inputs // group, 1)
    codes = torch.randint(0, 2**bits, (shape[0], group), generator=generator(4))
    scale = torch.rand(shape, generator=generator(6)) * 0.01 + 0.001
    shift = torch.rand(shape, generator=generator(5)) * 0.1
    if integer:
        shift = torch.randint(0, 2**bits, shape, generator=generator(5)).to(torch.int8)
    truth = scale * (codes - shift) if integer else scale * codes - shift
    count = 8 // bits
    parts = torch.nn.functional.pad(codes, (0, 0, 0, -len(codes) % count)).chunk(count)
    stored = sum(part << bits * place for place, part in enumerate(parts)).to(torch.uint8)
    tensors = {"weight._data._data": stored, "weight._scale": scale, "weight._shift": shift,
               "input_scale": torch.ones(()), "output_scale": torch.ones(())}  # fmt: skip
    return Sample({f"{MODULE}.{leaf}": value for leaf, value in tensors.items()}, truth.view(outputs, inputs).double(),
                  config=config)  # fmt: skip


def torchao_int4() -> Sample:
    """As torchao's `Int4Tensor` stores it: signed codes, and scales and zero points in columns."""
    codes = torch.randint(-8, 8, (OUTPUTS, INPUTS), generator=generator(4))
    shape = (OUTPUTS, INPUTS // 64)
    scale = (torch.rand(shape, generator=generator(6)) * 0.01 + 0.001).bfloat16()
    zero = (torch.randn(shape, generator=generator(5)) * 0.01).bfloat16()
    truth = codes.float().unflatten(-1, (-1, 64)) * scale.float()[..., None] + zero.float()[..., None]
    tensors = {"_weight_qdata": (codes[..., ::2] & 15 | codes[..., 1::2] << 4).to(torch.int8),
               "_weight_scale": scale.mT.contiguous(), "_weight_zero_point": zero.mT.contiguous()}  # fmt: skip
    return Sample({f"{MODULE}.{leaf}": value for leaf, value in tensors.items()}, truth.flatten(-2).double())


def torchao(dtype: torch.dtype) -> Sample:
    codes, scale, truth = codes_of(weight(), (1, INPUTS), dtype)
    return Sample({f"{MODULE}._weight_qdata": codes, f"{MODULE}._weight_scale": scale}, truth)


def llm_int8() -> Sample:
    from bitsandbytes.functional import int8_vectorwise_dequant, int8_vectorwise_quant

    codes, maxima, _ = int8_vectorwise_quant(weight().half())
    truth = int8_vectorwise_dequant(codes, maxima).double()
    tensors = {"weight": codes, "SCB": maxima, "weight_format": torch.tensor(0, dtype=torch.uint8)}
    return Sample({f"{MODULE}.{leaf}": value for leaf, value in tensors.items()}, truth)


# MXFP4 and NVFP4


def packed_e2m1(*shape: int) -> tuple[Tensor, Tensor]:
    """Random bytes of two codes each, and their numbers in float64."""
    codes = torch.randint(0, 16, shape, generator=generator(1))
    return (codes[..., ::2] | codes[..., 1::2] << 4).to(torch.uint8), E2M1[codes]


def exponents(*shape: int) -> tuple[Tensor, Tensor]:
    stored = torch.randint(110, 130, shape, generator=generator(2), dtype=torch.uint8)
    return stored, torch.exp2(stored.double() - 127)


def gpt_oss() -> Sample:
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    blocks = torch.randint(0, 256, (2, 6, 3, 16), dtype=torch.uint8, generator=generator(1))
    scales = torch.randint(110, 130, (2, 6, 3), dtype=torch.uint8, generator=generator(2))
    truth = convert_moe_packed_tensors(blocks, scales).double()
    name = f"{EXPERTS}.gate_up_proj"
    return Sample({f"{name}_blocks": blocks, f"{name}_scales": scales}, truth, name)


def mxfp4(codes: str, scale: str, *, view: torch.dtype | None = None, power: torch.dtype = torch.uint8) -> Sample:
    packed, values = packed_e2m1(OUTPUTS, INPUTS)
    stored, factors = exponents(OUTPUTS, INPUTS // 32)
    truth = (values.unflatten(1, (-1, 32)) * factors[..., None]).flatten(1)
    return Sample(
        {f"{MODULE}.{codes}": packed.view(view or torch.uint8), f"{MODULE}.{scale}": stored.view(power)}, truth
    )


def mxfp8() -> Sample:
    codes, _, _ = codes_of(weight(), (1, INPUTS))
    stored, factors = exponents(OUTPUTS, INPUTS // 32)
    truth = (codes.double().unflatten(1, (-1, 32)) * factors[..., None]).flatten(1)
    return Sample({f"{MODULE}.weight": codes, f"{MODULE}.weight_scale": stored}, truth)


def nvfp4(codes: str = "weight", *, view: torch.dtype | None = None) -> Sample:
    """As ModelOpt stores it: both scales multiply, first each other."""
    packed, values = packed_e2m1(OUTPUTS, INPUTS)
    scale = (torch.rand(OUTPUTS, INPUTS // 16, generator=generator(3)) * 400 + 1).to(E4M3)
    second = torch.tensor(0.00123)
    truth = (values.unflatten(1, (-1, 16)) * (scale.float() * second).double()[..., None]).flatten(1).float().double()
    tensors = {codes: packed.view(view or torch.uint8), "weight_scale": scale, "weight_scale_2": second,
               "input_scale": torch.ones(())}  # fmt: skip
    return Sample({f"{MODULE}.{leaf}": value for leaf, value in tensors.items()}, truth)


def nvfp4_torchao() -> Sample:
    sample = nvfp4()
    names = {"weight": "_weight_qdata", "weight_scale": "_weight_scale", "weight_scale_2": "_weight_per_tensor_scale"}
    return Sample({f"{MODULE}.{to}": sample.tensors[f"{MODULE}.{leaf}"] for leaf, to in names.items()}, sample.truth)


def nvfp4_experts() -> Sample:
    """As ModelOpt stores experts `(experts, in, out)`, which are packed along the inputs, with a scale for each."""
    packed, values = packed_e2m1(2, OUTPUTS, INPUTS)
    scale = (torch.rand(2, OUTPUTS, INPUTS // 16, generator=generator(3)) * 400 + 1).to(E4M3)
    second = torch.tensor([0.00123, 0.5])
    factors = (scale.float() * second[:, None, None]).double()
    truth = (values.unflatten(-1, (-1, 16)) * factors[..., None]).flatten(-2).float().double()
    name = f"{EXPERTS}.gate_up_proj"
    tensors = {name: packed.mT.contiguous(), f"{name}_weight_scale": scale.mT.contiguous(),
               f"{name}_weight_scale_2": second}  # fmt: skip
    return Sample(tensors, truth.mT, name)


# Packed integers


def packed(codes: Tensor, bits: int) -> Tensor:
    """Codes in rows as one stream of bits, least significant first, in int32."""
    stream = (codes.numpy()[..., None] >> np.arange(bits)) & 1
    data = np.packbits(stream.reshape(len(codes), -1).astype(np.uint8), axis=1, bitorder="little")
    data = np.pad(data, ((0, 0), (0, -data.shape[1] % 4)))
    return torch.from_numpy(data.copy()).view(torch.int32)


def integers(bits: int, group: int, *, symmetric: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Codes `(out, in)`, and zero points and scales in float16 `(out, groups)`."""
    codes = torch.randint(0, 2**bits, (OUTPUTS, INPUTS), generator=generator(4))
    shape = (OUTPUTS, INPUTS // group)
    zeros = torch.randint(0, 2**bits, shape, generator=generator(5))
    zeros = torch.full(shape, 2 ** (bits - 1)) if symmetric else zeros
    return codes, zeros, (torch.rand(shape, generator=generator(6)) * 0.01 + 0.001).half()


def gptq(bits: int = 4, *, version: int = 1, symmetric: bool = True, order: bool = False, **config: Any) -> Sample:
    group = 64
    codes, zeros, scales = integers(bits, group, symmetric=symmetric)
    index = torch.arange(INPUTS) // group
    if order:
        index = index[torch.randperm(INPUTS, generator=generator(7))]
    truth = (codes - zeros[:, index]).double() * scales[:, index].double()
    stored = (zeros - 1) % 2**bits if version == 1 else zeros
    tensors = {"qweight": packed(codes, bits).T.contiguous(), "qzeros": packed(stored.T, bits),
               "scales": scales.T.contiguous(), "g_idx": index.int()}  # fmt: skip
    stated = {"quant_method": "gptq", "bits": bits, "group_size": group} | config
    config = {"quantization_config": stated} if config.get("quant_method", True) else {}
    return Sample({f"{MODULE}.{leaf}": value for leaf, value in tensors.items()}, truth, config=config)


def without(sample: Sample, leaf: str) -> Sample:
    tensors = {name: value for name, value in sample.tensors.items() if name != f"{MODULE}.{leaf}"}
    return Sample(tensors, sample.truth, sample.name, sample.config)


def awq() -> Sample:
    codes, zeros, scales = integers(4, 64, symmetric=False)
    truth = (codes - zeros.repeat_interleave(64, 1)).double() * scales.repeat_interleave(64, 1).double()
    order = [0, 2, 4, 6, 1, 3, 5, 7]  # outputs of the fields of a word

    def words(values: Tensor) -> Tensor:
        return packed(values.T.reshape(values.shape[1], -1, 8)[..., order].flatten(1), 4)

    tensors = {"qweight": words(codes), "qzeros": words(zeros), "scales": scales.T.contiguous()}
    config = {"quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 64, "version": "gemm"}}
    return Sample({f"{MODULE}.{leaf}": value for leaf, value in tensors.items()}, truth, config=config)


def awq_gemv(group: int, *, outputs: int = OUTPUTS, inputs: int = INPUTS, version: str | None = "gemv") -> Sample:
    """As AutoAWQ's `WQLinear_GEMV` stores it; groups are padded to what the kernel reads at once."""
    codes = torch.randint(0, 16, (outputs, inputs), generator=generator(4))
    zeros = torch.randint(0, 16, (outputs, inputs // group), generator=generator(5))
    scales = (torch.rand(zeros.shape, generator=generator(6)) * 0.01 + 0.001).half()
    truth = (codes - zeros.repeat_interleave(group, 1)).double() * scales.repeat_interleave(group, 1).double()
    unit = 8 * max(1, 128 // group)
    zeros, scales = (torch.nn.functional.pad(each, (0, -each.shape[1] % unit)) for each in (zeros, scales))
    tensors = {"qweight": packed(codes, 4), "qzeros": packed(zeros, 4), "scales": scales}
    stated = {"quant_method": "awq", "bits": 4, "group_size": group, "version": version}
    config = {"quantization_config": stated} if version else {}
    return Sample({f"{MODULE}.{leaf}": value for leaf, value in tensors.items()}, truth, config=config)


def awq_gemv_fast(group: int, *, inputs: int = INPUTS) -> Sample:
    """As AutoAWQ's `WQLinear_GEMVFast` stores it, with -scale·zero in float16."""
    codes = torch.randint(0, 16, (OUTPUTS, inputs), generator=generator(4))
    zeros = torch.randint(0, 16, (OUTPUTS, inputs // group), generator=generator(5))
    scales = (torch.rand(zeros.shape, generator=generator(6)) * 0.01 + 0.001).half()
    offsets = -(scales * zeros).half()
    products = codes.float() * scales.float().repeat_interleave(group, 1)
    truth = (products + offsets.float().repeat_interleave(group, 1)).double()
    order = np.arange(32).reshape(4, 4, 2).transpose(1, 2, 0).reshape(32)
    stored = codes.view(OUTPUTS, -1, 32)[..., order].reshape(OUTPUTS // 4, 4, -1, 64).transpose(1, 2)
    words = packed(stored.reshape(OUTPUTS // 4, -1), 4).view(torch.int16)
    unit = 8 * max(1, 128 // group)
    tables = (torch.nn.functional.pad(each, (0, -each.shape[1] % unit)).T.contiguous() for each in (scales, offsets))
    tensors = {"qweight": words} | dict(zip(("scales", "qzeros"), tables, strict=True))
    config = {"quantization_config": {"quant_method": "awq", "version": "gemv_fast", "group_size": group}}
    return Sample({f"{MODULE}.{leaf}": value for leaf, value in tensors.items()}, truth, config=config)


def compressed(form: str, **weights: Any) -> Sample:
    """A weight that compressed-tensors compresses, and decompresses in float32."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from compressed_tensors.quantization.lifecycle.forward import dequantize
    from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam

    args = QuantizationArgs(**weights)
    values, group = weight(), weights.get("group_size") or INPUTS
    low, high = (op(values.unflatten(1, (-1, group)), dim=-1) for op in (torch.amin, torch.amax))
    if weights["strategy"] == "tensor":
        low, high = values.min().reshape(1), values.max().reshape(1)
    state = {"weight": values}
    if weights["strategy"] == "tensor_group":
        state["weight_global_scale"] = generate_gparam(values.min().reshape(1), values.max().reshape(1))
    scale, zero = calculate_qparams(low, high, args, global_scale=state.get("weight_global_scale"))
    state |= {"weight_scale": scale, "weight_zero_point": zero}
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    compressor = BaseCompressor.get_value_from_registry(form)
    stored = compressor.compress(state, scheme)
    truth = compressor.decompress(dict(stored), scheme)["weight"]
    if form == "nvfp4-pack-quantized":  # whose decompressor rounds to bfloat16
        codes = unpack_fp4_from_uint8(stored["weight_packed"], OUTPUTS, INPUTS, dtype=torch.float32)
        factors = {"scale": stored["weight_scale"].float(), "global_scale": stored["weight_global_scale"]}
        exact = dequantize(codes, args=args, dtype=torch.float32, **factors)
        assert torch.equal(exact.to(truth.dtype), truth)
        truth = exact
    group_config = {"weights": {"num_bits": args.num_bits, "group_size": args.group_size}, "targets": ["Linear"]}
    config = {"quant_method": "compressed-tensors", "format": form, "config_groups": {"group_0": group_config}}
    tensors = {f"{MODULE}.{leaf}": value.contiguous() for leaf, value in stored.items()}
    return Sample(tensors, truth.double(), config={"quantization_config": config})


def mlx(bits: int, group: int, mode: str = "affine", config: Mapping[str, Any] | None = None) -> Sample:
    """A weight that MLX quantizes and dequantizes in float32."""
    import mlx.core as mx

    stored = mx.quantize(mx.array(weight().numpy()), group_size=group, bits=bits, mode=mode)
    truth = mx.dequantize(*stored, group_size=group, bits=bits, mode=mode, dtype=mx.float32)
    arrays = dict(zip(("weight", "scales", "biases"), map(np.array, stored), strict=False))
    tensors = {f"{MODULE}.{leaf}": torch.from_numpy(array.copy()) for leaf, array in arrays.items()}
    stated = {"group_size": group, "bits": bits, "mode": mode}
    return Sample(tensors, torch.from_numpy(np.array(truth)).double(), config={"quantization": config or stated})


def hqq(bits: int, axis: int) -> Sample:
    """As hqq's `HQQLinear` stores it: parts of the rows one above the other, the first in the highest bits."""
    group = 64
    codes = torch.randint(0, 2**bits, (OUTPUTS * INPUTS,), generator=generator(4)).view(
        (-1, group) if axis else (group, -1)
    )
    shape = (len(codes), 1) if axis else (1, codes.shape[1])
    scale = (torch.rand(shape, generator=generator(6)) * 0.01 + 0.001).half()
    zero = (torch.rand(shape, generator=generator(5)) * 2**bits).half()
    truth = ((codes.float() - zero.float()) * scale.float()).double().view(OUTPUTS, INPUTS)
    count = 10 if bits == 3 else 8 // bits
    parts = torch.nn.functional.pad(codes, (0, 0, 0, -len(codes) % count)).chunk(count)
    stored = sum(part << bits * (count - 1 - place) for place, part in enumerate(parts))
    numbers = {"nbits": bits, "group_size": group, "axis": axis}
    tensors = {"W_q": stored.to(torch.int32 if bits == 3 else torch.uint8), "scale": scale, "zero": zero,
               "shape": torch.tensor([OUTPUTS, INPUTS]), "packing": torch.tensor([ord(c) for c in "4bit_u8"]).byte(),
               **{leaf: torch.tensor(value, dtype=torch.int32) for leaf, value in numbers.items()},
               **{leaf: torch.tensor(0).byte() for leaf in ("quant_scale", "quant_zero", "view_as_float")}}  # fmt: skip
    return Sample({f"{MODULE}.{leaf}": value for leaf, value in tensors.items()}, truth)


def bitsandbytes_fp4(*, double: bool, dtype: torch.dtype = torch.float32) -> Sample:
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    values = weight(OUTPUTS, INPUTS + 8).to(dtype)
    codes, state = quantize_4bit(values, quant_type="fp4", blocksize=64, compress_statistics=double)
    truth = dequantize_4bit(codes, state).double()
    parts = {f"{MODULE}.weight.{part}": value for part, value in state.as_dict(packed=True).items()}
    return Sample({f"{MODULE}.weight": codes} | parts, truth)


FP4 = {"num_bits": 4, "type": "float"}
GROUPS = {"strategy": "group", "group_size": 32}
SAMPLES: dict[str, Callable[[], Sample]] = {
    "FP8, blocks, DeepSeek-V3": lambda: scaled("weight_scale_inv", (128, 128), values=weight(256, 384)),
    "FP8, blocks with a remainder": lambda: scaled("weight_scale_inv", (128, 128), values=weight(200, 300)),
    "FP8, blocks of a stated size": lambda: scaled("weight_scale_inv", (32, 64), weight_block_size=[32, 64]),
    "FP8, blocks in E8M0, DeepSeek-V4": power_of_two_blocks,
    "FP8, rows": lambda: scaled("weight_scale", (1, INPUTS)),
    "FP8, groups": lambda: scaled("weight_scale", (1, 64)),
    "FP8, tensor": lambda: scaled("weight_scale", (OUTPUTS, INPUTS)),
    "FP8, tensor, a scalar": lambda: scalar(scaled("weight_scale", (OUTPUTS, INPUTS))),
    "FP8, tensor, Mistral": lambda: scaled("qscale_weight", (OUTPUTS, INPUTS)),
    "FP8, ComfyUI": comfyui,
    "FP8, ComfyUI, marked": comfyui_marked,
    "FP8, E5M2": lambda: scaled("weight_scale", (OUTPUTS, INPUTS), E5M2),
    "FP8, experts, blocks": lambda: fused("_scale_inv", (1, 128, 128)),
    "FP8, experts, rows": lambda: fused("_scale", (1, 1, INPUTS)),
    "FP8, experts, columns": lambda: fused("_scale", (1, OUTPUTS, 1)),
    "FP8, experts, one scale each": lambda: fused("_scale", (1, OUTPUTS, INPUTS)),
    "FP8, experts, ModelOpt": lambda: fused("_weight_scale", (3, OUTPUTS, INPUTS)),
    "FP8, torchao": lambda: torchao(E4M3),
    "FP8, compressed-tensors": lambda: compressed("float-quantized", num_bits=8, type="float", strategy="channel"),
    "INT8, rows": lambda: scaled("weight_scale", (1, INPUTS), torch.int8),
    "INT8, zero points": zero_points,
    "INT8, torchao": lambda: torchao(torch.int8),
    "INT8, quanto": quanto,
    **{f"quanto, {bits} bits": lambda bits=bits: quanto_packed(bits, hidden_size=INPUTS) for bits in (2, 4)},
    "quanto, 2 bits, integer shifts": lambda: quanto_packed(2, integer=True, hidden_size=INPUTS),
    "quanto, 4 bits, whole rows": lambda: quanto_packed(4, outputs=61, inputs=203),
    "quanto, 2 bits, groups of 96": lambda: quanto_packed(2, outputs=7, inputs=288, hidden_size=288),
    "torchao, 4 bits": torchao_int4,
    "LLM.int8": llm_int8,
    "MXFP4, gpt-oss": gpt_oss,
    "MXFP4, Quark": lambda: mxfp4("weight", "weight_scale"),
    "MXFP4, auto-round": lambda: mxfp4("weight_packed", "weight_scale"),
    "MXFP4, DeepSeek-V4": lambda: mxfp4("weight", "scale", view=torch.int8, power=torch.float8_e8m0fnu),
    "MXFP4, compressed-tensors": lambda: compressed("mxfp4-pack-quantized", **FP4, **GROUPS, scale_dtype=torch.uint8),
    "MXFP8": mxfp8,
    "MXFP4, packed data type": lambda: mxfp4("weight", "weight_scale", view=torch.float4_e2m1fn_x2),
    "NVFP4, ModelOpt": nvfp4,
    "NVFP4, ComfyUI": comfyui_nvfp4,
    "MXFP8, ComfyUI": comfyui_mxfp8,
    "NVFP4, torchao": nvfp4_torchao,
    "NVFP4, packed data type": lambda: nvfp4(view=torch.float4_e2m1fn_x2),
    "NVFP4, ModelOpt, experts": nvfp4_experts,
    "NVFP4, compressed-tensors": lambda: compressed(
        "nvfp4-pack-quantized", **FP4, strategy="tensor_group", group_size=16, scale_dtype=E4M3
    ),
    **{f"GPTQ, {bits} bits": lambda bits=bits: gptq(bits) for bits in (2, 3, 4, 8)},
    "GPTQ, act-order": lambda: gptq(order=True),
    "GPTQ, asymmetric": lambda: gptq(symmetric=False),
    "GPTQ, asymmetric, 3 bits, act-order": lambda: gptq(3, symmetric=False, order=True),
    "GPTQ, version 2": lambda: gptq(version=2, symmetric=False, checkpoint_format="gptq_v2"),
    "GPTQ without a config, version 1": lambda: gptq(quant_method=None),
    "GPTQ without a config, version 2": lambda: gptq(version=2, quant_method=None),
    "GPTQ without g_idx": lambda: without(gptq(), "g_idx"),
    "GPTQ, auto-round": lambda: gptq(quant_method="auto-round", packing_format="auto_round:auto_gptq", symmetric=False),
    "AWQ": awq,
    **{f"AWQ, GEMV, groups of {group}": lambda group=group: awq_gemv(group) for group in (32, 64, 128)},
    "AWQ, GEMV, one group": lambda: awq_gemv(INPUTS),
    "AWQ, GEMV without a config": lambda: awq_gemv(128, inputs=2048, version=None),
    "AWQ, GEMV-fast": lambda: awq_gemv_fast(64),
    "AWQ, GEMV-fast, several words of groups": lambda: awq_gemv_fast(128, inputs=2048),
    **{
        f"compressed-tensors, {bits} bits": lambda bits=bits: compressed("pack-quantized", num_bits=bits, **GROUPS)
        for bits in (2, 3, 4, 8)
    },
    "compressed-tensors, rows": lambda: compressed("pack-quantized", num_bits=4, strategy="channel"),
    "compressed-tensors, asymmetric": lambda: compressed("pack-quantized", num_bits=4, symmetric=False, **GROUPS),
    "compressed-tensors, asymmetric, 3 bits": lambda: compressed(
        "pack-quantized", num_bits=3, symmetric=False, **GROUPS
    ),
    **{f"MLX, {bits} bits": lambda bits=bits: mlx(bits, 64) for bits in (2, 3, 4, 5, 6, 8)},
    "MLX, groups of 32": lambda: mlx(4, 32),
    "MLX, a module with its own bits": lambda: mlx(
        8, 32, config={"bits": 4, "group_size": 64, MODULE: {"bits": 8, "group_size": 32}}
    ),
    "MLX, MXFP4": lambda: mlx(4, 32, "mxfp4"),
    "MLX, MXFP8": lambda: mlx(8, 32, "mxfp8"),
    "MLX, NVFP4": lambda: mlx(4, 16, "nvfp4"),
    **{f"HQQ, {bits} bits": lambda bits=bits: hqq(bits, 1) for bits in (1, 2, 3, 4, 8)},
    **{f"HQQ, {bits} bits, columns": lambda bits=bits: hqq(bits, 0) for bits in (3, 4)},
    "FP4, bitsandbytes": lambda: bitsandbytes_fp4(double=False),
    "FP4, bitsandbytes, double": lambda: bitsandbytes_fp4(double=True, dtype=torch.bfloat16),
}
# One of each encoding, and of experts in either orientation.
EACH = (
    "FP8, blocks, DeepSeek-V3",
    "FP8, experts, blocks",
    "INT8, zero points",
    "INT8, quanto",
    "INT8, torchao",
    "LLM.int8",
    "MXFP8",
    "MXFP4, Quark",
    "MXFP4, gpt-oss",
    "NVFP4, ModelOpt",
    "NVFP4, ModelOpt, experts",
    "NVFP4, compressed-tensors",
    "GPTQ, act-order",
    "AWQ",
    "compressed-tensors, asymmetric",
    "MLX, 4 bits",
    "HQQ, 4 bits",
    "FP4, bitsandbytes, double",
)

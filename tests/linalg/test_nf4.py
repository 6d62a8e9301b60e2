"""NF4 against bitsandbytes itself, bit for bit, on the CPU."""

import numpy as np
import pytest
import torch

from eckart.errors import EckartError
from eckart.linalg import nf4

bitsandbytes = pytest.importorskip("bitsandbytes.functional")


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def with_zero_blocks(*shape):
    weight = normal(*shape)
    weight.view(-1)[: 64 * 5] = 0
    weight.view(-1)[-40:] = 0
    return weight


def beside_every_bound():
    """Codes, the bounds between them, and the floats on both sides of each bound; whole blocks with a scale of 1."""
    bounds = (nf4.CODEBOOK[1:] + nf4.CODEBOOK[:-1]) / 2
    sides = [torch.nextafter(bounds, torch.tensor(side)) for side in (-2.0, 2.0)]
    values = torch.cat([nf4.CODEBOOK, bounds, *sides, torch.ones(3)])
    return torch.cat([values, values.flip(0), -values])


def every_bfloat16_up_to_one():
    """Each of them, with ones between so that the scale of every block is 1."""
    values = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    values = values[values.abs() <= 1].float()
    return torch.nn.functional.pad(values.view(-1, 2), (2, 0), value=1.0)


WEIGHTS = {
    "a plain matrix": normal(256, 512),
    "longer than a chunk": normal(1100, 1500),
    "a value longer than a chunk": normal(2**19 + 1),
    "one block": normal(8, 8),
    "one value": normal(1, 1),
    "a ragged last block": normal(37, 66),
    "an odd number of values": normal(37, 65),
    "an odd row": normal(5, 7),
    "a vector": normal(1000),
    "three dimensions": normal(3, 40, 50),
    "zeros": torch.zeros(64, 65),
    "zero blocks and a zero end": with_zero_blocks(100, 77),
    "heavy tails": normal(300, 300) ** 5,
    "tiny": normal(64, 64) * 1e-30,
    "subnormal": normal(64, 64) * 1e-39,
    "huge": normal(64, 64) * 1e30,
    "a constant": torch.full((128, 129), 0.3),
    "values on and beside every bound": beside_every_bound(),
    "the same with another scale": beside_every_bound() * 0.37,
    "the same with a scale that has no reciprocal": beside_every_bound() * 1e38,
    "every bfloat16 up to 1": every_bfloat16_up_to_one(),
}


@pytest.mark.parametrize("double", [False, True], ids=["plain", "double"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", WEIGHTS)
def test_codes_scales_and_values_are_those_of_bitsandbytes(name, dtype, double):
    weight = WEIGHTS[name].to(dtype)
    if not torch.isfinite(weight).all():
        weight = weight.clamp(-6e4, 6e4)
    codes, state = bitsandbytes.quantize_4bit(weight, quant_type="nf4", compress_statistics=double)
    blocks = nf4.quantize(weight, double=double)
    assert torch.equal(blocks.codes, codes)
    assert torch.equal(blocks.absmax, state.absmax)
    assert blocks.double == double
    if double:
        assert torch.equal(blocks.nested_absmax, state.state2.absmax)
        assert torch.equal(blocks.nested_offset, state.offset)
        assert torch.equal(blocks.nested_map, state.state2.code)
    again = blocks.dequantize()
    assert again.dtype == dtype
    if name == "subnormal" and dtype == torch.bfloat16:
        return  # bitsandbytes' conversion to bfloat16 flushes these on CPUs with AVX512-BF16, and only there
    assert torch.equal(again, bitsandbytes.dequantize_4bit(codes, state).view(weight.shape))


@pytest.mark.parametrize("double", [False, True], ids=["plain", "double"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("block_size", nf4.BLOCK_SIZES)
def test_every_block_size(block_size, dtype, double):
    weight = normal(130, 258).to(dtype)
    codes, state = bitsandbytes.quantize_4bit(
        weight, quant_type="nf4", blocksize=block_size, compress_statistics=double
    )
    blocks = nf4.quantize(weight, block_size=block_size, double=double)
    assert torch.equal(blocks.codes, codes)
    assert torch.equal(blocks.absmax, state.absmax)
    assert torch.equal(blocks.dequantize(), bitsandbytes.dequantize_4bit(codes, state))


def test_the_eight_bit_map_is_that_of_bitsandbytes():
    assert torch.equal(nf4.DYNAMIC_MAP, bitsandbytes.create_dynamic_map())
    assert torch.equal(nf4.CODEBOOK, bitsandbytes.get_4bit_type("nf4", device="cpu"))


def test_a_million_scales_fall_on_the_codes_of_bitsandbytes():
    weight = normal(4096, 4096).to(torch.bfloat16)
    codes, state = bitsandbytes.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
    blocks = nf4.quantize(weight, double=True)
    assert torch.equal(blocks.codes, codes)
    assert torch.equal(blocks.absmax, state.absmax)


def test_the_error_of_a_gaussian_weight_is_the_known_one():
    weight = normal(1024, 1024)
    for block_size, expected in ((64, 0.0921), (128, 0.0956)):
        error = nf4.quantize(weight, block_size=block_size).dequantize() - weight
        assert float(error.norm() / weight.norm()) == pytest.approx(expected, abs=2e-4)
    blocks = nf4.quantize(weight)
    worst = (blocks.dequantize() - weight).abs().view(-1, 64).amax(dim=1) / blocks.absmax
    assert float(worst.max()) <= 0.15191


def test_quantizing_again_changes_nothing():
    weight = nf4.quantize(normal(100, 100)).dequantize()
    assert torch.equal(nf4.quantize(weight).dequantize(), weight)


def test_arrays_strided_views_and_other_dtypes_of_the_result():
    weight = normal(64, 48)
    assert torch.equal(nf4.quantize(weight.numpy()).codes, nf4.quantize(weight).codes)
    assert torch.equal(nf4.quantize(weight.T).codes, nf4.quantize(weight.T.contiguous()).codes)
    half = nf4.quantize(weight.to(torch.bfloat16))
    assert torch.equal(half.dequantize(torch.float32).to(torch.bfloat16), half.dequantize())


@pytest.mark.parametrize(
    ("weight", "options", "said"),
    [
        (torch.tensor([1.0, float("nan")]), {}, "1 values that are NaN or Inf"),
        (torch.tensor([[float("inf")] * 3, [1.0] * 3]), {"double": True}, "3 values"),
        (torch.ones(2, 2, dtype=torch.float64), {}, "float32, bfloat16 or float16"),
        (np.ones((2, 2)), {}, "float64"),
        (torch.ones(2, dtype=torch.int64), {}, "int64"),
        (torch.empty(0, 4), {}, r"shape \(0, 4\)"),
        (torch.full((64, 64), 3e38), {"double": True}, "mean overflows"),
        (torch.ones(2, 2), {"block_size": 100}, "32, 64, .*, 4096, got 100"),
    ],
)
def test_what_cannot_be_quantized_is_refused(weight, options, said):
    with pytest.raises(EckartError, match=said):
        nf4.quantize(weight, **options)

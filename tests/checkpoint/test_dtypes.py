"""Data types without torch: names, sizes and promotion are torch's, and no comparison is silently False."""

import itertools

import pytest
import torch

from eckart.checkpoint.dtypes import BFLOAT16, COPIED, FLOAT16, FLOAT32, FLOAT64, DType, promote
from eckart.checkpoint.header import DTYPES
from eckart.errors import OptionError


@pytest.mark.parametrize("dtype", [each for each in DTYPES.values() if hasattr(torch, each.name)], ids=str)
def test_a_data_type_is_torchs_of_the_same_name(dtype) -> None:
    assert DType.of(dtype.torch) == DType.of(dtype) == dtype
    assert str(dtype.torch) == f"torch.{dtype}"
    floating = dtype.torch.is_floating_point and dtype not in COPIED
    assert (dtype.itemsize, dtype.is_floating_point) == (dtype.torch.itemsize, floating)


@pytest.mark.parametrize("name", ["bfloat16", "float32", "float8_e4m3fn", "bool"])
def test_a_data_type_is_found_by_its_name(name) -> None:
    assert DType.of(name).torch == getattr(torch, name)


@pytest.mark.parametrize("name", ["float", "bfloat", "", "nn"])
def test_an_unknown_name_is_refused_with_the_known_ones(name) -> None:
    with pytest.raises(OptionError, match="bfloat16"):
        DType.of(name)


def test_comparing_with_a_torch_dtype_is_an_error_rather_than_false() -> None:
    for compare in (
        lambda: torch.float32 == FLOAT32,
        lambda: torch.float32 != FLOAT32,
        lambda: FLOAT32 in [torch.int8],
    ):
        with pytest.raises(TypeError, match=r"\.torch"):
            compare()
    assert FLOAT32 != "float32"


@pytest.mark.parametrize(
    "pair", [*itertools.product((FLOAT64, FLOAT32, FLOAT16, BFLOAT16, DType.of("int8")), repeat=2)]
)
def test_promotion_is_torchs(pair) -> None:
    assert promote(*pair).torch == torch.promote_types(*(dtype.torch for dtype in pair))


@pytest.mark.parametrize("dtype", [FLOAT64, FLOAT32, FLOAT16, BFLOAT16, DType.of("int32"), DType.of("uint8")], ids=str)
def test_bytes_are_unpacked_as_torch_reads_them(dtype) -> None:
    values = torch.tensor([0, 1, 2.5, 117]).to(dtype.torch)
    assert dtype.unpack(values.view(torch.uint8).numpy().tobytes()) == values.double().tolist()

"""Every operation on numbers of any size: for 2^k times the input, 2^k times the output, bit for bit, or a refusal."""

import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from eckart.adapter import Adapter
from eckart.errors import EckartError, NotFiniteError
from eckart.formats import load_adapter
from eckart.linalg.scaling import shifted
from eckart.operations import analyze, combine, compare, extract, merge, resize

from .drawing import drawn

EXPONENTS = [-1000, -600, -300, 300, 600, 990]  # of a scale or of float64 values
WEIGHT = torch.randn(40, 30, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
CHANGED = WEIGHT + 0.1 * torch.randn(40, 30, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
DTYPES = {torch.float64: [-900, -530, 530, 990], torch.float32: [-95, 100], torch.bfloat16: [-95, 100]}
CASES = [(dtype, exponent) for dtype, exponents in DTYPES.items() for exponent in exponents]
scaled_by = pytest.mark.parametrize(("dtype", "exponent"), CASES, ids=str)


def adapter(exponent=0, **options):
    layer = drawn(**options)
    return Adapter({"m.q": replace(layer, alpha=math.ldexp(layer.alpha, exponent))})


def written(folder):
    return load_file(folder / "model.safetensors")["m.q.weight"]


def model(weight):
    return {"m.q.weight": weight}


@pytest.mark.parametrize("options", [{}, {"alpha": -8}, {"rslora": True}, {"dtype": torch.float16}], ids=str)
@pytest.mark.parametrize("exponent", EXPONENTS)
@pytest.mark.parametrize(
    "choice", [{"rank": 2}, {"rank": 9}, {"energy": 0.7}, {"error": 0.5}, {"budget": 250}], ids=str
)
def test_a_resized_adapter_of_any_scale_has_the_same_factors_and_errors(choice, exponent, options):
    plain, found = (resize(adapter(k, **options), **choice) for k in (0, exponent))
    layer, expected = found.adapter["m.q"], plain.adapter["m.q"]
    assert torch.equal(layer.lora_A, expected.lora_A)
    assert torch.equal(layer.lora_B, expected.lora_B)
    assert layer.alpha == math.ldexp(expected.alpha, exponent)
    assert (found.error, found.error_lower_bound) == (plain.error, plain.error_lower_bound)


@pytest.mark.parametrize("exponent", EXPONENTS)
@pytest.mark.parametrize("choice", [{}, {"rank": 3}, {"energy": 0.7}], ids=str)
def test_a_sum_of_adapters_of_any_scale_has_the_same_factors_and_errors(choice, exponent):
    def total(k, weights):
        other = Adapter({"m.q": replace(drawn(seed=9), alpha=math.ldexp(3.0, k))})
        return combine([adapter(k), other], weights=weights, **choice)

    plain, found = (total(k, [0.5, -2]) for k in (0, exponent))
    weighted = total(0, [math.ldexp(0.5, exponent), math.ldexp(-2, exponent)])
    expected = plain.adapter["m.q"]
    for result in (found, weighted):
        layer = result.adapter["m.q"]
        assert torch.equal(layer.lora_A, expected.lora_A)
        assert torch.equal(layer.lora_B, expected.lora_B)
        assert layer.alpha == math.ldexp(expected.alpha, exponent)
        assert result.error == plain.error


@pytest.mark.parametrize("exponent", EXPONENTS)
def test_adapters_of_any_scale_are_compared_and_analyzed(exponent):
    (plain,), (found,) = (compare(adapter(k), adapter(k, seed=9)).matrices for k in (0, exponent))
    for norm in ("norm_a", "norm_b", "norm_difference"):
        assert getattr(found, norm) == pytest.approx(math.ldexp(getattr(plain, norm), exponent), rel=1e-12)
    assert found.cosine == pytest.approx(plain.cosine, abs=1e-14)
    assert found.outputs.angles.tolist() == pytest.approx(plain.outputs.angles.tolist(), abs=1e-9)
    (few,), (many,) = (analyze(adapter(k)).matrices for k in (0, exponent))
    assert many.spectrum.fro_norm == pytest.approx(math.ldexp(few.spectrum.fro_norm, exponent), rel=1e-14)
    assert many.spectrum.stable_rank == pytest.approx(few.spectrum.stable_rank, rel=1e-12)
    assert many.spectrum.rank_for_energy(0.9) == few.spectrum.rank_for_energy(0.9)


@pytest.mark.parametrize("dora", [False, True], ids=["plain", "DoRA"])
@pytest.mark.parametrize("exponent", [-900, -600, 600, 900])
def test_a_merge_of_any_scale_has_the_same_digits(exponent, dora, tmp_path):
    for k in (0, exponent):
        merge(model(shifted(WEIGHT, k)), adapter(k, dora=dora), tmp_path / str(k))
    found, plain = (written(tmp_path / str(k)) for k in (exponent, 0))
    # DoRA's magnitudes do not scale: they are the norms of the result.
    expected = plain if dora else shifted(plain, exponent)
    torch.testing.assert_close(found, expected, rtol=1e-15 if dora else 0, atol=0)


@pytest.mark.parametrize(("form", "file"), [("peft", "adapter"), ("kohya", "adapter.safetensors")])
@pytest.mark.parametrize("alpha", [1e300, -1e300, 1e-300, 2.0**60])
def test_an_alpha_of_any_size_is_read_back_as_it_was_written(alpha, form, file, tmp_path):
    name = "m.q" if form == "peft" else "lora_unet_m_q"
    replace(Adapter({name: drawn(alpha=alpha)}), format=form).save(tmp_path / file)
    assert load_adapter(tmp_path / file)[name].alpha == alpha


@pytest.mark.parametrize("exponent", [-110, 110])
def test_an_extreme_scale_of_small_factors_merges_like_the_same_product(exponent, tmp_path):
    layer = drawn()
    other = replace(layer, alpha=math.ldexp(layer.alpha, exponent), lora_B=shifted(layer.lora_B, -exponent))
    for name, it in (("plain", layer), ("other", other)):
        merge(model(WEIGHT.float()), Adapter({"m.q": it}), tmp_path / name)
    assert torch.equal(written(tmp_path / "other"), written(tmp_path / "plain"))
    assert torch.equal(other.delta(), layer.delta())


@pytest.mark.parametrize(
    "of",
    [
        lambda it: resize(it, rank=2),
        lambda it: combine([it, it], rank=2),
        lambda it: compare(it, adapter()),
        analyze,
    ],
    ids=["resize", "combine", "compare", "analyze"],
)
@pytest.mark.parametrize("alpha", [1.7e308, -1.7e308])
def test_an_update_that_no_float64_holds_is_refused_with_its_module_alpha_and_rank(of, alpha):
    with pytest.raises(EckartError, match=r"m\.q: .*1\.7e\+308 (/|at rank) 6.*float64"):
        of(Adapter({"m.q": drawn(alpha=alpha, rank=6)}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_merge_that_its_dtype_does_not_hold_is_refused_with_alpha_and_rank(dtype, tmp_path):
    with pytest.raises(NotFiniteError, match=r"m\.q has alpha 1\.7e\+308 at rank 6"):
        merge(model(WEIGHT.to(dtype)), Adapter({"m.q": drawn(alpha=1.7e308)}), tmp_path / "out")


@scaled_by
@pytest.mark.parametrize("choice", [{"rank": 3}, {"error": 0.5}, {"energy": 0.9}, {"budget": 300}], ids=str)
def test_an_extraction_of_any_scale_has_the_same_ranks_and_errors(choice, dtype, exponent):
    plain, found = (
        extract(*(model(shifted(it.to(dtype), k)) for it in (WEIGHT, CHANGED)), **choice, dtype="float64")
        for k in (0, exponent)
    )
    assert found.adapter["m.q"].rank == plain.adapter["m.q"].rank
    assert found.error == pytest.approx(plain.error, rel=1e-6)
    assert found.error_lower_bound == plain.error_lower_bound
    missed = shifted(CHANGED.to(dtype).double() - WEIGHT.to(dtype).double(), exponent)
    missed -= found.adapter["m.q"].low_rank().dense()
    exact = float(shifted(missed, -exponent).norm()) / float((CHANGED.to(dtype).double() - WEIGHT.to(dtype)).norm())
    assert found.error == pytest.approx(exact, rel=1e-5)


@scaled_by
def test_checkpoints_of_any_scale_are_compared_and_analyzed(dtype, exponent):
    sides = [[shifted(it.to(dtype), k) for it in (WEIGHT, CHANGED)] for k in (0, exponent)]
    (plain,), (found,) = (compare(*map(model, side)).matrices for side in sides)
    for norm in ("norm_a", "norm_b", "norm_difference"):
        assert getattr(found, norm) == pytest.approx(math.ldexp(getattr(plain, norm), exponent), rel=1e-14)
    assert found.cosine == pytest.approx(plain.cosine, abs=1e-14)
    (few,), (many,) = (analyze(model(side[1]), base=model(side[0])).matrices for side in sides)
    assert torch.equal(many.spectrum.singular_values, shifted(few.spectrum.singular_values, exponent))
    assert many.noise.signal_rank == few.noise.signal_rank
    assert many.noise.edge == math.ldexp(few.noise.edge, exponent)


@pytest.mark.parametrize(
    ("scale", "dtype", "remedy"),
    [
        (1e20, "float16", "`dtype=bfloat16` or `dtype=float32`"),
        (1e200, "float32", "`dtype=float64`"),
        (1e200, "bfloat16", "`dtype=float64`"),
    ],
)
def test_factors_that_overflow_are_refused_with_the_dtype_that_holds_them(scale, dtype, remedy, tmp_path):
    with pytest.raises(EckartError, match=f"m.q: its values are too large for {dtype}; use {remedy}"):
        extract(model(WEIGHT * scale), model(CHANGED * scale), rank=2, dtype=dtype, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("scale", "dtype", "remedy"),
    [
        (1e-20, "float16", "; use `dtype=bfloat16` or `dtype=float32`"),
        (1e-200, "float32", "; use `dtype=float64`"),
        (1e-200, "float16", "; use `dtype=float64`"),
    ],
)
@pytest.mark.parametrize("of", ["extract", "resize", "resize to a lower rank", "combine", "prune"])
def test_factors_that_vanish_are_refused_with_the_dtype_that_holds_them(of, scale, dtype, remedy, tmp_path):
    base, tuned = (model(it.double() * scale) for it in (WEIGHT, CHANGED))
    tiny = [Adapter({"m.q": drawn(alpha=6, seed=seed, dtype=torch.float64)}) for seed in (1, 2)]
    for adapter in tiny:
        layer = adapter["m.q"]
        adapter.layers["m.q"] = replace(layer, lora_A=layer.lora_A * scale**0.5, lora_B=layer.lora_B * scale**0.5)
    out = {"dtype": dtype, "output": tmp_path / "out"}
    run = {
        "extract": lambda: extract(base, tuned, rank=2, **out),
        "resize": lambda: resize(tiny[0], rank=6, **out),
        "resize to a lower rank": lambda: resize(tiny[0], rank=2, **out),
        "combine": lambda: combine(tiny, weights=[1, 0.5], **out),
        "prune": lambda: combine(tiny, weights=[1, 0.5], method="ties", **out),
    }
    with pytest.raises(EckartError, match=f"m.q: its factors become zero in {dtype}, but their product is not{remedy}"):
        run[of]()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("exponent", [-60, -30, 40])
@pytest.mark.parametrize("of", ["resize", "combine"])
def test_factors_of_which_a_dtype_holds_only_one_are_brought_to_one_size(of, exponent, tmp_path):
    layer = drawn(alpha=6)
    moved = replace(layer, lora_A=shifted(layer.lora_A, exponent), lora_B=shifted(layer.lora_B, -exponent))
    run = {
        "resize": lambda: resize(Adapter({"m.q": moved}), rank=6, dtype="float16"),
        "combine": lambda: combine([Adapter({"m.q": moved})] * 2, weights=[0.5, 0.5], dtype="float16", rank=12),
    }
    found = run[of]()
    assert 0 < found.error < 2e-3
    difference = found.adapter["m.q"].low_rank() - layer.low_rank()
    assert difference.fro_norm == pytest.approx(found.error * layer.low_rank().fro_norm, rel=1e-5)


def test_a_difference_that_its_dtype_does_not_hold_is_refused():
    with pytest.raises(NotFiniteError, match=r"m\.q: tuned minus base is 6e\+38, more than float32 holds"):
        extract(model(torch.full((8, 8), -3e38)), model(torch.full((8, 8), 3e38)), rank=1)


def test_no_value_that_is_not_finite_is_written(tmp_path):
    layer = drawn()
    layer.lora_A[0, 0] = math.inf
    with pytest.raises(NotFiniteError, match=r"m\.q\.lora_A.* contains 1 values that are NaN or Inf"):
        Adapter({"m.q": layer}).save(tmp_path / "out")
    assert not (tmp_path / "out").exists()

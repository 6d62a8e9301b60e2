"""Integers, FP8, MXFP4 and NVFP4 as compressed-tensors and DeepSeek store them: transformers loads what was written."""

import dataclasses
import json

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from eckart.checkpoint import open_checkpoint
from eckart.engine import Execution
from eckart.errors import EckartError, NotFiniteError
from eckart.linalg.scaled_codes import quantize as quantized
from eckart.operations import plan_quantize, quantize
from eckart.operations.model_writer.planned import planned
from tests.evaluation.tiny_models import saved

CPU = Execution(device="cpu", workers=1)
MOST = {"int4": (0.2, 0.6), "int8": (0.01, 1.1), "fp8": (0.04, 1.1), "fp8-block": (0.04, 1.01), "mxfp4": (0.2, 0.54),
        "nvfp4": (0.2, 0.6)}  # error of the weights, and bytes for each  # fmt: skip
KINDS = tuple(MOST)


@pytest.fixture
def base(tmp_path):
    return str(saved(tmp_path / "base", "llama", hidden_size=128, intermediate_size=256))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_transformers_loads_the_weights_that_were_written(base, tmp_path, kind, dtype):
    pytest.importorskip("compressed_tensors")
    result = quantize(base, tmp_path / "out", to=kind, dtype=dtype, execution=CPU)
    assert len(result.layers) == 21
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert config["quant_method"] == ("fp8" if kind == "fp8-block" else "compressed-tensors")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", device_map="cpu")
    with torch.no_grad():
        model.to(torch.bfloat16)(input_ids=torch.arange(3, 19)[None])  # which decompresses the weights
    written, loaded = open_checkpoint(str(tmp_path / "out")), model.state_dict()
    codes = [name for name, info in written.tensors.items() if info.quantization]
    assert len(codes) == 21
    for name in codes:
        torch.testing.assert_close(loaded[name], written.read(name).bfloat16(), rtol=2**-7, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_the_written_weights_are_those_planned_and_as_near_as_stated(base, tmp_path, kind):
    result = quantize(base, tmp_path / "out", to=kind, execution=CPU)
    written, computed = open_checkpoint(str(tmp_path / "out")), planned(plan_quantize(base, to=kind))
    original = open_checkpoint(base)
    for layer in result.layers:
        weight = written.read(f"{layer.name}.weight").double()
        assert torch.equal(weight, computed.read(f"{layer.name}.weight").double())
        exact = original.read(f"{layer.name}.weight").double()
        assert layer.error == pytest.approx(float((weight - exact).norm() / exact.norm()), rel=1e-6)
        assert 0 < layer.error < MOST[kind][0]
    assert result.bytes_per_param < MOST[kind][1]


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


FORMS = {  # levels, block, scales
    "int4": ("int4", (1, 32), torch.float32),
    "int8": ("int8", (1, 32), torch.bfloat16),
    "FP8, rows": ("e4m3", (1, 96), torch.float32),
    "FP8, blocks": ("e4m3", (16, 32), torch.float32),
    "FP8, E5M2": ("e5m2", (1, 32), torch.bfloat16),
    "FP8, E8M0": ("e4m3", (16, 32), torch.float8_e8m0fnu),
    "MXFP4": ("e2m1", (1, 32), torch.float8_e8m0fnu),
    "NVFP4": ("e2m1", (1, 16), torch.float8_e4m3fn),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [(3, 96), (1, 96), (65, 192)], ids=str)
def test_codes_survive_and_their_errors_are_at_most_half_a_step(form, shape):
    weight, (levels, block, scales) = random(*shape), FORMS[form]
    weight[:, :32] = 0
    stored = quantized(weight, kind=levels, block=block, scales=scales, dtype=torch.float32)
    values, grid = stored.dequantize(), stored.scaled_levels()
    assert torch.equal(grid.codes(values), stored.codes)
    assert not values[:, :32].any()
    steps = grid.levels.diff().max() * grid.scales
    assert bool(((values - weight).abs() <= steps * (0.5 if scales == torch.float32 else 1) + 1e-6).all())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("scale", [2.0**-20, 2.0**20])
def test_a_scaled_weight_has_the_same_relative_error(form, scale):
    levels, block, scales = FORMS[form]
    weight = random(8, 96)

    def error(values: torch.Tensor) -> float:
        given = {"kind": levels, "block": block, "scales": scales, "dtype": torch.float32}
        return float((quantized(values, **given).dequantize() - values).norm() / values.norm())

    assert error(weight * scale) == pytest.approx(error(weight), rel=0.1)


def test_powers_of_two_are_the_better_ones_of_each_block():
    weight = random(4, 64)
    stored = quantized(weight, kind="e2m1", block=(1, 32), scales=torch.float8_e8m0fnu, dtype=torch.float32)

    def errors(factor: float) -> torch.Tensor:
        levels = stored.scaled_levels()
        grid = dataclasses.replace(levels, scales=levels.scales * factor)
        return (grid.decode(grid.codes(weight)) - weight).square().unflatten(1, (-1, 32)).sum(2)

    assert bool((errors(1.0) <= torch.minimum(errors(2.0), errors(0.5))).all())


def test_a_scale_that_its_data_type_cannot_represent_is_refused():
    with pytest.raises(NotFiniteError, match="too large for float16"):
        quantized(random(2, 32) * 1e7, kind="int4", block=(1, 32), scales=torch.float16, dtype=torch.float32)


def test_fused_layers_get_the_same_second_scale(base, tmp_path):
    quantize(base, tmp_path / "out", to="nvfp4", execution=CPU)
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        found = {name: file.get_tensor(name) for name in file.keys() if name.endswith("weight_global_scale")}  # noqa: SIM118
    assert len(found) == 21
    for block in range(3):
        layers = [f"model.layers.{block}.self_attn.{name}_proj.weight_global_scale" for name in "qkv"]
        assert len({float(found[layer]) for layer in layers}) == 1


def test_layers_that_are_no_blocks_of_128_stay_dense_because_transformers_would_misread_them(tmp_path):
    odd = str(saved(tmp_path / "base", "llama", hidden_size=64, intermediate_size=192))
    result = quantize(odd, tmp_path / "out", to="fp8-block", execution=CPU)
    skipped = {item.name: item.reason for item in result.skipped}
    assert "192×64 weights are not blocks of 128×128" in skipped["model.layers.0.mlp.up_proj"]
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert "model.layers.0.mlp.up_proj" in config["modules_to_not_convert"]


def test_layers_whose_inputs_are_no_groups_stay_dense_and_are_named(tmp_path):
    odd = str(saved(tmp_path / "base", "llama", hidden_size=64, intermediate_size=72))
    result = quantize(odd, tmp_path / "out", to="int4", execution=CPU)
    skipped = {item.name: item.reason for item in result.skipped}
    assert "72 inputs are not groups of 32" in skipped["model.layers.0.mlp.down_proj"]
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert "model.layers.0.mlp.down_proj" in config["ignore"]


@pytest.mark.parametrize("options", [{"double": True}, {"block_size": 128}])
def test_options_of_nf4_are_refused_for_other_encodings(base, options):
    with pytest.raises(EckartError, match="are of NF4"):
        plan_quantize(base, to="fp8", **options)

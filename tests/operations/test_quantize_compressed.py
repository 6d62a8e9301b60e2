"""int4 and FP8 as compressed-tensors stores them: what transformers loads is what was written."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from eckart.checkpoint import open_checkpoint
from eckart.engine import Execution
from eckart.errors import EckartError
from eckart.evaluation.streamed import StreamedModel
from eckart.linalg.scaled_codes import quantize as quantized
from eckart.operations import plan_quantize, quantize
from eckart.operations.model_writer.planned import planned
from tests.evaluation.tiny_models import saved

CPU = Execution(device="cpu", workers=1)
KINDS = ("int4", "fp8")


@pytest.fixture
def base(tmp_path):
    return str(saved(tmp_path / "base", "llama", hidden_size=64, intermediate_size=192))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_transformers_loads_the_weights_that_were_written(base, tmp_path, kind, dtype):
    pytest.importorskip("compressed_tensors")
    result = quantize(base, tmp_path / "out", to=kind, dtype=dtype, execution=CPU)
    assert len(result.layers) == 21
    config = {"quantization_config": json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]}
    assert config["quantization_config"]["quant_method"] == "compressed-tensors"
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", device_map="cpu")
    written, ids = open_checkpoint(str(tmp_path / "out")), torch.arange(3, 35).view(2, 16)
    with torch.no_grad():
        loss = model(input_ids=ids, labels=ids).loss.item()
    expected = StreamedModel(written).loss(ids).nats_per_token
    assert loss == pytest.approx(expected, abs=1e-4 if dtype == "float32" else 0.05)
    dense = StreamedModel(open_checkpoint(base)).loss(ids).nats_per_token
    assert abs(expected - dense) > 1e-6


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
        assert 0 < layer.error < (0.2 if kind == "int4" else 0.04)
    assert result.bytes_per_param < (0.6 if kind == "int4" else 1.1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(3, 64), (1, 32), (65, 96)], ids=str)
def test_codes_survive_and_their_errors_are_at_most_half_a_step(kind, shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    weight[0, :32] = 0
    stored = quantized(weight, kind=kind, group=32, dtype=torch.float32)
    values, grid = stored.dequantize(), stored.scaled_levels()
    assert torch.equal(grid.codes(values), stored.codes)
    assert not values[0, :32].any()
    steps = grid.levels.diff().max() * grid.scales
    assert bool(((values - weight).abs() <= steps / 2 + 1e-6).all())


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

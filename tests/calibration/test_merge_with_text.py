"""Merging into a quantized base with calibrated codes: what is left of the adapter's update, and what is refused."""

import json

import pytest
import torch
from typer.testing import CliRunner

from eckart.adapter import Adapter, AdapterLayer
from eckart.calibration import collect_moments, merge_with_text
from eckart.checkpoint import open_checkpoint
from eckart.checkpoint.encodings.nf4 import Nf4Checkpoint
from eckart.cli.main import app
from eckart.engine import Execution
from eckart.errors import EckartError
from eckart.evaluation.streamed import StreamedModel
from eckart.operations import merge, plan_merge, quantize
from eckart.operations.merging.calibrated import calibrated_merge
from eckart.operations.model_writer.planned import planned
from tests.evaluation.tiny_models import saved

CPU = Execution(device="cpu", workers=1)


def sequences(seed: int) -> torch.Tensor:
    return torch.randint(3, 60, (4, 24), generator=torch.Generator().manual_seed(seed))


def adapter_of(base) -> Adapter:
    """A small update of every projection of a model."""
    generator, layers = torch.Generator().manual_seed(5), {}
    for name, info in open_checkpoint(str(base)).tensors.items():
        if name.endswith("_proj.weight"):
            A, B = (torch.randn(*shape, generator=generator) for shape in ((2, info.shape[1]), (info.shape[0], 2)))
            layers[name.removesuffix(".weight")] = AdapterLayer(A * 0.05, B * 0.05, 2)
    return Adapter(layers)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A model, its form in NF4, an adapter, and second moments."""
    folder = tmp_path_factory.mktemp("merge")
    base = saved(folder / "base", "llama", hidden_size=64, intermediate_size=128)
    quantize(str(base), folder / "nf4", double=True, execution=CPU)
    kinds = {str(seed): sequences(seed) for seed in (2, 3, 4)}
    moments = collect_moments(open_checkpoint(str(base)), kinds, folder / "m.safetensors", execution=CPU)
    return str(base), str(folder / "nf4"), adapter_of(base), moments


def merged_both_ways(inputs, folder, *, original):
    """Checkpoints with the nearest and with calibrated codes."""
    _, quantized, adapter, moments = inputs
    merge(quantized, adapter, folder / "nearest", original=original, execution=CPU)
    merge(quantized, adapter, folder / "calibrated", original=original, moments=moments, execution=CPU)
    both = [open_checkpoint(folder / name) for name in ("nearest", "calibrated")]
    assert all(isinstance(each, Nf4Checkpoint) for each in both)
    return both


def kept_of(adapter, moments, *, before, goal, written) -> float:
    """The share of the update's effect on the outputs that is in a merged model."""
    kept, whole = 0.0, 0.0
    for module in adapter:
        weights = [each.read(f"{module}.weight").double() for each in (before, goal, written)]
        effect = (weights[1] - weights[0]) @ moments.total(module, weights[0].shape[1])
        kept += float(((weights[2] - weights[0]) * effect).sum())
        whole += float(((weights[1] - weights[0]) * effect).sum())
    return kept / whole


def test_from_the_original_calibrated_codes_have_a_smaller_output_error_than_the_nearest_ones(inputs, tmp_path):
    base, _, adapter, moments = inputs
    goal = planned(plan_merge(base, adapter, dtype="float32"))

    def error(written) -> float:
        total = 0.0
        for module in adapter:
            difference = goal.read(f"{module}.weight").double() - written.read(f"{module}.weight").double()
            total += float(((difference @ moments.total(module, difference.shape[1])) * difference).sum())
        return total

    nearest, calibrated = merged_both_ways(inputs, tmp_path, original=base)
    assert error(calibrated) < 0.8 * error(nearest)


def test_calibrated_codes_keep_an_update_that_the_nearest_ones_lose(inputs, tmp_path):
    _, quantized, adapter, moments = inputs
    before, goal = open_checkpoint(quantized), planned(plan_merge(quantized, adapter, dtype="float32"))

    both = merged_both_ways(inputs, tmp_path, original=None)
    nearest, calibrated = (kept_of(adapter, moments, before=before, goal=goal, written=each) for each in both)
    assert nearest < 0.05
    assert calibrated > 5 * nearest


@pytest.mark.parametrize(("to", "least"), [("int4", 0.1), ("mxfp4", 0.1), ("nvfp4", 0.1), ("fp8", 0.7), ("int8", 0.9)])
def test_every_encoding_that_is_written_is_calibrated(inputs, tmp_path, to, least):
    base, _, adapter, moments = inputs
    quantize(base, tmp_path / "base", to=to, execution=CPU)
    before, goal = open_checkpoint(tmp_path / "base"), planned(plan_merge(tmp_path / "base", adapter, dtype="float32"))
    for name, chosen in (("nearest", None), ("calibrated", moments)):
        merge(tmp_path / "base", adapter, tmp_path / name, moments=chosen, execution=CPU)
    share = {}
    for name in ("nearest", "calibrated"):
        written = open_checkpoint(tmp_path / name)
        share[name] = kept_of(adapter, moments, before=before, goal=goal, written=written)
    assert share["calibrated"] > least
    assert share["calibrated"] > 2 * share["nearest"] or least > 0.5  # of eight bits the nearest codes keep most too


def test_a_plan_computes_what_a_merge_with_the_nearest_codes_writes(inputs, tmp_path):
    base, quantized, adapter, _ = inputs
    merge(quantized, adapter, tmp_path / "out", original=base, execution=CPU)
    plan, written = calibrated_merge(plan_merge(quantized, adapter), original=base), open_checkpoint(tmp_path / "out")
    computed = planned(plan)
    assert set(computed.tensors) >= set(written.tensors)
    for name in written.tensors:
        assert torch.equal(computed.read(name).float(), written.read(name).float()), name
    ids = sequences(9)
    assert StreamedModel(computed).loss(ids) == StreamedModel(written).loss(ids)


def test_an_original_of_another_shape_is_refused_with_every_tensor(inputs, tmp_path):
    _, quantized, adapter, _ = inputs
    other = saved(tmp_path / "other", "llama", hidden_size=64, intermediate_size=192)
    with pytest.raises(EckartError, match=r"is not the model that[\s\S]*up_proj"):
        merge(quantized, adapter, tmp_path / "out", original=str(other), execution=CPU)
    assert not (tmp_path / "out").exists()


def test_a_base_without_codes_is_refused_before_any_text_is_read(inputs, tmp_path):
    base, _, adapter, moments = inputs
    with pytest.raises(EckartError, match="writes no codes"):
        merge(base, adapter, tmp_path / "out", moments=moments, execution=CPU)
    (tmp_path / "text.txt").write_text("too short to calibrate with")
    with pytest.raises(EckartError, match="writes no codes"):
        merge_with_text(base, adapter, tmp_path / "out", [tmp_path / "text.txt"], execution=CPU)


def test_the_command_reports_how_much_of_the_gain_is_kept(tiny_llama, text, tmp_path):
    (tmp_path / "text.txt").write_text(f"{text} " * 12)
    adapter_of(tiny_llama).save(tmp_path / "adapter")
    quantize(tiny_llama, tmp_path / "nf4", execution=CPU)
    options = ["--calibrate", str(tmp_path / "text.txt"), "--original", str(tiny_llama), "--json"]
    command = ["merge", str(tmp_path / "nf4"), str(tmp_path / "adapter"), "-o", str(tmp_path / "out"), *options]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert list(facts["held_out"]) == ["base", "adapter next to it", "nearest codes", "written"]
    assert set(facts["requantization"]) == {"update_error", "gain"}
    refused = CliRunner().invoke(app, [*command, "--force", "--dtype", "bfloat16"])
    assert refused.exit_code == 1
    assert "--calibrate" in refused.output

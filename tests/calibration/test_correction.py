"""Calibrated codes and corrections of small models: their errors, what PEFT loads, and what is refused."""

import json
import math

import pytest
import torch
from transformers import AutoModelForCausalLM

from eckart.adapter import Adapter, AdapterLayer
from eckart.calibration import collect_moments
from eckart.checkpoint import open_checkpoint
from eckart.engine import Execution
from eckart.errors import EckartError
from eckart.evaluation.streamed import StreamedModel
from eckart.operations import correct, plan_correct, plan_merge, quantize
from eckart.operations.model_writer.planned import planned
from tests.evaluation.tiny_models import saved

CPU = Execution(device="cpu", workers=1)
BLOCKS = {"hidden_size": 64, "intermediate_size": 128}  # rows of complete blocks of 64, as bitsandbytes needs them
GPT2 = {"n_embd": 64}


def sequences(seed: int = 2, rows: int = 4, length: int = 24) -> torch.Tensor:
    return torch.randint(3, 60, (rows, length), generator=torch.Generator().manual_seed(seed))


KINDS = {"first": sequences(2), "second": sequences(3), "third": sequences(4)}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A model, its moments, and the same in NF4 with the nearest codes, by the kind of model."""
    made = {}

    def of(kind):
        if kind not in made:
            folder = tmp_path_factory.mktemp("models")
            base = saved(folder / "base", kind, **(GPT2 if kind == "gpt2" else BLOCKS))
            moments = collect_moments(open_checkpoint(str(base)), KINDS, folder / "m.safetensors", execution=CPU)
            quantize(str(base), folder / "nf4", execution=CPU)
            made[kind] = base, moments, folder / "nf4"
        return made[kind]

    return of


def states_of(checkpoint) -> torch.Tensor:
    """The hidden states after the last block."""
    return StreamedModel(checkpoint).run(sequences(9))


def output_errors(base, other, moments) -> dict[str, float]:
    """‖(W − W̃)·C^½‖_F of every layer with moments, densely."""
    one, two, errors = open_checkpoint(str(base)), open_checkpoint(str(other)), {}
    for module in moments.inputs:
        pair = [each.read(f"{module}.weight").double() for each in (one, two)]
        pair = [each.T if ".c_" in module else each for each in pair]
        total = moments.total(module, pair[0].shape[1])
        difference = pair[0] - pair[1]
        errors[module] = math.sqrt(float(((difference @ total) * difference).sum()))
    return errors


@pytest.mark.parametrize("kind", ["llama", "llama, tied", "gpt2", "qwen3"])
def test_calibrated_codes_lower_the_error_of_the_outputs(models, tmp_path, kind):
    base, moments, nearest = models(kind)
    result = quantize(str(base), tmp_path / "out", moments=moments, execution=CPU)
    calibrated = [layer for layer in result.layers if layer.damping is not None]
    assert len(calibrated) > len(result.layers) / 2
    before, after = output_errors(base, nearest, moments), output_errors(base, tmp_path / "out", moments)
    for layer in result.layers:
        module = layer.name
        assert after[module] == pytest.approx(
            before[module] * layer.output_error / layer.nearest_output_error, rel=1e-3
        )
        assert after[module] <= before[module] * (1 + 1e-9)
    assert math.hypot(*after.values()) < 0.9 * math.hypot(*before.values())


@pytest.mark.parametrize(
    ("to", "most"), [("int4", 0.95), ("int8", 1.0), ("fp8", 1.0), ("fp8-block", 1.0), ("mxfp4", 0.97), ("nvfp4", 0.97)]
)
def test_other_encodings_are_calibrated_and_corrected_too(models, tmp_path, to, most):
    base, moments, _ = models("llama")
    result = quantize(str(base), tmp_path / "out", to=to, moments=moments, correct=4, execution=CPU)
    assert result.output_error() <= most * result.output_error(nearest=True)
    assert result.correction is not None
    assert 0 < result.correction.error_lower_bound <= result.correction.error < 1


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_no_adapter_of_the_chosen_ranks_leaves_less_than_the_correction(models, kind):
    base, moments, nearest = models(kind)
    result = correct(str(nearest), str(base), moments=moments, rank=4, execution=CPU)
    assert len({layer.rank for layer in result.layers}) > 1
    assert sum(layer.rank * sum(layer.shape) for layer in result.layers) <= sum(4 * sum(x.shape) for x in result.layers)
    one, two = open_checkpoint(str(base)), open_checkpoint(str(nearest))
    for layer in result.layers:
        error = one.read(f"{layer.name}.weight").double() - two.read(f"{layer.name}.weight").double()
        error = error.T if ".c_" in layer.name else error
        values, vectors = torch.linalg.eigh(moments.total(layer.name, error.shape[1]))
        gradients = moments.of_gradients(layer.name, len(error)).double()
        damped = gradients + 0.1 * gradients.diagonal().mean() * torch.eye(len(error))
        left = torch.linalg.cholesky(damped)
        singular = torch.linalg.svdvals(left.T @ error @ (vectors * values.clamp_min(0).sqrt()))
        assert layer.fro_norm == pytest.approx(float(singular.norm()), rel=1e-3)
        least = float(singular[layer.rank :].norm() / singular.norm())
        assert layer.error == pytest.approx(least, rel=1e-3, abs=1e-4)
        assert layer.error_lower_bound <= layer.error + 1e-6
        assert layer.error_lower_bound == pytest.approx(least, rel=1e-2, abs=1e-3)


@pytest.mark.filterwarnings("ignore")
def test_peft_on_the_quantized_model_computes_the_loss_of_our_evaluation(models, tmp_path):
    pytest.importorskip("bitsandbytes")
    from peft import PeftModel

    base, moments, _ = models("llama")
    result = quantize(str(base), tmp_path / "out", moments=moments, correct=4, double=True, execution=CPU)
    assert result.correction is not None
    assert len(result.correction.layers) == len(result.layers)
    ids, corrected = (
        sequences(9),
        plan_merge(str(tmp_path / "out"), str(tmp_path / "out" / "correction"), dtype="float32"),
    )
    expected = StreamedModel(planned(corrected)).loss(ids).nats_per_token
    # Dequantized, because bitsandbytes' products on a CPU are in bfloat16.
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", device_map="cpu").dequantize().float()
    model = PeftModel.from_pretrained(model, tmp_path / "out" / "correction").eval()
    with torch.no_grad():
        measured = model(input_ids=ids, labels=ids).loss.item()
    assert measured == pytest.approx(expected, abs=1e-4)
    original, uncorrected = states_of(open_checkpoint(str(base))), states_of(open_checkpoint(str(tmp_path / "out")))
    assert float((states_of(planned(corrected)) - original).norm()) < float((uncorrected - original).norm())


def test_an_output_with_a_correction_can_be_replaced(models, tmp_path):
    base, moments, _ = models("llama")
    for _ in range(2):
        quantize(str(base), tmp_path / "out", moments=moments, correct=2, execution=CPU, force=True)
    assert (tmp_path / "out" / "correction" / "adapter_config.json").is_file()
    config = json.loads((tmp_path / "out" / "correction" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tmp_path / "out")


def adapter_for(base) -> Adapter:
    generator = torch.Generator().manual_seed(5)
    name = "model.layers.1.mlp.up_proj"
    rows, columns = open_checkpoint(str(base)).tensors[f"{name}.weight"].shape
    A, B = torch.randn(2, columns, generator=generator), torch.randn(rows, 2, generator=generator)
    return Adapter({name: AdapterLayer(A * 0.1, B * 0.1, 2)})


def test_a_correction_with_an_adapter_corrects_towards_the_adapted_original(models):
    base, moments, nearest = models("llama")
    adapter = adapter_for(base)
    result = correct(str(nearest), str(base), moments=moments, rank=6, adapters=[adapter], execution=CPU)
    goal = states_of(planned(plan_merge(str(base), [adapter], dtype="float32")))
    distances = {
        label: float((states_of(planned(plan_merge(str(nearest), given, dtype="float32"))) - goal).norm())
        for label, given in {"adapter": [adapter], "both": [result.adapter]}.items()
    }
    assert distances["both"] < distances["adapter"]


def test_a_layer_without_error_gets_no_factors(models):
    base, moments, nearest = models("llama")
    target = ["model.layers.0.mlp.up_proj", "model.layers.0.mlp.down_proj"]
    plan = plan_correct(str(nearest), str(base), moments=moments, rank=2, target=target)
    assert set(plan.views) == set(target)
    with pytest.raises(EckartError, match="no layer is left"):
        correct(str(base), str(base), moments=moments, rank=2, target=target, execution=CPU)


REFUSED = {
    "a rank of zero": ({"rank": 0}, "`rank` must be at least 1"),
    "a pattern that matches nothing": ({"target": "nothing"}, "nothing"),
    "moments of another model": ({}, "second moments of none of the layers"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_corrected_is_refused(models, case):
    options, message = REFUSED[case]
    base, moments, nearest = models("llama")
    if case == "moments of another model":
        moments = models("gpt2")[1]
    with pytest.raises(EckartError, match=message):
        correct(str(nearest), str(base), **({"moments": moments, "rank": 2, "execution": CPU} | options))


def test_a_correction_without_moments_is_refused(models, tmp_path):
    with pytest.raises(EckartError, match="`calibrate`"):
        quantize(str(models("llama")[0]), tmp_path / "out", correct=4)


def test_fewer_tokens_than_inputs_are_reported(models, tmp_path):
    base, _, nearest = models("llama")
    few = {name: ids[:1, :20] for name, ids in KINDS.items()}
    moments = collect_moments(open_checkpoint(str(base)), few, tmp_path / "m.safetensors", execution=CPU)
    result = correct(str(nearest), str(base), moments=moments, rank=2, execution=CPU)
    assert any("60 calibration tokens are fewer than the 128 inputs" in note for note in result.notes)

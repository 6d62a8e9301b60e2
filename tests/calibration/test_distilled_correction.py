"""A correction that is trained towards the predictions of the model that was quantized."""

import json

import pytest
import torch
from typer.testing import CliRunner

from eckart.calibration import DistilledCorrection, collect_moments, read_texts
from eckart.calibration.distillation import _Recorded
from eckart.checkpoint import open_checkpoint
from eckart.cli.main import app
from eckart.engine import Execution
from eckart.evaluation import load_model, load_tokenizer
from eckart.evaluation.outlined import dense_model
from eckart.operations import correct, quantize
from tests.evaluation.tiny_models import saved

CPU = Execution(device="cpu", workers=1)


@pytest.mark.parametrize("kind", ["llama", "llama, tied", "gpt2", "qwen3"])
def test_recorded_predictions_are_those_of_the_model(tmp_path, kind):
    base = str(saved(tmp_path / "base", kind))
    ids = torch.randint(3, 60, (4, 24), generator=torch.Generator().manual_seed(1))
    recorded = _Recorded(open_checkpoint(base), ids, device=torch.device("cpu"))
    dense, loaded = dense_model(open_checkpoint(base)), load_model(base)
    with torch.no_grad():
        expected = loaded(input_ids=ids[[2, 0]], use_cache=False).logits
        for model in (recorded, dense):
            logits = model(input_ids=ids[[2, 0]], use_cache=False).logits
            torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    tied = [each.lm_head.weight is each.get_input_embeddings().weight for each in (dense, loaded)]
    assert tied[0] == tied[1]


def test_a_trained_correction_predicts_more_as_the_original_does(tiny_llama, texts, tmp_path):
    original = open_checkpoint(tiny_llama)
    text = read_texts(texts, load_tokenizer(tiny_llama))
    moments = collect_moments(original, text.kinds, tmp_path / "m.safetensors", execution=CPU)
    quantize(tiny_llama, tmp_path / "nf4", execution=CPU)
    plain = correct(tmp_path / "nf4", tiny_llama, moments=moments, rank=2, execution=CPU).adapter
    refine = DistilledCorrection(original, text, steps=20, execution=CPU)
    trained = refine(tmp_path / "nf4", plain)
    result = refine.result
    assert result is not None
    assert result.kept
    assert result.after is not None
    assert result.after.kl < result.before.kl
    assert {name: layer.rank for name, layer in trained.items()} == {name: layer.rank for name, layer in plain.items()}
    assert any((trained[name].lora_A != plain[name].lora_A).any() for name in plain)


def run(*arguments: object):
    return CliRunner().invoke(app, [*map(str, arguments)])


def test_the_commands_train_a_correction_and_say_what_it_changed(tiny_llama, texts, tmp_path):
    calibration = [part for text in texts for part in ("--calibrate", text)]
    given = ("--distill", "--steps", 2)
    shown = run("quantize", tiny_llama, "-o", tmp_path / "nf4", *calibration, "--correct", 2, *given)
    assert shown.exit_code == 0, shown.output
    assert "Distilled for 2 steps." in shown.stdout
    result = run("correct", tmp_path / "nf4", tiny_llama, "-o", tmp_path / "c", *calibration, *given, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["distill"]["steps"] == 2

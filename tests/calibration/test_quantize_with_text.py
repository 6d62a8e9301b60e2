"""Quantization and corrections from a text, as the commands run them."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file
from typer.testing import CliRunner

from eckart.calibration import HeldOutLosses, calibrated, quantize_with_text
from eckart.cli.main import app
from eckart.engine import Execution
from eckart.errors import EckartError
from eckart.operations import quantize

CPU = Execution(device="cpu", workers=1)


def test_losses_are_measured_and_nothing_but_the_output_is_left(tiny_llama, texts, tmp_path):
    before = set(tmp_path.iterdir())
    result = quantize_with_text(tiny_llama, tmp_path / "out", texts, correct=2, execution=CPU)
    assert set(tmp_path.iterdir()) - before == {tmp_path / "out"}
    assert result.held_out is not None
    assert list(result.held_out) == ["original", "nearest codes", "written", "with correction"]
    assert result.held_out["written"]["mean"] <= result.held_out["nearest codes"]["mean"]
    assert set(result.held_out["original"]) == {"mean", *texts}
    assert json.loads(json.dumps(result.to_json()))["correction"]["format"] == "eckart-correct/2"


@pytest.mark.parametrize("field", ["max_position_embeddings", "n_positions", "max_seq_len", "n_ctx"])
def test_sequences_are_no_longer_than_the_models_window(field, tiny_llama, texts, tmp_path):
    base = shutil.copytree(tiny_llama, tmp_path / "short")
    config = json.loads((base / "config.json").read_text())
    config.pop("max_position_embeddings")
    (base / "config.json").write_text(json.dumps(config | {field: 24}))
    with calibrated(base, texts, output=tmp_path / "out", execution=CPU) as found:
        assert {ids.shape[1] for ids in (*found.text.kinds.values(), *found.text.held_out.values())} == {24}


def test_codes_that_lose_on_held_out_text_are_not_kept(tiny_llama, texts, tmp_path, monkeypatch):
    quantize(tiny_llama, tmp_path / "nearest", execution=CPU)

    def measured(models, *_args, **_options):
        losses = {"original": 1.0, "nearest codes": 2.0, "written": 3.0, "with correction": 1.5}
        return HeldOutLosses({label: {"text": losses[label]} for label in models}, 10)

    monkeypatch.setattr("eckart.calibration.held_out.measure_losses", measured)
    result = quantize_with_text(tiny_llama, tmp_path / "out", texts, correct=2, execution=CPU)
    assert result.notes == (
        "The nearest codes were kept: calibrated ones had a loss of 3.0000 instead of 2.0000 on held-out text.",
    )
    nearest, written = (load_file(tmp_path / name / "model.safetensors") for name in ("nearest", "out"))
    assert all((nearest[name] == written[name]).all() for name in nearest)
    assert result.correction is not None
    assert (tmp_path / "out" / "correction").is_dir()


def test_a_file_of_moments_is_used_again_only_for_the_same_model_and_text(tiny_llama, texts, tmp_path):
    file = tmp_path / "m.safetensors"
    quantize_with_text(tiny_llama, tmp_path / "one", texts, moments=file, execution=CPU)
    written = file.stat().st_mtime_ns
    quantize_with_text(tiny_llama, tmp_path / "two", texts, moments=file, execution=CPU)
    assert file.stat().st_mtime_ns == written
    with pytest.raises(EckartError, match="another model or text"):
        quantize_with_text(tiny_llama, tmp_path / "three", texts[:1], moments=file, execution=CPU)


def run(*arguments: object) -> dict:
    result = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_the_commands_quantize_and_correct(tiny_llama, texts, tmp_path):
    moments: tuple[object, ...] = ("--moments", tmp_path / "m.safetensors")
    calibration = [part for text in texts for part in ("--calibrate", text)]
    first = run("quantize", tiny_llama, "-o", tmp_path / "nf4", "--to", "nf4", *calibration, *moments, "--correct", 2)
    assert {"output_error", "nearest_output_error", "damping"} <= set(first["layers"][0])
    second = run(
        "correct", tmp_path / "nf4", tiny_llama, "-o", tmp_path / "adapter", "--rank", 2, *calibration, *moments
    )
    assert second["error"] == pytest.approx(first["correction"]["error"], rel=1e-6)
    assert second["error_lower_bound"] <= second["error"] < 1
    shown = CliRunner().invoke(app, ["quantize", str(tiny_llama), "-o", str(tmp_path / "again"), *calibration])
    assert shown.exit_code == 0
    assert "Loss on held-out text, in nats per token: original" in " ".join(shown.stdout.split())


def test_a_correction_without_text_is_refused(tiny_llama, tmp_path):
    result = CliRunner().invoke(app, ["correct", str(tiny_llama), str(tiny_llama), "-o", str(tmp_path / "a")])
    assert result.exit_code == 1
    assert "--calibrate" in result.output
    assert not Path(tmp_path / "a").exists()

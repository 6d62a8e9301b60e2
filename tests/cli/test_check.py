"""`eckart check` as a user meets it."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

from eckart.cli.main import app

MODULES = ("model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj")


def eckart(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def adapter(tmp_path):
    """A PEFT folder with rsLoRA."""
    tensors = {
        f"base_model.model.{module}.{part}.weight": torch.ones(shape)
        for module in MODULES
        for part, shape in (("lora_A", (4, 6)), ("lora_B", (8, 4)))
    }
    folder = tmp_path / "adapter"
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "use_rslora": True, "target_modules": ["q_proj", "v_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def test_the_table_shows_the_adapter_and_each_verdict(adapter, fits_80_columns):
    ended = eckart("check", adapter)
    assert ended.exit_code == 0, ended.stderr
    for part in (
        "peft, 2 layers",
        "ranks: 4",
        "scales: 4",
        "vllm",
        "loads, but not all of it",
        "use_rslora",
        "eckart ",
    ):
        assert part in ended.stdout
    assert fits_80_columns(ended.stdout)


@pytest.mark.parametrize(("runtime", "status"), [("vllm", 0), ("sglang", 3), ("diffusers", 3), ("peft", 0)])
def test_the_status_says_whether_the_runtime_loads_all_of_it(runtime, status, adapter):
    ended = eckart("check", adapter, "--for", runtime)
    assert ended.exit_code == status
    assert runtime in ended.stdout


def test_an_adapter_that_does_not_fit_the_base_has_status_3(adapter, tmp_path):
    save_file({f"{module}.weight": torch.zeros(8, 7) for module in MODULES}, tmp_path / "base.safetensors")
    ended = eckart("check", adapter, "--base", tmp_path / "base.safetensors")
    assert ended.exit_code == 3
    assert "does not fit" in ended.stdout
    save_file({f"{module}.weight": torch.zeros(8, 6) for module in MODULES}, tmp_path / "base.safetensors")
    assert eckart("check", adapter, "--base", tmp_path / "base.safetensors").exit_code == 0


def test_json_holds_the_fields_scripts_rely_on(adapter):
    result = json.loads(eckart("check", adapter, "--json").stdout)
    assert result["format"] == "eckart-check/1"
    assert result["adapter"] == {
        "format": "peft",
        "layers": 2,
        "kinds": {"linear": 2},
        "ranks": {"4": 2},
        "scales": {"4": 2},
        "dtypes": {"float32": 4},
        "saved": [],
        "params": 112,
        "bytes": 448,
        "base_model": None,
        "task_type": None,
        "metadata": {},
    }
    assert result["runtimes"]["vllm"] == {
        "version": "0.33.0", "loads": True, "refused": [], "ignored": [], "needs": [], "fix": None,
    }  # fmt: skip
    assert result["runtimes"]["sglang"]["loads"]
    assert result["runtimes"]["sglang"]["ignored"]
    assert result["runtimes"]["sglang"]["fix"].startswith(f"eckart convert {adapter} -o adapter-sglang --to peft")


def test_torch_is_not_imported(adapter):
    script = "import sys; from eckart.cli.main import app; app(standalone_mode=False); print('torch' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", script, "check", adapter], capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[-1] == "False"


def test_what_is_no_adapter_is_refused(tmp_path):
    save_file({"weight": torch.zeros(2, 2)}, tmp_path / "model.safetensors")
    ended = eckart("check", tmp_path / "model.safetensors")
    assert ended.exit_code == 1
    assert "neither a PEFT adapter" in ended.stderr

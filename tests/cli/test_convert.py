"""`eckart convert` as a user meets it."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from eckart.cli.main import app

MODULE = "mid_block_attentions_0_transformer_blocks_0_attn1_to_q"


def eckart(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def kohya(tmp_path):
    """A file of Stable Diffusion 1 with one layer."""
    tensors = {
        f"lora_unet_{MODULE}.lora_down.weight": torch.randn(4, 6),
        f"lora_unet_{MODULE}.lora_up.weight": torch.randn(8, 4),
        f"lora_unet_{MODULE}.alpha": torch.tensor(2.0),
    }
    save_file(tensors, tmp_path / "style.safetensors")
    return tmp_path / "style.safetensors"


def test_the_table_shows_the_new_names(kohya, tmp_path, fits_80_columns):
    ended = eckart("convert", kohya, "-o", tmp_path / "out", "--to", "diffusers")
    assert ended.exit_code == 0, ended.stderr
    for part in ("from kohya to diffusers", "1 names changed", "rank", "8×6"):
        assert part in ended.stdout
    assert fits_80_columns(ended.stdout)


def test_json_holds_the_fields_scripts_rely_on(kohya, tmp_path):
    ended = eckart("convert", kohya, "-o", tmp_path / "out", "--to", "peft", "--json")
    result = json.loads(ended.stdout)
    new = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    assert result == {
        "format": "eckart-convert/2",
        "from": "kohya",
        "to": "peft",
        "layers": [{"name": new.removeprefix("unet."), "shape": [8, 6], "rank": 4}],
        "renamed": [[f"lora_unet_{MODULE}", new]],
        "skipped": [],
        "bytes": sum(file.stat().st_size for file in (tmp_path / "out").iterdir()),
        "output": str(tmp_path / "out"),
    }


def test_a_dry_run_writes_nothing(kohya, tmp_path):
    ended = eckart("convert", kohya, "-o", tmp_path / "out", "--to", "peft", "--dry-run")
    assert "1 modules match" in ended.stdout
    ended = eckart("convert", kohya, "-o", tmp_path / "out", "--to", "peft", "--dry-run", "--json")
    assert json.loads(ended.stdout)["format"] == "eckart-convert-preview/2"
    assert list(tmp_path.iterdir()) == [kohya]


def test_an_unknown_format_is_wrong_usage_and_the_choices_are_named(kohya, tmp_path):
    ended = eckart("convert", kohya, "-o", tmp_path / "out", "--to", "onnx")
    assert ended.exit_code == 2
    assert "'onnx' is not one of 'peft', 'kohya', 'comfyui'" in ended.stderr
    assert list(tmp_path.iterdir()) == [kohya]


@pytest.mark.parametrize(
    ("change", "options", "said"),
    [
        ({}, ["--to", "peft", "--base", "nowhere"], "nowhere"),
        ({"lora_unet_joint_blocks_0_x.lora_down.weight": torch.ones(2, 2)}, ["--to", "peft"], "lora_B missing"),
        ({f"lora_unet_{MODULE}.dora_scale": torch.ones(1, 6)}, ["--to", "peft"], "a norm for each input"),
        (
            {f"lora_unet_{MODULE}.lora_up.weight": torch.full((8, 4), torch.nan)},
            ["--to", "peft"],
            "32 values that are NaN",
        ),
    ],
)
def test_refusals_end_with_one_message_and_leave_nothing(kohya, tmp_path, change, options, said):
    save_file(load_file(kohya) | change, kohya)
    ended = eckart("convert", kohya, "-o", tmp_path / "out", *options)
    assert ended.exit_code == 1
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr
    assert list(tmp_path.iterdir()) == [kohya]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "choose one of --to, a format, and --for, a runtime"),
        (["--to", "peft", "--for", "peft"], "choose one of"),
        (["--to", "peft", "--rank", "4"], "eckart resize changes the rank of others"),
        (["--to", "lora"], "every layer is plain LoRA already"),
        (["--for", "vllm"], "no conversion makes this adapter fit vLLM"),
    ],
)
def test_options_that_do_not_belong_together_are_refused(options, said, kohya, tmp_path):
    ended = eckart("convert", kohya, "-o", tmp_path / "out", *options)
    assert ended.exit_code == 1
    assert said in ended.stderr
    assert list(tmp_path.iterdir()) == [kohya]


def test_for_a_runtime_writes_its_format(kohya, tmp_path):
    ended = eckart("convert", kohya, "-o", tmp_path / "out", "--for", "peft", "--json")
    assert ended.exit_code == 0, ended.stderr
    result = json.loads(ended.stdout)
    assert (result["to"], result["steps"]) == ("peft", [])
    assert (tmp_path / "out" / "adapter_config.json").is_file()

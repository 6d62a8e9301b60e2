"""Ranks above the rounding of the stored weights: planted updates of rank 3, in a checkpoint of bfloat16."""

import json

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from eckart.adapter import Adapter, AdapterLayer
from eckart.cli.main import app
from eckart.errors import OptionError
from eckart.operations import combine, extract, quantize, resize

MODULES = [f"model.layers.{i}.self_attn.{kind}_proj" for i in range(2) for kind in "qkv"]


@pytest.fixture
def pair(tmp_path):
    """Base and fine-tune of rank 3 in bfloat16; v_proj of the second layer changed by rounding alone."""
    generator = torch.Generator().manual_seed(0)
    before, after = {}, {}
    for module in MODULES:
        base = torch.randn(160, 128, generator=generator).to(torch.bfloat16)
        update = torch.randn(160, 3, generator=generator) @ torch.randn(3, 128, generator=generator)
        if module == MODULES[-1]:
            update = torch.randn(160, 128, generator=generator) * 2**-8 * base.float().abs() / 0.006
        tuned = (base.float() + 0.006 * update).to(torch.bfloat16)
        before[f"{module}.weight"], after[f"{module}.weight"] = base, tuned
    for name, tensors in (("base", before), ("tuned", after)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text('{"model_type": "llama"}')
        save_file(tensors, tmp_path / name / "model.safetensors", metadata={"format": "pt"})
    return tmp_path / "base", tmp_path / "tuned"


def test_noise_takes_the_planted_rank_and_leaves_out_what_is_rounding(pair):
    result = extract(*pair, rank="noise")
    assert {layer.rank for layer in result.adapter.values()} == {3}
    assert sorted(result.adapter) == sorted(MODULES[:-1])
    assert [(item.name, item.reason) for item in result.skipped] == [
        (f"{MODULES[-1]}.weight", "nothing above the rounding of bfloat16")
    ]
    assert {layer.rank: layer.error for layer in result.layers}[0] == 1.0


def test_a_rank_of_mostly_rounding_is_said_and_every_layer_shows_what_is_not(pair, tmp_path):
    command = ["extract", *map(str, pair), "-o", str(tmp_path / "out"), "--rank", "8"]
    ended = CliRunner().invoke(app, [*command, "--json"])
    assert ended.exit_code == 0, ended.stderr
    facts = json.loads(ended.stdout)
    assert {layer["name"]: layer.get("signal_rank") for layer in facts["layers"]} == {
        module: None if module == MODULES[-1] else 3
        for module in MODULES  # most of the last one is unchanged
    }
    assert any("5 of 6 layers are mostly rounding" in note for note in facts["notes"])
    assert "--rank noise keeps only these" in ended.stderr
    assert not any("rounding" in note for note in extract(*pair, rank=3, exclude="v_proj").notes)


def test_a_resize_keeps_what_stands_above_the_rounding_of_the_factors():
    generator = torch.Generator().manual_seed(1)
    B, A = torch.randn(40, 3, generator=generator), torch.randn(3, 30, generator=generator)
    noise = 1e-5 * torch.randn(40, 5, generator=generator), torch.randn(5, 30, generator=generator)
    layer = AdapterLayer(torch.cat([A, noise[1]]).to(torch.bfloat16), torch.cat([B, noise[0]], 1).to(torch.bfloat16), 8)
    small = resize(Adapter({"q_proj": layer}), rank="noise")
    assert small.adapter["q_proj"].rank == 3
    assert small.error < 3e-3


def test_noise_is_refused_where_the_rounding_is_not_known(pair, tmp_path):
    quantize(pair[0], tmp_path / "nf4")
    with pytest.raises(OptionError, match="stored as floating-point"):
        extract(tmp_path / "nf4", pair[1], rank="noise")
    with pytest.raises(OptionError, match="got 'noise'"):
        combine([extract(*pair, rank=1).adapter] * 2, rank="noise")
    with pytest.raises(OptionError, match="must be a number or noise, got 'all'"):
        extract(*pair, rank="all")
    with pytest.raises(OptionError, match="exactly one way"):
        extract(*pair, rank="noise", energy=0.9)

"""Ranks of single modules from a file: names and patterns, a plan, and the spectra of an earlier fine-tune."""

import json

import pytest
import torch

from eckart.adapter import Adapter, AdapterLayer
from eckart.errors import EckartError
from eckart.nn import LoRAConfig
from eckart.operations import analyze
from eckart.training import with_ranks

NAMES = [f"model.layers.{layer}.self_attn.{part}" for layer in range(2) for part in ("q_proj", "v_proj", "o_proj")]


@pytest.fixture
def analysis(tmp_path):
    """An earlier fine-tune: much rank in one query, rank 1 in the other matrices, and an embedding."""
    generator, layers = torch.Generator().manual_seed(0), {}
    for name in NAMES:
        rank = 12 if name == NAMES[0] else 1
        A, B = torch.randn(rank, 32, generator=generator), torch.randn(32, rank, generator=generator)
        layers[name] = AdapterLayer(A, B, float(rank))
    layers["model.embed_tokens"] = AdapterLayer(torch.randn(4, 50), torch.randn(32, 4), 4.0, kind="embedding")
    analyze(Adapter(layers), output=tmp_path / "update")
    return tmp_path / "update"


def test_an_object_of_names_and_patterns_gives_ranks_and_leaves_out(tmp_path):
    file = tmp_path / "ranks.json"
    file.write_text(json.dumps({"q_proj": 8, r".*\.0\..*": 2, "o_proj": 0}))
    config = with_ranks(LoRAConfig(rank=4, target="attention", exclude="k_proj"), file)
    assert config == LoRAConfig(
        rank=4, target="attention", exclude=("k_proj", "o_proj"), rank_pattern={"q_proj": 8, r".*\.0\..*": 2}
    )


@pytest.mark.parametrize("target", ["all-linear", "attention", "q_proj"])
def test_spectra_distribute_the_parameters_of_one_rank_over_the_targeted_modules(target, analysis):
    for file in (analysis, analysis / "analysis.json"):
        config = with_ranks(LoRAConfig(rank=3, target=target, exclude="o_proj"), file)
        ranks = config.rank_pattern
        covered = [name for name in NAMES if "o_proj" not in name and (target != "q_proj" or "q_proj" in name)]
        assert set(ranks) <= set(covered)
        assert config.target == tuple(ranks)
        assert ranks[NAMES[0]] == max(ranks.values()) > 3
        assert sum(ranks.values()) <= 3 * len(covered)


def test_the_output_of_a_plan_is_read(analysis, tmp_path):
    plan = {"format": "eckart-plan/1", "advice": {"ranks": {NAMES[0]: 5, NAMES[1]: 0}}}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    config = with_ranks(LoRAConfig(rank=3), tmp_path / "plan.json")
    assert config == LoRAConfig(rank=3, target=(NAMES[0],), rank_pattern={NAMES[0]: 5})


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"q_proj": "8"}, "`rank` of q_proj must be a whole number"),
        ({"q_proj": -1}, "`rank` of q_proj must be a whole number"),
        ({"format": "eckart-plan/1", "advice": None}, "no ranks of modules"),
        ({"format": "eckart-plan/1", "advice": {"ranks": {"q": 0}}}, "no module has a rank"),
        ({"format": "eckart-analysis/1"}, "damaged, or of another version"),
        ([1], "object"),
        ({r"(\w+\W?)+!": 4}, "could take minutes to match"),
        ({"[": 4}, "patterns that cannot be used"),
        ({"format": "eckart-plan/1", "advice": {"ranks": {r"(\w+\W?)+!": 4}}}, "is no name of a module"),
    ],
)
def test_a_file_without_ranks_is_refused(content, said, tmp_path):
    (tmp_path / "ranks.json").write_text(json.dumps(content))
    with pytest.raises(EckartError, match=said):
        with_ranks(LoRAConfig(), tmp_path / "ranks.json")


def test_an_analysis_without_the_targeted_modules_is_refused(analysis):
    with pytest.raises(EckartError, match="no module that `target` takes"):
        with_ranks(LoRAConfig(target="mlp"), analysis)

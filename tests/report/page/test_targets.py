"""The patterns on the page match exactly the matrices of a kind, whatever the modules of a model are called."""

import pytest
import torch

from eckart.checkpoint.naming import matches
from eckart.linalg import Spectrum
from eckart.operations import Analysis, MatrixAnalysis
from eckart.report.page import targets
from eckart.report.page.targets import targets_of

NAMES = {
    "llama": [f"model.layers.{i}.{kind}" for i in (0, 1, 11) for kind in ("self_attn.q_proj", "mlp.up_proj")],
    "gpt2": [f"transformer.h.{i}.{kind}.c_proj" for i in range(3) for kind in ("attn", "mlp")],
    "two stacks": [f"model.{side}.layers.{i}.fc1" for side in ("encoder", "decoder") for i in range(2)],
    "kohya": [f"lora_unet_blocks_{i}_attn_to_{part}" for i in range(3) for part in "qk"],
    "names of presets": ["mlp", "attention", "x.0.mlp", "x.0.all-linear"],
    "one name ends like another": ["proj_a", "x.proj_a", "x.0.proj_a", "x.proj_a_1"],
    "names that are regexes": [
        *(f"layers.{i}.{name}" for i in range(2) for name in (r"(\w+\W?)+!", "a|b", "[", "a" * 40)),
        *(r"(\w+\W?)+!", "a" * 40),
    ],
    "numbers of other scripts": ["x.٣.w", "x.3.w", "x.3٣.w", "x٣.w", "x.y.w"],
}


def analysis_of(names):
    spectrum = Spectrum(torch.ones(1, dtype=torch.float64), (1, 1), 1.0)
    return Analysis("delta", "a", "b", [MatrixAnalysis(name, (1, 1), "float32", spectrum) for name in names])


@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)
def test_the_patterns_of_a_kind_match_its_matrices_and_no_others(names):
    analysis = analysis_of(names)
    patterns = targets_of(analysis)["patterns"]
    assert patterns
    for kind, each in patterns.items():
        taken = [name for name in names if any(matches(pattern, name) for pattern in each)]
        assert taken == [matrix.name for matrix in analysis.by_kind()[kind]]


@pytest.mark.parametrize("form", ["layers.0.k{}", "layers.0.k{}.proj", "s{}.layers.0.q", "k{}"])
def test_many_kinds_are_not_compared_with_every_name(form, monkeypatch):
    names, compared = [form.format("x" * i) for i in range(1, 200)], []
    monkeypatch.setattr(targets, "matches", lambda *given: compared.append(given) or matches(*given))
    assert len(targets_of(analysis_of(names))["patterns"]) == len(names)
    assert len(compared) <= len(names)

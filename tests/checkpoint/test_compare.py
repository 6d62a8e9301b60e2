"""Two checkpoints that do or do not hold the same model."""

import re

import pytest
import torch

from eckart.checkpoint import compare_layouts, open_checkpoint
from eckart.errors import MismatchError

BASE = {
    "model.embed_tokens.weight": torch.zeros(9, 4),
    "model.layers.0.q_proj.weight": torch.zeros(4, 4),
    "model.layers.0.q_proj.bias": torch.zeros(4),
    "model.norm.weight": torch.zeros(4),
    "model.rotary_emb.inv_freq": torch.zeros(2),
}


def compare(base, tuned, exclude=()):
    return compare_layouts(open_checkpoint(base), open_checkpoint(tuned), exclude)


def changed(**tensors):
    return BASE | {name.replace("__", "."): tensor for name, tensor in tensors.items()}


def renamed(old, new):
    return {name.replace(old, new): tensor for name, tensor in BASE.items()}


@pytest.mark.parametrize(
    ("tuned", "count", "others"),
    [
        (renamed("model.layers", "model.language_model.layers"), 2, 0),
        (renamed("model.layers", "layers") | {"score.weight": torch.zeros(2, 4)}, 2, 1),
        (renamed("model.", "language_model.model.") | {"model.norm.weight": torch.zeros(4)}, 3, 1),
    ],
)
def test_names_that_begin_differently_are_one_fault(tuned, count, others) -> None:
    first, *rest = compare(BASE, tuned)
    assert first.startswith(f"{count} tensors have names that begin differently: model.")
    assert len(rest) == others


def without(name):
    return {key: tensor for key, tensor in BASE.items() if key != name}


def test_a_model_is_the_same_model_whatever_its_dtype() -> None:
    assert compare(BASE, {name: tensor.bfloat16() for name, tensor in BASE.items()}) == []


@pytest.mark.parametrize(
    ("base", "tuned", "message", "exclude"),
    [
        (BASE, without("model.norm.weight"), "model.norm.weight: only in the base", "model.norm"),
        (without("model.norm.weight"), BASE, "model.norm.weight: only in the tuned", "norm"),
        (BASE, without("model.layers.0.q_proj.bias"), "q_proj.bias: only in the base", "q_proj"),
        (BASE, changed(score__weight=torch.zeros(2, 4)), "score.weight: only in the tuned", "score"),
        (
            BASE,
            changed(model__embed_tokens__weight=torch.zeros(11, 4)),
            "9 rows in the base, 11 in the tuned checkpoint; `exclude=model.embed_tokens`",
            "embed_tokens",
        ),
        (
            BASE,
            changed(model__layers__0__q_proj__weight=torch.zeros(4, 8)),
            r"shape \(4, 4\) in the base, \(4, 8\) in the tuned",
            r".*q_proj",
        ),
    ],
)
def test_each_fault_names_the_tensor_and_the_exclusion_that_passes(base, tuned, message, exclude) -> None:
    (fault,) = compare(base, tuned)
    assert re.search(message, fault)
    assert compare(base, tuned, [exclude]) == []


def test_an_exclusion_that_is_no_pattern_is_refused() -> None:
    with pytest.raises(MismatchError, match="neither a name nor a regex"):
        compare(BASE, BASE, ["(q_proj"])


def test_all_faults_come_together() -> None:
    tuned = {"model.layers.0.q_proj.weight": torch.zeros(3, 4), "extra.weight": torch.zeros(2, 2)}
    assert len(compare(BASE, tuned)) == 5


def test_a_buffer_may_be_missing() -> None:
    assert compare(BASE, without("model.rotary_emb.inv_freq")) == []
    assert compare(without("model.rotary_emb.inv_freq"), BASE) == []


def test_a_head_that_only_the_tuned_model_stores_is_compared_with_the_tied_one() -> None:
    weight = BASE["model.embed_tokens.weight"]
    tied = BASE | {"lm_head.weight": weight}
    assert compare(tied, BASE | {"lm_head.weight": weight.clone()}) == []
    assert compare(tied, tied) == []


def test_a_head_that_only_the_base_stores_must_be_excluded() -> None:
    weight = BASE["model.embed_tokens.weight"]
    base, tuned = BASE | {"lm_head.weight": weight.clone()}, BASE | {"lm_head.weight": weight}
    (fault,) = compare(base, tuned)
    assert "stored in the base, but tied to model.embed_tokens.weight in the tuned checkpoint" in fault
    assert compare(base, tuned, ["lm_head"]) == []


def test_a_quantized_base_is_named_as_such() -> None:
    quantized = BASE | {
        "model.layers.0.q_proj.weight": torch.zeros(8, 1, dtype=torch.uint8),
        "model.layers.0.q_proj.weight.absmax": torch.zeros(1),
    }
    faults = compare(quantized, BASE)
    assert any("q_proj.weight: the base cannot be used: quantized" in fault for fault in faults)


def test_names_that_differ_by_a_prefix_are_one_fault() -> None:
    (fault,) = compare({f"bert.{name}": tensor for name, tensor in BASE.items()}, BASE)
    assert "begin with 'bert.'" in fault


MANY = {f"layers.{n}.weight": torch.zeros(4, 4) for n in range(20)}


@pytest.mark.parametrize(
    ("tuned", "cause"),
    [
        (
            {f"h.{n}.c_attn.weight": torch.zeros(4, 4) for n in range(20)},
            "different architectures: no tensor is in",
        ),
        ({name: torch.zeros(4, 6) for name in MANY}, "different sizes: 20 of 20 tensors have different shapes"),
    ],
)
def test_checkpoints_of_two_models_are_one_fault(tuned, cause) -> None:
    (fault,) = compare(MANY, tuned)
    assert cause in fault


def test_a_real_model_differs_from_itself_in_nothing(minilm) -> None:
    checkpoint = open_checkpoint(minilm)
    assert compare_layouts(checkpoint, checkpoint) == []

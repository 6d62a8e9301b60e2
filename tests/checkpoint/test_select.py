"""Target patterns: PEFT's own rules, presets over real architectures, and refusals with the nearest names."""

import pytest
import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists

from eckart.checkpoint import layout, open_checkpoint, select
from eckart.checkpoint.naming import matches
from eckart.errors import MismatchError

MODULES = [
    f"model.layers.{i}.{part}"
    for i in (0, 1, 10)
    for part in ("self_attn.q_proj", "self_attn.k_proj", "mlp.up_proj", "mlp.gate_up_proj")
] + ["lm_head", "model.embed_tokens", "q_proj"]


@pytest.mark.parametrize(
    "pattern", ["q_proj", "self_attn.q_proj", "layers.1.self_attn.q_proj", "proj", "up_proj", "lm_head", "mlp.up_proj"]
)
def test_a_plain_name_takes_what_peft_takes_for_a_list_entry(pattern) -> None:
    config = LoraConfig(target_modules=[pattern])
    expected = [name for name in MODULES if check_target_module_exists(config, name)]
    assert [name for name in MODULES if matches(pattern, name)] == expected


@pytest.mark.parametrize(
    "pattern",
    [r".*q_proj", r"model\.layers\.1\..*", r".*\.(q|k)_proj", r".*\.[01]\.mlp\..*", r"lm_head|.*up_proj", r"q_.*"],
)
def test_a_regex_takes_what_peft_takes_for_a_string(pattern) -> None:
    config = LoraConfig(target_modules=pattern)
    expected = [name for name in MODULES if check_target_module_exists(config, name)]
    assert [name for name in MODULES if matches(pattern, name)] == expected


@pytest.mark.parametrize("exclude", [["mlp.up_proj"], ["k_proj", "up_proj"], [r".*\.layers\.0\..*"]])
def test_an_exclusion_wins_as_it_does_in_peft(exclude) -> None:
    found = layout(open_checkpoint({f"{name}.weight": torch.zeros(2, 3) for name in MODULES}))
    targets = ["q_proj", "k_proj", "up_proj"]
    regex = exclude[0] if "*" in exclude[0] else None
    config = LoraConfig(target_modules=targets, exclude_modules=regex or exclude)
    expected = [name for name in MODULES if check_target_module_exists(config, name) is True]
    assert [view.module for view in select(found, targets, exclude)] == expected


ATTENTION_MIN = {
    "llama": {"q_proj", "v_proj"},
    "gpt2": {"c_attn"},
    "bert": {"query", "value"},
    "phi3": {"qkv_proj"},
    "t5": {"q", "v"},
    "distilbert": {"q_lin", "v_lin"},
    "falcon": {"query_key_value"},
    "gpt_neox": {"query_key_value"},
    "opt": {"q_proj", "v_proj"},
    "whisper": {"q_proj", "v_proj"},
}
NOT_IN_BLOCKS = {"pooler", "transform", "vocab_transform", "classifier", "lm_head", "decoder", "embed_out"}


@pytest.mark.parametrize("name", ATTENTION_MIN)
def test_attention_and_mlp_part_the_layers_of_every_block(name, tiny_folder) -> None:
    found = layout(open_checkpoint(tiny_folder(name)))

    def take(preset):
        return {view.module for view in select(found, [preset])}

    attention, mlp = take("attention"), take("mlp")
    assert attention.isdisjoint(mlp)
    rest = take("all-linear") - attention - mlp
    assert all(NOT_IN_BLOCKS & set(module.split(".")) for module in rest)
    assert all("att" in module.lower() for module in attention)
    assert not any("attn" in module or "attention" in module.lower() for module in mlp)
    assert take("attention-min") <= attention
    assert {module.rpartition(".")[2] for module in take("attention-min")} == ATTENTION_MIN[name]


def test_an_expert_is_taken_by_its_own_name_or_with_its_kin() -> None:
    found = layout(open_checkpoint({"m.experts.up_proj": torch.zeros(3, 4, 5)}))
    assert len(select(found, ["experts.up_proj"])) == 3
    assert [view.name for view in select(found, ["m.experts.up_proj[1]"])] == ["m.experts.up_proj[1]"]


@pytest.fixture
def tied():
    weight = torch.zeros(9, 4)
    state = {"model.embed_tokens.weight": weight, "lm_head.weight": weight, "norm.weight": torch.ones(4)}
    state |= {f"model.layers.0.self_attn.{part}_proj.weight": torch.zeros(4, 4) for part in "qkvo"}
    return layout(open_checkpoint(state))


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("q_prj", "nearest: q_proj"),
        ("atention", "nearest: attention, "),
        ("al-linear", "nearest: all-linear"),
        ("self_atn.v_proj", r"nearest: self_attn.v_proj"),
        ("mlp", "'mlp' matches nothing"),
        (r"layers\.0\..*", "matches nothing"),
        ("(q_proj", "neither a name nor a regex"),
        ("norm", "norm is left out: norm"),
        ("lm_head", "shares the weight of model.embed_tokens"),
    ],
)
def test_a_target_that_matches_nothing_says_why(target, message, tied) -> None:
    with pytest.raises(MismatchError, match=message):
        select(tied, ["q_proj", target])


def test_all_patterns_that_match_nothing_come_together(tied) -> None:
    with pytest.raises(MismatchError) as caught:
        select(tied, ["foo", "bar"], ["baz"])
    assert all(f"{name!r}" in str(caught.value) for name in ("foo", "bar", "baz"))


@pytest.mark.parametrize("exclude", ["lm_head", "norm", "score"])
def test_an_exclusion_may_name_what_is_tied_skipped_or_known_elsewhere(exclude, tied) -> None:
    assert len(select(tied, ["attention"], [exclude], known=["score"])) == 4


def test_excluding_everything_is_refused(tied) -> None:
    with pytest.raises(MismatchError, match="excluded by"):
        select(tied, ["q_proj"], ["attention"])


def test_a_string_is_one_pattern(tied) -> None:
    assert select(tied, "attention") == select(tied, ["attention"])
    assert select(tied, "attention", "q_proj") == select(tied, ["attention"], ["q_proj"])

"""Claims that a checkpoint is a base with adapters baked in: true ones, wrong scales, and single wrong values."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from eckart.adapter import Adapter, AdapterLayer
from eckart.errors import MismatchError, OptionError
from eckart.formats import load_adapter
from eckart.operations.comparison.claimed_merge import check_merge, plan_merge_check
from eckart.operations.comparison.merge_check import MergeCheck
from eckart.operations.merging.merge import merge

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
TARGET = "layers.0.q_proj"


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def base_weights(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    shapes = {f"layers.{i}.{kind}.weight": shape for i in range(2) for kind, shape in _SHAPES.items()}
    weights = {name: torch.randn(shape, generator=seeded(n)) for n, (name, shape) in enumerate(shapes.items())}
    return {name: w.to(dtype) for name, w in (weights | {"norm.weight": torch.ones(32)}).items()}


_SHAPES = {"q_proj": (48, 32), "v_proj": (16, 32)}


def adapter(seed: int = 1, kinds=("q_proj", "v_proj"), **options) -> Adapter:
    g = seeded(seed)
    return Adapter(
        {
            f"layers.{i}.{kind}": AdapterLayer(
                0.1 * torch.randn(4, 32, generator=g), torch.randn(_SHAPES[kind][0], 4, generator=g), 8.0, **options
            )
            for i in range(2)
            for kind in kinds
        }
    )


def merged_by_hand(base: dict[str, Tensor], *adapters: Adapter, weight: float = 1.0) -> dict[str, Tensor]:
    """In float64, rounded once."""
    result = {name: value.clone() for name, value in base.items()}
    for name in {name for each in adapters for name in each}:
        total = base[f"{name}.weight"].to(torch.float64)
        for each in adapters:
            total = total + weight * each[name].low_rank().dense() if name in each else total
        result[f"{name}.weight"] = total.to(base[f"{name}.weight"].dtype)
    return result


def assert_fits(check: MergeCheck, weight: float) -> None:
    """One weight explains everything, and it is this one, as closely as the dtype can tell."""
    assert check.weight is not None
    assert check.weight.lower <= weight <= check.weight.upper
    assert check.weight.upper - check.weight.lower < 0.04 * max(1.0, abs(weight))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_merge_rounded_once_is_equal_bit_for_bit(dtype):
    base, given = base_weights(DTYPES[dtype]), adapter()
    check = check_merge(base, given, merged_by_hand(base, given))
    assert check.verdict == "equal"
    assert check.holds
    assert {matrix.verdict for matrix in check.matrices} == {"equal"}
    assert_fits(check, 1)
    assert check.unchanged == 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_merge_computed_in_the_stored_dtype_is_within_rounding(dtype):
    base, given = base_weights(DTYPES[dtype]), adapter()
    merged = dict(base)
    for name, layer in given.items():
        merged[f"{name}.weight"] = base[f"{name}.weight"] + layer.low_rank().dense().to(DTYPES[dtype])
    check = check_merge(base, given, merged)
    assert check.verdict in ("rounding", "equal")
    assert max(matrix.ulps for matrix in check.matrices) <= 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_merge_writes_is_what_it_claims(dtype, tmp_path: Path):
    base, adapters = base_weights(DTYPES[dtype]), [adapter(1), adapter(2, kinds=("v_proj",))]
    merge(base, adapters, tmp_path / "merged", weights=[0.5, -2.0])
    check = check_merge(base, adapters, tmp_path / "merged", weights=[0.5, -2.0])
    assert check.holds
    assert not check_merge(base, adapters, tmp_path / "merged").holds


@pytest.mark.parametrize("weight", [0.5, 2.0, -1.0, 0.9])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_wrong_scale_is_reported(dtype, weight):
    base, given = base_weights(DTYPES[dtype]), adapter()
    check = check_merge(base, given, merged_by_hand(base, given, weight=weight))
    assert check.verdict == "other weight"
    assert not check.holds
    assert_fits(check, weight)
    assert check_merge(base, given, merged_by_hand(base, given, weight=weight), weights=[weight]).holds


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_base_that_nothing_was_merged_into_is_reported(dtype):
    base = base_weights(DTYPES[dtype])
    check = check_merge(base, adapter(), base)
    assert check.verdict == "not merged"
    assert_fits(check, 0)


@pytest.mark.parametrize("claimed", [1.0, 0.8, 0.0])
def test_an_update_of_the_size_of_the_rounding_is_still_distinguished_from_none(claimed):
    """Most entries of this bfloat16 merge are the base's own: the update is half a unit in their last place."""
    base = base_weights(torch.bfloat16)
    given = adapter()
    small = replace(given, layers={name: replace(layer, alpha=layer.alpha / 150) for name, layer in given.items()})
    merged = merged_by_hand(base, small, weight=claimed)
    kept = [float((merged[f"{name}.weight"] == base[f"{name}.weight"]).float().mean()) for name in small]
    assert min(kept) > 0.3
    check = check_merge(base, small, merged)
    assert check.verdict == {1.0: "equal", 0.8: "other weight", 0.0: "not merged"}[claimed]


def test_an_update_that_rounding_swallows_is_equal_to_none():
    base, given = base_weights(torch.bfloat16), adapter()
    tiny = replace(given, layers={name: replace(layer, alpha=1e-9) for name, layer in given.items()})
    assert check_merge(base, tiny, base).verdict == "equal"
    nudged = {name: value.clone() for name, value in base.items()}
    nudged[f"{TARGET}.weight"][0, 0] *= 1 + 2**-7
    assert check_merge(base, tiny, nudged).verdict == "differs"


def test_another_adapter_is_not_a_wrong_scale():
    base = base_weights()
    check = check_merge(base, adapter(1), merged_by_hand(base, adapter(2)))
    assert check.verdict == "differs"
    assert all(matrix.error > 0.5 for matrix in check.matrices)


@pytest.mark.parametrize("bit", [0, 4, 12, 22, 27, 31])
def test_one_flipped_bit_is_seen(bit):
    """A lowest bit is what rounding might do; from the fifth on it is more than any rounding leaves."""
    base, given = base_weights(), adapter()
    merged = merged_by_hand(base, given)
    value = int(merged[f"{TARGET}.weight"].abs().argmax())
    bits = merged[f"{TARGET}.weight"].view(torch.int32).reshape(-1)
    bits[value] ^= torch.tensor(1).bitwise_left_shift(torch.tensor(bit)).to(torch.int32)
    check = check_merge(base, given, merged)
    assert check.verdict == ("rounding" if bit == 0 else "differs")
    assert [matrix.name for matrix in check.matrices if matrix.verdict != "equal"] == [TARGET]


@pytest.mark.parametrize("name", ["norm.weight", "layers.1.v_proj.weight"])
def test_a_tensor_that_no_adapter_is_for_must_not_change(name):
    base, given = base_weights(), adapter(kinds=("q_proj",))
    merged = merged_by_hand(base, given)
    merged[name][0] += 1e-6
    check = check_merge(base, given, merged)
    assert check.verdict == "differs"
    assert check.altered == [name]
    assert {matrix.verdict for matrix in check.matrices} == {"equal"}


def test_tensors_lost_gained_or_reshaped_are_faults():
    base, given = base_weights(), adapter(kinds=("q_proj",))
    merged = merged_by_hand(base, given) | {"extra.weight": torch.ones(2, 2), "norm.weight": torch.ones(31)}
    del merged["layers.1.v_proj.weight"]
    check = check_merge(base, given, merged)
    assert check.verdict == "differs"
    assert {fault.partition(":")[0] for fault in check.faults} == {
        "extra.weight", "norm.weight", "layers.1.v_proj.weight",
    }  # fmt: skip


def test_a_value_that_is_not_finite_is_no_merge():
    base, given = base_weights(), adapter()
    merged = merged_by_hand(base, given)
    merged[f"{TARGET}.weight"][3, 3] = float("nan")
    check = check_merge(base, given, merged)
    assert check.verdict == "differs"
    json.dumps(check.to_json(), allow_nan=False)


def test_a_narrower_merged_dtype_is_judged_by_its_own_rounding():
    base, given = base_weights(), adapter()
    merged = {name: value.to(torch.bfloat16) for name, value in merged_by_hand(base, given).items()}
    assert check_merge(base, given, merged).holds


def test_biases_and_whole_tensors_are_part_of_the_claim():
    base = base_weights() | {"layers.0.q_proj.bias": torch.randn(48, generator=seeded(5))}
    plain = adapter(kinds=("q_proj",))
    layer = replace(plain[TARGET], bias=torch.randn(48, generator=seeded(6)))
    saved = torch.randn(32, generator=seeded(7))
    given = replace(plain, layers={**plain, TARGET: layer}, modules_to_save={"norm.weight": saved})
    merged = merged_by_hand(base, given) | {"norm.weight": saved}
    assert check_merge(base, given, merged).verdict == "differs"
    merged["layers.0.q_proj.bias"] = base["layers.0.q_proj.bias"] + layer.scaling * layer.bias
    check = check_merge(base, given, merged)
    assert check.holds
    assert {"norm.weight", "layers.0.q_proj.bias"} <= {matrix.name for matrix in check.matrices}


KINDS = {
    "convolution": (
        {"conv1.weight": torch.randn(8, 3, 3, 3, generator=seeded(1))},
        {"conv1": AdapterLayer(torch.ones(2, 3, 3, 3), torch.randn(8, 2, 1, 1, generator=seeded(2)), 2.0, kind="conv")},
    ),
    "embedding": (
        {"embed_tokens.weight": torch.randn(20, 8, generator=seeded(1))},
        {"embed_tokens": AdapterLayer(torch.randn(2, 20), torch.randn(8, 2), 2.0, kind="embedding")},
    ),
    "Conv1D": (
        {"h.0.attn.c_attn.weight": torch.randn(8, 24, generator=seeded(1))},
        {"h.0.attn.c_attn": AdapterLayer(torch.randn(2, 8), torch.randn(24, 2), 2.0, kind="conv1d")},
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_layer_is_checked_as_its_weight_lies(kind):
    base, layers = KINDS[kind]
    merged = {name: weight + layers[name.removesuffix(".weight")].delta() for name, weight in base.items()}
    assert check_merge(base, Adapter(layers), merged).holds
    assert check_merge(base, Adapter(layers), base).verdict == "not merged"


def test_one_expert_of_a_fused_tensor_is_checked_and_the_others_must_stay():
    name = "model.layers.0.mlp.experts.down_proj"
    base = {name: torch.randn(3, 12, 8, generator=seeded(1))}
    layer = AdapterLayer(torch.randn(2, 8), torch.randn(12, 2), 2.0, kind="expert")
    merged = {name: base[name].clone()}
    merged[name][1] += layer.low_rank().dense().float()
    given = Adapter({f"{name}[1]": layer})
    check = check_merge(base, given, merged)
    assert check.holds
    assert check.unchanged == 2
    merged[name][2, 0, 0] += 1
    assert check_merge(base, given, merged).altered == [f"{name}[2]"]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("model", ["llama", "gpt2"])
def test_a_merge_by_peft_is_confirmed(model, dtype, dora, tmp_path: Path):
    import peft
    import transformers

    def fresh():
        torch.manual_seed(0)
        if model == "llama":
            config = transformers.LlamaConfig(
                vocab_size=97, hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=4,
                num_key_value_heads=2,
            )  # fmt: skip
            return transformers.LlamaForCausalLM(config).to(DTYPES[dtype])
        config = transformers.GPT2Config(
            vocab_size=97, n_embd=64, n_layer=1, n_head=4, n_positions=32, bos_token_id=0, eos_token_id=0
        )
        return transformers.GPT2LMHeadModel(config).to(DTYPES[dtype])

    names = ["q_proj", "down_proj"] if model == "llama" else ["c_attn", "c_proj"]
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=names, use_dora=dora, fan_in_fan_out=model == "gpt2")
    adapted = peft.get_peft_model(fresh(), config)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.05)
            if "magnitude" in name:
                weight.mul_(1.1)
    adapted.save_pretrained(tmp_path / "adapter")
    check = check_merge(fresh(), load_adapter(tmp_path / "adapter"), adapted.merge_and_unload())
    assert check.holds
    assert len(check.matrices) == (2 if model == "llama" else 3)
    assert_fits(check, 1)


def test_an_adapter_without_a_place_and_wrong_sorts_are_refused():
    base = base_weights()
    with pytest.raises(MismatchError, match=r"layers\.0\.q_proj"):
        check_merge({"other.weight": torch.ones(3, 3)}, adapter(), base)
    with pytest.raises(OptionError, match="is an adapter, not a model"):
        check_merge(base, adapter(), adapter())
    with pytest.raises(OptionError, match="weights"):
        check_merge(base, adapter(), base, weights=[1.0, 2.0])


def test_a_preview_names_what_would_be_checked():
    base, given = base_weights(), adapter(kinds=("q_proj",))
    preview = plan_merge_check(base, given, base | {"extra.weight": torch.ones(2)}).preview()
    assert [(match.name, match.ranks) for match in preview.matches] == [(name, (4,)) for name in given]
    assert [item.name for item in preview.skipped] == ["extra.weight"]

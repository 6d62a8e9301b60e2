"""What was merged comes out again within one rounding, and what cannot be undone is refused."""

import pytest
import torch
from safetensors.torch import save_file

from eckart.adapter import Adapter
from eckart.errors import MismatchError, OptionError
from eckart.operations.merging.merge import merge
from eckart.operations.merging.unmerge import unmerge

from .test_merge import adapted, generator, gpt2, layer, llama, save, tensors_in

pytestmark = pytest.mark.filterwarnings("ignore")

Q = "a.q_proj"
ADAPTERS = [Adapter({Q: layer(40, 24)}), Adapter({Q: layer(40, 24, seed=1, rank=5, bias=torch.ones(40))})]


def base_of(dtype):
    weight = torch.randn(40, 24, generator=generator(), dtype=torch.float64).to(dtype)
    return {f"{Q}.weight": weight, f"{Q}.bias": torch.zeros(40).to(dtype), "norm.weight": torch.ones(3).to(dtype)}


def ulp(values):
    exponent = torch.frexp(values.double().abs()).exponent - 1
    return torch.finfo(values.dtype).eps * torch.exp2(exponent.double())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("weights", [None, [0.5, -2.0]])
def test_every_entry_is_restored_within_one_unit_of_the_merged_entry(dtype, weights, tmp_path):
    base = base_of(dtype)
    merge(base, ADAPTERS, tmp_path / "merged", weights=weights)
    result = unmerge(tmp_path / "merged", ADAPTERS, tmp_path / "out", base=base, weights=weights)
    merged, restored = tensors_in(tmp_path / "merged"), tensors_in(tmp_path / "out")
    equal = entries = 0
    for name in (f"{Q}.weight", f"{Q}.bias"):
        size = torch.maximum(merged[name].abs(), base[name].abs())
        assert ((restored[name].double() - base[name].double()).abs() <= ulp(size)).all()
        equal += int((restored[name] == base[name]).sum())
        entries += base[name].numel()
    assert restored[f"{Q}.weight"].dtype == dtype
    assert torch.equal(restored["norm.weight"], base["norm.weight"])
    assert (result.tensors, result.changed) == (3, 2)
    assert result.base_equal == equal / entries
    assert result.max_ulps <= 1
    assert result.bit_equal > 0.9
    assert result.to_json()["format"] == "eckart-unmerge/2"


def test_the_share_that_merges_back_is_counted_by_merging_back(tmp_path):
    base = base_of(torch.bfloat16)
    merge(base, ADAPTERS, tmp_path / "merged")
    result = unmerge(tmp_path / "merged", ADAPTERS, tmp_path / "out")
    merge(tmp_path / "out", ADAPTERS, tmp_path / "again")
    merged, again = tensors_in(tmp_path / "merged"), tensors_in(tmp_path / "again")
    names = [f"{Q}.weight", f"{Q}.bias"]
    equal = sum(int((merged[name] == again[name]).sum()) for name in names)
    assert result.bit_equal == equal / sum(merged[name].numel() for name in names)
    assert result.base_equal is result.max_ulps is None


@pytest.mark.parametrize(
    ("make", "options", "named"),
    [
        (llama, {"target_modules": ["q_proj"], "use_dora": True}, "layers.1.self_attn.q_proj.weight"),
        (llama, {"target_modules": ["q_proj"], "modules_to_save": ["norm"]}, "model.norm.weight"),
        (gpt2, {"target_modules": ["c_attn"], "use_dora": True, "fan_in_fan_out": True}, "h.1.attn.c_attn.weight"),
    ],
    ids=["dora", "saved", "conv1d dora"],
)
def test_what_was_renormalized_or_replaced_comes_from_the_base_or_is_refused(make, options, named, tmp_path):
    base = save(make(), tmp_path / "base")
    adapted(make(), tmp_path / "adapter", r=2, **options)
    merge(base, tmp_path / "adapter", tmp_path / "merged")
    with pytest.raises(MismatchError, match=named) as refused:
        unmerge(tmp_path / "merged", tmp_path / "adapter", tmp_path / "out")
    assert "`base`" in str(refused.value)
    assert not (tmp_path / "out").exists()
    result = unmerge(tmp_path / "merged", tmp_path / "adapter", tmp_path / "out", base=base)
    restored, original = tensors_in(tmp_path / "out"), tensors_in(base)
    lost = [name for name in original if named.rpartition("1.")[2] in name]
    assert lost
    assert all(torch.equal(restored[name], original[name]) for name in lost)
    assert result.bit_equal > 0.99
    assert result.max_ulps <= 1


def test_a_base_of_another_model_is_refused(tmp_path):
    merge(base_of(torch.float32), ADAPTERS, tmp_path / "merged")
    for other, said in (({f"{Q}.weight": torch.ones(40, 23)}, r"\(40, 23\)"), ({"x": torch.ones(2)}, "missing")):
        with pytest.raises(MismatchError, match=said):
            unmerge(tmp_path / "merged", ADAPTERS, tmp_path / "out", base=other)


def test_another_dtype_can_be_restored(tmp_path):
    base = base_of(torch.bfloat16)
    merge(base, ADAPTERS, tmp_path / "merged", dtype=torch.float32)
    result = unmerge(tmp_path / "merged", ADAPTERS, tmp_path / "out", base=base, dtype=torch.bfloat16)
    assert result.base_equal == 1


def test_4_bit_weights_are_restored_only_as_plain_ones(tmp_path):
    from .test_merge_nf4 import nf4_folder

    base, _ = nf4_folder(tmp_path)
    adapter = Adapter({"model.layers.0.self_attn.q_proj": layer(64, 64)})
    merge(base, adapter, tmp_path / "merged")
    with pytest.raises(OptionError, match="`dtype=bfloat16`"):
        unmerge(tmp_path / "merged", adapter, tmp_path / "out")
    result = unmerge(tmp_path / "merged", adapter, tmp_path / "out", dtype=torch.bfloat16)
    assert result.changed == 1


SMALL = [Adapter({Q: layer(40, 24, rank=2, alpha=0.5)})]


@pytest.mark.parametrize(
    ("merged", "said"),
    [
        (lambda base, _: base, "does not contain this update"),
        (lambda base, folder: merge(base, SMALL, folder, weights=[0.25]).output, "contains 0.25 times the update"),
        (lambda base, folder: merge(base, ADAPTERS[1:], folder).output, r"is not .*: 1 of 1 changed matrices differ"),
    ],
    ids=["never merged", "another weight", "another adapter"],
)
def test_a_model_that_does_not_contain_the_adapter_is_refused_with_the_verdict_of_compare(merged, said, tmp_path):
    base = base_of(torch.bfloat16)
    with pytest.raises(MismatchError, match=said):
        unmerge(merged(base, tmp_path / "merged"), SMALL, tmp_path / "out", base=base)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("copied", [False, True])
def test_without_a_base_the_one_that_the_adapter_names_is_recognized_as_never_merged(copied, tmp_path):
    save_file(base_of(torch.bfloat16), tmp_path / "base.safetensors")
    save_file(base_of(torch.bfloat16), tmp_path / "copy.safetensors")
    adapter = Adapter(SMALL[0].layers, base_model=str(tmp_path / "base.safetensors"))
    with pytest.raises(MismatchError, match="does not contain this update"):
        unmerge(tmp_path / ("copy.safetensors" if copied else "base.safetensors"), adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    merge(tmp_path / "base.safetensors", adapter, tmp_path / "merged")
    assert unmerge(tmp_path / "merged", adapter, tmp_path / "out").changed == 1

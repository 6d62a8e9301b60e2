"""Adapters of fused experts, merged into files that hold one module for each expert, against the real PEFT."""

import pytest
import torch

from eckart.checkpoint import open_checkpoint
from eckart.checkpoint.base_names import NamesOfBase
from eckart.errors import MismatchError
from eckart.formats import load_adapter
from eckart.formats.expert_modules import with_expert_modules
from eckart.operations.merging.merge import merge

from .test_peft_experts import BOTH, logits, moe, peft_folder

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize(
    ("kind", "parameters"), [("mixtral", BOTH), ("qwen3", BOTH), ("qwen3", BOTH[:1]), ("gpt_oss", BOTH)]
)
def test_merged_into_the_files_of_a_model_it_computes_what_peft_computes(kind, parameters, tmp_path):
    theirs = logits(peft_folder(kind, tmp_path / "a", parameters))
    moe(kind).save_pretrained(tmp_path / "base")
    merge(tmp_path / "base", tmp_path / "a", tmp_path / "merged")
    ours = logits(type(moe(kind)).from_pretrained(tmp_path / "merged").eval())
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5 * float(theirs.abs().max()))


def test_each_expert_becomes_the_modules_that_the_files_hold(tmp_path):
    peft_folder("mixtral", tmp_path / "a", BOTH)
    moe("mixtral").save_pretrained(tmp_path / "base")
    base = open_checkpoint(tmp_path / "base")
    adapter = with_expert_modules(load_adapter(tmp_path / "a"), NamesOfBase([*base.tensors], base).find)
    assert len(adapter) == 2 * (1 + 4 * 3)
    for name, layer in adapter.items():
        assert layer.delta().shape == base.tensors[f"{name}.weight"].shape
        assert layer.lora_B.shape == adapter.outline()[name].lora_B.shape


def test_an_adapter_that_fits_is_left_as_it_is(tmp_path):
    peft_folder("gpt_oss", tmp_path / "a", BOTH)
    adapter, names = load_adapter(tmp_path / "a"), [name for name, _ in moe("gpt_oss").named_parameters()]
    assert with_expert_modules(adapter, dict.fromkeys(names, "").get) is adapter
    assert with_expert_modules(adapter, {}.get) is adapter


@pytest.mark.parametrize("kind", ["qwen3", "gpt_oss"])
def test_an_adapter_of_fewer_experts_than_the_base_has_is_refused(kind, tmp_path):
    peft_folder(kind, tmp_path / "a", BOTH)
    field = "num_experts" if kind == "qwen3" else "num_local_experts"
    moe(kind, **{field: 6}).save_pretrained(tmp_path / "base")
    with pytest.raises(MismatchError, match="at rank 3 its file has 4 experts, and the base has more"):
        merge(tmp_path / "base", tmp_path / "a", tmp_path / "merged")

"""An adapter where a model is needed, or the reverse, is named in one sentence by every operation."""

import pytest
import torch

from eckart.adapter import Adapter
from eckart.errors import MismatchError, OptionError
from eckart.operations import analyze, check_merge, combine, compare, convert, extract, merge, quantize, resize, unmerge

from .test_merge import adapted, layer, llama, save

pytestmark = pytest.mark.filterwarnings("ignore")
NOT_A_MODEL, NOT_AN_ADAPTER = "adapter is an adapter, not a model", "base is a model, not an adapter"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kinds")
    save(llama(), folder / "base")
    adapted(llama(), folder / "adapter", r=2, target_modules=["q_proj"])
    return folder / "base", folder / "adapter"


OPERATIONS = {
    "extract base adapter": (
        lambda base, adapter, out: extract(base, adapter, output=out),
        "adapter is an adapter, not a fine-tuned model: eckart merge",
    ),
    "extract adapter tuned": (lambda base, adapter, out: extract(adapter, base, output=out), NOT_A_MODEL),
    "resize base": (lambda base, adapter, out: resize(base, rank=2, output=out), NOT_AN_ADAPTER),
    "combine base adapter": (lambda base, adapter, out: combine([base, adapter], output=out), NOT_AN_ADAPTER),
    "merge adapter adapter": (lambda base, adapter, out: merge(adapter, adapter, out), NOT_A_MODEL),
    "merge base base": (lambda base, adapter, out: merge(base, base, out), NOT_AN_ADAPTER),
    "unmerge adapter adapter": (lambda base, adapter, out: unmerge(adapter, adapter, out), NOT_A_MODEL),
    "unmerge base base": (lambda base, adapter, out: unmerge(base, base, out), NOT_AN_ADAPTER),
    "unmerge with an adapter as base": (
        lambda base, adapter, out: unmerge(base, adapter, out, base=adapter),
        NOT_A_MODEL,
    ),
    "quantize adapter": (lambda base, adapter, out: quantize(adapter, out), NOT_A_MODEL),
    "analyze with an adapter as base": (lambda base, adapter, out: analyze(base, adapter), NOT_A_MODEL),
    "analyze an adapter with a base": (lambda base, adapter, out: analyze(adapter, base), "already an update"),
    "convert base": (lambda base, adapter, out: convert(base, "kohya"), NOT_AN_ADAPTER),
    "convert with an adapter as base": (
        lambda base, adapter, out: convert(adapter, "kohya", base=adapter),
        NOT_A_MODEL,
    ),
    "compare base adapter": (lambda base, adapter, out: compare(base, adapter), "is a model and .* an adapter"),
    "check_merge of an adapter": (lambda base, adapter, out: check_merge(base, adapter, adapter), NOT_A_MODEL),
    "check_merge with a model": (lambda base, adapter, out: check_merge(base, base, base), NOT_AN_ADAPTER),
}


@pytest.mark.parametrize("case", OPERATIONS)
def test_a_source_of_the_wrong_kind_is_named_in_one_sentence(case, files, tmp_path):
    run, said = OPERATIONS[case]
    with pytest.raises(OptionError, match=said) as refused:
        run(*files, tmp_path / "out")
    assert len(str(refused.value).splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("made_for", "cause"),
    [
        ({f"h.{n}.c_attn": layer(8, 6) for n in range(30)}, "another architecture: none of its 30 modules"),
        ({f"layers.{n}.q": layer(9, 6) for n in range(30)}, "another size: all of its 30 modules"),
    ],
    ids=["another architecture", "another size"],
)
def test_an_adapter_for_another_model_is_one_fault(made_for, cause, tmp_path):
    base = {f"layers.{n}.q.weight": torch.ones(8, 6) for n in range(30)}
    with pytest.raises(MismatchError, match=cause) as refused:
        merge(base, Adapter(made_for, base_model="org/other"), tmp_path / "out")
    assert len(str(refused.value).splitlines()) == 2
    assert "made for org/other" in str(refused.value)


def test_a_reason_that_many_layers_share_is_given_once():
    names = [f"lora_te_layers_{n}_self_attn_q_proj" for n in range(30)]
    adapter = Adapter({name: layer(8, 8) for name in names}, format="kohya")
    with pytest.raises(MismatchError) as refused:
        convert(adapter, "peft")
    assert str(refused.value).count("give its model as `base`") == 1
    assert f"{names[0]}, {names[1]}, {names[2]} and 27 more" in str(refused.value)


def test_a_target_as_text_is_one_pattern(files):
    _, adapter = files
    assert len(analyze(adapter, target="attention").matrices) == len(analyze(adapter).matrices) > 0
    assert len(compare(adapter, adapter, target="q_proj").matrices) > 0

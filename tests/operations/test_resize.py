"""Adapters at other ranks: held to the dense float64 product, and to the real PEFT."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import eckart.operations.resizing.work as resize_module
from eckart.adapter import Adapter
from eckart.engine import Execution
from eckart.errors import MismatchError, NotFiniteError, OptionError, OutputError
from eckart.formats import load_adapter
from eckart.operations import Budget, RankChoice, extract, plan_resize, resize
from eckart.operations.rank_change import alpha_for

from .drawing import adapter_of, dense, drawn, same

LAYERS = {
    "plain": drawn(),
    "alpha below its rank": drawn(alpha=3),
    "a negative alpha": drawn(alpha=-8),
    "rslora": drawn(rslora=True),
    "DoRA": drawn(dora=True),
    "with a bias": drawn(bias=torch.arange(40.0)),
    "bfloat16": drawn(dtype=torch.bfloat16),
    "float16": drawn(dtype=torch.float16, alpha=7),
    "float64": drawn(dtype=torch.float64),
    "conv1d": drawn("conv1d"),
    "embedding": drawn("embedding"),
    "convolution": drawn("conv"),
    "expert": drawn("expert"),
    "rank above its sides": drawn(shape=(4, 5), rank=9),
    "large": drawn(scale=1e6),
    "small": drawn(scale=1e-6),
    "rank-deficient": replace(drawn(), lora_A=torch.ones(6, 30)),
    "zero": replace(drawn(), lora_B=torch.zeros(40, 6)),
    "zero scale": drawn(alpha=0),
}
ROUNDING = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 2e-2, torch.float16: 2e-3}


@pytest.fixture(params=LAYERS)
def layer(request):
    return LAYERS[request.param]


@pytest.mark.parametrize("rank", [1, 3, 5])
def test_a_lower_rank_leaves_exactly_the_tail_of_the_spectrum(layer, rank):
    found = resize(adapter_of(q=layer), rank=rank)
    (record,), update = found.layers, dense(layer)
    values = torch.linalg.svdvals(update)
    norm, tail = float(values.norm()), float(values[rank:].norm())
    missed = float((update - dense(found.adapter["q"])).norm())
    tolerance = ROUNDING[layer.lora_A.dtype] * norm
    assert found.adapter["q"].rank == record.rank == rank
    assert missed == pytest.approx(tail, abs=tolerance)
    assert record.error * norm == pytest.approx(missed, abs=1e-12 * norm)
    assert record.error_lower_bound * norm == pytest.approx(tail, abs=1e-12 * norm)
    assert record.error_lower_bound <= record.error
    assert found.adapter["q"].lora_A.dtype == layer.lora_A.dtype
    assert found.adapter["q"].scaling == pytest.approx(layer.scaling, rel=1e-15)
    for kept in ("bias", "magnitude", "kind", "rslora"):
        assert getattr(found.adapter["q"], kept) is getattr(layer, kept)


@pytest.mark.parametrize("rank", [10, 45])
def test_a_higher_rank_has_the_same_update_bit_for_bit_and_rows_to_train(layer, rank):
    found = resize(adapter_of(q=layer), rank=rank)
    padded, old = found.adapter["q"], layer.rank
    assert padded.rank == rank
    assert padded.scaling == pytest.approx(layer.scaling, rel=3e-16)  # some quotients no alpha gives
    assert torch.equal(padded.delta(), layer.delta())
    assert found.error == 0
    assert torch.equal(padded.lora_A[:old], layer.lora_A)
    assert torch.equal(padded.lora_B[:, :old], layer.lora_B)
    zero, random = padded.lora_B[:, old:], padded.lora_A[old:]
    if layer.kind == "embedding":
        zero, random = random, zero
        assert 0.8 < float(random.std()) < 1.2
    else:
        bound = padded.lora_A[0].numel() ** -0.5
        assert 0.5 * bound < float(random.abs().max()) <= 1.01 * bound
    assert not zero.any()
    assert random.any(dim=0 if layer.kind == "embedding" else -1).all()


def test_the_rank_that_is_there_keeps_the_factors_bit_for_bit(layer):
    assert same(resize(adapter_of(q=layer), rank=layer.rank).adapter["q"], layer)


def test_padding_is_the_same_each_time_and_of_another_seed_another():
    def padding(seed):
        return resize(adapter_of(q=drawn()), rank=9, execution=Execution(seed=seed)).adapter["q"].lora_A

    assert torch.equal(padding(0), padding(0))
    assert not torch.equal(padding(0), padding(1))


def test_a_scaling_survives_every_rank():
    for rslora in (False, True):
        for alpha in (1, 7, 16, 0.3):
            for old in range(1, 40):
                scaling = alpha / (old**0.5 if rslora else old)
                for rank in range(1, 40):
                    again = alpha_for(scaling, rank, rslora=rslora) / (rank**0.5 if rslora else rank)
                    assert again == pytest.approx(scaling, rel=3e-16)


def test_a_resized_adapter_resizes_like_the_first():
    first = adapter_of(q=drawn(rank=12, dtype=torch.float64), k=drawn(rank=3, seed=1, dtype=torch.float64))
    there = resize(resize(first, rank=20).adapter, rank=5).adapter
    at_once = resize(first, rank=5).adapter
    for name in first:
        torch.testing.assert_close(dense(there[name]), dense(at_once[name]), rtol=0, atol=1e-12)
        assert there[name].lora_A.any(dim=1).all()


@pytest.mark.parametrize("share", [0.3, 0.9, 0.999, 1.0])
def test_energy_and_error_take_the_smallest_rank_of_each_layer(share):
    adapter = adapter_of(q=drawn(rank=12), k=drawn(rank=5, seed=1), v=drawn("conv", 9, 2))
    for choice in (RankChoice(energy=share), RankChoice(error=share)):
        found = resize(adapter, rank=choice, dtype=torch.float64)
        for name, layer in adapter.items():
            squares = torch.linalg.svdvals(dense(layer)).square()
            tails = torch.cat([squares.flip(0).cumsum(0).flip(0), squares.new_zeros(1)]) / squares.sum()
            enough = 1 - tails >= share if choice.energy else tails.sqrt() < share
            expected = int(enough.int().argmax()) if share < 1 or choice.error else layer.rank
            assert found.adapter[name].rank == expected


@pytest.mark.parametrize("text", ["600", "1500", "8kB", "0.02MB"])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_budget_is_kept_used_and_best(tmp_path, text, dtype):
    layers = {f"m.{i}": drawn(rank=8, seed=i, scale=2.0**-i) for i in range(3)}
    layers["m.3"] = drawn("conv", 8, 3, dtype=torch.bfloat16)
    budget = Budget.parse(text)
    found = resize(Adapter(layers), rank=RankChoice(budget=budget), dtype=dtype, output=tmp_path / "out")
    size = (tmp_path / "out/adapter_model.safetensors").stat().st_size if budget.in_bytes else found.adapter.params
    assert size <= budget.amount
    assert found.guarantee is not None
    assert [record.name for record in found.layers] == list(layers)
    dropped = {item.name for item in found.skipped}
    assert (
        dropped == {record.name for record in found.layers if record.rank == 0} == layers.keys() - found.adapter.keys()
    )
    whole = sum(float(dense(layer).norm()) ** 2 for layer in layers.values())
    missed = sum(
        float((dense(layer) - (dense(found.adapter[name]) if name in found.adapter else 0)).norm()) ** 2
        for name, layer in layers.items()
    )
    assert found.error == pytest.approx((missed / whole) ** 0.5, rel=1e-9)


def test_a_budget_counts_everything_that_is_not_resized():
    saved = {"norm.weight": torch.ones(100)}
    adapter = Adapter({"a.q": drawn(rank=4), "b.q": drawn(rank=4, bias=torch.ones(40))}, saved)
    choice = RankChoice(budget=Budget(100 + 40 + 4 * 70 + 2 * 70, in_bytes=False))
    found = resize(adapter, rank=choice, target=["a.q"])
    assert same(found.adapter["b.q"], adapter["b.q"])
    assert found.adapter["a.q"].rank == 2
    assert found.adapter.params == choice.budget.amount


def test_layers_that_hold_more_than_an_update_get_a_rank_whatever_the_budget():
    layers = {f"m.{i}": drawn(seed=i, dora=True, scale=10.0 ** (-3 * i)) for i in range(3)}
    choice = RankChoice(budget=Budget(3 * 40 + 5 * 70, in_bytes=False))
    found = resize(Adapter(layers), rank=choice)
    assert [record.rank for record in found.layers] == [3, 1, 1]


def test_a_rank_that_is_given_is_not_counted_as_still_to_be_earned():
    steep, flat = drawn(dora=True), drawn(seed=1, dora=True)
    steep = replace(steep, lora_B=steep.lora_B * torch.logspace(3, -22, 6))
    found = resize(adapter_of(q=steep, k=flat), rank=RankChoice(budget=Budget(2 * 40 + 3 * 70, in_bytes=False)))
    assert [record.rank for record in found.layers] == [1, 2]


@pytest.mark.parametrize("alpha", [6e-8, 6e8])
def test_both_factors_of_a_cut_share_the_scale(alpha):
    found = resize(adapter_of(q=drawn(alpha=alpha)), rank=3, dtype=torch.float16)
    layer = found.adapter["q"]
    torch.testing.assert_close(layer.lora_B.double().norm(dim=0), layer.lora_A.double().norm(dim=1), rtol=1e-3, atol=0)
    assert found.layers[0].error == pytest.approx(found.layers[0].error_lower_bound, rel=1e-3)


@pytest.mark.parametrize("fields", [{}, {"bias": torch.ones(40)}, {"dora": True}])
def test_a_zero_update_is_kept_by_a_rank_and_skipped_otherwise_unless_it_holds_more(fields):
    zero = replace(drawn(**fields), lora_B=torch.zeros(40, 6))
    adapter = adapter_of(q=zero, k=drawn(seed=1, **fields))
    kept = resize(adapter, rank=2).adapter["q"]
    assert kept.rank == 2
    assert kept.lora_A.any()
    assert not kept.lora_B.any()
    found = resize(adapter, rank=RankChoice(energy=0.9))
    if fields:
        assert found.adapter["q"].rank == 1
        assert not dense(found.adapter["q"]).any()
    else:
        assert [(item.name, item.reason) for item in found.skipped] == [("q", "zero update")]
        assert "q" not in found.adapter


def test_experts_of_one_parameter_get_one_rank():
    experts = {f"mlp.experts.up[{e}]": drawn("expert", 6, e, scale=10.0**-e) for e in range(3)}
    lone = replace(drawn("expert", 6, 5), lora_A=torch.ones(6, 18))
    adapter = Adapter({**experts, "mlp.experts.down[0]": lone})
    ranks = {n: layer.rank for n, layer in resize(adapter, rank=RankChoice(energy=0.8)).adapter.items()}
    assert ranks["mlp.experts.down[0]"] == 1
    assert len({ranks[name] for name in experts}) == 1
    budget = RankChoice(budget=Budget(7 * 42, in_bytes=False))
    found = resize(adapter, rank=budget).adapter
    assert found.params <= 7 * 42
    assert {found[name].rank for name in experts} == {2}


def test_only_the_targets_change(tmp_path):
    adapter = Adapter({f"m.{i}.{part}_proj": drawn(seed=i) for i in range(2) for part in "qk"})
    found = resize(adapter, rank=2, target=["q_proj"], exclude=["m.1.q_proj"], dtype=torch.bfloat16)
    assert {name: layer.rank for name, layer in found.adapter.items()} == dict.fromkeys(adapter, 6) | {"m.0.q_proj": 2}
    assert all(same(found.adapter[name], adapter[name]) for name in adapter if name != "m.0.q_proj")
    assert found.adapter["m.0.q_proj"].lora_A.dtype == torch.bfloat16
    preview = plan_resize(adapter, rank=2, target=["q_proj"], exclude=["m.1.q_proj"]).preview()
    assert [match.name for match in preview.matches] == ["m.0.q_proj"]
    assert len(preview.skipped) == 3
    assert [match.rank for match in preview.matches] == [2]
    assert preview.written_bytes >= found.nbytes
    by_energy = plan_resize(adapter, energy=0.9).preview()
    assert {match.rank for match in by_energy.matches} == {None}
    assert by_energy.notes == ["The spectra decide the new ranks."]


def test_what_is_saved_whole_is_carried_along(tmp_path):
    saved = {"norm.weight": torch.arange(7.0), "lm_head.weight": torch.ones(3, 2)}
    adapter = Adapter({"q": drawn()}, saved, "org/base", "CAUSAL_LM")
    again = resize(adapter, rank=2, output=tmp_path / "out").adapter
    assert again.modules_to_save.keys() == saved.keys()
    assert all(torch.equal(again.modules_to_save[name], tensor) for name, tensor in saved.items())
    assert (again.base_model, again.task_type) == ("org/base", "CAUSAL_LM")


def not_a_number(layer):
    return replace(layer, lora_A=layer.lora_A.index_fill(0, torch.tensor([0]), float("nan")))


def zeroed(layer):
    return replace(layer, lora_B=torch.zeros_like(layer.lora_B))


@pytest.mark.parametrize(
    ("change", "options", "error", "said"),
    [
        (None, {"rank": 0}, OptionError, "at least 1"),
        (None, {"rank": 4, "target": ["k_proj", "v_proj"]}, MismatchError, "'v_proj' matches nothing; nearest: q_proj"),
        (None, {"rank": 4, "exclude": [".*"]}, MismatchError, "is excluded"),
        (
            None,
            {"rank": RankChoice(budget=Budget(60, in_bytes=False))},
            OptionError,
            "takes 70 parameters.*raise `budget`",
        ),
        (
            None,
            {"rank": RankChoice(budget=Budget(600, in_bytes=True))},
            OptionError,
            "`budget` of 600 bytes is too small",
        ),
        (not_a_number, {"rank": 4}, NotFiniteError, "q_proj contains 30 values"),
        (lambda _: drawn(scale=1e9), {"rank": 4, "dtype": torch.float16}, OptionError, "too large for float16"),
        (
            lambda _: replace(drawn(), lora_B=torch.zeros(40, 6)),
            {"rank": RankChoice(energy=0.9)},
            MismatchError,
            "zero",
        ),
    ],
)
def test_what_cannot_be_done_is_refused(tmp_path, change, options, error, said):
    layer = change(drawn()) if change else drawn()
    with pytest.raises(error, match=said):
        resize(Adapter({"m.q_proj": layer}), output=tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_an_output_that_exists_or_is_the_input_is_refused(tmp_path):
    Adapter({"q": drawn()}).save(tmp_path / "a")
    Adapter({"q": drawn()}).save(tmp_path / "b")
    with pytest.raises(OutputError, match="use `force` to replace it"):
        resize(tmp_path / "a", rank=2, output=tmp_path / "b")
    with pytest.raises(OutputError, match="inputs are never changed"):
        resize(tmp_path / "a", rank=2, output=tmp_path / "a", force=True)
    resize(tmp_path / "a", rank=2, output=tmp_path / "b", force=True)
    assert load_adapter(tmp_path / "b")["q"].rank == 2


def test_an_interrupted_resize_resumes_where_it_stopped(tmp_path, monkeypatch):
    adapter = Adapter({f"m.{i}": drawn(seed=i) for i in range(4)})
    adapter.save(tmp_path / "a")
    expected, done = resize(adapter, rank=3).adapter, []

    def failing(name, *rest):
        if len(done) == 3:
            raise RuntimeError
        done.append(name)
        return original(name, *rest)

    original = resize_module.resized
    monkeypatch.setattr(resize_module, "resized", failing)
    with pytest.raises(RuntimeError):
        resize(tmp_path / "a", rank=3, output=tmp_path / "out", execution=Execution(workers=1))
    assert not (tmp_path / "out").exists()
    assert len(list((tmp_path / "out.partial").glob("*.safetensors"))) == 3
    done.clear()
    found = resize(tmp_path / "a", rank=3, output=tmp_path / "out", execution=Execution(workers=1))
    assert len(done) == 1
    assert list(found.adapter) == list(adapter)
    assert all(same(found.adapter[name], expected[name]) for name in adapter)
    assert not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize("options", [{"rank": 2}, {"rank": 3, "dtype": torch.bfloat16}, {"rank": 3, "target": ["k"]}])
def test_an_interrupted_resize_starts_over_where_anything_else_is_asked(tmp_path, monkeypatch, options):
    adapter = adapter_of(q=drawn(), k=drawn(seed=1))
    expected = resize(adapter, output=tmp_path / "expected", **options).adapter

    def stopped(*_, **__):
        raise RuntimeError

    with monkeypatch.context() as patched:
        patched.setattr(Adapter, "save", stopped)
        with pytest.raises(RuntimeError):
            resize(adapter, rank=3, output=tmp_path / "out")
    found = resize(adapter, output=tmp_path / "out", **options).adapter
    assert all(same(found[name], expected[name]) for name in expected)


def test_a_result_in_memory_is_not_mistaken_for_the_files_it_came_from(tmp_path):
    adapter_of(q=drawn()).save(tmp_path / "a")
    prints = {resize(tmp_path / "a", rank=rank).adapter.fingerprint() for rank in (2, 3)}
    assert len(prints | {load_adapter(tmp_path / "a").fingerprint()}) == 3


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("rank", [3, 12, RankChoice(energy=0.8)])
@pytest.mark.parametrize("dora", [False, True])
def test_peft_computes_with_a_resized_adapter_what_its_update_says(llama_pair, tmp_path, rank, dora):
    from peft import PeftModel
    from transformers import LlamaForCausalLM

    def make():
        return LlamaForCausalLM.from_pretrained(llama_pair / "base").eval()

    adapter = extract(llama_pair / "base", llama_pair / "tuned", rank=8).adapter
    if dora:
        norms = {name: make().get_submodule(name).weight.detach().norm(dim=1) for name in adapter}
        adapter = replace(adapter, layers={n: replace(layer, magnitude=1.1 * norms[n]) for n, layer in adapter.items()})
    found = resize(adapter, rank=rank, output=tmp_path / "out").adapter
    inputs = {"input_ids": torch.randint(0, 97, (2, 12), generator=torch.Generator().manual_seed(1))}
    ours = make()
    with torch.no_grad():
        by_peft = PeftModel.from_pretrained(make(), tmp_path / "out").eval()(**inputs).logits
        for name, layer in found.items():
            owner = ours.get_submodule(name)
            moved = owner.weight + dense(layer).float()
            if layer.magnitude is not None:
                moved *= (layer.magnitude / moved.norm(dim=1))[:, None]
            owner.weight = nn.Parameter(moved)
        by_hand = ours(**inputs).logits
    torch.testing.assert_close(by_peft, by_hand, rtol=0, atol=3e-5 * float(by_hand.abs().max()))

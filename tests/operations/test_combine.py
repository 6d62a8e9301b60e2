"""Several adapters as one: held to sums of dense float64 matrices, to PEFT's pruning, and to the real PEFT."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import eckart.operations.combination.work as combining_module
from eckart.adapter import Adapter, AdapterLayer
from eckart.engine import Execution
from eckart.errors import MismatchError, NotFiniteError, OptionError, OutputError
from eckart.formats import load_adapter
from eckart.operations import Budget, RankChoice, combine, convert, extract, plan_combine
from eckart.operations.combination.mixture import Mixture
from eckart.operations.combination.pruning import combined_update, dropped
from eckart.operations.weights import parse_weights

from .drawing import adapter_of, dense, drawn, same

PAIRS = {
    "one rank": (drawn(), drawn(seed=1)),
    "other ranks and alphas": (drawn(alpha=3), drawn(rank=11, seed=1)),
    "rslora with plain": (drawn(rslora=True), drawn(rank=4, seed=1)),
    "negative alpha": (drawn(alpha=-2), drawn(seed=1)),
    "bfloat16 with float32": (drawn(dtype=torch.bfloat16), drawn(seed=1)),
    "bfloat16": (drawn(dtype=torch.bfloat16), drawn(seed=1, dtype=torch.bfloat16)),
    "float64": (drawn(dtype=torch.float64), drawn(seed=1, dtype=torch.float64)),
    "conv1d": (drawn("conv1d"), drawn("conv1d", 3, 1)),
    "embedding": (drawn("embedding"), drawn("embedding", 3, 1)),
    "convolution": (drawn("conv"), drawn("conv", 3, 1)),
    "expert": (drawn("expert"), drawn("expert", 3, 1)),
    "more ranks than a side": (drawn(rank=20), drawn(rank=25, seed=1)),
    "large and small": (drawn(scale=1e6), drawn(seed=1, scale=1e-6)),
    "zero and not": (replace(drawn(), lora_B=torch.zeros(40, 6)), drawn(seed=1)),
    "rank-deficient": (replace(drawn(), lora_A=torch.ones(6, 30)), drawn(seed=1)),
}
EPS = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 2e-2}
SUM = {"method": "sum"}
TIES, DARE, MAGNITUDE = ({"method": method, "density": 0.4} for method in ("ties", "dare", "magnitude"))


@pytest.fixture(params=PAIRS)
def pair(request):
    return PAIRS[request.param]


def combined(*layers: AdapterLayer, **options):
    return combine([adapter_of(q=layer) for layer in layers], **options)


def update_of(*layers: AdapterLayer, **options):
    return dense(combined(*layers, **options).adapter["q"])


def size(*layers):
    return sum(float(dense(layer).norm()) for layer in layers)


@pytest.mark.parametrize("weights", [None, (0.5, 0.5), (-0.3, 2.0)])
def test_a_sum_is_the_sum_of_the_dense_updates_at_the_sum_of_the_ranks(pair, weights):
    found = combined(*pair, weights=weights)
    first, second = weights or (1, 1)
    expected = first * dense(pair[0]) + second * dense(pair[1])
    missed = float((expected - dense(found.adapter["q"])).norm())
    dtype = torch.promote_types(*(layer.lora_A.dtype for layer in pair))
    assert found.adapter["q"].lora_A.dtype == found.adapter["q"].lora_B.dtype == dtype
    assert missed <= EPS[dtype] * size(*pair) * max(abs(first), abs(second))
    assert found.layers[0].error == pytest.approx(missed / float(expected.norm()), abs=1e-12)
    assert found.adapter["q"].rank == min(pair[0].rank + pair[1].rank, *expected.shape)


@pytest.mark.parametrize("rank", [1, 5, 8])
def test_a_sum_cut_to_a_rank_is_its_best_approximation(pair, rank):
    found = combined(*pair, rank=rank, dtype=torch.float64)
    expected = dense(pair[0]) + dense(pair[1])
    values = torch.linalg.svdvals(expected)
    missed = float((expected - dense(found.adapter["q"])).norm())
    assert missed == pytest.approx(float(values[rank:].norm()), abs=1e-13 * size(*pair))
    assert found.layers[0].error_lower_bound * float(values.norm()) == pytest.approx(missed, abs=1e-12 * size(*pair))
    assert found.adapter["q"].rank <= rank


def test_ranks_that_add_up_to_more_than_a_side_become_the_rank_of_the_sum():
    first, second = drawn(rank=20), drawn(rank=20, alpha=5)
    assert combined(first, second).adapter["q"].rank == 20
    assert combined(first, drawn(rank=20, seed=1)).adapter["q"].rank == 30


def test_factors_of_one_scale_are_stacked_bit_for_bit():
    first, second = drawn(dtype=torch.bfloat16), drawn(seed=1, dtype=torch.bfloat16)
    found = combined(first, second, weights=[0.3, -0.3]).adapter["q"]
    assert torch.equal(found.lora_A, torch.cat([first.lora_A, second.lora_A]))
    assert torch.equal(found.lora_B, torch.cat([first.lora_B, -second.lora_B], dim=1))


def test_the_order_of_a_sum_does_not_matter(pair):
    forth, back = update_of(*pair, weights=[0.5, -2]), update_of(*pair[::-1], weights=[-2, 0.5])
    dtype = torch.promote_types(*(layer.lora_A.dtype for layer in pair))
    torch.testing.assert_close(forth, back, rtol=0, atol=2 * EPS[dtype] * size(*pair))


def test_weights_of_one_adapter_add():
    layer = drawn(dtype=torch.float64)
    torch.testing.assert_close(update_of(layer, layer, weights=[0.25, 0.5]), 0.75 * dense(layer), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "layer",
    [
        drawn(),
        drawn(rslora=True, dtype=torch.bfloat16),
        drawn(dora=True),
        drawn("embedding"),
        drawn(bias=torch.ones(40)),
        replace(drawn(), lora_B=torch.zeros(40, 6)),
        drawn(shape=(4, 5), rank=9),
    ],
)
def test_one_adapter_of_weight_one_is_itself_bit_for_bit(layer, tmp_path):
    adapter = Adapter({"q": layer}, {"norm.weight": torch.ones(3)}, "org/base", "CAUSAL_LM", {"bias": "none"})
    for adapters, weights in (([adapter], None), ([adapter, adapter_of(q=drawn(shape=(3, 3)))], [1, 0])):
        found = combine(adapters, weights=weights)
        assert same(found.adapter["q"], layer)
        assert found.error == 0
        assert torch.equal(found.adapter.modules_to_save["norm.weight"], torch.ones(3))
        assert (found.adapter.base_model, found.adapter.task_type) == ("org/base", "CAUSAL_LM")
    assert [item.reason for item in found.skipped] == ["zero weight"]


@pytest.mark.parametrize("weight", [0.5, -1.0, 1e-6])
def test_one_adapter_of_another_weight_keeps_its_factors(weight):
    layer = drawn(dtype=torch.bfloat16, bias=torch.ones(40))
    found = combined(layer, weights=[weight]).adapter["q"]
    assert torch.equal(found.lora_A, layer.lora_A)
    assert torch.equal(found.lora_B, layer.lora_B * np.sign(weight))
    torch.testing.assert_close(dense(found), weight * dense(layer), rtol=1e-14, atol=0)
    torch.testing.assert_close(found.bias * found.scaling, weight * layer.scaling * layer.bias)


def test_the_union_of_modules_is_combined():
    first, second = Adapter({"a": drawn(), "b": drawn(seed=1)}), Adapter({"b": drawn(seed=2), "c": drawn("conv")})
    found = combine([first, second], weights=[1, 0.5]).adapter
    assert list(found) == ["a", "b", "c"]
    assert same(found["a"], first["a"])
    torch.testing.assert_close(dense(found["c"]), 0.5 * dense(second["c"]), rtol=1e-14, atol=0)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_updates_that_cancel_are_skipped_and_named(scale):
    layer, other = drawn(scale=scale), drawn(seed=1)
    first, second = Adapter({"a": layer, "b": other}), Adapter({"a": layer})
    found = combine([first, second], weights=[1, -1])
    assert list(found.adapter) == ["b"]
    assert [(item.name, item.reason) for item in found.skipped] == [("a", "its updates cancel")]
    with pytest.raises(MismatchError, match="a: its updates cancel"):
        combine([second, second], weights=[1, -1])


def test_biases_of_layers_add_with_their_scales():
    first = drawn(bias=torch.arange(40.0))
    second = drawn(rank=4, alpha=3, seed=1, rslora=True, bias=torch.ones(40))
    expected = 0.5 * first.scaling * first.bias - 2 * second.scaling * second.bias
    for mixture, rank in ((SUM, None), (SUM, 3), (TIES, None)):
        found = combined(first, second, weights=[0.5, -2], **mixture, rank=rank).adapter["q"]
        torch.testing.assert_close(found.scaling * found.bias, expected, rtol=1e-5, atol=1e-5)
    without = combined(first, drawn(seed=1)).adapter["q"]
    torch.testing.assert_close(without.scaling * without.bias, first.scaling * first.bias)


def test_a_bias_outlives_updates_that_cancel():
    layer = drawn(bias=torch.ones(40))
    for mixture in (SUM, MAGNITUDE):
        found = combined(layer, replace(layer, bias=None), weights=[1, -1], **mixture).adapter["q"]
        assert not dense(found).any()
        torch.testing.assert_close(found.scaling * found.bias, layer.scaling * layer.bias)


@pytest.mark.parametrize(
    "choice", [RankChoice(energy=0.8), RankChoice(error=0.3), RankChoice(budget=Budget(500, False))]
)
@pytest.mark.parametrize("mixture", [SUM, TIES])
def test_ranks_are_chosen_from_the_spectra_of_the_combination(choice, mixture):
    first = Adapter({"a": drawn(), "b": drawn(seed=1, scale=0.1)})
    second = Adapter({"a": drawn(seed=2), "b": drawn(seed=3, scale=0.1)})
    found = combine([first, second], **mixture, rank=choice)
    for record in found.layers:
        if choice.energy is not None:
            assert record.error**2 <= 1 - choice.energy < 0.2 + record.error_lower_bound
        elif choice.error is not None:
            assert record.error < choice.error
    if choice.budget:
        assert found.adapter.params <= 500
        assert found.guarantee is not None
        assert [record.rank for record in found.layers] == [7, 0]


@pytest.mark.parametrize("mixture", [SUM, MAGNITUDE])
def test_an_expert_that_cancels_is_zero_with_the_others_and_absent_without_them(tmp_path, mixture):
    shapes = {"gate_up_proj": (48, 18), "down_proj": (18, 24)}
    names = [(f"mlp.experts.{part}[{e}]", shape) for part, shape in shapes.items() for e in range(3)]
    first = Adapter({name: drawn("expert", seed=i, shape=shape) for i, (name, shape) in enumerate(names)})
    cancelled = {name for name in first if "down" in name or name.endswith("[1]")}
    second = Adapter(
        {n: replace(layer, lora_B=-layer.lora_B if n in cancelled else layer.lora_B) for n, layer in first.items()}
    )
    found = combine([first, second], **mixture, output=tmp_path / "out")
    assert {item.name for item in found.skipped} == {name for name in first if "down" in name}
    again = load_adapter(tmp_path / "out")
    assert {name for name in again if dense(again[name]).any()} == first.keys() - cancelled
    assert {layer.rank for layer in again.values()} == {6 if mixture == MAGNITUDE else 12}
    with pytest.raises(MismatchError, match="no layer is left"):
        combine([first, first], weights=[1, -1], **mixture)


# Pruning.


def peft_mixed(method: str, updates, weights, density: float):
    """PEFT's own function on dense updates."""
    from peft.utils import merge_utils

    function = {"ties": merge_utils.ties, "magnitude": merge_utils.magnitude_prune, "dare": merge_utils.dare_linear}
    return function[method](list(updates), torch.tensor(weights), density)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("density", [0.1, 0.37, 1.0])
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("method", ["ties", "magnitude"])
def test_pruning_agrees_with_peft_on_dense_updates(method, count, density):
    layers = [drawn(seed=i, rank=4, alpha=4 + i) for i in range(count)]
    weights = [0.5, -1.5, 2.0][:count]
    mixture = {"method": method, "density": density}
    # A weight enters before signs are elected: PEFT elects without it, and is given weighted updates here.
    updates = [weight * dense(layer).float() for weight, layer in zip(weights, layers, strict=True)]
    expected = peft_mixed(method, updates, [1.0] * count, density)
    found = combined(*layers, weights=weights, **mixture, rank=30)
    torch.testing.assert_close(
        dense(found.adapter["q"]).float(), expected, rtol=0, atol=2e-5 * float(expected.abs().max())
    )
    assert found.layers[0].error < 1e-6


def test_ties_keeps_the_mean_of_what_agrees_with_the_weighted_sum():
    updates = [torch.tensor([[3.0, 1.0, 5.0, 0.1]]), torch.tensor([[1.0, -4.0, -1.0, 0.2]])]
    mixture = Mixture("ties", 0.75)

    def weighted(first, second):
        return combined_update(
            mixture, lambda: ((w, u.clone(), None) for w, u in zip((first, second), updates, strict=True))
        )

    assert weighted(1, 1).tolist() == [[2.0, -4.0, 5.0, 0.0]]
    assert weighted(1, 10).tolist() == [[6.5, -40.0, -10.0, 0.0]]


def test_dare_keeps_a_share_and_the_expectation():
    update = torch.ones(400, 300)
    for density in (0.1, 0.5, 0.9):
        found = dropped(update.clone(), density, torch.Generator().manual_seed(0))
        assert set(found.unique().tolist()) <= {0.0, float(torch.tensor(1 / density))}
        assert float((found > 0).float().mean()) == pytest.approx(density, abs=0.005)


def test_dare_is_repeatable_and_its_masks_differ_between_adapters_modules_and_seeds():
    layer = drawn(rank=2)
    adapter = Adapter({"a": layer, "b": layer})

    def update(name, seed=0, **options):
        return dense(combine([adapter], **DARE, rank=30, execution=Execution(seed=seed), **options).adapter[name])

    assert torch.equal(update("a"), update("a"))
    assert not torch.equal(update("a"), update("b"))
    assert not torch.equal(update("a"), update("a", seed=1))
    twice = dense(combine([adapter, adapter], **DARE, rank=30).adapter["a"])
    assert not torch.allclose(twice, 2 * update("a"))


@pytest.mark.parametrize("kind", ["linear", "conv1d", "embedding", "conv", "expert"])
@pytest.mark.parametrize("mixture", [TIES, DARE, MAGNITUDE])
def test_a_pruned_combination_is_the_best_of_the_highest_rank_and_reports_its_error(kind, mixture):
    layers = drawn(kind, 6), drawn(kind, 3, 1)
    whole = update_of(*layers, **mixture, rank=100)
    found = combined(*layers, **mixture)
    values = torch.linalg.svdvals(whole)
    missed = float((whole - dense(found.adapter["q"])).norm())
    assert found.layers[0].rank == found.adapter["q"].rank == 6
    assert missed == pytest.approx(float(values[6:].norm()), rel=1e-4)
    assert found.layers[0].error == pytest.approx(missed / float(values.norm()), rel=1e-4)
    assert found.adapter["q"].kind == kind


# DoRA, and tensors saved whole.


class Model(nn.Module):
    """A module of every kind that DoRA knows."""

    def __init__(self):
        from transformers.pytorch_utils import Conv1D

        super().__init__()
        self.linear, self.conv, self.conv1d = nn.Linear(30, 40), nn.Conv2d(3, 20, 3), Conv1D(30, 40)
        self.embedding, self.norm = nn.Embedding(50, 24), nn.LayerNorm(7)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Model()


def moved(model, name, layer):
    """W′ − W by the definition of DoRA."""
    weight = model.get_submodule(name).weight.detach().double().flatten(1)
    weight = weight.T if layer.kind == "conv1d" else weight
    total, axis = weight + dense(layer), 0 if layer.kind == "embedding" else 1
    gain = layer.magnitude.double() / total.norm(dim=axis)
    return total * (gain if axis == 0 else gain[:, None]) - weight


@pytest.mark.parametrize("name", ["linear", "conv", "conv1d", "embedding"])
@pytest.mark.parametrize("weight", [1.0, 0.5])
def test_dora_enters_a_sum_as_what_it_makes_of_the_base(model, name, weight):
    dora, plain = drawn(name, 4, dora=True), drawn(name, 3, 1)
    expected = weight * moved(model, name, dora) + dense(plain)
    found = combine([Adapter({name: dora}), Adapter({name: plain})], weights=[weight, 1], base=model, rank=100)
    made = found.adapter[name]
    assert made.magnitude is None
    assert float((dense(made) - expected).norm()) < 1e-5 * float(expected.norm())
    cut = combine([Adapter({name: dora}), Adapter({name: plain})], weights=[weight, 1], base=model)
    assert cut.adapter[name].rank == 4
    best = float(torch.linalg.svdvals(expected)[4:].norm() / expected.norm())
    assert cut.layers[0].error == pytest.approx(best, rel=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_dora_is_what_peft_makes_of_it(llama_pair, tmp_path):
    from peft import PeftModel
    from transformers import LlamaForCausalLM

    base = LlamaForCausalLM.from_pretrained(llama_pair / "base")
    weights = {name: tensor.double() for name, tensor in base.state_dict().items()}
    plain = extract(llama_pair / "base", llama_pair / "tuned", rank=8).adapter
    norms = {name: weights[f"{name}.weight"].norm(dim=1).float() for name in plain}
    layers = {name: replace(layer, magnitude=1.1 * norms[name]) for name, layer in plain.items()}
    replace(plain, layers=layers).save(tmp_path / "dora")
    merged = PeftModel.from_pretrained(base, tmp_path / "dora").merge_and_unload().state_dict()
    found = combine([tmp_path / "dora", plain], weights=[-0.5, 1], base=llama_pair / "base", rank=64).adapter
    for name, layer in plain.items():
        key = f"{name}.weight"
        expected = dense(layer) - 0.5 * (merged[key].double() - weights[key])
        torch.testing.assert_close(dense(found[name]), expected, rtol=0, atol=2e-6 * float(weights[key].abs().max()))


def test_dora_needs_its_base_unless_it_stays_alone(model):
    first, second = Adapter({"linear": drawn(dora=True)}), Adapter({"conv": drawn("conv", dora=True)})
    found = combine([first, second]).adapter
    assert same(found["linear"], first["linear"])
    assert same(found["conv"], second["conv"])
    for adapters, weights in (([first, first], None), ([first], [0.5]), ([first, adapter_of(k=drawn())], None)):
        with pytest.raises(MismatchError, match=r"linear: a DoRA layer.*`base`"):
            combine(adapters, weights=weights)
    with pytest.raises(MismatchError, match="elsewhere"):
        combine([first, adapter_of(elsewhere=drawn())], base=model)


def test_whole_tensors_are_base_and_weighted_differences(model):
    base = model.norm.weight.detach()
    first = Adapter({"linear": drawn()}, {"norm.weight": base + 1})
    second = Adapter({"linear": drawn(seed=1)}, {"norm.weight": base + torch.arange(7.0)})
    plain = adapter_of(linear=drawn(seed=2))

    def saved(adapters, weights=None, base=None):
        return combine(adapters, weights=weights, base=base).adapter.modules_to_save["norm.weight"]

    assert torch.equal(saved([first, plain]), base + 1)
    torch.testing.assert_close(saved([first, second], [0.5, 0.5]), base + (1 + torch.arange(7.0)) / 2)
    torch.testing.assert_close(saved([first, second], [1, -2], model), base + 1 - 2 * torch.arange(7.0))
    torch.testing.assert_close(saved([first], [0.25], model), base + 0.25)
    for adapters, weights in (([first, second], None), ([first], [0.5])):
        with pytest.raises(MismatchError, match=r"norm.weight: saved in full with weights that sum to .*`base`"):
            combine(adapters, weights=weights)


# Refusals.


def test_every_misfit_is_named_at_once():
    first = Adapter(
        {"a": drawn(), "b": drawn(), "c": drawn("conv"), "d": drawn(), "e": drawn(shape=(4, 9))},
        {"w": torch.ones(3)}, "org/one",
    )  # fmt: skip
    second = Adapter(
        {"a": drawn(shape=(40, 31)), "b": drawn("conv1d", shape=(40, 30)), "c": drawn("conv"), "d": drawn(dora=True)},
        {"w": torch.ones(4), "e.weight": torch.ones(4, 9)}, "org/two",
    )  # fmt: skip
    with pytest.raises(MismatchError) as caught:
        combine([first, second])
    said = str(caught.value)
    for part in (
        "a: the shapes differ: (40, 30) in adapter 1, (40, 31) in adapter 2; the adapters name the models org/one",
        "b: the kinds differ: linear in adapter 1, conv1d in adapter 2",
        "d: a DoRA layer",
        "e: one adapter updates it, and another saves it in full",
        "w: saved in full with the shapes (3,) and (4,)",
    ):
        assert part in said
    assert "  - c:" not in said


def test_a_bias_that_no_other_kind_of_layer_can_have_is_refused_before_the_work():
    with pytest.raises(MismatchError, match=r"b: other modules have a trained bias \(lora_bias\)"):
        combine([adapter_of(a=drawn(bias=torch.ones(40))), adapter_of(b=drawn("embedding"))])


def test_formats_mix_under_the_names_of_the_peft_adapters():
    one, other = (Adapter({f"layers.0.{name}": layer}) for name, layer in (("q", drawn()), ("q", drawn(seed=1))))
    expected = one["layers.0.q"].low_rank() + 0.5 * other["layers.0.q"].low_rank()
    there = convert(other, "kohya").adapter
    assert list(there) == ["lora_te_layers_0_q"]
    for adapters, weights in (([one, there], [1, 0.5]), ([there, one], [0.5, 1])):
        found = combine(adapters, weights=weights).adapter
        assert (found.format, list(found)) == ("peft", ["layers.0.q"])
        assert (found["layers.0.q"].low_rank() - expected).fro_norm <= 1e-6 * expected.fro_norm


def test_names_that_no_adapter_has_come_from_the_base():
    one, other = Adapter({"layers.0.q": drawn()}), Adapter({"layers.1.q": drawn(seed=1)})
    there = convert(other, "kohya").adapter
    with pytest.raises(MismatchError, match=r"give the model as `base`(.|\n)*lora_te_layers_1_q"):
        combine([one, there])
    shape = drawn().lora_B.shape[0], drawn().lora_A.shape[1]
    base = {f"layers.{index}.q.weight": torch.zeros(shape) for index in range(2)}
    assert set(combine([one, there], base=base).adapter) == {"layers.0.q", "layers.1.q"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"weights": [1]}, "1 weights for 2 adapters"),
        ({"weights": [1, float("nan")]}, "weight 2 is nan"),
        ({"weights": [float("inf"), 1, 1]}, "weight 1 is inf"),
        ({"weights": [0, 0]}, "every weight is zero"),
        ({"rank": 0}, "at least 1"),
        ({"rank": RankChoice(budget=Budget(60, in_bytes=False))}, "raise `budget`"),
        ({"dtype": torch.float16, "weights": [1, 1]}, "too large for float16"),
    ],
)
def test_options_that_cannot_be_met_are_refused(options, said):
    with pytest.raises(OptionError, match=said):
        combined(drawn(scale=1e9), drawn(seed=1), **options)


@pytest.mark.parametrize(
    ("method", "density", "said"),
    [
        ("svd", None, "`method` must be one of sum, ties, dare, magnitude, tsv, iso, knots, shared, got svd"),
        ("ties", 0.0, r"`density` must be a share in \(0, 1\], got 0.0"),
        ("dare", 1.1, "got 1.1"),
        ("magnitude", float("nan"), "got nan"),
        ("sum", 0.5, "a sum prunes nothing"),
    ],
)
def test_a_mixture_that_means_nothing_is_refused(method, density, said):
    with pytest.raises(OptionError, match=said):
        combined(drawn(), method=method, density=density)


def test_no_adapter_and_values_that_are_not_finite_are_refused():
    with pytest.raises(OptionError, match="no adapter was given"):
        combine([])
    bad = replace(drawn(), lora_A=torch.full((6, 30), float("nan")))
    for mixture in (SUM, TIES):
        with pytest.raises(NotFiniteError, match="q contains 180 values"):
            combined(drawn(), bad, **mixture)


def test_weights_are_read_as_typed():
    assert parse_weights("0.5,-1, 2e-3") == [0.5, -1, 0.002]
    assert parse_weights(None) is None
    with pytest.raises(OptionError, match="got a,b"):
        parse_weights("a,b")


# Files.


def test_inputs_are_never_replaced_and_outputs_only_when_forced(tmp_path):
    for name in "ab":
        adapter_of(q=drawn()).save(tmp_path / name)
    for output, force in (("a", True), ("b", True), ("b", False)):
        with pytest.raises(OutputError):
            combine([tmp_path / "a", tmp_path / "b"], output=tmp_path / output, force=force)


def test_an_interrupted_combination_resumes_where_it_stopped(tmp_path, monkeypatch):
    adapters = [Adapter({f"m.{i}": drawn(seed=i + 10 * j) for i in range(4)}) for j in range(2)]
    expected, done = combine(adapters, rank=5).adapter, []
    original = combining_module.Combining._sum_record

    def failing(self, name, rank):
        if len(done) == 2:
            raise RuntimeError
        done.append(name)
        return original(self, name, rank)

    monkeypatch.setattr(combining_module.Combining, "_sum_record", failing)
    for i, adapter in enumerate(adapters):
        adapter.save(tmp_path / str(i))
    paths, output = [tmp_path / "0", tmp_path / "1"], tmp_path / "out"
    with pytest.raises(RuntimeError):
        combine(paths, rank=5, output=output, execution=Execution(workers=1))
    done.clear()
    found = combine(paths, rank=5, output=output, execution=Execution(workers=1)).adapter
    assert len(done) == 2
    assert list(found) == list(expected)
    assert all(same(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("options", [{"weights": [1, 0.5]}, {"rank": 4}, {"dtype": torch.bfloat16}, TIES])
def test_an_interrupted_combination_starts_over_where_anything_else_is_asked(tmp_path, monkeypatch, options):
    adapters = [adapter_of(a=drawn(), b=drawn(seed=1)), adapter_of(a=drawn(seed=2), b=drawn(seed=3))]
    expected = combine(adapters, **options).adapter

    def stopped(*_, **__):
        raise RuntimeError

    with monkeypatch.context() as patched:
        patched.setattr(Adapter, "save", stopped)
        with pytest.raises(RuntimeError):
            combine(adapters, output=tmp_path / "out")
    found = combine(adapters, output=tmp_path / "out", **options).adapter
    assert all(same(found[name], expected[name]) for name in expected)


def test_a_preview_shows_from_headers_what_would_be_done():
    first, second = Adapter({"a": drawn(), "b": drawn(seed=1)}), Adapter({"b": drawn(rank=3), "c": drawn(rank=9)})
    preview = plan_combine([first, second]).preview()
    assert {match.name: match.ranks for match in preview.matches} == {"a": (6, 0), "b": (6, 3), "c": (0, 9)}
    assert preview.read_bytes == first.nbytes + second.nbytes
    assert preview.written_bytes == combine([first, second]).nbytes


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("options", [{}, {"rank": 6}, {**TIES, "rank": 64}])
def test_peft_computes_with_a_combined_adapter_what_its_update_says(llama_pair, tmp_path, options):
    from peft import PeftModel
    from transformers import LlamaForCausalLM

    def make():
        return LlamaForCausalLM.from_pretrained(llama_pair / "base").eval()

    first = extract(llama_pair / "base", llama_pair / "tuned", rank=8).adapter
    second = replace(first, layers={name: replace(layer, alpha=-3.0) for name, layer in list(first.items())[::2]})
    combine([first, second], weights=[1, 0.5], output=tmp_path / "out", **options)
    found = load_adapter(tmp_path / "out")
    inputs = {"input_ids": torch.randint(0, 97, (2, 12), generator=torch.Generator().manual_seed(1))}
    ours = make()
    with torch.no_grad():
        by_peft = PeftModel.from_pretrained(make(), tmp_path / "out").eval()(**inputs).logits
        for name, layer in first.items():
            expected = dense(layer) + (0.5 * dense(second[name]) if name in second else 0)
            owner = ours.get_submodule(name)
            owner.weight = nn.Parameter(owner.weight + (dense(found[name]) if options else expected).float())
        by_hand = ours(**inputs).logits
    torch.testing.assert_close(by_peft, by_hand, rtol=0, atol=3e-5 * float(by_hand.abs().max()))

"""Combinations in common subspaces: held to the papers' formulas on dense float64 matrices."""

import pytest
import torch

from eckart.adapter import AdapterLayer
from eckart.errors import MismatchError, OptionError
from eckart.linalg import LowRank
from eckart.operations import combine, plan_combine
from eckart.operations.combination.core_methods import combined_core, shared_error
from eckart.operations.combination.mixture import Mixture

from .drawing import adapter_of, dense, drawn

DTYPE = torch.float64


def svd(matrix):
    """The triplets of a dense matrix without those that are only rounding."""
    U, S, Vh = torch.linalg.svd(matrix, full_matrices=False)
    count = int((1e-12 * S[0] < S).sum())
    return U[:, :count], S[:count], Vh[:count]


def orthonormal(matrix):
    P, _, Qh = svd(matrix)
    return P @ Qh


def tsv_merge(updates, density=None):
    """Gargiulo et al. 2024, Algorithm 1: 1/T of the triplets of each, frames made orthonormal, multiplied."""
    count = min(updates[0].shape) // len(updates)
    left, values, right = zip(*map(svd, updates), strict=True)
    U = torch.cat([each[:, :count] for each in left], dim=1)
    S = torch.cat([each[:count] for each in values])
    V = torch.cat([each[:count].T for each in right], dim=1)
    return orthonormal(U) @ torch.diag(S) @ orthonormal(V).T


def iso_c(updates, density=None):
    """Marczak et al. 2025, eq. 7: the sum of the task matrices with the mean of its singular values as every one."""
    U, S, Vh = svd(torch.stack(updates).sum(0))
    return S.mean() * U @ Vh


def knots_ties(updates, density):
    """Stoica et al. 2024: SVD of the updates side by side, TIES on the V of each (Yadav et al. 2023), then U·Σ·V."""
    U, S, Vh = svd(torch.cat(updates, dim=1))
    parts = []
    for part in Vh.split(updates[0].shape[1], dim=1):
        least = part.abs().flatten().sort(descending=True).values[max(1, int(density * part.numel())) - 1]
        parts.append(torch.where(part.abs() >= least, part, 0.0))
    stacked = torch.stack(parts)
    sign = stacked.sum(0).sign()
    agree = (stacked.sign() == sign) & (stacked != 0)
    merged = torch.where(agree, stacked, 0.0).sum(0) / agree.sum(0).clamp_min(1)
    return U @ torch.diag(S) @ merged


DENSE = {"tsv": tsv_merge, "iso": iso_c, "knots": knots_ties}
RANKS = {"equal": (5, 5, 5), "unequal": (9, 1, 4), "two": (7, 8), "one": (6,), "more than a side": (18, 17, 3)}
SHAPES = {"tall": (40, 24), "wide": (24, 40), "square": (30, 30)}


def updates_of(ranks, shape, *, dependent=False):
    updates = [drawn(rank=rank, seed=i, shape=shape, dtype=DTYPE).low_rank() for i, rank in enumerate(ranks)]
    if dependent:
        updates[-1] = LowRank(updates[0].lora_B[:, :2], updates[0].lora_A[-2:])
    return [0.7**i * update for i, update in enumerate(updates)]


@pytest.mark.parametrize("dependent", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("method", DENSE)
def test_core_methods_are_the_papers_formulas_on_dense_matrices(method, ranks, shape, dependent):
    updates = updates_of(RANKS[ranks], SHAPES[shape], dependent=dependent)
    expected = DENSE[method]([update.dense() for update in updates], 0.5)
    found = combined_core(Mixture(method), updates)
    missed = (found.U * found.S @ found.Vh - expected).norm()
    assert float(missed) <= 1e-10 * float(expected.norm())


@pytest.mark.parametrize("density", [0.1, 0.8, 1.0])
def test_knots_prunes_the_chosen_share(density):
    updates = updates_of((5, 4, 3), (40, 24))
    expected = knots_ties([update.dense() for update in updates], density)
    found = combined_core(Mixture("knots", density), updates)
    assert float((found.U * found.S @ found.Vh - expected).norm()) <= 1e-10 * float(expected.norm())


@pytest.mark.parametrize("rank", [1, 3, 8, 40])
def test_shared_is_the_sum_projected_onto_the_subspaces_of_its_factors(rank):
    updates = updates_of((5, 4, 3), (40, 24))
    found = combined_core(Mixture("shared"), updates, rank=rank)
    total = torch.stack([update.dense() for update in updates]).sum(0)
    projected = found.U @ (found.U.T @ total @ found.Vh.T) @ found.Vh
    torch.testing.assert_close(found.U * found.S @ found.Vh, projected, rtol=0, atol=1e-10 * float(total.norm()))
    error, least = found.pair
    assert least <= error
    assert shared_error(updates, found.truncated(rank)) == pytest.approx(error, abs=1e-12)
    values = torch.linalg.svdvals(total)
    assert float((total - projected).norm()) >= float(values[rank:].norm()) - 1e-10 * float(values[0])


@pytest.mark.parametrize("method", ["tsv", "iso", "knots", "shared"])
@pytest.mark.parametrize("exponent", [-500, 300])
def test_a_power_of_two_leaves_a_combination_the_same(method, exponent):
    scale = 2.0 ** (exponent // 2)
    plain = updates_of((3, 2), (20, 12))
    scaled = [LowRank(update.lora_B * scale, update.lora_A * scale) for update in plain]
    first, second = (combined_core(Mixture(method), each, rank=2) for each in (plain, scaled))
    torch.testing.assert_close(second.S, first.S * scale * scale, rtol=1e-12, atol=0)


# Adapters.


LAYERS = {
    "plain": (drawn(rank=4), drawn(rank=5, seed=1, alpha=3)),
    "bfloat16": (drawn(dtype=torch.bfloat16), drawn(seed=1, dtype=torch.bfloat16)),
    "rslora": (drawn(rslora=True), drawn(rank=4, seed=1)),
    "conv": (drawn("conv"), drawn("conv", 3, 1)),
    "embedding": (drawn("embedding"), drawn("embedding", 3, 1)),
    "expert": (drawn("expert"), drawn("expert", 3, 1)),
    "large and small": (drawn(scale=1e3), drawn(seed=1, scale=1e-3)),
    "bias": (drawn(bias=torch.ones(40)), drawn(seed=1)),
}
EPS = {torch.float32: 1e-6, torch.bfloat16: 2e-2}


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("method", DENSE)
def test_an_adapter_in_common_subspaces_is_the_dense_one_with_its_error(method, kind):
    layers, weights = LAYERS[kind], (0.5, -2.0)
    found = combine([adapter_of(q=layer) for layer in layers], weights=weights, method=method)
    expected = DENSE[method]([weight * dense(layer) for layer, weight in zip(layers, weights, strict=True)], 0.5)
    missed = float((dense(found.adapter["q"]) - expected).norm())
    norm, (record,) = float(expected.norm()), found.layers
    assert missed <= EPS[found.adapter["q"].lora_A.dtype] * norm
    assert record.error == pytest.approx(missed / norm, abs=1e-9)
    truncated = combine([adapter_of(q=layer) for layer in layers], weights=weights, method=method, rank=2)
    values = torch.linalg.svdvals(expected)
    assert truncated.adapter["q"].rank == 2
    assert truncated.layers[0].error_lower_bound == pytest.approx(float(values[2:].norm()) / norm, rel=1e-6)
    assert truncated.layers[0].error >= truncated.layers[0].error_lower_bound
    if layers[0].bias is not None:
        layer = found.adapter["q"]
        torch.testing.assert_close(layer.scaling * layer.bias, 0.5 * layers[0].scaling * layers[0].bias)


@pytest.mark.parametrize("kind", LAYERS)
def test_shared_reports_its_error_over_all_adapters_and_has_their_highest_rank_by_default(kind):
    layers = LAYERS[kind]
    found = combine([adapter_of(q=layer) for layer in layers], method="shared")
    (record,) = found.layers
    assert record.rank == max(layer.rank for layer in layers)
    assert record.error_lower_bound <= record.error < 1
    total = sum(map(dense, layers))
    missed = float((dense(found.adapter["q"]) - total).norm())
    assert missed <= record.error * len(layers) ** 0.5 * float(
        torch.stack([dense(layer) for layer in layers]).norm()
    ) + 2e-2 * float(total.norm())


def test_the_rank_of_the_result_is_known_from_headers():
    adapters = [adapter_of(q=drawn(rank=rank, seed=rank)) for rank in (4, 9, 12)]
    expected = {"tsv": 4 + 9 + 10, "iso": 25, "knots": 25, "shared": 12}
    for method, rank in expected.items():
        assert plan_combine(adapters, method=method).max_rank("q") == rank
        assert combine(adapters, method=method).adapter["q"].rank == rank
        assert combine(adapters, method=method, rank=3).adapter["q"].rank == 3


def test_energy_error_and_budget_choose_ranks_of_the_combination():
    adapters = [adapter_of(a=drawn(seed=i, dtype=DTYPE), b=drawn(seed=9 + i, scale=0.1, dtype=DTYPE)) for i in range(2)]
    for method in DENSE:
        found = combine(adapters, method=method, error=0.3)
        assert max(layer.error for layer in found.layers) < 0.3
        assert combine(adapters, method=method, budget=500).adapter.params <= 500
    with pytest.raises(OptionError, match="`shared` is computed for one `rank`"):
        combine(adapters, method="shared", error=0.3)


def test_updates_that_cancel_are_skipped_and_dora_is_refused():
    layer, other = drawn(), drawn(seed=1)
    adapters = [adapter_of(a=layer, b=other), adapter_of(a=layer)]
    for method in ("iso", "shared"):
        found = combine(adapters, weights=[1, -1], method=method)
        assert [(item.name, item.reason) for item in found.skipped] == [("a", "its updates cancel")]
    with pytest.raises(MismatchError, match=r"DoRA layer(.|\n)*to_lora"):
        combine([adapter_of(q=drawn(dora=True)), adapter_of(q=other)], method="tsv")


def test_one_update_is_itself_by_tsv():
    layer = drawn(dtype=DTYPE)
    found = combine([adapter_of(q=layer), adapter_of(p=drawn())], method="tsv").adapter["q"]
    assert isinstance(found, AdapterLayer)
    torch.testing.assert_close(dense(found), dense(layer), rtol=0, atol=1e-12 * float(dense(layer).norm()))

"""One pair of subspaces for several matrices: its objective, its bound, and the exact cores it works on."""

import math

import pytest
import torch

from eckart.errors import OptionError
from eckart.linalg import CommonCore, LowRank, shared_subspaces
from eckart.linalg.common_core import polar_factor
from eckart.linalg.shared_pair import lost_energy

CASES = 1000


def drawn(seed):
    """Matrices of 1 to 5 updates, sides of 1 to 20, with every kind of spectrum and shared or cancelling parts."""
    generator = torch.Generator().manual_seed(seed)

    def integer(low, high):
        return int(torch.randint(low, high + 1, (), generator=generator))

    count, rows, columns, rank = integer(1, 5), integer(1, 20), integer(1, 20), integer(1, 6)
    matrices = []
    for _ in range(count):
        inner = integer(1, 6)
        left = torch.randn(rows, inner, generator=generator, dtype=torch.float64)
        right = torch.randn(inner, columns, generator=generator, dtype=torch.float64)
        decay = torch.arange(1, inner + 1, dtype=torch.float64) ** -float(integer(0, 3))
        matrices.append(left * decay @ right * 10.0 ** integer(-3, 3))
    if seed % 4 == 1:
        matrices[-1] = -matrices[0]
    if seed % 4 == 2:
        matrices[-1] = matrices[0] + 1e-3 * matrices[-1]
    return torch.stack(matrices), rank


@pytest.mark.slow
def test_the_pair_is_never_worse_than_the_truncated_sum_and_its_bound_is_never_violated():
    for seed in range(CASES):
        matrices, rank = drawn(seed)
        found, total = shared_subspaces(matrices, rank=rank), float(matrices.square().sum())
        left, _, right = torch.linalg.svd(matrices.sum(0))
        by_sum = lost_energy(matrices, left[:, :rank], right[:rank].T)
        lost = lost_energy(matrices, found.U, found.V)
        tails = [
            float(torch.linalg.svdvals(torch.cat(tuple(side), dim=1))[rank:].square().sum())
            for side in (matrices, matrices.mT)
        ]
        assert lost <= by_sum + 1e-14 * total, seed
        assert lost >= max(tails) - 1e-13 * total, seed
        assert found.error == pytest.approx(math.sqrt(lost / total), abs=1e-12), seed
        assert found.error_lower_bound == pytest.approx(math.sqrt(max(tails) / total), abs=1e-7), seed
        assert found.error_lower_bound <= found.error, seed
        for side in (found.U, found.V):
            torch.testing.assert_close(side.T @ side, torch.eye(side.shape[1], dtype=side.dtype), atol=1e-12, rtol=0)


def test_the_bound_is_met_by_matrices_with_common_subspaces():
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(n, 3, generator=generator, dtype=torch.float64)).Q for n in (30, 20))
    matrices = left @ torch.randn(4, 3, 3, generator=generator, dtype=torch.float64) @ right.T
    found = shared_subspaces(matrices, rank=3)
    assert found.error < 1e-14
    single = shared_subspaces(matrices[:1], rank=2)
    values = torch.linalg.svdvals(matrices[0])
    assert single.error == pytest.approx(float(values[2:].norm() / values.norm()))
    assert single.error_lower_bound == pytest.approx(single.error)


def test_zero_matrices_and_a_rank_of_zero():
    found = shared_subspaces(torch.zeros(2, 5, 4, dtype=torch.float64), rank=2)
    assert (found.error, found.error_lower_bound) == (0.0, 0.0)
    with pytest.raises(OptionError, match="at least 1, got 0"):
        shared_subspaces(torch.zeros(2, 5, 4, dtype=torch.float64), rank=0)


def product(seed, rank=4, shape=(30, 20), scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    B = torch.randn(shape[0], rank, generator=generator, dtype=torch.float64) * scale
    return LowRank(B, torch.randn(rank, shape[1], generator=generator, dtype=torch.float64))


@pytest.mark.parametrize("ranks", [(4, 2), (1,), (15, 12, 9), (40, 3)])
@pytest.mark.parametrize("scale", [1.0, 1e-150, 1e150])
def test_a_core_between_its_frames_is_the_update(ranks, scale):
    updates = [product(seed, rank, scale=scale) for seed, rank in enumerate(ranks)]
    core = CommonCore.of(updates)
    assert core.left.shape[1] == min(30, sum(ranks))
    for update, inner in zip(updates, core.cores, strict=True):
        dense = torch.ldexp(core.left @ inner @ core.right.T, torch.tensor(core.exponent))
        torch.testing.assert_close(dense, update.dense(), rtol=0, atol=1e-13 * float(update.dense().abs().max()))


def test_updates_of_different_shapes_have_no_common_core():
    with pytest.raises(OptionError, match="one shape"):
        CommonCore.of([product(0), product(1, shape=(30, 21))])


def test_the_polar_factor_is_nearest_and_counts_dependent_columns_once():
    columns = product(3, shape=(30, 6), rank=6).dense()
    found = polar_factor(columns)
    torch.testing.assert_close(found.T @ found, torch.eye(6, dtype=torch.float64))
    torch.testing.assert_close(found, columns @ torch.linalg.inv(_root(columns.T @ columns)))
    twice = polar_factor(torch.cat([found, found], dim=1))
    torch.testing.assert_close(twice, torch.cat([found, found], dim=1) / math.sqrt(2))


def _root(matrix):
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.sqrt() @ vectors.T

"""Angles and overlaps of subspaces that were built to have them."""

import math

import pytest
import torch

from eckart.linalg import chordal_distance, geodesic_distance, overlap, principal_angles

from .planting import orthonormal, seeded

ANGLES = {
    "small": [1e-12, 1e-9, 1e-6, 1e-3],
    "large": [math.pi / 2 - 1e-3, math.pi / 2 - 1e-9, math.pi / 2],
    "all sizes": [0.0, 1e-9, 0.3, math.pi / 4, 1.2, math.pi / 2],
    "equal": [0.5, 0.5, 0.5],
    "one": [0.7],
    "none between them": [0.0, 0.0],
    "orthogonal": [math.pi / 2, math.pi / 2],
}


def pair(angles, n=30, *, extra=0, seed=0):
    """Bases of two subspaces with these principal angles, the second with `extra` directions orthogonal to both."""
    theta = torch.tensor(angles, dtype=torch.float64)
    k = len(theta)
    frame = orthonormal(n, 2 * k + extra, seeded(seed))
    near, far, rest = frame[:, :k], frame[:, k : 2 * k], frame[:, 2 * k :]
    return near, torch.cat([near * theta.cos() + far * theta.sin(), rest], dim=1)


def mixed(columns, seed):
    """Other columns that span the same subspace."""
    k = columns.shape[1]
    generator = seeded(seed)
    stretch = torch.linspace(1, 3, k, dtype=torch.float64)
    return columns @ (orthonormal(k, k, generator) * stretch @ orthonormal(k, k, generator))


@pytest.mark.parametrize("name", ANGLES)
@pytest.mark.parametrize("extra", [0, 1, 5])
def test_known_angles_come_back_to_float64_rounding(name, extra):
    expected = torch.tensor(ANGLES[name], dtype=torch.float64)
    first, second = pair(ANGLES[name], extra=extra)
    for A, B in ((first, second), (second, first), (mixed(first, 1), mixed(second, 2))):
        torch.testing.assert_close(principal_angles(A, B), expected, rtol=0, atol=2e-15 * 10)


def test_an_angle_of_a_billionth_keeps_six_digits():
    first, second = pair([1e-9])
    assert float(principal_angles(first, second)) == pytest.approx(1e-9, rel=1e-6)


@pytest.mark.parametrize(("k", "l"), [(1, 1), (2, 5), (5, 2), (10, 10)])
def test_there_are_as_many_angles_as_the_smaller_subspace_has_dimensions(k, l):  # noqa: E741
    generator = seeded()
    angles = principal_angles(
        torch.randn(10, k, generator=generator).float(), torch.randn(10, l, generator=generator).float()
    )
    assert angles.shape == (min(k, l),)
    assert angles.dtype == torch.float64
    assert bool((angles.diff() >= -1e-15).all())
    if k == l == 10:  # both are the whole space
        assert float(angles.max()) < 1e-14


def test_the_angles_are_those_of_the_singular_values_of_the_product():
    A, B = orthonormal(40, 6, seeded(1)), orthonormal(40, 4, seeded(2))
    expected = torch.linalg.svdvals(A.T @ B).clamp(max=1).arccos()
    torch.testing.assert_close(principal_angles(A, B), expected, rtol=0, atol=1e-13)


def test_distances_are_those_of_the_projectors():
    A, B = orthonormal(20, 4, seeded(1)), orthonormal(20, 4, seeded(2))
    angles = principal_angles(A, B)
    projectors = torch.linalg.norm(A @ A.T - B @ B.T)
    assert chordal_distance(angles) == pytest.approx(float(projectors) / math.sqrt(2), rel=1e-12)
    assert geodesic_distance(angles) == pytest.approx(math.sqrt(sum(float(a) ** 2 for a in angles)), rel=1e-12)
    assert geodesic_distance(angles) >= chordal_distance(angles)
    assert geodesic_distance(principal_angles(A, A)) < 1e-13


@pytest.mark.parametrize(("k", "l"), [(1, 1), (5, 5), (3, 7), (7, 3)])
def test_the_overlap_of_every_pair_is_what_computing_it_alone_gives(k, l):  # noqa: E741
    A, B = orthonormal(15, k, seeded(1)), orthonormal(15, l, seeded(2))
    found = overlap(A, B)
    assert found.phi.shape == found.chance.shape == (k, l)
    for i in range(1, k + 1):
        for j in range(1, l + 1):
            alone = float(torch.linalg.norm(A[:, :i].T @ B[:, :j])) ** 2 / min(i, j)
            assert float(found.phi[i - 1, j - 1]) == pytest.approx(alone, rel=1e-12)
            assert float(found.chance[i - 1, j - 1]) == max(i, j) / 15


def test_a_subspace_overlaps_itself_fully_and_its_complement_not_at_all():
    frame = orthonormal(12, 12, seeded())
    torch.testing.assert_close(overlap(frame[:, :5], frame[:, :5]).phi.diagonal(), torch.ones(5, dtype=torch.float64))
    assert float(overlap(frame[:, :5], frame[:, 5:]).phi.max()) < 1e-28


def test_the_chance_baseline_is_the_mean_over_random_subspaces():
    generator, draws = seeded(4), 400
    drawn = torch.stack(
        [overlap(orthonormal(24, 4, generator), orthonormal(24, 6, generator)).phi for _ in range(draws)]
    )
    chance = overlap(orthonormal(24, 4, generator), orthonormal(24, 6, generator)).chance
    scatter = drawn.std(0) / math.sqrt(draws)
    assert bool(((drawn.mean(0) - chance).abs() < 4 * scatter).all())

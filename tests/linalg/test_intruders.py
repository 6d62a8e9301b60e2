"""Intruder dimensions against all singular vectors of both matrices, in float64."""

import pytest
import torch
from torch import Tensor

from eckart.errors import EckartError
from eckart.linalg.intruder import Intruders, intruders

from .planting import Streamed, orthonormal, planted, seeded

SHAPES = [(60, 40), (40, 60), (50, 50), (300, 300), (600, 600), (280, 700), (700, 280)]


def random_base(shape: tuple[int, int], seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=seeded(seed)) / shape[1] ** 0.5


def random_update(base: Tensor, size: float, seed: int = 1) -> Tensor:
    """A random matrix of rank one, `size` times as long as the base's largest direction."""
    left, right = (orthonormal(side, 1, seeded(seed + side)) for side in base.shape)
    return (size * float(torch.linalg.matrix_norm(base, 2)) * left @ right.T).to(base.dtype)


def dense_cosines(base: Tensor, tuned: Tensor, top: int = 10) -> Tensor:
    """The oracle, PEFT's own rule: largest |cos| of each leading left vector with all of the base's."""
    U_base, U_tuned = (torch.linalg.svd(w.to(torch.float64), full_matrices=False)[0] for w in (base, tuned))
    return (U_tuned[:, :top].T @ U_base).abs().amax(1)


def assert_limits_hold(found: Intruders, cosines: Tensor) -> None:
    assert bool((found.lower <= cosines + 1e-9).all())
    assert bool((cosines <= found.upper + 1e-9).all())


UPDATES = {
    "nothing": torch.zeros_like,
    "one large random direction": lambda base: random_update(base, 3.0),
    "one small random direction": lambda base: random_update(base, 0.1),
    "another random matrix": lambda base: 0.4 * random_base(base.shape, 5),
    "the matrix itself": torch.clone,
}


@pytest.fixture
def partial(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have small matrices go the way of large ones: leading directions and Lanczos weights before everything."""
    monkeypatch.setattr("eckart.linalg.intruder.PARTIAL_SIDE", 0)


@pytest.mark.usefixtures("partial")
@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_direction_is_decided_as_all_singular_vectors_decide_it(shape, update):
    base = random_base(shape)
    tuned = base + UPDATES[update](base)
    found, cosines = intruders(base, tuned, generator=seeded()), dense_cosines(base, tuned)
    assert_limits_hold(found, cosines)
    assert found.found == (cosines < 0.5).nonzero().flatten().tolist()
    assert found.undecided == []


def test_a_large_random_update_brings_one_intruder_in_front():
    base = random_base((600, 800))
    assert intruders(base, base + random_update(base, 3.0)).found == [0]


def test_scaling_a_direction_of_the_base_brings_none():
    base = random_base((600, 800))
    U, S, Vh = torch.linalg.svd(base, full_matrices=False)
    tuned = base + 4 * S[0] * U[:, 7:8] @ Vh[7:8]
    assert intruders(base, tuned).found == []
    assert float(intruders(base, tuned).lower[0]) > 0.99


def test_a_direction_outside_the_column_space_of_a_tall_base_is_an_intruder():
    base = torch.zeros(300, 20)
    base[:200] = random_base((200, 20))
    outside = torch.zeros(300, 1)
    outside[250] = 50.0
    found = intruders(base, base + outside @ torch.ones(1, 20))
    assert found.found[0] == 0
    assert float(found.upper[0]) < 0.05


@pytest.mark.parametrize("shape", SHAPES)
def test_small_matrices_are_decided_by_all_singular_vectors_at_once(shape):
    base = random_base(shape)
    tuned = base + 0.4 * random_base(shape, 5)
    found, cosines = intruders(base, tuned), dense_cosines(base, tuned)
    torch.testing.assert_close(found.lower, cosines, rtol=0, atol=1e-4)
    torch.testing.assert_close(found.upper, cosines, rtol=0, atol=1e-4)


def test_an_intruder_of_a_large_matrix_is_proved_without_its_singular_vectors(monkeypatch):
    monkeypatch.setattr("eckart.linalg.intruder.PARTIAL_SIDE", 0)
    monkeypatch.setattr("eckart.linalg.intruder.FULL_SIDE", 0)
    base = random_base((600, 800))
    found = intruders(base, base + random_update(base, 3.0), generator=seeded())
    assert found.found == [0]


@pytest.mark.usefixtures("partial")
@pytest.mark.parametrize("angle", [55.0, 65.0])
def test_the_threshold_is_a_cosine(angle):
    """The only large tuned direction lies at this angle to the base's only large one; the others lie further off."""
    frame = orthonormal(400, 300, seeded())
    values = torch.cat([torch.tensor([9.0, 6.0]), torch.linspace(1.2, 0.1, 298)]).to(torch.float64)
    base = frame * values @ orthonormal(500, 300, seeded(1)).T
    theta = torch.tensor(angle, dtype=torch.float64).deg2rad()
    rest = frame[:, 2:].sum(1) / 298**0.5
    u = theta.cos() * frame[:, 0] + theta.sin() * rest
    tuned = 1e4 * torch.outer(u, orthonormal(500, 1, seeded(2))[:, 0]) + base
    found = intruders(base, tuned, top=1, generator=seeded())
    assert_limits_hold(found, dense_cosines(base, tuned, top=1))
    assert found.found == ([0] if angle > 60 else [])


@pytest.mark.usefixtures("partial")
@pytest.mark.parametrize("shape", [(50, 50), (520, 520)])
def test_tied_directions_of_the_base_are_left_undecided_rather_than_guessed(shape):
    base = torch.eye(*shape)
    tuned = base + random_update(base, 3.0)
    assert intruders(base, tuned, top=1, generator=seeded()).found == []


@pytest.mark.usefixtures("partial")
def test_a_matrix_is_met_in_slabs_and_a_seed_repeats():
    base = planted(torch.linspace(4, 0.1, 300), (300, 420)).float()
    tuned = base + random_update(base, 2.0)
    whole = intruders(base, tuned, generator=seeded(3))
    streamed = intruders(Streamed(base, rows=64), Streamed(tuned, rows=64), generator=seeded(3))
    torch.testing.assert_close(streamed.lower, whole.lower, atol=1e-5, rtol=0)
    torch.testing.assert_close(streamed.upper, whole.upper, atol=1e-5, rtol=0)


def test_fewer_directions_than_asked_for_are_all_there_are():
    base = random_base((6, 4))
    assert intruders(base, base + 1).lower.shape == (4,)


def test_matrices_of_two_shapes_are_refused():
    with pytest.raises(EckartError, match=r"the same shape, got \(4, 6\) and \(6, 4\)"):
        intruders(torch.ones(4, 6), torch.ones(6, 4))


@pytest.mark.parametrize("kind", ["linear", "embedding"])
def test_peft_finds_the_same_intruders(kind):
    """PEFT tells their number in its log; it takes three whole SVDs in the weight's dtype."""
    from peft import LoraConfig, get_peft_model
    from peft.tuners.lora.intruders import reduce_intruder_dimension

    torch.manual_seed(0)
    layer = torch.nn.Linear(70, 90, bias=False) if kind == "linear" else torch.nn.Embedding(90, 70)
    model = get_peft_model(torch.nn.Sequential(layer), LoraConfig(r=4, lora_alpha=4, target_modules=["0"]))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora" in name:
                weight.normal_(std=1.0)
    said: list[str] = []
    adapted = model.base_model.model[0]
    base, delta = adapted.get_base_layer().weight.detach(), adapted.get_delta_weight("default").detach()
    reduce_intruder_dimension(model, logging_sink=said.append)
    count = len(intruders(base, base + delta, generator=seeded()).found)
    assert count > 0
    assert any(line.endswith(f"Intruders: {count}") for line in said)

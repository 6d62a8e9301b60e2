"""Analysing weights, differences and live modules: the numbers against LAPACK and planted spectra."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from eckart.errors import MismatchError, NotFiniteError
from eckart.operations import Analysis, analyze
from eckart.operations.analysis import work

QUERY = "encoder.layer.0.attention.self.query"


def planted(values: list[float], shape: tuple[int, int], *, seed: int = 0) -> torch.Tensor:
    """A float64 matrix with these singular values."""
    generator = torch.Generator().manual_seed(seed)
    U, V = (
        torch.linalg.qr(torch.randn(side, len(values), generator=generator, dtype=torch.float64)).Q for side in shape
    )
    return U * torch.tensor(values, dtype=torch.float64) @ V.T


def model(**weights: torch.Tensor) -> dict[str, torch.Tensor]:
    return {f"layers.0.{name}.weight": weight for name, weight in weights.items()}


def named(analysis: Analysis, name: str) -> work.MatrixAnalysis:
    return next(matrix for matrix in analysis.matrices if matrix.name == name)


def test_singular_values_of_a_planted_weight_are_the_planted_ones() -> None:
    values = [5.0, 3.0, 1.0, 0.5]
    found = analyze(model(q_proj=planted(values, (12, 20)))).matrices[0]
    assert found.name == "layers.0.q_proj"
    assert found.shape == (12, 20)
    torch.testing.assert_close(
        found.spectrum.singular_values[:4], torch.tensor(values, dtype=torch.float64), rtol=1e-12, atol=0
    )


def test_ranks_of_a_real_weight_are_those_of_a_dense_svd(minilm: Path) -> None:
    from safetensors.torch import load_file

    found = analyze(minilm, target=[QUERY]).matrices[0]
    weight = load_file(minilm / "model.safetensors")[f"{QUERY}.weight"].double().numpy()
    values = np.linalg.svd(weight, compute_uv=False)
    errors = np.sqrt(np.append(np.cumsum(values[::-1] ** 2)[::-1], 0) / np.sum(values**2))
    assert found.spectrum.rank_for_error(0.1) == int(np.argmax(errors < 0.1))
    assert found.spectrum.stable_rank == pytest.approx(np.sum(values**2) / values[0] ** 2, rel=1e-10)
    assert found.dtype == "float32"


def test_every_tensor_of_a_real_checkpoint_is_analysed_or_skipped_with_a_reason(minilm: Path) -> None:
    from safetensors import safe_open

    found = analyze(minilm, target=[QUERY])
    with safe_open(minilm / "model.safetensors", "pt") as file:
        stored = {name.removesuffix(".weight") for name in file.keys()}  # noqa: SIM118
    named_once = [entry.name.removesuffix(".weight") for entry in [*found.matrices, *found.skipped]]
    assert sorted(named_once) == sorted(stored)
    assert all(left.reason for left in found.skipped)


def test_a_quantized_weight_names_its_quantization_and_claims_no_rounding_floor(smollm2: Path) -> None:
    found = analyze(smollm2, target=["layers.0.self_attn.k_proj"]).matrices[0]
    assert found.dtype == "Q4_1"
    assert found.noise is None
    assert found.spectrum.complete


def test_a_difference_of_checkpoints_has_the_spectrum_of_the_update() -> None:
    base = torch.randn(24, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    update = planted([2.0, 1.0], (24, 16))
    found = analyze(model(q_proj=base + update), model(q_proj=base))
    assert found.kind == "delta"
    values = found.matrices[0].spectrum.singular_values
    torch.testing.assert_close(values[:2], torch.tensor([2.0, 1.0], dtype=torch.float64), rtol=1e-10, atol=0)
    assert float(values[2]) < 1e-12


def test_an_unchanged_matrix_of_a_fine_tune_is_a_row_without_ranks() -> None:
    base, update = torch.randn(8, 8), torch.ones(8, 8)
    found = analyze(model(q_proj=base + update, v_proj=base), model(q_proj=base, v_proj=base.clone()))
    still = named(found, "layers.0.v_proj").to_json()
    assert still["fro_norm"] == 0
    assert still["stable_rank"] is still["effective_rank"] is still["participation_ratio"] is None
    assert still["rank_for_energy"]["0.9"] is still["rank_for_error"]["0.1"] is None


def test_the_signal_of_a_bfloat16_update_stands_above_its_rounding() -> None:
    generator = torch.Generator().manual_seed(3)
    base = torch.randn(256, 192, generator=generator).to(torch.bfloat16)
    update = planted([30.0, 25.0, 20.0, 15.0], (256, 192)).float()
    tuned = (base.float() + update).to(torch.bfloat16)
    noise = analyze(model(q_proj=tuned), model(q_proj=base)).matrices[0].noise
    assert noise is not None
    assert noise.regime == "additive"
    assert noise.signal_rank == 4


def test_the_same_bytes_give_the_same_numbers() -> None:
    base = torch.randn(96, 64, generator=torch.Generator().manual_seed(4)).to(torch.bfloat16)
    tuned = (base.float() * 1.0001 + 0.3 * (torch.arange(64) == 7)).to(torch.bfloat16)
    once, again = (analyze(model(q=tuned), model(q=base)).to_json()["matrices"] for _ in range(2))
    assert once[0]["noise"]["regime"] == "dead-zone"
    assert once == again


def test_a_live_module_is_analysed_like_its_weights() -> None:
    module = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
    found = analyze(module)
    assert [(matrix.name, matrix.shape) for matrix in found.matrices] == [("0", (4, 6)), ("2", (3, 4))]


def test_a_large_matrix_is_bounded_unless_all_of_it_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "FULL_SIDE", 64)
    monkeypatch.setattr(work, "PARTIAL_RANK", 8)
    weight = model(q=planted([1.5**-i for i in range(96)], (128, 96)))
    partial, full = analyze(weight).matrices[0], analyze(weight, full=True).matrices[0]
    assert not partial.spectrum.complete
    assert full.spectrum.complete
    exact, bounds = full.to_json(), partial.to_json()
    assert bounds["rank_for_error"]["0.1"] == exact["rank_for_error"]["0.1"]
    limits = bounds["rank_for_error"]["0.01"]
    assert limits["lower"] <= exact["rank_for_error"]["0.01"] <= limits["upper"]


@pytest.mark.parametrize(
    ("tuned", "base", "said"),
    [
        ({"a.weight": (4, 4)}, {"a.weight": (4, 5)}, ["a.weight"]),
        ({"a.weight": (4, 4), "b.weight": (3, 3)}, {"a.weight": (4, 5), "c.weight": (3, 3)}, ["a.", "b.", "c."]),
    ],
    ids=["another shape", "several faults at once"],
)
def test_checkpoints_of_two_models_are_refused_with_every_fault(
    tuned: dict[str, tuple[int, int]], base: dict[str, tuple[int, int]], said: list[str]
) -> None:
    first, second = ({name: torch.randn(shape) for name, shape in each.items()} for each in (tuned, base))
    with pytest.raises(MismatchError) as refused:
        analyze(first, second)
    assert all(fault in str(refused.value) for fault in said)


def test_a_checkpoint_minus_itself_is_refused(minilm: Path) -> None:
    with pytest.raises(MismatchError, match="identical"):
        analyze(minilm, minilm)


def test_a_fine_tune_that_changed_nothing_is_refused() -> None:
    weight = torch.randn(4, 4)
    tuned, base = model(q=weight, k=weight * 2), model(q=weight.clone(), k=weight * 3)
    with pytest.raises(MismatchError, match="identical in all 1 matrices"):
        analyze(tuned, base, target=["q"])


def test_a_weight_that_is_not_finite_is_named() -> None:
    with pytest.raises(NotFiniteError, match=r"layers\.0\.q.*1 values"):
        analyze(model(q=torch.tensor([[1.0, float("nan")], [0.0, 1.0]])))


def test_a_target_that_matches_nothing_shows_the_nearest_name(minilm: Path) -> None:
    with pytest.raises(MismatchError, match="query"):
        analyze(minilm, target=["qery"])

"""Comparisons of adapters and of checkpoints against dense float64, and against subspaces planted at known angles."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from eckart.adapter import Adapter, AdapterLayer
from eckart.errors import MismatchError, OptionError
from eckart.linalg import LowRank
from eckart.operations import convert
from eckart.operations.comparison.compare import compare, plan_comparison
from eckart.operations.comparison.measures import compare_updates
from eckart.operations.comparison.result import Comparison

SHAPES = {"q_proj": (48, 32), "v_proj": (16, 32)}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def orthonormal(rows: int, columns: int, seed: int) -> Tensor:
    return torch.linalg.qr(torch.randn(rows, columns, generator=seeded(seed), dtype=torch.float64)).Q


def random_layer(shape: tuple[int, int], seed: int, rank: int = 4) -> AdapterLayer:
    g = seeded(seed)
    return AdapterLayer(torch.randn(rank, shape[1], generator=g), torch.randn(shape[0], rank, generator=g), alpha=6.0)


def random_adapter(seed: int, layers: int = 2) -> Adapter:
    names = [(f"model.layers.{i}.{kind}", shape) for i in range(layers) for kind, shape in SHAPES.items()]
    return Adapter({name: random_layer(shape, 100 * seed + n) for n, (name, shape) in enumerate(names)})


def changed(adapter: Adapter, change) -> Adapter:
    return replace(adapter, layers={name: change(layer) for name, layer in adapter.items()})


def scaled(factor: float):
    return lambda layer: replace(layer, alpha=layer.alpha * factor)


def regauged(layer: AdapterLayer) -> AdapterLayer:
    """B·G and G⁻¹·A with a G that mixes and stretches."""
    G = torch.randn(layer.rank, layer.rank, generator=seeded(9), dtype=torch.float64)
    A, B = layer.lora_A.to(torch.float64), layer.lora_B.to(torch.float64)
    return replace(layer, lora_A=torch.linalg.solve(G, A), lora_B=B @ G)


def padded(layer: AdapterLayer) -> AdapterLayer:
    """The same update at twice the rank: zeros behind, and one direction told twice."""
    A, B = layer.lora_A, layer.lora_B
    A = torch.cat([A, A[:1], torch.zeros(layer.rank - 1, A.shape[1])])
    B = torch.cat([B.clone(), B[:, :1] / 2, torch.zeros(B.shape[0], layer.rank - 1)], 1)
    B[:, 0] /= 2
    return replace(layer, lora_A=A, lora_B=B, alpha=2 * layer.alpha)


def assert_matches_dense(found: Comparison, a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    """Every number of a comparison, from the dense matrices by LAPACK."""
    for matrix in found.matrices:
        A, B = a[matrix.name].to(torch.float64), b[matrix.name].to(torch.float64)
        assert matrix.norm_a == pytest.approx(float(A.norm()), rel=1e-12)
        assert matrix.norm_difference == pytest.approx(float((A - B).norm()), rel=1e-9)
        assert matrix.cosine == pytest.approx(float((A * B).sum() / A.norm() / B.norm()), abs=1e-12)
        (UA, SA, VA), (UB, SB, VB) = (torch.linalg.svd(W, full_matrices=False) for W in (A, B))
        i, j = (int((1e-6 * S[0] < S).sum()) for S in (SA, SB))
        assert matrix.directions == (i, j)
        for alignment, first, second in ((matrix.outputs, UA, UB), (matrix.inputs, VA.T, VB.T)):
            assert alignment is not None
            cosines = torch.linalg.svdvals(first[:, :i].T @ second[:, :j]).clamp(max=1)
            torch.testing.assert_close(alignment.angles.cos(), cosines, rtol=0, atol=1e-9)
            phi = float((first[:, :3].T @ second[:, :2]).square().sum()) / 2
            assert float(alignment.overlap.phi[2, 1]) == pytest.approx(phi, abs=1e-6)
            assert float(alignment.overlap.chance[2, 1]) == 3 / len(first)
    total = [torch.cat([side[name].to(torch.float64).flatten() for name in a]) for side in (a, b)]
    assert found.cosine == pytest.approx(float(total[0] @ total[1] / total[0].norm() / total[1].norm()), abs=1e-12)
    assert found.norm_difference == pytest.approx(float((total[0] - total[1]).norm()), rel=1e-9)


def test_adapters_are_compared_as_their_dense_updates_are():
    a, b = random_adapter(1), random_adapter(2)
    dense = [{name: layer.low_rank().dense() for name, layer in adapter.items()} for adapter in (a, b)]
    assert_matches_dense(compare(a, b), *dense)


RELATIVES = {
    "itself": (lambda layer: layer, 1.0, 0.0),
    "its negative": (scaled(-1.0), -1.0, 2.0),
    "a millionth of it": (scaled(1e-6), 1.0, 1 - 1e-6),
    "a million times it": (scaled(1e6), 1.0, 1e6 - 1),
    "itself in another gauge": (regauged, 1.0, 0.0),
    "itself with padding and a direction told twice": (padded, 1.0, 0.0),
}


@pytest.mark.parametrize("name", RELATIVES)
def test_an_adapter_compared_with_a_variant_of_itself(name):
    relative, cosine, distance = RELATIVES[name]
    a = random_adapter(1)
    found = compare(a, changed(a, relative))
    assert found.cosine == pytest.approx(cosine, abs=1e-12)
    assert found.norm_difference / found.norm_a == pytest.approx(distance, rel=1e-7, abs=1e-7)
    for matrix in found.matrices:
        assert matrix.directions == (4, 4)
        assert matrix.outputs is not None
        assert matrix.inputs is not None
        assert float(matrix.outputs.angles.max()) < 1e-7
        assert float(matrix.inputs.angles.max()) < 1e-7
        torch.testing.assert_close(matrix.outputs.overlap.phi.diagonal(), torch.ones(4, dtype=torch.float64))


def test_planted_angles_come_back_however_small():
    theta = torch.tensor([1e-8, 1e-3, 0.5, math.pi / 2], dtype=torch.float64)
    frame, inputs = orthonormal(40, 8, 1), orthonormal(30, 4, 2)
    values = torch.tensor([4.0, 3.0, 2.0, 1.0], dtype=torch.float64)
    turned = frame[:, :4] * theta.cos() + frame[:, 4:] * theta.sin()
    found = compare_updates(
        "m", LowRank(frame[:, :4] * values, inputs.T), LowRank(turned * values.flip(0), inputs.T), directions=4
    )
    assert found.outputs is not None
    assert found.inputs is not None
    torch.testing.assert_close(found.outputs.angles, theta, rtol=0, atol=1e-14)
    assert float(found.inputs.angles.max()) < 1e-14
    assert found.cosine == pytest.approx(float((theta.cos() * values * values.flip(0)).sum()) / 30, abs=1e-12)


def test_orthogonal_updates_have_nothing_in_common():
    frame, inputs = orthonormal(40, 8, 1), orthonormal(30, 8, 2)
    a, b = LowRank(frame[:, :4], inputs[:, :4].T), LowRank(frame[:, 4:], inputs[:, 4:].T)
    found = compare_updates("m", a, b, directions=4)
    assert found.cosine == pytest.approx(0, abs=1e-15)
    assert found.norm_difference == pytest.approx(math.sqrt(8), rel=1e-12)
    assert found.outputs is not None
    torch.testing.assert_close(found.outputs.angles, torch.full((4,), math.pi / 2, dtype=torch.float64))


def test_an_adapter_that_does_nothing_has_no_direction():
    a = random_adapter(1)
    found = compare(a, changed(a, lambda layer: replace(layer, lora_B=torch.zeros_like(layer.lora_B))))
    assert found.cosine is None
    assert found.norm_difference == pytest.approx(found.norm_a)
    assert {matrix.outputs for matrix in found.matrices} == {None}
    assert {matrix.directions for matrix in found.matrices} == {(4, 0)}
    json.dumps(found.to_json(), allow_nan=False)


def test_updates_that_differ_in_the_ninth_digit_keep_the_digits_of_their_difference():
    base, small = LowRank(orthonormal(50, 4, 1), orthonormal(40, 4, 2).T), orthonormal(50, 1, 3)
    shifted = base + LowRank(1e-9 * small, orthonormal(40, 1, 4).T)
    assert compare_updates("m", shifted, base, directions=4).norm_difference == pytest.approx(1e-9, rel=1e-6)


def test_chance_is_what_random_updates_share():
    shared = [
        compare_updates("m", *(random_layer((64, 48), seed + k, rank=6).low_rank() for k in (0, 10_000)), directions=6)
        for seed in range(400)
    ]
    for side in ("outputs", "inputs"):
        mean = sum(getattr(found, side).shared for found in shared) / len(shared)
        assert mean == pytest.approx(getattr(shared[0], side).chance, rel=0.05)


def test_a_module_that_one_side_lacks_counts_as_zero_there():
    a, b = random_adapter(1), random_adapter(2)
    fewer = replace(b, layers={name: layer for name, layer in b.items() if "layers.1" not in name})
    found = compare(a, fewer)
    dense = [{name: layer.low_rank().dense() for name, layer in side.items()} for side in (a, fewer)]
    whole = torch.cat([dense[0][name].flatten() for name in a])
    other = torch.cat([dense[1].get(name, torch.zeros_like(dense[0][name])).flatten() for name in a])
    assert found.cosine == pytest.approx(float(whole @ other / whole.norm() / other.norm()), abs=1e-12)
    assert found.norm_difference == pytest.approx(float((whole - other).norm()), rel=1e-12)
    assert [(item.name, item.side) for item in found.unpaired] == [
        ("model.layers.1.q_proj", "a"), ("model.layers.1.v_proj", "a"),
    ]  # fmt: skip


def test_modules_are_chosen_by_patterns():
    found = compare(random_adapter(1), random_adapter(2), target=["q_proj"], exclude=["model.layers.1.q_proj"])
    assert [matrix.name for matrix in found.matrices] == ["model.layers.0.q_proj"]
    assert {item.reason for item in found.skipped} == {"not targeted"}


def test_what_an_adapter_has_besides_factors_is_named():
    a = random_adapter(1)
    layer = a["model.layers.0.q_proj"]
    dressed = replace(layer, bias=torch.ones(48), magnitude=torch.ones(48))
    b = replace(a, layers={**a, "model.layers.0.q_proj": dressed}, modules_to_save={"norm.weight": torch.ones(4)})
    assert {item.name for item in compare(a, b).skipped} == {
        "norm.weight", "model.layers.0.q_proj.bias", "model.layers.0.q_proj.magnitude",
    }  # fmt: skip


def weights(seed: int, noise: float = 0.0) -> dict[str, Tensor]:
    """Weights whose leading eight directions stand clear of the rest, so that every method finds the same."""
    found = {}
    for n, (name, shape) in enumerate(SHAPES.items()):
        spikes = orthonormal(shape[0], 8, 50 * seed + n) * torch.linspace(9, 5, 8, dtype=torch.float64)
        dense = spikes @ orthonormal(shape[1], 8, 70 * seed + n).T
        rest = torch.randn(shape, generator=seeded(seed + n), dtype=torch.float64)
        found[f"layers.0.{name}.weight"] = (dense + (0.05 + noise) * rest).float()
    return found | {"norm.weight": torch.ones(32)}


def test_checkpoints_are_compared_as_dense_matrices_are():
    a, b = weights(1), weights(2)
    found = compare(a, b, directions=8)
    assert found.kind == "checkpoints"
    for matrix in found.matrices:
        A, B = (side[f"{matrix.name}.weight"].to(torch.float64) for side in (a, b))
        assert matrix.norm_difference == pytest.approx(float((A - B).norm()), rel=1e-12)
        assert matrix.cosine == pytest.approx(float((A * B).sum() / A.norm() / B.norm()), abs=1e-12)
        U, V = (torch.linalg.svd(W)[0][:, :8] for W in (A, B))
        expected = torch.linalg.svdvals(U.T @ V).clamp(max=1).arccos()
        assert matrix.outputs is not None
        torch.testing.assert_close(matrix.outputs.angles, expected, rtol=0, atol=1e-4)
        assert matrix.outputs.chance == 8 / matrix.shape[0]
    assert [item.name for item in found.skipped] == ["norm.weight"]


def test_checkpoints_of_one_base_are_compared_by_their_updates():
    base, a, b = weights(1), random_adapter(1, layers=1), random_adapter(2, layers=1)

    def tuned(adapter: Adapter) -> dict[str, Tensor]:
        deltas = {f"{name.removeprefix('model.')}.weight": layer.delta() for name, layer in adapter.items()}
        return {name: weight + deltas.get(name, 0) for name, weight in base.items()}

    found, factors = compare(tuned(a), tuned(b), base=base, directions=4), compare(a, b)
    assert found.kind == "updates"
    assert found.cosine == pytest.approx(factors.cosine, abs=1e-6)
    for matrix, same in zip(found.matrices, factors.matrices, strict=True):
        torch.testing.assert_close(matrix.outputs.angles, same.outputs.angles, rtol=0, atol=1e-4)
        assert matrix.intruders is not None


def test_equal_checkpoints_are_equal():
    found = compare(weights(1), weights(1))
    assert found.norm_difference == 0
    assert found.cosine == pytest.approx(1, abs=1e-14)
    assert max(float(matrix.outputs.angles.max()) for matrix in found.matrices) < 1e-7


def test_a_transposed_weight_keeps_outputs_and_inputs_apart():
    """GPT-2 stores (in, out): turning only the inputs must show among the inputs."""
    outputs, inputs, other = orthonormal(48, 4, 1), orthonormal(16, 4, 2), orthonormal(16, 4, 3)
    a, b = ({"h.0.attn.c_attn.weight": (space @ outputs.T).float()} for space in (inputs, other))
    (matrix,) = compare(a, b, directions=4).matrices
    assert matrix.shape == (48, 16)
    assert float(matrix.outputs.angles.max()) < 1e-3
    assert float(matrix.inputs.angles.max()) > 0.1


@pytest.mark.parametrize("dora", [False, True])
def test_intruders_of_an_adapter_are_those_of_the_merged_weight(dora):
    base = {f"model.layers.0.{name}.weight": torch.randn(shape, generator=seeded(4)) for name, shape in SHAPES.items()}
    a, b = (
        changed(random_adapter(seed, layers=1), lambda layer: replace(layer, alpha=2.0, magnitude=None))
        for seed in (1, 2)
    )
    if dora:
        a = changed(a, lambda layer: replace(layer, magnitude=torch.linspace(5, 9, len(layer.lora_B))))
    for matrix in compare(a, b, base=base).matrices:
        W = base[f"{matrix.name}.weight"].to(torch.float64)
        tuned = W + a[matrix.name].low_rank().dense()
        if dora:
            tuned *= (torch.linspace(5, 9, len(W)) / tuned.norm(dim=1))[:, None]
        U, T = (torch.linalg.svd(M, full_matrices=False)[0] for M in (W, tuned))
        cosines = (T[:, :10].T @ U).abs().amax(1)
        assert matrix.intruders[0].found == (cosines < 0.5).nonzero().flatten().tolist()
        assert matrix.intruders[0].undecided == []


def wider(layer: AdapterLayer) -> AdapterLayer:
    return replace(layer, lora_B=torch.cat([layer.lora_B, layer.lora_B]))


def renamed(adapter: Adapter) -> Adapter:
    return replace(adapter, layers={f"other.{name}": layer for name, layer in adapter.items()})


REFUSED = {
    "another base": (lambda a, w: (a, changed(a, wider), {}), MismatchError, "different bases"),
    "no module in common": (lambda a, w: (a, renamed(a), {}), MismatchError, "no module in common"),
    "a pattern of nothing": (lambda a, w: (a, a, {"target": ["k_proj"]}), MismatchError, "k_proj"),
    "an adapter and a checkpoint": (lambda a, w: (a, w, {}), OptionError, "eckart merge"),
    "a claim of some modules": (lambda a, w: (w, a, {"base": w, "target": ["q_proj"]}), OptionError, "`target`"),
    "an adapter as base": (lambda a, w: (a, a, {"base": a}), OptionError, "the base is the checkpoint"),
    "a base that does not fit": (lambda a, w: (a, changed(a, wider), {"base": w}), MismatchError, "different bases"),
    "no directions": (lambda a, w: (a, a, {"directions": 0}), OptionError, "at least 1"),
    "other checkpoints": (lambda a, w: (w, {"x.weight": torch.ones(3, 3)}, {}), MismatchError, "not of one model"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_compared_is_refused_with_the_reason(case):
    build, error, words = REFUSED[case]
    a, b, options = build(random_adapter(1), weights(1))
    with pytest.raises(error, match=words):
        compare(a, b, **options)


def test_one_module_of_another_shape_is_skipped_and_named():
    a = random_adapter(1)
    b = replace(a, layers={**a, "model.layers.0.q_proj": wider(a["model.layers.0.q_proj"])})
    found = compare(a, b)
    assert [item.reason for item in found.skipped] == ["its update is (48, 32) in A and (96, 32) in B"]
    assert len(found.matrices) == 3


def test_a_dry_run_reads_headers_only(tmp_path: Path):
    a, b = random_adapter(1), random_adapter(2)
    a.save(tmp_path / "a")
    b.save(tmp_path / "b")
    plan = plan_comparison(tmp_path / "a", str(tmp_path / "b"))
    for file in tmp_path.glob("*/*.safetensors"):
        size = file.stat().st_size
        with file.open("r+b") as opened:
            head = 8 + int.from_bytes(opened.read(8), "little")
            opened.seek(head)
            opened.write(b"\xff" * (size - head))  # NaN throughout, which reading refuses
    preview = plan.preview()
    assert [match.ranks for match in preview.matches] == [(4, 4)] * 4
    assert preview.read_bytes == a.nbytes + b.nbytes
    assert preview.written_bytes == 0


def test_adapters_on_disk_are_compared_as_those_in_memory(tmp_path: Path):
    a, b = random_adapter(1), random_adapter(2)
    a.save(tmp_path / "a")
    b.save(tmp_path / "b")
    found = compare(str(tmp_path / "a"), tmp_path / "b")
    assert (found.a, found.b) == (str(tmp_path / "a"), str(tmp_path / "b"))
    assert found.cosine == pytest.approx(compare(a, b).cosine, abs=1e-12)


def test_an_adapter_and_its_kohya_file_are_equal(tmp_path):
    adapter = random_adapter(1)
    convert(adapter, "kohya", output=tmp_path / "kohya.safetensors")
    found = compare(adapter, tmp_path / "kohya.safetensors")
    assert isinstance(found, Comparison)
    assert found.cosine == pytest.approx(1)
    assert {matrix.name for matrix in found.matrices} == adapter.keys()

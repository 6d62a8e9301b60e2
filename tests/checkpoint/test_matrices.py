"""Matrices on disk as row slabs."""

import pytest
import torch
from safetensors.torch import save_file

from eckart.checkpoint import DifferenceMatrix, WeightMatrix, layout, open_checkpoint, select
from eckart.errors import NotFiniteError
from eckart.linalg import slabs
from eckart.linalg.slabs import RowSlabs


def dense(matrix) -> torch.Tensor:
    return torch.cat(list(matrix.slabs()))


@pytest.fixture(autouse=True)
def small_slabs(monkeypatch):
    """Slabs of a few rows, so that every matrix here has several."""
    monkeypatch.setattr(slabs, "SLAB_BYTES", 256)


STATE = {
    "fc.weight": torch.randn(13, 7, dtype=torch.bfloat16, generator=torch.Generator().manual_seed(0)),
    "double.weight": torch.randn(5, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1)),
    "eight.weight": torch.arange(-8.0, 8.0).reshape(4, 4).to(torch.float8_e4m3fn),
    "conv.weight": torch.randn(6, 3, 2, 2, generator=torch.Generator().manual_seed(2)),
    "m.experts.up_proj": torch.randn(3, 8, 10, generator=torch.Generator().manual_seed(3)),
    "wide.weight": torch.randn(3, 500, generator=torch.Generator().manual_seed(4)),
}


@pytest.fixture
def checkpoint(tmp_path):
    save_file(STATE, tmp_path / "model.safetensors")
    return open_checkpoint(tmp_path)


def test_slabs_put_together_are_the_matrix_upcast(checkpoint) -> None:
    for view in layout(checkpoint).matrices:
        matrix = WeightMatrix(checkpoint, view)
        assert isinstance(matrix, RowSlabs)
        stored = STATE[view.tensor].reshape(-1, view.stored_shape[1])
        expected = stored[view.first_row : view.first_row + view.stored_shape[0]]
        wide = torch.float64 if stored.dtype == torch.float64 else torch.float32
        assert matrix.shape == tuple(expected.shape)
        assert matrix.dtype == stored.dtype
        assert torch.equal(dense(matrix), expected.to(wide))
        assert torch.equal(dense(matrix), dense(matrix))


def test_a_slab_is_no_larger_than_its_limit_or_one_row(checkpoint) -> None:
    for view in layout(checkpoint).matrices:
        for slab in WeightMatrix(checkpoint, view).slabs():
            assert slab.numel() * 4 <= 256 or slab.shape[0] == 1


def test_a_difference_is_taken_after_the_upcast(checkpoint, tmp_path) -> None:
    base_state = {name: (tensor.double() / 3).to(tensor.dtype) for name, tensor in STATE.items()}
    base = open_checkpoint(base_state)
    for view in layout(checkpoint).matrices:
        difference = DifferenceMatrix(checkpoint, base, view)
        expected = dense(WeightMatrix(checkpoint, view)) - dense(WeightMatrix(base, view))
        assert isinstance(difference, RowSlabs)
        assert torch.equal(dense(difference), expected)
    view = select(layout(checkpoint), ["fc"])[0]
    in_bfloat16 = STATE["fc.weight"] - base_state["fc.weight"]
    assert not torch.equal(dense(DifferenceMatrix(checkpoint, base, view)), in_bfloat16.float())


def test_a_head_of_its_own_is_compared_with_the_embedding_that_the_base_ties_it_to() -> None:
    embedding = torch.randn(9, 4)
    base = open_checkpoint({"embed_tokens.weight": embedding, "lm_head.weight": embedding})
    tuned = open_checkpoint({"embed_tokens.weight": embedding.clone(), "lm_head.weight": embedding + 1})
    view = select(layout(tuned), ["lm_head"])[0]
    torch.testing.assert_close(dense(DifferenceMatrix(tuned, base, view)), torch.ones(9, 4))


def test_a_counterpart_of_another_shape_is_refused() -> None:
    tuned, base = open_checkpoint({"a.weight": torch.zeros(2, 3)}), open_checkpoint({"a.weight": torch.zeros(3, 3)})
    with pytest.raises(ValueError, match=r"\(2, 3\) in one checkpoint and \(3, 3\)"):
        DifferenceMatrix(tuned, base, layout(tuned).matrices[0])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("kind", ["weight", "difference"])
def test_values_that_are_not_finite_are_counted_and_their_tensor_named(value, kind) -> None:
    weight = torch.zeros(50, 8)
    weight[3, 3] = weight[40, 1] = value
    bad, good = open_checkpoint({"fc.weight": weight}), open_checkpoint({"fc.weight": torch.zeros(50, 8)})
    view = layout(bad).matrices[0]
    matrix = WeightMatrix(bad, view) if kind == "weight" else DifferenceMatrix(good, bad, view)
    with pytest.raises(NotFiniteError, match=r"fc contains 2 values.*`exclude=fc`"):
        dense(matrix)


def test_a_quantized_real_weight_arrives_in_rows(smollm2, monkeypatch) -> None:
    monkeypatch.setattr(slabs, "SLAB_BYTES", 200_000)
    checkpoint = open_checkpoint(smollm2)
    view = select(layout(checkpoint), ["layers.7.self_attn.q_proj"])[0]
    assert torch.equal(dense(WeightMatrix(checkpoint, view)), checkpoint.read(view.tensor))

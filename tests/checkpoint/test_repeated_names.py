"""Layers and experts that a config or names count: only those that are there are listed."""

import pytest
import torch

from eckart.checkpoint import open_checkpoint
from eckart.checkpoint.fused_experts import with_fused_experts
from eckart.checkpoint.replicated import with_replicated_layers
from eckart.errors import MismatchError

OWNER = "model.layers.0.block_sparse_moe.experts"


@pytest.mark.parametrize("ranges", ["abc", 7, [[0]], [[0, 10**12]], [[0, 2]] * 6000, [[0, "2"]], [[1, 1]], [None]])
def test_layers_that_a_base_does_not_have_are_not_repeated(ranges) -> None:
    base = open_checkpoint({f"model.layers.{i}.up_proj.weight": torch.ones(2, 2) for i in range(2)})
    with pytest.raises(MismatchError, match="layer_replication repeats the layers"):
        with_replicated_layers(base, ranges)


def test_layers_are_repeated_in_the_order_of_the_ranges() -> None:
    base = open_checkpoint({f"model.layers.{i}.up_proj.weight": torch.full((2, 2), float(i)) for i in range(3)})
    deeper = with_replicated_layers(base, [[0, 2], [1, 3]])
    found = [float(deeper.read(f"model.layers.{i}.up_proj.weight")[0, 0]) for i in range(4)]
    assert found == [0, 1, 1, 2]


@pytest.mark.parametrize("last", ["1", "999999999", "9" * 5000])
def test_experts_are_fused_only_if_none_is_missing(last, monkeypatch) -> None:
    names = [f"{OWNER}.{number}.{part}.weight" for number in ("0", last) for part in ("w1", "w2", "w3")]
    base = open_checkpoint({name: torch.ones(2, 2) for name in names})
    base.config["model_type"] = "mixtral"
    assert ("model.layers.0.mlp.experts.gate_up_proj" in with_fused_experts(base).tensors) == (last == "1")

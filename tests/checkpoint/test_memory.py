"""State dicts and modules as checkpoints."""

import numpy as np
import pytest
import torch
from torch import nn

from eckart.checkpoint import open_checkpoint
from eckart.errors import SourceError


def test_names_that_share_storage_are_one_tensor_and_a_tie() -> None:
    weight = torch.randn(4, 3)
    checkpoint = open_checkpoint({"embed.weight": weight, "head.weight": weight, "other": weight[:2]})
    assert list(checkpoint.tensors) == ["embed.weight", "other"]
    assert checkpoint.tied == {"head.weight": "embed.weight"}


def test_tensors_without_storage_are_not_tied() -> None:
    state = {"a": torch.empty(0, 3), "b": torch.empty(0, 3)}
    state |= {name: torch.empty(2, 3, device="meta") for name in ("c", "d")}
    assert list(open_checkpoint(state).tensors) == ["a", "b", "c", "d"]


def test_a_module_gives_its_state_dict_and_the_config_of_its_model(tiny_model) -> None:
    model = tiny_model("qwen2")
    checkpoint = open_checkpoint(model)
    assert checkpoint.config["model_type"] == "qwen2"
    assert checkpoint.tied == {"lm_head.weight": "model.embed_tokens.weight"}
    name = "model.layers.1.mlp.up_proj.weight"
    assert torch.equal(checkpoint.read(name), model.state_dict()[name])
    assert torch.equal(checkpoint.rows(name, 3, 7), model.state_dict()[name][3:7])
    assert not checkpoint.read(name).requires_grad


def test_the_fingerprint_follows_the_values() -> None:
    linear = nn.Linear(3, 3)
    before = open_checkpoint(linear).fingerprint()
    assert open_checkpoint(linear).fingerprint() == before
    with torch.no_grad():
        linear.weight[0, 0] += 1
    assert open_checkpoint(linear).fingerprint() != before


def test_numpy_arrays_are_tensors_too() -> None:
    checkpoint = open_checkpoint({"a.weight": np.eye(3, dtype=np.float32)})  # type: ignore[dict-item]
    assert torch.equal(checkpoint.read("a.weight"), torch.eye(3))


def test_what_is_no_tensor_is_refused_by_name() -> None:
    with pytest.raises(SourceError, match="'step' is of type int"):
        open_checkpoint({"a": torch.ones(1), "step": 3})

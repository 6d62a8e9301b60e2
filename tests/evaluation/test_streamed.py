"""A model that computes block by block, against the same model in memory."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from eckart.checkpoint import open_checkpoint
from eckart.errors import EckartError
from eckart.evaluation import text_loss
from eckart.evaluation.streamed import StreamedModel
from tests.evaluation.tiny_models import MODELS, saved


def tokens(rows: int = 3, length: int = 24) -> torch.Tensor:
    return torch.randint(3, 60, (rows, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", MODELS)
def test_the_loss_is_that_of_the_model_in_memory(tmp_path, kind):
    folder, ids = saved(tmp_path / "model", kind), tokens()
    expected = text_loss(AutoModelForCausalLM.from_pretrained(folder).eval(), ids, max_length=ids.shape[1])
    streamed = StreamedModel(open_checkpoint(str(folder)))
    assert len(streamed.blocks) == 3
    for _ in range(2):  # nothing is left of the first time
        loss = streamed.loss(ids)
        assert loss.nats_per_token == pytest.approx(expected.nats_per_token, abs=2e-6)
        assert loss.tokens == expected.tokens


def test_as_many_sequences_as_tokens_are_computed_one_by_one(tmp_path):
    folder, ids = saved(tmp_path / "model", "llama"), tokens(12, 12)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    expected = text_loss(model, ids, max_length=12).nats_per_token
    assert StreamedModel(open_checkpoint(str(folder))).loss(ids).nats_per_token == pytest.approx(expected, abs=2e-6)


def test_only_one_block_has_its_weights(tmp_path):
    from contextlib import contextmanager

    streamed, seen = StreamedModel(open_checkpoint(str(saved(tmp_path / "model", "llama")))), []

    @contextmanager
    def visit(index, block):
        present = [
            number
            for number, each in enumerate(streamed.blocks.values())
            if any(parameter.device.type != "meta" for parameter in each.parameters())
        ]
        seen.append((index, present))
        yield

    streamed.run(tokens(), visit=visit)
    assert seen == [(0, [0]), (1, [1]), (2, [2])]
    assert all(parameter.device.type == "meta" for each in streamed.blocks.values() for parameter in each.parameters())


def test_a_run_continues_at_a_block_from_its_input(tmp_path):
    from contextlib import contextmanager

    streamed, inputs = StreamedModel(open_checkpoint(str(saved(tmp_path / "model", "gemma2, sliding and capped")))), {}

    @contextmanager
    def visit(index, block):
        yield
        inputs[index + 1] = streamed.states.clone()

    whole = streamed.run(tokens(), visit=visit)
    continued = streamed.run(tokens(), begin=2, states=inputs[2])
    assert torch.equal(continued, whole)


def test_a_checkpoint_without_some_weights_is_refused_with_their_names(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = saved(tmp_path / "model", "llama")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(EckartError, match=r"missing[\s\S]*layers\.1\.mlp\.up_proj"):
        StreamedModel(open_checkpoint(str(folder))).run(tokens())


def test_a_model_that_transformers_does_not_know_is_refused(tmp_path):
    folder = saved(tmp_path / "model", "llama")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "no_such_model"}))
    with pytest.raises(EckartError, match="does not load as a causal language model"):
        StreamedModel(open_checkpoint(str(folder)))

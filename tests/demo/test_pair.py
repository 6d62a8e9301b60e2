"""A base and its full fine-tune, from a tiny model and from the real one."""

import dataclasses

import pytest
import torch

from eckart.checkpoint import open_checkpoint
from eckart.demo import make_pair, package
from eckart.engine.progress import NoProgress
from eckart.errors import OutputError
from eckart.evaluation import load_tokenizer
from eckart.training import FinetuneSettings


def test_both_models_are_bfloat16_and_carry_the_tokenizer(tiny_llama, full, tmp_path):
    assert len(make_pair(tmp_path, full, model=tiny_llama).losses) == 12
    for folder in (tmp_path / "base", tmp_path / "tuned"):
        assert {info.dtype.torch for info in open_checkpoint(folder).tensors.values()} == {torch.bfloat16}
        assert load_tokenizer(folder)("the")["input_ids"]


def test_a_second_call_keeps_both_models(tiny_llama, full, tmp_path):
    make_pair(tmp_path, full, model=tiny_llama)
    weights = tmp_path / "tuned" / "model.safetensors"
    before = weights.stat()
    assert make_pair(tmp_path, full, model=tiny_llama) is None
    assert weights.stat() == before


def test_a_call_stopped_after_the_base_resumes_from_it(tiny_llama, full, tmp_path):
    class Stopped(NoProgress):
        def update(self, amount, detail=""):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_pair(tmp_path, full, model=tiny_llama, progress=Stopped())
    before = (tmp_path / "base" / "model.safetensors").stat()
    assert [path.name for path in tmp_path.iterdir()] == ["base"]
    assert len(make_pair(tmp_path, full, model=tiny_llama).losses) == 12
    assert (tmp_path / "base" / "model.safetensors").stat() == before


def test_other_settings_are_refused_until_forced(tiny_llama, full, tmp_path):
    make_pair(tmp_path, full, model=tiny_llama)
    other = dataclasses.replace(full, seed=1)
    before = (tmp_path / "tuned" / "model.safetensors").read_bytes()
    with pytest.raises(OutputError, match=r"(?s)results of other settings.*`force`.*tuned exists"):
        make_pair(tmp_path, other, model=tiny_llama)
    assert (tmp_path / "tuned" / "model.safetensors").read_bytes() == before
    assert make_pair(tmp_path, other, model=tiny_llama, force=True).losses
    assert (tmp_path / "tuned" / "model.safetensors").read_bytes() != before


def test_a_folder_that_is_no_model_is_not_replaced_even_when_forced(tiny_llama, full, tmp_path):
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "diary.txt").write_text("mine")
    with pytest.raises(OutputError):
        make_pair(tmp_path, full, model=tiny_llama, force=True)
    assert (tmp_path / "base" / "diary.txt").read_text() == "mine"


def test_the_packaged_model_becomes_a_base_in_bfloat16_and_training_moves_it(tmp_path):
    training = FinetuneSettings(steps=1, batch_size=1, learning_rate=1e-3, compute_dtype="float32", warmup_steps=0)
    result = make_pair(tmp_path, training)
    packaged, base, tuned = map(open_checkpoint, (package.MODEL, tmp_path / "base", tmp_path / "tuned"))
    assert set(base.tensors) == set(tuned.tensors) == set(packaged.tensors)
    for name in base.tensors:
        assert torch.equal(base.read(name), packaged.read(name).to(torch.bfloat16)), name
    assert all(not torch.equal(base.read(name), tuned.read(name)) for name in base.tensors if "_proj" in name)
    assert 1.5 < result.losses[0] < 4.5

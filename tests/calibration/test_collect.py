"""Second moments that are collected block by block, against hooks on the whole model in float64."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from eckart.calibration import collect_moments, read_texts
from eckart.checkpoint import open_checkpoint
from eckart.engine import Execution, NoProgress
from eckart.errors import EckartError
from eckart.evaluation import load_tokenizer
from eckart.operations.moments import Moments
from tests.evaluation.tiny_models import saved

CPU = Execution(device="cpu")


def kinds(length: int = 24) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return {
        "prose": torch.randint(3, 40, (2, length), generator=generator),
        "code": torch.randint(20, 60, (3, length), generator=generator),
    }


def expected(folder: Path, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Σ x xᵀ of every linear module, from hooks on the model in memory."""
    model, sums, hooks = AutoModelForCausalLM.from_pretrained(folder).eval(), {}, []
    for path, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D":

            def add(_module, arguments, path=path):
                x = arguments[0].reshape(-1, arguments[0].shape[-1]).double()
                sums[path] = sums.get(path, 0) + x.T @ x

            hooks.append(module.register_forward_pre_hook(add))
    with torch.no_grad():
        for sequence in ids:
            model(input_ids=sequence[None])
    return sums


def expected_gradients(folder: Path, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Σ g gᵀ at the outputs of every linear module, from hooks on the model in memory, for tokens drawn as eckart does.

    All gradients are those of one backward pass over the whole model.
    """
    model, sums = AutoModelForCausalLM.from_pretrained(folder).eval(), {}
    generator = CPU.generator("gradients")
    for path, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D":

            def watch(_module, _arguments, output, path=path):
                def add(gradient):
                    g = gradient.reshape(-1, gradient.shape[-1]).double()
                    sums[path] = sums.get(path, 0) + g.T @ g

                output.register_hook(add)

            module.register_forward_hook(watch)
    for sequence in ids:
        logits = model(input_ids=sequence[None]).logits[0]
        drawn = torch.multinomial(logits.detach().softmax(-1), 1, generator=generator)[:, 0]
        torch.nn.functional.cross_entropy(logits, drawn, reduction="sum").backward()
    return sums


MODELS = ["llama", "gemma2, sliding and capped", "mixtral", "gpt2", "phi3", "opt", "bloom, alibi"]


@pytest.mark.parametrize("kind", MODELS)
def test_moments_of_gradients_are_those_of_a_backward_pass_over_the_whole_model(tmp_path, kind, monkeypatch):
    monkeypatch.setattr("eckart.calibration.gradients.TOKENS", 72)  # three of the five sequences
    folder = saved(tmp_path / "model", kind)
    moments = collect_moments(open_checkpoint(str(folder)), kinds(), tmp_path / "m.safetensors", execution=CPU)
    reference = expected_gradients(folder, torch.cat(list(kinds().values()))[[0, 2, 4]])
    assert set(moments.inputs) == set(reference) - {"lm_head"}
    for module in moments.inputs:
        moment = reference[module]
        found = moments.of_gradients(module, len(moment))
        torch.testing.assert_close(found.double(), moment, rtol=1e-3, atol=1e-4 * float(moment.abs().max()))


@pytest.mark.parametrize("kind", MODELS)
def test_moments_are_those_of_the_whole_model_for_each_kind_of_text(tmp_path, kind):
    folder = saved(tmp_path / "model", kind)
    moments = collect_moments(open_checkpoint(str(folder)), kinds(), tmp_path / "m.safetensors", execution=CPU)
    assert dict(moments.tokens) == {"prose": 48, "code": 72}
    for number, ids in enumerate(kinds().values()):
        reference = expected(folder, ids)
        reference.pop("lm_head", None)
        assert set(moments.inputs) == set(reference)
        for module, moment in reference.items():
            found = moments.of(module, len(moment))[number]
            torch.testing.assert_close(found.double(), moment, rtol=1e-4, atol=1e-5 * float(moment.abs().max()))


def test_modules_with_the_same_input_share_one_moment(tmp_path):
    folder = saved(tmp_path / "model", "llama")
    moments = collect_moments(open_checkpoint(str(folder)), kinds(), tmp_path / "m.safetensors", execution=CPU)
    stored = load_file(tmp_path / "m.safetensors")
    stored = [name for name in stored if name.startswith("inputs/")]
    assert len(stored) == 2 * 3 * 4  # kinds, blocks, inputs: of q, k and v; of o; of gate and up; of down
    block = "model.layers.1"
    assert moments.inputs[f"{block}.self_attn.v_proj"] == f"{block}.self_attn.q_proj"
    assert moments.inputs[f"{block}.mlp.up_proj"] == f"{block}.mlp.gate_proj"


class Stops(NoProgress):
    """Ends the run after some blocks."""

    def __init__(self, blocks: int) -> None:
        self.left, self.notes = blocks, []

    def update(self, amount: int, detail: str = "") -> None:
        self.left -= amount
        if self.left == 0:
            raise KeyboardInterrupt

    def note(self, message: str) -> None:
        self.notes.append(message)


@pytest.mark.parametrize("blocks", range(1, 7))  # of inputs, then of gradients
def test_an_interrupted_run_resumes_with_the_same_result(tmp_path, blocks):
    checkpoint = open_checkpoint(str(saved(tmp_path / "model", "gemma2, sliding and capped")))
    collect_moments(checkpoint, kinds(), tmp_path / "whole.safetensors", execution=CPU)
    with pytest.raises(KeyboardInterrupt):
        collect_moments(
            checkpoint, kinds(), tmp_path / "m.safetensors", execution=Execution(device="cpu", progress=Stops(blocks))
        )
    assert not (tmp_path / "m.safetensors").exists()
    again = Stops(99)
    collect_moments(checkpoint, kinds(), tmp_path / "m.safetensors", execution=Execution(device="cpu", progress=again))
    assert again.notes == [f"resuming: {min(blocks, 3)} of 3 blocks are already done"]
    whole, resumed = load_file(tmp_path / "whole.safetensors"), load_file(tmp_path / "m.safetensors")
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert not list(tmp_path.glob("*.partial"))


FAULTS = {
    "no metadata": (lambda facts: None, "not a file of second moments"),
    "another format": (
        lambda facts: facts.replace("eckart-moments/2", "eckart-moments/9"),
        "expected eckart-moments/2",
    ),
    "a kind without tensors": (lambda facts: facts.replace('"prose"', '"verse"'), "tensors are missing"),
    "no tokens": (lambda facts: facts.replace("48", "-1"), "number of tokens"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_file_of_moments_is_refused(tmp_path, fault):
    change, message = FAULTS[fault]
    folder = saved(tmp_path / "model", "llama")
    file = collect_moments(open_checkpoint(str(folder)), kinds(), tmp_path / "m.safetensors", execution=CPU).file
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        facts = change(opened.metadata()["eckart"])
    save_file(load_file(file), file, metadata={"eckart": facts} if facts else None)
    with pytest.raises(EckartError, match=message):
        Moments(file)


def test_a_file_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(EckartError, match="no such file"):
        Moments(tmp_path / "none.safetensors")


def test_sequences_of_different_lengths_are_refused(tmp_path):
    checkpoint = open_checkpoint(str(saved(tmp_path / "model", "llama")))
    given = kinds() | {"short": torch.ones(1, 5, dtype=torch.int64)}
    with pytest.raises(EckartError, match="sequences of one length"):
        collect_moments(checkpoint, given, tmp_path / "m.safetensors", execution=CPU)


def test_texts_become_sequences_of_one_length_and_others_are_held_out(tmp_path, tiny_llama, text):
    for name in ("first", "second"):
        (tmp_path / f"{name}.txt").write_text(f"{text} " * 4)
    tokenizer = load_tokenizer(str(tiny_llama))
    sources = [tmp_path / "first.txt", tmp_path / "second.txt"]
    texts = read_texts(sources, tokenizer, tokens=256, length=32)
    assert list(texts.kinds) == [str(source) for source in sources]
    assert [tuple(ids.shape) for ids in texts.kinds.values()] == [(4, 32), (4, 32)]
    assert all(ids.shape[1] == 32 for ids in texts.held_out.values())
    alone = read_texts(sources[:1], tokenizer, tokens=256, length=32)
    assert len(alone.kinds) == 3
    assert sum(len(ids) for ids in alone.kinds.values()) == 8
    assert torch.equal(torch.cat(list(alone.kinds.values()))[:1], texts.kinds[str(sources[0])][:1])


def test_a_text_without_anything_to_hold_out_is_refused(tmp_path, tiny_llama):
    (tmp_path / "text.txt").write_text("the rank")
    with pytest.raises(EckartError, match="too short"):
        read_texts([tmp_path / "text.txt"], load_tokenizer(str(tiny_llama)))

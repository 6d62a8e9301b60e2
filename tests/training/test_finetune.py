"""Full fine-tuning of a tiny Llama."""

import copy

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from eckart.errors import EckartError, OptionError
from eckart.training import FinetuneSettings, finetune

from .tiny import Reports


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    return LlamaForCausalLM(config)


@pytest.fixture
def sequences():
    """Counting upwards from a random start: soon learned."""
    start = torch.randint(32, (24, 1), generator=torch.Generator().manual_seed(0))
    return (start + torch.arange(16)) % 32


@pytest.mark.parametrize("compute_dtype", ["float32", "bfloat16"])
def test_the_loss_falls_and_the_weights_stay_float32(model, sequences, compute_dtype):
    settings = FinetuneSettings(steps=40, batch_size=8, learning_rate=1e-2, compute_dtype=compute_dtype)
    result = finetune(model, sequences, settings)
    assert result.losses[-1] < result.losses[0] / 2
    assert result.tokens == 40 * 8 * 16
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model.training


def test_one_step_is_the_step_of_adamw_on_the_clipped_gradient(model, sequences):
    other = copy.deepcopy(model)
    finetune(model, sequences, FinetuneSettings(steps=1, batch_size=24, learning_rate=1e-3, warmup_steps=0))
    other(input_ids=sequences, labels=sequences).loss.backward()
    torch.nn.utils.clip_grad_norm_(other.parameters(), 1.0)
    for parameter in other.parameters():
        # The first step of Adam: both averages, freed of their bias, are the gradient and its square.
        step = 1e-3 * parameter.grad / (parameter.grad.abs() + 1e-8)
        parameter.data -= step
    for ours, expected in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours, expected, atol=2e-6, rtol=0)


def test_the_same_seed_gives_the_same_run_and_another_seed_another(model, sequences):
    runs = [
        finetune(copy.deepcopy(model), sequences, FinetuneSettings(steps=3, seed=seed)).losses for seed in (0, 0, 1)
    ]
    assert runs[0] == runs[1] != runs[2]


def test_the_rate_rises_then_falls_linearly_and_never_reaches_zero():
    settings = FinetuneSettings(steps=10, learning_rate=1.0, warmup_steps=3)
    rates = [settings.rate(step) for step in range(1, 11)]
    assert rates == pytest.approx([1 / 4, 2 / 4, 3 / 4, 1, 6 / 7, 5 / 7, 4 / 7, 3 / 7, 2 / 7, 1 / 7])


def test_progress_is_reported_every_step(model, sequences):
    reports = Reports()
    result = finetune(model, sequences, FinetuneSettings(steps=3), progress=reports)
    assert reports.stages == [("Fine-tuning", 3, "steps")]
    assert reports.steps == [1, 2, 3]
    assert reports.details == [f"loss {loss:.4f}" for loss in result.losses]


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(model, sequences):
    def break_it():
        model.lm_head.weight.data[0, 0] = float("nan")

    with pytest.raises(EckartError, match="training stopped at step 3 of 9: the loss is nan"):
        finetune(model, sequences, FinetuneSettings(steps=9), progress=Reports(2, break_it))


def test_a_gradient_that_is_not_finite_leaves_the_weights_as_they_were(model, sequences):
    before = copy.deepcopy(model.state_dict())
    model.lm_head.weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(EckartError, match=r"step 1 of 2: the norm of the gradient is (inf|nan)"):
        finetune(model, sequences, FinetuneSettings(steps=2))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_weights_that_are_not_float32_and_empty_data_are_refused_together(model):
    with pytest.raises(OptionError) as refusal:
        finetune(model.to(torch.bfloat16), torch.zeros(0, 16, dtype=torch.int64), FinetuneSettings(steps=1))
    assert "must be float32, got torch.bfloat16" in str(refusal.value)
    assert "(0, 16)" in str(refusal.value)


def test_settings_that_cannot_train_are_refused_together():
    with pytest.raises(OptionError) as refusal:
        FinetuneSettings(steps=0, batch_size=-1, learning_rate=float("nan"), compute_dtype="int8")
    assert all(word in str(refusal.value) for word in ("steps", "batch_size", "learning_rate", "compute_dtype"))

"""Training an adapter: what it learns, what it writes, how it stops and goes on."""

import copy
import dataclasses
import json
import logging
import math
import os
import re
import signal
import warnings
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, TrainerCallback
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from eckart.errors import EckartError, MismatchError, NotFiniteError, OptionError, OutputError
from eckart.formats import load_adapter
from eckart.nn import LoRAConfig, adapted_modules, adapter_applied, adapter_of, inject
from eckart.report import save_dynamics
from eckart.report.figures import style
from eckart.training import (
    DataOptions,
    DivergenceError,
    TrainingInterrupted,
    TrainSettings,
    load_data,
    train,
)

from .tiny import Reports, loss_of, words, write_lines

CONFIG = LoRAConfig(rank=4, alpha=8)
SETTINGS = TrainSettings(steps=10, batch_size=4, learning_rate=2e-2, save_every=3)
OPTIONS = DataOptions(max_length=32)
PEFT_WARNS = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


def live(tiny) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(tiny)


def stored(folder: Path) -> dict[str, torch.Tensor]:
    return {
        f"{name}.{part}": tensor
        for name, layer in load_adapter(folder).items()
        for part, tensor in layer.tensors().items()
    }


def same(left: Path, right: Path) -> bool:
    a, b = stored(left), stored(right)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def unbroken(tiny, text, tmp_path_factory):
    """An adapter with dropout, trained at once."""
    output = tmp_path_factory.mktemp("unbroken") / "out"
    result = train(
        tiny, text, config=LoRAConfig(rank=4, alpha=8, dropout=0.2), settings=SETTINGS, options=OPTIONS, output=output
    )
    return output, result


def test_the_heldout_loss_falls_and_the_result_says_what_was_done(unbroken, tiny, text, tokenizer):
    output, result = unbroken
    data = load_data(text, tokenizer, options=OPTIONS)
    expected = sum(len(ids) - 1 for ids in data.held_out["input_ids"])
    assert result.heldout_loss_after < result.heldout_loss_before - 1
    assert result.heldout_tokens == expected
    assert result.heldout_loss_before == pytest.approx(loss_of(live(tiny), data.held_out), rel=1e-5)
    assert result.steps == len(result.losses) == 10
    assert result.trainable_params == sum(p.numel() for p in stored(output).values())
    assert result.peak_bytes > 1e7
    told = json.loads((output / "train.json").read_text())
    assert told["format"] == "eckart-train/1"
    assert told | result.to_json() == told == result.to_json() | told
    dynamics = json.loads((output / "dynamics.json").read_text())
    assert dynamics["steps"] == list(range(11))
    log = dynamics["log"]
    assert log["loss"][1:] == pytest.approx(list(result.losses.values()), rel=1e-6)
    assert log["heldout_loss"][0] == pytest.approx(result.heldout_loss_before, rel=1e-6)
    assert log["heldout_loss"][10] == pytest.approx(result.heldout_loss_after, rel=1e-6)
    assert list((output / "tensorboard").iterdir())
    card = (output / "README.md").read_text()
    assert f"{result.heldout_loss_before:.4f} before, {result.heldout_loss_after:.4f} after" in card
    assert not output.with_name("out.partial").exists()


def test_tensorboard_gets_the_losses_of_every_step_and_the_heldout_losses(unbroken):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    output, result = unbroken
    events = EventAccumulator(str(output / "tensorboard"))
    events.Reload()
    logged = {tag: {event.step: event.value for event in events.Scalars(tag)} for tag in ("train/loss", "eval/loss")}
    assert logged["train/loss"] == pytest.approx(result.losses, rel=1e-6)
    assert logged["eval/loss"] == pytest.approx(result.heldout_losses, rel=1e-6)


@pytest.mark.parametrize(
    ("report_to", "message"),
    [
        (["wandb"], "`report_to=wandb` needs the library wandb: pip install wandb"),
        (["mlflow", "wandb"], "`report_to=mlflow` needs the library mlflow: pip install mlflow wandb"),
        (["comet"], "`report_to` must be one of tensorboard, wandb, mlflow, none, got 'comet'"),
        (["none", "tensorboard"], "`report_to=none` logs nowhere, but tensorboard is given too"),
    ],
)
def test_what_cannot_be_reported_to_is_refused_before_any_work(report_to, message, tmp_path, monkeypatch):
    monkeypatch.setattr("eckart.training.reporting.find_spec", lambda name: None if name in ("wandb", "mlflow") else 1)
    with pytest.raises(EckartError, match=f"^{re.escape(message)}$"):
        train(tmp_path / "no model", "no data", output=tmp_path / "out", report_to=report_to)
    assert list(tmp_path.iterdir()) == []


def test_an_integration_is_closed_after_the_last_heldout_loss(tiny, text, tmp_path, monkeypatch):
    calls = []

    class Integration(TrainerCallback):
        def on_train_begin(self, args, state, control, **_):
            calls.append(("begin", args.run_name))

        def on_log(self, args, state, control, logs, **_):
            calls.append((state.global_step, logs.get("eval_loss")))

        def on_train_end(self, args, state, control, **_):
            calls.append(("end", None))

    monkeypatch.setattr("eckart.training.reporting.find_spec", lambda name: name)
    monkeypatch.setitem(INTEGRATION_TO_CALLBACK, "wandb", Integration)
    settings = TrainSettings(steps=1, batch_size=2)
    result = train(
        *(tiny, text), config=CONFIG, settings=settings, options=OPTIONS, output=tmp_path / "out", report_to=["wandb"]
    )
    assert calls[0] == ("begin", "out")
    assert calls[-2:] == [(1, pytest.approx(result.heldout_losses[1])), ("end", None)]
    assert not (tmp_path / "out" / "tensorboard").exists()


@PEFT_WARNS
def test_peft_computes_with_the_output_what_we_measured(unbroken, tiny, text, tokenizer):
    from peft import PeftModel

    output, result = unbroken
    data = load_data(text, tokenizer, options=OPTIONS)
    model = PeftModel.from_pretrained(live(tiny), output).eval()
    assert loss_of(model, data.held_out) == pytest.approx(result.heldout_loss_after, rel=1e-5)
    assert json.loads((output / "adapter_config.json").read_text())["base_model_name_or_path"] == str(tiny)


def test_a_step_is_that_of_adamw_on_the_mean_loss_of_the_labels(tiny, tmp_path, tokenizer):
    records = [{"prompt": f"{words(seed % 5 + 1)} ", "completion": words(seed % 7 + 1, seed)} for seed in range(9)]
    path = write_lines(tmp_path / "d.jsonl", records)
    data = load_data(path, tokenizer, options=OPTIONS)
    settings = TrainSettings(steps=1, batch_size=8, learning_rate=1e-3, warmup=0.0, max_gradient_norm=0.5)
    ours, other = live(tiny), live(tiny)
    result = train(ours, data, config=CONFIG, settings=settings)
    inject(other, CONFIG)
    losses = []
    for example in data.train:
        ids, labels = (torch.tensor([example[name]]) for name in ("input_ids", "labels"))
        rows = other(ids).logits[0, :-1].log_softmax(-1)
        losses += [-row[label] for row, label in zip(rows, labels[0, 1:], strict=True) if label >= 0]
    loss = torch.stack(losses).mean()
    loss.backward()
    assert result.losses[1] == pytest.approx(loss.item(), rel=1e-5)
    trained = [p for p in other.parameters() if p.requires_grad]
    torch.nn.utils.clip_grad_norm_(trained, 0.5)
    torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.0).step()
    for name, layer in adapter_of(other).items():
        torch.testing.assert_close(result.adapter[name].lora_B, layer.lora_B, atol=1e-6, rtol=0)
        torch.testing.assert_close(result.adapter[name].lora_A, layer.lora_A, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "options",
    [
        {"accumulate": 2, "batch_size": 4},
        {"gradient_checkpointing": True},
    ],
)
def test_accumulation_and_checkpointing_change_nothing_but_memory(options, tiny, tmp_path, tokenizer):
    records = [{"prompt": f"{words(seed % 5 + 1)} ", "completion": words(seed % 7 + 1, seed)} for seed in range(40)]
    data = load_data(write_lines(tmp_path / "d.jsonl", records), tokenizer, options=OPTIONS)
    plain = {"steps": 3, "batch_size": 8, "learning_rate": 1e-2}
    results = [
        train(live(tiny), data, config=CONFIG, settings=TrainSettings(**plain | changed), dynamics=False)
        for changed in ({}, options)
    ]
    for name, layer in results[0].adapter.items():
        torch.testing.assert_close(results[1].adapter[name].delta(), layer.delta(), atol=1e-5, rtol=1e-4)
    assert list(results[0].losses.values()) == pytest.approx(list(results[1].losses.values()), rel=1e-5)


def test_packed_records_train_as_they_do_alone(tiny, tmp_path, tokenizer):
    records = [{"prompt": f"{words(3, seed)} ", "completion": words(4, seed + 1)} for seed in range(12)]
    path = write_lines(tmp_path / "d.jsonl", records)
    losses = {}
    for packing in (False, True):
        data = load_data(path, tokenizer, options=DataOptions(max_length=64, packing=packing))
        settings = TrainSettings(steps=1, batch_size=len(data.train), learning_rate=1e-2)
        losses[packing] = train(live(tiny), data, config=CONFIG, settings=settings, dynamics=False).losses[1]
    assert losses[True] == pytest.approx(losses[False], rel=1e-5)


def test_a_model_that_lets_packed_records_see_each_other_is_refused(tiny, tmp_path, tokenizer):
    path = write_lines(tmp_path / "d.jsonl", [{"text": words(8, seed)} for seed in range(12)])
    data = load_data(path, tokenizer, options=DataOptions(max_length=64, packing=True))
    model = live(tiny)
    model.config._attn_implementation = "leaky"
    with pytest.raises(OptionError, match="attend to each other; train without `packing`"), leaky_attention():
        train(model, data, config=CONFIG, settings=TrainSettings(steps=1, batch_size=1))
    assert not adapted_modules(model)


def leaky_attention():
    """An attention that knows only of one sequence in a row, as a kernel without position ids."""
    from contextlib import contextmanager

    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    def forward(module, query, key, value, attention_mask, **options):
        return sdpa_attention_forward(module, query, key, value, None, is_causal=True, **options)

    @contextmanager
    def registered():
        AttentionInterface.register("leaky", forward)
        AttentionMaskInterface.register("leaky", lambda *_, **__: None)
        yield

    return registered()


def test_lora_plus_gives_the_second_factor_a_rate_of_its_own(tiny, text):
    changes = {}
    for ratio in (1.0, 16.0):
        settings = TrainSettings(steps=1, learning_rate=1e-4, warmup=0.0, lora_plus_ratio=ratio)
        result = train(live(tiny), text, config=CONFIG, settings=settings, options=OPTIONS, dynamics=False)
        changes[ratio] = {name: layer.lora_B for name, layer in result.adapter.items()}
    for name, plain in changes[1.0].items():
        # The first step of Adam is as long as the rate, in every entry.
        torch.testing.assert_close(changes[16.0][name], 16 * plain, rtol=1e-4, atol=1e-9)


def test_an_adapter_on_the_output_layer_learns(tiny, text):
    """TRL's fused head would read the layer's weight past the adapter, and never train it."""
    result = train(live(tiny), text, config=LoRAConfig(rank=4, target="lm_head"), settings=SETTINGS, options=OPTIONS)
    assert result.adapter["lm_head"].delta().norm() > 0.1
    assert result.heldout_loss_after < result.heldout_loss_before - 0.1


@PEFT_WARNS
@pytest.mark.parametrize(
    ("init", "method"),
    [("pissa", "lora"), ("pissa", "dora"), ("olora", "lora"), ("eva", "lora"), ("lora-ga", "lora")],
)
def test_every_start_trains_and_saves_what_the_model_computes(init, method, tiny, text, tmp_path):
    from peft import PeftModel

    model = live(tiny)
    result = train(
        model,
        text,
        config=LoRAConfig(rank=4, alpha=8, init=init, method=method, bias="all" if init == "eva" else "none"),
        settings=TrainSettings(steps=3, learning_rate=1e-2),
        options=OPTIONS,
        output=tmp_path / "out",
        dynamics=False,
    )
    ids = torch.arange(7, 19)[None]
    with torch.no_grad():
        ours = model(ids).logits
        theirs = PeftModel.from_pretrained(live(tiny), tmp_path / "out").eval()(ids).logits
    assert result.heldout_loss_after < result.heldout_loss_before
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_a_live_model_is_left_as_it_was_but_for_its_adapter(tiny, text):
    model = live(tiny)
    config, generation = model.config.to_dict(), model.generation_config.to_dict()
    weights = copy.deepcopy(model.state_dict())
    settings = TrainSettings(steps=2, gradient_checkpointing=True)
    result = train(model, text, config=CONFIG, settings=settings, options=OPTIONS)
    assert "forward" not in vars(model)
    assert (model.config.to_dict(), model.generation_config.to_dict()) == (config, generation)
    assert not model.is_activation_checkpointing
    assert not model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    own = {name.replace(".base_layer", ""): value for name, value in model.state_dict().items()}
    assert all(torch.equal(own[name], value) for name, value in weights.items())
    again = train(model, text, settings=TrainSettings(steps=2), options=OPTIONS, dynamics=False)
    assert again.heldout_loss_before == pytest.approx(result.heldout_loss_after, rel=1e-6)


@pytest.mark.parametrize(("options", "start"), [({"quantize": "nf4"}, "zero"), ({}, "loftq")])
def test_a_base_in_four_bits_learns_stops_and_resumes(options, start, tiny, text, tmp_path):
    settings = TrainSettings(steps=6, batch_size=4, learning_rate=2e-2, save_every=2, **options)
    given = {"config": LoRAConfig(rank=4, init=start), "settings": settings, "options": OPTIONS}
    whole = train(tiny, text, **given)
    assert whole.heldout_loss_after < whole.heldout_loss_before - 0.5
    progress = Reports(3, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(TrainingInterrupted):
        train(tiny, text, **given, output=tmp_path / "out", progress=progress)
    resumed = train(tiny, text, **given, output=tmp_path / "out")
    assert resumed.heldout_loss_after == whole.heldout_loss_after
    for name, layer in whole.adapter.items():
        assert torch.equal(resumed.adapter[name].delta(), layer.delta())


def test_weights_in_four_bits_count_among_the_parameters(tiny, text):
    dense, packed = (
        train(tiny, text, config=CONFIG, settings=TrainSettings(steps=1, quantize=quantize), options=OPTIONS)
        for quantize in (None, "nf4")
    )
    assert packed.trainable_params == dense.trainable_params
    assert (
        packed.total_params
        == dense.total_params
        == sum(p.numel() for p in live(tiny).parameters()) + (dense.trainable_params)
    )


@pytest.mark.parametrize("level", [logging.NOTSET, logging.INFO, logging.CRITICAL])
def test_the_callers_choice_of_what_is_logged_is_restored(level, tiny, text):
    logging.disable(level)
    try:
        train(tiny, text, config=CONFIG, settings=TrainSettings(steps=1), options=OPTIONS, dynamics=False)
        assert logging.root.manager.disable == level
    finally:
        logging.disable(logging.NOTSET)


def test_the_result_fits_on_a_screen_and_has_a_row_for_each_step(unbroken):
    result = unbroken[1]
    assert len(repr(result)) < 1000
    assert [row["step"] for row in result.rows()] == list(range(1, 11))


def test_bfloat16_keeps_the_factors_in_float32_and_learns(tiny, text):
    settings = TrainSettings(steps=10, learning_rate=2e-2, dtype="bfloat16")
    result = train(tiny, text, config=CONFIG, settings=settings, options=OPTIONS, dynamics=False)
    assert {layer.lora_B.dtype for layer in result.adapter.values()} == {torch.float32}
    assert result.heldout_loss_after < result.heldout_loss_before - 1


# ---- stopping and going on


def test_an_interruption_keeps_a_checkpoint_and_resuming_gives_the_bits_of_an_unbroken_run(
    unbroken, tiny, text, tmp_path, monkeypatch
):
    whole, result = unbroken
    options = {"config": LoRAConfig(rank=4, alpha=8, dropout=0.2), "settings": SETTINGS, "options": OPTIONS}
    handler = signal.getsignal(signal.SIGINT)
    progress = Reports(5, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(TrainingInterrupted, match=r"after step 6 of 10; .*out.partial; run the same again to resume"):
        train(tiny, text, **options, output=tmp_path / "out", progress=progress)
    assert signal.getsignal(signal.SIGINT) is handler
    assert not (tmp_path / "out").exists()
    changed = options | {"settings": TrainSettings(steps=20, batch_size=4, learning_rate=2e-2)}
    for force in (False, True):
        with pytest.raises(MismatchError, match=r"(?s)`resume=False`.*settings\.steps: now 20, then 10"):
            train(tiny, text, **changed, output=tmp_path / "out", force=force)
    progress = Reports()
    resumed = train(tiny, text, **options, output=tmp_path / "out", progress=progress)
    assert progress.steps == [6, 7, 8, 9, 10]
    assert same(tmp_path / "out", whole)
    assert resumed.losses == result.losses
    assert resumed.heldout_loss_before == result.heldout_loss_before
    assert resumed.heldout_loss_after == result.heldout_loss_after
    recorded = [json.loads((folder / "dynamics.json").read_text()) for folder in (whole, tmp_path / "out")]
    assert recorded[0]["layers"] == recorded[1]["layers"]
    monkeypatch.setattr(style, "DPI", 30)
    drawn = [save_dynamics(each.dynamics, tmp_path / name) for name, each in (("one", result), ("other", resumed))]
    assert [file.read_bytes() for file in drawn[0]] == [file.read_bytes() for file in drawn[1]]
    assert len(drawn[0]) == 5


OVERFITTING = TrainSettings(
    steps=12, batch_size=4, learning_rate=5e-2, schedule="constant", warmup=0.0, save_every=4, eval_every=2
)


@pytest.fixture(scope="module")
def elsewhere(text, tmp_path_factory):
    """Held-out text with the words of the training text backwards: its loss falls, and then rises."""
    path = tmp_path_factory.mktemp("elsewhere") / "text.txt"
    path.write_text(" ".join(text.read_text().split()[599::-1]))
    return path


def test_the_adapter_with_the_lowest_heldout_loss_is_kept(tiny, text, elsewhere, tokenizer, tmp_path):
    options = {"config": CONFIG, "options": OPTIONS, "held_out": elsewhere}
    best, last = (
        train(tiny, text, settings=dataclasses.replace(OVERFITTING, keep=keep), output=tmp_path / keep, **options)
        for keep in ("best", "last")
    )
    assert best.losses == last.losses  # what is measured does not change what is learned
    assert best.heldout_losses == last.heldout_losses
    assert list(best.heldout_losses) == [0, 2, 4, 6, 8, 10, 12]
    measured = {step: loss for step, loss in best.heldout_losses.items() if step}
    lowest = min(measured, key=measured.__getitem__)
    assert lowest != 12
    assert (best.kept_step, best.heldout_loss_after) == (lowest, measured[lowest])
    assert (last.kept_step, last.heldout_loss_after) == (12, measured[12])
    assert any(f"adapter of step {lowest} is kept" in note for note in best.notes)
    assert not last.notes
    settings = dataclasses.replace(OVERFITTING, steps=lowest, keep="last")
    shorter = train(tiny, text, settings=settings, output=tmp_path / "shorter", **options)
    assert shorter.heldout_loss_after == measured[lowest]
    assert same(tmp_path / "best", tmp_path / "shorter")
    assert not same(tmp_path / "best", tmp_path / "last")
    held_out = load_data(text, tokenizer, options=OPTIONS, held_out=elsewhere).held_out
    model = live(tiny)
    with adapter_applied(model, load_adapter(tmp_path / "best")):
        assert loss_of(model, held_out) == pytest.approx(measured[lowest], rel=1e-5)
    log = json.loads((tmp_path / "best" / "dynamics.json").read_text())["log"]
    assert [loss for loss in log["heldout_loss"] if loss is not None] == pytest.approx(
        list(best.heldout_losses.values()), rel=1e-6
    )


@pytest.mark.parametrize("stop", [5, 9])
def test_a_resumed_training_keeps_the_same_best_adapter(stop, tiny, text, elsewhere, tmp_path):
    options = {"config": CONFIG, "settings": OVERFITTING, "options": OPTIONS, "held_out": elsewhere}
    whole = train(tiny, text, output=tmp_path / "whole", **options)
    progress = Reports(stop, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(TrainingInterrupted):
        train(tiny, text, output=tmp_path / "out", progress=progress, **options)
    resumed = train(tiny, text, output=tmp_path / "out", **options)
    assert resumed.heldout_losses == whole.heldout_losses
    assert resumed.kept_step == whole.kept_step < 12
    assert same(tmp_path / "out", tmp_path / "whole")


def test_without_an_interval_the_heldout_loss_is_measured_ten_times(tiny, text):
    settings = TrainSettings(steps=25, batch_size=1, learning_rate=1e-3)
    result = train(tiny, text, config=CONFIG, settings=settings, options=OPTIONS, dynamics=False)
    assert list(result.heldout_losses) == [0, 3, 6, 9, 12, 15, 18, 21, 24, 25]


def test_an_interruption_in_the_last_step_has_nothing_left_to_stop(unbroken, tiny, text, tmp_path):
    options = {"config": LoRAConfig(rank=4, alpha=8, dropout=0.2), "settings": SETTINGS, "options": OPTIONS}
    progress = Reports(9, lambda: os.kill(os.getpid(), signal.SIGINT))
    result = train(tiny, text, **options, output=tmp_path / "out", progress=progress)
    assert result.steps == SETTINGS.steps
    assert same(tmp_path / "out", unbroken[0])
    assert not (tmp_path / "out.partial").exists()


def test_a_checkpoint_holds_only_what_trains(tiny, text, tmp_path):
    from safetensors.torch import load_file

    with pytest.raises(TrainingInterrupted):
        train(
            tiny,
            text,
            config=LoRAConfig(rank=4, init="pissa"),
            settings=SETTINGS,
            options=OPTIONS,
            output=tmp_path / "out",
            progress=Reports(3, lambda: os.kill(os.getpid(), signal.SIGTERM)),
        )
    checkpoint = max((tmp_path / "out.partial").glob("checkpoint-*"))
    names = load_file(checkpoint / "trained.safetensors").keys()
    assert {name.rpartition(".")[2] for name in names} == {"lora_A", "lora_B", "start_A", "start_B"}
    assert len(load_adapter(checkpoint / "adapter")) == 14
    assert not list(checkpoint.glob("model*"))


def poison(model):
    """A weight that is no number from now on."""
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.base_layer.weight[0, 0] = float("nan")


def test_a_loss_that_is_not_finite_stops_before_the_step_and_names_step_and_layer(tiny, text, tmp_path):
    model = live(tiny)
    kept = {}

    def break_it():
        kept.update({name: layer.lora_B.clone() for name, layer in adapter_of(model).items()})
        poison(model)

    with pytest.raises(DivergenceError) as refusal:
        train(
            model,
            text,
            config=CONFIG,
            settings=SETTINGS,
            options=OPTIONS,
            output=tmp_path / "out",
            progress=Reports(4, break_it),
        )
    message = str(refusal.value)
    assert refusal.value.step == 5
    assert "stopped at step 5 of 10" in message
    assert "model.layers.1.mlp.down_proj" in message
    folder = tmp_path / "out.partial" / "last-good"
    assert str(folder) in message
    assert all(torch.equal(layer.lora_B, kept[name]) for name, layer in load_adapter(folder).items())
    assert not adapted_modules(model)
    again = {"config": CONFIG, "settings": SETTINGS, "options": OPTIONS, "output": tmp_path / "out"}
    with pytest.raises(MismatchError, match="started with different settings"):
        train(tiny, text, **again)
    assert folder.is_dir()
    assert train(tiny, text, **again, resume=False).steps == 10


def test_a_model_that_is_broken_before_it_is_trained_is_refused(tiny, text):
    model = live(tiny)
    model.model.norm.weight.data[0] = float("nan")
    with pytest.raises(NotFiniteError, match="returned NaN or Inf before training: its loss on held-out data is nan"):
        train(model, text, config=CONFIG, settings=SETTINGS, options=OPTIONS)


def test_a_gradient_that_is_not_finite_stops_before_the_step(tiny, text):
    model = live(tiny)
    inject(model, CONFIG)
    path = "model.layers.0.self_attn.q_proj"
    model.get_submodule(path).factors("default").lora_B.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(DivergenceError, match=rf"step 1 of 10: the gradient is not finite, in {path}.lora_B"):
        train(model, text, settings=SETTINGS, options=OPTIONS)
    assert all(not layer.lora_B.any() for layer in adapter_of(model).values())


def test_memory_that_is_too_small_is_reported_with_the_settings_to_lower(tiny, text):
    def run_out():
        raise torch.OutOfMemoryError

    with pytest.raises(EckartError) as refusal:
        train(tiny, text, config=CONFIG, settings=SETTINGS, options=OPTIONS, progress=Reports(2, run_out))
    lower = ("`batch_size=2` (now 4)", "`gradient_checkpointing`", "`quantize=nf4`", "`max_length=16` (now 32)")
    for advice in (*lower, f"eckart plan {tiny}"):
        assert advice in str(refusal.value)


# ---- what is refused before any work


@pytest.mark.parametrize(
    ("config", "changed", "reason"),
    [
        ({"rank": 17}, {}, "rank 17 is above the dimensions of its 16×16 weight: at most 16"),
        ({"target": "query"}, {}, "'query' matches nothing"),
        ({}, {"options": DataOptions(max_length=65)}, "`max_length` is 65, but the model can attend to 64 tokens only"),
        ({}, {"settings": TrainSettings(batch_size=500)}, "one batch takes 500"),
        ({"init": "loftq"}, {"settings": TrainSettings(quantize="nf4")}, "use it without `quantize`"),
        ({"bias": "all"}, {"settings": TrainSettings(dtype="bfloat16")}, "`dtype=float32` or `bias=none`"),
    ],
)
def test_what_cannot_be_trained_is_refused(config, changed, reason, tiny, text):
    with pytest.raises(EckartError) as refusal:
        train(tiny, text, config=LoRAConfig(**config), **{"options": OPTIONS, **changed})
    assert reason in str(refusal.value)


def test_a_tokenizer_of_another_model_is_refused(tiny, text, tokenizer):
    data = dataclasses.replace(load_data(text, tokenizer, options=OPTIONS), largest_token=32)
    with pytest.raises(MismatchError, match="contain token 32, but the model has 32"):
        train(tiny, data, config=CONFIG, settings=SETTINGS)


def test_without_a_length_sequences_are_as_long_as_the_model_can_see(tiny, text):
    result = train(tiny, text, config=CONFIG, settings=TrainSettings(steps=1), dynamics=False)
    assert result.run["options"]["max_length"] == 64


def test_an_absurd_scale_is_reported_with_its_value(tiny, text):
    progress = Reports()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = train(
            tiny,
            text,
            config=LoRAConfig(rank=1, alpha=500),
            settings=TrainSettings(steps=1, learning_rate=1e-6),
            options=OPTIONS,
            dynamics=False,
            progress=progress,
        )
    assert "alpha 500 at rank 1 multiplies the update by 500" in progress.notes[0]
    assert result.notes == tuple(progress.notes)


def test_an_output_that_exists_is_replaced_only_when_asked(unbroken, tiny, text, tmp_path):
    (tmp_path / "out").mkdir()
    options = {"config": CONFIG, "settings": TrainSettings(steps=1), "options": OPTIONS, "dynamics": False}
    with pytest.raises(OutputError, match="use `force` to replace it"):
        train(tiny, text, **options, output=tmp_path / "out")
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"files that eckart did not write \(notes\.txt\)"):
        train(tiny, text, **options, output=tmp_path / "out", force=True)
    assert (tmp_path / "out.partial" / "notes.txt").read_text() == "mine"
    (tmp_path / "out.partial" / "notes.txt").unlink()
    beside = []
    train(
        tiny,
        text,
        **options,
        output=tmp_path / "out",
        force=True,
        finish=lambda folder, result: beside.append((folder.name, result.steps)),
    )
    assert beside == [("new", 1)]
    assert load_adapter(tmp_path / "out")


def test_settings_that_cannot_train_are_refused_together():
    with pytest.raises(OptionError) as refusal:
        TrainSettings(
            steps=0, epochs=1.0, batch_size=2.5, learning_rate=math.nan, warmup=1.0, dtype="int8", device="tpu"
        )
    for word in ("steps", "batch_size", "learning_rate", "warmup", "dtype", "device"):
        assert word in str(refusal.value)

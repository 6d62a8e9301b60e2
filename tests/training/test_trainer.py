"""The trainer itself: three ways to one loss, and what TRL would do unasked."""

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, Gemma2ForCausalLM

from eckart.nn import LoRAConfig, inject
from eckart.training import DataOptions, TrainSettings, load_data
from eckart.training.trainer_setup import make_trainer

from .tiny import loss_of

SETTINGS = TrainSettings(steps=2, batch_size=4, device="cpu")


def plain(folder):
    return AutoModelForCausalLM.from_pretrained(folder)


def capped(folder):
    """Gemma 2: its logits go through a tanh, which only TRL's head and the model itself know of."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "head_dim": 8}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    return Gemma2ForCausalLM(
        Gemma2Config(vocab_size=32, final_logit_softcapping=2.0, initializer_range=0.5, **sizes, **heads)
    ).eval()


def halved(folder):
    """A model whose own forward does more than multiply with the output layer."""
    model = plain(folder)
    original = type(model).forward

    class Halved(type(model)):
        def forward(self, *args, **options):
            found = original(self, *args, **options)
            found.logits = found.logits / 2
            return found

    model.__class__ = Halved
    return model


def biased(folder):
    """An output layer that itself has something to learn."""
    model = plain(folder)
    weight = model.lm_head.weight
    model.lm_head = torch.nn.Linear(*reversed(weight.shape))
    model.lm_head.weight = weight
    return model


@pytest.fixture
def make(tokenizer, text, tmp_path):
    data = load_data(text, tokenizer, options=DataOptions(max_length=32))

    def made(model, config):
        inject(model, config)
        return make_trainer(model, tokenizer, data, SETTINGS, tmp_path, save=False)

    return made


@pytest.mark.parametrize(
    ("model", "options", "way"),
    [
        (plain, {}, "pieces"),
        (plain, {"target": ("q_proj", "lm_head")}, "logits"),
        (capped, {}, "fused"),
        (halved, {}, "logits"),
        (biased, {"bias": "all"}, "fused"),
    ],
)
def test_the_loss_is_the_models_own_by_the_cheapest_way_that_is_right(model, options, way, make, tiny):
    trainer = make(model(tiny), LoRAConfig(rank=4, **options))
    assert trainer.loss_path == way
    own = loss_of(trainer.live, trainer.held_out)
    assert trainer.heldout_loss()[0] == pytest.approx(own, rel=1e-5)
    batch = trainer.collate([trainer.train_dataset[place] for place in range(4)])
    gradients = {}
    for each in (way, "logits"):
        trainer.loss_path = each
        trainer.compute_loss(trainer.live, dict(batch)).backward()
        gradients[each] = {n: p.grad.clone() for n, p in trainer.live.named_parameters() if p.requires_grad}
        trainer.live.zero_grad()
    for name, gradient in gradients["logits"].items():
        torch.testing.assert_close(gradients[way][name], gradient, atol=1e-6, rtol=1e-4)


def test_no_telemetry_is_sent(make, tiny, monkeypatch):
    from trl.trainer import base_trainer

    told = []
    monkeypatch.setattr(base_trainer, "send_telemetry", lambda *args, **options: told.append(args))
    monkeypatch.delenv("CI", raising=False)
    trainer = make(plain(tiny), LoRAConfig(rank=4))
    assert told == []
    kinds = {type(callback).__name__ for callback in trainer.callback_handler.callbacks}
    assert kinds == {"DefaultFlowCallback"}

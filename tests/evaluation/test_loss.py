"""The loss of a model on text."""

import sys

import pytest
import torch

from eckart.engine.progress import NoProgress
from eckart.errors import EckartError, MissingExtraError, NotFiniteError, OptionError, SourceError
from eckart.evaluation import load_model, load_tokenizer, text_loss


def loss_by_hand(model, windows) -> float:
    """Mean of -log softmax at the next token over all windows, in float64 throughout."""
    model = model.double()
    losses = []
    for window in windows:
        logits = model(input_ids=window[None]).logits[0]
        for position in range(len(window) - 1):
            row = logits[position]
            losses.append(torch.logsumexp(row, 0) - row[window[position + 1]])
    model.float()
    return torch.stack(losses).mean().item()


@pytest.mark.parametrize(("tokens", "windows"), [(40, 1), (64, 1), (65, 1), (66, 2), (150, 3)])
def test_loss_is_the_mean_cross_entropy_over_windows_that_do_not_overlap(tiny_llama, tokens, windows):
    model = load_model(tiny_llama)
    ids = torch.randint(3, 32, (tokens,), generator=torch.Generator().manual_seed(tokens))
    pieces = [piece for piece in ids.split(64) if len(piece) > 1]
    result = text_loss(model, ids)
    assert len(pieces) == windows
    assert result.tokens == sum(len(piece) - 1 for piece in pieces)
    with torch.no_grad():
        assert result.nats_per_token == pytest.approx(loss_by_hand(model, pieces), rel=1e-6)


def test_text_and_its_token_ids_have_the_same_loss(tiny_llama, text):
    model, tokenizer = load_model(tiny_llama), load_tokenizer(tiny_llama)
    ids = torch.tensor(tokenizer(text)["input_ids"])
    assert text_loss(model, text, tokenizer, max_length=32) == text_loss(model, ids, max_length=32)


def test_a_tokenizer_that_opens_texts_opens_every_window(tiny_llama, text):
    model, tokenizer = load_model(tiny_llama), load_tokenizer(tiny_llama)
    ids = torch.tensor(tokenizer(text)["input_ids"])

    class Opening(type(tokenizer)):
        def __call__(self, text, add_special_tokens=True, **options):
            found = super().__call__(text, add_special_tokens=False, **options)
            return {"input_ids": [1] * add_special_tokens + found["input_ids"]}

    tokenizer.__class__ = Opening
    result = text_loss(model, text, tokenizer, max_length=51)
    opened = [torch.cat([torch.tensor([1]), piece]) for piece in ids.split(50)]
    assert result.tokens == len(ids)
    with torch.no_grad():
        assert result.nats_per_token == pytest.approx(loss_by_hand(model, opened), rel=1e-6)


def test_progress_counts_the_windows(tiny_llama, text):
    class Reports(NoProgress):
        def start(self, stage, total, unit):
            reports.append((stage, total, unit))

        def update(self, amount, detail=""):
            reports.append((amount, detail))

        def finish(self):
            reports.append("finish")

    reports = []
    model, tokenizer = load_model(tiny_llama), load_tokenizer(tiny_llama)
    loss = text_loss(model, text, tokenizer, max_length=50, progress=Reports(), stage="Reading")
    assert reports[0] == ("Reading", 3, "windows")
    assert [amount for amount, _ in reports[1:4]] == [1, 1, 1]
    assert reports[3][1] == f"{loss.nats_per_token:.4f} nats per token"
    assert reports[4:] == ["finish"]


@pytest.mark.parametrize("short", ["", "rank"])
def test_text_without_a_token_to_predict_is_refused(tiny_llama, short):
    with pytest.raises(EckartError, match=r"tokens: a loss needs at least two"):
        text_loss(load_model(tiny_llama), short, load_tokenizer(tiny_llama))


def test_options_that_cannot_be_met_are_refused(tiny_llama):
    model = load_model(tiny_llama)
    with pytest.raises(OptionError, match="needs the model's tokenizer"):
        text_loss(model, "the rank")
    with pytest.raises(OptionError, match="max_length"):
        text_loss(model, torch.arange(8), max_length=1)


def test_a_model_that_answers_nan_is_refused(tiny_llama):
    model = load_model(tiny_llama)
    model.lm_head.weight.data[0, 0] = float("nan")
    with pytest.raises(NotFiniteError, match="the model returned NaN or Inf"):
        text_loss(model, torch.arange(8))


def test_a_folder_without_a_language_model_is_refused_in_our_words(tmp_path, minilm):
    with pytest.raises(SourceError):
        load_model(tmp_path / "nothing")
    with pytest.raises(SourceError, match="does not load as a causal language model"):
        load_model(minilm)


def test_missing_transformers_is_reported_with_its_extra(monkeypatch, tiny_llama):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtraError, match=r"'train' extra: pip install '"):
        load_model(tiny_llama)


def test_loading_draws_nothing(tiny_llama, capfd):
    load_model(tiny_llama)
    load_tokenizer(tiny_llama)
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")

"""What a combination keeps of each adapter's gain, held to merged models; and the search for weights."""

import pytest

from eckart.errors import EckartError, OptionError
from eckart.evaluation import (
    KeptGain,
    KeptGainMeter,
    load_model,
    load_tokenizer,
    measure_kept,
    search_weights,
    text_loss,
)
from eckart.operations import combine, extract

from .conftest import WORDS
from .tiny_models import train_a_little


def texts():
    return [" ".join(WORDS[(i * i + shift) % 7 + shift] for i in range(200)) for shift in (0, 4)]


@pytest.fixture
def adapters(tiny_llama, tmp_path):
    """An adapter of each text, from a few steps on it."""
    found = []
    for number, text in enumerate(texts()):
        model, tokenizer = load_model(tiny_llama), load_tokenizer(tiny_llama)
        train_a_little(model, tokenizer, text)
        model.save_pretrained(tmp_path / f"tuned{number}")
        found.append(extract(tiny_llama, tmp_path / f"tuned{number}", rank=4).adapter)
    return found


def merged_loss(base, adapter, text):
    """The loss of the base with the adapter's update added to its weights."""
    model = load_model(base)
    for name, layer in adapter.items():
        model.get_submodule(name).weight.data += layer.delta()
    return text_loss(model, text, load_tokenizer(base)).nats_per_token


def test_losses_are_those_of_merged_models_and_the_gain_is_their_ratio(tiny_llama, adapters):
    combination = combine(adapters, weights=[0.7, 0.5]).adapter
    kept = measure_kept(tiny_llama, adapters, combination, texts())
    assert len(kept) == 2
    for each, adapter, text in zip(kept, adapters, texts(), strict=True):
        base = text_loss(load_model(tiny_llama), text, load_tokenizer(tiny_llama))
        assert each.base_loss == pytest.approx(base.nats_per_token)
        assert each.tokens == base.tokens
        assert each.alone_loss == pytest.approx(merged_loss(tiny_llama, adapter, text), abs=1e-5)
        assert each.combined_loss == pytest.approx(merged_loss(tiny_llama, combination, text), abs=1e-5)
        assert each.alone_loss < each.base_loss
        expected = (each.base_loss - each.combined_loss) / (each.base_loss - each.alone_loss)
        assert each.gain_kept == pytest.approx(expected)


def test_an_adapter_alone_keeps_all_of_its_own_gain(tiny_llama, adapters):
    for index, adapter in enumerate(adapters):
        kept = measure_kept(tiny_llama, adapters, adapter, texts())
        assert kept[index].gain_kept == pytest.approx(1, abs=1e-6)


def test_a_text_for_each_adapter_is_needed(tiny_llama, adapters):
    with pytest.raises(OptionError, match="1 texts for 2 adapters"):
        measure_kept(tiny_llama, adapters, adapters[0], texts()[:1])


def test_an_adapter_without_a_gain_has_none_to_keep():
    each = KeptGain(3.0, 3.1, 2.9, 10)
    assert each.gain_kept is None
    assert each.to_json()["gain_kept"] is None


class Quadratic(KeptGainMeter):
    """A meter of known answer: text t keeps 1 − (w_t − best_t)²."""

    def __init__(self, best):
        self.best, self.asked = best, []

    def measure(self, combination, label=""):
        self.asked.append(combination)
        return [KeptGain(3.0, 2.0, 2.0 + (w - b) ** 2, 1) for w, b in zip(combination, self.best, strict=True)]


@pytest.mark.parametrize(
    ("best", "weights"),
    [
        ((1.0, 1.0), (1.0, 1.0)),
        ((0.5, 0.5), (0.5, 0.5)),
        ((1.5, 1.0), (1.5, 1.0)),
        ((1.0, 0.7), (1.5 / 2**0.5, 1 / 2**0.5)),
        ((0.33, 0.33, 0.5), (1 / 3, 1 / 3, 0.5)),
        ((1.0,), (1.0,)),
    ],
)
def test_the_search_finds_the_best_weights_on_its_grid_with_few_combinations(best, weights):
    meter = Quadratic(best)
    found = search_weights(len(best), lambda w: w, meter)
    assert found.weights == pytest.approx(weights)
    assert found.gain_kept == max(found.tried.values())
    assert len(meter.asked) == len(set(meter.asked)) == len(found.tried) <= 3 + 2 * len(best)


def test_a_search_without_any_gain_is_refused():
    meter = Quadratic((1.0,))
    meter.measure = lambda *_: [KeptGain(3.0, 3.0, 2.0, 1)]
    with pytest.raises(EckartError, match="no adapter is better than the base"):
        search_weights(1, lambda w: w, meter)

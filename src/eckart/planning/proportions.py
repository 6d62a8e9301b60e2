"""The sizes of a transformer that memory follows from: read off a config, or guessed from a number of parameters."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from eckart.planning.counts import Outline

_VOCABULARY = 128_256  # Llama 3's, larger than most: a guess should not be too small
_LAYERS_PER_HIDDEN = 1 / 128  # Llama's 7, 8, 13 and 70 B: 32/4096, 40/5120, 80/8192
_KEYS, _INTERMEDIATE, _HEAD = 0.25, 3.5, 128
_MOST_DENSE = 0.3  # share of embeddings in small models


@dataclass(frozen=True)
class Proportions:
    """A decoder's sizes; guessed ones are no whole numbers.

    Attributes:
        params: all numbers in the model.
        linear_params: those in linear layers but the output layer, which QLoRA puts into four bits.
        hidden: entries of a token between layers.
        layers: how many.
        intermediate: entries of a token inside an MLP.
        heads: of attention.
        keys: heads of keys, as a share of `heads`.
        vocabulary: words.
    """

    params: int
    linear_params: float
    hidden: float
    layers: float
    intermediate: float
    heads: float
    keys: float
    vocabulary: int

    @classmethod
    def usual(cls, params: int) -> "Proportions":
        """A Llama of that many parameters: layers = hidden / 128, f = 3.5 h, a quarter as many keys as queries."""
        per_layer = 2 + 2 * _KEYS + 3 * _INTERMEDIATE  # of hidden²
        hidden = (params / per_layer / _LAYERS_PER_HIDDEN) ** (1 / 3)
        linear = params - min(_MOST_DENSE * params, 2 * _VOCABULARY * hidden)
        hidden = (linear / per_layer / _LAYERS_PER_HIDDEN) ** (1 / 3)
        layers = hidden * _LAYERS_PER_HIDDEN
        return cls(params, linear, hidden, layers, _INTERMEDIATE * hidden, hidden / _HEAD, _KEYS, _VOCABULARY)

    @classmethod
    def of(cls, outline: "Outline") -> "Proportions":
        """Those of a model, as far as its config tells; the usual ones otherwise."""
        usual, text = cls.usual(outline.total_params), outline.config.get_text_config()

        def told(name: str, instead: float) -> float:
            value = getattr(text, name, None)
            return value if isinstance(value, int) and value > 0 else instead

        hidden = told("hidden_size", usual.hidden)
        heads = told("num_attention_heads", usual.heads)
        return cls(
            params=outline.total_params,
            linear_params=outline.linear_params,
            hidden=hidden,
            layers=told("num_hidden_layers", usual.layers),
            intermediate=told("intermediate_size", 4 * hidden),
            heads=heads,
            keys=told("num_key_value_heads", heads) / heads,
            vocabulary=round(told("vocab_size", usual.vocabulary)),
        )

    def adapter_params(self, rank: int) -> float:
        """Numbers in factors of a rank on all linear layers: rank · (out + in) of seven in each layer."""
        attention = 4 * self.hidden + 2 * (1 + self.keys) * self.hidden
        return rank * self.layers * (attention + 3 * (self.hidden + self.intermediate))

    def layer_bytes_per_token(self, *, eager_length: int = 0) -> float:
        """What a layer keeps of a token for the backward pass, in 16 bits; eager attention keeps scores too.

        Korthikanti et al. (2022), "Reducing activation recomputation", counted again on transformers' Llama.
        """
        h, g, f, a = self.hidden, self.keys, self.intermediate, self.heads
        scores = max(6 * a * eager_length + 4 * h * (1 - g) - 4 * a, 0) if eager_length else 0
        return (20 + 4 * g) * h + 8 * f + 4 * a + 8 + scores

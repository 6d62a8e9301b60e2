"""Closed-form estimates: memory from a number of parameters, where there is no model to simulate."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from eckart.errors import OptionError
from eckart.planning.memory import Part

if TYPE_CHECKING:
    from eckart.planning.architecture import Outline
    from eckart.planning.setting import PlanSetting

Precision = Literal["float32", "float16", "bfloat16", "int8", "int4"]
BYTES: dict[Precision, float] = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1, "int4": 0.5}
NF4_BYTES = 0.5 + (1 + 4 / 256) / 64  # codes, and for every 64 a scale in 8 bits; every 256 of those share another
_FACTOR_BYTES = 4  # factors are float32 for any dtype of the base
_STATES = 2  # of Adam: the means of the gradient and of its square
_STATE_8BIT = 1 + 4 / 256
_VOCABULARY = 128_256  # Llama 3's, larger than most, so that a guess is not too small
_LAYERS_PER_HIDDEN = 1 / 128  # Llama's 7, 8, 13 and 70 B: 32/4096, 40/5120, 80/8192
_KEYS, _INTERMEDIATE, _HEAD = 0.25, 3.5, 128
_MAX_DENSE = 0.3  # share of embeddings in small models


@dataclass(frozen=True)
class Proportions:
    """The sizes of a decoder that its memory follows from; guessed ones are not integers.

    Attributes:
        params: parameters of the model.
        linear_params: those of the linear layers except the output layer, which QLoRA quantizes.
        hidden: hidden size.
        layers: number of layers.
        intermediate: intermediate size of an MLP.
        heads: attention heads.
        keys: key-value heads, as a share of `heads`.
        vocabulary: vocabulary size.
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
        """A Llama with that many parameters: layers = hidden / 128, f = 3.5 h, a quarter as many keys as queries."""
        per_layer = 2 + 2 * _KEYS + 3 * _INTERMEDIATE  # of hidden²
        hidden = (params / per_layer / _LAYERS_PER_HIDDEN) ** (1 / 3)
        linear = params - min(_MAX_DENSE * params, 2 * _VOCABULARY * hidden)
        hidden = (linear / per_layer / _LAYERS_PER_HIDDEN) ** (1 / 3)
        layers = hidden * _LAYERS_PER_HIDDEN
        return cls(params, linear, hidden, layers, _INTERMEDIATE * hidden, hidden / _HEAD, _KEYS, _VOCABULARY)

    @classmethod
    def from_outline(cls, outline: "Outline") -> "Proportions":
        """The sizes in a model's config; for those that it lacks, the usual ones."""
        usual, text = cls.usual(outline.total_params), outline.config.get_text_config()

        def size(name: str, default: float) -> float:
            value = getattr(text, name, None)
            return value if isinstance(value, int) and value > 0 else default

        hidden = size("hidden_size", usual.hidden)
        heads = size("num_attention_heads", usual.heads)
        return cls(
            params=outline.total_params,
            linear_params=outline.linear_params,
            hidden=hidden,
            layers=size("num_hidden_layers", usual.layers),
            intermediate=size("intermediate_size", 4 * hidden),
            heads=heads,
            keys=size("num_key_value_heads", heads) / heads,
            vocabulary=round(size("vocab_size", usual.vocabulary)),
        )

    def adapter_params(self, rank: int) -> float:
        """Parameters of an adapter on all linear layers: rank · (out + in) for seven of them in each layer."""
        attention = 4 * self.hidden + 2 * (1 + self.keys) * self.hidden
        return rank * self.layers * (attention + 3 * (self.hidden + self.intermediate))

    def layer_bytes_per_token(self, *, eager_length: int = 0) -> float:
        """Bytes that a layer saves per token for the backward pass, in 16 bits; eager attention saves scores too.

        Korthikanti et al. (2022), "Reducing activation recomputation", recounted on transformers' Llama.
        """
        h, g, f, a = self.hidden, self.keys, self.intermediate, self.heads
        scores = max(6 * a * eager_length + 4 * h * (1 - g) - 4 * a, 0) if eager_length else 0
        return (20 + 4 * g) * h + 8 * f + 4 * a + 8 + scores


@dataclass(frozen=True)
class MethodMemory:
    """Bytes that a method needs for any batch size; activations come on top.

    Attributes:
        weights: weights of the base and of the factors.
        gradients: gradients of the trained parameters.
        optimizer: Adam's two states of the trained parameters.
    """

    weights: int
    gradients: int
    optimizer: int

    @property
    def total(self) -> int:
        """The sum of all three."""
        return self.weights + self.gradients + self.optimizer


@dataclass(frozen=True)
class Estimate:
    """Memory of the three ways to fine-tune a model with some number of parameters.

    Attributes:
        full: every parameter is trained.
        lora: factors are trained, in float32, on a base in the requested precision.
        qlora: the same on a base whose linear layers are in NF4.
    """

    full: MethodMemory
    lora: MethodMemory
    qlora: MethodMemory

    def ratio(self, method: Literal["full", "lora", "qlora"]) -> float:
        """Memory of full fine-tuning, as a multiple of that of a method."""
        return self.full.total / getattr(self, method).total


def estimate(
    params: int, precision: Precision = "bfloat16", *, adapter_params: int | None = None, rank: int = 16
) -> Estimate:
    """Weights, gradients and optimizer states of full fine-tuning, LoRA and QLoRA.

    Full fine-tuning stores weights, gradients and both of Adam's states in the precision: 16 bytes per parameter in
    float32. Integers have no gradient: `int8` and `int4` apply to a frozen base, and full fine-tuning is in bfloat16.

    Args:
        params: parameters of the model.
        precision: precision of the base's weights.
        adapter_params: parameters of the adapter; default: `rank` on all linear layers of a usual model.
        rank: rank of that adapter.

    Raises:
        OptionError: a number is not positive, or the precision is unknown.

    Hu et al. (2021); Dettmers et al. (2023).
    """
    if params < 1 or rank < 1 or (adapter_params is not None and adapter_params < 1):
        msg = f"parameters and rank must be positive, got {params}, {adapter_params} and {rank}"
        raise OptionError(msg)
    if precision not in get_args(Precision):
        msg = f"precision must be one of {', '.join(get_args(Precision))}, got {precision!r}"
        raise OptionError(msg)
    usual = Proportions.usual(params)
    trainable = adapter_params if adapter_params is not None else round(usual.adapter_params(rank))
    dense_bytes = max(BYTES[precision], 2) if precision in ("int8", "int4") else BYTES[precision]
    full = round(params * dense_bytes)
    adapter = (trainable * _FACTOR_BYTES, trainable * _FACTOR_BYTES * _STATES)
    in_nf4 = usual.linear_params * NF4_BYTES + (params - usual.linear_params) * dense_bytes
    return Estimate(
        full=MethodMemory(full, full, _STATES * full),
        lora=MethodMemory(round(params * BYTES[precision]) + adapter[0], *adapter),
        qlora=MethodMemory(round(in_nf4) + adapter[0], *adapter),
    )


def estimate_setting(proportions: Proportions, setting: "PlanSetting", *, trained_params: int) -> dict[Part, int]:
    """Peak memory of a training step by part, from the sizes of a model: a rough substitute for a simulation.

    Activations follow Korthikanti et al. for transformers' Llama: (20 + 4g)h + 8f + 4a + 8 bytes per token and layer in
    16 bits, where g is the share of key heads; with checkpointing 2h, and all of that for one layer.

    Args:
        proportions: sizes of the model.
        setting: how to train.
        trained_params: number of trained parameters.
    """
    width = 4 if setting.dtype == "float32" else 2
    each = width if setting.method == "full" else _FACTOR_BYTES
    state = _STATES * (_STATE_8BIT if setting.optimizer == "adamw8bit" else each)
    tokens = setting.batch_size * setting.length
    dense = proportions.params - proportions.linear_params
    base = width * proportions.params
    if setting.method == "qlora":
        base = NF4_BYTES * proportions.linear_params + width * dense
    layer = proportions.layer_bytes_per_token(eager_length=setting.length if setting.attention == "eager" else 0)
    saved = proportions.layers * layer
    if setting.gradient_checkpointing:
        saved = proportions.layers * 2 * proportions.hidden + layer
    logits = 6 * width * proportions.vocabulary * tokens if setting.method == "full" else 0
    parts: dict[Part, int] = {
        "weights": round(base),
        "adapters": 0 if setting.method == "full" else _FACTOR_BYTES * trained_params,
        "gradients": each * trained_params * (2 if setting.replicates_gradients else 1),
        "optimizer": round(state * trained_params),
        "activations": round(saved * tokens * width / 2),
        "other": logits,
    }
    divided: dict[Part, int] = dict(setting.divided)
    if setting.shards_parameters:
        parts["other"] += round(2 * base / proportions.layers)  # a layer, and the message that it is gathered from
        whole = setting.method != "full" and setting.sharding == "fsdp"
        sharded: tuple[Part, ...] = ("weights",) if whole else ("weights", "adapters", "gradients", "optimizer")
        divided |= dict.fromkeys(sharded, setting.gpus)
    return {part: -(-nbytes // divided.get(part, 1)) for part, nbytes in parts.items()}

"""The closed form: memory from a number of parameters, for when there is no model to simulate."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from eckart.errors import OptionError
from eckart.planning.proportions import Proportions

if TYPE_CHECKING:
    from eckart.planning.setting import PlanSetting
    from eckart.planning.simulation import Part

Precision = Literal["float32", "float16", "bfloat16", "int8", "int4"]
BYTES: dict[Precision, float] = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1, "int4": 0.5}
NF4_BYTES = 0.5 + (1 + 4 / 256) / 64  # codes, and for every 64 of them a scale in 8 bits that is itself scaled
_FACTOR_BYTES = 4  # factors are float32 whatever the base is
_STATES = 2  # of Adam: the means of the gradient and of its square
_STATE_8BIT = 1 + 4 / 256


@dataclass(frozen=True)
class MethodMemory:
    """Bytes that a method takes whatever the batch: the activations come on top.

    Attributes:
        weights: of the base, and of the factors.
        gradients: of what trains.
        optimizer: Adam's two states of what trains.
    """

    weights: int
    gradients: int
    optimizer: int

    @property
    def total(self) -> int:
        """All three."""
        return self.weights + self.gradients + self.optimizer


@dataclass(frozen=True)
class Estimate:
    """What the three ways to fine-tune take, from a number of parameters.

    Attributes:
        full: every parameter trains.
        lora: factors train, in float32, on a base in the precision that was asked for.
        qlora: the same on a base whose linear layers are in NF4.
    """

    full: MethodMemory
    lora: MethodMemory
    qlora: MethodMemory

    def ratio(self, method: Literal["full", "lora", "qlora"]) -> float:
        """How many times what a method takes full fine-tuning does."""
        return self.full.total / getattr(self, method).total


def estimate(
    params: int, precision: Precision = "bfloat16", *, adapter_params: int | None = None, rank: int = 16
) -> Estimate:
    """Weights, gradients and optimizer states of full fine-tuning, LoRA and QLoRA.

    Full fine-tuning keeps weights, gradients and both of Adam's states in the precision: 16 bytes a parameter in
    float32. Integers have no gradient: for `int8` and `int4` the base is stored so, full training is bfloat16.

    Args:
        params: numbers in the model.
        precision: of the base's weights.
        adapter_params: numbers in the factors; without, those of `rank` on all linear layers of a usual model.
        rank: of these.

    Raises:
        OptionError: a number is not positive, or there is no such precision.

    Hu et al. (2021); Dettmers et al. (2023).
    """
    if params < 1 or rank < 1 or (adapter_params is not None and adapter_params < 1):
        msg = f"parameters and rank must be positive, got {params}, {adapter_params} and {rank}"
        raise OptionError(msg)
    if precision not in get_args(Precision):
        msg = f"precision must be one of {', '.join(get_args(Precision))}, got {precision!r}"
        raise OptionError(msg)
    usual = Proportions.usual(params)
    trained = adapter_params if adapter_params is not None else round(usual.adapter_params(rank))
    dense_bytes = max(BYTES[precision], 2) if precision in ("int8", "int4") else BYTES[precision]
    full = round(params * dense_bytes)
    adapter = (trained * _FACTOR_BYTES, trained * _FACTOR_BYTES * _STATES)
    in_nf4 = usual.linear_params * NF4_BYTES + (params - usual.linear_params) * dense_bytes
    return Estimate(
        full=MethodMemory(full, full, _STATES * full),
        lora=MethodMemory(round(params * BYTES[precision]) + adapter[0], *adapter),
        qlora=MethodMemory(round(in_nf4) + adapter[0], *adapter),
    )


def estimate_setting(proportions: Proportions, setting: "PlanSetting", *, trained_params: int) -> "dict[Part, int]":
    """Peak memory of a training step by part, from proportions: a rough stand-in for a simulation.

    Activations follow Korthikanti et al. as transformers' Llama keeps them: (20 + 4g)h + 8f + 4a + 8 bytes a token and
    layer in 16 bits, g the share of key heads; with checkpointing 2h, and one layer whole.

    Args:
        proportions: of the model.
        setting: how to train.
        trained_params: numbers that train.
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
    kept = proportions.layers * layer
    if setting.gradient_checkpointing:
        kept = proportions.layers * 2 * proportions.hidden + layer
    logits = 6 * width * proportions.vocabulary * tokens if setting.method == "full" else 0
    return {
        "weights": round(base),
        "adapters": 0 if setting.method == "full" else _FACTOR_BYTES * trained_params,
        "gradients": each * trained_params,
        "optimizer": round(state * trained_params),
        "activations": round(kept * tokens * width / 2),
        "other": logits,
    }

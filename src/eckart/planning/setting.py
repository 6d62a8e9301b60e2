"""What is planned for: how a model is trained, and on how much at once."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from eckart.errors import OptionError

if TYPE_CHECKING:
    from eckart.nn.config import LoRAConfig

Method = Literal["full", "lora", "dora", "qlora"]
BaseDtype = Literal["float32", "float16", "bfloat16"]
Optimizer = Literal["adamw", "adamw8bit"]
Attention = Literal["sdpa", "eager"]


@dataclass(frozen=True, kw_only=True)
class PlanSetting:
    """One training step to be planned.

    Attributes:
        method: `full` trains every weight in `dtype`; `lora` and `dora` an adapter; `qlora` an adapter on a base whose
            linear layers are in NF4 with double quantization.
        lora: the adapter; None is rank 16 on all linear layers. Not looked at by `full`.
        dtype: of the base's weights (of what `qlora` leaves dense) and of the activations. Factors are float32.
        optimizer: AdamW with states in the dtype of what trains, or with states in 8 bits by blocks of 256, as
            bitsandbytes has them.
        batch_size: sequences a step.
        length: tokens a sequence.
        gradient_checkpointing: whether activations of a layer are computed again rather than kept.
        attention: `sdpa` never holds the scores of all pairs of tokens, `eager` does.
    """

    method: Method = "lora"
    lora: "LoRAConfig | None" = None
    dtype: BaseDtype = "bfloat16"
    optimizer: Optimizer = "adamw"
    batch_size: int = 1
    length: int = 1024
    gradient_checkpointing: bool = False
    attention: Attention = "sdpa"

    def __post_init__(self) -> None:
        """Refuse what cannot be trained, all faults at once."""
        faults = [
            f"{name} must be a whole number from {least}, got {value!r}"
            for name, value, least in (("batch_size", self.batch_size, 1), ("length", self.length, 2))
            if type(value) is not int or value < least
        ]
        for name, choices in (
            ("method", Method),
            ("dtype", BaseDtype),
            ("optimizer", Optimizer),
            ("attention", Attention),
        ):
            value: Any = getattr(self, name)
            if value not in get_args(choices):
                faults.append(f"{name} must be one of {', '.join(get_args(choices))}, got {value!r}")
        if self.method == "lora" and self.lora is not None and self.lora.method == "dora":
            faults.append("the adapter is a DoRA: method must be dora (or qlora), got lora")
        if self.method in ("lora", "dora") and self.lora is not None and self.lora.init == "loftq":
            faults.append(f"init loftq puts the base into NF4: method must be qlora, got {self.method}")
        if faults:
            msg = "this training cannot be planned:"
            raise OptionError.listing(msg, faults)

    @property
    def adapter(self) -> "LoRAConfig | None":
        """The adapter that trains, as `eckart.inject` takes it; None for full fine-tuning."""
        if self.method == "full":
            return None
        from eckart.nn.config import LoRAConfig

        config = self.lora or LoRAConfig()
        return replace(config, method="dora") if self.method == "dora" else config

"""The setting of a plan: how a model is trained, and the size of a step."""

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
        lora: the adapter; None is rank 16 on all linear layers. Ignored by `full`.
        dtype: data type of the base's weights (those that `qlora` does not quantize) and of the activations. Factors
            are float32.
        optimizer: AdamW with states in the dtype of the trained parameters, or with states in 8 bits, as in
            bitsandbytes.
        batch_size: sequences per step.
        length: tokens per sequence.
        gradient_checkpointing: whether activations are recomputed in the backward pass rather than saved.
        attention: `eager` stores the full attention matrix, `sdpa` does not.
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
        """Check the fields, and report all faults at once."""
        faults = [
            f"`{name}` must be an integer of at least {minimum}, got {value!r}"
            for name, value, minimum in (("batch_size", self.batch_size, 1), ("max_length", self.length, 2))
            if type(value) is not int or value < minimum
        ]
        for name, choices in (
            ("method", Method),
            ("dtype", BaseDtype),
            ("optimizer", Optimizer),
            ("attention", Attention),
        ):
            value: Any = getattr(self, name)
            if value not in get_args(choices):
                faults.append(f"`{name}` must be one of {', '.join(get_args(choices))}, got {value!r}")
        if self.method == "lora" and self.lora is not None and self.lora.method == "dora":
            faults.append("the adapter is a DoRA: `method` must be dora or qlora, got lora")
        if self.method in ("lora", "dora") and self.lora is not None and self.lora.init == "loftq":
            faults.append(f"`init=loftq` needs a base in NF4: `method` must be qlora, got {self.method}")
        if faults:
            msg = "invalid training settings"
            raise OptionError.listing(msg, faults)

    @property
    def adapter(self) -> "LoRAConfig | None":
        """The adapter, as `eckart.inject` takes it; None for full fine-tuning."""
        if self.method == "full":
            return None
        from eckart.nn.config import LoRAConfig

        config = self.lora or LoRAConfig()
        return replace(config, method="dora") if self.method == "dora" else config

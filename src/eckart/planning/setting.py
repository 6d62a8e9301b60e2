"""The setting of a plan: how a model is trained, and the size of a step."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from eckart.errors import OptionError
from eckart.planning.memory import Part

if TYPE_CHECKING:
    from eckart.nn.config import LoRAConfig

Method = Literal["full", "lora", "dora", "qlora"]
BaseDtype = Literal["float32", "float16", "bfloat16"]
Optimizer = Literal["adamw", "adamw8bit"]
Attention = Literal["sdpa", "eager"]
Sharding = Literal["ddp", "fsdp", "zero1", "zero2", "zero3"]


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
        batch_size: sequences per step, on each GPU.
        length: tokens per sequence.
        gradient_checkpointing: whether activations are recomputed in the backward pass rather than saved.
        attention: `eager` stores the full attention matrix, `sdpa` does not.
        gpus: GPUs that train together.
        sharding: what each of them has a share of; None for one GPU. `ddp`: nothing. `zero1`: optimizer states;
            `zero2`: also gradients. `fsdp` and `zero3`: also parameters, of which each layer is gathered while it
            computes; with `fsdp`, as in `eckart train`, every GPU keeps all factors of an adapter.
    """

    method: Method = "lora"
    lora: "LoRAConfig | None" = None
    dtype: BaseDtype = "bfloat16"
    optimizer: Optimizer = "adamw"
    batch_size: int = 1
    length: int = 1024
    gradient_checkpointing: bool = False
    attention: Attention = "sdpa"
    gpus: int = 1
    sharding: Sharding | None = None

    def __post_init__(self) -> None:
        """Check the fields, and report all faults at once."""
        faults = [
            f"`{name}` must be an integer of at least {minimum}, got {value!r}"
            for name, value, minimum in (
                ("batch_size", self.batch_size, 1),
                ("max_length", self.length, 2),
                ("gpus", self.gpus, 1),
            )
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
        if self.sharding is not None and self.sharding not in get_args(Sharding):
            faults.append(f"`sharding` must be one of {', '.join(get_args(Sharding))}, got {self.sharding!r}")
        elif self.gpus == 1 and self.sharding is not None:
            faults.append(f"`sharding={self.sharding}` needs several GPUs: give `gpus`, or a `memory` such as 2x24GB")
        if self.method == "lora" and self.lora is not None and self.lora.method == "dora":
            faults.append("the adapter is a DoRA: `method` must be dora or qlora, got lora")
        if self.method in ("lora", "dora") and self.lora is not None and self.lora.init == "loftq":
            faults.append(f"`init=loftq` needs a base in NF4: `method` must be qlora, got {self.method}")
        if faults:
            msg = "invalid training settings"
            raise OptionError.listing(msg, faults)

    @property
    def shards_parameters(self) -> bool:
        """Whether each GPU has only a share of the parameters."""
        return self.sharding in ("fsdp", "zero3") and self.gpus > 1

    @property
    def replicates_gradients(self) -> bool:
        """Whether every GPU has all gradients, and a copy of them that is averaged over all GPUs."""
        return self.gpus > 1 and (self.sharding == "ddp" or (self.sharding == "fsdp" and self.method != "full"))

    @property
    def divided(self) -> "dict[Part, int]":
        """Parts of the memory of which each GPU has one in so many, apart from parameters sharded by FSDP."""
        parts: tuple[Part, ...] = {"zero1": ("optimizer",), "zero2": ("optimizer", "gradients")}.get(
            self.sharding or "", ()
        )
        return dict.fromkeys(parts, self.gpus)

    @property
    def adapter(self) -> "LoRAConfig | None":
        """The adapter, as `eckart.inject` takes it; None for full fine-tuning."""
        if self.method == "full":
            return None
        from eckart.nn.config import LoRAConfig

        config = self.lora or LoRAConfig()
        return replace(config, method="dora") if self.method == "dora" else config

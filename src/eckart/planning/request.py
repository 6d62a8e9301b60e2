"""What the user asked for, completed by what suits the model and the data."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypedDict

from eckart.errors import OptionError
from eckart.nn.config import LoRAConfig
from eckart.planning.architecture import Outline
from eckart.planning.guide import rule_for
from eckart.planning.memory import Memory, number_of_gpus
from eckart.planning.setting import Attention, BaseDtype, Method, Optimizer, PlanSetting, Sharding
from eckart.training.data import DEFAULT_LENGTH


class Options(TypedDict, total=False):
    """How to train, apart from the method.

    Attributes:
        rank: rank of the adapter; alpha is twice that. Default: by the size of the data.
        target: modules to adapt, as `LoRAConfig` takes them. Default: all linear layers.
        batch_size: sequences per step, on each GPU. Default: 1.
        max_length: tokens per sequence. Default: 1024, or the model's context length if that is shorter.
        dtype: data type of the base and the activations. Default: bfloat16.
        optimizer: `adamw` or `adamw8bit`.
        gradient_checkpointing: recompute activations rather than save them.
        attention: `sdpa` if the model's code supports it, or `eager`.
        gpus: GPUs that train together. Default: 1, or as many as a `memory` such as `8x80GB` says.
        sharding: what each GPU has a share of: `ddp`, `fsdp`, `zero1`, `zero2` or `zero3`. Default: `fsdp`.
    """

    rank: int | None
    target: Sequence[str] | None
    batch_size: int
    max_length: int | None
    dtype: BaseDtype
    optimizer: Optimizer
    gradient_checkpointing: bool
    attention: Attention | None
    gpus: int | None
    sharding: Sharding | None


@dataclass(frozen=True)
class Request:
    """What the user asked for, and for everything else what the rules say.

    Attributes:
        setting: the whole setting, with an adapter whatever its method is.
        named: names of the options that the user gave; the others may be changed by advice.
        memory: memory to fit into.
        examples: size of the training data.
    """

    setting: PlanSetting
    named: frozenset[str]
    memory: Memory | None = None
    examples: int | None = None

    @property
    def adapter(self) -> LoRAConfig:
        """The adapter of the setting."""
        assert self.setting.lora is not None
        return self.setting.lora

    def using(self, method: Method) -> PlanSetting:
        """The setting with another method."""
        return replace(self.setting, method=method, lora=None if method == "full" else self.setting.lora)


def request_of(
    outline: Outline | None, method: Method | None, memory: Memory | None, examples: int | None, options: Options
) -> Request:
    """The requested options, and for the others what suits the model and the data."""
    positions = outline.positions if outline else None
    length = options.get("max_length")
    if length is not None and positions is not None and length > positions:
        warnings.warn(f"`max_length` {length:,} exceeds the model's context of {positions:,} tokens", stacklevel=4)
    attention, supported = options.get("attention"), outline.attention if outline else "sdpa"
    if attention == "sdpa" and supported == "eager":
        msg = "`attention=sdpa`: this model's code supports only eager"
        raise OptionError(msg)
    gpus = number_of_gpus(options.get("gpus"), memory)
    usual_rank, dropout, _ = rule_for(examples)
    rank, target = options.get("rank"), options.get("target")
    rank = usual_rank if rank is None else rank
    lora = LoRAConfig(rank=rank, alpha=2.0 * rank, dropout=dropout, target=target or LoRAConfig().target)
    setting = PlanSetting(
        method=method or "lora",
        lora=lora,
        dtype=options.get("dtype", "bfloat16"),
        optimizer=options.get("optimizer", "adamw"),
        batch_size=options.get("batch_size", 1),
        length=min(DEFAULT_LENGTH, positions or DEFAULT_LENGTH) if length is None else length,
        gradient_checkpointing=options.get("gradient_checkpointing", False),
        attention=attention or supported,
        gpus=gpus,
        sharding=options.get("sharding") or ("fsdp" if gpus > 1 else None),
    )
    given = {"method": method, **options, "batch_size": setting.batch_size > 1}
    return Request(setting, frozenset(name for name, value in given.items() if value), memory, examples)

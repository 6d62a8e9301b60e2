"""What a user says of an adapter before it is trained."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from eckart.errors import OptionError

Bias = Literal["none", "lora-only", "all"]
Method = Literal["lora", "dora"]
Init = Literal["zero", "pissa", "olora", "eva", "loftq", "lora-ga"]


@dataclass(frozen=True)
class LoRAConfig:
    """An adapter to be made: ΔW = scaling · lora_B · lora_A on every targeted module.

    Attributes:
        rank: rows of lora_A.
        alpha: numerator of the scale, which is alpha / rank.
        dropout: probability that an entry of the input is dropped on its way to lora_A, while training.
        target: names, dotted suffixes, regexes or presets (`attention`, `attention-min`, `mlp`, `all-linear`), by
            PEFT's rules; presets take linear and Conv1D layers only.
        exclude: the same, and it wins.
        bias: which of the model's own biases train: none, those of adapted modules, or all.
        method: `dora` also trains the norm of each output's row (Liu et al. 2024).
        init: how the factors start; see `eckart.nn.initialize`.
        rslora: the scale is alpha / √rank (Kalajdzievski 2023).
        rank_pattern: another rank for modules that answer to a pattern; the first that fits counts.
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    target: str | Sequence[str] = ("all-linear",)
    exclude: str | Sequence[str] = ()
    bias: Bias = "none"
    method: Method = "lora"
    init: Init = "zero"
    rslora: bool = False
    rank_pattern: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what no adapter can have, all faults at once."""
        for name in ("target", "exclude"):
            value = getattr(self, name)
            object.__setattr__(self, name, (value,) if isinstance(value, str) else tuple(value))
        faults = [
            f"rank{f' of {where}' if where else ''} must be a whole number from 1, got {rank}"
            for where, rank in {"": self.rank, **self.rank_pattern}.items()
            if type(rank) is not int or rank < 1
        ]
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            faults.append(f"alpha must be a positive number, got {self.alpha}")
        if not 0 <= self.dropout < 1:
            faults.append(f"dropout must be from 0 to below 1, got {self.dropout}")
        for name, choices in (("bias", Bias), ("method", Method), ("init", Init)):
            if getattr(self, name) not in get_args(choices):
                faults.append(f"{name} must be one of {', '.join(get_args(choices))}, got {getattr(self, name)!r}")
        if not self.target:
            faults.append("target must name at least one module or preset")
        if faults:
            msg = "this adapter cannot be made"
            raise OptionError.listing(msg, faults)
